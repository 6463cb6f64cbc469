from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eucaim_fl.cohorts.layouts import Place
from eucaim_fl.cohorts.layouts.upv import find, scan_folders
from eucaim_fl.errors import CohortError

STUDY = "21b5/MR2018"
KEYS = st.sampled_from(
    ["subjectName", "studyId", "path", "series", "folderName", "tags", "pages", "page_data", "value"]
)


def _containers(inner):
    return st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4)


@pytest.fixture
def upv(tmp_path):
    """One subject with a listed image and a listed label series."""
    folder = tmp_path / "upv"
    folder.mkdir()
    series = [{"folderName": "1282", "tags": ["Axial", "T2W"]}, {"folderName": "9001", "tags": ["SEG"]}]
    entry = {"studyId": "6513", "subjectName": "21b5", "path": STUDY, "series": series}
    (folder / "index.json").write_text(json.dumps([entry]))
    pages = [
        {"page_name": "criteria", "page_data": {"age_at_baseline": {"value": 74, "value_type": "integer"}}},
        {"page_name": "patient_data", "page_data": {"gender": {"value": "MALE"}, "empty": {"value": None}}},
    ]
    (folder / "eforms.json").write_text(json.dumps([{"subjectName": "21b5", "eForm": {"pages": pages}}]))
    return folder


@pytest.fixture
def found(fake, upv):
    def run(*further, seg=None, **place):
        image = fake.stack(f"{STUDY}/1282", "1.5", modality="MR", description="tse")
        seg = seg or fake.stack(f"{STUDY}/9001", "1.9", modality="SEG", references=("1.5",), slices=1)
        return find(Place(upv, **place), fake.catalogue(image, seg, *further))

    return run


def append(upv, entry, name="index.json"):
    path = upv / name
    path.write_text(json.dumps([*json.loads(path.read_text()), entry]))


class TestScanFolders:
    def test_listed_series_alone_may_be_scanned(self, upv):
        append(upv, {"studyId": "1", "subjectName": "x", "path": "..", "series": [{"folderName": "y"}]})
        assert scan_folders(Place(upv)) == [f"{STUDY}/1282", f"{STUDY}/9001"]

    @pytest.mark.parametrize("name", ["index.json", "eforms.json"])
    def test_an_index_that_is_missing_is_an_error(self, upv, name):
        (upv / name).unlink()
        with pytest.raises(CohortError, match="missing"):
            scan_folders(Place(upv))

    def test_a_study_may_be_a_link_into_an_allowed_folder(self, upv, tmp_path):
        lake = tmp_path / "lake" / "study"
        lake.mkdir(parents=True)
        (upv / "21b5").mkdir()
        (upv / STUDY).symlink_to(lake)
        assert scan_folders(Place(upv)) == []
        assert len(scan_folders(Place(upv, ((tmp_path / "lake").resolve(),)))) == 2


class TestFind:
    def test_the_series_tagged_seg_is_the_label_of_the_image(self, found):
        (case,) = found().cases
        assert (case.patient, case.study, case.series, case.modality) == ("21b5", "6513", "1282", "MR")
        assert ([path.name for path in case.label], case.label_format) == (["000.dcm"], "dicom_seg")

    def test_what_was_indexed_but_is_not_listed_is_not_used(self, fake, found):
        assert len(found(fake.stack(f"{STUDY}/1300", "1.6")).cases) == 1

    def test_imaging_words_of_tags_stand_in_the_description(self, upv, found):
        index = json.loads((upv / "index.json").read_text())
        index[0]["series"][0]["tags"] += ["Müller", "TSE"]
        (upv / "index.json").write_text(json.dumps(index))
        assert found().cases[0].facts.description == "tse axial t2w"
        assert found(words=frozenset({"muller"})).cases[0].facts.description == "tse axial t2w muller"

    def test_all_pages_of_the_form_become_clinical_values_under_canonical_names(self, fake, found):
        result = found()
        assert result.cases[0].clinical == {"age_at_diagnosis": "74", "sex": "male"}
        assert fake.notes(result) == {"layout.aliases_used": 2}

    def test_a_label_may_be_a_nifti_mask(self, fake, found):
        (case,) = found(seg=fake.nifti(f"{STUDY}/9001/mask.nii.gz")).cases
        assert case.label_format == "nifti"

    @pytest.mark.parametrize(("path", "name"), [("..", "x"), ("/etc", "x"), ("21b5", "../../.."), ("21b5", "/tmp")])  # noqa: S108
    def test_a_path_that_leads_out_is_quarantined(self, upv, found, path, name):
        append(upv, {"studyId": "1", "subjectName": "evil", "path": path, "series": [{"folderName": name}]})
        result = found()
        assert len(result.cases) == 1
        assert [bad.patient for bad in result.quarantined] == ["evil"]
        assert "leads out" in result.quarantined[0].reason

    def test_a_study_that_is_a_link_out_of_the_cohort_is_quarantined_unless_it_may_lead_there(
        self, upv, found, tmp_path
    ):
        (tmp_path / "lake").mkdir()
        (upv / "21b5").mkdir()
        (upv / STUDY).symlink_to(tmp_path / "lake")
        result = found()
        assert result.cases == []
        assert {"leads out" in bad.reason for bad in result.quarantined} == {True}
        assert len(found(links=((tmp_path / "lake").resolve(),)).cases) == 1

    @pytest.mark.parametrize(
        "entry",
        [
            None,
            3,
            {},
            {"subjectName": "p"},
            {"series": 1},
            {"studyId": 1, "subjectName": " ", "path": "x", "series": []},
            {"studyId": 1, "subjectName": None, "path": "x", "series": []},
            {"studyId": 1, "subjectName": "p", "path": "x", "series": [{"folderName": "1", "tags": 7}]},
        ],
    )
    def test_a_malformed_entry_is_quarantined(self, upv, found, entry):
        append(upv, entry)
        result = found()
        assert (len(result.cases), len(result.quarantined)) == (1, 1)

    @given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), _containers, max_leaves=12))
    def test_no_json_makes_it_fail_in_another_way(self, fake, tmp_path_factory, value):
        folder = tmp_path_factory.getbasetemp() / "any_upv"
        folder.mkdir(exist_ok=True)
        entry = {"subjectName": "p", "studyId": 1, "path": "x", "series": value, "eForm": value}
        for name in ("index.json", "eforms.json"):
            (folder / name).write_text(json.dumps([value, entry]))
        assert find(Place(folder), fake.catalogue()).cases == []

    @pytest.mark.parametrize("form", [None, 3, {}, {"subjectName": "21b5", "eForm": {"pages": [{"page_data": []}]}}])
    def test_a_form_without_answers_changes_nothing(self, upv, found, form):
        append(upv, form, "eforms.json")
        assert found().cases[0].clinical == {"age_at_diagnosis": "74", "sex": "male"}

    def test_a_listed_series_without_files_is_quarantined_and_one_listed_twice_counts_once(self, fake, upv, found):
        again = [{"folderName": "1282"}, {"folderName": "404"}]
        append(upv, {"studyId": "6513", "subjectName": "21b5", "path": STUDY, "series": again})
        result = found()
        assert (len(result.cases), [bad.code for bad in result.quarantined]) == (1, ["EFL204"])
        notes = fake.notes(result)
        assert (notes["layout.series_missing"], notes["layout.series_listed_twice"]) == (1, 1)

    def test_subjects_without_forms_and_forms_without_subjects_are_noted(self, fake, upv, found):
        append(upv, {"studyId": "7", "subjectName": "new", "path": "new", "series": [{"folderName": "1"}]})
        append(upv, {"subjectName": "gone", "eForm": {"pages": [{"page_data": {"a": {"value": 1}}}]}}, "eforms.json")
        notes = {f.rule: f.subjects for f in found(fake.stack("new/1")).notes.findings()}
        assert notes["layout.patients_without_clinical"] == ("new",)
        assert notes["layout.patients_without_images"] == ("gone",)

    @pytest.mark.parametrize(
        ("text", "words"), [(None, "missing"), ("{", "no valid JSON"), ("{}", "no list"), ("[" * 9999, "no valid JSON")]
    )
    @pytest.mark.parametrize("name", ["index.json", "eforms.json"])
    def test_an_index_that_is_missing_or_malformed_is_an_error(self, fake, upv, name, text, words):
        if text is None:
            (upv / name).unlink()
        else:
            (upv / name).write_text(text)
        with pytest.raises(CohortError, match=words):
            find(Place(upv), fake.catalogue())
