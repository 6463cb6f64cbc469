from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from eucaim_fl.cohorts.index.listing import Listed, list_files, outermost
from eucaim_fl.errors import CohortError


@pytest.fixture
def home(tmp_path: Path) -> Path:
    for name in ("P1/S1/1.dcm", "P1/S1/2.dcm", "P1-a/1.dcm", "P2/1.nii.gz", "clinical.csv"):
        path = tmp_path / "cohort" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * len(name))
    return tmp_path / "cohort"


def found(folder: Path, *scope: str, links: tuple[Path, ...] = (), skip: tuple[Path, ...] = ()) -> dict[str, Listed]:
    listed = list(list_files(folder, scope or None, links=links, skip=skip))
    assert len({one.path for one in listed}) == len(listed)
    return {one.path: one for one in listed}


class TestListFiles:
    def test_every_file_has_its_signature(self, home: Path) -> None:
        listed = found(home)
        assert set(listed) == {"P1/S1/1.dcm", "P1/S1/2.dcm", "P1-a/1.dcm", "P2/1.nii.gz", "clinical.csv"}
        status, one = (home / "P2/1.nii.gz").stat(), listed["P2/1.nii.gz"]
        assert one == Listed("P2/1.nii.gz", 11, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)

    def test_folders_may_be_chosen(self, home: Path) -> None:
        assert set(found(home, "P1")) == {"P1/S1/1.dcm", "P1/S1/2.dcm"}
        assert set(found(home, "P1/S1", "P2/", "P1", "missing", "P1/S1/1.dcm/x")) == {
            "P1/S1/1.dcm",
            "P1/S1/2.dcm",
            "P2/1.nii.gz",
        }
        assert set(found(home, "clinical.csv")) == {"clinical.csv"}

    @pytest.mark.parametrize("name", ["../elsewhere", "/etc", "P1/../../x", "P1\0"])
    def test_a_folder_out_of_the_cohort_is_an_error(self, home: Path, name: str) -> None:
        with pytest.raises(CohortError, match="leads out"):
            list(list_files(home, [name]))

    def test_a_missing_cohort_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(CohortError, match="missing"):
            list(list_files(tmp_path / "nowhere"))

    def test_folders_with_a_dot_and_the_cache_are_left_out(self, home: Path) -> None:
        for name in (".git/x.dcm", "cache/index/files.parquet", "P1/.hidden.dcm"):
            (home / name).parent.mkdir(parents=True, exist_ok=True)
            (home / name).write_bytes(b"x")
        listed = set(found(home, skip=(home / "cache", home / "missing")))
        assert listed == {"P1/S1/1.dcm", "P1/S1/2.dcm", "P1-a/1.dcm", "P2/1.nii.gz", "clinical.csv", "P1/.hidden.dcm"}


class TestLinks:
    def test_one_that_leads_elsewhere_is_refused_and_not_followed(self, home: Path, tmp_path: Path) -> None:
        (tmp_path / "secret").mkdir()
        (tmp_path / "secret/x.dcm").write_bytes(b"x")
        (home / "astray").symlink_to(tmp_path / "secret")
        (home / "file.dcm").symlink_to(tmp_path / "secret/x.dcm")
        (home / "inside.dcm").symlink_to(home / "P1/S1/1.dcm")
        listed = found(home)
        assert {one.path for one in listed.values() if one.code} == {"astray", "file.dcm", "inside.dcm"}
        assert {one.reason for one in listed.values() if one.code} == {
            "A link leads to a place that the site file does not allow."
        }

    def test_one_into_an_allowed_folder_is_followed(self, home: Path, tmp_path: Path) -> None:
        (tmp_path / "lake/study").mkdir(parents=True)
        (tmp_path / "lake/study/x.dcm").write_bytes(b"xyz")
        (home / "P3").mkdir()
        (home / "P3/study").symlink_to(tmp_path / "lake/study")
        (home / "P3/y.dcm").symlink_to(tmp_path / "lake/study/x.dcm")
        for listed in (found(home, links=(tmp_path / "lake",)), found(home, "P3", links=(tmp_path / "lake",))):
            assert (listed["P3/study/x.dcm"].size, listed["P3/study/x.dcm"].code) == (3, "")
            assert listed["P3/y.dcm"].inode == listed["P3/study/x.dcm"].inode
        assert set(found(home, "P3/study", links=(tmp_path / "lake",))) == {"P3/study/x.dcm"}
        assert found(home, "P3/study")["P3/study/"].code == "EFL204"

    def test_loops_end(self, home: Path, tmp_path: Path) -> None:
        lake = tmp_path / "lake"
        lake.mkdir()
        (lake / "a").symlink_to(lake)
        (lake / "b").symlink_to(home)
        (lake / "itself").symlink_to(lake / "itself")
        (home / "lake").symlink_to(lake)
        listed = found(home, links=(lake, home))
        assert listed["lake/a"].reason.startswith("A link leads back")
        assert listed["lake/b"].reason.startswith("A link leads back")
        assert listed["lake/itself"].reason == "A link leads nowhere."

    def test_links_that_cross_make_no_endless_paths(self, home: Path, tmp_path: Path) -> None:
        lake = tmp_path / "lake"
        for name in "abcdefgh":
            (lake / name).mkdir(parents=True)
            for other in "abcdefgh":
                (lake / name / other).symlink_to(lake / other)
        (home / "lake").symlink_to(lake)
        assert len(found(home, links=(lake,))) < 10_000


class TestWhatIsNoFile:
    def test_pipes_and_sockets_are_never_opened(self, home: Path) -> None:
        os.mkfifo(home / "P1/pipe.dcm")
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(str(home / "P1/s"))
        listed = found(home)
        assert listed["P1/pipe.dcm"].code == listed["P1/s"].code == "EFL204"
        assert "device" in listed["P1/s"].reason

    def test_a_folder_that_may_not_be_read_is_a_row(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        scandir = os.scandir

        def closed(path: str) -> object:
            if str(path).endswith("S1"):
                raise PermissionError(13, "no")
            return scandir(path)

        monkeypatch.setattr(os, "scandir", closed)
        assert found(home)["P1/S1/"].reason == "A folder or file may not be read."

    def test_names_may_hold_anything(self, home: Path) -> None:
        names = [b"new\nline.dcm", b"caf\xe9.dcm", b"\x1b[31m.dcm", "日本.dcm".encode()]
        for name in names:
            Path(os.fsdecode(os.fsencode(home) + b"/" + name)).write_bytes(b"x")
        assert {os.fsencode(path) for path in found(home)} >= set(names)

    def test_a_folder_too_deep_is_a_row(self, home: Path) -> None:
        (home / "/".join(["d"] * 70)).mkdir(parents=True)
        assert [one.reason for one in found(home).values() if one.code] == ["A folder lies deeper than 64 others."]


class TestOutermost:
    def test_folders_inside_others_are_left_out(self) -> None:
        assert outermost(["a/b", "a", "ab", "a/", "c/./d"]) == ["a", "ab", "c/d"]
        assert outermost(["a", "."]) == [""]

    def test_one_that_leads_upwards_is_an_error(self) -> None:
        with pytest.raises(CohortError, match="leads out"):
            outermost(["a/../.."])
