"""Small pictures of slices: the right way up, square pixels, the label's outline."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from eucaim_fl.cohorts.thumbnail import LARGEST_SIDE, OUTLINES_RGB, png_base64, slice_picture
from eucaim_fl.cohorts.volume import Volume


def quadrants(picture: np.ndarray) -> list[int]:
    """Brightness of the four corners: top left, top right, bottom left, bottom right."""
    grey = picture.mean(axis=2)
    h, w = grey.shape[0] // 4, grey.shape[1] // 4
    return [int(part.mean()) for part in (grey[:h, :w], grey[:h, -w:], grey[-h:, :w], grey[-h:, -w:])]


def marked(affine: np.ndarray, shape: tuple[int, int, int]) -> Volume:
    """An image that is bright in the patient's right anterior superior quarter only."""
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1)
    places = grid @ affine[:3, :3].T + affine[:3, 3]
    middle = places.reshape(-1, 3).mean(axis=0)
    return Volume((places >= middle).all(axis=-1).astype(np.float32) * 100, affine)


AXIAL_RAS = np.diag([1.0, 1.0, 2.0, 1.0])
AXIAL_LPS = np.diag([-1.0, -1.0, 2.0, 1.0])
SAGITTAL = np.array([[0, 0, 2.0, 0], [1.0, 0, 0, 0], [0, -1.0, 0, 0], [0, 0, 0, 1.0]])
CORONAL = np.array([[-1.0, 0, 0, 0], [0, 0, 2.0, 0], [0, -1.0, 0, 0], [0, 0, 0, 1.0]])
TURNED = np.array([[0, 1.0, 0, 0], [1.0, 0, 0, 0], [0, 0, 2.0, 0], [0, 0, 0, 1.0]])


class TestSlicePicture:
    @pytest.mark.parametrize("affine", [AXIAL_RAS, AXIAL_LPS, TURNED], ids=["ras", "lps", "axes swapped"])
    def test_an_axial_slice_has_right_at_the_left_and_anterior_at_the_top(self, affine):
        top_left, *others = quadrants(slice_picture(marked(affine, (40, 40, 9))))
        assert top_left > 200
        assert max(others) < 50

    def test_a_sagittal_slice_has_anterior_at_the_left_and_superior_at_the_top(self):
        top_left, *others = quadrants(slice_picture(marked(SAGITTAL, (40, 40, 9))))
        assert top_left > 200
        assert max(others) < 50

    def test_a_coronal_slice_has_right_at_the_left_and_superior_at_the_top(self):
        top_left, *others = quadrants(slice_picture(marked(CORONAL, (40, 40, 9))))
        assert top_left > 200
        assert max(others) < 50

    def test_colours_are_shown_as_they_are_and_not_enlarged(self):
        affine = np.diag([-1.0, -1.0, 1.0, 1.0])
        shown = np.random.default_rng(0).integers(0, 255, (20, 30, 3)).astype(np.float32)  # height, width
        colours = [Volume(np.ascontiguousarray(shown[..., n].T[..., None]), affine) for n in range(3)]
        assert np.array_equal(slice_picture(colours[0], None, colours), shown)

    def test_large_ones_become_smaller_and_get_the_labels_outline(self):
        colours = [Volume(np.full((300, 150, 1), 200.0, np.float32), AXIAL_LPS)] * 3
        label = np.zeros((300, 150, 1), np.uint8)
        label[100:200, 50:100] = 1
        picture = slice_picture(colours[0], label, colours)
        assert picture.shape == (LARGEST_SIDE // 2, LARGEST_SIDE, 3)
        assert {tuple(pixel) for pixel in picture.reshape(-1, 3).tolist()} == {(200, 200, 200), OUTLINES_RGB[0]}

    def test_pixels_become_square(self):
        volume = Volume(np.random.default_rng(0).normal(size=(50, 100, 3)).astype(np.float32), np.diag([4.0, 1, 1, 1]))
        assert slice_picture(volume).shape == (LARGEST_SIDE // 2, LARGEST_SIDE, 3)

    def test_the_slice_with_most_of_the_label_is_shown_with_its_outline(self):
        array = np.zeros((64, 64, 5), np.float32)
        array[:, :, 4] = np.arange(64)
        label = np.zeros(array.shape, np.uint8)
        label[20:40, 20:40, 4] = 2
        picture = slice_picture(Volume(array, AXIAL_RAS), label)
        coloured = (picture == OUTLINES_RGB[1]).all(axis=2)
        assert 100 < coloured.sum() < 400  # the outline of 40 x 40 pixels, not its inside
        assert len(np.unique(picture[~coloured])) > 20  # slice 4, not the empty middle

    def test_a_constant_slice_of_one_voxel_is_a_picture_too(self):
        picture = slice_picture(Volume(np.ones((1, 1, 1), np.float32), np.eye(4)))
        assert picture.shape == (LARGEST_SIDE, LARGEST_SIDE, 3)

    def test_a_very_long_slice_keeps_a_pixel(self):
        assert slice_picture(Volume(np.ones((2000, 1, 1), np.float32), np.eye(4))).shape == (1, LARGEST_SIDE, 3)


class TestPng:
    def test_it_can_be_read_back(self):
        picture = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
        back = np.asarray(Image.open(io.BytesIO(base64.b64decode(png_base64(picture)))))
        assert np.array_equal(back, picture)
