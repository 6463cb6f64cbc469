"""The chain of a site's log as pure functions: how records are hashed and signed, and what is wrong with them.

A record's hash covers the site's name and the hash of the record before it; the site's key signs the hash. The first
record follows a hash over the site's name and public key, so that the log of another site can't stand in its place.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from pydantic import JsonValue

from eucaim_fl.signing import PrivateKey, canonical_json, verify
from eucaim_fl.site.log_kind import AUDIT, LogKind

__all__ = [
    "LARGEST_BODY_BYTES",
    "SCHEMA",
    "AuditRecord",
    "ChainCheck",
    "Head",
    "LogIdentity",
    "Witness",
    "read_head",
    "seal_record",
    "sign_head",
]

SCHEMA = AUDIT.schema
LARGEST_BODY_BYTES = 64 * 1024
"""Of one record's body as canonical JSON."""
_KIND = re.compile(r"[a-z][a-z_]{0,31}")
_HASH = re.compile(r"[0-9a-f]{64}")
_MOST_FAULTS = 50
_SENTENCES = {
    "unreadable": ("{0} can't be read as a record.", "{0} can't be read as records."),
    "changed": (
        "{0} was changed: its content does not fit its hash.",
        "{0} were changed: their contents do not fit their hashes.",
    ),
    "signature": ("{0} is not signed by this site's key.", "{0} are not signed by this site's key."),
    "link": (
        "{0} does not follow the record before it: something was changed, removed, inserted or put in another order.",
        "{0} do not follow the records before them: something was changed, removed, inserted or put in another order.",
    ),
    "first": ("{0} does not begin the {1} of this site and this key.", "{0} do not begin the {1} of this site."),
    "missing": ("{0} is missing.", "{0} are missing."),
    "twice": (
        "{0} stands in the {1} twice or in the wrong place.",
        "{0} stand in the {1} twice or in the wrong place.",
    ),
}


@dataclass(frozen=True)
class Head:
    """The end of a log: its number of records, and the hash (64 hexadecimal digits) of the last one."""

    count: int
    hash: str


@dataclass(frozen=True)
class Witness:
    """A head that somebody kept: the log itself in its signed head, or (`coordinator`) who else keeps heads of it."""

    head: Head
    by: Literal["head", "coordinator"]


@dataclass(frozen=True)
class AuditRecord:
    """One record. seq: 1, 2, … time: UTC, ISO 8601 with microseconds. previous: hash of the record before it."""

    seq: int
    time: str
    kind: str
    body: Mapping[str, JsonValue]
    previous: str
    hash: str
    signature: str


@dataclass(frozen=True)
class LogIdentity:
    """Whose log it is: the site's name and its public key; and which log."""

    site: str
    public: str
    kind: LogKind = AUDIT

    @property
    def start(self) -> Head:
        """The head of the empty log, which the first record follows."""
        value = {"schema": self.kind.schema, "site": self.site, "key": self.public}
        return Head(0, hashlib.sha256(canonical_json(value)).hexdigest())

    def hash_of(self, record: AuditRecord) -> str:
        """SHA-256 over the canonical JSON of site, seq, time, kind, body and previous hash."""
        value = {
            "site": self.site,
            "seq": record.seq,
            "time": record.time,
            "kind": record.kind,
            "body": record.body,
            "previous": record.previous,
        }
        return hashlib.sha256(canonical_json(value)).hexdigest()


def seal_record(
    key: PrivateKey,
    site: str,
    head: Head,
    time: str,
    kind: str,
    body: Mapping[str, JsonValue],
    log: LogKind = AUDIT,
) -> AuditRecord:
    """The record that follows `head`, hashed and signed.

    Raises AuditError (or its like) if the kind is no word of lower-case letters, or the body no JSON or above 64 KiB.
    """
    try:
        size = len(canonical_json(dict(body)))
    except (TypeError, ValueError, RecursionError):
        raise log.error(f"What should be written into the {log.name} is no JSON.") from None
    if size > LARGEST_BODY_BYTES or _KIND.fullmatch(kind) is None:
        raise log.error(f"What should be written into the {log.name} is too large, or its kind is no word.")
    bare = AuditRecord(head.count + 1, time, kind, dict(body), head.hash, "", "")
    digest = LogIdentity(site, key.public, log).hash_of(bare)
    return AuditRecord(bare.seq, time, kind, bare.body, head.hash, digest, key.sign(log.record_purpose, digest))


def sign_head(key: PrivateKey, site: str, head: Head, time: str, log: LogKind = AUDIT) -> bytes:
    """The content of the head's file."""
    value = {"schema": log.schema, "site": site, "count": head.count, "hash": head.hash, "time": time}
    signature = key.sign(log.head_purpose, value)
    return json.dumps({**value, "signature": signature}, indent=2, sort_keys=True).encode() + b"\n"


def read_head(raw: bytes, identity: LogIdentity) -> Head | None:
    """The head that `sign_head` wrote for this site with this key; None if it is anything else."""
    try:
        value = json.loads(raw)
        signature = value.pop("signature")
        fits = isinstance(signature, str) and verify(identity.public, identity.kind.head_purpose, value, signature)
        if fits and value["schema"] == identity.kind.schema and value["site"] == identity.site:
            return Head(int(value["count"]), str(value["hash"]))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        pass
    return None


class _Faults:
    """Sentences with numbers of records; a run of numbers with the same fault is one sentence."""

    def __init__(self, short: str) -> None:
        self._short = short
        self._found: list[tuple[str, int, int]] = []
        self._open: dict[str, int] = {}
        self._more = 0

    def add(self, what: str, first: int, last: int) -> None:
        """Note a fault of records first…last, or a whole sentence that has no numbers."""
        place = self._open.get(what)
        if place is not None and self._found[place][2] + 1 == first:
            self._found[place] = (what, self._found[place][1], last)
        elif len(self._found) == _MOST_FAULTS:
            self._more += 1
        else:
            self._open[what] = len(self._found)
            self._found.append((what, first, last))

    def sentences(self) -> tuple[str, ...]:
        """At most 50 sentences, and one that says how many more there are."""
        texts = []
        for what, first, last in self._found:
            one, many = _SENTENCES.get(what, (what, what))
            records = f"Record {first}" if first == last else f"Records {first} to {last}"
            texts.append((one if first == last else many).format(records, self._short))
        return (*texts, *([f"There are {self._more} more faults."] if self._more else []))


class ChainCheck:
    """Takes a log's rows in their order and says what is wrong; its memory does not grow with their number.

    after: the head that the first row must follow; None: the log's start. witnesses: heads that must be found.
    signatures: of every record, or of the last one alone, which vouches for all records that chain up to it.
    """

    def __init__(
        self,
        identity: LogIdentity,
        witnesses: Iterable[Witness] = (),
        after: Head | None = None,
        *,
        signatures: Literal["every", "last"] = "every",
    ) -> None:
        start = after or identity.start
        short = identity.kind.short
        self._names = {"head": f"the {short}'s signed head", "coordinator": identity.kind.keeper}
        self._identity, self._faults = identity, _Faults(short)
        self._every = signatures == "every"
        self._last: AuditRecord | None = None
        self._witnesses: dict[int, list[Witness]] = {}
        self._largest: dict[str, int] = {}
        for witness in witnesses:
            count = witness.head.count
            self._largest[witness.by] = max(count, self._largest.get(witness.by, 0))
            if count > start.count or after is None:
                self._witnesses.setdefault(count, []).append(witness)
        self.count = start.count
        self._hash: str | None = start.hash
        self._ask_witnesses()

    def take(self, row: tuple[object, ...]) -> None:
        """One row: seq, time, kind, body as text, previous, hash, signature; anything may stand in it."""
        seq = row[0] if row and isinstance(row[0], int) else None
        if seq is not None and seq <= self.count:
            self._faults.add("twice", seq, seq)
            return
        gap = seq is not None and seq > self.count + 1
        if gap:
            self._faults.add("missing", self.count + 1, (seq or 0) - 1)
        number = self.count + 1 if seq is None else seq
        read = _readable(row)
        if read is None:
            self._faults.add("unreadable", number, number)
            self.count, self._hash = number, None
        else:
            record, sound = read
            self._judge(record, sound=sound, linked=gap or self._hash in (None, record.previous))
            self.count, self._hash = number, record.hash
        self._ask_witnesses()

    def faults(self) -> tuple[str, ...]:
        """Everything found, in plain words; () if all is well. To be asked once, after the last row."""
        if self._last is not None and not self._every:
            self._ask_signature(self._last)
        short = self._identity.kind.short
        for by, largest in self._largest.items():
            if largest > self.count:
                self._faults.add(
                    f"The {short} ends with record {self.count}, but {self._names[by]} knows of {largest}: "
                    f"the end was removed, or the {short} was replaced.",
                    0,
                    0,
                )
        return self._faults.sentences()

    def _judge(self, record: AuditRecord, *, sound: bool, linked: bool) -> None:
        number = record.seq
        if not linked:
            self._faults.add("link" if number > 1 else "first", number, number)
        try:
            fits = sound and self._identity.hash_of(record) == record.hash
        except (TypeError, ValueError, RecursionError):
            fits = False
        if not fits:
            self._faults.add("changed", number, number)
        self._last = record
        if self._every:
            self._ask_signature(record)

    def _ask_signature(self, record: AuditRecord) -> None:
        identity = self._identity
        if not verify(identity.public, identity.kind.record_purpose, record.hash, record.signature):
            self._faults.add("signature", record.seq, record.seq)

    def _ask_witnesses(self) -> None:
        """Compare the record at hand with what was kept of it; those that were passed are not needed any more."""
        for witness in self._witnesses.pop(self.count, []):
            if self._hash is not None and witness.head.hash != self._hash:
                self._faults.add(
                    f"Record {self.count} is not the one that {self._names[witness.by]} knows: "
                    f"the {self._identity.kind.short} was rebuilt or replaced.",
                    0,
                    0,
                )


def _readable(row: tuple[object, ...]) -> tuple[AuditRecord, bool] | None:
    """The record in a row whose fields have the right types, and whether its body is canonical JSON."""
    if len(row) != 7:
        return None
    seq, time, kind, text, previous, digest, signature = row
    if not isinstance(seq, int) or not isinstance(text, str):
        return None
    if not (isinstance(time, str) and isinstance(kind, str) and isinstance(previous, str)):
        return None
    if not (isinstance(digest, str) and isinstance(signature, str) and _HASH.fullmatch(digest)):
        return None
    try:
        body = json.loads(text)
        sound = isinstance(body, dict) and canonical_json(body) == text.encode()
    except (ValueError, TypeError, RecursionError):
        sound = False
    return AuditRecord(seq, time, kind, body if sound else {}, previous, digest, signature), sound
