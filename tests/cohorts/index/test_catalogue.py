from __future__ import annotations

import sys
from subprocess import run
from typing import Any

import pytest

from eucaim_fl.cohorts.facts import Catalogue
from eucaim_fl.cohorts.index import CohortQuery, open_index
from eucaim_fl.cohorts.index.catalogue import Index, IndexCounts
from eucaim_fl.errors import CohortError

pytestmark = pytest.mark.integration


@pytest.fixture
def index(cohort: Any) -> Index:
    mr = {"modality": "MR", "Modality": "MR", "BodyPartExamined": "PROSTATE", "StudyDate": "20150704"}
    cohort.series("P1/T1/t2", SeriesDescription="T2 TSE tra", slices=4, PatientID="A", **mr)
    cohort.series("P1/T1/dwi", SeriesDescription="ep2d diff", slices=2, PatientID="A", DiffusionBValue=800.0, **mr)
    cohort.series("P1-a/T1/ct", PatientID="B", StudyDate="20180101", SliceThickness=1, ContrastBolusAgent="x")
    cohort.series("P10/T1/ct", PatientID="C", StudyDate="20190704", Manufacturer="SIEMENS")
    (cohort.folder / "P1/T1/notes.csv").write_text("x")
    (cohort.folder / "P2/T1").mkdir(parents=True)
    (cohort.folder / "P2/T1/empty.dcm").write_bytes(b"")
    cohort.scan()
    opened: Index = cohort.index()
    return opened


def found(index: Index, **query: Any) -> list[str]:
    return [one.folder for one in index.query(CohortQuery(**query))]


class TestCatalogue:
    def test_it_is_one(self, index: Index) -> None:
        catalogue: Catalogue = index
        assert [one.folder for one in catalogue.every()] == [
            "P1-a/T1/ct", "P1/T1/dwi", "P1/T1/t2", "P10/T1/ct", "P2/T1",
        ]  # fmt: skip

    def test_stacks_of_a_folder_and_below(self, index: Index) -> None:
        assert [one.folder for one in index.series("P1", recursive=True)] == ["P1/T1/dwi", "P1/T1/t2"]
        assert index.series("P1") == []
        (one,) = index.series("P1/T1/t2")
        assert one.files == tuple(f"P1/T1/t2/00{n}.dcm" for n in range(4))
        assert (one.size, one.modality, one.study_date, one.body_part) == ((4, 4, 4), "MR", "2015", "PROSTATE")
        assert index.series("P1/T1/t2x") == index.series("nowhere", recursive=True) == []

    def test_folders_of_a_folder(self, index: Index) -> None:
        assert index.folders("") == ["P1", "P1-a", "P10", "P2"]
        assert index.folders("P1") == ["T1"]
        assert index.folders("P1/T1") == ["dwi", "t2"]
        assert index.folders("P1/T1/t2") == index.folders("P") == []

    def test_facts_of_a_file(self, index: Index) -> None:
        one = index.file("P1/T1/dwi/000.dcm")
        assert one is not None
        assert (one.kind, one.b_value, one.series_description) == ("dicom", 800.0, "ep2d diff")
        notes = index.file("P1/T1/notes.csv")
        assert notes is not None
        assert (notes.kind, notes.size, notes.code) == ("other", 1, "")
        assert index.file("P1/T1/dwi/00.dcm") is None

    def test_all_files_come_in_order(self, index: Index) -> None:
        paths = [one.path for one in index.files()]
        assert len(paths) == 14
        assert [one.path for one in index.files("P2")] == ["P2/T1/empty.dcm"]


class TestQuery:
    def test_each_condition_narrows(self, index: Index) -> None:
        mr = ["P1/T1/dwi", "P1/T1/t2"]
        assert found(index, modality=("MR",)) == found(index, body_part=("Prostate",)) == mr
        assert found(index, folders=("P1", "P10")) == [*mr, "P10/T1/ct"]
        assert found(index, patients=(index.patient_key("B"),)) == ["P1-a/T1/ct"]
        assert found(index, words=("T2", "tse")) == ["P1/T1/t2"]
        assert found(index, words=("ts",)) == found(index, words=("'",)) == []
        assert found(index, b_value=(700, 900)) == ["P1/T1/dwi"]
        assert found(index, slices=(4, 9)) == ["P1/T1/t2"]
        assert found(index, thickness_mm=(0, 2)) == found(index, contrast=True) == ["P1-a/T1/ct"]
        assert found(index, manufacturer=("Siemens",)) == ["P10/T1/ct"]
        assert found(index, usable=False) == ["P2/T1"]
        assert found(index, plane="sagittal", usable=True) == []
        assert found(index, modality=("MR",), slices=(2, 2), folders=("P1",)) == ["P1/T1/dwi"]

    def test_days_are_known_to_the_year(self, index: Index) -> None:
        mr = ["P1/T1/dwi", "P1/T1/t2"]
        assert found(index, studied=("2015", "2015")) == found(index, studied=("20150101", "20150201")) == mr
        assert found(index, studied=("2016", "2018")) == ["P1-a/T1/ct"]
        assert found(index, studied=("20180101", "20180101")) == ["P1-a/T1/ct"]
        assert found(index, studied=("20180102", "20190101")) == ["P10/T1/ct"]

    def test_counts_are_of_patients_and_stacks(self, index: Index) -> None:
        assert index.count(CohortQuery()) == (3, 5)
        assert index.count(CohortQuery(modality=("MR",))) == (1, 2)

    def test_other_questions_may_be_asked_meanwhile(self, index: Index) -> None:
        assert [index.count(CohortQuery(folders=(one.folder,)))[1] for one in index.query(CohortQuery())] == [1] * 5

    def test_a_day_that_is_none_is_an_error(self, index: Index) -> None:
        with pytest.raises(CohortError, match="neither YYYY"):
            list(index.query(CohortQuery(studied=("x", "y"))))
        with pytest.raises(CohortError, match="neither YYYY"):
            index.count(CohortQuery(studied=("x", "y")))


class TestSums:
    def test_counts_of_everything(self, index: Index) -> None:
        found = index.counts()
        assert found == IndexCounts(14, found.size_bytes, 1, 5, 1, 3, {"": 1, "CT": 2, "MR": 2})

    def test_rules_that_files_break_are_counted(self, cohort: Any) -> None:
        cohort.series("P1/T1", PatientName="Zweistein^Albertine", slices=2)
        cohort.series("P2/T1", slices=2)
        cohort.scan()
        index = cohort.index()
        named = index.identifiers("P1").keys() - index.identifiers("P2").keys()
        assert named
        assert all(index.identifiers()[rule] == index.identifiers("P1")[rule] == (2, 2) for rule in named)
        assert index.identifiers()["deid.not_marked"] == (4, 4)


class TestOpenIndex:
    def test_a_cohort_that_was_not_scanned_is_an_error(self, cohort: Any) -> None:
        with pytest.raises(CohortError, match="not been scanned"):
            open_index(cohort.site())

    def test_an_index_of_other_settings_is_an_error(self, cohort: Any) -> None:
        cohort.scan()
        cohort.changes = {"cohort": {"words": ["x"]}}
        with pytest.raises(CohortError, match="other settings"):
            open_index(cohort.site())

    @pytest.mark.parametrize("content", ["", "[]", "{}", '{"number": 7, "made_with": "x"}', "\xff"])
    def test_a_damaged_pointer_is_an_error(self, cohort: Any, content: str) -> None:
        cohort.scan()
        (cohort.index_folder / "current.json").write_text(content, encoding="latin-1")
        with pytest.raises(CohortError, match="damaged"):
            open_index(cohort.site())

    def test_a_damaged_key_is_an_error(self, cohort: Any) -> None:
        cohort.scan()
        (cohort.index_folder / "key").write_text("ab")
        with pytest.raises(CohortError, match="damaged"):
            open_index(cohort.site())

    def test_it_stays_open_while_the_next_scan_goes_on(self, cohort: Any) -> None:
        cohort.series("P1/S1")
        cohort.scan()
        with open_index(cohort.site()) as index:
            cohort.series("P2/S1")
            cohort.scan()
            assert index.folders("") == ["P1"]
            assert index.counts().files == 3


class TestImports:
    def test_looking_for_files_needs_neither_torch_nor_the_database(self) -> None:
        code = "import sys, eucaim_fl.cohorts.index; print(*{'torch', 'monai', 'duckdb', 'pyarrow'} & set(sys.modules))"
        done = run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.split() == []
