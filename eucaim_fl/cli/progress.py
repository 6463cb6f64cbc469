"""A run on the terminal: bars where there is one, plain lines where there is none."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from eucaim_fl.federation.progress import Listener
from eucaim_fl.plan import FederationPlan
from eucaim_fl.records import Participation, RoundRecord

__all__ = ["BarListener", "LineListener", "listener_for"]

_MOST_NAMED = 5
_HEADLINES = ("dice", "auc", "auc_site_mean", "c_index", "c_index_site_mean", "balanced_accuracy")


def _headline(record: RoundRecord) -> str:
    """The pooled validation metric of the model that arrived in a round; empty if no site released one."""
    pooled = record.pooled.get("validation", {})
    for name in _HEADLINES:
        if name in pooled:
            return f"{name.replace('_', ' ')} {pooled[name]:.3f}"
    return ""


class LineListener(Listener):
    """One line for everything that matters; for logs."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._rounds = 0
        self._judged = 0

    def _say(self, text: str) -> None:
        self._console.print(f"{time.strftime('%H:%M:%S')} {text}", highlight=False, markup=False, soft_wrap=True)

    def run_started(self, plan: FederationPlan, done: int) -> None:
        self._rounds = plan.rounds
        since = f", {done} of them done" if done else ""
        if plan.validation is not None:
            self._judged = len(plan.validation.models)
            names = ", ".join(one.name for one in plan.validation.models)
            self._say(f"plan {plan.sha256()[:12]}: {names} at {len(plan.sites)} sites")
            return
        self._say(f"plan {plan.sha256()[:12]}: {plan.rounds} rounds over {len(plan.sites)} sites{since}")

    def site_ready(self, site: str, patients: int, quarantined: int) -> None:
        aside = f", {quarantined} cases quarantined" if quarantined else ""
        whom = "patients" if self._judged else "training patients"
        self._say(f"site {site}: {patients} {whom}{aside}")

    def site_answered(self, number: int, participation: Participation) -> None:
        if participation.status != "took_part":
            self._say(_trouble(number, participation))

    def line(self, text: str) -> None:
        self._say(text)

    def waiting_for_answers(self, number: int, sites: list[str], seconds: float) -> None:
        whom = ", ".join(sites[:_MOST_NAMED]) + (" and others" if len(sites) > _MOST_NAMED else "")
        self._say(f"round {number}: no answer of {whom} for {seconds:.0f} s; waiting")

    def waiting_for_quorum(self, number: int, have: int, need: int) -> None:
        whom = "others" if have else "sites"
        self._say(f"round {number}: {have} of the {need} sites needed; asking the {whom} again")

    def round_done(self, record: RoundRecord) -> None:
        name = f"round {record.round}/{self._rounds}" if record.round <= self._rounds else "final evaluation"
        name = "validation" if self._judged else name
        took = sum(p.status == "took_part" for p in record.participation)
        score = _headline(record)
        measured = f", arriving model: validation {score}" if score else ""
        self._say(f"{name}: {took} sites, {record.seconds:.1f} s{measured}")


class BarListener(LineListener):
    """Two bars: rounds of the run, sites of the round."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._progress = Progress(
            TextColumn("{task.description:<9}"),
            BarColumn(bar_width=40),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            transient=True,
        )

    def run_started(self, plan: FederationPlan, done: int) -> None:
        super().run_started(plan, done)
        self._progress.start()
        what = "answers" if self._judged else "rounds"
        self._all = self._progress.add_task(what, total=plan.rounds, completed=done, note="opening cohorts")
        self._one = self._progress.add_task("sites", total=len(plan.sites), note="")

    def round_started(self, number: int, sites: int) -> None:
        self._progress.reset(self._one, total=sites)

    def site_answered(self, number: int, participation: Participation) -> None:
        super().site_answered(number, participation)
        self._progress.advance(self._one)

    def round_done(self, record: RoundRecord) -> None:
        score = _headline(record)
        done = min(record.round, self._rounds)
        self._progress.update(self._all, completed=done, note=f"validation {score}" if score else "")

    def close(self) -> None:
        """Take the bars away."""
        self._progress.stop()


def _trouble(number: int, participation: Participation) -> str:
    why = " ".join(filter(None, (participation.code, participation.reason)))
    return f"round {number}: site {participation.site} did not take part ({participation.status}): {why}"


def listener_for(console: Console) -> LineListener:
    """Bars on a terminal, lines elsewhere."""
    return BarListener(console) if console.is_terminal else LineListener(console)
