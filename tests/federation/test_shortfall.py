"""Why a round has too few sites."""

from __future__ import annotations

from eucaim_fl.federation.shortfall import below_quorum, budgets_end_it, with_spent_budget
from eucaim_fl.records import Participation

HERE = Participation("a", "took_part")
SPENT = Participation("b", "error", "EFL401", "The site's privacy budget does not hold this round.")
ASLEEP = Participation("c", "error", "EFL311", "A person at the site has to decide first: approval.")


class TestBelowQuorum:
    def test_who_is_missing_is_named_with_the_reason_and_what_to_do(self):
        problem = below_quorum(4, 3, [HERE, SPENT, ASLEEP], "run-1")
        assert problem.message.startswith("Round 4 has 1 of the 3 sites that it needs. b: error EFL401 The site's")
        assert "People at c have to approve" in problem.fix
        assert "resume=run-1" in problem.fix


class TestSpentBudgets:
    def test_sites_without_budget_are_found(self):
        assert with_spent_budget({"a": HERE, "b": SPENT}) == ("b",)

    def test_they_end_a_run_only_if_the_others_are_too_few(self):
        states = {"a": HERE, "b": SPENT}
        assert budgets_end_it(states, "abc", quorum=3)
        assert not budgets_end_it(states, "abc", quorum=2)
        assert not budgets_end_it({"a": HERE, "c": ASLEEP}, "abc", quorum=3)
