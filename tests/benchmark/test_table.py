"""The table: same patients, joint resamples, differences against pooled, best local and the honest twin."""

from __future__ import annotations

import json

import numpy as np
import pytest

from eucaim_fl.benchmark.outcome import Cost, Outcome, named
from eucaim_fl.benchmark.rows import Row
from eucaim_fl.benchmark.sheets import markdown, sheets_of
from eucaim_fl.benchmark.table import make_table
from eucaim_fl.errors import RecipeError
from eucaim_fl.federation.poison import Poison

SITES = ("a", "a", "b", "b")


def outcome(name, dice, seed=0, trained="federation", poison=None, row=None):
    values = {(site, f"p{i}"): (d, 10 * (1 - d)) for i, (site, d) in enumerate(zip(SITES, dice, strict=True))}
    return Outcome(name, row or name, trained, seed, "p", "c", "", Cost(6, 0, 1.5), values, poison)


def trained(**more):
    found = [
        outcome("local:a", [0.8, 0.6, 0.2, 0.2], trained="local", row="local"),
        outcome("local:b", [0.1, 0.1, 0.6, 0.4], trained="local", row="local"),
        outcome("pooled", [0.9, 0.7, 0.6, 0.6], trained="pooled"),
        outcome("fedavg", [0.8, 0.6, 0.5, 0.5]),
    ]
    return [*found, *(outcome(name, dice) for name, dice in more.items())]


def value(table, model, scope, metric="dice"):
    return table["models"][model]["values"][metric][scope]["estimate"]


class TestMakeTable:
    @pytest.fixture
    def table(self):
        return make_table(trained(), "segmentation", 0, samples=50)

    def test_every_model_has_every_site(self, table) -> None:
        assert value(table, "local:a", "b") == pytest.approx(0.2)
        assert value(table, "pooled", "all") == pytest.approx(0.7)
        assert value(table, "pooled", "mean") == pytest.approx(0.7)
        assert value(table, "fedavg", "a", "hd95_mm") == pytest.approx(3.0)

    def test_local_models_are_summed_up_in_two_ways(self, table) -> None:
        assert value(table, "local_own", "all") == pytest.approx(0.6)
        assert value(table, "local_mean", "all") == pytest.approx((0.45 + 0.3) / 2)

    def test_differences_are_paired_by_patient(self, table) -> None:
        found = next(
            d for d in table["differences"] if (d["model"], d["metric"], d["scope"]) == ("fedavg", "dice", "all")
        )
        assert found["against"] == "pooled"
        assert [found[key] for key in ("estimate", "low", "high")] == pytest.approx([-0.1] * 3)

    def test_each_site_is_compared_with_the_local_model_that_is_best_there(self, table) -> None:
        best = {
            (d["metric"], d["scope"]): d["against"] for d in table["differences"] if d["against"].startswith("local")
        }
        assert best[("dice", "a")] == best[("hd95_mm", "a")] == "local:a"
        assert best[("dice", "b")] == best[("hd95_mm", "b")] == "local:b"

    def test_a_second_way_to_train_on_one_site_counts_among_the_local_models(self) -> None:
        better = outcome("local_adam:b", [0.9, 0.9, 0.1, 0.1], trained="local", row="local_adam")
        table = make_table([*trained(), better], "segmentation", 0, samples=50)
        against = {d["scope"]: d["against"] for d in table["differences"] if d["metric"] == "dice"}
        assert (against["a"], against["b"]) == ("local_adam:b", "local:b")
        assert value(table, "local_mean", "all") == pytest.approx((0.45 + 0.3) / 2)
        assert value(table, "local_own", "all") == pytest.approx(0.6)

    def test_it_is_plain_json(self, table) -> None:
        assert json.loads(json.dumps(table, allow_nan=False)) == table

    def test_intervals_hold_the_estimate(self, table) -> None:
        for model in table["models"].values():
            entry = model["values"]["dice"]["all"]
            assert entry["low"] <= entry["estimate"] <= entry["high"]

    def test_seeds_are_averaged_and_their_spread_is_told(self) -> None:
        runs = [outcome("pooled", [d] * 4, seed, "pooled") for seed, d in ((0, 0.5), (1, 0.7))]
        entry = make_table(runs, "segmentation", 0, samples=20)["models"]["pooled"]["values"]["dice"]["mean"]
        assert entry["estimate"] == pytest.approx(0.6)
        assert entry["by_seed"] == pytest.approx({"0": 0.5, "1": 0.7})
        assert entry["sd"] == pytest.approx(np.std([0.5, 0.7], ddof=1))

    def test_a_patient_without_a_value_under_one_model_is_left_out_for_all(self) -> None:
        table = make_table(trained(other=[float("nan"), 0.6, 0.5, 0.5]), "segmentation", 0, samples=20)
        assert table["undefined"] == 1
        assert value(table, "pooled", "a") == pytest.approx(0.7)

    def test_a_bad_sites_row_is_compared_with_its_twin(self) -> None:
        bad = outcome("bad", [0.6, 0.4, 0.1, 0.1], poison=Poison("flip", "b"))
        table = make_table([*trained(), bad], "segmentation", 0, samples=20)
        found = {d["scope"]: d for d in table["poisoned"] if d["metric"] == "dice"}
        assert found["honest"]["against"] == "fedavg"
        assert found["honest"]["estimate"] == pytest.approx(-0.2)
        assert found["all"]["estimate"] == pytest.approx(-0.3)
        assert table["patients"]["honest"] == 2

    def test_other_patients_are_refused(self) -> None:
        other = outcome("fedavg", [0.5] * 4)
        fewer = Outcome(**{**vars(other), "values": dict(list(other.values.items())[1:])})
        with pytest.raises(RecipeError, match="same patients"):
            make_table([trained()[2], fewer], "segmentation", 0)

    def test_a_task_that_can_not_be_compared_is_refused(self) -> None:
        with pytest.raises(RecipeError, match="task that can be compared"):
            make_table(trained(), "captioning", 0)

    def test_classes_have_calibration(self) -> None:
        rng = np.random.default_rng(0)
        values = {("a", f"p{i}"): (1 - p, p, float(rng.random() < p)) for i, p in enumerate(rng.random(40))}
        one = Outcome("pooled", "pooled", "pooled", 0, "p", "c", "", Cost(6, 0, 1.0), values)
        points = make_table([one], "classification", 0, samples=20)["models"]["pooled"]["points"]
        assert points["calibration_slope"]["all"] > 0
        assert 0 <= points["calibration_error"]["a"] <= 1


class TestSheetsOf:
    def test_all_sheets_have_as_many_cells_as_heads(self) -> None:
        bad = outcome("bad", [0.6, 0.4, 0.1, 0.1], poison=Poison("flip", "b"))
        sheets = sheets_of(make_table([*trained(), bad], "segmentation", 0, samples=20))
        assert [sheet.title for sheet in sheets] == [
            "Dice",
            "HD95, mm",
            "Dice minus the best local model",
            "Dice with a bad site",
            "Cost",
        ]
        assert all(len(cells) == len(sheet.columns) - 1 for sheet in sheets for _, cells in sheet.rows)

    def test_the_best_of_a_column_is_shaded_most(self) -> None:
        sheet = sheets_of(make_table(trained(), "segmentation", 0, samples=20))[0]
        whole = {name: cells[0].shade for name, cells in sheet.rows}
        assert whole["pooled"] == 1.0
        assert whole["local:b"] == 0.0

    def test_a_bar_in_a_name_breaks_no_markdown(self) -> None:
        sheets = sheets_of(make_table(trained(**{"a|b": [0.5] * 4}), "segmentation", 0, samples=20))
        rows = [line for line in markdown(sheets, "x").splitlines() if line.startswith("| a/b")]
        assert rows


class TestOutcome:
    def test_it_survives_its_file(self) -> None:
        one = outcome("x", [0.5, float("nan"), 0.1, 0.2], poison=Poison("scale", "a"))
        again = Outcome.from_json(json.loads(json.dumps(one.to_json(), allow_nan=False)))
        assert repr(again) == repr(one)

    def test_a_sites_own_models_are_named_after_their_row(self) -> None:
        assert named(Row("ditto", ())) == "ditto"
        assert named(Row("ditto", ()), "chosen") == "ditto.chosen"
