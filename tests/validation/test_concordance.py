"""The concordance index: pairs of patients, counted at sites and added."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eucaim_fl.errors import DataError, ReplyError
from eucaim_fl.records import SiteMetrics
from eucaim_fl.validation.concordance import (
    c_index,
    check_concordance,
    compared,
    most_pairs,
    pooled_c_index,
    survival_summary,
)
from eucaim_fl.validation.pooling import better, check_metrics, count_values, pool

EVENT, CENSORED = True, False


def counted(*patients: tuple[float, float, bool]) -> tuple[int, int, int]:
    risk, time, event = (np.array(column) for column in zip(*patients, strict=True))
    return compared(risk.astype(float), time.astype(float), event)


class TestCompared:
    def test_a_higher_risk_with_an_earlier_event_is_concordant(self) -> None:
        assert counted((2, 1, EVENT), (1, 2, EVENT), (3, 3, EVENT)) == (1, 0, 3)

    def test_equal_risks_are_tied(self) -> None:
        assert counted((1, 1, EVENT), (1, 2, CENSORED)) == (0, 1, 1)

    def test_nothing_is_known_after_somebody_was_lost_sight_of(self) -> None:
        assert counted((2, 1, CENSORED), (1, 2, EVENT)) == (0, 0, 0)

    def test_at_equal_times_the_one_with_the_event_was_first(self) -> None:
        assert counted((2, 1, EVENT), (1, 1, CENSORED)) == (1, 0, 1)

    def test_two_events_at_the_same_time_have_no_order(self) -> None:
        assert counted((2, 1, EVENT), (1, 1, EVENT)) == (0, 0, 0)

    def test_nobody_forms_no_pair(self) -> None:
        assert compared(np.zeros(0), np.zeros(0), np.zeros(0, bool)) == (0, 0, 0)

    @pytest.mark.parametrize(
        ("risk", "time", "complaint"),
        [([1.0], [1.0, 2.0], "one for each patient"), ([math.nan, 1.0], [1.0, 2.0], "not finite")],
    )
    def test_what_does_not_fit_is_an_error(self, risk: list[float], time: list[float], complaint: str) -> None:
        with pytest.raises(DataError, match=complaint):
            compared(np.array(risk), np.array(time), np.array([True, False]))

    def test_leukaemia_with_maintained_chemotherapy_has_the_pairs_of_the_survival_package(self) -> None:
        """Times of Miller 1997 (R's aml, maintained) and made-up scores: 14 concordant, 24 discordant, 2 tied pairs.

        tests/concordance.R of the R package survival.
        """
        times = (9, 13, 13, 18, 23, 28, 31, 34, 45, 48, 161)
        events = (1, 1, 0, 1, 1, 0, 1, 1, 0, 1, 0)
        scores = (1, 6, 2, 7, 3, 7, 3, 8, 4, 4, 5)
        assert counted(*zip(scores, times, map(bool, events), strict=True)) == (14, 2, 14 + 24 + 2)

    def test_many_equal_times_have_the_pairs_of_the_survival_package(self) -> None:
        """13 concordant, 13 discordant, 5 tied pairs: the example "Lots of ties" of the same file."""
        times, events = (1, 2, 2, 2, 3, 4, 4, 4, 5, 2), (1, 0, 1, 0, 1, 0, 1, 1, 0, 1)
        scores = (5, 5, 4, 4, 3, 3, 7, 6, 5, 4)
        assert counted(*zip(scores, times, map(bool, events), strict=True)) == (13, 5, 13 + 13 + 5)

    @settings(max_examples=40)
    @given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.booleans()), min_size=1, max_size=8))
    def test_pairs_are_at_most_those_that_patients_can_form_and_turning_risks_turns_them(self, rows) -> None:
        concordant, tied, pairs = counted(*rows)
        events = sum(event for _, _, event in rows)
        assert pairs <= most_pairs(len(rows) - events, events)
        assert counted(*((-risk, time, event) for risk, time, event in rows)) == (
            pairs - concordant - tied,
            tied,
            pairs,
        )


class TestCIndex:
    def test_without_pairs_it_is_not_defined(self) -> None:
        assert math.isnan(c_index((0, 0, 0)))


def site(risk: list[float], time: list[float], event: list[bool]) -> SiteMetrics:
    return survival_summary("test", np.array(risk), np.array(time), np.array(event))


class TestSurvivalSummary:
    def test_it_has_the_index_and_the_pairs(self) -> None:
        found = site([2.0, 1.0, 1.0], [1.0, 2.0, 3.0], [True, True, False])
        assert found.values == {"c_index": 2.5 / 3}
        assert found.sums == {"concordance": (1.0, 2.0, 2.0, 1.0, 3.0)}
        assert count_values(found.sums) == found.values
        check_metrics(found)

    def test_a_risk_that_is_not_finite_is_an_error(self) -> None:
        with pytest.raises(DataError, match="not finite"):
            survival_summary("test", np.array([math.inf, 0.0]), np.ones(2), np.array([True, False]))

    def test_an_index_that_is_not_defined_is_left_out(self) -> None:
        assert dict(site([1.0, 2.0], [1.0, 2.0], [False, False]).values) == {}


class TestPooledCIndex:
    GOOD = site([2.0, 1.0, 0.0], [1.0, 2.0, 3.0], [True, True, True])
    POOR = site([1.0, 2.0], [1.0, 2.0], [True, False])

    def test_pairs_are_added_and_none_are_formed_between_sites(self) -> None:
        assert pool([self.GOOD, self.POOR]) == {"patients": 5.0, "c_index": 3 / 4}

    def test_where_a_site_keeps_its_pairs_the_mean_by_patients_stands_instead(self) -> None:
        shy = SiteMetrics("test", 2, self.POOR.values)
        assert pooled_c_index([self.GOOD, shy]) == {"c_index_site_mean": 3 / 5}

    def test_a_site_that_withholds_counts_for_nothing(self) -> None:
        silent = SiteMetrics("test", 0, withheld="by_the_sites_rules")
        assert pool([self.GOOD, silent])["c_index"] == 1.0
        assert pool([silent]) == {"patients": 0.0}

    def test_it_chooses_the_best_model(self) -> None:
        assert better("survival") == ("c_index", "max")
        assert better("survival", {"c_index_site_mean"}) == ("c_index_site_mean", "max")


class TestCheckConcordance:
    @pytest.mark.parametrize(
        ("numbers", "complaint"),
        [
            ((1.0, 2.0, 3.0), "not five"),
            ((1.0, -1.0, 0.0, 0.0, 0.0), "no whole numbers"),
            ((1.0, 2.0, 0.5, 0.0, 3.0), "no whole numbers"),
            ((2.0, 2.0, 0.0, 0.0, 0.0), "not those of 3"),
            ((1.0, 2.0, 2.0, 2.0, 3.0), "form such pairs"),
            ((1.0, 2.0, 0.0, 0.0, 4.0), "form such pairs"),
        ],
    )
    def test_what_no_patients_have_is_refused(self, numbers: tuple[float, ...], complaint: str) -> None:
        with pytest.raises(ReplyError, match=complaint):
            check_concordance(numbers, 3)

    def test_an_index_above_one_is_refused(self) -> None:
        with pytest.raises(ReplyError, match="c-index"):
            check_metrics(SiteMetrics("test", 3, {"c_index": 1.5}))
