"""What the coordinator believes of what a SuperLink hands it; the SuperLink is a fake that keeps real messages."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from flwr.app import ConfigRecord, Error, Message, Metadata, RecordDict
from flwr.proto.message_pb2 import ObjectTree, PullObjectResponse, PushObjectResponse
from flwr.proto.node_pb2 import NodeInfo
from flwr.proto.runtime_pb2 import GetNodesResponse, PullAppMessagesResponse, PushAppMessagesResponse

from eucaim_fl.errors import LinkError, PlanError
from eucaim_fl.federation import pending, superlink_grid
from eucaim_fl.federation.flower_private import (
    SUPERLINK_NODE_ID,
    ErrorCode,
    TaskIdentity,
    make_message,
    message_from_proto,
    message_to_proto,
    remove_content_from_message,
)
from eucaim_fl.federation.home import FederationHome
from eucaim_fl.federation.local_grid import LOST, SEAL
from eucaim_fl.federation.messages import instruction_content, to_record
from eucaim_fl.federation.objects import fetch, outgoing
from eucaim_fl.federation.parcel import digest, pack
from eucaim_fl.federation.superlink_grid import SuperlinkGrid
from eucaim_fl.plan import FederationPlan
from eucaim_fl.seals import InstructionSeal, ReplySeal, read_instruction_seal, sealed
from eucaim_fl.signing import PrivateKey
from tests.federation.deployed import Deployed, one_site

__all__ = ["one_site"]

NODE = 501


class Superlink:
    """Takes instructions, hands out answers; each only once, as Flower's does."""

    def __init__(self) -> None:
        self.messages: list[tuple[Message, Any]] = []
        self.objects: dict[str, bytes] = {}
        self.replies: dict[str, list[tuple[Any, Any]]] = {}
        self.confirmed: list[str] = []
        self.asked: list[list[str]] = []
        self.lets_in = True
        self.unfinished: set[str] = set()
        self.looked = 0
        self.online = [NODE]

    def GetNodes(self, _: Any) -> Any:
        return GetNodesResponse(nodes=[NodeInfo(node_id=number) for number in self.online])

    def PushMessages(self, request: Any) -> Any:
        (proto,), (tree,) = request.messages_list, request.message_object_trees
        if not self.lets_in:
            return PushAppMessagesResponse(message_ids=[""], session_id="s")
        self.messages.append((message_from_proto(proto), tree))
        return PushAppMessagesResponse(
            message_ids=[proto.metadata.message_id], objects_to_push=list(identifiers(tree)), session_id="s"
        )

    def PushObject(self, request: Any) -> Any:
        self.objects[request.object_id] = request.object_content
        return PushObjectResponse(stored=True)

    def PullMessages(self, request: Any) -> Any:
        self.asked.append(list(request.message_ids))
        found = [pair for identifier in request.message_ids for pair in self.replies.pop(identifier, [])]
        return PullAppMessagesResponse(
            messages_list=[proto for proto, _ in found], message_object_trees=[tree for _, tree in found]
        )

    def PullObject(self, request: Any) -> Any:
        self.looked += 1
        content = self.objects.get(request.object_id)
        there = content is not None and request.object_id not in self.unfinished
        content = content if there else b""
        return PullObjectResponse(
            object_found=request.object_id in self.objects, object_available=there, object_content=content
        )

    def ConfirmMessageReceived(self, request: Any) -> None:
        self.confirmed.append(request.message_object_id)


def identifiers(tree: Any) -> Iterator[str]:
    yield tree.object_id
    for child in tree.children:
        yield from identifiers(child)


class FakeLine:
    """A line that never fails."""

    def __init__(self, superlink: Superlink) -> None:
        self.flower = SimpleNamespace(client=superlink, run_id=9, close=lambda **how: self.closed.append(how))
        self.closed: list[dict[str, bool]] = []

    def call(self, call: Callable[[], Any]) -> Any:
        return call()


class World:
    """A grid, and the site on the other side of the SuperLink."""

    def __init__(self, made: Deployed, plan: FederationPlan, monkeypatch: pytest.MonkeyPatch) -> None:
        self.plan, self.superlink = plan, Superlink()
        self.home: FederationHome = made.federation
        self.key = PrivateKey.load(made.home("a").site_key)
        self.line: Any = FakeLine(self.superlink)
        self.sends_again: Any = None

        def line(_home: Any, _patience: float, _tell: Any, again: Any) -> Any:
            self.sends_again = again
            return self.line

        monkeypatch.setattr(superlink_grid, "SuperlinkLine", line)
        monkeypatch.setattr(superlink_grid, "node_ids", lambda _: {"a": NODE})
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 9, SUPERLINK_NODE_ID
        self.grid = SuperlinkGrid(self.home, "holder's signature")

    def ask(self, kind: str = "query", weights: Any = None) -> str:
        content = instruction_content(self.plan.canonical_json(), 0 if kind == "query" else 1, weights)
        (identifier,) = self.grid.push_messages([Message(content, NODE, kind, group_id="0", ttl=60.0)])
        return identifier

    def arrived(self, place: int = -1) -> tuple[Message, InstructionSeal, RecordDict]:
        """An instruction as the site gets it."""
        message, tree = self.superlink.messages[place]
        content = fetch(tree, self.superlink.objects.get, 2**24, PlanError)
        record = dict(content["seal"])
        return message, read_instruction_seal(record, self.home.coordinator_key.public), content

    def answer(self, place: int = -1, *, key: PrivateKey | None = None, state: str = "answer", **changes: Any) -> None:
        """An answer of the site to what arrived."""
        message, asked, _ = self.arrived(place)
        content = RecordDict({"word": ConfigRecord({"state": state})})
        if state == "answer":
            content = pack(RecordDict({"refusal": ConfigRecord({"code": "EFL310", "reason": "No.", "site": "a"})}))
        values = {
            "federation": "rehearsal", "site": "a", "plan": asked.plan, "kind": asked.kind, "round": asked.round,
            "nonce": asked.nonce, "state": state, "content": digest(content), "audit_count": 1, "audit_hash": "0" * 64,
        }  # fmt: skip
        seal = ReplySeal.model_validate(values | changes)
        content["seal"] = ConfigRecord(dict(sealed(seal, key or self.key)))
        self.put(message, Message(content, reply_to=message))

    def put(self, asked: Message, reply: Message) -> None:
        apart = outgoing(reply)
        self.superlink.objects.update(dict(apart.contents(set(apart.objects))))
        pair = (message_to_proto(remove_content_from_message(reply)), apart.tree)
        self.superlink.replies.setdefault(asked.metadata.message_id, []).append(pair)

    def fail(self, code: int, place: int = -1) -> None:
        """Flower's own word in the place of an answer."""
        message, _ = self.superlink.messages[place]
        metadata = Metadata(9, "e", 1, 1, message.metadata.message_id, "", time.time(), 1.0, "query")
        proto = message_to_proto(make_message(metadata=metadata, error=Error(code, "gone")))
        self.superlink.replies.setdefault(message.metadata.message_id, []).append((proto, ObjectTree(object_id="e")))


@pytest.fixture
def world(tmp_path: Path, one_site: Any, plan_for: Any, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(one_site(tmp_path / "federation"), plan_for(), monkeypatch)


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sites are asked after without waiting."""
    monkeypatch.setattr(pending, "FIRST_PROBE_S", 0.0)


class TestGoingOut:
    def test_an_instruction_is_sealed_for_its_site_and_bears_the_holders_signature(self, world, fakes):
        identifier = world.ask("train", to_record(fakes.WEIGHTS))
        message, seal, content = world.arrived()
        assert (seal.federation, seal.site, seal.kind, seal.round) == ("rehearsal", "a", "round", 1)
        assert (seal.nonce, seal.plan, seal.deadline_s) == (identifier, world.plan.sha256(), 60.0)
        assert seal.content == digest(content)
        assert content["instruction"]["holder_signature"] == "holder's signature"
        assert (message.metadata.dst_node_id, message.metadata.run_id) == (NODE, 9)

    def test_one_that_the_superlink_does_not_take_is_answered_for_at_once(self, world):
        world.superlink.lets_in = False
        identifier = world.ask()
        (answer,) = world.grid.pull_messages([identifier])
        assert (answer.error.code, answer.metadata.reply_to_message_id) == (LOST, identifier)
        assert "removed" in answer.error.reason
        assert list(world.grid.pull_messages([identifier])) == []

    def test_only_admitted_sites_that_are_connected_are_asked(self, world):
        world.superlink.online = [NODE, 502]
        assert list(world.grid.get_node_ids()) == [NODE]
        assert world.grid.names == {NODE: "a"}
        assert world.grid.largest_patients == {"a": 50_000}

    def test_it_is_flowers_interface(self, world):
        message = world.grid.create_message(RecordDict(), "query", NODE, "0", 5.0)
        assert (message.metadata.dst_node_id, message.metadata.ttl) == (NODE, 5.0)
        assert world.grid.run.run_id == 9
        world.grid.set_run(world.grid.run)
        world.grid.close(completed=True)
        assert world.line.closed == [{"completed": True}]


class TestComingIn:
    def test_an_answer_under_the_sites_seal_is_handed_over_once(self, world):
        identifier = world.ask()
        world.answer()
        (answer,) = world.grid.pull_messages([identifier])
        assert answer.metadata.reply_to_message_id == identifier
        assert dict(answer.content["refusal"]) == {"code": "EFL310", "reason": "No.", "site": "a"}
        assert "seal" not in answer.content
        assert list(world.grid.pull_messages([identifier])) == []
        assert len(world.superlink.confirmed) == 1

    @pytest.mark.parametrize(
        ("changes", "says"),
        [
            ({"key": PrivateKey.create()}, "not of whom"),
            ({"site": "b"}, "another instruction"),
            ({"federation": "other"}, "another instruction"),
            ({"nonce": "0" * 32}, "another instruction"),
            ({"plan": "0" * 64}, "another instruction"),
            ({"round": 7}, "another instruction"),
            ({"kind": "round"}, "another question"),
            ({"content": "0" * 64}, "changed on its way"),
        ],
    )
    def test_one_that_the_site_did_not_seal_for_this_is_an_error_in_its_place(self, world, changes, says):
        identifier = world.ask()
        world.answer(**changes)
        (answer,) = world.grid.pull_messages([identifier])
        assert answer.error.code == SEAL
        assert says in answer.error.reason

    def test_one_that_cannot_be_put_together_is_an_error_in_its_place(self, world):
        identifier = world.ask()
        world.answer()
        ((proto, tree),) = world.superlink.replies[world.superlink.messages[0][0].metadata.message_id]
        world.superlink.objects[tree.object_id] = b"torn"
        (answer,) = world.grid.pull_messages([identifier])
        assert (answer.error.code, proto.metadata.reply_to_message_id != "") == (SEAL, True)

    def test_one_whose_parts_are_gone_counts_as_lost(self, world):
        identifier = world.ask()
        world.answer()
        world.superlink.objects.clear()
        (answer,) = world.grid.pull_messages([identifier])
        assert answer.error.code == LOST

    def test_a_site_whose_log_has_become_shorter_is_not_believed(self, world):
        first = world.ask()
        world.answer(audit_count=5)
        assert not next(iter(world.grid.pull_messages([first]))).has_error()
        second = world.ask()
        world.answer(audit_count=4)
        (answer,) = world.grid.pull_messages([second])
        assert (answer.error.code, "audit log" in answer.error.reason) == (SEAL, True)

    def test_what_the_coordinator_knows_of_a_site_s_log_goes_with_the_next_instruction(self, world):
        first = world.ask()
        assert world.arrived()[1].audit_count == 0
        world.answer(audit_count=5, audit_hash="5" * 64)
        list(world.grid.pull_messages([first]))
        second = world.ask()
        assert world.arrived()[1].audit_count == 5
        world.answer(audit_count=9, audit_hash="9" * 64, audit_then="5" * 64)
        assert not next(iter(world.grid.pull_messages([second]))).has_error()
        world.ask()
        assert world.arrived()[1].audit_count == 9

    @pytest.mark.parametrize("then", ["", "0" * 64])
    def test_a_site_that_rewrote_its_log_and_made_it_longer_is_refused_again_and_again(self, world, then):
        first = world.ask()
        world.answer(audit_count=5, audit_hash="5" * 64)
        list(world.grid.pull_messages([first]))
        for attempt in range(3):
            again = world.ask()
            world.answer(audit_count=10 + attempt, audit_hash="a" * 64, audit_then=then)
            (answer,) = world.grid.pull_messages([again])
            assert (answer.error.code, "audit log" in answer.error.reason) == (SEAL, True)
        grid = SuperlinkGrid(world.home, "holder's signature")  # a coordinator that was restarted
        assert grid._heads.last("a") == (5, "5" * 64)
        sound = world.ask()
        world.answer(audit_count=20, audit_hash="b" * 64, audit_then="5" * 64)
        assert not next(iter(world.grid.pull_messages([sound]))).has_error()

    def test_a_site_that_claims_an_endless_log_harms_nobody(self, world):
        first = world.ask()
        world.answer(audit_count=2**53)
        assert not next(iter(world.grid.pull_messages([first]))).has_error()
        world.ask()
        assert world.arrived()[1].audit_count == 2**53

    def test_a_site_that_is_removed_while_it_works_ends_nothing(self, world):
        identifier = world.ask()
        (world.home.sites_folder / "a.json").unlink()
        world.superlink.online = [NODE, 777]
        assert list(world.grid.get_node_ids()) == []
        world.answer()
        assert len(list(world.grid.pull_messages([identifier]))) == 1

    def test_send_and_receive_is_flowers_own_call(self, world):
        content = instruction_content(world.plan.canonical_json(), 0)
        message = Message(content, NODE, "query", group_id="0", ttl=60.0)
        world.superlink.PullMessages = lambda _: (_ for _ in ()).throw(AssertionError("not asked"))
        assert list(world.grid.send_and_receive([message], timeout=0.0)) == []


class TestInParts:
    """An answer that its site is still sending is looked at later; nobody waits for it."""

    @pytest.fixture
    def parts(self, world: World) -> list[str]:
        """Parts of the answer, which is announced; the first holds it together and is sent last."""
        world.answer()
        ((_, tree),) = world.superlink.replies[world.superlink.messages[-1][0].metadata.message_id]
        return list(identifiers(tree))

    @pytest.fixture
    def asked(self, world: World) -> str:
        return world.ask()

    def test_it_is_taken_once_it_is_whole(self, world, asked, parts, monkeypatch):
        monkeypatch.setattr(superlink_grid, "_PARTIAL_PAUSE_S", 0.0)
        world.superlink.unfinished = set(parts)
        for _ in range(3):
            assert list(world.grid.pull_messages([asked])) == []
        world.superlink.unfinished = {parts[-1]}
        assert list(world.grid.pull_messages([asked])) == []
        world.superlink.unfinished = set()
        (answer,) = world.grid.pull_messages([asked])
        assert (answer.has_error(), answer.metadata.reply_to_message_id) == (False, asked)
        assert list(world.grid.pull_messages([asked])) == []
        assert len(world.superlink.confirmed) == 1

    def test_nobody_waits_for_it_and_it_is_not_looked_for_all_the_time(self, world, asked, parts, monkeypatch):
        monkeypatch.setattr(superlink_grid, "_PARTIAL_PAUSE_S", 3600.0)
        world.superlink.unfinished = {parts[0]}
        began = time.monotonic()
        list(world.grid.pull_messages([asked]))
        looked = world.superlink.looked
        other = world.ask()
        world.answer()
        (answer,) = world.grid.pull_messages([asked, other])
        assert answer.metadata.reply_to_message_id == other
        for _ in range(10):
            assert list(world.grid.pull_messages([asked])) == []
        assert world.superlink.looked - looked <= len(parts) + 1  # the other's parts alone
        assert time.monotonic() - began < 5

    def test_while_it_comes_the_site_is_not_asked_after(self, world, asked, parts, at_once, monkeypatch):
        monkeypatch.setattr(superlink_grid, "_PARTIAL_PAUSE_S", 0.0)
        monkeypatch.setattr(superlink_grid, "_UPLOAD_S", 100.0)
        world.superlink.unfinished = set(parts)
        for _ in range(3):
            list(world.grid.pull_messages([asked]))
            world.grid._pending[asked].probe_at = max(world.grid._pending[asked].probe_at - 30, 0)
        assert [m.metadata.message_type for m, _ in world.superlink.messages] == ["query"]

    def test_the_rest_of_one_that_a_killed_superlink_lost_is_asked_for_soon(
        self, world, asked, parts, at_once, monkeypatch
    ):
        monkeypatch.setattr(superlink_grid, "_PARTIAL_PAUSE_S", 0.0)
        world.superlink.unfinished = {parts[-1]}
        list(world.grid.pull_messages([asked]))
        waits = world.grid._pending[asked].probe_at - time.monotonic()
        assert superlink_grid._UPLOAD_S - 1 < waits < 30
        list(world.grid.pull_messages([asked]))
        assert world.grid._pending[asked].probe_at - time.monotonic() < waits  # looking at it again changes nothing
        world.grid._pending[asked].probe_at = 0.0
        list(world.grid.pull_messages([asked]))
        assert [m.metadata.message_type for m, _ in world.superlink.messages] == ["query", "query.probe"]

    def test_one_that_never_becomes_whole_counts_as_lost(self, world, asked, parts, monkeypatch):
        monkeypatch.setattr(superlink_grid, "_PARTIAL_PAUSE_S", 0.0)
        world.superlink.unfinished = {parts[-1]}
        assert list(world.grid.pull_messages([asked])) == []
        world.grid._pending[asked].partial_since -= superlink_grid._PARTIAL_S + 1
        (answer,) = world.grid.pull_messages([asked])
        assert (answer.error.code, "not arrive whole" in answer.error.reason) == (LOST, True)

    def test_where_a_new_run_was_claimed_the_instruction_is_sent_again_and_the_rest_forgotten(
        self, world, asked, parts, monkeypatch
    ):
        monkeypatch.setattr(superlink_grid, "_PARTIAL_PAUSE_S", 0.0)
        world.superlink.unfinished = set(parts)
        assert list(world.grid.pull_messages([asked])) == []
        real, calls = world.line.call, itertools.count()

        def renews(call: Callable[[], Any]) -> Any:
            if next(calls) == 1:  # the SuperLink that was asked for the rest has been started anew
                world.superlink.objects.clear()
                world.superlink.unfinished.clear()
                world.line.flower.run_id = 10
                world.line.call = real
                world.sends_again()
            return call()

        world.line.call = renews
        assert list(world.grid.pull_messages([asked])) == []
        assert world.grid._pending[asked].partial is None
        assert [m.metadata.run_id for m, _ in world.superlink.messages] == [9, 10]
        world.answer()
        (answer,) = world.grid.pull_messages([asked])
        assert not answer.has_error()


class TestAskingAfter:
    @pytest.mark.parametrize("state", ["working", "unknown"])
    def test_a_word_that_only_a_probe_gets_is_no_answer_to_an_instruction(self, world, state):
        identifier = world.ask()
        world.answer(state=state)
        (answer,) = world.grid.pull_messages([identifier])
        assert (answer.error.code, "only a probe" in answer.error.reason) == (SEAL, True)
        assert len(world.superlink.messages) == 1

    def test_a_site_that_says_for_ever_that_it_knows_nothing_counts_as_lost(self, world, at_once):
        identifier = world.ask()
        answers: list[Message] = []
        for _ in range(superlink_grid._MOST_RESENT + 1):
            assert answers == []
            world.grid._pending[identifier].probe_at = 0.0
            assert list(world.grid.pull_messages([identifier])) == []
            world.answer(state="unknown")
            answers = list(world.grid.pull_messages([identifier]))
        assert (answers[0].error.code, "again and again" in answers[0].error.reason) == (LOST, True)
        sent = [m for m, _ in world.superlink.messages if m.metadata.message_type == "query"]
        assert len(sent) == 1 + superlink_grid._MOST_RESENT

    def test_a_site_at_work_is_left_to_it(self, world, at_once):
        identifier = world.ask()
        assert list(world.grid.pull_messages([identifier])) == []
        message, seal, _ = world.arrived()
        assert (message.metadata.message_type, seal.kind, seal.nonce) == ("query.probe", "probe", identifier)
        world.answer(state="working")
        assert list(world.grid.pull_messages([identifier])) == []
        world.answer(0)
        assert len(list(world.grid.pull_messages([identifier]))) == 1
        kinds = [message.metadata.message_type for message, _ in world.superlink.messages]
        assert kinds.count("query") == 1

    def test_a_site_that_knows_nothing_of_it_gets_it_again(self, world, at_once):
        identifier = world.ask()
        list(world.grid.pull_messages([identifier]))
        world.answer(state="unknown")
        list(world.grid.pull_messages([identifier]))
        sent = [m.metadata.message_id for m, _ in world.superlink.messages if m.metadata.message_type == "query"]
        assert len(sent) == 2
        again = [place for place, (m, _) in enumerate(world.superlink.messages) if m.metadata.message_id == sent[1]]
        world.answer(again[0])
        assert len(list(world.grid.pull_messages([identifier]))) == 1

    def test_an_answer_that_was_lost_comes_with_the_probe(self, world, at_once):
        identifier = world.ask()
        list(world.grid.pull_messages([identifier]))
        world.answer(kind="hello")
        (answer,) = world.grid.pull_messages([identifier])
        assert not answer.has_error()

    def test_a_site_whose_line_is_down_counts_as_lost(self, world):
        identifier = world.ask()
        world.fail(ErrorCode.NODE_UNAVAILABLE)
        (answer,) = world.grid.pull_messages([identifier])
        assert (answer.error.code, "no sign of life" in answer.error.reason) == (LOST, True)

    @pytest.mark.parametrize("code", [ErrorCode.MESSAGE_UNAVAILABLE, ErrorCode.REPLY_MESSAGE_UNAVAILABLE])
    def test_what_flower_has_lost_is_asked_after_and_given_up_by_nobody(self, world, at_once, code):
        identifier = world.ask()
        world.fail(code)
        assert list(world.grid.pull_messages([identifier])) == []
        world.answer(kind="hello")
        assert len(list(world.grid.pull_messages([identifier]))) == 1

    def test_a_probe_that_nobody_answered_is_not_waited_for(self, world, at_once):
        identifier = world.ask()
        for _ in range(3):
            list(world.grid.pull_messages([identifier]))
        assert all(len(asked) <= 2 for asked in world.superlink.asked)

    def test_after_a_new_run_was_claimed_everything_is_sent_and_asked_for_anew(self, world):
        identifier = world.ask()
        (old,) = [message.metadata.message_id for message, _ in world.superlink.messages]
        calls = itertools.count()

        def renews(call: Callable[[], Any]) -> Any:
            if next(calls) == 0:  # the first attempt meets a run that is over
                call()
                world.line.flower.run_id = 10
                world.sends_again()
            return call()

        world.line.call = renews
        assert list(world.grid.pull_messages([identifier])) == []
        assert world.superlink.asked[0] == [old]
        assert old not in world.superlink.asked[1]
        assert world.superlink.messages[-1][0].metadata.run_id == 10
        world.answer()
        assert len(list(world.grid.pull_messages([identifier]))) == 1

    def test_what_was_given_up_is_forgotten(self, world):
        identifier = world.ask()
        world.grid.cancel([identifier])
        world.answer()
        assert list(world.grid.pull_messages([identifier])) == []


class TestWithoutSuperlink:
    def test_it_says_so(self, world, monkeypatch):
        def gone(*_: Any) -> None:
            raise LinkError("The SuperLink does not answer.")

        monkeypatch.setattr(superlink_grid, "SuperlinkLine", gone)
        with pytest.raises(LinkError, match="does not answer"):
            SuperlinkGrid(world.home)

    def test_a_store_that_is_not_cleared_costs_nothing(self, world, monkeypatch):
        def breaks(_: Any) -> None:
            raise httpx.ConnectError("gone")

        identifier = world.ask()
        world.answer()
        world.superlink.ConfirmMessageReceived = breaks
        assert len(list(world.grid.pull_messages([identifier]))) == 1
