"""Labels under whatever names they have."""

from __future__ import annotations

import numpy as np
import pytest

from eucaim_fl.cohorts.label_names import label_names, read_every_label
from eucaim_fl.cohorts.manifest import Case
from eucaim_fl.cohorts.nifti import read_nifti
from eucaim_fl.errors import LabelError, UnreadableFileError


@pytest.fixture
def masked(tmp_path, tiny):
    def make(values: np.ndarray) -> Case:
        image = tiny.nifti(tmp_path / "image.nii.gz", np.zeros(values.shape, np.int16))
        label = tiny.nifti(tmp_path / "label.nii.gz", values)
        return Case("P", "1", "1", (image,), "nifti", (label,), "nifti")

    return make


@pytest.fixture
def segmented(tmp_path, tiny):
    def make(*names: str) -> Case:
        files = tiny.series(tmp_path / "ct", np.zeros((2, 4, 4), np.int16))
        masks = {name: np.eye(4, dtype=bool)[None].repeat(2, axis=0) for name in names}
        return Case("P", "1", "1", tuple(files), "dicom", (tiny.seg(tmp_path / "seg.dcm", files, masks),), "dicom_seg")

    return make


class TestLabelNames:
    def test_a_mask_has_a_name_for_each_value_up_to_its_largest(self, masked):
        values = np.zeros((3, 3, 3), np.uint8)
        values[1, 1, 1] = 3
        assert label_names(masked(values)) == ("segment_1", "segment_2", "segment_3")

    def test_an_empty_mask_has_one(self, masked):
        assert label_names(masked(np.zeros((3, 3, 3), np.uint8))) == ("segment_1",)

    def test_values_that_are_no_numbers_or_huge_are_no_reason_to_fail(self, masked):
        values = np.zeros((3, 3, 3), np.float32)
        values[0, 0, 0], values[1, 1, 1] = np.nan, 1e30
        assert len(label_names(masked(values))) == 255

    def test_segments_have_the_names_of_their_file(self, segmented):
        assert label_names(segmented("Liver", "Tumour 1")) == ("liver", "tumour_1")

    def test_without_label_there_is_none(self, tmp_path):
        with pytest.raises(LabelError, match="no label"):
            label_names(Case("P", "1", "1", (tmp_path / "a.nii",), "nifti"))

    def test_a_missing_file_is_an_error(self, tmp_path):
        with pytest.raises(UnreadableFileError, match="missing"):
            label_names(Case("P", "1", "1", (), "nifti", (tmp_path / "a.nii",), "nifti"))


class TestReadEveryLabel:
    def test_all_values_of_a_mask_come_back(self, masked):
        values = np.arange(27, dtype=np.uint8).reshape(3, 3, 3) % 4
        case = masked(values)
        names, label = read_every_label(case, read_nifti(case.image[0]))
        assert len(names) == 3
        assert np.array_equal(label, values)

    def test_fractions_are_refused(self, masked):
        case = masked(np.full((3, 3, 3), 0.5, np.float32))
        with pytest.raises(LabelError, match="other values"):
            read_every_label(case, read_nifti(case.image[0]))

    def test_a_missing_file_is_an_error(self, masked):
        case = masked(np.zeros((3, 3, 3), np.uint8))
        image = read_nifti(case.image[0])
        case.label[0].unlink()
        with pytest.raises(UnreadableFileError, match="missing"):
            read_every_label(case, image)

    def test_a_structure_that_cannot_be_used_leaves_the_others(self, masked, monkeypatch):
        from eucaim_fl.cohorts import label_names as module
        from eucaim_fl.cohorts import labels

        case = Case(**{**vars(masked(np.zeros((3, 3, 3), np.uint8))), "label_format": "rtstruct"})

        def read(case, image, names):
            if "points" in names:
                raise LabelError("A structure has no closed contour.")
            return np.ones(image.shape, np.uint8)

        monkeypatch.setattr(module, "label_names", lambda case: ("points", "liver"))
        monkeypatch.setattr(labels, "read_label", read)
        names, label = read_every_label(case, read_nifti(case.image[0]))
        assert names == ("points", "liver")
        assert (label == 2).all()
        monkeypatch.setattr(module, "label_names", lambda case: ("points", "points"))
        with pytest.raises(LabelError, match="closed contour"):
            read_every_label(case, read_nifti(case.image[0]))
