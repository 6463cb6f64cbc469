"""What a check of a home says of files, keys, policy, disk, memory, GPU and versions."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from eucaim_fl.enrolment import Invitation, invite, new_token
from eucaim_fl.signing import PrivateKey
from eucaim_fl.site import machine
from eucaim_fl.site.enrol import CohortChoice, make_home
from eucaim_fl.site.home import SiteHome
from eucaim_fl.site.machine import (
    check_home,
    judge_disk,
    judge_files,
    judge_gpu,
    judge_memory,
    judge_policy_dates,
    judge_versions,
)
from eucaim_fl.site.network import SetupFinding
from eucaim_fl.sitefile import load_site_file

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
GB = 10**9


def told(findings: tuple[SetupFinding, ...]) -> dict[str, str]:
    return {finding.code: finding.severity for finding in findings}


@pytest.fixture
def invitation() -> Invitation:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(NOW).not_valid_after(NOW + timedelta(days=365))
    pem = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()
    return Invitation(
        federation="prostate",
        site="north",
        address="127.0.0.1:8443",
        ca_pem=pem,
        coordinator_key=COORDINATOR.public,
        token=new_token(),
        valid_until=NOW,
    )


COORDINATOR = PrivateKey.create()


@pytest.fixture
def home(invitation: Invitation, tmp_path: Path) -> SiteHome:
    """A home whose policy and cohort are filled in."""
    choice = CohortChoice(tmp_path / "cohort", "bids")
    make_home(tmp_path / "home", invitation, invite(invitation, COORDINATOR), choice)
    home = SiteHome(tmp_path / "home")
    home.policy_file.write_text(home.policy_file.read_text() + "\nvalid_until: 2026-12-31\n")
    return home


@pytest.fixture(autouse=True)
def _a_good_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is asked of the network or of this machine, whose state is not the test's."""
    works = SetupFinding("line.works", "informs", "It works.")
    monkeypatch.setattr(machine, "check_line", lambda address, ca, clock: (works,))
    monkeypatch.setattr(machine, "_free", lambda path: 100 * GB)
    monkeypatch.setattr(machine, "_available_memory", lambda: 16 * GB)
    monkeypatch.setattr(machine, "_versions", lambda: ())


class TestAHome:
    def check(self, home: SiteHome) -> dict[str, str]:
        return told(check_home(home, lambda: NOW))

    def test_a_good_one(self, home):
        assert self.check(home) == {"line.works": "informs"}

    def test_one_as_it_was_made_says_what_is_missing(self, home, invitation):
        fresh = SiteHome(home.folder.with_name("fresh"))
        make_home(fresh.folder, invitation, invite(invitation, COORDINATOR), CohortChoice())
        assert self.check(fresh) == {
            "line.works": "informs",
            "home.policy_dates": "blocks",
            "home.cohort": "blocks",
        }

    def test_keys_that_others_can_read_or_that_are_none(self, home):
        home.site_key.chmod(0o640)
        home.node_key.write_bytes(home.site_key.read_bytes())
        assert self.check(home) == {"line.works": "informs", "home.site_key": "blocks", "home.node_key": "blocks"}

    def test_a_home_that_others_can_look_into(self, home):
        home.folder.chmod(0o755)
        assert self.check(home) == {"line.works": "informs", "home.mode": "warns"}

    def test_files_that_cannot_be_read_are_all_told_at_once(self, home):
        home.federation_file.write_text(json.dumps({}))
        home.policy_file.write_text("nothing: here\n")
        home.site_file.write_text("name: 1\n")
        assert self.check(home) == {
            "home.invitation": "blocks",
            "home.policy": "blocks",
            "home.site_file": "blocks",
        }

    def test_a_missing_home(self, tmp_path):
        found = self.check(SiteHome(tmp_path / "nowhere"))
        assert found["home.folder"] == "blocks"
        assert found["home.site_key"] == "blocks"

    def test_another_sites_file(self, home, invitation):
        text = home.site_file.read_text().replace("name: north", "name: south")
        home.site_file.write_text(text.replace("policy: policy.yaml", "policy: other.yaml"))
        site = load_site_file(home.site_file)
        found = told(judge_files(site, home.site_file, home, invitation))
        assert found == {"home.name": "blocks", "home.policy_place": "blocks"}

    def test_what_is_wrong_with_the_machine_is_told(self, home, monkeypatch):
        monkeypatch.setattr(machine, "_free", lambda path: GB // 2)
        monkeypatch.setattr(machine, "_available_memory", lambda: GB // 2)
        monkeypatch.setattr(machine, "_gpu", lambda: None)
        home.site_file.write_text(home.site_file.read_text().replace("device: cpu", "device: cuda"))
        assert self.check(home) == {
            "line.works": "informs",
            "machine.disk_cache": "blocks",
            "machine.gpu": "blocks",
            "machine.disk_state": "blocks",
            "machine.memory": "blocks",
        }


class TestJudging:
    @pytest.mark.parametrize(("free", "severity"), [(10 * GB, None), (10 * GB - 1, "warns"), (GB - 1, "blocks")])
    def test_disk(self, free, severity):
        assert told(judge_disk(free, "state")) == ({} if severity is None else {"machine.disk_state": severity})

    @pytest.mark.parametrize(
        ("available", "severity"), [(None, None), (4 * GB, None), (4 * GB - 1, "warns"), (GB - 1, "blocks")]
    )
    def test_memory(self, available, severity):
        assert told(judge_memory(available)) == ({} if severity is None else {"machine.memory": severity})

    def test_gpu(self):
        assert judge_gpu(False, None) == ()
        assert told(judge_gpu(True, None)) == {"machine.gpu": "blocks"}
        assert told(judge_gpu(True, "One")) == {"machine.gpu_works": "informs"}

    @pytest.mark.parametrize(("days", "severity"), [(30, None), (29, "warns"), (0, "warns"), (-1, "blocks")])
    def test_a_policy_counts_on_its_last_day(self, days, severity):
        today = date(2026, 3, 1)
        found = told(judge_policy_dates(today + timedelta(days=days), today))
        assert found == ({} if severity is None else {"home.policy_dates": severity})

    def test_versions(self):
        needed = {"flwr": "1.41.0", "torch": "2.13.0"}
        assert judge_versions({"flwr": "1.41.0", "torch": "2.13.0+cpu"}, needed) == ()
        assert told(judge_versions({"flwr": "1.42.0", "torch": "2.12.0"}, needed)) == {
            "machine.flwr": "blocks",
            "machine.torch": "warns",
        }
        (missing,) = judge_versions({"flwr": "1.41.0", "torch": None}, needed)
        assert (missing.severity, missing.text) == ("blocks", "torch is missing; 2.13.0 is needed.")


class TestThisMachine:
    @pytest.fixture(autouse=True)
    def _as_it_is(self, _a_good_machine, monkeypatch):
        monkeypatch.undo()

    def test_disk_and_memory_are_measured(self, tmp_path):
        assert machine._free(tmp_path / "not" / "yet") > 0
        assert (machine._available_memory() or 0) > 0

    def test_installed_versions_fit(self):
        assert list(machine._versions()) == []
