"""Attacks from a site's address on what lies behind the proxy: Flower's control interface knows no login."""

from __future__ import annotations

import re
import socket
import ssl
import time
from pathlib import Path

import httpx
import pytest
from flwr.proto.control_pb2 import ListRunsRequest, StopRunRequest
from flwr.proto.fab_pb2 import GetFabRequest
from flwr.proto.fleet_pb2 import RegisterNodeFleetRequest, UnregisterNodeFleetRequest

from eucaim_fl.federation.flower_private import (
    ControlHttpClient,
    Fab,
    ListNodesRequest,
    Node,
    RegisterNodeRequest,
    RuntimeVersionHttpInterceptor,
    StartRunRequest,
)
from eucaim_fl.federation.flower_run import stub_bundle, tls_context

pytestmark = pytest.mark.federated

START = StartRunRequest(fab=Fab(content=stub_bundle())).SerializeToString()
REGISTER = RegisterNodeRequest(public_key=b"-----BEGIN PUBLIC KEY-----", name="evil").SerializeToString()


class Line:
    """Raw HTTP over TLS, to the proxy unless another port is given."""

    def __init__(self, attacked, port: int | None = None) -> None:
        self._port = port or attacked.port
        self._context = ssl.create_default_context(cafile=str(attacked.federation.ca_file))

    def send(self, raw: bytes, wait_s: float = 10.0) -> list[int]:
        """The statuses of all answers to some bytes, until the proxy closes or falls silent."""
        with (
            socket.create_connection(("127.0.0.1", self._port), wait_s) as plain,
            self._context.wrap_socket(plain, server_hostname="localhost") as line,
        ):
            line.settimeout(wait_s)
            line.sendall(raw)
            answer = b""
            try:
                while piece := line.recv(65536):
                    answer += piece
            except (TimeoutError, ssl.SSLError, ConnectionResetError):
                pass
        return _statuses(answer)

    def ask(self, start: str, body: bytes = b"", version: str = "HTTP/1.1", headers: str = "") -> int:
        """The status of one request whose first words are exactly `start`."""
        head = f"{start} {version}\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/protobuf\r\n"
        raw = f"{head}{headers}Content-Length: {len(body)}\r\n\r\n".encode("latin-1") + body
        return self.send(raw)[0]


def _statuses(answer: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.[01] (\d{3}) ", answer)]


@pytest.fixture(scope="module")
def line(attacked):
    """To the proxy, as any site can have one."""
    return Line(attacked)


@pytest.fixture(scope="module")
def control(attacked):
    """The control interface itself, as only the coordinator's machine reaches it."""
    client = ControlHttpClient(
        f"https://127.0.0.1:{attacked.superlink_port}",
        interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr CLI")],
        verify=tls_context(attacked.federation.ca_file.read_text()),
        timeout=30.0,
    )
    client._client.close()  # no idle connection is kept, which the SuperLink might close meanwhile
    limits, tls = httpx.Limits(max_keepalive_connections=0), tls_context(attacked.federation.ca_file.read_text())
    client._client = httpx.Client(verify=tls, timeout=30.0, limits=limits, trust_env=False)
    yield client
    client.close()


def _known(control) -> tuple[set[int], set[tuple[int, str]]]:
    """All runs, and all nodes that are not shut out."""
    runs = set(control.ListRuns(ListRunsRequest()).run_dict)
    nodes = control.ListNodes(ListNodesRequest()).nodes_info
    return runs, {(node.node_id, node.owner_name) for node in nodes if node.status != "unregistered"}


@pytest.fixture(scope="class")
def untouched(control):
    """What was asked for must not have reached the SuperLink: after all of it, it knows the same runs and nodes."""
    before = _known(control)
    yield
    assert _known(control) == before


@pytest.mark.usefixtures("untouched")
class TestWhatASiteCanNotReach:
    @pytest.mark.parametrize(
        ("call", "body"),
        [
            ("control/start-run", START),
            ("control/register-node", REGISTER),
            ("control/unregister-node", b"\x08\x01"),
            ("control/list-nodes", b""),
            ("control/stop-run", b"\x08\x01"),
            ("control/list-runs", b""),
            ("runtime/acquire-task", b""),
            ("runtime/push-messages", b""),
            ("runtime/pull-task-input", b""),
            ("fleet/register-node", REGISTER),
            ("fleet/unregister-node", b"\x08\x01"),
            ("fleet/get-fab", b""),
        ],
    )
    def test_a_call_that_no_site_makes_is_refused(self, line, call, body):
        assert line.ask(f"POST /v1/{call}", body) == 403

    @pytest.mark.parametrize("path", ["/docs", "/redoc", "/openapi.json", "/health", "/v1/control/", "/metrics", "/v1"])
    def test_there_is_nothing_to_read(self, line, path):
        assert line.ask(f"GET {path}") == 403

    @pytest.mark.parametrize(
        "target",
        [
            "//v1/control/start-run",
            "/v1//control/start-run",
            "/v1/control//start-run",
            "/./v1/control/start-run",
            "/v1/fleet/../control/start-run",
            "/v1/fleet/pull-messages/../../control/start-run",
            "/v1/fleet/%2e%2e/control/start-run",
            "/v1/fleet/%2E%2E/control/start-run",
            "/v1/fleet/%252e%252e/control/start-run",
            "/v1/fleet/..%2fcontrol%2fstart-run",
            "/v1/fleet/..;/control/start-run",
            "/v1/fleet/pull-messages%2f..%2f..%2fcontrol%2fstart-run",
            "/v1/fleet/pull-messages?/../../control/start-run",
            "/v1/fleet/pull-messages#/../../control/start-run",
            "/v1/control/start-run?x=/v1/fleet/pull-messages",
            "/v1/control/start-run%3f/v1/fleet/pull-messages",
            "/v1/control/start-run/v1/fleet/pull-messages",
            "/v1/control/%73tart-run",
            "/v1/%63ontrol/start-run",
            "/V1/CONTROL/START-RUN",
            "/V1/control/start-run",
            "/v1/fleet\\..\\control\\start-run",
            "/v1/fleet/pull-messages/",
            "/v1/fleet/pull-messages?",
            "/v1/fleet/PULL-MESSAGES",
            "https://localhost/v1/control/start-run",
            "http://127.0.0.1:9091/v1/control/start-run",
            "HTTPS://localhost//v1/fleet/../control/start-run",
        ],
    )
    def test_no_other_way_of_writing_a_path_leads_there(self, line, target):
        assert line.ask(f"POST {target}", START) in (400, 403)

    @pytest.mark.parametrize("version", ["HTTP/1.0", "HTTP/0.9", "HTTP/2.0", "HTTP/1.9", ""])
    def test_nor_does_another_version_of_http(self, line, version):
        raw = f"POST /v1/control/start-run {version}".rstrip().encode()
        assert set(line.send(raw + b"\r\nHost: x\r\nContent-Length: 0\r\n\r\n", 1.0)) <= {400, 403, 405, 505}

    @pytest.mark.parametrize("method", ["GET", "PUT", "TRACE", "TRACK", "OPTIONS", "CONNECT", "post", "DEBUG"])
    def test_nor_another_method(self, line, method):
        assert line.ask(f"{method} /v1/control/start-run") in (400, 403, 405)
        assert line.ask(f"{method} /v1/fleet/pull-messages") in (400, 403, 405)

    @pytest.mark.parametrize(
        "headers",
        [
            "X-Original-URL: /v1/control/start-run\r\n",
            "X-Rewrite-URL: /v1/control/start-run\r\n",
            "X-HTTP-Method-Override: POST\r\nX-Forwarded-Prefix: /v1/control\r\n",
            "Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n",
            "Host: 127.0.0.1:9091\r\n",
        ],
    )
    def test_nor_do_headers_that_other_servers_believe(self, line, headers):
        assert line.ask("POST /v1/fleet/get-run", START, headers=headers) in (400, 401)


HIDDEN = (
    b"POST /v1/control/start-run HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    b"Content-Type: application/protobuf\r\nContent-Length: %d\r\n\r\n%b" % (len(START), START)
)


def _both(hidden: bytes) -> dict[str, bytes]:
    """Requests whose two ends may be seen differently by two servers."""
    head = b"POST /v1/fleet/get-run HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/protobuf\r\n"
    size = f"Content-Length: {len(hidden)}\r\n".encode()
    chunked = b"Transfer-Encoding: chunked\r\n"
    whole = f"{len(hidden):x}\r\n".encode() + hidden + b"\r\n0\r\n\r\n"
    return {
        "CL.TE": head + size + chunked + b"\r\n0\r\n\r\n" + hidden,
        "TE.CL": head + chunked + b"Content-Length: 4\r\n\r\n" + whole,
        "TE.TE": head + chunked + b"Transfer-Encoding: identity\r\n\r\n0\r\n\r\n" + hidden,
        "TE with a tab": head + b"Transfer-Encoding:\tchunked\r\n" + size + b"\r\n0\r\n\r\n" + hidden,
        "TE with an x": head + b"Transfer-Encoding: xchunked\r\n" + size + b"\r\n0\r\n\r\n" + hidden,
        "TE behind a space": head + b"Transfer-Encoding : chunked\r\n" + size + b"\r\n0\r\n\r\n" + hidden,
        "TE on a folded line": head + b"X: y\r\n Transfer-Encoding: chunked\r\n" + size + b"\r\n" + hidden,
        "two lengths": head + size + b"Content-Length: 0\r\n\r\n" + hidden,
        "a signed length": head + b"Content-Length: +0\r\n\r\n" + hidden,
        "a length in hexadecimal": head + b"Content-Length: 0x0\r\n\r\n" + hidden,
        "only line feeds": head.replace(b"\r\n", b"\n") + b"Content-Length: 0\n\n" + hidden,
        "chunk extension": head + chunked + b"\r\n1;a=\n" + hidden + b"\r\n0\r\n\r\n",
        "a negative chunk": head + chunked + b"\r\n-1\r\n" + hidden,
        "a chunk beyond 64 bits": head + chunked + b"\r\n1" + b"0" * 16 + b"\r\n" + hidden,
    }


@pytest.mark.usefixtures("untouched")
class TestSmuggling:
    """A request for the control interface hidden in the body of one that passes; the SuperLink would start a run."""

    @pytest.mark.parametrize("kind", list(_both(b"")))
    def test_a_request_hidden_in_another_does_not_get_through(self, line, kind):
        statuses = line.send(_both(HIDDEN)[kind], 1.0)
        assert set(statuses) <= {400, 401, 403, 405, 411, 413, 415, 501}

    def test_nor_a_second_request_on_the_same_connection(self, line):
        first = b"POST /v1/fleet/get-run HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n"
        first += b"Content-Type: application/protobuf\r\n\r\n"
        assert line.send(first + HIDDEN) == [401, 403]


class TestTheLineItself:
    def test_the_same_bytes_would_start_a_run_where_no_proxy_stands(self, attacked, control):
        """What the tests above send is real: the SuperLink itself does it for whoever asks."""
        before, _ = _known(control)
        assert Line(attacked, attacked.superlink_port).send(HIDDEN) == [200]
        after, _ = _known(control)
        (run,) = after - before
        control.StopRun(StopRunRequest(run_id=run))

    def test_the_superlink_listens_on_loopback_only(self, attacked):
        listening = set()
        for table in ("tcp", "tcp6"):
            for row in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
                address, _, port = row.split()[1].rpartition(":")
                if int(port, 16) == attacked.superlink_port and row.split()[3] == "0A":
                    listening.add(address)
        assert listening == {"0100007F"}

    def test_older_tls_is_refused(self, attacked):
        older = ssl.create_default_context(cafile=str(attacked.federation.ca_file))
        older.maximum_version = ssl.TLSVersion.TLSv1_2
        with (
            socket.create_connection(("127.0.0.1", attacked.port), 10) as plain,
            pytest.raises(ssl.SSLError, match=r"(?i)protocol|version|alert"),
        ):
            older.wrap_socket(plain, server_hostname="localhost")

    def test_no_clear_text_is_answered(self, attacked):
        with socket.create_connection(("127.0.0.1", attacked.port), 10) as plain:
            plain.sendall(b"POST /v1/fleet/pull-messages HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
            assert b" 200 " not in plain.recv(65536)

    def test_a_message_of_ten_megabytes_is_refused_before_it_is_read(self, line):
        head = b"POST /v1/fleet/push-object HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10000000\r\n\r\n"
        assert line.send(head, 1.0)[0] == 413

    def test_a_site_s_own_key_opens_no_other_call(self, attacked, player):
        """With a login that the SuperLink accepts, through Flower's own client."""
        raw = player("mallory").raw
        for call in (
            lambda: raw.RegisterNode(RegisterNodeFleetRequest(public_key=b"x")),
            lambda: raw.UnregisterNode(UnregisterNodeFleetRequest(node_id=1)),
            lambda: raw.GetFab(GetFabRequest(node=Node(node_id=1), hash_str="0" * 64, run_id=1)),
        ):
            with pytest.raises(httpx.HTTPStatusError, match="403"):
                call()

    def test_what_was_refused_is_in_the_coordinator_s_log(self, attacked, line):
        line.ask("POST /v1/control/start-run", START)
        until = time.monotonic() + 10
        while '"POST /v1/control/start-run" 403' not in attacked.told("federation"):
            assert time.monotonic() < until
            time.sleep(0.2)
