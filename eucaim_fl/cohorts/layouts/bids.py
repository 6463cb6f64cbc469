"""BIDS-like NIfTI: `sub-XX[/ses-YY]/{anat,dwi,perf,…}/sub-XX_…_T2w.nii.gz`, with sidecars and `participants.tsv`.

Labels have one of the suffixes mask, seg, dseg or roi, beside the images or under `derivatives/*/sub-XX/`.
Source: Brain Imaging Data Structure 1.10, file names, participants file, derivatives.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from eucaim_fl.cohorts.deidentification.words import plain_words
from eucaim_fl.cohorts.facts import Catalogue, SeriesFacts
from eucaim_fl.cohorts.layouts.matching import Member, match
from eucaim_fl.cohorts.layouts.notes import Findings, Notebook
from eucaim_fl.cohorts.layouts.places import Place
from eucaim_fl.cohorts.layouts.sidecars import described_by_bids, stem
from eucaim_fl.cohorts.layouts.tables import Row, in_words, read_table

__all__ = ["find", "scan_folders"]

_DERIVATIVES = "derivatives"
_TABLE = "participants.tsv"
_MODALITIES = {
    "anat": "MR", "dwi": "MR", "fmap": "MR", "func": "MR", "perf": "MR", "pet": "PT", "ct": "CT",
}  # fmt: skip
_SUFFIXES = frozenset({
    "t1w", "t2w", "t1rho", "t2star", "t2starw", "flair", "pdw", "pdt2", "angio", "dwi", "adc", "trace", "sbref",
    "bold", "asl", "m0scan", "cbf", "dce", "dsc", "swi", "pet", "ct", "t1map", "t2map", "t2starmap", "pdmap",
    "r1map", "r2map",
})  # fmt: skip
_LABELS = frozenset({"mask", "seg", "dseg", "roi"})
_NOT_SHARED = frozenset({"sub", "ses", "space", "desc", "label", "hemi", "res", "den", "atlas", "rater"})
_SUBJECT = re.compile(r"sub-[A-Za-z0-9+._-]{1,64}")
_SESSION = re.compile(r"ses-[A-Za-z0-9+._-]{1,64}")


@dataclass(frozen=True)
class _Image:
    """A file's name and place, taken apart. entities: `acq-ax_run-1` as a mapping; words: parts without a key."""

    stack: SeriesFacts
    subject: str
    session: str
    datatype: str
    derived: bool
    entities: Mapping[str, str] = field(default_factory=dict)
    words: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return stem(self.stack.files[0])

    @property
    def suffix(self) -> str:
        return self.words[-1] if self.words else ""

    @property
    def is_label(self) -> bool:
        return self.suffix in _LABELS


def _taken_apart(stack: SeriesFacts) -> _Image | None:
    """What a file's place and name say; None where BIDS has no place for it."""
    steps = stack.folder.split("/")
    derived = steps[0] == _DERIVATIVES
    steps = steps[2:] if derived else steps
    if not steps or not _SUBJECT.fullmatch(steps[0]):
        return None
    session = steps[1] if len(steps) > 1 and _SESSION.fullmatch(steps[1]) else ""
    rest = steps[2 if session else 1 :]
    datatype = rest[0] if rest else ""
    if len(rest) > 1 or not (datatype in _MODALITIES or derived):
        return None
    parts = stem(stack.files[0]).split("_")
    pairs = [part.partition("-") for part in parts]
    entities = {key: value for key, dash, value in pairs if dash}
    words = tuple(key.lower() for key, dash, _ in pairs if not dash)
    return _Image(stack, steps[0], session, datatype, derived, entities, words)


def _target(label: _Image, images: Sequence[_Image]) -> str:
    """The file of the image that a label's name speaks of; "" if that isn't certain."""
    near = [i for i in images if i.session == label.session]
    begins = [i for i in near if label.name.startswith(f"{i.name}_")]
    if begins:
        return max(begins, key=lambda i: len(i.name)).stack.files[0]
    if any(i.datatype == label.datatype for i in near):
        near = [i for i in near if i.datatype == label.datatype]
    spoken_of = {label.entities.get("space", "").lower(), *label.words[:-1]} & _SUFFIXES
    if spoken_of:
        near = [i for i in near if i.suffix in spoken_of]
    shared = {key: value for key, value in label.entities.items() if key not in _NOT_SHARED}
    fitting = [i for i in near if shared.items() <= i.entities.items()]
    return fitting[0].stack.files[0] if len(fitting) == 1 else ""


def _facts(place: Place, image: _Image, notes: Notebook) -> SeriesFacts:
    """The stack with its suffix among the words of its description, and a modality."""
    stack = described_by_bids(place, image.stack, notes)
    suffix = image.suffix if image.suffix in _SUFFIXES else plain_words(image.suffix, place.words)
    words = dict.fromkeys([*suffix.split(), *stack.description.split()])
    return replace(stack, description=" ".join(words), modality=stack.modality or _MODALITIES.get(image.datatype, ""))


def _participants(place: Place, notes: Notebook) -> dict[str, Row]:
    """Values by subject; {} without a table."""
    first: dict[str, Row] = {}
    if not place.path(_TABLE).is_file():
        return first
    for row in read_table(place.path(_TABLE), ["patient_id"], notes, aliases={"participant_id": "patient_id"}).rows:
        name = row.get("patient_id", "")
        subject = name if name.startswith("sub-") else f"sub-{name}"
        values = {k: v for k, v in row.items() if k != "patient_id" and v != "n/a"}
        if not name:
            notes.note("layout.rows_without_patient")
        elif subject in first:
            notes.note("layout.patients_listed_twice", 1, subject)
        else:
            first[subject] = in_words(values, notes)
    return first


def scan_folders(place: Place) -> Sequence[str]:
    """Folders to be scanned: those of subjects, and `derivatives`.

    Raises CohortError if `participants.tsv` is there and can't be read, or has no column participant_id.
    """
    _participants(place, Notebook())
    return [name for name in place.subfolders() if name == _DERIVATIVES or _SUBJECT.fullmatch(name)]


def find(place: Place, catalogue: Catalogue) -> Findings:
    """The cohort's cases; a subject's name with its `sub-` is the patient, a session the study.

    Raises CohortError if `participants.tsv` is there and can't be read, or has no column participant_id.
    """
    found = Findings()
    clinical = _participants(place, found.notes)
    subjects: defaultdict[str, list[_Image]] = defaultdict(list)
    for stack in catalogue.every():
        image = _taken_apart(stack) if stack.kind == "nifti" else None
        if image is None or (image.derived and not image.is_label):
            found.notes.note("layout.files_not_placed", len(stack.files))
        else:
            subjects[image.subject].append(image)
    for subject, own in sorted(subjects.items()):
        images = [image for image in own if not image.is_label]
        members = [
            Member(i.session, i.name, _facts(place, i, found.notes), beside=i.stack.files[0]) for i in images
        ] + [Member(i.session, i.name, i.stack, True, _target(i, images)) for i in own if i.is_label]
        match(place, subject, members, clinical.get(subject, {}), found)
        if clinical and subject not in clinical:
            found.notes.note("layout.patients_without_clinical", 1, subject)
    for subject in sorted(set(clinical) - set(subjects)):
        found.notes.note("layout.patients_without_images", 1, subject)
    return found
