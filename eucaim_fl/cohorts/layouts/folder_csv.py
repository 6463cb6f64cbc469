"""DICOM or NIfTI in any arrangement of folders, and `clinical.csv` that says which images are whose.

Columns: patient_id, and (each optional, alone or together) folder (relative), study_uid and series_uid. A row without
any of them speaks of all images below a folder that is named as the patient. Other columns are clinical values of the
patient's first row. NIfTI files with mask, seg or label in their names are labels.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from eucaim_fl.cohorts.facts import Catalogue, SeriesFacts
from eucaim_fl.cohorts.layouts.matching import Member, is_label_word, match
from eucaim_fl.cohorts.layouts.notes import Findings
from eucaim_fl.cohorts.layouts.places import Place, outermost
from eucaim_fl.cohorts.layouts.sidecars import stem
from eucaim_fl.cohorts.layouts.tables import Row, in_words, read_table
from eucaim_fl.cohorts.manifest import Quarantined
from eucaim_fl.errors import DataError

__all__ = ["find", "scan_folders"]

_TABLE = "clinical.csv"
_OWN_COLUMNS = ("patient_id", "folder", "study_uid", "series_uid")
_WORD = re.compile(r"[A-Za-z]+")


@dataclass(frozen=True)
class _Claim:
    """What one row says is the patient's. folder: None where it names none."""

    patient: str
    folder: str | None
    study_uid: str
    series_uid: str

    def holds(self, stack: SeriesFacts) -> bool:
        """Whether a stack is the patient's by this row (the folder is known to fit)."""
        return self.study_uid in ("", stack.study_uid) and self.series_uid in ("", stack.series_uid)

    @property
    def is_by_name(self) -> bool:
        return self.folder is None and not self.study_uid and not self.series_uid


def _rows(place: Place, found: Findings) -> tuple[list[_Claim], dict[str, Row]]:
    """Claims of all rows, and each patient's first clinical values."""
    claims, clinical = [], dict[str, Row]()
    for row in read_table(place.folder / _TABLE, ["patient_id"], found.notes).rows:
        patient = row.get("patient_id", "")
        if not patient:
            found.notes.note("layout.rows_without_patient")
            continue
        if patient not in clinical:
            values = {k: v for k, v in row.items() if k not in _OWN_COLUMNS}
            clinical[patient] = in_words(values, found.notes)
        try:
            folder = place.claim(row["folder"]) if "folder" in row else None
        except DataError as error:
            found.quarantined.append(Quarantined.because(patient, error))
            continue
        claims.append(_Claim(patient, folder, row.get("study_uid", ""), row.get("series_uid", "")))
    return claims, clinical


def scan_folders(place: Place) -> Sequence[str]:
    """Folders that the table allows to be scanned: those that it names, or all if a row names none.

    Raises CohortError if the table is missing, unreadable, or lacks patient_id.
    """
    claims, _ = _rows(place, Findings())
    return outermost("" if claim.folder is None else claim.folder for claim in claims)


class _Owners:
    """Who claims a stack."""

    def __init__(self, claims: Iterable[_Claim]) -> None:
        self._by_folder: defaultdict[str, list[_Claim]] = defaultdict(list)
        self._by_name: dict[str, _Claim] = {}
        self._by_series: defaultdict[str, list[_Claim]] = defaultdict(list)
        self._by_study: defaultdict[str, list[_Claim]] = defaultdict(list)
        for claim in claims:
            if claim.folder is not None:
                self._by_folder[claim.folder].append(claim)
            elif claim.series_uid:
                self._by_series[claim.series_uid].append(claim)
            elif claim.study_uid:
                self._by_study[claim.study_uid].append(claim)
            else:
                self._by_name[claim.patient] = claim

    def _claims(self, stack: SeriesFacts) -> Iterator[_Claim]:
        steps = stack.folder.split("/") if stack.folder else []
        for depth in range(len(steps) + 1):
            yield from self._by_folder.get("/".join(steps[:depth]), ())
        yield from (self._by_name[step] for step in steps if step in self._by_name)
        yield from self._by_series.get(stack.series_uid, ()) if stack.series_uid else ()
        yield from self._by_study.get(stack.study_uid, ()) if stack.study_uid else ()

    def of(self, stack: SeriesFacts) -> set[str]:
        """Patients who claim it."""
        return {claim.patient for claim in self._claims(stack) if claim.holds(stack)}

    def of_broken(self, stack: SeriesFacts) -> set[str]:
        """Patients who may claim a file that could not be read, by its folder alone."""
        return {claim.patient for claim in self._claims(stack)}


def _beside(label: SeriesFacts, stacks: Sequence[SeriesFacts]) -> str | None:
    """The NIfTI image in a label's folder whose name begins the label's, the longest; None if there is none."""
    names = [s.files[0] for s in stacks if s.kind == "nifti" and s.folder == label.folder and not _is_label(s)]
    begins = [name for name in names if stem(label.files[0]).startswith(stem(name))]
    return max(begins, key=lambda name: len(stem(name)), default=None)


def _is_label(stack: SeriesFacts) -> bool:
    return stack.kind == "nifti" and is_label_word(_WORD.findall(stem(stack.files[0])))


def _member(stack: SeriesFacts, stacks: Sequence[SeriesFacts]) -> Member:
    is_label = _is_label(stack)
    name = stack.series_uid or (stem(stack.files[0]) if stack.kind == "nifti" else stack.folder)
    beside = _beside(stack, stacks) if is_label else stack.files[0]
    return Member(stack.study_uid or stack.folder, name, stack, is_label, beside)


def find(place: Place, catalogue: Catalogue) -> Findings:
    """The cohort's cases. What two patients claim is nobody's.

    Raises CohortError if the table is missing, unreadable, or lacks patient_id.
    """
    found = Findings()
    claims, clinical = _rows(place, found)
    owners = _Owners(claims)
    patients: defaultdict[str, list[SeriesFacts]] = defaultdict(list)
    for stack in catalogue.every():
        if stack.kind == "other":
            found.notes.note("layout.files_not_placed", len(stack.files))
            continue
        who = owners.of_broken(stack) if stack.code and not stack.series_uid else owners.of(stack)
        if len(who) == 1:
            patients[min(who)].append(stack)
        elif who:
            found.notes.note("layout.images_of_two_patients")
            error = DataError("An image belongs to two patients.", local_detail=stack.folder)
            found.quarantined.extend(Quarantined.because(patient, error) for patient in sorted(who))
        else:
            found.notes.note("layout.series_not_listed")
    for patient, stacks in sorted(patients.items()):
        members = [_member(stack, stacks) for stack in stacks]
        match(place, patient, members, clinical.get(patient, {}), found)
    for patient in sorted(set(clinical) - set(patients)):
        found.notes.note("layout.patients_without_images", 1, patient)
    return found
