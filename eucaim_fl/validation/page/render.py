"""The page of a validation as one HTML file: the answer first, then how it was found, and what it can't say."""

from __future__ import annotations

from pathlib import Path

from eucaim_fl.errors import DataError
from eucaim_fl.pages import filled
from eucaim_fl.plan import FederationPlan
from eucaim_fl.validation.page.about import About
from eucaim_fl.validation.page.closing import (
    limits_section,
    provenance_section,
    signatures_section,
    suppressed_section,
)
from eucaim_fl.validation.page.findings import (
    between_section,
    calibration_section,
    comparison_section,
    groups_section,
    results_section,
    sample_section,
)
from eucaim_fl.validation.page.mapping import mapped
from eucaim_fl.validation.page.names import percent
from eucaim_fl.validation.page.opening import asked_section, data_section, opening
from eucaim_fl.validation.result_schema import ValidationResult

__all__ = ["render_validation"]


def render_validation(result: ValidationResult, plan: FederationPlan, about: About) -> str:
    """The page as HTML, which needs nothing from elsewhere; the same values give the same text.

    Whatever came from elsewhere (names, reasons, sentences) is escaped. Raises DataError if the plan asks for no
    validation, or the result has other models than the plan.
    """
    if plan.validation is None:
        raise DataError("The plan asks for no validation.", fix="Take the plan of the validation's own run.")
    if [model.name for model in result.models] != [model.name for model in plan.validation.models]:
        raise DataError(
            "The result is of other models than the plan.", fix="Take the plan of the validation's own run."
        )
    sections = [
        asked_section(result, plan, about),
        data_section(result, plan, about),
        results_section(result, plan),
        between_section(result, plan),
        groups_section(result, plan),
        calibration_section(result, plan),
        comparison_section(result, plan),
        sample_section(result, plan),
        suppressed_section(result, plan),
        limits_section(result, plan),
        signatures_section(result, about),
        provenance_section(result, plan, about),
    ]
    titles = {"top": "First page"} | {section.anchor: section.title for section in sections}
    answered = {"top"} | {section.anchor for section in sections if section.answered}
    return filled(
        Path(__file__).parent / "templates" / "validation.html.jinja",
        answer=opening(result, plan, about),
        level=percent(result.level),
        plan_name=plan.name,
        plan_sha256=result.plan_sha256,
        sections=sections,
        mapping=mapped(titles, answered),
    )
