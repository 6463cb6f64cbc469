"""Each fault of the line to the coordinator is told within seconds, by its name, against real servers on loopback."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from eucaim_fl.errors import EnrolmentError
from eucaim_fl.signing import CertificateFacts, certificate_facts
from eucaim_fl.site import network
from eucaim_fl.site.network import (
    Proxy,
    SetupFinding,
    address_of,
    check_line,
    judge_certificate,
    judge_clock,
    judge_handshake,
    proxy_for,
)

NOW = datetime.now(UTC).replace(microsecond=0)
DAY = timedelta(days=1)


@dataclass(frozen=True)
class Signed:
    """A certificate with its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(serialization.Encoding.PEM).decode()


def made(
    by: Signed | None = None, name: str = "127.0.0.1", begins: datetime = NOW - DAY, ends: datetime = NOW + 365 * DAY
) -> Signed:
    """An authority's own certificate, or a server's that it signed."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority" if by is None else "server")])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if by is None else by.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(ends)
        .add_extension(x509.BasicConstraints(ca=by is None, path_length=None), critical=True)
    )
    if by is not None:
        names: list[x509.GeneralName] = [x509.DNSName("localhost")] if name == "localhost" else []
        if name not in ("localhost", ""):
            names = [x509.IPAddress(ipaddress.ip_address(name))]
        builder = builder.add_extension(x509.SubjectAlternativeName(names or [x509.DNSName("other.test")]), False)
    return Signed(builder.sign(key if by is None else by.key, hashes.SHA256()), key)


@contextlib.contextmanager
def listening(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    """A server on a free port of loopback that gives each connection to `serve`; ended with the block."""
    with socket.create_server(("127.0.0.1", 0)) as door:
        ended = threading.Event()

        def accept() -> None:
            while not ended.is_set():
                with contextlib.suppress(OSError):
                    line, _ = door.accept()
                    threading.Thread(target=one, args=(line,), daemon=True).start()

        def one(line: socket.socket) -> None:
            with line, contextlib.suppress(OSError):
                line.settimeout(5)
                serve(line)

        threading.Thread(target=accept, daemon=True).start()
        try:
            yield door.getsockname()[1]
        finally:
            ended.set()
            door.shutdown(socket.SHUT_RDWR)


@pytest.fixture(scope="module")
def authority() -> Signed:
    return made()


@pytest.fixture(autouse=True)
def _no_proxy_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def secure(tmp_path: Path) -> Callable[..., Callable[[socket.socket], None]]:
    """Makes what a TLS server does with a connection: a handshake, then one answer with a date."""

    def make(
        server: Signed, date: datetime | None = NOW, newest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3
    ) -> Callable[[socket.socket], None]:
        key = server.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        (tmp_path / "server.pem").write_bytes(key + server.pem.encode())
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.maximum_version = newest
        context.load_cert_chain(tmp_path / "server.pem")

        def serve(line: socket.socket) -> None:
            with context.wrap_socket(line, server_side=True) as safe:
                asked = safe.recv(4096)
                assert asked.startswith(b"HEAD / HTTP/1.1\r\n")
                told = "" if date is None else f"Date: {format_datetime(date, usegmt=True)}\r\n"
                safe.sendall(f"HTTP/1.1 405 Method Not Allowed\r\n{told}Content-Length: 0\r\n\r\n".encode())

        return serve

    return make


def codes(findings: tuple[SetupFinding, ...]) -> list[str]:
    return [finding.code for finding in findings]


def checked(port: int, ca_pem: str, host: str = "127.0.0.1") -> tuple[SetupFinding, ...]:
    return check_line(f"{host}:{port}", ca_pem, lambda: NOW)


class TestALineThatWorks:
    def test_one_handshake_is_told_with_its_address_and_the_day_of_expiry(self, authority, secure):
        with listening(secure(made(authority))) as port:
            (works,) = checked(port, authority.pem)
        assert (works.code, works.severity) == ("line.works", "informs")
        assert works.detail == f"127.0.0.1:{port}; certificate valid until {NOW + 365 * DAY:%Y-%m-%d}"

    def test_a_name_is_resolved_and_compared_with_the_certificate(self, authority, secure):
        with listening(secure(made(authority, "localhost"))) as port:
            assert codes(checked(port, authority.pem, "localhost")) == ["line.works"]

    def test_a_server_that_tells_no_time_is_no_fault(self, authority, secure):
        with listening(secure(made(authority), date=None)) as port:
            assert codes(checked(port, authority.pem)) == ["line.works", "line.no_time"]

    def test_a_certificate_that_expires_soon_warns(self, authority, secure):
        with listening(secure(made(authority, ends=NOW + 20 * DAY))) as port:
            _, expires = checked(port, authority.pem)
        assert (expires.code, expires.severity) == ("line.server_expires", "warns")

    @pytest.mark.parametrize(("seconds", "severity"), [(-100, "warns"), (100, "warns"), (-3600, "blocks")])
    def test_a_clock_that_is_off_is_told(self, authority, secure, seconds, severity):
        with listening(secure(made(authority), date=NOW + timedelta(seconds=seconds))) as port:
            _, clock = checked(port, authority.pem)
        assert (clock.code, clock.severity) == ("line.clock", severity)
        assert clock.detail == f"this machine is {abs(seconds)} s {'ahead' if seconds < 0 else 'behind'}"


class TestALineThatDoesNotWork:
    def blocked(self, findings: tuple[SetupFinding, ...]) -> SetupFinding:
        (only,) = findings
        assert only.severity == "blocks"
        assert only.text
        assert only.advice
        return only

    def test_a_name_that_cannot_be_resolved(self, authority):
        assert self.blocked(checked(1, authority.pem, "nowhere.invalid")).code == "line.name"

    def test_a_resolver_that_never_answers(self, authority, monkeypatch):
        monkeypatch.setattr(network, "_TIMEOUT_S", 0.1)
        monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: time.sleep(1) or [])
        found = self.blocked(checked(1, authority.pem, "slow.test"))
        assert found.detail == "slow.test:1: no answer from the name server"

    def test_a_port_where_nothing_listens(self, authority):
        with socket.create_server(("127.0.0.1", 0)) as door:
            port = door.getsockname()[1]
        assert self.blocked(checked(port, authority.pem)).code == "line.refused"

    def test_an_address_that_does_not_answer(self, authority, monkeypatch):
        def never(*_: object, **__: object) -> socket.socket:
            raise TimeoutError("timed out")

        monkeypatch.setattr(socket, "create_connection", never)
        assert self.blocked(checked(1, authority.pem)).code == "line.timeout"

    def test_a_server_of_tls_1_2_only(self, authority, secure):
        with listening(secure(made(authority), newest=ssl.TLSVersion.TLSv1_2)) as port:
            assert self.blocked(checked(port, authority.pem)).code == "line.old_tls"

    def test_a_server_without_tls(self, authority):
        with listening(lambda line: line.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")) as port:
            assert self.blocked(checked(port, authority.pem)).code == "line.no_tls"

    def test_another_authority_such_as_a_firewalls(self, authority, secure):
        with listening(secure(made(made()))) as port:
            found = self.blocked(checked(port, authority.pem))
        assert found.code == "line.wrong_ca"
        assert "firewall" in found.advice

    def test_a_certificate_for_another_host(self, authority, secure):
        with listening(secure(made(authority, "127.0.0.2"))) as port:
            assert self.blocked(checked(port, authority.pem)).code == "line.wrong_name"
            assert self.blocked(checked(port, authority.pem, "localhost")).code == "line.wrong_name"

    def test_an_expired_certificate(self, authority, secure):
        with listening(secure(made(authority, begins=NOW - 3 * DAY, ends=NOW - DAY))) as port:
            assert self.blocked(checked(port, authority.pem)).code == "line.expired"

    def test_a_certificate_from_the_future_hints_at_the_clock(self, authority, secure):
        with listening(secure(made(authority, begins=NOW + timedelta(hours=1)))) as port:
            found = self.blocked(checked(port, authority.pem))
        assert found.code == "line.not_yet_valid"
        assert "clock" in found.advice

    def test_a_connection_that_is_cut(self, authority):
        with listening(lambda line: line.recv(1)) as port:
            assert self.blocked(checked(port, authority.pem)).code == "line.cut"

    def test_a_server_that_says_nothing(self, authority, monkeypatch):
        monkeypatch.setattr(network, "_TIMEOUT_S", 0.3)
        with listening(lambda line: time.sleep(1)) as port:
            assert self.blocked(checked(port, authority.pem)).code == "line.silent"

    def test_an_invitation_without_an_authority(self):
        assert self.blocked(checked(1, "nothing")).code == "line.invitation"

    def test_an_address_that_is_none(self, authority):
        with pytest.raises(EnrolmentError, match="not HOST:PORT"):
            check_line("somewhere", authority.pem, lambda: NOW)


def proxy_to(
    port: int, answer: bytes = b"HTTP/1.1 200 Connection established\r\n\r\n", seen: list[bytes] | None = None
):
    """What a hospital's proxy does with a connection: answer CONNECT, then pass bytes on both ways."""

    def serve(line: socket.socket) -> None:
        asked = line.recv(4096)
        if seen is not None:
            seen.append(asked)
        line.sendall(answer)
        if b" 200 " not in answer:
            return
        with socket.create_connection(("127.0.0.1", port)) as onward:

            def back() -> None:
                with contextlib.suppress(OSError):
                    while piece := onward.recv(4096):
                        line.sendall(piece)

            threading.Thread(target=back, daemon=True).start()
            while piece := line.recv(4096):
                onward.sendall(piece)

    return serve


class TestThroughAProxy:
    def test_the_handshake_goes_through_it(self, authority, secure, monkeypatch):
        seen: list[bytes] = []
        with listening(secure(made(authority))) as port, listening(proxy_to(port, seen=seen)) as door:
            monkeypatch.setenv("HTTPS_PROXY", f"http://user:pass%20word@127.0.0.1:{door}")
            (works,) = checked(port, authority.pem)
        assert works.detail.startswith(f"127.0.0.1:{port} through the proxy 127.0.0.1:{door}; ")
        assert seen[0].startswith(f"CONNECT 127.0.0.1:{port} HTTP/1.1\r\n".encode())
        assert b"Proxy-Authorization: Basic dXNlcjpwYXNzIHdvcmQ=\r\n" in seen[0]

    @pytest.mark.parametrize(
        ("answer", "code"),
        [
            (b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", "line.proxy_password"),
            (b"HTTP/1.1 403 Forbidden\r\n\r\n", "line.proxy_denied"),
            (b"SSH-2.0-something\r\n\r\n", "line.proxy_answer"),
            (b"", "line.proxy_answer"),
        ],
    )
    def test_what_it_refuses_is_told(self, authority, monkeypatch, answer, code):
        with listening(proxy_to(0, answer)) as door:
            monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{door}")
            assert codes(checked(1, authority.pem)) == [code]

    def test_one_that_is_not_there(self, authority, monkeypatch):
        with socket.create_server(("127.0.0.1", 0)) as door:
            port = door.getsockname()[1]
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{port}")
        assert codes(checked(1, authority.pem)) == ["line.proxy_refused"]
        monkeypatch.setenv("HTTPS_PROXY", "http://nowhere.invalid:3128")
        assert codes(checked(1, authority.pem)) == ["line.proxy_name"]

    def test_one_of_another_kind(self, authority, monkeypatch):
        monkeypatch.setenv("HTTPS_PROXY", "socks5://127.0.0.1:1080")
        assert codes(checked(1, authority.pem)) == ["line.proxy_kind"]

    def test_exceptions_go_directly(self, authority, secure, monkeypatch):
        monkeypatch.setenv("HTTPS_PROXY", "http://nowhere.invalid:3128")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        with listening(secure(made(authority))) as port:
            assert codes(checked(port, authority.pem)) == ["line.works"]

    def test_its_address_is_read_as_people_write_it(self):
        assert proxy_for("a.test", {}) is None
        assert proxy_for("a.test", {"https": "proxy:3128"}) == Proxy("proxy", 3128)
        assert proxy_for("a.test", {"all": "http://me:a%40b@proxy"}) == Proxy("proxy", 80, "me:a@b")
        assert proxy_for("a.test", {"https": "http://proxy:1", "no": ".test"}) is None
        for other in ("https://proxy:1", "http://proxy:x", "http://"):
            with pytest.raises(EnrolmentError, match="not supported"):
                proxy_for("a.test", {"https": other})


class TestJudging:
    def facts(self, begins: datetime, ends: datetime) -> CertificateFacts:
        return CertificateFacts(begins, ends, (), "")

    @pytest.mark.parametrize(
        ("begins", "ends", "code"),
        [(-1, 31, None), (-1, 29, "line.ca_expires"), (-2, -1, "line.ca_expired"), (1, 31, "line.ca_not_yet_valid")],
    )
    def test_a_certificates_dates(self, begins, ends, code):
        found = judge_certificate(self.facts(NOW + begins * DAY, NOW + ends * DAY), NOW, "ca")
        assert codes(found) == ([code] if code else [])

    def test_sixty_seconds_are_no_fault_and_four_minutes_block(self):
        seconds = (0, 60, 61, 240, 241)
        found = [judge_clock(NOW, NOW + timedelta(seconds=s)) for s in seconds]
        assert [f[0].severity if f else None for f in found] == [None, None, "warns", "warns", "blocks"]

    def test_a_failure_that_nobody_knows_is_still_told(self):
        assert judge_handshake(ssl.SSLError(1, "something new")) == "tls"

    def test_facts_of_a_real_certificate(self, authority):
        facts = certificate_facts(made(authority, "127.0.0.1").pem.encode())
        assert facts.names == ("127.0.0.1",)
        assert (facts.not_before, facts.not_after) == (NOW - DAY, NOW + 365 * DAY)

    @pytest.mark.parametrize(
        "text",
        ["", "host", "host:", ":443", "host:0", "host:65536", "host:+1", "::1:443", "[host]:1", "a b:1", "a/b:1"],
    )
    def test_an_address_has_a_host_and_a_port(self, text):
        with pytest.raises(EnrolmentError, match="not HOST:PORT"):
            address_of(text)
