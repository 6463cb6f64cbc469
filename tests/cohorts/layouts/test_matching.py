from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eucaim_fl.cohorts.layouts import Findings, Place
from eucaim_fl.cohorts.layouts.matching import Member, by_folder, is_label_word, match, with_modality

ROOT = Path("/cohort")


def matched(*members: Member) -> Findings:
    found = Findings()
    match(Place(ROOT), "P1", members, {"age": "63"}, found)
    return found


def labels(found: Findings) -> dict[str, list[str]]:
    return {case.series: [path.name for path in case.label] for case in found.cases}


@pytest.fixture
def image(fake):
    return lambda name, study="S", **facts: Member(study, name, fake.stack(f"P1/{study}/{name}", **facts))


@pytest.fixture
def seg(fake):
    def make(name="seg", study="S", modality="SEG", **facts):
        stack = fake.stack(f"P1/{study}/{name}", modality=modality, files=(f"P1/{study}/{name}/{name}.dcm",), **facts)
        return Member(study, name, stack)

    return make


class TestMatch:
    def test_a_stack_is_a_case_with_files_in_its_own_order_and_what_the_index_knows(self, image):
        member = image("ct", stack="b=800")
        (case,) = matched(member).cases
        assert case.image == tuple(ROOT / file for file in member.stack.files)
        assert (case.patient, case.study, case.series, case.stack) == ("P1", "S", "ct", "b=800")
        assert (case.image_format, case.modality, case.label_format) == ("dicom", "CT", None)
        assert case.facts == member.stack
        assert case.clinical == {"age": "63"}

    @pytest.mark.parametrize("modality", ["SEG", "RTSTRUCT"])
    def test_a_label_belongs_to_the_series_that_it_refers_to(self, image, seg, modality):
        found = matched(image("a"), image("b"), seg(references=("b",), modality=modality))
        assert labels(found) == {"a": [], "b": ["seg.dcm"]}
        assert [c.label_format for c in found.cases] == [None, {"SEG": "dicom_seg", "RTSTRUCT": "rtstruct"}[modality]]

    def test_it_belongs_to_all_stacks_of_that_series(self, image, seg):
        dwi = image("dwi", stack="b=50")
        other = Member("S", "dwi", replace(dwi.stack, stack="b=800", files=("P1/S/dwi/9.dcm",)))
        assert [len(c.label) for c in matched(dwi, other, seg(references=("dwi",))).cases] == [1, 1]

    def test_without_reference_it_belongs_to_the_only_series_of_its_study(self, image, seg):
        assert labels(matched(image("a"), image("b", study="T"), seg())) == {"a": ["seg.dcm"], "b": []}

    def test_and_to_none_where_there_are_several(self, image, seg, fake):
        found = matched(image("a"), image("b"), seg())
        assert labels(found) == {"a": [], "b": []}
        assert fake.notes(found) == {"layout.labels_without_image": 1}

    def test_then_the_only_one_in_its_frame_of_reference_is_taken(self, image, seg):
        found = matched(
            image("a", frame_of_reference="1"), image("b", frame_of_reference="2"), seg(frame_of_reference="2")
        )
        assert labels(found) == {"a": [], "b": ["seg.dcm"]}

    def test_it_never_belongs_to_an_image_in_another_frame_of_reference(self, image, seg, fake):
        found = matched(image("a", frame_of_reference="1"), seg(frame_of_reference="2", references=("gone",)))
        assert labels(found) == {"a": []}
        assert fake.notes(found) == {"layout.labels_without_image": 1}

    def test_a_reference_to_a_series_that_is_not_there_leaves_the_only_image_of_the_study(self, image, seg):
        assert labels(matched(image("a"), seg(references=("gone",)))) == {"a": ["seg.dcm"]}

    def test_seg_is_taken_before_rtstruct(self, image, seg, fake):
        found = matched(image("a"), seg("s", references=("a",)), seg("r", references=("a",), modality="RTSTRUCT"))
        assert labels(found) == {"a": ["s.dcm"]}
        assert fake.notes(found) == {"layout.labels_in_two_formats": 1}

    def test_dicom_and_nifti_labels_of_one_image_are_set_aside(self, image, seg, fake):
        mask = Member("S", "mask", fake.nifti("P1/S/mask/m.nii.gz"), is_label=True)
        found = matched(image("a"), seg(references=("a",)), mask)
        assert [bad.code for bad in found.quarantined] == ["EFL203"]
        assert found.cases == []

    def test_a_nifti_label_belongs_to_what_lies_beside_it_and_to_nothing_else(self, fake):
        images = [Member("S", n, fake.nifti(f"{n}/i.nii.gz"), beside=n) for n in ("a", "b")]
        mask = Member("S", "m", fake.nifti("a/m.nii.gz"), is_label=True, beside="a")
        assert labels(matched(*images, mask)) == {"a": ["m.nii.gz"], "b": []}
        assert labels(matched(images[0], replace(mask, beside="gone"))) == {"a": []}

    def test_a_label_that_holds_images_is_neither(self, image, fake):
        found = matched(image("a"), replace(image("b", modality="MR"), is_label=True))
        assert labels(found) == {"a": []}
        assert fake.notes(found) == {"layout.labels_unreadable": 1}

    @pytest.mark.parametrize("modality", ["RTDOSE", "SR", "PR", "KO", "REG", "RTPLAN"])
    def test_what_is_no_image_is_no_case(self, image, modality):
        assert labels(matched(image("a"), image("b", modality=modality))) == {"a": []}

    def test_a_stack_with_a_code_is_set_aside_with_its_reason(self, image):
        found = matched(image("a"), image("b", code="EFL202", reason="Slices are missing."))
        assert labels(found) == {"a": []}
        assert [(b.patient, b.code, b.reason) for b in found.quarantined] == [("P1", "EFL202", "Slices are missing.")]

    def test_a_series_with_a_broken_file_is_set_aside_since_nobody_knows_what_is_missing(self, image, fake):
        found = matched(image("a"), image("b"), Member("S", "b", fake.broken("P1/S/b/9.dcm")))
        assert labels(found) == {"a": []}
        assert [bad.code for bad in found.quarantined] == ["EFL204"]

    def test_among_several_series_of_one_folder_a_broken_file_is_set_aside_alone(self, fake):
        stacks = [Member("S", uid, fake.stack("P1", uid)) for uid in ("1", "2")]
        found = matched(*stacks, Member("S", "x", fake.broken("P1/9.dcm")))
        assert (len(found.cases), len(found.quarantined)) == (2, 1)

    def test_other_files_beside_images_are_noted(self, image, fake):
        found = matched(image("a"), Member("S", "a", fake.broken("P1/S/a/Thumbs.db", kind="other")))
        assert (labels(found), found.quarantined) == ({"a": []}, [])
        assert fake.notes(found) == {"layout.files_not_placed": 1}

    def test_a_nifti_beside_dicom_is_a_copy_and_no_second_image(self, image, fake):
        found = matched(image("a"), Member("S", "a", fake.nifti("P1/S/a/copy.nii.gz")))
        assert labels(found) == {"a": []}

    @given(st.permutations(range(4)))
    def test_the_order_of_members_changes_no_case(self, order):
        from eucaim_fl.cohorts.facts import SeriesFacts

        def stack(uid, modality="CT", references=()):
            return SeriesFacts(
                folder=uid,
                files=(f"{uid}/1.dcm",),
                kind="dicom",
                series_uid=uid,
                modality=modality,
                references=references,
            )

        stacks = [stack("a"), stack("b"), stack("s", "SEG", ("a",)), stack("t", "SEG", ("a", "b"))]
        found = matched(*(Member("S", stacks[n].series_uid, stacks[n]) for n in order))
        assert labels(found) == {"a": ["1.dcm", "1.dcm"], "b": ["1.dcm"]}


class TestWithModality:
    def test_the_header_counts_and_a_table_fills_what_it_does_not_say(self, fake):
        assert with_modality(fake.stack("a", modality=""), "MR").modality == "MR"
        assert with_modality(fake.stack("a", modality="CT"), "MR").modality == "CT"


class TestIsLabelWord:
    @pytest.mark.parametrize(
        ("words", "expected"), [(["T2", "SEG"], True), (["Mask"], True), (["segment"], False), ([], False)]
    )
    def test_it_asks_for_whole_words(self, words, expected):
        assert is_label_word(words) is expected


class TestByFolder:
    def test_only_wanted_folders_are_kept(self, fake):
        stacks = [fake.stack("a", "1"), fake.stack("a", "2"), fake.stack("b")]
        assert {folder: len(found) for folder, found in by_folder(stacks, {"a", "c"}).items()} == {"a": 2}
        assert set(by_folder(stacks)) == {"a", "b"}
