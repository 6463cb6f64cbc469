from __future__ import annotations

import dataclasses
import io

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from eucaim_fl.cohorts import preprocess
from eucaim_fl.cohorts.dicom_writer import Study
from eucaim_fl.cohorts.facts import SeriesFacts
from eucaim_fl.cohorts.manifest import Case
from eucaim_fl.cohorts.photograph_writer import write_photograph
from eucaim_fl.cohorts.preprocess import FOREGROUND_SAMPLES, onto_grid, prepare, preprocessing_key, summarize_label
from eucaim_fl.cohorts.volume import Volume
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


LPS_MM = np.diag([-2.0, -2.0, 3.0, 1.0])
CHANNELS = ({"name": "a"}, {"name": "b"})


class TestOntoGrid:
    def test_a_ramp_is_met_exactly_wherever_the_grid_lies(self):
        """Linear interpolation of a linear function of position is that function."""
        angle = np.deg2rad(20)
        turned = np.eye(4)
        turned[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        source = turned @ np.diag([1.5, -2.0, 3.0, 1.0])
        source[:3, 3] = [-20.0, 25.0, -10.0]
        index = np.indices((30, 30, 20)).reshape(3, -1)
        place = source[:3, :3] @ index + source[:3, 3:]
        slope = np.array([2.0, -1.0, 0.5])
        volume = Volume((slope @ place + 7).reshape(30, 30, 20).astype(np.float32), source)
        grid = np.diag([-2.5, 1.0, 2.0, 1.0])
        grid[:3, 3] = [12.0, -5.0, 0.0]
        values, covered = onto_grid(volume, (8, 9, 10), grid)
        wanted = slope @ (grid[:3, :3] @ np.indices((8, 9, 10)).reshape(3, -1) + grid[:3, 3:]) + 7
        assert values.dtype == np.float32
        inside = covered.ravel()
        assert inside.sum() > 300
        assert np.allclose(values.ravel()[inside], wanted[inside], atol=1e-3)

    def test_the_same_grid_gives_the_same_values(self):
        array = np.random.default_rng(0).normal(size=(4, 5, 6)).astype(np.float32)
        values, covered = onto_grid(Volume(array, LPS_MM), (4, 5, 6), LPS_MM)
        assert np.array_equal(values, array)
        assert covered.all()

    def test_half_a_voxel_beyond_the_outer_centres_is_covered_with_the_value_at_the_edge(self):
        volume = Volume(np.array([1.0, 2.0, 3.0], np.float32).reshape(3, 1, 1), np.eye(4))
        grid = np.diag([0.4, 1.0, 1.0, 1.0])
        grid[0, 3] = -0.8
        values, covered = onto_grid(volume, (9, 1, 1), grid)  # -0.8, -0.4, 0, 0.4 … 2.4
        assert covered.ravel().tolist() == [False, *[True] * 8]
        assert np.allclose(values.ravel(), [1, 1, 1, 1.4, 1.8, 2.2, 2.6, 3, 3])

    def test_a_single_slice_covers_its_thickness(self):
        volume = Volume(np.full((2, 2, 1), 5.0, np.float32), np.diag([1.0, 1.0, 4.0, 1.0]))
        grid = np.eye(4)
        grid[2, 3] = -2.9  # -2.9, -1.9 … 3.1; the slice reaches from -2 to 2
        values, covered = onto_grid(volume, (2, 2, 7), grid)
        assert covered[0, 0].tolist() == [False, True, True, True, True, False, False]
        assert np.unique(values).tolist() == [5.0]


class TestChannels:
    @pytest.fixture
    def pair(self, tiny, tmp_path):
        """A case of two NIfTI channels: the first counts from 0 on 4 x 5 x 6 voxels, the second is given."""

        def make(second, affine=LPS_MM, facts=(None, None)):
            values = np.arange(120, dtype=np.float32).reshape(4, 5, 6)
            paths = [
                tiny.nifti(tmp_path / f"{n}.nii", a, m) for n, a, m in (("a", values, LPS_MM), ("b", second, affine))
            ]
            label = np.zeros((4, 5, 6), np.uint8)
            label[1, 2, 3] = 1
            mask = tiny.nifti(tmp_path / "l.nii", label, LPS_MM)
            stated = [None if f is None else SeriesFacts(folder="", files=(), kind="nifti", **f) for f in facts]
            other = Case("P1", "", "b", (paths[1],), "nifti", facts=stated[1])
            clinical = {"grade": "high"}
            return Case("P1", "", "a", (paths[0],), "nifti", (mask,), "nifti", clinical, "", "", stated[0], (other,))

        return make

    def test_each_is_on_the_grid_of_the_first_with_its_own_intensities(self, tiny, pair):
        fine = np.repeat(np.arange(1, 11, dtype=np.float32), 2)  # 1 mm along the last axis, 20 mm in all
        second = np.array(np.broadcast_to(fine, (8, 10, 20)))
        affine = np.diag([-1.0, -1.0, 1.0, 1.0])
        affine[:3, 3] = [0.5, 0.5, -0.5]
        plan = tiny.plan(
            channels=CHANNELS, orientation="LPS", intensity={"kind": "percentile", "low": 0.0, "high": 100.0}
        )
        image = prepare(pair(second, affine), plan).image
        assert image.shape == (2, 4, 5, 6)
        assert image[0, 3, 4, 5] == 1
        # millimetres 0, 3, 6 … are indices 0.5, 3.5, 6.5 …, between values that are equal or follow each other
        assert np.allclose(image[1, 2, 2], (np.array([1, 2.5, 4, 5.5, 7, 8.5]) - 1) / 9, atol=1e-6)

    def test_turning_resampling_and_cropping_keep_them_together(self, tiny, pair):
        values = np.arange(120, dtype=np.float32).reshape(4, 5, 6)
        for data in (
            {"orientation": "RAS", "size_voxels": (6, 3, 5)},
            {"orientation": "LPS", "spacing_mm": (1.3, 2.9, 1.7), "size_voxels": (4, None, 8)},
            {"orientation": "RPI", "intensity": {"kind": "window", "low": 0.0, "high": 60.0}, "size_voxels": (8, 8, 8)},
        ):
            image = prepare(pair(values), tiny.plan(channels=CHANNELS, **{"intensity": KEEP, **data})).image
            assert image.max() > 0
            assert np.allclose(image[0], image[1], atol=1e-5), data

    def test_what_a_channel_does_not_cover_is_filled_like_padding(self, tiny, pair):
        second = np.full((4, 5, 4), 5.0, np.float32)
        second[0] = 7
        plan = tiny.plan(channels=CHANNELS, orientation="LPS", intensity={"kind": "window", "low": 0.0, "high": 10.0})
        image = prepare(pair(second), plan).image
        assert image[1, 2, 2].tolist() == [0.5, 0.5, 0.5, 0.5, 0, 0]
        plan = tiny.plan(channels=CHANNELS, orientation="LPS", intensity={"kind": "zscore"})
        scored = prepare(pair(second), plan).image
        assert np.unique(scored[1, ..., 4:]).tolist() == [scored[1].min()]

    def test_two_frames_of_reference_are_refused_and_one_unknown_is_not(self, tiny, pair):
        values, plan = np.ones((4, 5, 6), np.float32), tiny.plan(GRADE, channels=CHANNELS)
        frames = [{"frame_of_reference": "1.2.3"}, {"frame_of_reference": "1.2.4"}]
        with pytest.raises(SeriesError, match="different frames of reference"):
            prepare(pair(values, facts=frames), plan)
        assert prepare(pair(values, facts=[frames[0], {}]), plan).image.shape[0] == 2
        assert prepare(pair(values, facts=[frames[0], frames[0]]), plan).image.shape[0] == 2

    @pytest.mark.parametrize(("slices", "fits"), [(3, True), (2, False)])
    def test_less_than_half_of_the_grid_is_refused(self, tiny, pair, slices, fits):
        case, plan = pair(np.ones((4, 5, slices), np.float32)), tiny.plan(channels=CHANNELS)
        if fits:
            assert prepare(case, plan).image.shape[0] == 2
        else:
            with pytest.raises(SeriesError, match="covers less than half of the first"):
                prepare(case, plan)

    def test_padding_asks_nothing_of_a_channel(self, tiny, pair):
        plan = tiny.plan(channels=CHANNELS, size_voxels=(16, 16, 16))
        assert prepare(pair(np.ones((4, 5, 6), np.float32)), plan).image.shape == (2, 16, 16, 16)

    def test_a_missing_channel_is_an_error(self, tiny, pair):
        case = dataclasses.replace(pair(np.ones((4, 5, 6), np.float32)), further=())
        with pytest.raises(SeriesError, match="channel of a patient is missing"):
            prepare(case, tiny.plan(channels=CHANNELS))


class TestColours:
    @pytest.fixture
    def photo(self, tmp_path):
        """Red grows to the right, green is 100, blue 200, on 4 x 5 pixels."""
        values = np.empty((4, 5, 1), np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
        values["R"], values["G"], values["B"] = np.arange(4).reshape(4, 1, 1) * 10, 100, 200
        nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / "photo.nii")
        return Case("P1", "", "x", (tmp_path / "photo.nii",), "nifti", clinical={"grade": "high"})

    def test_red_green_and_blue_are_channels(self, tiny, photo):
        image = prepare(photo, tiny.plan(GRADE, colour=True, intensity=KEEP)).image
        assert image.shape == (3, 4, 5, 1)
        assert np.allclose(image[0, :, 0, 0], [0, 0.01, 0.02, 0.03])
        assert np.allclose(image[1], 0.1)
        assert np.allclose(image[2], 0.2)

    def test_they_are_cropped_and_padded_alike(self, tiny, photo):
        image = prepare(photo, tiny.plan(GRADE, colour=True, intensity=KEEP, size_voxels=(2, 7, None))).image
        assert image.shape == (3, 2, 7, 1)
        assert np.allclose(image[:, 1, 3, 0], [0.02, 0.1, 0.2])
        assert image[:, :, 0].max() == 0

    def test_without_the_plans_word_they_are_one_channel_of_luminance(self, tiny, photo):
        image = prepare(photo, tiny.plan(GRADE, intensity=KEEP)).image
        assert image.shape == (1, 4, 5, 1)
        assert np.allclose(image[0, 0], (58.7 + 22.8) / 1000)

    def test_a_grey_image_is_refused(self, tiny, files):
        with pytest.raises(SeriesError, match="no colours"):
            prepare(files(), tiny.plan(GRADE, colour=True))

    def test_a_dicom_photograph_gives_the_tensor_of_its_stored_picture(self, tiny, tmp_path):
        stored = np.random.default_rng(0).integers(0, 255, (6, 4, 3), np.uint8)  # rows, columns, samples
        stream = io.BytesIO()
        Image.fromarray(stored).save(stream, "JPEG")
        write_photograph(tmp_path / "x.dcm", stream.getvalue(), Study("EUCAIM-1", "2.25.1", None), "jpeg")
        case = Case("P1", "", "x", (tmp_path / "x.dcm",), "dicom", clinical={"grade": "high"}, modality="DMS")
        shown = np.asarray(Image.open(stream)).transpose(2, 1, 0)  # samples, columns, rows
        plan = {"colour": True, "intensity": {"kind": "window", "low": 0.0, "high": 255.0}}
        as_stored = prepare(case, tiny.plan(GRADE, orientation="LPS", **plan)).image
        assert np.allclose(as_stored[..., 0] * 255, shown, atol=1e-4)
        turned = prepare(case, tiny.plan(GRADE, **plan)).image
        assert np.array_equal(turned, as_stored[:, ::-1, ::-1])

    def test_the_key_is_another(self, tiny):
        assert preprocessing_key(tiny.plan(colour=True)) != preprocessing_key(tiny.plan())


class TestLabelsAndGeometry:
    def test_a_label_on_other_voxels_is_refused_or_resampled_as_the_plan_says(self, tiny, files):
        case = files(values=np.arange(120, dtype=np.int16).reshape(4, 5, 6), affine=LPS_MM)
        label = np.zeros((8, 10, 6), np.uint8)
        label[2:4, 4:6, 3] = 1  # the voxel (1, 2, 3) of the image, on half its size in the plane
        affine = np.diag([-1.0, -1.0, 3.0, 1.0])
        affine[:2, 3] = 0.5
        tiny.nifti(case.label[0], label, affine)
        with pytest.raises(LabelError, match="grid is not its image's"):
            prepare(case, tiny.plan(orientation="LPS"))
        prepared = prepare(case, tiny.plan(orientation="LPS", labels_on_other_grid="resample"))
        assert np.argwhere(prepared.label).tolist() == [[1, 2, 3]]

    def test_leaning_slices_are_put_upright_with_their_label(self, tiny, files):
        affine = np.diag([2.0, 2.0, 3.0, 1.0])
        affine[1, 2] = 2.0  # each slice lies one voxel further to the front than the one below
        values = np.zeros((6, 6, 5), np.int16)
        label = np.zeros((6, 6, 5), np.uint8)
        for k in range(5):
            values[2, 5 - k, k], label[2, 5 - k, k] = 100, 1  # straight up in the patient, 10 mm before the origin
        plan = tiny.plan(orientation="RAS", intensity={"kind": "window", "low": 0.0, "high": 100.0})
        prepared = prepare(files(affine, values, label), plan)
        assert np.argwhere(prepared.image[0]).tolist() == [[2, 5, k] for k in range(5)]
        assert np.array_equal(prepared.label.astype(bool), prepared.image[0] == 1)
        assert prepared.spacing_mm == (2.0, 2.0, 3.0)


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

    def test_it_changes_with_the_number_of_channels_and_not_with_their_rules(self, tiny):
        keys = [preprocessing_key(tiny.plan(channels=CHANNELS[:n])) for n in (0, 1, 2)]
        assert keys[0] == keys[1] != keys[2]
        assert preprocessing_key(tiny.plan(channels=[{"name": "a", "words": ["t2"]}, {"name": "b"}])) == keys[2]

    def test_it_changes_with_what_happens_to_labels_only_where_there_are_labels(self, tiny):
        resample = {"labels_on_other_grid": "resample"}
        assert preprocessing_key(tiny.plan(**resample)) != preprocessing_key(tiny.plan())
        assert preprocessing_key(tiny.plan(GRADE, **resample)) == preprocessing_key(tiny.plan(GRADE))

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
