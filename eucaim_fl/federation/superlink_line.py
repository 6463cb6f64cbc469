"""Calls to a SuperLink that may be away for a while, and a claimed run that may have to be claimed anew."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TypeVar

import httpx

from eucaim_fl.errors import LinkError
from eucaim_fl.federation.flower_run import FlowerRun
from eucaim_fl.federation.home import FederationHome

__all__ = ["SuperlinkLine"]

T = TypeVar("T")
_log = logging.getLogger("eucaim_fl.federation")
_PAUSE_S = 0.5
_OVER = {401, 403, 404, 409, 412}
"""HTTP codes with which a SuperLink says that it does not know the run, or that the run is over."""


class SuperlinkLine:
    """The run that this process has claimed, and the patience with which it is spoken of."""

    def __init__(
        self, home: FederationHome, patience_s: float, tell: Callable[[str], None], renewed: Callable[[], None]
    ) -> None:
        """Start and claim a run.

        tell: hears what becomes of the line. renewed: called after a new run had to be claimed; what was under way in
        the old one is lost. Raises LinkError if the SuperLink is not there.
        """
        self._home, self._patience, self._tell, self._renewed = home, patience_s, tell, renewed
        self._renewing = threading.RLock()
        self.flower = self._new_run()

    def _new_run(self) -> FlowerRun:
        return FlowerRun(
            self._home.runtime_address,
            self._home.ca_file,
            self._home.executor_secret,
            self._home.folder / "state" / "claiming",
        )

    def call(self, call: Callable[[], T]) -> T:
        """Make a call; wait for a SuperLink that is away, and claim a new run if the old one is over.

        Raises LinkError when its patience ends, or a request is refused for good.
        """
        since: float | None = None
        while True:
            try:
                self._renew()
                result = call()
            except httpx.HTTPStatusError as problem:
                status = problem.response.status_code
                if status < 500 and status not in _OVER:
                    raise LinkError(f"The SuperLink refused a request (HTTP {status}).") from None
                self.flower.alive = self.flower.alive and status >= 500
                detail = f"HTTP {status}"
            except (httpx.HTTPError, LinkError, ValueError, RuntimeError) as problem:
                detail = type(problem).__name__  # RuntimeError: another thread has just renewed the run
            else:
                if since is not None:
                    self._tell("The SuperLink answers again.")
                return result
            if since is None:
                since = time.monotonic()
                self._tell(f"The SuperLink does not answer ({detail}); waiting up to {self._patience:g} s.")
            if time.monotonic() - since > self._patience:
                raise LinkError(
                    f"The SuperLink has not answered for {self._patience:g} s.",
                    fix="See `eucaim-fl federation status`; then resume the run.",
                    local_detail=detail,
                )
            time.sleep(_PAUSE_S)

    def _renew(self) -> None:
        """Claim a new run in place of one that the SuperLink has given up."""
        with self._renewing:
            if self.flower.alive:
                return
            old, self.flower = self.flower, self._new_run()
            old.close(completed=False)
            _log.warning("the SuperLink had given up the run; a new one was started in its place")
            self._renewed()
