"""One patient's stacks to cases: which are images, which are labels, and which label belongs to which image."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from eucaim_fl.cohorts.facts import SeriesFacts
from eucaim_fl.cohorts.layouts.notes import Findings
from eucaim_fl.cohorts.layouts.places import Place
from eucaim_fl.cohorts.manifest import Case, LabelFormat, Quarantined
from eucaim_fl.errors import LabelError

__all__ = ["LABEL_WORDS", "Member", "by_folder", "is_label_word", "match", "with_modality"]

LABEL_WORDS = frozenset({
    "seg", "segs", "dseg", "segmentation", "segmentations", "mask", "masks", "label", "labels", "roi", "contour",
    "contours",
})  # fmt: skip
"""Words of tags, scan types and file names that mark a label."""
_LABEL_FORMATS: Mapping[str, LabelFormat] = {"SEG": "dicom_seg", "RTSTRUCT": "rtstruct"}
_NOT_IMAGES = frozenset({
    "RTDOSE", "RTPLAN", "RTRECORD", "SR", "PR", "KO", "REG", "FID", "DOC", "AU", "ECG", "RWV", "M3D", "PLAN",
})  # fmt: skip


@dataclass(frozen=True)
class Member:
    """A stack of a patient and where the layout puts it.

    study, name: as the cases will be called. is_label: the layout says so; DICOM SEG and RTSTRUCT are labels anyhow.
    beside: a label that refers to nothing belongs to the only image with the same text here, such as a folder, and to
    none if there isn't exactly one; None asks the study.
    """

    study: str
    name: str
    stack: SeriesFacts
    is_label: bool = False
    beside: str | None = None

    @property
    def series(self) -> tuple[str, str, str]:
        """What is the same for all stacks of a series."""
        stack = self.stack
        return stack.folder, stack.series_uid, stack.files[0] if stack.kind == "nifti" else ""

    @property
    def label_format(self) -> LabelFormat | None:
        """How to read it as a label; None if it can't be one."""
        return "nifti" if self.stack.kind == "nifti" else _LABEL_FORMATS.get(self.stack.modality)

    @property
    def marked(self) -> bool:
        """Whether it is a label, by the layout or by its header."""
        return self.is_label or self.stack.modality in _LABEL_FORMATS


def is_label_word(words: Iterable[str]) -> bool:
    """Whether one of some words (in any case) marks a label."""
    return any(word.lower() in LABEL_WORDS for word in words)


def by_folder(stacks: Iterable[SeriesFacts], folders: Collection[str] | None = None) -> dict[str, list[SeriesFacts]]:
    """Stacks by the folder that their files lie in directly; of these folders only, if they are given."""
    found: defaultdict[str, list[SeriesFacts]] = defaultdict(list)
    for stack in stacks:
        if folders is None or stack.folder in folders:
            found[stack.folder].append(stack)
    return dict(found)


def _broken_file(stack: SeriesFacts) -> bool:
    """Whether this is a DICOM file whose header could not be read, so nobody knows which series it is missing from."""
    return bool(stack.code) and not stack.series_uid and (
        stack.kind == "dicom" or all(name.lower().endswith(".dcm") for name in stack.files)
    )  # fmt: skip


def _usable(patient: str, members: Sequence[Member], found: Findings) -> list[Member]:
    """Members without those that can't be used, which are set aside.

    A broken file in a folder of one series means that the series may lack a slice, which no later check would see if it
    were the last one: the whole series is set aside.
    """
    folders: defaultdict[str, list[Member]] = defaultdict(list)
    with_dicom: set[str | None] = set()
    for member in members:
        folders[member.stack.folder].append(member)
        if member.stack.kind == "dicom" and not member.stack.code and not member.marked:
            with_dicom |= {member.stack.folder, member.beside}
    usable = []
    for inside in folders.values():
        broken = [m for m in inside if _broken_file(m.stack)]
        alone = len({m.series for m in inside if m not in broken}) <= 1
        if broken and alone:
            found.set_aside(patient, broken[0].stack)
            continue
        for member in inside:
            stack = member.stack
            if stack.kind == "other" and member not in broken:
                found.notes.note("layout.files_not_placed", len(stack.files))
            elif stack.code:
                found.set_aside(patient, stack)
            elif stack.kind == "nifti" and not member.is_label and {stack.folder, member.beside or ""} & with_dicom:
                found.notes.note("layout.files_not_placed", len(stack.files))  # a converted copy of the DICOM images
            elif stack.modality not in _NOT_IMAGES:
                usable.append(member)
    return usable


def _only(images: Iterable[Member]) -> list[Member]:
    """The images, if they are all stacks of one series; else none."""
    kept = list(images)
    return kept if len({image.series for image in kept}) == 1 else []


def _owners(label: Member, images: Sequence[Member]) -> list[Member]:
    """The images that a label belongs to; none if that isn't certain.

    What a label refers to comes first; then the only image beside it, if the layout says what that means; else the only
    one of its study with its frame of reference; then the only one of its study, unless both state a frame of reference
    and these differ.
    """
    references = set(label.stack.references)
    if named := [i for i in images if i.stack.series_uid in references or i.name in references]:
        return named
    if label.beside is not None:
        return _only(i for i in images if i.beside == label.beside)
    study = [i for i in images if i.study == label.study]
    frame = label.stack.frame_of_reference
    if frame and (same := _only(i for i in study if i.stack.frame_of_reference == frame)):
        return same
    only = _only(study)
    return [i for i in only if not frame or i.stack.frame_of_reference in ("", frame)]


def _own_labels(patient: str, image: Member, own: Sequence[Member], found: Findings) -> list[Member] | None:
    """The labels of an image in one format; None if they come in formats that nobody can choose between."""
    formats = {label.label_format for label in own}
    if formats == {"dicom_seg", "rtstruct"}:
        found.notes.note("layout.labels_in_two_formats", 1, patient)
        return [label for label in own if label.label_format == "dicom_seg"]
    if len(formats) > 1:
        error = LabelError("An image has labels in two formats.", local_detail=f"{image.study}/{image.name}")
        found.quarantined.append(Quarantined.because(patient, error))
        return None
    return list(own)


def match(place: Place, patient: str, members: Sequence[Member], clinical: Mapping[str, str], found: Findings) -> None:
    """Make the cases of one patient and add them to `found`: every stack of images, with the labels that belong to it.

    Stacks with a code are set aside with it; labels whose image isn't certain are noted.
    """
    usable = _usable(patient, members, found)
    images = [m for m in usable if not m.marked]
    labels: defaultdict[int, list[Member]] = defaultdict(list)
    position = {id(image): number for number, image in enumerate(images)}
    for label in usable:
        if not label.marked:
            continue
        if label.label_format is None:
            found.notes.note("layout.labels_unreadable", 1, patient)
            continue
        owners = _owners(label, images)
        if not owners:
            found.notes.note("layout.labels_without_image", 1, patient)
        for owner in owners:
            labels[position[id(owner)]].append(label)
    for number, image in enumerate(images):
        own = _own_labels(patient, image, labels[number], found)
        if own is None:
            continue
        found.cases.append(
            Case(
                patient,
                image.study,
                image.name,
                place.files(image.stack.folder, image.stack.files),
                "nifti" if image.stack.kind == "nifti" else "dicom",
                label=tuple(sorted(place.path(file) for label in own for file in label.stack.files)),
                label_format=own[0].label_format if own else None,
                clinical=clinical,
                modality=image.stack.modality,
                stack=image.stack.stack,
                facts=image.stack,
                label_identifiers=dict(sum((Counter(label.stack.identifiers) for label in own), Counter())),
            )
        )


def with_modality(stack: SeriesFacts, expected: str) -> SeriesFacts:
    """The stack with a table's modality where its header states none."""
    return stack if stack.modality or not expected else replace(stack, modality=expected)
