from __future__ import annotations

import numpy as np
import pytest

from eucaim_fl.cohorts import preprocess
from eucaim_fl.cohorts.manifest import Case
from eucaim_fl.cohorts.preprocess import FOREGROUND_SAMPLES, prepare, preprocessing_key, summarize_label
from eucaim_fl.errors import LabelError, SeriesError, UnreadableFileError

KEEP = {"kind": "window", "low": 0.0, "high": 1000.0}
GRADE = {"name": "classification", "target": "grade", "classes": ("low", "high")}


@pytest.fixture
def files(tiny, tmp_path):
    """Values 0 … 119 on 4 x 5 x 6 voxels of 2 x 2 x 3 mm, stored left-posterior; the label covers one voxel."""

    def make(affine=tiny.affine, values=None, label=None):
        values = np.arange(120, dtype=np.int16).reshape(4, 5, 6) if values is None else values
        if label is None:
            label = np.zeros(values.shape, np.uint8)
            label[1, 2, 3] = 1
        paths = [tiny.nifti(tmp_path / "image.nii", values, affine), tiny.nifti(tmp_path / "label.nii", label, affine)]
        return Case("P1", "", "x", (paths[0],), "nifti", (paths[1],), "nifti", {"grade": "high"})

    return make


class TestPrepare:
    def test_axes_are_turned_to_the_plans_orientation(self, tiny, files):
        prepared = prepare(files(), tiny.plan(orientation="RAS", intensity=KEEP))
        assert prepared.image.shape == (1, 4, 5, 6)
        assert prepared.image.dtype == np.float32
        assert prepared.image[0, 0, 0, 0] == pytest.approx(0.001 * (3 * 30 + 4 * 6))  # the stored corner [3, 4, 0]
        assert np.argwhere(prepared.label).tolist() == [[2, 2, 3]]
        assert prepared.spacing_mm == (2.0, 2.0, 3.0)

    def test_axes_may_swap(self, tiny, files):
        prepared = prepare(files(), tiny.plan(orientation="LPS", intensity=KEEP))
        assert np.allclose(prepared.image[0], np.arange(120).reshape(4, 5, 6) / 1000)
        affine = np.array([[0, 0, 2.0, 0], [3.0, 0, 0, 0], [0, 4.0, 0, 0], [0, 0, 0, 1]])
        prepared = prepare(files(affine), tiny.plan(orientation="RAS", intensity=KEEP))
        assert prepared.image.shape == (1, 6, 4, 5)
        assert prepared.spacing_mm == (2.0, 3.0, 4.0)

    def test_spacing_is_resampled_where_the_plan_gives_one(self, tiny, files):
        ramp = np.broadcast_to(np.arange(9, dtype=np.int16) * 10, (4, 5, 9))
        label = (ramp >= 40).astype(np.uint8)
        plan = tiny.plan(orientation="LPS", spacing_mm=(None, 2.0, 1.5), intensity=KEEP)
        prepared = prepare(files(values=ramp, label=label), plan)
        assert prepared.image.shape == (1, 4, 5, 17)  # 8 gaps of 3 mm are 16 of 1.5 mm
        assert prepared.spacing_mm == (2.0, 2.0, 1.5)
        assert np.allclose(prepared.image[0, 1, 1], np.arange(17) * 5 / 1000, atol=1e-6)
        assert prepared.label.shape == (4, 5, 17)
        assert prepared.label[1, 1, :7].max() == 0
        assert prepared.label[1, 1, 8:].min() == 1
        assert prepared.foreground_slices == tuple(np.flatnonzero(prepared.label[0, 0]))

    def test_size_is_cropped_and_padded_around_the_centre(self, tiny, files):
        plan = tiny.plan(
            orientation="LPS", size_voxels=(2, 7, None), intensity={"kind": "window", "low": -1, "high": 119}
        )
        prepared = prepare(files(), plan)
        assert prepared.image.shape == (1, 2, 7, 6)
        assert prepared.label.shape == (2, 7, 6)
        assert np.all(prepared.image[0, :, 0] == 0)
        assert prepared.image[0, 0, 1, 0] == pytest.approx(31 / 120)  # stored [1, 0, 0]
        assert np.argwhere(prepared.label).tolist() == [[0, 3, 3]]

    def test_a_window_clips_to_zero_and_one(self, tiny, files):
        image = prepare(
            files(), tiny.plan(orientation="LPS", intensity={"kind": "window", "low": 20, "high": 60})
        ).image
        assert (image.min(), image.max()) == (0, 1)
        assert image.ravel()[40] == 0.5

    def test_percentiles_are_the_images_own(self, tiny, files):
        plan = tiny.plan(orientation="LPS", intensity={"kind": "percentile", "low": 0, "high": 50})
        image = prepare(files(), plan).image
        assert image.ravel()[30] == pytest.approx(30 / 59.5)
        assert image.max() == 1

    def test_zscore_is_over_the_voxels_that_are_not_zero_and_pads_with_the_minimum(self, tiny, files):
        values = np.zeros((4, 5, 6), np.int16)
        values[0], values[1] = 10, 20
        plan = tiny.plan(orientation="LPS", intensity={"kind": "zscore"}, size_voxels=(None, None, 8))
        image = prepare(files(values=values), plan).image
        assert np.unique(image).tolist() == [-3, -1, 1]  # mean 15, deviation 5
        assert np.unique(image[..., 0]).tolist() == [-3]

    @pytest.mark.parametrize("kind", ["percentile", "zscore"])
    def test_an_image_of_one_value_becomes_zero(self, tiny, files, kind):
        plan = tiny.plan(intensity={"kind": kind, "low": 1, "high": 99})
        assert np.unique(prepare(files(values=np.full((4, 5, 6), 7, np.int16)), plan).image).tolist() == [0]

    def test_classification_needs_no_label(self, tiny, files):
        case = files()
        case.label[0].unlink()
        prepared = prepare(case, tiny.plan(GRADE))
        assert (prepared.label, prepared.target) == (None, 1)

    def test_dicom_and_nifti_of_the_same_voxels_give_the_same(self, tiny, files, tmp_path):
        stored = np.arange(120, dtype=np.int16).reshape(6, 5, 4)
        series = tiny.series(tmp_path / "dicom", stored, origin=(0, 0, 0))
        plan = tiny.plan(GRADE, spacing_mm=(1.5, 1.5, 2.0), size_voxels=(6, 6, 6))
        dicom = prepare(Case("P", "", "x", tuple(series), "dicom", clinical={"grade": "low"}), plan)
        nifti = prepare(files(values=np.ascontiguousarray(stored.transpose(2, 1, 0))), plan)
        assert np.array_equal(dicom.image, nifti.image)

    def test_two_calls_give_the_same_bits_and_leave_the_files_alone(self, tiny, files):
        case, plan = files(), tiny.plan(spacing_mm=(1.3, 1.7, 2.1))
        before = case.image[0].read_bytes()
        assert prepare(case, plan).image.tobytes() == prepare(case, plan).image.tobytes()
        assert case.image[0].read_bytes() == before

    def test_a_grid_that_would_not_fit_is_refused_before_it_is_made(self, tiny, files):
        with pytest.raises(SeriesError, match="too large"):
            prepare(files(), tiny.plan(spacing_mm=(0.001, 0.001, 0.001)))

    def test_several_nifti_files_are_no_image(self, tiny, files):
        case = files()
        with pytest.raises(SeriesError, match="several files"):
            prepare(Case("P", "", "", case.image * 2, "nifti", case.label, "nifti"), tiny.plan())

    def test_a_missing_label_or_class_is_an_error(self, tiny, files):
        case = Case("P", "", "", files().image, "nifti")
        with pytest.raises(LabelError, match="no label"):
            prepare(case, tiny.plan())
        with pytest.raises(LabelError, match="no value"):
            prepare(case, tiny.plan(GRADE))

    def test_a_corrupt_image_is_unreadable(self, tiny, files):
        case = files()
        case.image[0].write_bytes(b"corrupt")
        with pytest.raises(UnreadableFileError, match="corrupt"):
            prepare(case, tiny.plan())


class TestPreprocessingKey:
    @pytest.mark.parametrize(
        "data",
        [
            {"orientation": "LPS"},
            {"spacing_mm": (1.0, None, None)},
            {"size_voxels": (8, 8, 8)},
            {"intensity": {"kind": "zscore"}},
        ],
    )
    def test_it_changes_with_what_changes_the_tensors(self, tiny, data):
        assert preprocessing_key(tiny.plan(**data)) != preprocessing_key(tiny.plan())

    def test_it_changes_with_the_labels(self, tiny):
        other = tiny.plan({"name": "segmentation", "labels": ("organ", "lesion")})
        assert preprocessing_key(other) != preprocessing_key(tiny.plan())

    def test_it_does_not_change_with_split_modality_or_classes(self, tiny):
        assert preprocessing_key(tiny.plan(split={"seed": 9}, modality="CT")) == preprocessing_key(tiny.plan())
        assert preprocessing_key(tiny.plan(GRADE)) == preprocessing_key(tiny.plan({**GRADE, "target": "other"}))


class TestSummarizeLabel:
    def test_slices_and_voxels_of_a_small_label_are_all_there(self):
        label = np.zeros((3, 3, 5), np.uint8)
        label[1, 1, 2] = label[2, 0, 4] = 1
        slices, voxels = summarize_label(label)
        assert slices == (2, 4)
        assert voxels.tolist() == [[1, 1, 2], [2, 0, 4]]

    def test_a_large_label_does_not_crowd_out_a_small_one(self):
        label = np.ones((20, 20, 20), np.uint8)
        label[3, 3, 3] = 2
        _, voxels = summarize_label(label)
        assert len(voxels) == FOREGROUND_SAMPLES // 2 + 1
        assert [3, 3, 3] in voxels.tolist()

    def test_an_empty_label_has_none(self):
        slices, voxels = summarize_label(np.zeros((2, 2, 2), np.uint8))
        assert (slices, voxels.shape) == ((), (0, 3))
        assert preprocess.FOREGROUND_SAMPLES == 256
