from __future__ import annotations

import highdicom as hd
import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eucaim_fl.cohorts.dicom import read_series
from eucaim_fl.cohorts.labels import read_class, read_label
from eucaim_fl.cohorts.manifest import Case
from eucaim_fl.cohorts.nifti import read_nifti
from eucaim_fl.config import ClassificationConfig
from eucaim_fl.errors import LabelError, UnreadableFileError

STORED = np.zeros((5, 6, 7), dtype=np.int16)  # slices, rows, columns
OBLIQUE = (0.8, 0.6, 0.0, -0.36, 0.48, -0.8)
LABELS = ("organ", "lesion")


def case(label=(), label_format=None, **clinical):
    return Case("P1", "S", "X", (), "dicom", tuple(label), label_format, clinical)


@pytest.fixture
def images(tiny, tmp_path):
    return tiny.series(tmp_path / "image", STORED, orientation=OBLIQUE)


@pytest.fixture
def masks():
    """Slices, rows, columns: an organ of two slices and, in one of them, a lesion."""
    organ, lesion = np.zeros(STORED.shape, bool), np.zeros(STORED.shape, bool)
    organ[1:3, 2:4, 1:6] = True
    lesion[2, 3, 5:7] = True
    return {"organ": organ, "lesion": lesion}


@pytest.fixture
def damageable(tiny, tmp_path, images, masks):
    """A segmentation's path, its bytes, and its image."""
    path = tiny.seg(tmp_path / "seg.dcm", images, masks)
    return path, path.read_bytes(), read_series(images)


def expected(masks):
    values = np.where(masks["lesion"], 2, np.where(masks["organ"], 1, 0))
    return values.transpose(2, 1, 0)


class TestDicomSeg:
    def test_each_segment_gets_the_value_of_its_name_and_the_later_label_wins(self, tiny, tmp_path, images, masks):
        named = {"LESION": masks["lesion"], "Organ": masks["organ"]}
        path = tiny.seg(tmp_path / "seg.dcm", images, named)
        label = read_label(case([path], "dicom_seg"), read_series(images), LABELS)
        assert label.dtype == np.uint8
        assert np.array_equal(label, expected(masks))

    def test_the_order_of_the_images_changes_nothing(self, tiny, tmp_path, images, masks):
        path = tiny.seg(tmp_path / "seg.dcm", images[::-1], {name: mask[::-1] for name, mask in masks.items()})
        label = read_label(case([path], "dicom_seg"), read_series(images), LABELS)
        assert np.array_equal(label, expected(masks))

    @pytest.mark.parametrize("kind", ["FRACTIONAL", "LABELMAP"])
    def test_fractional_and_label_map_segmentations_work_alike(self, tiny, tmp_path, images, masks, kind):
        masks["organ"] &= ~masks["lesion"]
        stored = {name: mask.astype(np.float32) if kind == "FRACTIONAL" else mask for name, mask in masks.items()}
        path = tiny.seg(tmp_path / "seg.dcm", images, stored, segmentation_type=kind)
        label = read_label(case([path], "dicom_seg"), read_series(images), LABELS)
        assert np.array_equal(label, expected(masks))

    def test_segments_in_two_files_come_together(self, tiny, tmp_path, images, masks):
        files = [tiny.seg(tmp_path / f"{name}.dcm", images, {name: mask}) for name, mask in masks.items()]
        label = read_label(case(files, "dicom_seg"), read_series(images), LABELS)
        assert np.array_equal(label, expected(masks))

    def test_the_same_voxels_stored_along_another_axis_are_turned(self, tiny, tmp_path, images, masks):
        """A label drawn on sagittal frames of the same voxels as the axial image."""
        volume = hd.get_volume_from_series([pydicom.dcmread(path) for path in images])
        turned = volume.with_array(masks["lesion"].astype(np.uint8)).permute_spatial_axes([2, 0, 1])
        path = tiny.seg(tmp_path / "seg.dcm", images, {"lesion": masks["lesion"]}, pixels=turned)
        label = read_label(case([path], "dicom_seg"), read_series(images), ("lesion",))
        assert np.array_equal(label, masks["lesion"].transpose(2, 1, 0))

    @pytest.mark.parametrize("change", [{"origin": (11, -20, 30)}, {"spacing": (2.0, 2.1)}, {"step": 3.3}])
    def test_another_grid_is_an_error(self, tiny, tmp_path, images, masks, change):
        others = tiny.series(tmp_path / "other", STORED, orientation=OBLIQUE, **change)
        path = tiny.seg(tmp_path / "seg.dcm", others, masks)
        with pytest.raises(LabelError, match="grid is not"):
            read_label(case([path], "dicom_seg"), read_series(images), LABELS)

    @pytest.mark.parametrize("cut", [np.s_[:, :4, :], np.s_[:, :, :4]])
    def test_a_part_of_the_grid_is_another_grid(self, tiny, tmp_path, images, masks, cut):
        others = tiny.series(tmp_path / "other", np.ascontiguousarray(STORED[cut]), orientation=OBLIQUE)
        path = tiny.seg(tmp_path / "seg.dcm", others, {name: mask[cut] for name, mask in masks.items()})
        with pytest.raises(LabelError, match="grid is not"):
            read_label(case([path], "dicom_seg"), read_series(images), LABELS)

    def test_a_frame_beyond_the_image_is_another_grid(self, tiny, tmp_path, images, masks):
        path = tiny.seg(tmp_path / "seg.dcm", images, masks)
        with pytest.raises(LabelError, match="grid is not"):
            read_label(case([path], "dicom_seg"), read_series(images[:2]), LABELS)

    def test_segments_with_other_names_only_are_an_error(self, tiny, tmp_path, images, masks):
        path = tiny.seg(tmp_path / "seg.dcm", images, {"Anna's tumour": masks["lesion"]})
        with pytest.raises(LabelError, match="no segment called lesion") as caught:
            read_label(case([path], "dicom_seg"), read_series(images), ("lesion",))
        assert "anna" not in str(caught.value)

    def test_a_segment_that_nobody_asked_for_is_left_out(self, tiny, tmp_path, images, masks):
        path = tiny.seg(tmp_path / "seg.dcm", images, masks)
        label = read_label(case([path], "dicom_seg"), read_series(images), ("lesion",))
        assert np.array_equal(label, masks["lesion"].transpose(2, 1, 0))

    def test_a_truncated_file_is_unreadable(self, tiny, tmp_path, images, masks):
        path = tiny.seg(tmp_path / "seg.dcm", images, masks)
        path.write_bytes(path.read_bytes()[:-20])
        with pytest.raises(UnreadableFileError, match="truncated"):
            read_label(case([path], "dicom_seg"), read_series(images), LABELS)

    @pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom grumbles before it fails
    @settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
    @given(place=st.integers(0, 5000), value=st.integers(0, 255))
    def test_a_damaged_byte_never_ends_in_anything_but_a_label_or_a_clear_error(self, damageable, place, value):
        path, raw, image = damageable
        damaged = bytearray(raw)
        damaged[place % len(raw)] = value
        path.write_bytes(bytes(damaged))
        text = ""
        try:
            text = str(read_label(case([path], "dicom_seg"), image, LABELS).shape)
        except (LabelError, UnreadableFileError) as error:
            text = str(error)
        assert text
        assert str(path.parent) not in text

    def test_an_image_in_the_place_of_a_segmentation_is_unreadable(self, images):
        with pytest.raises(UnreadableFileError, match="lacks"):
            read_label(case(images[:1], "dicom_seg"), read_series(images), LABELS)


class TestNifti:
    @given(
        axes=st.permutations(range(3)),
        flips=st.tuples(st.booleans(), st.booleans(), st.booleans()),
        shape=st.tuples(st.integers(2, 4), st.integers(2, 4), st.integers(1, 4)),
    )
    def test_a_permuted_and_flipped_label_comes_back_onto_its_image(self, tiny, tmp_path_factory, axes, flips, shape):
        folder = tmp_path_factory.mktemp("n")
        values = np.random.default_rng(0).integers(0, 3, shape).astype(np.uint8)
        image = read_nifti(tiny.nifti(folder / "image.nii", np.zeros(shape, np.int16)))
        move = np.zeros((4, 4))  # index in the turned array → index in the image
        move[3, 3] = 1
        for axis, (old, flip) in enumerate(zip(axes, flips, strict=True)):
            move[old, axis], move[old, 3] = (-1, shape[old] - 1) if flip else (1, 0)
        turned = values.transpose(axes)
        turned = turned[tuple(slice(None, None, -1 if flip else 1) for flip in flips)]
        path = tiny.nifti(folder / "label.nii", np.ascontiguousarray(turned), tiny.affine @ move)
        assert np.array_equal(read_label(case([path], "nifti"), image, LABELS), values)

    def test_a_mask_over_a_dicom_series(self, tiny, tmp_path, images, masks):
        volume = read_series(images)
        path = tiny.nifti(tmp_path / "label.nii.gz", expected(masks).astype(np.uint8), volume.affine)
        assert np.array_equal(read_label(case([path], "nifti"), volume, LABELS), expected(masks))

    @pytest.fixture
    def image(self, tiny, tmp_path):
        return read_nifti(tiny.nifti(tmp_path / "image.nii", np.zeros((4, 5, 6), np.int16)))

    @pytest.mark.parametrize(
        ("shape", "move"),
        [
            ((4, 5, 5), np.eye(4)),
            ((5, 4, 6), np.eye(4)),
            ((4, 5, 6), np.array([[1, 0, 0, 0.5], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])),
            ((4, 5, 6), np.array([[1, 0, 0, 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])),
            ((4, 5, 6), np.diag([1, 1, 1.1, 1])),
            ((4, 5, 6), np.diag([2, 1, 1, 1])),
            ((4, 5, 6), np.array([[0.7, -0.7, 0, 0], [0.7, 0.7, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])),
        ],
    )
    def test_another_grid_is_an_error(self, tiny, tmp_path, image, shape, move):
        path = tiny.nifti(tmp_path / "SECRET.nii", np.zeros(shape, np.uint8), tiny.affine @ move)
        with pytest.raises(LabelError, match="grid is not") as caught:
            read_label(case([path], "nifti"), image, LABELS)
        assert "SECRET" not in str(caught.value)

    @pytest.mark.parametrize("value", [3, -1, 1.5, np.nan])
    def test_a_value_without_a_name_is_an_error(self, tiny, tmp_path, image, value):
        path = tiny.nifti(tmp_path / "label.nii", np.full((4, 5, 6), value, np.float32))
        with pytest.raises(LabelError, match="other values than 0 to 2"):
            read_label(case([path], "nifti"), image, LABELS)

    def test_two_masks_for_one_image_are_an_error(self, tiny, tmp_path, image):
        files = [tiny.nifti(tmp_path / f"{n}.nii", np.zeros((4, 5, 6), np.uint8)) for n in (1, 2)]
        with pytest.raises(LabelError, match="several NIfTI labels"):
            read_label(case(files, "nifti"), image, LABELS)

    def test_a_truncated_mask_is_unreadable(self, tiny, tmp_path, image):
        path = tiny.nifti(tmp_path / "label.nii.gz", np.zeros((4, 5, 6), np.uint8))
        path.write_bytes(path.read_bytes()[:-4])
        with pytest.raises(UnreadableFileError, match="truncated"):
            read_label(case([path], "nifti"), image, LABELS)

    def test_a_patient_without_label_is_an_error(self, image):
        with pytest.raises(LabelError, match="no label"):
            read_label(case(), image, LABELS)


class TestReadClass:
    TASK = ClassificationConfig(target="grade", classes=("low", "high"))

    @pytest.mark.parametrize(("value", "index"), [("low", 0), ("high", 1), (" HIGH ", 1)])
    def test_the_class_is_the_place_of_the_value_in_the_plan(self, value, index):
        assert read_class(case(grade=value), self.TASK) == index

    @pytest.mark.parametrize("clinical", [{}, {"grade": " "}, {"other": "low"}])
    def test_a_missing_value_is_an_error(self, clinical):
        with pytest.raises(LabelError, match="no value in the column 'grade'"):
            read_class(case(**clinical), self.TASK)

    def test_another_value_is_an_error_that_keeps_it_to_itself(self):
        with pytest.raises(LabelError, match="none of the plan's classes") as caught:
            read_class(case(grade="Smith"), self.TASK)
        assert "Smith" not in str(caught.value)
        assert "Smith" in caught.value.local_detail
