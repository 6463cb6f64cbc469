"""Data permits: every reason to refuse one is given, and one that was seen elsewhere is of no use to others."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from eucaim_fl.config import ExperimentConfig, ModelConfig
from eucaim_fl.errors import PermitError
from eucaim_fl.permits import (
    Permit,
    PermitUse,
    dataset_problems,
    describe,
    inspect_permit,
    issue,
    problems,
    read_permit,
    scope_problems,
    sign_plan,
    standing_problems,
    stated_names,
)
from eucaim_fl.plan import FederationPlan, make_plan, read_plan
from eucaim_fl.signing import PrivateKey, canonical_json, fingerprint, sign_document
from tests.validation.frozen import MASKS, frozen_plan

ISSUER, HOLDER, STRANGER = PrivateKey.create(), PrivateKey.create(), PrivateKey.create()
NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
TERMS: dict[str, Any] = {
    "id": "P-2026-17",
    "issuer": "hdab-es",
    "holder": "upv",
    "holder_key": HOLDER.public,
    "purposes": ("scientific_research", "statistics"),
    "datasets": ("ds-5", "10.5281/zenodo.1"),
    "tasks": ("segmentation",),
    "networks": ("unet", "dynunet"),
    "rounds": 20,
    "plans": 2,
    "valid_from": datetime(2026, 1, 1, tzinfo=UTC),
    "valid_until": datetime(2027, 1, 1, tzinfo=UTC),
}
RECIPE: dict[str, Any] = {
    "name": "tiny",
    "sites": ["a", "b"],
    "rounds": 20,
    "purpose": "scientific_research",
    "task": {"name": "segmentation", "spatial_dims": 2, "labels": ["lesion"]},
    "model": {"name": "unet"},
    "training": {"local_steps": 3},
}
USE = PermitUse({"hdab-es": ISSUER.public}, ("ds-5",), frozenset(), NOW)


def permit_of(**changes: Any) -> Permit:
    return Permit.model_validate({**TERMS, **changes})


def plan_of(permit: object, **changes: Any) -> FederationPlan:
    return make_plan(ExperimentConfig.model_validate({**RECIPE, **changes}), ("a", "b"), permit)  # type: ignore[arg-type]


def use_of(**changes: Any) -> PermitUse:
    return PermitUse(**{**vars(USE), **changes})


def asked(permit: Permit, use: PermitUse = USE, key: PrivateKey = ISSUER, **changes: Any) -> tuple[str, ...]:
    """What a site says to a plan with this permit that its holder signed."""
    plan = plan_of(issue(permit, key), **changes)
    return problems(plan, sign_plan(plan, HOLDER), use)


DOCUMENT = issue(permit_of(), ISSUER)


def leaves(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Every single value of a document with its place."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        yield from leaves(inner, (*place, key))
    if not isinstance(value, dict | list):
        yield place, value


def put(document: object, place: tuple[Any, ...], value: object) -> Any:
    changed = copy.deepcopy(document)
    inner: Any = changed
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return changed


def other(value: object) -> list[object]:
    """Values near to one: what somebody would write who wants more than was allowed."""
    if isinstance(value, bool):
        return [not value, int(value), None]
    if isinstance(value, int):
        return [value + 1, float(value), str(value), None]
    if value is None:
        return [1, "x"]
    assert isinstance(value, str)
    later = value.replace("2027", "2028") if value.startswith("2027") else value + "x"
    return [later, value[:-1], value.swapcase(), "", 0, None]


class TestPermit:
    @pytest.mark.parametrize(
        ("changes", "complaint"),
        [
            ({"id": "P 1"}, "id"),
            ({"id": "P" * 65}, "id"),
            ({"issuer": "../hdab"}, "issuer"),
            ({"holder": ""}, "holder"),
            ({"holder_key": "ed25519:short"}, "holder_key"),
            ({"holder_key": HOLDER.public + "\n"}, "holder_key"),
            ({"purposes": ()}, "purposes"),
            ({"purposes": ("marketing",)}, "purposes"),
            ({"purposes": ("statistics", "statistics")}, "purposes must differ"),
            ({"datasets": ()}, "datasets"),
            ({"datasets": ("a b",)}, "datasets"),
            ({"datasets": ("a", "a")}, "datasets must differ"),
            ({"datasets": tuple(f"ds-{n}" for n in range(1001))}, "at most 1000"),
            ({"tasks": ()}, "tasks"),
            ({"networks": ("u net",)}, "networks"),
            ({"rounds": 0}, "rounds"),
            ({"plans": 0}, "plans"),
            ({"extra": 1}, "extra"),
            ({"valid_from": datetime(2026, 1, 1)}, "timezone"),
            ({"valid_until": TERMS["valid_from"]}, "must be after"),
            ({"valid_until": datetime(2036, 1, 3, tzinfo=UTC)}, "ten years"),
            ({"valid_until": datetime.max.replace(tzinfo=timezone(timedelta(hours=-5)))}, "less than 2200"),
            (
                {"valid_from": datetime.min.replace(tzinfo=timezone(timedelta(hours=5)))},
                "greater than or equal to 2000",
            ),
        ],
    )
    def test_it_says_what_is_wrong(self, changes: dict[str, Any], complaint: str) -> None:
        with pytest.raises(ValidationError, match=complaint):
            permit_of(**changes)

    def test_ten_years_are_possible(self) -> None:
        assert permit_of(valid_until=datetime(2036, 1, 1, tzinfo=UTC)).valid_until.year == 2036

    def test_times_are_kept_in_utc(self) -> None:
        madrid = timezone(timedelta(hours=2))
        permit = permit_of(valid_from=datetime(2026, 1, 1, 1, tzinfo=madrid))
        assert permit.model_dump(mode="json")["valid_from"] == "2025-12-31T23:00:00Z"


class TestStatedNames:
    def test_they_are_those_of_the_permit_whoever_signed_it(self) -> None:
        assert stated_names(DOCUMENT) == (permit_of().id, permit_of().holder)

    @pytest.mark.parametrize("document", [None, "permit", {**DOCUMENT, "signature": "A" * 86}])
    def test_what_is_no_permit_states_nothing(self, document: object) -> None:
        assert stated_names(document) == ("", "")


class TestReadPermit:
    def test_what_was_issued_is_read_and_who_signed_it(self) -> None:
        assert read_permit(DOCUMENT) == (permit_of(), ISSUER.public)
        assert read_permit(json.loads(json.dumps(DOCUMENT))) == (permit_of(), ISSUER.public)

    @pytest.mark.parametrize("place", [place for place, _ in leaves(DOCUMENT)], ids=lambda p: ".".join(map(str, p)))
    def test_no_value_can_be_altered(self, place: tuple[Any, ...]) -> None:
        value = dict(leaves(DOCUMENT))[place]
        for change in other(value):
            if canonical_json(change) != canonical_json(value):
                with pytest.raises(PermitError, match="permit"):
                    read_permit(put(DOCUMENT, place, change))

    def test_nothing_can_be_added_or_left_out(self) -> None:
        body: Any = DOCUMENT["permit"]
        for name in body:
            with pytest.raises(PermitError, match="permit"):
                read_permit({**DOCUMENT, "permit": {k: v for k, v in body.items() if k != name}})
        for change in ({"datasets": [*body["datasets"], "ds-6"]}, {"more": 1}, {"tasks": None}):
            with pytest.raises(PermitError, match="permit"):
                read_permit({**DOCUMENT, "permit": {**body, **change}})

    def test_a_signature_of_somebody_else_under_the_issuers_key_does_not_fit(self) -> None:
        forged = {**issue(permit_of(), STRANGER), "key": ISSUER.public}
        with pytest.raises(PermitError, match="does not fit"):
            read_permit(forged)

    def test_what_is_signed_but_left_to_defaults_is_refused(self) -> None:
        body = {k: v for k, v in permit_of().model_dump(mode="json").items() if k != "privacy_required"}
        with pytest.raises(PermitError, match="leaves values out"):
            read_permit(sign_document("permit", body, ISSUER))

    @pytest.mark.parametrize(
        "change", [{"rounds": "20"}, {"rounds": 20.0}, {"valid_from": "2026-01-01T02:00:00+02:00"}]
    )
    def test_what_is_signed_in_another_form_is_refused(self, change: dict[str, Any]) -> None:
        with pytest.raises(PermitError, match="another form"):
            read_permit(sign_document("permit", {**permit_of().model_dump(mode="json"), **change}, ISSUER))

    def test_errors_quote_nothing_from_outside(self) -> None:
        body = {**permit_of().model_dump(mode="json"), "GARCIA^MARIA": "/data/P007"}
        with pytest.raises(PermitError, match="unknown or wrong values") as caught:
            read_permit(sign_document("permit", body, ISSUER))
        assert "GARCIA" not in str(caught.value)
        assert "GARCIA" in caught.value.local_detail

    @given(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.sampled_from(["schema", "permit", "key", "signature", "id"]), inner, max_size=5)
            ),
            max_leaves=12,
        )
    )
    def test_garbage_is_refused(self, document: object) -> None:
        with pytest.raises(PermitError, match="permit"):
            read_permit(document)

    @given(
        st.sampled_from([place for place, _ in leaves(DOCUMENT)]),
        st.none() | st.integers() | st.text() | st.lists(st.text()),
    )
    def test_garbage_in_one_place_is_refused(self, place: tuple[Any, ...], value: object) -> None:
        changed = put(DOCUMENT, place, value)
        if changed != DOCUMENT:
            with pytest.raises(PermitError, match="permit"):
                read_permit(changed)

    def test_one_whose_signature_does_not_fit_can_still_be_looked_at(self) -> None:
        found = inspect_permit(put(DOCUMENT, ("permit", "plans"), 3))
        assert (found.permit.plans, found.fits) == (3, False)
        with pytest.raises(PermitError, match="not a signed permit"):
            inspect_permit({})


class TestIssue:
    def test_a_permit_too_long_to_be_read_is_not_issued(self) -> None:
        with pytest.raises(PermitError, match="longer than 65536 bytes"):
            issue(permit_of(datasets=tuple(f"{n:0128d}" for n in range(1000))), ISSUER)

    def test_a_thousand_datasets_of_usual_names_fit(self) -> None:
        permit = permit_of(datasets=tuple(f"{n:036d}" for n in range(1000)))
        assert read_permit(issue(permit, ISSUER))[0] == permit


class TestProblems:
    def test_a_plan_within_its_permit_has_none(self) -> None:
        assert asked(permit_of()) == ()

    def test_the_plan_is_the_same_after_its_journey(self) -> None:
        plan = plan_of(DOCUMENT)
        assert problems(read_plan(plan.canonical_json()), sign_plan(plan, HOLDER), USE) == ()

    def test_what_the_permit_does_not_limit_is_free(self) -> None:
        assert asked(permit_of(tasks=None, networks=None, rounds=None), rounds=10_000, model={"name": "resnet"}) == ()

    def test_of_a_validation_the_networks_of_its_models_count(self) -> None:
        named, free = permit_of(rounds=None), permit_of(tasks=None, networks=None)
        plan = frozen_plan(MASKS, 2)
        assert scope_problems(free, plan) == ()
        assert scope_problems(named, plan) == ("The permit does not cover the model m1, which brings its own network.",)
        asked = plan.validation
        assert asked is not None
        ours = tuple(
            one.model_copy(update={"format": "network", "network": ModelConfig(name=name)})
            for one, name in zip(asked.models, ("unet", "segresnet"), strict=True)
        )
        plan = plan.model_copy(update={"validation": asked.model_copy(update={"models": ours})})
        assert scope_problems(named, plan) == ("The permit does not cover the network of the model m1, segresnet.",)

    def test_no_permit(self) -> None:
        plan = plan_of(None)
        assert problems(plan, sign_plan(plan, HOLDER), USE) == ("The plan carries no permit.",)

    @pytest.mark.parametrize("document", [{}, {**DOCUMENT, "x": 1}])
    def test_a_malformed_permit(self, document: Any) -> None:
        assert problems(plan_of(document), "", USE) == ("The permit is not a signed permit.",)

    def test_an_altered_permit(self) -> None:
        plan = plan_of(put(DOCUMENT, ("permit", "rounds"), 100))
        (reason,) = problems(plan, sign_plan(plan, HOLDER), USE)
        assert reason == "The permit's signature does not fit: it was altered, or signed with another key."

    def test_a_foreign_issuer(self) -> None:
        assert asked(permit_of(issuer="stranger"), key=STRANGER) == (
            "The permit's issuer is not among the bodies that are trusted here.",
        )

    def test_a_stranger_who_uses_the_name_of_a_trusted_body(self) -> None:
        assert asked(permit_of(), key=STRANGER) == (
            "The permit names a body that is trusted here, but bears another key.",
        )

    def test_a_trusted_body_under_another_name(self) -> None:
        assert asked(permit_of(issuer="hdab-fr")) == (
            "The permit bears the key of a body that is trusted here, but names another issuer.",
        )

    def test_a_trusted_body_under_the_name_of_another_trusted_body(self) -> None:
        use = use_of(bodies={"hdab-es": ISSUER.public, "hdab-fr": STRANGER.public})
        assert asked(permit_of(issuer="hdab-fr"), use) == (
            "The permit names a body that is trusted here, but bears another key.",
        )

    def test_it_counts_from_its_first_moment_to_before_its_last(self) -> None:
        second = timedelta(seconds=1)
        first, last = TERMS["valid_from"], TERMS["valid_until"]
        assert asked(permit_of(), use_of(now=first)) == ()
        assert asked(permit_of(), use_of(now=last - second)) == ()
        assert asked(permit_of(), use_of(now=first - second)) == (
            "The permit is not valid before 2026-01-01 00:00 UTC.",
        )
        assert asked(permit_of(), use_of(now=last)) == ("The permit expired at 2027-01-01 00:00 UTC.",)

    def test_a_clock_in_another_time_zone_makes_no_difference(self) -> None:
        tokyo = timezone(timedelta(hours=9))
        assert asked(permit_of(), use_of(now=datetime(2027, 1, 1, 8, 59, tzinfo=tokyo))) == ()
        assert asked(permit_of(), use_of(now=datetime(2027, 1, 1, 9, tzinfo=tokyo))) != ()

    def test_a_plan_that_the_holder_did_not_sign(self) -> None:
        assert problems(plan_of(DOCUMENT), "", USE) == ("The permit's holder has not signed this plan.",)

    def test_a_permit_that_somebody_else_took_along(self) -> None:
        plan = plan_of(DOCUMENT)
        foreign = ("The signature over this plan is not that of the permit's holder.",)
        assert problems(plan, sign_plan(plan, STRANGER), USE) == foreign
        assert problems(plan, sign_plan(plan, ISSUER), USE) == foreign

    @pytest.mark.parametrize(
        "change", [{"rounds": 19}, {"seed": 1}, {"name": "other"}, {"training": {"local_steps": 4}}]
    )
    def test_a_signature_over_another_plan(self, change: dict[str, Any]) -> None:
        replayed = sign_plan(plan_of(DOCUMENT), HOLDER)
        assert problems(plan_of(DOCUMENT, **change), replayed, USE) == (
            "The signature over this plan is not that of the permit's holder.",
        )

    def test_a_signature_made_for_something_else(self) -> None:
        plan = plan_of(DOCUMENT)
        assert len(problems(plan, HOLDER.sign("reply", plan.sha256()), USE)) == 1

    @given(st.text(max_size=100))
    def test_garbage_is_no_signature(self, signature: str) -> None:
        assert len(problems(plan_of(DOCUMENT), signature, USE)) == 1

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({"purpose": "education"}, "The permit does not cover the plan's purpose, education."),
            ({"model": {"name": "segresnet"}}, "The permit does not cover the plan's network, segresnet."),
            ({"rounds": 21}, "The permit covers at most 20 rounds; the plan asks for 21."),
            (
                {
                    "task": {"name": "classification", "target": "malignant", "classes": ["no", "yes"]},
                },
                "The permit does not cover the plan's task, classification.",
            ),
        ],
    )
    def test_a_plan_beyond_the_permit(self, change: dict[str, Any], reason: str) -> None:
        assert asked(permit_of(), **change) == (reason,)

    def test_privacy_that_the_permit_requires(self) -> None:
        assert asked(permit_of(privacy_required=True)) == (
            "The permit requires a privacy mechanism, and the plan has none.",
        )

    def test_all_of_the_sites_datasets_have_to_be_covered_and_none_is_named(self) -> None:
        assert asked(permit_of(), use_of(datasets=("ds-5", "10.5281/zenodo.1"))) == ()
        (reason,) = asked(permit_of(), use_of(datasets=("ds-5", "ds-secret", "ds-secret")))
        assert reason == "The permit does not cover 1 of the 2 datasets of this site's cohort."

    def test_a_site_that_names_no_dataset_is_covered_by_no_permit(self) -> None:
        (reason,) = asked(permit_of(), use_of(datasets=()))
        assert "does not say which datasets" in reason

    def test_plans_are_counted_but_one_that_ran_before_may_go_on(self) -> None:
        plan = plan_of(DOCUMENT)
        signature = sign_plan(plan, HOLDER)
        assert problems(plan, signature, use_of(earlier_plans=frozenset({"1" * 64}))) == ()
        two = frozenset({"1" * 64, "2" * 64})
        assert problems(plan, signature, use_of(earlier_plans=two)) == (
            "The permit covers 2 different plans at a site, and is used up here.",
        )
        assert problems(plan, signature, use_of(earlier_plans=frozenset({"1" * 64, plan.sha256()}))) == ()
        assert problems(plan, signature, use_of(earlier_plans=two | {plan.sha256()})) == ()

    def test_all_reasons_are_given(self) -> None:
        permit = permit_of(issuer="stranger", privacy_required=True, plans=1)
        plan = plan_of(
            issue(permit, STRANGER),
            purpose="education",
            rounds=21,
            model={"name": "resnet"},
            task={"name": "classification", "target": "malignant", "classes": ["no", "yes"]},
        )
        use = use_of(now=NOW.replace(year=2030), datasets=("ds-6",), earlier_plans=frozenset({"1" * 64}))
        words = (
            "issuer",
            "expired",
            "signed",
            "purpose",
            "task",
            "network",
            "rounds",
            "privacy",
            "datasets",
            "used up",
        )
        reasons = problems(plan, "", use)
        assert len(reasons) == len(words)
        assert all(word in reason for word, reason in zip(words, reasons, strict=True))

    def test_reasons_quote_none_of_the_permits_texts(self) -> None:
        permit = permit_of(id="GARCIA", issuer="maria", holder="pilar", datasets=("P007",))
        plan = plan_of(issue(permit, STRANGER), rounds=100)
        text = " ".join(problems(plan, "x", use_of(datasets=("ds-secret",), now=NOW.replace(year=2030))))
        assert not re.search("GARCIA|maria|pilar|P007|ds-secret|ed25519", text)


class TestItsParts:
    def test_the_standing_of_an_altered_one_names_all_that_is_wrong(self) -> None:
        found = inspect_permit(put(DOCUMENT, ("permit", "issuer"), "hdab-fr"))
        assert len(standing_problems(found, {"x": STRANGER.public}, NOW.replace(year=2020))) == 3
        assert standing_problems(inspect_permit(DOCUMENT), {"hdab-es": ISSUER.public}, NOW) == ()

    def test_scope_and_datasets_ask_for_no_signature(self) -> None:
        assert scope_problems(permit_of(), plan_of(None)) == ()
        assert dataset_problems(permit_of(), ("ds-5",)) == ()

    def test_plain_words(self) -> None:
        text = "\n".join(describe(permit_of()))
        assert "hdab-es allows upv" in text
        assert "scientific research, statistics" in text
        assert "until 2027-01-01 00:00 UTC" in text
        assert "at most 20 in a plan" in text
        assert "at most 2 different plans at each site" in text
        assert fingerprint(HOLDER.public) in text
        free = "\n".join(describe(permit_of(tasks=None, networks=None, rounds=None, plans=1, privacy_required=True)))
        assert "Tasks: any. Networks: any. Rounds: any number." in free
        assert "at most one plan" in free
        assert "must name a privacy mechanism" in free
