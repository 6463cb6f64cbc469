"""Orderings are read strictly, and hold or don't."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eucaim_fl.benchmark.expectations import check_expectations, read_expectation
from eucaim_fl.errors import RecipeError

VALUES = {"fedavg": {"all": 0.80, "mean": 0.70}, "pooled": {"all": 0.81, "mean": None}}


class TestReadExpectation:
    def test_all_parts_are_read(self) -> None:
        one = read_expectation("ditto.personal >= local:a - 0.02 at honest")
        assert (one.left, one.sign, one.right, one.by, one.scope) == (
            "ditto.personal",
            ">=",
            "local:a",
            -0.02,
            "honest",
        )

    @pytest.mark.parametrize(
        "text", ["", "a", "a > ", "a = b", "a > b at home", "a > b - x", "a  > b", "a > b 0.1", "a > b > c"]
    )
    def test_other_forms_are_refused(self, text: str) -> None:
        with pytest.raises(RecipeError, match="no ordering"):
            read_expectation(text)

    @given(st.text())
    def test_any_text_is_an_ordering_or_refused(self, text: str) -> None:
        with contextlib.suppress(RecipeError):
            assert read_expectation(text).text == text


class TestCheckExpectations:
    @pytest.mark.parametrize(
        ("text", "holds"),
        [
            ("pooled > fedavg", True),
            ("fedavg >= pooled", False),
            ("fedavg >= pooled - 0.02", True),
            ("fedavg < pooled - 0.02", False),
            ("fedavg > pooled at mean", False),
        ],
        ids=lambda value: str(value).replace(" ", "_"),
    )
    def test_values_decide(self, text: str, holds: bool) -> None:
        assert check_expectations([read_expectation(text)], VALUES)[0].holds is holds

    def test_a_model_that_is_not_there_is_refused(self) -> None:
        with pytest.raises(RecipeError, match="no model 'fedprox'"):
            check_expectations([read_expectation("fedprox > fedavg")], VALUES)
