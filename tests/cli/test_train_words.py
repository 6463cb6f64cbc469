"""What `train` says while it waits: for sites, and for a SuperLink that does not answer."""

from __future__ import annotations

import io
import socket
from datetime import UTC, datetime

import pytest
from rich.console import Console

from eucaim_fl.cli import train
from eucaim_fl.cli.progress import LineListener
from eucaim_fl.config import FederationConfig
from eucaim_fl.errors import InterruptedRunError, LinkError
from eucaim_fl.federation.home import Settings, create


class TestQuorum:
    @pytest.mark.parametrize(("have", "whom"), [(0, "the sites again"), (1, "the others again")])
    def test_whom_it_asks_again(self, have, whom):
        out = io.StringIO()
        LineListener(Console(file=out)).waiting_for_quorum(1, have, 2)
        assert f"{have} of the 2 sites needed; asking {whom}" in out.getvalue()


class TestAnswers:
    @pytest.mark.parametrize(("sites", "whom"), [("ab", "a, b"), ("abcdefg", "a, b, c, d, e and others")])
    def test_it_names_who_has_not_answered(self, sites, whom):
        out = io.StringIO()
        LineListener(Console(file=out)).waiting_for_answers(3, list(sites), 60.0)
        assert f"round 3: no answer of {whom} for 60 s; waiting" in out.getvalue()


class TestSuperLink:
    @pytest.fixture
    def port(self):
        with socket.create_server(("127.0.0.1", 0)) as free:
            return free.getsockname()[1]

    @pytest.fixture
    def federation(self, tmp_path, monkeypatch, port):
        monkeypatch.setenv("EUCAIM_FL_FEDERATIONS", str(tmp_path))
        values = {"name": "liver", "host": "localhost", "port": 8443, "superlink_port": port}
        home = create(Settings.model_validate({**values, "made_at": datetime.now(UTC)}), datetime.now(UTC))
        return FederationConfig(engine="superlink", home=home.folder, link_wait_s=0.0)

    def test_one_that_does_not_answer_is_told_at_once_and_ends_the_run_resumable(self, federation, tmp_path):
        lines = []
        with pytest.raises(LinkError, match="SuperLink of liver has not answered for 0 s") as told:
            train._await_superlink(tmp_path / "run-1", federation, lines.append)
        assert lines == ["The SuperLink of liver does not answer; see eucaim-fl federation status liver"]
        assert "train resume=run-1" in told.value.fix

    def test_one_that_answers_is_not_talked_about(self, federation, tmp_path, port):
        lines = []
        with socket.create_server(("127.0.0.1", port)):
            train._await_superlink(tmp_path / "run-1", federation, lines.append)
        assert lines == []

    def test_waiting_for_it_can_be_stopped(self, federation, tmp_path, monkeypatch):
        def stop(_seconds):
            raise KeyboardInterrupt

        monkeypatch.setattr(train.time, "sleep", stop)
        with pytest.raises(InterruptedRunError, match="stopped"):
            train._await_superlink(
                tmp_path / "run-1", federation.model_copy(update={"link_wait_s": 9.0}), lambda text: None
            )
