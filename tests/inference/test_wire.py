"""Messages between a site's process and a model's."""

from __future__ import annotations

import pytest

from eucaim_fl.inference.wire import HEAD, LARGEST_HEADER, header_bytes, read_head, read_header


class TestAMessage:
    def test_it_comes_out_as_it_went_in(self) -> None:
        raw = header_bytes({"shape": [1, 2]}, 8)
        length, payload = read_head(raw[: HEAD.size], 8)
        assert (read_header(raw[HEAD.size :]), length, payload) == ({"shape": [1, 2]}, len(raw) - HEAD.size, 8)

    @pytest.mark.parametrize(
        "raw", [HEAD.pack(b"EFL7", 2, 0), HEAD.pack(b"EFL8", LARGEST_HEADER + 1, 0), HEAD.pack(b"EFL8", 2, 9)]
    )
    def test_what_is_none_or_too_long_is_refused(self, raw: bytes) -> None:
        with pytest.raises(ValueError, match="no message"):
            read_head(raw, 8)

    @pytest.mark.parametrize("raw", [b"[]", b"{", b"\xff", b"[" * 200_000])
    def test_a_header_is_an_object(self, raw: bytes) -> None:
        with pytest.raises(ValueError, match=r"."):
            read_header(raw)
