"""A site's audit log can only grow: what the coordinator once heard of it can't be taken back."""

from __future__ import annotations

import contextlib
import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eucaim_fl.errors import JournalError, SealError
from eucaim_fl.federation.heads import Heads, read_heads

ONE, TWO, THREE = "1" * 64, "2" * 64, "3" * 64


def counts(folder: Path, site: str = "a") -> list[object]:
    return [head["count"] for head in read_heads(folder, site)]


class TestAccepting:
    def test_a_growing_log_is_accepted_and_every_head_kept(self, tmp_path: Path) -> None:
        heads = Heads(tmp_path / "heads")
        for count, digest in ((0, ONE), (2, TWO), (2, TWO), (9, THREE)):
            heads.accept("a", count, digest)
        assert counts(tmp_path / "heads") == [0, 2, 9]
        assert read_heads(tmp_path / "heads", "a")[-1]["hash"] == THREE

    @pytest.mark.parametrize("restarted", [False, True])
    @pytest.mark.parametrize(("count", "digest"), [(4, TWO), (4, ONE), (0, ONE), (5, TWO)])
    def test_a_log_that_was_cut_off_or_rewritten_is_refused(
        self, tmp_path: Path, restarted: bool, count: int, digest: str
    ) -> None:
        heads = Heads(tmp_path)
        heads.accept("a", 5, ONE)
        heads = Heads(tmp_path) if restarted else heads
        with pytest.raises(SealError, match="gone or replaced"):
            heads.accept("a", count, digest)
        assert counts(tmp_path) == [5]
        heads.accept("a", 6, TWO)

    def test_the_last_one_is_known_over_restarts(self, tmp_path: Path) -> None:
        heads = Heads(tmp_path)
        assert heads.last("a") == (0, "")
        heads.accept("a", 5, ONE)
        assert heads.last("a") == Heads(tmp_path).last("a") == (5, ONE)
        with contextlib.suppress(SealError):
            heads.accept("a", 4, TWO)
        heads.accept("a", 6, TWO)
        assert heads.last("a") == Heads(tmp_path).last("a") == (6, TWO)

    def test_each_site_has_its_own(self, tmp_path: Path) -> None:
        heads = Heads(tmp_path)
        heads.accept("a", 5, ONE)
        heads.accept("b", 1, TWO)
        assert counts(tmp_path, "b") == [1]

    @pytest.mark.parametrize("site", ["", "../a", "a/b", "A", "a\n", "a" * 64])
    def test_a_name_that_no_site_has_is_refused(self, tmp_path: Path, site: str) -> None:
        with pytest.raises(SealError, match="proper name"):
            Heads(tmp_path).accept(site, 1, ONE)
        with pytest.raises(SealError, match="proper name"):
            Heads(tmp_path).last(site)
        assert not list(tmp_path.iterdir())

    def test_what_can_not_be_written_down_is_not_accepted(self, tmp_path: Path) -> None:
        (tmp_path / "heads").write_text("a file where the folder should be")
        with pytest.raises(JournalError, match="can't be") as caught:
            Heads(tmp_path / "heads").accept("a", 1, ONE)
        assert str(tmp_path) not in str(caught.value)
        with pytest.raises(JournalError, match="can't be read"):
            read_heads(tmp_path / "heads", "a")
        with pytest.raises(JournalError, match="can't be read"):
            Heads(tmp_path / "heads").last("a")

    def test_a_full_disk_leaves_the_head_as_it_was(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        heads = Heads(tmp_path)
        heads.accept("a", 1, ONE)
        with monkeypatch.context() as full:
            full.setattr("eucaim_fl.federation.heads.os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "full")))
            with pytest.raises(JournalError, match="can't be written"):
                heads.accept("a", 2, TWO)
        heads.accept("a", 2, TWO)

    @settings(max_examples=30)
    @given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from([ONE, TWO])), max_size=8))
    def test_what_was_accepted_only_grows(self, offered: list[tuple[int, str]]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            last: tuple[int, str] | None = None
            for head in offered:
                sound = last is None or head[0] > last[0] or head == last
                with contextlib.nullcontext() if sound else pytest.raises(SealError, match="gone"):
                    Heads(Path(folder)).accept("a", *head)
                last = head if sound else last
            kept = [head["count"] for head in read_heads(Path(folder), "a")]
            assert kept == sorted(set(kept))


class TestReading:
    def test_an_unknown_site_has_none(self, tmp_path: Path) -> None:
        assert read_heads(tmp_path, "a") == []

    def test_a_line_that_a_crash_tore_swallows_no_other(self, tmp_path: Path) -> None:
        Heads(tmp_path).accept("a", 5, ONE)
        with (tmp_path / "a.jsonl").open("ab") as file:
            file.write(b'{"count": 6, "ha')
        assert counts(tmp_path) == [5]
        Heads(tmp_path).accept("a", 7, TWO)
        assert counts(tmp_path) == [5, 7]
        with pytest.raises(SealError, match="gone or replaced"):
            Heads(tmp_path).accept("a", 6, ONE)

    @pytest.mark.parametrize("line", ["[]", "1", '{"count": "5", "hash": "x"}', '{"count": 5}', "[" * 100_000, ""])
    def test_lines_that_are_none_are_skipped(self, tmp_path: Path, line: str) -> None:
        good = json.dumps({"count": 3, "hash": ONE})
        (tmp_path / "a.jsonl").write_text(f"{line}\n{good}\n{line}\n")
        assert counts(tmp_path) == [3]

    def test_the_highest_head_counts_whatever_the_order_of_lines(self, tmp_path: Path) -> None:
        lines = [json.dumps({"count": count, "hash": ONE}) for count in (8, 9, 4)]
        (tmp_path / "a.jsonl").write_text("\n".join(lines) + "\n")
        with pytest.raises(SealError, match="gone or replaced"):
            Heads(tmp_path).accept("a", 8, ONE)

    def test_a_file_that_is_no_text_is_an_error(self, tmp_path: Path) -> None:
        (tmp_path / "a.jsonl").write_bytes(b"\xff\xfe")
        with pytest.raises(JournalError, match="can't be read"):
            read_heads(tmp_path, "a")
