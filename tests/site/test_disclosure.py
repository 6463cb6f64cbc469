"""Few people, many decimals: what is taken out or rounded before the gate looks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eucaim_fl.privacy.figures import noised_classification
from eucaim_fl.records import SiteMetrics
from eucaim_fl.site.disclosure import (
    WITHHELD,
    LeastPeople,
    announced,
    as_told,
    base_name,
    coarse,
    coarse_seconds,
    enough_by_class,
    least_people,
    not_as_told,
    on_base,
    only_listed,
    rounded,
    small_class,
    withheld,
    without_few,
)
from eucaim_fl.site.report import MetricsRecord, SiteReport
from eucaim_fl.validation.pooling import (
    check_metrics,
    classification_summary,
    count_values,
    pool,
    segmentation_summary,
)


def report(*metrics: SiteMetrics, **changes: Any) -> SiteReport:
    values = {"kind": "round", "site": "a", "plan_sha256": "0" * 64, "cohort_sha256": "1" * 64, "round": 1}
    records = tuple(MetricsRecord.of(one) for one in metrics)
    return SiteReport.model_validate({**values, "patients": 10, "metrics": records, **changes})


def classified(*confusion: float) -> SiteMetrics:
    values = {"auc": 0.8, "balanced_accuracy": 0.7, "brier": 0.1}
    patients = int(sum(confusion))
    sums = {"confusion": confusion, "brier": (float(patients), 1.0, 0.5), "scores_1_positive": (1.0,) * 101}
    return SiteMetrics("test", patients, values, sums)


CONFIDENTIAL = least_people(confidential=True, training=1, metric=1)


@st.composite
def classifications(draw: st.DrawFn) -> SiteMetrics:
    """What a site measured of two to four classes, some of them without patients, none of them with few."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    sizes = draw(st.lists(st.sampled_from([0, 5, 6, 7, 8, 13, 31]), min_size=2, max_size=4).filter(any))
    truth = np.repeat(np.arange(len(sizes)), sizes)
    scores = rng.dirichlet(np.full(len(sizes), 0.5), size=len(truth)) + np.eye(len(sizes))[truth] * rng.random()
    return classification_summary("test", scores / scores.sum(1, keepdims=True), truth, histograms=draw(st.booleans()))


class TestLeastPeople:
    def test_the_floors_for_confidential_data_can_only_be_raised(self):
        assert least_people(confidential=True, training=1, metric=1) == LeastPeople(10, 5, 5, 5)
        assert least_people(confidential=True, training=30, metric=12, base=8) == LeastPeople(30, 12, 8, 12)

    @given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 60))
    def test_whatever_a_site_asks_for_they_hold_and_enough_people_are_never_told_as_none(self, training, metric, base):
        least = least_people(confidential=True, training=training, metric=metric, base=base)
        assert least.training >= max(training, 10)
        assert least.metric == least.apart >= max(metric, 5)
        assert least.base >= max(base, 5)
        assert announced(least.metric, least.base) >= least.base

    def test_data_that_hide_nobody_follow_the_site(self):
        assert least_people(confidential=False, training=2, metric=1) == LeastPeople(2, 1, 1, 1)


class TestAnnounced:
    @given(st.integers(0, 10**6), st.integers(1, 1000))
    def test_it_is_the_nearest_multiple_and_stays_itself(self, count, base):
        told = announced(count, base)
        assert told % base == 0
        assert abs(told - count) <= base / 2
        assert announced(told, base) == told

    @given(st.integers(0, 10**4), st.integers(0, 10**4), st.integers(1, 50))
    def test_more_people_are_never_told_as_fewer(self, one, other, base):
        assert (one <= other) <= (announced(one, base) <= announced(other, base))


class TestCoarseSeconds:
    @given(st.floats(0.001, 9e7))
    def test_it_is_the_next_step_and_less_than_two_and_a_half_times_as_long(self, seconds):
        told = coarse_seconds(seconds, 5)
        assert seconds <= told <= max(1.0, 2.5 * seconds)
        assert str(told).strip(".0") in ("1", "2", "5")
        assert coarse_seconds(told, 5) == told

    def test_data_that_hide_nobody_have_exact_times(self):
        assert coarse_seconds(3.14159, 1) == 3.1416


class TestEnoughByClass:
    def test_patients_of_a_class_with_few_are_in_no_group(self):
        classes = {f"p{n}": int(n > 7) for n in range(10)}
        assert enough_by_class(classes, 5) == {"0": {f"p{n}" for n in range(8)}}

    def test_a_segmentation_has_one_group(self):
        assert enough_by_class({"p": None, "q": None}, 2) == {"all": {"p", "q"}}
        assert enough_by_class({"p": None}, 2) == enough_by_class({}, 2) == {}


class TestWithheld:
    def test_it_says_neither_how_many_nor_why(self):
        assert withheld("test") == SiteMetrics("test", 0, {}, {}, WITHHELD)


class TestAsTold:
    def told(self, sizes: list[int], listed: frozenset[str] | None = None) -> SiteMetrics:
        """What leaves of a site with so many patients of each class."""
        truth = np.repeat(np.arange(len(sizes)), sizes)
        rng = np.random.default_rng(0)
        scores = dict(enumerate(rng.dirichlet(np.ones(len(sizes)), size=len(truth))))
        groups = enough_by_class({f"{n:03d}": int(k) for n, k in enumerate(truth)}, 5)
        chosen = sorted(int(patient) for group in groups.values() for patient in group)
        probabilities = np.array([scores[n] for n in chosen]).reshape(-1, len(sizes))
        measured = classification_summary("test", probabilities, truth[chosen], histograms=True)
        return as_told(measured, CONFIDENTIAL, listed)

    @pytest.mark.parametrize("few", [1, 2, 3, 4])
    def test_a_class_with_few_looks_like_one_that_nobody_has(self, few):
        assert self.told([20, few]) == self.told([20, 0])
        assert set(self.told([20, few]).values) == {"brier"}

    @pytest.mark.parametrize("sizes", [[0, 0], [4, 0], [4, 4], [1, 2]])
    def test_few_and_none_look_like_what_the_policy_withholds(self, sizes):
        assert self.told(sizes) == self.told([20, 20], frozenset()) == withheld("test")

    def test_a_metric_that_nobody_has_looks_like_one_that_few_have(self):
        def told(defined: int) -> SiteMetrics:
            people = [{"dice": 0.5, "dice_lesion": 0.5 if n < defined else float("nan")} for n in range(9)]
            return as_told(segmentation_summary("test", people), CONFIDENTIAL, None)

        assert told(0) == told(1) == told(4)
        assert set(told(0).sums) == {"dice"}
        assert set(told(5).sums) == {"dice", "dice_lesion"}

    @settings(max_examples=25, deadline=None)
    @given(st.integers(0, 2**32), st.integers(2, 3), st.sampled_from([0.1, 2.0, 20.0]))
    def test_noised_figures_can_be_told_like_others(self, seed, classes, noise):
        rng = np.random.default_rng(seed)
        p, truth = rng.dirichlet(np.ones(classes), size=60), rng.integers(classes, size=60)
        noised = noised_classification(
            "test", p, truth, histograms=True, noise_multiplier=noise, normal=rng.standard_normal
        )
        noised = replace(noised, values={**noised.values, **count_values(noised.sums)})
        told = as_told(noised, CONFIDENTIAL, None)
        check_metrics(told, classes=classes)
        assert not_as_told(rounded(report(told), 3), CONFIDENTIAL, 3) == ()

    def test_where_data_hide_nobody_nothing_changes(self):
        measured = segmentation_summary("test", [{"dice": 0.25}, {"dice": 0.5}])
        assert as_told(measured, least_people(confidential=False, training=1, metric=1), None) == measured


class TestOnBase:
    def test_means_stay_and_counts_go_to_the_base(self):
        metrics = SiteMetrics("test", 8, {"dice": 0.5}, {"dice": (8.0, 4.0, 3.0), "hd95_mm": (6.0, 12.0, 30.0)})
        told = on_base(metrics, 5)
        assert told.patients == 10
        assert told.values == {"dice": 0.5}
        assert told.sums == {"dice": (10.0, 5.0, 3.75), "hd95_mm": (10.0, 20.0, 50.0)}

    def test_each_class_keeps_its_proportions(self):
        assert on_base(classified(26, 4, 6, 12), 5).sums["confusion"] == (25.0, 5.0, 5.0, 15.0)

    def test_balanced_accuracy_is_that_of_the_counts_told(self):
        told = on_base(classified(26, 4, 6, 12), 5)
        assert told.values["balanced_accuracy"] == pytest.approx((25 / 30 + 15 / 20) / 2)

    def test_an_auc_is_one_that_so_many_patients_can_have(self):
        pairs = on_base(classified(26, 4, 6, 12), 5).values["auc"] * 30 * 20
        assert pairs == pytest.approx(round(pairs))

    def test_a_histogram_tells_the_middle_of_every_five(self):
        scores = np.array([10, 11, 30, 31, 32, 60, 61, 62, 63, 90]) / 100
        measured = classification_summary("test", np.stack([1 - scores, scores], 1), np.ones(10, int), histograms=True)
        counts = on_base(measured, 5).sums["scores_1_positive"]
        bins = [place for place, count in enumerate(counts) for _ in range(int(count))]
        assert (bins[2], bins[7]) == (30, 62)
        assert bins == [17, 24, 30, 36, 43, 49, 56, 62, 68, 75]

    def test_numbers_that_were_told_before_are_told_again(self):
        told = on_base(classified(26, 4, 6, 12), 5, [35, 15])
        assert told.patients == 50
        assert told.sums["confusion"] == (30.0, 5.0, 5.0, 10.0)
        assert told.sums["brier"][0] == 50
        metrics = SiteMetrics("test", 8, {}, {"dice": (8.0, 4.0, 3.0)})
        assert on_base(metrics, 5, [15]).sums["dice"] == (15.0, 7.5, 5.625)

    def test_withheld_metrics_and_base_one_stay(self):
        assert on_base(withheld("test"), 5) == withheld("test")
        assert on_base(classified(8, 1, 0, 1), 1) == classified(8, 1, 0, 1)

    @settings(max_examples=60, deadline=None)
    @given(classifications(), st.integers(5, 8), st.sampled_from([None, 0, 2, 4]))
    def test_patients_could_have_it_and_doing_it_again_changes_no_bit(self, measured, base, digits):
        told = on_base(measured, base)
        check_metrics(told)
        assert on_base(told, base).sums == told.sums
        counts = [told.patients, *told.sums["confusion"], told.sums["brier"][0]]
        assert all(count % base == 0 for count in counts)
        least = LeastPeople(base, base, base, base)
        assert not_as_told(rounded(report(told, patients=2 * base), digits), least, digits) == ()
        assert abs(told.patients - measured.patients) <= base / 2 * 4
        assert told.sums["brier"][1] / told.sums["brier"][0] == pytest.approx(measured.values["brier"])

    def test_pooled_values_of_eight_sites_stay_near_the_exact_ones(self):
        rng, exact, told = np.random.default_rng(0), [], []
        for _ in range(8):
            truth = np.repeat([0, 1], [rng.integers(36, 44), rng.integers(18, 24)])
            score = 1 / (1 + np.exp(-rng.normal(size=len(truth)) - 1.4 * truth + 0.7))
            exact.append(classification_summary("test", np.stack([1 - score, score], 1), truth, histograms=True))
            told.append(on_base(exact[-1], 5))
        near, far = pool(told), pool(exact)
        assert near["auc"] == pytest.approx(far["auc"], abs=0.015)
        assert near["balanced_accuracy"] == pytest.approx(far["balanced_accuracy"], abs=0.03)
        assert near["brier"] == pytest.approx(far["brier"], abs=0.002)
        assert near["patients"] == pytest.approx(far["patients"], rel=0.05)


class TestNotAsTold:
    GOOD = SiteMetrics("test", 10, {"dice": 0.5}, {"dice": (10.0, 5.0, 2.5)})

    def test_what_is_as_told_passes(self):
        good = report(self.GOOD, withheld("validation"), patients=15, seen=10, seconds=20.0, prepare_seconds=2.0)
        assert not_as_told(good, CONFIDENTIAL, None) == ()

    def test_data_that_hide_nobody_pass_as_they_are(self):
        exact = report(classified(8, 2, 3, 4), patients=13, seconds=1.2345)
        assert not_as_told(exact, least_people(confidential=False, training=1, metric=1), None) == ()

    @pytest.mark.parametrize("changes", [{"patients": 13}, {"seen": 12}])
    def test_exact_counts_are_named(self, changes):
        assert not_as_told(report(self.GOOD, **changes), CONFIDENTIAL, None) == ("an exact count of patients",)

    @pytest.mark.parametrize("name", ["seconds", "prepare_seconds"])
    def test_exact_times_are_named(self, name):
        assert not_as_told(report(self.GOOD, **{name: 3.2}), CONFIDENTIAL, None) == ("an exact time",)

    @pytest.mark.parametrize(
        "odd",
        [SiteMetrics("test", 0, withheld="too_few"), SiteMetrics("test", 5, withheld=WITHHELD), SiteMetrics("test", 5)],
    )
    def test_a_split_of_which_nothing_is_told_looks_like_all_others(self, odd):
        assert len(not_as_told(report(odd), CONFIDENTIAL, None)) == 1

    @pytest.mark.parametrize(
        "metrics",
        [
            SiteMetrics("test", 10, {}, {"dice": (9.0, 5.0, 3.0)}),
            SiteMetrics("test", 10, {}, {"confusion": (4.0, 1.0, 0.0, 5.0)}),
            SiteMetrics("test", 10, {"auc": 0.777}, {"confusion": (5.0, 0.0, 0.0, 5.0)}),
            SiteMetrics("test", 10, {"balanced_accuracy": 0.9}, {"confusion": (5.0, 0.0, 0.0, 5.0)}),
        ],
    )
    def test_figures_from_exact_counts_are_named(self, metrics):
        assert not_as_told(report(metrics), CONFIDENTIAL, None) == ("figures from exact counts of patients",)

    def test_sums_that_nobody_can_have_are_left_to_the_check_of_sums(self):
        assert not_as_told(report(SiteMetrics("test", 10, {}, {"dice": (10.0,)})), CONFIDENTIAL, None) == ()


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
