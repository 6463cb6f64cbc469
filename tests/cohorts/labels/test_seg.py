from __future__ import annotations

from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
import SimpleITK
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless

from eucaim_fl.cohorts.dicom import read_series
from eucaim_fl.cohorts.labels import read_label
from eucaim_fl.cohorts.labels.grids import Target
from eucaim_fl.cohorts.labels.seg import read_seg
from eucaim_fl.cohorts.labels.segments import read_segmentation
from eucaim_fl.cohorts.volume import Volume
from eucaim_fl.errors import LabelError, UnreadableFileError

STORED = np.zeros((5, 6, 7), dtype=np.int16)  # slices, rows, columns
OBLIQUE = (0.8, 0.6, 0.0, -0.36, 0.48, -0.8)
LABELS = ("organ", "lesion")


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
    def test_each_segment_gets_the_value_of_its_name_and_the_later_label_wins(
        self, made, tiny, tmp_path, images, masks
    ):
        named = {"LESION": masks["lesion"], "Organ": masks["organ"]}
        path = tiny.seg(tmp_path / "seg.dcm", images, named)
        label = read_label(made.case([path], "dicom_seg"), read_series(images), LABELS)
        assert label.dtype == np.uint8
        assert np.array_equal(label, expected(masks))

    def test_the_order_of_the_images_changes_nothing(self, made, tiny, tmp_path, images, masks):
        path = tiny.seg(tmp_path / "seg.dcm", images[::-1], {name: mask[::-1] for name, mask in masks.items()})
        label = read_label(made.case([path], "dicom_seg"), read_series(images), LABELS)
        assert np.array_equal(label, expected(masks))

    @pytest.mark.parametrize("kind", ["FRACTIONAL", "LABELMAP"])
    def test_fractional_and_label_map_segmentations_work_alike(self, made, tiny, tmp_path, images, masks, kind):
        masks["organ"] &= ~masks["lesion"]
        stored = {name: mask.astype(np.float32) if kind == "FRACTIONAL" else mask for name, mask in masks.items()}
        path = tiny.seg(tmp_path / "seg.dcm", images, stored, segmentation_type=kind)
        label = read_label(made.case([path], "dicom_seg"), read_series(images), LABELS)
        assert np.array_equal(label, expected(masks))

    def test_segments_in_two_files_come_together(self, made, tiny, tmp_path, images, masks):
        files = [tiny.seg(tmp_path / f"{name}.dcm", images, {name: mask}) for name, mask in masks.items()]
        label = read_label(made.case(files, "dicom_seg"), read_series(images), LABELS)
        assert np.array_equal(label, expected(masks))

    def test_the_same_voxels_stored_along_another_axis_are_turned(self, made, tiny, tmp_path, images, masks):
        """A label drawn on sagittal frames of the same voxels as the axial image."""
        volume = hd.get_volume_from_series([pydicom.dcmread(path) for path in images])
        turned = volume.with_array(masks["lesion"].astype(np.uint8)).permute_spatial_axes([2, 0, 1])
        path = tiny.seg(tmp_path / "seg.dcm", images, {"lesion": masks["lesion"]}, pixels=turned)
        label = read_label(made.case([path], "dicom_seg"), read_series(images), ("lesion",))
        assert np.array_equal(label, masks["lesion"].transpose(2, 1, 0))

    @pytest.mark.parametrize("change", [{"origin": (11, -20, 30)}, {"spacing": (2.0, 2.1)}, {"step": 3.3}])
    def test_another_grid_is_an_error(self, made, tiny, tmp_path, images, masks, change):
        others = tiny.series(tmp_path / "other", STORED, orientation=OBLIQUE, **change)
        path = tiny.seg(tmp_path / "seg.dcm", others, masks)
        with pytest.raises(LabelError, match="grid is not"):
            read_label(made.case([path], "dicom_seg"), read_series(images), LABELS)

    @pytest.mark.parametrize("cut", [np.s_[:, :4, :], np.s_[:, :, :4]])
    def test_a_part_of_the_grid_is_another_grid(self, made, tiny, tmp_path, images, masks, cut):
        others = tiny.series(tmp_path / "other", np.ascontiguousarray(STORED[cut]), orientation=OBLIQUE)
        path = tiny.seg(tmp_path / "seg.dcm", others, {name: mask[cut] for name, mask in masks.items()})
        with pytest.raises(LabelError, match="grid is not"):
            read_label(made.case([path], "dicom_seg"), read_series(images), LABELS)

    def test_a_frame_beyond_the_image_is_another_grid(self, made, tiny, tmp_path, images, masks):
        path = tiny.seg(tmp_path / "seg.dcm", images, masks)
        with pytest.raises(LabelError, match="grid is not"):
            read_label(made.case([path], "dicom_seg"), read_series(images[:2]), LABELS)

    def test_segments_with_other_names_only_are_an_error(self, made, tiny, tmp_path, images, masks):
        path = tiny.seg(tmp_path / "seg.dcm", images, {"Anna's tumour": masks["lesion"]})
        with pytest.raises(LabelError, match="no segment called lesion") as caught:
            read_label(made.case([path], "dicom_seg"), read_series(images), ("lesion",))
        assert "anna" not in str(caught.value)

    def test_a_segment_that_nobody_asked_for_is_left_out(self, made, tiny, tmp_path, images, masks):
        path = tiny.seg(tmp_path / "seg.dcm", images, masks)
        label = read_label(made.case([path], "dicom_seg"), read_series(images), ("lesion",))
        assert np.array_equal(label, masks["lesion"].transpose(2, 1, 0))

    def test_a_truncated_file_is_unreadable(self, made, tiny, tmp_path, images, masks):
        path = tiny.seg(tmp_path / "seg.dcm", images, masks)
        path.write_bytes(path.read_bytes()[:-20])
        with pytest.raises(UnreadableFileError, match="truncated"):
            read_label(made.case([path], "dicom_seg"), read_series(images), LABELS)

    @pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom grumbles before it fails
    @settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
    @given(place=st.integers(0, 5000), value=st.integers(0, 255))
    def test_a_damaged_byte_never_ends_in_anything_but_a_label_or_a_clear_error(self, made, damageable, place, value):
        path, raw, image = damageable
        damaged = bytearray(raw)
        damaged[place % len(raw)] = value
        path.write_bytes(bytes(damaged))
        text = ""
        try:
            text = str(read_label(made.case([path], "dicom_seg"), image, LABELS).shape)
        except (LabelError, UnreadableFileError) as error:
            text = str(error)
        assert text
        assert str(path.parent) not in text

    def test_an_image_in_the_place_of_a_segmentation_is_unreadable(self, made, images):
        with pytest.raises(UnreadableFileError, match="lacks"):
            read_label(made.case(images[:1], "dicom_seg"), read_series(images), LABELS)

    def test_frames_without_anything_may_be_left_out(self, made, tiny, tmp_path, images, masks):
        paths = [tiny.seg(tmp_path / f"{omit}.dcm", images, masks, omit_empty_frames=omit) for omit in (True, False)]
        assert [pydicom.dcmread(path).NumberOfFrames for path in paths] == [3, 10]
        for path in paths:
            label = read_label(made.case([path], "dicom_seg"), read_series(images), LABELS)
            assert np.array_equal(label, expected(masks))

    def test_a_segmentation_of_nothing_is_all_background(self, made, tiny, tmp_path, images, masks):
        path = tiny.seg(tmp_path / "seg.dcm", images, {"lesion": masks["lesion"] & False}, omit_empty_frames=False)
        assert not read_label(made.case([path], "dicom_seg"), read_series(images), ("lesion",)).any()


class TestSegmentNames:
    def test_a_property_type_counts_where_no_segment_label_fits(self, made, tiny, tmp_path, images, masks):
        path = tiny.seg(tmp_path / "seg.dcm", images, {"Segment_1": masks["organ"]})
        label = read_label(made.case([path], "dicom_seg"), read_series(images), ("tissue",))
        assert np.array_equal(label, masks["organ"].transpose(2, 1, 0))

    def test_a_segment_that_was_asked_for_by_its_label_is_nothing_else_too(self, made, tiny, tmp_path, images, masks):
        path = tiny.seg(tmp_path / "seg.dcm", images, {"lesion": masks["lesion"]})
        label = read_label(made.case([path], "dicom_seg"), read_series(images), ("lesion", "tissue"))
        assert set(np.unique(label)) == {0, 1}

    def test_a_segment_label_in_another_file_keeps_property_types_out(self, made, tiny, tmp_path, images, masks):
        files = [
            tiny.seg(tmp_path / "a.dcm", images, {"Tissue": masks["lesion"]}),
            tiny.seg(tmp_path / "b.dcm", images, {"Segment_1": masks["organ"]}),
        ]
        label = read_label(made.case(files, "dicom_seg"), read_series(images), ("tissue",))
        assert np.array_equal(label, masks["lesion"].transpose(2, 1, 0))


class TestTransferSyntaxes:
    @pytest.fixture
    def disjoint(self, masks):
        return {"organ": masks["organ"] & ~masks["lesion"], "lesion": masks["lesion"]}

    @pytest.mark.parametrize("kind", ["FRACTIONAL", "LABELMAP"])
    def test_compressed_frames(self, made, tiny, tmp_path, images, disjoint, kind):
        stored = {name: mask.astype(np.float32) if kind == "FRACTIONAL" else mask for name, mask in disjoint.items()}
        path = tiny.seg(tmp_path / "seg.dcm", images, stored, segmentation_type=kind, transfer_syntax_uid=RLELossless)
        label = read_label(made.case([path], "dicom_seg"), read_series(images), LABELS)
        assert np.array_equal(label, expected(disjoint))

    @pytest.mark.parametrize("compressed", [False, True])
    def test_the_colours_of_a_label_map_are_not_its_values(self, made, tiny, tmp_path, images, disjoint, compressed):
        def paint(ds):
            ds.PhotometricInterpretation = "PALETTE COLOR"
            for colour in ("Red", "Green", "Blue"):
                ds.add_new(f"{colour}PaletteColorLookupTableDescriptor", "US", [3, 0, 16])
                ds.add_new(f"{colour}PaletteColorLookupTableData", "OW", np.array([0, 40000, 9], "<u2").tobytes())
            if compressed:
                ds.compress(RLELossless)

        path = made.alter(tiny.seg(tmp_path / "seg.dcm", images, disjoint, segmentation_type="LABELMAP"), paint)
        label = read_label(made.case([path], "dicom_seg"), read_series(images), LABELS)
        assert np.array_equal(label, expected(disjoint))

    @pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
    def test_a_deflated_file(self, made, tiny, tmp_path, images, disjoint, kind):
        def deflate(ds):
            ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian

        path = made.alter(tiny.seg(tmp_path / "seg.dcm", images, disjoint, segmentation_type=kind), deflate)
        label = read_label(made.case([path], "dicom_seg"), read_series(images), LABELS)
        assert np.array_equal(label, expected(disjoint))

    @pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL", "LABELMAP"])
    @pytest.mark.parametrize("vr", ["OB", "OW"])
    def test_a_big_endian_file(self, made, tiny, tmp_path, images, disjoint, kind, vr):
        def swap(ds):
            ds.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
            stored = np.frombuffer(ds.PixelData, "u1")
            stored = np.concatenate([stored, np.zeros(len(stored) % 2, "u1")])
            ds.PixelData = (stored.reshape(-1, 2)[:, ::-1] if vr == "OW" else stored).tobytes()
            ds["PixelData"].VR = vr

        stored = {name: mask.astype(np.float32) if kind == "FRACTIONAL" else mask for name, mask in disjoint.items()}
        path = tiny.seg(tmp_path / "seg.dcm", images, stored, segmentation_type=kind)
        big = tmp_path / "big.dcm"
        ds = pydicom.dcmread(path)
        swap(ds)
        pydicom.dcmwrite(big, ds, implicit_vr=False, little_endian=False, force_encoding=True)
        label = read_label(made.case([big], "dicom_seg"), read_series(images), LABELS)
        assert np.array_equal(label, expected(disjoint))


class TestOnAnotherGrid:
    def sphere(self, points, centre, radius):
        return ((points - centre) ** 2).sum(axis=-1) <= radius**2

    def voxels(self, image):
        return np.moveaxis(np.indices(image.shape), 0, -1) @ image.affine[:3, :3].T + image.affine[:3, 3]

    @pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL", "LABELMAP"])
    def test_a_ball_drawn_on_oblique_thick_slices_is_a_ball_on_the_image(self, made, tiny, tmp_path, kind):
        drawn = tiny.series(
            tmp_path / "t2", np.zeros((18, 44, 40), np.int16), orientation=OBLIQUE, spacing=(1.0, 1.0), step=2.0
        )
        used = Volume(np.zeros((40, 40, 40), np.float32), np.diag([1.5, 1.5, 1.5, 1.0]))
        own = read_series(drawn)
        centre = own.affine[:3, :3] @ np.array([20, 22, 9]) + own.affine[:3, 3]
        used.affine[:3, 3] = centre - 29
        ball = self.sphere(self.voxels(own), centre, 10.0).transpose(2, 1, 0)
        stored = ball.astype(np.float32) if kind == "FRACTIONAL" else ball
        path = tiny.seg(tmp_path / "seg.dcm", drawn, {"lesion": stored}, segmentation_type=kind)
        with pytest.raises(LabelError, match="grid is not"):
            read_label(made.case([path], "dicom_seg"), used, ("lesion",))
        label = read_label(made.case([path], "dicom_seg"), used, ("lesion",), resample=True).astype(bool)
        truth = self.sphere(self.voxels(used), centre, 10.0)
        assert 2 * (label & truth).sum() / (label.sum() + truth.sum()) > 0.93
        assert label.sum() == pytest.approx(truth.sum(), rel=0.04)

    @pytest.mark.parametrize("omit", [True, False])
    def test_frames_that_are_missing_between_others_are_empty(self, made, tiny, tmp_path, images, masks, omit):
        parts = np.zeros(STORED.shape, bool)
        parts[[0, 1, 4], 1:3, 1:3] = True
        path = tiny.seg(tmp_path / "seg.dcm", images, {"lesion": parts}, omit_empty_frames=omit)
        image = read_series(images)
        fine = Volume(np.zeros((7, 6, 15), np.float32), image.affine @ np.diag([1, 1, 1 / 3, 1]))
        fine.affine[:3, 3] -= fine.affine[:3, 2]
        label = read_label(made.case([path], "dicom_seg"), fine, ("lesion",), resample=True)
        assert np.array_equal(label, np.repeat(parts.transpose(2, 1, 0), 3, axis=2))

    def test_thick_slices_that_meet_every_third_thin_one_are_another_grid(self, made, tiny, tmp_path, images, masks):
        path = tiny.seg(tmp_path / "seg.dcm", images, {"lesion": masks["lesion"]})
        image = read_series(images)
        fine = Volume(np.zeros((7, 6, 15), np.float32), image.affine @ np.diag([1, 1, 1 / 3, 1]))
        with pytest.raises(LabelError, match="grid is not"):
            read_seg([path], Target(fine), ("lesion",))

    def test_where_two_overlap_the_later_label_still_wins(self, made, tiny, tmp_path, images, masks):
        path = tiny.seg(tmp_path / "seg.dcm", images, masks)
        image = read_series(images)
        shifted = Volume(np.zeros(image.shape, np.float32), image.affine.copy())
        shifted.affine[:3, 3] += 0.3 * image.affine[:3, 0]
        label = read_label(made.case([path], "dicom_seg"), shifted, LABELS, resample=True)
        assert np.array_equal(label, expected(masks))

    def test_the_image_s_own_grid_is_never_interpolated(self, made, tiny, tmp_path, images, masks):
        path = tiny.seg(tmp_path / "seg.dcm", images, masks)
        label = read_label(made.case([path], "dicom_seg"), read_series(images), LABELS, resample=True)
        assert np.array_equal(label, expected(masks))

    @pytest.mark.parametrize("resample", [False, True])
    def test_another_frame_of_reference_is_refused_even_then(self, made, tiny, tmp_path, images, masks, resample):
        path = tiny.seg(tmp_path / "seg.dcm", images, masks)
        image = read_series(images)
        case = made.case([path], "dicom_seg", frame="1.2.3.10")
        with pytest.raises(LabelError, match="another frame of reference"):
            read_label(case, image, LABELS, resample=resample)
        known = made.case([path], "dicom_seg", frame="1.2.3.9")
        assert np.array_equal(read_label(known, image, LABELS, resample=resample), expected(masks))

    def test_frames_that_are_not_parallel_are_refused(self, made, tiny, tmp_path, images, masks):
        def tilt(ds):
            plane = ds.PerFrameFunctionalGroupsSequence[0]
            plane.PlaneOrientationSequence = [pydicom.Dataset()]
            plane.PlaneOrientationSequence[0].ImageOrientationPatient = [1, 0, 0, 0, 1, 0]

        path = made.alter(tiny.seg(tmp_path / "seg.dcm", images, masks), tilt)
        with pytest.raises(LabelError, match="not parallel and evenly spaced"):
            read_seg([path], Target(read_series(images), resample=True), LABELS)


class TestWhatIsNoSegmentationOfAVolume:
    def test_tiles_of_a_slide_are_refused(self, made, tiny, tmp_path, images, masks):
        def tile(ds):
            ds.TotalPixelMatrixRows = ds.TotalPixelMatrixColumns = 1000

        path = made.alter(tiny.seg(tmp_path / "seg.dcm", images, masks), tile)
        with pytest.raises(LabelError, match="tiles of a slide"):
            read_segmentation(path)

    def test_frames_without_position_are_refused(self, made, tiny, tmp_path, images, masks):
        def unplace(ds):
            for item in ds.PerFrameFunctionalGroupsSequence:
                del item.PlanePositionSequence

        path = made.alter(tiny.seg(tmp_path / "seg.dcm", images, masks), unplace)
        with pytest.raises(LabelError, match="no position for its frames"):
            read_label(made.case([path], "dicom_seg"), read_series(images), LABELS)

    @pytest.mark.parametrize(
        ("name", "value"),
        [("NumberOfFrames", 1_000_000_000), ("NumberOfFrames", 4), ("Rows", 0), ("SegmentationType", "OTHER"),
         ("SamplesPerPixel", 3)],
    )  # fmt: skip
    def test_claims_that_its_frames_do_not_bear_out_are_refused(self, made, tiny, tmp_path, images, masks, name, value):
        path = made.alter(tiny.seg(tmp_path / "seg.dcm", images, masks), lambda ds: setattr(ds, name, value))
        with pytest.raises(UnreadableFileError, match="lacks what the standard requires"):
            read_segmentation(path)

    @pytest.mark.parametrize("value", ["nan", "1e400", "here"])
    def test_positions_that_are_no_numbers_are_refused(self, made, tiny, tmp_path, images, masks, value):
        path = tiny.seg(tmp_path / "seg.dcm", images, masks)
        raw = path.read_bytes()
        stated = raw.index(b"\x20\0\x32\0DS") + 8
        path.write_bytes(raw[:stated] + value.encode().ljust(5) + raw[stated + 5 :])
        with pytest.raises((UnreadableFileError, LabelError), match=r"lacks|no position"):
            read_segmentation(path)

    def test_an_orientation_that_is_none_is_refused(self, made, tiny, tmp_path, images, masks):
        def flatten(ds):
            shared = ds.SharedFunctionalGroupsSequence[0]
            shared.PlaneOrientationSequence[0].ImageOrientationPatient = [1, 0, 0, 1, 0, 0]

        path = made.alter(tiny.seg(tmp_path / "seg.dcm", images, masks), flatten)
        with pytest.raises(UnreadableFileError, match="lacks") as caught:
            read_segmentation(path)
        assert "perpendicular" in caught.value.local_detail

    def test_pixels_that_end_early_are_refused(self, made, tiny, tmp_path, images, masks):
        path = tiny.seg(tmp_path / "seg.dcm", images, masks)
        whole = read_segmentation(made.alter(path, lambda ds: setattr(ds, "PixelData", ds.PixelData[:4])))
        with pytest.raises(UnreadableFileError, match="truncated"):
            whole.frames()

    def test_a_file_that_is_missing_is_unreadable(self, made, tmp_path):
        with pytest.raises(UnreadableFileError, match="missing"):
            read_seg([tmp_path / "none.dcm"], Target(made.volume((2, 2, 2))), LABELS)

    def test_a_label_of_a_kind_without_files_is_an_error(self, made):
        with pytest.raises(LabelError, match="no label"):
            read_label(made.case(), made.volume((2, 2, 2)), LABELS)


class TestRealFiles:
    """Segmentations of dcmqi, beside the masks that they were made from."""

    def truth(self, path: Path) -> np.ndarray:
        return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path))).transpose(2, 1, 0)

    @pytest.mark.parametrize("resample", [False, True])
    @pytest.mark.parametrize(
        ("image", "file", "label", "truth", "value"),
        [
            ("24x38x3/image", "24x38x3/seg/label.seg", "liver", "24x38x3/nrrd/label.nrrd", 1),
            ("24x38x3/multiframe", "24x38x3/seg/label.seg", "liver", "24x38x3/nrrd/label.nrrd", 1),
            ("23x38x3/image", "23x38x3/seg/label.seg", "liver", "23x38x3/nrrd/label.nrrd", 1),
            ("24x38x3/image", "sparse-labelmap-noppv.dcm", "liver", "sparse_labelmap_noppv_seg.nrrd", 1),
            ("24x38x3/image", "sparse-labelmap-ppv5.dcm", "liver", "sparse_labelmap_ppv5_seg.nrrd", 1),
            ("ct-3slice", "liver.dcm", "liver", "liver_seg.nrrd", 1),
            ("ct-3slice", "partial_overlaps.dcm", "green", "partial_overlaps-1.nrrd", 1),
            ("ct-3slice", "partial_overlaps.dcm", "orange", "partial_overlaps-2.nrrd", 2),
            ("ct-3slice", "partial_overlaps.dcm", "purple", "partial_overlaps-3.nrrd", 3),
            ("ct-3slice", "partial_overlaps.dcm", "light_blue", "partial_overlaps-1.nrrd", 4),
            ("ct-3slice", "partial_overlaps.dcm", "vein", "partial_overlaps-1.nrrd", 5),
        ],
    )
    def test_every_voxel_is_as_it_was_drawn(self, made, conformance, image, file, label, truth, value, resample):
        folder = conformance / "dcmqi/data/segmentations"
        volume = read_series(sorted((folder / image).glob("*.dcm")))
        found = read_label(made.case([folder / file], "dicom_seg"), volume, (label,), resample=resample)
        expected = self.truth(folder / truth) == value
        assert expected.any()
        assert np.array_equal(found, expected)

    def test_a_label_on_another_real_grid_agrees_with_another_program(self, made, conformance):
        folder = conformance / "dcmqi/data/segmentations"
        drawn = SimpleITK.ReadImage(str(folder / "liver_seg.nrrd"))
        grid = SimpleITK.Image([160, 150, 6], SimpleITK.sitkUInt8)
        grid.SetOrigin([-200.3, -180.1, -129.3])
        grid.SetSpacing([2.1, 2.3, 0.55])
        grid.SetDirection([0.96, -0.28, 0, 0.28, 0.96, 0, 0, 0, 1])
        other = SimpleITK.GetArrayFromImage(
            SimpleITK.Resample(drawn, grid, SimpleITK.Transform(), SimpleITK.sitkNearestNeighbor)
        )
        affine = np.eye(4)
        affine[:3, :3] = np.reshape(grid.GetDirection(), (3, 3)) * grid.GetSpacing()
        affine[:3, 3] = grid.GetOrigin()
        affine[:2] *= -1
        image = Volume(np.zeros(grid.GetSize(), np.float32), affine)
        found = read_label(made.case([folder / "liver.dcm"], "dicom_seg"), image, ("liver",), resample=True)
        assert other.sum() > 10_000
        assert (found != other.transpose(2, 1, 0)).mean() < 1e-4
