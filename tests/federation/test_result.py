"""result.json of a run whose sites have models of their own."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from eucaim_fl.cli.tables import print_result
from eucaim_fl.federation.result import make_result
from eucaim_fl.plan import FederationPlan
from eucaim_fl.records import ModelName, Participation, RoundRecord, SiteMetrics
from eucaim_fl.validation.pooling import pool

MODELS: tuple[ModelName, ...] = ("common", "local")


def told(model: ModelName, dice: float, patients: int = 10) -> tuple[SiteMetrics, ...]:
    moments = (float(patients), patients * dice, patients * dice * dice)
    return tuple(
        SiteMetrics(split, patients, {"dice": dice}, {"dice": moments}, model=model) for split in ("validation", "test")
    )


def last(metrics: dict[str, tuple[SiteMetrics, ...]], chosen: dict[str, str], model: ModelName) -> RoundRecord:
    first = [m for entries in metrics.values() for m in entries if m.model == model]
    pooled = {split: pool([m for m in first if m.split == split]) for split in ("validation", "test")}
    sites = tuple(Participation(site, "took_part") for site in metrics)
    return RoundRecord(3, "a" * 64, "b" * 64, sites, metrics, pooled, {}, (), 1.0, final=True, chosen=chosen)


@pytest.fixture
def result(plan_for: Callable[..., FederationPlan]) -> dict[str, Any]:
    """Site a has the better local model and chose it, b the better common one, c withholds and chose none."""
    withheld = tuple(
        SiteMetrics(split, 0, withheld="by_the_sites_rules", model=model)
        for model in MODELS
        for split in ("validation", "test")
    )
    metrics = {
        "a": (*told("common", 0.5), *told("local", 0.75)),
        "b": (*told("common", 0.75, 30), *told("local", 0.25, 30)),
        "c": withheld,
    }
    plan = plan_for(method={"personal": {"local": True, "choose": True}})
    return make_result("run", plan, [last(metrics, {"b": "common", "a": "local"}, "common")], 1.0)


class TestMakeResult:
    def test_the_headline_is_that_of_the_common_model(self, result: dict[str, Any]) -> None:
        assert result["metrics"]["pooled"]["dice"] == pytest.approx((10 * 0.5 + 30 * 0.75) / 40)
        assert result["metrics"]["sites"]["a"] == {"dice": 0.5, "patients": 10}
        assert result["metrics"]["sites"]["c"] == {"withheld": "by_the_sites_rules"}

    def test_each_model_is_pooled_and_so_are_the_sites_choices(self, result: dict[str, Any]) -> None:
        models = result["models"]
        assert list(result["chosen"].items()) == [("a", "local"), ("b", "common")]
        assert {name: sorted(models[name]["sites"]) for name in models} == {
            "common": ["a", "b", "c"], "local": ["a", "b", "c"], "chosen": ["a", "b"],
        }  # fmt: skip
        assert models["local"]["pooled"]["dice"] == pytest.approx((10 * 0.75 + 30 * 0.25) / 40)
        assert models["chosen"]["pooled"]["dice"] == pytest.approx(0.75)
        assert models["chosen"]["pooled"]["patients"] == 40
        assert models["common"] == result["metrics"]

    def test_a_run_with_one_model_has_nothing_beside(self, plan_for: Callable[..., FederationPlan]) -> None:
        found = make_result("run", plan_for(), [last({"a": told("common", 0.5)}, {}, "common")], 1.0)
        assert (found["models"], found["chosen"]) == ({}, {})

    def test_where_arrays_stay_at_the_sites_the_headline_is_that_of_their_own_models(
        self, plan_for: Callable[..., FederationPlan]
    ) -> None:
        plan = plan_for(method={"personal": {"arrays": "head"}})
        found = make_result("run", plan, [last({"a": told("personal", 0.5)}, {}, "personal")], 1.0)
        assert found["metrics"]["sites"]["a"]["dice"] == 0.5 == found["metrics"]["pooled"]["dice"]


class TestPrintResult:
    def test_the_models_and_choices_stand_in_a_table_of_their_own(self, result: dict[str, Any]) -> None:
        console = Console(record=True, width=120, file=io.StringIO())
        print_result(console, result)
        lines = [" ".join(line.replace("│", " ").split()) for line in console.export_text().splitlines()]
        assert "Each site's models on its test patients: dice" in lines
        assert "a 0.500 0.750 0.750 local" in lines
        assert "c – – – –" in lines
        assert "pooled 0.688 0.375 0.750" in lines
