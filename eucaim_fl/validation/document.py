"""report.json of a validation: the plan, what each site told and signed, every number, and how it came about.

The page is made from these bytes and nothing else, so that whoever has both can see that they belong together.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

import numpy as np
import scipy
from pydantic import Field, JsonValue, NonNegativeInt

from eucaim_fl import __version__
from eucaim_fl.errors import ConfigError, ReportError
from eucaim_fl.parsing import SITE_NAME, Config, parse
from eucaim_fl.plan import FederationPlan, read_plan
from eucaim_fl.signing import fingerprint
from eucaim_fl.validation.analysis import analyse
from eucaim_fl.validation.page import About, Signature, render_validation
from eucaim_fl.validation.record import ValidationRecord
from eucaim_fl.validation.result_schema import ValidationResult
from eucaim_fl.validation.signed import RecordSignature, fits

__all__ = [
    "LARGEST_REPORT_BYTES",
    "Circumstances",
    "CohortFacts",
    "ReportDocument",
    "Told",
    "about_of",
    "make_document",
    "page_of",
    "plan_of",
    "read_document",
    "to_bytes",
    "used_software",
]

LARGEST_REPORT_BYTES = 64 * 2**20
_PLAIN = json.JSONEncoder(allow_nan=False)
_Site = Annotated[str, Field(pattern=SITE_NAME)]
_Hash = Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")]
_Time = Annotated[str, Field(pattern=r"^(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00)?$")]
_Words = Annotated[str, Field(max_length=2**20)]
_CALLED = {"confidential": "confidential", "public": "public", "synthetic": "made up", "": "not said"}
_FIXED_BY = (
    "written into the run's folder before any hospital was asked; by the coordinator's own clock, which nobody else "
    "vouches for"
)
_ALONE = "A run on one machine: its sites are processes of that machine, and have no keys."
_UNSIGNED = "It came without one."


class CohortFacts(Config):
    """What a site said of its cohort before anything was asked: a SHA-256 over its content, cases set aside, rounded
    down."""

    sha256: _Hash = ""
    quarantined: NonNegativeInt = 0


class Circumstances(Config):
    """How a validation came about, in the coordinator's words; no number of the result follows from it.

    registered, registered_at: the plan that was registered before any site was asked, and when. records_came: when the
    first record came; more than one time where sites were asked anew. Times: UTC, ISO 8601; empty is not on record.
    cohorts: by site. provenance: what and value.
    """

    registered: _Hash = ""
    registered_at: _Time = ""
    records_came: tuple[_Time, ...] = Field(default=(), max_length=1000)
    cohorts: dict[_Site, CohortFacts] = Field(default_factory=dict, max_length=10_000)
    provenance: tuple[tuple[_Words, _Words], ...] = Field(default=(), max_length=100)


class ReportDocument(Config):
    """All of report.json. software: versions of what computed the result. plan: as it was fixed, see `plan_of`.

    records: of the sites that answered, in the order of their names. signatures: site → of its record.
    """

    schema_version: Literal[1] = 1
    software: dict[Annotated[str, Field(max_length=40)], Annotated[str, Field(max_length=80)]]
    plan_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    plan: dict[str, JsonValue]
    result: ValidationResult
    records: tuple[ValidationRecord, ...] = Field(max_length=10_000)
    signatures: dict[_Site, RecordSignature]
    circumstances: Circumstances = Circumstances()


@dataclass(frozen=True)
class Told:
    """What came from the sites: their records in the order of their names, and site → signature of its record."""

    records: Sequence[ValidationRecord]
    signatures: Mapping[str, RecordSignature] = field(default_factory=dict)


def used_software() -> dict[str, str]:
    """Versions of what a result's numbers depend on, to the last bit."""
    return {
        "eucaim_fl": __version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "scipy": scipy.__version__,
    }


def make_document(plan: FederationPlan, told: Told, circumstances: Circumstances) -> ReportDocument:
    """Analyse what the sites told, and put everything into one document. Raises what `analysis.analyse` raises."""
    return ReportDocument(
        software=used_software(),
        plan_sha256=plan.sha256(),
        plan=plan.model_dump(mode="json"),
        result=analyse(plan, told.records, seed=plan.seed),
        records=tuple(told.records),
        signatures={site: told.signatures[site] for site in sorted(told.signatures)},
        circumstances=circumstances,
    )


def to_bytes(document: ReportDocument) -> bytes:
    """The document as it is written; what was read from them gives the same bytes.

    What holds nothing but numbers and words, such as a figure, has a line of its own.
    """
    return (_lines(document.model_dump(mode="json")) + "\n").encode()


def read_document(content: bytes) -> ReportDocument:
    """A report that came from elsewhere, as far as its form goes: that anything in it is true is another question.

    Raises ReportError if it is too long, no JSON, of another version, or holds anything unknown, twice or out of
    range.
    """
    if len(content) > LARGEST_REPORT_BYTES:
        raise ReportError(f"The report is longer than {LARGEST_REPORT_BYTES} bytes.")
    try:
        text = content.decode()
        values = json.loads(text, object_pairs_hook=_once, parse_constant=_no_number)
    except (ValueError, RecursionError):
        raise ReportError("The report is no JSON, or names something twice.", fix="Take report.json.") from None
    if not isinstance(values, dict) or values.get("schema_version") != 1:
        raise ReportError("The file is no report of a validation of this version.", fix="Take report.json.")
    try:
        document = _Read.model_validate_json(f'{{"document":{text}}}').document
        known: Any = document.model_dump(mode="json")
    except (ValueError, RecursionError):
        problem = _faults({"document": values})
        raise ReportError("The report has values that a report can't have.", local_detail=problem) from None
    if known != values:
        raise ReportError("The report holds something that no report has.", local_detail=_first_foreign(values, known))
    return document


def plan_of(document: ReportDocument) -> FederationPlan:
    """The plan in a report, checked like one that arrives. Raises what `read_plan` raises."""
    return read_plan(json.dumps(document.plan, sort_keys=True, separators=(",", ":"), ensure_ascii=False))


def about_of(document: ReportDocument, plan: FederationPlan) -> About:
    """What the page tells beside the numbers; all of it follows from the document."""
    facts = document.circumstances
    synthetic = tuple(record.site for record in document.records if record.data_is == "synthetic")
    return About(
        fixed_at=_said(facts.registered_at),
        fixed_by=_FIXED_BY if facts.registered_at else "",
        first_seen_at=_said(facts.records_came[0]) if facts.records_came else "",
        changes=_changes(document, plan),
        signatures=tuple(_signature(document, record) for record in document.records),
        data=tuple(row for record in document.records for row in _data(record, facts.cohorts.get(record.site))),
        provenance=facts.provenance,
        synthetic=synthetic,
    )


def page_of(content: bytes) -> str:
    """The page that belongs to these bytes of report.json, whose SHA-256 stands in it.

    Raises what `read_document`, `plan_of` and `render_validation` raise.
    """
    document = read_document(content)
    plan = plan_of(document)
    about = about_of(document, plan)
    itself = ("report.json, SHA-256", hashlib.sha256(content).hexdigest())
    return render_validation(document.result, plan, replace(about, provenance=(itself, *about.provenance)))


class _Read(Config):
    document: ReportDocument


def _lines(value: Any, margin: str = "\n") -> str:
    """JSON with two spaces before what belongs to a value that holds further ones; margin: what a line begins with."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    if not any(isinstance(one, dict | list) for one in inner):
        return _PLAIN.encode(value)
    deeper = f"{margin}  "
    if isinstance(value, dict):
        parts = [f"{_PLAIN.encode(name)}: {_lines(one, deeper)}" for name, one in value.items()]
        return f"{{{deeper}{f',{deeper}'.join(parts)}{margin}}}"
    return f"[{deeper}{f',{deeper}'.join([_lines(one, deeper) for one in value])}{margin}]"


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands twice")
    return found


def _no_number(_: str) -> float:
    raise ValueError("not a number")


def _faults(values: object) -> str:
    """Where a report is not as it should be, for the terminal of who looks."""
    try:
        parse(_Read, values, "The report", ReportError)
    except ConfigError as problem:
        return problem.message[:500]
    except (ValueError, RecursionError):
        pass
    return ""


def _first_foreign(values: Any, known: Any, place: str = "") -> str:
    if isinstance(values, dict) and isinstance(known, dict):
        for name in values:
            if name not in known:
                return f"{place}.{name}".lstrip(".")[:200]
            if values[name] != known[name]:
                return _first_foreign(values[name], known[name], f"{place}.{name}")
    if isinstance(values, list) and isinstance(known, list):
        for number, (one, other) in enumerate(zip(values, known, strict=False)):
            if one != other:
                return _first_foreign(one, other, f"{place}[{number}]")
    return place.lstrip(".")[:200]


def _said(time: str) -> str:
    """A time as people read it."""
    return time.replace("T", " ").replace("+00:00", " UTC")


def _changes(document: ReportDocument, plan: FederationPlan) -> tuple[str, ...]:
    facts, records = document.circumstances, document.records
    found = []
    if facts.registered and facts.registered != plan.sha256():
        found.append("The plan that was registered is another one.")
    if facts.registered_at and facts.records_came and min(facts.records_came) < facts.registered_at:
        found.append("The first record came before the plan was registered.")
    if (again := len(facts.records_came) - 1) > 0:
        times = "once" if again == 1 else f"{again} times"
        found.append(f"The run was interrupted after records had come, and the hospitals were asked anew {times}.")
    if before := sum(record.told_before > 0 for record in records):
        judged = "these models" if plan.validation is not None and len(plan.validation.models) > 1 else "this model"
        found.append(
            f"At {before} of {len(records)} sites figures of {judged} had been told before, under other plans: "
            "thresholds and margins may have been chosen after seeing results."
        )
    return tuple(found)


def _signature(document: ReportDocument, record: ValidationRecord) -> Signature:
    signed = document.signatures.get(record.site)
    if signed is None:
        return Signature(record.site, "missing", said=_UNSIGNED if document.signatures else _ALONE)
    state: Literal["verified", "broken"] = "verified" if fits(record, signed) else "broken"
    return Signature(record.site, state, fingerprint(signed.key))


def _data(record: ValidationRecord, cohort: CohortFacts | None) -> list[tuple[str, str, str]]:
    rows = [(record.site, "Data, as the hospital calls it", _CALLED[record.data_is])]
    if record.told_before:
        rows.append((record.site, "Other plans that had figures of this model", f"{record.told_before:,}"))
    if cohort is not None:
        rows += [(record.site, "Cohort, SHA-256 of its content", cohort.sha256)] if cohort.sha256 else []
        rows += [(record.site, "Cases set aside, at least", f"{cohort.quarantined:,}")] if cohort.quarantined else []
    return rows
