"""What a table names may be anything: a pipe is not waited for, a device not read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from eucaim_fl.cohorts.bounded import read_bounded


class TestReadBounded:
    def test_a_file_and_what_a_link_leads_to_are_read_whole(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_bytes(b"12345")
        (tmp_path / "b").symlink_to(tmp_path / "a")
        assert read_bounded(tmp_path / "a", 5) == read_bounded(tmp_path / "b", 5) == b"12345"

    def test_one_byte_too_many_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_bytes(b"12345")
        with pytest.raises(ValueError, match="too large"):
            read_bounded(tmp_path / "a", 4)

    @pytest.mark.parametrize("kind", ["pipe", "device", "folder", "nothing"])
    def test_what_is_no_regular_file_is_refused_at_once(self, tmp_path: Path, kind: str) -> None:
        path = {"device": Path("/dev/zero"), "folder": tmp_path}.get(kind, tmp_path / "a")
        if kind == "pipe":
            os.mkfifo(path)
        with pytest.raises(OSError, match=r"no regular file|Is a directory|No such file"):
            read_bounded(path, 10**9)

    def test_a_name_that_no_file_has_is_refused(self) -> None:
        with pytest.raises(ValueError, match="null"):
            read_bounded(Path("a\0b"), 1)
