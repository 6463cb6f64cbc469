"""`eucaim-fl prepare`: options reach the writers, and the folder is printed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from eucaim_fl.cli.prepare import command


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What the writers were called with; nothing is written."""
    calls: list[tuple[Any, ...]] = []

    def note(*places: Path, progress: Any, **options: Any) -> None:
        progress(1, 2)
        calls.append((*places, options))

    monkeypatch.setattr("eucaim_fl.cohorts.lidc.write_lidc", note)
    monkeypatch.setattr("eucaim_fl.cohorts.ham10000.write_ham10000", note)
    return calls


class TestPrepare:
    @pytest.mark.parametrize(
        ("words", "options"),
        [
            (["lidc_nodules"], {"seed": 0, "split": "equal"}),
            (["lidc_nodules", "--split", "skewed", "--seed", "3"], {"seed": 3, "split": "skewed"}),
            (["ham10000"], {"seed": 0, "split": "sources"}),
            (["ham10000", "--split", "chance", "--seed", "3"], {"seed": 3, "split": "chance"}),
        ],
        ids=["equal", "skewed", "sources", "chance"],
    )
    def test_a_data_set_goes_where_it_is_told(
        self, words: list[str], options: dict[str, Any], written: list[tuple[Any, ...]], tmp_path: Path
    ) -> None:
        result = CliRunner().invoke(command, [*words, "--from", "in", "--to", str(tmp_path)])
        assert (result.exit_code, result.output) == (0, f"{tmp_path}\n")
        assert written == [(Path("in"), tmp_path, options)]

    def test_another_split_is_no_choice(self, written: list[tuple[Any, ...]]) -> None:
        result = CliRunner().invoke(command, ["lidc_nodules", "--from", "in", "--split", "odd"])
        assert (result.exit_code, written) == (2, [])
