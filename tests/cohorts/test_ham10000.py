"""Dermatoscopy images become four sites' cohorts of DICOM photographs, by where they were taken."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image

from eucaim_fl.cohorts.case_image import read_case_colours
from eucaim_fl.cohorts.ham10000 import IMAGES, SITES, SPLITS, TABLE, write_ham10000
from eucaim_fl.cohorts.manifest import Manifest, read_manifest
from eucaim_fl.durable import exclusive
from eucaim_fl.errors import CohortError, RunFolderBusyError
from eucaim_fl.site.preflight import check
from eucaim_fl.sitefile import SiteFile, load_site_file

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


def site_of(name: str, data: Path) -> SiteFile:
    """The product's own site file, over a cohort in `data`."""
    site = load_site_file(Path(__file__).parents[2] / "sites" / f"{name}.yaml")
    cohort = site.cohort.model_copy(update={"folder": data / name})
    cache = site.cache.model_copy(update={"folder": data / f".cache_{name}"})
    return site.model_copy(update={"cohort": cohort, "cache": cache})


def manifest(name: str, data: Path) -> Manifest:
    return read_manifest(site_of(name, data))


class TestWriteHam10000:
    def test_each_image_goes_where_it_was_taken_with_its_diagnosis(self, tmp_path: Path) -> None:
        out = tmp_path / "out"
        write_ham10000(data_set(tmp_path / "in"), out)
        found = {
            site: sorted(
                tuple(case.clinical.get(name, "") for name in ("diagnosis", "malignant", "age", "sex"))
                for case in manifest(site, out).cases
            )
            for site in SITES
        }
        assert found == {
            "ham_molemax": [("nv", "0", "45", "male")],
            "ham_modern": [("mel", "1", "70", "female")],
            "ham_rosendahl": [("bcc", "1", "", "unknown")],
            "ham_dias": [("akiec", "1", "80", "male"), ("bkl", "0", "55", "female")],
        }
        states = [case.clinical["patient_diagnostic_category"] for case in manifest("ham_modern", out).cases]
        assert states == ["patient with cancer"]

    def test_headers_and_tables_say_the_same_of_a_patient(self, tmp_path: Path) -> None:
        write_ham10000(data_set(tmp_path / "in"), tmp_path / "out")
        (case,) = manifest("ham_modern", tmp_path / "out").cases
        header = pydicom.dcmread(case.image[0])
        assert (header.PatientID, header.PatientAge, header.PatientSex) == (case.patient, "070Y", "F")
        assert (case.modality, case.facts.body_part) == ("DMS", "SKIN")

    def test_names_of_the_data_set_are_replaced(self, tmp_path: Path) -> None:
        write_ham10000(data_set(tmp_path / "in"), tmp_path / "out")
        everything = b"".join(path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())
        assert b"HAM_" not in everything
        assert b"ISIC" not in everything
        assert len({case.patient for case in manifest("ham_dias", tmp_path / "out").cases}) == 2

    @pytest.mark.parametrize(
        ("site", "syntax"), [("ham_molemax", "1.2.840.10008.1.2.4.50"), ("ham_dias", "1.2.840.10008.1.2.1")]
    )
    def test_pixels_and_sides_are_those_of_the_picture(self, site: str, syntax: str, tmp_path: Path) -> None:
        write_ham10000(data_set(tmp_path / "in"), tmp_path / "out")
        case = manifest(site, tmp_path / "out").cases[0]
        read = np.stack([colour.array[:, :, 0].T for colour in read_case_colours(case)], axis=-1)
        assert np.array_equal(read, np.asarray(Image.open(io.BytesIO(jpeg()))))
        assert case.facts.transfer_syntax == syntax
        assert case.facts.spacing_mm == (None, None, None)

    @pytest.mark.parametrize("name", SITES)
    def test_a_check_of_the_site_finds_nothing_amiss(self, name: str, tmp_path: Path) -> None:
        rows = [*ROWS, *(f"ISIC_{n},HAM_{n},{SITES[name]},nv,{n}.0,male" for n in range(10, 40))]
        looks = {row.partition(",")[0]: jpeg((200, 100, 7 * n)) for n, row in enumerate(rows)}
        write_ham10000(data_set(tmp_path / "in", rows, looks), tmp_path / "out")
        report = check(site_of(name, tmp_path / "out"))
        assert report.can_train
        assert len(report.usable) == report.patients
        assert report.modalities == {"DMS": report.patients}
        graver = {one.rule for one in report.findings if one.severity != "informs"}
        assert graver <= {"quality.small_class"}
        assert not {one.rule for one in report.findings} & {"codes.unplaced", "quality.few_slices"}

    def test_dealt_by_chance_each_site_is_as_large_as_a_source_and_every_lesion_is_at_one(self, tmp_path: Path) -> None:
        rows = [*ROWS, *(f"ISIC_{n},HAM_{n},{list(SITES.values())[n % 3]},nv,{n}.0,male" for n in range(10, 40))]
        source = data_set(tmp_path / "in", rows)
        write_ham10000(source, tmp_path / "out")
        write_ham10000(source, tmp_path / "out", split="chance")
        assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(SPLITS["sources"] + SPLITS["chance"])
        true, dealt = (
            [{case.patient for case in manifest(site, tmp_path / "out").cases} for site in SPLITS[split]]
            for split in ("sources", "chance")
        )
        assert [len(site) for site in dealt] == [len(site) for site in true] == [11, 11, 11, 2]
        assert set.union(*dealt) == set.union(*true)
        assert all(one & other for one in dealt[:3] for other in true[:3])

    def test_the_seed_deals_and_clinical_values_go_with_the_lesion(self, tmp_path: Path) -> None:
        rows = [*ROWS, *(f"ISIC_{n},HAM_{n},vidir_modern,nv,{n}.0,male" for n in range(10, 40))]
        source, found = data_set(tmp_path / "in", rows), []
        for number, seed in enumerate((0, 0, 1)):
            write_ham10000(source, tmp_path / f"out{number}", split="chance", seed=seed)
            cases = {s: manifest(s, tmp_path / f"out{number}").cases for s in SPLITS["chance"]}
            found.append({s: {(c.patient, c.clinical["diagnosis"]) for c in own} for s, own in cases.items()})
        assert found[0] == found[1] != found[2]
        assert set.union(*found[0].values()) == set.union(*found[2].values())

    def test_a_check_of_a_site_by_chance_finds_nothing_amiss(self, tmp_path: Path) -> None:
        sources = ("vidir_molemax", "rosendahl")
        added = [(n, sources[n % 2], "mel" if n % 3 else "nv") for n in range(10, 60)]
        rows = [*ROWS, *(f"ISIC_{n},HAM_{n},{where},{what},{n}.0,male" for n, where, what in added)]
        looks = {row.partition(",")[0]: jpeg((200, 100, 4 * n)) for n, row in enumerate(rows)}
        write_ham10000(data_set(tmp_path / "in", rows, looks), tmp_path / "out", split="chance")
        for name in ("ham_chance_a", "ham_chance_c"):
            report = check(site_of(name, tmp_path / "out"))
            assert report.can_train
            assert report.modalities == {"DMS": report.patients}
            assert {one.rule for one in report.findings if one.severity != "informs"} <= {"quality.small_class"}

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
