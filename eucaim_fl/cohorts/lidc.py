"""Real CT lung nodules (LIDC-IDRI) as four hospitals' cohorts, from an archive of cubes.

The archive `lidc_nodules_51.npz` holds `images` (n, 51, 51, 51) in [0, 1], `masks`, `malignancy` and `texture` (1 to 5,
by radiologists) and `name` (`<scan>_nod<k>_…`). Intensities are mapped to HU by 0 → −1000 and 1 → 400, and voxels to
1 mm cubes in RAS order: both are nominal, as the archive does not state its own scaling and geometry.
Source: Armato et al. 2011, LIDC-IDRI, doi 10.7937/K9/TCIA.2015.LO9QL9SX, CC BY 3.0.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from eucaim_fl.cohorts.lidc_split import equal_split, skewed_split
from eucaim_fl.cohorts.staging import staged
from eucaim_fl.errors import CohortError

if TYPE_CHECKING:
    from eucaim_fl.cohorts.layout_writers import LabelledScan

__all__ = ["ARCHIVE", "LABEL", "SITES", "SPLITS", "Split", "write_lidc"]

ARCHIVE = "lidc_nodules_51.npz"
LABEL = "nodule"
Split = Literal["equal", "skewed"]
SITES = ("lidc_a", "lidc_b", "lidc_c", "lidc_d")
SPLITS: Mapping[Split, tuple[str, ...]] = {
    "equal": SITES,
    "skewed": ("lidc_skewed_a", "lidc_skewed_b", "lidc_skewed_c", "lidc_skewed_d"),
}
"""How scans are divided → the names of the sites; both may be there side by side."""
_LOWEST_HU, _HIGHEST_HU = -1000.0, 400.0
_UNDECIDED = 3


@dataclass(frozen=True)
class _Nodules:
    images: NDArray[np.floating[Any]]  # (n, I, J, K) in [0, 1]
    masks: NDArray[np.bool_]
    malignancy: NDArray[np.int64]
    texture: NDArray[np.int64]
    scans: tuple[str, ...]  # the same scan is the same patient


def _read(source: Path) -> _Nodules:
    """Read and check the archive; every fault is a CohortError."""
    path = source / ARCHIVE
    fix = "Point `--from` to the folder of the data set lidc_nodules (LIDC-IDRI nodules, 51 voxels a side)."
    if not path.is_file():
        raise CohortError("The archive of the data set lidc_nodules is missing.", fix=fix, local_detail=str(path))
    try:
        with np.load(path, allow_pickle=False) as archive:
            images, masks, malignancy, texture, names = (
                archive[key] for key in ("images", "masks", "malignancy", "texture", "name")
            )
        count = len(images)
        if images.ndim != 4 or masks.shape != images.shape or count < len(SITES):
            raise ValueError("images and masks are not cubes of one shape, or too few")
        if not (malignancy.shape == texture.shape == names.shape == (count,)):
            raise ValueError("clinical values and images differ in number")
        if not (
            np.isfinite(images).all() and images.min() >= 0 and images.max() <= 1 and set(np.unique(masks)) <= {0, 1}
        ):
            raise ValueError("intensities outside [0, 1], or masks that are not binary")
        scans = tuple(str(name).split("_nod")[0] for name in names)
        return _Nodules(images, masks.astype(bool), malignancy.astype(np.int64), texture.astype(np.int64), scans)
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as problem:
        raise CohortError(
            "The archive of the data set lidc_nodules is damaged.", fix=fix, local_detail=f"{path}: {problem}"
        ) from None


def _split(nodules: _Nodules, split: Split, seed: int) -> dict[str, list[int]]:
    """Site → indices of its nodules; all of a scan are at one site."""
    scans = sorted(set(nodules.scans))
    if split == "equal":
        site_of = equal_split(len(scans), seed)
    else:
        own = [[i for i, scan in enumerate(nodules.scans) if scan == name] for name in scans]
        voxels = nodules.masks.reshape(len(nodules.masks), -1).sum(axis=1)
        site_of = skewed_split(
            [float(np.exp(np.log(np.maximum(voxels[indices], 1)).mean())) for indices in own],
            [float(nodules.texture[indices].mean()) for indices in own],
            [_malignant(int(nodules.malignancy[indices].max())) for indices in own],
            seed,
        )
    place = {scan: SPLITS[split][number] for scan, number in zip(scans, site_of, strict=True)}
    return {site: [i for i, scan in enumerate(nodules.scans) if place[scan] == site] for site in SPLITS[split]}


def _malignant(score: int) -> bool | None:
    return None if score == _UNDECIDED else score > _UNDECIDED


def _cases(nodules: _Nodules, indices: list[int], done: Callable[[], None]) -> Iterator[LabelledScan]:
    from eucaim_fl.cohorts.dicom_writer import Study, pseudonym, uid
    from eucaim_fl.cohorts.layout_writers import Disease, LabelledScan

    affine = np.eye(4)
    affine[:3, 3] = -(np.array(nodules.images.shape[1:]) - 1) / 2
    for index in indices:
        scan = nodules.scans[index]
        # A patient's clinical values are those of the most suspicious nodule, whichever image they stand beside.
        worst = max((i for i in indices if nodules.scans[i] == scan), key=lambda i: (nodules.malignancy[i], -i))
        malignancy = int(nodules.malignancy[worst])
        malignant = _malignant(malignancy)
        yield LabelledScan(
            Study(pseudonym("lidc", scan), uid("lidc study", scan, index), 2011, body_part="CHEST"),
            Disease("BP1000113", category="COM1002624"),
            nodules.images[index].astype(np.float32) * (_HIGHEST_HU - _LOWEST_HU) + _LOWEST_HU,
            affine,
            {LABEL: nodules.masks[index]},
            {
                "malignancy": malignancy,
                "texture": int(nodules.texture[worst]),
                "malignant": "" if malignant is None else int(malignant),
            },
        )
        done()


def write_lidc(
    source: Path,
    folder: Path,
    *,
    seed: int = 0,
    split: Split = "equal",
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write `folder`/lidc_a … lidc_d: a and b tier-3 CDM (DICOM CT, DICOM SEG), c and d NIfTI with clinical.csv.

    source: folder with the archive. All nodules of a scan go to one site. split: `equal` divides scans evenly and at
    random by the seed; `skewed` writes lidc_skewed_a … lidc_skewed_d instead, in the same formats, from small solid
    nodules (a) to large ones of ground glass (d): scans sorted by z(log volume) − z(texture), means over their nodules,
    with jitter by the seed (see `lidc_split.skewed_split`).
    Label: `nodule`; clinical: `malignancy` and `texture` of the patient's most suspicious nodule, 1 to 5, and
    `malignant`, 1 for a malignancy of 4 or 5, 0 for 1 or 2, empty for 3.
    progress: called with nodules done and in all. Earlier cohorts of these names are replaced when all four are whole.
    Raises CohortError if the archive is missing or damaged, the folders hold other files, or the disk refuses.
    Raises RunFolderBusyError if another process writes these cohorts.
    """
    from eucaim_fl.cohorts.dicom_writer import SeriesStyle
    from eucaim_fl.cohorts.layout_writers import write_nifti_csv, write_tier3

    nodules = _read(source)
    folder = folder.resolve()
    finished = 0

    def done() -> None:
        nonlocal finished
        finished += 1
        if progress is not None:
            progress(finished, len(nodules.scans))

    lung = (-500.0, 1500.0)
    styles = {
        0: SeriesStyle("GE MEDICAL SYSTEMS", intercept=0.0, bits_stored=16, signed=True, window=lung),
        1: SeriesStyle("Siemens", transfer_syntax="jpeg_ls", naming="random", reversed_numbers=True, window=lung),
    }
    notice = (
        "CT lung nodules of LIDC-IDRI (doi 10.7937/K9/TCIA.2015.LO9QL9SX, CC BY 3.0), cropped to cubes; "
        "identifiers, dates, manufacturers, HU scaling and spacing are nominal."
    )
    with staged(folder, SPLITS[split], notice) as new:
        for number, (site, indices) in enumerate(_split(nodules, split, seed).items()):
            cases = _cases(nodules, indices, done)
            if number in styles:
                write_tier3(new / site, site.replace("_", "-"), cases, styles[number])
            else:
                write_nifti_csv(new / site, cases)
