"""The page on one run for the data-protection officer: what was promised, spent and sent, and what is left.

One HTML file that needs nothing from elsewhere. The same values give the same text; whatever came from elsewhere is
escaped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eucaim_fl.pages import filled
from eucaim_fl.plan import FederationPlan
from eucaim_fl.plan_text import explain
from eucaim_fl.privacy.accounting import Mechanism, epsilon
from eucaim_fl.privacy.promise import Promise, promise, round_mechanism
from eucaim_fl.site.audit_words import Line
from eucaim_fl.site.ledger_attacks import attack_rows
from eucaim_fl.site.ledger_drawing import Point, spending_svg
from eucaim_fl.site.ledger_state import Charge
from eucaim_fl.site.ledger_sums import Spending
from eucaim_fl.site.ledger_words import COUNTS, DONE, PARTS, count, figure, minute, percent, whom

__all__ = ["Page", "Stretch", "bound_words", "render_page", "stretches"]

_MOST_ROWS = 24
_MOST_SENT = 60
_FALSE_ALARMS = (0.01, 0.1)
_LABELS = ("Purpose", "By what right", "Data", "Privacy", "Attention", "Figures")


@dataclass(frozen=True)
class Stretch:
    """Charges that follow one another. rounds: their numbers in words. at: time of the last. epsilon: by then."""

    rounds: str
    at: str
    charges: int
    patients: tuple[int, int]
    steps: int
    epsilon: float


@dataclass(frozen=True)
class Page:
    """What the page tells. charges: of this plan. reserved: steps that it still holds. limit: of one plan, at `delta`.

    delta: at which all is told. budgets: whose, and what was spent of it. leaving: patients who can't pay any more;
    None: no budget of a patient. sent: lines of the audit log on what left for the plan; None: no audit log at hand.
    home: whether the site has one, where such a log is kept. exposure: what attacks on this run found; None: not tried.
    faults: of the ledger. commands: that check it.
    """

    site: str
    title: str
    plan: FederationPlan
    delta: float
    charges: tuple[Charge, ...]
    reserved: int
    limit: float | None
    budgets: tuple[tuple[str, Spending], ...]
    at_limit: int | None
    sent: tuple[Line, ...] | None
    home: bool
    exposure: Mapping[str, Any] | None
    faults: tuple[str, ...]
    head_count: int
    head_hash: str
    commands: tuple[str, ...]


def stretches(charges: Sequence[Charge], delta: float) -> tuple[Stretch, ...]:
    """Charges for training in their order, at most 24 rows; the epsilon of each row is that of all charges up to it."""
    if not charges:
        return ()
    size = math.ceil(len(charges) / _MOST_ROWS)
    found, done, known = [], list[Mechanism](), set[int]()
    for start in range(0, len(charges), size):
        part = charges[start : start + size]
        done += [charge.mechanism for charge in part]
        again = sum(
            charge.round in known or charge.round in {c.round for c in part[:i]} for i, charge in enumerate(part)
        )
        known |= {charge.round for charge in part}
        counts = [charge.patients for charge in part]
        found.append(
            Stretch(
                _rounds([charge.round for charge in part], again),
                part[-1].time,
                len(part),
                (min(counts), max(counts)),
                sum(charge.mechanism.steps for charge in part),
                epsilon(done, delta),
            )
        )
    return tuple(found)


def _rounds(numbers: Sequence[int], again: int) -> str:
    low, high = min(numbers), max(numbers)
    words = str(low) if low == high else f"{low}–{high}"
    if not again:
        return words
    return f"{words}, again" if again == len(numbers) else f"{words}, {again} of them again"


def bound_words(epsilon_spent: float, delta: float, unit: str = "patient") -> tuple[str, ...]:
    """What epsilon and delta mean for who wants to know whether somebody took part.

    Of those who took part, a test finds at most min(e^ε·f + δ, 1 − e^−ε·(1 − δ − f)), where f is the part of the others
    whom it accuses. Source: Kairouz, Oh and Viswanath 2015.

    >>> bound_words(1.0, 1e-5)[1].split(":")[0]
    'If it wrongly accuses 1 in 100 of those who did not take part, it finds at most 3 in 100 of those who did'
    """
    if not math.isfinite(epsilon_spent):
        return ("There is no bound: nothing limits what can be learnt about a patient.",)
    who = "a patient" if unit == "patient" else "this site"
    rates = [(false, _most_found(epsilon_spent, delta, false)) for false in _FALSE_ALARMS]
    lines = [
        "An attacker who sees all that left, knows everybody else’s data and has unlimited means wants to know whether "
        f"{who} took part. What any test can find at most follows from epsilon {figure(epsilon_spent)} and delta "
        f"{delta:g}:"
    ]
    lines += [
        f"If it wrongly accuses {100 * false:g} in 100 of those who did not take part, it finds at most "
        f"{_in_hundred(found)} of those who did: guessing would find {100 * false:g}."
        for false, found in rates
    ]
    if all(_in_hundred(found) == "100 in 100" for _, found in rates):
        lines.append("An epsilon this large rules out almost nothing by itself.")
    return tuple(lines)


def _most_found(spent: float, delta: float, false: float) -> float:
    return min(math.exp(min(spent, 700.0)) * false + delta, 1 - math.exp(-spent) * (1 - delta - false), 1.0)


def _in_hundred(part: float) -> str:
    return f"{math.ceil(round(100 * part, 6))} in 100"


def render_page(page: Page) -> str:
    """The page as HTML."""
    promised = promise(page.plan)
    trained = [charge for charge in page.charges if charge.what.use == "train"]
    rows = stretches(trained, page.delta)
    spent = rows[-1].epsilon if rows else 0.0
    figures = epsilon([charge.mechanism for charge in page.charges if charge.what.use == "figures"], page.delta)
    return filled(
        Path(__file__).parent / "templates" / "ledger.html.jinja",
        page=page,
        answer=_answer(page, promised, trained, spent),
        promised=_promised(page, promised),
        rows=[_row(one) for one in rows],
        drawing=_drawing(page, promised, rows),
        spent_notes=_spent_notes(page, figures),
        nothing_spent=_nothing_spent(page, promised),
        budgets=[_budget(whose, spending) for whose, spending in page.budgets],
        budget_notes=_budget_notes(page),
        **_sent(page),
        bound=_bound(page, promised, spent),
        exposure=attack_rows(page.exposure),
        no_exposure="No attack on this plan was tried here. `eucaim-fl privacy audit` tries to tell who was trained "
        "on, to prove a lower bound on epsilon and to rebuild images, for this site’s eyes only; its result then "
        "stands here.",
        ledger_state=_ledger_state(page),
    )


def _ledger_state(page: Page) -> str:
    if page.faults:
        return f"NOT intact: {' '.join(page.faults)}"
    if not page.head_count:
        return "None was begun yet."
    return "Intact: every record, the chain and the signatures were checked when this page was made."


def _answer(page: Page, promised: Promise | None, trained: Sequence[Charge], spent: float) -> dict[str, Any]:
    """The answer: what was spent of what was promised; whether the promise was kept; then the facts."""
    local = promised is not None and promised.against == "coordinator"
    wrong = []
    ceiling = _ceiling(page, promised)
    if not local:
        wrong.append("The plan promises this site’s patients no differential privacy against the coordinator.")
    if page.faults:
        wrong.append("The ledger is not intact, so these figures can’t be relied on.")
    if ceiling is not None and spent > ceiling * (1 + 1e-9):
        wrong.append(f"More was spent than the {figure(ceiling)} that was promised: rounds were done again.")
    if page.limit is not None and spent > page.limit:
        wrong.append(f"More was spent than the {page.limit:g} that the policy allows a plan.")
    if local and not page.plan.privacy.secure:
        wrong.append("The noise follows from the plan’s seed: whoever has the plan can take it off again.")
    rounds = len({charge.round for charge in trained})
    again = len(trained) - rounds
    kept = (
        f"Kept: every one of the {len(trained)} charges was made before its noise was drawn. How much such a promise "
        "protects is told below, under what an attacker could get."
        if trained
        else ("Nothing was charged yet, so no noised update can have left.")
    )
    return {
        "value": f"ε {figure(spent)}",
        "says": f"spent{'' if ceiling is None else f' of {figure(ceiling)} promised'}, at delta {page.delta:g}",
        "kept": not wrong,
        "verdict": wrong or [kept],
        "facts": [
            ("Rounds charged", f"{rounds} of {page.plan.rounds}" + (f", {again} again" if again else "")),
            ("Patients charged last", whom(trained[-1].patients) if trained else "–"),
            ("Steps reserved", f"{page.reserved:,}" if page.reserved else "none"),
            ("Plan’s limit here", "none set" if page.limit is None else f"{page.limit:g}"),
            ("Source of noise", "operating system" if page.plan.privacy.secure else "the plan’s seed"),
        ],
    }


def _ceiling(page: Page, promised: Promise | None) -> float | None:
    """What the whole plan promises at the page's delta; None if it promises nothing at this site."""
    once = round_mechanism(page.plan.privacy, page.plan.training)
    if promised is None or promised.against != "coordinator" or once is None:
        return None
    return epsilon([once.times(page.plan.rounds)], page.delta)


def _promised(page: Page, promised: Promise | None) -> list[tuple[str, str]]:
    rows = []
    if promised is not None:
        whom = {
            "coordinator": "From everybody else, the coordinator among them: the noise is added here, before anything "
            "leaves.",
            "readers": "From those who see the models only. The server adds the noise and sees the updates without.",
        }[promised.against]
        rows = [
            ("Epsilon and delta", f"epsilon {figure(promised.epsilon)} at delta {promised.delta:g}, over all rounds"),
            (
                "What is hidden",
                "Whether one patient is in the cohort, with all the patient’s images together."
                if promised.unit == "patient"
                else "Whether this site as a whole takes part; not its patients.",
            ),
            ("From whom", whom),
        ]
    told = [line.partition(": ") for line in explain(page.plan)]
    return [*rows, *((label, rest) for label, _, rest in told if label in _LABELS)]


def _row(one: Stretch) -> dict[str, str]:
    low, high = one.patients
    return {
        "rounds": one.rounds,
        "at": minute(one.at),
        "charges": f"{one.charges:,}",
        "patients": whom(low) if low in (0, high) else f"{low:,}–{high:,}",
        "steps": f"{one.steps:,}",
        "epsilon": figure(one.epsilon),
    }


def _drawing(page: Page, promised: Promise | None, rows: Sequence[Stretch]) -> str:
    if len(rows) < 2 or not all(math.isfinite(row.epsilon) for row in rows):
        return ""
    charges, points = 0, [Point(0, 0.0)]
    for row in rows:
        charges += row.charges
        points.append(Point(charges, row.epsilon))
    levels = {"promised": _ceiling(page, promised), "limit of a plan": page.limit}
    return spending_svg(points, {name: level for name, level in levels.items() if level is not None})


def _spent_notes(page: Page, figures: float) -> list[str]:
    notes = []
    if figures:
        notes.append(
            "Patients behind noised figures, who are not those of the training, were charged at most epsilon "
            f"{figure(figures)}."
        )
    if page.reserved:
        notes.append(f"Reserved and not charged yet: {count(page.reserved, 'step')}.")
    return notes


def _nothing_spent(page: Page, promised: Promise | None) -> str:
    if promised is None or promised.against != "coordinator":
        return "Nothing: the site adds no noise for this plan, so its ledger has nothing to charge."
    return "Nothing yet." + (f" Reserved: {count(page.reserved, 'step')}." if page.reserved else "")


def _budget(whose: str, spending: Spending) -> dict[str, Any]:
    share = spending.share
    percentage = None if share is None else 1000.0 if not math.isfinite(share) else round(100 * share, 1)
    return {
        "whose": whose,
        "done": figure(spending.done),
        "counts": figure(spending.counts),
        "limit": "none" if spending.budget is None else f"{spending.budget.epsilon:g}",
        "left": "–" if share is None else f"{max(100 - math.ceil(min(100 * share, 100.0)), 0)} %",
        "used": percent(share),
        "percent": percentage,
    }


def _budget_notes(page: Page) -> list[str]:
    notes = [DONE, COUNTS, PARTS]
    if page.at_limit:
        notes.append(f"Patients who can’t pay for another round like the last, and have left: {page.at_limit:,}.")
    return notes


def _sent(page: Page) -> dict[str, Any]:
    lines = [line for line in page.sent or () if line.left is not None]
    shown = lines[-_MOST_SENT:]
    rows = []
    for line in shown:
        left = line.left
        if left is None:
            continue
        names = [f"{split}: {', '.join(found)}" for split, found in left.metrics.items() if found]
        names += [f"{left.pictures} pictures"] if left.pictures else []
        rows.append(
            {
                "at": minute(line.time),
                "asked": line.asked or "–",
                "bytes": f"{left.bytes:,}",
                "patients": "–" if left.patients is None else f"{left.patients:,}",
                "figures": "; ".join(names) or "none",
                "epsilon": figure(left.epsilon),
            }
        )
    total = sum(line.left.bytes for line in lines if line.left is not None)
    hidden = len(lines) - len(shown)
    return {
        "sent": rows,
        "sent_total": {
            "messages": count(len(lines), "message"),
            "bytes": f"{total:,}",
            "left_out": f"{hidden:,} earlier messages are not shown; `site audit show --plan` lists all."
            if hidden
            else "",
        },
        "nothing_sent": _nothing_sent(page),
    }


def _nothing_sent(page: Page) -> str:
    if page.sent is not None:
        return "Nothing yet."
    if page.home:
        return "This home has no audit log yet."
    return "No audit log is at hand: without a home, nothing is recorded of what leaves."


def _bound(page: Page, promised: Promise | None, spent: float) -> tuple[str, ...]:
    ceiling = _ceiling(page, promised)
    if ceiling is None:
        return ("There is no bound: the update itself may reveal information about training patients.",)
    if not page.plan.privacy.secure:
        return ("There is no bound against who has the plan: the noise follows from its seed.",)
    return bound_words(max(spent, ceiling), page.delta)
