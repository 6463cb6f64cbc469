from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from eucaim_fl.cohorts import nifti
from eucaim_fl.cohorts.nifti import read_array, read_colours, read_nifti
from eucaim_fl.errors import SeriesError, UnreadableFileError

VALUES = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
RGB24 = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])


def write_colours(path: Path, shape: tuple[int, ...], affine: Any = None) -> Path:
    """Red counts up along the first axis, green is 100, blue 200."""
    values = np.empty(shape, RGB24)
    values["R"] = np.arange(shape[0]).reshape(-1, *[1] * (len(shape) - 1))
    values["G"], values["B"] = 100, 200
    nib.save(nib.Nifti1Image(values, affine), path)
    return path


class TestReadNifti:
    @pytest.mark.parametrize("ending", ["nii", "nii.gz"])
    def test_values_and_affine_are_those_of_the_file(self, tiny, tmp_path, ending):
        volume = read_nifti(tiny.nifti(tmp_path / f"x.{ending}", VALUES))
        assert volume.array.dtype == np.float32
        assert np.array_equal(volume.array, VALUES)
        assert np.array_equal(volume.affine, tiny.affine)

    def test_slope_and_intercept_are_applied(self, tmp_path):
        image = nib.Nifti1Image(VALUES, np.eye(4))
        image.header.set_slope_inter(2.0, -100.0)
        nib.save(image, tmp_path / "x.nii")
        assert np.array_equal(read_nifti(tmp_path / "x.nii").array, VALUES * 2.0 - 100)

    def test_nifti_2_works_alike(self, tmp_path):
        nib.save(nib.Nifti2Image(VALUES, np.eye(4)), tmp_path / "x.nii.gz")
        assert np.array_equal(read_nifti(tmp_path / "x.nii.gz").array, VALUES)

    def test_a_gzip_of_several_members_is_one_file(self, tiny, tmp_path):
        raw = tiny.nifti(tmp_path / "x.nii", VALUES).read_bytes()
        (tmp_path / "y.nii.gz").write_bytes(gzip.compress(raw[:100]) + gzip.compress(raw[100:]))
        assert np.array_equal(read_nifti(tmp_path / "y.nii.gz").array, VALUES)

    def test_a_flat_image_gets_one_slice_and_a_fourth_axis_of_one_is_dropped(self, tiny, tmp_path):
        assert read_nifti(tiny.nifti(tmp_path / "x.nii", VALUES[..., 0])).shape == (2, 3, 1)
        assert read_nifti(tiny.nifti(tmp_path / "y.nii", VALUES[..., None])).shape == (2, 3, 4)

    def test_colours_become_their_luminance(self, tmp_path):
        volume = read_nifti(write_colours(tmp_path / "x.nii.gz", (2, 3), np.eye(4)))
        assert volume.shape == (2, 3, 1)
        assert np.allclose(volume.array[:, 0, 0], [0.587 * 100 + 0.114 * 200, 0.299 + 0.587 * 100 + 0.114 * 200])

    def test_values_that_are_not_finite_are_refused(self, tiny, tmp_path):
        path = tiny.nifti(tmp_path / "x.nii", np.full((2, 2, 2), np.nan, np.float32))
        with pytest.raises(SeriesError, match="NaN"):
            read_nifti(path)

    @pytest.mark.parametrize("ending", ["nii", "nii.gz"])
    def test_a_truncated_file_is_unreadable_and_named_locally_only(self, tiny, tmp_path, ending):
        path = tiny.nifti(tmp_path / f"secret.{ending}", VALUES)
        path.write_bytes(path.read_bytes()[:-12])
        with pytest.raises(UnreadableFileError, match="truncated") as caught:
            read_nifti(path)
        assert "secret" not in str(caught.value)
        assert "secret" in caught.value.local_detail

    def test_a_flipped_bit_in_a_gzip_is_found_by_its_check_sum(self, tmp_path):
        noise = np.random.default_rng(0).integers(0, 255, (16, 16, 16)).astype(np.uint8)
        nib.save(nib.Nifti1Image(noise, np.eye(4)), tmp_path / "x.nii.gz")
        raw = bytearray((tmp_path / "x.nii.gz").read_bytes())
        raw[len(raw) // 2] ^= 1
        (tmp_path / "x.nii.gz").write_bytes(bytes(raw))
        with pytest.raises(UnreadableFileError, match="corrupt"):
            read_nifti(tmp_path / "x.nii.gz")


class TestReadColours:
    def test_each_colour_is_a_volume_at_the_files_place(self, tiny, tmp_path):
        red, green, blue = read_colours(write_colours(tmp_path / "x.nii", (2, 3), tiny.affine))
        assert red.array[:, :, 0].tolist() == [[0, 0, 0], [1, 1, 1]]
        assert (green.array == 100).all()
        assert (blue.array == 200).all()
        assert all(np.array_equal(volume.affine, tiny.affine) for volume in (red, green, blue))

    def test_a_grey_image_has_no_colours(self, tiny, tmp_path):
        with pytest.raises(SeriesError, match="no colours, and the plan asks for them"):
            read_colours(tiny.nifti(tmp_path / "x.nii", VALUES))

    def test_a_truncated_file_is_unreadable(self, tmp_path):
        path = write_colours(tmp_path / "x.nii", (4, 4), np.eye(4))
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(UnreadableFileError, match="truncated"):
            read_colours(path)


class TestReadArray:
    def test_colours_are_no_numbers(self, tmp_path):
        with pytest.raises(SeriesError, match="colours or complex numbers"):
            read_array(write_colours(tmp_path / "x.nii", (2, 3), np.eye(4)))

    @pytest.mark.parametrize("content", [b"", b"no image at all", b"\x1f\x8b broken gzip", bytes(400)])
    def test_a_foreign_file_is_unreadable(self, tmp_path, content):
        (tmp_path / "x.nii.gz").write_bytes(content)
        with pytest.raises(UnreadableFileError, match="NIfTI"):
            read_array(tmp_path / "x.nii.gz")

    def test_a_missing_file_is_unreadable(self, tmp_path):
        with pytest.raises(UnreadableFileError, match="missing"):
            read_array(tmp_path / "x.nii")

    def test_a_small_gzip_that_unpacks_to_more_than_a_volume_is_refused(self, tmp_path, monkeypatch):
        monkeypatch.setattr(nifti, "LARGEST_VOLUME_BYTES", 10_000)
        (tmp_path / "x.nii.gz").write_bytes(gzip.compress(bytes(1_000_000)))
        with pytest.raises(UnreadableFileError, match="NIfTI"):
            read_array(tmp_path / "x.nii.gz")

    def test_a_header_that_claims_an_absurd_size_is_refused_before_allocation(self, tiny, tmp_path):
        path = tiny.nifti(tmp_path / "x.nii", VALUES)
        raw = bytearray(path.read_bytes())
        raw[42:48] = np.array([32767] * 3, dtype="<i2").tobytes()  # dim[1..3]
        path.write_bytes(bytes(raw))
        with pytest.raises(UnreadableFileError, match="NIfTI") as caught:
            read_array(path)
        assert "too large" in caught.value.local_detail

    def test_several_volumes_are_no_volume(self, tiny, tmp_path):
        path = tiny.nifti(tmp_path / "x.nii", np.zeros((2, 3, 4, 2), np.int16))
        with pytest.raises(SeriesError, match="single volume"):
            read_array(path)

    def test_colours_are_no_volume(self, tiny, tmp_path):
        path = tiny.nifti(tmp_path / "x.nii", np.zeros((2, 3, 4), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")]))
        with pytest.raises(SeriesError, match="colours"):
            read_array(path)

    def test_a_position_is_never_invented(self, tmp_path):
        nib.save(nib.Nifti1Image(VALUES, None), tmp_path / "x.nii")
        with pytest.raises(SeriesError, match="position in space"):
            read_array(tmp_path / "x.nii")
