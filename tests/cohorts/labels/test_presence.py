from __future__ import annotations

import math

import pytest

from eucaim_fl.cohorts.labels import read_presence, read_wanted
from eucaim_fl.cohorts.targets import Wanted
from eucaim_fl.config import ClassificationConfig, MultilabelConfig, SegmentationConfig, SurvivalConfig
from eucaim_fl.errors import LabelError


class TestReadPresence:
    @pytest.mark.parametrize("word", ["1", "1.0", "yes", " TRUE ", "Positive", "present", "1;1.0", "1;"])
    def test_words_for_yes(self, made, word):
        assert read_presence(made.case(oedema=word), ("oedema",)) == (1.0,)

    @pytest.mark.parametrize("word", ["0", "0.0", "No", "false", "negative", "absent", "0|no", "unknown;0"])
    def test_words_for_no(self, made, word):
        assert read_presence(made.case(oedema=word), ("oedema",)) == (0.0,)

    @pytest.mark.parametrize("word", ["", " ", "nan", "NA", "n/a", "Unknown", "missing", ";"])
    def test_what_is_not_known_counts_neither_way(self, made, word):
        found = read_presence(made.case(oedema=word, effusion="1"), ("oedema", "effusion", "no_such_column"))
        assert found[1] == 1.0
        assert math.isnan(found[0])
        assert math.isnan(found[2])

    def test_a_patient_of_whom_nothing_is_known_is_an_error(self, made):
        with pytest.raises(LabelError, match=r"none of the plan's targets"):
            read_presence(made.case(oedema="", effusion="na"), ("oedema", "effusion"))

    @pytest.mark.parametrize("word", ["2", "Smith", "none", "0.5", "1;maybe"])
    def test_another_word_is_an_error_that_keeps_it_to_itself(self, made, word):
        with pytest.raises(LabelError, match="neither yes nor no") as caught:
            read_presence(made.case(oedema=word), ("oedema",))
        assert word not in caught.value.message

    def test_values_that_contradict_each_other_are_an_error(self, made):
        with pytest.raises(LabelError, match="contradict"):
            read_presence(made.case(oedema="1;0"), ("oedema",))


class TestReadWanted:
    @pytest.mark.parametrize(
        ("task", "wanted"),
        [
            (SegmentationConfig(labels=("lesion",)), Wanted()),
            (ClassificationConfig(target="grade", classes=("1", "2")), Wanted(1, (), "001")),
            (MultilabelConfig(targets=("a", "b")), Wanted(None, (0.0, 1.0), "1")),
            (SurvivalConfig(time="days", event="died"), Wanted(None, (10.0, 1.0), "1")),
        ],
    )
    def test_each_task_wants_its_columns(self, made, task, wanted):
        clinical = {"grade": "2", "a": "0", "b": "1", "days": "10", "died": "yes"}
        assert read_wanted(made.case(**clinical), task) == wanted

    @pytest.mark.parametrize(
        "task",
        [
            ClassificationConfig(target="grade", classes=("1", "2")),
            MultilabelConfig(targets=("a",)),
            SurvivalConfig(time="days", event="died"),
        ],
    )
    def test_a_patient_without_them_is_an_error(self, made, task):
        with pytest.raises(LabelError, match="A patient has"):
            read_wanted(made.case(), task)
