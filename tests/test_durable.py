"""Files are whole or not there, and a run folder has one owner."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from eucaim_fl.durable import exclusive, flush_folder, local_key, write_atomically, write_json
from eucaim_fl.errors import JournalError, RunFolderBusyError

SMALL_DISK = """
import resource, sys
from pathlib import Path
from eucaim_fl.durable import write_atomically
from eucaim_fl.errors import JournalError

resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    write_atomically(Path(sys.argv[1]), [bytes(4096), bytes(4096)])
except JournalError as error:
    print(error)
"""
HOLDER = """
import sys
from pathlib import Path
from eucaim_fl.durable import exclusive

with exclusive(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class TestWriteAtomically:
    @pytest.mark.parametrize("survive", [True, False])
    def test_pieces_are_written_one_after_the_other(self, tmp_path: Path, survive: bool) -> None:
        path = tmp_path / "deep" / "er" / "file"
        write_atomically(path, [b"ab", memoryview(b"cd")], survive_power_loss=survive)
        assert path.read_bytes() == b"abcd"
        assert names(path.parent) == ["file"]

    def test_bytes_are_one_piece(self, tmp_path: Path) -> None:
        write_atomically(tmp_path / "file", b"abc")
        assert (tmp_path / "file").read_bytes() == b"abc"

    def test_a_crash_in_the_middle_leaves_the_old_file_only(self, tmp_path: Path) -> None:
        path = tmp_path / "file"
        path.write_bytes(b"old")
        seen: list[list[str]] = []

        def pieces() -> Iterator[bytes]:
            yield b"n" * 100_000
            seen.append(names(tmp_path))
            raise KeyboardInterrupt("stopped")

        with pytest.raises(KeyboardInterrupt, match="stopped"):
            write_atomically(path, pieces())
        assert len(seen[0]) == 2
        assert path.read_bytes() == b"old"
        assert names(tmp_path) == ["file"]

    def test_a_full_disk_is_named_and_nothing_is_left_behind(self, tmp_path: Path) -> None:
        path = tmp_path / "P007"
        path.write_bytes(b"old")
        done = subprocess.run([sys.executable, "-c", SMALL_DISK, path], capture_output=True, text=True, check=True)
        assert done.stdout.startswith("The disk is full; nothing half-written was left behind.")
        assert "P007" not in done.stdout
        assert path.read_bytes() == b"old"
        assert names(tmp_path) == ["P007"]

    def test_a_folder_that_is_a_file_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "P007").write_bytes(b"")
        with pytest.raises(JournalError, match=r"^A file of the run can't be written\.") as caught:
            write_atomically(tmp_path / "P007" / "file", b"abc")
        assert "P007" in caught.value.local_detail

    def test_a_name_that_is_a_folder_is_refused_and_nothing_is_left_behind(self, tmp_path: Path) -> None:
        (tmp_path / "here").mkdir()
        with pytest.raises(JournalError, match="can't be written"):
            write_atomically(tmp_path / "here", b"abc")
        assert names(tmp_path) == ["here"]


class TestFlushFolder:
    def test_a_folder_that_is_there_is_flushed(self, tmp_path: Path) -> None:
        flush_folder(tmp_path)

    def test_a_folder_that_is_not_there_is_the_systems_own_error(self, tmp_path: Path) -> None:
        with pytest.raises(OSError, match="No such file"):
            flush_folder(tmp_path / "none")


class TestWriteJson:
    def test_it_is_sorted_and_ends_with_a_line_break(self, tmp_path: Path) -> None:
        write_json(tmp_path / "a.json", {"b": 1, "a": [True, None]})
        text = (tmp_path / "a.json").read_text()
        assert json.loads(text) == {"a": [True, None], "b": 1}
        assert text.index('"a"') < text.index('"b"')
        assert text.endswith("}\n")

    def test_a_value_that_is_not_a_number_is_not_written(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="not JSON compliant"):
            write_json(tmp_path / "a.json", {"dice": float("nan")})
        assert names(tmp_path) == []


class TestExclusive:
    def test_a_folder_that_can_not_be_made_is_an_error(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(JournalError, match="can't be written"), exclusive(tmp_path / "file"):
            pass

    def test_another_process_is_refused_until_the_first_one_ends(self, tmp_path: Path) -> None:
        folder = tmp_path / "run"
        with subprocess.Popen(
            [sys.executable, "-c", HOLDER, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as holder:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            with (
                pytest.raises(RunFolderBusyError, match=r"^Another process works in this run folder\."),
                exclusive(folder),
            ):
                pass
            holder.kill()
            holder.wait()
            with exclusive(folder):
                pass

    def test_it_is_free_again_after_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(ZeroDivisionError, match="zero"), exclusive(tmp_path):
            1 / 0  # noqa: B018
        with exclusive(tmp_path):
            pass

    def test_two_folders_do_not_meet(self, tmp_path: Path) -> None:
        with exclusive(tmp_path / "a"), exclusive(tmp_path / "b"):
            assert names(tmp_path / "a") == [".lock"]


class TestALocalKey:
    def test_it_stays_the_same_and_only_its_owner_may_read_it(self, tmp_path: Path) -> None:
        path = tmp_path / "folder" / "key"
        key = local_key(path)
        assert len(key) == 32
        assert local_key(path) == key
        assert path.stat().st_mode & 0o077 == 0
        assert [p.name for p in path.parent.iterdir()] == ["key"]

    def test_two_keys_differ(self, tmp_path: Path) -> None:
        assert local_key(tmp_path / "a") != local_key(tmp_path / "b")

    def test_a_damaged_one_is_an_error_and_no_new_key(self, tmp_path: Path) -> None:
        (tmp_path / "key").write_bytes(b"short")
        with pytest.raises(JournalError, match="A key of this site can't be read"):
            local_key(tmp_path / "key")
        assert (tmp_path / "key").read_bytes() == b"short"
