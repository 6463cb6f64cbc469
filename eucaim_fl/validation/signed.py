"""A site's signature over what it tells of frozen models: what is signed, and whether a signature fits.

The site's border signs plan, site and record as canonical JSON, so that whoever has the report and the site's public
key can check both without any server. A record is signed as it is after it was read: white space, and whether a whole
number stands as 12 or 12.0, change nothing.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter

from eucaim_fl.errors import SealError
from eucaim_fl.signing import canonical_json, verify
from eucaim_fl.validation.record import ValidationRecord

__all__ = ["PURPOSE", "RECORD", "RecordSignature", "fits", "record_sha256", "signed_by", "statement"]

PURPOSE = "validation"
"""What the signature is made for."""
RECORD: TypeAdapter[ValidationRecord] = TypeAdapter(ValidationRecord)
"""Between a record and its JSON value."""


@dataclass(frozen=True)
class RecordSignature:
    """key: the site's public key (see `eucaim_fl.signing`). signature: over `statement` of the site's record."""

    key: str
    signature: str


def statement(record: ValidationRecord) -> dict[str, Any]:
    """What a site signs, as a JSON value: the plan's hash, the site's name, the record."""
    value = RECORD.dump_python(record, mode="json")
    return {"plan_sha256": record.plan_sha256, "site": record.site, "record": value}


def record_sha256(record: ValidationRecord) -> str:
    """SHA-256 of the canonical JSON of `statement`, in hexadecimal; the site's audit log has it, too."""
    return hashlib.sha256(canonical_json(statement(record))).hexdigest()


def fits(record: ValidationRecord, signed: RecordSignature) -> bool:
    """Whether a signature is that of its own key over this record; whose key it is, is another question."""
    return verify(signed.key, PURPOSE, statement(record), signed.signature)


def signed_by(record: ValidationRecord, signature: str, key: str) -> RecordSignature:
    """The signature of a record that has just come, by the key of the site that was asked.

    Raises SealError if there is none, or it is not that key's over this very record.
    """
    found = RecordSignature(key, signature)
    if not signature:
        raise SealError("The site's record is not signed.", fix="Does it run the same version of the software?")
    if not fits(record, found):
        raise SealError("The signature of the site's record is not that of the site's key over this record.")
    return found
