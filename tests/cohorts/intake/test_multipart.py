from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eucaim_fl.cohorts.intake.multipart import Multipart, boundary_of


def body(*parts: bytes, boundary: bytes = b"abc", head: bytes = b"Content-Type: application/dicom\r\n") -> bytes:
    whole = b"".join(b"--" + boundary + b"\r\n" + head + b"\r\n" + part + b"\r\n" for part in parts)
    return whole + b"--" + boundary + b"--\r\n"


def blocks(raw: bytes, size: int) -> Iterator[bytes]:
    return (raw[k : k + size] for k in range(0, len(raw), size))


def parts_of(raw: bytes, size: int = 7, boundary: bytes = b"abc") -> list[bytes]:
    reader, found = Multipart(blocks(raw, size), boundary), []
    while reader.next_part():
        part = bytearray()
        reader.copy_part(part.extend)
        found.append(bytes(part))
    return found


class TestMultipart:
    @given(st.lists(st.binary(max_size=40).filter(lambda b: b"--abc" not in b), max_size=4), st.integers(1, 30))
    def test_parts_come_out_whatever_the_pieces(self, parts: list[bytes], size: int) -> None:
        assert parts_of(body(*parts), size) == parts

    @pytest.mark.parametrize("part", [b"", b"\r\n--ab", b"--abc", b"\r\n\r\n", b"\r\n--\r\n"])
    def test_what_looks_like_a_boundary_is_none(self, part: bytes) -> None:
        assert parts_of(body(part), 3) == [part]

    def test_a_part_may_have_no_header_and_the_body_a_preamble(self) -> None:
        assert parts_of(b"preamble\r\n" + body(b"one", head=b"")) == [b"one"]

    def test_parts_may_be_passed_over(self) -> None:
        reader = Multipart(blocks(body(b"one", b"two"), 5), b"abc")
        assert reader.next_part()
        assert reader.next_part()
        part = bytearray()
        reader.copy_part(part.extend)
        assert part == b"two"
        assert not reader.next_part()
        assert not reader.next_part()

    @pytest.mark.parametrize("cut", [3, 20, 45, 60])
    def test_a_body_that_ends_early_is_a_broken_connection(self, cut: int) -> None:
        with pytest.raises(ConnectionError, match="ended early"):
            parts_of(body(b"one" * 10)[:cut])

    def test_copy_part_says_so_too(self) -> None:
        reader = Multipart(blocks(body(b"one" * 10)[:50], 5), b"abc")
        reader.next_part()
        with pytest.raises(ConnectionError, match="ended early"):
            reader.copy_part(lambda piece: None)

    def test_next_part_says_so_before_the_first(self) -> None:
        reader = Multipart(iter([]), b"abc")
        with pytest.raises(ConnectionError, match="ended early"):
            reader.next_part()

    @pytest.mark.parametrize("start", [b"x", b"--abc\r\n"])
    def test_an_endless_beginning_is_refused(self, start: bytes) -> None:
        def endless() -> Iterator[bytes]:
            yield start
            while True:
                yield b"x" * 5000

        reader = Multipart(endless(), b"abc")
        with pytest.raises(ValueError, match="endless"):
            reader.next_part()


class TestBoundaryOf:
    def test_quoted_and_in_any_order(self) -> None:
        assert boundary_of('Multipart/Related; boundary="a b"; type="application/dicom"') == b"a b"

    @pytest.mark.parametrize(
        "header",
        [
            "",
            "application/dicom",
            "multipart/related",
            "text/html; boundary=x",
            "multipart/related; boundary=" + "x" * 201,
        ],
    )
    def test_anything_else_is_refused(self, header: str) -> None:
        with pytest.raises(ValueError, match=r"boundary|multipart"):
            boundary_of(header)
