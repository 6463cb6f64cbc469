from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from scipy import ndimage

from eucaim_fl.cohorts.dicom import read_series
from eucaim_fl.cohorts.labels import read_label
from eucaim_fl.cohorts.labels.contours import read_contours
from eucaim_fl.cohorts.labels.grids import Target
from eucaim_fl.cohorts.labels.rtstruct import read_structures
from eucaim_fl.cohorts.volume import Volume
from eucaim_fl.errors import LabelError, UnreadableFileError

OBLIQUE = (0.8, 0.6, 0.0, -0.36, 0.48, -0.8)


@pytest.fixture
def image(tiny, tmp_path):
    """Ten slices of 24 x 20 pixels in an oblique stack."""
    stored = np.zeros((10, 24, 20), np.int16)
    return read_series(tiny.series(tmp_path / "image", stored, orientation=OBLIQUE, spacing=(1.5, 2.0), step=3.0))


def circle(image: Volume, made, k: float, centre_mm, radius: float) -> np.ndarray:
    """A circle of 200 points in a slice of an image whose axes are RAS+ mm up to scale; LPS+ mm."""
    angle = np.linspace(0, 2 * np.pi, 200, endpoint=False)
    place = np.stack([centre_mm[0] + radius * np.cos(angle), centre_mm[1] + radius * np.sin(angle)], axis=1)
    indices = np.column_stack([place / image.spacing_mm[:2], np.full(200, k)])
    return made.to_lps(image, indices)


@pytest.fixture(scope="module")
def damageable(made, tmp_path_factory):
    image = made.volume((10, 11, 4))
    drawn = [made.rectangle(image, k, (2.5, 6.5), (3.5, 5.5)) for k in (1, 2)]
    path = made.structures(tmp_path_factory.mktemp("d") / "rt.dcm", {"gtv": drawn})
    return path, path.read_bytes(), image


class TestOnTheImagesSlices:
    def test_a_square_between_voxels_holds_exactly_those_inside(self, made, tmp_path, image):
        drawn = [made.rectangle(image, k, (3.5, 7.5), (9.5, 14.5)) for k in (2, 3)]
        path = made.structures(tmp_path / "rt.dcm", {"GTV": drawn})
        label = read_label(made.case([path], "rtstruct"), image, ("gtv",))
        expected = np.zeros(image.shape, np.uint8)
        expected[4:8, 10:15, 2:4] = 1
        assert label.dtype == np.uint8
        assert np.array_equal(label, expected)

    def test_a_ring_keeps_its_hole_whether_drawn_as_two_contours_or_with_a_keyhole(self, made, tmp_path, image):
        outer, inner = (made.rectangle(image, 4, (n, 15 - n), (n, 15 - n)) for n in (2.5, 5.5))
        keyhole = np.concatenate([outer, outer[:1], inner[::-1], inner[-1:]])
        found = []
        for name, drawn in (("two", [outer, inner]), ("one", [keyhole])):
            path = made.structures(tmp_path / f"{name}.dcm", {"ring": drawn})
            found.append(read_label(made.case([path], "rtstruct"), image, ("ring",)))
        assert found[0].sum() == 10 * 10 - 4 * 4
        assert not found[0][6:10, 6:10].any()
        assert np.array_equal(*found)

    def test_each_structure_gets_the_value_of_its_name_and_the_later_label_wins(self, made, tmp_path, image):
        path = made.structures(
            tmp_path / "rt.dcm",
            {
                "LESION": [made.rectangle(image, 4, (5.5, 7.5), (5.5, 7.5))],
                "Organ": [made.rectangle(image, 4, (2.5, 9.5), (2.5, 9.5))],
                "body": [made.rectangle(image, 4, (0, 19), (0, 23))],
            },
        )
        label = read_label(made.case([path], "rtstruct"), image, ("organ", "lesion"))
        assert np.bincount(label.ravel()).tolist() == [label.size - 49, 45, 4]

    def test_structures_in_two_files_come_together(self, made, tmp_path, image):
        files = [
            made.structures(tmp_path / f"{k}.dcm", {"gtv": [made.rectangle(image, k, (2.5, 4.5), (2.5, 4.5))]})
            for k in (1, 8)
        ]
        label = read_label(made.case(files, "rtstruct"), image, ("gtv",))
        assert label.any(axis=(0, 1)).nonzero()[0].tolist() == [1, 8]

    def test_a_ball_has_its_volume_to_two_percent(self, made, tmp_path):
        image = Volume(np.zeros((80, 80, 40), np.float32), np.diag([0.9, 1.1, 2.0, 1.0]))
        centre, radius = np.array([36.2, 43.7, 40.4]), 22.0
        drawn = []
        for k in range(40):
            within = radius**2 - (2.0 * k - centre[2]) ** 2
            if within > 0:
                drawn.append(circle(image, made, k, centre[:2], within**0.5))
        path = made.structures(tmp_path / "rt.dcm", {"ball": drawn})
        label = read_label(made.case([path], "rtstruct"), image, ("ball",))
        assert label.sum() * 0.9 * 1.1 * 2.0 == pytest.approx(4 / 3 * np.pi * radius**3, rel=0.02)
        assert np.argwhere(label).mean(axis=0) * (0.9, 1.1, 2.0) == pytest.approx(centre, abs=0.1)

    def test_planes_that_were_rounded_a_little_are_still_the_slices(self, made, tmp_path, image):
        drawn = [made.rectangle(image, k + 0.1 * (-1) ** k, (3.5, 7.5), (9.5, 14.5)) for k in range(10)]
        path = made.structures(tmp_path / "rt.dcm", {"gtv": drawn})
        assert read_label(made.case([path], "rtstruct"), image, ("gtv",)).sum() == 4 * 5 * 10

    @settings(max_examples=25, deadline=None)
    @given(axes=st.permutations(range(3)), flips=st.tuples(st.booleans(), st.booleans(), st.booleans()))
    def test_the_image_s_axes_may_run_in_any_order(self, made, tmp_path_factory, axes, flips):
        plain = Volume(np.zeros((12, 11, 9), np.float32), np.diag([1.0, 1.5, 3.0, 1.0]))
        drawn = [made.rectangle(plain, k, (2.5, 6.5), (3.5, 5.5)) for k in (3, 4, 5)]
        path = made.structures(tmp_path_factory.mktemp("r") / "rt.dcm", {"gtv": drawn})
        move = np.zeros((4, 4))
        move[3, 3] = 1
        for axis, (old, flip) in enumerate(zip(axes, flips, strict=True)):
            move[old, axis], move[old, 3] = (-1, plain.shape[old] - 1) if flip else (1, 0)
        shape = tuple(plain.shape[old] for old in axes)
        turned = Volume(np.zeros(shape, np.float32), plain.affine @ move)
        label = read_label(made.case([path], "rtstruct"), turned, ("gtv",))
        places = np.argwhere(label) @ move[:3, :3].T + move[:3, 3]
        assert sorted({tuple(p) for p in places.round().astype(int).tolist()}) == [
            (i, j, k) for i in range(3, 7) for j in (4, 5) for k in (3, 4, 5)
        ]

    def test_a_structure_that_nobody_drew_is_all_background(self, made, tmp_path, image):
        path = made.structures(tmp_path / "rt.dcm", {"gtv": []})
        assert not read_label(made.case([path], "rtstruct"), image, ("gtv",)).any()

    def test_points_beside_closed_contours_are_left_out(self, made, tmp_path, image):
        square = made.rectangle(image, 4, (3.5, 7.5), (9.5, 14.5))
        path = made.structures(tmp_path / "rt.dcm", {"gtv": [square, square[:1]]}, kinds=("CLOSED_PLANAR", "POINT"))
        assert read_label(made.case([path], "rtstruct"), image, ("gtv",)).sum() == 20


class TestWhatCanNotBeUsed:
    def refused(self, made, tmp_path, image, drawn, match, **options):
        path = made.structures(tmp_path / "rt.dcm", {"gtv": drawn}, **options)
        with pytest.raises(LabelError, match=match):
            read_structures([path], Target(image), ("gtv",))

    @pytest.mark.parametrize("kind", ["POINT", "OPEN_PLANAR", "OPEN_NONPLANAR"])
    def test_points_and_open_lines_alone(self, made, tmp_path, image, kind):
        drawn = [made.rectangle(image, 4, (3, 7), (9, 14))]
        self.refused(made, tmp_path, image, drawn, "no closed contour", kinds=(kind,))

    def test_contours_between_slices(self, made, tmp_path, image):
        self.refused(made, tmp_path, image, [made.rectangle(image, 4.4, (3, 7), (9, 14))], "grid is not")

    def test_contours_on_every_second_slice(self, made, tmp_path, image):
        drawn = [made.rectangle(image, k, (3, 7), (9, 14)) for k in (0, 2, 4, 6)]
        self.refused(made, tmp_path, image, drawn, "grid is not")

    def test_contours_of_another_plane(self, made, tmp_path, image):
        tilted = made.to_lps(image, [(2, 2, 2), (9, 2, 4), (9, 9, 6), (2, 9, 4)])
        self.refused(made, tmp_path, image, [tilted], "grid is not")

    @pytest.mark.parametrize("k", [-30, 40])
    def test_contours_above_or_below_the_image(self, made, tmp_path, image, k):
        self.refused(made, tmp_path, image, [made.rectangle(image, k, (3, 7), (9, 14))], "outside its image")

    def test_contours_beside_the_image(self, made, tmp_path, image):
        self.refused(made, tmp_path, image, [made.rectangle(image, 4, (50, 60), (9, 14))], "outside its image")

    @pytest.mark.parametrize("drawn", [[(4, (3, 30), (9, 14))], [(9, (3, 7), (9, 14)), (10, (3, 7), (9, 14))]])
    def test_contours_that_reach_beyond_the_image(self, made, tmp_path, image, drawn):
        self.refused(made, tmp_path, image, [made.rectangle(image, *one) for one in drawn], "grid is not")

    def test_coordinates_as_far_away_as_a_star(self, made, tmp_path, image):
        drawn = [made.rectangle(image, 4, (3, 1e12), (9, 14))]
        self.refused(made, tmp_path, image, drawn, "grid is not")

    def test_another_frame_of_reference(self, made, tmp_path, image):
        drawn = [made.rectangle(image, 4, (3, 7), (9, 14))]
        path = made.structures(tmp_path / "rt.dcm", {"gtv": drawn}, frame="1.2.3.4.5")
        for resample in (False, True):
            with pytest.raises(LabelError, match="another frame of reference"):
                read_label(made.case([path], "rtstruct", frame="1.2.3.9"), image, ("gtv",), resample=resample)
        assert read_label(made.case([path], "rtstruct", frame="1.2.3.4.5"), image, ("gtv",)).any()

    def test_structures_with_other_names(self, made, tmp_path, image):
        path = made.structures(tmp_path / "rt.dcm", {"Anna's tumour": [made.rectangle(image, 4, (3, 7), (9, 14))]})
        with pytest.raises(LabelError, match="no structure called gtv") as caught:
            read_structures([path], Target(image), ("gtv",))
        assert "anna" not in str(caught.value)

    def test_a_file_that_is_missing(self, tmp_path, image):
        with pytest.raises(UnreadableFileError, match="missing"):
            read_structures([tmp_path / "none.dcm"], Target(image), ("gtv",))

    @settings(max_examples=80, deadline=None)
    @given(place=st.integers(0, 5000), value=st.integers(0, 255))
    def test_a_damaged_byte_never_ends_in_anything_but_a_label_or_a_clear_error(self, damageable, made, place, value):
        path, raw, image = damageable
        damaged = bytearray(raw)
        damaged[place % len(raw)] = value
        path.write_bytes(bytes(damaged))
        for resample in (False, True):
            try:
                text = str(read_label(made.case([path], "rtstruct"), image, ("gtv",), resample=resample).shape)
            except (LabelError, UnreadableFileError) as error:
                text = str(error)
            assert text
            assert str(path.parent) not in text


class TestOnAnotherGrid:
    def test_the_image_s_own_slices_are_filled_alike(self, made, tmp_path, image):
        drawn = [made.rectangle(image, k, (3.5, 7.5), (9.5, 14.5)) for k in (2, 3)]
        path = made.structures(tmp_path / "rt.dcm", {"gtv": drawn})
        case = made.case([path], "rtstruct")
        assert np.array_equal(read_label(case, image, ("gtv",)), read_label(case, image, ("gtv",), resample=True))

    def test_thick_slices_reach_half_way_to_their_neighbours(self, made, tmp_path):
        image = Volume(np.zeros((12, 12, 16), np.float32), np.eye(4))
        drawn = [made.rectangle(image, k, (2.5, 6.5), (3.5, 8.5)) for k in (4, 7, 10)]
        path = made.structures(tmp_path / "rt.dcm", {"gtv": drawn})
        label = read_label(made.case([path], "rtstruct"), image, ("gtv",), resample=True)
        expected = np.zeros(image.shape, np.uint8)
        expected[3:7, 4:9, 3:12] = 1
        assert np.array_equal(label, expected)

    def test_contours_between_slices_fill_the_nearest(self, made, tmp_path, image):
        drawn = [made.rectangle(image, k + 0.4, (3.5, 7.5), (9.5, 14.5)) for k in (2, 3)]
        path = made.structures(tmp_path / "rt.dcm", {"gtv": drawn})
        label = read_label(made.case([path], "rtstruct"), image, ("gtv",), resample=True)
        assert label.any(axis=(0, 1)).nonzero()[0].tolist() == [2, 3]
        assert label.sum() == 40

    def test_what_reaches_beyond_the_image_is_cut_off(self, made, tmp_path, image):
        path = made.structures(tmp_path / "rt.dcm", {"gtv": [made.rectangle(image, 4, (15.5, 60), (9.5, 14.5))]})
        label = read_label(made.case([path], "rtstruct"), image, ("gtv",), resample=True)
        assert label.sum() == 4 * 5
        assert label[16:, 10:15, 4].all()

    def test_a_ball_drawn_on_another_series_is_a_ball_in_an_oblique_image(self, made, tmp_path, tiny):
        drawn_on = Volume(np.zeros((64, 64, 30), np.float32), np.diag([1.0, 1.0, 2.5, 1.0]))
        centre, radius = np.array([31.3, 33.1, 36.2]), 17.0
        drawn = []
        for k in range(30):
            within = radius**2 - (2.5 * k - centre[2]) ** 2
            if within > 0:
                drawn.append(circle(drawn_on, made, k, centre[:2], within**0.5))
        path = made.structures(tmp_path / "rt.dcm", {"ball": drawn})
        stored = np.zeros((30, 40, 40), np.int16)
        image = read_series(tiny.series(tmp_path / "adc", stored, orientation=OBLIQUE, spacing=(1.5, 1.5), step=1.7))
        image.affine[:3, 3] += centre - (image.affine[:3, :3] @ np.array([20, 20, 15]) + image.affine[:3, 3])
        label = read_label(made.case([path], "rtstruct"), image, ("ball",), resample=True).astype(bool)
        voxels = np.moveaxis(np.indices(image.shape), 0, -1) @ image.affine[:3, :3].T + image.affine[:3, 3]
        truth = ((voxels - centre) ** 2).sum(axis=-1) <= radius**2
        assert label.sum() == pytest.approx(truth.sum(), rel=0.02)
        assert 2 * (label & truth).sum() / (label.sum() + truth.sum()) > 0.96

    @pytest.mark.parametrize(
        ("drawn", "match"),
        [
            ([(4, (100, 110), (9, 14))], "outside its image"),
            ([(k, (3, 7), (9, 14)) for k in (0, 1, 2, 3, 4, 5.5)], "parallel, evenly spaced"),
        ],
    )
    def test_what_has_no_place_is_an_error_even_then(self, made, tmp_path, image, drawn, match):
        path = made.structures(tmp_path / "rt.dcm", {"gtv": [made.rectangle(image, *one) for one in drawn]})
        with pytest.raises(LabelError, match=match):
            read_structures([path], Target(image, resample=True), ("gtv",))

    def test_planes_that_cross_are_an_error(self, made, tmp_path, image):
        tilted = made.to_lps(image, [(2, 2, 2), (9, 2, 7), (9, 9, 7), (2, 9, 2)])
        drawn = [made.rectangle(image, 4, (3, 16), (2, 20)), tilted]
        path = made.structures(tmp_path / "rt.dcm", {"gtv": drawn})
        with pytest.raises(LabelError, match="parallel, evenly spaced"):
            read_structures([path], Target(image, resample=True), ("gtv",))

    def test_a_line_has_no_area(self, made, tmp_path, image):
        line = made.to_lps(image, [(2, 2.4, 2.4), (9, 2.4, 2.4), (4, 2.4, 2.4)])
        path = made.structures(tmp_path / "rt.dcm", {"gtv": [line]})
        with pytest.raises(LabelError, match="no area"):
            read_structures([path], Target(image, resample=True), ("gtv",))


class TestRealFiles:
    """Contours of a planning system over a CT of rt-utils, of which two slices of three are kept there."""

    def test_each_slice_is_what_another_drawing_program_fills(self, made, conformance):
        folder = conformance / "rt-utils/tests"
        two = read_series([folder / "mock_data/ct_1.dcm", folder / "mock_data/ct_2.dcm"])
        three = Volume(np.zeros((512, 512, 3), np.float32), two.affine)
        path = folder / "empty/dummy_rt.dcm"
        (roi,), _ = read_contours(path, {"roi_4"})
        frame = read_series([folder / "mock_data/ct_1.dcm"]).affine
        label = read_label(made.case([path], "rtstruct"), three, ("roi_4",))
        assert label.any(axis=(0, 1)).all()
        for points in roi.contours:
            i, j, k = (points - frame[:3, 3]).T / np.diag(three.affine)[:3, None]
            picture = Image.new("1", (5120, 5120))
            ImageDraw.Draw(picture).polygon([(10 * a, 10 * b) for a, b in zip(i, j, strict=True)], fill=1)
            other = np.asarray(picture)[::10, ::10].T
            own = label[:, :, round(float(k[0]))].astype(bool)
            edge = ndimage.binary_dilation(other) & ~ndimage.binary_erosion(other)
            assert not (own != other)[~edge].any()
            assert own.sum() == pytest.approx(other.sum(), rel=0.01)

    def test_a_structure_of_a_slice_that_is_not_there_is_refused(self, made, conformance):
        folder = conformance / "rt-utils/tests"
        two = read_series([folder / "mock_data/ct_1.dcm", folder / "mock_data/ct_2.dcm"])
        case = made.case([folder / "empty/dummy_rt.dcm"], "rtstruct")
        with pytest.raises(LabelError, match="grid is not"):
            read_label(case, two, ("roi_1",))
        label = read_label(case, two, ("roi_1",), resample=True)
        assert label.any(axis=(0, 1)).all()

    def test_contours_on_a_real_oblique_series(self, made, conformance, tmp_path):
        folder = conformance / "rt-utils/tests/oriented_data"
        image = read_series(sorted(folder.glob("*.dcm")))
        drawn = [made.rectangle(image, k, (9.5, 19.5), (4.5, 24.5)) for k in range(3)]
        path = made.structures(tmp_path / "rt.dcm", {"gtv": drawn})
        label = read_label(made.case([path], "rtstruct"), image, ("gtv",))
        assert label.sum() == 10 * 20 * 3
        assert label[10:20, 5:25].all()
