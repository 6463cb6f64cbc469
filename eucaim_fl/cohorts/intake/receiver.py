"""Images that a scanner, workstation or archive sends here: a storage service that takes what the query asks for.

Source: DICOM PS3.4 Annex B (storage service class, status codes), PS3.7 9.1.1 (C-STORE), PS3.8 9.3 (PDUs).
"""

from __future__ import annotations

import ipaddress
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from socketserver import BaseServer
from typing import Any

from pydicom.dataset import Dataset
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, AllStoragePresentationContexts, evt
from pynetdicom.dsutils import encode_file_meta
from pynetdicom.sop_class import Verification
from pynetdicom.transport import ThreadedAssociationServer

from eucaim_fl.cohorts.intake.folder import Tell
from eucaim_fl.cohorts.intake.headers import is_image_class, read_header
from eucaim_fl.cohorts.intake.landing import Landing, TooLargeError
from eucaim_fl.cohorts.intake.report import Outcome, Reason
from eucaim_fl.errors import EucaimError, ImportFailedError, UnreadableFileError

__all__ = ["Listener", "receive", "status_of"]

_MAXIMUM_PDU = 256 * 1024
_LARGEST_PDU = 4 * 1024 * 1024
_LARGEST_MESSAGE = 2**30
_STORED, _OUT_OF_RESOURCES, _NOT_ASKED_FOR, _NOT_UNDERSTOOD = 0x0000, 0xA700, 0xA900, 0xC000
_PATIENCE_S, _GREETING_S = 60.0, 5.0


@dataclass(frozen=True, kw_only=True)
class Listener:
    """Where to listen, and to whom.

    port: 0 takes a free one. ae_title: senders must call it. callers: AE titles of those who may send; empty takes
    any. peers: IP addresses or networks that may connect; empty takes any that reaches `address`. message_bytes: most
    bytes of one instance, which is held in memory while it arrives; at most `associations` arrive at once.
    Raises ImportFailedError if an AE title or an address is none, or `address` is open to others than this machine
    while neither callers nor peers are named.
    """

    port: int = 11112
    address: str = "127.0.0.1"
    ae_title: str = "EUCAIM"
    callers: tuple[str, ...] = ()
    peers: tuple[str, ...] = ()
    message_bytes: int = _LARGEST_MESSAGE
    associations: int = 4

    def __post_init__(self) -> None:
        for title in (self.ae_title, *self.callers):
            if not (0 < len(title) <= 16 and title.isascii() and title.isprintable() and "\\" not in title):
                raise ImportFailedError("An AE title has 1 to 16 plain characters.", local_detail=repr(title))
        try:
            here = ipaddress.ip_address(self.address)
            for peer in self.peers:
                ipaddress.ip_network(peer, strict=False)
        except ValueError as problem:
            raise ImportFailedError("An address is no IP address.", local_detail=str(problem)) from None
        if not here.is_loopback and not (self.callers or self.peers):
            raise ImportFailedError(
                "Anyone on the network could send images here.",
                fix="Name who may: AE titles with --caller, addresses with --peer.",
            )

    def admits(self, address: str) -> bool:
        """Whether a machine with that IP address may connect."""
        try:
            who = ipaddress.ip_address(address)
        except ValueError:
            return False
        who = getattr(who, "ipv4_mapped", None) or who
        return not self.peers or any(who in ipaddress.ip_network(peer, strict=False) for peer in self.peers)


def status_of(outcome: Outcome) -> int:
    """The status that a sender is told: 0x0000 stored or there already, 0xA900 not asked for, 0xA700 too large,
    0xC000 anything else.

    >>> hex(status_of(Outcome("left", Reason.NOT_ASKED_FOR)))
    '0xa900'
    """
    if outcome.status in ("brought_in", "already_there"):
        return _STORED
    if outcome.status == "left":
        return _NOT_ASKED_FOR
    return _OUT_OF_RESOURCES if outcome.reason == Reason.TOO_LARGE else _NOT_UNDERSTOOD


@dataclass(eq=False)
class _Receiver:
    landing: Landing
    listener: Listener
    tell: Tell
    last: float = field(default_factory=time.monotonic)
    failure: EucaimError | None = None
    _closed: bool = False
    _landing_now: int = 0
    _arriving: dict[int, int] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def handlers(self) -> list[Any]:
        return [
            (evt.EVT_CONN_OPEN, self.opened),
            (evt.EVT_CONN_CLOSE, self.closed),
            (evt.EVT_DIMSE_RECV, self.complete),
            (evt.EVT_C_STORE, self.store),
            (evt.EVT_C_ECHO, self.echo),
        ]

    def opened(self, event: Any) -> None:
        """Bound what a connection may send: the library reads a PDU of any length that its sender claims."""
        association, name, socket = event.assoc, id(event.assoc), event.assoc.dul.socket
        receive = socket.recv
        socket.socket.settimeout(_PATIENCE_S)
        with self._lock:
            self._arriving[name] = 0

        def bounded(size: int) -> bytearray:
            self.last = time.monotonic()
            with self._lock:
                self._arriving[name] = arrived = self._arriving.get(name, 0) + size
            if size > _LARGEST_PDU or arrived > self.listener.message_bytes:
                if association.is_established and arrived - size <= self.listener.message_bytes:
                    self.landing.count(Outcome("refused", Reason.TOO_LARGE))
                raise OSError("more than an instance may have")
            taken: bytearray = receive(size)
            return taken

        socket.recv = bounded

    def closed(self, event: Any) -> None:
        with self._lock:
            self._arriving.pop(id(event.assoc), None)

    def complete(self, event: Any) -> None:
        with self._lock:
            self._arriving[id(event.assoc)] = 0

    def echo(self, event: Any) -> int:
        return _STORED

    def store(self, event: Any) -> Any:
        """Bring in what arrived, unless the service has ended meanwhile."""
        with self._lock:
            if self._closed:
                return _answer(_OUT_OF_RESOURCES, "The service has ended")
            self._landing_now += 1
        try:
            outcome = self.landing.count(self._bring(event))
        except EucaimError as problem:
            self.failure = self.failure or problem
            self.landing.count(Outcome("left", Reason.NOT_REACHED))
            return _answer(_OUT_OF_RESOURCES, "No room")
        finally:
            with self._lock:
                self._landing_now -= 1
        self.tell(self.landing.tally.done(), None)
        self.last = time.monotonic()
        return _answer(status_of(outcome), outcome.reason)

    def close(self) -> None:
        """Take nothing more, and wait until what is landing has landed."""
        with self._lock:
            self._closed = True
        while self._landing_now:
            time.sleep(0.01)

    def _bring(self, event: Any) -> Outcome:
        landing, request = self.landing, event.request
        temporary = landing.temporary()
        try:
            with landing.writing(temporary) as write:
                write(b"\0" * 128 + b"DICM" + encode_file_meta(event.file_meta))
                write(request.DataSet.getbuffer())
            header = read_header(temporary)
            if header.sop_uid != request.AffectedSOPInstanceUID or header.sop_class != request.AffectedSOPClassUID:
                return Outcome("refused", Reason.CONTRADICTION)
            return landing.settle(temporary, header)
        except UnreadableFileError:
            return Outcome("refused", Reason.BROKEN)
        except TooLargeError:
            return Outcome("refused", Reason.TOO_LARGE)
        except (ValueError, AttributeError, TypeError):  # a message without what belongs into it
            return Outcome("refused", Reason.BROKEN)
        finally:
            temporary.unlink(missing_ok=True)


class _Server(ThreadedAssociationServer):  # type: ignore[misc]
    """A server that closes connections of machines that may not connect, before they have said anything."""

    admits: Callable[[str], bool] = staticmethod(lambda address: False)

    def verify_request(self, request: Any, client_address: Any) -> bool:
        return self.admits(str(client_address[0]))


@contextmanager
def _listening(receiver: _Receiver) -> Iterator[int]:
    """The service while it runs; gives the port. Raises ImportFailedError if the address or port can't be had."""
    listener = receiver.listener
    ae = AE(ae_title=listener.ae_title)
    ae.require_called_aet = True
    ae.require_calling_aet = list(listener.callers)
    ae.maximum_associations = listener.associations
    ae.maximum_pdu_size = _MAXIMUM_PDU
    ae.acse_timeout = _GREETING_S
    ae.dimse_timeout = ae.network_timeout = _PATIENCE_S
    ae.add_supported_context(Verification)
    for context in AllStoragePresentationContexts:
        if is_image_class(str(context.abstract_syntax)):
            ae.add_supported_context(context.abstract_syntax, ALL_TRANSFER_SYNTAXES)
    try:
        server = ae.make_server(
            (listener.address, listener.port), server_class=_Server, evt_handlers=receiver.handlers()
        )
    except OSError as problem:
        raise ImportFailedError(
            "The port can't be listened on.",
            fix="Is another service using it? Choose another one with --port.",
            local_detail=f"{listener.address}:{listener.port}: {problem.strerror}",
        ) from None
    server.admits = listener.admits
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield int(server.server_address[1])
    finally:
        BaseServer.shutdown(server)  # the library's own expects that the AE has started it
        thread.join(_PATIENCE_S)
        server.server_close()
        receiver.close()
        for association in server.active_associations:
            association.abort(block=False)


def receive(
    listener: Listener,
    landing: Landing,
    tell: Tell,
    *,
    idle_s: float | None = None,
    started: Callable[[int], None] = lambda port: None,
    ended: threading.Event | None = None,
) -> None:
    """Take what others send until nothing has come for `idle_s` seconds, or Ctrl-C (KeyboardInterrupt ends it quietly).

    Images, segmentations and contours are taken in every transfer syntax; each lands before its sender is told so.
    started: is told the port once it listens. ended: ends it too, once it is set.
    Raises ImportFailedError if the port can't be had, or the cohort can't be written any more.
    """
    receiver, ended = _Receiver(landing, listener, tell), ended or threading.Event()
    with _listening(receiver) as port, suppress(KeyboardInterrupt):
        started(port)
        receiver.last = time.monotonic()
        while receiver.failure is None and (idle_s is None or time.monotonic() - receiver.last < idle_s):
            if ended.wait(0.05):
                break
    if receiver.failure is not None:
        raise receiver.failure


def _answer(status: int, comment: str) -> Dataset:
    answer = Dataset()
    answer.Status = status
    if comment:
        answer.ErrorComment = comment[:64]
    return answer
