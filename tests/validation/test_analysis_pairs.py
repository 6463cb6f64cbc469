"""Differences of groups of patients, and of two models on the same patients."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm, ttest_rel

from eucaim_fl.validation.analysis_between import MainFigure, point_of
from eucaim_fl.validation.analysis_input import asked_of, by_scope
from eucaim_fl.validation.analysis_pairs import comparisons, group_differences
from eucaim_fl.validation.pairs import holm_adjusted
from eucaim_fl.validation.record import EVERYBODY, TOO_FEW, ModelFigures, PairFigures, ScopeRecord
from eucaim_fl.validation.result_schema import ComparisonResult, GroupDifference
from tests.validation.site_records import decided, measured, moments, plan_for, record

GROUPED = plan_for("classification", ["a", "b"], subgroups=[{"by": "sex"}, {"by": "age", "edges": [60]}])


def cohort(seed: int, size: int, gain: float) -> ModelFigures:
    rng = np.random.default_rng(seed)
    truth = (rng.random(size) < 0.5).astype(np.int64)
    return decided(GROUPED, 1 / (1 + np.exp(-rng.normal(size=size) - gain * (truth - 0.5))), truth)


def differences(**groups: ScopeRecord) -> tuple[GroupDifference, ...]:
    scopes = {EVERYBODY: ScopeRecord(EVERYBODY, 300, (cohort(0, 300, 1.0),))}
    scopes |= {one.scope: one for one in groups.values()}
    found = by_scope(GROUPED, [record(GROUPED, "a", scopes)])
    return group_differences(asked_of(GROUPED), ["frozen"], found[1:])


def group(name: str, seed: int, size: int, gain: float) -> ScopeRecord:
    return ScopeRecord(name, size, (cohort(seed, size, gain),))


class TestGroups:
    def test_the_smaller_group_is_held_against_the_larger_one(self) -> None:
        women, men = group("sex=F", 1, 80, 0.5), group("sex=M", 2, 120, 3.0)
        found = {one.figure: one for one in differences(women=women, men=men)}
        assert set(found) == {"auc", "sensitivity@0.5", "specificity@0.5"}
        one, asked = found["auc"], asked_of(GROUPED)
        points = [point_of(asked, MainFigure("auc"), scope.models) for scope in (women, men)]
        values, errors = zip(*((p.value, p.standard_error) for p in points if p is not None), strict=True)
        assert (one.group, one.reference, one.rule) == ("sex=F", "sex=M", "sex")
        assert one.difference == pytest.approx(values[0] - values[1])
        error = math.hypot(*errors)
        assert one.p == pytest.approx(2 * norm.sf(abs(values[0] - values[1]) / error))
        assert one.high == pytest.approx(values[0] - values[1] + 1.959964 * error)

    def test_p_values_are_adjusted_over_all_groups_and_figures(self) -> None:
        found = differences(
            a=group("sex=F", 1, 80, 0.5), b=group("sex=M", 2, 120, 3.0),
            c=group("age<60", 3, 90, 1.0), d=group("age>=60", 4, 110, 1.2),
        )  # fmt: skip
        assert len(found) == 6
        plain = [one.p for one in found if one.p is not None]
        assert [one.p_adjusted for one in found] == pytest.approx(holm_adjusted(plain))

    def test_a_group_that_nobody_told_of_is_in_no_comparison(self) -> None:
        hidden = ScopeRecord("sex=F", 0, withheld=TOO_FEW)
        assert differences(a=hidden, b=group("sex=M", 2, 120, 3.0)) == ()
        unknown = group("sex=unknown", 1, 100, 1.0)
        assert differences(a=group("sex=M", 2, 120, 3.0), b=unknown) == ()

    def test_a_group_without_a_figure_has_no_difference_and_takes_no_part_in_the_adjustment(self) -> None:
        healthy = ScopeRecord("sex=F", 9, (decided(GROUPED, np.full(9, 0.1), np.zeros(9, dtype=np.int64)),))
        found = differences(a=healthy, b=group("sex=M", 2, 120, 3.0))
        assert [one.difference is None for one in found] == [True, True, False]
        assert [one.p_adjusted for one in found] == [None, None, found[2].p]
        assert "too few patients" in found[0].reason
        assert {one.reference for one in found} == {"sex=M"}

    def test_a_group_alone_is_compared_with_nobody(self) -> None:
        assert differences(a=group("sex=M", 2, 120, 3.0)) == ()

    def test_shares_have_newcombes_interval(self) -> None:
        # 56/70 − 48/80: Newcombe 1998, table II, method 10: 0.0524 to 0.3339
        def found_of(name: str, found: int, missed: int) -> ScopeRecord:
            scores = np.repeat([0.9, 0.1, 0.1], [found, missed, 10])
            truth = np.repeat([1, 1, 0], [found, missed, 10])
            return ScopeRecord(name, len(truth), (decided(GROUPED, scores, truth),))

        told = differences(a=found_of("sex=F", 56, 14), b=found_of("sex=M", 48, 32))
        one = next(one for one in told if one.figure == "sensitivity@0.5")
        assert one.difference == pytest.approx(0.2)
        assert (one.low, one.high) == pytest.approx((0.0524, 0.3339), abs=5e-5)


def compared(task: str, asked: list[dict[str, Any]], *pairs: PairFigures | None) -> tuple[ComparisonResult, ...]:
    plan = plan_for(task, [f"s{k}" for k in range(len(pairs))], models=2, comparisons=asked)
    records = []
    for number, pair in enumerate(pairs):
        scope = ScopeRecord(EVERYBODY, 1000, (ModelFigures(), ModelFigures()), pair)
        records.append(record(plan, f"s{number}", scope))
    return comparisons(asked_of(plan), by_scope(plan, records)[0])


class TestComparisons:
    def test_aucs_weigh_sites_by_what_is_known_of_them(self) -> None:
        pairs = [PairFigures(auc={"yes": (0.06, 0.0004)}), PairFigures(auc={"yes": (0.0, 0.0008)})]
        one = compared("classification", [{"metric": "auc", "margin": 0.05}], *pairs)[0]
        assert one.difference == pytest.approx(0.04)
        assert one.low == pytest.approx(0.04 - 1.959964 * math.sqrt(0.0008 / 3))
        assert (one.outcome, one.sites, one.better) == ("shown", 2, "higher")

    def test_sites_where_models_rank_alike_have_no_variance_and_are_said_to_be_left_out(self) -> None:
        pairs = [PairFigures(auc={"yes": (0.06, 0.0004)}), PairFigures(auc={"yes": (0.0, 0.0)})]
        one = compared("classification", [{"metric": "auc"}], *pairs)[0]
        assert one.difference == pytest.approx(0.06)
        assert "1 of 2 sites" in one.reason
        alike = compared("classification", [{"metric": "auc", "margin": 0.1}], pairs[1])[0]
        assert (alike.difference, alike.low, alike.p, alike.outcome) == (0.0, None, None, None)
        assert "rank alike" in alike.reason
        perfect = compared("classification", [{"metric": "auc"}], PairFigures(auc={"yes": (0.5, 0.0)}))[0]
        assert perfect.difference is None

    def test_each_label_has_its_own_and_all_are_adjusted_together(self) -> None:
        pair = PairFigures(auc={"oedema": (0.06, 0.0009), "nodule": (0.06, 0.0004)})
        found = compared("multilabel", [{"metric": "auc"}], pair)
        assert [one.figure for one in found] == ["auc_oedema", "auc_nodule"]
        assert [one.p_adjusted for one in found] == pytest.approx(holm_adjusted([one.p or 0.0 for one in found]))

    def test_a_mean_at_one_site_has_the_paired_t_test(self) -> None:
        rng = np.random.default_rng(0)
        first, second = rng.beta(6, 3, 40), rng.beta(5, 3, 40)
        one = compared(
            "segmentation", [{"metric": "dice"}], PairFigures(differences={"dice": moments(first - second)})
        )[0]
        expected = ttest_rel(first, second)
        assert one.p == pytest.approx(expected.pvalue, rel=1e-6)
        assert (one.low, one.high) == pytest.approx(tuple(expected.confidence_interval()))
        assert one.patients == 40

    def test_a_certain_difference_has_a_p_of_nearly_none_and_a_zero_one_has_one(self) -> None:
        tight, none = np.array([0.5, 0.5 + 1e-6, 0.5 - 1e-6] * 30), np.array([-0.1, 0.1, 0.0])
        told = [
            compared("segmentation", [{"metric": "dice"}], PairFigures(differences={"dice": moments(v)}))[0]
            for v in (tight, none)
        ]
        assert told[0].p is not None
        assert told[0].p < 1e-11
        assert told[1].p == pytest.approx(1.0, abs=1e-6)

    def test_of_a_distance_less_is_better(self) -> None:
        closer = PairFigures(differences={"hd95_mm": moments(np.array([-3.0, -2.0, -4.0, -3.5]))})
        farther = PairFigures(differences={"hd95_mm": moments(np.array([3.0, 2.0, 4.0, 3.5]))})
        asked = [{"metric": "hd95_mm", "margin": 1.0}]
        good, bad = (compared("segmentation", asked, pair)[0] for pair in (closer, farther))
        assert (good.outcome, bad.outcome, good.better) == ("shown", "inferior_shown", "lower")
        assert "Less is better" in good.sentence

    def test_a_difference_of_volumes_has_no_direction(self) -> None:
        pair = PairFigures(differences={"volume_difference_ml": moments(np.array([-3.0, 2.0, 4.0]))})
        one = compared("segmentation", [{"metric": "volume_difference_ml", "margin": 1.0}], pair)[0]
        assert (one.outcome, one.better) == (None, "neither")
        assert "no non-inferiority" in one.reason

    def test_each_labels_mean_is_compared(self) -> None:
        values = moments(np.array([0.1, 0.2, 0.0]))
        found = compared(
            "organs", [{"metric": "dice"}], PairFigures(differences={"dice_liver": values, "dice_lesion": values})
        )
        assert [one.figure for one in found] == ["dice_lesion", "dice_liver"]

    def test_what_nobody_told_says_so(self) -> None:
        asked = [{"metric": name, "margin": 0.1} for name in ("auc", "accuracy", "brier")]
        found = compared("classification", asked, None)
        assert [one.difference for one in found] == [None] * 3
        assert [one.outcome for one in found] == [None] * 3
        assert all("No site told" in one.reason for one in found)

    def test_one_patient_and_equal_patients_are_no_interval(self) -> None:
        one = compared("segmentation", [{"metric": "dice"}], PairFigures(differences={"dice": (1.0, 0.1, 0.01)}))[0]
        assert (one.difference, one.low) == (pytest.approx(0.1), None)
        same = PairFigures(differences={"dice": moments(np.array([0.25, 0.25, 0.25]))})
        equal = compared("segmentation", [{"metric": "dice", "margin": 0.1}], same)[0]
        assert (equal.difference, equal.low, equal.p, equal.outcome) == (0.25, None, None, None)

    def test_accuracy_needs_both_classes_of_a_site(self) -> None:
        half = PairFigures(agreement={"0.5 with": (5, 3, 1, 1)})
        both = PairFigures(agreement={"0.5 with": (5, 3, 1, 1), "0.5 without": (8, 1, 1, 0)})
        found = compared("classification", [{"metric": "accuracy"}, {"metric": "sensitivity"}], half, both)
        assert (found[0].counts, found[0].sites) == ((13, 4, 2, 1), 1)
        assert found[0].reason == "1 of 2 sites told of one class alone; their patients are not in it."
        assert (found[1].counts, found[1].sites, found[1].reason) == ((10, 6, 2, 2), 2, "")
        alone = compared("classification", [{"metric": "accuracy"}], half)[0]
        assert (alone.difference, alone.sites) == (None, 0)
        assert "1 of 1 sites told of one class alone" in alone.reason

    def test_measured_models_without_a_pair_are_not_compared(self) -> None:
        plan = plan_for("segmentation", ["a"], models=2, comparisons=[{"metric": "dice"}])
        figures = measured({"dice": np.array([0.5, 0.6])})
        whole = by_scope(plan, [record(plan, "a", ScopeRecord(EVERYBODY, 2, (figures, figures)))])[0]
        assert comparisons(asked_of(plan), whole)[0].difference is None
