"""The whole audit of a plan at a tiny hospital, its verdicts, and its page."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from eucaim_fl.config import MultilabelConfig, SurvivalConfig
from eucaim_fl.errors import RecipeError, SiteFileError
from eucaim_fl.exposure.canary import Audit
from eucaim_fl.exposure.examination import Examination, Settings, attacks_named, examine, quick
from eucaim_fl.exposure.one_run import Evidence
from eucaim_fl.exposure.page import render_html, to_json, verdict_sentences
from eucaim_fl.privacy.promise import Promise
from eucaim_fl.sitefile import load_site_file
from tests.exposure.conftest import DP, UPDATE_DP

FEW = Settings(shadows=4, canaries=200, pictures=1, iterations=3, rounds=1)


def measured(epsilon: float) -> Audit:
    scores = np.arange(6.0)
    return Audit(scores, scores > 2, Evidence(6, 4, 4, epsilon / 2, epsilon, 1e-5, 0.95), epsilon)


@pytest.fixture
def found(small_plan: Callable[..., Any]) -> Examination:
    """An examination of two numbers."""
    return Examination(
        plan=small_plan(DP),
        rounds=2,
        site="a",
        data_is="confidential",
        patients=7,
        settings=Settings(),
        claim=Promise(8.0, 1e-5, "patient", "coordinator"),
        canary=measured(3.0),
        canary_off=measured(12.0),
    )


class TestAttacksNamed:
    def test_they_come_in_the_order_of_the_page(self):
        assert attacks_named("inversion,canary") == ("canary", "inversion")

    def test_an_unknown_name_is_answered_with_the_nearest(self):
        with pytest.raises(RecipeError, match="canary"):
            attacks_named("canery")
        with pytest.raises(RecipeError, match="No attack is named"):
            attacks_named(" , ")


class TestQuick:
    def test_it_never_asks_for_more(self):
        assert quick(Settings(shadows=4, canaries=50)).shadows == 4
        assert quick(Settings()).rounds == 3


class TestVerdict:
    def test_a_bound_below_the_promise_that_noise_off_exceeds_is_consistent(self, found):
        assert found.verdict == "consistent"
        assert "it would have noticed" in verdict_sentences(found)[1]

    def test_a_bound_above_the_promise_is_broken(self, found):
        broken = replace(found, canary=measured(8.1))
        assert broken.verdict == "broken"
        assert "Do not run this plan" in verdict_sentences(broken)[1]

    def test_an_audit_that_could_not_fail_is_weak(self, found):
        weak = replace(found, canary_off=measured(7.9))
        assert weak.verdict == "weak"
        assert "would not have noticed" in verdict_sentences(weak)[1]

    def test_without_promise_or_measurement_it_says_so(self, found):
        assert replace(found, claim=None).verdict == "no_promise"
        assert replace(found, canary=None).verdict == "not_measured"
        assert "run the canary attack" in verdict_sentences(replace(found, canary=None))[1]

    def test_noise_at_the_server_is_told_to_protect_no_patient(self, found, small_plan):
        other = replace(found, claim=None, plan=small_plan({**UPDATE_DP, "mechanism": "central_dp"}))
        assert "no patient from the coordinator" in verdict_sentences(other)[1]


class TestPage:
    def test_confidential_pages_are_for_the_site_s_eyes(self, found):
        assert "For this site’s eyes only" in render_html(found)
        assert "For this site’s eyes only" not in render_html(replace(found, data_is="public"))

    def test_it_needs_nothing_from_elsewhere_and_runs_nothing(self, found):
        page = render_html(found)
        assert not any(word in page for word in ("<script", "http:", "https:", "<link", "@import"))

    def test_numbers_are_the_same_as_in_the_json(self, found):
        value = json.loads(json.dumps(to_json(found), allow_nan=False))
        assert value["verdict"] == "consistent"
        assert value["claim"] == {"epsilon": 8.0, "delta": 1e-5}
        assert value["canary"]["without_noise"]["epsilon"] == 12.0
        assert value["membership"]["plan"] is None
        assert "12.00" in render_html(found)

    def test_fewer_rounds_than_the_plan_s_are_told(self, found):
        assert "Quick audit" not in render_html(found)
        assert "only the first 2 of 20 rounds" in render_html(replace(found, rounds=20))


@pytest.mark.integration
class TestExamine:
    def test_all_three_attacks_on_a_private_plan(self, hospital, small_plan):
        site = load_site_file(hospital("a"))
        steps = set()
        found = examine(
            site,
            small_plan({**DP, "noise_multiplier": 1.5}, local_steps=15),
            replace(FEW, canaries=400),
            lambda step, *_: steps.add(step),
        )
        assert found.claim is not None
        assert found.canary is not None
        assert found.canary_off is not None
        assert found.canary.evidence.epsilon < found.claim.epsilon < found.canary_off.evidence.epsilon
        assert found.membership is not None
        assert found.membership_off is not None
        assert [one.reference for one in found.inversions] == [True, False]
        assert steps == {"preparing cases", "canary audit", "membership models", "picture 1 of 2", "picture 2 of 2"}
        page = render_html(found)
        assert page.count("<img") == 6
        assert "PATIENT" not in page + json.dumps(to_json(found))

    def test_a_plan_without_protection_has_one_column(self, hospital, small_plan):
        found = examine(load_site_file(hospital("a")), small_plan(), FEW)
        assert (found.claim, found.canary_off, found.membership_off) == (None, None, None)
        assert found.verdict == "no_promise"
        assert render_html(found).count("<img") == 4

    def test_nothing_is_noted_at_the_site(self, hospital, small_plan):
        site = load_site_file(hospital("a"))
        examine(site, small_plan(DP), replace(FEW, attacks=("canary",)))
        assert not site.records_folder().exists()

    @pytest.mark.parametrize("settings", [replace(FEW, shadows=5), replace(FEW, canaries=3)], ids=["odd", "few"])
    def test_impossible_settings_are_refused_before_anything_is_opened(self, small_plan, tmp_path, settings):
        site_file = tmp_path / "a.yaml"
        site_file.write_text(f"name: a\ncohort: {{layout: nifti_csv, folder: {Path('missing')}}}\n")
        with pytest.raises(RecipeError, match="needs"):
            examine(load_site_file(site_file), small_plan(DP), settings)

    @pytest.mark.parametrize(
        "task",
        [MultilabelConfig(targets=("a", "b")), SurvivalConfig(spatial_dims=2, time="t", event="e")],
        ids=["multilabel", "survival"],
    )
    def test_tasks_without_attacks_are_refused(self, hospital, small_plan, task):
        plan = small_plan(DP).model_copy(update={"task": task})
        with pytest.raises(RecipeError, match="are for segmentation and classification"):
            examine(load_site_file(hospital("a", patients=4)), plan, FEW)

    def test_too_few_patients_and_missing_gpus_are_refused(self, hospital, small_plan, monkeypatch):
        few = load_site_file(hospital("a", patients=4))
        with pytest.raises(RecipeError, match="Too few patients"):
            examine(few, small_plan(DP), FEW)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(SiteFileError, match="GPU"):
            examine(
                few.model_copy(update={"compute": few.compute.model_copy(update={"device": "cuda"})}),
                small_plan(DP),
                FEW,
            )
