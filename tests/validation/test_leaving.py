"""What can leave at most is more than any site tells."""

from __future__ import annotations

from dataclasses import asdict

import pytest
from pydantic import TypeAdapter

from eucaim_fl.errors import DataError
from eucaim_fl.site.report import SiteReport
from eucaim_fl.validation.leaving import leaving
from eucaim_fl.validation.patient_figures import validation_record
from eucaim_fl.validation.record import ValidationRecord
from tests.validation.frozen import CLASSES, LABELS, MASKS, SURVIVAL, THREE, any_results, frozen_plan

TOLD = TypeAdapter(ValidationRecord)


def numbers(value: object) -> int:
    """How many numbers a record holds."""
    if isinstance(value, dict):
        return sum(map(numbers, value.values()))
    if isinstance(value, list | tuple):
        return sum(map(numbers, value))
    return int(isinstance(value, int | float))


class TestLeaving:
    @pytest.mark.parametrize("task", [MASKS, CLASSES, THREE, LABELS, SURVIVAL], ids=lambda task: str(task))
    @pytest.mark.parametrize("models", [1, 2])
    def test_a_record_has_no_more_numbers_and_no_more_bytes(self, task, models):
        plan = frozen_plan(task, models, thresholds=[0.2, 0.5], subgroups=[{"by": "age", "edges": [50.0]}])
        results = any_results(plan, 60)
        groups = {f"p{n:03d}": [("age<50", "age>=50", "age=unknown")[n % 3]] for n in range(60)}
        record = validation_record("a", plan, results, groups, {"x" * 32: 3})
        told = leaving(plan)
        assert len(told.scopes) == len(record.scopes) == 4
        assert numbers(asdict(record)) <= told.numbers
        report = SiteReport.model_validate(
            {"kind": "final", "site": "a", "plan_sha256": plan.sha256(), "round": 2, "patients": 60,
             "cohort_sha256": "0" * 64, "seconds": 1.0, "prepare_seconds": 1.0, "validated": TOLD.dump_python(record)}
        )  # fmt: skip
        assert len(report.model_dump_json()) <= told.record_bytes

    def test_every_kind_that_is_told_is_named(self):
        named = {task["name"]: leaving(frozen_plan(task, 2)) for task in (MASKS, CLASSES, SURVIVAL)}
        assert [kind.figure for kind in named["segmentation"].kinds] == [
            "number of patients",
            "dice, hd95_mm, surface_dice, volume_difference_ml",
            "lesions",
            "the two models on the same patients",
        ]
        scores = next(kind for kind in named["classification"].kinds if kind.figure.startswith("scores"))
        assert scores.numbers == 2 * 2 * 10  # models, sides, bins
        assert "exact at the thresholds 0.5" in scores.finest
        assert any("pairs" in kind.finest for kind in named["survival"].kinds)

    def test_leaving_is_of_validations_only(self):
        plan = frozen_plan().model_copy(update={"validation": None})
        with pytest.raises(DataError, match="asks for no validation"):
            leaving(plan)
