"""What a site does when it is asked: open its cohort, evaluate the arriving model, train, answer once.

State that is worth keeping warm between rounds (the opened cohort, the built network) is held here, by plan and
site file; it can be thrown away at any time without changing a result.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from eucaim_fl.arrays import Array, Arrays, arrays_sha256
from eucaim_fl.cohorts.cohort import Cohort, open_cohort, too_few
from eucaim_fl.cohorts.consent import read_consent
from eucaim_fl.errors import NotFiniteError, PlanError, PolicyRefusalError, PrivateTrainingError, SiteFileError
from eucaim_fl.models.networks import array_specs, build, get_arrays, set_arrays
from eucaim_fl.plan import FederationPlan, read_plan
from eucaim_fl.privacy.stages import with_counters
from eucaim_fl.records import ArraySpec, SiteMetrics, SplitName
from eucaim_fl.seeding import derive_seed
from eucaim_fl.site.disclosure import rounded
from eucaim_fl.site.gate import GateBounds, default_bounds
from eucaim_fl.site.held_out import held_out_of
from eucaim_fl.site.lineage import Lineage, Use
from eucaim_fl.site.policy import PrivacyPolicy, load_policy
from eucaim_fl.site.policy_decision import bounds
from eucaim_fl.site.policy_privacy import FORESEEABLE, foreseeable, limits_of, privacy_answer
from eucaim_fl.site.private_work import PaidRound, PrivateWork
from eucaim_fl.site.report import MetricsRecord, SiteReport
from eucaim_fl.site.telling import Telling
from eucaim_fl.sitefile import SiteFile, load_site_file
from eucaim_fl.training.evaluation import previews
from eucaim_fl.training.loop import train_round

__all__ = ["Answer", "SiteNode", "initial_arrays", "network_for", "network_image_size"]

_LOG = logging.getLogger("eucaim_fl.site")
_PICTURES_PER_SITE = 3
_SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")


@dataclass(frozen=True)
class Answer:
    """What a site is about to say: its report, its update (local − arriving), its pictures; the gate comes next."""

    report: SiteReport
    update: Mapping[str, Array]
    pictures: NDArray[np.uint8] | None = None


def network_image_size(plan: FederationPlan) -> tuple[int, ...] | None:
    """Spatial size that the network sees: the training patch, else the plan's grid; None if neither is fixed."""
    if plan.training.patch_voxels is not None:
        return plan.training.patch_voxels
    size = plan.data.size_voxels[: plan.task.spatial_dims]
    return None if None in size else tuple(int(n) for n in size if n is not None)


def network_for(plan: FederationPlan, seed: int) -> nn.Module:
    """The plan's network with fresh weights: its input has the plan's channels and image size.

    Raises RecipeError if the model doesn't fit.
    """
    return build(
        plan.model,
        plan.task,
        in_channels=plan.data.number_of_channels(),
        seed=seed,
        image_size=network_image_size(plan),
    )


def initial_arrays(plan: FederationPlan) -> tuple[tuple[ArraySpec, ...], Arrays]:
    """The model's arrays before the first round; they follow from the plan alone."""
    network = network_for(plan, derive_seed(plan.seed, "initial weights"))
    return array_specs(network), get_arrays(network)


@lru_cache(maxsize=1)
def _network(plan_json: str, device: str) -> tuple[nn.Module, tuple[ArraySpec, ...]]:
    """One network a process, shared by the sites it works for: every answer sets all of its arrays first."""
    plan = read_plan(plan_json)
    network = network_for(plan, 0).to(device)
    return network, array_specs(network)


class SiteNode:
    """One site's client for one plan. Not thread-safe; one process works for one site at a time."""

    def __init__(self, site_file: Path, plan: FederationPlan) -> None:
        """Load the site file and open the cohort.

        Raises SiteFileError, PolicyError, CohortError (see `open_cohort`); PlanError if the plan does not name this
        site; PolicyRefusalError if the policy requires more privacy than the plan has; PrivateTrainingError if its
        noise can be foreseen and the data are confidential; JournalError if the key that draws test data can't be read.
        """
        started = time.perf_counter()
        self.site: SiteFile = load_site_file(site_file)
        self.plan = plan
        if self.site.name not in plan.sites:
            raise PlanError("The plan does not name this site.", fix="Add it to the recipe's sites.")
        if self.site.compute.device == "cuda" and not torch.cuda.is_available():
            raise SiteFileError("The site file asks for a GPU, but there is none.", fix="Set compute.device to cpu.")
        place = self.site.policy_path(site_file)
        policy = None if place is None else load_policy(place).policy
        release = self.site.release
        self.bounds: GateBounds = default_bounds(release) if policy is None else bounds(policy, release)
        if policy is not None and not privacy_answer(plan, policy.privacy)[0]:  # also where no border stands before it
            raise PolicyRefusalError("The site's policy refuses the plan: privacy.")
        if foreseeable(plan, confidential=release.data_is == "confidential"):
            raise PrivateTrainingError(FORESEEABLE, fix="Set privacy.secure to true.")
        torch.use_deterministic_algorithms(True, warn_only=True)
        self.cohort: Cohort = self._enough(open_cohort(self.site, plan, held_out=held_out_of(self.site, plan, policy)))
        self._lineage = Lineage(self.site.records_folder())
        self._private: PrivateWork | None = None
        if plan.privacy.mechanism != "none":
            privacy = PrivacyPolicy() if policy is None else policy.privacy
            limits = limits_of(privacy, plan.purpose)
            self._private = PrivateWork(self.site, plan, limits, self.bounds.least, privacy.reserved_days)
        self._telling = Telling(self.site, plan, self.bounds, self._private)
        self._plan_json = plan.canonical_json()
        self.prepare_seconds = time.perf_counter() - started

    def specs(self) -> tuple[ArraySpec, ...]:
        """Names, shapes and types of the model's arrays."""
        return self._network()[1]

    def _network(self) -> tuple[nn.Module, tuple[ArraySpec, ...]]:
        torch.set_num_threads(self.site.compute.threads)  # the process may work for another site in between
        return _network(self._plan_json, self.site.compute.device)

    def hello(self) -> Answer:
        """Who is there, and how many patients can train; nothing is computed.

        The network is built all the same: a plan that allows none is refused before the first round; and what the plan
        will cost is reserved in the privacy ledger.
        Raises PrivateTrainingError, PrivacyBudgetError or LedgerError if the plan can't be private here, or its cost
        does not fit.
        """
        network, _ = self._network()
        if self._private is not None:
            public = self._telling.at_most(self.cohort)
            self._private.prepare(network, self.cohort, self.bounds.test_data, public)
        return Answer(self._report("hello", 0), {})

    def round(self, number: int, arriving: Mapping[str, Array]) -> Answer:
        """Evaluate the arriving weights on the validation patients, then train one round from them.

        With noise, training is paid for before the figures are: nobody pays for figures of a round that can't be.
        Raises PlanError if the arrays are not the plan's network's; NotFiniteError if training
        diverges; CohortError if consent was withdrawn and too few patients are left; with differential privacy also
        PrivacyBudgetError if the round can't be paid for, PrivateTrainingError and LedgerError.
        """
        started = time.perf_counter()
        self._ask_for_consent()
        network, _ = self._network()
        set_arrays(network, arriving)
        paid = self._pay(number)
        metrics = [self._telling.figures(network, self.cohort, "validation", number)]
        told, update = self._train(network, number, arriving, paid)
        self._record("round", number, arriving, ("train", "validation"))
        report = self._report("round", number, metrics, seconds=time.perf_counter() - started)
        return Answer(rounded(report.model_copy(update=told), self.bounds.digits), update)

    def _pay(self, number: int) -> PaidRound | None:
        """Charge for a round of training, if it costs something; what is returned is trained on under `patient_dp`."""
        cases, private = self.cohort.cases("train"), self._private
        if private is None or not private.charges_training:
            return None
        at_most = self._telling.at_most(self.cohort)
        if self.plan.privacy.mechanism == "patient_dp":
            return private.charge_patients(cases, at_most, number)
        private.charge_update(frozenset(case.patient for case in cases), at_most, number)
        return None

    def _train(
        self, network: nn.Module, number: int, arriving: Mapping[str, Array], paid: PaidRound | None
    ) -> tuple[dict[str, float | int], Arrays]:
        """One round of training: what may be told of it, and the update as it may leave."""
        cases, private = self.cohort.cases("train"), self._private
        if private is not None and paid is not None:
            steps = private.train(network, paid, self._telling.patients(self.cohort))
            return {"steps": steps}, self._difference(network, arriving)
        seed = derive_seed(self.plan.seed, "training", self.site.name, number)
        if private is not None and private.charges_training:
            try:
                train_round(network, cases, self.plan, seed)
                update = self._difference(network, arriving)
            except NotFiniteError:  # whose images make it so must not show: noise alone leaves
                update = _difference(arriving, arriving)
            return {"steps": self.plan.training.local_steps or 0}, private.hidden(update, arriving, number)
        outcome = train_round(network, cases, self.plan, seed)
        return self._telling.training(self.cohort, outcome), self._difference(network, arriving)

    def _difference(self, network: nn.Module, arriving: Mapping[str, Array]) -> Arrays:
        """The update. Counters of steps count cases, where epochs are the measure: they stay as they arrived then."""
        update = _difference(get_arrays(network), arriving)
        count = self.bounds.base > 1 and self.plan.training.local_steps is None
        return with_counters(update, arriving) if count else update

    def final(self, number: int, weights: Mapping[str, Array]) -> Answer:
        """Evaluate the final weights on validation and test patients; pictures only of data that may be shown."""
        started = time.perf_counter()
        self._ask_for_consent()
        network, _ = self._network()
        set_arrays(network, weights)
        metrics = [self._telling.figures(network, self.cohort, split, number) for split in ("validation", "test")]
        pictures = None
        if self.bounds.pictures:
            pictures = previews(network, self.cohort.cases("test"), self.plan, _PICTURES_PER_SITE)
        self._record("final", number, weights, ("validation", "test"))
        if self._private is not None:
            self._private.end()
        report = self._report("final", number, metrics, seconds=time.perf_counter() - started)
        report = report.model_copy(update={"shares_pictures": pictures is not None})
        return Answer(rounded(report, self.bounds.digits), {}, pictures)

    def _ask_for_consent(self) -> None:
        """Leave out patients who have withdrawn since; whoever consents anew comes back when the cohort is opened.

        Raises ConsentError if the table can't be trusted; CohortError if too few patients are left to train.
        """
        here = {case.patient for name in _SPLITS for case in self.cohort.cases(name)}
        refused = {one.patient for one in read_consent(self.site).refused(here)}
        if not refused:
            return
        self.cohort = self.cohort.without(refused)
        _LOG.warning("Consent was withdrawn: patients that are used no longer: %d", len(refused))
        self._enough(self.cohort)

    def _enough(self, cohort: Cohort) -> Cohort:
        """The cohort, if the policy and the floors of the code let so few train; what is told is too coarse to tell.

        Raises CohortError.
        """
        if cohort.patients("train") < self.bounds.minimum_patients:
            raise too_few(cohort)
        return cohort

    def _record(self, kind: str, number: int, arriving: Mapping[str, Array], splits: tuple[Use, ...]) -> None:
        """Note at the site who was used, before anything leaves. Raises JournalError if it can't be written."""
        used = {name: {case.patient for case in self.cohort.cases(name)} for name in splits}
        self._lineage.record((self.plan.sha256(), self.plan.name), (kind, number), arrays_sha256(arriving), used)

    def _report(
        self, kind: str, number: int, metrics: list[SiteMetrics] | None = None, seconds: float = 0.0
    ) -> SiteReport:
        return SiteReport.model_validate(
            {
                "kind": kind,
                "site": self.site.name,
                "plan_sha256": self.plan.sha256(),
                "round": number,
                "patients": self._telling.patients(self.cohort),
                "quarantined": self._telling.set_aside(self.cohort),
                "cohort_sha256": self._telling.fingerprint(self.cohort),
                "metrics": tuple(MetricsRecord.of(m) for m in metrics or []),
                "seconds": self._telling.seconds(seconds),
                "prepare_seconds": self._telling.seconds(self.prepare_seconds),
            }
        )


def _difference(after: Mapping[str, Array], before: Mapping[str, Array]) -> Arrays:
    """The update: local − arriving for floating arrays, the new value itself for all others.

    Raises NotFiniteError if a weight is not finite.
    """
    update: Arrays = {}
    for name, array in after.items():
        if not np.issubdtype(array.dtype, np.floating):
            update[name] = array
            continue
        update[name] = array - before[name]
        if not np.isfinite(update[name]).all():
            raise NotFiniteError("A weight is not finite after training.", fix="Lower training.optimizer.lr.")
    return update
