"""Named arrays: one digest, one file format, and damaged files that are recognised."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as stn

from eucaim_fl.arrays import Array, ArrayFile, arrays_sha256, encode_arrays
from eucaim_fl.errors import JournalError

GOLDEN = "0990d34966dcdc0b9d5ffc3ffe433b31e76c064787b9370930c262b6e791bc3c"
TYPES = ["float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool"]
in_one_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])

any_arrays = st.dictionaries(
    st.text(max_size=8).filter(lambda name: name != "__metadata__"),
    st.sampled_from(TYPES).flatmap(
        lambda kind: stn.arrays(kind, stn.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
    ),
    max_size=4,
)


def encoded(arrays: dict[str, Array], metadata: dict[str, str] | None = None) -> bytes:
    return b"".join(bytes(buffer) for buffer in encode_arrays(arrays, metadata))


def same(found: dict[str, Array], expected: dict[str, Array]) -> bool:
    """Same names, types, shapes and bits."""
    return found.keys() == expected.keys() and all(
        found[name].dtype == array.dtype
        and found[name].shape == array.shape
        and found[name].tobytes() == array.tobytes()
        for name, array in expected.items()
    )


@pytest.fixture
def written(tmp_path: Path) -> Callable[[bytes], Path]:
    def write(content: bytes) -> Path:
        path = tmp_path / "P007.safetensors"
        path.write_bytes(content)
        return path

    return write


class TestArraysSha256:
    def test_it_is_the_same_in_every_version(self) -> None:
        arrays = {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.array(7, dtype=np.int64)}
        assert arrays_sha256(arrays) == GOLDEN

    @given(any_arrays)
    def test_neither_order_of_names_nor_memory_layout_matter(self, arrays: dict[str, Array]) -> None:
        turned = {name: np.array(arrays[name], order="F") for name in reversed(list(arrays))}
        assert arrays_sha256(turned) == arrays_sha256(arrays)

    def test_byte_order_does_not_matter(self) -> None:
        assert arrays_sha256({"w": np.arange(3, dtype=">f4")}) == arrays_sha256({"w": np.arange(3, dtype="<f4")})

    @pytest.mark.parametrize(
        "other",
        [
            {"v": np.zeros(4, np.float32)},
            {"w": np.zeros((2, 2), np.float32)},
            {"w": np.zeros(4, np.int32)},
            {"w": np.array([0, 0, 0, -0.0], np.float32)},
            {"w": np.zeros(4, np.float32), "x": np.zeros(0)},
            {},
        ],
    )
    def test_name_shape_type_and_every_bit_matter(self, other: dict[str, Array]) -> None:
        assert arrays_sha256(other) != arrays_sha256({"w": np.zeros(4, np.float32)})


class TestRoundTrip:
    @given(arrays=any_arrays)
    @in_one_folder
    def test_arrays_come_back_to_the_bit(self, written: Callable[[bytes], Path], arrays: dict[str, Array]) -> None:
        file = ArrayFile(written(encoded(arrays)))
        assert file.names == sorted(arrays)
        assert same(file.load(), arrays)

    @given(arrays=any_arrays)
    @in_one_folder
    def test_the_safetensors_library_reads_what_is_written(
        self, written: Callable[[bytes], Path], arrays: dict[str, Array]
    ) -> None:
        assert same(safetensors.numpy.load_file(written(encoded(arrays))), arrays)

    @given(arrays=any_arrays)
    @in_one_folder
    def test_what_the_safetensors_library_writes_is_read(self, tmp_path: Path, arrays: dict[str, Array]) -> None:
        path = tmp_path / "theirs.safetensors"
        contiguous = {name: np.array(array, order="C") for name, array in arrays.items()}
        safetensors.numpy.save_file(contiguous, path, metadata={"who": "théy"})
        file = ArrayFile(path)
        assert same(file.load(), arrays)
        assert file.metadata == {"who": "théy"}

    def test_metadata_come_back_in_both_readers(self, written: Callable[[bytes], Path]) -> None:
        path = written(encoded({"w": np.zeros(2)}, {"round": "3"}))
        assert ArrayFile(path).metadata == {"round": "3"}
        with safetensors.safe_open(path, "np") as theirs:
            assert theirs.metadata() == {"round": "3"}

    def test_a_number_stays_a_number(self, written: Callable[[bytes], Path]) -> None:
        file = ArrayFile(written(encoded({"steps": np.array(5)})))
        assert file.shape("steps") == ()
        assert file.dtype("steps") == np.int64
        assert file.read("steps")[()] == 5

    def test_other_byte_orders_and_layouts_keep_their_values(self, written: Callable[[bytes], Path]) -> None:
        arrays = {
            "big": np.arange(3, dtype=">f4"),
            "turned": np.arange(6).reshape(2, 3).T,
            "strided": np.arange(9)[::2],
        }
        loaded = ArrayFile(written(encoded(arrays))).load()
        for name, array in arrays.items():
            assert loaded[name].tolist() == array.tolist()

    def test_data_start_at_a_multiple_of_eight_bytes(self) -> None:
        for length in range(1, 12):
            head = encode_arrays({"n" * length: np.zeros(1)})[0]
            assert len(head) % 8 == 0

    def test_writing_makes_no_copy_of_a_contiguous_array(self) -> None:
        array = np.arange(1000.0)
        assert np.shares_memory(np.frombuffer(encode_arrays({"w": array})[1], dtype=np.uint8), array)

    @pytest.mark.parametrize("kind", ["complex64", "uint16", "U3", "object"])
    def test_a_type_that_the_format_does_not_have_is_refused(self, kind: str) -> None:
        with pytest.raises(JournalError, match="can't be stored"):
            encode_arrays({"w": np.zeros(2, dtype=kind)})


class TestReadingPieces:
    @given(start=st.integers(0, 7), count=st.integers(0, 9))
    @in_one_folder
    def test_a_piece_is_that_part_of_the_flat_array(
        self, written: Callable[[bytes], Path], start: int, count: int
    ) -> None:
        array = np.arange(6, dtype=np.int16).reshape(2, 3)
        file = ArrayFile(written(encoded({"v": np.ones(3), "w": array})))
        assert file.read("w", start, count).tolist() == array.reshape(-1)[start : start + count].tolist()

    def test_items_come_one_by_one_in_sorted_order(self, written: Callable[[bytes], Path]) -> None:
        file = ArrayFile(written(encoded({"b": np.ones(1), "a": np.zeros(1)})))
        assert [name for name, _ in file.items()] == ["a", "b"]

    def test_a_file_that_was_cut_after_it_was_opened_is_noticed(self, written: Callable[[bytes], Path]) -> None:
        path = written(encoded({"w": np.zeros(100)}))
        file = ArrayFile(path)
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(JournalError, match="ends early"):
            file.read("w")


def header(shape: object = (2,), offsets: object = (0, 8), dtype: object = "F32", **more: object) -> bytes:
    entry = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
    head = json.dumps({"w": entry, **more}).encode()
    return len(head).to_bytes(8, "little") + head


def raw(head: bytes, claimed: int | None = None) -> bytes:
    return (len(head) if claimed is None else claimed).to_bytes(8, "little") + head


W: dict[str, Any] = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
DAMAGED = {
    "nothing": b"",
    "less than a length": b"abc",
    "no header": raw(b"", 10),
    "header longer than the file": raw(b"{}", 2**63),
    "header of 4 GB in a short file": raw(b"{}", 2**32),
    "header is no text": raw(b"\xff\xfe{}"),
    "header is no JSON": raw(b"{"),
    "header is a list": raw(b"[]"),
    "header is null": raw(b"null"),
    "header nested without end": raw(b'{"w":' + b"[" * 100_000),
    "metadata are a list": header(__metadata__=[1]) + bytes(8),
    "metadata are no text": header(__metadata__={"a": 1}) + bytes(8),
    "entry is no mapping": raw(b'{"w":1}') + bytes(8),
    "entry lacks a key": raw(b'{"w":{"dtype":"F32"}}') + bytes(8),
    "unknown type": header(dtype="BF16", shape=[4]) + bytes(8),
    "type is a list": header(dtype=[]) + bytes(8),
    "negative shape": header([-2]) + bytes(8),
    "two negative axes": header([-2, -1]) + bytes(8),
    "shape of fractions": header([2.5]) + bytes(8),
    "shape of texts": header(["2"]) + bytes(8),
    "shape of truth values": header([True], [0, 4]) + bytes(4),
    "shape too large for its bytes": header([3]) + bytes(8),
    "shape whose size wraps to zero": header([2**32, 2**32], [0, 0]),
    "shape beyond 64 bits": header([2**64], [0, 0]),
    "empty shape beyond 64 bits": header([2**62, 2**62, 0], [0, 0]),
    "shape of a thousand axes": header([1] * 1000, [0, 4]) + bytes(4),
    "offsets turned round": header([0], [8, 0]) + bytes(8),
    "offsets below zero": header([2], [-8, 0]) + bytes(8),
    "offsets of fractions": header([2], [0.0, 8.0]) + bytes(8),
    "three offsets": header([2], [0, 4, 8]) + bytes(8),
    "data cut": header() + bytes(7),
    "data far outside": header([2], [2**40, 2**40 + 8]) + bytes(8),
    "data with a gap before": header([2], [8, 16]) + bytes(16),
    "data that nobody claims": header() + bytes(9),
    "arrays over each other": header(v=W) + bytes(8),
    "arrays half over each other": header(v={**W, "data_offsets": [4, 12]}) + bytes(12),
}


class TestDamagedFiles:
    @pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
    def test_it_is_refused(self, written: Callable[[bytes], Path], content: bytes) -> None:
        with pytest.raises(JournalError, match=r"A file of arrays is damaged\.") as caught:
            ArrayFile(written(content))
        assert "P007" not in str(caught.value)
        assert "P007" in caught.value.local_detail

    def test_the_pieces_of_these_files_make_a_good_one(self, written: Callable[[bytes], Path]) -> None:
        file = ArrayFile(written(header(v={**W, "data_offsets": [8, 16]}) + bytes(16)))
        assert file.names == ["v", "w"]

    def test_a_missing_file_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(JournalError, match="damaged"):
            ArrayFile(tmp_path / "none")

    @given(cut=st.integers(0, 10_000))
    @in_one_folder
    def test_a_file_cut_anywhere_is_refused(self, written: Callable[[bytes], Path], cut: int) -> None:
        whole = encoded({"a": np.arange(5.0), "b": np.array(1)})
        path = written(whole[: cut % len(whole)])
        with pytest.raises(JournalError, match="damaged"):
            ArrayFile(path)

    @given(place=st.integers(0, 10_000), byte=st.integers(0, 255))
    @in_one_folder
    def test_a_file_with_any_byte_changed_is_refused_or_can_be_read(
        self, written: Callable[[bytes], Path], place: int, byte: int
    ) -> None:
        content = bytearray(encoded({"a": np.arange(5.0), "b": np.array(1)}))
        content[place % len(content)] = byte
        path = written(bytes(content))
        try:
            file = ArrayFile(path)
        except JournalError:
            return
        assert sum(array.nbytes for _, array in file.items()) == 48
