"""From per-patient results to what sites send, and to values over all patients."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from eucaim_fl.errors import DataError, RecipeError, ReplyError
from eucaim_fl.records import SiteMetrics
from eucaim_fl.validation.metrics import auc, balanced_accuracy, brier
from eucaim_fl.validation.pooling import (
    BINS,
    better,
    check_metrics,
    classification_summary,
    count_values,
    histogram_auc,
    pool,
    segmentation_summary,
)

NAN = math.nan


@st.composite
def cohorts(draw: st.DrawFn) -> list[tuple[NDArray[np.float64], NDArray[np.int64]]]:
    """Probabilities and truth at one to four sites, of the same number of classes."""
    classes = draw(st.integers(2, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    sizes = draw(st.lists(st.integers(1, 12), min_size=1, max_size=4))
    return [(rng.dirichlet(np.ones(classes), size=n), rng.integers(classes, size=n)) for n in sizes]


class TestSegmentationSummary:
    def test_a_mean_is_over_the_patients_for_whom_it_is_defined(self) -> None:
        found = segmentation_summary(
            "test", [{"dice": 0.5, "hd95_mm": 3.0}, {"dice": NAN, "hd95_mm": NAN}, {"dice": 1.0}]
        )
        assert found.patients == 3
        assert found.values == {"dice": 0.75, "hd95_mm": 3.0}
        assert found.sums == {"dice": (2.0, 1.5, 1.25), "hd95_mm": (1.0, 3.0, 9.0)}

    def test_what_is_defined_for_nobody_has_no_value(self) -> None:
        found = segmentation_summary("validation", [{"dice": NAN}])
        assert found.values == {}
        assert found.sums == {"dice": (0.0, 0.0, 0.0)}
        assert pool([found]) == {"patients": 1.0}

    def test_no_patient_gives_nothing(self) -> None:
        assert segmentation_summary("test", []) == SiteMetrics("test", 0)

    def test_an_infinite_value_is_refused(self) -> None:
        with pytest.raises(DataError, match="'hd95_mm' is not finite"):
            segmentation_summary("test", [{"hd95_mm": math.inf}])


class TestClassificationSummary:
    PROBABILITIES = np.array([[0.9, 0.1], [0.6, 0.4], [0.65, 0.35], [0.2, 0.8]])
    TRUTH = np.array([0, 0, 1, 1])

    def test_the_values_are_those_of_the_metrics(self) -> None:
        found = classification_summary("test", self.PROBABILITIES, self.TRUTH, histograms=False)
        assert found.values["auc"] == 0.75
        assert found.values["balanced_accuracy"] == 0.75
        assert found.values["brier"] == pytest.approx((0.01 + 0.16 + 0.4225 + 0.04) / 4)
        assert found.sums["confusion"] == (2.0, 0.0, 1.0, 1.0)
        assert sorted(found.sums) == ["brier", "confusion"]

    def test_histograms_count_hundredths_of_the_positive_class(self) -> None:
        found = classification_summary("test", self.PROBABILITIES, self.TRUTH, histograms=True)
        negative, positive = found.sums["scores_1_negative"], found.sums["scores_1_positive"]
        assert [bin_ for bin_, count in enumerate(negative) if count] == [10, 40]
        assert [bin_ for bin_, count in enumerate(positive) if count] == [35, 80]
        assert len(negative) == len(positive) == BINS

    def test_several_classes_have_a_pair_each(self) -> None:
        found = classification_summary("test", np.eye(3), np.arange(3), histograms=True)
        assert sum(key.startswith("scores_") for key in found.sums) == 6

    def test_what_is_not_defined_is_left_out(self) -> None:
        found = classification_summary("test", self.PROBABILITIES[:2], self.TRUTH[:2], histograms=False)
        assert sorted(found.values) == ["brier"]

    def test_no_patient_has_no_value(self) -> None:
        found = classification_summary("test", np.zeros((0, 2)), np.zeros(0, int), histograms=True)
        assert found.values == {}
        assert pool([found]) == {"patients": 0.0}

    @pytest.mark.parametrize("probabilities", [np.array([0.1, 0.9]), np.array([[0.1, 0.1], [0.5, 0.5]])])
    def test_what_is_no_probability_is_refused(self, probabilities: NDArray[np.float64]) -> None:
        with pytest.raises(DataError, match="Probabilities"):
            classification_summary("test", probabilities, np.array([0, 1]), histograms=False)


class TestHistogramAuc:
    def test_a_shared_bin_counts_one_half_and_bounds_the_error(self) -> None:
        # 16 pairs, 4 of them in one bin
        assert histogram_auc([2, 2, 0], [0, 2, 2]) == (14 / 16, 2 / 16)

    def test_it_is_not_defined_without_positives(self) -> None:
        assert all(math.isnan(value) for value in histogram_auc([1, 0], [0, 0]))

    @given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=2, max_size=40))
    def test_the_exact_value_lies_within_the_bound(self, patients: list[tuple[float, bool]]) -> None:
        scores, truth = np.array([s for s, _ in patients]), np.array([int(t) for _, t in patients])
        bins = np.rint(scores * 100).astype(int)
        counts = [np.bincount(bins[truth == side], minlength=BINS).tolist() for side in (0, 1)]
        value, bound = histogram_auc(*counts)
        exact = auc(scores, truth)
        assert math.isnan(value) == math.isnan(exact)
        if not math.isnan(exact):
            assert abs(value - exact) <= bound + 1e-12


class TestCountValues:
    def test_they_are_those_of_the_counts(self) -> None:
        found = classification_summary(
            "test", TestClassificationSummary.PROBABILITIES, TestClassificationSummary.TRUTH, histograms=True
        )
        assert count_values(found.sums) == {"balanced_accuracy": 0.75, "auc": 0.75}

    def test_what_counts_do_not_define_is_left_out(self) -> None:
        assert count_values({"confusion": (3.0, 1.0, 0.0, 0.0), "brier": (4.0, 1.0, 0.5)}) == {}
        assert count_values({}) == {}


class TestPool:
    def test_a_site_counts_by_its_patients(self) -> None:
        sites = [segmentation_summary("test", [{"dice": 1.0}]), segmentation_summary("test", [{"dice": 0.5}] * 3)]
        assert pool(sites) == {"patients": 4.0, "dice": 0.625}

    @settings(max_examples=60)
    @given(cohorts())
    def test_pooled_values_are_those_of_the_pooled_patients(
        self, cohort: list[tuple[NDArray[np.float64], NDArray[np.int64]]]
    ) -> None:
        probabilities, truth = (np.concatenate(parts) for parts in zip(*cohort, strict=True))
        found = pool([classification_summary("test", p, t, histograms=True) for p, t in cohort])
        expected = {
            "brier": brier(probabilities, truth),
            "balanced_accuracy": balanced_accuracy(probabilities.argmax(axis=1), truth, probabilities.shape[1]),
            "auc": auc(np.rint(probabilities * 100), truth),
            "patients": len(truth),
        }
        assert found == pytest.approx({k: v for k, v in expected.items() if not math.isnan(v)})

    @settings(max_examples=30)
    @given(cohorts(), st.randoms(use_true_random=False))
    def test_the_order_of_sites_changes_no_bit(
        self, cohort: list[tuple[NDArray[np.float64], NDArray[np.int64]]], random: Any
    ) -> None:
        for histograms in (True, False):
            sites = [classification_summary("test", p, t, histograms=histograms) for p, t in cohort]
            expected = pool(sites)
            random.shuffle(sites)
            assert pool(sites) == expected

    def test_sites_that_withhold_are_left_out(self) -> None:
        sites = [segmentation_summary("test", [{"dice": 0.5}]), SiteMetrics("test", 3, withheld="too few patients")]
        assert pool(sites) == {"patients": 1.0, "dice": 0.5}

    def test_without_every_sites_histograms_there_is_only_the_mean_of_the_sites(self) -> None:
        p, truth = TestClassificationSummary.PROBABILITIES, TestClassificationSummary.TRUTH
        sites = [
            classification_summary("test", p, truth, histograms=True),
            classification_summary("test", p[[0, 3]], truth[[0, 3]], histograms=False),
        ]
        found = pool(sites)
        assert "auc" not in found
        assert found["auc_site_mean"] == pytest.approx((4 * 0.75 + 2 * 1.0) / 6)

    def test_no_site_gives_nobody(self) -> None:
        assert pool([]) == {"patients": 0.0}

    def test_different_splits_are_refused(self) -> None:
        with pytest.raises(ReplyError, match="splits"):
            pool([SiteMetrics("test", 1), SiteMetrics("train", 1)])

    def test_different_numbers_of_classes_are_refused(self) -> None:
        sites = [classification_summary("test", np.eye(k), np.arange(k), histograms=False) for k in (2, 3)]
        with pytest.raises(ReplyError, match="number of classes"):
            pool(sites)

    def test_what_can_not_be_pooled_is_refused(self) -> None:
        with pytest.raises(ReplyError, match="not finite"):
            pool([SiteMetrics("test", 1, sums={"dice": (1.0, NAN, 1.0)})])


class TestCheckMetrics:
    GOOD = classification_summary(
        "test", TestClassificationSummary.PROBABILITIES, TestClassificationSummary.TRUTH, histograms=True
    )

    def test_what_a_site_summarised_passes(self) -> None:
        check_metrics(self.GOOD, classes=2)
        check_metrics(segmentation_summary("test", [{"dice": 0.1}, {"dice": 0.1}, {"dice": 0.1}]))

    @pytest.mark.parametrize(
        ("sums", "message"),
        [
            ({"dice": (1.0, 1.0)}, "number, sum and sum of squares"),
            ({"dice": (-1.0, 0.0, 0.0)}, "defined for -1 of 4"),
            ({"dice": (5.0, 1.0, 1.0)}, "defined for 5 of 4"),
            ({"dice": (1.5, 1.0, 1.0)}, r"defined for 1\.5"),
            ({"dice": (2.0, 3.0, 1.0)}, "No 2 values"),
            ({"dice": (0.0, 1.0, 1.0)}, "No 0 values"),
            ({"dice": (1.0, math.inf, 1.0)}, "not finite"),
            ({"dice": (1.0, 1e300, 1.0)}, "not finite"),
            ({"confusion": (1.0, 1.0, 2.0)}, "wrong size"),
            ({"confusion": (4.0,)}, "wrong size"),
            ({"confusion": (2.0, 1.0, 0.0, 0.0)}, "not those of 4 patients"),
            ({"confusion": (5.0, -1.0, 0.0, 0.0)}, "not those of 4 patients"),
            ({"confusion": (3.5, 0.5, 0.0, 0.0)}, "not those of 4 patients"),
            ({"scores_1_negative": (4.0, 0.0)}, "wrong name or length"),
            ({"scores_1x_negative": (0.0,) * BINS}, "wrong name or length"),
            ({"scores_1_positive": (3.0,) + (0.0,) * (BINS - 1)}, "not those of 4 patients"),
            ({"patients": (1.0, 1.0, 1.0)}, "no sum that a site sends"),
            ({"auc": (1.0, 1.0, 1.0)}, "no sum that a site sends"),
        ],
    )
    def test_malformed_sums_are_refused(self, sums: dict[str, tuple[float, ...]], message: str) -> None:
        with pytest.raises(ReplyError, match=message):
            check_metrics(SiteMetrics("test", 4, sums=sums))

    def test_another_number_of_classes_than_the_plans_is_refused(self) -> None:
        with pytest.raises(ReplyError, match="wrong size"):
            check_metrics(self.GOOD, classes=3)

    @pytest.mark.parametrize("patients", [-1, 10**400])
    def test_an_impossible_number_of_patients_is_refused(self, patients: int) -> None:
        with pytest.raises(ReplyError, match="number of patients"):
            check_metrics(SiteMetrics("test", patients))

    @pytest.mark.parametrize(("value", "message"), [(NAN, "not finite"), (1.5, "outside 0 to 1")])
    def test_an_impossible_value_is_refused(self, value: float, message: str) -> None:
        with pytest.raises(ReplyError, match=message):
            check_metrics(SiteMetrics("test", 4, values={"auc": value}))

    def test_withheld_metrics_that_were_sent_are_refused(self) -> None:
        with pytest.raises(ReplyError, match="withheld"):
            check_metrics(replace(self.GOOD, withheld="too few patients"))


class TestBetter:
    def test_the_goal_of_each_task(self) -> None:
        assert better("segmentation") == ("dice", "max")
        assert better("classification") == ("auc", "max")

    def test_classification_falls_back_on_the_brier_score(self) -> None:
        assert better("classification", {"brier", "auc"}) == ("auc", "max")
        assert better("classification", {"brier", "auc_site_mean"}) == ("auc_site_mean", "max")
        assert better("classification", {"brier"}) == ("brier", "min")

    def test_an_unknown_task_names_the_nearest(self) -> None:
        with pytest.raises(RecipeError, match="Did you mean 'segmentation'"):
            better("segmentatoin")
