from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from eucaim_fl.cohorts.intake.folder import import_folder, looks_like_dicom, walk_files
from eucaim_fl.cohorts.intake.landing import open_landing
from eucaim_fl.cohorts.intake.query import CohortQuery
from eucaim_fl.cohorts.intake.report import ImportReport, Reason
from eucaim_fl.errors import ImportFailedError
from eucaim_fl.sitefile import SiteFile


def silent(done: int, total: int | None) -> None:
    pass


def bring(folder: Path) -> Callable[..., None]:
    return partial(import_folder, folder, tell=silent)


class TestImportFolder:
    def test_what_the_query_asks_for_comes_and_the_rest_is_counted(
        self,
        series: Callable[..., list[Path]],
        run: Callable[..., ImportReport],
        tmp_path: Path,
        landed: Callable[[], Any],
    ) -> None:
        files = [*series("P1"), *series("P2", modality="CT"), *series("P3", slices=1)]
        (tmp_path / "source" / "notes.csv").write_text("patient;doctor\n")
        (tmp_path / "source" / "P1" / "broken.dcm").write_bytes(files[0].read_bytes()[:200])
        report = run(bring(tmp_path / "source"), modalities=("MR",))
        assert (report.found, report.brought_in, report.patients, report.series) == (9, 4, 2, 2)
        assert report.refused == {Reason.BROKEN: 1}
        assert report.left == {Reason.NOT_ASKED_FOR: 3, Reason.NOT_DICOM: 1}
        assert sorted(landed().values()) == sorted(f.read_bytes() for f in (*files[:3], *files[6:]))

    def test_a_second_import_changes_nothing(
        self, series: Callable[..., list[Path]], run: Callable[..., ImportReport], tmp_path: Path, site: SiteFile
    ) -> None:
        series("P1")
        run(bring(tmp_path / "source"))
        before = {p: p.stat().st_mtime_ns for p in site.cohort_folder().rglob("*")}
        report = run(bring(tmp_path / "source"))
        assert (report.already_there, report.brought_in, report.new_rows) == (3, 0, 0)
        after = {p: p.stat().st_mtime_ns for p in site.cohort_folder().rglob("*")}
        assert before == after

    def test_the_same_image_twice_comes_once(
        self, series: Callable[..., list[Path]], run: Callable[..., ImportReport], tmp_path: Path
    ) -> None:
        (file,) = series("P1", slices=1)
        (file.parent / "copy.dcm").write_bytes(file.read_bytes())
        report = run(bring(tmp_path / "source"))
        assert (report.brought_in, report.already_there) == (1, 1)

    def test_a_dry_run_says_what_would_come_and_leaves_the_cohort_alone(
        self, series: Callable[..., list[Path]], run: Callable[..., ImportReport], tmp_path: Path, site: SiteFile
    ) -> None:
        files = series("P1")
        report = run(bring(tmp_path / "source"), dry_run=True)
        assert (report.brought_in, report.brought_in_bytes) == (3, sum(f.stat().st_size for f in files))
        assert list(site.cohort_folder().iterdir()) == []

    def test_a_link_that_leads_out_of_the_source_is_refused(
        self, series: Callable[..., list[Path]], run: Callable[..., ImportReport], tmp_path: Path
    ) -> None:
        outside = series("P9", folder="outside", slices=1)[0]
        inside = series("P1", slices=1)[0]
        (inside.parent / "link.dcm").symlink_to(outside)
        (inside.parent / "folder").symlink_to(outside.parent)
        report = run(bring(tmp_path / "source"))
        assert (report.brought_in, report.refused) == (1, {Reason.LINK: 2})

    def test_a_file_larger_than_an_instance_may_be_is_refused(
        self, series: Callable[..., list[Path]], site: SiteFile, tmp_path: Path
    ) -> None:
        series("P1", slices=1)
        with open_landing(site, CohortQuery()) as landing:
            landing.limit = 100
            import_folder(tmp_path / "source", landing, silent)
            assert landing.tally.report().refused == {Reason.TOO_LARGE: 1}

    def test_a_missing_folder_is_reported(self, site: SiteFile, tmp_path: Path) -> None:
        with (
            open_landing(site, CohortQuery()) as landing,
            pytest.raises(ImportFailedError, match="missing") as caught,
        ):
            import_folder(tmp_path / "absent", landing, silent)
        assert "absent" not in str(caught.value)

    @pytest.mark.parametrize("which", ["the cohort itself", "above it", "inside it"])
    def test_the_cohort_is_not_imported_into_itself(self, site: SiteFile, which: str) -> None:
        with open_landing(site, CohortQuery()) as landing:
            inside = landing.folder / "inside"
            inside.mkdir()
            source = {"the cohort itself": landing.folder, "above it": landing.folder.parent, "inside it": inside}[
                which
            ]
            with pytest.raises(ImportFailedError, match="lie in each other"):
                import_folder(source, landing, silent)


class TestWalkFiles:
    def test_links_in_circles_end(self, tmp_path: Path) -> None:
        (tmp_path / "a" / "b").mkdir(parents=True)
        (tmp_path / "a" / "b" / "up").symlink_to(tmp_path)
        (tmp_path / "a" / "file").write_text("x")
        (tmp_path / "a" / ".hidden").write_text("x")
        (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
        found = [(path.relative_to(tmp_path).as_posix(), ok) for path, ok in walk_files(tmp_path)]
        assert found == [("broken", False), ("a/file", True)]

    def test_pipes_and_sockets_are_no_files(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe")
        assert list(walk_files(tmp_path)) == []

    def test_folders_without_end_are_refused(self, tmp_path: Path) -> None:
        tmp_path.joinpath(*["d"] * 66).mkdir(parents=True)
        with pytest.raises(ImportFailedError, match="folder of the source"):
            list(walk_files(tmp_path))


class TestLooksLikeDicom:
    def test_with_and_without_preamble(self) -> None:
        assert looks_like_dicom(bytes(128) + b"DICM")
        assert looks_like_dicom(b"\x08\x00\x05\x00CS")
        assert not looks_like_dicom(b"patient;doctor")
        assert not looks_like_dicom(b"")
