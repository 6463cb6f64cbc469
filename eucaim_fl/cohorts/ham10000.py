"""Real dermatoscopy images (HAM10000) as four hospitals' cohorts, by where they were taken.

The folder holds `images_64.zip` (one 64 × 64 RGB JPEG a lesion) and `clinical.csv` with image_id, lesion_id, source,
dx, age and sex. The data set names no patients, so a lesion is a patient. Three of the sources are one clinic's devices
and archives over the years, the fourth (rosendahl) is a practice; of their lesions 1 % to 42 % are malignant.
Pixels are 1 mm squares: that is nominal, as the data set states no scale.
Source: Tschandl et al. 2018, doi 10.7910/DVN/DBW86T, CC BY-NC 4.0.
"""

from __future__ import annotations

import csv
import io
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eucaim_fl.cohorts.staging import staged
from eucaim_fl.errors import CohortError

__all__ = ["IMAGES", "MALIGNANT", "SITES", "TABLE", "write_ham10000"]

IMAGES, TABLE = "images_64.zip", "clinical.csv"
SITES: Mapping[str, str] = {
    "ham_molemax": "vidir_molemax",
    "ham_modern": "vidir_modern",
    "ham_rosendahl": "rosendahl",
    "ham_dias": "vienna_dias",
}
"""Site → its source, as the data set calls it."""
MALIGNANT = frozenset({"mel", "bcc", "akiec"})
"""Diagnoses that count as malignant: melanoma, basal cell carcinoma, actinic keratoses with Bowen's disease."""
_BENIGN = frozenset({"nv", "bkl", "df", "vasc"})
_SIDE = 64
_LARGEST_IMAGE_BYTES = 2**20
_RGB24 = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
_COLUMNS = ("patient_id", "image", "age", "sex", "diagnosis", "malignant")

Row = dict[str, str]


def _rows(path: Path) -> dict[str, list[Row]]:
    """Site → its rows, in the table's order. Raises ValueError if the table is another one."""
    found: dict[str, list[Row]] = {site: [] for site in SITES}
    site_of = {source: site for site, source in SITES.items()}
    with path.open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            if row["dx"] not in MALIGNANT | _BENIGN:
                raise ValueError("an unknown diagnosis")
            found[site_of[row["source"]]].append(row)
    rows = [row for site in found.values() for row in site]
    if not all(found.values()) or len({row["lesion_id"] for row in rows}) < len(rows):
        raise ValueError("a source without images, or a lesion with two")
    return found


def _pixels(archive: zipfile.ZipFile, image: str) -> NDArray[Any]:
    """The image as RGB24, shape (columns, rows, 1): the first axis goes to the right, the second down.

    Raises ValueError or KeyError if it is missing or no image of this data set.
    """
    from PIL import Image

    name = f"{image}.jpg"
    if archive.getinfo(name).file_size > _LARGEST_IMAGE_BYTES:
        raise ValueError("an image that is larger than it can be")
    try:
        with Image.open(io.BytesIO(archive.read(name)), formats=["JPEG"]) as picture:
            if picture.size != (_SIDE, _SIDE) or picture.mode != "RGB":
                raise ValueError("an image of another size, or without colours")
            rgb = np.ascontiguousarray(np.asarray(picture, dtype=np.uint8).transpose(1, 0, 2))
    except OSError as problem:  # of the decoder; where files can't be written, `staged` says so
        raise ValueError(str(problem)) from None
    return rgb.view(_RGB24)


def _values(row: Row) -> Row:
    """The clinical values of a row; what the data set calls unknown is empty."""
    age = row["age"].partition(".")[0]
    return {
        "age": age if age.isdigit() else "",
        "sex": row["sex"] if row["sex"] in ("male", "female") else "",
        "diagnosis": row["dx"],
        "malignant": str(int(row["dx"] in MALIGNANT)),
    }


def _write_site(folder: Path, rows: list[Row], archive: zipfile.ZipFile) -> Iterator[None]:
    """Write `images/P0001.nii.gz` … and `clinical.csv`; yields after each image."""
    from eucaim_fl.cohorts.dicom_writer import pseudonym
    from eucaim_fl.cohorts.layout_writers import write_nifti

    written: list[Row] = []
    for number, row in enumerate(rows, start=1):
        path = f"images/P{number:04d}.nii.gz"
        write_nifti(folder / path, _pixels(archive, row["image_id"]), np.eye(4))
        written.append({"patient_id": pseudonym("ham10000", row["lesion_id"]), "image": path, **_values(row)})
        yield
    with (folder / "clinical.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, _COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(written)


def write_ham10000(source: Path, folder: Path, *, progress: Callable[[int, int], None] | None = None) -> None:
    """Write `folder`/ham_molemax, ham_modern, ham_rosendahl and ham_dias: NIfTI in colours (RGB24) with clinical.csv.

    source: folder with the archive and its table. Each image goes to the site where it was taken. Clinical columns:
    age, sex, diagnosis, and malignant, which is 1 for `MALIGNANT` and else 0.
    progress: called with images done and in all. Earlier cohorts of these names are replaced when all four are whole.
    Raises CohortError if the data set is missing or damaged, the folders hold other files, or the disk refuses.
    Raises RunFolderBusyError if another process writes these cohorts.
    """
    fix = f"Point `--from` to the folder of the data set ham10000, with {IMAGES} and {TABLE}."
    if not ((source / IMAGES).is_file() and (source / TABLE).is_file()):
        raise CohortError("The files of the data set ham10000 are missing.", fix=fix, local_detail=str(source))
    notice = (
        "Dermatoscopy images of HAM10000 (Tschandl et al. 2018, doi 10.7910/DVN/DBW86T, CC BY-NC 4.0), 64 pixels a "
        "side; identifiers and pixel size are nominal."
    )
    done = 0
    with staged(folder.resolve(), tuple(SITES), notice) as new:
        try:
            rows = _rows(source / TABLE)
            total = sum(map(len, rows.values()))
            with zipfile.ZipFile(source / IMAGES) as archive:
                for site, own in rows.items():
                    for _ in _write_site(new / site, own, archive):
                        done += 1
                        if progress is not None:
                            progress(done, total)
        except (ValueError, KeyError, TypeError, EOFError, csv.Error, zipfile.BadZipFile, zlib.error) as problem:
            raise CohortError(
                "The data set ham10000 is damaged.", fix=fix, local_detail=f"{source}: {problem}"
            ) from None
