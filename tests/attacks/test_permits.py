"""Permits that were tampered with, are over, are somebody else's or were used up, at a site that asks for one."""

from __future__ import annotations

import copy
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import yaml

from eucaim_fl.permits import Permit, issue, sign_plan
from eucaim_fl.signing import PrivateKey

pytestmark = pytest.mark.federated


class Body:
    """An access body that issues permits, and the researchers who hold them."""

    def __init__(self) -> None:
        self.key, self.holder = PrivateKey.create(), PrivateKey.create()

    def permit(self, key: PrivateKey | None = None, **changes: Any) -> dict[str, Any]:
        now = datetime.now(UTC).replace(microsecond=0)
        values: dict[str, Any] = {
            "id": "P-2026-17",
            "issuer": "hdab",
            "holder": "researchers",
            "holder_key": self.holder.public,
            "purposes": ["scientific_research"],
            "datasets": ["rehearsal"],
            "valid_from": now - timedelta(days=1),
            "valid_until": now + timedelta(days=1),
            **changes,
        }
        return issue(Permit.model_validate(values), key or self.key)


@pytest.fixture(scope="module")
def body(attacked):
    """Site b asks for permits of this body for the time of these tests."""
    made, path = Body(), attacked.home("b").policy_file
    before = path.read_bytes()
    policy = yaml.safe_load(before)
    policy["asking"] = {"permits": "required", "bodies": {"hdab": made.key.public}}
    path.write_text(yaml.safe_dump(policy, sort_keys=False))
    yield made
    path.write_bytes(before)


def _ask(attacked, hand, document: dict[str, Any] | None, holder: PrivateKey | None, **changes: Any):
    """Ask site b with a permit in the plan and the holder's signature beside it."""
    plan = attacked.plan("b", permit=document, **changes)
    return hand.ask("b", plan, holder="" if holder is None else sign_plan(plan, holder))


class TestPermits:
    def _train(self, attacked, body, name: str, **changes: Any):
        """Run `train` over site b as a researcher with a permit does."""
        place, key = attacked.folder / f"{name}.permit.json", attacked.folder / f"{name}.holder_key.pem"
        place.write_text(json.dumps(body.permit(id=f"P-{name}", **changes)))
        body.holder.save(key)
        return attacked.run(
            "train", "--json", f"federation={attacked.name}", f"runs_dir={attacked.folder / 'runs'}",
            *attacked.overrides(), f"name={name}", "rounds=1", "federation.sites=[b]", "federation.quorum=1",
            "federation.quorum_wait_s=0", "tracking=none", f"permit.file={place}", f"permit.holder_key={key}",
            check=False,
        )  # fmt: skip

    def test_a_good_permit_opens_the_site_to_train(self, attacked, body):
        done = self._train(attacked, body, "permitted")
        assert done.returncode == 0, done.stderr
        assert [p["status"] for p in json.loads(done.stdout)["participation"][0]["sites"]] == ["took_part"]

    def test_an_expired_one_does_not_and_train_says_why(self, attacked, body):
        past = {"valid_from": datetime(2026, 1, 1, tzinfo=UTC), "valid_until": datetime(2026, 1, 2, tzinfo=UTC)}
        done = self._train(attacked, body, "expired", **past)
        assert done.returncode == 2
        assert "EFL310" in done.stderr
        assert "expired" in done.stderr

    @pytest.mark.parametrize(
        ("place", "value"),
        [
            (("permit", "rounds"), 9999),
            (("permit", "valid_until"), "2100-01-01T00:00:00Z"),
            (("permit", "holder"), "somebody-else"),
            (("permit", "datasets"), ["rehearsal", "everything"]),
            (("permit", "plans"), 10_000),
            (("permit", "note"), "x"),
            (("signature",), "A" * 86),
            (("schema",), "eucaim-fl-permit/2"),
        ],
    )
    def test_one_that_was_altered_is_refused(self, attacked, hand, body, place, value):
        document = copy.deepcopy(body.permit())
        inner = document
        for step in place[:-1]:
            inner = inner[step]
        inner[place[-1]] = value
        said = _ask(attacked, hand, document, body.holder)
        assert said.code == "EFL310"
        assert "refuses the plan: asking. The permit" in said.reason

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            (
                {"valid_until": datetime(2026, 1, 2, tzinfo=UTC), "valid_from": datetime(2026, 1, 1, tzinfo=UTC)},
                "expired",
            ),
            (
                {"valid_from": datetime(2150, 1, 1, tzinfo=UTC), "valid_until": datetime(2151, 1, 1, tzinfo=UTC)},
                "not valid",
            ),
            ({"datasets": ["another-cohort"]}, "dataset"),
            ({"purposes": ["education"]}, "purpose"),
            ({"tasks": ["classification"]}, "segmentation"),
            ({"networks": ["densenet121"]}, "unet"),
            ({"rounds": 1}, "rounds"),
            ({"privacy_required": True}, "privacy"),
        ],
    )
    def test_one_that_does_not_cover_the_plan_is_refused_with_the_reason(self, attacked, hand, body, changes, words):
        said = _ask(attacked, hand, body.permit(**changes), body.holder)
        assert said.code == "EFL310"
        assert words in said.reason

    def test_one_of_a_body_that_the_site_does_not_trust_is_refused(self, attacked, hand, body):
        said = _ask(attacked, hand, body.permit(PrivateKey.create()), body.holder)
        assert said.code == "EFL310"
        assert _ask(attacked, hand, body.permit(issuer="other"), body.holder).code == "EFL310"

    def test_a_stolen_one_is_worth_nothing_without_the_holder_s_key(self, attacked, hand, body):
        document = body.permit(id="P-STOLEN")
        assert "not signed this plan" in _ask(attacked, hand, document, None).reason
        assert "not that of the permit's holder" in _ask(attacked, hand, document, PrivateKey.create()).reason

    def test_the_holder_s_signature_counts_for_one_plan(self, attacked, hand, body):
        document = body.permit(id="P-SIGNED", plans=10)
        first, second = (attacked.plan("b", permit=document, seed=n) for n in (1, 2))
        signature = sign_plan(first, body.holder)
        assert hand.ask("b", first, holder=signature).code == ""
        said = hand.ask("b", second, holder=signature)
        assert said.code == "EFL310"
        assert "not that of the permit's holder" in said.reason

    def test_one_that_was_used_for_a_plan_does_not_open_the_site_for_another(self, attacked, hand, body):
        document = body.permit(id="P-ONCE")
        assert _ask(attacked, hand, document, body.holder, seed=1).code == ""
        assert _ask(attacked, hand, document, body.holder, seed=1).code == ""  # the same plan may go on
        said = _ask(attacked, hand, document, body.holder, seed=2)
        assert said.code == "EFL310"
        assert "used up" in said.reason

    def test_what_is_no_permit_at_all_is_refused(self, attacked, hand, body):
        for document in (
            None,
            {"permit": {}},
            {"schema": "eucaim-fl-permit/1", "permit": [[[[[]]]]]},
            {"x": "y" * 50_000},
        ):
            said = _ask(attacked, hand, document, body.holder)
            assert said.code == "EFL310"
            assert "yyy" not in said.reason
