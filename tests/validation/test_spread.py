"""Standard errors of pooled figures."""

from __future__ import annotations

import math

import numpy as np
import pytest

from eucaim_fl.records import SiteMetrics
from eucaim_fl.validation.spread import auc_standard_error, standard_errors


def site(values: list[float], confusion: tuple[float, ...] = ()) -> SiteMetrics:
    sums = {"dice": (float(len(values)), sum(values), sum(v * v for v in values))}
    return SiteMetrics("test", len(values), {}, sums | ({"confusion": confusion} if confusion else {}))


class TestStandardErrors:
    def test_a_mean_over_two_sites_has_that_of_all_their_patients(self):
        a, b = [0.1, 0.5, 0.9], [0.4, 0.8]
        expected = np.std(a + b, ddof=1) / math.sqrt(5)
        assert standard_errors({"dice": 0.54}, [site(a), site(b)])["dice"] == pytest.approx(expected)

    def test_one_patient_has_no_spread(self):
        assert standard_errors({"dice": 0.5}, [site([0.5])]) == {}

    def test_what_nobody_sent_is_left_out(self):
        withheld = SiteMetrics("test", 0, withheld="too_few_patients")
        assert standard_errors({"auc": 0.8, "patients": 9.0}, [withheld]) == {}

    def test_an_auc_has_that_of_the_patients_of_both_classes(self):
        errors = standard_errors({"auc": 0.9}, [site([0.5], (20, 5, 3, 22)), site([0.5], (20, 5, 3, 22))])
        assert errors["auc"] == pytest.approx(auc_standard_error(0.9, 50, 50))


class TestAucStandardError:
    def test_it_is_nan_without_patients_of_one_class(self):
        assert math.isnan(auc_standard_error(0.9, 0, 5))

    def test_more_patients_mean_less(self):
        assert auc_standard_error(0.8, 100, 400) < auc_standard_error(0.8, 25, 100)
