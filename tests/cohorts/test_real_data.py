"""Real scans, where they are at hand: EUCAIM_FL_SHARED_DATA, default ../shared/data beside the checkout."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
from PIL import Image

from eucaim_fl.cohorts.case_image import read_case_colours
from eucaim_fl.cohorts.dicom import read_series
from eucaim_fl.cohorts.dicom_writer import pseudonym
from eucaim_fl.cohorts.ham10000 import IMAGES, TABLE, write_ham10000
from eucaim_fl.cohorts.ham10000 import SITES as HAM_SITES
from eucaim_fl.cohorts.lidc import ARCHIVE, SITES, write_lidc
from eucaim_fl.cohorts.lidc_split import skewed_split
from eucaim_fl.cohorts.manifest import Manifest, read_manifest
from eucaim_fl.errors import SeriesError
from eucaim_fl.sitefile import SiteFile

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("EUCAIM_FL_SHARED_DATA") or ROOT.parent / "shared" / "data")
pytestmark = [
    pytest.mark.realdata,
    pytest.mark.skipif(not DATA.is_dir(), reason=f"no real data at {DATA}; set EUCAIM_FL_SHARED_DATA"),
]


def series(part: str) -> list[Path]:
    """Files of the first real prostate MR series whose folder name holds `part`."""
    folders = sorted(p for p in (DATA / "prostatex").rglob("*") if p.is_dir() and part in p.name)
    return sorted(folders[0].glob("*.dcm"))


def manifest_of(folder: Path, layout: str) -> Manifest:
    """What a site over the folder finds, with its cache beside it."""
    return read_manifest(
        SiteFile.model_validate(
            {
                "name": folder.name,
                "cohort": {"layout": layout, "folder": folder},
                "cache": {"folder": folder.parent / f".cache_{folder.name}"},
            }
        )
    )


class TestProstateMr:
    @pytest.mark.parametrize("part", ["t2tsesag", "t2tsetra", "t2tsecor"])
    def test_a_siemens_series_lies_where_an_independent_reader_says(self, part: str) -> None:
        files = series(part)
        volume = read_series(files)
        other = highdicom.get_volume_from_series([pydicom.dcmread(path) for path in files])
        spots = np.array([[0, 0, 0], [3, 40, 50], [1, 7, 90]])  # slice, row, column of the other reader
        places = other.map_indices_to_reference(spots) * [-1, -1, 1]  # LPS+ → RAS+
        inverse = np.linalg.inv(volume.affine)
        for spot, place in zip(spots, places, strict=True):
            index = (inverse @ [*place, 1])[:3]
            assert np.allclose(index, np.rint(index), atol=1e-3)
            assert volume.array[tuple(np.rint(index).astype(int))] == other.array[tuple(spot)]

    def test_a_series_with_a_missing_slice_is_refused(self) -> None:
        files = sorted((DATA / "prostatex" / "ProstateX-0000-missing-slice").rglob("*.dcm"))
        with pytest.raises(SeriesError, match="missing"):
            read_series(files)


class TestLidc:
    def test_real_nodules_become_four_cohorts_without_a_shared_patient(self, tmp_path: Path) -> None:
        few = tmp_path / "few"
        few.mkdir()
        with np.load(DATA / "lidc_nodules" / ARCHIVE, allow_pickle=False) as archive:
            np.savez(few / ARCHIVE, **{name: archive[name][:12] for name in archive.files})
        write_lidc(few, tmp_path / "data")
        found = {
            name: {case.patient for case in manifest_of(tmp_path / "data" / name, layout).cases}
            for name, layout in zip(SITES, ["eucaim_tier3", "eucaim_tier3", "nifti_csv", "nifti_csv"], strict=True)
        }
        assert sum(len(patients) for patients in found.values()) == 12
        assert len(set.union(*found.values())) == 12

    def test_the_skewed_split_goes_from_small_and_solid_to_large_and_faint_with_both_classes(self) -> None:
        with np.load(DATA / "lidc_nodules" / ARCHIVE, allow_pickle=False) as archive:
            volumes = archive["masks"].reshape(len(archive["name"]), -1).sum(axis=1)
            textures, malignancy = archive["texture"], archive["malignancy"]
        malignant = [None if score == 3 else bool(score > 3) for score in malignancy]
        for seed in range(3):
            site = skewed_split(volumes, textures, malignant, seed)
            assert sorted(np.bincount(site).tolist()) == [33, 33, 34, 34]
            middles = [float(np.median(volumes[site == n])) for n in range(4)]
            assert middles[0] < 250 < 1000 < middles[3]
            assert textures[site == 0].mean() > 4.5 > 3 > textures[site == 3].mean()
            for wanted in (True, False):
                own = site[[n for n, one in enumerate(malignant) if one is wanted]]
                assert np.bincount(own, minlength=4).min() >= 4


class TestHam10000:
    def test_real_images_become_four_cohorts_in_colours(self, tmp_path: Path) -> None:
        source, few = DATA / "ham10000", tmp_path / "few"
        few.mkdir()
        header, *lines = (source / TABLE).read_text().splitlines()
        kept = [line for name in HAM_SITES.values() for line in [one for one in lines if name in one][:3]]
        (few / TABLE).write_text("\n".join([header, *kept]) + "\n")
        with zipfile.ZipFile(source / IMAGES) as whole, zipfile.ZipFile(few / IMAGES, "w") as part:
            for line in kept:
                name = f"{line.partition(',')[0]}.jpg"
                part.writestr(name, whole.read(name))
        write_ham10000(few, tmp_path / "data")
        for site in HAM_SITES:
            layout = "eucaim_tier3" if site in ("ham_molemax", "ham_modern") else "folder_csv"
            cases = manifest_of(tmp_path / "data" / site, layout).cases
            assert [case.clinical["malignant"] in ("0", "1") for case in cases] == [True] * 3
            stored = [read_case_colours(case) for case in cases]
            pictures = [np.stack([colour.array[:, :, 0].T for colour in one], axis=-1) for one in stored]
            named = {pseudonym("ham10000", line.split(",")[1]): line.partition(",")[0] for line in kept}
            with zipfile.ZipFile(few / IMAGES) as part:
                shown = [np.asarray(Image.open(part.open(f"{named[case.patient]}.jpg"))) for case in cases]
            assert np.array_equal(pictures, shown)
