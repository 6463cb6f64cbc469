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

FOLDER = Path(__file__).resolve().parents[2] / "experiments" / "benchmarks"
FEDERATIONS = 30


@pytest.fixture(scope="module")
def simulation() -> Iterator[ModuleType]:
    sys.path.insert(0, str(FOLDER))
    yield importlib.import_module("validation_coverage")
    sys.path.remove(str(FOLDER))


def test_the_truth_is_what_very_many_patients_have(simulation: ModuleType) -> None:
    rng = generator(0, "truth")
    few = simulation.hospitals(rng, apart=True)
    many = replace(few, without=few.without * 1000, diseased=few.diseased * 1000)
    high = np.concatenate([rng.normal(mean, size=n) for mean, n in zip(many.high, many.diseased, strict=True)])
    low = np.concatenate([rng.normal(mean, size=n) for mean, n in zip(many.low, many.without, strict=True)])
    truths = few.truths()
    area = roc_auc_score(np.repeat([1, 0], [len(high), len(low)]), np.concatenate([high, low]))
    assert truths["auc"] == pytest.approx(area, abs=0.005)
    assert truths["sensitivity@0.5"] == pytest.approx((ndtr(high) >= 0.5).mean(), abs=0.005)
    assert truths["specificity@0.5"] == pytest.approx((ndtr(low) < 0.5).mean(), abs=0.005)


def test_intervals_hold_it_about_as_often_as_they_say(simulation: ModuleType) -> None:
    found = simulation.coverage(FEDERATIONS, 0, apart=False)
    least = binom.ppf(0.001, FEDERATIONS, 0.95) / FEDERATIONS
    assert {"auc", "sensitivity@0.5", "specificity@0.5", "dice", "further hospital"} == set(found)
    assert min(found.values()) >= least


def test_it_would_be_seen_if_they_did_not(simulation: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulation.Hospitals, "truths", lambda _: {"auc": 0.7, "dice": 0.7})
    assert max(simulation.coverage(2, 0, apart=False)[name] for name in ("auc", "dice")) < 0.9


def test_the_command_prints_and_writes_shares(
    simulation: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert simulation.main(["--federations", "2", "--json", str(tmp_path / "found.json")]) == 0
    assert "hospitals apart, 2 federations" in capsys.readouterr().out
    assert set(json.loads((tmp_path / "found.json").read_text())["coverage"]) == {"alike", "apart"}
