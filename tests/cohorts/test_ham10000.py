"""Dermatoscopy images become four sites' cohorts in colours, by where they were taken."""

from __future__ import annotations

import csv
import io
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from eucaim_fl.cohorts.ham10000 import IMAGES, SITES, TABLE, write_ham10000
from eucaim_fl.cohorts.manifest import read_manifest
from eucaim_fl.durable import exclusive
from eucaim_fl.errors import CohortError, RunFolderBusyError
from eucaim_fl.sitefile import SiteFile

pytestmark = pytest.mark.integration

HEADER = "image_id,lesion_id,source,dx,age,sex"
ROWS = [
    "ISIC_1,HAM_1,vidir_molemax,nv,45.0,male",
    "ISIC_2,HAM_2,vidir_modern,mel,70.0,female",
    "ISIC_3,HAM_3,rosendahl,bcc,nan,unknown",
    "ISIC_4,HAM_4,vienna_dias,akiec,80.0,male",
    "ISIC_5,HAM_5,vienna_dias,bkl,55.0,female",
]


def jpeg(colour: tuple[int, int, int] = (200, 100, 50), size: tuple[int, int] = (64, 64), mode: str = "RGB") -> bytes:
    """An image of one colour whose right half is black."""
    picture = Image.new("RGB", size, colour)
    picture.paste((0, 0, 0), (size[0] // 2, 0, size[0], size[1]))
    stream = io.BytesIO()
    picture.convert(mode).save(stream, "JPEG", quality=100, subsampling=0)
    return stream.getvalue()


def data_set(folder: Path, rows: list[str] | None = None, images: dict[str, bytes] | None = None) -> Path:
    rows = ROWS if rows is None else rows
    folder.mkdir(parents=True, exist_ok=True)
    (folder / TABLE).write_text("\n".join([HEADER, *rows]) + "\n")
    with zipfile.ZipFile(folder / IMAGES, "w") as archive:
        for row in rows:
            name = row.partition(",")[0]
            archive.writestr(f"{name}.jpg", (images or {}).get(name, jpeg()))
    return folder


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "clinical.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


class TestWriteHam10000:
    def test_each_image_goes_where_it_was_taken_with_its_diagnosis(self, tmp_path: Path) -> None:
        out = tmp_path / "out"
        write_ham10000(data_set(tmp_path / "in"), out)
        found = {
            site: [
                (row["diagnosis"], row["malignant"], row["age"], row["sex"]) for row in table(tmp_path / "out" / site)
            ]
            for site in SITES
        }
        assert found == {
            "ham_molemax": [("nv", "0", "45", "male")],
            "ham_modern": [("mel", "1", "70", "female")],
            "ham_rosendahl": [("bcc", "1", "", "")],
            "ham_dias": [("akiec", "1", "80", "male"), ("bkl", "0", "55", "female")],
        }

    def test_names_of_the_data_set_are_replaced(self, tmp_path: Path) -> None:
        write_ham10000(data_set(tmp_path / "in"), tmp_path / "out")
        text = (tmp_path / "out" / "ham_dias" / "clinical.csv").read_text()
        assert "HAM_" not in text
        assert "ISIC" not in text
        assert len({row["patient_id"] for row in table(tmp_path / "out" / "ham_dias")}) == 2

    def test_colours_and_sides_are_those_of_the_picture(self, tmp_path: Path) -> None:
        write_ham10000(data_set(tmp_path / "in"), tmp_path / "out")
        stored = np.asanyarray(nib.load(tmp_path / "out" / "ham_dias" / "images" / "P0001.nii.gz").dataobj)
        assert stored.shape == (64, 64, 1)
        left = [int(stored[name][5, 40, 0]) for name in "RGB"]
        assert np.allclose(left, [200, 100, 50], atol=3)
        assert max(int(stored[name][60, 5, 0]) for name in "RGB") <= 3

    def test_a_site_finds_every_image(self, tmp_path: Path) -> None:
        write_ham10000(data_set(tmp_path / "in"), tmp_path / "out")
        site = {"name": "ham_dias", "cohort": {"layout": "nifti_csv", "folder": tmp_path / "out" / "ham_dias"}}
        found = read_manifest(SiteFile.model_validate({**site, "cache": {"folder": tmp_path / "cache"}}))
        assert found.quarantined == ()
        assert [case.clinical["malignant"] for case in found.cases] == ["1", "0"]

    def test_progress_counts_images_and_a_second_call_replaces_the_cohorts(self, tmp_path: Path) -> None:
        seen: list[tuple[int, int]] = []
        source = data_set(tmp_path / "in")
        write_ham10000(source, tmp_path / "out")
        write_ham10000(source, tmp_path / "out", progress=lambda done, total: seen.append((done, total)))
        assert seen == [(n, 5) for n in range(1, 6)]
        assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(SITES)

    def test_a_missing_data_set_says_where_to_point(self, tmp_path: Path) -> None:
        with pytest.raises(CohortError, match=r"ham10000 are missing.*--from") as caught:
            write_ham10000(tmp_path / "nowhere", tmp_path / "out")
        assert str(tmp_path) not in str(caught.value)
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        ("rows", "images"),
        [
            pytest.param(ROWS[1:], {}, id="a source without images"),
            pytest.param([*ROWS, "ISIC_6,HAM_5,vienna_dias,nv,1.0,male"], {}, id="a lesion with two images"),
            pytest.param([*ROWS, "ISIC_6,HAM_6,vienna_dias,scc,1.0,male"], {}, id="an unknown diagnosis"),
            pytest.param([*ROWS, "ISIC_6,HAM_6,sydney,nv,1.0,male"], {}, id="an unknown source"),
            pytest.param(ROWS, {"ISIC_1": b"no picture"}, id="no picture"),
            pytest.param(ROWS, {"ISIC_1": jpeg()[:600]}, id="a picture that ends early"),
            pytest.param(ROWS, {"ISIC_1": jpeg(size=(32, 64))}, id="another size"),
            pytest.param(ROWS, {"ISIC_1": jpeg(mode="L")}, id="a grey picture"),
            pytest.param(ROWS, {"ISIC_1": bytes(2**20 + 1)}, id="more bytes than a picture of this size has"),
        ],
    )
    def test_other_content_is_refused_and_nothing_written(
        self, rows: list[str], images: dict[str, bytes], tmp_path: Path
    ) -> None:
        with pytest.raises(CohortError, match="damaged"):
            write_ham10000(data_set(tmp_path / "in", rows, images), tmp_path / "out")
        assert not any((tmp_path / "out" / site).exists() for site in SITES)

    def test_cohorts_that_another_process_writes_are_left_alone(self, tmp_path: Path) -> None:
        source = data_set(tmp_path / "in")
        with (
            exclusive(tmp_path / "out" / ".ham_molemax.part"),
            pytest.raises(RunFolderBusyError, match="Another process"),
        ):
            write_ham10000(source, tmp_path / "out")
