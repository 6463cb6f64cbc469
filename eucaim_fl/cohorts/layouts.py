"""How cohorts lie on disk at hospitals: EUCAIM tier 3, the UPV node's index, and NIfTI with a plain table.

Everything named in a table or index is a claim: it must resolve inside the cohort's folder, links included, or the
case is quarantined. Names of columns drift between EUCAIM tools, so they go through a table of aliases.
Source: EUCAIM common data model, tier-3 views; UPV reference node, index.json and eforms.json.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eucaim_fl.cohorts.codes import modality, plain_word
from eucaim_fl.cohorts.manifest import Case, ImageFormat, Quarantined
from eucaim_fl.errors import CohortError, DataError, LabelError, SeriesError, UnreadableFileError

__all__ = ["Findings", "eucaim_tier3", "nifti_csv", "upv_index"]

_LARGEST_TABLE_BYTES = 256 * 1024 * 1024
_ALIASES = {
    "series_body_side_code": "series_body_site_code",
    "series_manufacturer_name": "series_manufacturer",
    "treatment_type": "first_treatment_type",
    "date_baseline_ct": "baseline_date",
    "age_at_baseline": "age_at_diagnosis",
    "study_instance_uid": "study_uid",
    "series_instance_uid": "series_uid",
}
_NOT_IMAGES = frozenset({"SEG", "RTSTRUCT", "RTDOSE", "RTPLAN", "SR", "PR", "KO", "REG", "DOC"})


@dataclass(frozen=True)
class Findings:
    """What a layout's reader found; see `Manifest` for the meaning of the three lists."""

    cases: list[Case] = field(default_factory=list)
    quarantined: list[Quarantined] = field(default_factory=list)
    sources: list[Path] = field(default_factory=list)


@dataclass(frozen=True)
class _Series:
    study: str
    name: str
    files: tuple[Path, ...]
    format: ImageFormat
    modality: str
    uid: str
    references: frozenset[str]
    is_label: bool


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > _LARGEST_TABLE_BYTES:
            raise ValueError("too large")
        return path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as problem:
        raise CohortError(
            "A table of the cohort is missing or can't be read.",
            fix="Check cohort.layout and the cohort's tables.",
            local_detail=f"{path}: {problem}",
        ) from None


def _table(path: Path, required: Iterable[str]) -> list[dict[str, str]]:
    """Rows of a CSV file under canonical column names; empty cells and cells without a column are left out."""
    try:
        reader = csv.DictReader(io.StringIO(_text(path), newline=""), strict=True)
        names = {name: _ALIASES.get(name.strip(), name.strip()) for name in reader.fieldnames or () if name}
        rows = [
            {names[k]: v.strip() for k, v in row.items() if k in names and isinstance(v, str) and v.strip()}
            for row in reader
        ]
    except csv.Error as problem:
        raise CohortError("A table of the cohort is no valid CSV.", local_detail=f"{path}: {problem}") from None
    missing = sorted(set(required) - set(names.values()))
    if missing:
        raise CohortError(f"A table of the cohort lacks the columns {', '.join(missing)}.", local_detail=str(path))
    return [row for row in rows if row]


def _index(path: Path) -> list[Any]:
    try:
        value = json.loads(_text(path))
    except (ValueError, RecursionError) as problem:
        raise CohortError("An index of the cohort is no valid JSON.", local_detail=f"{path}: {problem}") from None
    if not isinstance(value, list):
        raise CohortError("An index of the cohort is no list.", local_detail=str(path))
    return value


def _inside(root: Path, *parts: str) -> Path:
    """The path of something that a table names, if it lies inside `root` once all links are followed."""
    try:
        path = root.joinpath(*parts)
        clean = all(parts) and not any(Path(p).is_absolute() or ".." in Path(p).parts for p in parts)
        if clean and path.resolve().is_relative_to(root.resolve()):
            return path
    except (ValueError, OSError, RuntimeError):
        pass
    raise DataError("A path leads out of the cohort's folder.", local_detail=f"{root}: {parts}")


def _files(root: Path, folder: Path) -> tuple[ImageFormat, tuple[Path, ...]]:
    """The image files of one series' folder: `*.dcm`, else NIfTI, else all that is there."""
    try:
        entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".") and entry.is_file()]
    except OSError as problem:
        raise UnreadableFileError("The folder of a series is missing.", local_detail=f"{folder}: {problem}") from None
    for entry in entries:
        if entry.is_symlink():
            _inside(root, str(entry.relative_to(root)))
    dicom = [e for e in entries if e.name.lower().endswith(".dcm")]
    nifti = [e for e in entries if e.name.lower().endswith((".nii", ".nii.gz"))]
    chosen = dicom or nifti or entries
    if not chosen:
        raise SeriesError("A series has no files.", local_detail=str(folder))
    return ("nifti" if nifti and not dicom else "dicom"), tuple(sorted(chosen))


def _describe(root: Path, folder: Path, study: str, is_label: bool | None = None) -> _Series:
    """Read what a series is from the header of its first readable file. is_label: None finds out by the modality."""
    kind, files = _files(root, folder)
    found, uid, references = "", folder.name, frozenset[str]()
    if kind == "dicom":
        from eucaim_fl.cohorts.dicom import read_header

        for path in files:
            try:
                header = read_header(path)
                items = header.get("ReferencedSeriesSequence") or ()
                references = frozenset(str(item.get("SeriesInstanceUID", "")) for item in items)
            except (UnreadableFileError, AttributeError, TypeError):
                continue  # is met again when the pixels are read, and reported there
            found, uid = str(header.get("Modality", "")), str(header.get("SeriesInstanceUID", uid))
            break
    label = found == "SEG" if is_label is None else is_label or found == "SEG"
    return _Series(study, folder.name, files, kind, found, uid, references, label)


def _match(patient: str, series: list[_Series], clinical: Mapping[str, str], found: Findings) -> None:
    """Make the cases of one patient: each image with the labels that refer to it, or the only ones of its study."""
    images = [s for s in series if not s.is_label and s.modality not in _NOT_IMAGES]
    known = {name for image in images for name in (image.uid, image.name)}
    labels = [s for s in series if s.is_label]
    for image in images:
        alone = sum(other.study == image.study for other in images) == 1
        own = [
            s
            for s in labels
            if s.references & {image.uid, image.name} or (alone and s.study == image.study and not s.references & known)
        ]
        formats = {s.format for s in own}
        if len(formats) > 1:
            error = LabelError("An image has labels in two formats.", local_detail=f"{image.study}/{image.name}")
            found.quarantined.append(Quarantined.because(patient, error))
            continue
        found.cases.append(
            Case(
                *(patient, image.study, image.name, image.files, image.format),
                label=tuple(sorted(path for s in own for path in s.files)),
                label_format=None if not own else "nifti" if formats == {"nifti"} else "dicom_seg",
                clinical=clinical,
                modality=image.modality,
            )
        )


def eucaim_tier3(folder: Path) -> Findings:
    """EUCAIM's tier-3 layout: two CSV views, and `imaging_data/{patient_id}/{study_uid}/{series_uid}/*.dcm`.

    The views may lie one level above the folder. Images are the series that the imaging view lists; DICOM SEG series
    are found beside them by the modality in their header, and belong to the series that they refer to.
    Raises CohortError if a view is missing, unreadable, or lacks a column that identifies patient, study or series.
    """
    views = [
        next((p for p in (folder / name, folder.parent / name) if p.is_file()), folder / name)
        for name in ("clinical_mandatory_view.csv", "imaging_mandatory_view.csv")
    ]
    found = Findings(sources=list(views))
    clinical: dict[str, dict[str, str]] = {}
    for row in _table(views[0], ["patient_id"]):
        clinical.setdefault(row.get("patient_id", ""), {key: plain_word(value) for key, value in row.items()})
    listed: dict[str, dict[tuple[str, str], str]] = {}
    for row in _table(views[1], ["patient_id", "study_uid", "series_uid"]):
        key = (row.get("study_uid", ""), row.get("series_uid", ""))
        listed.setdefault(row.get("patient_id", ""), {})[key] = modality(row.get("image_procedure_code", ""))
    for patient, rows in listed.items():
        series: list[_Series] = []
        for (study, name), expected in rows.items():
            try:
                place = _inside(folder, "imaging_data", *(part for part in (patient, study, name)))
                found.sources.append(place)
                one = _describe(folder, place, study)
                series.append(one if one.modality else _Series(**{**vars(one), "modality": expected}))
            except DataError as error:
                found.quarantined.append(Quarantined.because(patient, error))
        for study in sorted({s.study for s in series}):
            place = _inside(folder, "imaging_data", patient, study)
            found.sources.append(place)
            for other in sorted(p for p in place.iterdir() if p.is_dir() and (study, p.name) not in rows):
                try:
                    one = _describe(folder, _inside(folder, str(other.relative_to(folder))), study)
                except DataError:
                    continue  # not listed, so nobody asked for it
                found.sources.append(other)
                series.extend([one] if one.is_label and one.format == "dicom" else [])
        _match(patient, series, clinical.get(patient, {}), found)
    return found


def _eforms(path: Path) -> dict[str, dict[str, str]]:
    """Clinical values per subject, all pages in one, under canonical names."""
    subjects: dict[str, dict[str, str]] = {}
    for entry in _index(path):
        try:
            values = subjects.setdefault(str(entry["subjectName"]), {})
            for page in entry["eForm"]["pages"]:
                for name, content in page["page_data"].items():
                    value = content.get("value") if isinstance(content, dict) else None
                    if isinstance(value, str | int | float) and str(value).strip():
                        values[_ALIASES.get(name, name)] = plain_word(str(value).strip())
        except (KeyError, TypeError, AttributeError):
            continue  # a form without answers
    return subjects


def upv_index(folder: Path) -> Findings:
    """The UPV node's layout: `index.json`, `eforms.json` and `<path>/<folderName>/` for each listed series.

    Only listed series are read. A series tagged SEG holds the label, as DICOM SEG or as NIfTI.
    Raises CohortError if an index is missing, no JSON, or no list.
    """
    found = Findings(sources=[folder / "index.json", folder / "eforms.json"])
    clinical = _eforms(folder / "eforms.json")
    series: dict[str, list[_Series]] = {}
    for entry in _index(folder / "index.json"):
        try:
            patient, study, where = str(entry["subjectName"]), str(entry["studyId"]), str(entry["path"])
            listed = [(str(s["folderName"]), [str(tag).upper() for tag in s.get("tags", ())]) for s in entry["series"]]
        except (KeyError, TypeError, AttributeError) as problem:
            error = DataError("An entry of the cohort's index is malformed.", local_detail=repr(problem))
            found.quarantined.append(Quarantined.because("", error))
            continue
        for name, tags in listed:
            try:
                place = _inside(folder, where, name)
                found.sources.append(place)
                series.setdefault(patient, []).append(_describe(folder, place, study, "SEG" in tags))
            except DataError as error:
                found.quarantined.append(Quarantined.because(patient, error))
    for patient, ones in series.items():
        _match(patient, ones, clinical.get(patient, {}), found)
    return found


def nifti_csv(folder: Path) -> Findings:
    """NIfTI files and `clinical.csv` with the columns patient_id, image and (if there are labels) label.

    Paths are relative to the folder. Other columns are clinical values. A patient may have several rows.
    Raises CohortError if the table is missing, unreadable, or lacks patient_id or image.
    """
    table = folder / "clinical.csv"
    found = Findings(sources=[table])
    for row in _table(table, ["patient_id", "image"]):
        patient = row.get("patient_id", "")
        try:
            if not patient or "image" not in row:
                raise DataError("A row of the cohort's table names no patient or no image.", local_detail=str(row))
            image = _inside(folder, row["image"])
            label = _inside(folder, row["label"]) if "label" in row else None
            found.sources.extend(path for path in (image, label) if path is not None)
            if not image.is_file():
                raise UnreadableFileError("An image named in the cohort's table is missing.", local_detail=str(image))
            if label is not None and not label.is_file():
                raise LabelError("A label named in the cohort's table is missing.", local_detail=str(label))
        except DataError as error:
            found.quarantined.append(Quarantined.because(patient, error))
            continue
        found.cases.append(
            Case(
                *(patient, row.get("study_uid", ""), row.get("series_uid", row["image"]), (image,), "nifti"),
                label=() if label is None else (label,),
                label_format=None if label is None else "nifti",
                clinical={k: plain_word(v) for k, v in row.items() if k not in ("patient_id", "image", "label")},
            )
        )
    return found
