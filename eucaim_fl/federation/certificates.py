"""The federation's own certificate authority, its servers' certificates, and the form of sites' login keys.

Sites trust this authority alone and for nothing else, so no public authority has to be asked. Keys are ECDSA P-384.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_ssh_public_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from eucaim_fl.errors import EnrolmentError, KeyFileError

__all__ = [
    "AUTHORITY_DAYS",
    "SERVER_DAYS",
    "WARN_DAYS",
    "create_authority",
    "days_left",
    "issue_server",
    "login_key_pem",
    "renewal_is_due",
]

AUTHORITY_DAYS, SERVER_DAYS, WARN_DAYS = 3650, 365, 30
_BACKDATED = timedelta(days=1)
"""Certificates count from a day ago: a clock that is some hours behind is told apart from a false certificate."""
_LONGEST_LOGIN_KEY = 1024


def _key_bytes(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:64])])


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def create_authority(federation: str, now: datetime) -> tuple[bytes, bytes]:
    """A new certificate authority that may sign servers but no further authorities: private key and certificate, PEM.

    now: aware.
    """
    key = ec.generate_private_key(ec.SECP384R1())
    name = _name(f"eucaim_fl federation {federation}")
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + timedelta(days=AUTHORITY_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(identifier, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
        .sign(key, hashes.SHA384())
    )
    return _key_bytes(key), certificate.public_bytes(Encoding.PEM)


def _alternative(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def issue_server(
    authority: tuple[bytes, bytes], hosts: Sequence[str], now: datetime, days: int = SERVER_DAYS
) -> tuple[bytes, bytes]:
    """A new key and certificate (PEM) for servers that are reached as any of `hosts` (names or IP addresses).

    authority: private key and certificate as `create_authority` gives them. The certificate ends with the authority's
    own at the latest.
    Raises KeyFileError if the authority's key and certificate can't be read or do not belong together.
    """
    try:
        signer = load_pem_private_key(authority[0], password=None)
        issuer = x509.load_pem_x509_certificate(authority[1])
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise KeyFileError("The federation's certificate authority can't be read.") from None
    if not isinstance(signer, ec.EllipticCurvePrivateKey) or signer.public_key() != issuer.public_key():
        raise KeyFileError("The certificate authority's key and certificate do not belong together.")
    key = ec.generate_private_key(ec.SECP384R1())
    certificate = (
        x509.CertificateBuilder()
        .subject_name(_name(hosts[0]))
        .issuer_name(issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(max(now - _BACKDATED, issuer.not_valid_before_utc))
        .not_valid_after(min(now + timedelta(days=days), issuer.not_valid_after_utc))
        .add_extension(x509.SubjectAlternativeName([_alternative(h) for h in dict.fromkeys(hosts)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(
                issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
            ),
            critical=False,
        )
        .sign(signer, hashes.SHA384())
    )
    return _key_bytes(key), certificate.public_bytes(Encoding.PEM)


def days_left(end: datetime, now: datetime) -> int:
    """Whole days until `end`, rounded down; negative once it is past.

    >>> days_left(datetime(2030, 1, 2, 12), datetime(2030, 1, 1))
    1
    """
    return (end - now) // timedelta(days=1)


def renewal_is_due(end: datetime, now: datetime) -> bool:
    """Whether it is time to warn: less than 30 days are left."""
    return end - now < timedelta(days=WARN_DAYS)


def login_key_pem(text: str) -> bytes:
    """A site's public login key, from one line of OpenSSH text to the PEM that Flower compares byte by byte.

    Raises EnrolmentError if it is no ECDSA key on P-384, or longer than one can be.
    """
    try:
        key = load_ssh_public_key(text.encode("ascii")) if len(text) <= _LONGEST_LOGIN_KEY else None
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise EnrolmentError(
            "The request's login key is no ECDSA key on the curve P-384.", fix="Let the site make its request again."
        )
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
