"""Messages taken apart and put together; what others name is counted, weighed and compared with its hash."""

from __future__ import annotations

import hashlib
import json
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.task_identity import TaskIdentity

from eucaim_fl.errors import LinkError, PlanError, ReplyError
from eucaim_fl.federation.messages import instruction_content, to_record
from eucaim_fl.federation.objects import CHUNK_BYTES, Outgoing, fetch, outgoing, send_all
from eucaim_fl.federation.parcel import pack, unpack

SMALL = 2**20


@pytest.fixture(autouse=True)
def _in_a_run() -> None:
    """Flower makes no message outside a run."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 0


def message(numbers: int = 10) -> Message:
    weights = to_record({"w": np.arange(numbers, dtype=np.float32)})
    return Message(pack(instruction_content("{}", 1, weights)), 7, "train", ttl=60.0)


def contents_of(apart: Outgoing) -> dict[str, bytes]:
    return dict(apart.contents(set(apart.objects)))


def thing(kind: str, children: list[str], body: bytes) -> tuple[str, bytes]:
    """An object in Flower's form as an attacker may write it: its hash and its bytes."""
    content = f"{kind} {','.join(children)} {len(body)}".encode() + b"\0" + body
    return hashlib.sha256(content).hexdigest(), content


def flat(contents: dict[str, bytes], root: str) -> ObjectTree:
    return ObjectTree(object_id=root, children=[ObjectTree(object_id=i) for i in contents if i != root])


def hostile_array(listed: list[int], chunk: bytes = b"c" * 2**20) -> dict[str, bytes]:
    """A message whose one array lists its chunk as often as it likes; the message itself comes last."""
    chunk_id, chunk_bytes = thing("ArrayChunk", [], chunk)
    meta = {"dtype": "uint8", "shape": [1], "stype": "eucaim.raw", "arraychunk_ids": listed}
    array_id, array = thing("Array", [chunk_id], json.dumps(meta).encode())
    record_id, record = thing("ArrayRecord", [array_id], json.dumps({"bytes": array_id}).encode())
    dict_id, records = thing("RecordDict", [record_id], json.dumps({"parcel": record_id}).encode())
    good = outgoing(message())
    body = contents_of(good)[good.identifier].partition(b"\0")[2]
    message_id, whole = thing("Message", [dict_id], body)
    return {chunk_id: chunk_bytes, array_id: array, record_id: record, dict_id: records, message_id: whole}


class TestOutgoing:
    def test_a_message_is_known_by_its_hash(self) -> None:
        sent = message()
        apart = outgoing(sent)
        assert apart.identifier == sent.metadata.message_id == apart.tree.object_id
        assert hashlib.sha256(contents_of(apart)[apart.identifier]).hexdigest() == apart.identifier

    def test_children_come_before_their_parents(self) -> None:
        apart = outgoing(message())
        assert list(contents_of(apart))[-1] == apart.identifier

    def test_only_what_is_wanted_is_given(self) -> None:
        apart = outgoing(message())
        wanted = set(list(apart.objects)[:2])
        assert {identifier for identifier, _ in apart.contents(wanted)} == wanted
        assert list(apart.contents({"0" * 64})) == []

    def test_a_large_array_becomes_chunks(self) -> None:
        apart = outgoing(message(3 * CHUNK_BYTES // 8))  # one and a half chunks
        assert sum(content.startswith(b"ArrayChunk") for content in contents_of(apart).values()) == 2


class TestFetch:
    @pytest.mark.parametrize("numbers", [0, 10, 3 * CHUNK_BYTES // 8])
    def test_a_message_comes_back(self, numbers: int) -> None:
        apart = outgoing(message(numbers))
        content = fetch(apart.tree, contents_of(apart).get, 2 * CHUNK_BYTES)
        weights = unpack(content, ReplyError).array_records["weights"]["w"]
        assert weights.data == np.arange(numbers, dtype=np.float32).tobytes()

    def test_chunks_that_are_equal_travel_once(self) -> None:
        weights = to_record({"w": np.zeros(CHUNK_BYTES, np.float32)})
        apart = outgoing(Message(pack(RecordDict({"update": weights})), 7, "train", ttl=60.0))
        contents = contents_of(apart)
        assert sum(map(len, contents.values())) < 2 * CHUNK_BYTES
        back = unpack(fetch(apart.tree, contents.get, 4 * CHUNK_BYTES), ReplyError)
        assert len(back.array_records["update"]["w"].data) == 4 * CHUNK_BYTES

    def test_a_part_that_is_not_there_is_a_matter_of_the_line(self) -> None:
        apart = outgoing(message())
        contents = contents_of(apart)
        del contents[next(iter(contents))]
        with pytest.raises(LinkError, match="missing"):
            fetch(apart.tree, contents.get, SMALL)

    def test_a_part_under_another_hash_is_refused(self) -> None:
        apart = outgoing(message())
        contents = contents_of(apart)
        for spoilt in contents:
            with pytest.raises(ReplyError, match="not what its hash says"):
                fetch(apart.tree, {**contents, spoilt: contents[spoilt] + b"x"}.get, SMALL)

    def test_too_heavy_parts_are_refused_and_the_rest_is_not_asked_for(self) -> None:
        apart = outgoing(message(10 * CHUNK_BYTES // 4))
        contents, asked = contents_of(apart), list[str]()

        def pull(identifier: str) -> bytes:
            asked.append(identifier)
            return contents[identifier]

        tree = flat(contents, apart.identifier)
        with pytest.raises(ReplyError, match="larger than one of its kind"):
            fetch(tree, pull, CHUNK_BYTES)
        assert len(asked) < len(contents)

    def test_too_many_parts_are_refused_before_one_is_asked_for(self) -> None:
        tree = ObjectTree(object_id="0" * 64, children=[ObjectTree(object_id=f"{n:064x}") for n in range(1000)])
        with pytest.raises(ReplyError, match="more parts"):
            fetch(tree, lambda _: pytest.fail("asked"), SMALL)

    def test_one_part_named_a_thousand_times_counts_a_thousand_times(self) -> None:
        tree = ObjectTree(object_id="0" * 64, children=[ObjectTree(object_id="1" * 64)] * 1000)
        with pytest.raises(ReplyError, match="more parts"):
            fetch(tree, lambda _: pytest.fail("asked"), SMALL)

    def test_a_deep_tree_is_refused(self) -> None:
        tree = ObjectTree(object_id="0" * 64)
        for number in range(20):
            tree = ObjectTree(object_id=f"{number:064x}", children=[tree])
        with pytest.raises(PlanError, match="more parts"):
            fetch(tree, lambda _: pytest.fail("asked"), SMALL, PlanError)

    @pytest.mark.parametrize("name", ["", "0" * 63, "../../etc/passwd"])
    def test_a_name_that_is_no_hash_is_refused(self, name: str) -> None:
        with pytest.raises(ReplyError, match="way that is not known"):
            fetch(ObjectTree(object_id=name), lambda _: pytest.fail("asked"), SMALL)

    @pytest.mark.parametrize("garbage", [b"", b"\0", b"garbage", b"Message \0", b"Message  0\0", b"os.system  0\0"])
    def test_garbage_is_refused(self, garbage: bytes) -> None:
        root = hashlib.sha256(garbage).hexdigest()
        with pytest.raises(ReplyError, match="can't be put together"):
            fetch(ObjectTree(object_id=root), {root: garbage}.get, SMALL)

    def test_a_chain_of_parts_in_the_bytes_that_the_tree_hides_is_refused(self) -> None:
        root, content = thing("ConfigRecord", [], b"")
        contents = {root: content}
        for _ in range(1500):
            root, content = thing("RecordDict", [root], json.dumps({"a": root}).encode())
            contents[root] = content
        with pytest.raises(ReplyError, match="can't be put together"):
            fetch(flat(contents, root), contents.get, 1000 * CHUNK_BYTES)

    def test_what_is_no_message_is_refused(self) -> None:
        root, content = thing("ConfigRecord", [], b"")
        with pytest.raises(ReplyError, match="holds no content"):
            fetch(ObjectTree(object_id=root), {root: content}.get, SMALL)

    def test_a_message_whose_content_is_of_another_kind_is_refused(self) -> None:
        good = outgoing(message())
        child, record = thing("ConfigRecord", [], b"")
        root, whole = thing("Message", [child], contents_of(good)[good.identifier].partition(b"\0")[2])
        contents = {child: record, root: whole}
        with pytest.raises(ReplyError, match=r"holds no content|can't be put together"):
            fetch(flat(contents, root), contents.get, SMALL)

    def test_a_chunk_that_is_listed_thousands_of_times_is_refused_without_memory(self) -> None:
        contents = hostile_array([0] * 20_000)  # twenty gigabytes out of one megabyte
        *_, root = contents
        tracemalloc.start()
        try:
            with pytest.raises(ReplyError, match="larger than one of its kind"):
                fetch(flat(contents, root), contents.get, 4 * SMALL)
            assert tracemalloc.get_traced_memory()[1] < 16 * SMALL
        finally:
            tracemalloc.stop()

    @pytest.mark.parametrize("listed", [[5], ["0"], None, [[0]]])
    def test_chunks_that_are_listed_in_another_way_are_refused(self, listed: list[int]) -> None:
        contents = hostile_array(listed)
        *_, root = contents
        with pytest.raises(ReplyError, match="can't be put together"):
            fetch(flat(contents, root), contents.get, 4 * SMALL)

    def test_the_same_chunk_once_is_a_message(self) -> None:
        contents = hostile_array([0])
        *_, root = contents
        assert set(fetch(flat(contents, root), contents.get, 4 * SMALL)) == {"parcel"}


class TestSendAll:
    def pieces(self, taken: list[int]) -> Iterator[tuple[str, bytes]]:
        for number in range(100):
            taken.append(number)
            yield str(number), b"piece"

    def test_every_piece_is_pushed(self) -> None:
        pushed: dict[str, bytes] = {}
        send_all(self.pieces([]), pushed.__setitem__)
        assert pushed == {str(number): b"piece" for number in range(100)}

    def test_the_first_failure_is_raised_and_ends_it(self) -> None:
        pushed, taken = list[str](), list[int]()

        def push(identifier: str, content: bytes) -> None:
            pushed.append(identifier)
            raise LinkError(f"Piece {identifier} failed.")

        with pytest.raises(LinkError, match="Piece 0 failed"):
            send_all(self.pieces(taken), push)
        assert len(taken) <= 8
        assert len(pushed) <= len(taken)

    def test_what_was_not_begun_is_not_pushed_any_more(self) -> None:
        pushed, lock = list[str](), threading.Lock()

        def push(identifier: str, content: bytes) -> None:
            with lock:
                pushed.append(identifier)
            if identifier == "0":
                raise LinkError("The line failed.")
            time.sleep(0.1)

        pieces = ((str(number), b"") for number in range(8))
        with pytest.raises(LinkError, match="line failed"):
            send_all(pieces, push)
        assert len(pushed) < 8

    def test_pieces_that_can_not_be_made_end_it_too(self) -> None:
        def pieces() -> Iterator[tuple[str, bytes]]:
            yield "0", b""
            raise ReplyError("No more.")

        push: Callable[[str, bytes], None] = lambda identifier, content: None  # noqa: E731
        with pytest.raises(ReplyError, match="No more"):
            send_all(pieces(), push)


def test_a_probe_s_small_message_fits_its_small_limit() -> None:
    apart = outgoing(Message(RecordDict({"probe": ConfigRecord({"nonce": "0" * 32})}), 7, "query.probe", ttl=60.0))
    assert set(fetch(apart.tree, contents_of(apart).get, SMALL, PlanError)) == {"probe"}
