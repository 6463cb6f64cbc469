"""A message in one buffer comes back bit by bit; what an index claims is checked before anything is built from it."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from eucaim_fl.errors import PlanError, ReplyError
from eucaim_fl.federation.messages import from_record, instruction_content, to_record
from eucaim_fl.federation.parcel import MOST_ARRAYS, digest, pack, unpack
from eucaim_fl.records import ArraySpec

DTYPES = ("float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool")
ARRAYS: dict[str, Any] = {
    **{name: np.arange(-2, 4).astype(name).reshape(2, 3) for name in DTYPES},
    "no_dimensions": np.array(7.5, np.float32),
    "empty": np.zeros((0, 3), np.float64),
}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=7) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=30,
)


def message(arrays: dict[str, Any] | None = None) -> RecordDict:
    return instruction_content('{"plan":1}', 3, to_record(ARRAYS if arrays is None else arrays))


def parcel(index: object, buffer: bytes = b"", **others: Any) -> RecordDict:
    """A message as an attacker packs it: any index over any bytes."""
    text = index if isinstance(index, str) else json.dumps(index)
    packed = RecordDict({"parcel-index": ConfigRecord({"json": text}), **others})
    packed["parcel"] = ArrayRecord({"bytes": Array("uint8", (len(buffer),), "eucaim.raw", buffer)})
    return packed


def entry(**changes: Any) -> list[object]:
    """One array of four bytes."""
    values = {"name": "update", "key": "w", "dtype": "float32", "shape": [1], "stype": "eucaim.raw", "size": 4}
    return list({**values, **changes}.values())


class TestRoundTrip:
    def test_arrays_of_every_type_come_back_as_they_were(self) -> None:
        content = unpack(pack(message()), ReplyError)
        assert content.config_records["instruction"] == {"plan": '{"plan":1}', "round": 3}
        specs = [ArraySpec(name, array.shape, array.dtype.name, trainable=True) for name, array in ARRAYS.items()]
        arrays = from_record(content.array_records["weights"], specs)
        for name, array in ARRAYS.items():
            assert arrays[name].dtype == array.dtype
            np.testing.assert_array_equal(arrays[name], array)

    def test_there_is_one_buffer_however_many_arrays(self) -> None:
        packed = pack(message({f"layer-{number}": np.ones(2, np.float32) for number in range(700)}))
        assert {name: list(record) for name, record in packed.array_records.items()} == {"parcel": ["bytes"]}

    def test_records_of_arrays_keep_their_names_apart(self) -> None:
        content = RecordDict({"a": to_record({"w": np.zeros(1)}), "b": to_record({"w": np.ones(1)})})
        back = unpack(pack(content), ReplyError)
        assert [back.array_records[name]["w"].data for name in "ab"] == [np.zeros(1).tobytes(), np.ones(1).tobytes()]

    def test_a_message_without_arrays_has_no_buffer(self) -> None:
        packed = pack(instruction_content("{}", 0))
        assert not packed.array_records
        assert set(unpack(packed, ReplyError)) == {"instruction"}

    def test_arrays_without_a_number_in_them_stay(self) -> None:
        back = unpack(pack(RecordDict({"update": to_record({"w": np.zeros((0, 2))})})), ReplyError)
        assert back.array_records["update"]["w"].shape == (0, 2)

    @given(st.dictionaries(st.text(st.characters(codec="utf-8"), min_size=1, max_size=20), st.binary(max_size=20)))
    def test_any_name_and_any_bytes(self, arrays: dict[str, bytes]) -> None:
        content = RecordDict({"update": to_record({k: np.frombuffer(v, np.uint8) for k, v in arrays.items()})})
        back = unpack(pack(content), ReplyError)
        assert {k: a.data for k, a in back.array_records.get("update", ArrayRecord()).items()} == arrays

    def test_an_only_array_is_copied_nowhere(self):
        content = bytes(1000)
        arrays = ArrayRecord({"file": Array("uint8", (1000,), "eucaim.raw", content)})
        assert unpack(pack(RecordDict({"weights": arrays})), PlanError).array_records["weights"]["file"].data is content


class TestDigest:
    def test_it_does_not_depend_on_the_seal_that_will_hold_it(self) -> None:
        packed = pack(message())
        before = digest(packed)
        packed["seal"] = ConfigRecord({"body": "x", "signature": "y"})
        assert digest(packed) == before

    def test_it_is_the_same_for_the_same_message(self) -> None:
        assert digest(pack(message())) == digest(pack(message()))

    @given(st.integers(0, 3), st.integers(1, 255))
    def test_any_byte_counts(self, place: int, change: int) -> None:
        buffer = bytearray(b"abcd")
        buffer[place] ^= change
        assert digest(parcel([entry()], bytes(buffer))) != digest(parcel([entry()], b"abcd"))

    @pytest.mark.parametrize(
        "changed",
        [
            parcel([entry(key="v")], b"abcd"),
            parcel([entry(name="pictures")], b"abcd"),
            parcel([entry(dtype="int32")], b"abcd"),
            parcel([entry(shape=[1, 1])], b"abcd"),
            parcel([entry()], b"abcd", report=ConfigRecord({"json": "{}"})),
            parcel([entry()], b"abcd", report=ConfigRecord({})),
            parcel([entry()], b"abcd", **{"": ConfigRecord({})}),
        ],
        ids=["key", "name", "dtype", "shape", "text", "record", "nameless"],
    )
    def test_any_name_and_any_text_counts(self, changed: RecordDict) -> None:
        assert digest(changed) != digest(parcel([entry()], b"abcd"))

    def test_numbers_and_texts_differ(self) -> None:
        one, other = (RecordDict({"word": ConfigRecord({"round": value})}) for value in (1, "1"))
        assert digest(one) != digest(other)

    @pytest.mark.parametrize("value", [True, 1.5, b"bytes", [1, 2], ["a"]], ids=str)
    def test_values_of_other_kinds_are_refused(self, value: Any) -> None:
        with pytest.raises(ReplyError, match="kind that is not accepted"):
            digest(RecordDict({"word": ConfigRecord({"value": value})}))

    def test_what_it_does_not_cover_is_refused(self) -> None:
        with pytest.raises(ReplyError, match="kind that is not accepted"):
            digest(RecordDict({"more": MetricRecord({"secret": 1.5})}))
        with pytest.raises(ReplyError, match="outside its parcel"):
            digest(RecordDict({"update": to_record({"w": np.ones(3)})}))
        with pytest.raises(ReplyError, match="outside its parcel"):
            digest(RecordDict({"seal": to_record({"w": np.ones(3)})}))

    def test_text_that_is_no_unicode_is_refused(self) -> None:
        with pytest.raises(ReplyError, match="not Unicode"):
            digest(RecordDict({"word": ConfigRecord({"text": "\ud800"})}))

    def test_one_text_under_a_thousand_names_costs_no_memory(self) -> None:
        record = ConfigRecord({"text": "x" * 2**20})
        many = RecordDict({str(number): record for number in range(1000)})
        with pytest.raises(ReplyError, match="kind that is not accepted"):
            digest(many)

    def test_a_text_that_is_too_long_is_refused(self) -> None:
        with pytest.raises(ReplyError, match="too long"):
            digest(RecordDict({"word": ConfigRecord({"a": "x" * 5 * 2**20, "b": "x" * 5 * 2**20})}))


class TestHostileIndex:
    @pytest.mark.parametrize(
        ("packed", "complaint"),
        [
            (parcel([entry()], b"abcdHIDDEN"), "bytes that belong to no array"),
            (parcel([], b"HIDDEN"), "bytes that belong to no array"),
            (parcel([entry(), entry()], b"abcdefgh"), "does not fit its bytes"),
            (parcel([entry(name="seal")], b"abcd", seal=ConfigRecord({})), "does not fit its bytes"),
            (parcel([entry()], b"abc"), "does not fit its bytes"),
            (parcel([entry(shape=[2**62])], b"abcd"), "malformed"),
            (parcel([entry(shape=[2**62], size=2**64)], b"abcd"), "malformed"),
            (parcel([entry(shape=[2**31, 2**31, 4])], b"abcd"), "another size than its shape"),
            (parcel([entry(shape=[2**39] * 8)], b"abcd"), "another size than its shape"),
            (parcel([entry(shape=[1] * 9)], b"abcd"), "malformed"),
            (parcel([entry(shape=[-1])], b"abcd"), "malformed"),
            (parcel([entry(shape=[-1], size=-4)], b"abcd"), "malformed"),
            (parcel([entry(shape=[True])], b"abcd"), "malformed"),
            (parcel([entry(shape=[1.0])], b"abcd"), "malformed"),
            (parcel([entry(shape=1)], b"abcd"), "malformed"),
            (parcel([entry(size="4")], b"abcd"), "malformed"),
            (parcel([entry(size=8)], b"abcdefgh"), "another size than its shape"),
            (parcel([entry(dtype="float64")], b"abcd"), "another size than its shape"),
            (parcel([entry(name="")], b"abcd"), "malformed"),
            (parcel([entry(key="x" * 513)], b"abcd"), "malformed"),
            (parcel([entry(key=None)], b"abcd"), "malformed"),
            (parcel([entry()[:5]], b"abcd"), "malformed"),
            (parcel([{}], b"abcd"), "malformed"),
            (parcel({"update": entry()}, b"abcd"), "not one, or too long"),
            (parcel([entry(shape=[0], size=0)] * (MOST_ARRAYS + 1)), "not one, or too long"),
            (parcel("[" * 100_000), "not JSON"),
            (parcel("[" + "9" * 5000 + "]"), "not JSON"),
            (parcel(""), "not JSON"),
        ],
    )
    def test_it_is_refused(self, packed: RecordDict, complaint: str) -> None:
        with pytest.raises(ReplyError, match=complaint):
            unpack(packed, ReplyError)
        with pytest.raises(PlanError, match=complaint):
            unpack(packed, PlanError)

    @pytest.mark.parametrize(
        "dtype", ["O", "object", "V4", "S4", "U1", ">f4", "complex64", "f4,f4", "(1,)f4", "(" * 500, "datetime64[1D]"]
    )
    def test_types_that_never_travel_are_refused(self, dtype: str) -> None:
        with pytest.raises(ReplyError, match="unknown type"):
            unpack(parcel([entry(dtype=dtype)], b"abcd"), ReplyError)

    @pytest.mark.parametrize("size", [10_000_000_000, 2**39])
    def test_a_claim_of_ten_gigabytes_is_refused_without_memory(self, size: int) -> None:
        packed = parcel([entry(dtype="uint8", shape=[size], size=size)], b"abcd")
        tracemalloc.start()
        try:
            with pytest.raises(ReplyError, match="does not fit its bytes"):
                unpack(packed, ReplyError)
            assert tracemalloc.get_traced_memory()[1] < 2**20
        finally:
            tracemalloc.stop()

    @given(JSON, st.binary(max_size=16))
    def test_garbage_is_refused_or_claims_every_byte(self, index: object, buffer: bytes) -> None:
        try:
            content = unpack(parcel(index, buffer), ReplyError)
        except ReplyError:
            return
        claimed = sum(len(a.data) for record in content.array_records.values() for a in record.values())
        assert claimed == len(buffer)

    @given(st.data())
    def test_an_index_with_one_spoilt_value_is_refused_or_fits(self, data: st.DataObject) -> None:
        good = entry()
        good[data.draw(st.integers(0, 5))] = data.draw(JSON)
        try:
            content = unpack(parcel([good], b"abcd"), ReplyError)
        except ReplyError:
            return
        (array,) = [a for record in content.array_records.values() for a in record.values()]
        assert array.data == b"abcd"


class TestHostileRecords:
    @pytest.mark.parametrize(
        ("packed", "complaint"),
        [
            (RecordDict({"word": ConfigRecord({})}), "has no index"),
            (RecordDict({"parcel-index": ConfigRecord({"json": 1})}), "has no index"),
            (RecordDict({"parcel-index": ConfigRecord({"json": "[]", "more": "hidden"})}), "has no index"),
            (parcel([], more=MetricRecord({"a": 1})), "kind that is not accepted"),
            (parcel([], **{f"r{n}": ConfigRecord({}) for n in range(20)}), "kind that is not accepted"),
            (parcel([], word=ConfigRecord({"a": 1.5})), "kind that is not accepted"),
            (parcel([], word=ConfigRecord({"a": [1]})), "kind that is not accepted"),
            (parcel([], word=ConfigRecord({"a": "x" * (8 * 2**20 + 1)})), "too long"),
            (parcel([], update=to_record({"w": np.ones(3)})), "outside its parcel"),
        ],
    )
    def test_they_are_refused(self, packed: RecordDict, complaint: str) -> None:
        with pytest.raises(ReplyError, match=complaint):
            unpack(packed, ReplyError)

    @pytest.mark.parametrize(
        "array",
        [Array("uint8", (9,), "eucaim.raw", b"abcd"), Array("int8", (4,), "eucaim.raw", b"abcd"),
         Array("uint8", (2, 2), "eucaim.raw", b"abcd")],
    )  # fmt: skip
    def test_a_buffer_that_is_not_what_it_says_is_refused(self, array: Array) -> None:
        packed = parcel([entry()])
        packed["parcel"] = ArrayRecord({"bytes": array})
        with pytest.raises(ReplyError, match="another size than it says"):
            unpack(packed, ReplyError)
        packed["parcel"] = ArrayRecord({"bytes": array, "more": array})
        with pytest.raises(ReplyError, match="outside its parcel"):
            unpack(packed, ReplyError)
