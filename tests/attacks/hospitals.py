"""Two hospitals whose patients have names, numbers, files and pixels that can be recognised wherever they turn up."""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from pathlib import Path

import nibabel
import numpy as np
import pydicom

from eucaim_fl.cohorts.dicom_writer import SeriesStyle, Study, uid
from eucaim_fl.cohorts.layout_writers import Disease, LabelledScan, write_tier3

__all__ = ["Canaries", "write_dicom_hospital", "write_nifti_hospital"]


@dataclass
class Canaries:
    """Texts and sequences of bytes that stand in the hospitals' files and nowhere else."""

    texts: dict[str, list[str]] = field(default_factory=dict)
    pixels: list[bytes] = field(default_factory=list)

    def plant(self, kind: str, text: str) -> str:
        self.texts.setdefault(kind, []).append(text)
        return text


SHAPE = (32, 32, 3)
PATIENTS = 24
"""So that 14 train and 5 are behind each figure: the least numbers for confidential data."""


def _scan(rng: np.random.Generator, pattern: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """An image in HU with a bright ball, its mask, and the pattern along a row of every slice."""
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij"), axis=-1)
    mask = np.linalg.norm((grid - [*rng.integers(10, 22, 2), 1]) * [1, 1, 3], axis=-1) < rng.uniform(4, 7)
    image = np.rint(rng.normal(0, 15, SHAPE) + 120 * mask)
    image[:, 2, :] = pattern[:, None]
    return image, mask


def write_dicom_hospital(folder: Path, canaries: Canaries) -> None:
    """Tier 3: DICOM with a name, a birth date and a number in every header, and names in names of files."""
    rng = np.random.default_rng(1)
    pattern = rng.integers(-150, 230, SHAPE[0])
    canaries.pixels += [
        (pattern + 1024).astype("<u2").tobytes(),
        *(pattern.astype(t).tobytes() for t in ("<i2", "<f4")),
    ]
    affine, cases = np.diag([-2.0, -2.0, 4.0, 1.0]), []
    for number in range(PATIENTS):
        image, mask = _scan(rng, pattern)
        study = Study(
            f"MRN7731{number:02d}KQ",
            f"1.2.826.0.1.3680043.77310.{number}.5",
            2020,
            "F",
            61,
        )
        canaries.plant("series", uid("series", study.study_uid, 1))
        canaries.plant("series", uid("series", study.study_uid, 2))
        cases.append(LabelledScan(study, Disease("BP1000105"), image, affine, {"lesion": mask}))
    write_tier3(folder, "attacked", cases, SeriesStyle("Siemens"))
    for place in sorted(folder.rglob("*.dcm")):
        ds = pydicom.dcmread(place)
        ds.PatientName, ds.PatientBirthDate, ds.AccessionNumber = "Quintavalle^Ottilie", "19410307", "ACC77310X"
        ds.save_as(place)
        if place.name != "segmentation.dcm":
            place.rename(place.with_name(f"befundxk_{place.name}"))
    for kind, text in (
        ("name", "Quintavalle"), ("name", "Ottilie"), ("number", "MRN7731"), ("number", "ACC77310X"),
        ("study", "3680043.77310"), ("file", "befundxk"),
    ):  # fmt: skip
        canaries.plant(kind, text)


def write_nifti_hospital(folder: Path, canaries: Canaries) -> None:
    """NIfTI and a table, named after people."""
    rng = np.random.default_rng(2)
    pattern = rng.integers(-150, 230, SHAPE[0])
    canaries.pixels.append(pattern.astype("<f4").tobytes())
    (folder / "bildxk").mkdir(parents=True)
    rows = []
    for number in range(PATIENTS):
        image, mask = _scan(rng, pattern)
        patient = f"MRN7732{number:02d}KQ"
        row = {"patient_id": patient, "remark": "Oberdakis, Zenobia"}
        for kind, array in (("image", image.astype(np.float32)), ("label", mask.astype(np.uint8))):
            row[kind] = f"bildxk/Oberdakis_{number:02d}_{kind}.nii"
            made = nibabel.Nifti1Image(array, np.diag([2.0, 2.0, 4.0, 1.0]))
            made.header["descrip"] = b"Oberdakis^Zenobia"
            nibabel.save(made, folder / row[kind])
        rows.append(row)
    with (folder / "clinical.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    for kind, text in (("name", "Oberdakis"), ("name", "Zenobia"), ("number", "MRN7732"), ("folder", "bildxk")):
        canaries.plant(kind, text)
