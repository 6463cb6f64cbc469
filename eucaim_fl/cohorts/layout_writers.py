"""Cases to cohorts in the layouts of EUCAIM nodes: tier-3 CDM, UPV index, and NIfTI with a CSV.

Each writer takes an iterable of cases and holds one case at a time, so a cohort may be larger than memory.
Source: EUCAIM common data model (tier 3) and the UPV reference node's index.json and eforms.json; NIfTI-1.1.
"""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from eucaim_fl.cohorts.dicom_writer import SeriesStyle, Study, uid, write_segmentation, write_series
from eucaim_fl.cohorts.photograph_writer import PHOTOGRAPHS, Encoding, write_photograph
from eucaim_fl.errors import CohortError

__all__ = [
    "Disease",
    "LabelledScan",
    "Photograph",
    "label_map",
    "write_folder_photographs",
    "write_nifti",
    "write_nifti_csv",
    "write_tier3",
    "write_tier3_photographs",
    "write_upv",
]

Row = dict[str, Any]

_SEX_CODES = {"M": "COM1001366", "F": "COM1001370", "": "COM1001289"}
_SEX_WORDS = {"M": "MALE", "F": "FEMALE", "": "UNKNOWN"}
_PROCEDURE_CODES = {"CT": "IMG1000026", "MR": "IMG1000022"}
_VENDOR_CODES = {
    "siemens": "IMG1000044", "toshiba": "IMG1000045", "philips": "IMG1000046", "ge": "IMG1000047",
    "canon": "IMG1000050", "fujifilm": "IMG1000060", "hologic": "IMG1000064",
}  # fmt: skip
_CLINICAL_VIEW = (
    "dataset_id", "patient_id", "patient_birth_sex", "patient_ethnicity", "patient_diagnostic_category",
    "cancer_condition_age_at_diagnosis", "cancer_condition_age_unit", "cancer_condition_code",
    "cancer_condition_asserted_date", "cancer_condition_type", "cancer_condition_topography",
    "cancer_condition_histology_morphology", "evidence_procedure_code", "first_treatment_type",
    "first_treatment_offset_from_diagnosis", "first_treatment_offset_unit",
)  # fmt: skip


@dataclass(frozen=True)
class Disease:
    """Codes of the patient's condition. category: population code; code and histology stay empty if it is no cancer."""

    site_code: str
    category: str = "COM1001087"
    code: str = ""
    histology: str = ""


@dataclass(frozen=True)
class LabelledScan:
    """One labelled image. volume: (I, J, K), HU for CT; affine: index → RAS+ mm; masks: label → bool (I, J, K).

    clinical: further values of the patient, by column.
    """

    study: Study
    disease: Disease
    volume: NDArray[np.floating]
    affine: NDArray[np.float64]
    masks: Mapping[str, NDArray[np.bool_]]
    clinical: Mapping[str, str | int] = field(default_factory=dict)


@dataclass(frozen=True)
class Photograph:
    """One colour photograph of a patient, as the JPEG that it came as; clinical as in `LabelledScan`."""

    study: Study
    disease: Disease
    jpeg: bytes
    clinical: Mapping[str, str | int] = field(default_factory=dict)


def label_map(masks: Mapping[str, NDArray[np.bool_]]) -> NDArray[np.uint8]:
    """One volume of numbers, 1, 2, … in the mapping's order; where masks overlap the later one wins.

    Raises CohortError if there is no mask.
    """
    if not masks:
        raise CohortError("A case has no mask to write.")
    numbers = np.zeros(next(iter(masks.values())).shape, np.uint8)
    for number, mask in enumerate(masks.values(), start=1):
        numbers[mask] = number
    return numbers


def write_nifti(path: Path, array: NDArray[Any], affine: NDArray[np.float64]) -> None:
    """Write `.nii.gz` with the affine (index → RAS+ mm) as scanner coordinates; equal input gives equal bytes."""
    image = nib.Nifti1Image(array, affine)
    image.set_sform(affine, code="scanner")
    image.set_qform(affine, code="scanner")
    image.header.set_xyzt_units("mm")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(image.to_bytes(), compresslevel=4, mtime=0))


def _write_csv(path: Path, columns: Iterable[str], rows: Iterable[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(columns), restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _iso(study: Study) -> str:
    """The study's date as tables write it; "" if unknown."""
    return "" if study.year is None else f"{study.year}-01-01"


def _clinical_row(dataset_id: str, case: LabelledScan | Photograph) -> Row:
    """A row of the clinical mandatory view, with the case's further values as further columns."""
    study, disease = case.study, case.disease
    row: Row = {
        "dataset_id": dataset_id,
        "patient_id": study.patient_id,
        "patient_birth_sex": _SEX_CODES[study.sex],
        "patient_ethnicity": "COM1001311",
        "patient_diagnostic_category": disease.category,
        "cancer_condition_age_at_diagnosis": "" if study.age is None else study.age,
        "cancer_condition_age_unit": "" if study.age is None else "COM1000151",
        **case.clinical,
    }
    if disease.code:
        row |= {
            "cancer_condition_code": disease.code,
            "cancer_condition_asserted_date": _iso(study),
            "cancer_condition_type": "COM1000017",
            "cancer_condition_topography": disease.site_code,
            "cancer_condition_histology_morphology": disease.histology,
            "evidence_procedure_code": "CLIN1001938",
            "first_treatment_type": "CLIN1014933",
            "first_treatment_offset_from_diagnosis": 30,
            "first_treatment_offset_unit": "COM1000153",
        }
    return row


def _prefixed(row: Row) -> Row:
    """The row with EUCAIM's prefix before bare codes, as some nodes write them."""
    groups = ("COM1", "CLIN1", "BP1", "IMG1")
    return {key: f"EUCAIM:{v}" if isinstance(v, str) and v.startswith(groups) else v for key, v in row.items()}


def write_tier3(
    folder: Path, dataset_id: str, cases: Iterable[LabelledScan], style: SeriesStyle, *, older_dialect: bool = False
) -> None:
    """Write a tier-3 CDM dataset: two mandatory views, the clinical tables, and DICOM images with DICOM SEG.

    The segmentation is a series of its own in the image's study. Two cases of a patient are two studies; the
    patient's clinical row is that of the first.
    older_dialect: prefixed codes, vendor codes for names, and the column names that older exports have.
    """
    clinical: dict[str, Row] = {}
    series: list[Row] = []
    segments: list[Row] = []
    vendor = _VENDOR_CODES.get(style.manufacturer.split()[0].lower(), "") if older_dialect else style.manufacturer
    for case in cases:
        study = case.study
        row = _clinical_row(dataset_id, case)
        clinical.setdefault(study.patient_id, _prefixed(row) if older_dialect else row)
        at = folder / "imaging_data" / study.patient_id / study.study_uid
        image_uid, seg_uid = uid("series", study.study_uid, 1), uid("series", study.study_uid, 2)
        slices = write_series(at / image_uid, case.volume, case.affine, study, style)
        write_segmentation(at / seg_uid / "segmentation.dcm", slices, case.masks)
        entry: Row = {
            "dataset_id": dataset_id,
            "patient_id": study.patient_id,
            "image_procedure_code": _PROCEDURE_CODES[style.modality],
            "study_uid": study.study_uid,
            "series_uid": image_uid,
            "series_body_side_code" if older_dialect else "series_body_site_code": case.disease.site_code,
            "series_manufacturer_name" if older_dialect else "series_manufacturer": vendor,
        }
        series.append(_prefixed(entry) if older_dialect else entry)
        segments.append(
            {
                "patient_id": study.patient_id,
                "study_uid": study.study_uid,
                "series_uid": seg_uid,
                "source_series_uid": image_uid,
                "segmentation_method": "COM1000003",
                "segment_labels": "|".join(case.masks),
            }
        )
    _write_tables(folder, list(clinical.values()), series, segments)


def write_tier3_photographs(folder: Path, dataset_id: str, cases: Iterable[Photograph], encoding: Encoding) -> None:
    """Write a tier-3 CDM dataset of colour photographs, one a study: as `write_tier3` does, without segmentations.

    Manufacturers and ethnicity are not stated. Raises SeriesError if a photograph is no baseline JPEG in colours.
    """
    clinical: dict[str, Row] = {}
    series: list[Row] = []
    for case in cases:
        study = case.study
        clinical.setdefault(study.patient_id, {**_clinical_row(dataset_id, case), "patient_ethnicity": ""})
        image_uid = uid("series", study.study_uid, 1)
        at = folder / "imaging_data" / study.patient_id / study.study_uid / image_uid
        write_photograph(at / "IM00001.dcm", case.jpeg, study, encoding)
        series.append(
            {
                "dataset_id": dataset_id,
                "patient_id": study.patient_id,
                "image_procedure_code": PHOTOGRAPHS,
                "study_uid": study.study_uid,
                "series_uid": image_uid,
                "series_body_site_code": case.disease.site_code,
                "series_manufacturer": "",
            }
        )
    _write_tables(folder, list(clinical.values()), series)


def write_folder_photographs(folder: Path, cases: Iterable[Photograph], encoding: Encoding) -> None:
    """Write colour photographs into `images/`, and `clinical.csv` that tells by series whose they are.

    Columns: patient_id, series_uid, age, sex, then the cases' further values.
    Raises SeriesError if a photograph is no baseline JPEG in colours.
    """
    rows: list[Row] = []
    for number, case in enumerate(cases, start=1):
        series_uid = write_photograph(folder / "images" / f"IM{number:05d}.dcm", case.jpeg, case.study, encoding)
        rows.append(
            {
                "patient_id": case.study.patient_id,
                "series_uid": series_uid,
                "age": "" if case.study.age is None else case.study.age,
                "sex": _SEX_CODES[case.study.sex],
                **case.clinical,
            }
        )
    columns = dict.fromkeys([*("patient_id", "series_uid", "age", "sex"), *(key for row in rows for key in row)])
    _write_csv(folder / "clinical.csv", columns, rows)


def _write_tables(folder: Path, patients: list[Row], series: list[Row], segments: Sequence[Row] = ()) -> None:
    """The two mandatory views and the clinical tables of a tier-3 dataset."""
    further = dict.fromkeys(key for row in patients for key in row if key not in _CLINICAL_VIEW)
    keys = tuple(series[0]) if series else ("dataset_id", "patient_id", "study_uid", "series_uid")
    tables = folder / "clinical_data"
    _write_csv(folder / "clinical_mandatory_view.csv", (*_CLINICAL_VIEW, *further), patients)
    _write_csv(folder / "imaging_mandatory_view.csv", keys, series)
    for name, columns, rows in (
        ("patient", ("patient_id", "patient_birth_sex", "patient_ethnicity", "patient_diagnostic_category"), patients),
        ("cancer_condition", ("patient_id", *(c for c in _CLINICAL_VIEW if c.startswith("cancer_"))), patients),
        ("image_study", ("patient_id", "study_uid", "image_procedure_code"), series),
        ("image_series", [k for k in keys if k not in ("dataset_id", "image_procedure_code")], series),
        ("segmentation_series", segments[0] if segments else ("series_uid",), segments),
    ):
        _write_csv(tables / f"{name}.csv", columns, [{key: row.get(key, "") for key in columns} for row in rows])


def _value(value: str | int | None) -> dict[str, str | int | None]:
    return {"value": value, "value_type": "integer" if isinstance(value, int) else "text"}


def write_upv(folder: Path, cases: Iterable[LabelledScan], style: SeriesStyle) -> None:
    """Write a UPV dataset: index.json, eforms.json, DICOM image series, and NIfTI label maps.

    The label map lies in the study's folder as series `seg` (tag SEG), named after the labels joined by `-`, on the
    image's grid: first axis along a slice's columns, second along its rows, third over slices.
    Further clinical values stand on the page `patient_data`. Two cases of a patient are two studies.
    """
    index: list[Row] = []
    eforms: dict[str, Row] = {}
    for number, case in enumerate(cases, start=6001):
        study = case.study
        subject = study.patient_id.removeprefix("EUCAIM-")
        path = f"{subject}/{style.modality}{study.year or ''}-{number}"
        series_folder = str(1000 + 7 * number % 9000)
        write_series(folder / path / series_folder, case.volume, case.affine, study, style)
        write_nifti(folder / path / "seg" / f"{'-'.join(case.masks)}.nii.gz", label_map(case.masks), case.affine)
        index.append(
            {
                "studyId": str(number),
                "studyName": style.modality,
                "subjectName": subject,
                "path": path,
                "series": [
                    {"folderName": series_folder, "tags": ["Axial", style.modality]},
                    {"folderName": "seg", "tags": ["SEG"]},
                ],
                "url": f"https://node.example/studies/{number}",
            }
        )
        inclusion = {
            "age_at_diagnosis": {"value": study.age, "value_type": "integer"},
            "baseline_date": {"value": _iso(study), "value_type": "datepicker"},
        }
        patient = {"gender": _value(_SEX_WORDS[study.sex])} | {k: _value(v) for k, v in case.clinical.items()}
        pages = [
            {"page_name": "inclusion_criteria", "page_data": inclusion},
            {"page_name": "patient_data", "page_data": patient},
        ]
        eforms.setdefault(subject, {"subjectName": subject, "eForm": {"pages": pages}})
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "index.json", index)
    _write_json(folder / "eforms.json", list(eforms.values()))


def write_nifti_csv(folder: Path, cases: Iterable[LabelledScan]) -> None:
    """Write `images/P001.nii.gz`, `labels/P001.nii.gz` and `clinical.csv`, one row per case.

    Columns: patient_id, image, label (paths relative to the folder), age, sex, then the cases' further values.
    Images are rounded to 16-bit integers.
    """
    rows: list[Row] = []
    for number, case in enumerate(cases, start=1):
        name = f"P{number:03d}.nii.gz"
        values = np.clip(np.rint(case.volume), -(2**15), 2**15 - 1).astype(np.int16)
        write_nifti(folder / "images" / name, values, case.affine)
        write_nifti(folder / "labels" / name, label_map(case.masks), case.affine)
        rows.append(
            {
                "patient_id": case.study.patient_id,
                "image": f"images/{name}",
                "label": f"labels/{name}",
                "age": "" if case.study.age is None else case.study.age,
                "sex": _SEX_CODES[case.study.sex],
                **case.clinical,
            }
        )
    columns = dict.fromkeys([*("patient_id", "image", "label", "age", "sex"), *(key for row in rows for key in row)])
    _write_csv(folder / "clinical.csv", columns, rows)
