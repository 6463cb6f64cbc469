from __future__ import annotations

from eucaim_fl.cohorts.deidentification.policy import blocks, to_findings
from eucaim_fl.sitefile import DeidentificationConfig

IDENTIFIERS = DeidentificationConfig()
EVERYTHING = DeidentificationConfig(block="everything")
NOTHING = DeidentificationConfig(block="nothing")
BASIC = DeidentificationConfig(profile="basic", block="everything")


class TestBlocks:
    def test_nothing_found_blocks_nobody(self) -> None:
        assert blocks({}, EVERYTHING) == ""
        assert blocks({"deid.person_name": 0}, EVERYTHING) == ""

    def test_identifiers_block_and_advice_does_not(self) -> None:
        assert blocks({"deid.uid": 3, "deid.person_name": 1}, IDENTIFIERS) == "deid.person_name"
        assert blocks({"deid.uid": 3}, IDENTIFIERS) == ""

    def test_everything_blocks_for_advice_too(self) -> None:
        assert blocks({"deid.uid": 3}, EVERYTHING) == "deid.uid"

    def test_nothing_only_reports(self) -> None:
        assert blocks({"deid.person_name": 1}, NOTHING) == ""

    def test_the_basic_profile_does_not_know_eucaims_rules(self) -> None:
        assert blocks({"deid.uid": 3, "deid.patient_pseudonym": 1}, BASIC) == ""

    def test_the_first_rule_of_the_table_is_the_reason(self) -> None:
        assert blocks({"deid.date": 1, "deid.birth_date": 1}, IDENTIFIERS) == "deid.birth_date"

    def test_a_rule_that_nobody_knows_blocks(self) -> None:
        assert blocks({"deid.of_tomorrow": 1}, IDENTIFIERS) == "deid.of_tomorrow"


class TestToFindings:
    def test_patients_are_counted_once_a_rule(self) -> None:
        by_patient = [("B", {"deid.uid": 9}), ("A", {"deid.uid": 1, "deid.person_name": 2}), ("B", {"deid.uid": 1})]
        first, second = to_findings(by_patient, IDENTIFIERS)
        assert (first.rule, first.severity, first.count, first.subjects) == ("deid.person_name", "blocks", 1, ("A",))
        assert (second.rule, second.severity, second.count, second.subjects) == ("deid.uid", "informs", 2, ("A", "B"))
        assert first.unit == "patients"

    def test_identifiers_that_do_not_block_warn(self) -> None:
        (finding,) = to_findings([("A", {"deid.person_name": 1})], NOTHING)
        assert finding.severity == "warns"

    def test_rules_of_the_other_profile_are_left_out(self) -> None:
        assert to_findings([("A", {"deid.uid": 1})], BASIC) == ()

    def test_a_rule_that_nobody_knows_is_reported_too(self) -> None:
        (finding,) = to_findings([("A", {"deid.of_tomorrow": 1})], IDENTIFIERS)
        assert finding.severity == "blocks"
