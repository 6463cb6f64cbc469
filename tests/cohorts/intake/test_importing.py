from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pydicom
import pytest

from eucaim_fl.cohorts.intake.folder import import_folder
from eucaim_fl.cohorts.intake.importing import run_import
from eucaim_fl.cohorts.intake.landing import Landing
from eucaim_fl.cohorts.intake.query import CohortQuery
from eucaim_fl.cohorts.intake.report import ImportReport
from eucaim_fl.errors import ImportFailedError, InterruptedRunError, JournalError
from eucaim_fl.sitefile import SiteFile

pytestmark = pytest.mark.integration


def bring(folder: Path) -> Callable[..., None]:
    return partial(import_folder, folder, tell=lambda done, total: None)


class TestRunImport:
    def test_the_tables_get_rows_for_what_came(
        self, series: Callable[..., list[Path]], run: Callable[..., ImportReport], tmp_path: Path, site: SiteFile
    ) -> None:
        for patient in ("P1", "P2"):
            series(patient, slices=1)
        assert run(bring(tmp_path / "source")).new_rows == 4
        rows = (site.cohort_folder() / "clinical_mandatory_view.csv").read_text().splitlines()
        assert [row.split(",")[1] for row in rows] == ["patient_id", "P1", "P2"]

    def test_a_row_that_the_hospital_took_out_is_not_put_in_again(
        self, series: Callable[..., list[Path]], run: Callable[..., ImportReport], tmp_path: Path, site: SiteFile
    ) -> None:
        for patient in ("P1", "P2"):
            series(patient, slices=1)
        run(bring(tmp_path / "source"))
        view = site.cohort_folder() / "clinical_mandatory_view.csv"
        view.write_text("".join(view.read_text().splitlines(keepends=True)[:2]))
        assert run(bring(tmp_path / "source")).new_rows == 0
        assert "P2" not in view.read_text()

    def test_a_cohort_in_a_free_arrangement_gets_its_table(
        self,
        *,
        series: Callable[..., list[Path]],
        run: Callable[..., ImportReport],
        tmp_path: Path,
        tiny: SimpleNamespace,
    ) -> None:
        site = tiny.site(tmp_path, "folder_csv")
        series("P1", slices=1)
        assert run(bring(tmp_path / "source"), into=site).new_rows == 1
        assert (site.cohort_folder() / "clinical.csv").read_text() == "patient_id,folder\nP1,imaging_data/P1\n"

    def test_what_ends_it_early_is_reported_and_what_came_stays(
        self, series: Callable[..., list[Path]], run: Callable[..., ImportReport], tmp_path: Path
    ) -> None:
        series("P1", slices=1)

        def cut(landing: Landing) -> None:
            bring(tmp_path / "source")(landing)
            raise ImportFailedError("The cable was pulled.")

        report = run(cut)
        assert (report.brought_in, report.new_rows) == (1, 2)
        assert str(report.problem) == "The cable was pulled."

    def test_ctrl_c_ends_it_with_a_report(self, run: Callable[..., ImportReport]) -> None:
        def stopped(landing: Landing) -> None:
            raise KeyboardInterrupt

        assert isinstance(run(stopped).problem, InterruptedRunError)

    def test_a_layout_that_takes_no_images_is_refused(self, tiny: SimpleNamespace, tmp_path: Path) -> None:
        with pytest.raises(ImportFailedError, match="layout bids"):
            run_import(tiny.site(tmp_path, "bids"), CohortQuery(), lambda landing: None)

    def test_records_that_cant_be_written_are_reported(self, site: SiteFile) -> None:
        site.records_folder().write_text("a file")
        with pytest.raises(JournalError, match="key"):
            run_import(site, CohortQuery(), lambda landing: None)

    @pytest.mark.federated
    def test_a_killed_import_goes_on_where_it_ended(
        self,
        *,
        series: Callable[..., list[Path]],
        run: Callable[..., ImportReport],
        tmp_path: Path,
        site: SiteFile,
        landed: Callable[[], dict[str, bytes]],
    ) -> None:
        files = series("P1", slices=6)
        code = f"""
import os, signal, sys
from pathlib import Path
from eucaim_fl.cohorts.intake.folder import import_folder
from eucaim_fl.cohorts.intake.importing import run_import
from eucaim_fl.cohorts.intake.query import CohortQuery
from eucaim_fl.sitefile import SiteFile

def tell(done, total):
    if done == 3:
        os.kill(os.getpid(), signal.SIGKILL)

site = SiteFile.model_validate_json(sys.stdin.read())
run_import(site, CohortQuery(), lambda landing: import_folder(Path({str(tmp_path / "source")!r}), landing, tell))
"""
        killed = subprocess.run(
            [sys.executable, "-c", code], input=site.model_dump_json(), text=True, capture_output=True, check=False
        )
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert len(landed()) == 3
        (site.cohort_folder() / ".eucaim_fl_incoming").mkdir(exist_ok=True)
        report = run(bring(tmp_path / "source"))
        assert (report.found, report.already_there, report.brought_in, report.new_rows) == (6, 3, 3, 2)
        assert sorted(landed().values()) == sorted(f.read_bytes() for f in files)
        assert not (site.cohort_folder() / ".eucaim_fl_incoming").exists()


class TestDeidentify:
    def test_what_lands_is_clean_and_comes_once(
        self,
        *,
        series: Callable[..., list[Path]],
        run: Callable[..., ImportReport],
        tmp_path: Path,
        landed: Callable[[], dict[str, bytes]],
        site: SiteFile,
    ) -> None:
        pytest.importorskip("eucaim_fl.cohorts.deidentification.clean")
        files = series("PID-4711-0815-QX", slices=2, PatientName="Doe^Jane", PatientBirthDate="19500607")
        report = run(bring(tmp_path / "source"), deidentify=True)
        assert (report.brought_in, report.refused, report.problem) == (2, {}, None)
        for place, raw in landed().items():
            assert place.startswith("imaging_data/EUCAIM-")
            assert b"Doe" not in raw
            assert b"4711-0815-QX" not in raw
            header = pydicom.dcmread(site.cohort_folder() / place)
            assert header.SOPInstanceUID != pydicom.dcmread(files[0]).SOPInstanceUID
        again = run(bring(tmp_path / "source"), deidentify=True)
        assert (again.brought_in, again.already_there, again.new_rows) == (0, 2, 0)

    def test_the_secret_is_kept_so_that_later_imports_fit(
        self,
        *,
        series: Callable[..., list[Path]],
        run: Callable[..., ImportReport],
        tmp_path: Path,
        landed: Callable[[], dict[str, bytes]],
        site: SiteFile,
    ) -> None:
        series("PID-4711-0815-QX", 1, slices=1)
        run(bring(tmp_path / "source"), deidentify=True)
        series("PID-4711-0815-QX", 2, slices=1)
        run(bring(tmp_path / "source"), deidentify=True)
        assert len(landed()) == 2
        assert len({place.split("/")[1] for place in landed()}) == 1
        assert (site.records_folder() / "pseudonyms.key").stat().st_mode & 0o777 == 0o600

    def test_a_file_that_cant_be_cleaned_is_refused_with_the_reason(
        self,
        *,
        series: Callable[..., list[Path]],
        run: Callable[..., ImportReport],
        tmp_path: Path,
        landed: Callable[[], dict[str, bytes]],
        site: SiteFile,
    ) -> None:
        series("P1", 1, slices=1, BurnedInAnnotation="YES")
        series("P1", 2, slices=1)
        report = run(bring(tmp_path / "source"), deidentify=True)
        assert report.brought_in == 1
        ((reason, count),) = report.refused.items()
        assert "could not be de-identified: " in reason
        assert "burned" in reason
        assert count == 1
        assert len(landed()) == 1
