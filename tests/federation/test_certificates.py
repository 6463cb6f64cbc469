"""The federation's own authority, its servers' certificates, sites' login keys."""

from __future__ import annotations

import socket
import ssl
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID

from eucaim_fl.errors import EnrolmentError, KeyFileError
from eucaim_fl.federation.certificates import (
    create_authority,
    days_left,
    issue_server,
    login_key_pem,
    renewal_is_due,
)

NOW = datetime.now(UTC).replace(microsecond=0)
HOSTS = ("fl.example.org", "localhost", "127.0.0.1")


@pytest.fixture(scope="module")
def authority() -> tuple[bytes, bytes]:
    return create_authority("liver", NOW)


def handshake(folder: Path, pair: tuple[bytes, bytes], trusted: bytes, name: str) -> str | None:
    """The protocol that a client which trusts `trusted` agrees on with a server that shows `pair`."""
    (folder / "server.pem").write_bytes(b"".join(pair))
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(folder / "server.pem")
    asking = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    asking.verify_flags |= ssl.VERIFY_X509_STRICT
    asking.load_verify_locations(cadata=trusted.decode())
    here, there = socket.socketpair()

    def serve() -> None:
        try:
            serving.wrap_socket(there, server_side=True).close()
        except OSError:
            there.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with asking.wrap_socket(here, server_hostname=name) as connected:
            return connected.version()
    finally:
        here.close()
        thread.join()


class TestAuthority:
    def test_it_may_sign_servers_but_no_further_authorities(self, authority):
        certificate = x509.load_pem_x509_certificate(authority[1])
        basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
        assert basic.critical
        assert (basic.value.ca, basic.value.path_length) == (True, 0)
        assert (usage.key_cert_sign, usage.crl_sign, usage.digital_signature) == (True, True, False)
        key = certificate.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        assert key.curve.name == "secp384r1"

    def test_it_lasts_ten_years(self, authority):
        assert x509.load_pem_x509_certificate(authority[1]).not_valid_after_utc == NOW + timedelta(days=3650)


class TestServer:
    @pytest.mark.parametrize("name", HOSTS)
    def test_a_strict_client_that_trusts_the_authority_accepts_it_under_each_name(self, authority, tmp_path, name):
        assert handshake(tmp_path, issue_server(authority, HOSTS, NOW), authority[1], name) == "TLSv1.3"

    def test_not_under_another_name(self, authority, tmp_path):
        with pytest.raises(ssl.SSLCertVerificationError, match=r"not valid for 'other\.example\.org'"):
            handshake(tmp_path, issue_server(authority, HOSTS, NOW), authority[1], "other.example.org")

    def test_another_authority_of_the_same_name_is_not_trusted(self, authority, tmp_path):
        with pytest.raises(ssl.SSLCertVerificationError, match="verify failed"):
            handshake(tmp_path, issue_server(create_authority("liver", NOW), HOSTS, NOW), authority[1], HOSTS[0])

    def test_a_server_can_not_sign_certificates_itself(self, authority, tmp_path):
        server = issue_server(authority, HOSTS, NOW)
        forged = issue_server(server, ("fl.example.org",), NOW)
        chain = (forged[0], forged[1] + server[1])
        with pytest.raises(ssl.SSLCertVerificationError, match="verify failed"):
            handshake(tmp_path, chain, authority[1], "fl.example.org")

    def test_it_is_for_servers_and_lasts_a_year_from_a_day_ago(self, authority):
        certificate = x509.load_pem_x509_certificate(issue_server(authority, HOSTS, NOW)[1])
        use = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        assert list(use) == [ExtendedKeyUsageOID.SERVER_AUTH]
        assert certificate.not_valid_before_utc == NOW - timedelta(days=1)
        assert certificate.not_valid_after_utc == NOW + timedelta(days=365)

    def test_it_does_not_outlive_its_authority(self, authority):
        late = NOW + timedelta(days=3600)
        certificate = x509.load_pem_x509_certificate(issue_server(authority, HOSTS, late)[1])
        assert certificate.not_valid_after_utc == NOW + timedelta(days=3650)

    def test_an_authority_that_can_not_be_read_signs_nothing(self):
        with pytest.raises(KeyFileError, match="can't be read"):
            issue_server((b"", b""), HOSTS, NOW)

    def test_key_and_certificate_of_two_authorities_sign_nothing(self, authority):
        with pytest.raises(KeyFileError, match="do not belong together"):
            issue_server((authority[0], create_authority("liver", NOW)[1]), HOSTS, NOW)


class TestRenewal:
    @pytest.mark.parametrize(("days", "due"), [(31, False), (30, False), (29, True), (-1, True)])
    def test_it_is_due_when_less_than_thirty_days_are_left(self, days, due):
        assert renewal_is_due(NOW + timedelta(days=days), NOW) is due

    def test_days_are_negative_once_it_is_past(self):
        assert days_left(NOW - timedelta(hours=1), NOW) == -1


class TestLoginKey:
    def line(self, curve: ec.EllipticCurve) -> str:
        key = ec.generate_private_key(curve).public_key()
        return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()

    def test_openssh_text_becomes_the_pem_that_flower_makes_of_the_same_key(self):
        from flwr.supercore.primitives.asymmetric import public_key_to_bytes

        key = ec.generate_private_key(ec.SECP384R1()).public_key()
        assert login_key_pem(key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()) == public_key_to_bytes(
            key
        )

    @pytest.mark.parametrize("text", ["", "ssh-ed25519 AAAA", "ecdsa-sha2-nistp384 AAAA", "é", "x" * 2000])
    def test_what_is_no_key_is_refused(self, text):
        with pytest.raises(EnrolmentError, match="no ECDSA key"):
            login_key_pem(text)

    def test_a_key_on_another_curve_is_refused(self):
        with pytest.raises(EnrolmentError, match="no ECDSA key"):
            login_key_pem(self.line(ec.SECP256R1()))
