from __future__ import annotations

import pytest

from eucaim_fl.cohorts.labels import read_class
from eucaim_fl.config import ClassificationConfig
from eucaim_fl.errors import LabelError

TASK = ClassificationConfig(target="grade", classes=("low", "high"))


class TestReadClass:
    @pytest.mark.parametrize(("value", "index"), [("low", 0), ("high", 1), (" HIGH ", 1)])
    def test_the_class_is_the_place_of_the_value_in_the_plan(self, made, value, index):
        assert read_class(made.case(grade=value), TASK) == index

    @pytest.mark.parametrize("clinical", [{}, {"grade": " "}, {"other": "low"}])
    def test_a_missing_value_is_an_error(self, made, clinical):
        with pytest.raises(LabelError, match="no value in the column 'grade'"):
            read_class(made.case(**clinical), TASK)

    def test_another_value_is_an_error_that_keeps_it_to_itself(self, made):
        with pytest.raises(LabelError, match="none of the plan's classes") as caught:
            read_class(made.case(grade="Smith"), TASK)
        assert "Smith" not in str(caught.value) + str(caught.value.local_detail) + caught.value.for_terminal()
        assert caught.value.local_detail == made.case(grade="Smith").patient
