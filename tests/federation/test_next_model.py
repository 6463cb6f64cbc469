"""From a round's updates to the next model: what is weighted, what is remembered, what the sites are told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eucaim_fl.arrays import Array, ArrayFile, Arrays, encode_arrays
from eucaim_fl.config import ExperimentConfig
from eucaim_fl.durable import write_atomically
from eucaim_fl.errors import NotFiniteError
from eucaim_fl.federation.combining import Gathered, guided, next_model
from eucaim_fl.plan import FederationPlan, make_plan
from eucaim_fl.records import ArraySpec
from eucaim_fl.site.report import SiteReport
from tests.conftest import tiny_recipe

SPECS = (ArraySpec("mean", (2,), "float32", False), ArraySpec("w", (2,), "float32", True))
WEIGHTS: Arrays = {"mean": np.zeros(2, np.float32), "w": np.zeros(2, np.float32)}
SGD = {"name": "sgd", "lr": 0.5, "momentum": 0.0}


@pytest.fixture
def plan_of(tmp_path: Path) -> Callable[..., FederationPlan]:
    def make(**changes: Any) -> FederationPlan:
        config: ExperimentConfig = tiny_recipe(tmp_path, [Path(f"{name}.yaml") for name in "abc"], **changes)
        return make_plan(config, ("a", "b", "c"))

    return make


@pytest.fixture
def gather(tmp_path: Path) -> Callable[..., list[Gathered]]:
    """Sites with their change of every array; `told`: site → what else its report says."""

    def make(plan: FederationPlan, moves: dict[str, float], told: dict[str, dict[str, Any]] | None = None) -> Any:
        found = []
        for site, move in moves.items():
            file = tmp_path / f"{site}.safetensors"
            update: dict[str, Array] = {name: np.full(2, move, np.float32) for name in WEIGHTS}
            write_atomically(file, encode_arrays(update))
            values = {"patients": 10, **(told or {}).get(site, {})}
            report = SiteReport.model_validate(
                {
                    "kind": "round",
                    "site": site,
                    "plan_sha256": plan.sha256(),
                    "round": 1,
                    "cohort_sha256": "0" * 64,
                    **values,
                }
            )
            found.append(Gathered(site, ArrayFile(file), report))
        return found

    return make


def moved(
    plan: FederationPlan, gathered: list[Gathered], state: Arrays | None = None, known: dict[str, int] | None = None
) -> tuple[Arrays, Arrays]:
    return next_model(plan, 1, gathered, known or {}, SPECS, (WEIGHTS, state or {}))


class TestWeighting:
    def test_sites_count_by_patients(self, plan_of: Any, gather: Any) -> None:
        plan = plan_of()
        weights, state = moved(plan, gather(plan, {"a": 1.0, "b": 2.0}, {"b": {"patients": 30}}))
        assert weights["w"].tolist() == [1.75, 1.75]
        assert state == {}

    def test_or_all_alike(self, plan_of: Any, gather: Any) -> None:
        plan = plan_of(method={"weighting": {"name": "equal"}})
        weights, _ = moved(plan, gather(plan, {"a": 1.0, "b": 2.0}, {"b": {"patients": 30}}))
        assert weights["w"].tolist() == [1.5, 1.5]

    def test_normalised_updates_have_a_scale_that_buffers_have_not(self, plan_of: Any, gather: Any) -> None:
        plan = plan_of(
            method={"weighting": {"name": "normalised"}},
            training={"local_steps": 4, "optimizer": SGD},
        )
        told = {"a": {"patients": 10}, "b": {"patients": 30}}
        weights, _ = moved(plan, gather(plan, {"a": 1.0, "b": 1.0}, told))
        assert weights["w"] == pytest.approx([1.0] * 2)  # τ_eff · Σ pᵢΔᵢ/aᵢ with equal steps
        assert weights["mean"].tolist() == [1.0, 1.0]

    def test_in_epochs_a_site_with_more_patients_has_made_more_steps(self, plan_of: Any, gather: Any) -> None:
        plan = plan_of(
            method={"weighting": {"name": "normalised"}},
            training={"local_steps": None, "local_epochs": 1, "batch_size": 10, "optimizer": SGD},
        )
        told = {"a": {"patients": 10}, "b": {"patients": 30}}
        weights, _ = moved(plan, gather(plan, {"a": 1.0, "b": 0.0}, told))
        assert weights["w"] == pytest.approx([0.625] * 2)  # p = 1/4, 3/4; a = 1, 3; τ_eff = 2.5

    def test_losses_that_are_told_move_the_weights_and_are_remembered(self, plan_of: Any, gather: Any) -> None:
        plan = plan_of(method={"weighting": {"name": "agnostic", "step": 0.1}})
        told = {"a": {"train_loss": 2.0}, "b": {"train_loss": 1.0}, "c": {"train_loss": 1.0}}
        gathered = gather(plan, {"a": 1.0, "b": 0.0, "c": 0.0}, told)
        _, state = moved(plan, gathered)
        weights, _ = moved(plan, gathered, state)
        assert weights["w"][0] > 1 / 3


SCAFFOLD: dict[str, Any] = {
    "method": {"objective": {"name": "scaffold"}},
    "training": {"local_steps": 2, "optimizer": SGD},
}


class TestControl:
    def test_scaffold_tells_the_sites_the_mean_gradient_of_the_round(self, plan_of: Any, gather: Any) -> None:
        plan = plan_of(**SCAFFOLD)
        assert guided(plan, {}) == {}
        weights, state = moved(plan, gather(plan, {"a": 1.0, "b": 3.0}))
        assert weights["w"].tolist() == [2.0, 2.0]
        told = guided(plan, state)
        assert {name: array.tolist() for name, array in told.items()} == {"guide:w": [-2.0, -2.0]}  # −2 / (2 · 0.5)

    def test_sites_that_were_here_before_and_are_missing_keep_their_part(self, plan_of: Any, gather: Any) -> None:
        plan = plan_of(**SCAFFOLD)
        _, state = moved(plan, gather(plan, {"a": 1.0, "b": 3.0}), known={"c": 20})
        assert guided(plan, state)["guide:w"].tolist() == [-1.0, -1.0]  # half of all patients are here

    def test_a_site_that_joins_late_begins_with_nothing_in_the_mean(self, plan_of: Any, gather: Any) -> None:
        plan = plan_of(**SCAFFOLD)
        _, state = moved(plan, gather(plan, {"a": 1.0}))
        assert guided(plan, state)["guide:w"].tolist() == [-1.0, -1.0]
        _, joined = moved(plan, gather(plan, {"b": 0.0}), state, known={"a": 10})
        # b, told of −1, moved nowhere: its own variate becomes 0 − (−1) − 0 = 1, and the mean of a's and b's is 0
        assert guided(plan, joined)["guide:w"].tolist() == [0.0, 0.0]

    def test_it_goes_together_with_a_server_optimizer_s_own_state(self, plan_of: Any, gather: Any) -> None:
        plan = plan_of(
            method={"objective": {"name": "dynamic", "mu": 1.0}, "server_optimizer": {"name": "momentum"}},
            training=SCAFFOLD["training"],
        )
        gathered = gather(plan, {"a": 1.0, "b": 1.0})
        weights, state = moved(plan, gathered)
        assert weights["w"].tolist() == [2.0, 2.0]  # common − h/mu = 1 + 1
        assert set(state) == {"m.w", "control.w"}
        assert guided(plan, state) == {}
        again, _ = moved(plan, gathered, state, known={"a": 10, "b": 10})
        assert again["w"][0] == pytest.approx(0.9 * 2.0 + 3.0)


class TestFaults:
    def test_weights_that_are_not_finite_are_refused(self, plan_of: Any, gather: Any) -> None:
        plan = plan_of(method={"server_optimizer": {"lr": 1e38}})
        with pytest.raises(NotFiniteError, match="combined weights"):
            next_model(plan, 1, gather(plan, {"a": 1e8}), {}, SPECS, (WEIGHTS, {}))
