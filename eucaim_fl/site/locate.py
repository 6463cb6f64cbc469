"""Whose files break a rule: found anew each time, for this machine's terminal, and kept nowhere."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from eucaim_fl.cohorts.deidentification.rules import RULES as IDENTIFIER_RULES
from eucaim_fl.cohorts.isolation import map_isolated
from eucaim_fl.cohorts.labels import LABEL_PROBLEMS
from eucaim_fl.cohorts.layouts import LAYOUTS, Place
from eucaim_fl.cohorts.layouts.notes import RULES as LAYOUT_RULES
from eucaim_fl.cohorts.quality import RULES as IMAGE_RULES
from eucaim_fl.cohorts.quality_clinical import CLINICAL_RULES
from eucaim_fl.cohorts.table_check import breaches_of
from eucaim_fl.errors import ConfigError
from eucaim_fl.registry import suggestion
from eucaim_fl.site.check_report import amount, printable
from eucaim_fl.site.preflight import Tell, examine
from eucaim_fl.sitefile import SiteFile

__all__ = ["known_rules", "locate"]

_CODES = tuple(f"EFL20{n}" for n in range(7))
_SEEN_IN_PIXELS = "deid.burned_in_seen"


def known_rules() -> frozenset[str]:
    """Every rule that a check may name, and the codes with which patients are set aside."""
    quality = {f"quality.{name}" for name in (*IMAGE_RULES, *CLINICAL_RULES)}
    labels = {f"quality.label_{code}" for code in LABEL_PROBLEMS}
    return frozenset({*IDENTIFIER_RULES, *quality, *labels, *LAYOUT_RULES, *_CODES})


def locate(site: SiteFile, rule: str, *, pixels: bool = True, tell: Tell | None = None) -> Iterator[str]:
    """Lines that name what breaks a rule: files for identifiers, tables with their column, else patients with folders.

    rule: a rule's name, or a code with which patients are set aside. pixels: read them, where the rule may need it.
    The lines may hold identifiers. Unprintable characters are shown as `?`.
    Raises ConfigError if there is no such rule; and what `preflight.examine` raises.
    """
    known = known_rules()
    if rule not in known:
        raise ConfigError("There is no such rule.", fix=suggestion(rule, known), local_detail=rule[:80])
    say: Tell = tell or (lambda step, done, total: None)
    if rule.startswith("deid.table_"):
        lines = _tables(site, rule)
    elif rule.startswith("deid.") and rule != _SEEN_IN_PIXELS:
        lines = _files(site, rule, say)
    else:
        lines = _patients(site, rule, pixels, say)
    return (printable(line) for line in lines)


def _files(site: SiteFile, rule: str, tell: Tell) -> Iterator[str]:
    """Files whose name or header breaks a rule; headers are read in isolated workers."""
    from eucaim_fl.cohorts.index.headers import Reading
    from eucaim_fl.cohorts.index.listing import list_files

    folder = site.cohort_folder()
    scope = LAYOUTS[site.cohort.layout].scan_folders(Place.of(site))
    reading = Reading(folder, b"", frozenset(site.cohort.words), blocks=False)
    given: dict[int, str] = {}

    def items() -> Iterator[list[object]]:
        listed = (one for one in list_files(folder, scope, links=site.link_folders()) if not one.code)
        for number, one in enumerate(listed):
            given[number] = one.path
            yield [one.path, one.size, one.mtime_ns, one.ctime_ns, one.inode]

    results = map_isolated(
        "eucaim_fl.cohorts.index.headers:read_item",
        items(),
        shared=reading.to_json(),
        workers=site.compute.readers or len(os.sched_getaffinity(0)),
    )
    for done, (number, result) in enumerate(results, start=1):
        path = given.pop(number)
        identifiers = result.value.get("identifiers", {}) if isinstance(result.value, dict) else {}
        if isinstance(identifiers, dict) and identifiers.get(rule):
            yield str(folder / path)
        tell("looking at files", done, None)


def _tables(site: SiteFile, rule: str) -> Iterator[str]:
    """Tables and columns that break a rule, and how often."""
    for one in breaches_of(site):
        if one.rule == rule:
            yield f"{one.file}  column {one.column}: {one.times}"


def _patients(site: SiteFile, rule: str, pixels: bool, tell: Tell) -> Iterator[str]:
    """Patients that a finding or a code concerns, with where their images lie; columns; or how many there are, if the
    finding names none of them."""
    seen = examine(site, pixels=pixels and not rule.startswith("layout."), tell=tell)
    for bad in seen.refused:
        if rule == bad.code:
            yield "  ".join(filter(None, (bad.patient, bad.reason, bad.local_detail)))
    if rule == "quality.label_unreadable":
        for one in seen.seen:
            if one.pixels is not None and one.pixels.label_code:
                yield "  ".join([one.case.patient, one.pixels.label_reason, *map(str, one.case.label)])
        return
    folders: dict[str, list[Path]] = {}
    for case in seen.manifest.cases:
        folders.setdefault(case.patient, []).append(case.image[0] if len(case.image) == 1 else case.image[0].parent)
    findings = [finding for finding in seen.found if finding.rule == rule]
    yield from (f"{amount(one)}; which ones is not known" for one in findings if not one.subjects)
    for patient in sorted({p for finding in findings for p in finding.subjects}):
        yield "  ".join([patient, *dict.fromkeys(str(folder) for folder in folders.get(patient, ()))])
