"""Patients of one private round: who is charged, who takes part in a step, and what each brings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from eucaim_fl.cohorts.cohort import PreparedCase
from eucaim_fl.config import ClassificationConfig, SegmentationConfig
from eucaim_fl.errors import PrivacyBudgetError, PrivateTrainingError
from eucaim_fl.plan import FederationPlan
from eucaim_fl.privacy.accounting import Mechanism, epsilon, merged
from eucaim_fl.privacy.promise import promise
from eucaim_fl.training.patients import PatientLoader, check_delta
from eucaim_fl.training.randomness import Randomness

Plans = Callable[..., FederationPlan]
Cases = Callable[..., PreparedCase]

CLASSES_2D = ClassificationConfig(spatial_dims=2, target="malignant", classes=("no", "yes"))
VOLUMES = SegmentationConfig(spatial_dims=3, labels=("lesion",))
PRIVATE = {
    "mechanism": "patient_dp",
    "noise_multiplier": 1.0,
    "delta": 1e-3,
    "clipping_norm": 1.0,
    "sampling_rate": 1.0,
    "secure": False,
}
QUIET = {"flip": 0.0, "scale_intensity": 0.0, "shift_intensity": 0.0}


def everybody(patients: frozenset[str], _mechanism: Mechanism) -> frozenset[str]:
    return patients


@pytest.fixture
def plan_of(plan_for: Plans) -> Plans:
    """Makes a plan of private training without augmentation; keywords are the privacy's, `training` the training's."""

    def make(task: Any = CLASSES_2D, training: dict[str, Any] | None = None, rounds: int = 2, **privacy: Any) -> Any:
        changes = {"augmentation": QUIET, **(training or {})}
        return plan_for(task, training=changes, privacy={**PRIVATE, **privacy}, rounds=rounds)

    return make


@pytest.fixture
def hospital_of(prepared_case: Cases) -> Callable[..., list[PreparedCase]]:
    """Makes cases of 2 × 2 × `slices` voxels that hold 10 × their number + the slice; how many each patient has."""

    def make(slices: int = 1, **images: int) -> list[PreparedCase]:
        patients = [patient for patient, count in images.items() for _ in range(count)]
        values = [np.zeros((2, 2, slices)) + 10 * n + np.arange(slices) for n in range(len(patients))]
        return [
            prepared_case(v, np.zeros_like(v), patient, n % 2)
            for n, (v, patient) in enumerate(zip(values, patients, strict=True))
        ]

    return make


@pytest.fixture
def one_case(prepared_case: Cases) -> PreparedCase:
    return prepared_case(np.zeros((2, 2, 1)), None, "p", 0)


def charged(cases: list[PreparedCase], plan: FederationPlan, seed: int = 0) -> PatientLoader:
    loader = PatientLoader(cases, plan, Randomness.seeded(seed))
    loader.charge(everybody)
    return loader


def values(loader: PatientLoader) -> list[list[list[int]]]:
    """By step and patient, what the examples hold."""
    return [[[int(v) for v in one.images[:, 0, 0, 0]] for one in batch] for batch in loader]


class TestCheckDelta:
    @pytest.mark.parametrize(("delta", "patients"), [(0.01, 100), (0.01, 1000), (0.5, 2)])
    def test_a_delta_that_would_allow_giving_a_patient_away_is_refused(
        self, plan_of: Plans, delta: float, patients: int
    ) -> None:
        with pytest.raises(
            PrivateTrainingError, match=r"not below 1/patients.*with a smaller privacy\.delta"
        ) as caught:
            check_delta(plan_of(delta=delta), patients)
        assert str(patients) not in str(caught.value)
        assert str(patients) in caught.value.local_detail

    @pytest.mark.parametrize(("delta", "patients"), [(0.01, 99), (1e-5, 99_999), (0.5, 1), (0.5, 0)])
    def test_a_smaller_one_is_not(self, plan_of: Plans, delta: float, patients: int) -> None:
        check_delta(plan_of(delta=delta), patients)

    def test_a_plan_without_noise_has_none(self, plan_for: Plans) -> None:
        check_delta(plan_for(), 10**9)

    def test_the_exact_number_of_patients_decides_nothing(self, plan_of: Plans, hospital_of: Any) -> None:
        """Whether a loader can be made would tell plans with other deltas how many patients there are."""
        for patients in ({"a": 1, "b": 1, "c": 1}, {"a": 1, "b": 1, "c": 1, "d": 1}):
            loader = PatientLoader(hospital_of(**patients), plan_of(delta=0.25), Randomness.seeded(0))
            assert loader.patients == set(patients)


class TestCharge:
    def test_nothing_is_drawn_before_it(self, plan_of: Plans, hospital_of: Any) -> None:
        loader = PatientLoader(hospital_of(a=1), plan_of(), Randomness.seeded(0))
        with pytest.raises(RuntimeError, match="only after they were charged"):
            iter(loader)

    def test_nothing_is_drawn_twice_for_one(self, plan_of: Plans, hospital_of: Any) -> None:
        loader = charged(hospital_of(a=1), plan_of())
        list(loader)
        with pytest.raises(RuntimeError, match="one pass"):
            iter(loader)

    def test_a_second_pass_is_refused_before_the_first_has_begun(self, plan_of: Plans, hospital_of: Any) -> None:
        loader = charged(hospital_of(a=1), plan_of())
        iter(loader)
        with pytest.raises(RuntimeError, match="one pass"):
            iter(loader)

    def test_it_is_asked_for_once(self, plan_of: Plans, hospital_of: Any) -> None:
        loader = charged(hospital_of(a=1), plan_of())
        with pytest.raises(RuntimeError, match="charged for once"):
            loader.charge(everybody)

    def test_a_refusal_is_final(self, plan_of: Plans, hospital_of: Any) -> None:
        def refuse(_patients: frozenset[str], _mechanism: Mechanism) -> frozenset[str]:
            raise PrivacyBudgetError("The budget is spent.")

        loader = PatientLoader(hospital_of(a=1), plan_of(), Randomness.seeded(0))
        with pytest.raises(PrivacyBudgetError, match="spent"):
            loader.charge(refuse)
        with pytest.raises(RuntimeError, match="only after they were charged"):
            iter(loader)
        with pytest.raises(RuntimeError, match="charged for once"):
            loader.charge(everybody)

    def test_it_is_told_the_patients_and_the_mechanism_of_one_round(self, plan_of: Plans, hospital_of: Any) -> None:
        told: list[object] = []

        def commit(patients: frozenset[str], mechanism: Mechanism) -> frozenset[str]:
            told.extend([patients, mechanism])
            return patients

        plan = plan_of(sampling_rate=0.3, noise_multiplier=1.7, training={"local_steps": 4})
        PatientLoader(hospital_of(a=3, b=1), plan, Randomness.seeded(0)).charge(commit)
        assert told == [frozenset({"a", "b"}), Mechanism(noise=1.7, rate=0.3, steps=4)]

    def test_those_who_can_not_pay_leave(self, plan_of: Plans, hospital_of: Any) -> None:
        loader = PatientLoader(hospital_of(a=1, b=2, c=1), plan_of(), Randomness.seeded(0))
        loader.charge(lambda patients, _: patients - {"b"})
        assert loader.patients == {"a", "c"}
        assert values(loader) == [[[0], [30]]] * 3

    def test_nobody_can_be_charged_who_does_not_train(self, plan_of: Plans, hospital_of: Any) -> None:
        loader = PatientLoader(hospital_of(a=1), plan_of(), Randomness.seeded(0))
        with pytest.raises(RuntimeError, match="who do not train"):
            loader.charge(lambda patients, _: patients | {"stranger"})
        with pytest.raises(RuntimeError, match="only after they were charged"):
            iter(loader)

    def test_the_rounds_of_a_plan_cost_together_what_the_plan_promises(self, plan_of: Plans, hospital_of: Any) -> None:
        plan = plan_of(sampling_rate=0.2, noise_multiplier=2.0, rounds=5, training={"local_steps": 7})
        paid: list[Mechanism] = []
        for number in range(plan.rounds):
            loader = PatientLoader(hospital_of(a=1, b=1), plan, Randomness.seeded(number))
            loader.charge(lambda patients, mechanism: (paid.append(mechanism), patients)[1])
            assert len(list(loader)) == paid[-1].steps
        assert merged(paid) == (Mechanism(2.0, 0.2, 35),)
        promised = promise(plan)
        assert promised is not None
        assert epsilon(paid, 1e-3) == epsilon([Mechanism(2.0, 0.2, 35)], 1e-3) == promised.epsilon

    @pytest.mark.parametrize("mechanism", ["none", "update_dp"])
    def test_other_plans_sample_no_patients(self, plan_for: Plans, hospital_of: Any, mechanism: str) -> None:
        privacy = {**PRIVATE, "mechanism": mechanism, "sampling_rate": None} if mechanism != "none" else {}
        with pytest.raises(RuntimeError, match="patient_dp alone"):
            PatientLoader(hospital_of(a=1), plan_for(privacy=privacy), Randomness.seeded(0))

    def test_a_seed_is_not_secure(self, plan_of: Plans, hospital_of: Any) -> None:
        with pytest.raises(RuntimeError, match="promises secure randomness"):
            PatientLoader(hospital_of(a=1), plan_of(secure=True), Randomness.seeded(0))


class TestSampling:
    PATIENTS, STEPS = 40, 400

    @pytest.fixture
    def drawn(self, plan_of: Plans, one_case: PreparedCase) -> Callable[..., np.ndarray]:
        """Draws (steps, patients) of who takes part."""

        def draw(rate: float, randomness: Randomness) -> np.ndarray:
            plan = plan_of(sampling_rate=rate, training={"local_steps": self.STEPS})
            cases = [PreparedCase(f"p{n:02d}", n % 2, one_case.entry) for n in range(self.PATIENTS)]
            loader = PatientLoader(cases, plan, randomness)
            loader.charge(everybody)
            told: list[list[str]] = []
            loader._batch = lambda found, *_: told[-1].append(found[0].patient)  # type: ignore[assignment,func-returns-value]
            steps = loader._steps()
            for _ in range(self.STEPS):
                told.append([])
                next(steps)
            return np.array([[f"p{n:02d}" in step for n in range(self.PATIENTS)] for step in told])

        return draw

    @pytest.mark.parametrize("rate", [0.02, 0.3, 0.9])
    def test_each_patient_takes_part_as_often_as_the_rate_says(self, drawn: Any, rate: float) -> None:
        taken = drawn(rate, Randomness.seeded(0)).sum(axis=0)
        low, high = stats.binom.ppf([1e-6, 1 - 1e-6], self.STEPS, rate)
        assert low <= taken.min()
        assert taken.max() <= high
        low, high = stats.binom.ppf([1e-6, 1 - 1e-6], self.STEPS * self.PATIENTS, rate)
        assert low <= taken.sum() <= high

    def test_secure_draws_do_so_too(self, drawn: Any) -> None:
        low, high = stats.binom.ppf([1e-9, 1 - 1e-9], self.STEPS * self.PATIENTS, 0.3)
        assert low <= drawn(0.3, Randomness.secure()).sum() <= high

    def test_patients_and_steps_are_drawn_independently(self, drawn: Any) -> None:
        taken = drawn(0.3, Randomness.seeded(0))
        together = stats.binom.ppf([1e-6, 1 - 1e-6], self.STEPS, 0.3 * 0.3)
        for one, other in ((0, 1), (0, 39), (17, 18)):
            assert together[0] <= (taken[:, one] & taken[:, other]).sum() <= together[1]
        again = stats.binom.ppf([1e-6, 1 - 1e-6], (self.STEPS - 1) * self.PATIENTS, 0.3 * 0.3)
        assert again[0] <= (taken[1:] & taken[:-1]).sum() <= again[1]

    def test_the_size_of_a_step_varies_as_it_must(self, drawn: Any) -> None:
        sizes = drawn(0.3, Randomness.seeded(0)).sum(axis=1)
        ratio = sizes.var(ddof=1) / (self.PATIENTS * 0.3 * 0.7)
        assert 0.7 < ratio < 1.4

    def test_rate_one_takes_everybody(self, drawn: Any) -> None:
        assert drawn(1.0, Randomness.seeded(0)).all()

    def test_a_step_with_nobody_in_it_is_still_a_step(self, plan_of: Plans, hospital_of: Any) -> None:
        loader = charged(hospital_of(a=1), plan_of(sampling_rate=1e-9, training={"local_steps": 5}))
        assert values(loader) == [[]] * 5

    def test_so_is_one_that_nobody_paid_for(self, plan_of: Plans, hospital_of: Any) -> None:
        loader = PatientLoader(hospital_of(a=1), plan_of(), Randomness.seeded(0))
        loader.charge(lambda _patients, _mechanism: frozenset())
        assert values(loader) == [[]] * 3

    def test_an_epoch_takes_everybody_once_on_average(self, plan_of: Plans, hospital_of: Any) -> None:
        plan = plan_of(sampling_rate=0.3, training={"local_steps": None, "local_epochs": 2})
        assert len(list(charged(hospital_of(a=1), plan))) == 7  # ⌈2 / 0.3⌉

    def test_the_order_of_cases_changes_no_sample(self, plan_of: Plans, hospital_of: Any) -> None:
        cases, plan = hospital_of(a=1, b=1, c=1), plan_of(sampling_rate=0.5, training={"local_steps": 20})
        assert values(charged(cases, plan)) == values(charged(cases[::-1], plan))

    def test_one_seed_draws_the_same_and_another_seed_others(self, plan_of: Plans, hospital_of: Any) -> None:
        cases = hospital_of(slices=9, a=4, b=4, c=4)
        plan = plan_of(sampling_rate=0.5, multiplicity=2, training={"local_steps": 10, "augmentation": {"flip": 0.5}})
        first = values(charged(cases, plan))
        assert first == values(charged(cases, plan)) != values(charged(cases, plan, seed=1))

    def test_what_else_is_drawn_from_the_source_meanwhile_changes_nothing(
        self, plan_of: Plans, hospital_of: Any
    ) -> None:
        cases, plan = hospital_of(slices=9, a=4, b=4), plan_of(sampling_rate=0.5, training={"local_steps": 10})
        source = Randomness.seeded(0)
        loader = PatientLoader(cases, plan, source)
        loader.charge(everybody)
        found = []
        for batch in loader:
            source.normal((7,))
            found.append([[int(v) for v in one.images[:, 0, 0, 0]] for one in batch])
        assert found == values(charged(cases, plan))


class TestExamples:
    def test_a_patient_with_many_images_brings_as_many_examples_as_one_with_one(
        self, plan_of: Plans, hospital_of: Any
    ) -> None:
        loader = charged(hospital_of(a=9, b=1), plan_of(multiplicity=4))
        for batch in loader:
            assert [len(one.images) for one in batch] == [4, 4]

    def test_each_image_comes_once_before_any_comes_again(self, plan_of: Plans, hospital_of: Any) -> None:
        loader = charged(hospital_of(a=3), plan_of(multiplicity=8, training={"local_steps": 20}))
        orders = set()
        for (found,) in values(loader):
            assert sorted(found[:3]) == sorted(found[3:6]) == [0, 10, 20]
            assert len(set(found[6:])) == 2
            orders.add(tuple(found[:3]))
        assert len(orders) > 1

    def test_few_examples_of_many_images_are_different_ones(self, plan_of: Plans, hospital_of: Any) -> None:
        seen: Counter[int] = Counter()
        for (found,) in values(charged(hospital_of(a=6), plan_of(multiplicity=2, training={"local_steps": 60}))):
            assert len(set(found)) == 2
            seen.update(found)
        assert len(seen) == 6
        assert min(seen.values()) > 5

    def test_an_image_that_comes_again_shows_other_slices(self, plan_of: Plans, hospital_of: Any) -> None:
        loader = charged(hospital_of(slices=9, a=1), plan_of(multiplicity=6))
        assert all(len(set(found)) > 1 for (found,) in values(loader))

    def test_examples_are_augmented_as_the_plan_says(self, plan_of: Plans, hospital_of: Any) -> None:
        plan = plan_of(multiplicity=6, training={"augmentation": {**QUIET, "shift_intensity": 5.0}})
        (one,), *_ = charged(hospital_of(a=1), plan)
        assert len(one.images[:, 0, 0, 0].unique()) == 6

    def test_images_and_targets_belong_together(self, plan_of: Plans, hospital_of: Any) -> None:
        for batch in charged(hospital_of(a=2, b=3), plan_of(multiplicity=3)):
            for one in batch:
                assert (one.images[:, 0, 0, 0] / 10 % 2 == one.targets).all()

    @pytest.mark.parametrize(
        ("task", "images", "targets"),
        [
            (CLASSES_2D, (3, 1, 2, 2), (3,)),
            (None, (3, 1, 2, 2), (3, 1, 2, 2)),
            (VOLUMES, (3, 1, 2, 2, 4), (3, 1, 2, 2, 4)),
        ],
        ids=["classification", "slices", "volumes"],
    )
    def test_their_shapes_follow_from_the_task(
        self, plan_of: Plans, hospital_of: Any, task: Any, images: Any, targets: Any
    ) -> None:
        ((one,), *_) = charged(hospital_of(slices=4, a=2), plan_of(task, multiplicity=3))
        assert (tuple(one.images.shape), tuple(one.targets.shape)) == (images, targets)
        assert one.images.dtype == torch.float32
