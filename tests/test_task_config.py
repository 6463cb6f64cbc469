"""Tasks as recipes have them: columns, outputs, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from eucaim_fl.config import TASKS, MultilabelConfig, SurvivalConfig, TaskConfig

READ: TypeAdapter[Any] = TypeAdapter(TaskConfig)
COMPLETE: dict[str, dict[str, Any]] = {
    "segmentation": {"labels": ["liver", "lesion"]},
    "classification": {"target": "grade", "classes": ["1", "2", "3"]},
    "multilabel": {"targets": ["oedema", "effusion"]},
    "survival": {"time": "time_days", "event": "died"},
}


class TestTasks:
    @pytest.mark.parametrize(
        ("name", "columns", "outputs"),
        [
            ("segmentation", (), 3),
            ("classification", ("grade",), 3),
            ("multilabel", ("oedema", "effusion"), 2),
            ("survival", ("time_days", "died"), 1),
        ],
    )
    def test_each_says_what_it_predicts_and_how_many_logits_it_has(
        self, name: str, columns: tuple[str, ...], outputs: int
    ) -> None:
        task = READ.validate_python({"name": name, **COMPLETE[name]})
        assert (task.columns(), task.outputs()) == (columns, outputs)

    def test_these_are_all(self) -> None:
        assert set(TASKS) == set(COMPLETE)

    @pytest.mark.parametrize(
        ("targets", "complaint"),
        [
            ([], "at least 1"),
            (["a"] * 2, "differ from each other"),
            (["Oedema", "oedema"], "differ from each other"),
            (["site_mean_x"], "no name can begin with site_mean"),
            (["1st"], "should match pattern"),
            ([f"t{n}" for n in range(33)], "at most 32"),
        ],
    )
    def test_targets_that_can_not_be_told_apart_are_refused(self, targets: list[str], complaint: str) -> None:
        with pytest.raises(ValidationError, match=complaint):
            MultilabelConfig.model_validate({"targets": targets})

    def test_time_and_event_are_two_columns(self) -> None:
        with pytest.raises(ValidationError, match="two columns"):
            SurvivalConfig(time="status", event="Status")
