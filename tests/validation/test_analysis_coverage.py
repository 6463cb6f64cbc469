"""Intervals hold the truth as often as they say, in federations whose truth is known."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from scipy.special import ndtr
from scipy.stats import binom
from sklearn.metrics import roc_auc_score

from eucaim_fl.seeding import generator
from eucaim_fl.validation.analysis import analyse
from eucaim_fl.validation.analysis_input import asked_of
from tests.validation.site_records import plan_for, record, whole

FOLDER = Path(__file__).resolve().parents[2] / "experiments" / "benchmarks"
FEDERATIONS = 60


@pytest.fixture(scope="module")
def simulation() -> Iterator[ModuleType]:
    sys.path.insert(0, str(FOLDER))
    yield importlib.import_module("validation_coverage")
    sys.path.remove(str(FOLDER))


def test_the_truth_is_what_very_many_patients_have(simulation: ModuleType) -> None:
    rng = generator(0, "truth")
    few = simulation.hospitals(rng, apart=True, count=5)
    many = replace(few, without=few.without * 1000, diseased=few.diseased * 1000)
    high = np.concatenate([rng.normal(mean, size=n) for mean, n in zip(many.high, many.diseased, strict=True)])
    low = np.concatenate([rng.normal(mean, size=n) for mean, n in zip(many.low, many.without, strict=True)])
    truths = few.truths()
    area = roc_auc_score(np.repeat([1, 0], [len(high), len(low)]), np.concatenate([high, low]))
    assert truths["auc"] == pytest.approx(area, abs=0.005)
    assert truths["sensitivity"] == pytest.approx((ndtr(high) >= 0.5).mean(), abs=0.005)
    assert truths["specificity"] == pytest.approx((ndtr(low) < 0.5).mean(), abs=0.005)


def test_the_truth_at_large_is_the_mean_of_very_many_hospitals(simulation: ModuleType) -> None:
    many = simulation.hospitals(generator(0, "large"), apart=True, count=20_000)
    areas = ndtr((many.high - many.low) / np.sqrt(2))
    odds = np.log(areas / (1 - areas)).mean()
    found = simulation.at_large(apart=True)
    assert found["auc"] == pytest.approx(1 / (1 + np.exp(-odds)), abs=0.002)
    assert found["dice"] == pytest.approx(many.dice.mean(), abs=0.002)


def test_limits_are_those_of_a_report(simulation: ModuleType) -> None:
    rng = generator(1, "report")
    figures = simulation.told(simulation.hospitals(rng, apart=True, count=4), rng)
    plans = {task: plan_for(task, simulation.sites_of(4)) for task in figures}
    found = simulation.limits({task: asked_of(plan) for task, plan in plans.items()}, figures)
    patients = {site: int(one.moments["dice"][0]) for site, one in figures["segmentation"].items()}
    for task, plan in plans.items():
        records = [record(plan, site, whole(patients[site], one)) for site, one in figures[task].items()]
        scope = analyse(plan, records, seed=0).models[0].scopes[0]
        first = scope.between[0]
        assert found[f"{first.figure}, of hospitals at large"] == (first.low, first.high)
        assert found[f"{first.figure}, of a further one"] == (first.prediction_low, first.prediction_high)
        for name, figure in scope.figures.items():
            if (key := f"{name.removesuffix('@0.5')}, of these hospitals") in found:
                assert found.pop(key) == (figure.low, figure.high)
    assert not [key for key in found if "these" in key]


@pytest.mark.parametrize("apart", [False, True])
def test_intervals_hold_it_about_as_often_as_they_say(simulation: ModuleType, apart: bool) -> None:
    found = simulation.coverage(FEDERATIONS, 0, apart=apart)
    least = binom.ppf(0.001, FEDERATIONS, 0.95) / FEDERATIONS
    assert len(found) == 8
    assert min(found.values()) >= least


def test_it_would_be_seen_if_they_did_not(simulation: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    truths = {"auc": 0.7, "dice": 0.7, "sensitivity": 0.5, "specificity": 0.5}
    monkeypatch.setattr(simulation.Hospitals, "truths", lambda _: truths)
    found = simulation.coverage(4, 0, apart=False)
    assert max(found["auc, of these hospitals"], found["dice, of these hospitals"]) < 0.9


def test_the_command_prints_and_writes_shares(
    simulation: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert simulation.main(["--federations", "2", "--hospitals", "3", "--json", str(tmp_path / "found.json")]) == 0
    assert "hospitals apart, 2 federations of 3" in capsys.readouterr().out
    assert set(json.loads((tmp_path / "found.json").read_text())["coverage"]) == {"alike", "apart"}
