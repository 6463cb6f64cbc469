"""The client's word about itself: always whole, without paths, and never the reason why the client ends."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from eucaim_fl.errors import (
    ApprovalPendingError,
    EucaimError,
    GateError,
    LinkError,
    NotAdmittedError,
    OutsideHoursError,
    PolicyRefusalError,
)
from eucaim_fl.federation.site_status import StatusFile
from eucaim_fl.seals import InstructionSeal

SEAL = InstructionSeal(
    federation="prostate", site="north", plan="a" * 64, kind="round", round=3, nonce="b" * 32, issued_at=0,
    deadline_s=60, content="c" * 64,
)  # fmt: skip


class Status:
    """The file and who writes it."""

    def __init__(self, path: Path) -> None:
        self.path, self.file = path, StatusFile(path, "north", "prostate")

    @property
    def values(self) -> dict[str, Any]:
        return json.loads(self.path.read_text())  # type: ignore[no-any-return]


@pytest.fixture
def status(tmp_path: Path) -> Status:
    return Status(tmp_path / "state" / "status.json")


class TestStatusFile:
    def test_nothing_is_written_before_the_first_word(self, status: Status) -> None:
        assert not status.path.exists()
        status.file.refresh()
        values = status.values
        assert (values["state"], values["site"], values["federation"]) == ("starting", "north", "prostate")
        assert values["pid"] == os.getpid()
        assert not values["connected"]
        assert not values["admitted"]

    def test_a_line_that_stands_says_until_when_its_certificate_is_valid(self, status: Status) -> None:
        status.file.connected(77, "2027-01-01T00:00:00+00:00")
        values = status.values
        assert (values["state"], values["connected"], values["admitted"]) == ("connected", True, True)
        assert (values["node_id"], values["certificate_until"]) == (77, "2027-01-01T00:00:00+00:00")

    @pytest.mark.parametrize(
        ("state", "problem", "admitted"),
        [("disconnected", LinkError("No line."), True), ("not_admitted", NotAdmittedError("Who?"), False)],
    )
    def test_a_line_that_fails_says_why(self, status: Status, state: str, problem: EucaimError, admitted: bool) -> None:
        status.file.connected(77, None)
        status.file.say(state, problem)
        values = status.values
        assert (values["state"], values["connected"], values["admitted"]) == (state, False, admitted)
        assert values["last_problem"]["code"] == problem.code
        assert not values["problem_since_contribution"]

    def test_a_fault_counts_until_the_next_contribution(self, status: Status) -> None:
        status.file.problem(GateError("No.", local_detail="/secret/path"))
        assert status.values["problem_since_contribution"]
        assert "/secret/path" not in status.path.read_text()
        status.file.contributed(SEAL, "study")
        values = status.values
        assert not values["problem_since_contribution"]
        assert values["last_contribution"].items() >= {"plan": "a" * 64, "name": "study", "round": 3}.items()
        assert values["last_problem"]["code"] == "EFL304"

    @pytest.mark.parametrize("error", [PolicyRefusalError, ApprovalPendingError, OutsideHoursError])
    def test_that_the_policy_does_not_allow_a_plan_is_no_fault(self, status: Status, error: type[EucaimError]) -> None:
        status.file.problem(error("No."))
        assert status.values["last_problem"]["code"] == error.code
        assert not status.values["problem_since_contribution"]
        status.file.problem(GateError("No."))
        status.file.problem(error("No."))
        assert status.values["problem_since_contribution"]

    def test_what_is_under_way_is_said_and_taken_back(self, status: Status) -> None:
        status.file.instruction(SEAL, "study")
        status.file.working(SEAL, "study")
        assert status.values["working"]["kind"] == status.values["last_instruction"]["kind"] == "round"
        status.file.working(None, "")
        assert status.values["working"] is None

    def test_the_time_of_a_state_is_that_of_its_beginning(
        self, status: Status, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        status.file.connected(77, None)
        since = status.values["since"]
        monkeypatch.setattr("eucaim_fl.federation.site_status._now", lambda: "later")
        status.file.connected(77, None)
        assert (status.values["since"], status.values["updated"]) == (since, "later")
        status.file.say("disconnected")
        assert status.values["since"] == "later"

    def test_a_disk_that_can_not_be_written_costs_the_status_only(self, tmp_path: Path) -> None:
        (tmp_path / "state").write_text("a file where the folder should be")
        StatusFile(tmp_path / "state" / "status.json", "north", "prostate").connected(1, None)
        assert (tmp_path / "state").read_text() == "a file where the folder should be"

    def test_readers_see_a_whole_file_while_threads_write(self, status: Status) -> None:
        status.file.refresh()
        writers = [threading.Thread(target=status.file.connected, args=(node, None)) for node in range(8)]
        for writer in writers:
            writer.start()
        while any(writer.is_alive() for writer in writers):
            assert status.values["site"] == "north"
        assert status.values["node_id"] in range(8)
