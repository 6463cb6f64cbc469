"""`report verify`: what it prints, and what its exit code says."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner

from eucaim_fl.cli import cli
from eucaim_fl.cli import report as report_module
from eucaim_fl.errors import ReportError, ServiceStateError
from eucaim_fl.signing import PrivateKey
from eucaim_fl.validation.document import Circumstances, Told, make_document, page_of, to_bytes
from eucaim_fl.validation.signed import PURPOSE, RecordSignature, statement
from tests.validation.site_records import measured, plan_for, record, whole

PLAN = plan_for("segmentation", ["a", "b"])
KEYS = {site: PrivateKey.create() for site in "ab"}


def content_of(signed: bool) -> bytes:
    rng = np.random.default_rng(0)
    records = [record(PLAN, site, whole(20, measured({"dice": rng.random(20)}))) for site in "ab"]
    signatures = {
        one.site: RecordSignature(KEYS[one.site].public, KEYS[one.site].sign(PURPOSE, statement(one)))
        for one in records
        if signed
    }
    return to_bytes(make_document(PLAN, Told(records, signatures), Circumstances()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Reports, signed and not, and the page of the first."""
    folder = tmp_path_factory.mktemp("reports")
    for name, signed in (("signed", True), ("unsigned", False)):
        (folder / f"{name}.json").write_bytes(content_of(signed))
    (folder / "report.html").write_text(page_of((folder / "signed.json").read_bytes()))
    return folder


def run(*words):
    return CliRunner().invoke(cli, ["report", "verify", *map(str, words)])


def given(*sites):
    return [word for site in sites for word in ("--key", f"{site}={KEYS[site].public}")]


class TestVerify:
    def test_a_line_a_check_and_a_verdict(self, folder):
        done = run(folder / "signed.json", "--page", folder / "report.html", *given("a", "b"))
        assert done.exit_code == 0
        lines = done.output.splitlines()
        assert sum(line.startswith("holds  ") for line in lines) == 8
        assert any(line.startswith("holds  signature of a: it fits, by the key on file") for line in lines)
        assert lines[-1] == "This report holds, and every record is signed by its site."

    def test_without_keys_the_last_line_says_that_nobody_vouches(self, folder):
        signed, unsigned = run(folder / "signed.json"), run(folder / "unsigned.json")
        assert (signed.exit_code, unsigned.exit_code) == (0, 0)
        assert "NOBODY vouches for the keys" in signed.output
        assert "NOBODY signed" in unsigned.output

    def test_with_keys_an_unsigned_record_or_one_without_a_key_is_no_good(self, folder):
        unsigned = run(folder / "unsigned.json", *given("a", "b"))
        alone = run(folder / "signed.json", *given("a"))
        assert (unsigned.exit_code, alone.exit_code) == (2, 2)
        assert "does NOT hold" in unsigned.output
        assert "open   signature of b" in alone.output
        assert "not all of it could be looked at" in alone.output

    def test_a_changed_number_is_named(self, folder, tmp_path):
        values = json.loads((folder / "signed.json").read_bytes())
        values["result"]["models"][0]["scopes"][0]["figures"]["dice"]["value"] = 0.99
        (tmp_path / "forged.json").write_text(json.dumps(values))
        done = run(tmp_path / "forged.json", "--json")
        assert done.exit_code == 2
        found = json.loads(done.output)
        assert not found["holds"]
        (failed,) = (check for check in found["checks"] if check["state"] == "fails")
        assert (failed["what"], "figures.dice.value: 0.99" in failed["said"]) == ("result", True)
        assert set(found["records"]) == {"a", "b"}

    def test_what_is_no_report_does_not_hold(self, tmp_path):
        (tmp_path / "x.json").write_text("{")
        done = run(tmp_path / "x.json")
        assert done.exit_code == 2
        assert "FAILS  file" in done.output

    def test_files_that_are_missing_or_endless_are_errors(self, folder, tmp_path, monkeypatch):
        assert isinstance(run(tmp_path / "none.json").exception, ReportError)
        monkeypatch.setattr(report_module, "_LARGEST_PAGE_BYTES", 10)
        done = run(folder / "signed.json", "--page", folder / "report.html")
        assert "longer than 10 bytes" in str(done.exception)

    @pytest.mark.parametrize("key", ["a", "a=", "a=ed25519:short", "A=ed25519:" + "A" * 43, "=ed25519:" + "A" * 43])
    def test_a_key_of_another_form_is_refused(self, folder, key):
        done = run(folder / "signed.json", "--key", key)
        assert done.exit_code == 2
        assert "hospital_a=ed25519" in done.output

    def test_a_federation_that_is_not_there_is_said(self, folder, tmp_path, monkeypatch):
        monkeypatch.setenv("EUCAIM_FL_FEDERATIONS", str(tmp_path))
        assert isinstance(run(folder / "signed.json", "--federation", "other").exception, ServiceStateError)
