"""A site's line to its coordinator: Flower's Fleet interface over TLS 1.3, outbound only, one address.

It logs in with the node's key, keeps a heartbeat, asks for work, fetches what an instruction consists of and sends
answers. It never fetches a bundle. Everything that comes down the line is bounded, in bytes and in time, before it is
read.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import httpx
from flwr.app import Message, RecordDict

from eucaim_fl.errors import LinkError, NotAdmittedError, PlanError
from eucaim_fl.federation.fleet_line import BoundedTransport, RunOverError, causes, diagnosed, proxy_for, refusal
from eucaim_fl.federation.flower_private import (
    HEARTBEAT_DEFAULT_INTERVAL,
    ActivateNodeRequest,
    ConfirmMessageReceivedRequest,
    DeactivateNodeRequest,
    FleetHttpClient,
    Node,
    NodeAuthHttpInterceptor,
    PullMessagesRequest,
    PullObjectRequest,
    PushMessagesRequest,
    PushObjectRequest,
    SendNodeHeartbeatRequest,
    message_from_proto,
    message_to_proto,
    remove_content_from_message,
)
from eucaim_fl.federation.flower_run import VersionHeaders, tls_context
from eucaim_fl.federation.objects import fetch, outgoing, send_all
from eucaim_fl.signing import load_node_key

__all__ = ["Fleet", "Incoming"]

T = TypeVar("T")
_CALL_S, _CONNECT_S, _GOODBYE_S = 30.0, 10.0, 3.0
_HEARTBEAT_S = 15.0
_LIMITS = httpx.Limits(max_connections=100, max_keepalive_connections=20, keepalive_expiry=30.0)
"""A connection outlasts the pause between two questions; the proxy closes it after 75 s."""


@dataclass(frozen=True)
class Incoming:
    """An instruction that waits for this site: its metadata (no content yet) and the tree of its parts."""

    message: Message
    tree: Any

    @property
    def seconds_left(self) -> float:
        """How long the coordinator still waits, by this machine's clock."""
        metadata = self.message.metadata
        return float(metadata.created_at + metadata.ttl - time.time())


class Fleet:
    """One connected session. Its methods raise LinkError when the line fails; then a new one is made."""

    def __init__(
        self, address: str, ca_pem: str, node_key: Path, known_as: int | None = None, *, resume: bool = False
    ) -> None:
        """Connect and log in.

        address: host:port of the coordinator's proxy. known_as: number that this key had before, if it is known.
        resume: a session under that number was open a moment ago and is taken up again: what is under way in it goes
        on, and the coordinator does not see the site leave.
        Raises LinkError if it can't be reached or another client uses the key, NotAdmittedError if the key is not known
        there or the clocks differ too much, KeyFileError for the key.
        """
        private, public_bytes = load_node_key(node_key)
        host = address.rsplit(":", 1)[0].strip("[]")
        context = tls_context(ca_pem)
        proxy = proxy_for(host)
        self._client = FleetHttpClient(
            f"https://{address}",
            interceptors=[VersionHeaders("SuperNode"), NodeAuthHttpInterceptor(private, private.public_key())],
            verify=context,
            timeout=_CALL_S,
        )
        self._client._client.close()
        self._line = BoundedTransport(httpx.HTTPTransport(verify=context, limits=_LIMITS, proxy=proxy))
        self._client._client = httpx.Client(
            transport=self._line, timeout=_CONNECT_S, follow_redirects=False, trust_env=False
        )
        self._ended = threading.Event()
        self.failed = threading.Event()
        try:
            self.node_id = self._log_in(public_bytes, known_as, resume)
        except LinkError as problem:
            self._client.close()
            raise diagnosed(problem, address, ca_pem) from None
        except BaseException:
            self._client.close()
            raise
        self._client._client.timeout = httpx.Timeout(_CALL_S, connect=_CONNECT_S)
        self._node = Node(node_id=self.node_id)
        self._pulse = threading.Thread(target=self._beat, daemon=True, name="heartbeat")
        self._pulse.start()

    @property
    def certificate_until(self) -> str | None:
        """Until when the server's certificate is valid, as of the last connection."""
        return self._line.certificate_until

    def _log_in(self, public_key: bytes, known_as: int | None, resume: bool) -> int:
        if resume and known_as is not None:
            with suppress(NotAdmittedError):  # the number is another's now: the key itself decides
                if self._send_heartbeat(Node(node_id=known_as)):
                    return known_as
        request = ActivateNodeRequest(public_key=public_key, heartbeat_interval=HEARTBEAT_DEFAULT_INTERVAL)
        try:
            return int(self._call(lambda: self._client.ActivateNode(request)).node_id)
        except NotAdmittedError as problem:
            if known_as is None or not self._is_let_in(Node(node_id=known_as)):
                raise
            raise LinkError(
                "The coordinator counts this site as connected already.",
                fix="After a crash this passes within a minute. If it stays, another client uses this site's key: is "
                "there a copy of this home? If nobody knows of one, have the site removed and enrolled anew.",
                local_detail=problem.local_detail,
            ) from None

    def _is_let_in(self, node: Any) -> bool:
        """Whether the key may speak for a node, asked without changing anything."""
        try:
            self._call(
                lambda: self._client.PullObject(PullObjectRequest(node=node, run_id=0, object_id=64 * "0")),
            )
        except NotAdmittedError as problem:
            return not problem.local_detail.startswith("HTTP 401")
        except LinkError:
            return True
        return True

    def _call(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except httpx.HTTPStatusError as problem:
            answer = problem.response
            raise refusal(answer.status_code, answer.headers, answer.text, datetime.now(UTC)) from None
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, OSError) as problem:
            raise LinkError("The coordinator can't be reached.", local_detail=causes(problem)) from None
        except RuntimeError as problem:  # the session was closed by another thread meanwhile
            raise LinkError("The session has ended.", local_detail=causes(problem)) from None

    def _send_heartbeat(self, node: Any) -> bool:
        request = SendNodeHeartbeatRequest(node=node, heartbeat_interval=HEARTBEAT_DEFAULT_INTERVAL)
        return bool(self._call(lambda: self._client.SendNodeHeartbeat(request)).success)

    def _beat(self) -> None:
        while not self._ended.wait(_HEARTBEAT_S):
            try:
                if not self._send_heartbeat(self._node):
                    self.failed.set()
            except NotAdmittedError:
                self.failed.set()
            except LinkError:
                continue

    def receive(self) -> Incoming | None:
        """The next instruction for this site, if there is one."""
        response = self._call(lambda: self._client.PullMessages(PullMessagesRequest(node=self._node)))
        if not response.messages_list or not response.message_object_trees:
            return None
        try:
            return Incoming(message_from_proto(response.messages_list[0]), response.message_object_trees[0])
        except Exception as problem:  # noqa: BLE001  Flower's reader fails in many ways on what is malformed
            raise LinkError("What came down the line can't be read.", local_detail=causes(problem)) from None

    def fetch(self, incoming: Incoming, largest_bytes: int) -> RecordDict | None:
        """An instruction's content; None if its run has ended meanwhile.

        Raises PlanError if it is larger than `largest_bytes` or can't be put together.
        """
        run = incoming.message.metadata.run_id

        def pull(identifier: str) -> bytes | None:
            for attempt in range(12):  # the coordinator may still be sending it
                answer = self._call(
                    lambda: self._client.PullObject(
                        PullObjectRequest(node=self._node, run_id=run, object_id=identifier)
                    )
                )
                if answer.object_available:
                    return bytes(answer.object_content)
                if not answer.object_found or self._ended.wait(min(0.05 * 2**attempt, 5.0)):
                    return None
            return None

        try:
            content = fetch(incoming.tree, pull, largest_bytes, PlanError)
        except RunOverError:
            return None
        received = ConfirmMessageReceivedRequest(
            node=self._node, run_id=run, message_object_id=incoming.message.metadata.message_id
        )
        with suppress(LinkError):  # it is here; the coordinator's store is cleared with the run at the latest
            self._call(lambda: self._client.ConfirmMessageReceived(received))
        return content

    def reply(self, incoming: Incoming, content: RecordDict, seconds: float = 0.0) -> bool:
        """Send an answer; False if nobody waits for it any more.

        Raises LinkError if the line fails half-way; it can be sent again as a whole.
        """
        if incoming.seconds_left <= 0:
            return False
        message = Message(content, reply_to=incoming.message)
        apart = outgoing(message)
        run = incoming.message.metadata.run_id
        try:
            response = self._call(
                lambda: self._client.PushMessages(
                    PushMessagesRequest(
                        node=self._node,
                        messages_list=[message_to_proto(remove_content_from_message(message))],
                        message_object_trees=[apart.tree],
                        clientapp_runtime_list=[seconds],
                    )
                )
            )

            def push(identifier: str, piece: bytes) -> None:
                self._call(
                    lambda: self._client.PushObject(
                        PushObjectRequest(
                            node=self._node,
                            run_id=run,
                            session_id=response.session_id,
                            object_id=identifier,
                            object_content=piece,
                        )
                    )
                )

            send_all(apart.contents(set(response.objects_to_push)), push)
        except RunOverError:
            return False
        return True

    def abort(self) -> None:
        """Let calls under way fail at once; `close` can still say goodbye. Any thread may ask for it."""
        self._ended.set()
        self._line.cut()

    def close(self, *, say_goodbye: bool = True) -> None:
        """End the session; with a goodbye the coordinator knows at once that this site is away."""
        self._ended.set()
        try:
            if say_goodbye:
                self._client._client.timeout = _GOODBYE_S
                self._call(lambda: self._client.DeactivateNode(DeactivateNodeRequest(node_id=self.node_id)))
        except (LinkError, NotAdmittedError):
            pass  # it learns by the missing heartbeat, or has removed this site
        finally:
            self._client.close()
