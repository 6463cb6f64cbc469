import numpy as np
import pytest
from scipy import ndimage

from eucaim_fl.cohorts.phantom import Acquisition, Tissue, Truth, image_abdomen

AFFINE = np.array([[-5.0, 0, 0, 120], [0, -5.0, 0, 120], [0, 0, 5.0, -50], [0, 0, 0, 1]])
SHAPE = (49, 49, 22)
DARK = Tissue(liver=100, spleen=115, aorta=140, vessel=20, lesion=(-70, -50))
BRIGHT = Tissue(liver=70, spleen=110, aorta=300, vessel=-10, lesion=(60, 80))


def draw(seed: int, tissue: Tissue = DARK, malignant: bool = True, affine: np.ndarray = AFFINE) -> Truth:
    rng = np.random.default_rng(seed)
    return image_abdomen(rng, SHAPE, affine, tissue, Acquisition(1.5, 8), malignant=malignant)


def spine_row(image: np.ndarray) -> int:
    """Row with most bone in the middle third of the columns."""
    return int(np.argmax((image[17:32] > 150).sum(axis=(0, 2))))


class TestImageAbdomen:
    def test_the_same_generator_gives_the_same_patient(self):
        np.testing.assert_array_equal(draw(3).image, draw(3).image)

    @pytest.mark.parametrize("seed", range(3))
    @pytest.mark.parametrize(("tissue", "sign"), [(DARK, -1), (BRIGHT, 1)])
    def test_lesions_differ_from_the_liver_around_them_as_the_phase_says(self, seed: int, tissue: Tissue, sign: int):
        truth = draw(seed, tissue)
        inside = ndimage.binary_erosion(truth.lesions, np.ones((3, 3, 1)))
        around = ndimage.binary_dilation(truth.lesions, iterations=2) & ~ndimage.binary_dilation(truth.lesions)
        assert truth.lesions.any()
        inner = truth.image[inside if inside.any() else truth.lesions]
        assert sign * (np.median(inner) - np.median(truth.image[around])) > 15

    def test_air_surrounds_the_body_and_lesions_lie_on_the_right_side_of_it(self):
        truth = draw(0)
        assert truth.image[0].max() < -900
        right_mm = (AFFINE @ np.r_[np.argwhere(truth.lesions).mean(axis=0), 1])[0]
        assert right_mm > -30  # the left lobe reaches over the midline

    def test_the_grid_decides_how_the_same_anatomy_lies_in_the_array(self):
        turned = AFFINE @ np.diag([-1.0, -1, 1, 1])
        turned[:2, 3] = -AFFINE[:2, 3]
        assert spine_row(draw(0).image) > SHAPE[1] / 2 > spine_row(draw(0, affine=turned).image)

    def test_malignant_lesions_are_larger(self):
        sizes = [[draw(seed, malignant=kind).largest_radius_mm for seed in range(4)] for kind in (False, True)]
        assert max(sizes[0]) < min(sizes[1])

    def test_values_are_finite_and_in_the_range_of_ct(self):
        image = draw(1).image
        assert image.dtype == np.float32
        assert image.min() >= -1024
        assert image.max() <= 3071
