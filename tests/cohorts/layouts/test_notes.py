from __future__ import annotations

import re

import pytest

from eucaim_fl.cohorts.layouts.notes import RULES, Notebook


class TestNotebook:
    def test_counts_add_up_and_subjects_are_united(self):
        notes = Notebook()
        notes.note("layout.series_missing", 2, "P2")
        notes.note("layout.series_missing", 1, "P1")
        (finding,) = notes.findings()
        assert (finding.rule, finding.count, finding.subjects) == ("layout.series_missing", 3, ("P1", "P2"))

    def test_rules_about_patients_count_each_of_them_once(self):
        notes = Notebook()
        for patient in ("P1", "P1", "P2"):
            notes.note("layout.patients_listed_twice", 1, patient)
        assert notes.findings()[0].count == 2

    def test_nothing_is_no_finding(self):
        notes = Notebook()
        notes.note("layout.columns_unknown", 0)
        assert notes.findings() == ()

    def test_an_unknown_rule_is_a_defect(self):
        with pytest.raises(KeyError, match=r"layout\.other"):
            Notebook().note("layout.other")

    @pytest.mark.parametrize("rule", RULES)
    def test_every_rule_is_named_as_findings_are(self, rule):
        assert re.fullmatch(r"(layout|codes)\.[a-z0-9_]+", rule)
        assert RULES[rule].says.endswith(".")
