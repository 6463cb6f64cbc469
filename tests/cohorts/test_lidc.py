import csv
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest

from eucaim_fl.cohorts.lidc import ARCHIVE, SITES, SPLITS, write_lidc
from eucaim_fl.cohorts.manifest import Manifest, read_manifest
from eucaim_fl.durable import exclusive
from eucaim_fl.errors import CohortError, RunFolderBusyError
from eucaim_fl.sitefile import SiteFile

pytestmark = pytest.mark.integration


def archive(folder: Path, **changes: Any) -> Path:
    """Nine nodules of eight scans, 6 voxels a side; nodule n has intensity n/10 throughout."""
    masks = np.zeros((9, 6, 6, 6), np.uint8)
    masks[:, 2:4, 1:5, 2] = 1
    values: dict[str, Any] = {
        "images": np.full((9, 6, 6, 6), 1, np.float16) * (np.arange(9, dtype=np.float16) / 10).reshape(-1, 1, 1, 1),
        "masks": masks,
        "malignancy": np.array([2, 3, 1, 5, 4, 3, 2, 2, 5]),
        "texture": np.array([5, 4, 3, 2, 1, 5, 4, 3, 2]),
        "name": np.array([f"{n}_nod1_ann0" for n in range(8)] + ["0_nod2_ann0"]),
    }
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(folder / ARCHIVE, **{k: v for k, v in {**values, **changes}.items() if v is not None})
    return folder


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def patients(folder: Path) -> dict[str, set[str]]:
    tables = {site: "clinical_mandatory_view.csv" if site < "lidc_c" else "clinical.csv" for site in SITES}
    return {site: {row["patient_id"] for row in rows(folder / site / table)} for site, table in tables.items()}


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


class TestWriteLidc:
    def test_scans_are_split_evenly_and_a_patient_is_at_one_site(self, tmp_path: Path):
        write_lidc(archive(tmp_path / "in"), tmp_path / "out")
        found = patients(tmp_path / "out")
        assert [len(found[site]) for site in SITES] == [2, 2, 2, 2]
        assert len(set().union(*found.values())) == 8

    def test_another_seed_gives_another_split(self, tmp_path: Path):
        source = archive(tmp_path / "in")
        write_lidc(source, tmp_path / "0", seed=0)
        write_lidc(source, tmp_path / "1", seed=1)
        assert patients(tmp_path / "0") != patients(tmp_path / "1")

    def test_the_skewed_split_lies_beside_the_equal_one(self, tmp_path: Path):
        source = archive(tmp_path / "in")
        write_lidc(source, tmp_path / "out")
        write_lidc(source, tmp_path / "out", split="skewed")
        assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted([*SITES, *SPLITS["skewed"]])
        cases = []
        for number, site in enumerate(SPLITS["skewed"]):
            found = manifest_of(tmp_path / "out" / site, "eucaim_tier3" if number < 2 else "nifti_csv")
            cases += found.cases
        assert len(cases) == 9
        assert {case.patient for case in cases} == set().union(*patients(tmp_path / "out").values())

    def test_the_readers_find_every_nodule_with_its_label(self, tmp_path: Path):
        write_lidc(archive(tmp_path / "in"), tmp_path / "out")
        cases = []
        for site in SITES:
            found = manifest_of(tmp_path / "out" / site, "eucaim_tier3" if site < "lidc_c" else "nifti_csv")
            assert found.quarantined == ()
            cases += found.cases
        assert len(cases) == 9
        assert all(case.label for case in cases)

    def test_intensities_are_mapped_to_hu_and_masks_kept(self, tmp_path: Path):
        write_lidc(archive(tmp_path / "in"), tmp_path / "out")
        values = set()
        for row in rows(tmp_path / "out" / "lidc_c" / "clinical.csv"):
            image = nib.load(tmp_path / "out" / "lidc_c" / row["image"])
            values |= set(np.unique(image.get_fdata()))
            label = np.asanyarray(nib.load(tmp_path / "out" / "lidc_c" / row["label"]).dataobj)
            assert np.argwhere(label).min(axis=0).tolist() == [2, 1, 2]
            assert image.header.get_zooms() == (1, 1, 1)
        for path in (tmp_path / "out" / "lidc_a" / "imaging_data").rglob("IM*.dcm"):
            ds = pydicom.dcmread(path)
            values |= set(np.unique(ds.pixel_array * float(ds.RescaleSlope) + float(ds.RescaleIntercept)))
        expected = {-1000 + 140 * n for n in range(9)}
        assert all(min(abs(value - hu) for hu in expected) <= 1 for value in values)  # float16 in the archive

    def test_a_patients_clinical_values_are_those_of_the_worst_nodule(self, tmp_path: Path):
        write_lidc(archive(tmp_path / "in"), tmp_path / "out")
        values = {}
        for site in SITES:
            table = "clinical_mandatory_view.csv" if site < "lidc_c" else "clinical.csv"
            for row in rows(tmp_path / "out" / site / table):
                values.setdefault(row["patient_id"], set()).add((row["malignancy"], row["texture"]))
        assert sorted(v for each in values.values() for v in each) == sorted(
            [("5", "2"), ("3", "4"), ("1", "3"), ("5", "2"), ("4", "1"), ("3", "5"), ("2", "4"), ("2", "3")]
        )

    def test_who_is_malignant_follows_from_the_score_and_three_is_undecided(self, tmp_path: Path):
        write_lidc(archive(tmp_path / "in"), tmp_path / "out")
        for site in SITES:
            table = "clinical_mandatory_view.csv" if site < "lidc_c" else "clinical.csv"
            for row in rows(tmp_path / "out" / site / table):
                assert row["malignant"] == {"1": "0", "2": "0", "3": "", "4": "1", "5": "1"}[row["malignancy"]]

    def test_progress_counts_nodules_and_a_second_call_replaces_the_cohorts(self, tmp_path: Path):
        seen: list[tuple[int, int]] = []
        source = archive(tmp_path / "in")
        write_lidc(source, tmp_path / "out")
        write_lidc(source, tmp_path / "out", progress=lambda done, total: seen.append((done, total)))
        assert seen == [(n, 9) for n in range(1, 10)]
        assert sorted(p.name for p in (tmp_path / "out").iterdir()) == list(SITES)

    def test_a_missing_archive_says_which_data_set_and_where_to_point(self, tmp_path: Path):
        with pytest.raises(CohortError, match=r"lidc_nodules is missing.*--from") as caught:
            write_lidc(tmp_path / "nowhere", tmp_path / "out")
        assert str(tmp_path) not in str(caught.value)
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        "changes",
        [
            {"texture": None},
            {"masks": np.zeros((9, 6, 6, 5), np.uint8)},
            {"masks": np.full((9, 6, 6, 6), 2, np.uint8)},
            {"malignancy": np.zeros(3, int)},
            {"images": np.full((9, 6, 6, 6), 400.0)},
            {"images": np.full((9, 6, 6, 6), np.nan)},
            {"name": np.array([{"a": 1}] * 9, dtype=object)},  # would need pickle
        ],
    )
    def test_an_archive_with_other_content_is_refused(self, changes: dict[str, Any], tmp_path: Path):
        with pytest.raises(CohortError, match="damaged"):
            write_lidc(archive(tmp_path / "in", **changes), tmp_path / "out")

    @pytest.mark.parametrize("keep", [0, 10, 400])
    def test_a_truncated_archive_is_refused(self, keep: int, tmp_path: Path):
        path = archive(tmp_path / "in") / ARCHIVE
        path.write_bytes(path.read_bytes()[:keep])
        with pytest.raises(CohortError, match="damaged"):
            write_lidc(tmp_path / "in", tmp_path / "out")

    def test_cohorts_that_another_process_writes_are_left_alone(self, tmp_path: Path):
        source = archive(tmp_path / "in")
        with exclusive(tmp_path / "out" / ".lidc_a.part"), pytest.raises(RunFolderBusyError, match="Another process"):
            write_lidc(source, tmp_path / "out")
