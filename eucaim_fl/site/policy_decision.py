"""What a site's policy says to a plan, line by line: one pure function, the same beforehand and at run time."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal
from zoneinfo import ZoneInfo

from eucaim_fl.errors import ApprovalPendingError, OutsideHoursError, PermitError, PolicyRefusalError
from eucaim_fl.permits import (
    PermitUse,
    SignedPermit,
    dataset_problems,
    problems,
    read_permit,
    scope_problems,
    standing_problems,
)
from eucaim_fl.plan import FederationPlan
from eucaim_fl.site.disclosure import base_name
from eucaim_fl.site.gate import GateBounds, least_of
from eucaim_fl.site.policy import LoadedPolicy, Policy, Window
from eucaim_fl.site.policy_models import MODEL_KEYS, validation_answers
from eucaim_fl.site.policy_privacy import privacy_answer
from eucaim_fl.site.policy_text import describe
from eucaim_fl.site.policy_training import batch_answer, training_answer, work_asked
from eucaim_fl.site.report import allowed_metrics, asked_statistics, unlisted
from eucaim_fl.sitefile import ReleaseConfig

__all__ = ["RUN_TIME", "Clause", "Decision", "Situation", "Verdict", "bounds", "decide", "is_open"]

Verdict = Literal["allows", "refuses", "waits"]
_LATER = frozenset({"plans.day", "hours", "sent_mb.day"})
_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_MB = 10**6
RUN_TIME: Mapping[str, str] = {
    "asking": "whether the permit's holder signed the plan, and how many plans have used the permit",
    "patients.training": "how many patients can train, and how many a round visits",
    "patients.metric": "how many patients are behind each figure",
    "plans.day": "how many plans were worked for on that day by then",
    "plans.total": "how many plans were worked for by then",
    "plans.repeats": "how often each round was answered by then",
    "hours": "what time it is then",
    "work.minutes": "how long each instruction takes",
    "sent_mb.message": "how long each message is",
    "sent_mb.plan": "how much has left for the plan by then",
    "sent_mb.day": "how much has left on that day by then",
    "update.largest_norm": "how long each update is",
}
"""Keys whose answer is only known when work is done → what is open until then."""


@dataclass(frozen=True)
class Situation:
    """What a site knows when it decides. Nothing in it comes from the plan.

    site: its name; "" is not compared with the plan's. now: with a time zone. holder_signature: over the plan (see
    `permits.sign_plan`). permit_plans: SHA-256 of the plans that the permit allowed here before. rounds_done: of this
    plan; one of them may be asked again, since a reply can be lost, and its bytes count again. bytes_sent: for this
    plan. bytes_sent_today: for all plans since midnight UTC. plans_today, plans_ever: SHA-256 of the plans that were
    allowed since midnight UTC, and ever; this one does not count twice. times_asked: this round, before. approval: what
    a person here said of this plan. preview: before it is asked; holder's signature and permit's plans are left open.
    confidential: whether the site file calls the data so; None: there is no site file at hand, so they may be.
    """

    site: str
    now: datetime
    holder_signature: str = ""
    permit_plans: frozenset[str] = frozenset()
    rounds_done: frozenset[int] = frozenset()
    bytes_sent: int = 0
    bytes_sent_today: int = 0
    plans_today: frozenset[str] = frozenset()
    plans_ever: frozenset[str] = frozenset()
    times_asked: int = 0
    approval: Literal["approved", "refused"] | None = None
    preview: bool = False
    confidential: bool | None = True


@dataclass(frozen=True)
class Clause:
    """One line of the policy against what the plan asks.

    key: dotted key of the policy. line: where it stands; None if the file does not say it.
    asks: what the plan asks. says: what the policy says. Both are for people at the site.
    reasons: what the asker may be told beside the key; safe outside the hospital.
    """

    key: str
    line: int | None
    verdict: Verdict
    asks: str
    says: str
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class Decision:
    """One clause for each thing that the policy looks at, in the policy's order."""

    clauses: tuple[Clause, ...]

    @property
    def allowed(self) -> bool:
        """Whether every clause allows."""
        return all(clause.verdict == "allows" for clause in self.clauses)

    @property
    def refused(self) -> tuple[Clause, ...]:
        """Clauses that refuse."""
        return tuple(clause for clause in self.clauses if clause.verdict == "refuses")

    @property
    def waiting(self) -> tuple[Clause, ...]:
        """Clauses that may allow later."""
        return tuple(clause for clause in self.clauses if clause.verdict == "waits")

    def raise_if_not_allowed(self) -> None:
        """Do nothing if the plan is allowed. The errors name keys of the policy, never what stands there.

        Raises PolicyRefusalError if a clause refuses; else OutsideHoursError if one allows at another time; else
        ApprovalPendingError if a person has to decide.
        """
        if self.refused:
            reasons = [reason for clause in self.refused for reason in clause.reasons]
            raise PolicyRefusalError(
                " ".join([f"The site's policy refuses the plan: {_keys(self.refused)}.", *reasons]),
                fix="Ask the site; `eucaim-fl site policy explain` shows it the lines.",
            )
        later = tuple(clause for clause in self.waiting if clause.key in _LATER)
        if later:
            raise OutsideHoursError(f"The site's policy allows the plan at another time: {_keys(later)}.")
        if self.waiting:
            raise ApprovalPendingError(f"A person at the site has to decide first: {_keys(self.waiting)}.")


def _keys(clauses: tuple[Clause, ...]) -> str:
    return ", ".join(clause.key for clause in clauses)


@dataclass(frozen=True)
class _Found:
    """What one check found."""

    verdict: Verdict
    asks: str
    reasons: tuple[str, ...] = ()


def _found(allows: bool, asks: str, reasons: tuple[str, ...] = ()) -> _Found:
    return _Found("allows" if allows else "refuses", asks, reasons)


_Check = Callable[[FederationPlan, Policy, Situation], _Found]


def decide(plan: FederationPlan, loaded: LoadedPolicy, situation: Situation) -> Decision:
    """What the policy says to the plan in this situation; allowed only if every clause allows."""
    says = describe(loaded.policy)
    clauses = []
    answers = validation_answers(plan, loaded.policy)
    for key, check in _CHECKS.items():
        found = _found(*answers[key]) if key in answers else check(plan, loaded.policy, situation)
        clauses.append(Clause(key, loaded.lines.get(key), found.verdict, found.asks, says[key], found.reasons))
    return Decision(tuple(clauses))


def is_open(window: Window, now: datetime) -> bool:
    """Whether a moment (with a time zone) lies in a window of the week; by the clock on the wall of its zone."""
    local = now.astimezone(ZoneInfo(window.zone))
    clock = f"{local:%H:%M}"
    today, yesterday = _DAYS[local.weekday()], _DAYS[(local - timedelta(days=1)).weekday()]
    if window.start < window.end:
        return today in window.days and window.start <= clock < window.end
    return (today in window.days and window.start <= clock) or (yesterday in window.days and clock < window.end)


def bounds(policy: Policy, release: ReleaseConfig, situation: Situation | None = None) -> GateBounds:
    """What the gate lets out: for each thing the stricter of policy and site file; nothing where the policy is silent.

    situation: with one, what is left of the plan's and the day's bytes limits a message too.
    """
    patients, sent, metrics = policy.patients, policy.sent_mb, frozenset[str](policy.metrics.names)
    largest = [_bytes(sent.message)]
    if situation is not None:
        largest += [_bytes(sent.plan) - situation.bytes_sent, _bytes(sent.day) - situation.bytes_sent_today]
    least = least_of(
        release,
        max(patients.training or sys.maxsize, release.minimum_patients),
        max(patients.metric or sys.maxsize, release.minimum_metric_patients),
    )
    return GateBounds(
        minimum_patients=least.training,
        minimum_metric_patients=least.metric,
        base=least.base,
        apart=least.apart,
        metrics=metrics,
        largest_norm=policy.update.largest_norm or 0.0,
        largest_bytes=max(0, min(largest)),
        digits=policy.metrics.decimals or 0,
        pictures=policy.pictures and release.data_is != "confidential",
        score_histograms=policy.score_histograms and release.score_histograms and "scores" in metrics,
        test_data=frozenset[str](policy.privacy.test_data),
    )


def _bytes(megabytes: float | None) -> int:
    return 0 if megabytes is None else int(min(megabytes, 1e9) * _MB)


def _valid_until(plan: FederationPlan, policy: Policy, situation: Situation) -> _Found:
    today = situation.now.astimezone(UTC).date()
    return _found(policy.valid_until is not None and today <= policy.valid_until, f"it is {today} (UTC)")


def _datasets(plan: FederationPlan, policy: Policy, situation: Situation) -> _Found:
    return _found(bool(policy.datasets), "work on this site's cohort")


def _asking(plan: FederationPlan, policy: Policy, situation: Situation) -> _Found:
    asks = "without a data permit" if plan.permit is None else "with a data permit"
    if policy.asking.permits == "not_required":
        return _Found("allows", asks)
    reasons = _permit_reasons(plan, policy, situation)
    told = "; ".join(reason.rstrip(".") for reason in reasons)
    return _Found("refuses" if reasons else "allows", f"{asks}: {told}" if told else asks, reasons)


def _permit_reasons(plan: FederationPlan, policy: Policy, situation: Situation) -> tuple[str, ...]:
    bodies, now = policy.asking.bodies, situation.now
    if not situation.preview or plan.permit is None:
        use = PermitUse(bodies, policy.datasets, situation.permit_plans, now)
        return problems(plan, situation.holder_signature, use)
    try:
        permit, key = read_permit(plan.permit)
    except PermitError as problem:
        return (problem.message,)
    standing = standing_problems(SignedPermit(permit, key, fits=True), bodies, now)
    return (*standing, *scope_problems(permit, plan), *dataset_problems(permit, policy.datasets))


def _purposes(plan: FederationPlan, policy: Policy, situation: Situation) -> _Found:
    return _found(plan.purpose in policy.purposes, plan.purpose)


def _tasks(plan: FederationPlan, policy: Policy, situation: Situation) -> _Found:
    return _found(plan.task.name in policy.tasks, plan.task.name)


def _targets(plan: FederationPlan, policy: Policy, situation: Situation) -> _Found:
    asked = plan.task.columns()
    says = f"column {', '.join(map(repr, asked))}" if asked else "no clinical column as target"
    return _found(policy.targets == "any" or set(asked) <= set(policy.targets), says)


def _networks(plan: FederationPlan, policy: Policy, situation: Situation) -> _Found:
    return _found(policy.networks == "any" or plan.model.name in policy.networks, plan.model.name)


def _sites(plan: FederationPlan, policy: Policy, situation: Situation) -> _Found:
    named = situation.site in ("", *plan.sites)
    asks = f"{len(plan.sites)} sites" + ("" if named else ", and this one is not among them")
    least = policy.sites.at_least
    return _found(named and least is not None and len(plan.sites) >= least, asks)


def _training_patients(plan: FederationPlan, policy: Policy, situation: Situation) -> _Found:
    return _found(*training_answer(plan, policy.patients.training, confidential=situation.confidential))


def _batch(plan: FederationPlan, policy: Policy, situation: Situation) -> _Found:
    return _found(*batch_answer(plan, policy.patients.batch))


def _metric_patients(plan: FederationPlan, policy: Policy, situation: Situation) -> _Found:
    return _found(policy.patients.metric is not None, "figures over validation and test patients")


def _metric_names(plan: FederationPlan, policy: Policy, situation: Situation) -> _Found:
    asked = {base_name(name) for name in allowed_metrics(plan)} - {"scores"} | asked_statistics(plan)
    return _found(asked <= set(policy.metrics.names), ", ".join(sorted(asked)), unlisted(plan, policy.metrics.names))


def _decimals(plan: FederationPlan, policy: Policy, situation: Situation) -> _Found:
    return _found(policy.metrics.decimals is not None, "figures; the site rounds them")


def _pictures(plan: FederationPlan, policy: Policy, situation: Situation) -> _Found:
    return _Found("allows", "at the end three small pictures of predictions, where that is permitted")


def _score_histograms(plan: FederationPlan, policy: Policy, situation: Situation) -> _Found:
    wanted = plan.task.name in ("classification", "multilabel")
    return _Found("allows", "score histograms, where they are permitted" if wanted else "no score histograms")


def _rounds(plan: FederationPlan, policy: Policy, situation: Situation) -> _Found:
    done = f", of which this site has answered {len(situation.rounds_done)}" if situation.rounds_done else ""
    allows = policy.rounds is not None and plan.rounds <= policy.rounds
    return _found(allows, f"{plan.rounds} rounds and a last evaluation{done}")


def _plans_of_the_day(plan: FederationPlan, policy: Policy, situation: Situation) -> _Found:
    number = len(situation.plans_today | {plan.sha256()})
    asks = f"with this one, plans of this day (UTC): {number}"
    if policy.plans.day is None:
        return _Found("refuses", asks)
    return _Found("allows" if number <= policy.plans.day else "waits", asks)


def _plans_in_all(plan: FederationPlan, policy: Policy, situation: Situation) -> _Found:
    number = len(situation.plans_ever | {plan.sha256()})
    return _found(
        policy.plans.total is not None and number <= policy.plans.total, f"with this one, plans in all: {number}"
    )


def _repeats(plan: FederationPlan, policy: Policy, situation: Situation) -> _Found:
    return _found(situation.times_asked < policy.plans.repeats, f"asked before: {situation.times_asked} times")


def _hours(plan: FederationPlan, policy: Policy, situation: Situation) -> _Found:
    asks = f"it is {situation.now.astimezone(UTC):%a %H:%M} (UTC)"
    if policy.hours == "any":
        return _Found("allows", asks)
    if not policy.hours:
        return _Found("refuses", asks)
    return _Found("allows" if any(is_open(window, situation.now) for window in policy.hours) else "waits", asks)


def _work(plan: FederationPlan, policy: Policy, situation: Situation) -> _Found:
    return _found(policy.work.minutes is not None, work_asked(plan))


def _message_bytes(plan: FederationPlan, policy: Policy, situation: Situation) -> _Found:
    return _found(policy.sent_mb.message is not None, "a message in each round")


def _plan_bytes(plan: FederationPlan, policy: Policy, situation: Situation) -> _Found:
    return _found(
        situation.bytes_sent < _bytes(policy.sent_mb.plan), f"{situation.bytes_sent / _MB:.1f} million bytes have left"
    )


def _day_bytes(plan: FederationPlan, policy: Policy, situation: Situation) -> _Found:
    asks = f"{situation.bytes_sent_today / _MB:.1f} million bytes have left today"
    if policy.sent_mb.day is None:
        return _Found("refuses", asks)
    return _Found("allows" if situation.bytes_sent_today < _bytes(policy.sent_mb.day) else "waits", asks)


def _norm(plan: FederationPlan, policy: Policy, situation: Situation) -> _Found:
    return _found(policy.update.largest_norm is not None, "an update in each round")


def _privacy(plan: FederationPlan, policy: Policy, situation: Situation) -> _Found:
    return _found(*privacy_answer(plan, policy.privacy, confidential=situation.confidential))


def _approval(plan: FederationPlan, policy: Policy, situation: Situation) -> _Found:
    if situation.approval is not None:
        return _found(situation.approval == "approved", f"a person here has {situation.approval} it")
    return _Found("allows" if policy.approval == "automatic" else "waits", "no person here has decided on it")


_CHECKS: dict[str, _Check] = {
    "valid_until": _valid_until,
    "datasets": _datasets,
    "asking": _asking,
    "purposes": _purposes,
    "tasks": _tasks,
    "targets": _targets,
    "networks": _networks,
    **dict.fromkeys(MODEL_KEYS, lambda *_: _Found("allows", "no frozen model")),
    "sites.at_least": _sites,
    "patients.training": _training_patients,
    "patients.batch": _batch,
    "patients.metric": _metric_patients,
    "metrics.names": _metric_names,
    "metrics.decimals": _decimals,
    "pictures": _pictures,
    "score_histograms": _score_histograms,
    "rounds": _rounds,
    "plans.day": _plans_of_the_day,
    "plans.total": _plans_in_all,
    "plans.repeats": _repeats,
    "hours": _hours,
    "work.minutes": _work,
    "sent_mb.message": _message_bytes,
    "sent_mb.plan": _plan_bytes,
    "sent_mb.day": _day_bytes,
    "update.largest_norm": _norm,
    "privacy": _privacy,
    "approval": _approval,
}
