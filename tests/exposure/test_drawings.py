"""Figures are plain SVG in the page's colours."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import numpy as np

from eucaim_fl.exposure.drawings import bars_svg, roc_svg, scores_svg


def texts(svg: str) -> list[str]:
    return [one.text or "" for one in ElementTree.fromstring(svg).iter("text")]  # noqa: S314 - our own text


class TestRocSvg:
    def test_it_has_a_line_for_each_curve_and_one_for_guessing(self):
        svg = roc_svg({"without": [(0.0, 0.0), (0.0, 0.5), (1.0, 1.0)], "with": [(0.0, 0.0), (1.0, 1.0)]}, 0.004)
        assert svg.count("<polyline") == 2
        assert 'class="guess"' in svg
        assert {"0.1 %", "1 %", "10 %", "100 %"} <= set(texts(svg))

    def test_nothing_is_drawn_outside(self):
        svg = roc_svg({"with": [(0.0, 0.0), (0.3, 0.0), (1.0, 1.0)]}, 0.01)
        points = re.search(r'points="([^"]*)"', svg)
        assert points is not None
        xs, ys = zip(*(map(float, p.split(",")) for p in points.group(1).split()), strict=True)
        assert min(xs) >= 0
        assert min(ys) >= 0
        assert max(ys) <= 250


class TestScoresSvg:
    def test_both_groups_are_drawn_from_the_axis_up(self):
        rng = np.random.default_rng(0)
        included = rng.random(500) < 0.5
        svg = scores_svg(included + rng.normal(size=500), included, "with")
        assert "var(--with)" in svg
        assert "var(--soft)" in svg
        assert "score of a canary" in texts(svg)

    def test_equal_scores_are_one_bar(self):
        svg = scores_svg(np.ones(6), np.array([True, False] * 3), "without")
        assert svg.count("<rect") == 2


class TestBarsSvg:
    def test_each_value_is_named_and_the_promise_is_a_line(self):
        svg = bars_svg([("the plan", 1.5, "with"), ("off <purpose>", 12.0, "without")], 8.0)
        assert {"1.50", "12.00", "off <purpose>", "promised: at most 8.00"} <= set(texts(svg))
        assert 'class="claim"' in svg

    def test_without_promise_there_is_no_line(self):
        assert "claim" not in bars_svg([("the plan", 0.0, "without")], None)
