"""How a hospital joins: an invitation signed by the coordinator, and a request signed by the site that answers it.

Both are small JSON files that people hand over. Private keys are made at the site and stay there; a request bears
public keys only. The invitation's token shows that the request comes from whoever was invited; the fingerprints of both
keys are compared by people, over the telephone.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
import re
import secrets
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, TypeVar

from pydantic import AfterValidator, AwareDatetime, Field, JsonValue

from eucaim_fl.errors import EnrolmentError
from eucaim_fl.parsing import SITE_NAME, Config, parse
from eucaim_fl.signing import PUBLIC_KEY, PrivateKey, canonical_json, is_node_key, open_document, sign_document

__all__ = [
    "Invitation",
    "Request",
    "check_request",
    "invitation_record",
    "invite",
    "new_token",
    "read_invitation",
    "read_request",
    "request",
]

_LARGEST_CA_BYTES = 32 * 1024
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_HOST = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_ADDRESS = re.compile(r"(?:\[(?P<six>[0-9A-Fa-f:.]{2,45})\]|(?P<host>[A-Za-z0-9.-]{1,253})):(?P<port>[1-9][0-9]{0,4})")
_CERTIFICATE = re.compile(
    r"-----BEGIN CERTIFICATE-----\n((?:[A-Za-z0-9+/]{1,76}={0,2}\n)+)-----END CERTIFICATE-----(?:\n|\Z)"
)
_USED_KEYS = ("site_key", "node_key")
_UNKNOWN_TOKEN = "Nobody was invited with this token."  # noqa: S105  a sentence, no secret


def _address(text: str) -> str:
    """The text, if it is host:port; a host is a name, an IPv4 address, or an IPv6 address in brackets."""
    found = _ADDRESS.fullmatch(text)
    if found is None or int(found["port"]) > 65_535:
        raise ValueError("must be host:port, with an IPv6 address in brackets")
    try:
        if found["six"]:
            ipaddress.IPv6Address(found["six"])
        elif re.fullmatch(r"[0-9.]+", found["host"]):
            ipaddress.IPv4Address(found["host"])
    except ValueError:
        raise ValueError("must be host:port, and this is no IP address") from None
    if found["host"] and not _HOST.fullmatch(found["host"]):
        raise ValueError("must be host:port, with a host name of letters, digits, hyphens and dots")
    return text


def _certificates(text: str) -> str:
    """The text, if it holds one certificate or several in PEM form, and nothing else (above all no private key)."""
    if len(text) > _LARGEST_CA_BYTES:
        raise ValueError(f"is longer than {_LARGEST_CA_BYTES} bytes")
    place = 0
    while place < len(text) or not text:
        found = _CERTIFICATE.match(text, place)
        if found is None or base64.b64decode(found[1].replace("\n", ""), validate=True)[:1] != b"\x30":
            raise ValueError("must be certificates in PEM form, and nothing else")
        place = found.end()
    return text


def _node_key(text: str) -> str:
    if not is_node_key(text):
        raise ValueError("must be an OpenSSH public key of the kind ecdsa-sha2-nistp384, without a comment")
    return text


_Name = Annotated[str, Field(pattern=SITE_NAME)]
_PublicKey = Annotated[str, Field(pattern=PUBLIC_KEY)]
_Token = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{43}$")]
_Moment = Annotated[
    AwareDatetime,
    Field(ge=datetime(2000, 1, 1, tzinfo=UTC), lt=datetime(2200, 1, 1, tzinfo=UTC)),
    AfterValidator(lambda moment: moment.astimezone(UTC)),
]


class Invitation(Config):
    """What a site needs to find the coordinator and to know it again. It is secret until it is used.

    federation: its name. site: the name that the site will have. address: host:port, the one address that the site
    connects to. ca_pem: the certificate authority of that address. coordinator_key: signs instructions. token: 32
    random bytes that the request repeats. largest_patients: more training patients than this are not believed.
    valid_until: it can be answered before then.
    """

    federation: _Name
    site: _Name
    address: Annotated[str, AfterValidator(_address)]
    ca_pem: Annotated[str, AfterValidator(_certificates)]
    coordinator_key: _PublicKey
    token: _Token
    largest_patients: Annotated[int, Field(ge=1, le=100_000_000)] = 50_000
    valid_until: _Moment


class Request(Config):
    """What a site that was invited tells the coordinator: its public keys.

    node_key: OpenSSH line of the key (ECDSA P-384) with which its client logs in. site_key: signs its replies and its
    audit log, and this request.
    """

    federation: _Name
    site: _Name
    token: _Token
    node_key: Annotated[str, AfterValidator(_node_key)]
    site_key: _PublicKey


C = TypeVar("C", Invitation, Request)


def new_token() -> str:
    """32 random bytes as base64url text.

    >>> len(new_token())
    43
    """
    return secrets.token_urlsafe(32)


def _signed(purpose: str, value: Invitation | Request, own_key: str, key: PrivateKey) -> dict[str, JsonValue]:
    if key.public != own_key:
        raise EnrolmentError(f"The {purpose} names another key than the one that signs it.")
    document = sign_document(purpose, value.model_dump(mode="json"), key)
    open_document(purpose, document, EnrolmentError)
    return document


def _opened(purpose: str, document: object, model: type[C], own_key: str) -> C:
    """The value in a document, if its signature is that of the key named inside it."""
    opened = open_document(purpose, document, EnrolmentError)
    try:
        value = parse(model, opened.body, f"The {purpose}", EnrolmentError)
    except EnrolmentError as problem:  # its message names unknown keys, which may say anything
        raise EnrolmentError(
            f"The {purpose} has unknown or wrong values.",
            fix="Ask for another.",
            local_detail=" ".join(filter(None, (problem.message, problem.local_detail))),
        ) from None
    if canonical_json(value.model_dump(mode="json")) != canonical_json(opened.body):
        raise EnrolmentError(
            f"The {purpose} leaves values out, or writes them in another form.", fix="Ask for another."
        )
    if not opened.fits or opened.key != getattr(value, own_key):
        raise EnrolmentError(
            f"The {purpose}'s signature does not fit: it was altered on its way.", fix="Ask for another."
        )
    return value


def invite(invitation: Invitation, key: PrivateKey) -> dict[str, JsonValue]:
    """The invitation as a document signed with the coordinator's key, for JSON; to be handed over in confidence.

    Raises EnrolmentError if `key` is not the one that the invitation names, or the document is longer than a site
    would read.
    """
    return _signed("invitation", invitation, invitation.coordinator_key, key)


def read_invitation(document: object, now: datetime | None = None) -> Invitation:
    """The invitation in a document. Its signature shows that it is whole, not whose it is: compare the fingerprint.

    now: with a time zone; None does not ask whether it expired, as for a site that has joined already.
    Raises EnrolmentError if it is malformed, altered or expired.
    """
    invitation = _opened("invitation", document, Invitation, "coordinator_key")
    if now is not None and now >= invitation.valid_until:
        raise EnrolmentError("The invitation has expired.", fix="Ask the coordinator for another.")
    return invitation


def request(asked: Request, key: PrivateKey) -> dict[str, JsonValue]:
    """The request as a document signed with the site's key, for JSON.

    Raises EnrolmentError if `key` is not the one that the request names.
    """
    return _signed("request", asked, asked.site_key, key)


def read_request(document: object) -> Request:
    """The request in a document; `check_request` says whether it answers an invitation.

    Raises EnrolmentError if it is malformed or altered.
    """
    return _opened("request", document, Request, "site_key")


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def invitation_record(invitation: Invitation, used_by: Request | None = None) -> dict[str, JsonValue]:
    """What the coordinator keeps of an invitation: not the token, but its SHA-256, so that a copy of it admits nobody.

    used_by: the request that was admitted; None before.
    """
    return {
        "federation": invitation.federation,
        "site": invitation.site,
        "token_sha256": _digest(invitation.token),
        "valid_until": invitation.valid_until.isoformat(),
        "largest_patients": invitation.largest_patients,
        **{name: None if used_by is None else getattr(used_by, name) for name in _USED_KEYS},
    }


def check_request(asked: Request, record: Mapping[str, object], now: datetime) -> tuple[str, ...]:
    """Why a request does not answer the invitation that was recorded, all reasons; () if it does.

    record: as `invitation_record` makes it; further keys are ignored. Empty: there was no invitation. An invitation
    that was used may be answered again with the same keys. now: with a time zone.
    Raises EnrolmentError if the record is damaged.
    """
    if not record:
        return (_UNKNOWN_TOKEN,)
    token = record.get("token_sha256")
    try:
        expired = now >= datetime.fromisoformat(str(record.get("valid_until")))
    except (ValueError, TypeError):
        raise EnrolmentError("The coordinator's record of the invitation is damaged.", fix="Invite again.") from None
    reasons = []
    if not isinstance(token, str) or not hmac.compare_digest(token.encode(), _digest(asked.token).encode()):
        reasons.append(_UNKNOWN_TOKEN)
    if asked.site != record.get("site"):
        reasons.append("The request names another site than was invited.")
    if asked.federation != record.get("federation"):
        reasons.append("The request is for another federation.")
    if expired:
        reasons.append("The invitation has expired.")
    if any(record.get(name) not in (None, getattr(asked, name)) for name in _USED_KEYS):
        reasons.append("The invitation was used already, with another key.")
    return tuple(reasons)
