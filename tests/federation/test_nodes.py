"""The SuperLink lets in the admitted sites and nobody else; with a real SuperLink."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from eucaim_fl.errors import LinkError, ServiceStateError
from eucaim_fl.federation import admission
from eucaim_fl.federation.certificates import login_key_pem
from eucaim_fl.federation.flower_private import (
    HEARTBEAT_DEFAULT_INTERVAL,
    ActivateNodeRequest,
    FleetHttpClient,
    NodeAuthHttpInterceptor,
    RuntimeVersionHttpInterceptor,
)
from eucaim_fl.federation.home import AdmittedSite, FederationHome, Settings, create
from eucaim_fl.federation.nodes import Changes, Control, Node, changes, control, node_ids, synchronise, tell
from eucaim_fl.federation.servers import launch, programs, superlink_answers
from eucaim_fl.signing import PrivateKey, load_node_key, new_node_key

NOW = datetime.now(UTC)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def new_home(folder: Path, name: str = "liver") -> FederationHome:
    patch = pytest.MonkeyPatch()
    with patch.context() as environment:
        environment.setenv("EUCAIM_FL_FEDERATIONS", str(folder))
        made = Settings(name=name, host="localhost", port=8443, superlink_port=free_port(), made_at=NOW)
        return create(made, NOW)


def new_site(folder: Path, name: str) -> AdmittedSite:
    return AdmittedSite(
        site=name,
        node_key=new_node_key(folder / f"{name}.pem"),
        site_key=PrivateKey.create().public,
        admitted_at=NOW,
    )


@pytest.fixture
def home(tmp_path) -> FederationHome:
    return new_home(tmp_path)


class TestChanges:
    def sites(self, folder: Path, *names: str) -> dict[str, AdmittedSite]:
        return {name: new_site(folder, name) for name in names}

    def node(self, site: AdmittedSite, number: int, state: str = "online") -> Node:
        return Node(number, login_key_pem(site.node_key), state, None)

    def test_the_admitted_come_in_and_everybody_else_goes(self, tmp_path):
        sites = self.sites(tmp_path, "a", "b", "gone")
        nodes = [self.node(sites["a"], 1), self.node(sites.pop("gone"), 2, "registered")]
        assert changes(sites, nodes) == Changes(register=("b",), unregister=(2,))

    def test_a_key_that_was_shut_out_can_not_come_back(self, tmp_path):
        sites = self.sites(tmp_path, "a")
        assert changes(sites, [self.node(sites["a"], 1, "unregistered")]) == Changes(impossible=("a",))

    def test_nothing_is_told_twice(self, tmp_path):
        sites = self.sites(tmp_path, "a")
        shut = self.node(self.sites(tmp_path, "x")["x"], 2, "unregistered")
        assert changes(sites, [self.node(sites["a"], 1, "offline"), shut]) == Changes()


class TestWithoutSuperLink:
    def test_who_asks_is_told_to_start_it(self, home):
        with pytest.raises(LinkError, match=r"does not answer.*federation start"):
            node_ids(home)
        with pytest.raises(LinkError, match="does not answer"):
            synchronise(home)
        assert tell(home) is None

    def test_every_call_says_so(self, home):
        with control(home) as server:
            with pytest.raises(LinkError, match="does not answer"):
                server.nodes()
            with pytest.raises(LinkError, match="does not answer"):
                server.register(b"", "a")
            with pytest.raises(LinkError, match="does not answer"):
                server.unregister(1)

    def test_a_home_without_certificate_can_not_ask(self, home):
        home.ca_file.unlink()
        with pytest.raises(LinkError, match="certificate"), control(home):
            pass

    def test_two_do_not_tell_it_at_once(self, home):
        with home.changing_sites(), pytest.raises(ServiceStateError, match="Another command"):
            synchronise(home)

    def test_loopback_is_not_reached_through_the_hospitals_proxy(self, home, monkeypatch):
        caught = []
        with socket.create_server(("127.0.0.1", 0)) as trap:
            trap.settimeout(0.5)

            def catch() -> None:
                try:
                    trap.accept()[0].close()
                    caught.append(1)
                except TimeoutError:
                    pass

            thread = threading.Thread(target=catch)
            thread.start()
            for name in ("HTTPS_PROXY", "ALL_PROXY"):
                monkeypatch.setenv(name, f"http://127.0.0.1:{trap.getsockname()[1]}")
            monkeypatch.setenv("NO_PROXY", "example.org")
            with pytest.raises(LinkError, match="does not answer"):
                node_ids(home)
            thread.join()
        assert caught == []

    def test_a_refusal_is_told_as_one(self):
        class Refusing:
            def ListNodes(self, _: Any) -> None:
                answer = httpx.Response(409, text="taken", request=httpx.Request("POST", "https://x"))
                raise httpx.HTTPStatusError("no", request=answer.request, response=answer)

        with pytest.raises(LinkError, match="refused a call \\(409\\)"):
            Control(Refusing()).nodes()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FederationHome]:
    """A federation whose SuperLink runs, without proxy."""
    home = new_home(tmp_path_factory.mktemp("served"))
    superlink, _ = programs(home, Path("nginx"))
    process = launch(superlink)
    threading.Thread(target=lambda: process.stdout and process.stdout.read(), daemon=True).start()
    try:
        until = time.monotonic() + 60
        while not superlink_answers(home):
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.1)
        yield home
    finally:
        process.kill()
        process.wait(10)
        if process.stdout:
            process.stdout.close()


def activate(home: FederationHome, key_file: Path) -> int:
    """What a site's client does first; returns its number."""
    private, public = load_node_key(key_file)
    client = FleetHttpClient.from_server_address(
        home.runtime_address,
        insecure=False,
        root_certificates=home.ca_file.read_bytes(),
        interceptors=[
            RuntimeVersionHttpInterceptor(component_name="SuperNode"),
            NodeAuthHttpInterceptor(private, private.public_key()),
        ],
    )
    try:
        wanted = ActivateNodeRequest(public_key=public, heartbeat_interval=HEARTBEAT_DEFAULT_INTERVAL)
        return int(client.ActivateNode(wanted).node_id)
    finally:
        client.close()


@pytest.mark.federated
class TestWithSuperLink:
    def test_the_life_of_a_site(self, served, tmp_path):
        site = new_site(tmp_path, "a")
        with pytest.raises(httpx.HTTPStatusError, match="412 Precondition Failed"):
            activate(served, tmp_path / "a.pem")
        admission.admit(served, site)
        assert tell(served) == Changes(register=("a",))
        number = node_ids(served)["a"]
        assert served.sites()["a"].node_id == number
        assert activate(served, tmp_path / "a.pem") == number
        with control(served) as server:
            (node,) = [node for node in server.nodes() if node.node_id == number]
            assert node.state == "online"
            assert node.since is not None
            assert abs((datetime.now(UTC) - node.since).total_seconds()) < 30
        admission.remove(served, "a", NOW)
        assert tell(served) == Changes(unregister=(number,))
        assert "a" not in node_ids(served)
        with pytest.raises(httpx.HTTPStatusError, match="412 Precondition Failed"):
            activate(served, tmp_path / "a.pem")

    def test_who_was_registered_past_the_records_is_shut_out(self, served, tmp_path):
        stranger = new_site(tmp_path, "stranger")
        with control(served) as server:
            number = server.register(login_key_pem(stranger.node_key), "stranger")
        assert number in synchronise(served).unregister
        with pytest.raises(httpx.HTTPStatusError, match="412 Precondition Failed"):
            activate(served, tmp_path / "stranger.pem")

    def test_a_key_that_it_knows_already_is_refused(self, served, tmp_path):
        key = login_key_pem(new_site(tmp_path, "twice").node_key)
        with control(served) as server:
            server.register(key, "twice")
            with pytest.raises(LinkError, match="refused a call"):
                server.register(key, "again")
            with pytest.raises(LinkError, match="refused a call"):
                server.unregister(12345)
