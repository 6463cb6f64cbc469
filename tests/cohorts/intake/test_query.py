from __future__ import annotations

from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest

from eucaim_fl.cohorts.intake.headers import Header
from eucaim_fl.cohorts.intake.query import CohortQuery, read_patients
from eucaim_fl.errors import ImportFailedError

IMAGE = Header(
    patient_id=b"P1",
    sex="M",
    study_uid="1.2",
    series_uid="1.2.3",
    sop_uid="1.2.3.4",
    sop_class="1.2.840.10008.5.1.4.1.1.4",
    modality="MR",
    body_part="PROSTATE",
    study_date="20190607",
    manufacturer="",
    transfer_syntax="1.2.840.10008.1.2.1",
    data_start=0,
)


class TestCohortQuery:
    def test_an_empty_one_asks_for_everything(self) -> None:
        assert CohortQuery().asks_for(replace(IMAGE, modality="", body_part="", study_date="", patient_id=b""))

    @pytest.mark.parametrize(
        ("query", "wanted"),
        [
            (CohortQuery(modalities=("CT", "mr")), True),
            (CohortQuery(modalities=("CT",)), False),
            (CohortQuery(body_parts=("prostate",)), True),
            (CohortQuery(body_parts=("PROSTA",)), False),
            (CohortQuery(patients=frozenset({"P1", "P2"})), True),
            (CohortQuery(patients=frozenset({"P11"})), False),
            (CohortQuery(from_date=date(2019, 6, 7), to_date=date(2019, 6, 7)), True),
            (CohortQuery(from_date=date(2019, 6, 8)), False),
            (CohortQuery(to_date=date(2019, 6, 6)), False),
            (CohortQuery(modalities=("MR",), patients=frozenset({"P2"})), False),
        ],
    )
    def test_each_condition_counts(self, query: CohortQuery, wanted: bool) -> None:
        assert query.asks_for(IMAGE) is wanted

    @pytest.mark.parametrize(
        "stated", ["", "2019", "20191332", "junijuni", "\u0662\u0660\u0661\u0669\u0660\u0666\u0660\u0667"]
    )
    def test_an_image_without_a_date_fits_no_date(self, stated: str) -> None:
        assert not CohortQuery(from_date=date(1900, 1, 1)).asks_for(replace(IMAGE, study_date=stated))

    def test_a_label_object_needs_no_body_part(self) -> None:
        query = CohortQuery(body_parts=("PROSTATE",))
        assert query.asks_for(replace(IMAGE, modality="SEG", body_part=""))
        assert not query.asks_for(replace(IMAGE, modality="SEG", body_part="LUNG"))
        assert not query.asks_for(replace(IMAGE, body_part=""))

    def test_a_patient_is_found_in_the_character_sets_that_are_usual(self) -> None:
        query = CohortQuery(patients=frozenset({"Müller1"}))
        for code in ("utf-8", "latin-1"):
            assert query.asks_for(replace(IMAGE, patient_id="Müller1".encode(code)))

    def test_filters_are_one_set_a_request(self) -> None:
        query = CohortQuery(
            modalities=("mr", "CT"), patients=frozenset({"A", "B"}), from_date=date(2019, 1, 1), body_parts=("LUNG",)
        )
        assert query.filters() == tuple(
            {"StudyDate": "20190101-", "PatientID": p, "Modality": m} for p in "AB" for m in ("MR", "CT")
        )
        assert CohortQuery().filters() == ({},)

    def test_dates_in_the_wrong_order_are_refused(self) -> None:
        with pytest.raises(ImportFailedError, match="after its last day"):
            CohortQuery(from_date=date(2020, 1, 1), to_date=date(2019, 1, 1))

    @pytest.mark.parametrize("value", ["P*", "P?", "P\\Q"])
    def test_wildcards_are_refused_since_archives_would_take_them(self, value: str) -> None:
        with pytest.raises(ImportFailedError, match="wildcard"):
            CohortQuery(patients=frozenset({value}))


class TestReadPatients:
    def test_values_are_identifiers_or_files_of_them(self, tmp_path: Path) -> None:
        (tmp_path / "list.txt").write_text("P1\n\n P2 \n", encoding="utf-8-sig")
        assert read_patients([str(tmp_path / "list.txt"), "P3,P4", "P5"]) == {"P1", "P2", "P3", "P4", "P5"}
        assert read_patients([]) == frozenset()

    def test_a_list_that_cant_be_read_is_refused_without_its_name(self, tmp_path: Path) -> None:
        (tmp_path / "secret.txt").write_bytes(b"\xff\xfe\x00")
        with pytest.raises(ImportFailedError, match="can't be read") as caught:
            read_patients([str(tmp_path / "secret.txt")])
        assert "secret" not in str(caught.value)

    @pytest.mark.parametrize("value", ["/mnt/none", "./none", "patients.txt", "patients.CSV"])
    def test_a_file_that_is_missing_is_no_patient(self, value: str) -> None:
        with pytest.raises(ImportFailedError, match="can't be read"):
            read_patients([value])
        assert read_patients(["12/345"]) == {"12/345"}

    def test_an_empty_list_does_not_ask_for_everybody(self, tmp_path: Path) -> None:
        (tmp_path / "list.txt").write_text("\n")
        with pytest.raises(ImportFailedError, match="empty"):
            read_patients([str(tmp_path / "list.txt")])
