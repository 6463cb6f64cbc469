"""What a site tells of its patients in numbers: figures, statistics, counts, the training loss, times.

Every set of patients goes through the site's memory of what was told (`differencing`), and every record through
`disclosure`; the gate looks again at what comes out.
"""

from __future__ import annotations

import hashlib
import hmac
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from eucaim_fl.cohorts.cohort import Cohort, PreparedCase
from eucaim_fl.durable import local_key
from eucaim_fl.errors import PrivacyBudgetError
from eucaim_fl.plan import FederationPlan
from eucaim_fl.privacy.figures import noised_classification, noised_segmentation
from eucaim_fl.records import ModelName, SiteMetrics, SplitName
from eucaim_fl.site.coarsening import Numbers
from eucaim_fl.site.differencing import Group, Told
from eucaim_fl.site.disclosure import (
    announced,
    as_told,
    base_name,
    coarse,
    coarse_seconds,
    enough_by_class,
    two_sided,
    withheld,
)
from eucaim_fl.site.gate import GateBounds
from eucaim_fl.site.private_work import PrivateWork
from eucaim_fl.site.report import StatisticsRecord, allowed_metrics
from eucaim_fl.site.statistics import statistics_told
from eucaim_fl.sitefile import SiteFile
from eucaim_fl.training.evaluation import evaluate, patient_results
from eucaim_fl.training.loop import TrainingOutcome
from eucaim_fl.validation.pooling import count_values

__all__ = ["Telling"]

_TRAINED = "train_loss"


class Telling:
    """One plan's numbers at one site. private: None for a plan without noise."""

    def __init__(self, site: SiteFile, plan: FederationPlan, bounds: GateBounds, private: PrivateWork | None) -> None:
        self._plan, self._bounds, self._private = plan, bounds, private
        self._least = bounds.least
        self._told, self._key_file = Told(site.records_folder()), site.records_folder() / "lineage.key"

    def patients(self, cohort: Cohort) -> int:
        """The number of training patients as it is told, near the truth and constant while few of them change.

        Raises JournalError if it can't be remembered.
        """
        trained = {case.patient for case in cohort.cases("train")}
        if self._least.base == 1:
            return len(trained)
        return self._told.number("train", self._plan.sha256(), trained, self._least.training, self._least.base)

    def at_most(self, cohort: Cohort) -> int:
        """A number that training patients can't be above, if they are as many as is told. Raises JournalError."""
        return self.patients(cohort) + (3 * self._least.base // 2 if self._least.base > 1 else 0)

    def set_aside(self, cohort: Cohort) -> int:
        """The number of cases set aside as it is told; of a plan with noise none, for a plan decides who they are."""
        return coarse(len(cohort.quarantined), self._least.metric) if self._private is None else 0

    def training(self, cohort: Cohort, outcome: TrainingOutcome) -> dict[str, float | int]:
        """What is told of a round's training: steps; of a plan without noise also the loss and how many were seen.

        Steps that follow from the number of cases would count these, so then none are told. Fewer patients than the
        minimum are told as nobody where counts are rounded: no rounding may bring an update past the gate.
        Raises JournalError if it can't be remembered.
        """
        least, plan = self._least, self._plan
        steps = 0 if least.base > 1 and plan.training.local_steps is None else outcome.steps
        if plan.privacy.mechanism != "none":
            return {"steps": steps}
        told: dict[str, float | int] = {"steps": steps, "seen": outcome.patients}
        if least.base > 1:
            everybody = self.patients(cohort)
            part = outcome.patients < cohort.patients("train")
            told["seen"] = min(announced(outcome.patients, least.base), everybody) if part else everybody
            if outcome.patients < least.training:
                told["seen"] = 0
        trained = {case.patient for case in cohort.cases("train")}
        if least.apart == 1 or self._told.may_tell(_TRAINED, trained, least.apart):
            told["train_loss"] = outcome.loss
        return told

    def statistics(self, cohort: Cohort) -> StatisticsRecord:
        """The sums over training patients that the plan asks for, as they may leave; see `statistics_told`.

        Raises JournalError if it can't be remembered.
        """
        cases, patients = cohort.cases("train"), self.patients(cohort)
        return statistics_told(cases, self._plan, self._least, self._told, patients)

    def fingerprint(self, cohort: Cohort) -> str:
        """The fingerprint of the cohort as it is told: of confidential data with a key of the site's own and for this
        plan alone, so that who has all patients' files but one can't try whether that one is here, nor see whether two
        plans, which choose by other rules, choose the same patients.

        Raises JournalError if there can be no key.
        """
        if self._least.base == 1:
            return cohort.fingerprint
        told = f"{self._plan.sha256()} {cohort.fingerprint}"
        return hmac.new(local_key(self._key_file), told.encode(), hashlib.sha256).hexdigest()

    def seconds(self, seconds: float) -> float:
        """A time as it is told."""
        return coarse_seconds(seconds, self._least.base)

    def figures(
        self, network: nn.Module, cohort: Cohort, split: SplitName, number: int, model: ModelName = "common"
    ) -> SiteMetrics:
        """Metrics of one split as they may leave; one record for all reasons why they may not.

        model: whose weights the network has. Figures of several models are like those of several rounds: each is over
        the patients of whom the first told, or the site tells nothing.
        With noise on figures, the patients are charged before anything is measured; those who can't pay are not.
        Declared test data of a plan with noise are told of as they are, but for patients of confidential data for whom
        the ledger was ever charged for training: who is test data can have been drawn anew, or from a larger share.
        Raises JournalError or LedgerError if it can't be written down.
        """
        return replace(self._figures(network, cohort, split, number), model=model)

    def _figures(self, network: nn.Module, cohort: Cohort, split: SplitName, number: int) -> SiteMetrics:
        cases = cohort.cases(split)
        if self._private is not None and split not in self._bounds.test_data:
            return self._noised(network, cohort, split, number)
        if self._private is not None and self._least.base > 1:
            trained = self._private.trained(frozenset(case.patient for case in cases))
            cases = tuple(case for case in cases if case.patient not in trained)
        told_of = self._labels if self._plan.task.name == "multilabel" else self._whole
        kept, numbers = told_of(cases, split)
        if not kept:
            return withheld(split)
        measured = evaluate(network, kept, self._plan, split, histograms=self._bounds.score_histograms)
        told = numbers if self._least.base > 1 else None
        return as_told(_finite(measured), self._least, self._bounds.metrics, told)

    def _whole(self, cases: Sequence[PreparedCase], split: str) -> tuple[list[PreparedCase], Numbers]:
        """The cases of the patients whom one set of figures is about, and the numbers told for their groups."""
        survival = self._plan.task.name == "survival"
        kinds = {case.patient: int(case.targets[1]) if survival else case.target for case in cases}
        found = self._groups(split, kinds, both=survival)
        return _of(cases, frozenset().union(*(group.patients for group in found))), [group.number for group in found]

    def _labels(self, cases: Sequence[PreparedCase], split: str) -> tuple[list[PreparedCase], Numbers]:
        """The cases of the patients whom figures of some label are about, with the truth of those labels alone; and the
        numbers told by label. Sets of different labels are compared like those of different plans: all labels can be
        the same column of the network's output."""
        numbers: dict[str, list[int]] = {}
        truths = {case: [math.nan] * len(case.targets) for case in cases}
        for column, label in enumerate(self._plan.task.columns()):
            kinds = {case.patient: int(case.targets[column]) for case in cases if not math.isnan(case.targets[column])}
            found = self._groups(f"{split} {label}", kinds, both=True)
            about = frozenset[str]().union(*(group.patients for group in found))
            for case in _of(cases, about):
                truths[case][column] = case.targets[column]
            if found:
                numbers[label] = [group.number for group in found]
        kept = [replace(case, targets=tuple(truth)) for case, truth in truths.items()]
        return [case for case in kept if not all(map(math.isnan, case.targets))], numbers

    def _groups(self, what: str, kinds: Mapping[str, int | None], *, both: bool) -> tuple[Group, ...]:
        """The groups of patients, by kind, about which figures may be told. both: of the kinds 0 and 1, or of none."""
        least = self._least
        groups = enough_by_class(kinds, least.metric)
        if not groups or (both and not two_sided(groups)):
            return ()
        if least.apart == 1:
            return tuple(Group(members, len(members)) for members in groups.values())
        found = self._told.figures(what, self._plan.sha256(), groups, least.metric, least.base)
        return found if len(found) == len(groups) or not both else ()

    def _noised(self, network: nn.Module, cohort: Cohort, split: SplitName, number: int) -> SiteMetrics:
        noise, private, names = self._plan.privacy.metrics_noise, self._private, self._names()
        if noise is None or private is None or cohort.patients(split) < self._least.metric or not names:
            return withheld(split)
        try:
            paid = private.pay_for_figures(cohort, split, number)
        except PrivacyBudgetError:
            return withheld(split)
        source = private.randomness(number, f"figures {split}")

        def normal(n: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
            return np.asarray(source.normal((n,), dtype=torch.float64).numpy(), dtype=np.float64)

        results = list(patient_results(network, _of(cohort.cases(split), paid), self._plan).values())
        if self._plan.task.name == "segmentation":
            measured = noised_segmentation(split, results, names, noise, normal)
        else:
            measured = noised_classification(
                split,
                np.stack([one["probabilities"] for one in results]),
                np.array([one["truth"] for one in results]),
                histograms=self._bounds.score_histograms,
                noise_multiplier=noise,
                normal=normal,
            )
        measured = replace(measured, values={**measured.values, **count_values(measured.sums)})
        return as_told(_finite(measured), self._least, self._bounds.metrics)

    def _names(self) -> list[str]:
        """The figures that may leave, by plan and policy. With one label its figures are the means over labels, so they
        are measured, and noised, once."""
        task, listed, names = self._plan.task, self._bounds.metrics, allowed_metrics(self._plan)
        if task.name == "segmentation" and len(task.labels) == 1:
            names = {"dice", "hd95_mm"}
        return sorted(name for name in names if listed is None or base_name(name) in listed)


def _of(cases: Sequence[PreparedCase], patients: frozenset[str]) -> list[PreparedCase]:
    return [case for case in cases if case.patient in patients]


def _finite(metrics: SiteMetrics) -> SiteMetrics:
    """Without values that are not numbers: they are left out, never sent as zero."""
    return replace(metrics, values={k: v for k, v in metrics.values.items() if np.isfinite(v)})
