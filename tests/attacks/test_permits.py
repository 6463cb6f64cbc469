"""Permits that were tampered with, are over, are somebody else's or were used up, at a site that asks for one."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import pytest

from eucaim_fl.permits import sign_plan
from eucaim_fl.signing import PrivateKey
from eucaim_fl.site.audit_reader import AuditReader

pytestmark = pytest.mark.federated
LONG_AGO, FAR_AHEAD = datetime(2026, 1, 2, tzinfo=UTC), datetime(2150, 1, 1, tzinfo=UTC)


REFUSED: dict[str, tuple[Callable[[Any], tuple[Any, Any]], str]] = {
    **{
        f"altered: {'.'.join(place)}": (lambda body, p=place, v=value: (_altered(body.permit(), p, v), body.holder), "")
        for place, value in (
            (("permit", "rounds"), 9999),
            (("permit", "valid_until"), "2100-01-01T00:00:00Z"),
            (("permit", "holder"), "somebody-else"),
            (("permit", "datasets"), ["rehearsal", "everything"]),
            (("permit", "plans"), 10_000),
            (("permit", "note"), "x"),
            (("signature",), "A" * 86),
            (("schema",), "eucaim-fl-permit/2"),
        )
    },
    **{
        what: (lambda body, c=changes: (body.permit(**c), body.holder), words)
        for what, changes, words in (
            ("expired", {"valid_from": datetime(2026, 1, 1, tzinfo=UTC), "valid_until": LONG_AGO}, "expired"),
            ("not yet", {"valid_from": FAR_AHEAD, "valid_until": datetime(2151, 1, 1, tzinfo=UTC)}, "not valid"),
            ("another cohort", {"datasets": ["another-cohort"]}, "dataset"),
            ("another purpose", {"purposes": ["education"]}, "purpose"),
            ("another task", {"tasks": ["classification"]}, "segmentation"),
            ("another network", {"networks": ["densenet121"]}, "unet"),
            ("fewer rounds", {"rounds": 1}, "rounds"),
            ("privacy", {"privacy_required": True}, "privacy"),
            ("another body", {"issuer": "other"}, ""),
        )
    },
    "forged": (lambda body: (body.permit(PrivateKey.create()), body.holder), ""),
    "stolen, not signed": (lambda body: (body.permit(), None), "not signed this plan"),
    "stolen, signed by the thief": (
        lambda body: (body.permit(), PrivateKey.create()),
        "not that of the permit's holder",
    ),
    "none": (lambda body: (None, body.holder), ""),
    "no permit at all": (lambda body: ({"permit": {}}, body.holder), ""),
    "nested": (lambda body: ({"schema": "eucaim-fl-permit/1", "permit": [[[[[]]]]]}, body.holder), ""),
    "long": (lambda body: ({"x": "y" * 50_000}, body.holder), ""),
}
"""Permit and key of who signs the plan → what the site says beside its code."""


def _altered(document: dict[str, Any], place: tuple[str, ...], value: Any) -> dict[str, Any]:
    inner = document
    for step in place[:-1]:
        inner = inner[step]
    inner[place[-1]] = value
    return document


@pytest.fixture(scope="module")
def refused(attacked, hand):
    """What site b answers to each."""
    sent = {}
    for what, (make, _) in REFUSED.items():
        document, holder = make(attacked.body)
        plan = attacked.plan("b", permit=document)
        signature = "" if holder is None else sign_plan(plan, holder)
        text = plan.canonical_json()
        sent[what] = hand.push("b", hand.seal("b", text, hand.instruction(text, holder=signature)))
    return {what: hand.answer("b", number) for what, number in sent.items()}


@pytest.fixture(scope="module")
def expired(attacked, run):
    """A training with a permit that is over; it goes on while other tests run."""
    past = {"valid_from": datetime(2026, 1, 1, tzinfo=UTC), "valid_until": LONG_AGO}
    words = [
        "train", "--json", f"federation={attacked.name}", f"runs_dir={attacked.folder / 'runs'}",
        *attacked.overrides("expired", **past), "rounds=1", "federation.sites=[b]", "federation.quorum=1",
        "federation.quorum_wait_s=0", "tracking=none",
    ]  # fmt: skip
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(lambda: attacked.run(*words, check=False))


class TestPermits:
    @pytest.mark.usefixtures("expired")
    def test_a_good_permit_opens_the_site_to_train(self, attacked, run):
        assert {run.entry(number, "b")["status"] for number in (1, 2, 3, 4)} == {"took_part"}
        decisions = list(AuditReader(attacked.home("b").audit_folder).records(kind="decision"))
        allowed = [record for record in decisions if record.body["permit"] == "P-attacked"]
        assert {record.body["verdict"] for record in allowed} == {"allow"}
        assert len(allowed) == 5

    @pytest.mark.parametrize("what", list(REFUSED))
    def test_one_that_does_not_hold_is_refused_with_the_reason(self, refused, what):
        said = refused[what]
        assert said.code == "EFL310"
        assert "refuses the plan: asking" in said.reason
        assert REFUSED[what][1] in said.reason
        assert "yyy" not in said.reason

    def test_the_holder_s_signature_counts_for_one_plan(self, attacked, hand, run):
        document = attacked.body.permit(id="P-SIGNED", plans=10)
        first, second = (attacked.plan("b", permit=document, seed=n) for n in (1, 2))
        signature = sign_plan(first, attacked.body.holder)
        said = [self._ask(hand, plan, signature) for plan in (first, second)]
        good, bad = (hand.answer("b", number) for number in said)
        assert (good.code, bad.code) == ("", "EFL310")
        assert "not that of the permit's holder" in bad.reason

    def test_one_that_was_used_for_a_plan_does_not_open_the_site_for_another(self, attacked, hand, run):
        document = attacked.body.permit(id="P-ONCE")
        first, second = (attacked.plan("b", permit=document, seed=n) for n in (1, 2))
        codes = []
        for plans in ((first,), (first, second)):  # the same plan may go on
            sent = [self._ask(hand, plan, sign_plan(plan, attacked.body.holder)) for plan in plans]
            said = [hand.answer("b", number) for number in sent]
            codes += [one.code for one in said]
        assert codes == ["", "", "EFL310"]
        assert "used up" in said[-1].reason

    @staticmethod
    def _ask(hand, plan, signature):
        text = plan.canonical_json()
        return hand.push("b", hand.seal("b", text, hand.instruction(text, holder=signature)))

    def test_an_expired_one_ends_a_training_that_says_why(self, expired):
        done = expired.result()
        assert done.returncode == 2
        assert "EFL310" in done.stderr
        assert "expired" in done.stderr
