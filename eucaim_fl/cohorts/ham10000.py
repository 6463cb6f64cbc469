"""Real dermatoscopy images (HAM10000) as four hospitals' cohorts, by where they were taken, or by chance.

The folder holds `images_64.zip` (one 64 × 64 RGB JPEG a lesion) and `clinical.csv` with image_id, lesion_id, source,
dx, age and sex. The data set names no patients, so a lesion is a patient. Three of the sources are one clinic's devices
and archives over the years, the fourth (rosendahl) is a practice; of their lesions 1 % to 42 % are malignant.
Images become dermoscopic photographs (DICOM), of no stated date or scale. Two sites keep the JPEG streams as they are,
in tier-3 CDM; the other two hold the same pixels uncompressed, in a folder with a table. Dealt by chance, four sites of
the same sizes and formats differ in nothing else: what the sources' differences do to a federation shows against these.
Source: Tschandl et al. 2018, doi 10.7910/DVN/DBW86T, CC BY-NC 4.0.
"""

from __future__ import annotations

import csv
import io
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import Image

from eucaim_fl.cohorts.staging import staged
from eucaim_fl.errors import CohortError, SeriesError
from eucaim_fl.seeding import generator

if TYPE_CHECKING:
    from eucaim_fl.cohorts.layout_writers import Photograph

__all__ = ["IMAGES", "MALIGNANT", "SITES", "SPLITS", "TABLE", "Split", "write_ham10000"]

IMAGES, TABLE = "images_64.zip", "clinical.csv"
SITES: Mapping[str, str] = {
    "ham_molemax": "vidir_molemax",
    "ham_modern": "vidir_modern",
    "ham_rosendahl": "rosendahl",
    "ham_dias": "vienna_dias",
}
"""Site → its source, as the data set calls it."""
Split = Literal["sources", "chance"]
SPLITS: Mapping[Split, tuple[str, ...]] = {
    "sources": tuple(SITES),
    "chance": ("ham_chance_a", "ham_chance_b", "ham_chance_c", "ham_chance_d"),
}
"""How lesions are divided → the names of the sites, by size and format those of the sources; all may be there."""
MALIGNANT = frozenset({"mel", "bcc", "akiec"})
"""Diagnoses that count as malignant: melanoma, basal cell carcinoma, actinic keratoses with Bowen's disease."""
_BENIGN = frozenset({"nv", "bkl", "df", "vasc"})
_SIDE = 64
_LARGEST_IMAGE_BYTES = 2**20
_IN_TIER_3 = 2
"""So many sites of a split, its first ones, are in tier-3 CDM."""
_SKIN = "SNOMEDCT:39937001"
_WITH_CANCER, _WITHOUT_CANCER = "COM1001087", "COM1001086"
_SEXES: Mapping[str, Literal["M", "F"]] = {"male": "M", "female": "F"}

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


def _dealt(rows: Mapping[str, list[Row]], seed: int) -> dict[str, list[Row]]:
    """The same rows by chance: each site of `chance` gets as many as the source in its place has."""
    every = [row for own in rows.values() for row in own]
    ends = np.cumsum([len(own) for own in rows.values()])
    parts = np.split(generator(seed, "ham10000 split").permutation(len(every)), ends[:-1])
    return {site: [every[i] for i in sorted(part)] for site, part in zip(SPLITS["chance"], parts, strict=True)}


def _jpeg(archive: zipfile.ZipFile, image: str) -> bytes:
    """The image's file. Raises ValueError or KeyError if it is missing, or its header is none of this data set's."""
    name = f"{image}.jpg"
    if archive.getinfo(name).file_size > _LARGEST_IMAGE_BYTES:
        raise ValueError("an image that is larger than it can be")
    raw = archive.read(name)
    try:
        with Image.open(io.BytesIO(raw), formats=["JPEG"]) as picture:
            if picture.size != (_SIDE, _SIDE) or picture.mode != "RGB":
                raise ValueError("an image of another size, or without colours")
    except OSError as problem:  # of the decoder; where files can't be written, `staged` says so
        raise ValueError(str(problem)) from None
    return raw


def _photograph(row: Row, jpeg: bytes) -> Photograph:
    """A row of the table and its image; what the data set calls unknown is empty."""
    from eucaim_fl.cohorts.dicom_writer import Study, pseudonym, uid
    from eucaim_fl.cohorts.layout_writers import Disease, Photograph

    malignant = row["dx"] in MALIGNANT
    age = row["age"].partition(".")[0]
    study = Study(
        pseudonym("ham10000", row["lesion_id"]),
        uid("ham10000 study", row["lesion_id"]),
        None,
        _SEXES.get(row["sex"], ""),
        int(age) if age.isdecimal() and len(age) <= 3 else None,
        "SKIN",
    )
    return Photograph(
        study,
        Disease(_SKIN, _WITH_CANCER if malignant else _WITHOUT_CANCER),
        jpeg,
        {"diagnosis": row["dx"], "malignant": int(malignant)},
    )


def write_ham10000(
    source: Path,
    folder: Path,
    *,
    seed: int = 0,
    split: Split = "sources",
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write `folder`/ham_molemax, ham_modern, ham_rosendahl and ham_dias: DICOM photographs with clinical values.

    source: folder with the archive and its table. split: with `sources` each image goes to the site where it was taken;
    `chance` writes ham_chance_a … ham_chance_d instead, which have as many images as the sources in that order, dealt
    by the seed. The first two: tier-3 CDM, the archive's JPEG streams unchanged; the others: images/ and clinical.csv,
    uncompressed.
    Clinical values: age, sex, diagnosis, and malignant, which is 1 for `MALIGNANT` and else 0.
    progress: called with images done and in all. Earlier cohorts of these names are replaced when all four are whole.
    Raises CohortError if the data set is missing or damaged, the folders hold other files, or the disk refuses.
    Raises RunFolderBusyError if another process writes these cohorts.
    """
    from eucaim_fl.cohorts.layout_writers import write_folder_photographs, write_tier3_photographs

    fix = f"Point `--from` to the folder of the data set ham10000, with {IMAGES} and {TABLE}."
    if not ((source / IMAGES).is_file() and (source / TABLE).is_file()):
        raise CohortError("The files of the data set ham10000 are missing.", fix=fix, local_detail=str(source))
    notice = (
        "Dermatoscopy images of HAM10000 (Tschandl et al. 2018, doi 10.7910/DVN/DBW86T, CC BY-NC 4.0), 64 pixels a "
        "side; identifiers are nominal."
    )

    done = total = 0

    def photographs(archive: zipfile.ZipFile, own: list[Row]) -> Iterator[Photograph]:
        nonlocal done
        for row in own:
            yield _photograph(row, _jpeg(archive, row["image_id"]))
            done += 1
            if progress is not None:
                progress(done, total)

    with staged(folder.resolve(), SPLITS[split], notice) as new:
        try:
            rows = _rows(source / TABLE)
            if split == "chance":
                rows = _dealt(rows, seed)
            total = sum(map(len, rows.values()))
            with zipfile.ZipFile(source / IMAGES) as archive:
                for number, (site, own) in enumerate(rows.items()):
                    if number < _IN_TIER_3:
                        write_tier3_photographs(new / site, site.replace("_", "-"), photographs(archive, own), "jpeg")
                    else:
                        write_folder_photographs(new / site, photographs(archive, own), "rgb")
        except (
            *(ValueError, KeyError, TypeError, EOFError),
            *(csv.Error, zipfile.BadZipFile, zlib.error, SeriesError),
        ) as problem:
            raise CohortError(
                "The data set ham10000 is damaged.", fix=fix, local_detail=f"{source}: {problem}"
            ) from None
