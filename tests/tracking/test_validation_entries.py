"""A validation's figures as MLflow's metrics and tags: every number under one legal key, every gap named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from mlflow.utils.validation import _validate_metric_name, _validate_tag_name

from eucaim_fl.errors import DataError, JournalError
from eucaim_fl.plan import FederationPlan
from eucaim_fl.tracking.validation_entries import Entries, read_result, validation_entries, validation_params
from eucaim_fl.validation.result_schema import ValidationResult
from tests.tracking.finished_validation import answer, asking, begin, finish
from tests.validation.page_story import METRICS, hospitals, plan_of, result_of


@pytest.fixture(scope="module")
def story() -> tuple[FederationPlan, ValidationResult, Entries]:
    """Two models at nine hospitals, of which one withholds and one does not answer."""
    plan = plan_of(hospitals(9))
    result = result_of(plan)
    return plan, result, validation_entries(plan, result)


def named(labels: list[str], metrics: tuple[str, ...], task: dict[str, Any]) -> Entries:
    plan = plan_of(hospitals(2), models=1, rules=0, task=task)
    assert labels == list(task.get("labels", task.get("classes")))
    return validation_entries(plan, result_of(plan, metrics))


class TestMetrics:
    def test_each_pooled_figure_has_its_limits(self, story):
        _, result, entries = story
        for model in result.models:
            figures = model.scopes[0].figures
            assert set(figures) == set(METRICS)
            for name, figure in figures.items():
                key = f"{model.name}/{name.replace('@', '_at_')}"
                found = tuple(entries.metrics[key + behind] for behind in ("", "_low", "_high"))
                assert found == (figure.value, figure.low, figure.high)

    def test_so_has_each_site_that_tells_some(self, story):
        _, result, entries = story
        for site in result.models[0].scopes[0].sites:
            place = f"triage-net/site/{site.site}"
            assert entries.metrics.get(f"{place}/patients") == site.patients
            for name, figure in site.figures.items():
                assert entries.metrics[f"{place}/{name.replace('@', '_at_')}_high"] == figure.high

    def test_so_have_the_mean_over_sites_and_a_comparison_with_its_margin(self, story):
        _, result, entries = story
        between, one = result.models[0].scopes[0].between[0], result.comparisons[0]
        assert entries.metrics["triage-net/between/sites/auc"] == between.value
        assert entries.metrics["triage-net/between/sites/auc_prediction_low"] == between.prediction_low
        key = "triage-net/against/older-net/auc"
        told = [entries.metrics[key + behind] for behind in ("", "_low", "_high", "_margin", "_p_adjusted")]
        assert told == [one.difference, one.low, one.high, one.margin, one.p_adjusted]

    def test_mlflow_takes_every_key_and_tag(self, story):
        for key in story[2].metrics:
            _validate_metric_name(key)
        for tag, value in story[2].tags.items():
            _validate_tag_name(tag)
            assert 0 < len(value) <= 8000

    def test_a_label_can_not_be_taken_for_a_limit(self):
        task = {"name": "segmentation", "spatial_dims": 3, "labels": ["low", "lesion"]}
        entries = named(["low", "lesion"], ("dice", "dice_low", "dice_lesion"), task)
        assert {"triage-net/dice", "triage-net/dice_low", "triage-net/low/dice", "triage-net/low/dice_low"} <= set(
            entries.metrics
        )

    def test_what_mlflow_refuses_in_a_class_s_name_is_replaced_and_classes_stay_apart(self):
        classes = ["a/b", "a<b", "..", "größer"]
        task = {"name": "classification", "target": "size", "classes": classes}
        entries = named(classes, tuple(f"auc_{name}" for name in classes), task)
        for key in entries.metrics:
            _validate_metric_name(key)
        pooled = [key for key in entries.metrics if key.count("/") == 2 and key.endswith("/auc")]
        assert len(pooled) == 4
        assert entries.tags["label.a_b"] == "a/b"
        assert sorted(v for k, v in entries.tags.items() if k.startswith("label.")) == sorted(classes)


class TestGaps:
    def test_what_has_no_value_is_named_with_its_reason_and_is_no_metric(self, story):
        plan, result, _ = story
        first = result.models[0].scopes[0]
        figures = {
            "auc": first.figures["auc"].model_copy(update={"value": None, "reason": "Nobody has it."}),
            "brier": first.figures["brier"].model_copy(update={"low": None, "reason": "One patient."}),
        }
        scope = first.model_copy(update={"figures": figures, "between": ()})
        model = result.models[0].model_copy(update={"scopes": (scope,)})
        entries = validation_entries(plan, result.model_copy(update={"models": (model,), "comparisons": ()}))
        assert not {"triage-net/auc", "triage-net/auc_low", "triage-net/brier_low"} & set(entries.metrics)
        assert entries.metrics["triage-net/brier"] == figures["brier"].value
        told = entries.tags["not_logged"].split("; ")
        assert told[:2] == ["triage-net/auc: Nobody has it.", "triage-net/brier_low: One patient."]
        hidden = next(one.site for one in first.sites if one.withheld)
        assert f"triage-net/site/{hidden}/patients: withheld, by_the_sites_rules" in told

    def test_of_very_many_the_first_are_named_and_the_rest_counted(self, story):
        plan, result, _ = story
        scope = result.models[0].scopes[0]
        nothing = {
            name: figure.model_copy(update={"value": None, "reason": "x" * 300})
            for name, figure in scope.figures.items()
        }
        scope = scope.model_copy(update={"figures": nothing, "sites": (), "between": ()})
        model = result.models[0].model_copy(update={"scopes": (scope,)})
        words = validation_entries(plan, result.model_copy(update={"models": (model,), "comparisons": ()})).tags[
            "not_logged"
        ]
        kept = words.count("triage-net/")
        assert 0 < kept < len(nothing)
        assert words.endswith(f"; {len(nothing) - kept} more, see report.json")

    def test_where_nothing_is_missing_no_tag_says_so(self):
        plan = plan_of(hospitals(4), models=1)
        assert "not_logged" not in validation_entries(plan, result_of(plan)).tags


class TestTags:
    def test_the_verdict_and_each_comparison_s_outcome_are_there(self, story):
        _, result, entries = story
        assert entries.tags["verdict"] == result.verdicts[0].sentence
        assert entries.tags["verdict.where"] == result.verdicts[1].sentence
        assert entries.tags["models"] == "triage-net against older-net"
        assert entries.tags["comparison.auc"] == "shown: The first model is not worse by 0.05 or more."
        assert entries.tags["comparison.sensitivity_at_0.3"] == "no margin"

    def test_a_plan_that_trains_has_none(self, story):
        trains = story[0].model_copy(update={"validation": None})
        with pytest.raises(DataError, match="asks for no validation"):
            validation_entries(trains, story[1])


class TestParams:
    def test_models_patients_thresholds_sites_and_the_plan_are_there(self, story):
        plan = story[0]
        found = validation_params(plan)
        assert found["plan_sha256"] == plan.sha256()
        assert found["sites"] == list(plan.sites)
        assert (found["patients"], found["thresholds"]) == ("all", [0.3, 0.6])
        assert [found[role]["name"] for role in ("model", "against")] == ["triage-net", "older-net"]
        assert (found["model"]["sha256"], found["model"]["format"]) == ("1" * 64, "onnx")
        assert "training" not in found

    def test_a_plan_that_trains_has_none(self, story):
        with pytest.raises(DataError, match="asks for no validation"):
            validation_params(story[0].model_copy(update={"validation": None}))


class TestReadResult:
    @pytest.fixture
    def done(self, tmp_path: Path) -> tuple[FederationPlan, Path]:
        plan, folder = asking(), tmp_path / "run-1"
        begin(folder, plan)
        answer(folder, plan)
        finish(folder, plan)
        return plan, folder

    def test_it_is_what_was_written(self, done):
        plan, folder = done
        written = json.loads((folder / "report.json").read_text())["result"]
        assert read_result(folder, plan).model_dump(mode="json") == written

    @pytest.mark.parametrize("text", ["", "[]", "{}", '{"result": {"models": []}}', "[" * 5000])
    def test_a_damaged_one_is_refused(self, done, text):
        plan, folder = done
        (folder / "report.json").write_text(text)
        with pytest.raises(JournalError, match="can't be read"):
            read_result(folder, plan)

    def test_that_of_another_plan_is_refused(self, done):
        with pytest.raises(JournalError, match="of another plan"):
            read_result(done[1], asking(thresholds=(0.25,)))
