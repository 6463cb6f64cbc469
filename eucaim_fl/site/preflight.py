"""The check of a cohort: all gates that a run applies, and what else is worth knowing. Reads only, sends nothing."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace

from eucaim_fl.cohorts.consent import Consent, read_consent
from eucaim_fl.cohorts.deidentification.burned_in import TEXT_SEEN
from eucaim_fl.cohorts.deidentification.policy import blocks, to_findings
from eucaim_fl.cohorts.deidentification.rules import RULES as IDENTIFIER_RULES
from eucaim_fl.cohorts.findings import Finding, merge
from eucaim_fl.cohorts.index import open_index
from eucaim_fl.cohorts.labels import LABEL_PROBLEMS
from eucaim_fl.cohorts.manifest import Case, Manifest, Quarantined, read_manifest
from eucaim_fl.cohorts.pixel_pass import known_pixels, read_pixels
from eucaim_fl.cohorts.quality import Examined, Rule, image_findings
from eucaim_fl.cohorts.quality_clinical import clinical_columns, clinical_findings
from eucaim_fl.cohorts.table_check import breaches_of, table_findings
from eucaim_fl.errors import DataError, IdentifierError
from eucaim_fl.site.check_report import ADVICE, CheckReport, Picture, SetAside
from eucaim_fl.sitefile import SiteFile

__all__ = ["Examination", "Tell", "check", "examine"]

Tell = Callable[[str, int, int | None], None]
"""What is being done, how much of it is done, and of how much (None: nobody knows yet)."""

_NOBODY = "\0"
_LABEL_RULES = {code: Rule("warns", says, do) for code, (says, do) in LABEL_PROBLEMS.items()}
_PICTURES = 24
_TRAINING_SHARE = 0.6


@dataclass(frozen=True)
class Examination:
    """All that a check looked at. refused: what is not used and why, with local details. found: findings, merged.

    seen: cases behind the gates, with their pixels where these were read. usable: patients that quality doesn't block.
    """

    site: SiteFile
    manifest: Manifest
    consent: Consent
    refused: tuple[Quarantined, ...]
    seen: tuple[Examined, ...]
    usable: frozenset[str]
    found: tuple[Finding, ...]
    pixels: bool


def check(site: SiteFile, *, pixels: bool = True, tell: Tell | None = None) -> CheckReport:
    """Check a site's cohort: find its cases, apply the gates that every run applies, and look for what is odd.

    pixels: also read every usable stack once; what was read before and has not changed is not read again.
    Patients that can be used are those a plan without further rules would take: not set aside by layout or reading,
    de-identification, consent, or a finding of quality that blocks.
    Raises CohortError if the cohort's folder or tables are missing or can't be read, or the cache can't be written;
    ConsentError if the consent table can't be trusted; WorkerError if no reading process can be started.
    """
    return _report(examine(site, pixels=pixels, tell=tell))


def examine(site: SiteFile, *, pixels: bool = True, tell: Tell | None = None) -> Examination:
    """What `check` reports on, with the names and local details that a report leaves out.

    Raises CohortError, ConsentError and WorkerError as `check` does.
    """
    say: Tell = tell or (lambda step, done, total: None)
    manifest = read_manifest(site, tell=lambda done, total: say("looking at files", done, total))
    consent = read_consent(site)
    cases, refused, found = _gates(site, manifest, consent)
    seen = [Examined(case) for case in cases]
    if pixels:
        facts = read_pixels(site, cases, lambda done, total: say("reading pixels", done, total))
        seen, unread, text = _after_pixels(site, [Examined(c, f) for c, f in zip(cases, facts, strict=True)])
        refused, found = [*refused, *unread], [*found, *text]
    found += [*manifest.notes, *table_findings(breaches_of(site), site.deidentification)]
    others = [case for case in manifest.cases if not consent.allows(case.patient)]
    known = known_pixels(site, others) if others else []
    copies = [Examined(case, facts) for case, facts in zip(others, known, strict=True)]
    found += image_findings(seen, site.cohort.body_parts, _LABEL_RULES, copies)
    found += clinical_findings([one.case for one in seen])
    blocked = _blocked(found)
    refused += [Quarantined(patient, DataError.code, f.says, f.rule) for patient, f in sorted(blocked.items())]
    usable = frozenset(one.case.patient for one in seen) - set(blocked)
    found += _size(site, len(usable))
    return Examination(site, manifest, consent, tuple(refused), tuple(seen), usable, merge(found), pixels)


def _gates(site: SiteFile, manifest: Manifest, consent: Consent) -> tuple[list[Case], list[Quarantined], list[Finding]]:
    """Cases that may be used, what is refused, and what was found: by layout, consent and what the index counted."""
    by_patient = [(case.patient, _identifiers(case)) for case in manifest.cases]
    findings = to_findings([*by_patient, *_outside(site, manifest.cases)], site.deidentification)
    refused = [*consent.refused(case.patient for case in manifest.cases), *_identified(site, by_patient)]
    out = {one.patient for one in refused}
    return (
        [case for case in manifest.cases if case.patient not in out],
        [*manifest.quarantined, *refused],
        [replace(f, subjects=tuple(one for one in f.subjects if one[:1] != _NOBODY)) for f in findings],
    )


def _outside(site: SiteFile, cases: Iterable[Case]) -> Iterator[tuple[str, Mapping[str, int]]]:
    """Identifiers in stacks that became no case, such as those whose names break a rule. Whose they are is known where
    another image of the patient is a case; else a keyed hash or the folder stands for the patient, behind `_NOBODY`.
    """
    known = {case.facts.patient_id: case.patient for case in cases if case.facts is not None and case.facts.patient_id}
    for stack in open_index(site).every():
        if stack.code and stack.identifiers:
            patient = known.get(stack.patient_id, _NOBODY + (stack.patient_id or stack.folder))
            yield patient, stack.identifiers


def _identifiers(case: Case) -> Counter[str]:
    """What the index counted in the files of an image and of its label."""
    counts = Counter(case.label_identifiers)
    counts.update({} if case.facts is None else case.facts.identifiers)
    return counts


def _identified(site: SiteFile, by_patient: Iterable[tuple[str, Mapping[str, int]]]) -> Iterator[Quarantined]:
    """A record for every patient of whom an image breaks a rule that the site's policy blocks."""
    rules: dict[str, str] = {}
    for patient, identifiers in by_patient:
        rule = blocks(identifiers, site.deidentification)
        if rule:
            rules.setdefault(patient, rule)
    for patient, rule in sorted(rules.items()):
        known = IDENTIFIER_RULES.get(rule)
        says = known.says if known else "Files can still name a person."
        yield Quarantined(patient, IdentifierError.code, says, rule)


def _after_pixels(
    site: SiteFile, seen: Sequence[Examined]
) -> tuple[list[Examined], list[Quarantined], tuple[Finding, ...]]:
    """What is left, refused and found: images that can't be read, and text seen in pixels, if the policy blocks it."""
    read = [(one, one.pixels) for one in seen if one.pixels is not None]
    unread = [
        Quarantined(one.case.patient, pixels.code, pixels.reason, str(one.case.image[0].parent))
        for one, pixels in read
        if pixels.code
    ]
    text = [(one.case.patient, {TEXT_SEEN: 1}) for one, pixels in read if pixels.text]
    identified = list(_identified(site, text))
    out = {one.patient for one in identified}
    left = [one for one, pixels in read if not pixels.code and one.case.patient not in out]
    return left, [*unread, *identified], to_findings(text, site.deidentification)


def _blocked(findings: Iterable[Finding]) -> dict[str, Finding]:
    """Patients that a finding of quality sets aside → the first such finding."""
    found: dict[str, Finding] = {}
    for finding in findings:
        if finding.rule.startswith("quality.") and finding.severity == "blocks":
            for patient in finding.subjects:
                found.setdefault(patient, finding)
    return found


def _report(seen: Examination) -> CheckReport:
    """The report of an examination."""
    cases = seen.manifest.cases
    usable = [one for one in seen.seen if one.case.patient in seen.usable]
    everyone = {case.patient for case in cases} | {one.patient for one in seen.refused if one.patient}
    return CheckReport(
        site=seen.site.name,
        title=seen.site.title,
        counts={
            "images": len(cases),
            "usable_images": len(usable),
            "labelled_images": sum(bool(case.label) for case in cases),
            "files": sum(len(case.image) + len(case.label) for case in cases),
        },
        modalities=dict(sorted(Counter(case.modality for case in cases).items())),
        findings=seen.found,
        set_aside=_set_aside(seen.refused, everyone - seen.usable, {f.says: f.do for f in seen.found}),
        dropped=_dropped(seen.refused, seen.usable),
        usable=tuple(sorted(seen.usable)),
        obstacles=tuple(f.says for f in seen.found if f.severity == "blocks" and f.rule.startswith("cohort.")),
        columns=clinical_columns([one.case for one in usable]),
        pictures=_pictures(usable),
        consent=seen.consent.required,
        withdrawn=len(set(seen.consent.withdrawn) & everyone),
        pixels_read=seen.pixels,
    )


def _set_aside(refused: Sequence[Quarantined], out: Set[str], advice: Mapping[str, str]) -> tuple[SetAside, ...]:
    """Patients of whom nothing is usable, each with the first reason, the most frequent reason first."""
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    counted: set[str] = set()
    for one in refused:
        if one.patient in out and one.patient not in counted:
            counted.add(one.patient)
            groups[one.code, one.reason].append(one.patient)
    return tuple(
        SetAside(code, reason, tuple(sorted(patients)), advice.get(reason, ADVICE.get(code, "")))
        for (code, reason), patients in sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
    )


def _dropped(refused: Iterable[Quarantined], usable: Set[str]) -> tuple[tuple[str, str, int], ...]:
    """Single images that are left out although their patient has others."""
    counts = Counter((one.code, one.reason) for one in refused if one.patient in usable)
    return tuple((code, reason, n) for (code, reason), n in sorted(counts.items(), key=lambda i: (-i[1], i[0])))


def _size(site: SiteFile, usable: int) -> list[Finding]:
    """Whether there are enough patients."""
    least = site.release.minimum_patients
    if usable == 0:
        text = "No patient can be used."
        return [Finding("cohort.nobody", "blocks", 1, "cohort", text, "Mend what sets patients aside.")]
    if usable < least:
        return [
            Finding(
                "cohort.too_few_patients", "blocks", usable, "patients",
                "Fewer patients can be used than release.minimum_patients of the site file.",
                "Mend what sets patients aside, or add patients.",
            )
        ]  # fmt: skip
    if usable * _TRAINING_SHARE < least:
        return [
            Finding(
                "cohort.few_patients", "warns", usable, "patients",
                "With a fifth each for validation and test, fewer patients would train than release.minimum_patients.",
                "A plan with smaller shares may still run; more patients would help.",
            )
        ]  # fmt: skip
    return []


def _pictures(seen: Sequence[Examined]) -> tuple[Picture, ...]:
    """The first image of each of the first patients."""
    first: dict[str, Examined] = {}
    for one in seen:
        if one.pixels is not None and one.pixels.thumbnail:
            first.setdefault(one.case.patient, one)
    return tuple(
        Picture(
            patient,
            one.case.modality,
            one.pixels.thumbnail,
            tuple(label.name for label in one.pixels.labels),
        )
        for patient, one in list(first.items())[:_PICTURES]
        if one.pixels is not None
    )
