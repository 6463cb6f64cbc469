"""The coordinator's rounds: ask, collect, combine, journal. Works over any Flower `Grid`.

A strategy of Flower's own kind is not used: it keeps all replies of a round in memory, has no quorum, and loses the
missing without a word (see docs/architecture.md).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, cast

import numpy as np
from flwr.app import ArrayRecord
from flwr.serverapp import Grid

from eucaim_fl.arrays import ArrayFile, Arrays, arrays_sha256
from eucaim_fl.errors import InterruptedRunError, NotFiniteError, ReplyError
from eucaim_fl.federation.combining import combined
from eucaim_fl.federation.exchange import Question, ask
from eucaim_fl.federation.messages import Reply, read_report, to_record
from eucaim_fl.federation.progress import Listener
from eucaim_fl.federation.result import best_round
from eucaim_fl.federation.shortfall import below_quorum, budgets_end_it, never_enough, with_spent_budget
from eucaim_fl.plan import FederationPlan
from eucaim_fl.records import ArraySpec, Participation, RoundRecord, SiteMetrics
from eucaim_fl.site.gate import update_norm
from eucaim_fl.site.report import SiteReport
from eucaim_fl.strategies.outliers import outlying
from eucaim_fl.strategies.server_optimizer import apply
from eucaim_fl.tracking.journal import Journal, JournalState
from eucaim_fl.validation.pooling import pool

__all__ = ["Coordinator"]

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 15.0
_FIRST_WORD_S, _NEXT_WORD_S = 5.0, 20.0
"""After how long a person at the terminal hears that sites are waited for, and how often then."""
_MORE_THAN_QUORUM_S = 60.0
"""How long sites that the quorum does not need may delay the first round, however long the quorum is waited for."""
_APPROVAL = "EFL311"
_LATER = {_APPROVAL, "EFL312"}
"""Refusals for now: the site's IT has to approve first, or the hour is wrong. Such a site is asked again each round."""


@dataclass
class _Round:
    """A round under way: valid replies (update on disk) and what became of each site."""

    kind: Literal["round", "final"]
    number: int
    reports: dict[str, SiteReport] = field(default_factory=dict)
    updates: dict[str, ArrayFile] = field(default_factory=dict)
    states: dict[str, Participation] = field(default_factory=dict)
    excluded: set[str] = field(default_factory=set)
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
        self._nodes: dict[str, int] = {}
        self._announced: dict[str, SiteReport] = {}
        self._refused: dict[int, Participation] = {}
        self._told: set[tuple[str, str, str]] = set()
        self._norms: list[float] = []
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
        if not (records and records[-1].is_final(self._plan.rounds)):
            self._gather()
        self._norms = [p.update_norm for r in records for p in r.participation if p.site in r.aggregated_from]
        weights, optimizer, digest = state.weights, state.optimizer, arrays_sha256(state.weights)
        trainable = {spec.name for spec in self._specs if spec.trainable}
        try:
            for number in range(state.round + 1, self._plan.rounds + 2):
                if records and records[-1].is_final(self._plan.rounds):
                    break
                started = time.monotonic()
                current = _Round("final" if number > self._plan.rounds else "round", number)
                try:
                    self._fill(current, to_record(weights), digest)
                except _BudgetsSpentError:
                    self._tell("line", f"the privacy budget of {', '.join(with_spent_budget(current.states))} is spent")
                    current = _Round("final", number)  # the last complete model is what the budget could pay for
                    self._fill(current, to_record(weights), digest)
                combining = time.monotonic()
                arriving = digest
                if current.kind == "round":
                    weights, optimizer = self._combine(current, weights, optimizer, trainable)
                    digest = arrays_sha256(weights)
                record = replace(
                    self._record(current, arriving, digest),
                    seconds=round(time.monotonic() - started, 3),
                    aggregation_seconds=round(time.monotonic() - combining, 3),
                )
                self._settle()
                self._norms += [p.update_norm for p in record.participation if p.site in record.aggregated_from]
                better_now = self._is_better(record, records)
                records.append(record)
                self._written = self._writer.submit(self._write, record, weights, optimizer, better_now)
            self._settle()
        finally:
            self._writer.shutdown(wait=True)
        self._journal.keep_last(weights)

    def _combine(
        self, current: _Round, weights: Arrays, optimizer: Arrays, trainable: set[str]
    ) -> tuple[Arrays, Arrays]:
        sites = sorted(current.updates)
        patients = [current.reports[s].patients for s in sites]
        common = combined(self._plan, current.number, [current.updates[s] for s in sites], patients, weights)
        moved, state = apply(self._plan.method.server_optimizer, weights, common, optimizer, trainable.__contains__)
        if not all(np.isfinite(a).all() for a in moved.values() if np.issubdtype(a.dtype, np.floating)):
            raise NotFiniteError(
                "The combined weights are not finite.", fix="Lower method.server_optimizer.lr or training.optimizer.lr."
            )
        return moved, state

    def _record(self, current: _Round, arriving: str, digest: str) -> RoundRecord:
        sites = sorted(current.reports)
        metrics = {s: tuple(m.plain() for m in current.reports[s].metrics) for s in sites}
        by_split: dict[str, list[SiteMetrics]] = {}
        for site in sites:
            for entry in metrics[site]:
                by_split.setdefault(entry.split, []).append(entry)
        return RoundRecord(
            round=current.number,
            arriving_sha256=arriving,
            weights_sha256=digest,
            participation=self._participation(current),
            metrics=metrics,
            pooled={split: pool(entries) for split, entries in by_split.items()},
            train_loss={s: loss for s in sites if (loss := current.reports[s].train_loss) is not None},
            aggregated_from=tuple(sorted(current.updates)),
            seconds=0.0,
            attempts=current.attempts,
            final=current.kind == "final",
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
        best = best_round(self._plan.task.name, [*earlier, record])
        return best is not None and best.round == record.round

    # --- one round --------------------------------------------------------------------------------------------

    def _fill(self, current: _Round, weights: ArrayRecord, arriving: str) -> None:
        """Ask the sites until the quorum is met or its waiting time is over.

        Raises QuorumError.
        """
        rules = self._plan.participation
        waiting_since: float | None = None
        while True:
            current.attempts += 1
            self._discover(again=current.attempts > 1)
            if current.attempts == 1:
                self._take_spooled(current, arriving)
                self._tell("round_started", current.number, len(self._nodes))
            self._collect(current, weights, arriving)
            self._set_aside_outliers(current)
            have = len(current.reports)
            if have >= rules.quorum:
                return
            if current.kind == "round" and budgets_end_it(current.states, self._nodes, rules.quorum):
                raise _BudgetsSpentError
            waiting_since = waiting_since or time.monotonic()
            left = rules.quorum_wait_s - (time.monotonic() - waiting_since)
            participation = self._participation(current)
            if left <= 0 or never_enough(participation, rules.quorum):
                raise below_quorum(current.number, rules.quorum, participation, self._journal.folder.name)
            self._tell("waiting_for_quorum", current.number, have, rules.quorum)
            self._rest(min(left, _LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** min(current.attempts, 10)))

    def _collect(self, current: _Round, weights: ArrayRecord, arriving: str) -> None:
        question = Question(
            current.kind,
            current.number if current.kind == "round" else self._plan.rounds + 1,
            self._plan,
            self._specs if current.kind == "round" else (),
            weights,
        )
        done = {*current.reports, *current.excluded}
        targets = {s: self._nodes[s] for s in self._plan.sites if s in self._nodes and s not in done}
        announced = {site: (report.patients, report.cohort_sha256) for site, report in self._announced.items()}
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
                current.reports[site] = reply.report
            del reply
            self._tell("site_answered", current.number, answered.participation)

    def _set_aside_outliers(self, current: _Round) -> None:
        """Exclude updates that are too long to be believed; their sites are not asked again in this round.

        Under `central_dp` every update is clipped, and whether one counts must not depend on the others.
        """
        if self._plan.privacy.mechanism == "central_dp":
            return
        ratio = self._plan.participation.largest_norm_ratio
        norms = {site: current.states[site].update_norm for site in current.updates}
        for site in sorted(outlying(norms, ratio, self._norms)):
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
            if file is None or set(file.names) != names or site not in self._announced:
                continue
            try:
                report = read_report(file.metadata["report"])
            except ReplyError:
                continue
            now = self._announced[site]
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
                    update_norm=update_norm({name: file.read(name) for name in file.names}),
                )

    def _participation(self, current: _Round) -> tuple[Participation, ...]:
        refused = {p.site: p for p in self._refused.values()}
        absent = {s: Participation(s, "absent", reason="The site is not connected.") for s in self._plan.sites}
        return tuple((absent | refused | current.states)[site] for site in self._plan.sites)

    # --- who is there -----------------------------------------------------------------------------------------

    def _gather(self) -> None:
        """Before the first round: let all sites connect, for as long as a round may wait for its quorum.

        Where the quorum is there, the others are waited for a minute at most. Sites that said not yet are asked again
        at growing intervals: each greeting is a decision in their audit logs.
        """
        rules, wanted = self._plan.participation, len(self._plan.sites)
        began = time.monotonic()
        word_at, greet_at, pause = began + _FIRST_WORD_S, began, _FIRST_PAUSE_S
        while True:
            greeting = time.monotonic() >= greet_at
            self._discover(again=False, only_new=not greeting)
            now = time.monotonic()
            if greeting:
                greet_at, pause = now + pause, min(2.0 * pause, _LONGEST_PAUSE_S)
            here = len(self._nodes) + len(self._refused)
            enough = len(self._nodes) >= rules.quorum
            patience = min(rules.quorum_wait_s, _MORE_THAN_QUORUM_S) if enough else rules.quorum_wait_s
            if here >= wanted or now >= began + patience:
                return
            if now >= word_at:
                word_at = now + _NEXT_WORD_S
                self._tell("line", f"waiting for sites: {here} of {wanted} connected")
            self._rest(_FIRST_PAUSE_S)

    def _discover(self, *, again: bool, only_new: bool = False) -> None:
        """Say hello to nodes that are not known yet.

        `again`: also to those that refused before; `only_new`: not even to those that may say yes the next time.
        """
        lasting = {n for n, p in self._refused.items() if p.status not in ("lost", "deadline") and p.code not in _LATER}
        known = set(self._nodes.values()) | (set() if again else set(self._refused) if only_new else lasting)
        if len(self._nodes) == len(self._plan.sites):
            return
        connected = list(self._grid.get_node_ids())
        names: Mapping[int, str] = getattr(self._grid, "names", {})
        asked = {node for node in connected if names.get(node, self._plan.sites[0]) in self._plan.sites}
        targets = {f"node-{node}": node for node in connected if node in asked and node not in known}
        question = Question("hello", 0, self._plan)
        for answered in ask(self._grid, question, targets, {}, self._look_up):
            node = targets[answered.target]
            site = answered.claims or names.get(node, "")
            wrong = self._wrong_hello(site, names.get(node, ""), answered.reply)
            if wrong:
                self._refused[node] = Participation(names.get(node, site), "rejected", "EFL302", wrong)
            elif answered.reply is None:
                self._refused[node] = replace(answered.participation, site=site)
            elif self._changed(site, answered.reply.report):
                self._refused[node] = Participation(
                    site, "rejected", "EFL302", "The site's cohort has changed since the run began."
                )
            elif site in self._plan.sites and site not in self._nodes:
                self._refused.pop(node, None)
                self._nodes[site], self._announced[site] = node, answered.reply.report
                report = answered.reply.report
                self._journal.keep_site(site, report.patients, report.quarantined, report.cohort_sha256)
                self._tell("site_ready", site, report.patients, report.quarantined)
            if node in self._refused:
                self._tell_refusal(self._refused[node])

    def _tell_refusal(self, found: Participation) -> None:
        """Say why a site does not take part, once for each reason, however often it is asked."""
        known = (found.site, found.code, found.reason)
        if found.site not in self._plan.sites or known in self._told:
            return
        self._told.add(known)
        if found.code == _APPROVAL:
            self._tell("line", f"site {found.site} waits for a person there ({_APPROVAL})")
        else:
            now = " now" if found.code in _LATER else ""
            self._tell("line", f"site {found.site} does not take part{now}: {found.code} {found.reason}")

    def _wrong_hello(self, site: str, admitted_as: str, reply: Reply | None) -> str:
        """Why a greeting can't be believed, where the grid knows whose node it is; empty if it can."""
        limits: Mapping[str, int | None] = getattr(self._grid, "largest_patients", {})
        if admitted_as and site != admitted_as:
            return "The reply bears another site's name."
        limit = limits.get(site)
        if reply is not None and limit is not None and reply.report.patients > limit:
            return "The site announces more patients than it was admitted with."
        return ""

    def _changed(self, site: str, report: SiteReport) -> bool:
        """Whether a site's cohort is another one than when this run began; its splits could then mix."""
        before = self._journal.sites().get(site)
        return before is not None and before["cohort_sha256"] != report.cohort_sha256

    def _tell(self, event: str, *values: Any) -> None:
        for listener in self._listeners:
            cast(Any, getattr(listener, event))(*values)
