from __future__ import annotations

import gzip
import io
import os
import shutil
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless

from eucaim_fl.cohorts.deidentification.names import identifiers_in_name
from eucaim_fl.cohorts.index.dicom_facts import dicom_facts
from eucaim_fl.cohorts.index.dicom_header import read_header
from eucaim_fl.cohorts.index.headers import Reading, kind_of_name, masked_path, read_facts, read_item
from eucaim_fl.cohorts.index.nifti_facts import nifti_facts

KEY = bytes(range(32))
SHARED = Path(os.environ.get("EUCAIM_FL_SHARED_DATA", Path(__file__).parents[4] / "shared" / "data"))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path


def read(path: Path, home: Path | None = None, **options: Any) -> dict[str, Any]:
    root = home or path.parent
    return read_facts(path.relative_to(root).as_posix(), path.stat().st_size, Reading(root, KEY, **options))


def one_slice(tiny: SimpleNamespace, folder: Path, **attributes: Any) -> Path:
    path: Path = tiny.series(folder, np.zeros((1, 4, 5), dtype=np.int16), **attributes)[0]
    return path


class TestDicom:
    def test_a_header_gives_its_facts(self, tiny: SimpleNamespace, home: Path) -> None:
        path = one_slice(
            tiny, home / "P1", Modality="MR", BodyPartExamined="Prostate", SeriesDescription="T2 TSE Rossi",
            ImageType=["ORIGINAL", "PRIMARY"], Manufacturer="SIEMENS", ManufacturerModelName="Skyra",
            StudyDate="20180704", EchoTime="101.5", MagneticFieldStrength="3", ContrastBolusAgent="Gadovist",
            DiffusionBValue=800.0, AcquisitionNumber=2,
        )  # fmt: skip
        facts = read(path)
        expected = {
            "kind": "dicom", "modality": "MR", "body_part": "PROSTATE", "series_description": "t2 tse",
            "image_type": ("ORIGINAL", "PRIMARY"), "manufacturer": "Siemens", "model": "skyra", "study_date": "2018",
            "echo_time_ms": 101.5, "field_strength_t": 3.0, "contrast": True, "b_value": 800.0, "acquisition": 2,
            "rows": 4, "columns": 5, "position": (10.0, -20.0, 30.0), "orientation": (1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
            "spacing": (2.0, 2.0), "thickness_mm": 3.0, "instance_number": 1, "series_uid": "1.2.3.4",
            "samples": 1, "photometric": "MONOCHROME2",
        }  # fmt: skip
        assert {name: facts[name] for name in expected} == expected
        assert "code" not in facts

    @pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian])
    def test_any_way_of_writing_gives_the_same(self, tiny: SimpleNamespace, home: Path, syntax: str) -> None:
        plain, other = (read(one_slice(tiny, home / s, syntax=s)) for s in ("1.2.840.10008.1.2.1", syntax))
        skip = {"content", "transfer_syntax"}
        assert {k: v for k, v in plain.items() if k not in skip} == {k: v for k, v in other.items() if k not in skip}

    def test_a_patient_is_a_hash_under_the_sites_key(self, tiny: SimpleNamespace, home: Path) -> None:
        paths = [one_slice(tiny, home / name, PatientID=name) for name in ("A", "B")]
        first, second = (read(path)["patient_id"] for path in paths)
        other = read_facts("000.dcm", paths[0].stat().st_size, Reading(paths[0].parent, bytes(32)))["patient_id"]
        assert len({first, second, other}) == 3
        assert all(len(one) == 24 for one in (first, second, other))

    def test_what_stands_in_the_place_of_a_uid_becomes_a_hash(self, tiny: SimpleNamespace, home: Path) -> None:
        path = one_slice(tiny, home)
        raw = path.read_bytes().replace(b"1.2.3.9\0", b"ROSSI M\0")
        path.write_bytes(raw)
        frame = read(path)["frame_of_reference"]
        assert frame.startswith("#")
        assert len(frame) == 25

    @pytest.mark.parametrize(
        ("tag", "creator", "vr", "value"),
        [
            (0x0019100C, "SIEMENS MR HEADER", "IS", 800),
            (0x00431039, "GEMS_PARM_01", "IS", [1000000800, 8, 0, 0]),
            (0x00431039, "GEMS_PARM_01", "IS", [800, 8, 0, 0]),
            (0x20011003, "Philips Imaging DD 001", "FL", 800.0),
        ],
    )
    @pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.1", ImplicitVRLittleEndian])
    def test_vendors_own_b_values_are_found(
        self, tiny: SimpleNamespace, home: Path, tag: int, creator: str, vr: str, value: Any, syntax: str
    ) -> None:
        path = one_slice(tiny, home, syntax=syntax, modality="MR")
        ds = pydicom.dcmread(path)
        ds.add_new((tag & 0xFFFF0000) | 0x10, "LO", creator)
        ds.add_new(tag, vr, value)
        ds.save_as(path)
        assert read(path)["b_value"] == 800.0

    def test_an_enhanced_object_has_what_all_its_frames_share(self, tiny: SimpleNamespace, home: Path) -> None:
        path = one_slice(tiny, home)
        ds = pydicom.dcmread(path)
        for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"):
            delattr(ds, name)
        ds.NumberOfFrames = 2
        ds.PixelData = bytes(80)

        def item(**values: Any) -> Dataset:
            made = Dataset()
            for name, value in values.items():
                setattr(made, name, value)
            return made

        ds.SharedFunctionalGroupsSequence = Items(
            [
                item(
                    PixelMeasuresSequence=Items([item(PixelSpacing=[0.5, 0.6], SliceThickness=3)]),
                    PlaneOrientationSequence=Items([item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])]),
                )
            ]
        )
        ds.PerFrameFunctionalGroupsSequence = Items(
            item(
                PlanePositionSequence=Items([item(ImagePositionPatient=[0, 0, z])]),
                MRDiffusionSequence=Items([item(DiffusionBValue=float(z))]),
            )
            for z in (5, 8)
        )
        ds.save_as(path)
        facts = read(path)
        assert (facts["position"], facts["spacing"], facts["thickness_mm"]) == ((0.0, 0.0, 5.0), (0.5, 0.6), 3.0)
        assert (facts["frames"], facts["b_value"], facts["orientation"]) == (2, None, (1.0, 0.0, 0.0, 0.0, 1.0, 0.0))

    def test_a_label_object_says_what_it_refers_to(self, tiny: SimpleNamespace, home: Path) -> None:
        images = tiny.series(home / "ct", np.zeros((2, 8, 8), dtype=np.int16))
        path = tiny.seg(home / "seg.dcm", images, {"a": np.ones((2, 8, 8), dtype=bool)})
        facts = read(path)
        assert (facts["modality"], facts["references"], facts["series_uid"]) == ("SEG", ("1.2.3.4",), "1.2.3.77")
        assert "code" not in facts

    def test_numbers_that_are_none_are_missing(self, tiny: SimpleNamespace, home: Path) -> None:
        path = one_slice(tiny, home, EchoTime="101.5")
        path.write_bytes(path.read_bytes().replace(b"101.5", b"x1.5\0"))
        assert read(path)["echo_time_ms"] is None
        path.write_bytes(path.read_bytes().replace(b"x1.5\0", b"nan  "))
        assert read(path)["echo_time_ms"] is None

    def test_a_directory_of_a_disc_is_no_image(self, tiny: SimpleNamespace, home: Path) -> None:
        (home / "DICOMDIR").write_bytes(one_slice(tiny, home).read_bytes())
        assert read(home / "DICOMDIR") == {"kind": "other", "path": "DICOMDIR", "identifiers": {}}


class TestBrokenDicom:
    def reason(self, path: Path) -> str:
        facts = read(path)
        assert facts["code"] == "EFL204"
        assert facts["kind"] == "dicom"
        return str(facts["reason"])

    def test_truncated_pixel_data_is_noticed_and_the_header_still_tells_the_series(
        self, tiny: SimpleNamespace, home: Path
    ) -> None:
        path = one_slice(tiny, home)
        path.write_bytes(path.read_bytes()[:-7])
        assert self.reason(path) == "A file ends before its pixel data does."
        assert read(path)["series_uid"] == "1.2.3.4"

    def test_pixel_data_shorter_than_claimed_is_noticed(self, tiny: SimpleNamespace, home: Path) -> None:
        assert self.reason(one_slice(tiny, home, Rows=40)) == "A file's pixel data is shorter than its header says."

    @pytest.mark.parametrize(("photometric", "samples"), [("RGB", 3), ("YBR_FULL", 3), ("YBR_FULL_422", 2)])
    def test_colours_need_bytes_for_all_that_each_pixel_stores(
        self, tiny: SimpleNamespace, home: Path, photometric: str, samples: int
    ) -> None:
        colours = {"SamplesPerPixel": 3, "PhotometricInterpretation": photometric, "PlanarConfiguration": 0}
        path = tiny.series(home, np.zeros((1, 4, 4 * samples), np.uint8), Columns=4, **colours)[0]
        facts = read(path)
        assert "code" not in facts
        assert (facts["samples"], facts["photometric"]) == (3, photometric)
        path = tiny.series(home, np.zeros((1, 4, 4 * samples - 1), np.uint8), Columns=4, **colours)[0]
        assert self.reason(path) == "A file's pixel data is shorter than its header says."

    def test_an_image_without_pixel_data_is_noticed(self, tiny: SimpleNamespace, home: Path) -> None:
        path = one_slice(tiny, home)
        ds = pydicom.dcmread(path)
        del ds.PixelData
        ds.save_as(path)
        assert self.reason(path) == "A file of an image or label holds no pixel data."

    def test_compressed_pixel_data_that_ends_early_is_noticed(self, tiny: SimpleNamespace, home: Path) -> None:
        path = one_slice(tiny, home)
        ds = pydicom.dcmread(path)
        ds.compress(RLELossless)
        ds.save_as(path)
        assert "code" not in read(path)
        path.write_bytes(path.read_bytes()[:-40])
        assert self.reason(path) == "A file ends before its pixel data does."

    def test_every_truncation_gives_facts_or_a_reason(self, tiny: SimpleNamespace, home: Path) -> None:
        path = one_slice(tiny, home)
        whole = path.read_bytes()
        for length in range(0, len(whole), 7):
            path.write_bytes(whole[:length])
            assert self.reason(path)

    def test_other_files_under_a_wrong_name_are_told(self, home: Path) -> None:
        with zipfile.ZipFile(home / "zip.dcm", "w") as one:
            one.writestr("x", "y")
        (home / "jpeg.dcm").write_bytes(b"\xff\xd8\xff\xe0" + bytes(500))
        (home / "html.dcm").write_bytes(b"  <!DOCTYPE html><html>login</html>" + b" " * 500)
        (home / "empty.dcm").write_bytes(b"")
        (home / "zeros.dcm").write_bytes(bytes(5000))
        reasons = [self.reason(home / f"{name}.dcm") for name in ("zip", "jpeg", "html", "empty", "zeros")]
        assert reasons == [
            "A file named as DICOM is a ZIP archive.",
            "A file named as DICOM is a JPEG image.",
            "A file named as DICOM is a web page or XML.",
            "A file is empty.",
            "A DICOM file is truncated or corrupt.",
        ]

    def test_reasons_quote_nothing(self, tiny: SimpleNamespace, home: Path) -> None:
        path = one_slice(tiny, home, PatientName="Rossi^Maria")
        whole = path.read_bytes()
        for at in range(132, len(whole) - 60, 11):
            path.write_bytes(whole[:at] + b"\xff\xfe\xfd" + whole[at + 3 :])
            assert "rossi" not in str(read(path)).lower()

    def test_a_file_that_is_gone_is_told(self, home: Path) -> None:
        facts = read_facts("P1/gone.dcm", 100, Reading(home, KEY))
        assert (facts["code"], facts["reason"]) == ("EFL204", "A file is missing or may not be read.")

    def test_a_pipe_in_its_place_is_not_waited_for(self, home: Path) -> None:
        os.mkfifo(home / "pipe.dcm")
        assert read_facts("pipe.dcm", 100, Reading(home, KEY))["code"] == "EFL204"


class TestWhatIsNeither:
    def test_a_reader_of_one_format_says_so(self, home: Path) -> None:
        stream = io.BytesIO(b"hello" * 100)
        with pytest.raises(ValueError, match="no DICOM file"):
            read_header(500, stream.getvalue(), stream)
        with pytest.raises(ValueError, match="no DICOM file"):
            dicom_facts("x.dcm", 500, stream.getvalue(), stream, KEY, ())
        with pytest.raises(ValueError, match="no NIfTI"):
            nifti_facts(stream.getvalue(), 500, home / "x.nii")


class TestNifti:
    def test_a_header_gives_size_and_place(self, tiny: SimpleNamespace, home: Path) -> None:
        for name in ("a.nii", "a.nii.gz"):
            facts = read(tiny.nifti(home / name, np.zeros((4, 5, 6), dtype=np.int16)))
            assert (facts["rows"], facts["columns"], facts["frames"]) == (5, 4, 6)
            assert (facts["spacing"], facts["thickness_mm"]) == ((2.0, 2.0), 3.0)
            assert facts["orientation"] == (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)  # RAS −x is LPS +x
            assert (facts["samples"], facts["photometric"]) == (1, "")
            assert "code" not in facts

    def test_colours_are_told(self, tiny: SimpleNamespace, home: Path) -> None:
        colours = np.zeros((4, 5, 1), np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
        facts = read(tiny.nifti(home / "a.nii.gz", colours))
        assert (facts["samples"], facts["photometric"]) == (3, "RGB")

    @pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
    def test_what_is_none_is_told(self, home: Path, name: str) -> None:
        for content in (b"", b"x" * 1000, gzip.compress(b"x" * 1000), b"\x1f\x8b\x08"):
            (home / name).write_bytes(content)
            facts = read(home / name)
            assert (facts["kind"], facts["code"]) == ("nifti", "EFL204")

    def test_one_that_ends_early_is_told(self, tiny: SimpleNamespace, home: Path) -> None:
        path = tiny.nifti(home / "a.nii", np.zeros((4, 5, 6), dtype=np.int16))
        path.write_bytes(path.read_bytes()[:-1])
        assert read(path)["code"] == "EFL204"

    def test_nifti_2_and_a_quaternion_give_the_same_place(self, home: Path) -> None:
        import nibabel as nib

        affine = np.array([[0, -2.0, 0, 7], [3.0, 0, 0, 8], [0, 0, 4.0, 9], [0, 0, 0, 1]])
        found = []
        for kind in (nib.Nifti1Image, nib.Nifti2Image):
            for coded in ((1, 0), (0, 1)):
                image = kind(np.zeros((4, 5, 6), dtype=np.uint8), affine)
                image.header.set_qform(affine, code=coded[0])
                image.header.set_sform(affine, code=coded[1])
                nib.save(image, home / "x.nii")
                facts = read(home / "x.nii")
                found.append((*facts["position"], *facts["orientation"], *facts["spacing"]))
        np.testing.assert_allclose(found, [found[0]] * 4, atol=1e-6)
        np.testing.assert_allclose(found[0], [-7, -8, 9, 0, -1, 0, 1, 0, 0, 2, 3], atol=1e-6)


class TestKindOfName:
    def test_names_decide_where_they_can(self) -> None:
        names = ["a.dcm", "a.DCM", "a.ima", "a.nii.gz", "a.NII", "a.csv", "._a.dcm", "DICOMDIR", "a.gz"]
        kinds = ["dicom", "dicom", "dicom", "nifti", "nifti", "other", "other", "other", "other"]
        assert [kind_of_name(name) for name in names] == kinds

    def test_where_they_can_not_the_first_bytes_do(self, tiny: SimpleNamespace, home: Path) -> None:
        path = one_slice(tiny, home)
        for name in ("IM0001", "1.2.840.7", "x.CT"):
            shutil.copy(path, home / name)
            assert kind_of_name(name) is None
            assert read(home / name)["kind"] == "dicom"
        (home / "README").write_bytes(b"hello" * 100)
        (home / "tiny").write_bytes(b"\x08\x00\x05")
        assert read(home / "README")["kind"] == read(home / "tiny")["kind"] == "other"


class TestNames:
    def test_a_name_that_the_header_explains_is_hidden(self, tiny: SimpleNamespace, home: Path) -> None:
        path = one_slice(tiny, home / "rossi", PatientName="Rossi^Maria")
        assert not identifiers_in_name("rossi/000.dcm")
        facts = read(path, home)
        assert facts["code"] == "EFL205"
        assert "rossi" not in str(facts)
        assert read(path, home, blocks=False)["path"] == "rossi/000.dcm"
        below = one_slice(tiny, home / "P1" / "rossi", PatientName="Rossi^Maria")
        assert read(below, home)["path"].startswith("P1/#")

    def test_a_hidden_name_keeps_the_folders_before_it(self) -> None:
        folder, file = masked_path("P1/Rossi_Maria/S1/1.dcm", KEY).removeprefix("P1/").split("/")
        assert (folder[0], file[0], len(folder), len(file)) == ("#", "#", 25, 25)
        assert masked_path("P1/Rossi_Maria/S2/2.dcm", KEY).startswith(f"P1/{folder}/#")
        assert masked_path("P1/S1/Rossi_Maria.dcm", KEY).startswith("P1/S1/#")
        assert len(masked_path("Rossi_Maria.dcm", KEY)) == 25
        assert masked_path("Rossi_Maria/", KEY)[0] == "#"

    def test_what_may_stay_can_be_said(self) -> None:
        assert masked_path("P1/rossi/1.dcm", KEY, "P1").count("#") == 2
        assert masked_path("rossi/1.dcm", KEY, "").count("#") == 2
        assert masked_path("P1/rossi.dcm", KEY, "P1").count("#") == 1


class TestContent:
    def test_a_copy_has_the_same_and_another_file_another(self, tiny: SimpleNamespace, home: Path) -> None:
        path = one_slice(tiny, home)
        first = read(path, whole=True)
        shutil.copy(path, home / "copy.dcm")
        copy = read(home / "copy.dcm", whole=True)
        assert (first["content"], first["whole"]) == (copy["content"], copy["whole"])
        raw = bytearray(path.read_bytes())
        raw[-1] ^= 1
        path.write_bytes(raw)
        changed = read(path, whole=True)
        assert changed["content"] != first["content"]
        assert changed["whole"] != first["whole"]


class TestReadItem:
    def test_only_what_is_known_is_sent(self, tiny: SimpleNamespace, home: Path) -> None:
        path = one_slice(tiny, home)
        sent = read_item(["000.dcm", path.stat().st_size, 0, 0, 0], Reading(home, KEY).to_json())
        assert sent["modality"] == "CT"
        assert not [name for name, value in sent.items() if value in ("", None, (), {})]


@pytest.mark.realdata
@pytest.mark.skipif(not (SHARED / "dicom_conformance").is_dir(), reason="shared data is not there")
class TestRealFiles:
    def test_each_gives_facts_or_a_reason(self) -> None:
        folder = SHARED / "dicom_conformance"
        kinds: dict[str, int] = {}
        for path in sorted(folder.rglob("*")):
            if path.is_file() and path.name != "MANIFEST.json":
                facts = read(path, folder)
                kinds[facts["kind"]] = kinds.get(facts["kind"], 0) + 1
                assert facts.get("code", "") in ("", "EFL204", "EFL205")
        assert kinds["dicom"] > 50
        assert kinds["nifti"] >= 3
