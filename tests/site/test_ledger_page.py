"""The page on one run: whether the promise was kept, from charges to what an attacker could get."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from xml.etree import ElementTree

import pytest

from eucaim_fl.plan import FederationPlan
from eucaim_fl.privacy.accounting import epsilon
from eucaim_fl.site.audit_words import Asker, Left, Line
from eucaim_fl.site.ledger_attacks import attack_rows
from eucaim_fl.site.ledger_drawing import Point, spending_svg, ticks
from eucaim_fl.site.ledger_page import Page, bound_words, render_page, stretches
from eucaim_fl.site.ledger_state import Charge
from eucaim_fl.site.ledger_sums import cohort_spending
from tests.site.ledgers import BUDGET, DELTA, charge, once, purchase, two_runs

pytestmark = pytest.mark.integration

PRIVACY = {"mechanism": "update_dp", "noise_multiplier": 8.0, "delta": DELTA, "clipping_norm": 1.0}


@pytest.fixture
def page(plan_for: Callable[..., FederationPlan]) -> Callable[..., Page]:
    """The page of a plan of three rounds at epsilon 1.7, of which so many were charged."""

    def make(rounds: tuple[int, ...] = (1, 2), privacy: dict[str, Any] | None = None, **changes: Any) -> Page:
        plan = plan_for(rounds=3, privacy=PRIVACY if privacy is None else privacy)
        what = purchase(plan.sha256())
        charges = tuple(Charge(i, f"2026-03-01T12:0{i}:00", what, n, once(), 10) for i, n in enumerate(rounds))
        values: dict[str, Any] = {
            "site": "a",
            "title": "Hospital A",
            "plan": plan,
            "delta": DELTA,
            "charges": charges,
            "reserved": 1,
            "limit": 3.0,
            "budgets": tuple(cohort_spending(two_runs(), BUDGET, DELTA).items()),
            "at_limit": 0,
            "sent": (),
            "home": True,
            "exposure": None,
            "faults": (),
            "head_count": 3,
            "head_hash": "f" * 64,
            "commands": ("eucaim-fl site ledger verify --home /srv",),
        }
        return Page(**{**values, **changes})

    return make


def text_of(html: str) -> str:
    """What a reader sees, in one line."""
    body = html[html.index("<body>") :]
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", body))


class TestStretches:
    def test_each_charge_has_a_row_with_the_epsilon_by_then(self) -> None:
        rows = stretches([charge(1, 1), charge(2, 2), charge(3, 2)], DELTA)
        assert [row.rounds for row in rows] == ["1", "2", "2, again"]
        assert [row.epsilon for row in rows] == [epsilon([once(n)], DELTA) for n in (1, 2, 3)]

    def test_many_charges_are_put_together_and_none_is_lost(self) -> None:
        rows = stretches([charge(i % 60, i, patients=10 + i % 2) for i in range(1, 101)], DELTA)
        assert len(rows) <= 24
        assert sum(row.charges for row in rows) == sum(row.steps for row in rows) == 100
        assert (rows[0].rounds, rows[0].patients) == ("1–5", (10, 11))
        assert rows[-1].epsilon == epsilon([once(100)], DELTA)
        assert stretches([], DELTA) == ()


class TestBound:
    def test_no_test_can_find_more(self) -> None:
        assert bound_words(math.log(3), 0.0)[1].endswith(
            "finds at most 3 in 100 of those who did: guessing would find 1."
        )
        assert "at most 30 in 100" in bound_words(math.log(3), 0.0)[2]
        assert "at most 96 in 100" in bound_words(math.log(20), 0.0)[2], "1 - 0.9 / 20; 20 * 0.1 is more than all"
        assert "no bound" in bound_words(math.inf, DELTA)[0]
        assert "this site took part" in bound_words(1.0, DELTA, "site")[0]

    def test_an_epsilon_that_rules_out_almost_nothing_is_called_so(self) -> None:
        assert bound_words(8.0, DELTA)[1:] == (
            "If it wrongly accuses 1 in 100 of those who did not take part, it finds at most 100 in 100 of those who "
            "did: guessing would find 1.",
            "If it wrongly accuses 10 in 100 of those who did not take part, it finds at most 100 in 100 of those who "
            "did: guessing would find 10.",
            "An epsilon this large rules out almost nothing by itself.",
        )
        assert len(bound_words(3.0, DELTA)) == 3


class TestAnswer:
    def test_a_promise_that_was_kept(self, page: Callable[..., Page]) -> None:
        html = render_page(page())
        said = text_of(html)
        assert "ε 1.36 spent of 1.7 promised, at delta 1e-05" in said
        assert 'class="verdict yes"' in html
        assert (
            "Kept: every one of the 2 charges was made before its noise was drawn. How much such a promise protects is "
            "told below" in said
        )
        assert "Rounds charged 2 of 3" in said
        assert "From everybody else, the coordinator among them" in said
        assert "<svg" in html
        assert "Reserved and not charged yet: 1 step." in said
        assert "84 %" in said
        assert "eucaim-fl privacy audit" in said
        assert render_page(page()) == html

    @pytest.mark.parametrize(
        ("changes", "says"),
        [
            ({"rounds": (1, 2, 2, 3)}, "More was spent than the 1.7 that was promised"),
            ({"limit": 1.0}, "More was spent than the 1 that the policy allows a plan"),
            ({"faults": ("Record 2 is missing.",)}, "The ledger is not intact"),
            ({"privacy": {**PRIVACY, "secure": False}}, "whoever has the plan can take it off again"),
            ({"privacy": {**PRIVACY, "mechanism": "central_dp"}, "rounds": ()}, "no differential privacy against"),
            ({"privacy": {"mechanism": "none"}, "rounds": ()}, "There is no bound: the update itself may reveal"),
        ],
        ids=["repeats", "limit", "damaged", "seed", "central", "none"],
    )
    def test_what_is_wrong_is_said(self, page: Callable[..., Page], changes: dict[str, Any], says: str) -> None:
        html = render_page(page(**changes))
        assert 'class="verdict no"' in html
        assert says in text_of(html)

    def test_before_the_first_round_nothing_was_spent(self, page: Callable[..., Page]) -> None:
        said = text_of(render_page(page(())))
        assert "Nothing was charged yet, so no noised update can have left." in said
        assert "Nothing yet. Reserved: 1 step." in said


class TestWhatLeft:
    def line(self, number: int) -> Line:
        left = Left(1000, 5, 70, {"validation": ("dice",)}, 2, "d" * 64, 1.0, 0.5, DELTA, number, "e" * 64)
        asked = f"to train round {number}"
        return Line(number, "2026-03-01T12:00:00", "sent", "", Asker(), "a" * 64, asked, "sent", (), None, left, "")

    def test_messages_are_listed_and_added_up(self, page: Callable[..., Page]) -> None:
        said = text_of(render_page(page(sent=tuple(map(self.line, range(1, 71))))))
        assert "validation: dice; 2 pictures 0.5" in said
        assert "70 messages 70,000" in said
        assert "10 earlier messages are not shown" in said
        assert "to train round 10 " not in said

    def test_without_an_audit_log_it_says_so(self, page: Callable[..., Page]) -> None:
        assert "No audit log is at hand: without a home" in text_of(render_page(page(sent=None, home=False)))

    def test_a_home_whose_client_never_ran_has_no_log_yet(self, page: Callable[..., Page]) -> None:
        said = text_of(render_page(page(sent=None)))
        assert "This home has no audit log yet." in said
        assert "without a home" not in said


class TestExposure:
    def test_what_attacks_found_stands_there_as_far_as_it_is_understood(self, page: Callable[..., Page]) -> None:
        found = {"membership_auc": 0.5131, "verdict": "<b>below</b>", "lower_bound": None, "other": [1]}
        html = render_page(page(exposure=found))
        assert "Telling members from others, AUC (0.5 is guessing) 0.513" in text_of(html)
        assert "&lt;b&gt;below&lt;/b&gt;" in html
        assert "as measured" not in html

    def test_a_result_of_the_privacy_audit_is_understood(self) -> None:
        found = {
            "plan": {"name": "x", "rounds": 3},
            "rounds_of_the_whole_plan": 10,
            "claim": {"epsilon": 8.0, "delta": DELTA},
            "canary": {"plan": {"epsilon": 0.41}, "without_noise": {"epsilon": 12.0}},
            "membership": {"plan": None, "without_protection": {"auc": True}},
            "verdict": "consistent",
        }
        rows = dict(attack_rows(found))
        assert list(rows.values())[:3] == ["8", "0.41", "12"]
        assert rows["Verdict"].startswith("What was measured agrees")
        assert rows["How much was tried"] == "the first 3 of 10 rounds"
        assert len(rows) == 5
        assert attack_rows({"claim": {"epsilon": math.inf}, "verdict": ["x"]}) == attack_rows(None) == []

    def test_what_comes_from_elsewhere_cannot_become_markup(self, page: Callable[..., Page]) -> None:
        html = render_page(replace(page(), title="<script>x</script>", head_hash='"><img src=x>'))
        assert "<script>" not in html
        assert "<img" not in html


class TestDrawing:
    def test_it_is_well_formed_and_names_every_level(self) -> None:
        svg = spending_svg([Point(0, 0.0), Point(5, 1.0), Point(10, 2.0)], {"promised": 2.0, "limit & more": 3.0})
        root = ElementTree.fromstring(svg)  # noqa: S314  made here
        words = [element.text for element in root.iter("text")]
        assert words[-3:] == ["limit & more", "promised", "spent"]
        assert [element.get("points") for element in root.iter("polyline")] == ["44.0,220.0 322.0,155.2 600.0,90.5"]

    def test_ticks_are_round_and_reach_the_highest(self) -> None:
        assert ticks(0.0) == (0.0,)
        assert ticks(0.37) == (0.0, 0.1, 0.2, 0.3)
        assert ticks(100) == (0.0, 20.0, 40.0, 60.0, 80.0, 100.0)
        assert ticks(2, whole=True) == (0.0, 1.0, 2.0)
