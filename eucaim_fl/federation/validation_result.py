"""A finished validation in its run's folder: report.json with every number, and the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from eucaim_fl.durable import write_atomically, write_json
from eucaim_fl.errors import JournalError
from eucaim_fl.plan import FederationPlan
from eucaim_fl.records import RoundRecord
from eucaim_fl.tracking.journal import Journal
from eucaim_fl.tracking.registration import read_registration
from eucaim_fl.validation.record import ValidationRecord
from eucaim_fl.validation.signed import RECORD, RecordSignature

if TYPE_CHECKING:
    from eucaim_fl.validation.document import Circumstances

__all__ = ["records_of", "signatures_of", "write_validation"]

_SIGNATURE: TypeAdapter[RecordSignature] = TypeAdapter(RecordSignature)


def records_of(journal: Sequence[RoundRecord]) -> tuple[ValidationRecord, ...]:
    """What each site told, as the run's journal has it, in the order of their names.

    Raises JournalError if the journal holds no validation, or one that can't be read.
    """
    told = journal[-1].validated if journal else {}
    if not told:
        raise JournalError("The run's journal holds no validation.")
    try:
        return tuple(RECORD.validate_python(told[site]) for site in sorted(told))
    except ValidationError:
        raise JournalError("The run's journal holds a validation that can't be read.") from None


def signatures_of(journal: Sequence[RoundRecord]) -> dict[str, RecordSignature]:
    """Site → signature of what it told; a journal of sites without keys, or of an earlier version, has none.

    Raises JournalError if one can't be read.
    """
    told = journal[-1].signatures if journal else {}
    try:
        return {site: _SIGNATURE.validate_python(told[site]) for site in sorted(told)}
    except ValidationError:
        raise JournalError("The run's journal holds a signature that can't be read.") from None


def write_validation(
    folder: Path, plan: FederationPlan, journal: Sequence[RoundRecord], provenance: Mapping[str, Any], wall_s: float
) -> dict[str, Any]:
    """Analyse what the sites told, and write report.json, report.html and result.json; returns the last one's content.

    The same journal gives the same report. Raises what `records_of`, `signatures_of`, `document.make_document` and
    `durable.write_atomically` raise.
    """
    from eucaim_fl.validation.document import Told, make_document, page_of, to_bytes

    told = Told(records_of(journal), signatures_of(journal))
    document = make_document(plan, told, _circumstances(folder, provenance))
    content = to_bytes(document)
    write_atomically(folder / "report.json", content)
    write_atomically(folder / "report.html", page_of(content).encode())
    result = {
        "schema_version": 1,
        "run": folder.name,
        "plan_sha256": plan.sha256(),
        "validation": [one.sentence for one in document.result.verdicts],
        "participation": [vars(one) for one in journal[-1].participation],
        "timings": {"wall_s": round(wall_s, 3)},
    }
    write_json(folder / "result.json", result)
    return result


def _circumstances(folder: Path, provenance: Mapping[str, Any]) -> Circumstances:
    from eucaim_fl.validation.document import Circumstances, CohortFacts

    fixed, announced = read_registration(folder), Journal(folder).sites()
    return Circumstances(
        registered=fixed.plan_sha256,
        registered_at=fixed.at,
        records_came=fixed.came[:1000],
        cohorts={
            site: CohortFacts(sha256=str(facts["cohort_sha256"]), quarantined=int(facts["quarantined"]))
            for site, facts in sorted(announced.items())
        },
        provenance=tuple((str(what), str(value)) for what, value in sorted(provenance.items()) if what != "cohorts"),
    )
