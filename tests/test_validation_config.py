"""What a plan of a validation may ask for: figures that its task has, and no others."""

from __future__ import annotations

from typing import Any

import pytest

from eucaim_fl.errors import PlanError
from eucaim_fl.plan import FederationPlan, read_plan
from eucaim_fl.validation.analysis import analyse
from eucaim_fl.validation.analysis_input import asked_of as input_of
from eucaim_fl.validation.analysis_input import label_of
from eucaim_fl.validation.patient_figures import validation_record
from eucaim_fl.validation.record import moment_ranges
from eucaim_fl.validation_config import ValidationConfig, check_metrics
from tests.validation.frozen import CLASSES, LABELS, MASKS, SURVIVAL, THREE, any_results, frozen_plan

ORGANS: dict[str, Any] = {**MASKS, "labels": ["liver", "lesion"]}


def asked_of(plan: FederationPlan, **values: Any) -> ValidationConfig:
    assert plan.validation is not None
    return ValidationConfig.model_validate({**plan.validation.model_dump(), **values})


@pytest.mark.parametrize(
    ("task", "metric"),
    [
        (CLASSES, "dice"),
        (CLASSES, "f1"),
        (THREE, "auc_a"),
        (LABELS, "auc_mass"),
        (LABELS, "brier_other"),
        (MASKS, "auc"),
        (MASKS, "dice_lesion_lesion"),
        (ORGANS, "lesion_sensitivity"),
        (ORGANS, "dice_spleen"),
        (SURVIVAL, "c_index"),
    ],
)
def test_models_are_compared_by_nothing_that_no_site_tells(task: dict[str, Any], metric: str) -> None:
    plan = frozen_plan(task, 2)
    with pytest.raises(ValueError, match=rf"validation\.comparisons: {plan.task.name} has no figure {metric} for it"):
        check_metrics(asked_of(plan, comparisons=[{"metric": metric}]), plan.task)


@pytest.mark.parametrize(
    ("task", "metric"),
    [(CLASSES, "dice"), (CLASSES, "auk"), (LABELS, "sensitivity_mass"), (MASKS, "auc"), (SURVIVAL, "auc")],
)
def test_no_interval_of_a_figure_that_there_is_not_is_to_be_narrow(task: dict[str, Any], metric: str) -> None:
    plan = frozen_plan(task, 1)
    with pytest.raises(ValueError, match=rf"validation\.half_widths: {plan.task.name} has no figure {metric} for it"):
        check_metrics(asked_of(plan, half_widths={metric: 0.1}), plan.task)


@pytest.mark.parametrize("task", [CLASSES, THREE, LABELS, MASKS, ORGANS])
def test_every_mean_that_sites_tell_can_be_compared(task: dict[str, Any]) -> None:
    plan = frozen_plan(task, 2)
    for name in moment_ranges(plan.task):
        check_metrics(asked_of(plan, comparisons=[{"metric": name}], half_widths={name: 0.1}), plan.task)


@pytest.mark.parametrize("task", [CLASSES, THREE, LABELS, MASKS, SURVIVAL])
def test_every_figure_of_a_report_can_be_asked_to_be_narrow(task: dict[str, Any]) -> None:
    plan = frozen_plan(task, 1, bootstrap_samples=20)
    results = any_results(plan, 40, 1)
    record = validation_record(plan.sites[0], plan, results, dict.fromkeys(results[0], ()))
    figures = analyse(plan, [record], seed=1).models[0].scopes[0].figures
    names = {label_of(input_of(plan), name)[0].partition("@")[0] for name in figures}
    assert names
    for name in names:
        check_metrics(asked_of(plan, half_widths={name: 0.1}), plan.task)


def test_a_plan_that_arrives_is_refused() -> None:
    text = frozen_plan(CLASSES, 2, comparisons=[{"metric": "auc"}]).canonical_json()
    assert read_plan(text)
    with pytest.raises(PlanError, match="has no figure dice"):
        read_plan(text.replace('"metric":"auc"', '"metric":"dice"'))
