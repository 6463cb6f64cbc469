"""Rules for images and labels: doubles, empty and odd images, odd grids, labels."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eucaim_fl.cohorts.facts import SeriesFacts
from eucaim_fl.cohorts.manifest import Case
from eucaim_fl.cohorts.pixel_facts import PixelFacts
from eucaim_fl.cohorts.quality import RULES, Examined, Rule, image_findings, outliers

GREY = {
    "minimum": -1000.0,
    "maximum": 1500.0,
    "mean": -200.0,
    "border": -900.0,
    "at_minimum": 0.3,
    "at_maximum": 0.001,
    "shape": (512, 512, 100),
    "spacing_mm": (0.7, 0.7, 2.5),
}


def examined(patient: str, sha256: str = "", modality: str = "CT", label: bool = True, **pixels: Any) -> Examined:
    facts = SeriesFacts(folder=patient, files=("1.dcm",), kind="dicom", content=pixels.pop("content", ""))
    files = (Path("label.dcm"),) if label else ()
    case = Case(patient, "1", "1", (Path("1.dcm"),), "dicom", files, "dicom_seg" if label else None, {}, modality)
    case = Case(**{**vars(case), "facts": facts})
    return Examined(case, PixelFacts(**{**GREY, "sha256": sha256 or patient, **pixels}))


def found(cases: list[Examined], *rest: Any) -> dict[str, tuple[str, int, str, tuple[str, ...]]]:
    return {f.rule: (f.severity, f.count, f.unit, f.subjects) for f in image_findings(cases, *rest)}


class TestImageFindings:
    def test_an_ordinary_cohort_has_none(self):
        assert image_findings([examined(f"P{n}") for n in range(20)]) == ()

    def test_a_grey_image_among_colours_is_worth_a_look(self):
        def stated(patient: str, samples: int | None, modality: str = "XC") -> Examined:
            one = examined(patient, modality=modality)
            facts = SeriesFacts(folder=patient, files=("1.dcm",), kind="dicom", samples=samples)
            return dataclasses.replace(one, case=dataclasses.replace(one.case, facts=facts))

        colours = [stated(f"C{n}", 3) for n in range(3)]
        assert found([*colours, stated("G", 1), stated("U", None), stated("X", 1, "DX")]) == {
            "quality.grey_among_colours": ("warns", 1, "series", ("G",))
        }
        assert found([*colours[:1], stated("G", 1)]) == {}

    def test_the_same_voxels_under_two_patients_block_both(self):
        cases = [examined("A", "x"), examined("B", "x"), examined("C", "y")]
        assert found(cases) == {"quality.same_pixels": ("blocks", 2, "patients", ("A", "B"))}

    def test_the_same_image_twice_in_one_patient_only_warns(self):
        cases = [examined("A", "x"), examined("A", "x"), examined("B", "y")]
        assert found(cases) == {"quality.same_series_twice": ("warns", 1, "patients", ("A",))}

    def test_without_pixels_the_same_files_tell(self):
        cases = [Examined(examined(p, content="same").case) for p in "AB"]
        assert found(cases) == {"quality.same_pixels": ("blocks", 2, "patients", ("A", "B"))}

    def test_one_image_with_two_labels_is_disputed(self):
        cases = [examined("A", "x", label_sha256="1"), examined("A", "x", label_sha256="2")]
        assert found(cases)["quality.two_labels"] == ("warns", 1, "patients", ("A",))
        agreed = [examined("A", "x", label_sha256="1"), examined("A", "x", label_sha256="1")]
        assert "quality.two_labels" not in found(agreed)

    def test_constant_images_are_reported_and_are_no_copies_of_each_other(self):
        cases = [examined(p, "zeros", minimum=0.0, maximum=0.0, at_minimum=1.0, at_maximum=1.0) for p in "AB"]
        assert found(cases) == {"quality.constant_image": ("warns", 2, "series", ("A", "B"))}

    @pytest.mark.parametrize(("modality", "expected"), [("CT", True), ("MR", True), ("", True), ("MG", False)])
    def test_a_clipped_image_is_odd_where_values_are_measured(self, modality, expected):
        assert ("quality.clipped_image" in found([examined("A", modality=modality, at_maximum=0.05)])) is expected

    def test_an_image_of_two_values_is_not_called_clipped(self):
        assert found([examined("A", modality="MR", at_minimum=0.8, at_maximum=0.2)]) == {}

    @pytest.mark.parametrize(
        ("values", "rule"),
        [
            ({"minimum": 0.0, "border": 20.0, "mean": 800.0}, "quality.not_hounsfield"),
            ({"border": 1000.0, "mean": 200.0}, "quality.inverted_image"),
            ({"spacing_mm": (1.0, 1.0, 11.0)}, "quality.thick_slices"),
            ({"spacing_mm": (0.5, 0.5, 6.1)}, "quality.uneven_voxels"),
            ({"shape": (512, 512, 4)}, "quality.few_slices"),
        ],
    )
    def test_a_ct_out_of_the_ordinary_has_its_rule(self, values, rule):
        assert set(found([examined("A", **values)])) == {rule}

    def test_values_of_mr_have_no_unit_to_check(self):
        assert found([examined("A", modality="MR", minimum=0.0, border=900.0, mean=100.0)]) == {}

    def test_odd_grids_are_judged_within_their_modality(self):
        usual = [examined(f"P{n}") for n in range(10)]
        other = [examined(f"Q{n}", modality="MR", spacing_mm=(0.2, 0.2, 2.0)) for n in range(10)]
        odd = examined("X", spacing_mm=(3.0, 3.0, 2.5), shape=(512, 512, 100))
        assert found([*usual, *other]) == {}
        assert {r: f[3] for r, f in found([*usual, *other, odd]).items()} == {
            "quality.odd_spacing": ("X",),
            "quality.odd_field_of_view": ("X",),
        }

    def test_series_of_another_description_are_another_kind(self):
        def described(one: Examined, description: str) -> Examined:
            facts = SeriesFacts(folder="", files=(), kind="dicom", description=description)
            return Examined(Case(**{**vars(one.case), "facts": facts}), one.pixels)

        fine = [described(examined(f"P{n}", modality="MR"), "t2 tse tra") for n in range(30)]
        coarse = [described(examined(f"Q{n}", modality="MR", spacing_mm=(2.0, 2.0, 2.5)), "ep2d diff") for n in "ab"]
        assert found([*fine, *coarse]) == {}
        assert "quality.odd_spacing" in found([*fine, *(described(one, "t2 tse tra") for one in coarse)])

    def test_headers_give_the_grid_where_pixels_were_not_read(self):
        facts = SeriesFacts(
            folder="", files=("1.dcm",), kind="dicom", size=(512, 512, 3), spacing_mm=(2.0, 2.0, 12.0), content="c"
        )
        case = Case(**{**vars(examined("A").case), "facts": facts})
        assert set(found([Examined(case)])) == {"quality.few_slices", "quality.thick_slices"}

    def test_another_body_part_is_told_only_if_one_is_asked_for_and_stated(self):
        cases = [examined(p) for p in "ABC"]
        parts = {"A": "PROSTATE", "B": "Chest", "C": ""}
        cases = [
            Examined(
                Case(**{**vars(e.case), "facts": SeriesFacts(folder="", files=(), kind="dicom", body_part=part)}),
                e.pixels,
            )
            for e, part in zip(cases, parts.values(), strict=True)
        ]
        assert found(cases) == {}
        assert found(cases, ["PROSTATE"]) == {"quality.wrong_body_part": ("warns", 1, "series", ("B",))}

    def test_patients_without_any_label_are_counted(self):
        cases = [examined("A"), examined("A", "a2", label=False), examined("B", label=False)]
        assert found(cases) == {"quality.without_label": ("informs", 1, "patients", ("B",))}

    def test_problems_of_labels_come_under_their_own_rules(self):
        problems = {"empty": Rule("warns", "Empty labels.", "Look.")}
        cases = [examined("A", label_problems=("empty", "unknown")), examined("B", label_code="EFL203")]
        assert found(cases, (), problems) == {
            "quality.label_empty": ("warns", 1, "series", ("A",)),
            "quality.label_unreadable": ("warns", 1, "series", ("B",)),
        }

    @given(st.permutations(range(6)))
    def test_the_order_of_cases_changes_nothing(self, order):
        cases = [examined(p, s) for p, s in zip("AABBCD", "xyxzzz", strict=True)]
        assert image_findings([cases[n] for n in order]) == image_findings(cases)

    def test_texts_hold_no_value_of_the_cohort(self):
        cases = [examined("Rossi Maria", "x"), examined("B", "x", at_maximum=0.5)]
        for finding in image_findings(cases):
            assert "Rossi" not in finding.says + finding.do
            assert finding.says == RULES[finding.rule.removeprefix("quality.")].says


class TestOutliers:
    def test_few_values_have_none(self):
        assert outliers([1.0] * 6 + [100.0]) == set()

    def test_a_value_that_is_no_length_is_odd(self):
        assert outliers([1.0] * 40 + [0.0, float("nan"), float("inf"), -1.0]) == {40, 41, 42, 43}
        assert outliers([0.0] * 9) == set()

    def test_what_more_than_a_tenth_have_is_usual(self):
        assert outliers([1.0] * 18 + [5.0] * 2) == {18, 19}
        assert outliers([1.0] * 17 + [5.0] * 3) == set()

    def test_a_wide_spread_makes_fewer_odd(self):
        spread = [0.5, 0.7, 1.0, 1.4, 2.0, 0.6, 0.8, 1.2, 1.6]
        assert outliers([*spread, 2.5]) == set()
        assert outliers([*[1.0] * 9, 2.5]) == {9}

    @given(st.lists(st.floats(0.9, 1.1), min_size=8, max_size=30), st.floats(0.01, 100))
    def test_the_unit_changes_nothing(self, values, factor):
        odd = [*values, 5.0]
        assert outliers([v * factor for v in odd]) == outliers(odd) == {len(values)}
