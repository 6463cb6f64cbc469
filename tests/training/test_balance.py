"""Classes with unequal shares: weights that keep the loss's size, logits that stay finite, draws that come in turn."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from eucaim_fl.cohorts.cache import Entry
from eucaim_fl.cohorts.cohort import PreparedCase
from eucaim_fl.config import ClassificationConfig
from eucaim_fl.errors import PlanError
from eucaim_fl.plan import FederationPlan
from eucaim_fl.records import CLASS_SHARES
from eucaim_fl.training.balance import (
    ClassShares,
    class_weights,
    drawn,
    log_shares,
    measure_for,
    shares_for,
    site_shares,
)

Plans = Callable[..., FederationPlan]
THREE = ClassificationConfig(spatial_dims=2, target="grade", classes=("low", "middle", "high"))

counts = st.lists(st.integers(0, 500), min_size=2, max_size=8).filter(any)


def case(patient: str, target: int | None) -> PreparedCase:
    return PreparedCase(patient, target, Entry(Path(), None, (1.0, 1.0, 1.0), (), np.zeros((0, 3), np.int64)))


def cases_of(*targets: int) -> list[PreparedCase]:
    return [case(f"p{number}", target) for number, target in enumerate(targets)]


def shares_of(patients: Sequence[int]) -> ClassShares:
    total = sum(patients)
    return ClassShares(tuple(n / total for n in patients), 0.5 / total)


class Knowing(nn.Module):
    """A network that holds the federation's shares, below another module as the product's does."""

    def __init__(self, *shares: float) -> None:
        super().__init__()
        self.within = nn.Module()
        self.within.weight = nn.Parameter(torch.ones(1))
        self.within.register_buffer(CLASS_SHARES, torch.tensor(shares))


class TestSiteShares:
    def test_patients_are_counted(self) -> None:
        assert site_shares(cases_of(0, 0, 0, 1), 2) == ClassShares((0.75, 0.25), 0.125)

    def test_a_class_that_nobody_has_counts_as_half_a_patient(self) -> None:
        shares = site_shares(cases_of(0, 2, 2), 3)
        assert shares.values == (1 / 3, 0.0, 2 / 3)
        assert shares.above_zero().tolist() == [1 / 3, 1 / 6, 2 / 3]

    def test_a_patient_with_several_cases_counts_once_a_part_for_each(self) -> None:
        several = [case("a", 0), case("a", 0), case("b", 0), case("b", 1)]
        assert site_shares(several, 2) == ClassShares((0.75, 0.25), 0.25)

    @pytest.mark.parametrize(("given", "said"), [([], "without cases"), ([case("a", None)], "without class")])
    def test_they_need_cases_with_classes(self, given: list[PreparedCase], said: str) -> None:
        with pytest.raises(ValueError, match=said):
            site_shares(given, 2)


class TestClassWeights:
    def test_by_hand(self) -> None:
        assert class_weights(shares_of([1, 3]), 1.0).tolist() == [2.0, 2 / 3]

    @given(counts, st.floats(0.01, 2.0))
    def test_their_mean_over_the_patients_is_one(self, patients: list[int], strength: float) -> None:
        weights = class_weights(shares_of(patients), strength)
        assert np.dot(weights, patients) / sum(patients) == pytest.approx(1.0)

    @given(counts, st.floats(0.01, 2.0))
    def test_a_rarer_class_weighs_more_and_none_is_infinite(self, patients: list[int], strength: float) -> None:
        weights = class_weights(shares_of(patients), strength)
        assert (np.isfinite(weights) & (weights > 0)).all()
        for n, weight in zip(patients, weights, strict=True):
            assert all(weight >= other for m, other in zip(patients, weights, strict=True) if n < m)

    @given(counts)
    def test_with_strength_one_classes_that_are_there_count_alike(self, patients: list[int]) -> None:
        weighed = class_weights(shares_of(patients), 1.0) * patients
        assert weighed[weighed > 0] == pytest.approx(sum(patients) / np.count_nonzero(patients))

    def test_a_class_that_nobody_has_takes_nothing_from_the_others(self) -> None:
        assert class_weights(shares_of([1, 3, 0]), 1.0)[:2].tolist() == [2.0, 2 / 3]


class TestLogShares:
    def test_by_hand(self) -> None:
        assert log_shares(shares_of([1, 3]), 2.0).tolist() == pytest.approx([2 * math.log(0.25), 2 * math.log(0.75)])

    @given(counts, st.floats(0.01, 2.0))
    def test_they_are_finite_and_in_the_order_of_the_classes(self, patients: list[int], strength: float) -> None:
        added = log_shares(shares_of(patients), strength)
        assert np.isfinite(added).all()
        for n, one in zip(patients, added, strict=True):
            assert all(one < other for m, other in zip(patients, added, strict=True) if n < m)

    def test_half_a_patient_of_two_hundred_is_far_below(self) -> None:
        assert log_shares(shares_of([100, 100, 0]), 1.0)[2] == pytest.approx(math.log(0.0025))


class TestSharesFor:
    def plan(self, plan_for: Plans, **balance: Any) -> FederationPlan:
        return plan_for(THREE, training={"balance": {"loss": "logits", **balance}})

    def test_those_of_the_site_come_from_its_cases(self, plan_for: Plans) -> None:
        cases = cases_of(0, 1, 1, 1)
        assert shares_for(Knowing(1.0, 0.0, 0.0), cases, self.plan(plan_for)) == site_shares(cases, 3)

    def test_those_of_the_federation_come_with_the_network(self, plan_for: Plans) -> None:
        found = shares_for(Knowing(0.5, 0.25, 0.25), cases_of(0), self.plan(plan_for, shares="federation"))
        assert found == ClassShares((0.5, 0.25, 0.25), 0.125)

    def test_a_class_of_nobody_counts_as_half_of_the_rarest_other(self, plan_for: Plans) -> None:
        found = shares_for(Knowing(0.75, 0.0, 0.25), cases_of(0), self.plan(plan_for, shares="federation"))
        assert found.above_zero().tolist() == [0.75, 0.125, 0.25]

    @pytest.mark.parametrize(
        "network",
        [nn.Linear(1, 1), Knowing(0.5, 0.5), Knowing(0.5, 0.7, -0.2), Knowing(1.0, 1.0, 1.0), Knowing(math.nan, 1, 0)],
        ids=["none", "too few", "negative", "too large", "not finite"],
    )
    def test_a_network_without_them_is_refused(self, plan_for: Plans, network: nn.Module) -> None:
        with pytest.raises(PlanError, match=r"the model does not hold them.*Ask the sites for statistics"):
            shares_for(network, cases_of(0), self.plan(plan_for, shares="federation"))


class TestMeasureFor:
    logits = torch.tensor([[2.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    classes = torch.tensor([0, 2])

    def measured(self, plan_for: Plans, cases: list[PreparedCase], **balance: Any) -> float:
        plan = plan_for(THREE, training={"balance": balance})
        return float(measure_for(Knowing(0.5, 0.25, 0.25), cases, plan)(self.logits, self.classes))

    def losses(self, logits: torch.Tensor) -> list[float]:
        return nn.functional.cross_entropy(logits, self.classes, reduction="none").tolist()

    def test_without_balance_it_is_the_tasks_own(self, plan_for: Plans) -> None:
        assert self.measured(plan_for, cases_of(0)) == pytest.approx(np.mean(self.losses(self.logits)))

    def test_weights_multiply_each_examples_loss(self, plan_for: Plans) -> None:
        first, second = self.losses(self.logits)
        found = self.measured(plan_for, cases_of(0, 0, 0, 2), loss="weights")
        assert found == pytest.approx((first * 2 / 3 + second * 2) / 2)

    def test_logits_get_the_logarithm_of_the_shares(self, plan_for: Plans) -> None:
        shifted = self.logits + torch.tensor([0.75, 0.125, 0.25]).log()
        found = self.measured(plan_for, cases_of(0, 0, 0, 2), loss="logits")
        assert found == pytest.approx(np.mean(self.losses(shifted)))

    def test_the_strength_is_the_exponent(self, plan_for: Plans) -> None:
        shifted = self.logits + 0.5 * torch.tensor([0.5, 0.25, 0.25]).log()
        found = self.measured(plan_for, cases_of(0), loss="logits", strength=0.5, shares="federation")
        assert found == pytest.approx(np.mean(self.losses(shifted)))

    def test_what_is_learnt_beside_the_shares_is_for_equal_ones(self) -> None:
        """Inputs that tell nothing: the best constant logits under the shifted loss are equal."""
        targets, added = torch.tensor([0] * 9 + [1]), torch.tensor(log_shares(shares_of([9, 1]), 1.0))
        logits = torch.zeros(2, dtype=torch.float64, requires_grad=True)
        nn.functional.cross_entropy((logits + added).expand(10, 2), targets).backward()
        assert logits.grad.tolist() == pytest.approx([0.0, 0.0], abs=1e-12)

    def test_shares_that_are_missing_are_said(self, plan_for: Plans) -> None:
        plan = plan_for(THREE, training={"balance": {"loss": "weights", "shares": "federation"}})
        with pytest.raises(PlanError, match="the model does not hold them"):
            measure_for(nn.Linear(1, 1), cases_of(0), plan)


class TestDrawn:
    def first(self, targets: Sequence[int], sampling: Any, draws: int, seed: int = 0) -> list[int]:
        return list(islice(drawn(cases_of(*targets), sampling, np.random.default_rng(seed)), draws))

    def test_by_patients_each_case_comes_once_before_any_comes_again(self) -> None:
        order = self.first([0, 0, 0, 1, 1], "patients", 20)
        assert all(sorted(order[turn : turn + 5]) == [0, 1, 2, 3, 4] for turn in range(0, 20, 5))

    @given(st.lists(st.integers(0, 4), min_size=1, max_size=30), st.integers(0, 120), st.integers(0, 2**32))
    def test_by_classes_no_class_is_ahead_by_more_than_one(self, targets: list[int], draws: int, seed: int) -> None:
        order = self.first(targets, "classes", draws, seed)
        classes = Counter(dict.fromkeys(targets, 0))
        classes.update(targets[place] for place in order)
        assert max(classes.values()) - min(classes.values()) <= 1

    @given(st.lists(st.integers(0, 4), min_size=1, max_size=30), st.integers(0, 120), st.integers(0, 2**32))
    def test_within_a_class_cases_come_in_turn(self, targets: list[int], draws: int, seed: int) -> None:
        times = Counter(self.first(targets, "classes", draws, seed))
        for target in set(targets):
            own = [times[place] for place, other in enumerate(targets) if other == target]
            assert max(own) - min(own) <= 1

    @pytest.mark.parametrize("sampling", ["patients", "classes"])
    def test_the_order_follows_from_the_generator(self, sampling: str) -> None:
        targets = [0, 0, 0, 0, 1, 1, 2]
        assert self.first(targets, sampling, 50) == self.first(targets, sampling, 50)
        assert self.first(targets, sampling, 50) != self.first(targets, sampling, 50, seed=1)

    def test_a_site_with_one_class_draws_what_it_has(self) -> None:
        assert sorted(self.first([1, 1, 1], "classes", 3)) == [0, 1, 2]
