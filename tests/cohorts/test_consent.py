"""The consent table decides who may be used; what can't be understood allows nobody."""

from __future__ import annotations

import datetime
import os
from pathlib import Path

import pytest

from eucaim_fl.cohorts.consent import Consent, consent_from, read_consent
from eucaim_fl.errors import ConsentError
from eucaim_fl.sitefile import SiteFile

TODAY = datetime.date(2026, 6, 1)


def row(patient: str, status: str, date: str, purposes: str = "research") -> dict[str, str]:
    return {"patient_id": patient, "status": status, "date": date, "purposes": purposes}


def site_with(folder: Path, text: str | bytes | None, purposes: tuple[str, ...] = ()) -> SiteFile:
    """A site whose consent table holds `text`; None names none."""
    (folder / "cohort").mkdir(exist_ok=True)
    if text is not None:
        (folder / "cohort" / "consent.csv").write_bytes(text.encode() if isinstance(text, str) else text)
    return SiteFile.model_validate(
        {
            "name": "a",
            "cohort": {"layout": "nifti_csv", "folder": folder / "cohort"},
            "consent": {"table": None if text is None else "consent.csv", "purposes": purposes},
        }
    )


HEAD = "patient_id,status,date,purposes\n"


class TestWhatRowsMean:
    def test_a_patient_whose_last_word_is_yes_may_be_used(self) -> None:
        rows = [row("P1", "withdrawn", "2024-01-01"), row("P1", "given", "2025-01-01")]
        assert consent_from(rows, [], TODAY).allows("P1")

    def test_a_withdrawal_on_the_day_of_the_consent_wins(self) -> None:
        rows = [row("P1", "withdrawn", "2025-01-01"), row("P1", "given", "2025-01-01")]
        consent = consent_from(rows, [], TODAY)
        assert not consent.allows("P1")
        assert consent.withdrawn == {"P1": "2025-01-01"}

    def test_a_patient_who_is_not_in_the_table_may_not_be_used(self) -> None:
        consent = consent_from([row("P1", "given", "2025-01-01")], [], TODAY)
        assert [(q.patient, q.code, q.reason) for q in consent.refused(["P2", "P1"])] == [
            ("P2", "EFL206", "There is no consent of the patient for this site's purposes.")
        ]

    @pytest.mark.parametrize(("agreed", "allowed"), [("Research; teaching", True), ("teaching", False), ("", False)])
    def test_one_of_the_purposes_must_have_been_consented_to(self, agreed: str, allowed: bool) -> None:
        consent = consent_from([row("P1", "given", "2025-01-01", agreed)], ["research", "quality"], TODAY)
        assert consent.allows("P1") is allowed

    def test_a_consent_of_tomorrow_does_not_count_and_a_withdrawal_of_tomorrow_does(self) -> None:
        rows = [
            row("P1", "given", "2026-06-02"),
            row("P2", "given", "2020-01-01"),
            row("P2", "withdrawn", "2026-06-02"),
        ]
        consent = consent_from(rows, [], TODAY)
        assert not consent.allows("P1")
        assert not consent.allows("P2")

    @pytest.mark.parametrize(
        "bad",
        [row("", "given", "2025-01-01"), row("P2", "maybe", "2025-01-01"), row("P2", "given", "01.02.2025"), {}],
    )
    def test_a_row_that_can_not_be_understood_refuses_the_table(self, bad: dict[str, str]) -> None:
        with pytest.raises(ConsentError, match="A row of the consent table lacks") as caught:
            consent_from([row("P1", "given", "2025-01-01"), bad], [], TODAY)
        assert caught.value.local_detail == "line 3"
        assert "P2" not in str(caught.value)


class TestReading:
    def test_without_a_table_everybody_may_be_used(self, tmp_path: Path) -> None:
        consent = read_consent(site_with(tmp_path, None))
        assert consent == Consent(False)
        assert consent.allows("anybody")

    def test_a_withdrawal_is_seen_at_the_next_reading(self, tmp_path: Path) -> None:
        site = site_with(tmp_path, HEAD + "P1,given,2024-01-01,research\n")
        assert read_consent(site).allows("P1")
        table = tmp_path / "cohort" / "consent.csv"
        before = table.stat()
        table.write_text(HEAD + "P1,withdrawn,2024-01-1,research\n".replace("1-1", "1-01"))
        os.utime(table, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert not read_consent(site).allows("P1")

    def test_a_spreadsheet_s_mark_and_empty_purposes_are_read(self, tmp_path: Path) -> None:
        consent = read_consent(site_with(tmp_path, "\ufeff" + HEAD + "P1,Given,2024-01-01,\n"))
        assert consent.allows("P1")

    @pytest.mark.parametrize(
        "content", ["patient_id,status\nP1,given\n", HEAD + '"P1,given,2024-01-01,x\n', b"\xff\xfe", ""]
    )
    def test_a_table_that_is_none_allows_nobody(self, tmp_path: Path, content: str | bytes) -> None:
        site = site_with(tmp_path, content)
        with pytest.raises(ConsentError, match="missing or can't be read") as caught:
            read_consent(site)
        assert str(tmp_path) not in str(caught.value)

    def test_a_missing_table_allows_nobody(self, tmp_path: Path) -> None:
        site = site_with(tmp_path, HEAD)
        (tmp_path / "cohort" / "consent.csv").unlink()
        with pytest.raises(ConsentError, match="until then no patient is used"):
            read_consent(site)

    def test_a_bad_row_is_found_by_its_line_in_the_local_log_only(self, tmp_path: Path) -> None:
        site = site_with(tmp_path, HEAD + "P1,given,2024-01-01,x\nP2,perhaps,2024-01-01,x\n")
        with pytest.raises(ConsentError, match="Mend the row") as caught:
            read_consent(site)
        assert caught.value.local_detail.endswith("consent.csv: line 3")


class TestOddTables:
    @pytest.mark.parametrize("kind", ["pipe", "device"])
    def test_a_table_that_is_no_file_is_not_waited_for(self, tmp_path: Path, kind: str) -> None:
        site = site_with(tmp_path, HEAD)
        path = tmp_path / "cohort" / "consent.csv"
        path.unlink()
        if kind == "pipe":
            os.mkfifo(path)
        else:
            path.symlink_to("/dev/zero")
        with pytest.raises(ConsentError, match="missing or can't be read"):
            read_consent(site)
