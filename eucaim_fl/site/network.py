"""The line to the coordinator before it is used: name, connection, proxy, one TLS 1.3 handshake, certificates, clock.

What judges takes values; `check_line` asks. It sends one handshake and one empty HEAD request, and nothing of the site.
"""

from __future__ import annotations

import base64
import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies_environment, proxy_bypass_environment  # type: ignore[attr-defined]

from eucaim_fl.cohorts.findings import Severity
from eucaim_fl.errors import EnrolmentError, KeyFileError
from eucaim_fl.signing import CertificateFacts, certificate_facts

__all__ = [
    "Proxy",
    "SetupFinding",
    "address_of",
    "check_line",
    "judge_certificate",
    "judge_clock",
    "judge_handshake",
    "proxy_for",
]

_TIMEOUT_S = 5.0
_SHORTEST_TIMEOUT_S = 2.0
_MOST_ADDRESSES = 4
_LONGEST_ANSWER = 16 * 1024
_CLOCK_WARNS, _CLOCK_BLOCKS = timedelta(seconds=60), timedelta(seconds=240)
_EXPIRY_WARNS = timedelta(days=30)


@dataclass(frozen=True)
class SetupFinding:
    """One thing that is right or amiss with a site's line, machine or home.

    code: short name, `line.…`, `machine.…` or `home.…`. text: the fact; advice: what hospital IT can do; both are fixed
    texts. detail: addresses, paths and numbers, for this machine's terminal only.
    """

    code: str
    severity: Severity
    text: str
    advice: str = ""
    detail: str = ""


@dataclass(frozen=True)
class Proxy:
    """The hospital's HTTP proxy. credentials: `user:password`, or empty."""

    host: str
    port: int
    credentials: str = ""


_FAULTS: Mapping[str, tuple[str, str]] = {
    "name": (
        "The coordinator's name can't be resolved.",
        "Ask your network team for a DNS entry, or set HTTPS_PROXY if this network reaches others through a proxy.",
    ),
    "refused": (
        "The coordinator's address refuses the connection.",
        "Nothing listens there, or a firewall says no. Ask the coordinator whether it runs; compare address and port.",
    ),
    "timeout": (
        "The coordinator's address does not answer.",
        "A firewall probably drops the packets: ask for outbound TCP to this address and port, or set HTTPS_PROXY.",
    ),
    "unreachable": (
        "There is no way to the coordinator's address from this machine.",
        "Check this machine's network, or set HTTPS_PROXY if this network reaches others through a proxy.",
    ),
    "proxy_name": ("The proxy's name can't be resolved.", "Check HTTPS_PROXY."),
    "proxy_refused": ("The proxy refuses the connection.", "Check the address and port in HTTPS_PROXY."),
    "proxy_timeout": ("The proxy does not answer.", "Check the address and port in HTTPS_PROXY."),
    "proxy_unreachable": ("There is no way to the proxy from this machine.", "Check HTTPS_PROXY, and the network."),
    "proxy_kind": (
        "The proxy in HTTPS_PROXY is of a kind that is not supported.",
        "Give it as http://HOST:PORT; SOCKS, and proxies that are reached by https, are not supported.",
    ),
    "proxy_password": (
        "The proxy asks for a name and a password.",
        "Write them into HTTPS_PROXY as http://NAME:PASSWORD@HOST:PORT, or ask for an exception for this machine.",
    ),
    "proxy_denied": (
        "The proxy does not let this machine reach the coordinator.",
        "Ask your network team to allow CONNECT to the coordinator's address and port.",
    ),
    "proxy_answer": ("What HTTPS_PROXY names does not answer as an HTTP proxy.", "Check its address and port."),
    "old_tls": (
        "What answers does not speak TLS 1.3.",
        "If a firewall inspects TLS here, ask for an exception; otherwise ask the coordinator which port is right.",
    ),
    "no_tls": ("What answers does not speak TLS.", "Compare address and port with the coordinator."),
    "wrong_ca": (
        "The certificate of what answers is not the coordinator's.",
        "A firewall that inspects TLS shows its own: ask for an exception. Else compare the invitation with the "
        "coordinator; it may have been set up anew.",
    ),
    "wrong_name": (
        "The coordinator's certificate is made out to another name.",
        "Use the address of the invitation; if that is what you do, the coordinator needs a certificate for it.",
    ),
    "expired": (
        "The coordinator's certificate has expired.",
        "Check this machine's clock first; if it is right, the coordinator has to renew its certificate.",
    ),
    "not_yet_valid": (
        "The coordinator's certificate is not yet valid.",
        "This machine's clock is probably behind: set it (NTP).",
    ),
    "cut": (
        "The connection is cut during the TLS handshake.",
        "A firewall that inspects connections often does this: ask for an exception for the coordinator's address.",
    ),
    "silent": (
        "The coordinator's address takes the connection, but the TLS handshake gets no answer.",
        "A firewall or a proxy in between may hold it back; ask the coordinator whether its servers run.",
    ),
    "tls": ("The TLS handshake failed.", "Send the detail to the coordinator."),
    "invitation": ("The invitation's certificate authority can't be read.", "Ask for a new invitation."),
}  # fmt: skip


class _LineFaultError(Exception):
    """A fault of the line by its name in `_FAULTS`, with a local detail."""

    def __init__(self, fault: str, detail: str) -> None:
        super().__init__(fault)
        self.fault, self.detail = fault, detail


def address_of(text: str) -> tuple[str, int]:
    """Host and port of `host:port` or `[IPv6]:port`. Raises EnrolmentError if it is neither.

    >>> address_of("federation.example.org:443"), address_of("[::1]:8443")
    (('federation.example.org', 443), ('::1', 8443))
    """
    host, _, port = text.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    good = bare and (host != bare) == (":" in bare) and port.isascii() and port.isdigit() and len(port) <= 5
    if not good or not 1 <= int(port) <= 65535 or not bare.isprintable() or set(bare) & set(" /@[]"):
        raise EnrolmentError("The coordinator's address is not HOST:PORT.", fix="Ask for a new invitation.")
    return bare, int(port)


def proxy_for(host: str, proxies: Mapping[str, str]) -> Proxy | None:
    """The proxy that leads to `host`, None for a direct way.

    proxies: as the environment gives them (`https`, `all`, and `no` for exceptions).
    Raises EnrolmentError if the proxy is not of the form http://HOST:PORT.
    """
    text = proxies.get("https") or proxies.get("all")
    if not text or proxy_bypass_environment(host, dict(proxies)):
        return None
    try:
        parts = urlsplit(text if "://" in text else f"http://{text}")
        name, port = parts.hostname, parts.port or 80
    except ValueError:
        parts, name, port = urlsplit("other://"), None, 0
    if parts.scheme != "http" or not name:
        says, do = _FAULTS["proxy_kind"]
        raise EnrolmentError(says, fix=do)
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    return Proxy(name, port, f"{user}:{password}" if user else "")


def judge_handshake(problem: ssl.SSLError | OSError) -> str:
    """The name of the fault that a failed TLS handshake shows."""
    if isinstance(problem, ssl.SSLCertVerificationError):
        return {9: "not_yet_valid", 10: "expired", 62: "wrong_name", 64: "wrong_name"}.get(
            problem.verify_code, "wrong_ca"
        )
    if isinstance(problem, ssl.SSLEOFError | ConnectionError):
        return "cut"
    if isinstance(problem, TimeoutError):
        return "silent"
    reason = str(getattr(problem, "reason", "") or "")
    if "PROTOCOL_VERSION" in reason or "UNSUPPORTED_PROTOCOL" in reason or "HANDSHAKE_FAILURE" in reason:
        return "old_tls"
    if "WRONG_VERSION_NUMBER" in reason or "HTTP_REQUEST" in reason or "PACKET_LENGTH" in reason:
        return "no_tls"
    return "tls"


def judge_certificate(facts: CertificateFacts, now: datetime, whose: str) -> tuple[SetupFinding, ...]:
    """What a certificate's dates lead to: expired and not yet valid block, fewer than 30 days left warn.

    whose: `server` or `ca`.
    """
    what = {"server": "The coordinator's certificate", "ca": "The federation's certificate authority"}[whose]
    detail = f"valid from {facts.not_before:%Y-%m-%d %H:%M} to {facts.not_after:%Y-%m-%d %H:%M} UTC"
    if facts.not_after <= now:
        return (SetupFinding(f"line.{whose}_expired", "blocks", f"{what} has expired.", _FAULTS["expired"][1], detail),)
    if facts.not_before > now:
        advice = _FAULTS["not_yet_valid"][1]
        return (SetupFinding(f"line.{whose}_not_yet_valid", "blocks", f"{what} is not yet valid.", advice, detail),)
    if facts.not_after - now < _EXPIRY_WARNS:
        advice = "Tell the coordinator: it has to be renewed before that day, or no site can connect."
        return (SetupFinding(f"line.{whose}_expires", "warns", f"{what} expires within 30 days.", advice, detail),)
    return ()


def judge_clock(theirs: datetime | None, ours: datetime) -> tuple[SetupFinding, ...]:
    """How far this machine's clock is from the coordinator's: more than 60 s warns, more than 240 s blocks.

    The coordinator refuses signatures that are some five minutes old. theirs: None where it told no time.
    """
    if theirs is None:
        return (SetupFinding("line.no_time", "informs", "The coordinator told no time; the clock was not compared."),)
    off = abs(ours - theirs)
    if off <= _CLOCK_WARNS:
        return ()
    detail = f"this machine is {off.total_seconds():.0f} s {'ahead' if ours > theirs else 'behind'}"
    advice = "Set the clock (NTP, such as chrony); the coordinator refuses what was signed minutes ago."
    if off <= _CLOCK_BLOCKS:
        return (
            SetupFinding("line.clock", "warns", "This machine's clock is off by more than a minute.", advice, detail),
        )
    return (SetupFinding("line.clock", "blocks", "This machine's clock is wrong by minutes.", advice, detail),)


def check_line(address: str, ca_pem: str, clock: Callable[[], datetime]) -> tuple[SetupFinding, ...]:
    """The line to `address` (HOST:PORT), trusting only the authority `ca_pem`; a fault is told within seconds.

    clock: the time now, in UTC. A proxy is taken from HTTPS_PROXY, ALL_PROXY and NO_PROXY.
    Raises EnrolmentError if the address is not HOST:PORT.
    """
    host, port = address_of(address)
    where = address
    try:
        authority = _authority(ca_pem)
        proxy = _proxy(host)
        where = address if proxy is None else f"{address} through the proxy {proxy.host}:{proxy.port}"
        with _secured((host, port), proxy, ca_pem) as line:
            facts = certificate_facts(ssl.DER_cert_to_PEM_cert(line.getpeercert(binary_form=True) or b"").encode())
            theirs = _told_time(line, address)
            ours = clock()
    except _LineFaultError as problem:
        says, do = _FAULTS[problem.fault]
        return (SetupFinding(f"line.{problem.fault}", "blocks", says, do, f"{where}: {problem.detail}"),)
    certificates = (*judge_certificate(facts, ours, "server"), *judge_certificate(authority, ours, "ca"))
    detail = f"{where}; certificate valid until {facts.not_after:%Y-%m-%d}"
    works = SetupFinding("line.works", "informs", "One TLS 1.3 handshake with the coordinator worked.", "", detail)
    return (works, *certificates, *judge_clock(theirs, ours))


def _authority(ca_pem: str) -> CertificateFacts:
    try:
        return certificate_facts(ca_pem.encode())
    except KeyFileError:
        raise _LineFaultError("invitation", "no PEM certificate") from None


def _proxy(host: str) -> Proxy | None:
    try:
        return proxy_for(host, getproxies_environment())
    except EnrolmentError:
        raise _LineFaultError("proxy_kind", "HTTPS_PROXY") from None


@contextlib.contextmanager
def _secured(address: tuple[str, int], proxy: Proxy | None, ca_pem: str) -> Iterator[ssl.SSLSocket]:
    """A TLS 1.3 connection whose server was verified."""
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_verify_locations(cadata=ca_pem)
    except (ssl.SSLError, ValueError) as problem:
        raise _LineFaultError("invitation", str(problem)) from None
    next_stop = (*address, "") if proxy is None else (proxy.host, proxy.port, "proxy_")
    with _connected(*next_stop) as plain:
        if proxy is not None:
            _tunnelled(plain, address, proxy)
        try:
            line = context.wrap_socket(plain, server_hostname=address[0])
        except OSError as problem:  # an SSLError is one, too
            raise _LineFaultError(judge_handshake(problem), str(problem)) from None
        with line:
            yield line


def _connected(host: str, port: int, before: str) -> socket.socket:
    """A connected socket, or a fault whose name begins with `before`."""
    places = _resolved(host, port, before)[:_MOST_ADDRESSES]
    patience = max(_SHORTEST_TIMEOUT_S, _TIMEOUT_S / len(places))
    problem: OSError = OSError("no address")
    for place in places:
        try:
            line = socket.create_connection(place, timeout=patience)
        except OSError as failure:
            problem = failure
        else:
            line.settimeout(_TIMEOUT_S)
            return line
    kinds = ((TimeoutError, "timeout"), (ConnectionRefusedError, "refused"))
    fault = next((name for kind, name in kinds if isinstance(problem, kind)), "unreachable")
    raise _LineFaultError(before + fault, str(problem))


def _resolved(host: str, port: int, before: str) -> list[tuple[str, int]]:
    """The addresses behind a name. The system's resolver knows no time limit, so a thread waits for it."""
    found: list[tuple[str, int]] = []
    problems: list[str] = []

    def ask() -> None:
        try:
            found.extend((str(entry[4][0]), port) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as problem:
            problems.append(str(problem))

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(_TIMEOUT_S)
    if not found:
        raise _LineFaultError(f"{before}name", (problems or ["no answer from the name server"])[0])
    return list(dict.fromkeys(found))


def _tunnelled(line: socket.socket, address: tuple[str, int], proxy: Proxy) -> None:
    """Ask a proxy for a way through (HTTP CONNECT)."""
    host = f"[{address[0]}]" if ":" in address[0] else address[0]
    words = [f"CONNECT {host}:{address[1]} HTTP/1.1", f"Host: {host}:{address[1]}"]
    if proxy.credentials:
        words.append(f"Proxy-Authorization: Basic {base64.b64encode(proxy.credentials.encode()).decode()}")
    try:
        line.sendall("\r\n".join([*words, "", ""]).encode("ascii", "replace"))
        first = _head(line).split("\r\n", 1)[0].split(" ")
    except TimeoutError:
        raise _LineFaultError("proxy_timeout", "no answer to CONNECT") from None
    except OSError as problem:
        raise _LineFaultError("proxy_answer", str(problem)) from None
    if not first[0].startswith("HTTP/1.") or len(first) < 2:
        raise _LineFaultError("proxy_answer", "no HTTP status line")
    if not first[1].startswith("2"):
        status = first[1] if first[1].isdigit() and len(first[1]) == 3 else "unknown"
        raise _LineFaultError("proxy_password" if status == "407" else "proxy_denied", f"status {status}")


def _told_time(line: ssl.SSLSocket, address: str) -> datetime | None:
    """The Date header of the answer to an empty HEAD request, None where there is none."""
    try:
        line.sendall(f"HEAD / HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n".encode("ascii", "replace"))
        headers = (one.partition(":") for one in _head(line).split("\r\n")[1:])
        told = next((value.strip() for name, _, value in headers if name.lower() == "date"), "")
        time = parsedate_to_datetime(told)
    except (OSError, ValueError, OverflowError):
        return None
    return time.astimezone(UTC) if time.tzinfo is not None else time.replace(tzinfo=UTC)


def _head(line: socket.socket) -> str:
    """What an HTTP answer begins with, up to the empty line; of a longer one the first 16 KiB."""
    raw = b""
    while b"\r\n\r\n" not in raw and len(raw) < _LONGEST_ANSWER:
        piece = line.recv(4096)
        if not piece:
            break
        raw += piece
    return raw.partition(b"\r\n\r\n")[0].decode("latin-1")
