"""Well means connected, admitted and contributing; a file that lies about is noticed by its age."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from eucaim_fl.errors import ServiceStateError
from eucaim_fl.site.home import SiteHome
from eucaim_fl.site.status import ClientStatus, Fault, Step, health, read_status, well

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def status(**changes: Any) -> ClientStatus:
    values: dict[str, Any] = {
        "state": "connected",
        "site": "north",
        "federation": "prostate",
        "pid": 4711,
        "since": NOW - timedelta(hours=2),
        "updated": NOW - timedelta(seconds=5),
        "version": "0.1.0",
        "connected": True,
        "admitted": True,
        "certificate_until": NOW + timedelta(days=90),
    }
    return ClientStatus(**{**values, **changes})


def fault(code: str) -> Fault:
    return Fault(code=code, text="It says why.", at=NOW)


class TestHealth:
    def test_one_that_is_connected_and_was_not_asked_yet_is_well(self):
        assert health(status(), NOW) == ()

    def test_sixty_seconds_of_silence_are_borne(self):
        assert health(status(updated=NOW - timedelta(seconds=60)), NOW) == ()
        (reason,) = health(status(updated=NOW - timedelta(seconds=61)), NOW)
        assert "for 61 s" in reason

    @pytest.mark.parametrize(
        ("changes", "says"),
        [
            ({"state": "disconnected", "connected": False}, "not connected"),
            ({"state": "not_admitted", "admitted": False}, "does not admit"),
            ({"admitted": False}, "does not admit"),
            ({"state": "starting", "connected": False, "admitted": False}, "starting"),
            ({"connected": False}, "not connected"),
            ({"state": "stopped"}, "does not run"),
            ({"certificate_until": NOW}, "certificate has expired"),
            ({"problem_since_contribution": True, "last_problem": fault("EFL600")}, "contribution (EFL600)"),
            ({"problem_since_contribution": True}, "did not end in a contribution."),
        ],
    )
    def test_each_illness_is_told(self, changes, says):
        (reason,) = health(status(**changes), NOW)
        assert says in reason

    @pytest.mark.parametrize("code", ["EFL310", "EFL311", "EFL312"])
    def test_a_site_that_keeps_to_its_policy_is_well(self, code):
        assert health(status(problem_since_contribution=True, last_problem=fault(code)), NOW) == ()

    def test_a_problem_before_the_last_contribution_is_forgotten(self):
        assert health(status(last_problem=fault("EFL600")), NOW) == ()

    def test_a_good_word_of_a_process_that_is_gone_counts_for_nothing(self):
        assert health(status(), NOW, running=False) == ("The client does not run.",)

    def test_one_that_never_ran(self):
        assert health(None, NOW, running=False) == ("The client has never run here.",)
        assert health(None, NOW) == ("The client is starting.",)

    def test_several_illnesses_are_all_told(self):
        ill = status(state="disconnected", connected=False, updated=NOW - timedelta(hours=1), certificate_until=NOW)
        assert len(health(ill, NOW)) == 3


class TestPraise:
    STEP = Step(plan="a" * 64, name="demo", kind="round", round=1, at=NOW)

    def test_only_a_site_that_contributed_is_contributing(self):
        assert well(status(last_contribution=self.STEP)) == "connected, admitted and contributing"
        assert well(status()) == "connected and admitted; nothing was contributed since the client started"

    @pytest.mark.parametrize(("code", "says"), [("EFL310", "refuses"), ("EFL311", "a person"), ("EFL312", "hours")])
    def test_what_its_policy_holds_back_is_told(self, code, says):
        text = well(status(last_contribution=self.STEP, problem_since_contribution=True, last_problem=fault(code)))
        assert says in text
        assert code in text


class TestReading:
    @pytest.fixture
    def home(self, tmp_path: Path) -> SiteHome:
        (tmp_path / "state").mkdir()
        return SiteHome(tmp_path)

    def test_what_was_written_is_read(self, home):
        step = {"plan": "a" * 64, "name": "demo", "kind": "round", "round": 3, "at": NOW.isoformat()}
        written = {**status().model_dump(mode="json"), "last_contribution": step, "of_a_newer_version": 1}
        home.status_file.write_text(json.dumps(written))
        found = read_status(home)
        assert found is not None
        assert found.last_contribution is not None
        assert found.last_contribution.round == 3
        assert found.updated == NOW - timedelta(seconds=5)

    def test_a_client_that_never_ran(self, home):
        assert read_status(home) is None

    @pytest.mark.parametrize("text", ["", "{}", "[" * 100_000, '{"state": "well"}', " " * 300_000, '"a'])
    def test_a_damaged_file_is_told(self, home, text):
        home.status_file.write_text(text)
        with pytest.raises(ServiceStateError, match="can't be read"):
            read_status(home)
