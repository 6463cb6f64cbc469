from pathlib import Path

import pytest

from eucaim_fl.cohorts.staging import NOTICE, staged
from eucaim_fl.durable import exclusive
from eucaim_fl.errors import CohortError, RunFolderBusyError


def write(parent: Path, text: str, names: tuple[str, ...] = ("x", "y")) -> None:
    with staged(parent, names, "Made up.") as new:
        for name in names:
            (new / name).mkdir()
            (new / name / "data").write_text(text)


class TestStaged:
    def test_all_folders_appear_with_a_notice_and_nothing_else_stays(self, tmp_path: Path):
        write(tmp_path, "1")
        assert sorted(p.name for p in tmp_path.iterdir()) == ["x", "y"]
        assert (tmp_path / "x" / NOTICE).read_text() == "Written by eucaim_fl. Made up.\n"

    def test_what_it_wrote_before_is_replaced(self, tmp_path: Path):
        write(tmp_path, "1")
        write(tmp_path, "2")
        assert (tmp_path / "y" / "data").read_text() == "2"

    def test_a_failure_leaves_the_earlier_folders_as_they_were(self, tmp_path: Path):
        write(tmp_path, "1")

        def fail() -> None:
            with staged(tmp_path, ("x", "y"), "") as new:
                (new / "x").mkdir()
                raise ZeroDivisionError("half-way")

        with pytest.raises(ZeroDivisionError, match="half-way"):
            fail()
        assert (tmp_path / "x" / "data").read_text() == "1"
        assert sorted(p.name for p in tmp_path.iterdir()) == ["x", "y"]

    def test_remains_of_a_killed_writer_are_cleared(self, tmp_path: Path):
        (tmp_path / ".x.part" / "new" / "x").mkdir(parents=True)
        (tmp_path / ".x.part" / "new" / "x" / "half").write_text("")
        write(tmp_path, "1")
        assert sorted(p.name for p in (tmp_path / "x").iterdir()) == [NOTICE, "data"]

    def test_empty_folders_are_in_nobodys_way(self, tmp_path: Path):
        (tmp_path / "x" / "a").mkdir(parents=True)
        write(tmp_path, "1")
        assert not (tmp_path / "x" / "a").exists()

    def test_files_of_somebody_else_are_never_replaced(self, tmp_path: Path):
        (tmp_path / "y").mkdir()
        (tmp_path / "y" / "real.dcm").write_text("real")
        with pytest.raises(CohortError, match="holds other files"):
            staged(tmp_path, ("x", "y"), "").__enter__()
        assert (tmp_path / "y" / "real.dcm").read_text() == "real"
        assert not (tmp_path / "x").exists()

    def test_a_disk_that_refuses_is_a_clear_error_without_a_path(self, tmp_path: Path):
        with pytest.raises(CohortError, match="can't be written") as caught, staged(tmp_path, ("x",), ""):
            raise OSError(28, "No space left on device", str(tmp_path))
        assert str(tmp_path) not in str(caught.value)
        assert str(tmp_path) in caught.value.local_detail

    def test_two_writers_at_once_are_refused(self, tmp_path: Path):
        with exclusive(tmp_path / ".x.part"), pytest.raises(RunFolderBusyError, match="Another process"):
            staged(tmp_path, ("x",), "").__enter__()
