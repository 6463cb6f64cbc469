"""What a site does when it is asked to judge frozen models: run each on its patients, keep their results, tell sums.

A model is opened in a locked process (`eucaim_fl.inference`), gets images and gives numbers; its file is nowhere on the
disk, and is gone with the process. What each patient got stays in the site's records.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from eucaim_fl.cohorts.cohort import Cohort, PreparedCase, open_cohort
from eucaim_fl.cohorts.consent import read_consent
from eucaim_fl.durable import write_atomically
from eucaim_fl.errors import CohortError, JournalError, PlanError, PolicyRefusalError
from eucaim_fl.inference.sandbox import Sandbox, open_model
from eucaim_fl.plan import FederationPlan
from eucaim_fl.records import ArraySpec, Past, SplitName
from eucaim_fl.site.answers import Answer
from eucaim_fl.site.differencing import Told
from eucaim_fl.site.disclosure import enough_by_class
from eucaim_fl.site.gate import default_bounds
from eucaim_fl.site.held_out import held_out_of
from eucaim_fl.site.judged_images import NoAnswer, each_image, most_without_answer
from eucaim_fl.site.lineage import Lineage
from eucaim_fl.site.policy import load_policy
from eucaim_fl.site.policy_decision import bounds
from eucaim_fl.site.policy_privacy import privacy_answer
from eucaim_fl.site.report import SiteReport
from eucaim_fl.site.telling import Telling
from eucaim_fl.site.validation_cells import told_beside, told_record
from eucaim_fl.sitefile import load_site_file
from eucaim_fl.tasks import for_task
from eucaim_fl.tasks.segmentation import predict
from eucaim_fl.training.evaluation import of_patients
from eucaim_fl.validation.groups import PatientValues, groups_of
from eucaim_fl.validation.lesions import volume_ml
from eucaim_fl.validation.patient_figures import Results
from eucaim_fl.validation.patient_masks import mask_results, merged_images
from eucaim_fl.validation.record import ValidationRecord
from eucaim_fl.validation_config import NATIVE_FORMATS, InferenceLimits, ModelContract, ValidationConfig

__all__ = ["JudgingNode"]

_LOG = logging.getLogger("eucaim_fl.site")
_SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")
_TOLD = "validation"
_TOGETHER = 128  # whole images; if a model fails on them it is asked for each alone
_UNTOLD = Past()


class JudgingNode:
    """One site's client for one validation. Not thread-safe."""

    def __init__(self, site_file: Path, plan: FederationPlan) -> None:
        """Load the site file and open the cohort, on the first model's grid.

        Raises PlanError if the plan does not name this site or asks for no validation; PolicyRefusalError if the policy
        requires more privacy than the plan has; and what `load_site_file`, `load_policy` and `open_cohort` raise.
        """
        started = time.perf_counter()
        self.site, self.plan = load_site_file(site_file), plan
        if plan.validation is None or self.site.name not in plan.sites:
            raise PlanError("The plan asks for no validation at this site.", fix="Add it to the recipe's sites.")
        self.asked: ValidationConfig = plan.validation
        place = self.site.policy_path(site_file)
        self._policy = None if place is None else load_policy(place).policy
        release = self.site.release
        self.bounds = default_bounds(release) if self._policy is None else bounds(self._policy, release)
        if self._policy is not None and not privacy_answer(plan, self._policy.privacy)[0]:
            raise PolicyRefusalError("The site's policy refuses the plan: privacy.")
        self.cohort = self._opened(self.asked.models[0])
        self._lineage = Lineage(self.site.records_folder())
        self._told = Told(self.site.records_folder())
        self._telling = Telling(self.site, plan, self.bounds, None)
        self.prepare_seconds = time.perf_counter() - started

    def specs(self) -> tuple[ArraySpec, ...]:
        """Nothing that is trained travels."""
        return ()

    def hello(self, past: Past = _UNTOLD) -> Answer:
        """Who is there, and of how many patients figures would be; no model is opened."""
        return Answer(self._report("hello", 0), {})

    def validate(self, number: int, files: Mapping[str, memoryview]) -> Answer:
        """Run each model on the patients, and tell what may be told.

        files: model's name → its file. The patients' own results lie in the site's records before anything leaves.
        Patients of whom a model gave no answer for an image are in no figure; how many images these are is told.
        Raises InferenceError where a model can't be opened, or fails on too many images; CohortError where too few
        patients are left; JournalError if the site's records can't be written; and what `read_consent` raises.
        """
        started = time.perf_counter()
        torch.set_num_threads(self.site.compute.threads)  # the process may have worked for another site
        self._ask_for_consent()
        results: list[dict[str, Mapping[str, Any]]] = []
        failed: list[dict[str, list[str]]] = []
        cases = self._cases(self.cohort)
        both = {case.patient for case in cases}
        for index, contract in enumerate(self.asked.models):
            own = cases if index == 0 else self._cases(self._opened(contract))
            own = [case for case in own if case.patient in both]
            found, without = self._results(contract, files[contract.name], own)
            results.append(found)
            failed.append(without)
            both &= set(found)
        results = [{patient: one[patient] for patient in sorted(both)} for one in results]
        groups = self._groups([case for case in cases if case.patient in both])
        self._keep(results, groups, failed)
        record = self._tellable(results, groups, Counter(r for one in failed for own in one.values() for r in own))
        self._lineage.record(
            (self.plan.sha256(), self.plan.name),
            ("final", number),
            self.asked.models[0].sha256,
            {"test": {case.patient for case in cases}},
        )
        report = self._report("final", number, time.perf_counter() - started)
        return Answer(report.model_copy(update={"validated": record}), {})

    def remember(self, answer: Answer) -> None:
        """Note which models' figures an answer lets out, where no border does so after its own gate.

        Raises JournalError if it can't be noted; then nothing may leave.
        """
        if answer.report.tells_of_models():
            self._told.of_models(self.plan.sha256(), [model.sha256 for model in self.asked.models])

    # --- patients ---------------------------------------------------------------------------------------------

    def _opened(self, contract: ModelContract) -> Cohort:
        plan = self._plan_for(contract)
        return open_cohort(self.site, plan, held_out=held_out_of(self.site, plan, self._policy))

    def _plan_for(self, contract: ModelContract) -> FederationPlan:
        """The plan with a model's own grid; copied without checks, for it is asked of nobody."""
        training = self.plan.training.model_copy(update={"patch_voxels": contract.patch_voxels})
        return self.plan.model_copy(update={"data": contract.data, "training": training})

    def _ask_for_consent(self) -> None:
        here = {case.patient for name in _SPLITS for case in self.cohort.cases(name)}
        refused = {one.patient for one in read_consent(self.site).refused(here)}
        if refused:
            self.cohort = self.cohort.without(refused)
            _LOG.warning("Consent was withdrawn: patients that are used no longer: %d", len(refused))
        if len({case.patient for case in self._cases(self.cohort)}) < self.bounds.minimum_metric_patients:
            raise CohortError("Too few patients are left to tell figures of.", fix="Nothing can be done from outside.")

    def _cases(self, cohort: Cohort) -> list[PreparedCase]:
        splits = _SPLITS if self.asked.patients == "all" else ("test",)
        return [case for name in splits for case in cohort.cases(name)]

    def _groups(self, cases: Sequence[PreparedCase]) -> dict[str, frozenset[str]]:
        by_patient: dict[str, list[PreparedCase]] = defaultdict(list)
        for case in cases:
            by_patient[case.patient].append(case)
        return {
            patient: groups_of(_values(own, self.plan.task.name), self.asked.subgroups)
            for patient, own in by_patient.items()
        }

    # --- models -----------------------------------------------------------------------------------------------

    def _native(self, contract: ModelContract) -> bool:
        """Whether a program may run here: only where the policy lists its format."""
        listed = () if self._policy is None else self._policy.frozen_models.formats
        return contract.format in NATIVE_FORMATS and contract.format in listed

    def _results(
        self, contract: ModelContract, file: memoryview, cases: Sequence[PreparedCase]
    ) -> tuple[dict[str, Mapping[str, Any]], dict[str, list[str]]]:
        """What a model got on each patient; of the patients of whom it gave no answer for an image, why."""
        plan, task = self._plan_for(contract), self.plan.task
        labels = task.labels if task.name == "segmentation" else ()
        masks = bool(labels)

        def opened() -> Sandbox:
            native, limits = self._native(contract), self._limits()
            model = open_model(contract, task, file, limits, native=native)
            _LOG.info("%s is opened in a process held by: %s", contract.name, ", ".join(model.layers))
            return model

        def work(model: Sandbox, part: Sequence[PreparedCase]) -> list[Any]:
            network = _Remote(model, task.name)
            model.allow(len(part))
            if masks:
                return [self._of_masks(predict(network, case, plan), case, labels) for case in part]
            return list(for_task(task).predictions(network, part, plan))

        wanted = [case for case in cases if not masks or case.label() is not None]
        most = most_without_answer(len(wanted), self.bounds.least.metric if self.bounds.least.apart > 1 else 0)
        found = each_image(opened, wanted, work, together=1 if masks else _TOGETHER, most=most)
        without: dict[str, list[str]] = defaultdict(list)
        for case, one in zip(wanted, found, strict=True):
            if isinstance(one, NoAnswer):
                without[case.patient].append(one.reason)
        if without:
            _LOG.warning("%s gave no answer for images of patients: %d", contract.name, len(without))
        kept: list[tuple[PreparedCase, Any]] = [
            (case, one) for case, one in zip(wanted, found, strict=True) if case.patient not in without
        ]
        if not masks:
            return dict(of_patients([case for case, _ in kept], [one for _, one in kept], plan)), dict(without)
        images: dict[str, list[Mapping[str, float]]] = defaultdict(list)
        for case, one in kept:
            images[case.patient].append(one)
        return {patient: merged_images(own) for patient, own in images.items()}, dict(without)

    def _of_masks(self, classes: NDArray[np.uint8], case: PreparedCase, labels: Sequence[str]) -> dict[str, float]:
        return mask_results(
            classes,
            np.asarray(case.label()),
            case.spacing_mm,
            labels,
            tolerance_mm=self.asked.tolerance_mm,
            overlap=self.asked.lesion_overlap,
        )

    def _limits(self) -> InferenceLimits:
        """What is asked for, with no more threads than the site gives."""
        asked = self.asked.limits
        return asked.model_copy(update={"threads": min(asked.threads, self.site.compute.threads)})

    # --- what is kept and told --------------------------------------------------------------------------------

    def _keep(
        self,
        results: Sequence[Results],
        groups: Mapping[str, frozenset[str]],
        failed: Sequence[Mapping[str, Sequence[str]]],
    ) -> None:
        """Write the patients' own results, and why others have none, into the site's records: for the hospital."""
        patients = {
            patient: {
                "groups": sorted(groups[patient]),
                "models": {
                    contract.name: _plain(one[patient])
                    for contract, one in zip(self.asked.models, results, strict=True)
                },
            }
            for patient in results[0]
        }
        without = {contract.name: one for contract, one in zip(self.asked.models, failed, strict=True)}
        kept = {"plan": self.plan.name, "patients": patients, "without_answer": without}
        place = self.site.records_folder() / "validations" / f"{self.plan.sha256()}.json"
        try:
            place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomically(place, json.dumps(kept, indent=1).encode())
            place.chmod(0o600)
        except OSError as problem:
            raise JournalError(
                "What each patient got can't be kept at the site, so nothing leaves.",
                fix="Check the permissions of the site's records.",
                local_detail=f"{place}: {problem.strerror}",
            ) from None

    def _tellable(
        self, results: Sequence[Results], groups: Mapping[str, frozenset[str]], failed: Mapping[str, int]
    ) -> ValidationRecord:
        """The record as it may leave, after the site's memory of what was told before was asked. Of confidential data
        nothing is told that differs by few patients from what was told about, or can be added up from it."""
        rules, least, plan = self.bounds.cells, self.bounds.least, self.plan
        if least.apart > 1:
            kinds = {patient: _kind(one, plan) for patient, one in results[0].items()}
            found = self._told.figures(
                _TOLD, plan.sha256(), enough_by_class(kinds, least.metric), least.metric, least.base
            )
            about = frozenset[str]().union(*(group.patients for group in found))
            results = [{patient: one[patient] for patient in one if patient in about} for one in results]
            groups = {patient: groups[patient] for patient in about}
        forbidden = frozenset[tuple[str, str]]()
        if least.apart > 1 and results[0]:
            forbidden = self._told.beside(
                results[0].keys(), lambda before: told_beside(plan, results, groups, rules, before)
            )
        record = told_record(self.site.name, plan, results, groups, rules, failed=failed, forbidden=forbidden)
        before = self._told.other_plans(plan.sha256(), [model.sha256 for model in self.asked.models])
        return replace(record, told_before=before, data_is=self.site.release.data_is)

    def _report(self, kind: str, number: int, seconds: float = 0.0) -> SiteReport:
        patients = {case.patient for case in self._cases(self.cohort)}
        count, least = len(patients), self.bounds.least
        if least.base > 1:
            count = self._told.number(_TOLD, self.plan.sha256(), patients, least.metric, least.base)
        return SiteReport.model_validate(
            {
                "kind": kind,
                "site": self.site.name,
                "plan_sha256": self.plan.sha256(),
                "round": number,
                "patients": count,
                "quarantined": self._telling.set_aside(self.cohort),
                "cohort_sha256": self._telling.fingerprint(self.cohort),
                "seconds": self._telling.seconds(seconds),
                "prepare_seconds": self._telling.seconds(self.prepare_seconds),
            }
        )


class _Remote(nn.Module):
    """A model in its locked process, to the rest of the software a network: images in, logits out."""

    def __init__(self, model: Sandbox, task: str) -> None:
        super().__init__()
        self._model, self._task = model, task
        self.here = nn.Parameter(torch.zeros(()), requires_grad=False)  # asked for its device

    def forward(self, images: Tensor) -> Tensor:
        """Logits of images (n, channels, *spatial), from the probabilities that the process gives."""
        said = torch.from_numpy(np.array(self._model.predict(np.ascontiguousarray(images.numpy(), dtype=np.float32))))
        if self._task == "survival":
            return said
        if self._task == "multilabel":
            return torch.logit(said.double())
        return said.clamp_min(torch.finfo(torch.float32).tiny).log()


def _values(cases: Sequence[PreparedCase], task: str) -> list[PatientValues]:
    """What is known of a patient, by each of the patient's images."""
    volume = None
    if task == "segmentation":
        labels = [(case.label(), case.spacing_mm) for case in cases]
        volume = math.fsum(volume_ml(np.asarray(label) > 0, spacing) for label, spacing in labels if label is not None)
    return [
        PatientValues(
            sex=case.circumstances.sex,
            age=case.circumstances.age,
            manufacturer=case.circumstances.manufacturer,
            field_strength_t=case.circumstances.field_strength_t,
            slice_thickness_mm=case.circumstances.slice_thickness_mm,
            lesion_volume_ml=volume,
        )
        for case in cases
    ]


def _kind(result: Mapping[str, Any], plan: FederationPlan) -> int | None:
    """The group that a patient is counted in: class, or event; None of tasks without any."""
    if plan.task.name == "classification":
        return int(result["truth"])
    return int(bool(result["event"])) if plan.task.name == "survival" else None


def _plain(result: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON values; what is not defined is null."""

    def value(one: Any) -> Any:
        listed = np.asarray(one, dtype=np.float64).tolist()
        numbers = listed if isinstance(listed, list) else [listed]
        plain = [number if math.isfinite(number) else None for number in numbers]
        return plain if isinstance(listed, list) else plain[0]

    return {name: value(one) for name, one in result.items()}
