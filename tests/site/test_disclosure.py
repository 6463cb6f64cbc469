"""Few people: what is taken out before the gate looks."""

from __future__ import annotations

from eucaim_fl.records import SiteMetrics
from eucaim_fl.site.disclosure import small_class, without_few


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
