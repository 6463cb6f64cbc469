"""What a site tells of models of its own must be about all of them, and its choice must follow from what it tells."""

from __future__ import annotations

from typing import Any

import pytest

from eucaim_fl.errors import QuorumError
from eucaim_fl.federation.coordinator import Coordinator
from eucaim_fl.federation.messages import reply_content
from eucaim_fl.site.disclosure import WITHHELD

OWN = {"personal": {"fine_tune_steps": 2, "local": True, "choose": True}}
CANDIDATES = ("common", "personal", "local")


def entry(model: str, split: str, dice: float | None) -> dict[str, Any]:
    if dice is None:
        return {"split": split, "patients": 0, "withheld": WITHHELD, "model": model}
    sums = {"dice": (5.0, 5 * dice, 5 * dice * dice)}
    return {"split": split, "patients": 5, "values": {"dice": dice}, "sums": sums, "model": model}


def figures(**dice: float | None) -> tuple[dict[str, Any], ...]:
    return tuple(entry(model, split, one) for model, one in dice.items() for split in ("validation", "test"))


GOOD = figures(common=0.5, personal=0.75, local=0.25)


class TestTheLastAnswer:
    @pytest.fixture
    def end(self, fakes, make_federation):
        """The record of a run whose site b ends with these figures and this choice; its other answers are honest."""

        def run(metrics, chosen, method=OWN, quorum=1):
            plan, journal, state = make_federation("ab", rounds=1, method=method, federation={"quorum": quorum})
            honest = fakes.honest(plan)

            def handler(site, message):
                reply = honest(site, message)
                if message.metadata.message_type == "evaluate":
                    told = {"metrics": metrics, "chosen": chosen} if site == "b" else {"metrics": GOOD}
                    reply.content.update(reply_content(fakes.report(plan, "final", site, 2, **told), {}, None))
                return reply

            Coordinator(fakes.Grid(plan.sites, handler), plan, journal, fakes.SPECS, ()).run(state)
            return journal.load().records[-1]

        return run

    @pytest.mark.parametrize(
        ("metrics", "chosen"),
        [
            pytest.param(GOOD, "personal", id="the best"),
            pytest.param(GOOD, None, id="none"),
            pytest.param(figures(common=0.5, personal=0.5, local=0.5), "common", id="the first of equals"),
            pytest.param(figures(common=0.5, personal=None, local=0.5), None, id="one that is withheld"),
            pytest.param((), None, id="nothing measured"),
        ],
    )
    def test_one_that_is_consistent_counts(self, end, metrics, chosen):
        record = end(metrics, chosen)
        assert {p.site: p.status for p in record.participation} == {"a": "took_part", "b": "took_part"}
        assert record.chosen.get("b") == chosen

    @pytest.mark.parametrize(
        ("metrics", "chosen", "reason"),
        [
            pytest.param(GOOD, "local", "is not the best by the figures that it tells", id="not the best"),
            pytest.param(
                figures(common=0.5, personal=None, local=0.25), "common", "is not the best by", id="not comparable"
            ),
            pytest.param((), "common", "is not the best by", id="without figures"),
            pytest.param(
                figures(common=0.5, personal=0.75), "personal", "some of the site's models only", id="one left out"
            ),
            pytest.param(GOOD[:-1], "personal", "some of the site's models only", id="one left out of a split"),
            pytest.param(GOOD, "blended", "does not let sites choose", id="not a candidate"),
            pytest.param(
                (*GOOD, entry("blended", "validation", 0.9)), "personal", "other patients or models", id="one too many"
            ),
        ],
    )
    def test_one_that_contradicts_itself_or_the_plan_is_named_with_the_reason(self, end, metrics, chosen, reason):
        found = {p.site: p for p in end(metrics, chosen).participation}
        assert found["a"].status == "took_part"
        assert (found["b"].status, found["b"].code) == ("rejected", "EFL302")
        assert reason in found["b"].reason

    def test_where_the_quorum_needs_it_the_error_says_so(self, end):
        with pytest.raises(QuorumError, match="not the best by the figures"):
            end(GOOD, "local", quorum=2)

    def test_a_plan_that_lets_nobody_choose_gets_no_choice(self, end):
        method = {"personal": {"fine_tune_steps": 2, "local": True}}
        found = {p.site: p for p in end(GOOD, "personal", method).participation}
        assert "does not let sites choose" in found["b"].reason
