"""The UPV node's layout: `index.json`, `eforms.json` and `<path>/<folderName>/` for each listed series.

Only listed series may be read, so only they are scanned. Study folders may be links into a data lake. A series tagged
as a label holds it as DICOM SEG, RTSTRUCT or NIfTI.
Source: UPV reference node, index.json and eforms.json.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from eucaim_fl.cohorts.codes import COLUMN_ALIASES
from eucaim_fl.cohorts.deidentification.words import plain_words
from eucaim_fl.cohorts.facts import Catalogue, SeriesFacts
from eucaim_fl.cohorts.layouts.matching import Member, by_folder, is_label_word, match
from eucaim_fl.cohorts.layouts.notes import Findings, Notebook
from eucaim_fl.cohorts.layouts.places import Place
from eucaim_fl.cohorts.layouts.tables import Row, in_words, read_list
from eucaim_fl.cohorts.manifest import Quarantined
from eucaim_fl.errors import DataError, SeriesError, UnreadableFileError

__all__ = ["find", "scan_folders"]

_MOST_TAGS = 64


@dataclass(frozen=True)
class _Listed:
    """One series of the index. folder: as `Place.claim` gives it."""

    patient: str
    study: str
    name: str
    folder: str
    tags: tuple[str, ...]


def _name(value: object) -> str:
    """A name as text. Raises TypeError if it is neither text nor a number, or empty."""
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise TypeError("no name")
    return str(value)


def _listed(place: Place, found: Findings) -> Iterator[_Listed]:
    """Series that the index lists and that lie where they may; the others are quarantined."""
    for entry in read_list(place.folder / "index.json"):
        try:
            patient, study, where = (_name(entry[key]) for key in ("subjectName", "studyId", "path"))
            series = [(_name(s["folderName"]), tuple(map(str, s.get("tags") or ()))) for s in entry["series"]]
        except (KeyError, TypeError, AttributeError) as problem:
            error = DataError("An entry of the cohort's index is malformed.", local_detail=repr(problem))
            found.quarantined.append(Quarantined.because("", error))
            continue
        for name, tags in series:
            try:
                folder = place.claim(where, name)
            except DataError as error:
                found.quarantined.append(Quarantined.because(patient, error))
                continue
            yield _Listed(patient, study, name, folder, tags[:_MOST_TAGS])


def scan_folders(place: Place) -> Sequence[str]:
    """Folders that the index allows to be scanned: those of listed series.

    Raises CohortError if an index is missing, no JSON, or no list.
    """
    _eforms(place, Notebook())
    return sorted({one.folder for one in _listed(place, Findings())})


def _eforms(place: Place, notes: Notebook) -> dict[str, Row]:
    """Clinical values per subject, all pages in one, under canonical names."""
    subjects: dict[str, Row] = defaultdict(dict)
    renamed = set()
    for entry in read_list(place.folder / "eforms.json"):
        try:
            subject = _name(entry["subjectName"])
            pages: list[Any] = entry["eForm"]["pages"]
            answers = [answer for page in pages for answer in page["page_data"].items()]
        except (KeyError, TypeError, AttributeError):
            continue  # a form without answers
        given = {name for name, _ in answers}
        for name, content in answers:
            value = content.get("value") if isinstance(content, dict) else None
            if not isinstance(value, str | int | float) or not str(value).strip():
                continue
            present = COLUMN_ALIASES.get(name, name)
            if present != name and present in given:
                present = name
            if present != name:
                renamed.add(name)
            subjects[subject][present] = str(value).strip()
    for name in renamed:
        notes.note("layout.aliases_used", 1, name)
    return {subject: in_words(row, notes) for subject, row in subjects.items()}


def _tagged(place: Place, stack: SeriesFacts, tags: Sequence[str]) -> SeriesFacts:
    """The stack with the imaging words of its tags behind its description."""
    words = plain_words(" ".join(tags), place.words)
    known = stack.description.split()
    further = [word for word in dict.fromkeys(words.split()) if word not in known]
    return replace(stack, description=" ".join([*known, *further])) if further else stack


def _missing(place: Place, one: _Listed, found: Findings) -> None:
    folder = place.path(one.folder)
    found.notes.note("layout.series_missing", 1, one.patient)
    error: DataError = UnreadableFileError("The folder of a series is missing.", local_detail=str(folder))
    if folder.is_dir():
        error = SeriesError("A series has no files.", local_detail=str(folder))
    error = place.absent(one.folder, error)
    found.quarantined.append(Quarantined.because(one.patient, error))


def find(place: Place, catalogue: Catalogue) -> Findings:
    """The cohort's cases.

    Raises CohortError if an index is missing, no JSON, or no list.
    """
    found = Findings()
    clinical = _eforms(place, found.notes)
    patients: defaultdict[str, dict[tuple[str, str], _Listed]] = defaultdict(dict)
    for one in _listed(place, found):
        known = patients[one.patient].setdefault((one.study, one.folder), one)
        if known is not one:
            found.notes.note("layout.series_listed_twice", 1, one.patient)
    folders = {one.folder for series in patients.values() for one in series.values()}
    stacks = by_folder(catalogue.every(), folders)
    for patient, series in sorted(patients.items()):
        members = []
        for one in series.values():
            if one.folder not in stacks:
                _missing(place, one, found)
            is_label = is_label_word(one.tags)
            members += [
                Member(one.study, one.name, _tagged(place, stack, one.tags), is_label)
                for stack in stacks.get(one.folder, ())
            ]
        match(place, patient, members, clinical.get(patient, {}), found)
        if patient not in clinical:
            found.notes.note("layout.patients_without_clinical", 1, patient)
    for patient in sorted(set(clinical) - set(patients)):
        found.notes.note("layout.patients_without_images", 1, patient)
    return found
