"""What a site does when it is asked: open its cohort, evaluate the arriving model, train, answer once.

State that is worth keeping warm between rounds (the opened cohort, the built network) is held here, by plan and
site file; it can be thrown away at any time without changing a result.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import nn

from eucaim_fl.arrays import Array, Arrays, arrays_sha256
from eucaim_fl.cohorts.cohort import Cohort, open_cohort, too_few
from eucaim_fl.cohorts.consent import read_consent
from eucaim_fl.errors import NotFiniteError, PlanError, PolicyRefusalError, PrivateTrainingError, SiteFileError
from eucaim_fl.models.blend import Blend
from eucaim_fl.models.networks import get_arrays, set_arrays
from eucaim_fl.models.parts import personal_names, shared_specs
from eucaim_fl.models.planned import initial_arrays, network_for, network_image_size
from eucaim_fl.plan import FederationPlan, read_plan
from eucaim_fl.privacy.stages import with_counters
from eucaim_fl.records import ArraySpec, ModelName, Past, SiteMetrics, SplitName
from eucaim_fl.seeding import derive_seed
from eucaim_fl.site.answers import Answer
from eucaim_fl.site.concentration import few_behind
from eucaim_fl.site.disclosure import rounded, withheld
from eucaim_fl.site.gate import GateBounds, default_bounds
from eucaim_fl.site.held_out import held_out_of
from eucaim_fl.site.lineage import Lineage, Use
from eucaim_fl.site.personal import OwnModels, Start
from eucaim_fl.site.policy import PrivacyPolicy, load_policy
from eucaim_fl.site.policy_decision import bounds
from eucaim_fl.site.policy_privacy import FORESEEABLE, foreseeable, limits_of, privacy_answer
from eucaim_fl.site.private_work import PaidRound, PrivateWork
from eucaim_fl.site.report import MetricsRecord, SiteReport
from eucaim_fl.site.telling import Telling
from eucaim_fl.sitefile import SiteFile, load_site_file
from eucaim_fl.training.evaluation import previews
from eucaim_fl.training.loop import train_round
from eucaim_fl.validation.choice import best_model

__all__ = ["SiteNode", "initial_arrays", "network_for", "network_image_size"]

_LOG = logging.getLogger("eucaim_fl.site")
_PICTURES_PER_SITE = 3
_SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")
_FINAL: tuple[SplitName, ...] = ("validation", "test")
_UNTOLD = Past()


@lru_cache(maxsize=1)
def _network(plan_json: str, device: str) -> tuple[nn.Module, tuple[ArraySpec, ...]]:
    """One network a process, shared by the sites it works for: every answer sets all of its arrays first.

    With it, what of its arrays travels.
    """
    plan = read_plan(plan_json)
    network = network_for(plan, 0).to(device)
    return network, shared_specs(network, personal_names(network, plan))


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
        if plan.validation is not None:
            raise PlanError("The plan trains nothing.", fix="Ask for its validation.")
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
        self._own = OwnModels(self.site, plan)
        self._telling = Telling(self.site, plan, self.bounds, self._private)
        self._plan_json = plan.canonical_json()
        self.prepare_seconds = time.perf_counter() - started

    def specs(self) -> tuple[ArraySpec, ...]:
        """Names, shapes and types of the model's arrays that travel; those that stay at the site are not among them."""
        return self._network()[1]

    def _network(self) -> tuple[nn.Module, tuple[ArraySpec, ...]]:
        torch.set_num_threads(self.site.compute.threads)  # the process may work for another site in between
        return _network(self._plan_json, self.site.compute.device)

    def hello(self, past: Past = _UNTOLD) -> Answer:
        """Who is there, and how many patients can train; nothing is computed.

        The network is built all the same: a plan that allows none is refused before the first round; and what the plan
        will cost is reserved in the privacy ledger. past: names the run, so that what it has kept takes no room twice.
        Raises StorageLimitError if there is no room for what the plan keeps here; PrivateTrainingError,
        PrivacyBudgetError or LedgerError if the plan can't be private here, or its cost does not fit.
        """
        network, _ = self._network()
        self._own.check_space(network, past)
        if self._private is not None:
            public = self._telling.at_most(self.cohort)
            self._private.prepare(network, self.cohort, self.bounds.test_data, public)
        return Answer(self._report("hello", 0), {})

    def statistics(self) -> Answer:
        """Sums over the training patients, for a plan that asks for them before its first round.

        Raises PlanError if it does not; CohortError or ConsentError as `round`; JournalError if what is told can't be
        remembered.
        """
        if not self.plan.needs_statistics():
            raise PlanError("The plan asks for no statistics.")
        started = time.perf_counter()
        self._ask_for_consent()
        told = self._telling.statistics(self.cohort)
        self._record("statistics", 0, {}, ("train",))
        report = self._report("statistics", 0, seconds=time.perf_counter() - started)
        return Answer(rounded(report.model_copy(update={"statistics": told}), self.bounds.digits), {})

    def round(self, number: int, arrived: Mapping[str, Array], past: Past = _UNTOLD) -> Answer:
        """Evaluate the arriving weights on the validation patients if it is time to, then train one round from them.

        arrived: what travels of the model; under names that begin with `guide:` also what the method tells all sites.
        past: what the coordinator says of the rounds before, see `OwnModels.start`.
        The site's own arrays, models and state come from its records, where the next ones are kept before anything
        leaves. With noise, training is paid for before the figures are: nobody pays for figures of a round that can't
        be.
        Raises PlanError if the arrays are not the plan's network's; NotFiniteError if the common model's training
        diverges; CohortError if consent was withdrawn and too few patients are left; JournalError if its records can't
        be written; with differential privacy also PrivacyBudgetError if the round can't be paid for,
        PrivateTrainingError and LedgerError.
        """
        started = time.perf_counter()
        self._ask_for_consent()
        network, _ = self._network()
        start = self._own.start(network, arrived, self.cohort.cases("train"), number, past)
        set_arrays(network, start.whole)
        paid = self._pay(number)
        metrics: list[SiteMetrics] = []
        used: tuple[Use, ...] = ("train",)
        if self.plan.stopping.validates(number):
            used = ("train", "validation")
            metrics = [self._telling.figures(network, self.cohort, "validation", number, self._own.first)]
        told, update, kept = self._train(network, number, start, paid)
        kept |= self._own.train(network, start, self.cohort.cases("train"), number)
        self._own.keep(number, kept, past)
        self._record("round", number, start.arriving, used)
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
        self, network: nn.Module, number: int, start: Start, paid: PaidRound | None
    ) -> tuple[dict[str, float | int], Arrays, dict[str, Arrays]]:
        """One round of training: what may be told of it, the update as it may leave, what is kept for the next one."""
        cases, private = self.cohort.cases("train"), self._private
        if private is not None and paid is not None:
            steps = private.train(network, paid, self._telling.patients(self.cohort))
            return {"steps": steps}, self._difference(network, start.arriving), {}
        seed, rounds = derive_seed(self.plan.seed, "training", self.site.name, number), (number,)
        pull, moments = self._own.pull(start), self._own.moments(start)
        if private is not None and private.charges_training:
            try:
                train_round(network, cases, self.plan, seed, rounds=rounds, pull=pull)
                update = self._difference(network, start.arriving)
            except NotFiniteError:  # whose images make it so must not show: noise alone leaves
                update = _difference(start.arriving, start.arriving)
            return {"steps": self.plan.training.local_steps or 0}, private.hidden(update, start.arriving, number), {}
        outcome = train_round(network, cases, self.plan, seed, rounds=rounds, pull=pull, moments=moments)
        update = self._difference(network, start.arriving)
        kept = self._own.after(network, start, update, outcome)
        return self._telling.training(self.cohort, outcome), update, kept

    def _difference(self, network: nn.Module, arriving: Mapping[str, Array]) -> Arrays:
        """The update: of what travels. Counters of steps count cases, where epochs are the measure: they stay as they
        arrived then."""
        update = _difference({n: array for n, array in get_arrays(network).items() if n in arriving}, arriving)
        count = self.bounds.base > 1 and self.plan.training.local_steps is None
        return with_counters(update, arriving) if count else update

    def final(self, number: int, arrived: Mapping[str, Array], past: Past = _UNTOLD) -> Answer:
        """Evaluate the final weights, and the site's own models, on validation and test patients, and choose.

        Pictures only of data that may be shown. The choice follows from the figures as they leave, so it tells no more
        than they do; without comparable ones none is told. The site's own models are kept in its records. Figures of
        a model that was fine-tuned on fewer patients than the site's minimum stay here: one step on one patient moves a
        model so that its figures tell the patient's class. So do those of the plans that `concentration` names, and of
        a model whose training diverged.
        Raises what `round` raises.
        """
        started = time.perf_counter()
        self._ask_for_consent()
        network, _ = self._network()
        cases, pictures, personal = self.cohort.cases("train"), None, self.plan.method.personal
        start = self._own.start(network, arrived, cases, number, past)
        set_arrays(network, start.whole)
        metrics: list[SiteMetrics] = []
        models: dict[ModelName, Arrays] = {}
        few = few_behind(self.plan, self.bounds.minimum_patients, confidential=self.bounds.base > 1)
        for model, arrays, seen in self._own.finished(network, start, cases):
            if seen is not None and seen < self.bounds.minimum_patients:
                few |= {model}
            set_arrays(network, arrays)
            models[model] = arrays
            metrics += self._withheld(model) if model in few else self._measured(network, number, model)
            if self.bounds.pictures and model == self._own.first:
                pictures = previews(network, self.cohort.cases("test"), self.plan, _PICTURES_PER_SITE)
        if personal.blend and few.isdisjoint(("local", "blended", personal.blended())):
            metrics += self._measured(self._blend(network, models), number, "blended")
        elif personal.blend:
            metrics += self._withheld("blended")
        report = self._report("final", number, metrics, seconds=time.perf_counter() - started)
        report = rounded(report.model_copy(update={"shares_pictures": pictures is not None}), self.bounds.digits)
        if personal.choose:
            told, candidates = [record.plain() for record in report.metrics], personal.candidates()
            report = report.model_copy(update={"chosen": best_model(self.plan.task.name, candidates, told)})
        self._own.keep_final(models, report.chosen, past)
        tuned: tuple[Use, ...] = ("train",) if personal.fine_tune_steps else ()
        self._record("final", number, start.arriving, (*tuned, "validation", "test"))
        if self._private is not None:
            self._private.end()
        return Answer(report, {}, pictures)

    def _measured(self, network: nn.Module, number: int, model: ModelName) -> list[SiteMetrics]:
        """What the last exchange tells of one model."""
        return [self._telling.figures(network, self.cohort, split, number, model) for split in _FINAL]

    def _withheld(self, model: ModelName) -> list[SiteMetrics]:
        """What the last exchange tells of a model of which nothing is told."""
        return [replace(withheld(split), model=model) for split in _FINAL]

    def _blend(self, network: nn.Module, models: Mapping[ModelName, Arrays]) -> nn.Module:
        """The site's local model and the other one that is blended with it, each in a network of its own."""
        other = network_for(self.plan, 0).to(self.site.compute.device)
        set_arrays(network, models[self.plan.method.personal.blended()])
        set_arrays(other, models["local"])
        return Blend(network, other)

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
