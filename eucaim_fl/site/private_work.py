"""What a site does for a plan with differential privacy: reserve, charge before the noise is drawn, train, noise.

The ledger is written here, in the process that trains, so that the patients who are charged are those of the very
loader that is trained on, whichever way the instruction came.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from eucaim_fl.arrays import Array, Arrays
from eucaim_fl.cohorts.cohort import Cohort, PreparedCase
from eucaim_fl.errors import PrivateTrainingError
from eucaim_fl.models.private import made_private
from eucaim_fl.plan import FederationPlan
from eucaim_fl.privacy.accounting import Mechanism
from eucaim_fl.privacy.promise import figures_mechanism, round_mechanism, site_is_charged
from eucaim_fl.privacy.stages import clipped, noised, with_counters
from eucaim_fl.records import SplitName
from eucaim_fl.seeding import derive_seed
from eucaim_fl.site.disclosure import LeastPeople
from eucaim_fl.site.ledger import Ledger, Limits, Purchase
from eucaim_fl.sitefile import SiteFile
from eucaim_fl.training.patients import PatientLoader, check_delta
from eucaim_fl.training.randomness import Randomness

__all__ = ["PaidRound", "PrivateWork"]

_LOG = logging.getLogger("eucaim_fl.site")


@dataclass(frozen=True)
class PaidRound:
    """A round of DP-SGD that was charged for: its number, whom it is trained on, and where its noise comes from."""

    number: int
    loader: PatientLoader
    randomness: Randomness


class PrivateWork:
    """One plan's private side at one site. Every commit is on the disk before noise is drawn or figures are told."""

    def __init__(
        self, site: SiteFile, plan: FederationPlan, limits: Limits, least: LeastPeople, reserved_days: int
    ) -> None:
        """Open the site's ledger. reserved_days: after which other plans that are idle lose what they have reserved.

        Raises LedgerError if it can't be written, or was altered.
        """
        self._plan, self._limits, self._least = plan, limits, least
        self._site, self._reserved_days = site.name, reserved_days
        self._ledger = Ledger(site.records_folder() / "ledger", site.name)

    @property
    def charges_training(self) -> bool:
        """Whether a round of training costs this site's patients something."""
        return site_is_charged(self._plan.privacy)

    def _purchase(self, split: SplitName) -> Purchase:
        """What is bought for a split: training, or figures, which hold a reservation of their own for each split."""
        plan = self._plan
        return Purchase(
            plan=plan.sha256(),
            name=plan.name,
            purpose=plan.purpose,
            dataset=self._site,
            use="train" if split == "train" else "figures",
            secure=plan.privacy.secure,
            part="" if split == "train" else split,
        )

    def randomness(self, number: int, use: str) -> Randomness:
        """The source of one round's choices and noise; in simulations a pure function of the run's seed."""
        if self._plan.privacy.secure:
            return Randomness.secure()
        return Randomness.seeded(derive_seed(self._plan.seed, "privacy", self._site, number, use))

    def prepare(self, network: nn.Module, cohort: Cohort, declared: frozenset[str], at_most: int) -> None:
        """Before the first step: see that the plan can be kept here, and reserve what it will cost.

        What other plans have reserved and left idle for too long is freed before.
        declared: splits whose figures need no noise. at_most: at least as many as train, by what is told: if the exact
        number decided on delta, plans could ask for it.
        Raises PrivateTrainingError if the network mixes patients or delta is too large for so few; PrivacyBudgetError
        if the budgets do not hold the plan; LedgerError.
        """
        plan, figures = self._plan, figures_mechanism(self._plan.privacy)
        once, last = round_mechanism(plan.privacy, plan.training), plan.rounds + 1
        if self.charges_training and once is not None:
            check_delta(plan, at_most)
            if plan.privacy.mechanism == "patient_dp":
                made_private(network)
            self._reserve(cohort, "train", once, range(1, last))
        asked: tuple[tuple[SplitName, Collection[int]], ...] = ("validation", plan.measured_rounds()), ("test", (last,))
        for split, rounds in asked:
            if figures is not None and split not in declared and cohort.patients(split) >= self._least.metric:
                self._reserve(cohort, split, figures, rounds)

    def _reserve(self, cohort: Cohort, split: SplitName, once: Mechanism, rounds: Collection[int]) -> None:
        """Hold what the rounds cost that were not charged for before the site's client, or the run, began anew."""
        left = len(set(rounds) - self._rounds_paid(split))
        if not left:
            return
        patients = _patients(cohort, split)
        what, least = self._purchase(split), self._at_least(split, patients)
        self._ledger.release_idle(self._reserved_days, keep=what.plan)
        kept = self._ledger.reserve(what, once.times(left), patients, self._limits, least)
        if len(kept) < len(patients):
            _LOG.warning("Patients whose privacy budget does not hold the plan: %d", len(patients) - len(kept))

    def _rounds_paid(self, split: SplitName) -> set[object]:
        what = self._purchase(split)
        bodies = (record.body for record in self._ledger.entries(what.plan) if record.kind == "committed")
        return {body["round"] for body in bodies if (body["use"], body["part"]) == (what.use, what.part)}

    def _at_least(self, split: SplitName, patients: frozenset[str]) -> int:
        """How many patients must be able to pay. An update tells of all together, so under `update_dp` all must."""
        if split != "train":
            return self._least.metric
        return len(patients) if self._plan.privacy.mechanism == "update_dp" else self._least.training

    def _commit(self, split: SplitName, number: int) -> Callable[[frozenset[str], Mechanism], frozenset[str]]:
        def commit(patients: frozenset[str], mechanism: Mechanism) -> frozenset[str]:
            what, least = self._purchase(split), self._at_least(split, patients)
            if self._plan.privacy.mechanism != "update_dp" or split != "train":
                patients = self._ledger.among_reserved(what, patients)
            return self._ledger.commit(what, number, mechanism, patients, self._limits, least)

        return commit

    def charge_patients(self, cases: tuple[PreparedCase, ...], at_most: int, number: int) -> PaidRound:
        """Pay for one round of DP-SGD over these patients; who can't pay is left out of it. at_most: see `prepare`.

        Raises PrivateTrainingError, PrivacyBudgetError, LedgerError.
        """
        check_delta(self._plan, at_most)
        randomness = self.randomness(number, "train")
        loader = PatientLoader(cases, self._plan, randomness)
        loader.charge(self._commit("train", number))
        return PaidRound(number, loader, randomness)

    def train(self, network: nn.Module, paid: PaidRound, told: int) -> int:
        """One round of DP-SGD in place; the number of steps made. told: number of patients that means are taken over.

        Raises PrivateTrainingError if the network mixes patients, NotFiniteError.
        """
        from eucaim_fl.training.private_loop import train_privately  # here, because Opacus takes long to load

        return train_privately(
            made_private(network), paid.loader, self._plan, told, paid.randomness, number=paid.number
        )

    def charge_update(self, patients: frozenset[str], at_most: int, number: int) -> None:
        """Pay for one noised update over these patients, all of whom must be able to. at_most: see `prepare`.

        Raises PrivateTrainingError, PrivacyBudgetError, LedgerError.
        """
        check_delta(self._plan, at_most)
        once = round_mechanism(self._plan.privacy, self._plan.training)
        if once is None:
            raise PrivateTrainingError("The plan has no noise to charge for.")
        self._commit("train", number)(patients, once)

    def hidden(self, update: Mapping[str, Array], arriving: Mapping[str, Array], number: int) -> Arrays:
        """The whole update clipped and noised, as `update_dp` lets it leave; counters as they arrived.

        Raises NotFiniteError if the update is not finite; the caller sees to it that it is.
        """
        privacy = self._plan.privacy
        norm, noise = privacy.clipping_norm or 0.0, privacy.noise_multiplier or 0.0
        randomness = self.randomness(number, "update")
        shortened = clipped(with_counters(update, arriving), norm)
        return noised(shortened, noise * norm, lambda shape: randomness.normal(shape, dtype=torch.float64).numpy())

    def pay_for_figures(self, cohort: Cohort, split: SplitName, number: int) -> frozenset[str]:
        """Patients of a split who have paid for one noised release of figures.

        Raises PrivacyBudgetError if too few can, LedgerError.
        """
        mechanism = figures_mechanism(self._plan.privacy)
        if mechanism is None:
            raise PrivateTrainingError("The plan has no noise on figures to charge for.")
        return self._commit(split, number)(_patients(cohort, split), mechanism)

    def trained(self, patients: frozenset[str]) -> frozenset[str]:
        """Those of the patients who were ever charged for training here, under this plan or any other.

        Raises LedgerError.
        """
        return self._ledger.trained(patients)

    def end(self) -> None:
        """The plan is over: what was reserved and not used becomes free. Raises LedgerError."""
        self._ledger.release(self._plan.sha256())


def _patients(cohort: Cohort, split: SplitName) -> frozenset[str]:
    return frozenset(case.patient for case in cohort.cases(split))
