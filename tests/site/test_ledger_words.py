"""What is said of a ledger: in words for people, in JSON for programs; never who."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from eucaim_fl.site.ledger_projection import Check, Cost, Projection
from eucaim_fl.site.ledger_state import EMPTY
from eucaim_fl.site.ledger_sums import Patients, Spending, cohort_spending, patients_of, run_sums
from eucaim_fl.site.ledger_words import (
    as_announced,
    budget_cells,
    budget_rows,
    charge_rows,
    charges_csv,
    patient_lines,
    patients_json,
    projection_json,
    projection_lines,
    reservation_lines,
    run_cells,
    run_json,
    spending_json,
    state_words,
    status_words,
)
from tests.site.ledgers import BUDGET, DELTA, charge, once, two_runs


class TestBudgets:
    def test_a_row_says_what_was_done_what_counts_and_the_limit(self) -> None:
        rows = budget_rows(cohort_spending(two_runs(), BUDGET, DELTA), {}, patients_of(two_runs(), BUDGET, DELTA))
        cells = [budget_cells(whose, spending) for whose, spending in rows]
        assert [cell[0] for cell in cells] == ["the cohort a", "the patient of whom most counts"]
        assert cells[0] == ("the cohort a", "2", "2.72", "3", "84 %")

    def test_without_a_budget_there_is_no_limit(self) -> None:
        assert budget_cells("x", Spending(2.0, None, None, None)) == ("x", "2", "–", "none", "–")

    def test_programs_get_what_is_left_and_null_for_what_has_no_bound(self) -> None:
        told = spending_json(cohort_spending(two_runs(), BUDGET, DELTA)["a"])
        assert (told["limit"], told["delta"]) == (3.0, DELTA)
        assert told["left"] == pytest.approx(3.0 - told["counts"])
        assert spending_json(Spending(math.inf, BUDGET, math.inf, math.inf))["done"] is None


class TestPatients:
    def test_nobody_is_named(self) -> None:
        lines = patient_lines(patients_of(two_runs(), BUDGET, DELTA))
        assert lines[0].startswith("10 patients. Epsilon done: 1.7 for the one who has spent least")
        assert lines[1].endswith("up to a quarter: 0, up to half: 6, up to three quarters: 0, more: 4.")
        assert len(lines) == 2

    def test_who_has_left_is_counted(self) -> None:
        assert "1 patient can't pay" in patient_lines(Patients(1, (1.0,) * 5, (0, 0, 0, 1), None, 1))[-1]
        assert patient_lines(Patients(1, (1.0,) * 5))[-1] == "The policy sets no budget of a patient."
        assert patient_lines(Patients(0)) == ["The ledger knows no patient yet."]

    def test_programs_get_the_same(self) -> None:
        told = patients_json(patients_of(two_runs(), BUDGET, DELTA))
        assert told["of_budget"] == {"to_25_percent": 0, "to_50_percent": 6, "to_75_percent": 0, "above": 4}
        assert patients_json(Patients(0))["done"] == {}


class TestRuns:
    def test_a_row_says_rounds_and_repeats(self) -> None:
        first, second = run_sums(two_runs(), BUDGET, DELTA)
        assert run_cells(first) == (
            "plan-a", "a" * 12, "education", "2, 1 again", "10", "1.7", "–", "–", "42 %",
        )  # fmt: skip
        assert run_cells(second)[3:5] == ("1", "4")
        assert run_cells(second)[7] == "2 steps"

    def test_noise_from_the_seed_is_named(self) -> None:
        (first, _) = run_sums(two_runs(), None, DELTA)
        assert run_cells(replace(first, secure=False))[0] == "plan-a (noise from the plan's seed)"
        assert run_json(replace(first, training=math.inf), 30)["training"] is None

    def test_what_is_reserved_is_told_with_its_end(self) -> None:
        """B was heard of last on the first of March at 12:04."""
        runs = run_sums(two_runs(), None, DELTA)
        before, then = datetime(2026, 3, 31, 12, 3, tzinfo=UTC), datetime(2026, 3, 31, 12, 4, tzinfo=UTC)
        assert reservation_lines(runs, 30, before) == [
            "plan-b (bbbbbbbbbbbb) holds 2 steps until 2026-03-31 12:04 UTC unless it goes on."
        ]
        assert reservation_lines(runs, 30, then) == [
            "plan-b (bbbbbbbbbbbb) holds 2 steps and was idle for 30 days: the next plan that reserves takes it back."
        ]
        assert [run_json(run, 30)["reserved_until"] for run in runs] == [None, "2026-03-31T12:04:00+00:00"]


class TestExport:
    def test_a_charge_tells_how_many_and_not_who(self) -> None:
        (row,) = charge_rows([charge(1, 2, patients=7)])
        assert (row["round"], row["noise"], row["rate"], row["steps"], row["patients"]) == (2, 4.0, 1.0, 1, 7)
        assert set(row) == {
            "number", "time", "plan", "name", "purpose", "dataset", "use", "round", "secure", "noise", "rate", "steps",
            "patients",
        }  # fmt: skip

    def test_others_are_told_of_confidential_data_on_the_base_and_to_the_day(self) -> None:
        charges = [charge(1, 1, patients=number) for number in (12, 13, 2, 0)]
        assert [(one.patients, one.time) for one in as_announced(charges, 5)] == [
            (10, "2026-03-01"), (15, "2026-03-01"), (5, "2026-03-01"), (0, "2026-03-01"),
        ]  # fmt: skip
        assert as_announced(charges, 1) == tuple(charges)

    def test_a_table_can_be_read_back_and_holds_no_formula(self) -> None:
        one = charge(1, 2)
        text = charges_csv([one, one._replace(what=replace(one.what, name="=1+1"))])
        rows = list(csv.DictReader(io.StringIO(text)))
        assert [row["name"] for row in rows] == ["plan-a", "'=1+1"]
        assert json.loads(json.dumps(charge_rows([one])))[0]["number"] == int(rows[0]["number"])

    def test_a_ledger_in_words(self) -> None:
        assert state_words(two_runs()) == "5 records, last charged at 2026-03-01 12:04 UTC"
        assert state_words(EMPTY) == "0 records, nothing charged yet"


COST = Cost("training", once(2), 3, 1.5)


def projection(*checks: Check, leaving: int | None = None, known: int = 0, charged: int = 0) -> Projection:
    return Projection((COST,), DELTA, charged, checks, known, leaving, 4 if leaving is not None else None)


class TestProjection:
    def test_it_says_the_cost_and_every_budget(self) -> None:
        held, full = Check("the cohort", BUDGET, 1.0, 2.0, True, 1), Check("this plan", BUDGET, 0.0, 4.0, False, 0)
        lines = projection_lines(projection(held, full, charged=1), all_must_pay=False)
        assert lines == [
            "Cost: a training patient pays epsilon 1.5 at delta 1e-05: 3 rounds of noise 4 (over sensitivity), "
            "everybody takes part, 2 steps.",
            "Already charged of it: 1 round. What follows is about the rest.",
            "fits: the cohort: 1 now, 2 with the plan, limit 3 at delta 1e-05; it holds 1 such plan from now on.",
            "DOES NOT FIT: this plan: 0 now, 4 with the plan, limit 3 at delta 1e-05.",
        ]

    def test_of_a_plan_that_was_paid_for_it_says_no_more(self) -> None:
        full = Check("this plan", BUDGET, 0.0, 4.0, False, 0)
        paid = replace(projection(full, leaving=2, known=9, charged=3), to_pay=False)
        assert projection_lines(paid, all_must_pay=True)[1:] == [
            "Already charged of it: 3 rounds. Nothing of it is left to pay."
        ]
        assert projection_json(paid)["left_to_pay"] is False

    def test_it_says_how_many_leave_or_that_all_must_pay(self) -> None:
        some = projection(leaving=2, known=9)
        assert "2 of 9 patients whom the ledger knows" in projection_lines(some, all_must_pay=False)[2]
        assert "would leave" in projection_lines(some, all_must_pay=False)[2]
        assert "needs all its patients to pay" in projection_lines(some, all_must_pay=True)[2]
        assert "Nobody of 9 patients" in projection_lines(projection(leaving=0, known=9), all_must_pay=True)[2]

    def test_a_plan_without_noise_promises_nothing(self) -> None:
        nothing = Projection((), 0.0, 0, (), 0, None, None)
        assert "promises its patients nothing" in projection_lines(nothing, all_must_pay=False)[0]

    def test_programs_get_the_same(self) -> None:
        told = projection_json(projection(Check("the cohort", BUDGET, math.inf, 2.0, True, 1), leaving=2, known=9))
        assert told["costs"][0]["each"] == {"noise": 4.0, "rate": 1.0, "steps": 2}
        assert told["budgets"][0]["before"] is None
        assert told["patients"] == {"known": 9, "leaving": 2, "such_plans": 4}


def status(**changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "problem": None,
        "budget_is_set": True,
        "delta": DELTA,
        "charges": 3,
        "datasets": [{"dataset": "a", "done": 2.3, "limit": 8.0, "used_share": 0.25}],
        "patients": {"known": 120, "at_limit": 3, "limit": 6.0},
    }
    return {**values, **changes}


class TestStatus:
    def test_spent_of_the_limit_and_who_has_reached_it(self) -> None:
        assert status_words(status()) == (
            "25 % of the budget (epsilon 8 at delta 1e-05) used or reserved; epsilon of what was done: 2.3; "
            "3 of 120 patients have reached their limit (6)"
        )

    @pytest.mark.parametrize(
        ("changes", "says"),
        [
            ({"charges": 0}, "nothing was spent yet"),
            ({"charges": 0, "budget_is_set": False}, "no budget over all plans is set, and nothing was spent yet"),
            ({"problem": "the privacy ledger is damaged."}, "unknown: the privacy ledger is damaged."),
            ({"delta": None}, "3 charges; the policy names no delta to tell epsilon at"),
            (
                {
                    "datasets": [{"dataset": "a", "done": None, "limit": None, "used_share": None}],
                    "patients": {"known": 1, "at_limit": None, "limit": None},
                    "budget_is_set": False,
                },
                "epsilon of what was done: no bound, at delta 1e-05; no limit of the cohort; no budget over all plans",
            ),
            (
                {"datasets": [{"dataset": "a", "done": None, "limit": 8.0, "used_share": None}]},
                "all of the budget (epsilon 8 at delta 1e-05) used or reserved; epsilon of what was done: no bound; 3",
            ),
        ],
        ids=["nothing-yet", "no-budget", "damaged", "no-delta", "no-bound", "budget-without-a-bound"],
    )
    def test_what_else_can_be(self, changes: dict[str, Any], says: str) -> None:
        assert status_words(status(**changes)).startswith(says)
        assert status_words(None) == "nothing is known of it"
