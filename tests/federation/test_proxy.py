"""What passes the reverse proxy: nine calls, spelled exactly; with a real nginx and a SuperLink that only counts."""

from __future__ import annotations

import http.server
import os
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

import pytest

from eucaim_fl.errors import JournalError, ServiceStateError
from eucaim_fl.federation import proxy
from eucaim_fl.federation.home import FederationHome, Settings, create
from eucaim_fl.federation.proxy import FLEET_CALLS, command, configuration, find_nginx, write_configuration
from eucaim_fl.federation.servers import check_proxy_configuration, proxy_answers

NOW = datetime.now(UTC)
NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
NEEDED = bool(os.environ.get("CI") or os.environ.get("EUCAIM_FL_REQUIRE_NGINX"))
with_nginx = pytest.mark.skipif(NGINX is None and not NEEDED, reason="nginx is not installed")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Counting(http.server.BaseHTTPRequestHandler):
    """A SuperLink that notes what reaches it and answers with its body."""

    protocol_version = "HTTP/1.1"
    seen: list[tuple[str, str, dict[str, str]]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.seen.append((self.command, self.path, dict(self.headers)))
        refused = self.headers.get("X-Want") == "refusal"
        self.send_response(401 if refused else 200)
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("X-Of-The-Superlink", "kept")
        answer = b"no such node" if refused else body
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        pass


for _method in ("GET", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD"):
    setattr(Counting, f"do_{_method}", Counting.do_POST)


class Proxied:
    def __init__(self, home: FederationHome, seen: list[tuple[str, str, dict[str, str]]]) -> None:
        self.home, self.seen = home, seen
        self.context = ssl.create_default_context(cafile=str(home.ca_file))

    def connect(self, context: ssl.SSLContext | None = None) -> ssl.SSLSocket:
        plain = socket.create_connection(("127.0.0.1", self.home.settings.listen_port), 10)
        return (context or self.context).wrap_socket(plain, server_hostname="fl.example.org")

    def ask(self, start: str, body: bytes = b"", headers: str = "") -> tuple[int, bytes, bytes]:
        """Status, head and body of the answer to a request whose first words are exactly `start`."""
        with self.connect() as line:
            head = f"{start} HTTP/1.1\r\nHost: fl.example.org\r\nConnection: close\r\n{headers}"
            if "Content-Length" not in headers:
                head += f"Content-Length: {len(body)}\r\n"
            line.sendall(head.encode("latin-1") + b"\r\n" + body)
            answer = b""
            while piece := line.recv(65536):
                answer += piece
        top, _, rest = answer.partition(b"\r\n\r\n")
        return int(top.split()[1]), top, rest


@pytest.fixture(scope="module")
def proxied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxied]:
    folder = tmp_path_factory.mktemp("proxy with spaces $and {signs}")
    before = os.environ.get("EUCAIM_FL_FEDERATIONS")
    os.environ["EUCAIM_FL_FEDERATIONS"] = str(folder)
    try:
        port = free_port()
        made = Settings(
            name="liver",
            host="fl.example.org",
            port=port,
            listen=f"127.0.0.1:{port}",
            superlink_port=free_port(),
            made_at=NOW,
        )
        home = create(made, NOW)
    finally:
        os.environ.pop("EUCAIM_FL_FEDERATIONS")
        if before is not None:
            os.environ["EUCAIM_FL_FEDERATIONS"] = before
    handler = type("Handler", (Counting,), {"seen": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", made.superlink_port), handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(home.superlink_file)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    write_configuration(home)
    log = (folder / "log").open("wb")
    process = subprocess.Popen(command(find_nginx(), home), stdout=log, stderr=log, cwd="/")
    try:
        until = time.monotonic() + 10
        while not proxy_answers(home):
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < until
            time.sleep(0.02)
        yield Proxied(home, handler.seen)  # type: ignore[attr-defined]
    finally:
        process.terminate()
        process.wait(10)
        server.shutdown()
        server.server_close()
        log.close()


@pytest.mark.federated
@with_nginx
class TestWhatPasses:
    @pytest.mark.parametrize("call", FLEET_CALLS)
    def test_each_of_the_nine_calls_reaches_the_superlink_under_its_own_path(self, proxied, call):
        proxied.seen.clear()
        status, _, body = proxied.ask(f"POST /v1/fleet/{call}", b"abc")
        assert (status, body) == (200, b"abc")
        assert [(method, path) for method, path, _ in proxied.seen] == [("POST", f"/v1/fleet/{call}")]

    @pytest.mark.parametrize(
        "start",
        [
            *(f"{method} /v1/fleet/pull-messages" for method in ("GET", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD")),
            *(f"POST /v1/fleet/{call}" for call in ("register-node", "unregister-node", "get-fab", "", "..", "x")),
            *(f"POST /v1/control/{call}" for call in ("start-run", "register-node", "list-nodes", "stop-run")),
            *(f"POST /v1/runtime/{call}" for call in ("acquire-task", "pull-messages", "push-object")),
            *(f"GET {path}" for path in ("/health", "/docs", "/openapi.json", "/v1/fleet/", "//", "/index.html")),
            *(f"POST {path}" for path in ("/", "/health", "/docs", "/v1", "*")),
            "POST /V1/FLEET/PULL-MESSAGES",
            "POST /v1/fleet/Pull-Messages",
            "POST /v1/fleet/pull-messages/",
            "POST /v1/fleet/pull-messages?x=1",
            "POST /v1/fleet/pull-messages?",
            "POST /v1/fleet/pull-messages%20",
            "POST /v1/fleet/pull-messages%00",
            "POST /v1/fleet/pull-messages%0a",
            "POST /v1/fleet/pull-messages;x",
            "POST /v1/fleet/%70ull-messages",
            "POST /v1%2ffleet%2fpull-messages",
            "POST //v1/fleet/pull-messages",
            "POST /v1//fleet/pull-messages",
            "POST /v1/fleet/./pull-messages",
            "POST /v1/fleet/x/../pull-messages",
            "POST /v1/fleet/pull-messages/../register-node",
            "POST /v1/fleet/pull-messages/%2e%2e/register-node",
            "POST /v1/fleet/pull-messages/..%2fregister-node",
            "POST /v1/fleet/%72egister-node",
            "POST /v1/fleet/../control/start-run",
            "POST /v1/fleet/%2e%2e/control/start-run",
            "POST /v1/fleet/..%252fcontrol/start-run",
            "POST /v1/fleet/..\\control\\start-run",
            "POST /v1/control/start-run#/v1/fleet/pull-messages",
            "POST /v1/control/start-run?/v1/fleet/pull-messages",
            "POST https://127.0.0.1/v1/control/start-run",
            "POST http://localhost/v1/fleet/register-node",
        ],
    )
    def test_everything_else_is_refused_and_never_forwarded(self, proxied, start):
        proxied.seen.clear()
        status, _, _ = proxied.ask(start)
        assert status in (400, 403)
        assert proxied.seen == []

    @pytest.mark.parametrize("method", ["CONNECT", "TRACE", "post", "PRI", "BREW"])
    def test_odd_methods_end_here(self, proxied, method):
        proxied.seen.clear()
        status, _, _ = proxied.ask(f"{method} /v1/fleet/pull-messages")
        assert 400 <= status < 500
        assert proxied.seen == []

    def test_a_second_request_hidden_in_a_body_is_no_request(self, proxied):
        proxied.seen.clear()
        hidden = b"0\r\n\r\nPOST /v1/control/start-run HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
        both = f"Transfer-Encoding: chunked\r\nContent-Length: {len(hidden)}\r\n"
        proxied.ask("POST /v1/fleet/pull-messages", hidden, both)
        proxied.ask("POST /v1/fleet/pull-messages", hidden)
        assert {path for _, path, _ in proxied.seen} <= {"/v1/fleet/pull-messages"}

    def test_who_claims_another_address_or_login_is_not_believed(self, proxied):
        proxied.seen.clear()
        claims = "X-Forwarded-For: 10.1.2.3\r\nAuthorization: Bearer x\r\nCookie: a=b\r\nUpgrade: h2c\r\n"
        proxied.ask("POST /v1/fleet/get-run", headers=claims)
        ((_, _, headers),) = proxied.seen
        assert headers["X-Forwarded-For"] == "127.0.0.1"
        assert not {"Authorization", "Cookie", "Upgrade"} & headers.keys()


@pytest.mark.federated
@with_nginx
class TestAnswers:
    def test_a_refusal_of_the_superlink_passes_unchanged(self, proxied):
        status, head, body = proxied.ask("POST /v1/fleet/pull-messages", b"x", "X-Want: refusal\r\n")
        assert (status, body) == (401, b"no such node")
        assert b"X-Of-The-Superlink: kept" in head

    @pytest.mark.parametrize("method", ["HEAD", "GET"])
    def test_a_preflight_learns_the_time_and_nothing_else(self, proxied, method):
        proxied.seen.clear()
        status, head, body = proxied.ask(f"{method} /")
        assert (status, body, proxied.seen) == (204, b"", [])
        (date,) = [line for line in head.decode().split("\r\n") if line.startswith("Date: ")]
        assert abs((parsedate_to_datetime(date[6:]) - datetime.now(UTC)).total_seconds()) < 5
        assert b"Server: nginx\r\n" in head + b"\r\n"

    def test_a_chunk_of_a_model_passes_whole_and_leaves_nothing_on_the_disk(self, proxied):
        chunk = os.urandom(5 * 2**20 + 4096)
        status, _, body = proxied.ask("POST /v1/fleet/push-object", chunk)
        assert (status, body == chunk) == (200, True)
        folder = proxied.home.state_folder / "proxy-temp"
        assert [path for path in folder.rglob("*") if path.is_file()] == []

    def test_a_body_of_more_than_eight_mebibytes_is_refused_before_it_is_sent(self, proxied):
        proxied.seen.clear()
        status, _, _ = proxied.ask("POST /v1/fleet/push-object", headers=f"Content-Length: {8 * 2**20 + 1}\r\n")
        assert (status, proxied.seen) == (413, [])

    def test_a_busy_round_of_three_sites_behind_one_address_is_never_slowed(self, proxied):
        def call(_: int) -> int:
            return proxied.ask("POST /v1/fleet/pull-object", b"x")[0]

        with ThreadPoolExecutor(12) as pool:
            assert set(pool.map(call, range(200))) == {200}

    def test_older_tls_is_refused(self, proxied):
        older = ssl.create_default_context(cafile=str(proxied.home.ca_file))
        older.maximum_version = ssl.TLSVersion.TLSv1_2
        with pytest.raises(ssl.SSLError, match=r"(?i)protocol|version|alert"):
            proxied.connect(older)


class TestConfiguration:
    def test_it_names_no_place_of_this_machine(self, tmp_path, monkeypatch):
        monkeypatch.setenv("EUCAIM_FL_FEDERATIONS", str(tmp_path))
        made = Settings(name="liver", host="fl.example.org", port=8443, made_at=NOW)
        home = create(made, NOW)
        text = write_configuration(home).read_text()
        assert text == configuration(made)
        assert str(tmp_path) not in text
        assert "listen 0.0.0.0:8443 ssl" in text
        assert text.count("proxy_pass") == len(FLEET_CALLS) == 9

    @pytest.mark.federated
    @with_nginx
    @pytest.mark.parametrize("listen", ["0.0.0.0:8443", "[::1]:8443"])
    def test_nginx_accepts_it(self, tmp_path, monkeypatch, listen):
        monkeypatch.setenv("EUCAIM_FL_FEDERATIONS", str(tmp_path))
        home = create(Settings(name="liver", host="a", port=1, listen=listen, made_at=NOW), NOW)
        write_configuration(home)
        check_proxy_configuration(find_nginx(), home)

    def test_one_that_can_not_be_written_is_an_error(self, tmp_path, monkeypatch):
        monkeypatch.setenv("EUCAIM_FL_FEDERATIONS", str(tmp_path))
        home = create(Settings(name="liver", host="a", port=1, made_at=NOW), NOW)
        (home.folder / "proxy").rmdir()
        (home.folder / "proxy").write_text("")
        with pytest.raises(JournalError, match="can't be written"):
            write_configuration(home)

    def test_a_machine_without_nginx_is_told_how_to_get_it(self, tmp_path, monkeypatch):
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.setattr(proxy, "_PLACES", ())
        with pytest.raises(ServiceStateError, match="apt-get install"):
            find_nginx()

    def test_it_is_found_where_a_users_path_does_not_lead(self, tmp_path, monkeypatch):
        monkeypatch.setenv("PATH", str(tmp_path))
        (tmp_path / "there").write_text("")
        monkeypatch.setattr(proxy, "_PLACES", (str(tmp_path / "there"),))
        assert find_nginx() == Path(tmp_path / "there")
