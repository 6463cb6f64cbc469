"""Who takes part in a run: sites that connect, say what they have, or why they don't."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from flwr.serverapp import Grid

from eucaim_fl.federation.exchange import Question, ask
from eucaim_fl.federation.messages import Reply
from eucaim_fl.plan import FederationPlan
from eucaim_fl.records import Participation, Past
from eucaim_fl.site.report import SiteReport
from eucaim_fl.tracking.journal import Journal

__all__ = ["Attendance"]

_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 15.0
_FIRST_WORD_S, _NEXT_WORD_S = 5.0, 20.0
"""After how long a person at the terminal hears that sites are waited for, and how often then."""
_MORE_THAN_QUORUM_S = 60.0
"""How long sites that the quorum does not need may delay the first round, however long the quorum is waited for."""
_APPROVAL = "EFL311"
_LATER = {_APPROVAL, "EFL312"}
"""Refusals for now: the site's IT has to approve first, or the hour is wrong. Such a site is asked again each round."""


class Attendance:
    """The sites of one run, as they are known by now.

    nodes: site → node, of those that take part. announced: site → what it said of its cohort.
    """

    def __init__(
        self,
        grid: Grid,
        plan: FederationPlan,
        journal: Journal,
        tell: Callable[..., None],
        look_up: Callable[[], None],
        rest: Callable[[float], None],
    ) -> None:
        """tell: an event and its values, to whoever listens. look_up: called between answers. rest: for seconds."""
        self._grid, self._plan, self._journal = grid, plan, journal
        self._tell, self._look_up, self._rest = tell, look_up, rest
        self.nodes: dict[str, int] = {}
        self.announced: dict[str, SiteReport] = {}
        self._refused: dict[int, Participation] = {}
        self._told: set[tuple[str, str, str]] = set()

    def participation(self, states: Mapping[str, Participation]) -> tuple[Participation, ...]:
        """What became of every site of the plan in an exchange. states: of those that were asked."""
        refused = {p.site: p for p in self._refused.values()}
        absent = {s: Participation(s, "absent", reason="The site is not connected.") for s in self._plan.sites}
        return tuple({**absent, **refused, **states}[site] for site in self._plan.sites)

    def gather(self) -> None:
        """Before the first round: let all sites connect, for as long as a round may wait for its quorum.

        Where the quorum is there, the others are waited for a minute at most. Sites that said not yet are asked again
        at growing intervals: each greeting is a decision in their audit logs.
        """
        rules, wanted = self._plan.participation, len(self._plan.sites)
        began = time.monotonic()
        word_at, greet_at, pause = began + _FIRST_WORD_S, began, _PAUSE_S
        while True:
            greeting = time.monotonic() >= greet_at
            self.discover(again=False, only_new=not greeting)
            now = time.monotonic()
            if greeting:
                greet_at, pause = now + pause, min(2.0 * pause, _LONGEST_PAUSE_S)
            here = len(self.nodes) + len(self._refused)
            enough = len(self.nodes) >= rules.quorum
            patience = min(rules.quorum_wait_s, _MORE_THAN_QUORUM_S) if enough else rules.quorum_wait_s
            if here >= wanted or now >= began + patience:
                return
            if now >= word_at:
                word_at = now + _NEXT_WORD_S
                self._tell("line", f"waiting for sites: {here} of {wanted} connected")
            self._rest(_PAUSE_S)

    def discover(self, *, again: bool, only_new: bool = False) -> None:
        """Say hello to nodes that are not known yet.

        `again`: also to those that refused before; `only_new`: not even to those that may say yes the next time.
        """
        lasting = {n for n, p in self._refused.items() if p.status not in ("lost", "deadline") and p.code not in _LATER}
        known = set(self.nodes.values()) | (set() if again else set(self._refused) if only_new else lasting)
        if len(self.nodes) == len(self._plan.sites):
            return
        connected = list(self._grid.get_node_ids())
        names: Mapping[int, str] = getattr(self._grid, "names", {})
        asked = {node for node in connected if names.get(node, self._plan.sites[0]) in self._plan.sites}
        targets = {f"node-{node}": node for node in connected if node in asked and node not in known}
        run = Past(self._journal.run()) if self._plan.keeps_records() else Past()
        question = Question("hello", 0, self._plan, pasts=dict.fromkeys(targets, run))
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
            elif site in self._plan.sites and site not in self.nodes:
                self._refused.pop(node, None)
                self.nodes[site], self.announced[site] = node, answered.reply.report
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
