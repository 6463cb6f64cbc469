from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eucaim_fl.cohorts.labels import Survival, read_survival
from eucaim_fl.errors import LabelError


class TestReadSurvival:
    @pytest.mark.parametrize("word", ["1", "yes", "TRUE", " Dead ", "deceased", "died", "1:DECEASED", "1.0", "event"])
    def test_words_for_an_event_that_was_seen(self, made, word):
        assert read_survival(made.case(months="12.5", status=word), "months", "status") == Survival(12.5, True)

    @pytest.mark.parametrize("word", ["0", "no", "False", "alive", "LIVING", "0:LIVING", "censored", "0.0"])
    def test_words_for_none(self, made, word):
        assert read_survival(made.case(months="0", status=word), "months", "status") == Survival(0.0, False)

    def test_the_same_value_twice_is_one(self, made):
        assert read_survival(made.case(t="3;3.0", e="dead;1"), "t", "e") == Survival(3.0, True)

    @pytest.mark.parametrize("clinical", [{}, {"t": "1"}, {"e": "1"}, {"t": " ", "e": "1"}, {"t": "1", "e": ";"}])
    def test_a_missing_value_is_an_error(self, made, clinical):
        with pytest.raises(LabelError, match="no value in the column"):
            read_survival(made.case(**clinical), "t", "e")

    @pytest.mark.parametrize("text", ["-1", "nan", "inf", "three", "1,5", "1e999"])
    def test_what_is_no_time_is_an_error_that_keeps_it_to_itself(self, made, text):
        with pytest.raises(LabelError, match="is no time") as caught:
            read_survival(made.case(t=text, e="1"), "t", "e")
        assert text in caught.value.local_detail
        assert f"'{text}'" not in str(caught.value)

    @pytest.mark.parametrize("word", ["2", "-1", "Smith", "maybe", "1:LIVING", "unknown"])
    def test_what_says_neither_is_an_error(self, made, word):
        with pytest.raises(LabelError, match="does not say whether the event was seen"):
            read_survival(made.case(t="1", e=word), "t", "e")

    @pytest.mark.parametrize(
        "clinical", [{"t": "1;2", "e": "1"}, {"t": "1", "e": "dead;alive"}, {"t": "1", "e": "0|1"}]
    )
    def test_values_that_contradict_each_other_are_an_error(self, made, clinical):
        with pytest.raises(LabelError, match="contradict each other"):
            read_survival(made.case(**clinical), "t", "e")

    @given(st.text(max_size=12), st.text(max_size=12))
    def test_any_text_gives_a_time_that_can_be_used_or_an_error(self, made, time, event):
        try:
            found = read_survival(made.case(t=time, e=event), "t", "e")
        except LabelError:
            found = Survival(0.0, False)
        assert math.isfinite(found.time)
        assert found.time >= 0
