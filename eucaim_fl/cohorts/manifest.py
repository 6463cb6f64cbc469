"""What lies in a cohort: its cases, and what could not be used and why. No pixel is read here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from eucaim_fl.cohorts.facts import SeriesFacts
from eucaim_fl.errors import CohortError, EucaimError
from eucaim_fl.sitefile import SiteFile

__all__ = ["Case", "ImageFormat", "LabelFormat", "Manifest", "Quarantined", "read_manifest"]

ImageFormat = Literal["dicom", "nifti"]
LabelFormat = Literal["dicom_seg", "rtstruct", "nifti"]


@dataclass(frozen=True)
class Case:
    """One image of one patient, with its label and the patient's clinical values in plain words.

    image, label: files that lie inside the cohort's folder. label is () and label_format None if there is none.
    modality: DICOM modality (CT, MR, …); empty for NIfTI, or where it is not stated.
    facts: what the index knows of the image's stack; None where there is none. stack: as in `SeriesFacts`.
    further: images of the other channels, in the plan's order, once a plan has chosen them.
    """

    patient: str
    study: str
    series: str
    image: tuple[Path, ...]
    image_format: ImageFormat
    label: tuple[Path, ...] = ()
    label_format: LabelFormat | None = None
    clinical: Mapping[str, str] = field(default_factory=dict)
    modality: str = ""
    stack: str = ""
    facts: SeriesFacts | None = None
    further: tuple[Case, ...] = ()


@dataclass(frozen=True)
class Quarantined:
    """A case that is not used. `code` and `reason` are safe outside the hospital; `local_detail` is not."""

    patient: str
    code: str
    reason: str
    local_detail: str = ""

    @classmethod
    def because(cls, patient: str, error: EucaimError) -> Quarantined:
        """The record of a patient's case that met an error."""
        return cls(patient, error.code, error.message, error.local_detail)


@dataclass(frozen=True)
class Manifest:
    """Cases of a site in canonical order (patient, study, series).

    sources: files and folders (existing or missing) that were read to make the manifest. As long as these and the
    cases' own files are unchanged, it need not be made again.
    """

    site: str
    cases: tuple[Case, ...]
    quarantined: tuple[Quarantined, ...] = ()
    sources: tuple[Path, ...] = ()


def read_manifest(site: SiteFile) -> Manifest:
    """Find the cases of a site's cohort by its layout.

    A case that can't be used (missing files, paths that lead out of the cohort) is quarantined; the others go on.
    Raises CohortError if the folder or its tables are missing or can't be read, or if there is no case in it at all.
    """
    from eucaim_fl.cohorts import layouts  # here, because layouts builds on the classes above

    folder = site.cohort_folder()
    if not folder.is_dir():
        raise CohortError(
            "The cohort's folder is missing.",
            fix="Check cohort.folder in the site file, and EUCAIM_FL_DATA.",
            local_detail=str(folder),
        )
    readers: dict[str, Callable[[Path], layouts.Findings]] = {
        "eucaim_tier3": layouts.eucaim_tier3,
        "upv_index": layouts.upv_index,
        "nifti_csv": layouts.nifti_csv,
    }
    found = readers[site.cohort.layout](folder)
    if not found.cases and not found.quarantined:
        raise CohortError(
            "The cohort is empty.", fix="Check cohort.layout and cohort.folder.", local_detail=str(folder)
        )
    names = site.cohort.columns
    cases = (
        Case(**{**vars(c), "clinical": {names.get(key, key): value for key, value in c.clinical.items()}})
        for c in found.cases
    )
    return Manifest(
        site.name,
        tuple(sorted(cases, key=lambda c: (c.patient, c.study, c.series))),
        tuple(sorted(found.quarantined, key=lambda q: (q.patient, q.code, q.local_detail))),
        tuple(sorted(set(found.sources))),
    )
