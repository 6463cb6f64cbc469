"""What is said of a privacy ledger, in words for people and in JSON for programs. Pure."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any

from eucaim_fl.privacy.accounting import Mechanism
from eucaim_fl.privacy.promise import epsilon_words
from eucaim_fl.site.disclosure import announced
from eucaim_fl.site.ledger_projection import Check, Cost, Projection
from eucaim_fl.site.ledger_state import Charge, State
from eucaim_fl.site.ledger_sums import Patients, RunSum, Spending

__all__ = [
    "COUNTS",
    "DONE",
    "PARTS",
    "as_announced",
    "budget_cells",
    "budget_rows",
    "charge_rows",
    "charges_csv",
    "count",
    "figure",
    "minute",
    "patient_lines",
    "patients_json",
    "percent",
    "projection_json",
    "projection_lines",
    "reservation_lines",
    "run_cells",
    "run_json",
    "spending_json",
    "state_words",
    "status_words",
    "whom",
]

DONE = "Done: the epsilon of all that was charged, by the tight accountant."
COUNTS = (
    "Counts: what counts against a budget, with what is reserved; kept by a privacy filter, it holds also if people "
    "choose plans by what earlier ones showed, and so is larger."
)
PARTS = (
    "Of the budget: the part that is used or reserved. Parts of runs add up; epsilons don't, for each contains what it "
    "takes to turn a divergence into an epsilon."
)
_QUARTERS = ("up to a quarter", "up to half", "up to three quarters", "more")
_WHOSE = {
    "training": "a training patient",
    "validation": "a validation patient (figures)",
    "test": "a test patient (figures)",
}
_MANY = 1_000_000
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_ASKED = ("number", "time", "plan", "name", "purpose", "dataset", "use", "round", "secure")
_COLUMNS = (*_ASKED, "noise", "rate", "steps", "patients")


def figure(value: float | None) -> str:
    """An epsilon for people, rounded up as plans in words have it.

    >>> figure(2.3101), figure(0.0), figure(float("inf")), figure(None), figure(12345.6)
    ('2.32', '0', 'no bound', '–', '12,346')
    """
    return "–" if value is None else epsilon_words(value)


def percent(share: float | None) -> str:
    """A part of a budget, rounded up.

    >>> percent(0.241), percent(0.0), percent(0.00004), percent(None), percent(float("inf"))
    ('25 %', '0 %', '1 %', '–', 'all')
    """
    if share is None:
        return "–"
    if not math.isfinite(share):
        return "all"
    return f"{math.ceil(round(100 * share, 9))} %"


def minute(time: str) -> str:
    """A record's time for people, UTC.

    >>> minute("2026-03-01T12:00:59.000000+00:00"), minute("")
    ('2026-03-01 12:00', '–')
    """
    return time[:16].replace("T", " ") or "–"


def count(number: int, noun: str) -> str:
    """A number with its noun.

    >>> count(1, "patient"), count(1200, "step")
    ('1 patient', '1,200 steps')
    """
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def whom(patients: int) -> str:
    """How many patients were charged.

    >>> whom(1200), whom(0)
    ('1,200', 'everybody')
    """
    return f"{patients:,}" if patients else "everybody"


def budget_rows(
    cohorts: Mapping[str, Spending], purposes: Mapping[str, Spending], patients: Patients
) -> list[tuple[str, Spending]]:
    """Whose budget, and what was spent of it: cohorts, purposes, the patient of whom most counts."""
    rows = [(f"the cohort {name}", spending) for name, spending in cohorts.items()]
    rows += [(f"purpose {name.replace('_', ' ')}", spending) for name, spending in purposes.items()]
    if patients.worst is not None:
        rows.append(("the patient of whom most counts", patients.worst))
    return rows


def budget_cells(whose: str, spending: Spending) -> tuple[str, ...]:
    """A row: whose, done, counts, limit, share."""
    limit = "none" if spending.budget is None else f"{spending.budget.epsilon:g}"
    return whose, figure(spending.done), figure(spending.counts), limit, percent(spending.share)


def run_cells(run: RunSum) -> tuple[str, ...]:
    """A row: name, plan, purpose, rounds (and how many were done again), patients, done, figures, reserved, share."""
    again = run.charges - run.rounds
    return (
        run.name if run.secure else f"{run.name} (noise from the plan's seed)",
        run.plan[:12],
        run.purpose.replace("_", " "),
        f"{run.rounds:,}" + (f", {again:,} again" if again else ""),
        whom(run.patients),
        figure(run.training),
        figure(run.figures) if run.figures else "–",
        count(run.reserved, "step") if run.reserved else "–",
        percent(run.share),
    )


def reservation_lines(runs: Iterable[RunSum], days: int, now: datetime) -> list[str]:
    """Until when runs hold what they have reserved: for so many days after they last reserved or were charged."""
    lines = []
    for run in runs:
        if run.touched:
            until = _until(run, days)
            end = f"until {minute(until.isoformat())} UTC unless it goes on"
            if until <= now:
                end = f"and was idle for {count(days, 'day')}: the next plan that reserves takes it back"
            lines.append(f"{run.name} ({run.plan[:12]}) holds {count(run.reserved, 'step')} {end}.")
    return lines


def _until(run: RunSum, days: int) -> datetime:
    return datetime.fromisoformat(run.touched) + timedelta(days=days)


def patient_lines(patients: Patients) -> list[str]:
    """How many patients have spent how much."""
    if not patients.known:
        return ["The ledger knows no patient yet."]
    least, low, middle, high, most = map(figure, patients.done)
    lines = [
        f"{count(patients.known, 'patient')}. Epsilon done: {least} for the one who has spent least, a quarter up to "
        f"{low}, half up to {middle}, three quarters up to {high}, {most} for the one who has spent most."
    ]
    if patients.quarters:
        shares = ", ".join(f"{words}: {number:,}" for words, number in zip(_QUARTERS, patients.quarters, strict=True))
        lines.append(f"Of their budget they have used or reserved: {shares}.")
    else:
        lines.append("The policy sets no budget of a patient.")
    if patients.at_limit:
        lines.append(f"{count(patients.at_limit, 'patient')} can't pay for another round like the last, and left.")
    return lines


def _mechanism(one: Mechanism) -> str:
    rate = "everybody takes part" if one.rate >= 1 else f"sampling rate {one.rate:g}"
    return f"noise {one.noise:g} (over sensitivity), {rate}, {count(one.steps, 'step')}"


def _cost(cost: Cost, delta: float) -> str:
    what = "round" if cost.of == "training" else "release"
    return (
        f"{_WHOSE[cost.of]} pays epsilon {figure(cost.epsilon)} at delta {delta:g}: {count(cost.times, what)} of "
        f"{_mechanism(cost.each)}"
    )


def _check_words(check: Check) -> str:
    word = "fits" if check.holds else "DOES NOT FIT"
    counts = f"{figure(check.before)} now, {figure(check.after)} with the plan, limit {check.budget.epsilon:g}"
    if check.whose == "this plan":
        return f"{word}: {check.whose}: {counts} at delta {check.budget.delta:g}"
    more = count(check.plans, "such plan") if check.plans < _MANY else "over a million such plans"
    return f"{word}: {check.whose}: {counts} at delta {check.budget.delta:g}; it holds {more} from now on"


def projection_lines(found: Projection, *, all_must_pay: bool) -> list[str]:
    """What a plan would cost and meet. all_must_pay: an update tells of all patients, so none may be unable to pay."""
    if not found.costs:
        return ["It costs nothing: this site adds no noise for the plan, and the plan promises its patients nothing."]
    lines = [f"Cost: {_cost(cost, found.delta)}." for cost in found.costs]
    if not found.to_pay:
        return [*lines, f"Already charged of it: {count(found.charged, 'round')}. Nothing of it is left to pay."]
    if found.charged:
        lines.append(f"Already charged of it: {count(found.charged, 'round')}. What follows is about the rest.")
    lines += [f"{_check_words(check)}." for check in found.checks] or ["No budget is set, so all of it fits."]
    if found.leaving is not None:
        among = f"of {count(found.known, 'patient')} whom the ledger knows (the plan's own choice is not looked at)"
        if not found.leaving:
            lines.append(f"Nobody {among} would leave.")
        elif all_must_pay:
            lines.append(f"{found.leaving:,} {among} can't pay, and this plan needs all its patients to pay.")
        else:
            lines.append(f"{found.leaving:,} {among} would leave, because their budgets do not hold it.")
        if found.plans is not None:
            lines.append(f"For {count(found.plans, 'such plan')} from now on, enough of them can pay.")
    return lines


def _number(value: float | None) -> float | None:
    """For JSON, which has no infinity: null says that there is no bound, or no figure."""
    return None if value is None or not math.isfinite(value) else round(value, 6)


def spending_json(spending: Spending) -> dict[str, Any]:
    """done, counts, limit, delta, left (limit − counts) and used_share; null where there is no budget or no bound."""
    budget = spending.budget
    return {
        "done": _number(spending.done),
        "counts": _number(spending.counts),
        "limit": None if budget is None else budget.epsilon,
        "delta": None if budget is None else budget.delta,
        "left": None if budget is None or spending.counts is None else _number(budget.epsilon - spending.counts),
        "used_share": _number(spending.share),
    }


def patients_json(patients: Patients) -> dict[str, Any]:
    """How many patients have spent how much; null where no budget of a patient is set."""
    names = ("least", "quarter", "half", "three_quarters", "most")
    quarters = ("to_25_percent", "to_50_percent", "to_75_percent", "above")
    return {
        "known": patients.known,
        "done": {name: _number(value) for name, value in zip(names, patients.done, strict=False)},
        "of_budget": dict(zip(quarters, patients.quarters, strict=False)) or None,
        "worst": None if patients.worst is None else spending_json(patients.worst),
        "at_limit": patients.at_limit,
    }


def projection_json(found: Projection) -> dict[str, Any]:
    """A projection as JSON values."""
    return {
        "delta": found.delta,
        "costs": [{**asdict(cost), "epsilon": _number(cost.epsilon)} for cost in found.costs],
        "rounds_charged": found.charged,
        "left_to_pay": found.to_pay,
        "budgets": [
            {
                "of": check.whose,
                "limit": check.budget.epsilon,
                "delta": check.budget.delta,
                "before": _number(check.before),
                "after": _number(check.after),
                "holds": check.holds,
                "such_plans": check.plans,
            }
            for check in found.checks
        ],
        "patients": {"known": found.known, "leaving": found.leaving, "such_plans": found.plans},
    }


def run_json(run: RunSum, days: int) -> dict[str, Any]:
    """A run's sums as JSON values; reserved_until: null if nothing is reserved. days: see `reservation_lines`."""
    values = asdict(run)
    until = {"reserved_until": _until(run, days).isoformat() if values.pop("touched") else None}
    return {**values, **{name: _number(values[name]) for name in ("training", "figures", "share")}, **until}


def as_announced(charges: Iterable[Charge], base: int) -> tuple[Charge, ...]:
    """Charges as others are told of them: patients on the nearest multiple of the base, times to the day (UTC).

    Base 1 tells them as they are. Whoever is charged stays somebody: a few are told as the base, never as 0, which
    says everybody.
    """
    if base == 1:
        return tuple(charges)
    return tuple(
        one._replace(time=one.time[:10], patients=max(announced(one.patients, base), base) if one.patients else 0)
        for one in charges
    )


def charge_rows(charges: Sequence[Charge]) -> list[dict[str, Any]]:
    """Charges for others, as `as_announced` has them: what was charged to how many; nothing tells patients apart."""
    rows = []
    for number, time, what, at, mechanism, patients in charges:
        said = (number, time, what.plan, what.name, what.purpose, what.dataset, what.use, at, what.secure)
        rows.append(
            dict(zip(_COLUMNS, (*said, mechanism.noise, mechanism.rate, mechanism.steps, patients), strict=True))
        )
    return rows


def charges_csv(charges: Sequence[Charge]) -> str:
    """The same as a table for a spreadsheet; a text that it would take for a formula starts with an apostrophe."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for row in charge_rows(charges):
        writer.writerow(f"'{v}" if isinstance(v, str) and v.startswith(_FORMULA) else v for v in row.values())
    return stream.getvalue()


def status_words(found: Mapping[str, Any] | None) -> str:
    """The line of `site status`: what was spent of which limit, and who has reached it.

    found: as `privacy_status` gives it.

    >>> status_words(None)
    'nothing is known of it'
    """
    if found is None:
        return "nothing is known of it"
    if found["problem"] is not None:
        return f"unknown: {found['problem']}"
    no_budget = "" if found["budget_is_set"] else "no budget over all plans is set"
    if not found["charges"]:
        return ", and ".join(filter(None, (no_budget, "nothing was spent yet")))
    if found["delta"] is None:
        charged = f"{count(found['charges'], 'charge')}; the policy names no delta to tell epsilon at"
        return f"{charged}: `site ledger show --delta` does"
    parts = [_spent_words(one, found["delta"]) for one in found["datasets"]]
    patients = found["patients"]
    if patients["limit"] is not None:
        parts.append(
            f"{patients['at_limit']:,} of {count(patients['known'], 'patient')} have reached their limit "
            f"({patients['limit']:g})"
        )
    return "; ".join([*parts, *([no_budget] if no_budget else [])])


def _spent_words(one: Mapping[str, Any], delta: float) -> str:
    """The part that is used comes first: it is no quotient of the two epsilons, which stand apart for that reason."""
    done = "no bound" if one["done"] is None else figure(one["done"])
    if one["limit"] is None:
        return f"epsilon of what was done: {done}, at delta {delta:g}; no limit of the cohort"
    used = percent(math.inf if one["used_share"] is None else one["used_share"])
    budget = f"the budget (epsilon {one['limit']:g} at delta {delta:g})"
    return f"{used} of {budget} used or reserved; epsilon of what was done: {done}"


def state_words(state: State) -> str:
    """How long a ledger is, and when it was charged last."""
    if not state.charges:
        return f"{count(state.head.count, 'record')}, nothing charged yet"
    words = f"{count(state.head.count, 'record')}, last charged at {minute(state.charges[-1].time)} UTC"
    return f"{words}; begun anew after a loss with charges to everybody" if state.everybody else words
