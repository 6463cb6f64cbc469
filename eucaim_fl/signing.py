"""Ed25519 signatures over canonical JSON: who wrote a permit, an invitation, an instruction, a reply, an audit record.

Each signature is bound to a purpose, so that one made for a permit can't be shown as one for a reply. Keys of public
use are text, `ed25519:` and 32 bytes in base64url; private keys are files that only their owner can read. A signed
document is one JSON object of four keys: its schema, what it says, the public key, and the signature over all three.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP384R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_ssh_public_key,
)

from eucaim_fl.errors import ConfigError, KeyFileError

__all__ = [
    "LARGEST_DOCUMENT_BYTES",
    "PUBLIC_KEY",
    "CertificateFacts",
    "PrivateKey",
    "SignedDocument",
    "canonical_json",
    "certificate_facts",
    "fingerprint",
    "is_node_key",
    "load_document",
    "load_node_key",
    "new_node_key",
    "node_key_line",
    "open_document",
    "sign_document",
    "verify",
    "write_private",
]

PUBLIC_KEY = r"^ed25519:[A-Za-z0-9_-]{43}$"
"""What a public key looks like as text."""
LARGEST_DOCUMENT_BYTES = 64 * 1024
"""Of a signed document in its canonical form."""
_LARGEST_FILE_BYTES = 4 * LARGEST_DOCUMENT_BYTES  # people like theirs indented
_SIGNATURE = re.compile(r"[A-Za-z0-9_-]{86}")
_NODE_KEY = re.compile(r"ecdsa-sha2-nistp384 ([A-Za-z0-9+/]{182}==)")
_NODE_KEY_START = b"\0\0\0\x13ecdsa-sha2-nistp384\0\0\0\x08nistp384\0\0\0\x61\x04"
_SMALL_ORDER = frozenset(
    bytes.fromhex(point)
    for point in (
        "00" * 32,
        "01" + "00" * 31,
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        "ec" + "ff" * 30 + "7f",
        "ed" + "ff" * 30 + "7f",
        "ee" + "ff" * 30 + "7f",
    )
)
"""Public keys (but for the sign bit) under which one signature fits many messages: anybody could sign for them."""


def canonical_json(value: Any) -> bytes:
    """The one form of a JSON value that is hashed and signed: sorted keys, no white space, UTF-8, no NaN.

    Raises ValueError for numbers that are not finite, text that is not Unicode, and what is nested too deep or in
    itself; TypeError for what is no JSON value.

    >>> canonical_json({"b": [1, 2.5], "a": None})
    b'{"a":null,"b":[1,2.5]}'
    """
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
    except RecursionError:
        raise ValueError("nested too deep for JSON") from None


def _message(purpose: str, value: Any) -> bytes:
    return b"eucaim_fl " + purpose.encode() + b"\n" + canonical_json(value)


def _text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _bytes(text: str) -> bytes:
    """The bytes of base64url text. Only one text stands for them: the last character's spare bits must be zero."""
    raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    if _text(raw) != text:
        raise ValueError("not in canonical form")
    return raw


def _public(text: str) -> Ed25519PublicKey:
    if not re.fullmatch(PUBLIC_KEY, text):
        raise ValueError("not a public key")
    raw = _bytes(text.removeprefix("ed25519:"))
    if raw[:31] + bytes([raw[31] & 0x7F]) in _SMALL_ORDER:
        raise ValueError("a key that anybody can sign for")
    return Ed25519PublicKey.from_public_bytes(raw)


def _load(path: Path) -> object:
    """The key in a PEM file, None if it holds none; refuses a file that others can read."""
    try:
        mode = path.stat().st_mode
        raw = path.read_bytes()
    except OSError as problem:
        raise KeyFileError(
            "A key file can't be read.", fix="Check its name and owner.", local_detail=f"{path}: {problem.strerror}"
        ) from None
    if stat.S_IMODE(mode) & 0o077:
        raise KeyFileError("A key file can be read by others.", fix="Run `chmod 600` on it.", local_detail=str(path))
    try:
        return load_pem_private_key(raw, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return None


class PrivateKey:
    """A signing key. It is made where it is used and never sent."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public = "ed25519:" + _text(key.public_key().public_bytes_raw())

    @classmethod
    def create(cls) -> PrivateKey:
        """A new random key."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def load(cls, path: Path) -> PrivateKey:
        """Read a key file.

        Raises KeyFileError if it is missing, no Ed25519 key, or readable by others than its owner.
        """
        key = _load(path)
        if not isinstance(key, Ed25519PrivateKey):
            raise KeyFileError("A key file holds no Ed25519 key.", local_detail=str(path))
        return cls(key)

    def save(self, path: Path) -> None:
        """Write the key to a new file that only its owner reads. Raises KeyFileError if it exists or can't be made."""
        write_private(path, self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))

    def sign(self, purpose: str, value: Any) -> str:
        """A signature over a JSON value for one purpose, as base64url text.

        >>> key = PrivateKey.create()
        >>> verify(key.public, "example", {"a": 1}, key.sign("example", {"a": 1}))
        True
        """
        return _text(self._key.sign(_message(purpose, value)))


def verify(public: str, purpose: str, value: Any, signature: str) -> bool:
    """Whether `signature` is that of `public` over this value for this purpose; malformed input is simply False.

    So is a key of small order, for which anybody could sign, and any second spelling of a key or signature.
    """
    if not _SIGNATURE.fullmatch(signature):
        return False
    try:
        _public(public).verify(_bytes(signature), _message(purpose, value))
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


class SignedDocument(NamedTuple):
    """What a document says, by whose key, and whether the signature fits. If it does not, nothing in it is true."""

    body: dict[str, Any]
    key: str
    fits: bool


def sign_document(purpose: str, body: Mapping[str, Any], key: PrivateKey) -> dict[str, Any]:
    """A JSON object that says `body`, signed for `purpose`, which also is the name that `body` has in it.

    >>> sorted(sign_document("example", {"a": 1}, PrivateKey.create()))
    ['example', 'key', 'schema', 'signature']
    """
    document = {"schema": f"eucaim-fl-{purpose}/1", purpose: dict(body), "key": key.public}
    return {**document, "signature": key.sign(purpose, document)}


def open_document(purpose: str, document: object, error: type[ConfigError]) -> SignedDocument:
    """What a document from elsewhere says; `body` is still to be checked, and `fits` to be asked.

    Raises the error given if it has other keys, other kinds of values, or more than `LARGEST_DOCUMENT_BYTES`.
    """
    names = {"schema", purpose, "key", "signature"}
    if not isinstance(document, dict) or document.keys() != names:
        raise error(f"The {purpose} is not a signed {purpose}.", fix="Is it the right file?")
    try:
        size = len(canonical_json(document))
    except (ValueError, TypeError):
        raise error(f"The {purpose} is not JSON.") from None
    if size > LARGEST_DOCUMENT_BYTES:
        raise error(f"The {purpose} is longer than {LARGEST_DOCUMENT_BYTES} bytes.")
    if document["schema"] != f"eucaim-fl-{purpose}/1":
        raise error(f"The {purpose} is of another version.", fix="Use the same eucaim_fl on both ends.")
    body, key, signature = document[purpose], document["key"], document["signature"]
    if not (isinstance(body, dict) and isinstance(key, str) and isinstance(signature, str)):
        raise error(f"The {purpose} has values of the wrong kind.")
    unsigned = {name: value for name, value in document.items() if name != "signature"}
    return SignedDocument(body, key, verify(key, purpose, unsigned, signature))


def load_document(path: Path, purpose: str, error: type[ConfigError]) -> object:
    """The JSON value in a file, not checked yet. `purpose` names it in errors.

    Raises the error given if it is missing, can't be read, is too long, or holds no JSON.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST_FILE_BYTES + 1)
    except OSError as problem:
        raise error(
            f"The file of the {purpose} can't be read.",
            fix="Check its name and permissions.",
            local_detail=f"{path}: {problem.strerror}",
        ) from None
    if len(content) > _LARGEST_FILE_BYTES:
        raise error(f"The file of the {purpose} is too long.", fix="Is it the right file?", local_detail=str(path))
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        raise error(
            f"The file of the {purpose} holds no JSON.", fix="Is it the right file?", local_detail=str(path)
        ) from None


def _groups(raw: bytes) -> str:
    digest = hashlib.sha256(raw).hexdigest()[:32]
    return " ".join(digest[i : i + 4] for i in range(0, 32, 4))


def fingerprint(public: str) -> str:
    """A public key's SHA-256 in groups of four, to be compared over the telephone.

    >>> len(fingerprint("ed25519:" + "A" * 43))
    39
    """
    return _groups(public.encode())


def new_node_key(path: Path) -> str:
    """Make the ECDSA P-384 key with which a site's client logs in; returns the public key as an OpenSSH line.

    The private key goes into a new PEM file (PKCS8, mode 0600). Raises KeyFileError if it exists or can't be made.
    """
    key = generate_private_key(SECP384R1())
    write_private(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return _ssh_line(key)


def node_key_line(path: Path) -> str:
    """The public key of a client's key file, as an OpenSSH line.

    Raises KeyFileError if it is missing, no ECDSA P-384 key, or readable by others than its owner.
    """
    key = _load(path)
    if not isinstance(key, EllipticCurvePrivateKey) or not isinstance(key.curve, SECP384R1):
        raise KeyFileError("A key file holds no ECDSA P-384 key.", local_detail=str(path))
    return _ssh_line(key)


def is_node_key(text: str) -> bool:
    """Whether this is the public key with which a node logs in: `ecdsa-sha2-nistp384`, a space, base64; no comment.

    The point must lie on the curve P-384.
    """
    found = _NODE_KEY.fullmatch(text)
    raw = base64.b64decode(found[1]) if found else b""
    if not found or base64.b64encode(raw).decode() != found[1] or not raw.startswith(_NODE_KEY_START):
        return False
    try:
        key = load_ssh_public_key(text.encode())
    except (ValueError, UnsupportedAlgorithm):
        return False
    return isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP384R1)


def _ssh_line(key: EllipticCurvePrivateKey) -> str:
    return key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


@dataclass(frozen=True)
class CertificateFacts:
    """What people compare and check of a certificate. Times are UTC; names are those it is valid for.

    fingerprint: SHA-256 of the whole certificate, in the form of `fingerprint`.
    """

    not_before: datetime
    not_after: datetime
    names: tuple[str, ...]
    fingerprint: str


def certificate_facts(pem: bytes) -> CertificateFacts:
    """What an X.509 certificate says of itself; of several in the text the first. Nothing of it is verified.

    Raises KeyFileError if there is no certificate in PEM form.
    """
    from cryptography import x509  # a tenth of a second that most commands need not spend

    try:
        certificate = x509.load_pem_x509_certificate(pem)
        der = certificate.public_bytes(Encoding.DER)
        try:
            extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except x509.ExtensionNotFound:
            names: list[str] = []
        else:
            addresses = extension.get_values_for_type(x509.IPAddress)
            names = [*extension.get_values_for_type(x509.DNSName), *map(str, addresses)]
        return CertificateFacts(
            certificate.not_valid_before_utc, certificate.not_valid_after_utc, tuple(names), _groups(der)
        )
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.DuplicateExtension):
        raise KeyFileError("This is no certificate in PEM form.", fix="Ask for the file again.") from None


def write_private(path: Path, content: bytes) -> None:
    """Write a new file with mode 0600, whole or not at all.

    Raises KeyFileError if it exists already or can't be made: a key is never replaced silently.
    """
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as problem:
        there = isinstance(problem, FileExistsError)
        raise KeyFileError(
            "A key file can't be made.",
            fix="Keys are never replaced: move the old one away first, if that is what you want."
            if there
            else "Does its folder exist, and may you write there?",
            local_detail=f"{path}: {problem.strerror}",
        ) from None
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as problem:
        path.unlink(missing_ok=True)
        raise KeyFileError(
            "A key file can't be written.", fix="Is the disk full?", local_detail=f"{path}: {problem.strerror}"
        ) from None
    if stat.S_IMODE(path.stat().st_mode) != 0o600:  # a umask can only narrow it
        path.chmod(0o600)


def load_node_key(path: Path) -> tuple[EllipticCurvePrivateKey, bytes]:
    """The key with which a site logs in, and its public half as PEM.

    Raises KeyFileError if it is missing, no P-384 key, or readable by others than its owner.
    """
    key = _load(path)
    if not isinstance(key, EllipticCurvePrivateKey) or not isinstance(key.curve, SECP384R1):
        raise KeyFileError("A key file holds no P-384 key.", local_detail=str(path))
    return key, key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
