import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest

from eucaim_fl.cohorts import synthetic
from eucaim_fl.cohorts.manifest import Manifest, read_manifest
from eucaim_fl.cohorts.synthetic import HOSPITALS, demo_is_complete, write_demo
from eucaim_fl.durable import exclusive
from eucaim_fl.errors import CohortError, RunFolderBusyError
from eucaim_fl.sitefile import SiteFile

pytestmark = pytest.mark.integration


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def ct_slices(folder: Path) -> Iterator[pydicom.Dataset]:
    return (ds for ds in map(pydicom.dcmread, folder.rglob("*.dcm")) if ds.Modality == "CT")


def manifest_of(folder: Path, layout: str, cache: Path) -> Manifest:
    """What a site over the folder finds."""
    return read_manifest(
        SiteFile.model_validate(
            {
                "name": folder.name,
                "cohort": {"layout": layout, "folder": folder},
                "cache": {"folder": cache},
            }
        )
    )


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "demo"
    write_demo(folder, seed=7, patients=2)
    return folder


class TestWriteDemo:
    def test_the_readers_find_every_patient_with_label_and_diagnosis(self, demo: Path, tmp_path: Path):
        layouts = {"a": "eucaim_tier3", "b": "eucaim_tier3", "c": "upv_index", "d": "nifti_csv"}
        for name, layout in layouts.items():
            found = manifest_of(demo / name, layout, tmp_path)
            assert found.quarantined == ()
            assert {note.rule for note in found.notes} <= {
                "codes.unplaced",
                "layout.aliases_used",
                "layout.columns_unknown",
            }
            assert len(found.cases) == 2
            assert sorted(case.clinical["malignant"] for case in found.cases) == ["0", "1"]
            assert all(case.label for case in found.cases)

    def test_hospitals_differ_as_their_scanners_do(self, demo: Path):
        first = {name: next(ct_slices(demo / name)) for name in "abc"}
        assert len({ds.Manufacturer for ds in first.values()}) == 3
        assert len({(ds.Rows, ds.Columns) for ds in first.values()}) == 3
        assert first["b"].file_meta.TransferSyntaxUID == pydicom.uid.JPEGLSLossless
        assert (first["b"].RescaleSlope, first["c"].PixelRepresentation, first["c"].BitsStored) == (2, 1, 16)
        tilt = np.rad2deg(np.arcsin(abs(float(first["b"].ImageOrientationPatient[5]))))
        assert 10 <= tilt <= 15
        assert first["c"].ImageOrientationPatient == [-1, 0, 0, 0, -1, 0]

    def test_no_patient_is_at_two_hospitals(self, demo: Path):
        names = [path.name for name in "ab" for path in (demo / name / "imaging_data").iterdir()]
        names += [f"EUCAIM-{entry['subjectName']}" for entry in json.loads((demo / "c" / "index.json").read_text())]
        assert len(set(names)) == 6

    def test_every_lesion_mask_has_voxels(self, demo: Path):
        for name, pattern in (("c", "*/*/seg/*.nii.gz"), ("d", "labels/*.nii.gz")):
            for path in (demo / name).glob(pattern):
                assert set(np.unique(np.asanyarray(nib.load(path).dataobj))) == {0, 1}

    def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(self, demo: Path, tmp_path: Path):
        write_demo(tmp_path / "again", seed=7, patients=2)
        write_demo(tmp_path / "other", seed=8, patients=1)
        assert digests(tmp_path / "again") == digests(demo)
        assert not set(digests(tmp_path / "other")) & {name for name in digests(demo) if name.endswith(".dcm")}

    def test_progress_counts_patients_of_all_hospitals(self, tmp_path: Path):
        seen: list[tuple[int, int]] = []
        write_demo(tmp_path / "demo", patients=1, progress=lambda done, total: seen.append((done, total)))
        assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]

    def test_a_complete_cohort_is_left_as_it_is(self, demo: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(synthetic, "_hospitals", lambda: pytest.fail("written again"))
        write_demo(demo, seed=7, patients=2)

    def test_remains_of_a_cohort_are_written_anew(self, tmp_path: Path):
        write_demo(tmp_path / "demo", patients=1)
        whole = digests(tmp_path / "demo")
        (tmp_path / "demo" / "demo.json").unlink()
        (tmp_path / "demo" / "d" / "clinical.csv").unlink()
        write_demo(tmp_path / "demo", patients=1)
        assert digests(tmp_path / "demo") == whole

    def test_somebody_elses_files_stay(self, tmp_path: Path):
        (tmp_path / "demo" / "a").mkdir(parents=True)
        (tmp_path / "demo" / "a" / "clinical.csv").write_text("real")
        with pytest.raises(CohortError, match="holds other files"):
            write_demo(tmp_path / "demo", patients=1)

    def test_no_patients_is_refused(self, tmp_path: Path):
        with pytest.raises(CohortError, match="at least one patient, not 0"):
            write_demo(tmp_path / "demo", patients=0)

    def test_a_cohort_that_another_process_writes_is_left_alone(self, tmp_path: Path):
        with exclusive(tmp_path / ".demo.part"), pytest.raises(RunFolderBusyError, match="Another process"):
            write_demo(tmp_path / "demo", patients=1)


class TestDemoIsComplete:
    def test_it_is_only_for_its_seed_size_and_version(self, demo: Path, monkeypatch: pytest.MonkeyPatch):
        assert demo_is_complete(demo, seed=7, patients=2)
        assert not demo_is_complete(demo, seed=0, patients=2)
        assert not demo_is_complete(demo, seed=7, patients=3)
        monkeypatch.setattr(synthetic, "GENERATOR_VERSION", 0)
        assert not demo_is_complete(demo, seed=7, patients=2)

    def test_a_missing_folder_or_a_damaged_marker_is_not(self, tmp_path: Path):
        assert not demo_is_complete(tmp_path)
        (tmp_path / "demo.json").write_text("{")
        assert not demo_is_complete(tmp_path)

    def test_a_marker_without_its_hospitals_is_not(self, demo: Path, tmp_path: Path):
        (tmp_path / "demo.json").write_bytes((demo / "demo.json").read_bytes())
        assert not demo_is_complete(tmp_path, seed=7, patients=2)
        for name in HOSPITALS:
            (tmp_path / name).mkdir()
        assert demo_is_complete(tmp_path, seed=7, patients=2)
