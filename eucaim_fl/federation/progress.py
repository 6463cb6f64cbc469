"""What happens in a run, told to whoever listens: the terminal, the tracker, a test."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from eucaim_fl.plan import FederationPlan
from eucaim_fl.records import Participation, RoundRecord

__all__ = ["Listener", "listeners", "listening"]


class Listener:
    """Override what is of interest; listeners are called in the coordinator's thread and must be quick."""

    def run_started(self, plan: FederationPlan, done: int) -> None:
        """The run starts, or goes on after `done` completed rounds."""

    def site_ready(self, site: str, patients: int, quarantined: int) -> None:
        """A site opened its cohort: training patients, cases left out because of faults."""

    def round_started(self, number: int, sites: int) -> None:
        """A round was sent to that many sites; number rounds + 1 is the last exchange."""

    def site_answered(self, number: int, participation: Participation) -> None:
        """A site's reply came in, or it was given up."""

    def waiting_for_answers(self, number: int, sites: list[str], seconds: float) -> None:
        """Sites that have not answered a round's question yet, so long after it was sent."""

    def waiting_for_quorum(self, number: int, have: int, need: int) -> None:
        """A round is below quorum and asks the missing sites again."""

    def line(self, text: str) -> None:
        """What becomes of the line to the federation's servers."""

    def round_done(self, record: RoundRecord) -> None:
        """A round is complete and in the journal."""


_current: list[Listener] = []


def listeners() -> list[Listener]:
    """Those that listen now."""
    return list(_current)


@contextlib.contextmanager
def listening(*added: Listener) -> Iterator[None]:
    """Let listeners hear what happens inside the block."""
    _current.extend(added)
    try:
        yield
    finally:
        for listener in added:
            _current.remove(listener)
