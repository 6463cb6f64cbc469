"""Why a round has too few sites."""

from __future__ import annotations

from eucaim_fl.federation.shortfall import (
    below_quorum,
    budgets_end_it,
    never_enough,
    nothing_told,
    refusing,
    with_spent_budget,
    withholding,
)
from eucaim_fl.records import Participation

HERE = Participation("a", "took_part")
SPENT = Participation("b", "error", "EFL401", "The site's privacy budget does not hold this round.")
ASLEEP = Participation("c", "error", "EFL311", "A person at the site has to decide first: approval.")

NEVER = Participation("d", "error", "EFL403", "The plan's delta is not below 1/patients at this site.")
AWAY = Participation("e", "absent")


class TestBelowQuorum:
    def test_who_is_missing_is_named_with_the_reason_and_what_to_do(self):
        problem = below_quorum(4, 3, [HERE, SPENT, ASLEEP], "run-1")
        assert problem.message.startswith("Round 4 has 1 of the 3 sites that it needs. b: error EFL401 The site's")
        assert "People at c have to approve" in problem.fix
        assert "resume=run-1" in problem.fix

    def test_what_no_waiting_changes_is_not_to_be_resumed(self):
        fix = below_quorum(1, 3, [HERE, ASLEEP, NEVER], "run-1").fix
        assert fix.startswith("At d the plan can't be private as it stands")
        assert "a smaller privacy.delta" in fix
        assert "resume=" not in fix
        assert "completed rounds are kept" in below_quorum(1, 2, [HERE, AWAY, NEVER], "run-1").fix, "e may come"


class TestNeverEnough:
    def test_who_may_yet_answer_is_waited_for(self):
        assert never_enough([HERE, AWAY, NEVER], 3)
        assert not never_enough([HERE, AWAY, NEVER], 2)
        assert not never_enough([SPENT, ASLEEP], 2), "that can change, or is told by another"


class TestStatisticsThatAreNotTold:
    def test_everybody_who_tells_none_is_named_with_the_reason(self):
        problem = nothing_told([HERE, withholding(HERE), AWAY], 3)
        assert problem.message == (
            "1 sites tell sums over their training patients, and the quorum is 3. "
            "a: error EFL304 It withholds the sums over its training patients.; e: absent"
        )
        assert "their policy may list them" in problem.fix

    def test_who_says_no_for_good_is_told_from_who_may_come(self):
        refused = Participation("f", "error", "EFL310", "The policy refuses the plan.")
        states = {p.site: p for p in (HERE, ASLEEP, NEVER, AWAY, refused)}
        assert refusing(states) == ("d", "f")
        lost = Participation("g", "rejected", "EFL304", "A reply that does not fit.")
        assert refusing({"g": lost}) == ()


class TestSpentBudgets:
    def test_sites_without_budget_are_found(self):
        assert with_spent_budget({"a": HERE, "b": SPENT}) == ("b",)

    def test_they_end_a_run_only_if_the_others_are_too_few(self):
        states = {"a": HERE, "b": SPENT}
        assert budgets_end_it(states, "abc", quorum=3)
        assert not budgets_end_it(states, "abc", quorum=2)
        assert not budgets_end_it({"a": HERE, "c": ASLEEP}, "abc", quorum=3)
