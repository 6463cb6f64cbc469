"""The plots of the validation's page: what is drawn lies where its value is, and is told to who can't see it."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eucaim_fl.validation.page.curves import (
    CalibrationPoint,
    Curve,
    Marked,
    calibration_svg,
    decision_svg,
    precision_recall_svg,
    roc_svg,
)
from eucaim_fl.validation.page.drawing import Axes, Span, shortened, ticks, wrapped
from eucaim_fl.validation.page.forest import Forest, Row, agreement_svg, forest_svg, subgroup_svg
from eucaim_fl.validation.page.tables import Cell, Taking, matrix_svg, participation_svg

HOSTILE = '<script>alert("x")</script>&"\']]>'
FOREST = Forest("f", "AUC by hospital", "AUC", (0.0, 1.0))


def parsed(svg: str) -> ET.Element:
    """The drawing, which must be well formed and say what it shows."""
    root = ET.fromstring(svg)  # noqa: S314 - our own drawing, which has no DTD
    assert root.attrib["role"] == "img"
    names = root.attrib["aria-labelledby"].split()
    told = {one.attrib.get("id"): one.text for one in root if one.tag in ("title", "desc")}
    assert all(told.get(name) for name in names)
    return root


def words(root: ET.Element) -> list[str]:
    """Texts as they are seen."""
    return [one.text or "" for one in root.iter("text")]


def marks(root: ET.Element, style: str) -> list[ET.Element]:
    return [one for one in root.iter() if style in one.attrib.get("class", "").split()]


class TestForest:
    def test_the_diamond_spans_the_pooled_interval_and_the_line_below_the_prediction(self):
        rows = [Row("a", Span(0.6, 0.5, 0.7), "10", 0.5), Row("b", Span(0.8, 0.75, 0.85), "90", 0.5)]
        root = parsed(forest_svg(FOREST, rows, Span(0.7, 0.6, 0.8), (0.5, 0.9)))
        points = [tuple(map(float, one.split(","))) for one in marks(root, "diamond")[0].attrib["points"].split()]
        dots = sorted(float(one.attrib["cx"]) for one in marks(root, "m0") if one.tag == "circle")
        assert points[0][0] == pytest.approx(dots[0], abs=0.11)  # the lower end at 0.6, as hospital a
        assert points[2][0] == pytest.approx(dots[1], abs=0.11)  # the upper end at 0.8, as hospital b
        line = next(one for one in marks(root, "range") if one.attrib["y1"] == one.attrib["y2"])
        assert float(line.attrib["x1"]) < points[0][0] < points[2][0] < float(line.attrib["x2"])
        assert "0.700 (0.600 to 0.800)" in words(root)
        assert "0.500 to 0.900" in words(root)

    def test_without_a_prediction_no_new_hospital_is_drawn(self):
        root = parsed(forest_svg(FOREST, [Row("a", Span(0.6, 0.5, 0.7))], Span(0.6, 0.5, 0.7), (math.nan, math.nan)))
        assert "A new hospital" not in words(root)

    def test_a_hospital_without_a_figure_says_why(self):
        root = parsed(forest_svg(FOREST, [Row("a", None, "–", silent="withheld")], None, None))
        assert "withheld" in words(root)
        assert not marks(root, "dot")

    def test_an_interval_without_end_has_an_arrow_and_stays_on_the_axis(self):
        forest = Forest("f", "Ratio", "LR+")
        root = parsed(forest_svg(forest, [Row("a", Span(2.0, 1.0, math.inf))], None, None))
        assert len(marks(root, "arrow")) == 1
        assert "inf" not in ET.tostring(root, encoding="unicode").replace("info", "")

    def test_weights_are_areas(self):
        rows = [Row("a", Span(0.6, 0.5, 0.7), weight=0.0), Row("b", Span(0.6, 0.5, 0.7), weight=1.0)]
        small, large = (float(one.attrib["r"]) for one in marks(parsed(forest_svg(FOREST, rows, None, None)), "dot"))
        assert small < large

    def test_a_long_name_is_shortened_and_whole_where_pointed_at(self):
        name = "hospital-universitario-y-politecnico-de-la-fe"
        svg = forest_svg(FOREST, [Row(name, Span(0.6, 0.5, 0.7))], None, None)
        shown = next(one for one in parsed(svg).iter("text") if (one.text or "").startswith("hospital-u"))
        assert (shown.text or "").endswith("…")
        assert shown.find("title").text == name  # type: ignore[union-attr]

    @given(st.lists(st.tuples(*[st.floats(allow_nan=True, allow_infinity=True, width=32)] * 3), min_size=0, max_size=5))
    def test_whatever_the_figures_are_all_places_are_numbers(self, values):
        rows = [Row(f"h{i}", Span(*value)) for i, value in enumerate(values)]
        root = parsed(forest_svg(Forest("f", "t", "x"), rows, Span(0.5, math.nan, math.inf), (0.1, math.inf)))
        for one in root.iter():
            for key in ("x", "y", "x1", "x2", "y1", "y2", "cx", "cy", "r", "width", "height"):
                if key in one.attrib:
                    assert math.isfinite(float(one.attrib[key]))


class TestSubgroups:
    def test_a_suppressed_group_is_named_as_such_and_has_no_mark(self):
        rows = [
            Row("Sex", kind="heading"),
            Row("female", Span(0.8, 0.7, 0.9), "40", aside="largest group", grouped=True),
            Row("other", None, "–", silent="suppressed: too few patients", grouped=True),
        ]
        root = parsed(subgroup_svg(FOREST, rows, 0.8))
        assert "suppressed: too few patients" in words(root)
        assert len(marks(root, "dot")) == 1
        assert "1 without a figure" in (root.find("desc").text or "")  # type: ignore[union-attr]


class TestAgreement:
    def test_the_band_lies_between_the_limits_and_no_patient_is_a_point(self):
        forest = Forest("b", "Volumes", "ml", reference=(0.0, "no difference"), digits=1)
        root = parsed(agreement_svg(forest, Span(-1, -2, 0), Span(-9, -10, -8), Span(7, 6, 8)))
        band = marks(root, "band")[0]
        start, end = float(band.attrib["x"]), float(band.attrib["x"]) + float(band.attrib["width"])
        low, high = sorted(float(one.attrib["cx"]) for one in marks(root, "dot"))
        assert (start, end) == (pytest.approx(low, abs=0.2), pytest.approx(high, abs=0.2))
        assert len(marks(root, "dot")) == 2
        assert len(marks(root, "reference")) == 1


class TestCurves:
    def test_the_threshold_is_marked_at_its_place_with_both_limits(self):
        point = Marked(0.5, 0.2, 0.9, (0.1, 0.3), (0.8, 1.0))
        curve = Curve("m", [(0, 0), (0.2, 0.9), (1, 1)], [(0, 0, 0.1), (1, 0.9, 1)], [point], "AUC 0.9")
        root = parsed(roc_svg("roc", [curve]))
        dot = marks(root, "dot")[0]
        crosses = marks(root, "whisker")
        assert len(crosses) == 2
        assert all(float(one.attrib["x1"]) <= float(dot.attrib["cx"]) <= float(one.attrib["x2"]) for one in crosses)
        assert "0.5" in words(root)
        assert "AUC 0.9" in (root.find("desc").text or "")  # type: ignore[union-attr]

    def test_two_models_differ_by_more_than_colour(self):
        curves = [Curve(name, [(0, 0), (1, 1)], marked=[Marked(0.5, 0.5, 0.5)]) for name in ("a", "b")]
        root = parsed(precision_recall_svg("pr", curves, 0.3))
        assert {one.tag for one in marks(root, "dot")} == {"circle", "rect"}
        assert [one.attrib["class"] for one in marks(root, "curve")] == ["curve m0", "curve m1"]

    def test_no_curve_is_no_fault(self):
        assert marks(parsed(roc_svg("roc", [])), "curve") == []

    def test_a_perfect_line_is_the_diagonal(self):
        points = [CalibrationPoint(p, Span(p, p - 0.05, p + 0.05), 10) for p in (0.1, 0.5, 0.9)]
        root = parsed(calibration_svg("c", "m", 0, points, (1.0, 0.0)))
        line = marks(root, "curve")[0].attrib["points"].split()
        diagonal = marks(root, "guess")[0].attrib["points"].split()
        (x0, y0), (x1, y1) = (tuple(map(float, one.split(","))) for one in diagonal)
        for x, y in (tuple(map(float, one.split(","))) for one in line):
            assert (y - y0) / (y1 - y0) == pytest.approx((x - x0) / (x1 - x0), abs=0.01)
        assert len(marks(root, "bar")) == 3

    @pytest.mark.parametrize("fit", [(1e308, 1e308), (-400.0, 900.0), (math.nan, 0.0), None])
    def test_a_line_beyond_all_numbers_is_no_fault(self, fit):
        points = [CalibrationPoint(0.0, Span(math.nan), 0), CalibrationPoint(1.0, Span(1.0, 0.9, 1.0), 4)]
        parsed(calibration_svg("c", "m", 0, points, fit))

    def test_acting_on_everyone_is_cut_where_it_falls_far_below_nobody(self):
        everyone = [(0.1, 0.2), (0.5, -0.5), (0.9, -8.0)]
        root = parsed(decision_svg("d", [Curve("m", [(0.1, 0.2), (0.9, 0.05)])], everyone, [0.5, 2.0]))
        assert len(marks(root, "reference")) == 1  # a threshold off the axis is not drawn
        assert len(marks(root, "guess")[0].attrib["points"].split()) == 2

    @pytest.mark.parametrize("empty", [[], [(0.5, math.nan)]])
    def test_a_decision_curve_without_values_is_no_fault(self, empty):
        parsed(decision_svg("d", [Curve("m", empty)], empty))


class TestTables:
    def test_the_worst_is_darkest_and_every_figure_is_written(self):
        rows = [("a", [Cell("0.9", 1.0)]), ("b", [Cell("0.5", 0.0)]), ("c", [Cell("–")])]
        root = parsed(matrix_svg("m", "t", [("AUC", "net")], rows))
        assert [one.attrib["class"] for one in marks(root, "cell")] == ["cell s0", "cell s4", "cell none"]
        assert {"0.9", "0.5", "–", "AUC", "net"} <= set(words(root))

    def test_who_did_not_answer_has_words_and_no_bar(self):
        root = parsed(participation_svg("p", [Taking("a", 10, 2), Taking("b", 0, words="did not answer")]))
        assert len(marks(root, "bar")) == 1
        assert len(marks(root, "failed")) == 1
        assert "did not answer" in words(root)

    def test_nobody_is_no_fault(self):
        parsed(participation_svg("p", []))
        parsed(matrix_svg("m", "t", [], []))


class TestDrawing:
    def test_hostile_words_are_words(self):
        drawings = [
            forest_svg(FOREST, [Row(HOSTILE, None, HOSTILE, silent=HOSTILE, aside=HOSTILE)], None, None, HOSTILE),
            subgroup_svg(Forest("g", HOSTILE, HOSTILE), [Row(HOSTILE, kind="heading")], None),
            roc_svg("r", [Curve(HOSTILE, [(0, 0)], summary=HOSTILE)]),
            calibration_svg("c", HOSTILE, 0, [], None),
            matrix_svg("m", HOSTILE, [(HOSTILE,)], [(HOSTILE, [Cell(HOSTILE)])]),
            participation_svg("p", [Taking(HOSTILE, 0, words=HOSTILE)]),
        ]
        for drawing in drawings:
            root = parsed(drawing)
            assert not [one for one in root.iter() if one.tag not in _TAGS]
            assert not re.search(r"\son\w+=|href=|url\(", re.sub(r">[^<]*<", "><", drawing))

    def test_the_same_values_give_the_same_drawing(self):
        rows = [Row("a", Span(0.6, 0.5, 0.7))]
        assert forest_svg(FOREST, rows, None, None) == forest_svg(FOREST, rows, None, None)

    def test_what_is_beyond_an_axis_lies_at_its_end(self):
        axes = Axes((0, 1), (0, 1), (10, 20, 110, 220))
        assert (axes.across(-3), axes.across(0.5), axes.across(7)) == (10, 60, 110)
        assert (axes.up(0), axes.up(1)) == (220, 20)
        assert axes.path([(math.nan, 0.5), (0.5, 0.5)]) == [(60, 120)]

    @given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6), st.integers(2, 8))
    def test_ticks_are_few_ascend_and_lie_within(self, low, width, most):
        high = low + width
        found = ticks(low, high, most)
        if high > low:
            assert len(found) <= most + 1
            assert list(found) == sorted(found)
            slack = 1e-6 * max(abs(low), abs(high), width)
            assert all(low - slack <= one <= high + slack for one in found)

    def test_no_line_is_wider_than_its_column(self):
        assert wrapped("Negative likelihood ratio at 0.35", 80) == ["Negative", "likelihood", "ratio at", "0.35"]
        assert all(len(one) <= len(shortened("x" * 90, 80)) for one in wrapped("abc " * 9 + "y" * 40, 80))


_TAGS = {"svg", "title", "desc", "text", "line", "polyline", "polygon", "circle", "rect"}
