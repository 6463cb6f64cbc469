"""The list of runs, from the run folders alone."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eucaim_fl.durable import exclusive
from eucaim_fl.records import Participation, RoundRecord
from eucaim_fl.tracking.summary import list_runs, read_records
from tests.tracking.finished_validation import answer, asking, begin, finish

Maker = Callable[..., Path]


def record(number: int) -> dict[str, Any]:
    return RoundRecord(
        number, "a", "b", (Participation("a", "took_part"),), {}, {"validation": {"dice": 0.5}}, {}, ("a",), 1.0
    ).to_json()


@pytest.fixture
def make(tmp_path: Path) -> Maker:
    def run(name: str, rounds_done: int = 0, result: Any = None, age: int = 0, plan: str | None = None) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        path = folder / "plan.json"
        path.write_text(plan if plan is not None else json.dumps({"name": "demo", "rounds": 5}))
        os.utime(path, (1_700_000_000 - age, 1_700_000_000 - age))
        for number in range(1, rounds_done + 1):
            place = folder / "journal" / f"round-{number:04d}"
            place.mkdir(parents=True)
            (place / "record.json").write_text(json.dumps(record(number)))
        if result is not None:
            (folder / "result.json").write_text(result if isinstance(result, str) else json.dumps(result))
        return folder

    return run


class TestListRuns:
    def test_a_folder_that_does_not_exist_holds_no_runs(self, tmp_path: Path) -> None:
        assert list_runs(tmp_path / "none") == []

    def test_a_finished_run_shows_its_pooled_metric_and_plan(self, tmp_path: Path, make: Maker) -> None:
        make("x", 6, {"plan_sha256": "0123456789abcdef", "metrics": {"pooled": {"dice": 0.87, "patients": 12}}})
        (row,) = list_runs(tmp_path)
        assert (row.name, row.plan, row.state) == ("x", "demo", "finished")
        assert (row.rounds_done, row.rounds) == (5, 5)
        assert row.metric == ("dice", 0.87)
        assert row.plan_sha256 == "0123456789ab"
        assert row.started is not None
        assert row.started.year == 2023

    def test_a_validation_shows_its_models_and_its_main_figure_with_limits(self, tmp_path: Path) -> None:
        plan = asking()
        begin(tmp_path / "x", plan)
        (row,) = list_runs(tmp_path)
        assert (row.kind, row.models, row.state, row.metric) == (
            "validation", ("model-1", "model-2"), "interrupted", None,
        )  # fmt: skip
        answer(tmp_path / "x", plan)
        finish(tmp_path / "x", plan)
        (row,) = list_runs(tmp_path)
        report = json.loads((tmp_path / "x" / "report.json").read_text())
        auc = report["result"]["models"][0]["scopes"][0]["figures"]["auc"]
        assert (row.state, row.metric, row.interval) == ("finished", ("auc", auc["value"]), (auc["low"], auc["high"]))
        assert row.plan_sha256 == plan.sha256()[:12]

    @pytest.mark.parametrize("text", ["{", '{"result": {"models": []}}', '{"result": {"models": [{"scopes": [{}]}]}}'])
    def test_a_validation_with_a_damaged_report_is_still_a_row(self, tmp_path: Path, make: Maker, text: str) -> None:
        folder = make("x", result={"validation": []}, plan='{"name": "demo", "rounds": 1, "validation": {"models": 3}}')
        (folder / "report.json").write_text(text)
        (row,) = list_runs(tmp_path)
        assert (row.kind, row.models, row.metric, row.interval) == ("validation", (), None, None)

    def test_a_training_is_called_one(self, tmp_path: Path, make: Maker) -> None:
        make("x", plan='{"name": "demo", "rounds": 5, "validation": null}')
        (row,) = list_runs(tmp_path)
        assert (row.kind, row.models, row.interval) == ("training", (), None)

    def test_a_run_that_was_stopped_shows_how_far_it_came(self, tmp_path: Path, make: Maker) -> None:
        make("x", 2)
        (row,) = list_runs(tmp_path)
        assert (row.state, row.rounds_done, row.rounds, row.metric) == ("interrupted", 2, 5, None)

    def test_a_run_that_a_process_holds_is_running(self, tmp_path: Path, make: Maker) -> None:
        folder = make("x", 2)
        with exclusive(folder):
            assert list_runs(tmp_path)[0].state == "running"
        assert list_runs(tmp_path)[0].state == "interrupted"

    def test_looking_does_not_keep_a_run_from_starting(self, tmp_path: Path, make: Maker) -> None:
        folder = make("x")
        (folder / ".lock").touch()
        list_runs(tmp_path)
        with exclusive(folder):
            pass

    def test_a_run_that_failed_says_so(self, tmp_path: Path, make: Maker) -> None:
        (make("x", 1) / "status.json").write_text('{"state": "failed"}')
        assert list_runs(tmp_path)[0].state == "failed"

    def test_the_newest_run_comes_first(self, tmp_path: Path, make: Maker) -> None:
        for name, age in (("old", 50), ("new", 0), ("older", 900)):
            make(name, age=age)
        assert [row.name for row in list_runs(tmp_path)] == ["new", "old", "older"]

    @pytest.mark.parametrize("text", ["", "{", "[]", "7", '{"rounds": "many"}', "\x00\xff", "[" * 5000])
    def test_a_damaged_folder_is_still_a_row(self, tmp_path: Path, make: Maker, text: str) -> None:
        make("x", result=text, plan=text)
        make("y", 1, result='{"metrics": {"pooled": null}}')
        assert {row.name for row in list_runs(tmp_path)} == {"x", "y"}

    def test_other_folders_and_files_are_no_runs(self, tmp_path: Path, make: Maker) -> None:
        make("x")
        (tmp_path / "mlartifacts").mkdir()
        (tmp_path / "mlflow.db").touch()
        assert len(list_runs(tmp_path)) == 1


class TestReadRecords:
    def test_damaged_records_and_one_that_is_being_written_are_left_out(self, make: Maker) -> None:
        folder = make("x", 4)
        (folder / "journal" / "round-0002" / "record.json").write_text("{")
        (folder / "journal" / "round-0003" / "record.json").write_text("{}")
        (folder / "journal" / "round-0004").rename(folder / "journal" / ".round-0004.part")
        assert [r.round for r in read_records(folder)] == [1]
        assert read_records(folder)[0] == RoundRecord.from_json(record(1))

    def test_records_come_in_order_of_rounds(self, make: Maker) -> None:
        assert [r.round for r in read_records(make("x", 12))] == list(range(1, 13))
