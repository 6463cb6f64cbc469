from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from eucaim_fl.cohorts.intake.journal import SeriesRow
from eucaim_fl.cohorts.intake.tables import update_tables
from eucaim_fl.errors import ImportFailedError, JournalError

ROWS = [
    SeriesRow("P1", "1.2", "1.2.1", "MR", "PROSTATE", "SIEMENS Healthineers", "M"),
    SeriesRow("P1", "1.2", "1.2.2", "CT", "=CMD()", "ACME", ""),
    SeriesRow("P1", "1.2", "1.2.3", "SEG"),
]
CLINICAL, IMAGING = "clinical_mandatory_view.csv", "imaging_mandatory_view.csv"


class TestUpdateTables:
    def test_a_site_without_views_gets_both(self, tmp_path: Path) -> None:
        assert update_tables(tmp_path, "eucaim_tier3", ROWS, "ds") == 3
        assert (tmp_path / IMAGING).read_text().splitlines()[1:] == [
            "ds,P1,IMG1000022,1.2,1.2.1,Siemens,BP1000021",
            "ds,P1,IMG1000026,1.2,1.2.2,,",
        ]
        header, row = (tmp_path / CLINICAL).read_text().splitlines()
        assert header.startswith("dataset_id,patient_id,patient_birth_sex")
        assert row == "ds,P1,COM1001366" + "," * 13

    def test_a_second_time_nothing_is_added(self, tmp_path: Path) -> None:
        update_tables(tmp_path, "eucaim_tier3", ROWS, "ds")
        before = (tmp_path / IMAGING).stat().st_mtime_ns
        assert update_tables(tmp_path, "eucaim_tier3", ROWS, "ds") == 0
        assert (tmp_path / IMAGING).stat().st_mtime_ns == before

    @pytest.mark.parametrize("end", ["\n", "\r\n"])
    def test_what_is_there_stays_byte_for_byte(self, tmp_path: Path, end: str) -> None:
        old = (
            "\ufeffpatient_id;own column;study_instance_uid;series_instance_uid;dataset_id;series_body_side_code"
            f'{end}"P0";"a;b ""c""";1.1;1.1.1;mine;X{end}P1; M\udcfcller ;1.2;1.2.1;mine;Y'
        ).encode("utf-8", "surrogateescape")
        (tmp_path / IMAGING).write_bytes(old)
        update_tables(tmp_path, "eucaim_tier3", ROWS, "ds")
        new = (tmp_path / IMAGING).read_bytes()
        assert new == old + f"{end}P1;;1.2;1.2.2;mine;{end}".encode()

    def test_views_above_the_folder_are_the_ones_that_count(self, tmp_path: Path) -> None:
        folder = tmp_path / "dataset"
        folder.mkdir()
        (tmp_path / CLINICAL).write_text("patient_id\nP1\n")
        update_tables(folder, "eucaim_tier3", ROWS, "ds")
        assert (tmp_path / CLINICAL).read_text() == "patient_id\nP1\n"
        assert not (folder / CLINICAL).exists()
        assert (folder / IMAGING).exists()

    def test_a_free_arrangement_gets_a_row_a_patient(self, tmp_path: Path) -> None:
        assert update_tables(tmp_path, "folder_csv", ROWS, "ds") == 1
        assert (tmp_path / "clinical.csv").read_text() == "patient_id,folder\nP1,imaging_data/P1\n"
        (tmp_path / "clinical.csv").write_text("patient_id,psa\nP1,3\n")
        assert update_tables(tmp_path, "folder_csv", ROWS, "ds") == 0

    @pytest.mark.parametrize("content", [b"", b"patient,study_uid,series_uid\n", b'patient_id,study_uid,series_uid\n"'])
    def test_a_table_that_cant_be_read_stays_as_it_is(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / IMAGING).write_bytes(content)
        with pytest.raises(ImportFailedError, match="table of the cohort"):
            update_tables(tmp_path, "eucaim_tier3", ROWS, "ds")
        assert (tmp_path / IMAGING).read_bytes() == content

    def test_a_table_that_cant_be_written_is_reported(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(*_: object, **__: object) -> Callable[..., None]:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("tempfile.mkstemp", full)
        with pytest.raises(JournalError, match="disk is full"):
            update_tables(tmp_path, "eucaim_tier3", ROWS, "ds")
