"""Few people, many decimals: what is taken out or rounded before the gate looks."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eucaim_fl.records import SiteMetrics
from eucaim_fl.site.disclosure import base_name, coarse, only_listed, rounded, small_class, without_few
from eucaim_fl.site.report import MetricsRecord, SiteReport
from eucaim_fl.validation.pooling import check_metrics


def report(*metrics: SiteMetrics, **changes: Any) -> SiteReport:
    values = {"kind": "round", "site": "a", "plan_sha256": "0" * 64, "cohort_sha256": "1" * 64, "round": 1}
    records = tuple(MetricsRecord.of(one) for one in metrics)
    return SiteReport.model_validate({**values, "patients": 10, "metrics": records, **changes})


def classified(*confusion: float) -> SiteMetrics:
    values = {"auc": 0.8, "balanced_accuracy": 0.7, "brier": 0.1}
    patients = int(sum(confusion))
    sums = {"confusion": confusion, "brier": (float(patients), 1.0, 0.5), "scores_1_positive": (1.0,) * 101}
    return SiteMetrics("test", patients, values, sums)


class TestSmallClass:
    def test_a_class_of_one_patient_is_small(self):
        assert small_class(classified(8, 1, 0, 1), 5)

    def test_a_class_that_nobody_has_is_not(self):
        assert not small_class(classified(8, 2, 0, 0), 5)

    def test_classes_at_the_minimum_are_not(self):
        assert not small_class(classified(5, 0, 1, 4), 5)


class TestWithoutFew:
    def test_figures_by_class_go_and_the_others_stay(self):
        left = without_few(classified(8, 1, 0, 1), 5)
        assert set(left.values) == {"brier"}
        assert set(left.sums) == {"brier"}

    def test_a_mean_of_too_few_patients_goes(self):
        metrics = SiteMetrics("test", 9, {"dice": 0.5, "hd95_mm": 3.0}, {"dice": (9, 4.5, 3), "hd95_mm": (2, 6, 18)})
        assert set(without_few(metrics, 5).values) == {"dice"}

    def test_enough_people_lose_nothing(self):
        assert without_few(classified(5, 0, 1, 4), 5) == classified(5, 0, 1, 4)


class TestCoarse:
    @given(st.integers(0, 10**6), st.integers(1, 1000))
    def test_it_is_a_multiple_of_the_minimum_and_less_than_one_below(self, count, minimum):
        told = coarse(count, minimum)
        assert told % minimum == 0
        assert 0 <= count - told < minimum
        assert coarse(told, minimum) == told

    def test_fewer_than_the_minimum_are_none(self):
        assert [coarse(n, 5) for n in (0, 4, 5, 9, 10)] == [0, 0, 5, 5, 10]


class TestBaseName:
    @pytest.mark.parametrize(
        ("name", "base"),
        [
            ("dice", "dice"),
            ("dice_left_lung", "dice"),
            ("hd95_mm_liver", "hd95_mm"),
            ("scores_12_negative", "scores"),
            ("balanced_accuracy", "balanced_accuracy"),
            ("diced", "diced"),
        ],
    )
    def test_it_is_without_label_and_class(self, name, base):
        assert base_name(name) == base


class TestOnlyListed:
    def test_what_is_not_listed_goes_with_its_sums(self):
        sums = {"dice_liver": (9, 4.5, 3), "hd95_mm": (9, 6, 18)}
        metrics = SiteMetrics("test", 9, {"dice_liver": 0.5, "hd95_mm": 3.0}, sums)
        left = only_listed(metrics, frozenset({"dice"}))
        assert set(left.values) == set(left.sums) == {"dice_liver"}
        assert only_listed(metrics, None) == metrics


class TestRounded:
    def test_values_and_the_training_loss_are(self):
        told = rounded(report(SiteMetrics("validation", 9, {"dice": 0.12345}), train_loss=1.98765), 3)
        assert told.metrics[0].values == {"dice": 0.123}
        assert told.train_loss == 1.988

    def test_the_means_in_sums_are_and_counts_stay(self):
        told = rounded(report(SiteMetrics("validation", 4, {}, {"dice": (4.0, 1.8, 0.9)})), 1)
        assert told.metrics[0].sums == {"dice": (4.0, 4 * 0.5, 4 * 0.3)}  # means 0.45, and 0.225 raised over 0.5²
        counts = {"confusion": (3.0, 1.0, 2.0, 4.0), "scores_1_positive": (1.0, 2.0, 3.0), "brier": (0.0, 0.0, 0.0)}
        assert rounded(report(SiteMetrics("validation", 10, {}, counts)), 0).metrics[0].sums == counts

    def test_nothing_is_without_a_number_of_places(self):
        told = report(SiteMetrics("validation", 9, {"dice": 0.12345}), train_loss=1.98765)
        assert rounded(told, None) is told

    def test_without_a_training_loss_there_is_none(self):
        assert rounded(report(), 2).train_loss is None

    @given(st.lists(st.floats(0, 30_000), min_size=1, max_size=20), st.integers(0, 6))
    def test_patients_could_have_such_sums_and_doing_it_again_changes_no_bit(self, values, digits):
        sums = {"hd95_mm": (float(len(values)), sum(values), sum(v * v for v in values))}
        told = rounded(report(SiteMetrics("validation", len(values), {}, sums)), digits)
        check_metrics(told.metrics[0].plain())
        assert rounded(told, digits) == told
        mean = told.metrics[0].sums["hd95_mm"][1] / len(values)
        assert abs(mean - sum(values) / len(values)) <= 0.5 * 10**-digits * 1.001
