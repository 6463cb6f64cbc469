"""Whoever asks for copies of what leaves has one of everything that left, and nothing leaves without."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from eucaim_fl.arrays import ArrayFile
from eucaim_fl.errors import JournalError
from eucaim_fl.site.answers import Answer
from eucaim_fl.site.report import SiteReport
from eucaim_fl.site.sent_copy import keep_copy

REPORT = SiteReport(
    kind="round", site="a", plan_sha256="1" * 64, round=3, patients=12, seen=12, cohort_sha256="2" * 64, train_loss=0.5
)


def test_a_copy_has_the_report_and_every_array(tmp_path: Path) -> None:
    update = {"weight": np.arange(6, dtype=np.float32).reshape(2, 3), "steps": np.array(7)}
    place = keep_copy(tmp_path / "sent", "f" * 64, Answer(REPORT, update, np.zeros((1, 2, 2, 3), np.uint8)))
    assert place == tmp_path / "sent" / ("f" * 64)
    assert SiteReport.model_validate(json.loads((place / "report.json").read_text())) == REPORT
    kept = ArrayFile(place / "update.safetensors").load()
    assert {name: array.tolist() for name, array in kept.items()} == {n: a.tolist() for n, a in update.items()}
    assert ArrayFile(place / "pictures.safetensors").names == ["pictures"]


def test_an_answer_without_arrays_is_its_report(tmp_path: Path) -> None:
    place = keep_copy(tmp_path, "e" * 64, Answer(REPORT, {}))
    assert [path.name for path in place.iterdir()] == ["report.json"]


def test_a_copy_that_can_not_be_kept_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(JournalError, match="can't be kept"):
        keep_copy(tmp_path / "file", "e" * 64, Answer(REPORT, {}))
