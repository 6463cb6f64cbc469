"""What the ledger adds up: histories of patients, reservations, and who can still pay."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eucaim_fl.errors import PrivacyBudgetError
from eucaim_fl.privacy.accounting import Mechanism, epsilon
from eucaim_fl.privacy.budget import Budget
from eucaim_fl.signing import canonical_json
from eucaim_fl.site.audit_reader import utc_text
from eucaim_fl.site.ledger_base import (
    Claim,
    LedgerHead,
    Limits,
    Purchase,
    Release,
    body_of,
    check_mechanism,
    event_of,
    hidden_patients,
    members_of,
    packed,
    set_digest,
)
from eucaim_fl.site.ledger_books import Books, affordable

HEAD = LedgerHead(0, "0" * 64)
NOTHING = Limits(None, None, None, None)
A, B = "a" * 64, "b" * 64
P = [bytes([number]) * 16 for number in range(6)]


def purchase(plan: str = A, purpose: str = "research", dataset: str = "x", part: str = "") -> Purchase:
    return Purchase(plan, "name", purpose, dataset, "train", True, part)


def once(steps: int, noise: float = 4.0) -> Mechanism:
    return Mechanism(noise, 1.0, steps)


def day(number: int) -> datetime:
    return datetime(2026, 3, number, tzinfo=UTC)


def entered(
    books: Books, what: Purchase, mechanism: Mechanism, patients: list[bytes], number: int | None = None, at: int = 1
) -> Books:
    """With one more record of that day."""
    members = packed(patients)
    claim = Claim(what, mechanism, set_digest(members), len(patients), number)
    return books.with_set(claim.patients, patients).after(HEAD, claim, utc_text(day(at)))


def only(books: Books, patient: bytes) -> tuple[Mechanism, ...]:
    (group,) = books.of_patients([patient])
    return books.history(group)


class TestBodies:
    @given(
        noise=st.floats(0, 1e300),
        rate=st.floats(0, 1, exclude_min=True),
        steps=st.integers(1, 10**9),
        number=st.none() | st.integers(0, 10**6),
    )
    def test_a_claim_survives_its_record_exactly(
        self, noise: float, rate: float, steps: int, number: int | None
    ) -> None:
        claim = Claim(purchase(part="test"), Mechanism(noise, rate, steps), "d" * 64, 3, number)
        word = "reserved" if number is None else "committed"
        assert event_of(word, json.loads(canonical_json(body_of(claim)))) == claim

    def test_a_release_is_told_by_its_plan(self) -> None:
        assert event_of("released", {"plan": A}) == Release(A)

    @pytest.mark.parametrize(
        ("word", "change"),
        [
            ("started", {}), ("released", {}), ("committed", {"round": -1}), ("committed", {"steps": 0}),
            ("committed", {"steps": True}), ("committed", {"noise": 1}), ("committed", {"use": "fun"}),
            ("committed", {"plan": 7}), ("committed", {"extra": 1}), ("reserved", {}), ("committed", {"rate": 2.0}),
            ("committed", {"secure": 1}),
        ],
    )  # fmt: skip
    def test_what_no_ledger_says_is_nothing(self, word: str, change: dict[str, int]) -> None:
        body = body_of(Claim(purchase(), once(1), "d" * 64, 3, 1))
        assert event_of("committed", body) is not None
        assert event_of(word, {**body, **change}) is None

    @pytest.mark.parametrize(
        "mechanism",
        [Mechanism(float("nan"), 1, 1), Mechanism(-1, 1, 1), Mechanism(1, 0, 1), Mechanism(1, 1.5, 1), once(0)],
    )
    def test_a_mechanism_of_no_sense_charges_nobody(self, mechanism: Mechanism) -> None:
        with pytest.raises(ValueError, match="at least one step"):
            check_mechanism(mechanism)

    def test_patients_are_keyed_hashes_and_sets_have_one_form(self) -> None:
        hidden = hidden_patients(b"k" * 32, ["P-1", "P-2"])
        assert hidden != hidden_patients(b"l" * 32, ["P-1", "P-2"])
        assert b"P-1" not in packed(hidden.values())
        members = packed(hidden.values())
        assert members == packed(reversed(list(hidden.values())))
        digest = set_digest(members)
        assert members_of(members, digest, 2) == frozenset(hidden.values())
        assert (
            members_of(members, digest, 3) is members_of(members[:-1], digest, 2) is members_of(None, digest, 0) is None
        )
        twice = members[:16] * 2
        assert members_of(twice, set_digest(twice), 2) is None


class TestHistories:
    def test_all_plans_and_uses_count_for_the_patients_in_their_sets(self) -> None:
        books = entered(Books(HEAD), purchase(A), once(3), P[:3], 1)
        books = entered(books, purchase(B), once(2, noise=9.0), P[2:4])
        assert only(books, P[0]) == (once(3),)
        assert only(books, P[2]) == (once(3), once(2, noise=9.0))
        assert only(books, P[3]) == (once(2, noise=9.0),)
        assert only(books, P[5]) == ()
        groups = books.of_patients(P)
        assert sorted(map(len, groups.values())) == [1, 1, 2, 2]
        assert books.mechanisms(plan=A) == (once(3),)
        assert books.mechanisms(plan=B, held=False) == ()

    def test_a_commit_takes_from_the_reservation_and_never_below_nothing(self) -> None:
        books = entered(Books(HEAD), purchase(), once(5), P[:3])
        books = entered(books, purchase(), once(3), P[:3], 1)
        assert only(books, P[0]) == (once(5),)
        books = entered(books, purchase(), once(3), P[:3], 2)
        assert only(books, P[0]) == (once(6),)
        assert books.held == {}

    @pytest.mark.parametrize("other", ["noise", "purpose", "dataset", "part"])
    def test_what_was_reserved_for_something_else_is_no_payment(self, other: str) -> None:
        books = entered(Books(HEAD), purchase(), once(5), P[:1])
        what = {
            "purpose": purchase(purpose="care"), "dataset": purchase(dataset="y"), "part": purchase(part="test"),
        }.get(other, purchase())  # fmt: skip
        books = entered(books, what, once(2, noise=3.0 if other == "noise" else 4.0), P[:1], 1)
        assert sum(one.steps for one in only(books, P[0])) == 7

    def test_a_release_frees_what_its_plan_holds_alone(self) -> None:
        books = entered(Books(HEAD), purchase(A), once(5), P[:1])
        books = entered(books, purchase(A, part="test"), once(4), P[:1])
        books = entered(books, purchase(B), once(3), P[:1]).after(HEAD, Release(A), utc_text(day(1)))
        assert only(books, P[0]) == (once(3),)
        assert books.apart({A}) == books
        assert only(books.apart({A, B}), P[0]) == ()

    def test_a_plan_is_idle_from_its_last_record_on_while_it_holds_something(self) -> None:
        books = entered(Books(HEAD), purchase(A), once(3), P[:1], at=2)
        books = entered(books, purchase(B), once(3), P[:1], at=4)
        assert [books.idle(day(number)) for number in (1, 2, 3, 4)] == [set(), {A}, {A}, {A, B}]
        books = entered(books, purchase(A), once(1), P[:1], 1, at=5)
        assert books.idle(day(4)) == {B}, "a charge is a word of it, too"
        books = entered(books, purchase(A, part="test"), once(1), P[1:2], at=6)
        assert books.idle(day(5)) == {B}, "and so is what it reserves for another use"
        books = entered(books, purchase(B), once(3), P[:1], 1, at=4)
        assert books.idle(day(5)) == set(), "it holds nothing any more"
        assert books.idle(day(6)) == {A}

    def test_who_was_charged_for_training_is_known_whatever_the_plan(self) -> None:
        figures = replace(purchase(A), use="figures")
        books = entered(Books(HEAD), purchase(A), once(1), P[:2], 1)
        books = entered(books, purchase(B), once(1), P[1:3], 1)
        books = entered(entered(books, figures, once(1), P[3:4], 1), purchase(A), once(1), P[4:5])
        assert books.charged("train", P) == set(P[:3]), "what is only reserved was not charged"
        assert books.charged("figures", P) == {P[3]}
        assert books.charged("train", [b"somebody else..."]) == set()

    def test_a_reservation_replaces_the_one_before(self) -> None:
        books = entered(Books(HEAD), purchase(), once(5), P[:1])
        assert only(entered(books, purchase(), once(2), P[:2]), P[0]) == (once(2),)
        assert only(books.without(purchase()), P[0]) == ()

    @given(st.lists(st.tuples(st.integers(1, 9), st.booleans()), max_size=8))
    def test_rounds_and_runs_add_up_to_one_accountant_s_steps(self, rounds: list[tuple[int, bool]]) -> None:
        books = Books(HEAD)
        for number, (steps, other) in enumerate(rounds):
            books = entered(books, purchase(B if other else A), once(steps), P[:2], number)
        total = sum(steps for steps, _ in rounds)
        assert only(books, P[0]) == ((once(total),) if total else ())


class TestWhoCanPay:
    BUDGET = Budget(3.0, 1e-5)
    MOST = 7

    def test_the_budget_of_these_tests_holds_seven_steps(self) -> None:
        assert self.BUDGET.holds([once(self.MOST)])
        assert not self.BUDGET.holds([once(self.MOST + 1)])

    def test_patients_who_can_not_pay_leave_and_the_others_go_on(self) -> None:
        books = entered(Books(HEAD), purchase(B), once(5), P[:2], 1)
        limits = Limits(None, self.BUDGET, None, None)
        everybody = frozenset(P)
        assert affordable(books, purchase(), once(2), everybody, limits, 6) == everybody
        assert affordable(books, purchase(), once(3), everybody, limits, 4) == frozenset(P[2:])
        with pytest.raises(PrivacyBudgetError, match="Too few patients") as caught:
            affordable(books, purchase(), once(3), everybody, limits, 5)
        assert not any(letter.isdigit() for letter in str(caught.value)), "numbers stay at the site"
        assert "4 of 6 patients" in caught.value.local_detail

    @pytest.mark.parametrize(("name", "word"), [("dataset", "the data"), ("purpose", "the purpose")])
    def test_other_budgets_hold_all_or_nothing_whoever_the_patients_are(self, name: str, word: str) -> None:
        books = entered(Books(HEAD), purchase(), once(3), P[:1], 1)
        free = self.MOST - 3
        limits = Limits(**{**dict.fromkeys(("plan", "patient", "dataset", "purpose")), name: self.BUDGET})
        assert affordable(books, purchase(), once(free), frozenset(P[3:]), limits, 3) == frozenset(P[3:])
        with pytest.raises(PrivacyBudgetError, match=f"budget for {word} does not hold") as caught:
            affordable(books, purchase(), once(free + 1), frozenset(P[3:]), limits, 3)
        assert not any(letter.isdigit() for letter in str(caught.value))
        assert "at delta 1e-05" in caught.value.local_detail
        elsewhere = purchase(B, purpose="care", dataset="y")
        assert affordable(books, elsewhere, once(free + 1), frozenset(P[3:]), limits, 3) == frozenset(P[3:])

    def test_the_budget_of_a_plan_is_that_of_each_of_its_patients(self) -> None:
        books = entered(Books(HEAD), purchase(), once(3), P[:1], 1)
        limits = Limits(Budget(epsilon([once(5)], 1e-5), 1e-5), None, None, None)
        assert affordable(books, purchase(), once(5), frozenset(P[3:]), limits, 3) == frozenset(P[3:])
        assert affordable(books, purchase(), once(2), frozenset(P), limits, 6) == frozenset(P)
        for patients, steps in ((P[3:], 6), (P, 3)):  # one of all has paid for three steps
            with pytest.raises(PrivacyBudgetError, match="budget for one plan does not hold") as caught:
                affordable(books, purchase(), once(steps), frozenset(patients), limits, 1)
            assert "at delta 1e-05" in caught.value.local_detail
        assert affordable(books, purchase(B), once(5), frozenset(P), limits, 6) == frozenset(P)

    def test_without_noise_no_budget_holds_it(self) -> None:
        for limits in (Limits(None, None, self.BUDGET, None), Limits(self.BUDGET, None, None, None)):
            with pytest.raises(PrivacyBudgetError, match="does not hold"):
                affordable(Books(HEAD), purchase(), once(1, noise=0.0), frozenset(P), limits, 1)
        assert affordable(Books(HEAD), purchase(), once(1, noise=0.0), frozenset(P), NOTHING, 1) == frozenset(P)
