"""Whether a validation's report is what its hospitals told: checked offline, from the report and public keys alone.

What can't be seen: that a hospital's figures are true, and that a hospital whose record was left out had answered. So
the sites without a record are named.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from eucaim_fl.errors import DataError, EucaimError, PlanError, ReplyError, ReportError
from eucaim_fl.plan import FederationPlan
from eucaim_fl.signing import fingerprint
from eucaim_fl.validation.analysis import analyse
from eucaim_fl.validation.document import (
    ReportDocument,
    about_of,
    page_of,
    plan_of,
    read_document,
    used_software,
)
from eucaim_fl.validation.page.blocks import joined
from eucaim_fl.validation.record import ValidationRecord, check_record
from eucaim_fl.validation.signed import fits, record_sha256

__all__ = ["Check", "Verification", "verify_report"]

_NOT_LOOKED_AT = "not looked at, because of what is wrong above"


@dataclass(frozen=True)
class Check:
    """One thing that was looked at. state: it `holds`; it `fails`; it is `open`, which is no better where the report is
    to be relied on; or it is a `note` of what nobody can check. site: whose, where it is one site's."""

    what: Literal["file", "plan", "record", "signature", "sites", "result", "circumstances", "page"]
    state: Literal["holds", "fails", "open", "note"]
    said: str
    site: str = ""


@dataclass(frozen=True)
class Verification:
    """All that was looked at. records: site → SHA-256 of what it signed, as its own audit log has it, too."""

    checks: tuple[Check, ...]
    records: Mapping[str, str]

    @property
    def holds(self) -> bool:
        """Whether nothing failed, and nothing was left open."""
        return all(check.state in ("holds", "note") for check in self.checks)

    @property
    def vouched(self) -> bool:
        """Whether every record bears a signature by a key that the caller gave."""
        return bool(self.signatures) and all(check.state == "holds" for check in self.signatures)

    @property
    def signatures(self) -> tuple[Check, ...]:
        """What was found of the signatures."""
        return tuple(check for check in self.checks if check.what == "signature")


def verify_report(
    content: bytes, keys: Mapping[str, Collection[str]] | None = None, page: bytes | None = None
) -> Verification:
    """Look at a report as if everything in it were forged.

    content: bytes of report.json. keys: site → its public keys, from who vouches for them; with them every record must
    bear a signature by one of its site's. Without them a signature is compared with the key beside it, which shows
    damage, but no forger. page: bytes of report.html, if that is to belong to it.
    """
    try:
        document = read_document(content)
    except ReportError as problem:
        where = f" ({_printable(problem.local_detail)})" if problem.local_detail else ""
        return Verification((Check("file", "fails", f"{problem.message}{where}"),), {})
    plan, checks = _plan(document)
    records, told = _records(document, plan)
    checks += [*told, *_signatures(document, keys), *_sites(document)]
    result = _result(document, plan if records else None)
    checks.append(result)
    if plan is not None:
        checks += _circumstances(document, plan)
    if page is not None:
        checks.append(_page(content, page, document, result))
    printable = tuple(replace(check, said=_printable(check.said)) for check in checks)
    return Verification(printable, {record.site: record_sha256(record) for record in document.records})


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _plan(document: ReportDocument) -> tuple[FederationPlan | None, list[Check]]:
    found = [Check("file", "holds", "a report of a validation, in the form that this software writes")]
    try:
        plan = plan_of(document)
    except PlanError as problem:
        return None, [*found, Check("plan", "fails", f"it can't be used: {problem}")]
    if plan.sha256() != document.plan_sha256 or document.result.plan_sha256 != document.plan_sha256:
        said = f"it is not the one that the report names: its SHA-256 is {plan.sha256()}, not {document.plan_sha256}"
        return None, [*found, Check("plan", "fails", said)]
    if plan.validation is None:
        return None, [*found, Check("plan", "fails", "it asks for no validation")]
    return plan, [*found, Check("plan", "holds", f"it is the one that the report names, SHA-256 {plan.sha256()}")]


def _records(document: ReportDocument, plan: FederationPlan | None) -> tuple[bool, list[Check]]:
    """Whether all records can be analysed, and what is to be said of each."""
    found: list[Check] = []
    names = [record.site for record in document.records]
    if names != sorted(set(names)):
        found.append(Check("record", "fails", "sites stand twice, or not in the order of their names"))
    for record in document.records:
        if plan is None:
            found.append(Check("record", "open", _NOT_LOOKED_AT, record.site))
            continue
        try:
            check_record(record, plan)
        except ReplyError as problem:
            found.append(Check("record", "fails", problem.message, record.site))
        else:
            said = f"one that a site of the plan can have told, SHA-256 {record_sha256(record)}"
            found.append(Check("record", "holds", said, record.site))
    return bool(names) and all(check.state == "holds" for check in found), found


def _signatures(document: ReportDocument, keys: Mapping[str, Collection[str]] | None) -> list[Check]:
    found = [_signature(document, record, keys) for record in document.records]
    told = {record.site for record in document.records}
    alone = sorted(set(document.signatures) - told)
    return [*found, *(Check("signature", "fails", "there is one, but no record of it", site) for site in alone)]


def _signature(document: ReportDocument, record: ValidationRecord, keys: Mapping[str, Collection[str]] | None) -> Check:
    site, signed = record.site, document.signatures.get(record.site)
    if signed is None:
        if keys is not None or document.signatures:
            return Check("signature", "fails", "there is none", site)
        return Check("signature", "note", "there is none: sites of a run on one machine have no keys", site)
    if not fits(record, signed):
        return Check("signature", "fails", "it does not fit the record: one of them was changed", site)
    known = () if keys is None else keys.get(site, ())
    if signed.key in known:
        return Check("signature", "holds", f"it fits, by the key on file ({fingerprint(signed.key)})", site)
    if known:
        said = f"it is by another key than the one on file ({fingerprint(signed.key)})"
        return Check("signature", "fails", said, site)
    said = f"it fits the key in the report ({fingerprint(signed.key)}), but nobody vouches for that key"
    return Check("signature", "note" if keys is None else "open", said, site)


def _sites(document: ReportDocument) -> list[Check]:
    told = {record.site for record in document.records}
    silent = [line.site for line in document.result.sites if line.site not in told]
    if not silent:
        return []
    said = f"no record of {joined(silent)}. Whether they did not answer, or were left out, only they can say"
    return [Check("sites", "note", said)]


def _result(document: ReportDocument, plan: FederationPlan | None) -> Check:
    if plan is None:
        return Check("result", "open", _NOT_LOOKED_AT)
    try:
        again = analyse(plan, document.records, seed=plan.seed)
    except (DataError, ReplyError) as problem:
        return Check("result", "fails", f"it can't be computed from the records: {problem.message}")
    except (ArithmeticError, ValueError):
        return Check("result", "fails", "it can't be computed from the records")
    if again == document.result:
        return Check("result", "holds", "every number follows from the records, to the bit")
    numbers, place = _difference(document.result.model_dump(mode="json"), again.model_dump(mode="json"))
    said = f"it is not what follows from the records: {numbers} values differ, the first at {place}"
    return Check("result", "fails" if document.software == used_software() else "open", said + _versions(document))


def _versions(document: ReportDocument) -> str:
    """What is said where the report comes from other software, which may compute or draw otherwise."""
    here = used_software()
    if document.software == here:
        return ""
    other = ", ".join(f"{name} {document.software.get(name, '?')}" for name in here)
    ours = ", ".join(f"{name} {version}" for name, version in here.items())
    return f". It says that it was made by {other}; this is {ours}. Compare with the same versions"


def _difference(stated: Any, found: Any, place: str = "result") -> tuple[int, str]:
    """How many values differ, and the first of them with both."""
    if isinstance(stated, dict) and isinstance(found, dict):
        names = dict.fromkeys([*found, *stated])
        inner = [_difference(stated.get(name), found.get(name), f"{place}.{name}") for name in names]
    elif isinstance(stated, list) and isinstance(found, list) and len(stated) == len(found):
        inner = [
            _difference(*both, f"{place}[{number}]") for number, both in enumerate(zip(stated, found, strict=True))
        ]
    elif stated == found:
        return 0, ""
    else:
        return 1, f"{place}: {_shown(stated)} in the report, {_shown(found)} from the records"
    return sum(count for count, _ in inner), next((said for count, said in inner if count), "")


def _shown(value: Any) -> str:
    if isinstance(value, float) and math.isfinite(value):
        return repr(value)
    if isinstance(value, dict | list):
        return f"{len(value)} entries"
    return ascii(value)[:80]


def _circumstances(document: ReportDocument, plan: FederationPlan) -> list[Check]:
    """What only the coordinator says, and what speaks against a plan that was fixed before any result was seen."""
    facts = document.circumstances
    about = about_of(document, plan)
    said = f"registered {about.fixed_at}" if about.fixed_at else "when the plan was registered is not on record"
    came = f", first record {about.first_seen_at}" if about.first_seen_at else ""
    state: Literal["fails", "note"] = "note"
    if facts.registered and facts.registered != plan.sha256():
        state = "fails"
    found = [Check("circumstances", state, f"{said}{came}, by the coordinator's own clock")]
    return [*found, *(Check("circumstances", "note", sentence.rstrip(".")) for sentence in about.changes)]


def _page(content: bytes, page: bytes, document: ReportDocument, result: Check) -> Check:
    if result.state != "holds":  # nothing is drawn from figures that are not known to be some
        return Check("page", "open", _NOT_LOOKED_AT)
    digest = hashlib.sha256(content).hexdigest()
    try:
        again = page_of(content).encode()
    except EucaimError as problem:
        return Check("page", "fails", f"none can be made from this report: {problem.message}")
    if again == page:
        return Check("page", "holds", "it is the one that this report gives, to the bit")
    if digest.encode() not in page:
        return Check("page", "fails", f"it does not name this report (SHA-256 {digest})")
    state: Literal["fails", "open"] = "fails" if document.software == used_software() else "open"
    return Check("page", state, f"it names this report, but is not the one that it gives{_versions(document)}")
