"""The report of a check: for programs without any name of a patient, and as a page for local eyes only."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eucaim_fl.cohorts.findings import Finding, Severity
from eucaim_fl.cohorts.quality_clinical import Column
from eucaim_fl.errors import SiteFileError
from eucaim_fl.pages import filled

__all__ = [
    "ADVICE",
    "SHOWN_PATIENTS",
    "CheckReport",
    "Picture",
    "Section",
    "SetAside",
    "amount",
    "named",
    "printable",
    "render_html",
    "sections",
    "severity_word",
    "shown",
    "to_json",
    "write_page",
]

SHOWN_PATIENTS = 10
"""Patients that are named at most with one finding."""
ADVICE: Mapping[str, str] = {
    "EFL200": "Look at the tables: what they name must lie inside the cohort's folder.",
    "EFL201": "Look at the cohort's tables and folders.",
    "EFL202": "Export the series again, whole and in one piece.",
    "EFL203": "Export the label again on the image's own voxels.",
    "EFL204": "Copy the files again from the archive; they are damaged, or no images.",
    "EFL205": "De-identify or rename the files. `site locate SITE_FILE RULE`, with a rule named under "
    "De-identification, names them.",
    "EFL206": "Nothing, unless the consent table is wrong. `site lineage --withdrawn` lists past runs.",
}
"""What hospital IT can do about what is set aside, by its code."""
_SCHEMA = 1
_MODALITY = re.compile(r"[A-Z]{2,16}")
_WORDS: Mapping[Severity, str] = {"blocks": "blocks", "warns": "look at", "informs": "for information"}
_SECTIONS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("Cohort", ("cohort.",), "What concerns the cohort as a whole."),
    ("De-identification", ("deid.",), "What in files, names and tables can name a person. Values are never shown."),
    ("Quality", ("quality.",), "Images, labels and clinical values that are double, contradictory, empty or unusual."),
    ("Tables and files", ("layout.", "codes."), "What is listed and missing, there and not listed, or not understood."),
)
"""Title, beginnings of rules, and what it is about."""


@dataclass(frozen=True)
class SetAside:
    """Patients of whom nothing can be used, for one reason. code and reason are safe outside the hospital.

    do: what hospital IT can do about it. patients: as the cohort names them, for this machine only.
    """

    code: str
    reason: str
    patients: tuple[str, ...]
    do: str = ""


@dataclass(frozen=True)
class Picture:
    """One image's slice as base64 PNG, with the names of its labels in the order of colours; for local eyes only."""

    patient: str
    modality: str
    png: str
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class CheckReport:
    """What a check found.

    counts: what → how many. modalities: modality → images; "" where none is stated. usable: patients that can be used.
    set_aside: patients that can't, by reason. dropped: (code, reason, images) of single images whose patients have
    others.
    obstacles: why the cohort as a whole can't be used; empty if it can. consent: True if a table is kept.
    """

    site: str
    title: str = ""
    counts: Mapping[str, int] = field(default_factory=dict)
    modalities: Mapping[str, int] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()
    set_aside: tuple[SetAside, ...] = ()
    dropped: tuple[tuple[str, str, int], ...] = ()
    usable: tuple[str, ...] = ()
    obstacles: tuple[str, ...] = ()
    columns: tuple[Column, ...] = ()
    pictures: tuple[Picture, ...] = ()
    consent: bool = False
    withdrawn: int = 0
    pixels_read: bool = True

    @property
    def can_train(self) -> bool:
        """Whether the cohort can be used."""
        return not self.obstacles

    @property
    def patients(self) -> int:
        """Number of patients, usable or not."""
        return len(self.usable) + sum(len(group.patients) for group in self.set_aside)


@dataclass(frozen=True)
class Section:
    """Findings that belong together."""

    title: str
    about: str
    findings: tuple[Finding, ...]


def sections(report: CheckReport) -> tuple[Section, ...]:
    """The findings by what they are about, in the order of the page; every section is there, even if empty."""
    known = tuple(beginning for _, beginnings, _ in _SECTIONS for beginning in beginnings)
    result = [
        Section(title, about, tuple(f for f in report.findings if f.rule.startswith(beginnings)))
        for title, beginnings, about in _SECTIONS
    ]
    others = tuple(f for f in report.findings if not f.rule.startswith(known))
    return (*result, Section("Others", "", others)) if others else tuple(result)


def severity_word(severity: Severity) -> str:
    """A severity as people read it."""
    return _WORDS[severity]


def amount(finding: Finding) -> str:
    """How many of what a finding concerns, such as `1 patient` or `1,200 cells`."""
    if finding.unit == "cohort":
        return "the cohort"
    unit = finding.unit if finding.count != 1 or finding.unit == "series" else finding.unit.removesuffix("s")
    return f"{finding.count:,} {unit}"


def shown(text: str) -> str:
    """A stored text, such as a column's name, for this machine's eyes: masked if it looks like a person's name or
    number, and without what could steer a terminal."""
    from eucaim_fl.cohorts.deidentification.names import masked

    return printable(masked(text))


def named(patients: Sequence[str], most: int = SHOWN_PATIENTS) -> str:
    """A few patients for this machine's eyes, with identifiers masked: `P1, P2 and 3 more`."""
    few = ", ".join(shown(patient) for patient in patients[:most])
    return f"{few} and {len(patients) - most} more" if len(patients) > most else few


def printable(text: str) -> str:
    """The text without what could steer a terminal: unprintable characters become `?`."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def to_json(report: CheckReport) -> dict[str, Any]:
    """The report as JSON values: counts and fixed texts, no patient, path, or stored value.

    Columns are given by name only where the name is a plain word, and never with their values.
    """
    modalities: dict[str, int] = {}
    for name, count in report.modalities.items():
        key = name if _MODALITY.fullmatch(name) else "not stated" if not name else "other"
        modalities[key] = modalities.get(key, 0) + count
    return {
        "schema": _SCHEMA,
        "site": report.site,
        "can_train": report.can_train,
        "obstacles": list(report.obstacles),
        "counts": {"patients": report.patients, "usable_patients": len(report.usable), **report.counts},
        "modalities": modalities,
        "set_aside": [
            {"code": s.code, "reason": s.reason, "patients": len(s.patients), "do": s.do} for s in report.set_aside
        ],
        "images_left_out": [{"code": c, "reason": r, "images": n} for c, r, n in report.dropped],
        "findings": [
            {"rule": f.rule, "severity": f.severity, "count": f.count, "unit": f.unit, "says": f.says, "do": f.do}
            for f in report.findings
        ],
        "columns": [
            {"name": c.name, "missing_share": round(c.missing_share, 4), "distinct": c.distinct}
            for c in report.columns
            if c.plain
        ],
        "consent": {"table": report.consent, "withdrawn": report.withdrawn},
        "pixels_read": report.pixels_read,
    }


def render_html(report: CheckReport) -> str:
    """The report as one page that needs nothing from elsewhere; the same report gives the same text.

    It shows masked names of patients and pictures, so it must not leave the hospital. All values are escaped.
    """
    from eucaim_fl.cohorts.thumbnail import OUTLINES_RGB

    return filled(
        Path(__file__).parent / "templates" / "check.html.jinja",
        report=report,
        sections=sections(report),
        word=severity_word,
        named=named,
        advice=ADVICE,
        shown=shown,
        amount=amount,
        percent=lambda share: f"{100 * share:.0f} %" if share == 0 or share >= 0.01 else "< 1 %",
        colours=["rgb({}, {}, {})".format(*rgb) for rgb in OUTLINES_RGB],
    )


def write_page(text: str, path: Path, cohort: Path) -> None:
    """Write a page that only its owner may read; an older one is replaced as a whole.

    Raises SiteFileError if it would lie inside the cohort's folder, or can't be written.
    """
    target = path.absolute()
    if target.parent.resolve().is_relative_to(cohort.resolve()):
        raise SiteFileError(
            "The report would lie inside the cohort's folder.",
            fix="Choose a place outside it; the cohort is only read.",
            local_detail=str(target),
        )
    temporary = ""
    try:
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=".check.", suffix=".part")  # 0600 by itself
        with os.fdopen(handle, "w", encoding="utf-8", errors="replace") as stream:
            stream.write(text)
        Path(temporary).replace(target)
    except OSError as problem:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        raise SiteFileError(
            "The report can't be written.",
            fix="Check that the folder exists and may be written.",
            local_detail=f"{target}: {problem.strerror}",
        ) from None
