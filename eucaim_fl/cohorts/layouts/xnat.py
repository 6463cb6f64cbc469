"""XNAT's layout: `[project/]subject/experiment/{scan_id}_{scan_type}[/resource/files]/file`, DICOM or NIfTI.

The cohort's folder is a project's, or one that holds projects and nothing else. A NIfTI file may have its header beside
it as DICOM JSON of the same name. Scans and resources called SEG, segmentation, mask or label hold labels. Clinical
values are in `clinical.csv` at the top, if there is one.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from eucaim_fl.cohorts.facts import Catalogue
from eucaim_fl.cohorts.layouts.matching import Member, is_label_word, match
from eucaim_fl.cohorts.layouts.notes import Findings, Notebook
from eucaim_fl.cohorts.layouts.places import Place
from eucaim_fl.cohorts.layouts.sidecars import described_by_dicom_json
from eucaim_fl.cohorts.layouts.tables import Row, in_words, read_table
from eucaim_fl.errors import CohortError

__all__ = ["find", "scan_folders"]

_TABLE = "clinical.csv"
_ALIASES = {"subject": "patient_id", "subject_id": "patient_id", "subject_label": "patient_id"}
_SCAN = re.compile(r"[^_/]+_(.+)")
_WORD = re.compile(r"[A-Za-z]+")


@dataclass(frozen=True)
class _Scan:
    subject: str
    experiment: str
    name: str
    is_label: bool
    beside: str | None


def _steps(folder: str) -> tuple[list[str], str]:
    """Steps down to the scan, and the resource's name ("" if files lie in the scan's folder itself)."""
    steps = folder.split("/")
    return (steps[:-2], steps[-2]) if len(steps) > 3 and steps[-1] == "files" else (steps, "")


def _scan(folder: str) -> tuple[int, _Scan] | None:
    """How deep a scan lies, and what it is; None for a folder that is no scan's."""
    steps, resource = _steps(folder)
    named = _SCAN.fullmatch(steps[-1])
    if len(steps) not in (3, 4) or named is None:
        return None
    is_label = is_label_word(_WORD.findall(named[1]))  # a scan of its own: which one it belongs to is for the study
    beside = None if is_label else "/".join(steps)
    return len(steps), _Scan(
        steps[-3], steps[-2], steps[-1], is_label or is_label_word(_WORD.findall(resource)), beside
    )


def _clinical(place: Place, notes: Notebook) -> dict[str, Row]:
    """Each subject's first row; {} without a table."""
    first: dict[str, Row] = {}
    if not place.path(_TABLE).is_file():
        return first
    for row in read_table(place.path(_TABLE), ["patient_id"], notes, aliases=_ALIASES).rows:
        patient = row.get("patient_id", "")
        if not patient:
            notes.note("layout.rows_without_patient")
        elif patient in first:
            notes.note("layout.patients_listed_twice", 1, patient)
        else:
            first[patient] = in_words({k: v for k, v in row.items() if k != "patient_id"}, notes)
    return first


def scan_folders(place: Place) -> Sequence[str]:
    """Folders to be scanned: all at the top.

    Raises CohortError if `clinical.csv` is there and can't be read, or has no column for the subject.
    """
    _clinical(place, Notebook())
    return place.subfolders()


def find(place: Place, catalogue: Catalogue) -> Findings:
    """The cohort's cases; a subject of the same name in two projects is the same patient.

    Raises CohortError if `clinical.csv` is there and can't be read, or scans lie at two depths, so that nobody can tell
    subjects from experiments.
    """
    found = Findings()
    clinical = _clinical(place, found.notes)
    members: defaultdict[str, list[Member]] = defaultdict(list)
    depths: set[int] = set()
    for stack in catalogue.every():
        scan = _scan(stack.folder)
        if scan is None:
            found.notes.note("layout.files_not_placed", len(stack.files))
            continue
        if stack.kind != "other":
            depths.add(scan[0])
        place_of = scan[1]
        if stack.kind == "nifti" and not stack.code:
            stack = described_by_dicom_json(place, stack, found.notes)
        # `seg` in a scan's name may be a way of scanning: what the header says of an image counts more
        is_label = place_of.is_label and stack.modality in ("", "SEG", "RTSTRUCT")
        beside = place_of.beside or (None if is_label else stack.folder)
        members[place_of.subject].append(Member(place_of.experiment, place_of.name, stack, is_label, beside))
    if len(depths) > 1:
        raise CohortError(
            "Scans of the cohort lie at two depths, so subjects can't be told from experiments.",
            fix="cohort.folder must be one project's folder, or hold projects only.",
            local_detail=str(place.folder),
        )
    for subject, own in sorted(members.items()):
        match(place, subject, own, clinical.get(subject, {}), found)
        if clinical and subject not in clinical:
            found.notes.note("layout.patients_without_clinical", 1, subject)
    for subject in sorted(set(clinical) - set(members)):
        found.notes.note("layout.patients_without_images", 1, subject)
    return found
