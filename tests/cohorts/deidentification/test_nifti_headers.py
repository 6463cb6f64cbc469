from __future__ import annotations

import gzip
import io
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from eucaim_fl.cohorts.deidentification.nifti_headers import cleared, identifiers_in_nifti
from eucaim_fl.errors import UnreadableFileError


def image(kind: type = nib.Nifti1Image, **fields: str) -> nib.Nifti1Image:
    made = kind(np.arange(24, dtype=np.int16).reshape(2, 3, 4), np.diag([1.0, 2.0, 3.0, 1.0]))
    for name, value in fields.items():
        made.header[name] = value
    return made


def extended(code: int, content: bytes) -> nib.Nifti1Image:
    made = image()
    made.header.extensions.append(nib.nifti1.Nifti1Extension(code, content))
    return made


class TestIdentifiersInNifti:
    @pytest.mark.parametrize(
        "descrip", ["", "FSL5.0", "TE=2.2;Time=105454.000;phase=1", "FreeSurfer", "T2 axial", "SPM12"]
    )
    def test_what_programs_write_is_clean(self, tmp_path: Path, descrip: str) -> None:
        nib.save(image(descrip=descrip), tmp_path / "a.nii")
        assert identifiers_in_nifti(tmp_path / "a.nii") == {}

    @pytest.mark.parametrize("field", ["descrip", "aux_file", "intent_name", "db_name"])
    @pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
    def test_a_name_in_any_field_is_found(self, tmp_path: Path, field: str, ending: str) -> None:
        path = tmp_path / f"a{ending}"
        nib.save(image(**{field: "Rossi^Maria"}), path)
        assert identifiers_in_nifti(path) == {"deid.nifti_text": 1}

    @pytest.mark.parametrize("descrip", ["19530312", "a@b.example", "MRN 4711081553", "Rossi Maria T2"])
    def test_identifiers_of_any_shape_are_found(self, tmp_path: Path, descrip: str) -> None:
        nib.save(image(descrip=descrip), tmp_path / "a.nii")
        assert identifiers_in_nifti(tmp_path / "a.nii") == {"deid.nifti_text": 1}

    def test_other_words_are_advice(self, tmp_path: Path) -> None:
        nib.save(image(descrip="rossi"), tmp_path / "a.nii")
        assert identifiers_in_nifti(tmp_path / "a.nii") == {"deid.nifti_words": 1}

    @pytest.mark.parametrize("code", [4, 6, 44])
    def test_extensions_count(self, tmp_path: Path, code: int) -> None:
        nib.save(extended(code, b"patient Rossi"), tmp_path / "a.nii.gz")
        assert identifiers_in_nifti(tmp_path / "a.nii.gz") == {"deid.nifti_extension": 1}

    def test_the_second_version_of_the_header_is_read_too(self, tmp_path: Path) -> None:
        nib.save(image(nib.Nifti2Image, descrip="Rossi^Maria"), tmp_path / "a.nii")
        assert identifiers_in_nifti(tmp_path / "a.nii") == {"deid.nifti_text": 1}

    def test_the_name_that_gzip_keeps_is_found(self, tmp_path: Path) -> None:
        packed = io.BytesIO()
        with gzip.GzipFile("Rossi_Maria.nii", "wb", fileobj=packed) as stream:
            stream.write(image().to_bytes())
        (tmp_path / "a.nii.gz").write_bytes(packed.getvalue())
        assert identifiers_in_nifti(tmp_path / "a.nii.gz") == {"deid.nifti_gzip_name": 1}

    @pytest.mark.parametrize("content", [b"", b"no nifti", b"\x1f\x8bbroken", bytes(400)])
    def test_a_file_that_is_none_is_refused(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "Rossi.nii").write_bytes(content)
        with pytest.raises(UnreadableFileError, match="missing or corrupt") as caught:
            identifiers_in_nifti(tmp_path / "Rossi.nii")
        assert "Rossi" not in str(caught.value)

    def test_an_extension_that_claims_to_be_endless_ends_with_the_header(self, tmp_path: Path) -> None:
        raw = bytearray(extended(6, b"note").to_bytes())
        raw[352:356] = (2**31 - 1).to_bytes(4, "little")
        (tmp_path / "a.nii").write_bytes(raw)
        assert identifiers_in_nifti(tmp_path / "a.nii") == {"deid.nifti_extension": 1}


class TestCleared:
    @pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
    @pytest.mark.parametrize("compressed", [False, True])
    def test_texts_and_extensions_go_and_the_image_stays(self, tmp_path: Path, kind: type, compressed: bool) -> None:
        before = image(kind, descrip="Rossi^Maria", aux_file="rossi")
        before.header.extensions.append(nib.nifti1.Nifti1Extension(6, b"patient Rossi"))
        nib.save(before, tmp_path / "a.nii.gz")
        path = tmp_path / ("b.nii.gz" if compressed else "b.nii")
        path.write_bytes(cleared(tmp_path / "a.nii.gz", compressed=compressed))
        after = nib.load(path)
        assert identifiers_in_nifti(path) == {}
        assert not after.header.extensions
        assert np.array_equal(np.asarray(after.dataobj), np.asarray(before.dataobj))
        assert np.array_equal(after.affine, before.affine)

    def test_a_file_in_pieces_or_broken_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "a.nii").write_bytes(image().to_bytes()[:300])
        with pytest.raises(UnreadableFileError, match="missing or corrupt"):
            cleared(tmp_path / "a.nii", compressed=False)
