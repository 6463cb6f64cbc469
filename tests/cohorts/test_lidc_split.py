"""Scans over four sites: even and at random, or skewed by size and texture with both classes everywhere."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eucaim_fl.cohorts.lidc_split import FEWEST_OF_A_CLASS, equal_split, skew_score, skewed_split

COUNT = 80
VOLUMES = [float(10 * 2 ** (n % 8)) for n in range(COUNT)]
TEXTURES = [float(1 + n % 5) for n in range(COUNT)]


def classes(malignant: int, benign: int) -> list[bool | None]:
    """The largest are malignant, the smallest benign."""
    order = np.argsort(skew_score(VOLUMES, TEXTURES))
    found: list[bool | None] = [None] * COUNT
    for n in order[:benign]:
        found[n] = False
    for n in order[COUNT - malignant :]:
        found[n] = True
    return found


class TestEqualSplit:
    def test_sites_differ_by_one_scan_at_most(self):
        assert sorted(np.bincount(equal_split(10, seed=0)).tolist()) == [2, 2, 3, 3]

    def test_the_seed_decides(self):
        assert equal_split(20, seed=3).tolist() == equal_split(20, seed=3).tolist()
        assert equal_split(20, seed=3).tolist() != equal_split(20, seed=4).tolist()


class TestSkewScore:
    def test_large_and_faint_is_high_small_and_solid_low(self):
        assert skew_score([8.0, 8.0, 64.0, 64.0], [5, 1, 5, 1]).tolist() == pytest.approx([-2, 0, 0, 2])

    def test_what_all_have_alike_says_nothing(self):
        assert skew_score([7.0, 7.0], [5, 1]).tolist() == [-1, 1]
        assert skew_score([7.0, 7.0], [3, 3]).tolist() == [0, 0]


class TestSkewedSplit:
    def test_sites_are_equal_in_number_and_ordered_by_the_score(self):
        site = skewed_split(VOLUMES, TEXTURES, [None] * COUNT, seed=0)
        score = skew_score(VOLUMES, TEXTURES)
        assert np.bincount(site).tolist() == [20, 20, 20, 20]
        means = [score[site == n].mean() for n in range(4)]
        assert means == sorted(means)
        assert means[3] - means[0] > 2

    def test_neighbours_overlap(self):
        site = skewed_split(VOLUMES, TEXTURES, [None] * COUNT, seed=0)
        score = skew_score(VOLUMES, TEXTURES)
        for n in range(3):
            assert score[site == n].max() > score[site == n + 1].min()

    def test_the_seed_decides_and_nothing_else(self):
        def split(seed: int) -> list[int]:
            return skewed_split(VOLUMES, TEXTURES, classes(30, 30), seed).tolist()

        assert split(1) == split(1)
        assert split(1) != split(2)

    def test_each_site_gets_both_classes_though_the_score_parts_them(self):
        malignant = classes(30, 30)
        site = skewed_split(VOLUMES, TEXTURES, malignant, seed=0)
        assert np.bincount(site).tolist() == [20, 20, 20, 20]
        for wanted in (True, False):
            own = site[[n for n, one in enumerate(malignant) if one is wanted]]
            assert np.bincount(own, minlength=4).min() >= FEWEST_OF_A_CLASS

    @settings(deadline=None, max_examples=40)
    @given(
        st.lists(st.tuples(st.integers(1, 1000), st.integers(1, 5), st.sampled_from([True, False, None])), min_size=4),
        st.integers(0, 3),
    )
    def test_any_scans_are_divided_evenly(self, scans, seed):
        volumes, textures, malignant = zip(*scans, strict=True)
        counts = np.bincount(skewed_split(volumes, textures, malignant, seed), minlength=4)
        assert counts.sum() == len(scans)
        assert counts.max() - counts.min() <= 1
