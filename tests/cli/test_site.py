"""`eucaim-fl site` as hospital IT meets it."""

from __future__ import annotations

import functools
import json
import socket
import stat
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result
from rich.console import Console

from eucaim_fl.cli import cli
from eucaim_fl.cli.site_check import steps
from eucaim_fl.cohorts import isolation, pixel_pass
from eucaim_fl.cohorts.index import scan
from eucaim_fl.errors import ConfigError, SiteFileError
from eucaim_fl.site import locate

pytestmark = pytest.mark.integration


@pytest.fixture(autouse=True)
def _here(monkeypatch):
    """Foreign files are read in this process: a test starts no others."""

    def alone(work: str, items: Any, **options: Any) -> Any:
        return real(work, items, **{**options, "workers": 0})

    real = isolation.map_isolated
    for module in (scan, pixel_pass, locate):
        monkeypatch.setattr(module, "map_isolated", functools.partial(alone))


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(cli, ["site", *map(str, words)])


def folder_of(site_file: Path) -> Path:
    return Path(yaml.safe_load(site_file.read_text())["cohort"]["folder"])


class TestHelp:
    @pytest.mark.parametrize("words", [["check"], ["index"], ["locate"]])
    def test_every_command_has_help_with_an_example(self, words):
        result = run(*words, "--help")
        assert result.exit_code == 0
        assert "Example" in result.output

    def test_the_group_names_its_commands_without_loading_them(self):
        result = run("--help")
        assert all(word in result.output for word in ("check", "import", "index", "locate", "lineage"))
        assert run("nothing").exit_code != 0


class TestCheck:
    def test_a_good_cohort_is_told_in_plain_words(self, hospital):
        result = run("check", hospital("a"))
        assert result.exit_code == 0, result.output
        assert "12 of 12 patients can be used" in result.stdout
        assert "Clinical columns" in result.stdout
        assert "reading pixels: 12 of 12" in result.stderr

    def test_a_cohort_that_cannot_be_used_exits_with_2_and_says_why(self, hospital):
        result = run("check", hospital("a", minimum_patients=20), "--no-pixels")
        assert result.exit_code == 2
        assert "can't take part yet" in result.stdout
        assert "release.minimum_patients" in result.stdout

    def test_who_is_set_aside_is_named_with_the_reason(self, hospital):
        site_file = hospital("a")
        (folder_of(site_file) / "images" / "PATIENT-003.nii.gz").write_bytes(b"nothing")
        result = run("check", site_file, "--no-pixels")
        assert result.exit_code == 0
        assert "Set aside" in result.stdout
        assert "PATIENT-003" in result.stdout
        assert "EFL204" in result.stdout

    def test_json_names_nobody(self, hospital):
        site_file = hospital("a")
        (folder_of(site_file) / "images" / "PATIENT-003.nii.gz").write_bytes(b"nothing")
        result = run("check", site_file, "--json", "--no-pixels")
        value = json.loads(result.stdout)
        assert value["counts"]["usable_patients"] == 11
        assert value["set_aside"][0]["patients"] == 1
        assert "PATIENT" not in result.stdout
        assert str(folder_of(site_file)) not in result.stdout

    def test_the_page_is_written_for_its_owner_only(self, hospital, tmp_path):
        result = run("check", hospital("a"), "--html", tmp_path / "page.html")
        assert result.exit_code == 0, result.output
        assert stat.S_IMODE((tmp_path / "page.html").stat().st_mode) == 0o600
        assert (tmp_path / "page.html").read_text().count("<img") == 12
        assert "page.html" in result.stdout

    def test_the_page_never_lies_in_the_cohort(self, hospital):
        site_file = hospital("a")
        page = folder_of(site_file) / "page.html"
        result = run("check", site_file, "--html", page, "--no-pixels")
        assert isinstance(result.exception, SiteFileError)
        assert not page.exists()

    def test_no_connection_is_opened(self, hospital, monkeypatch):
        def refuse(*_: object) -> None:
            raise AssertionError("a connection was opened")

        monkeypatch.setattr(socket.socket, "connect", refuse)
        assert run("check", hospital("a")).exit_code == 0

    def test_a_bad_site_file_is_the_usual_error(self, tmp_path):
        (tmp_path / "a.yaml").write_text("name: a\ncohrt: {}\n")
        assert isinstance(run("check", tmp_path / "a.yaml").exception, SiteFileError)
        assert isinstance(run("check", tmp_path / "missing.yaml").exception, SiteFileError)


class TestIndex:
    def test_it_tells_what_changed(self, hospital):
        site_file = hospital("a")
        first = json.loads(run("index", site_file, "--json").stdout)
        assert (first["files"], first["new"], first["series"]) == (24, 24, 24)
        (folder_of(site_file) / "images" / "PATIENT-003.nii.gz").unlink()
        result = run("index", site_file)
        assert result.stdout.startswith("23 files, ")
        assert "1 deleted" in result.stdout
        assert "23 unchanged" in result.stdout

    def test_verify_reads_everything(self, hospital):
        site_file = hospital("a")
        run("index", site_file)
        assert json.loads(run("index", site_file, "--json", "--verify").stdout)["changed"] == 0


class TestLocate:
    def test_it_refuses_where_there_is_no_terminal(self, hospital):
        result = run("locate", hospital("a"), "EFL204")
        assert isinstance(result.exception, ConfigError)
        assert "no terminal" in str(result.exception)

    def test_it_prints_as_many_as_asked_for(self, hospital):
        site_file = hospital("a")
        for number in range(3):
            (folder_of(site_file) / "images" / f"PATIENT-{number:03d}.nii.gz").write_bytes(b"nothing")
        words = ("locate", site_file, "EFL204", "--no-pixels", "--yes-print-identifiers")
        assert [line[:11] for line in run(*words).stdout.splitlines()] == [f"PATIENT-{n:03d}" for n in range(3)]
        limited = run(*words, "--limit", "2")
        assert len(limited.stdout.splitlines()) == 2
        assert "there are more" in limited.stderr

    def test_a_rule_that_nothing_breaks(self, hospital):
        result = run("locate", hospital("a"), "deid.private", "--yes-print-identifiers")
        assert (result.exit_code, result.stdout) == (0, "")
        assert "Nothing breaks this rule." in result.stderr

    def test_an_unknown_rule_names_the_nearest(self, hospital):
        result = run("locate", hospital("a"), "deid.privat", "--yes-print-identifiers")
        assert isinstance(result.exception, ConfigError)
        assert "deid.private" in str(result.exception)


class TestSteps:
    def test_without_a_terminal_a_step_has_a_line_at_both_ends(self, capsys):
        with steps(Console(force_terminal=False, width=80)) as tell:
            for done in range(6):
                tell("reading", done, 5)
        lines = [line[9:] for line in capsys.readouterr().out.splitlines()]
        assert lines == ["reading: 0 of 5", "reading: 5 of 5"]

    def test_on_a_terminal_there_are_bars(self, capsys):
        with steps(Console(force_terminal=True, width=80)) as tell:
            tell("listing", 3, None)
            tell("reading", 1, 2)
        assert "reading" in capsys.readouterr().out
