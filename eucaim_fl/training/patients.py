"""The training patients of one round: charged for, then sampled step by step; each gives one batch of examples."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eucaim_fl.cohorts.cohort import PreparedCase
from eucaim_fl.errors import PrivateTrainingError
from eucaim_fl.plan import FederationPlan
from eucaim_fl.privacy.accounting import Mechanism
from eucaim_fl.privacy.promise import round_mechanism
from eucaim_fl.tasks import for_task
from eucaim_fl.training.augmentation import augmenter
from eucaim_fl.training.randomness import Randomness

__all__ = ["PatientBatch", "PatientLoader", "check_delta"]

Commit = Callable[[frozenset[str], Mechanism], frozenset[str]]


class PatientBatch(NamedTuple):
    """One patient's examples in one step: images (K, C, *spatial) float32 and targets (K, …), K the multiplicity."""

    images: Tensor
    targets: Tensor


def check_delta(plan: FederationPlan, patients: int) -> None:
    """See that a plan's delta means something for so many patients: giving one of them away whole must exceed it.

    Raises PrivateTrainingError if delta is 1/patients or more. Source: Dwork and Roth 2014, section 2.3.
    """
    delta = plan.privacy.delta
    if delta is not None and delta * patients >= 1:
        raise PrivateTrainingError(
            "The plan's delta is not below 1/patients at this site, so it would promise its patients nothing.",
            fix="Start again with a smaller privacy.delta.",
            local_detail=f"{patients} training patients, delta {delta:g}",
        )


class PatientLoader:
    """Poisson sampling of patients: what is charged for is what is trained on, once.

    patients: all who train before `charge`, those who could pay after it. mechanism: what the round costs each.
    """

    def __init__(self, cases: Sequence[PreparedCase], plan: FederationPlan, randomness: Randomness) -> None:
        """cases: of all training patients. randomness: a stream of the loader's own is taken from it."""
        mechanism = round_mechanism(plan.privacy, plan.training)
        if mechanism is None or plan.privacy.mechanism != "patient_dp":
            raise RuntimeError("patients are sampled under patient_dp alone")
        if plan.privacy.secure and not randomness.is_secure:
            raise RuntimeError("the plan promises secure randomness and was given a seed")
        self._cases: dict[str, list[PreparedCase]] = defaultdict(list)
        for case in cases:
            self._cases[case.patient].append(case)
        self.patients = frozenset(self._cases)
        self.mechanism = mechanism
        self._plan = plan
        self._randomness = randomness.spawned()
        self._asked = self._charged = self._iterated = False

    def charge(self, commit: Commit) -> None:
        """Pay for the round, before anything is drawn: those whom `commit` does not return leave.

        commit: called once with the patients and the round's mechanism; what it raises is raised, and then nothing can
        be drawn. A second call is a defect (RuntimeError).
        """
        if self._asked:
            raise RuntimeError("a round's patients are charged for once")
        self._asked = True
        paid = frozenset(commit(self.patients, self.mechanism))
        if not paid <= self.patients:
            raise RuntimeError("patients were charged who do not train")
        self.patients = paid
        self._charged = True

    def __iter__(self) -> Iterator[list[PatientBatch]]:
        """The sampled patients' examples, one list a step, in canonical order; it may be empty.

        Each charged patient takes part in each step with the mechanism's rate, independently. Iterating before
        `charge`, or twice, is a defect (RuntimeError).
        """
        if not self._charged:
            raise RuntimeError("patients are sampled only after they were charged for")
        if self._iterated:
            raise RuntimeError("a charge pays for one pass over the patients")
        self._iterated = True
        return self._steps()

    def _steps(self) -> Iterator[list[PatientBatch]]:
        order = sorted(self.patients)
        choices = self._randomness.choices()
        seed = int(choices.integers(2**63))
        change = augmenter(self._plan.training.augmentation, self._plan.task.spatial_dims, seed)
        for _ in range(self.mechanism.steps):
            takes_part = self._randomness.uniform(len(order)) < self.mechanism.rate
            yield [
                self._batch(self._cases[patient], change, choices)
                for patient, drawn in zip(order, takes_part, strict=True)
                if drawn
            ]

    def _batch(
        self, cases: Sequence[PreparedCase], change: Callable[[Any], Any], choices: np.random.Generator
    ) -> PatientBatch:
        example = for_task(self._plan.task).training_example
        images: list[NDArray[np.float32]] = []
        targets: list[NDArray[Any]] = []
        for number in islice(_in_turn(len(cases), choices), self._plan.privacy.multiplicity):
            image, target = change(example(cases[number], self._plan, choices))
            images.append(image)
            targets.append(target)
        return PatientBatch(torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(targets)))


def _in_turn(n: int, choices: np.random.Generator) -> Iterator[int]:
    """0 … n − 1 in random order, each once before any comes again."""
    while True:
        yield from (int(i) for i in choices.permutation(n))
