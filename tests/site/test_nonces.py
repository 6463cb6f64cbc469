"""An instruction is worked on three times at most, and not after a day; a restart forgets nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eucaim_fl.errors import JournalError, SealError
from eucaim_fl.site import nonces
from eucaim_fl.site.nonces import Nonces

NOW, HOUR = 1_800_000_000, 3600
ONE, TWO = "1" * 32, "2" * 32


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "nonces.json"


class TestAccepting:
    def test_an_instruction_may_come_three_times(self, path: Path) -> None:
        seen = Nonces(path)
        for _ in range(3):
            seen.accept(ONE, NOW, NOW)
        with pytest.raises(SealError, match="came before"):
            seen.accept(ONE, NOW, NOW)
        seen.accept(TWO, NOW, NOW)

    @pytest.mark.parametrize(("issued", "late"), [(NOW - 24 * HOUR, False), (NOW - 24 * HOUR - 1, True)])
    def test_after_a_day_it_is_refused(self, path: Path, issued: int, late: bool) -> None:
        if not late:
            Nonces(path).accept(ONE, issued, NOW)
            return
        with pytest.raises(SealError, match="older than a day"):
            Nonces(path).accept(ONE, issued, NOW)

    @pytest.mark.parametrize(("issued", "early"), [(NOW + HOUR, False), (NOW + HOUR + 1, True), (10**40, True)])
    def test_one_from_the_future_is_refused(self, path: Path, issued: int, early: bool) -> None:
        if not early:
            Nonces(path).accept(ONE, issued, NOW)
            return
        with pytest.raises(SealError, match="from the future"):
            Nonces(path).accept(ONE, issued, NOW)

    def test_what_was_refused_is_not_remembered(self, path: Path) -> None:
        seen = Nonces(path)
        with pytest.raises(SealError, match="future"):
            seen.accept(ONE, NOW + 2 * HOUR, NOW)
        assert not path.exists()

    @given(st.integers(0, 49 * HOUR), st.integers(-2 * HOUR, 26 * HOUR))
    def test_no_instruction_is_forgotten_while_it_could_be_played_back(self, later: int, age: int) -> None:
        seen = Nonces.__new__(Nonces)
        seen._path, seen._seen = Path("unused"), {ONE: (NOW - age, 3)}
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(nonces, "write_json", lambda path, value: None)
            try:
                seen.accept(TWO, NOW + later, NOW + later)
            finally:
                with pytest.raises(SealError, match=r"older|future|came before"):
                    seen.accept(ONE, NOW - age, NOW + later)


class TestMemory:
    def test_a_restart_forgets_nothing(self, path: Path) -> None:
        for _ in range(3):
            Nonces(path).accept(ONE, NOW, NOW)
        with pytest.raises(SealError, match="came before"):
            Nonces(path).accept(ONE, NOW, NOW)

    def test_it_does_not_grow_without_end(self, path: Path) -> None:
        seen = Nonces(path)
        seen.accept(ONE, NOW, NOW)
        seen.accept(TWO, NOW + 49 * HOUR, NOW + 49 * HOUR)
        assert list(json.loads(path.read_text())) == [TWO]

    @pytest.mark.parametrize(
        "content",
        [b"", b"{", b"[]", b"1", b'{"n": 1}', b'{"n": [1]}', b'{"n": [1, 2, 3]}', b'{"n": ["x", 1]}', b'{"n": null}',
         b'{"n": [Infinity, 1]}', b"\xff", b"[" * 100_000],
    )  # fmt: skip
    def test_a_damaged_file_is_an_error_and_not_an_empty_memory(self, path: Path, content: bytes) -> None:
        path.parent.mkdir()
        path.write_bytes(content)
        with pytest.raises(SealError, match="memory of instructions") as caught:
            Nonces(path)
        assert str(path) not in str(caught.value)

    def test_what_can_not_be_noted_is_not_worked_on_and_does_not_count(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen = Nonces(path)
        with monkeypatch.context() as full:
            full.setattr("eucaim_fl.durable.os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "full")))
            for _ in range(4):
                with pytest.raises(JournalError, match="disk is full"):
                    seen.accept(ONE, NOW, NOW)
        for _ in range(3):
            seen.accept(ONE, NOW, NOW)
