"""Sums over training patients by hand, and what the model is given of them; several sites give what one would."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eucaim_fl.cohorts.cohort import PreparedCase
from eucaim_fl.config import BalanceConfig, ClassificationConfig
from eucaim_fl.plan import FederationPlan, make_plan
from eucaim_fl.records import CLASS_SHARES, INPUT_MEAN, INPUT_STD
from eucaim_fl.training import statistics
from eucaim_fl.training.statistics import LEAST_STD, Sums, conditioning, own_input, sums_over
from tests.conftest import tiny_recipe

CLASSES = ClassificationConfig(target="malignant", classes=("no", "yes", "perhaps"))
ADJUSTED = {"loss": "logits", "shares": "federation"}
Plans = Callable[..., FederationPlan]


@pytest.fixture
def standardised(plan_for: Plans) -> FederationPlan:
    return plan_for(data={"standardise": "federation"})


@pytest.fixture
def counted(plan_for: Plans) -> FederationPlan:
    return plan_for(CLASSES, training={"balance": ADJUSTED})


@pytest.fixture
def both(plan_for: Plans) -> FederationPlan:
    return plan_for(CLASSES, data={"standardise": "federation"}, training={"balance": ADJUSTED})


def box(low: float, high: float) -> np.ndarray[Any, Any]:
    """Half of the voxels one value, half another."""
    return np.repeat([low, high], 8).reshape(4, 2, 2)


class TestSumsOver:
    def test_each_patient_adds_its_mean_and_its_mean_square(
        self, standardised: FederationPlan, prepared_case: Callable[..., PreparedCase]
    ) -> None:
        cases = [prepared_case(box(0, 1), patient="p"), prepared_case(box(0.5, 0.5), patient="q")]
        assert sums_over(cases, standardised) == Sums(2, (0.5 + 0.5,), (0.5 + 0.25,))

    def test_several_cases_of_a_patient_are_averaged(
        self, both: FederationPlan, prepared_case: Callable[..., PreparedCase]
    ) -> None:
        cases = [prepared_case(box(v, v), patient="p", target=1) for v in (0, 1)]
        cases.append(prepared_case(box(1, 1), patient="q", target=0))
        assert sums_over(cases, both) == Sums(2, (1.5,), (1.5,), (1, 1, 0))

    def test_what_the_plan_has_no_use_for_is_empty(
        self, plan_for: Plans, counted: FederationPlan, prepared_case: Callable[..., PreparedCase]
    ) -> None:
        cases = [prepared_case(box(0, 1), patient="p", target=2)]
        assert sums_over(cases, counted) == Sums(1, classes=(0, 0, 1))
        assert sums_over(cases, plan_for()) == Sums(1)

    def test_large_images_are_read_in_pieces(
        self,
        standardised: FederationPlan,
        prepared_case: Callable[..., PreparedCase],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(statistics, "_AT_ONCE", 3)
        image = np.arange(16).reshape(4, 2, 2)
        found = sums_over([prepared_case(image)], standardised)
        assert (found.means, found.squares) == ((7.5,), (np.square(image).mean(),))


class TestConditioning:
    def test_a_channel_has_the_mean_and_deviation_of_all_patients(self, standardised: FederationPlan) -> None:
        told = [Sums(1, (1.0,), (1.0,)), Sums(3, (9.0,), (27.0,))]  # 1, 3, 3, 3
        found = conditioning(told, standardised)
        assert set(found) == {INPUT_MEAN, INPUT_STD}
        assert found[INPUT_MEAN].dtype == found[INPUT_STD].dtype == np.float32
        assert found[INPUT_MEAN] == pytest.approx([2.5])
        assert found[INPUT_STD] == pytest.approx([0.75**0.5])

    def test_a_channel_without_contrast_can_be_divided_by(self, standardised: FederationPlan) -> None:
        for told in (Sums(10, (1.0,), (0.1,)), Sums(10, (3.0,), (0.9 - 1e-15,)), Sums(10, (0.0,), (0.0,))):
            assert conditioning([told], standardised)[INPUT_STD] == np.float32(LEAST_STD)

    def test_shares_add_up_to_one_and_none_is_nothing(self, counted: FederationPlan) -> None:
        (shares,) = conditioning([Sums(20, classes=(15, 5, 0)), Sums(9, classes=(9, 0, 0))], counted).values()
        assert shares.dtype == np.float32
        assert shares == pytest.approx(np.array([24, 5, 1]) / 30)

    def test_a_site_that_tells_nothing_is_passed_over(self, both: FederationPlan) -> None:
        told = Sums(4, (2.0,), (1.5,), (2, 2, 0))
        found, alone = conditioning([Sums(0), told], both), conditioning([told], both)
        assert {CLASS_SHARES, INPUT_MEAN, INPUT_STD} == set(found)
        assert all(np.array_equal(found[name], alone[name]) for name in alone)

    @given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 2)), min_size=2, max_size=30), st.data())
    def test_several_sites_are_as_one(self, people: list[tuple[float, int]], data: st.DataObject) -> None:
        recipe = tiny_recipe(Path(), [Path("a.yaml")], data={"standardise": "federation"})
        training = recipe.training.model_copy(update={"balance": BalanceConfig.model_validate(ADJUSTED)})
        plan = make_plan(recipe.model_copy(update={"task": CLASSES, "training": training}), ("a",))
        parts: dict[int, list[tuple[float, int]]] = {}
        for one in people:
            parts.setdefault(data.draw(st.integers(0, 3)), []).append(one)
        apart, together = conditioning([_told(p) for p in parts.values()], plan), conditioning([_told(people)], plan)
        for name, array in together.items():
            assert apart[name] == pytest.approx(array, rel=1e-5, abs=1e-7), name
        assert float(apart[CLASS_SHARES].sum()) == pytest.approx(1, abs=1e-6)

    def test_sums_of_nobody_or_of_another_plan_are_refused(
        self, plan_for: Plans, standardised: FederationPlan, counted: FederationPlan
    ) -> None:
        with pytest.raises(ValueError, match="no sums over any patients"):
            conditioning([Sums(0)], standardised)
        for told in (Sums(3), Sums(3, (1.0, 1.0), (1.0, 1.0)), Sums(3, (1.0,)), Sums(3, (1.0,), (1.0,), (3,))):
            with pytest.raises(ValueError, match="not those of the plan"):
                conditioning([told], standardised)
        with pytest.raises(ValueError, match="not those of the plan"):
            conditioning([Sums(3, classes=(3, 0))], counted)

    def test_a_site_that_counts_more_patients_than_it_tells_of_has_no_more_say(self, counted: FederationPlan) -> None:
        honest, liar = Sums(20, classes=(15, 5, 0)), Sums(20, classes=(1, 1, 78))
        (shares,) = conditioning([honest, liar], counted).values()
        assert shares.tolist() == pytest.approx([15.25 / 40, 5.25 / 40, 19.5 / 40])


def _told(people: list[tuple[float, int]]) -> Sums:
    counts = tuple(sum(kind == index for _, kind in people) for index in range(3))
    return Sums(len(people), (sum(v for v, _ in people),), (sum(v * v for v, _ in people),), counts)


class TestOwnInput:
    def test_a_site_standardises_by_its_own_patients_where_the_plan_says_so(
        self, plan_for: Plans, standardised: FederationPlan, prepared_case: Callable[..., PreparedCase]
    ) -> None:
        cases = [prepared_case(box(0, 1), patient="p"), prepared_case(box(0, 1), patient="q")]
        found = own_input(cases, plan_for(data={"standardise": "site"}))
        assert {name: array.tolist() for name, array in found.items()} == {INPUT_MEAN: [0.5], INPUT_STD: [0.5]}
        assert own_input(cases, standardised) == {}

    def test_shares_of_the_federation_are_none_of_its_business(
        self, plan_for: Plans, prepared_case: Callable[..., PreparedCase]
    ) -> None:
        plan = plan_for(CLASSES, data={"standardise": "site"}, training={"balance": ADJUSTED})
        assert set(own_input([prepared_case(box(0, 1), target=0)], plan)) == {INPUT_MEAN, INPUT_STD}
        assert set(conditioning([Sums(3, classes=(1, 1, 1))], plan)) == {CLASS_SHARES}
