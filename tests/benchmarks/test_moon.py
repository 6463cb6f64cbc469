"""The benchmark of model-contrastive training: its loss by hand, its loop against the product's, and its table."""

from __future__ import annotations

import importlib
import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from eucaim_fl.arrays import Arrays, arrays_sha256
from eucaim_fl.cohorts.cohort import PreparedCase
from eucaim_fl.config import ClassificationConfig, LocalOptimizerConfig
from eucaim_fl.models.networks import get_arrays
from eucaim_fl.models.planned import network_for
from eucaim_fl.plan import FederationPlan
from eucaim_fl.seeding import derive_seed
from eucaim_fl.training.loop import train_round

FOLDER = Path(__file__).resolve().parents[2] / "experiments" / "benchmarks"
TASK = ClassificationConfig(spatial_dims=2, target="malignant", classes=("no", "yes"))


@pytest.fixture(scope="module")
def moon() -> Iterator[ModuleType]:
    sys.path.insert(0, str(FOLDER))
    yield importlib.import_module("moon")
    sys.path.remove(str(FOLDER))


@pytest.fixture(scope="module")
def training(moon: ModuleType) -> ModuleType:
    return importlib.import_module("moon_training")


@pytest.fixture
def plan(plan_for: Callable[..., FederationPlan]) -> FederationPlan:
    return plan_for(
        TASK,
        model={"name": "small_cnn", "args": {"channels": [8, 16], "strides": [2, 2], "pooled": True, "centred": True}},
        data={"size_voxels": [16, 16, 1]},
        training={"optimizer": {"name": "adam", "lr": 0.01}, "schedule": {"kind": "cosine"}},
    )


@pytest.fixture
def cases(prepared_case: Callable[..., PreparedCase]) -> list[PreparedCase]:
    rng = np.random.default_rng(0)
    return [prepared_case(rng.normal(n % 2, 1, (16, 16, 1)), None, f"p{n}", n % 2) for n in range(9)]


def local(training: ModuleType, plan: FederationPlan, mu: float) -> Any:
    return training.Moon(plan, mu, lambda: network_for(plan, 0))


def cell(row: str, seed: int, every: float, mean: float | None, sha256: str = "") -> dict[str, Any]:
    return {
        "row": row, "seed": seed, "all": every, "mean": mean, "validation": every, "round_s": 0.5, "sha256": sha256,
    }  # fmt: skip


class TestContrastive:
    def test_it_is_the_hand_value_of_the_papers_formula(self, training: ModuleType) -> None:
        own, common, before = (torch.tensor([row]) for row in ([3.0, 0.0], [2.0, 0.0], [0.0, 5.0]))
        # s is 1 to the common model and 0 to the earlier one: −ln(e² / (e² + e⁰)) = ln(1 + e⁻²) = 0.126928
        assert float(training.contrastive(own, common, before, 0.5)) == pytest.approx(0.126928, abs=1e-6)
        # the other way round: −ln(e⁰ / (e⁰ + e²)) = 2.126928; of a batch, the mean
        assert float(training.contrastive(own, before, common, 0.5)) == pytest.approx(2.126928, abs=1e-6)
        both = training.contrastive(own.repeat(2, 1), torch.cat([common, before]), torch.cat([before, common]), 0.5)
        assert float(both) == pytest.approx(1.126928, abs=1e-6)

    def test_one_temperature_is_the_default_and_a_higher_one_makes_it_flatter(self, training: ModuleType) -> None:
        own, common, before = (torch.tensor([row]) for row in ([1.0, 0.0], [1.0, 0.0], [0.0, 1.0]))
        assert training.contrastive(own, common, before) == training.contrastive(own, common, before, 0.5)
        assert float(training.contrastive(own, common, before, 1.0)) == pytest.approx(math.log1p(math.exp(-1)))

    def test_its_gradient_leads_to_the_common_model_and_away_from_the_earlier_one(self, training: ModuleType) -> None:
        own = torch.tensor([[1.0, 1.0]], requires_grad=True)
        training.contrastive(own, torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])).backward()
        assert own.grad is not None
        assert own.grad[0, 0] < 0 < own.grad[0, 1]


class TestWatched:
    def test_it_shows_what_the_last_layer_is_given(self, training: ModuleType, plan: FederationPlan) -> None:
        network = network_for(plan, 0)
        logits, seen = training.Watched(network)(torch.rand(3, 1, 16, 16))
        last = [part for part in network.modules() if isinstance(part, torch.nn.Linear)][-1]
        assert seen.shape == (3, 16)
        assert torch.equal(last(seen), logits)

    def test_with_a_projection_head_it_is_the_heads_end(self, training: ModuleType, plan: FederationPlan) -> None:
        plain, network = get_arrays(network_for(plan, 0)), training.with_head(network_for(plan, 0), 1)
        logits, seen = training.Watched(network)(torch.rand(3, 1, 16, 16))
        assert (seen.shape, logits.shape) == ((3, 256), (3, 2))
        arrays = get_arrays(network)
        body = [name for name in arrays if name in plain]
        assert body
        assert all(np.array_equal(arrays[name], plain[name]) for name in body)
        assert arrays_sha256(arrays) == arrays_sha256(get_arrays(training.with_head(network_for(plan, 0), 1)))


@pytest.mark.usefixtures("one_thread")
class TestMoon:
    def products(self, plan: FederationPlan, cases: list[PreparedCase], number: int) -> Arrays:
        network = network_for(plan, 0)
        train_round(network, cases, plan, derive_seed(plan.seed, "training", "a", number), rounds=(number,))
        return get_arrays(network)

    def test_with_mu_0_a_round_ends_with_the_products_bits(
        self, training: ModuleType, plan: FederationPlan, cases: list[PreparedCase]
    ) -> None:
        moon, arriving = local(training, plan, 0.0), get_arrays(network_for(plan, 0))
        for number in (1, 2):
            ours = moon.train("a", cases, number, arriving)
            assert arrays_sha256(ours) == arrays_sha256(self.products(plan, cases, number))

    def test_the_first_round_has_no_contrast_and_later_ones_have_the_last_model(
        self, training: ModuleType, plan: FederationPlan, cases: list[PreparedCase]
    ) -> None:
        sgd = plan.training.model_copy(update={"optimizer": LocalOptimizerConfig(name="sgd", lr=0.1)})
        plan = plan.model_copy(update={"training": sgd})  # Adam makes whole steps of a gradient that is but rounding
        moon, arriving = local(training, plan, 5.0), get_arrays(network_for(plan, 0))
        first, plain = moon.train("a", cases, 1, arriving), self.products(plan, cases, 1)
        assert all(np.allclose(first[name], plain[name], atol=1e-4) for name in plain)
        second, plain = moon.train("a", cases, 2, arriving), self.products(plan, cases, 2)
        assert not all(np.allclose(second[name], plain[name], atol=1e-3) for name in plain)

    def test_every_site_keeps_a_model_of_its_own(
        self, training: ModuleType, plan: FederationPlan, cases: list[PreparedCase]
    ) -> None:
        moon, arriving = local(training, plan, 1.0), get_arrays(network_for(plan, 0))
        at_a, at_b = moon.train("a", cases, 1, arriving), moon.train("b", cases[:5], 1, arriving)
        assert {site: arrays_sha256(kept) for site, kept in moon.kept.items()} == {
            "a": arrays_sha256(at_a), "b": arrays_sha256(at_b),
        }  # fmt: skip


class Adds:
    """Trains by adding 1 at site a and 5 at site b; it remembers in which rounds, and is killed in one."""

    def __init__(self, plan: FederationPlan, dies_in: int = 0) -> None:
        self.plan, self.dies_in = plan, dies_in
        self.rounds: list[int] = []
        self.kept: dict[str, Arrays] = {}

    def train(self, site: str, _cases: object, number: int, arriving: Arrays) -> Arrays:
        if number == self.dies_in:
            raise KeyboardInterrupt("killed")
        self.rounds.append(number)
        self.kept[site] = {name: array + np.float32({"a": 1, "b": 5}[site]) for name, array in arriving.items()}
        return self.kept[site]


class TestFederated:
    sites: ClassVar[dict[str, tuple[int, list[PreparedCase]]]] = {"b": (10, []), "a": (30, [])}

    def test_weights_are_the_mean_of_what_sites_end_with_by_patients(
        self, training: ModuleType, plan: FederationPlan, tmp_path: Path
    ) -> None:
        before = get_arrays(network_for(plan, 0))
        weights, seconds = training.federated(Adds(plan), self.sites, before, tmp_path / "state")
        assert len(seconds) == plan.rounds == 2
        assert all(np.allclose(weights[name] - before[name], 2 * 2.0, atol=1e-5) for name in before)

    def test_a_killed_loop_goes_on_behind_its_last_round_to_the_same_bits(
        self, training: ModuleType, plan: FederationPlan, tmp_path: Path
    ) -> None:
        before, whole = get_arrays(network_for(plan, 0)), Adds(plan)
        expected, _ = training.federated(whole, self.sites, before, tmp_path / "whole")
        with pytest.raises(KeyboardInterrupt, match="killed"):
            training.federated(Adds(plan, dies_in=2), self.sites, before, tmp_path / "state")
        second = Adds(plan)
        weights, seconds = training.federated(second, self.sites, before, tmp_path / "state")
        assert second.rounds == [2, 2]
        assert len(seconds) == 2
        assert arrays_sha256(weights) == arrays_sha256(expected)
        assert {s: arrays_sha256(k) for s, k in second.kept.items()} == {
            s: arrays_sha256(k) for s, k in whole.kept.items()
        }


class TestScores:
    def test_auc_is_of_all_patients_and_the_mean_over_sources_that_have_both_classes(self, moon: ModuleType) -> None:
        found = moon.scores({
            ("a", "p"): (0.9, 0.1, 0.0), ("a", "q"): (0.1, 0.9, 1.0),
            ("b", "p"): (0.5, 0.5, 0.0), ("b", "q"): (0.7, 0.3, 1.0), ("c", "p"): (0.2, 0.8, 1.0),
        })  # fmt: skip
        assert found["by_site"] == {"a": 1.0, "b": 0.0, "c": None}
        assert found["mean"] == 0.5
        assert found["all"] == pytest.approx(5 / 6)


class TestTable:
    def test_distances_are_by_seed_and_to_the_same_network(self, moon: ModuleType) -> None:
        text = moon.table(
            [
                cell("fedavg", 0, 0.8, 0.7, "x"), cell("fedavg", 1, 0.6, 0.5, "y"),
                cell("moon_0", 0, 0.8, 0.7, "x"), cell("moon_0", 1, 0.6, 0.5, "z"),
                cell("moon_1", 0, 0.9, 0.7), cell("moon_1", 1, 0.7, None),
                cell("moon_0_head", 0, 0.5, 0.5), cell("moon_1_head", 0, 0.4, 0.5),
            ],
            {"fedavg": 2.0, "moon_1": 3.0},
        )  # fmt: skip
        assert "| moon_1 | 2 | 0.800 ± 0.141 | +0.100 ± 0.000 | 0.700 | +0.000 | 0.800 ± 0.141 | 0.50 | 1.50 |" in text
        assert "| moon_1_head | 1 | 0.400 | -0.100 | 0.500 | +0.000 | 0.400 | 0.50 |  |" in text
        assert "| fedavg | 2 | 0.700 ± 0.141 | – |" in text
        assert "bits of fedavg under 1 of 2 seeds" in text


class TestMain:
    def test_every_row_has_a_recipe(self, moon: ModuleType, tmp_path: Path) -> None:
        for row in moon.ROWS.values():
            for optimizer in ("adam", "sgd"):
                plan = moon._recipe(row, optimizer, 3, tmp_path).plan
                assert (plan.seed, plan.rounds, plan.training.local_steps, plan.training.batch_size) == (3, 60, 8, 32)
                assert not plan.training.optimizer.kept
                assert plan.method.personal.candidates() == ("common",)

    def test_what_is_there_is_not_done_again(
        self, moon: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(moon, "_do", lambda row, _how, seed, _folder: cell(row, seed, 0.7, 0.6))
        monkeypatch.setattr(moon, "_in_turns", lambda *_: {"fedavg": 1.0})
        figures = tmp_path / "new" / "figures.json"
        given = ["--rows", "fedavg", "--seeds", "0,1", "--folder", str(tmp_path), "--json", str(figures)]
        assert moon.main(given) == 0
        monkeypatch.setattr(moon, "_do", lambda *_: pytest.fail("it was done already"))
        capsys.readouterr()
        assert moon.main(given) == 0
        assert "| fedavg | 2 | 0.700 ± 0.000 |" in capsys.readouterr().out
        assert {one["seed"] for one in json.loads(figures.read_text())["cells"]} == {0, 1}

    def test_an_unknown_row_is_named(self, moon: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit, match="2"):
            moon.main(["--rows", "mono_1"])
        assert "There is no row mono_1." in capsys.readouterr().err
