"""A validation over a real SuperLink: each hospital signs what it tells, and anybody can verify it offline."""

from __future__ import annotations

import hashlib
import json

import pytest
from click.testing import CliRunner

from eucaim_fl.arrays import encode_arrays
from eucaim_fl.cli import cli
from eucaim_fl.compose import resolve
from eucaim_fl.federation.home import FEDERATIONS_VARIABLE
from eucaim_fl.federation.model_files import FOLDER
from eucaim_fl.federation.run import create_run
from eucaim_fl.models.planned import initial_arrays
from eucaim_fl.plan import FederationPlan
from eucaim_fl.signing import PrivateKey
from eucaim_fl.site.audit import AuditReader
from tests.federation.deployed import Deployed, Run, deployed

__all__ = ["deployed"]


@pytest.mark.federated
class TestDeployedValidation:
    def test_every_record_is_signed_by_its_site_and_the_report_verifies(
        self, deployed: Deployed, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        config = deployed.recipe(rounds=1)
        resolved = resolve(config)
        content = b"".join(encode_arrays(initial_arrays(resolved.plan)[1]))
        model = {
            "name": "lesions",
            "format": "network",
            "sha256": hashlib.sha256(content).hexdigest(),
            "size_bytes": len(content),
            "network": resolved.plan.model.model_dump(),
            "data": resolved.plan.data.model_dump(),
            "intended_use": "Finds lesions, for research.",
        }
        plan = FederationPlan.model_validate({**resolved.plan.model_dump(), "validation": {"models": [model]}})
        folder = create_run(config, plan, resolved.site_files)
        (folder / FOLDER).mkdir()
        (folder / FOLDER / "lesions").write_bytes(content)
        Run(folder, config, dict(resolved.site_files)).result(300)

        monkeypatch.setenv(FEDERATIONS_VARIABLE, deployed.environment[FEDERATIONS_VARIABLE])
        report, page = str(folder / "report.json"), str(folder / "report.html")
        done = CliRunner().invoke(
            cli, ["report", "verify", report, "--federation", deployed.name, "--page", page, "--json"]
        )
        found = json.loads(done.output)
        assert done.exit_code == 0
        assert (found["holds"], found["vouched"]) == (True, True)
        assert [check["site"] for check in found["checks"] if check["what"] == "signature"] == ["a", "b"]
        assert "2 of 2 signatures" in (folder / "report.html").read_text()
        for site in "ab":  # the hospital's own log has the very record
            log = AuditReader(deployed.home(site).audit_folder)
            sent = [one.body for one in log.records(plan=plan.sha256(), kind="sent")]
            told = [body for body in sent if not body.get("again")]  # asked twice, a site repeats its reply
            assert told[-1]["record"] == found["records"][site]
        other = [f"{site}={PrivateKey.create().public}" for site in "ab"]
        forged = CliRunner().invoke(cli, ["report", "verify", report, "--key", other[0], "--key", other[1]])
        assert forged.exit_code == 2
        assert "another key than the one on file" in forged.output
