from __future__ import annotations

import re

import pytest

from eucaim_fl.cohorts.deidentification.rules import RULES, kind_of
from eucaim_fl.sitefile import DeidentificationConfig

EUCAIM = DeidentificationConfig()
BASIC = DeidentificationConfig(profile="basic")


class TestRules:
    @pytest.mark.parametrize("rule", RULES.values(), ids=lambda rule: rule.name)
    def test_each_has_a_name_texts_and_a_source(self, rule: object) -> None:
        one = RULES[rule.name]  # type: ignore[attr-defined]
        assert re.fullmatch(r"deid\.[a-z_0-9]+", one.name)
        assert one.says.endswith(".")
        assert one.do.endswith(".")
        assert one.source
        assert one.basic or one.eucaim

    def test_uids_and_pseudonyms_matter_to_eucaim_only(self) -> None:
        assert kind_of("deid.uid", BASIC) == ""
        assert kind_of("deid.uid", EUCAIM) == "advice"
        assert kind_of("deid.patient_pseudonym", BASIC) == ""

    def test_shifted_days_are_enough_for_the_basic_profile(self) -> None:
        assert kind_of("deid.date_shifted", BASIC) == "advice"
        assert kind_of("deid.date_shifted", EUCAIM) == "identifier"

    def test_a_rule_that_nobody_knows_is_taken_seriously(self) -> None:
        assert kind_of("deid.of_tomorrow", BASIC) == "identifier"
