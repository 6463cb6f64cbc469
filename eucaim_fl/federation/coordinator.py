"""The coordinator's rounds: ask, collect, combine, journal. Works over any Flower `Grid`.

A strategy of Flower's own kind is not used: it keeps all replies of a round in memory, has no quorum, and loses the
missing without a word (see docs/architecture.md).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from operator import attrgetter
from typing import Any, Literal, cast

from flwr.app import ArrayRecord
from flwr.serverapp import Grid

from eucaim_fl.arrays import ArrayFile, Arrays, arrays_sha256
from eucaim_fl.errors import InterruptedRunError, JournalError, ReplyError
from eucaim_fl.federation.attendance import Attendance
from eucaim_fl.federation.combining import Gathered, guided, next_model
from eucaim_fl.federation.exchange import Question, ask
from eucaim_fl.federation.history import pasts
from eucaim_fl.federation.messages import read_report, to_record
from eucaim_fl.federation.progress import Listener
from eucaim_fl.federation.result import best_round, stalled
from eucaim_fl.federation.shortfall import (
    below_quorum,
    budgets_end_it,
    never_enough,
    nothing_told,
    refusing,
    with_spent_budget,
    withholding,
)
from eucaim_fl.plan import FederationPlan
from eucaim_fl.records import ArraySpec, Participation, Past, RoundRecord, SiteMetrics
from eucaim_fl.site.report import SiteReport
from eucaim_fl.strategies.outliers import outlying
from eucaim_fl.strategies.weighting import trained_norm
from eucaim_fl.tracking.journal import Journal, JournalState
from eucaim_fl.tracking.registration import note_first_record
from eucaim_fl.training.statistics import conditioning
from eucaim_fl.validation.pooling import pool

__all__ = ["Coordinator"]

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 15.0


@dataclass
class _Round:
    """A round under way: what sites are told of those before, valid replies (update on disk), what became of each."""

    kind: Literal["statistics", "round", "final"]
    number: int
    pasts: Mapping[str, Past] = field(default_factory=dict)
    reports: dict[str, SiteReport] = field(default_factory=dict)
    updates: dict[str, ArrayFile] = field(default_factory=dict)
    states: dict[str, Participation] = field(default_factory=dict)
    excluded: set[str] = field(default_factory=set)
    signatures: dict[str, dict[str, str]] = field(default_factory=dict)
    attempts: int = 0


class _BudgetsSpentError(Exception):
    """So many sites have no privacy budget left for another round that there will be no quorum again."""


class Coordinator:
    """One run of one plan. The journal's folder is held by the caller."""

    def __init__(
        self,
        grid: Grid,
        plan: FederationPlan,
        journal: Journal,
        specs: tuple[ArraySpec, ...],
        listeners: Iterable[Listener] = (),
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        self._grid, self._plan, self._journal, self._specs = grid, plan, journal, specs
        self._listeners, self._stopped = list(listeners), stopped
        self._sites = Attendance(grid, plan, journal, self._tell, self._look_up, self._rest)
        self._counted: list[Participation] = []  # whose updates moved the model
        self._writer = ThreadPoolExecutor(1)
        self._written: Future[RoundRecord] | None = None

    # --- the run ----------------------------------------------------------------------------------------------

    def run(self, state: JournalState) -> None:
        """Go on from a state of the journal to the end.

        A round is written into the journal while the next one is already under way; what a crash takes with it is
        computed again to the same bits.
        Raises QuorumError if a round stays below quorum, JournalError if the journal can't be written; both leave a
        run that can be resumed.
        """
        self._tell("run_started", self._plan, min(state.round, self._plan.rounds))
        records = list(state.records)
        over = bool(records) and records[-1].is_final(self._plan.rounds)
        self._counted = [p for r in records for p in r.participation if p.site in r.aggregated_from]
        weights, method = state.weights, state.optimizer
        if not over and (best := best_round(self._plan, records)) is not None:
            with suppress(JournalError):  # a crash may have come between the last round and its copy of the best model
                self._journal.best(best)
        try:
            if not over:
                self._sites.gather()
                if state.round == 0:
                    weights = self._conditioned(weights)
            digest = arrays_sha256(weights)
            while not over:
                started = time.monotonic()
                current = self._next(records)
                if current.kind == "final":
                    weights, digest = self._kept(weights, digest, records)
                try:
                    self._fill(current, to_record(self._sent(current, weights, method)), digest)
                except _BudgetsSpentError:
                    self._tell("line", f"the privacy budget of {', '.join(with_spent_budget(current.states))} is spent")
                    current = _Round("final", current.number)  # the last complete model is what the budget paid for
                    weights, digest = self._kept(weights, digest, records)
                    self._fill(current, to_record(weights), digest)
                combining = time.monotonic()
                arriving = digest
                if current.kind == "round":
                    weights, method = self._combine(current, weights, method, records)
                    digest = arrays_sha256(weights)
                record = replace(
                    self._record(current, arriving, digest),
                    seconds=round(time.monotonic() - started, 3),
                    aggregation_seconds=round(time.monotonic() - combining, 3),
                )
                self._settle()
                self._counted += [p for p in record.participation if p.site in record.aggregated_from]
                better_now = self._is_better(record, records)
                records.append(record)
                self._written = self._writer.submit(self._write, record, weights, method, better_now)
                over = record.is_final(self._plan.rounds)
            self._settle()
        finally:
            self._writer.shutdown(wait=True)
        if self._plan.validation is None:  # frozen models are no model of this run
            self._journal.keep_last(weights)

    def _next(self, records: list[RoundRecord]) -> _Round:
        """The exchange that comes now: a round, or the last one where the rounds are over or gain nothing any more."""
        number, told = len(records) + 1, pasts(self._plan, self._journal.run(), records)
        if number > self._plan.rounds or self._plan.validation is not None:
            return _Round("final", number, told)
        if stalled(self._plan, records):
            self._tell("line", f"no better for {self._plan.stopping.patience} measurements: the rounds end")
            return _Round("final", number, told)
        return _Round("round", number, told)

    def _kept(self, weights: Arrays, digest: str, records: list[RoundRecord]) -> tuple[Arrays, str]:
        """The model that the last exchange measures: the last, or the best that sites measured, where there is one.

        Raises JournalError if the best one is not on the disk any more.
        """
        best = best_round(self._plan, records)
        if self._plan.stopping.keep == "last" or best is None:
            return weights, digest
        self._settle()
        return self._journal.best(best), best.arriving_sha256

    def _sent(self, current: _Round, weights: Arrays, method: Arrays) -> Arrays:
        """What travels to the sites: the model, and in a round what the method tells them beside."""
        return {**weights, **guided(self._plan, method)} if current.kind == "round" else weights

    def _conditioned(self, weights: Arrays) -> Arrays:
        """The first model with the statistics of all sites' inputs and classes, where the plan asks for them.

        They are asked for once: a resumed run finds them in its first model. Raises QuorumError if too few sites tell
        any: as soon as so many refuse that the quorum can't be reached, else after the time that it is waited for.
        """
        if not self._plan.needs_statistics() or self._journal.statistics() is not None:
            return weights
        current = _Round("statistics", 0)
        self._tell("line", "asking the sites for sums over their training patients")
        self._fill(current, None, "")
        told = {site: report.statistics for site, report in sorted(current.reports.items()) if report.statistics}
        weights = {**weights, **conditioning([one for one in told.values() if one.patients > 0], self._plan)}
        self._journal.begin(self._specs, weights, {site: one.model_dump(mode="json") for site, one in told.items()})
        return weights

    def _combine(
        self, current: _Round, weights: Arrays, method: Arrays, records: list[RoundRecord]
    ) -> tuple[Arrays, Arrays]:
        sites = sorted(current.updates)
        gathered = [Gathered(s, current.updates[s], current.reports[s]) for s in sites]
        known = {p.site: p.patients for r in records for p in r.participation if p.site in r.aggregated_from}
        return next_model(self._plan, current.number, gathered, known, self._specs, (weights, method))

    def _record(self, current: _Round, arriving: str, digest: str) -> RoundRecord:
        sites = sorted(current.reports)
        metrics = {s: tuple(m.plain() for m in current.reports[s].metrics) for s in sites}
        by_split: dict[str, list[SiteMetrics]] = {}
        model = self._plan.method.personal.candidates()[0]
        for entry in (entry for site in sites for entry in metrics[site] if entry.model == model):
            by_split.setdefault(entry.split, []).append(entry)
        return RoundRecord(
            round=current.number,
            arriving_sha256=arriving,
            weights_sha256=digest,
            participation=self._sites.participation(current.states),
            metrics=metrics,
            pooled={split: pool(entries) for split, entries in by_split.items()},
            train_loss={s: loss for s in sites if (loss := current.reports[s].train_loss) is not None},
            aggregated_from=tuple(sorted(current.updates)),
            seconds=0.0,
            attempts=current.attempts,
            final=current.kind == "final",
            chosen={s: chosen for s in sites if (chosen := current.reports[s].chosen) is not None},
            validated={s: asdict(record) for s in sites if (record := current.reports[s].validated) is not None},
            signatures=dict(sorted(current.signatures.items())),
        )

    def _write(self, record: RoundRecord, weights: Arrays, optimizer: Arrays, better_now: bool) -> RoundRecord:
        self._journal.commit(record, weights, optimizer, better_now)
        return record

    def _settle(self, *, only_if_done: bool = False) -> None:
        """Wait until the last round is in the journal; its faults are raised here."""
        if self._written is None or (only_if_done and not self._written.done()):
            return
        written, self._written = self._written, None
        self._tell("round_done", written.result())

    def _look_up(self) -> None:
        """Between replies: has the last round reached the disk, does anybody want the run to stop?

        Raises InterruptedRunError if so.
        """
        self._settle(only_if_done=True)
        if self._stopped():
            raise InterruptedRunError("The run was stopped.", fix="It can be resumed.")

    def _rest(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self._look_up()
            time.sleep(min(left, _FIRST_PAUSE_S))

    def _is_better(self, record: RoundRecord, earlier: list[RoundRecord]) -> bool:
        """Whether the weights that arrived in this round are the best so far by the pooled validation metric."""
        best = best_round(self._plan, [*earlier, record])
        return best is not None and best.round == record.round

    # --- one round --------------------------------------------------------------------------------------------

    def _fill(self, current: _Round, weights: ArrayRecord | None, arriving: str) -> None:
        """Ask the sites until the quorum is met or its waiting time is over.

        Raises QuorumError.
        """
        rules = self._plan.participation
        waiting_since: float | None = None
        while True:
            current.attempts += 1
            self._sites.discover(again=current.attempts > 1)
            if current.attempts == 1:
                self._take_spooled(current, arriving)
                if current.kind != "statistics":
                    self._tell("round_started", current.number, len(self._sites.nodes))
            self._collect(current, weights, arriving)
            self._set_aside_outliers(current)
            have = sum(current.states[site].status == "took_part" for site in current.reports)
            if have >= rules.quorum:
                return
            if current.kind == "round" and budgets_end_it(current.states, self._sites.nodes, rules.quorum):
                raise _BudgetsSpentError
            waiting_since = waiting_since or time.monotonic()
            left = rules.quorum_wait_s - (time.monotonic() - waiting_since)
            participation = self._sites.participation(current.states)
            refused = refusing(current.states) if current.kind == "statistics" else ()
            if refused and (left <= 0 or len(participation) - len(refused) < rules.quorum):
                raise nothing_told(participation, rules.quorum)
            if left <= 0 or never_enough(participation, rules.quorum):
                raise below_quorum(current.number, rules.quorum, participation, self._journal.folder.name)
            self._tell("waiting_for_quorum", current.number, have, rules.quorum)
            self._rest(min(left, _LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** min(current.attempts, 10)))

    def _collect(self, current: _Round, weights: ArrayRecord | None, arriving: str) -> None:
        question = Question(
            current.kind,
            self._plan.rounds + 1 if current.kind == "final" else current.number,
            self._plan,
            self._specs if current.kind == "round" else (),
            weights,
            current.pasts,
        )
        done = {*current.reports, *current.excluded}
        targets = {s: self._sites.nodes[s] for s in self._plan.sites if s in self._sites.nodes and s not in done}
        announced = {site: (report.patients, report.cohort_sha256) for site, report in self._sites.announced.items()}
        waiting = partial(self._tell, "waiting_for_answers", current.number)
        for answered in ask(self._grid, question, targets, announced, self._look_up, waiting):
            site, reply = answered.target, answered.reply
            current.states[site] = answered.participation
            if reply is not None:
                if current.kind == "round":
                    text = reply.report.model_dump_json()
                    current.updates[site] = self._journal.spool(current.number, site, arriving, text, reply.update)
                if reply.pictures is not None:
                    self._journal.keep_pictures(site, reply.pictures)
                if reply.report.validated is not None and not any(one.validated for one in current.reports.values()):
                    note_first_record(self._journal.folder)
                if answered.signed is not None:
                    current.signatures[site] = asdict(answered.signed)
                current.reports[site] = reply.report
                if reply.report.statistics is not None and not reply.report.statistics.patients:
                    current.states[site] = withholding(answered.participation)
            del reply
            if current.kind != "statistics":
                self._tell("site_answered", current.number, answered.participation)

    def _set_aside_outliers(self, current: _Round) -> None:
        """Exclude updates that are too long to be believed; their sites are not asked again in this round.

        Both the whole and what is trained in it are looked at: beside running variances, changes of weights are short.
        Under `central_dp` every update is clipped, and whether one counts must not depend on the others.
        """
        if self._plan.privacy.mechanism == "central_dp":
            return
        ratio = self._plan.participation.largest_norm_ratio
        found = set[str]()
        for length in (attrgetter("update_norm"), attrgetter("trained_norm")):
            norms = {site: length(current.states[site]) for site in current.updates}
            found |= outlying(norms, ratio, [length(one) for one in self._counted])
        for site in sorted(found):
            del current.reports[site], current.updates[site]
            current.excluded.add(site)
            current.states[site] = replace(
                current.states[site],
                status="rejected",
                code="EFL302",
                reason=f"The update is more than {ratio:g} times as long (L2 norm) as the others'.",
            )
            self._tell("site_answered", current.number, current.states[site])

    def _take_spooled(self, current: _Round, arriving: str) -> None:
        """Use replies that came in before the coordinator was killed."""
        names = {spec.name for spec in self._specs}
        for site in self._plan.sites if current.kind == "round" else ():
            file = self._journal.spooled(current.number, site, arriving)
            if file is None or set(file.names) != names or site not in self._sites.announced:
                continue
            try:
                report = read_report(file.metadata["report"])
            except ReplyError:
                continue
            now = self._sites.announced[site]
            same = report.cohort_sha256 == now.cohort_sha256 and report.patients <= now.patients
            if report.plan_sha256 == self._plan.sha256() and same:
                current.reports[site], current.updates[site] = report, file
                size = file.path.stat().st_size
                current.states[site] = Participation(
                    site,
                    "took_part",
                    patients=report.patients,
                    seconds=report.seconds,
                    bytes_up=size,
                    update_norm=trained_norm(file, lambda _: True),
                    trained_norm=trained_norm(file, {s.name for s in self._specs if s.trainable}.__contains__),
                )

    def _tell(self, event: str, *values: Any) -> None:
        for listener in self._listeners:
            cast(Any, getattr(listener, event))(*values)
