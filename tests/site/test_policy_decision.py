"""Each line of a policy decides on its own thing; refusals name keys; bounds are never looser than the site file's."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eucaim_fl.config import TASKS, ClassificationConfig, MultilabelConfig, PrivacyConfig, SurvivalConfig
from eucaim_fl.errors import ApprovalPendingError, OutsideHoursError, PolicyRefusalError
from eucaim_fl.permits import Permit, issue, sign_plan
from eucaim_fl.plan import FederationPlan, make_plan
from eucaim_fl.signing import PrivateKey
from eucaim_fl.site.gate import default_bounds
from eucaim_fl.site.policy import LoadedPolicy, MetricName, Policy, Window
from eucaim_fl.site.policy_decision import _CHECKS, RUN_TIME, Clause, Decision, Situation, bounds, decide, is_open
from eucaim_fl.site.policy_models import MODEL_KEYS
from eucaim_fl.site.policy_privacy import FORESEEABLE
from eucaim_fl.site.policy_text import describe
from eucaim_fl.sitefile import ReleaseConfig

NOON = datetime(2026, 6, 1, 12, 0, tzinfo=UTC)  # a Monday
WORK = Window(days=("mon", "tue"), start="08:00", end="18:00", zone="UTC")
NIGHT = Window(days=("mon",), start="20:00", end="06:00", zone="Europe/Madrid")
BODY, HOLDER = PrivateKey.create(), PrivateKey.create()
ASKING = {"permits": "required", "bodies": {"hdab": BODY.public}}
DP = {"mechanism": "dp", "epsilon": 3, "delta": 1e-5}
CLASSIFIED = {"names": ("auc", "balanced_accuracy", "brier", "confusion"), "decimals": 3}
OPEN: dict[str, Any] = {
    "schema": "eucaim-fl-policy/1",
    "valid_until": date(2026, 6, 1),
    "datasets": ("ds-1",),
    "asking": {"permits": "not_required"},
    "purposes": ("scientific_research",),
    "tasks": ("segmentation", "classification"),
    "targets": ("malignant",),
    "networks": ("unet",),
    "sites": {"at_least": 2},
    "patients": {"training": 10, "metric": 5},
    "metrics": {"names": ("dice", "hd95_mm"), "decimals": 3},
    "rounds": 2,
    "plans": {"day": 2, "total": 3},
    "hours": "any",
    "work": {"minutes": 10},
    "sent_mb": {"message": 1, "plan": 3, "day": 2},
    "update": {"largest_norm": 10},
    "privacy": {"mechanism": "none"},
    "approval": "automatic",
}


def loaded(lines: dict[str, int] | None = None, **changes: Any) -> LoadedPolicy:
    return LoadedPolicy(Policy.model_validate({**OPEN, **changes}), "0" * 64, lines or {})


def situation(**changes: Any) -> Situation:
    return Situation(**{"site": "a", "now": NOON, **changes})


def classifying(plan: FederationPlan) -> FederationPlan:
    return plan.model_copy(update={"task": ClassificationConfig(target="malignant", classes=("no", "yes"))})


@pytest.fixture
def plan(recipe) -> FederationPlan:
    return make_plan(recipe(["a.yaml"]), ("a", "b"))


class TestAnOpenPolicy:
    def test_it_allows_with_a_clause_for_each_thing_in_the_order_of_its_words(self, plan):
        policy = loaded({"rounds": 7})
        decision = decide(plan, policy, situation())
        assert decision.allowed
        assert [clause.key for clause in decision.clauses] == list(describe(policy.policy))
        assert {clause.line for clause in decision.clauses} == {None, 7}
        decision.raise_if_not_allowed()


class TestDenyByDefault:
    @pytest.mark.parametrize("key", sorted(set(OPEN) - {"schema", "approval", "targets"}))
    def test_a_section_that_is_left_out_refuses(self, plan, key):
        values = {name: value for name, value in OPEN.items() if name != key}
        decision = decide(plan, LoadedPolicy(Policy.model_validate(values), "", {}), situation())
        assert decision.refused
        assert {clause.key.partition(".")[0] for clause in decision.refused} == {key}

    def test_without_a_word_on_targets_no_classification_is_allowed(self, plan):
        policy = loaded(targets=(), metrics=CLASSIFIED)
        assert [clause.key for clause in decide(classifying(plan), policy, situation()).refused] == ["targets"]

    @pytest.mark.parametrize(("given", "missing"), [({"day": 5}, "plans.total"), ({"total": 5}, "plans.day")])
    def test_both_numbers_of_plans_must_be_said(self, plan, given, missing):
        assert [clause.key for clause in decide(plan, loaded(plans=given), situation()).refused] == [missing]

    def test_without_a_word_on_approval_a_person_decides(self, plan):
        values = {name: value for name, value in OPEN.items() if name != "approval"}
        decision = decide(plan, LoadedPolicy(Policy.model_validate(values), "", {}), situation())
        assert [clause.key for clause in decision.waiting] == ["approval"]

    def test_a_policy_that_says_nothing_allows_nothing(self, plan):
        silent = LoadedPolicy(Policy(schema="eucaim-fl-policy/1"), "", {})
        assert not bounds(silent.policy, ReleaseConfig()).metrics
        allowed = {c.key for c in decide(plan, silent, situation()).clauses if c.verdict == "allows"}
        # pictures and histograms stay here, a segmentation asks for no column, a training brings no frozen model: there
        # is nothing to refuse; a limit of repeats that is not stated is a low one, and a least batch is asked for by
        # those alone who write it
        nothing = {"pictures", "score_histograms", "targets", *MODEL_KEYS}
        assert allowed == {*nothing, "plans.repeats", "patients.batch"}


class TestEachLine:
    @pytest.mark.parametrize(
        ("changes", "key"),
        [
            ({"valid_until": date(2026, 5, 31)}, "valid_until"),
            ({"purposes": ("education",)}, "purposes"),
            ({"tasks": ("classification",)}, "tasks"),
            ({"networks": ("segresnet",)}, "networks"),
            ({"sites": {"at_least": 3}}, "sites.at_least"),
            ({"metrics": {"names": ("dice",), "decimals": 3}}, "metrics.names"),
            ({"rounds": 1}, "rounds"),
            ({"patients": {"training": 13, "metric": 5}}, "patients.training"),  # 3 steps of 4
            ({"patients": {"training": 10, "metric": 5, "batch": 5}}, "patients.batch"),  # batches of 4
            ({"privacy": {"mechanism": "dp", "epsilon": 3, "delta": 1e-5}}, "privacy"),
            ({"asking": {"permits": "required"}}, "asking"),
        ],
    )
    def test_what_a_plan_asks_beyond_it_is_refused(self, plan, changes, key):
        assert [clause.key for clause in decide(plan, loaded(**changes), situation()).refused] == [key]

    def test_any_network_must_be_said(self, plan):
        assert decide(plan, loaded(networks="any"), situation()).allowed

    def test_a_plan_that_does_not_name_the_site_is_refused(self, plan):
        assert [c.key for c in decide(plan, loaded(), situation(site="z")).refused] == ["sites.at_least"]

    def test_a_classification_asks_for_other_figures(self, plan):
        other = classifying(plan)
        assert [c.key for c in decide(other, loaded(), situation()).refused] == ["metrics.names"]
        assert decide(other, loaded(metrics=CLASSIFIED), situation()).allowed

    @pytest.mark.parametrize(
        ("listed", "allowed"), [((), False), (("class_counts",), False), (("intensity_sums",), True)]
    )
    def test_sums_over_training_patients_must_be_listed(self, recipe, listed, allowed):
        asking = make_plan(recipe(["a.yaml"], data={"standardise": "federation"}), ("a", "b"))
        policy = loaded(metrics={"names": ("dice", "hd95_mm", *listed), "decimals": 3})
        decision = decide(asking, policy, situation())
        assert decision.allowed == allowed
        if not allowed:
            with pytest.raises(PolicyRefusalError, match=r"metrics\.names.*data\.standardise or training\.balance"):
                decision.raise_if_not_allowed()

    @pytest.mark.parametrize(
        ("targets", "allowed"),
        [("any", True), (("psa", "malignant"), True), (("psa",), False), (("Malignant",), False), (("any",), False)],
    )
    def test_a_classification_learns_the_columns_that_are_named(self, plan, targets, allowed):
        decision = decide(classifying(plan), loaded(targets=targets, metrics=CLASSIFIED), situation())
        assert [clause.key for clause in decision.refused] == ([] if allowed else ["targets"])

    @pytest.mark.parametrize(
        "task", [MultilabelConfig(targets=("oedema", "effusion")), SurvivalConfig(time="oedema", event="effusion")]
    )
    def test_all_columns_of_a_plan_must_be_named(self, plan, task):
        names = ("auc", "balanced_accuracy", "brier", "confusion", "c_index", "concordance")
        allows = {"tasks": TASKS, "metrics": {"names": names, "decimals": 3}}
        asks = plan.model_copy(update={"task": task})
        for targets, refused in ((("effusion", "oedema"), []), (("oedema",), ["targets"])):
            decision = decide(asks, loaded(targets=targets, **allows), situation())
            assert [clause.key for clause in decision.refused] == refused

    def test_a_segmentation_asks_for_no_column(self, plan):
        assert decide(plan, loaded(targets=()), situation()).allowed

    def test_the_steps_of_a_round_must_be_able_to_visit_enough_patients(self, plan):
        patients = {"training": 12, "metric": 5}
        assert decide(plan, loaded(patients=patients), situation()).allowed  # 3 steps of 4
        few = plan.model_copy(update={"training": plan.training.model_copy(update={"batch_size": 3})})
        decision = decide(few, loaded(patients=patients), situation())
        assert [clause.key for clause in decision.refused] == ["patients.training"]
        with pytest.raises(PolicyRefusalError, match=r"training\. At most 9 patients can be behind an update\."):
            decision.raise_if_not_allowed()

    def test_epochs_visit_all_patients(self, plan):
        epochs = {"local_steps": None, "local_epochs": 1, "batch_size": 1}
        whole = plan.model_copy(update={"training": plan.training.model_copy(update=epochs)})
        assert decide(whole, loaded(patients={"training": 1000, "metric": 5}), situation()).allowed

    def test_the_last_day_is_a_whole_day_in_utc(self, plan):
        last = datetime(2026, 6, 1, 23, 59, tzinfo=UTC)
        assert decide(plan, loaded(), situation(now=last)).allowed
        assert decide(plan, loaded(), situation(now=datetime(2026, 6, 2, tzinfo=UTC))).refused

    def test_bytes_of_the_plan_are_used_up_for_good_and_those_of_the_day_until_midnight(self, plan):
        assert decide(plan, loaded(), situation(bytes_sent=2_999_999, bytes_sent_today=1_999_999)).allowed
        assert [c.key for c in decide(plan, loaded(), situation(bytes_sent=3_000_000)).refused] == ["sent_mb.plan"]
        day = decide(plan, loaded(), situation(bytes_sent_today=2_000_000))
        assert [c.key for c in day.waiting] == ["sent_mb.day"]

    def test_a_round_that_was_answered_may_be_asked_again(self, plan):
        decision = decide(plan, loaded(), situation(rounds_done=frozenset({1, 2}), bytes_sent=1_000_000))
        assert decision.allowed
        assert any("answered 2" in clause.asks for clause in decision.clauses)


@dataclass
class Named:
    """Stands for a plan of which the name alone matters."""

    name: str

    def sha256(self) -> str:
        return self.name


class TestPlans:
    def test_those_of_the_day_wait_for_the_next_and_those_in_all_are_refused(self, plan):
        one, two, three = (frozenset("123"[:count]) for count in (1, 2, 3))
        assert decide(plan, loaded(), situation(plans_today=one, plans_ever=two)).allowed
        day = decide(plan, loaded(), situation(plans_today=two, plans_ever=two))
        assert ([c.key for c in day.waiting], day.refused) == (["plans.day"], ())
        with pytest.raises(OutsideHoursError, match=r"at another time: plans\.day\.$"):
            day.raise_if_not_allowed()
        total = decide(plan, loaded(), situation(plans_today=one, plans_ever=three))
        assert [c.key for c in total.refused] == ["plans.total"]

    def test_the_plan_itself_does_not_count_again(self, plan):
        known = frozenset({plan.sha256(), "1"})
        assert decide(plan, loaded(), situation(plans_today=known, plans_ever=known | {"2"})).allowed

    def test_a_number_that_was_lowered_counts_for_plans_that_run(self, plan):
        known = frozenset({plan.sha256(), "1"})
        lowered = loaded(plans={"day": 1, "total": 1})
        decision = decide(plan, lowered, situation(plans_today=known, plans_ever=known))
        assert ([c.key for c in decision.waiting], [c.key for c in decision.refused]) == (
            ["plans.day"],
            ["plans.total"],
        )

    @given(st.integers(1, 5), st.integers(1, 5), st.lists(st.sampled_from("abcdefgh")))
    def test_no_order_of_asking_lets_more_through(self, day, total, asked):
        allowed: frozenset[str] = frozenset()
        policy = loaded(plans={"day": day, "total": total}).policy
        for name in asked:
            one = cast(FederationPlan, Named(name))
            now = situation(plans_today=allowed, plans_ever=allowed)
            found = [_CHECKS[key](one, policy, now).verdict for key in ("plans.day", "plans.total")]
            if found == ["allows", "allows"]:
                allowed |= {name}
        assert len(allowed) == min(day, total, len(set(asked)))


class TestApproval:
    @pytest.mark.parametrize(
        ("policy", "approval", "verdict"),
        [
            ("manual", None, "waits"),
            ("manual", "approved", "allows"),
            ("manual", "refused", "refuses"),
            ("automatic", None, "allows"),
            ("automatic", "approved", "allows"),
            ("automatic", "refused", "refuses"),
        ],
    )
    def test_what_a_person_said_counts(self, plan, policy, approval, verdict):
        decision = decide(plan, loaded(approval=policy), situation(approval=approval))
        assert decision.clauses[-1].verdict == verdict


class TestHours:
    @pytest.mark.parametrize(
        ("now", "is_it"),
        [
            (datetime(2026, 6, 1, 7, 59, tzinfo=UTC), False),
            (datetime(2026, 6, 1, 8, 0, tzinfo=UTC), True),
            (datetime(2026, 6, 2, 17, 59, 59, tzinfo=UTC), True),
            (datetime(2026, 6, 2, 18, 0, tzinfo=UTC), False),
            (datetime(2026, 6, 3, 12, 0, tzinfo=UTC), False),
        ],
    )
    def test_a_window_by_day_ends_before_its_end(self, now, is_it):
        assert is_open(WORK, now) is is_it

    @pytest.mark.parametrize(
        ("now", "is_it"),
        [
            (datetime(2026, 6, 1, 17, 59, tzinfo=UTC), False),  # Madrid is two hours ahead in summer
            (datetime(2026, 6, 1, 18, 0, tzinfo=UTC), True),
            (datetime(2026, 6, 2, 3, 59, tzinfo=UTC), True),
            (datetime(2026, 6, 2, 4, 0, tzinfo=UTC), False),
            (datetime(2026, 6, 2, 18, 0, tzinfo=UTC), False),  # Tuesday's night is not listed
            (datetime(2026, 6, 1, 3, 0, tzinfo=UTC), False),  # the night that Sunday began
            (datetime(2026, 1, 5, 18, 59, tzinfo=UTC), False),  # one hour ahead in winter
            (datetime(2026, 1, 5, 19, 0, tzinfo=UTC), True),
        ],
    )
    def test_a_window_over_midnight_belongs_to_the_day_it_starts_on(self, now, is_it):
        assert is_open(NIGHT, now) is is_it

    @pytest.mark.parametrize("end", ["24:00", "00:00"])
    def test_a_whole_day_can_be_said(self, end):
        day = Window(days=("mon",), start="00:00", end=end, zone="UTC")
        assert is_open(day, datetime(2026, 6, 1, 0, 0, tzinfo=UTC))
        assert is_open(day, datetime(2026, 6, 1, 23, 59, tzinfo=UTC))
        assert not is_open(day, datetime(2026, 6, 2, 0, 0, tzinfo=UTC))

    @given(st.datetimes(datetime(2026, 1, 1), datetime(2027, 1, 1), timezones=st.just(UTC)))
    def test_a_night_and_its_day_fill_the_week(self, now):
        week = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
        night = Window(days=week, start="20:00", end="06:00", zone="Europe/Madrid")
        day = Window(days=week, start="06:00", end="20:00", zone="Europe/Madrid")
        assert is_open(night, now) is not is_open(day, now)

    def test_outside_them_a_plan_waits(self, plan):
        late = situation(now=datetime(2026, 6, 1, 19, 0, tzinfo=UTC))
        assert [c.key for c in decide(plan, loaded(hours=(WORK,)), late).waiting] == ["hours"]
        assert decide(plan, loaded(hours=(WORK, NIGHT)), late).allowed


class TestPermits:
    @pytest.fixture
    def permitted(self, recipe) -> FederationPlan:
        permit = Permit(
            id="p-1",
            issuer="hdab",
            holder="uni",
            holder_key=HOLDER.public,
            purposes=("scientific_research",),
            datasets=("ds-1",),
            valid_from=datetime(2026, 1, 1, tzinfo=UTC),
            valid_until=datetime(2027, 1, 1, tzinfo=UTC),
        )
        return make_plan(recipe(["a.yaml"]), ("a", "b"), issue(permit, BODY))

    def test_one_that_covers_the_plan_allows(self, permitted):
        signed = situation(holder_signature=sign_plan(permitted, HOLDER))
        assert decide(permitted, loaded(asking=ASKING), signed).allowed

    def test_a_plan_that_its_holder_did_not_sign_is_refused_with_the_reason(self, permitted):
        decision = decide(permitted, loaded(asking=ASKING), situation())
        (clause,) = decision.refused
        assert clause.reasons == ("The permit's holder has not signed this plan.",)
        with pytest.raises(PolicyRefusalError, match=r"asking\. The permit's holder has not signed"):
            decision.raise_if_not_allowed()

    def test_before_it_is_asked_the_signature_is_left_open(self, permitted):
        assert decide(permitted, loaded(asking=ASKING), situation(preview=True)).allowed
        for wrong in ({"datasets": ("ds-2",)}, {"asking": {"permits": "required"}}):
            values = {"asking": ASKING, **wrong}
            assert [c.key for c in decide(permitted, loaded(**values), situation(preview=True)).refused] == ["asking"]

    def test_one_that_is_no_permit_is_refused_before_it_is_asked_too(self, permitted):
        bad = permitted.model_copy(update={"permit": {"schema": "x"}})
        assert decide(bad, loaded(asking=ASKING), situation(preview=True)).refused

    def test_another_plans_use_counts(self, permitted):
        used = situation(holder_signature=sign_plan(permitted, HOLDER), permit_plans=frozenset({"1" * 64}))
        assert decide(permitted, loaded(asking=ASKING), used).refused


def private(plan: FederationPlan, **changes: Any) -> FederationPlan:
    """Two rounds of noised updates: epsilon 2.4 at 10⁻⁵ with noise 8 times the clipping norm."""
    values = {"mechanism": "update_dp", "noise_multiplier": 8.0, "delta": 1e-5, "clipping_norm": 1.0, **changes}
    return plan.model_copy(update={"privacy": PrivacyConfig.model_validate(values)})


class TestPrivacy:
    @pytest.mark.parametrize(
        ("changes", "allowed"),
        [
            ({}, True),
            ({"noise_multiplier": 3.0}, False),
            ({"delta": 2e-5}, False),
            ({"secure": False}, False),
            ({"mechanism": "central_dp"}, False),  # the coordinator sees the update as it is
            ({"mechanism": "patient_dp", "sampling_rate": 0.01}, True),
            ({"mechanism": "patient_dp", "sampling_rate": 0.01, "noise_multiplier": 0.3}, False),
        ],
    )
    def test_what_the_noise_promises_is_held_against_the_ceilings(self, plan, changes, allowed):
        asked = private(plan, **changes)
        refused = [clause.key for clause in decide(asked, loaded(privacy=DP), situation()).refused]
        assert refused == ([] if allowed else ["privacy"])
        assert decide(asked, loaded(), situation(confidential=False)).allowed

    def test_noise_from_the_plans_seed_is_for_data_that_hide_nobody(self, plan):
        asked = private(plan, secure=False)
        (clause,) = decide(asked, loaded(), situation()).refused
        assert (clause.key, clause.reasons) == ("privacy", (FORESEEABLE,))
        with pytest.raises(PolicyRefusalError, match="so it would protect nobody"):
            decide(asked, loaded(approval="manual"), situation()).raise_if_not_allowed()

    def test_the_number_of_patients_in_a_step_is_not_looked_at_where_noise_hides_them(self, plan):
        asked = private(plan, mechanism="patient_dp", sampling_rate=0.01)
        strict = {"training": 1000, "metric": 5}
        assert decide(asked, loaded(privacy=DP, patients=strict), situation()).allowed
        assert not decide(plan, loaded(patients=strict), situation()).allowed

    def test_declared_test_data_are_what_the_gate_lets_out_bare(self):
        policy = Policy.model_validate({**OPEN, "privacy": {**DP, "test_data": ("test",), "held_out": 0.2}})
        assert bounds(policy, ReleaseConfig(data_is="public")).test_data == {"test"}

    def test_a_plan_without_noise_is_told_what_is_required(self, plan):
        (clause,) = decide(plan, loaded(privacy=DP), situation()).refused
        assert "no differential privacy" in clause.asks
        assert "differential privacy is required" in clause.says


class TestRaising:
    def clause(self, key: str, verdict: Any) -> Clause:
        return Clause(key, 1, verdict, "secret asked", "secret said")

    def test_refusals_win_over_hours_and_hours_over_approval(self):
        no, later, person = (
            self.clause("rounds", "refuses"),
            self.clause("hours", "waits"),
            self.clause("approval", "waits"),
        )
        also = self.clause("networks", "refuses")
        with pytest.raises(PolicyRefusalError, match=r"refuses the plan: rounds, networks\. Ask the site") as caught:
            Decision((no, also, later, person)).raise_if_not_allowed()
        assert "secret" not in str(caught.value)
        with pytest.raises(OutsideHoursError, match=r"at another time: hours\.$"):
            Decision((person, later)).raise_if_not_allowed()
        with pytest.raises(OutsideHoursError, match=r"sent_mb\.day"):
            Decision((self.clause("sent_mb.day", "waits"), person)).raise_if_not_allowed()
        with pytest.raises(ApprovalPendingError, match="A person at the site has to decide first"):
            Decision((person,)).raise_if_not_allowed()

    def test_values_of_the_policy_are_never_told(self, plan):
        changes = {"rounds": 1, "networks": ("segresnet",), "sites": {"at_least": 77}, "purposes": ("education",)}
        with pytest.raises(PolicyRefusalError, match=r"purposes, networks, sites\.at_least, rounds") as caught:
            decide(plan, loaded(**changes), situation()).raise_if_not_allowed()
        assert not any(word in str(caught.value) for word in ("segresnet", "77", "education"))


class TestOpenUntilRunTime:
    def test_its_keys_are_keys_of_clauses(self, plan):
        assert set(RUN_TIME) <= {clause.key for clause in decide(plan, loaded(), situation()).clauses}


_NAMES = ["dice", "hd95_mm", "auc", "balanced_accuracy", "brier", "confusion", "scores"]
_MAYBE = st.none() | st.integers(1, 50)
_POLICIES = st.builds(
    lambda people, names, switches, limits: Policy.model_validate(
        {
            "schema": "eucaim-fl-policy/1",
            "patients": {"training": people[0], "metric": people[1]},
            "metrics": {"names": names, "decimals": limits[0] and limits[0] % 7},
            "pictures": switches[0],
            "score_histograms": switches[1],
            "update": {"largest_norm": limits[1]},
            "sent_mb": {"message": limits[2], "plan": limits[3], "day": limits[4]},
        }
    ),
    st.tuples(_MAYBE, _MAYBE),
    st.lists(st.sampled_from(_NAMES), unique=True).map(tuple[MetricName, ...]),
    st.tuples(st.booleans(), st.booleans()),
    st.tuples(_MAYBE, _MAYBE, _MAYBE, _MAYBE, _MAYBE),
)
_RELEASES = st.builds(
    ReleaseConfig,
    data_is=st.sampled_from(["confidential", "public", "synthetic"]),
    minimum_patients=st.integers(1, 50),
    minimum_metric_patients=st.integers(1, 50),
    score_histograms=st.booleans(),
)


class TestBounds:
    @given(_POLICIES, _RELEASES, st.integers(0, 60_000_000), st.integers(0, 60_000_000))
    def test_they_are_never_looser_than_policy_or_site_file(self, policy, release, sent, today):
        got, alone = bounds(policy, release), default_bounds(release)
        assert got.minimum_patients >= max(alone.minimum_patients, policy.patients.training or 0)
        assert got.minimum_metric_patients >= max(alone.minimum_metric_patients, policy.patients.metric or 0)
        assert got.largest_norm <= min(alone.largest_norm, policy.update.largest_norm or 0)
        assert got.largest_bytes <= min(alone.largest_bytes, (policy.sent_mb.message or 0) * 10**6)
        assert got.metrics == frozenset(policy.metrics.names)
        assert got.digits == (policy.metrics.decimals or 0)
        assert got.pictures == (alone.pictures and policy.pictures)
        assert got.score_histograms <= (alone.score_histograms and policy.score_histograms)
        now = bounds(policy, release, situation(bytes_sent=sent, bytes_sent_today=today))
        assert 0 <= now.largest_bytes <= got.largest_bytes
        assert now.largest_bytes <= max(0, (policy.sent_mb.plan or 0) * 10**6 - sent)
        assert now.largest_bytes <= max(0, (policy.sent_mb.day or 0) * 10**6 - today)

    def test_histograms_need_three_to_agree(self):
        release = ReleaseConfig(score_histograms=True)
        names = ("auc", "scores")
        both = loaded(score_histograms=True, metrics={"names": names, "decimals": 3}).policy
        assert bounds(both, release).score_histograms
        assert not bounds(both, ReleaseConfig()).score_histograms
        assert not bounds(loaded(score_histograms=True).policy, release).score_histograms

    def test_a_message_in_million_bytes(self):
        assert bounds(loaded().policy, ReleaseConfig()).largest_bytes == 1_000_000
