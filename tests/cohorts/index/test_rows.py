from __future__ import annotations

from typing import Any

import pytest

from eucaim_fl.cohorts.facts import FileFacts, SeriesFacts
from eucaim_fl.cohorts.index.rows import (
    FILE_NAMES,
    SERIES_NAMES,
    checked,
    file_facts,
    folder_of,
    series_facts,
    series_row,
)


class TestFolderOf:
    def test_it_is_what_stands_before_the_last_slash(self) -> None:
        assert [folder_of(path) for path in ("a/b/c.dcm", "c.dcm", "a/closed/")] == ["a/b", "", "a/closed"]


class TestSeries:
    @pytest.mark.parametrize("folder", ["", "P1/S1"])
    def test_a_row_becomes_the_same_facts(self, folder: str) -> None:
        before = f"{folder}/" if folder else ""
        facts = SeriesFacts(
            folder=folder, files=(f"{before}a.dcm", f"{before}b c.dcm"), kind="dicom", image_type=("A", "B"),
            size=(1, 2, 3), spacing_mm=(1.0, None, None), identifiers={"deid.uid": 3}, contrast=False,
        )  # fmt: skip
        row = series_row(facts)
        assert series_facts(tuple(row[name] for name in SERIES_NAMES)) == facts

    def test_a_folder_that_can_not_be_listed_keeps_its_name(self) -> None:
        facts = SeriesFacts(folder="P1/closed", files=("P1/closed/",), kind="other", code="EFL204")
        assert series_facts(tuple(series_row(facts)[name] for name in SERIES_NAMES)).files == ("P1/closed/",)


class TestFiles:
    def test_empty_lists_and_missing_ones_differ(self) -> None:
        facts = FileFacts(path="a", size=1, mtime_ns=2, ctime_ns=3, inode=4, identifiers={"x": 1})
        row = {name: getattr(facts, name) for name in FILE_NAMES}
        row.update(image_type=None, references=None, identifiers='{"x": 1}')
        assert file_facts(tuple(row[name] for name in FILE_NAMES)) == facts


class TestChecked:
    def test_what_fits_is_a_row(self) -> None:
        values = {"kind": "dicom", "rows": 4, "thickness_mm": 3, "position": [1.0, 2, 3.0], "identifiers": {"b": 1}}
        assert checked(values) == {**values, "identifiers": '{"b": 1}'}

    @pytest.mark.parametrize(
        "values",
        [
            None, [], "x", {"unknown": 1}, {"kind": 1}, {"rows": 1.5}, {"rows": True}, {"rows": 2**63}, {"inode": -1},
            {"thickness_mm": float("nan")}, {"thickness_mm": "3"}, {"position": 1}, {"position": ["x"]},
            {"image_type": [1]}, {"contrast": 1}, {"identifiers": []}, {"identifiers": {"a": 1.5}},
            {"reason": "x" * 5000}, {"reason": "\udc80"}, {"references": ["x"] * 200_000},
        ],
    )  # fmt: skip
    def test_anything_else_is_not(self, values: Any) -> None:
        assert checked(values) is None
