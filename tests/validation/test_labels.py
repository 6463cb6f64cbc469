"""Multi-label records: figures of each label, their means, and what they are over all sites."""

from __future__ import annotations

import math

import numpy as np
import pytest

from eucaim_fl.errors import DataError, ReplyError
from eucaim_fl.records import SiteMetrics
from eucaim_fl.validation.labels import by_label, joined
from eucaim_fl.validation.pooling import (
    BINS,
    better,
    check_metrics,
    classification_summary,
    multilabel_summary,
    pool,
)
from eucaim_fl.validation.spread import standard_errors

NAN = math.nan
TARGETS = ("oedema", "effusion")
YES = np.array([[0.9, 0.2], [0.4, 0.6], [0.2, 0.5], [0.6, 0.8]])
TRUTH = np.array([[1, NAN], [1, 1], [0, 0], [0, NAN]])


def summary(yes: np.ndarray = YES, truth: np.ndarray = TRUTH, *, histograms: bool = True) -> SiteMetrics:
    return multilabel_summary("test", yes, truth, TARGETS, histograms=histograms)


def of_one(column: int, rows: list[int], *, histograms: bool = True) -> SiteMetrics:
    """The label's own record by the functions of a classification."""
    yes = YES[rows, column]
    truth = TRUTH[rows, column].astype(int)
    return classification_summary("test", np.stack([1 - yes, yes], 1), truth, histograms=histograms)


class TestMultilabelSummary:
    def test_each_label_is_a_classification_of_those_of_whom_it_is_known(self) -> None:
        assert by_label(summary()) == {"oedema": of_one(0, [0, 1, 2, 3]), "effusion": of_one(1, [1, 2])}

    def test_figures_without_a_name_are_means_over_labels(self) -> None:
        found = summary()
        assert found.values["auc_oedema"] == 0.75
        assert found.values["auc_effusion"] == 1.0
        assert found.values["auc"] == 0.875
        assert found.values["balanced_accuracy"] == (0.5 + 1.0) / 2  # a half is a no
        assert found.patients == 4

    def test_a_label_that_is_known_of_nobody_is_left_out(self) -> None:
        unknown = TRUTH.copy()
        unknown[:, 1] = NAN
        assert set(by_label(summary(truth=unknown))) == {"oedema"}

    def test_nobody_has_no_figures(self) -> None:
        assert summary(np.zeros((0, 2)), np.zeros((0, 2))) == SiteMetrics("test", 0)

    def test_other_shapes_are_an_error(self) -> None:
        with pytest.raises(DataError, match="one column for each target"):
            multilabel_summary("test", YES, TRUTH, ("one",), histograms=False)

    def test_taking_apart_and_joining_change_nothing(self) -> None:
        found = summary()
        assert joined(found, by_label(found)) == found
        assert by_label(of_one(0, [0, 1])) == {}


class TestPool:
    def test_two_sites_have_the_figures_of_all_their_patients(self) -> None:
        one, other = summary(YES[:2], TRUTH[:2]), summary(YES[2:], TRUTH[2:])
        whole, found = summary(), pool([one, other])
        assert found["patients"] == 4.0
        assert {n: found[n] for n in whole.values} == pytest.approx(whole.values)

    def test_where_histograms_stay_the_mean_of_the_sites_stands_for_every_label(self) -> None:
        found = pool([summary(), summary(histograms=False)])
        assert "auc" not in found
        assert "auc_oedema" not in found
        assert found["auc_site_mean_oedema"] == 0.75
        assert found["auc_site_mean"] == 0.875

    def test_a_label_that_one_site_withholds_is_that_of_the_others(self) -> None:
        shy = joined(summary(), {"oedema": by_label(summary())["oedema"]})
        found = pool([summary(), shy])
        assert found["auc_effusion"] == 1.0
        assert found["brier_oedema"] == pytest.approx(summary().values["brier_oedema"])

    def test_the_mean_auc_chooses_the_best_model(self) -> None:
        assert better("multilabel") == ("auc", "max")

    def test_each_label_has_its_own_standard_error(self) -> None:
        found = summary()
        errors = standard_errors(pool([found]), [found])
        own = standard_errors({"auc": 0.75, "brier": 0.2}, [of_one(0, [0, 1, 2, 3])])
        assert (errors["auc_oedema"], errors["brier_oedema"]) == (own["auc"], own["brier"])
        assert "auc" not in errors


class TestCheckMetrics:
    def test_a_good_record_passes(self) -> None:
        check_metrics(summary())

    @pytest.mark.parametrize(
        ("sums", "complaint"),
        [
            ({"confusion_x": (1.0, 1.0, 1.0, 2.0)}, "known for 5 of 4"),
            ({"confusion_x": (0.0,) * 4}, "known for 0 of 4"),
            ({"confusion_x": (1.0,) * 9}, "known for 9 of 4"),
            ({"confusion_x": (1.0, 1.0, 1.0)}, "wrong size"),
            ({"confusion_x": (1.0, 1.0, 1.0, math.nan)}, "not finite"),
            ({"confusion_x": (1.0, 1.0, 1.0, math.inf)}, "not finite"),
            ({"confusion_x": (1.0, 0.0, 1.0, 1.0), "brier_x": (4.0, 1.0, 1.0)}, "defined for 4 of 3"),
            ({"confusion_x": (1.0, 1.0, 1.0, 1.0), "confusion": (1.0, 1.0, 1.0, 1.0)}, "sums of none"),
            ({"confusion_x": (1.0, 1.0, 1.0, 1.0), "scores_x_positive": (3.0, *(0.0,) * (BINS - 1))}, "not those of 4"),
            ({"brier_x": (2.0, 3.0, 1.0)}, "No 2 values"),
        ],
    )
    def test_what_no_patients_have_is_refused(self, sums: dict[str, tuple[float, ...]], complaint: str) -> None:
        with pytest.raises(ReplyError, match=complaint):
            check_metrics(SiteMetrics("test", 4, {}, sums))

    def test_an_auc_of_a_label_is_between_0_and_1(self) -> None:
        with pytest.raises(ReplyError, match="outside 0 to 1"):
            check_metrics(SiteMetrics("test", 4, {"auc_x": 1.5}))
