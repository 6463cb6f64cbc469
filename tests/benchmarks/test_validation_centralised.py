"""Federated against centralised: what is kept, how patients are dealt, and what a hospital's policy lets out."""

from __future__ import annotations

import copy
import importlib
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter

from eucaim_fl.errors import DataError
from eucaim_fl.plan import FederationPlan
from eucaim_fl.site.validation_cells import told_record
from eucaim_fl.validation.analysis import analyse
from eucaim_fl.validation.record import ValidationRecord
from eucaim_fl.validation.result_schema import ValidationResult
from tests.validation.frozen import CLASSES, any_results, frozen_plan

FOLDER = Path(__file__).resolve().parents[2] / "experiments" / "benchmarks"
SCORES = ("auc", "accuracy", "sensitivity", "specificity", "brier")
Sites = tuple[FederationPlan, list[Any]]


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    sys.path.insert(0, str(FOLDER))
    yield importlib.import_module("validation_centralised")
    sys.path.remove(str(FOLDER))


@pytest.fixture(scope="module")
def sites(script: ModuleType) -> Sites:
    """Two hospitals with 150 patients, of both sexes, and what they tell of two models."""
    asked = {
        "comparisons": [{"metric": name, "margin": 0.05} for name in SCORES],
        "subgroups": [{"by": "sex"}],
        "half_widths": {"auc": 0.05},
    }
    plan = frozen_plan(CLASSES, 2, **asked, thresholds=(0.5,), bootstrap_samples=20, bins=10)
    results, rng = any_results(plan, 150, 1), np.random.default_rng(1)
    where, sex = rng.choice(2, 150, p=(0.3, 0.7)), rng.choice(["sex=F", "sex=M"], 150, p=(0.4, 0.6))
    kept, rules = [], script.rules_of(5)
    for k, site in enumerate(plan.sites):
        mine = [(number, patient) for number, patient in enumerate(results[0]) if where[number] == k]
        own = tuple({f"{site}/{p}": _plain(one[p]) for _, p in mine} for one in results)
        groups = {f"{site}/{p}": frozenset({str(sex[number])}) for number, p in mine}
        kept.append(script.Kept(own, groups, told_record(site, plan, own, groups, rules)))
    return plan, kept


def _plain(one: Any) -> dict[str, Any]:
    return {"probabilities": [float(p) for p in one["probabilities"]], "truth": float(one["truth"])}


def outside(rows: Any) -> list[Any]:
    return [("/".join(row.path), row.federated, row.centralised) for row in rows if not row.within]


class TestDealt:
    def test_everybody_is_at_one_of_three_to_six_sites_of_unequal_size(self, script, sites):
        plan, kept = sites
        everybody = sorted(patient for one in kept for patient in one.groups)
        counts = set()
        for seed in range(4):
            of, parts = script.dealt(plan, kept, seed)
            assert sorted(patient for one in parts for patient in one.groups) == everybody
            assert len({len(one.groups) for one in parts}) > 1
            assert len(of.sites) == len(parts)
            counts.add(len(parts))
        assert counts == {3, 4, 5, 6}

    def test_every_number_lies_within_its_bound_also_of_a_further_hospital(self, script, sites):
        of, parts = script.dealt(*sites, 1)  # the last of four hospitals may tell of one class alone
        rows = script.compared(of, parts, script.rules_of(5), own=False)
        assert outside(rows) == []
        further = [row for row in rows if row.path[-1].startswith("prediction_") and row.federated is not None]
        assert len({row.kind for row in further}) == 2  # of shares exactly, of AUCs in a range
        assert all(np.isfinite(row.bound) for row in further)

    def test_a_plan_without_groups_takes_patients_who_are_in_some(self, script, sites):
        plan, kept = sites
        without = script.lighter(plan, subgroups=[])
        assert outside(script.compared(without, kept, script.rules_of(5), own=False)) == []


@pytest.fixture(scope="module")
def found(script: ModuleType, sites: Sites) -> tuple[Any, ...]:
    plan, kept = sites
    rules = script.hospital_rules()
    hospitals = {site: script.told_by(plan, one, rules) for site, one in zip(plan.sites, kept, strict=True)}
    records = [told_record(site, plan, one.results, one.groups, rules) for site, one in hospitals.items()]
    return plan, analyse(plan, records, seed=3).model_dump(), hospitals, rules


class TestUnderPolicy:
    def test_a_hospital_as_it_comes_lists_no_scores_and_counts_in_fives(self, script):
        rules = script.hospital_rules()
        assert (rules.least.training, rules.least.metric, rules.least.base, rules.least.apart) == (10, 5, 5, 5)
        assert not rules.allow("scores")
        assert rules.allow("confusion")
        assert rules.digits == 3

    def test_what_is_told_lies_within_its_bound_and_what_is_not_says_so(self, script, sites):
        rows = script.under_policy(*sites, script.hospital_rules())
        assert outside(rows) == []
        kinds = {row.kind for row in rows}
        assert {"rounded", "withheld"} <= kinds
        assert {"stated", "resampled"} & kinds == set()  # nothing comes from scores

    def altered(self, script, found, change) -> list[str]:
        plan, values, hospitals, rules = found
        values = copy.deepcopy(values)
        change(values)
        rows = script.compare_told(plan, ValidationResult.model_validate(values), hospitals, rules)
        return [path for path, *_ in outside(rows)]

    def test_a_number_of_something_withheld_is_a_failure(self, script, found):
        def change(values):
            values["models"][0]["scopes"][0]["between"][0]["value"] = 0.8

        assert self.altered(script, found, change) == ["models/0/scopes/0/between/0/value"]

    def test_so_is_a_figure_from_scores(self, script, found):
        def change(values):
            figures = values["models"][0]["scopes"][0]["figures"]
            figures["auc"] = figures["brier"]

        assert "models/0/scopes/0/figures/auc/value" in self.altered(script, found, change)

    def test_and_withholding_without_a_word(self, script, found):
        def change(values):
            values["comparisons"][0]["reason"] = " "

        assert self.altered(script, found, change) == ["comparisons/0"]

    def test_and_a_group_that_is_withheld_without_its_name(self, script, found):
        def change(values):
            scope = next(s for s in values["models"][0]["scopes"] if s["withheld"])
            scope["withheld"][0]["reason"] = ""

        assert any("/sites/" in path for path in self.altered(script, found, change))

    @pytest.mark.parametrize(("figure", "by"), [("accuracy", 0.15), ("balanced_accuracy", 0.15), ("brier", 0.0011)])
    def test_and_more_than_rounding_can_do(self, script, found, figure, by):
        def change(values):
            values["models"][0]["scopes"][0]["figures"][figure]["value"] += by

        assert self.altered(script, found, change) == [f"models/0/scopes/0/figures/{figure}/value"]


class TestKept:
    def written(self, sites: Sites, place: Path, **changes: Any) -> FederationPlan:
        plan, kept = sites
        one, site = kept[0], plan.sites[0]
        names = [model.name for model in plan.validation.models] if plan.validation is not None else []
        patients = {
            patient.removeprefix(f"{site}/"): {
                "groups": sorted(groups),
                "models": {name: results[patient] for name, results in zip(names, one.results, strict=True)},
            }
            for patient, groups in one.groups.items()
        }
        record = TypeAdapter(ValidationRecord).dump_python(changes.pop("record", one.record), mode="json")
        told = {"form": 2, "plan": plan.sha256(), "site": site, "patients": patients, "record": record}
        place.write_text(json.dumps({**told, **changes}))
        return plan

    def test_it_is_what_was_found_and_told(self, script, sites, tmp_path):
        kept_in = importlib.import_module("centralised_kept").kept_in
        plan = self.written(sites, tmp_path / "one.json")
        assert kept_in(tmp_path / "one.json", plan, plan.sites[0], script.rules_of(5)) == sites[1][0]

    @pytest.mark.parametrize("changes", [{"form": None}, {"form": 1}, {"plan": "0" * 64}, {"site": "other"}])
    def test_another_form_plan_or_site_is_refused(self, script, sites, tmp_path, changes):
        kept_in = importlib.import_module("centralised_kept").kept_in
        plan = self.written(sites, tmp_path / "one.json", **changes)
        with pytest.raises(DataError, match="another version of this script"):
            kept_in(tmp_path / "one.json", plan, plan.sites[0], script.rules_of(5))

    def test_so_is_a_record_that_this_code_would_not_make(self, script, sites, tmp_path):
        kept_in = importlib.import_module("centralised_kept").kept_in
        first, *others = sites[1][0].record.scopes
        older = replace(sites[1][0].record, scopes=(replace(first, patients=first.patients + 1), *others))
        plan = self.written(sites, tmp_path / "one.json", record=older)
        with pytest.raises(DataError, match="not what this code makes"):
            kept_in(tmp_path / "one.json", plan, plan.sites[0], script.rules_of(5))

    def test_a_comparison_is_made_once(self, script, sites, tmp_path):
        plan, kept = sites
        calls = []

        def work() -> list[Any]:
            calls.append(1)
            return list(script.under_policy(plan, kept, script.hospital_rules()))

        first, again = (script._step(tmp_path, "these", plan, work) for _ in range(2))
        assert len(calls) == 1
        assert script.table.report({"these": first}) == script.table.report({"these": again})


class TestTable:
    def test_largest_differences_are_in_units_of_their_bounds(self, script):
        row = script.Row(
            ("models", "0", "scopes", "0", "figures", "sensitivity@0.5", "low"), 0.5, 0.4, 0.2, "rounded", True
        )
        line = next(one for one in script.table.largest([row, replace(row, federated=0.45)]))
        assert line[:4] == ("sensitivity", "rounded", 2, 0)
        assert line[4:] == (pytest.approx(0.1), pytest.approx(0.5))
        text = script.table.report({"here": [row], "there": [replace(row, within=False)]})
        assert "| there | 1 | 0 | 1 | 0 | 1 |" in text
