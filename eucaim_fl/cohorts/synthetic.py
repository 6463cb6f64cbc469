"""Four demo hospitals in real file formats, drawn from a seed: no patient is behind any of them.

They differ as hospitals do: vendor, contrast phase, matrix, spacing, orientation, stored values, compression, noise.
A model that has seen one of them only has learnt that lesions are darker than a liver of its own HU.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from eucaim_fl.cohorts.staging import staged
from eucaim_fl.errors import CohortError
from eucaim_fl.seeding import generator

if TYPE_CHECKING:
    from eucaim_fl.cohorts.dicom_writer import SeriesStyle
    from eucaim_fl.cohorts.layout_writers import LabelledScan
    from eucaim_fl.cohorts.phantom import Acquisition, Tissue

__all__ = ["GENERATOR_VERSION", "HOSPITALS", "LABEL", "demo_is_complete", "demo_is_there", "write_demo"]

GENERATOR_VERSION = 1
"""Raised with every change of what is written, so that older demo cohorts are written anew."""
LABEL = "lesion"
HOSPITALS = ("a", "b", "c", "d")
_MARKER = "demo.json"


@dataclass(frozen=True)
class _Hospital:
    """One hospital's habits. axes: the columns are the directions of I, J, K in RAS+; tilt_deg turns them about x."""

    layout: Literal["tier3", "upv", "nifti_csv"]
    matrix: tuple[int, int]
    slices: tuple[int, int]
    spacing_mm: tuple[float, float]
    axes: tuple[int, int, int]
    tilt_deg: tuple[float, float]
    tissue: Tissue
    acquisition: Acquisition
    style: SeriesStyle


def _hospitals() -> dict[str, _Hospital]:
    from eucaim_fl.cohorts.dicom_writer import SeriesStyle
    from eucaim_fl.cohorts.phantom import Acquisition, Tissue

    return {
        # portal venous phase: lesions darker than the liver
        "a": _Hospital(
            "tier3", (76, 76), (22, 25), (3.6, 5.0), (-1, -1, 1), (0, 0),
            Tissue(liver=100, spleen=115, aorta=140, vessel=22, lesion=(-72, -52)),
            Acquisition(blur_mm=1.6, noise_hu=8),
            SeriesStyle("Siemens Healthineers", naming="uid", reversed_numbers=True, description="Abdomen 5.0 B30f"),
        ),
        # late arterial phase: a bright aorta beside a liver that is hardly enhanced; an oblique stack, top to bottom
        "b": _Hospital(
            "tier3", (84, 68), (20, 23), (3.4, 6.0), (-1, -1, -1), (10, 15),
            Tissue(liver=78, spleen=120, aorta=260, vessel=-6, lesion=(-66, -48)),
            Acquisition(blur_mm=2.2, noise_hu=9),
            SeriesStyle(
                "Philips Medical Systems", slope=2.0, intercept=-1000.0, transfer_syntax="jpeg_ls", naming="random",
                description="ART ABD",
            ),
        ),
        # late portal phase, sharp kernel, thin slices; the table coordinate system turned by 180 degrees
        "c": _Hospital(
            "upv", (92, 92), (25, 28), (3.0, 4.0), (1, 1, 1), (0, 0),
            Tissue(liver=135, spleen=140, aorta=165, vessel=18, lesion=(-84, -60)),
            Acquisition(blur_mm=1.1, noise_hu=14),
            SeriesStyle(
                "GE MEDICAL SYSTEMS", slope=1.0, intercept=0.0, bits_stored=16, signed=True, naming="random",
                reversed_numbers=True, description="PORTAL 4mm",
            ),
        ),
        # no contrast medium: a liver as dark as the lesions of hospital a, in a coarse picture
        "d": _Hospital(
            "nifti_csv", (80, 64), (20, 24), (3.8, 5.0), (1, 1, 1), (0, 0),
            Tissue(liver=58, spleen=48, aorta=42, vessel=-8, lesion=(-58, -46)),
            Acquisition(blur_mm=2.0, noise_hu=10),
            SeriesStyle("Canon"),
        ),
    }  # fmt: skip


def _grid(hospital: _Hospital, rng: np.random.Generator) -> tuple[tuple[int, int, int], NDArray[np.float64]]:
    """Shape and affine (index → RAS+ mm) of one patient's scan, centred on the body."""
    in_plane = round(hospital.spacing_mm[0] * float(rng.uniform(0.96, 1.04)), 3)
    shape = (*hospital.matrix, int(rng.integers(hospital.slices[0], hospital.slices[1] + 1)))
    tilt = np.deg2rad(round(float(rng.uniform(*hospital.tilt_deg)), 2))
    turn = np.array([[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag(np.array(hospital.axes) * (in_plane, in_plane, hospital.spacing_mm[1]))
    centre = np.array([*rng.uniform(-5, 5, 2).round(1), round(float(rng.uniform(-4, 8)), 1)])
    affine[:3, 3] = centre - affine[:3, :3] @ (np.array(shape) - 1) / 2
    return shape, affine


def _case(hospital: _Hospital, name: str, number: int, malignant: bool, seed: int) -> LabelledScan:
    from eucaim_fl.cohorts.dicom_writer import Study, pseudonym, uid
    from eucaim_fl.cohorts.layout_writers import Disease, LabelledScan
    from eucaim_fl.cohorts.phantom import image_abdomen

    rng = generator(seed, "demo patient", name, number)
    shape, affine = _grid(hospital, rng)
    truth = image_abdomen(rng, shape, affine, hospital.tissue, hospital.acquisition, malignant=malignant)
    study = Study(
        patient_id=pseudonym("demo patient", seed, name, number),
        study_uid=uid("demo study", seed, name, number),
        year=int(rng.integers(2015, 2024)),
        sex="M" if rng.random() < 0.55 else "F",
        age=int(np.clip(rng.normal(66 if malignant else 57, 10), 30, 89)),
    )
    disease = (
        Disease("BP1000105", code="CLIN1000071", histology="ICDO3:8170/3")
        if malignant
        else Disease("BP1000105", category="COM1001086")
    )
    return LabelledScan(study, disease, truth.image, affine, {LABEL: truth.lesions}, {"malignant": int(malignant)})


def _cases(
    hospital: _Hospital, name: str, seed: int, patients: int, done: Callable[[], None]
) -> Iterator[LabelledScan]:
    """The hospital's patients, half of them with malignant lesions, in random order."""
    kinds = generator(seed, "demo kinds", name).permutation(np.arange(patients) % 2 == 0)
    for number in range(patients):
        yield _case(hospital, name, number, bool(kinds[number]), seed)
        done()


def _marker(seed: int, patients: int) -> dict[str, int]:
    return {"generator_version": GENERATOR_VERSION, "patients": patients, "seed": seed}


def demo_is_complete(folder: Path, seed: int = 0, patients: int = 24) -> bool:
    """Whether `folder` holds the demo hospitals of this seed, size and generator version, wholly written."""
    try:
        marker = json.loads((folder / _MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return marker == _marker(seed, patients) and all((folder / name).is_dir() for name in HOSPITALS)


def demo_is_there(folder: Path) -> bool:
    """Whether `folder` holds whole demo hospitals of this generator version, of any seed and size."""
    try:
        marker = json.loads((folder / _MARKER).read_text(encoding="utf-8"))
        return demo_is_complete(folder, marker["seed"], marker["patients"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def write_demo(
    folder: Path, *, seed: int = 0, patients: int = 24, progress: Callable[[int, int], None] | None = None
) -> None:
    """Write the four demo hospitals as `folder`/a … d: a and b tier-3 CDM (DICOM, DICOM SEG), c UPV, d NIfTI and CSV.

    patients: per hospital. progress: called with patients done and in all. Label: `lesion`; clinical: age, sex,
    `malignant` (0 or 1, half each). The same seed gives the same bytes. A complete cohort is left as it is;
    another one, or remains of one, is replaced when the new one is whole.
    Raises CohortError if the folder holds files that are not of a demo cohort, the disk refuses, or patients < 1.
    Raises RunFolderBusyError if another process writes this cohort.
    """
    if patients < 1:
        raise CohortError(f"A demo hospital needs at least one patient, not {patients}.")
    if demo_is_complete(folder, seed, patients):
        return
    from eucaim_fl.cohorts.layout_writers import write_nifti_csv, write_tier3, write_upv

    folder = folder.resolve()
    finished = 0

    def done() -> None:
        nonlocal finished
        finished += 1
        if progress is not None:
            progress(finished, patients * len(HOSPITALS))

    notice = "Synthetic images and clinical values, drawn from a seed; there are no real patients behind them."
    with staged(folder.parent, [folder.name], notice) as new:
        for name, hospital in _hospitals().items():
            at = new / folder.name / name
            cases = _cases(hospital, name, seed, patients, done)
            if hospital.layout == "tier3":
                write_tier3(at, f"demo-{name}", cases, hospital.style, older_dialect=name == "b")
            elif hospital.layout == "upv":
                write_upv(at, cases, hospital.style)
            else:
                write_nifti_csv(at, cases)
        text = json.dumps(_marker(seed, patients), sort_keys=True)
        (new / folder.name / _MARKER).write_text(text + "\n", encoding="utf-8")
