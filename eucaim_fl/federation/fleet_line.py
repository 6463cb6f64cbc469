"""What a site's line is made of: bounded responses, the hospital's proxy, and words for what can go wrong.

`fleet` speaks Flower's protocol over it.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote
from urllib.request import getproxies_environment
from weakref import WeakSet

import httpx

from eucaim_fl.errors import EnrolmentError, LinkError, NotAdmittedError
from eucaim_fl.federation.flower_private import ApiErrorCode, FlowerError
from eucaim_fl.site import network

__all__ = ["BoundedTransport", "RunOverError", "causes", "diagnosed", "proxy_for", "refusal"]

_LARGEST_RESPONSE = 8 * 2**20
_LONGEST_RESPONSE_S = 300.0
_CLOCK_S = 4.0
"""Flower refuses what was signed more than 5 s in its future; times in HTTP headers are whole seconds."""


class RunOverError(LinkError):
    """The coordinator takes nothing for this run any more: it has ended, or was started anew under another number."""


class _BoundedStream(httpx.SyncByteStream):
    """A response's body that ends with an error when it grows beyond what any answer has, or trickles for minutes."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        left, until = _LARGEST_RESPONSE, time.monotonic() + _LONGEST_RESPONSE_S
        for piece in self._stream:
            left -= len(piece)
            if left < 0:
                raise httpx.ReadError("the response is larger than any that is expected")
            if time.monotonic() > until:
                raise httpx.ReadError("the response takes longer than any that is expected")
            yield piece

    def close(self) -> None:
        self._stream.close()


class BoundedTransport(httpx.BaseTransport):
    """Bounds responses, notes until when the server's certificate is valid, and can cut all connections."""

    def __init__(self, inner: httpx.BaseTransport) -> None:
        self._inner = inner
        self._sockets: WeakSet[socket.socket] = WeakSet()
        self.certificate_until: str | None = None

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request. A compressed answer is refused; the body of any other is bounded while it is read."""
        request.headers["accept-encoding"] = "identity"
        request.extensions = {**request.extensions, "trace": self._trace}
        response = self._inner.handle_request(request)
        if response.headers.get("content-encoding", "identity") != "identity":
            response.close()
            raise httpx.ReadError("the response is compressed, which was not asked for")
        response.stream = _BoundedStream(response.stream)
        return response

    def _trace(self, event: str, info: dict[str, Any]) -> None:
        """What httpx tells of connections: each new one is remembered."""
        if not event.endswith(("connect_tcp.complete", "start_tls.complete")):
            return
        line = info["return_value"].get_extra_info("socket")
        if isinstance(line, socket.socket):
            self._sockets.add(line)
        if isinstance(line, ssl.SSLSocket) and (certificate := line.getpeercert()):
            until = ssl.cert_time_to_seconds(str(certificate["notAfter"]))
            self.certificate_until = datetime.fromtimestamp(until, UTC).isoformat()

    def cut(self) -> None:
        """End all connections, so that who waits for an answer hears at once that there will be none."""
        for line in list(self._sockets):
            with suppress(OSError):
                socket.socket.shutdown(line, socket.SHUT_RDWR)

    def close(self) -> None:
        """Close all connections."""
        self._inner.close()


def proxy_for(host: str) -> str | None:
    """The hospital's HTTP proxy for a host, from HTTPS_PROXY, ALL_PROXY and NO_PROXY; None goes straight.

    Raises LinkError if it is of a kind that is not supported.
    """
    try:
        found = network.proxy_for(host, getproxies_environment())
    except EnrolmentError as problem:
        raise LinkError(problem.message, fix=problem.fix) from None
    if found is None:
        return None
    name, _, password = found.credentials.partition(":")
    login = f"{quote(name, safe='')}:{quote(password, safe='')}@" if name else ""
    return f"http://{login}{f'[{found.host}]' if ':' in found.host else found.host}:{found.port}"


def refusal(status: int, headers: httpx.Headers, body: str, now: datetime) -> LinkError | NotAdmittedError:
    """What a refused call means for the site. status, headers, body: of the HTTP response; now: aware, UTC."""
    detail = f"HTTP {status}: {''.join(c if c.isprintable() else ' ' for c in body[:300])}"
    if status == 401:
        try:
            ahead = (now - parsedate_to_datetime(headers["date"])).total_seconds()
        except (KeyError, ValueError, TypeError):
            ahead = 0.0
        if abs(ahead) > _CLOCK_S:
            return NotAdmittedError(
                f"The coordinator refuses what this machine signs: its clock is {_span(abs(ahead))} "
                f"{'ahead of' if ahead > 0 else 'behind'} the coordinator's.",
                fix="Set this machine's clock (NTP, such as chrony); the client then connects by itself.",
                local_detail=detail,
            )
        return NotAdmittedError(
            "The coordinator does not know this site's key: it was never admitted, or has been removed.",
            fix="Ask the coordinator whether your request file was admitted. See `eucaim-fl site check`.",
            local_detail=detail,
        )
    told = None
    with suppress(RecursionError):
        told = FlowerError.from_json(body[:4096])
    if told is not None and told.code == ApiErrorCode.RUNTIME_VERSION_INCOMPATIBLE:
        return LinkError(
            "The coordinator runs another release of Flower than this site.",
            fix="Install the release of eucaim-fl that the coordinator names.",
            local_detail=detail,
        )
    if told is not None and told.code == ApiErrorCode.FLEET_RUN_STATUS_NOT_ALLOWED:
        return RunOverError("The run has ended at the coordinator.", local_detail=detail)
    if status in (400, 403, 404, 412, 422):
        return NotAdmittedError(
            "The coordinator does not let this site in: its key was never admitted, or has been removed.",
            fix="Ask the coordinator whether your request file was admitted. See `eucaim-fl site check`.",
            local_detail=detail,
        )
    return LinkError("The coordinator can't answer now.", local_detail=detail)


def _span(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} minutes"


def diagnosed(problem: LinkError, address: str, ca_pem: str) -> LinkError:
    """What keeps the line from standing, in the words of `site check`; the problem itself if that finds nothing."""
    if problem.fix:
        return problem
    try:
        found = network.check_line(address, ca_pem, lambda: datetime.now(UTC))
    except EnrolmentError as wrong:
        return LinkError(wrong.message, fix=wrong.fix, local_detail=problem.local_detail)
    for finding in found:
        if finding.severity == "blocks":
            return LinkError(finding.text, fix=finding.advice, local_detail=f"{finding.detail}; {problem.local_detail}")
    return problem


def causes(problem: BaseException) -> str:
    """The chain of causes in short, for the local log."""
    seen: list[str] = []
    cause: BaseException | None = problem
    while cause is not None and len(seen) < 4:
        text = f"{type(cause).__name__}: {cause}".strip()
        if text not in seen:
            seen.append(text)
        cause = cause.__cause__ or cause.__context__
    return "; ".join(seen)[:500]
