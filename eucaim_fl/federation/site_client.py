"""What `site start` runs: the border's process. It keeps the line, decides, lets the worker work, and answers.

While the worker is busy the line is still served: a probe hears that work is under way. What is asked, under way and
answered lies on the desk (`site_desk`), and stays there while the line is away.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

from eucaim_fl.durable import exclusive, write_atomically
from eucaim_fl.errors import AuditError, EucaimError, LinkError, NotAdmittedError, PolicyError, SiteFileError
from eucaim_fl.federation.fleet import Fleet, Incoming
from eucaim_fl.federation.local_grid import LocalGrid
from eucaim_fl.federation.parcel import digest
from eucaim_fl.federation.processes import warm_up
from eucaim_fl.federation.site_desk import Desk
from eucaim_fl.federation.site_status import StatusFile
from eucaim_fl.plan import LARGEST_MODEL_BYTES
from eucaim_fl.site.border import Border
from eucaim_fl.site.home import SiteHome
from eucaim_fl.site.status import read_status

__all__ = ["SiteClient"]

_log = logging.getLogger("eucaim_fl.site")
_POLL_S = 1.0
_LATE, _MOST_POLLS = 0.05, 4
"""A site that has heard nothing for a while asks less often: an instruction is 5 % late, and 4 s at most."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 15.0
_WARN_AGAIN_S = 600.0
_TELL_S = 5.0
_MOST_TRIES = 3
_SMALL_BYTES = 2**20
_LARGEST_LOG_BYTES = 16 * 2**20
_SESSION_LASTS = timedelta(seconds=75)
"""The coordinator counts a site as connected for a minute after it has fallen silent."""


class SiteClient:
    """One site's client. `run` returns after `stop`, or raises what makes it impossible to go on."""

    def __init__(self, home: SiteHome, stopping: threading.Event | None = None, keep_sent: Path | None = None) -> None:
        """Open the site's home. stopping: as `stop`, for who has to be able to set it before.

        Raises what `Border` raises.
        """
        self._border = Border(home, keep_sent=keep_sent)
        self._home = home
        self._stopping = stopping or threading.Event()
        self._fleet: Fleet | None = None
        self._known_as: int | None = None
        self._resumes = False
        self._tries = 0
        self._warned = ("", 0.0)
        invitation = self._border.invitation
        self._status = StatusFile(home.status_file, invitation.site, invitation.federation)

    def stop(self) -> None:
        """Make `run` return soon; what is under way is given up and can be asked for again."""
        self._stopping.set()

    def run(self) -> None:
        """Serve the federation until `stop`.

        Raises RunFolderBusyError if another client works in this home, AuditError or JournalError if the audit log or
        the memory of instructions can't be written any more: then nothing may be done.
        """
        with exclusive(self._home.run_folder):
            pid = self._home.run_folder / "pid"
            last: EucaimError | None = None
            worker: Future[LocalGrid] | None = None
            try:
                write_atomically(pid, f"{os.getpid()}\n".encode())
                self._remember_session()
                self._status.refresh()
                self._border.started(os.getpid())
                threading.Thread(target=self._keep_telling, daemon=True, name="status").start()
                worker = ThreadPoolExecutor(1).submit(self._start_worker)  # it loads torch; the line need not wait
                self._serve(Desk(self._border, self._status, worker, self._stopping))
            except EucaimError as problem:
                last = problem
                raise
            finally:
                self._stopping.set()
                if worker is not None and worker.done() and worker.exception() is None:
                    worker.result().close()
                self._status.say("stopped", last)
                with contextlib.suppress(AuditError):
                    self._border.stopped(os.getpid())
                pid.unlink(missing_ok=True)

    def _start_worker(self) -> LocalGrid:
        warm_up()
        with contextlib.suppress(OSError):  # a log that can't be moved is no reason not to work
            if self._home.log_file.stat().st_size > _LARGEST_LOG_BYTES:
                self._home.log_file.replace(self._home.log_file.with_suffix(".log.1"))
        files = {self._border.invitation.site: self._home.site_file}
        return LocalGrid(files, 1, log_file=self._home.log_file, behind_border=True)

    def _keep_telling(self) -> None:
        while not self._stopping.wait(_TELL_S):
            self._status.refresh()
        fleet = self._fleet
        if fleet is not None:
            fleet.abort()  # a call that hangs on a dead line would hold up the end

    def _remember_session(self) -> None:
        """The number under which the last client of this home was connected, and whether that may still count."""
        with contextlib.suppress(EucaimError):
            before = read_status(self._home)
            if before is not None and isinstance(before.node_id, int):
                self._known_as = before.node_id
                fresh = datetime.now(UTC) - before.updated < _SESSION_LASTS
                left = before.state in ("connected", "disconnected") and not _is_another_that_lives(before.pid)
                self._resumes = fresh and left

    # --- the line ---------------------------------------------------------------------------------------------

    def _serve(self, desk: Desk) -> None:
        pause = _FIRST_PAUSE_S
        while not self._stopping.is_set():
            began, ends = time.monotonic(), False
            try:
                self._session(self._connect(), desk)
            except (NotAdmittedError, LinkError) as problem:
                if self._stopping.is_set():
                    break
                state = "not_admitted" if isinstance(problem, NotAdmittedError) else "disconnected"
                self._status.say(state, problem)
                self._warn(f"{problem.message} {problem.fix} ({problem.local_detail}); trying again")
            except EucaimError:
                ends = True  # with a goodbye the next client of this home need not wait for a minute
                raise
            finally:
                if self._fleet is not None:
                    self._fleet.close(say_goodbye=ends or self._stopping.is_set())
                self._fleet = None
            pause = _FIRST_PAUSE_S if time.monotonic() - began > 2 * _LONGEST_PAUSE_S else pause
            self._rest(pause, desk)
            pause = min(2 * pause, _LONGEST_PAUSE_S)

    def _warn(self, text: str) -> None:
        """Log what stands in the way: once, and every ten minutes for as long as it is the same."""
        now = time.monotonic()
        if text != self._warned[0] or now > self._warned[1] + _WARN_AGAIN_S:
            self._warned = (text, now)
            _log.warning("%s", text)

    def _connect(self) -> Fleet:
        """Open a session. Raises LinkError or NotAdmittedError."""
        invitation = self._border.invitation
        self._fleet = Fleet(
            invitation.address, invitation.ca_pem, self._home.node_key, self._known_as, resume=self._resumes
        )
        self._known_as, self._resumes, self._warned = self._fleet.node_id, True, ("", 0.0)
        self._status.connected(self._fleet.node_id, self._fleet.certificate_until)
        _log.info("connected to federation %s as node %d", invitation.federation, self._fleet.node_id)
        return self._fleet

    def _rest(self, seconds: float, desk: Desk) -> None:
        """Wait; the worker may finish meanwhile."""
        until = time.monotonic() + seconds
        while not self._stopping.is_set() and (left := until - time.monotonic()) > 0:
            desk.wait(min(left, 0.5))

    def _session(self, fleet: Fleet, desk: Desk) -> None:
        """Serve one connection until it fails. Raises LinkError or NotAdmittedError."""
        heard = time.monotonic()
        while not self._stopping.is_set():
            if fleet.failed.is_set():
                raise LinkError("The coordinator has forgotten this session.")
            self._post(fleet, desk)
            desk.take_next()
            incoming = fleet.receive()
            if incoming is not None:
                self._handle(fleet, desk, incoming)
                heard = time.monotonic()
                continue
            quiet = time.monotonic() - heard
            until = time.monotonic() + min(max(_LATE * quiet, _POLL_S), _MOST_POLLS * _POLL_S)
            while not self._stopping.is_set() and (left := until - time.monotonic()) > 0:
                if desk.wait(left):
                    break

    def _post(self, fleet: Fleet, desk: Desk) -> None:
        """Send the answer that is ready; if the line fails it stays, to be sent over the next one.

        One that never gets through is not tried for ever: the coordinator asks after it. Raises LinkError.
        """
        if desk.outbox is None:
            return
        self._tries += 1
        if self._tries <= _MOST_TRIES and not fleet.reply(*desk.outbox):
            _log.warning("nobody waits for the answer any more; the coordinator asks again if it wants it")
        desk.outbox, self._tries = None, 0

    def _handle(self, fleet: Fleet, desk: Desk, incoming: Incoming) -> None:
        """Take in one instruction or probe. Raises LinkError, NotAdmittedError, AuditError, JournalError."""
        limit = _SMALL_BYTES
        if not incoming.message.metadata.message_type.startswith("query"):
            limit = LARGEST_MODEL_BYTES
            with contextlib.suppress(SiteFileError, PolicyError):  # the decision on the instruction says so
                limit = min(self._border.largest_incoming(), limit)
        try:
            packed = fleet.fetch(incoming, limit)
            if packed is None:
                return
            record = packed.config_records.get("seal")
            seal = self._border.identify(None if record is None else dict(record), digest(packed))
        except (LinkError, NotAdmittedError):
            raise
        except EucaimError as problem:  # whoever sent it, it was not the coordinator: there is nobody to answer
            _log.error("%s", problem.for_terminal())
            self._border.ignored(problem)
            self._status.problem(problem)
            return
        if seal.kind == "probe":
            fleet.reply(incoming, desk.word(seal))
        else:
            desk.take(incoming, seal, packed)
            self._post(fleet, desk)


def _is_another_that_lives(pid: int) -> bool:
    """Whether a process of this machine other than this one has a number: this home is then a copy of one in use."""
    return pid != os.getpid() and Path(f"/proc/{pid}").exists()
