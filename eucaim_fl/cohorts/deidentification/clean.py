"""De-identified copies of DICOM and NIfTI files, after EUCAIM's profile; the image itself stays bit for bit."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pydicom
from dicomanonymizer.simpledicomanonymizer import anonymize_dataset, initialize_actions_2024b
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from eucaim_fl.cohorts.deidentification import judges
from eucaim_fl.cohorts.deidentification.headers import identifiers_in_header
from eucaim_fl.cohorts.deidentification.patterns import emails
from eucaim_fl.cohorts.deidentification.replacements import Action, hashed_uid, replacements, year_only
from eucaim_fl.cohorts.deidentification.rules import RULES
from eucaim_fl.cohorts.deidentification.tags import SAFE_PRIVATE
from eucaim_fl.cohorts.deidentification.words import is_imaging_word, plain_words, tokens
from eucaim_fl.cohorts.elements import walk
from eucaim_fl.cohorts.volume import LARGEST_VOLUME_BYTES
from eucaim_fl.durable import write_atomically
from eucaim_fl.errors import IdentifierError, ImportFailedError, JournalError, UnreadableFileError

__all__ = ["METHOD", "deidentify_file", "deidentify_nifti"]

METHOD = "EUCAIM Deidentification v5"
_SHORTEST_SECRET = 16
_CAPTURES = frozenset({"SC", "US", "OT", "XC", "ES", "GM", "IVUS", "DOC", "OP"})
_OPTIONS = (
    ("113100", "Basic Application Confidentiality Profile"),
    ("113105", "Clean Descriptors Option"),
    ("113107", "Retain Longitudinal Temporal Information Modified Dates Option"),
    ("113108", "Retain Patient Characteristics Option"),
    ("113111", "Retain Safe Private Option"),
)
_TEXT_VRS = frozenset({"LO", "SH", "ST", "LT", "UT", "UC", "UR"})
_UIDS_OF_CLASSES = ("ClassUID", "SyntaxUID", "CodingSchemeUID", "ContextUID", "ContextGroup", "MappingResourceUID")


def deidentify_file(source: Path, target: Path, secret: bytes) -> None:
    """Write a de-identified copy of a DICOM file: the basic profile of PS3.15 with EUCAIM's own rules.

    PatientID becomes `EUCAIM-<hash>`, UIDs (but those of the standard) hashes under 2.25, the institution a hash, dates
    1 January of their year, descriptions their imaging words; names, numbers, free text, devices, private elements
    (but a safe few), overlays and curves go, at any depth. All hashes are keyed with `secret`, so equal values in files
    cleaned with the same secret stay equal, and segmentations still refer to their images. Pixel data and transfer
    syntax are unchanged. The copy is written whole or not at all.
    Raises IdentifierError if text is or may be burned into the pixels, an overlay lies inside them, a document is
    enclosed, or the result would still break a rule; and if the secret is shorter than 16 bytes.
    Raises UnreadableFileError if the file is missing, corrupt, no DICOM file, or too large.
    Raises ImportFailedError if the copy can't be written.
    Source: DICOM PS3.15 table E.1-1 by the package dicom-anonymizer; EUCAIM de-identification profile v5.
    """
    if len(secret) < _SHORTEST_SECRET:
        raise IdentifierError(
            f"The secret for pseudonyms is shorter than {_SHORTEST_SECRET} bytes.", fix="Use 32 random bytes."
        )
    try:
        if source.stat().st_size > LARGEST_VOLUME_BYTES:
            raise ValueError("file larger than a volume may be")
        dataset = pydicom.dcmread(source, force=True)
        if "SOPClassUID" not in dataset:
            raise ValueError("no DICOM file")
        _refuse_what_cant_be_cleaned(dataset, source)
        _clean(dataset, secret)
        content = _bytes(dataset)
        left = identifiers_in_header(walk(content))
    except IdentifierError:
        raise
    except Exception as problem:  # noqa: BLE001 - a foreign file can make the reader raise anything
        raise UnreadableFileError(
            "A DICOM file is missing, corrupt, or can't be de-identified.", local_detail=f"{source}: {problem!r}"
        ) from None
    broken = [rule for rule in left if rule in RULES and RULES[rule].eucaim == "identifier"]
    if broken:
        raise IdentifierError(
            "A DICOM file can't be de-identified fully.",
            fix="De-identify it at its source.",
            local_detail=f"{source}: {', '.join(sorted(broken))}",
        )
    _write(target, content)


def _write(target: Path, content: bytes) -> None:
    try:
        write_atomically(target, content, survive_power_loss=False)
    except JournalError as problem:
        raise ImportFailedError(
            "A de-identified copy can't be written.",
            fix="Check the disk's room and the folder's permissions.",
            local_detail=problem.local_detail,
        ) from None


def _refuse_what_cant_be_cleaned(dataset: Dataset, source: Path) -> None:
    """Raise IdentifierError for what sits in the pixels or in enclosed documents."""
    reason = ""
    burned = str(dataset.get("BurnedInAnnotation", "")).upper()
    image_type = {str(part).upper() for part in dataset.get("ImageType", None) or ()}
    captured = (
        str(dataset.SOPClassUID).startswith("1.2.840.10008.5.1.4.1.1.7")
        or dataset.get("Modality", "") in _CAPTURES
        or any("SCREEN" in part for part in image_type)
    )
    if "EncapsulatedDocument" in dataset:
        reason = "A document is enclosed in a DICOM file."
    elif burned == "YES":
        reason = "A DICOM file says that text is burned into its pixels."
    elif "PixelData" in dataset and captured and burned != "NO":
        reason = "A captured image doesn't say that no text is burned into its pixels."
    elif "PixelData" in dataset and captured and _shows_text(dataset):
        reason = "Something like text was seen in the pixels of a captured image."
    elif _has_overlay_in_pixels(dataset):
        reason = "An overlay lies inside the pixels of an image."
    if reason:
        raise IdentifierError(
            reason, fix="Mask the text, state BurnedInAnnotation NO, or leave the file out.", local_detail=str(source)
        )


def _has_overlay_in_pixels(dataset: Dataset) -> bool:
    """Whether an overlay has no data of its own, so that it uses high bits of the pixels (retired)."""
    groups = {tag.group for tag in tuple(dataset.keys()) if tag.group >> 8 == 0x60 and tag.group % 2 == 0}
    return any((group, 0x3000) not in dataset and (group, 0x0102) in dataset for group in groups)


def _shows_text(dataset: Dataset) -> bool:
    from eucaim_fl.cohorts.deidentification.burned_in import text_in_pixels

    frames = dataset.pixel_array
    if dataset.get("SamplesPerPixel", 1) > 1:
        frames = frames.mean(axis=-1)
    planes = frames[None] if frames.ndim == 2 else frames
    chosen = range(0, len(planes), max(1, len(planes) // 8))
    return any(text_in_pixels(planes[k]) for k in chosen)


def _datasets(dataset: Dataset) -> Iterator[Dataset]:
    """The data set and those of all items inside it, at any depth."""
    yield dataset
    for element in dataset:
        if element.VR == "SQ":
            for item in element.value:
                yield from _datasets(item)


def _own_words(dataset: Dataset) -> frozenset[str]:
    name = str(dataset.get("PatientName", ""))
    if not judges.person(name.encode("utf-8", "replace")):
        return frozenset()
    return frozenset(t for t in tokens(name) if len(t) >= 3 and not t.isdecimal() and not is_imaging_word(t))


def _clean(dataset: Dataset, secret: bytes) -> None:
    """Change the data set in place."""
    names = _own_words(dataset)
    born = str(dataset.get("PatientBirthDate", ""))
    ours = replacements(secret, names)
    for one in list(_datasets(dataset)):
        _remove_private(one)
    anonymize_dataset(dataset, ours, delete_private_tags=False, base_rules_gen=initialize_actions_2024b)
    inside: dict[tuple[int, int], Action] = initialize_actions_2024b() | ours
    for one in _datasets(dataset):
        if one is not dataset:
            for tag in list(one.keys()):
                action = inside.get((tag.group, tag.element))
                if action is not None:
                    action(one, (tag.group, tag.element))
        _clean_the_rest(one, secret, names, born)
    dataset.PatientIdentityRemoved = "YES"
    dataset.DeidentificationMethod = METHOD
    dataset.DeidentificationMethodCodeSequence = [_coded(value, meaning) for value, meaning in _OPTIONS]
    dataset.LongitudinalTemporalInformationModified = "MODIFIED"


def _coded(value: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "DCM", meaning
    return item


def _remove_private(dataset: Dataset) -> None:
    """Remove private elements but those on the safe list, and creators that nothing is left of."""
    used: set[int] = set()
    tags = tuple(dataset.keys())  # iterating a data set gives elements
    private = [tag for tag in tags if tag.is_private]
    for tag in private:
        if tag.is_private_creator:
            continue
        creator_tag = tag.group << 16 | tag.element >> 8
        creator = str(dataset[creator_tag].value).strip() if creator_tag in dataset else ""
        if SAFE_PRIVATE.get((tag.group, tag.element & 0xFF)) == creator and creator and dataset[tag].VR != "SQ":
            used.add(creator_tag)
        else:
            del dataset[tag]
    for tag in private:
        if tag in dataset and tag.is_private_creator and int(tag) not in used:
            del dataset[tag]


def _clean_the_rest(dataset: Dataset, secret: bytes, names: frozenset[str], born: str) -> None:
    """Elements that no table lists: by what they are, or by what stands in them."""
    for tag in list(dataset.keys()):
        if tag.group >> 8 in (0x50, 0x60) and tag.group % 2 == 0:
            del dataset[tag]
            continue
        element = dataset[tag]
        if element.is_empty or element.VR == "SQ":
            continue
        if element.VR == "PN" and judges.person(str(element.value).encode("utf-8", "replace")):
            element.value = ""
        elif element.VR in ("DA", "DT") and judges.date(str(element.value).encode()):
            values = element.value if element.VM > 1 else [element.value]
            element.value = [year_only(str(value)) for value in values]
        elif element.VR == "UI" and not element.keyword.endswith(_UIDS_OF_CLASSES):
            values = element.value if element.VM > 1 else [element.value]
            element.value = [v if str(v).startswith("2.25.") else hashed_uid(secret, str(v)) for v in values]
        elif element.VR in _TEXT_VRS:
            text = str(element.value)
            if emails(text) or (born and born in text) or names & set(tokens(text, len(text))):
                element.value = " ".join(word for word in plain_words(text).split() if word not in names)


def _bytes(dataset: Dataset) -> bytes:
    """The data set as a file: empty preamble, meta information made anew, the same transfer syntax."""
    implicit, little = dataset.original_encoding
    old = getattr(dataset, "file_meta", None) or FileMetaDataset()
    syntax = old.get("TransferSyntaxUID") or (ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian)
    if not old.get("TransferSyntaxUID") and not little:
        raise ValueError("a big-endian file without meta information")
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.preamble = b"\0" * 128
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def deidentify_nifti(source: Path, target: Path) -> None:
    """Write a copy of a NIfTI file without texts and extensions in its header; voxels and geometry stay as they are.

    descrip, aux_file, intent_name, db_name and data_type are emptied. A target whose name ends in `.gz` is compressed,
    with no file name and no time in it. The copy is written whole or not at all.
    Raises UnreadableFileError if the file is missing, corrupt, too large, or no NIfTI file in one piece.
    Raises ImportFailedError if the copy can't be written.
    """
    from eucaim_fl.cohorts.deidentification.nifti_headers import cleared

    _write(target, cleared(source, compressed=target.name.endswith(".gz")))
