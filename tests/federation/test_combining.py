"""The sites' updates become one: by the plan's rule, or clipped and noised at the server."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eucaim_fl.arrays import Array, ArrayFile, Arrays, encode_arrays
from eucaim_fl.config import ExperimentConfig
from eucaim_fl.durable import write_atomically
from eucaim_fl.errors import NotFiniteError, ReplyError
from eucaim_fl.federation.combining import combined
from eucaim_fl.plan import FederationPlan, make_plan
from eucaim_fl.strategies.weighting import Weighed
from tests.conftest import tiny_recipe

CENTRAL: dict[str, Any] = {
    "mechanism": "central_dp",
    "noise_multiplier": 2.0,
    "delta": 1e-5,
    "clipping_norm": 1.0,
    "secure": False,
}
ARRIVING: Arrays = {"steps": np.array(7), "w": np.zeros(4000, np.float32)}
MODEL = (ARRIVING, lambda name: name == "w")


def counting(*patients: int) -> Weighed:
    """Sites that count by their patients."""
    return Weighed(tuple(float(n) for n in patients))


def spooled(folder: Path, updates: Sequence[Mapping[str, Array]]) -> list[ArrayFile]:
    """Updates as they lie on the disk when they came in."""
    for number, update in enumerate(updates):
        write_atomically(folder / f"{number}.safetensors", encode_arrays(update))
    return [ArrayFile(folder / f"{number}.safetensors") for number in range(len(updates))]


def update(value: float) -> Arrays:
    return {"steps": np.array(12), "w": np.full(4000, value, np.float32)}


@pytest.fixture
def plan_of(tmp_path: Path) -> Callable[..., FederationPlan]:
    """A plan over the sites a, b, c and d."""

    def make(**changes: Any) -> FederationPlan:
        config: ExperimentConfig = tiny_recipe(tmp_path, [Path(f"{name}.yaml") for name in "abcd"], **changes)
        return make_plan(config, ("a", "b", "c", "d"))

    return make


class TestWithoutNoise:
    def test_the_rule_weighs_sites_by_their_patients(
        self, tmp_path: Path, plan_of: Callable[..., FederationPlan]
    ) -> None:
        files = spooled(tmp_path, [update(0.0), update(1.0)])
        common = dict(combined(plan_of(), 1, files, counting(30, 10), MODEL))
        assert common["w"][0] == 0.25

    def test_noise_of_the_sites_leaves_the_rule_as_it_is(
        self, tmp_path: Path, plan_of: Callable[..., FederationPlan]
    ) -> None:
        files = spooled(tmp_path, [update(0.0), update(1.0)])
        plan = plan_of(privacy={**CENTRAL, "mechanism": "update_dp"})
        assert dict(combined(plan, 1, files, counting(30, 10), MODEL))["w"][0] == 0.25


class TestCentralNoise:
    """4,000 values: the sum of clipped updates has noise of 2 · 1 each; it is divided by all four sites of the plan."""

    def common(self, folder: Path, plan: FederationPlan, number: int = 1, patients: Sequence[int] = (30, 10)) -> Arrays:
        return dict(combined(plan, number, spooled(folder, [update(0.0), update(1.0)]), counting(*patients), MODEL))

    def test_it_has_the_stated_spread_around_the_clipped_mean(
        self, tmp_path: Path, plan_of: Callable[..., FederationPlan]
    ) -> None:
        common = self.common(tmp_path, plan_of(privacy=CENTRAL))
        values = common["w"].astype(np.float64)
        expected = 1.0 / np.sqrt(4000) / 4  # one update of length 1 after clipping, in a mean of four sites
        deviation = 2.0 / 4
        assert common["w"].dtype == np.float32
        assert abs(values.mean() - expected) < 4 * deviation / np.sqrt(4000)
        assert abs(values.std() / deviation - 1) < 4 / np.sqrt(2 * 4000)

    def test_counters_stay_as_they_arrived(self, tmp_path: Path, plan_of: Callable[..., FederationPlan]) -> None:
        assert self.common(tmp_path, plan_of(privacy=CENTRAL))["steps"] == 7

    def test_no_site_weighs_more_than_another(self, tmp_path: Path, plan_of: Callable[..., FederationPlan]) -> None:
        plan = plan_of(privacy=CENTRAL)
        one, other = (self.common(tmp_path, plan, patients=patients)["w"] for patients in ((30, 10), (5, 900)))
        assert np.array_equal(one, other)

    def test_a_seed_repeats_a_round_and_no_other(self, tmp_path: Path, plan_of: Callable[..., FederationPlan]) -> None:
        plan = plan_of(privacy=CENTRAL)
        first, again, next_one = (self.common(tmp_path, plan, number)["w"] for number in (1, 1, 2))
        assert np.array_equal(first, again)
        assert not np.array_equal(first, next_one)
        assert not np.array_equal(first, self.common(tmp_path, plan_of(seed=1, privacy=CENTRAL))["w"])

    def test_a_secure_source_never_does(self, tmp_path: Path, plan_of: Callable[..., FederationPlan]) -> None:
        plan = plan_of(privacy={**CENTRAL, "secure": True})
        assert not np.array_equal(self.common(tmp_path, plan)["w"], self.common(tmp_path, plan)["w"])

    def test_updates_that_do_not_fit_are_refused(self, tmp_path: Path, plan_of: Callable[..., FederationPlan]) -> None:
        plan = plan_of(privacy=CENTRAL)
        with pytest.raises(NotFiniteError, match="not finite"):
            combined(plan, 1, spooled(tmp_path, [update(np.inf)]), counting(10), MODEL)
        with pytest.raises(ReplyError, match="5 updates of 4 sites"):
            combined(plan, 1, spooled(tmp_path, [update(0.0)] * 5), counting(*[10] * 5), MODEL)
