"""`eucaim-fl site lineage`: plain words, JSON, and nobody else's runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from eucaim_fl.cli.site_lineage import command
from eucaim_fl.errors import ConfigError
from eucaim_fl.site.lineage import Lineage
from eucaim_fl.sitefile import load_site_file


def recorded(path: Path) -> None:
    lineage = Lineage(load_site_file(path).records_folder())
    for number in (1, 2):
        lineage.record(("a" * 64, "demo"), ("round", number), f"{number}" * 64, {"train": ["P1", "P2"]})


class TestLineage:
    def test_it_lists_runs_rounds_and_the_last_weights(self, hospital: Callable[..., Path]) -> None:
        path = hospital("a")
        recorded(path)
        outcome = CliRunner().invoke(command, [str(path)], catch_exceptions=False)
        assert "demo (aaaaaaaaaaaa)  rounds 1–2: trained with 2 patients; last weights 222222222222" in outcome.output

    def test_it_answers_for_one_patient(self, hospital: Callable[..., Path]) -> None:
        path = hospital("a")
        recorded(path)
        outcome = CliRunner().invoke(command, [str(path), "--patient", "P1", "--json"], catch_exceptions=False)
        (found,) = json.loads(outcome.output)
        assert (found["patients"], found["rounds"], found["use"]) == (1, [1, 2], "train")
        none = CliRunner().invoke(command, [str(path), "--patient", "P9"], catch_exceptions=False)
        assert none.output == "No run used any of these patients.\n"

    def test_a_test_is_at_the_end(self, hospital: Callable[..., Path]) -> None:
        path = hospital("a")
        Lineage(load_site_file(path).records_folder()).record(
            ("a" * 64, "demo"), ("end", 3), "3" * 64, {"test": ["P1"]}
        )
        outcome = CliRunner().invoke(command, [str(path)], catch_exceptions=False)
        assert "  at the end: tested on 1 patient;" in outcome.output

    def test_without_a_consent_table_nobody_is_known_to_have_withdrawn(self, hospital: Callable[..., Path]) -> None:
        with pytest.raises(ConfigError, match="no consent table"):
            CliRunner().invoke(command, [str(hospital("a")), "--withdrawn"], catch_exceptions=False)

    def test_it_answers_for_all_who_have_withdrawn(self, hospital: Callable[..., Path]) -> None:
        path = hospital("a")
        recorded(path)
        values = yaml.safe_load(path.read_text())
        values["consent"] = {"table": str(path.parent / "consent.csv")}
        path.write_text(yaml.safe_dump(values))
        (path.parent / "consent.csv").write_text("patient_id,status,date,purposes\nP2,withdrawn,2025-01-01,\n")
        outcome = CliRunner().invoke(command, [str(path), "--withdrawn"], catch_exceptions=False)
        assert "trained with 1 patient;" in outcome.output
