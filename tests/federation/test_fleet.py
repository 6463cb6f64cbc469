"""A site's line over the real proxy and SuperLink: it logs in, keeps its session, and says what is wrong."""

from __future__ import annotations

import contextlib
import itertools
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from flwr.app import Message, RecordDict
from flwr.supernode import node_auth_http_interceptor

from eucaim_fl.errors import KeyFileError, LinkError, NotAdmittedError, PlanError
from eucaim_fl.federation import fleet as fleet_module
from eucaim_fl.federation.fleet import Fleet, Incoming
from eucaim_fl.federation.flower_private import TaskIdentity
from eucaim_fl.federation.flower_run import FlowerRun
from eucaim_fl.site.home import SiteHome
from tests.federation.deployed import Deployed, deployed, wait_for

__all__ = ["deployed"]
pytestmark = pytest.mark.federated
_names = (f"x{number}" for number in itertools.count())


class Hospital:
    """An HTTP proxy that lets CONNECT through, as hospitals have one; it can hold back all it carries."""

    def __init__(self, answer: bytes = b"HTTP/1.1 200 Connection established\r\n\r\n") -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.asked: list[str] = []
        self.frozen = threading.Event()
        self._answer, self._sockets = answer, [self._listener]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                line, _ = self._listener.accept()
                self._sockets.append(line)
                threading.Thread(target=self._carry, args=(line,), daemon=True).start()

    def _carry(self, line: socket.socket) -> None:
        with contextlib.suppress(OSError, IndexError):
            head = b""
            while b"\r\n\r\n" not in head:
                head += line.recv(4096)
            target = head.split()[1].decode()
            self.asked.append(target)
            line.sendall(self._answer)
            if b" 200 " not in self._answer:
                line.close()
                return
            host, _, port = target.rpartition(":")
            there = socket.create_connection((host, int(port)))
            self._sockets.append(there)
            while True:
                for ready in select.select([line, there], [], [], 1.0)[0]:
                    data = ready.recv(65536)
                    while self.frozen.is_set():
                        time.sleep(0.02)
                    if not data:
                        return
                    (there if ready is line else line).sendall(data)

    def close(self) -> None:
        self.frozen.clear()
        for line in self._sockets:
            line.close()


@pytest.fixture(autouse=True)
def no_proxy_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def home(deployed: Deployed) -> Iterator[SiteHome]:
    """An admitted site of its own, without a client."""
    name = next(_names)
    yield deployed.let_in(name)
    if name in deployed.federation.sites():
        deployed.shut_out(name)


@pytest.fixture
def connect(deployed: Deployed, home: SiteHome) -> Iterator[Callable[..., Fleet]]:
    """Opens sessions of that site, and ends them with the test."""
    opened: list[Fleet] = []
    ca_pem = deployed.federation.ca_file.read_text()

    def make(*known: Any, **how: Any) -> Fleet:
        key = how.pop("key", home.node_key)
        address = how.pop("address", f"localhost:{deployed.port}")
        opened.append(Fleet(address, how.pop("ca_pem", ca_pem), key, *known, **how))
        return opened[-1]

    yield make
    for fleet in opened:
        fleet.close()


class TestSession:
    def test_it_is_opened_asked_and_closed(self, connect):
        fleet = connect()
        assert fleet.node_id > 0
        assert fleet.receive() is None
        until = datetime.fromisoformat(fleet.certificate_until)
        assert until > datetime.now(UTC) + timedelta(days=30)
        fleet.close()
        again = connect()
        assert again.node_id == fleet.node_id

    def test_one_that_was_cut_is_taken_up_again_at_once(self, connect):
        first = connect()
        first.close(say_goodbye=False)
        second = connect(first.node_id, resume=True)
        assert second.node_id == first.node_id
        assert second.receive() is None

    def test_a_number_that_is_not_this_keys_does_not_open_one(self, connect):
        assert connect(12345, resume=True).node_id != 12345

    def test_a_second_client_with_the_same_key_is_told_that_there_is_one(self, connect):
        first = connect()
        with pytest.raises(LinkError, match=r"connected already.*a copy of this home"):
            connect(first.node_id)
        with pytest.raises(NotAdmittedError, match="does not let this site in"):
            connect()  # one that does not even know its number
        assert first.receive() is None

    def test_a_heartbeat_that_is_refused_ends_the_session(self, connect, deployed, home, monkeypatch):
        monkeypatch.setattr(fleet_module, "_HEARTBEAT_S", 0.1)
        fleet = connect()
        time.sleep(0.3)
        assert not fleet.failed.is_set()
        deployed.shut_out(home.folder.name)
        wait_for(fleet.failed.is_set, 10)


class TestNotLetIn:
    def test_a_key_that_was_never_admitted(self, connect, tmp_path):
        from eucaim_fl.signing import new_node_key

        new_node_key(tmp_path / "key.pem")
        with pytest.raises(NotAdmittedError, match="does not let this site in"):
            connect(key=tmp_path / "key.pem")

    def test_a_site_that_was_removed(self, connect, deployed, home):
        fleet = connect()
        deployed.shut_out(home.folder.name)
        with pytest.raises(NotAdmittedError, match="removed"):
            fleet.receive()
        fleet.close()
        for how in ({}, {"resume": True}):
            with pytest.raises(NotAdmittedError, match="removed"):
                connect(fleet.node_id, **how)

    @pytest.mark.parametrize(("hours", "word"), [(1, "60 minutes ahead"), (-1, "60 minutes behind")])
    def test_a_clock_that_is_wrong_by_an_hour(self, connect, monkeypatch, hours, word):
        real = node_auth_http_interceptor.now

        def wrong() -> datetime:
            return real() + timedelta(hours=hours)

        class Clock(datetime):
            @classmethod
            def now(cls, tz: Any = None) -> datetime:
                return datetime.now(tz) + timedelta(hours=hours)

        monkeypatch.setattr(node_auth_http_interceptor, "now", wrong)
        monkeypatch.setattr(fleet_module, "datetime", Clock)
        began = time.monotonic()
        with pytest.raises(NotAdmittedError, match=f"its clock is {word}.*NTP"):
            connect(7, resume=True)
        assert time.monotonic() - began < 10

    def test_a_key_file_that_is_none(self, deployed, tmp_path):
        (tmp_path / "key.pem").write_text("no key")
        (tmp_path / "key.pem").chmod(0o600)
        with pytest.raises(KeyFileError, match="key"):
            Fleet(f"localhost:{deployed.port}", deployed.federation.ca_file.read_text(), tmp_path / "key.pem")


class TestNoLine:
    def test_an_address_where_nobody_listens(self, deployed, home):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        with pytest.raises(LinkError, match=r"refuses the connection.*Ask the coordinator whether it runs"):
            Fleet(f"localhost:{port}", deployed.federation.ca_file.read_text(), home.node_key)

    def test_a_server_that_is_not_the_coordinators(self, connect, deployed, tmp_path):
        other = Deployed(tmp_path, [])
        other.make_federation()
        with pytest.raises(LinkError, match="not the coordinator's"):
            connect(ca_pem=other.federation.ca_file.read_text())

    def test_a_call_that_hangs_is_ended_from_outside(self, connect, monkeypatch):
        hospital = Hospital()
        monkeypatch.setenv("HTTPS_PROXY", hospital.url)
        try:
            fleet = connect()
            hospital.frozen.set()
            problems: list[BaseException] = []

            def ask() -> None:
                try:
                    fleet.receive()
                except LinkError as problem:
                    problems.append(problem)

            asking = threading.Thread(target=ask)
            asking.start()
            time.sleep(0.3)
            began = time.monotonic()
            fleet.abort()
            asking.join(5)
            assert (len(problems), asking.is_alive()) == (1, False)
            fleet.close()
            assert time.monotonic() - began < 8
        finally:
            hospital.close()


class TestTheHospitalsProxy:
    def test_the_line_goes_through_it(self, connect, deployed, monkeypatch):
        hospital = Hospital()
        monkeypatch.setenv("HTTPS_PROXY", hospital.url)
        assert connect().receive() is None
        assert set(hospital.asked) == {f"localhost:{deployed.port}"}
        hospital.close()

    def test_it_does_not_where_no_proxy_says_so(self, connect, monkeypatch):
        hospital = Hospital()
        monkeypatch.setenv("HTTPS_PROXY", hospital.url)
        monkeypatch.setenv("NO_PROXY", "localhost")
        assert connect().receive() is None
        assert hospital.asked == []
        hospital.close()

    @pytest.mark.parametrize(
        ("answer", "says"),
        [
            (b"HTTP/1.1 403 Forbidden\r\n\r\n", "does not let this machine reach the coordinator"),
            (b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", "asks for a name and a password"),
        ],
    )
    def test_one_that_says_no_is_told(self, connect, monkeypatch, answer, says):
        hospital = Hospital(answer)
        monkeypatch.setenv("HTTPS_PROXY", hospital.url)
        with pytest.raises(LinkError, match=says):
            connect()
        hospital.close()


class TestMessages:
    @pytest.fixture
    def fleet(self, connect: Callable[..., Fleet]) -> Fleet:
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
        return connect()

    @pytest.fixture
    def over(self, deployed: Deployed) -> int:
        """The number of a run that has ended."""
        home = deployed.federation
        run = FlowerRun(home.runtime_address, home.ca_file, home.executor_secret, home.folder / "state" / "claiming")
        run.close(completed=True)
        return run.run_id

    def incoming(self, seconds: float = 60.0, run: int = 1) -> Incoming:
        message = Message(RecordDict(), 7, "query", ttl=seconds)
        message.metadata.__dict__.update(_message_id="a" * 64, _run_id=run)
        tree = type("Tree", (), {"object_id": "a" * 64, "children": ()})()
        return Incoming(message, tree)

    def test_one_of_a_run_that_is_over_is_passed_over(self, over, fleet):
        assert fleet.fetch(self.incoming(run=over), 2**20) is None

    def test_one_that_has_too_many_parts_is_not_even_fetched(self, fleet):
        tree = type("Tree", (), {"object_id": "a" * 64, "children": ()})()
        tree.children = [tree] * 10_000
        with pytest.raises(PlanError, match="more parts"):
            fleet.fetch(Incoming(self.incoming().message, tree), 2**20)

    def test_an_answer_that_nobody_waits_for_is_not_sent(self, fleet):
        assert not fleet.reply(self.incoming(seconds=-1.0), RecordDict())

    def test_an_answer_to_a_run_that_is_over_is_not_sent(self, over, fleet):
        assert not fleet.reply(self.incoming(run=over), RecordDict())

    def test_what_the_coordinator_cannot_answer_is_told(self, fleet):
        with pytest.raises(LinkError, match="can't answer now"):
            fleet.reply(self.incoming(), RecordDict())

    def test_without_a_line_all_calls_say_so(self, fleet):
        fleet.close()
        with pytest.raises(LinkError, match="ended"):
            fleet.receive()
        with pytest.raises(LinkError, match="ended"):
            fleet.reply(self.incoming(), RecordDict())
        with pytest.raises(LinkError, match="ended"):
            fleet.fetch(self.incoming(), 2**20)

    def test_what_cannot_be_read_ends_the_session_and_not_the_client(self, fleet, monkeypatch):
        monkeypatch.setattr(fleet_module, "message_from_proto", lambda _: 1 / 0)
        answer = type("Answer", (), {"messages_list": [1], "message_object_trees": [1]})
        monkeypatch.setattr(fleet._client, "PullMessages", lambda _: answer)
        with pytest.raises(LinkError, match="can't be read"):
            fleet.receive()
