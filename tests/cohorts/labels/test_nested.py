from __future__ import annotations

import pytest

from eucaim_fl.cohorts.elements import Element, Elements
from eucaim_fl.cohorts.labels.nested import by_place, items, numbers_of, plain_name, text_of

NUMBER, NAME, SEQUENCE = 0x30060022, 0x30060026, 0x30060040


def elements(raw: bytes, vr: str, syntax: str = "1.2.840.10008.1.2.1") -> tuple[Elements, Element]:
    one = Element(NUMBER, vr, 0, len(raw), 0)
    return Elements(raw, [], [one], syntax, True), one


class TestItems:
    def test_a_tag_that_comes_again_starts_a_new_item(self) -> None:
        flat = [Element(tag, "IS", 0, 0, 1) for tag in (NUMBER, NAME, NUMBER, NAME, NAME)]
        assert [len(item) for item in items(flat, 1)] == [2, 2, 1]

    def test_what_lies_deeper_belongs_to_its_item(self) -> None:
        flat = [Element(NUMBER, "IS", 0, 0, 1), Element(SEQUENCE, "SQ", 0, 0, 1), Element(NUMBER, "IS", 0, 0, 2)]
        assert [len(item) for item in items(flat, 1)] == [3]

    def test_nothing_has_no_items(self) -> None:
        assert not list(items([], 1))


class TestByPlace:
    def test_own_elements_and_those_one_level_below_are_told_apart(self) -> None:
        own, sequence, below = (
            Element(NUMBER, "IS", 0, 0, 1),
            Element(SEQUENCE, "SQ", 0, 0, 1),
            Element(NAME, "", 0, 0, 2),
        )
        found = by_place([own, sequence, below, Element(NAME, "", 9, 9, 2), Element(NAME, "", 0, 0, 3)], 1)
        assert found == {(0, NUMBER): own, (0, SEQUENCE): sequence, (SEQUENCE, NAME): below}


class TestValues:
    @pytest.mark.parametrize(
        ("raw", "vr", "expected"),
        [(b"1.5\\-2 ", "DS", (1.5, -2.0)), (b"\2\0\3\0", "US", (2, 3)), (b"", "DS", ()), (b"  ", "IS", ())],
    )
    def test_numbers_of_texts_and_binaries(self, raw: bytes, vr: str, expected: tuple[float, ...]) -> None:
        assert numbers_of(*elements(raw, vr)) == expected

    def test_the_byte_order_is_the_file_s(self) -> None:
        assert numbers_of(*elements(b"\0\2", "US", "1.2.840.10008.1.2.2")) == (2,)

    @pytest.mark.parametrize(("raw", "vr"), [(b"one", "DS"), (b"\1", "US"), (b"1\\\\2", "DS")])
    def test_what_is_no_number_is_an_error(self, raw: bytes, vr: str) -> None:
        with pytest.raises(ValueError, match=r"convert|bytes"):
            numbers_of(*elements(raw, vr))

    def test_an_absent_element_has_no_value(self) -> None:
        whole, _ = elements(b"", "DS")
        assert (text_of(whole, None), numbers_of(whole, None)) == ("", ())

    def test_bytes_outside_ascii_are_no_letters(self) -> None:
        assert plain_name(text_of(*elements("Läsion 1".encode(), "LO"))) == "l_sion_1"
