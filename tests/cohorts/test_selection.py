from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eucaim_fl.cohorts.facts import SeriesFacts
from eucaim_fl.cohorts.manifest import Case
from eucaim_fl.cohorts.selection import LeftOut, Selection, fits, select
from eucaim_fl.config import SeriesRule

GRADE = {"name": "classification", "target": "grade", "classes": ("low", "high")}
T2 = {"name": "t2", "modality": "MR", "words": ("t2",), "plane": "axial"}
ADC = {"name": "adc", "modality": "MR", "words": ("adc",)}


def case(patient: str = "P1", series: str = "1", study: str = "s", *, label: bool = False, **stated: Any) -> Case:
    """A DICOM image with facts; `modality` is MR unless stated."""
    image_format = stated.pop("image_format", "dicom")
    values = {"modality": "MR", "size": (64, 64, 20), **stated}
    facts = SeriesFacts(folder="", files=(), kind=image_format, series_uid=series, study_uid=study, **values)
    labels = {"label": (Path(f"/c/{series}.seg"),), "label_format": "dicom_seg"} if label else {}
    return Case(
        patient,
        study,
        series,
        (Path(f"/c/{series}.dcm"),),
        image_format,
        modality=values["modality"],
        facts=facts,
        **labels,
    )


def rule(**values: Any) -> SeriesRule:
    return SeriesRule.model_validate({"name": "a", **values})


class TestFits:
    @pytest.mark.parametrize(
        ("asked", "stated", "expected"),
        [
            ({}, {}, True),
            ({"modality": "CT"}, {}, False),
            ({"words": ("T2",)}, {"description": "t2w tse tra"}, True),
            ({"words": ("tse", "t2")}, {"description": "t2", "sequence": "*TSE2d1"}, True),
            ({"words": ("t2_TSE",)}, {"protocol": "Tse T2"}, True),
            ({"words": ("t2", "flair")}, {"description": "t2 tse"}, False),
            ({"words": ("diff",)}, {"description": "ep2d_diffusion"}, True),
            ({"words": ("ce",)}, {"description": "t2 space"}, False),
            ({"words": ("+",)}, {"description": "t2 + c"}, False),
            ({"without": ("fs",)}, {"description": "t2 fs"}, False),
            ({"without": ("fs",)}, {"description": "t2"}, True),
            ({"image_type": ("primary", "ADC")}, {"image_type": ("DERIVED", "PRIMARY", "ADC")}, True),
            ({"image_type": ("ADC",)}, {"image_type": ("ORIGINAL", "PRIMARY", "ADC_UNSPECIFIED")}, False),
            ({"body_part": "Prostate"}, {"body_part": "PROSTATE"}, True),
            ({"body_part": "PROSTATE"}, {"body_part": "ABDOMEN"}, False),
            ({"plane": "axial"}, {"plane": "axial"}, True),
            ({"plane": "axial"}, {"plane": "oblique"}, False),
            ({"thickness_mm": (2, 4)}, {"thickness_mm": 4.0}, True),
            ({"thickness_mm": (2, 4)}, {"thickness_mm": 5.0}, False),
            ({"b_value": (0, 0)}, {"b_value": 0.0}, True),
            ({"b_value": (700, 900)}, {"b_value": 1000.0}, False),
            ({"echo_time_ms": (80, 120)}, {"echo_time_ms": 101.0}, True),
            ({"contrast": True}, {"contrast": True}, True),
            ({"contrast": True}, {"contrast": False}, False),
            ({"contrast": False}, {"contrast": False}, True),
        ],
    )
    def test_each_criterion(self, asked, stated, expected):
        assert fits(case(**stated), rule(**asked)) is expected

    @pytest.mark.parametrize(
        "asked",
        [
            {"words": ("t2",)},
            {"image_type": ("PRIMARY",)},
            {"body_part": "PROSTATE"},
            {"plane": "axial"},
            {"thickness_mm": (0, 99)},
            {"b_value": (0, 0)},
            {"echo_time_ms": (0, 999)},
            {"contrast": False},
            {"modality": "MR"},
        ],
    )
    def test_what_is_not_stated_fails_a_rule_that_asks_for_it(self, asked):
        assert not fits(case(modality=""), rule(**asked))
        assert not fits(Case("P", "", "", (Path("x"),), "dicom"), rule(**asked))

    def test_nifti_states_no_modality_and_may_be_any(self):
        bare = Case("P", "", "", (Path("x.nii"),), "nifti")
        assert fits(bare, rule(modality="MR"))
        assert not fits(bare, rule(modality="MR", words=("t2",)))
        assert not fits(case(image_format="nifti", modality="CT"), rule(modality="MR"))


class TestSelectWithoutChannels:
    def test_every_labelled_image_of_the_modality_is_taken(self, tiny):
        cases = [
            case(series="1", label=True),
            case(series="2", label=True),
            case(series="3", modality="CT", label=True),
        ]
        assert select(cases, tiny.plan(modality="MR")).cases == tuple(cases[:2])
        assert select(cases, tiny.plan()).cases == tuple(cases)

    def test_a_patient_without_any_label_is_left_out_and_other_bare_images_are_not_missed(self, tiny):
        cases = [case("P1", "1"), case("P1", "2", label=True), case("P2", "3"), case("P2", "4")]
        selection = select(cases, tiny.plan())
        assert selection.cases == (cases[1],)
        assert selection.left_out == (LeftOut("P2", "label", "EFL203", "A patient's image has no label.", "3"),)

    def test_classification_needs_no_label(self, tiny):
        cases = [case("P1", "1"), case("P2", "2")]
        assert select(cases, tiny.plan(GRADE)) == Selection(tuple(cases))

    def test_colours_take_no_image_that_says_it_is_grey(self, tiny):
        cases = [case("P1", "1", samples=3), case("P1", "2", samples=1), case("P2", "3", samples=1), case("P3", "4")]
        assert select(cases, tiny.plan(GRADE)).cases == tuple(cases)
        selection = select(cases, tiny.plan(GRADE, colour=True))
        assert selection.cases == (cases[0], cases[3])
        assert selection.left_out == (LeftOut("P2", "colour", "EFL202", "A patient's image has no colours.", "3"),)

    def test_who_has_neither_colours_nor_a_label_is_left_out_once(self, tiny):
        cases = [case("P2", "1", samples=1), case("P1", "2", samples=3)]
        selection = select(cases, tiny.plan(colour=True))
        assert [(one.patient, one.rule) for one in selection.left_out] == [("P1", "label"), ("P2", "colour")]


class TestSelectWithChannels:
    def select(
        self, tiny: Any, cases: list[Case], *rules: dict[str, Any], task: dict[str, Any] | None = GRADE
    ) -> Selection:
        return select(cases, tiny.plan(task, channels=rules or (T2, ADC)))

    def test_a_patient_gets_one_case_with_the_channels_in_the_plans_order(self, tiny):
        adc = case(series="1", description="dwi adc")
        t2 = case(series="2", description="t2 tse", plane="axial")
        other = case(series="3", description="localizer")
        for order in ([adc, t2, other], [other, t2, adc]):
            (taken,) = self.select(tiny, order).cases
            assert (taken.series, [channel.series for channel in taken.further]) == ("2", ["1"])
        (turned,) = self.select(tiny, [adc, t2], ADC, T2).cases
        assert (turned.series, [channel.series for channel in turned.further]) == ("1", ["2"])

    def test_one_channel_is_one_image_of_each_patient(self, tiny):
        cases = [
            case("P1", "1", description="adc"),
            case("P1", "2", description="adc"),
            case("P2", "3", description="adc"),
        ]
        taken = self.select(tiny, cases, ADC).cases
        assert [(one.patient, one.series, one.further) for one in taken] == [("P1", "1", ()), ("P2", "3", ())]

    @pytest.mark.parametrize(("prefer", "expected"), [("most_slices", "b"), ("thinnest", "c"), ("first", "a")])
    def test_which_of_several_is_taken(self, tiny, prefer, expected):
        cases = [
            case(series="a", description="adc", size=(9, 9, 10), thickness_mm=3.0),
            case(series="b", description="adc", size=(9, 9, 30), thickness_mm=4.0),
            case(series="c", description="adc", size=(9, 9, 20), spacing_mm=(1.0, 1.0, 2.0)),
            case(series="d", description="adc", size=(9, 9, 30), thickness_mm=4.0),
        ]
        (taken,) = self.select(tiny, cases, {**ADC, "prefer": prefer}).cases
        assert taken.series == expected

    def test_all_channels_come_from_one_study_the_first_that_has_all(self, tiny):
        cases = [
            case(series="1", study="s1", description="t2", plane="axial"),
            case(series="2", study="s2", description="t2", plane="axial"),
            case(series="3", study="s2", description="adc"),
            case(series="4", study="s3", description="t2", plane="axial"),
            case(series="5", study="s3", description="adc"),
        ]
        (taken,) = self.select(tiny, cases).cases
        assert (taken.study, taken.series, taken.further[0].series) == ("s2", "2", "3")

    def test_no_image_is_two_channels(self, tiny):
        anything = {"name": "any"}
        one = case(series="1", description="adc")
        selection = self.select(tiny, [one], ADC, anything)
        assert selection.cases == ()
        assert selection.left_out[0].reason == "No series of a patient fits the rule 'any' (taken by another channel)."
        two = case(series="2")
        (taken,) = self.select(tiny, [one, two], ADC, anything).cases
        assert taken.further[0].series == "2"

    def test_the_rule_that_failed_first_is_counted_with_what_the_nearest_series_fail_at(self, tiny):
        cases = [
            case("P1", "1", description="t2", plane="sagittal"),
            case("P1", "2", description="t2", plane="coronal"),
            case("P1", "3", description="adc"),
            case("P2", "4", description="t2", plane="axial"),
            case("P2", "5", modality="CT"),
            case("P3", "6", description="t2", plane="oblique"),
        ]
        selection = self.select(tiny, cases)
        assert [(one.patient, one.rule, one.code) for one in selection.left_out] == [
            ("P1", "t2", "EFL200"),
            ("P2", "adc", "EFL200"),
            ("P3", "t2", "EFL200"),
        ]
        assert "2: another plane, 1: a wanted word missing" in selection.left_out[0].local_detail
        assert selection.reasons() == {
            "No series of a patient fits the rule 't2' (another plane).": 2,
            "No series of a patient fits the rule 'adc' (a wanted word missing).": 1,
        }

    def test_the_label_comes_from_the_first_channel_even_if_another_series_has_more_slices(self, tiny):
        cases = [
            case(series="1", description="t2", plane="axial", size=(9, 9, 30)),
            case(series="2", description="t2", plane="axial", size=(9, 9, 20), label=True),
            case(series="3", description="adc", label=True),
        ]
        (taken,) = self.select(tiny, cases, task=None).cases
        assert (taken.series, taken.label, taken.label_format) == ("2", (Path("/c/2.seg"),), "dicom_seg")
        assert taken.further[0].label == ()

    def test_else_it_comes_from_another_channel(self, tiny):
        cases = [case(series="1", description="t2", plane="axial"), case(series="2", description="adc", label=True)]
        (taken,) = self.select(tiny, cases, task=None).cases
        assert (taken.series, taken.label) == ("1", (Path("/c/2.seg"),))

    def test_a_study_without_label_is_passed_over_and_a_patient_without_is_left_out(self, tiny):
        cases = [
            case("P1", "1", "s1", description="adc"),
            case("P1", "2", "s2", description="adc", label=True),
            case("P2", "3", description="adc"),
        ]
        selection = self.select(tiny, cases, ADC, task=None)
        assert [one.series for one in selection.cases] == ["2"]
        assert [(one.patient, one.rule, one.code) for one in selection.left_out] == [("P2", "label", "EFL203")]

    @given(
        rows=st.lists(
            st.tuples(st.integers(0, 3), st.integers(0, 2), st.sampled_from(["t2", "adc", "t2 adc", ""])), max_size=12
        )
    )
    def test_every_patient_is_taken_once_or_left_out_once_whatever_the_order(self, tiny, rows):
        plan = tiny.plan(GRADE, channels=(T2, ADC))
        cases = [case(f"P{p}", str(n), f"s{s}", description=text, plane="axial") for n, (p, s, text) in enumerate(rows)]
        selection = select(cases, plan)
        patients = [one.patient for one in selection.cases] + [one.patient for one in selection.left_out]
        assert sorted(patients) == sorted({one.patient for one in cases})
        assert all(len(one.further) == 1 and one.further[0].study == one.study for one in selection.cases)
        shuffled = list(cases)
        random.Random(0).shuffle(shuffled)
        assert select(shuffled, plan) == selection
