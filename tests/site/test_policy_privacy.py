"""What a policy's budgets are, and that a plan's epsilon is computed here."""

from __future__ import annotations

import pytest

from eucaim_fl.config import PrivacyConfig
from eucaim_fl.plan import FederationPlan, make_plan
from eucaim_fl.privacy.budget import Budget
from eucaim_fl.site.policy import PrivacyPolicy
from eucaim_fl.site.policy_privacy import FORESEEABLE, NO_LIMITS, foreseeable, limits_of, privacy_answer

DP = PrivacyPolicy(mechanism="dp", epsilon=3.0, delta=1e-5)


@pytest.fixture
def plan(recipe) -> FederationPlan:
    noised = PrivacyConfig(mechanism="update_dp", noise_multiplier=8.0, delta=1e-5, clipping_norm=1.0)
    return make_plan(recipe(["a.yaml"]), ("a",)).model_copy(update={"privacy": noised})


class TestPrivacyAnswer:
    def test_the_epsilon_is_told_with_its_mechanism(self, plan):
        allowed, asks, reasons = privacy_answer(plan, DP)
        assert (allowed, reasons) == (True, ())
        assert asks.startswith("update_dp with epsilon 1.3")
        assert asks.endswith("and delta 1e-05")

    def test_what_protects_from_nobody_here_is_said(self, plan):
        open_seed = plan.model_copy(update={"privacy": plan.privacy.model_copy(update={"secure": False})})
        central = plan.model_copy(update={"privacy": plan.privacy.model_copy(update={"mechanism": "central_dp"})})
        assert "follows from the plan's seed" in privacy_answer(open_seed, DP)[1]
        assert "sees the update without" in privacy_answer(central, DP)[1]
        assert not privacy_answer(open_seed, DP)[0]
        assert not privacy_answer(central, DP)[0]

    @pytest.mark.parametrize("mechanism", ["update_dp", "central_dp"])
    @pytest.mark.parametrize("policy", [PrivacyPolicy(mechanism="none"), DP, PrivacyPolicy()])
    def test_noise_from_the_plans_seed_is_none_for_confidential_data_whatever_the_policy(self, plan, policy, mechanism):
        noise = plan.privacy.model_copy(update={"secure": False, "mechanism": mechanism})
        asked = plan.model_copy(update={"privacy": noise})
        allowed, asks, reasons = privacy_answer(asked, policy, confidential=True)
        assert (allowed, reasons) == (False, (FORESEEABLE,))
        assert asks.endswith("hides nothing from who has the plan, and the data here are confidential")
        allowed, _, reasons = privacy_answer(asked, policy)
        assert (allowed, reasons) == (policy.mechanism == "none", ())

    def test_where_nobody_knows_what_the_data_are_it_is_refused_with_the_condition(self, plan):
        asked = plan.model_copy(update={"privacy": plan.privacy.model_copy(update={"secure": False})})
        allowed, asks, (reason,) = privacy_answer(asked, PrivacyPolicy(mechanism="none"), confidential=None)
        assert not allowed
        assert asks.endswith("a site refuses that, unless the site file calls its data synthetic or public")
        assert "calls its data synthetic or public" in reason
        assert "are confidential" not in asks + reason

    def test_plans_without_noise_or_from_a_secure_source_foresee_nothing(self, plan, recipe):
        none = make_plan(recipe(["a.yaml"]), ("a",))
        bare = none.model_copy(update={"privacy": none.privacy.model_copy(update={"secure": False})})
        for asked in (plan, none, bare):
            assert not foreseeable(asked, confidential=True)
        open_seed = plan.model_copy(update={"privacy": plan.privacy.model_copy(update={"secure": False})})
        assert foreseeable(open_seed, confidential=True)
        assert foreseeable(open_seed, confidential=None)
        assert not foreseeable(open_seed, confidential=False)

    def test_a_silent_policy_allows_neither_noise_nor_none(self, plan, recipe):
        assert not privacy_answer(plan, PrivacyPolicy())[0]
        assert not privacy_answer(make_plan(recipe(["a.yaml"]), ("a",)), PrivacyPolicy())[0]


class TestLimits:
    def test_each_ceiling_is_a_budget_at_the_policys_delta(self):
        policy = PrivacyPolicy(
            mechanism="dp", epsilon=3, delta=1e-6, patient_epsilon=10, purpose_epsilon={"education": 2}
        )
        found = limits_of(policy, "education")
        assert found.plan == Budget(3, 1e-6)
        assert found.patient == Budget(10, 1e-6)
        assert found.dataset is None
        assert found.purpose == Budget(2, 1e-6)
        assert limits_of(policy, "scientific_research").purpose is None

    def test_a_policy_that_requires_no_privacy_limits_nothing(self):
        assert limits_of(PrivacyPolicy(mechanism="none"), "education") == NO_LIMITS
