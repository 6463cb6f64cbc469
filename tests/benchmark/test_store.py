"""What a benchmark's folder keeps, and what is found again."""

from __future__ import annotations

import numpy as np
import pytest

from eucaim_fl.benchmark.expectations import read_expectation
from eucaim_fl.benchmark.outcome import Cost, Outcome
from eucaim_fl.benchmark.page import render
from eucaim_fl.benchmark.report import summarise, write_report
from eucaim_fl.benchmark.request import Request, read_request
from eucaim_fl.benchmark.rows import Row
from eucaim_fl.benchmark.store import Store
from eucaim_fl.errors import JournalError, RecipeError, RunNotFoundError
from eucaim_fl.federation.poison import Poison


def pooled(dice: float = 0.5) -> Outcome:
    values = {("a", "p0"): (dice, 1.0), ("a", "p1"): (dice / 2, 2.0)}
    return Outcome("pooled", "pooled", "pooled", 0, "p", "c", "d", Cost(6, 0, 1.0), values)


@pytest.fixture
def request_of(recipe):
    return lambda *expect: Request(
        "eucaim-fl benchmark experiment=x",
        recipe(["a.yaml"]),
        ((Row("bad", ("rounds=2",), "federation", Poison("flip", "a")), recipe(["a.yaml"])),),
        (0, 1),
        tuple(read_expectation(text) for text in expect),
        "/data",
    )


class TestStore:
    def test_what_was_kept_is_found_for_the_same_plan_and_way_alone(self, tmp_path, plan_for) -> None:
        store, plan = Store(tmp_path), plan_for()
        store.keep("pooled", plan, ("pooled", ""), [pooled()], {"w": np.zeros(2, np.float32)})
        assert store.finished("pooled", plan, ("pooled", "")) == [pooled()]
        assert store.finished("pooled", plan, ("pooled", "flip:a")) is None
        assert store.finished("pooled", plan_for(rounds=3), ("pooled", "")) is None
        assert len(list((tmp_path / "rows").glob("*.safetensors"))) == 1

    def test_a_damaged_file_counts_as_none(self, tmp_path, plan_for) -> None:
        store = Store(tmp_path)
        store.keep("pooled", plan_for(), (), [pooled()], {})
        next((tmp_path / "rows").glob("*.json")).write_text("{")
        assert store.finished("pooled", plan_for(), ()) is None

    def test_what_can_not_be_written_is_said(self, tmp_path, plan_for) -> None:
        (tmp_path / "rows").write_text("a file where a folder should be")
        with pytest.raises(JournalError, match="written"):
            Store(tmp_path).keep("pooled", plan_for(), (), [pooled()], {})

    def test_a_run_is_found_by_its_plan(self, tmp_path, plan_for) -> None:
        store = Store(tmp_path)
        (store.runs / "one").mkdir(parents=True)
        (store.runs / "one" / "plan.json").write_text(plan_for().canonical_json())
        assert store.run_of(plan_for()) == store.runs / "one"
        assert store.run_of(plan_for(seed=5)) is None


class TestRequest:
    def test_it_survives_its_file(self, tmp_path, request_of) -> None:
        request = request_of("bad > pooled")
        request.write(tmp_path)
        assert read_request(tmp_path) == request

    @pytest.mark.parametrize("text", ["{", "{}", '{"rows": 3}'])
    def test_other_files_are_refused(self, tmp_path, text) -> None:
        (tmp_path / "request.json").write_text(text)
        with pytest.raises(RunNotFoundError, match="no benchmark"):
            read_request(tmp_path)

    def test_a_folder_that_can_not_be_written_is_said(self, tmp_path, request_of) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(JournalError, match="written"):
            request_of().write(tmp_path / "file")


class TestReport:
    def test_three_files_are_left_and_expectations_are_in_them(self, tmp_path, request_of) -> None:
        result = summarise(request_of("pooled > pooled + 0.1"), [pooled()])
        write_report(tmp_path, result)
        assert {path.name for path in tmp_path.iterdir()} == {"benchmark.json", "benchmark.html", "benchmark.md"}
        page = (tmp_path / "benchmark.html").read_text()
        assert "pooled &gt; pooled + 0.1: does not hold" in page
        assert (tmp_path / "benchmark.md").read_text().startswith("`eucaim-fl benchmark experiment=x`")

    def test_what_is_not_in_the_table_is_not_expected(self, request_of) -> None:
        with pytest.raises(RecipeError, match="no model 'best'"):
            summarise(request_of("best > pooled"), [pooled()])

    def test_a_folder_that_is_gone_is_said(self, tmp_path, request_of) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(JournalError, match="written"):
            write_report(tmp_path / "file", summarise(request_of(), [pooled()]))

    def test_text_from_elsewhere_is_escaped(self, request_of) -> None:
        result = summarise(request_of(), [pooled()])
        page = render("<script>", result, [], "<b>")
        assert "<script>" not in page
        assert "<b>" not in page
