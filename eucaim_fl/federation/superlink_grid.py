"""Flower's `Grid` over a SuperLink: instructions leave signed and packed, replies count only if their site signed them.

A line may drop at any moment, and Flower forgets an instruction that was handed to a site whose line dropped then. So
this grid asks: a site that has not answered for a while gets a probe, and says that it is at work, gives its answer
once more, or has never heard of the instruction, which is then sent again. A claim that was lost (the SuperLink was
away for long) is renewed in the same way. The caller sees none of it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
from flwr.app import ConfigRecord, Error, Message, Metadata, RecordDict
from flwr.serverapp import Grid

from eucaim_fl.errors import LinkError, ReplyError, SealError
from eucaim_fl.federation.flower_private import (
    SUPERLINK_NODE_ID,
    ConfirmMessageReceivedRequest,
    ErrorCode,
    GetNodesRequest,
    Node,
    PullAppMessagesRequest,
    PullObjectRequest,
    PushAppMessagesRequest,
    PushObjectRequest,
    Run,
    make_message,
    message_to_proto,
    remove_content_from_message,
)
from eucaim_fl.federation.heads import Heads
from eucaim_fl.federation.home import FederationHome
from eucaim_fl.federation.local_grid import LOST, SEAL
from eucaim_fl.federation.nodes import node_ids
from eucaim_fl.federation.objects import CHUNK_BYTES, fetch, outgoing, send_all
from eucaim_fl.federation.parcel import digest, pack, unpack
from eucaim_fl.federation.pending import NotYetError, Pending
from eucaim_fl.federation.superlink_line import SuperlinkLine
from eucaim_fl.plan import read_plan
from eucaim_fl.seals import InstructionSeal, Kind, new_nonce, read_reply_seal, sealed

__all__ = ["SuperlinkGrid"]

_LONGEST_PROBE_S = 60.0
_MOST_RESENT = 5
_PARTIAL_S, _PARTIAL_PAUSE_S, _UPLOAD_S, _SLOWEST_UPLOAD = 180.0, 1.0, 15.0, 2**20
_SMALL_REPLY_BYTES = 40 * 2**20
_NODE = Node(node_id=SUPERLINK_NODE_ID)
_KINDS: dict[str, Kind] = {"query": "hello", "query.statistics": "statistics", "train": "round", "evaluate": "final"}
_GONE = "The site gives no sign of life: its line is down, or its client has stopped."
_REMOVED = "The site is not admitted any more: it was removed from the federation."


class SuperlinkGrid(Grid):
    """The sites of a federation that a plan names, by their Flower nodes."""

    keeps_deadlines = False

    def __init__(
        self,
        home: FederationHome,
        holder_signature: str = "",
        link_wait_s: float = 60.0,
        tell: Callable[[str], None] = lambda text: None,
    ) -> None:
        """Start a run at the federation's SuperLink.

        holder_signature: of the permit's holder over the plan, for sites that ask for permits. tell: hears what the
        person at the terminal should know of the line.
        Raises LinkError if the SuperLink is not there.
        """
        self._home, self._holder = home, holder_signature
        self._key = home.coordinator_key
        self._heads = Heads(home.heads_folder)
        self._pending: dict[str, Pending] = {}
        self._line = SuperlinkLine(home, link_wait_s, tell, self._send_again)
        self._learn_names()

    def _learn_names(self) -> None:
        self._admitted = self._home.sites()
        self.largest_patients = {name: site.largest_patients for name, site in self._admitted.items()}
        self.site_keys = {name: site.site_key for name, site in self._admitted.items()}
        self.names = {node: name for name, node in node_ids(self._home).items()}

    # --- Flower's interface -----------------------------------------------------------------------------------

    def set_run(self, run: Run) -> None:
        """Nothing: the run is the one that was claimed."""

    @property
    def run(self) -> Run:
        """The run."""
        return Run.create_empty(run_id=self._line.flower.run_id)

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """A new instruction."""
        return Message(content, dst_node_id, message_type, group_id=group_id, ttl=ttl)

    def get_node_ids(self) -> Iterable[int]:
        """Nodes of admitted sites that are connected now."""
        found = self._line.call(lambda: self._line.flower.client.GetNodes(GetNodesRequest()))
        nodes = [int(node.node_id) for node in found.nodes]
        if any(node not in self.names for node in nodes):
            with contextlib.suppress(LinkError):
                self._learn_names()
        return [node for node in nodes if self.names.get(node) in self._admitted]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Seal, pack and send instructions, several at a time; what is returned identifies them for `pull_messages`.

        What several sites get alike is packed once; a large one goes to one site first: the SuperLink has it then.
        """
        batch: list[Pending] = []
        for message in messages:
            if not batch or message.content is not batch[-1].message.content:
                packed = self._packed(message.content)
                fingerprint = digest(packed)
            batch.append(self._sealed(message, packed, fingerprint))
        alone = 1 if batch and batch[0].largest_reply > _SMALL_REPLY_BYTES + CHUNK_BYTES else 0
        for one in batch[:alone]:
            self._send(one)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(self._send, batch[alone:]))
        self._pending.update({one.seal.nonce: one for one in batch})
        return [one.seal.nonce for one in batch]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Answers that are there. One that is not sealed by its site, or can't be read, is an error in its place."""
        asked = {i: self._pending[i] for i in message_ids if i in self._pending}
        answers = [self._error(one, LOST, _REMOVED) for one in asked.values() if one.shut_out]
        for gone in [i for i, one in asked.items() if one.shut_out]:
            del asked[gone], self._pending[gone]
        if not asked:
            return answers
        owners: dict[str, str] = {}

        def pull() -> Any:
            # Looked up for each attempt: where a new run had to be claimed, everything was sent under new identifiers.
            owners.update({sent: nonce for nonce, one in asked.items() for sent in one.sent})
            now = [sent for one in asked.values() for sent in one.sent]
            return self._line.flower.client.PullMessages(PullAppMessagesRequest(message_ids=now))

        response = self._line.call(pull)
        for proto, tree in zip(response.messages_list, response.message_object_trees, strict=False):
            nonce = owners.get(proto.metadata.reply_to_message_id)
            one = self._pending.get(nonce) if nonce is not None else None
            if one is None:
                continue
            one.partial, one.partial_since = None, time.monotonic()
            answers += self._finished(one, self._judged(one, proto, tree))
        for one in asked.values():
            if one.partial is not None and one.seal.nonce in self._pending and time.monotonic() >= one.partial_at:
                answers += self._finished(one, self._judged(one, *one.partial))
        self._probe(one for nonce, one in asked.items() if nonce in self._pending)
        return answers

    def _finished(self, one: Pending, answer: Message | None) -> list[Message]:
        if answer is None:
            return []
        del self._pending[one.seal.nonce]
        return [answer]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Push messages and wait for their replies, or for the time-out."""
        pending = set(self.push_messages(messages))
        end = None if timeout is None else time.monotonic() + timeout
        replies: list[Message] = []
        while pending and (end is None or time.monotonic() < end):
            time.sleep(0.25)
            for reply in self.pull_messages(pending):
                pending.discard(reply.metadata.reply_to_message_id)
                replies.append(reply)
        return replies

    # --- beyond it --------------------------------------------------------------------------------------------

    def cancel(self, message_ids: Iterable[str]) -> None:
        """Give up on instructions; a site that is still at work on one ends by its own deadline."""
        for identifier in message_ids:
            self._pending.pop(identifier, None)

    def close(self, *, completed: bool) -> None:
        """End the run at the SuperLink."""
        self._line.flower.close(completed=completed)

    # --- going out --------------------------------------------------------------------------------------------

    def _packed(self, content: RecordDict) -> RecordDict:
        """A question's content with the holder's signature, packed."""
        signed = RecordDict(dict(content))
        instruction = dict(content.config_records["instruction"])
        signed["instruction"] = ConfigRecord({**instruction, "holder_signature": self._holder})
        return pack(signed)

    def _sealed(self, message: Message, packed: RecordDict, fingerprint: str) -> Pending:
        node = message.metadata.dst_node_id
        site = self.names[node]
        instruction = message.content.config_records["instruction"]
        known_count, known_head = self._heads.last(site)
        seal = InstructionSeal(
            federation=self._home.name,
            site=site,
            plan=read_plan(str(instruction["plan"])).sha256(),
            kind=_KINDS[message.metadata.message_type],
            round=int(str(instruction["round"])),
            nonce=new_nonce(),
            issued_at=int(time.time()),
            deadline_s=message.metadata.ttl,
            content=fingerprint,
            audit_count=known_count,
        )
        own = RecordDict(dict(packed))
        own["seal"] = ConfigRecord(dict(sealed(seal, self._key)))
        arrays = sum(len(a.data) for record in packed.array_records.values() for a in record.values())
        key = self._admitted[site].site_key
        return Pending(site, key, node, message, own, seal, arrays + _SMALL_REPLY_BYTES, known_head)

    def _send(self, one: Pending) -> None:
        """Send the whole instruction, for the first time or again."""
        metadata = one.message.metadata
        sent = self._push(one.packed, one.node, metadata.message_type, metadata.group_id, metadata.ttl)
        one.shut_out = not sent
        one.sent.add(sent)
        one.probe_at = time.monotonic() + one.pause_s

    def _push(self, packed: RecordDict, node: int, kind: str, group: str, ttl: float) -> str:
        """Push a message; returns its identifier, or nothing if the SuperLink lets nobody in under this number."""

        def once() -> str:
            message = Message(packed, node, kind, group_id=group, ttl=ttl)
            message.metadata.__dict__["_run_id"] = self._line.flower.run_id
            apart = outgoing(message)
            client = self._line.flower.client
            response = client.PushMessages(
                PushAppMessagesRequest(
                    messages_list=[message_to_proto(remove_content_from_message(message))],
                    message_object_trees=[apart.tree],
                )
            )

            def push(identifier: str, content: bytes) -> None:
                client.PushObject(
                    PushObjectRequest(
                        node=_NODE,
                        run_id=self._line.flower.run_id,
                        session_id=response.session_id,
                        object_id=identifier,
                        object_content=content,
                    )
                )

            if list(response.message_ids) == [""]:
                return ""
            send_all(apart.contents(set(response.objects_to_push)), push)
            return apart.identifier

        return self._line.call(once)

    def _probe(self, pending: Iterable[Pending]) -> None:
        """Ask after instructions that have been out for a while."""
        for one in pending:
            if time.monotonic() < one.probe_at:
                continue
            one.pause_s = min(2 * one.pause_s, _LONGEST_PROBE_S)
            one.probe_at = time.monotonic() + one.pause_s
            one.sent.discard(one.probing)  # one that was not answered is not waited for any longer
            packed = RecordDict({"probe": ConfigRecord({"nonce": one.seal.nonce})})
            asks = {"kind": "probe", "issued_at": int(time.time()), "content": digest(packed)}
            seal = one.seal.model_copy(update=asks)
            packed["seal"] = ConfigRecord(dict(sealed(seal, self._key)))
            one.probing = self._push(packed, one.node, "query.probe", one.message.metadata.group_id, one.pause_s * 2)
            one.shut_out = not one.probing
            one.sent.add(one.probing)

    def _send_again(self) -> None:
        """After a new run was claimed: everything under way is sent once more."""
        for one in list(self._pending.values()):
            one.sent, one.partial = set(), None
            self._send(one)

    # --- coming in --------------------------------------------------------------------------------------------

    def _judged(self, one: Pending, proto: Any, tree: Any) -> Message | None:
        """The answer to an instruction; None if it was only a word in between."""
        reply_to = proto.metadata.reply_to_message_id
        if proto.HasField("error"):
            if proto.error.code == ErrorCode.NODE_UNAVAILABLE:
                return self._error(one, LOST, _GONE)
            one.sent.discard(reply_to)  # Flower has lost this message, or its answer: the site is asked after it
            return None
        run = self._line.flower.run_id
        try:
            self._object(tree.object_id)  # sent last: if it is there, the rest is
            packed = fetch(tree, self._object, one.largest_reply)
            one.partial = None
            self._confirm(proto.metadata.message_id)
            state, content = self._opened(one, packed)
        except NotYetError:
            return self._not_whole(one, proto, tree)
        except (ReplyError, SealError) as problem:
            self._confirm(proto.metadata.message_id)
            return self._error(one, SEAL, problem.message)
        except LinkError as problem:
            again = self._line.flower.run_id != run  # a new run was claimed meanwhile: the instruction was sent again
            return None if again else self._error(one, LOST, problem.message)
        if state != "answer":
            return self._told(one, state, reply_to)
        return make_message(metadata=self._answers(one), content=content)

    def _told(self, one: Pending, state: str, reply_to: str) -> Message | None:
        """After a word about an instruction: wait on, or send it again, but not for ever."""
        if reply_to != one.probing:
            return self._error(one, SEAL, "The site answered an instruction with a word that only a probe gets.")
        one.sent.discard(reply_to)
        if state == "unknown":
            one.resent += 1
            if one.resent > _MOST_RESENT:
                return self._error(one, LOST, "The site says again and again that it knows nothing of the instruction.")
            one.sent.clear()
            self._send(one)
        return None

    def _not_whole(self, one: Pending, proto: Any, tree: Any) -> Message | None:
        """Keep an answer that is still being sent for a later look, and ask after one that takes too long."""
        now = time.monotonic()
        if now - one.partial_since > _PARTIAL_S:
            one.partial = None
            return self._error(one, LOST, "The site's answer did not arrive whole.")
        one.sent.discard(proto.metadata.reply_to_message_id)
        if one.partial is None:  # time to arrive; a SuperLink that was killed meanwhile has lost the rest for good
            one.probe_at = now + _UPLOAD_S + (one.largest_reply - _SMALL_REPLY_BYTES) / _SLOWEST_UPLOAD
        one.partial, one.partial_at = (proto, tree), now + _PARTIAL_PAUSE_S
        return None

    def _opened(self, one: Pending, packed: RecordDict) -> tuple[str, RecordDict]:
        """What a site says, once it is certain that this site says it about this instruction.

        Raises SealError or ReplyError if it is not.
        """
        record = packed.config_records.get("seal")
        seal = read_reply_seal(None if record is None else dict(record), one.site_key)
        asked = (self._home.name, one.site, one.seal.plan, one.seal.round, one.seal.nonce)
        if (seal.federation, seal.site, seal.plan, seal.round, seal.nonce) != asked:
            raise SealError("The reply answers another instruction.")
        if seal.content != digest(packed):
            raise SealError("The reply was changed on its way.")
        if seal.state != "answer":
            return seal.state, RecordDict()
        if seal.kind != one.seal.kind:
            raise SealError("The reply answers another question.")
        if one.known_head and seal.audit_then != one.known_head:
            raise SealError(
                "The site's audit log is not the one that it was: where the coordinator knows a record, it has another."
            )
        self._heads.accept(one.site, seal.audit_count, seal.audit_hash)
        content = unpack(packed, ReplyError)
        del content["seal"]
        return seal.state, content

    def _object(self, identifier: str) -> bytes | None:
        def pull() -> Any:
            run = self._line.flower  # of this attempt: another may have been claimed in between
            return run.client.PullObject(PullObjectRequest(node=_NODE, run_id=run.run_id, object_id=identifier))

        response = self._line.call(pull)
        if response.object_found and not response.object_available:
            raise NotYetError
        return bytes(response.object_content) if response.object_found else None

    def _confirm(self, identifier: str) -> None:
        run = self._line.flower
        with contextlib.suppress(LinkError, httpx.HTTPError, RuntimeError):  # it only clears the SuperLink's store
            run.client.ConfirmMessageReceived(
                ConfirmMessageReceivedRequest(node=_NODE, run_id=run.run_id, message_object_id=identifier)
            )

    def _error(self, one: Pending, code: int, reason: str) -> Message:
        return make_message(metadata=self._answers(one), error=Error(code, reason))

    def _answers(self, one: Pending) -> Metadata:
        """Metadata of what is handed out as the answer to an instruction."""
        return Metadata(
            run_id=self._line.flower.run_id,
            message_id="",
            src_node_id=one.node,
            dst_node_id=SUPERLINK_NODE_ID,
            reply_to_message_id=one.seal.nonce,
            group_id=one.message.metadata.group_id,
            created_at=time.time(),
            ttl=1.0,
            message_type=one.message.metadata.message_type,
        )
