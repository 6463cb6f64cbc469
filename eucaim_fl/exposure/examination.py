"""The whole privacy audit of a plan on one site's own patients: three attacks, and whether the promise stands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch

from eucaim_fl.cohorts.cohort import PreparedCase, open_cohort
from eucaim_fl.cohorts.splits import HeldOut
from eucaim_fl.errors import RecipeError, SiteFileError
from eucaim_fl.exposure.alone import claim_to_patients, noiseless, unprotected
from eucaim_fl.exposure.canary import Audit, audit
from eucaim_fl.exposure.inversion import Inversion, invert
from eucaim_fl.exposure.membership import Membership, attack
from eucaim_fl.plan import FederationPlan
from eucaim_fl.privacy.promise import Promise
from eucaim_fl.registry import suggestion
from eucaim_fl.seeding import derive_seed
from eucaim_fl.sitefile import SiteFile

__all__ = ["ATTACKS", "Attack", "Examination", "Settings", "Verdict", "attacks_named", "examine", "quick"]

Attack = Literal["membership", "canary", "inversion"]
Verdict = Literal["consistent", "broken", "weak", "no_promise", "not_measured"]
Tell = Callable[[str, int, int | None], object]
ATTACKS: tuple[Attack, ...] = get_args(Attack)
_QUICK_ROUNDS = 3
_LEAST_PATIENTS = 4


@dataclass(frozen=True)
class Settings:
    """How much is spent on the audit.

    shadows: models of the membership attack, each with and without protection; even, at least 4. canaries: of the
    one-run audit at most. pictures: patients whose image is attacked. iterations: of each such attack. rounds: only the
    plan's first so many, with the promise that holds for these; None: all. own_network: attack pictures through the
    plan's own network too, where it is 2-D.
    """

    attacks: tuple[Attack, ...] = ATTACKS
    shadows: int = 16
    canaries: int = 10_000
    pictures: int = 2
    iterations: int = 300
    rounds: int | None = None
    own_network: bool = True
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Examination:
    """What came out. plan: as it was run, with the rounds that were; rounds: those of the plan that was given.

    canary_off: the same audit with noise switched off on purpose. membership_off: the attack without protection; both
    are None where there is nothing to switch off. settings: what was spent.
    """

    plan: FederationPlan
    rounds: int
    site: str
    data_is: Literal["confidential", "public", "synthetic"]
    patients: int
    settings: Settings
    claim: Promise | None
    canary: Audit | None = None
    canary_off: Audit | None = None
    membership: Membership | None = None
    membership_off: Membership | None = None
    inversions: tuple[Inversion, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """Whether what was measured agrees with what is promised.

        broken: the measured lower bound is above the promise. weak: it is not, but without noise it would not be
        either, so the audit says little.
        """
        if self.claim is None:
            return "no_promise"
        if self.canary is None:
            return "not_measured"
        if self.canary.evidence.epsilon > self.claim.epsilon:
            return "broken"
        off = self.canary_off
        return "consistent" if off is not None and off.evidence.epsilon > self.claim.epsilon else "weak"


def quick(settings: Settings) -> Settings:
    """The same in a fraction of the time: three rounds, fewer models, canaries and pictures."""
    return replace(
        settings,
        shadows=min(settings.shadows, 8),
        canaries=min(settings.canaries, 5_000),
        pictures=1,
        rounds=_QUICK_ROUNDS,
        own_network=False,
    )


def attacks_named(words: str) -> tuple[Attack, ...]:
    """Attacks from their names with commas between.

    Raises RecipeError for an unknown one, or none.

    >>> attacks_named("canary, membership")
    ('membership', 'canary')
    """
    asked = {word.strip() for word in words.split(",") if word.strip()}
    for word in sorted(asked - set(ATTACKS)):
        raise RecipeError(f"There is no attack called '{word}'.", fix=suggestion(word, set(ATTACKS)))
    if not asked:
        raise RecipeError("No attack is named.", fix=f"Known: {', '.join(ATTACKS)}.")
    return tuple(name for name in ATTACKS if name in asked)


def examine(
    site: SiteFile,
    plan: FederationPlan,
    settings: Settings,
    tell: Tell = lambda *_: None,
    *,
    held_out: HeldOut | None = None,
) -> Examination:
    """Attack a plan on a site's training patients, on this machine. Nothing is sent, noted or charged for.

    held_out: who never trains at the site, as its client draws them; else others would be attacked than train.
    tell: called with what is done, how far it is, and of how much.
    Raises RecipeError if the task has no attacks, the settings are impossible or too few patients train; SiteFileError
    if a GPU is asked for and there is none; what `open_cohort` and training raise.
    """
    if plan.task.name not in ("segmentation", "classification"):
        raise RecipeError(
            f"The attacks are for segmentation and classification, not for {plan.task.name}.",
            fix="Examine a plan with the same network and privacy that classifies one of the columns.",
        )
    if settings.shadows < 4 or settings.shadows % 2:
        raise RecipeError("The membership attack needs an even number of models, at least 4.", fix="Set --shadows 16.")
    if settings.canaries < 20:
        raise RecipeError("The audit needs at least 20 canaries.", fix="Set --canaries 10000.")
    if site.compute.device == "cuda" and not torch.cuda.is_available():
        raise SiteFileError("The site file asks for a GPU, but there is none.", fix="Set compute.device to cpu.")
    cohort = open_cohort(site, plan, held_out=held_out, tell=lambda done, total: tell("preparing cases", done, total))
    cases = cohort.cases("train")
    if cohort.patients("train") < _LEAST_PATIENTS:
        raise RecipeError("Too few patients would train to attack anything.", fix="Choose another site.")
    torch.set_num_threads(site.compute.threads)
    run = plan if settings.rounds is None else plan.model_copy(update={"rounds": min(plan.rounds, settings.rounds)})
    found: dict[str, Any] = {}
    if "canary" in settings.attacks:
        found |= _canaries(run, cases, settings, site.compute.device, tell)
    if "membership" in settings.attacks:
        found |= _membership(run, cases, settings, site.compute.device, tell)
    if "inversion" in settings.attacks:
        found["inversions"] = _inversions(run, cases, settings, site.compute.device, tell)
    return Examination(
        plan=run,
        rounds=plan.rounds,
        site=site.name,
        data_is=site.release.data_is,
        patients=cohort.patients("train"),
        settings=settings,
        claim=claim_to_patients(run),
        **found,
    )


def _protects(plan: FederationPlan) -> bool:
    return claim_to_patients(plan) is not None


def _canaries(
    plan: FederationPlan, cases: Sequence[PreparedCase], settings: Settings, device: str, tell: Tell
) -> dict[str, Audit]:
    total = 2 if _protects(plan) else 1
    seed = derive_seed(settings.seed, "canary")
    tell("canary audit", 0, total)
    found = {"canary": audit(plan, cases, settings.canaries, seed, device=device)}
    tell("canary audit", 1, total)
    if total == 2:
        noise = plan.privacy.noise_multiplier
        off = noiseless(plan)
        found["canary_off"] = audit(off, cases, settings.canaries, seed, device=device, known_noise=noise)
        tell("canary audit", 2, total)
    return found


def _membership(
    plan: FederationPlan, cases: Sequence[PreparedCase], settings: Settings, device: str, tell: Tell
) -> dict[str, Membership]:
    plans = {"membership": plan, "membership_off": unprotected(plan)} if _protects(plan) else {"membership": plan}
    total = settings.shadows * len(plans)
    found = {}
    for number, (name, one) in enumerate(plans.items()):
        before = number * settings.shadows
        found[name] = attack(
            one,
            cases,
            settings.shadows,
            derive_seed(settings.seed, "membership"),
            lambda done, _, before=before: tell("membership models", before + done, total),  # type: ignore[misc]
            device,
        )
    return found


def _inversions(
    plan: FederationPlan, cases: Sequence[PreparedCase], settings: Settings, device: str, tell: Tell
) -> tuple[Inversion, ...]:
    firsts = list({case.patient: case for case in reversed(cases)}.values())[::-1][: settings.pictures]
    own = settings.own_network and plan.task.spatial_dims == 2
    jobs = [(case, True) for case in firsts] + ([(firsts[0], False)] if own else [])
    found = []
    for number, (case, reference) in enumerate(jobs, start=1):
        name = f"picture {number} of {len(jobs)}"
        seed = derive_seed(settings.seed, "inversion", number)
        found.append(
            invert(
                plan,
                case,
                seed,
                settings.iterations,
                reference=reference,
                device=device,
                tell=lambda done, total, name=name: tell(name, done, total),  # type: ignore[misc]
            )
        )
    return tuple(found)
