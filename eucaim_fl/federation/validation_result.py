"""A finished validation in its run's folder: report.json with every number, and the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from eucaim_fl.durable import write_atomically, write_json
from eucaim_fl.errors import JournalError
from eucaim_fl.plan import FederationPlan
from eucaim_fl.records import RoundRecord
from eucaim_fl.validation.record import ValidationRecord

__all__ = ["records_of", "write_validation"]

_RECORD: TypeAdapter[ValidationRecord] = TypeAdapter(ValidationRecord)


def records_of(journal: Sequence[RoundRecord]) -> tuple[ValidationRecord, ...]:
    """What each site told, as the run's journal has it, in the order of their names.

    Raises JournalError if the journal holds no validation, or one that can't be read.
    """
    told = journal[-1].validated if journal else {}
    if not told:
        raise JournalError("The run's journal holds no validation.")
    try:
        return tuple(_RECORD.validate_python(told[site]) for site in sorted(told))
    except ValidationError:
        raise JournalError("The run's journal holds a validation that can't be read.") from None


def write_validation(
    folder: Path, plan: FederationPlan, journal: Sequence[RoundRecord], provenance: Mapping[str, Any], wall_s: float
) -> dict[str, Any]:
    """Analyse what the sites told, and write report.json, report.html and result.json; returns the last one's content.

    The same journal gives the same report. Raises what `records_of`, `validation.analysis.analyse` and
    `durable.write_atomically` raise.
    """
    from eucaim_fl.validation.analysis import analyse
    from eucaim_fl.validation.page import About, render_validation

    records = records_of(journal)
    found = analyse(plan, records, seed=plan.seed)
    report = {
        "schema_version": 1,
        "plan": plan.model_dump(mode="json"),
        "plan_sha256": plan.sha256(),
        "result": found.model_dump(mode="json"),
        "records": [_RECORD.dump_python(record, mode="json") for record in records],
    }
    write_json(folder / "report.json", report)
    about = About(provenance=tuple((str(what), str(value)) for what, value in sorted(provenance.items())))
    write_atomically(folder / "report.html", render_validation(found, plan, about).encode())
    result = {
        "schema_version": 1,
        "run": folder.name,
        "plan_sha256": plan.sha256(),
        "validation": [one.sentence for one in found.verdicts],
        "participation": [vars(one) for one in journal[-1].participation],
        "timings": {"wall_s": round(wall_s, 3)},
    }
    write_json(folder / "result.json", result)
    return result
