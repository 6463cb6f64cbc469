"""Resampling from counts is resampling patients."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import ndtr
from scipy.stats import bootstrap

from eucaim_fl.errors import DataError
from eucaim_fl.seeding import generator
from eucaim_fl.validation.binned import BinnedScores, auc_of, bin_scores, edges_with, pooled_scores
from eucaim_fl.validation.intervals import patient_bootstrap
from eucaim_fl.validation.resampled import bca_interval, percentile_interval, resample
from eucaim_fl.validation.thresholds import threshold_figure

EDGES = edges_with(bins=16)
HALVES = (0.0, 0.5, 1.0)


def rng(seed: int = 0) -> np.random.Generator:
    return generator(seed, "bootstrap")


def patients(seed: int, size: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Scores of patients, of whom a third has the disease."""
    draws = np.random.default_rng(seed)
    truth = (draws.random(size) < 1 / 3).astype(np.int64)
    return np.asarray(ndtr(draws.normal(size=size) + 1.2 * truth - 0.6)), truth


SITES = [bin_scores(*patients(seed, size), EDGES) for seed, size in enumerate((25, 40, 15))]


def share_found(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sensitivity where there are two bins."""
    with np.errstate(invalid="ignore"):
        return np.asarray(counts[:, 1, 1] / counts[:, 1].sum(axis=1))


class TestResample:
    def test_patients_of_a_site_never_change_and_of_a_class_only_if_wanted(self) -> None:
        fixed = resample(SITES, fixed_classes=True, samples=50, rng=rng())
        free = resample(SITES, fixed_classes=False, samples=50, rng=rng())
        by_class = np.array(pooled_scores(SITES).patients)
        assert (fixed.counts.sum(axis=2) == by_class).all()
        assert (free.counts.sum(axis=(1, 2)) == by_class.sum()).all()
        assert free.counts[:, 1].sum(axis=1).std() > 1

    def test_each_site_is_resampled_by_itself(self) -> None:
        low, high = BinnedScores(HALVES, (5, 0), (7, 0)), BinnedScores(HALVES, (0, 3), (0, 2))
        found = resample([low, high], fixed_classes=False, samples=30, rng=rng())
        assert (found.counts.sum(axis=1) == [12, 5]).all()

    @pytest.mark.parametrize("fixed", [True, False])
    def test_counts_vary_as_those_of_patients_drawn_with_replacement(self, fixed: bool) -> None:
        site = BinnedScores((0, 1, 2, 3), (4, 6, 2), (1, 0, 7))
        found = resample([site], fixed_classes=fixed, samples=20000, rng=rng())
        cells = site.counts.ravel()
        group = np.repeat([0, 1], 3) if fixed else np.zeros(6, dtype=np.int64)
        size = np.array([cells[group == k].sum() for k in group])
        share = cells / size
        expected = np.where(group[:, None] == group, np.diag(cells) - size * np.outer(share, share), 0.0)
        np.testing.assert_allclose(found.counts.reshape(-1, 6).mean(axis=0), cells, atol=0.06)
        np.testing.assert_allclose(np.cov(found.counts.reshape(-1, 6).T), expected, atol=0.12)

    def test_many_patients_a_cell_are_drawn_by_cell_and_vary_alike(self) -> None:
        site = BinnedScores((0, 1, 2, 3), (400, 600, 200), (100, 0, 700))
        found = resample([site], fixed_classes=False, samples=20000, rng=rng()).counts.reshape(-1, 6)
        cells = site.counts.ravel()
        expected = np.diag(cells) - np.outer(cells, cells) / cells.sum()
        np.testing.assert_allclose(found.mean(axis=0), cells, atol=0.6)
        np.testing.assert_allclose(np.cov(found.T), expected, atol=12)

    def test_sites_of_many_and_few_patients_keep_theirs_in_every_sample(self) -> None:
        bins = 60
        sizes = (700, 500, 30, 70_000)  # drawn together, apart, by patient and by cell
        sites = [
            BinnedScores(edges_with(bins=bins), (0,) * bins, [size // bins + (k < size % bins) for k in range(bins)])
            for size in sizes
        ]
        found = resample(sites, fixed_classes=False, samples=300, rng=rng())
        assert found.counts.shape == (300, 2, bins)
        assert (found.counts.sum(axis=(1, 2)) == sum(sizes)).all()
        np.testing.assert_allclose(found.counts[:, 1].mean(axis=0), found.observed[1], rtol=0.02)

    def test_the_seed_decides_all(self) -> None:
        one, two, other = (resample(SITES, fixed_classes=True, samples=9, rng=rng(s)).counts for s in (0, 0, 1))
        assert (one == two).all()
        assert (one != other).any()

    def test_others_are_refused(self) -> None:
        with pytest.raises(DataError, match="no site"):
            resample([], fixed_classes=True, rng=rng())
        with pytest.raises(DataError, match="different bins"):
            resample([SITES[0], BinnedScores(HALVES, (1, 0), (0, 1))], fixed_classes=True, rng=rng())
        for sites, samples in (([BinnedScores(HALVES, (0, 0), (0, 0))], 9), (SITES, 0)):
            with pytest.raises(DataError, match="patients and at least one sample"):
                resample(sites, fixed_classes=True, samples=samples, rng=rng())


class TestIntervals:
    def test_the_percentile_interval_is_that_of_the_binned_patients_one_by_one(self) -> None:
        rows, strata = [], []
        for name, site in enumerate(SITES):
            for truth, counts in enumerate((site.negative, site.positive)):
                rows += [(place, truth) for place, count in enumerate(counts) for _ in range(count)]
                strata += [(name, truth)] * sum(counts)

        def auc(resamples: NDArray[np.float64]) -> NDArray[np.float64]:
            cell = (resamples[..., 1] * 16 + resamples[..., 0]).astype(np.int64)
            return auc_of(np.stack([np.bincount(one, minlength=32).reshape(2, 16) for one in cell]).astype(np.float64))

        values = np.array(rows, dtype=np.float64)
        slow = patient_bootstrap(values, statistic=auc, samples=4000, rng=rng(), strata=strata)
        fast = percentile_interval(resample(SITES, fixed_classes=True, samples=4000, rng=rng(1)), auc_of)
        assert fast.estimate == pytest.approx(slow.estimate)
        assert [fast.low, fast.high] == pytest.approx([slow.low, slow.high], abs=0.008)

    def test_the_corrected_interval_is_that_of_scipy(self) -> None:
        site = BinnedScores((0, 1, 2, 3, 4), (9, 4, 2, 1), (1, 2, 4, 6))
        low, high = (np.repeat(np.arange(4), counts) for counts in (site.negative, site.positive))

        def auc(low: NDArray[np.int64], high: NDArray[np.int64], axis: int) -> NDArray[np.float64]:
            counts = [np.stack([(side == k).sum(axis=axis) for k in range(4)], axis=-1) for side in (low, high)]
            return auc_of(np.stack(np.broadcast_arrays(*counts), axis=-2).astype(np.float64))

        slow = bootstrap((low, high), auc, vectorized=True, n_resamples=8000, method="BCa", rng=rng())
        fast = bca_interval(resample([site], fixed_classes=True, samples=8000, rng=rng(1)), auc_of)
        plain = percentile_interval(resample([site], fixed_classes=True, samples=8000, rng=rng(1)), auc_of)
        assert [fast.low, fast.high] == pytest.approx(list(slow.confidence_interval), abs=0.012)
        assert plain.low - fast.low > 0.015  # so that it is not the plain one that agrees

    def test_shares_of_the_diseased_make_ppv_less_sure(self) -> None:
        sites = [BinnedScores(HALVES, (40, 10), (10, 40))]
        ppv = threshold_figure(sites[0], "ppv", 0.5)
        widths = []
        for fixed in (True, False):
            found = percentile_interval(resample(sites, fixed_classes=fixed, rng=rng()), ppv)
            widths.append(found.high - found.low)
        assert widths[1] > 1.1 * widths[0]

    def test_resamples_without_the_figure_are_left_out(self) -> None:
        resamples = resample([BinnedScores(HALVES, (9, 3), (1, 1))], fixed_classes=False, rng=rng())
        assert np.isnan(share_found(resamples.counts)).any()
        found = percentile_interval(resamples, share_found)
        assert (found.estimate, found.low, found.high) == (0.5, 0, 1)

    def test_where_nothing_varies_there_is_no_width(self) -> None:
        apart = resample([BinnedScores(HALVES, (5, 0), (0, 5))], fixed_classes=True, samples=20, rng=rng())
        assert bca_interval(apart, auc_of) == percentile_interval(apart, auc_of)
        assert bca_interval(apart, auc_of).low == 1

    def test_others_are_refused(self) -> None:
        none = resample([BinnedScores(HALVES, (5, 1), (0, 0))], fixed_classes=True, samples=9, rng=rng())
        for interval in (percentile_interval, bca_interval):
            with pytest.raises(DataError, match="not defined for these"):
                interval(none, auc_of)
        with pytest.raises(DataError, match="level"):
            percentile_interval(none, auc_of, level=1)
        with pytest.raises(DataError, match="level"):
            bca_interval(none, auc_of, level=0)
        one = resample([BinnedScores(HALVES, (5, 1), (0, 1))], fixed_classes=True, samples=9, rng=rng())
        with pytest.raises(DataError, match="Without one of the patients"):
            bca_interval(one, auc_of)

    def test_the_corrected_interval_covers_the_truth_about_as_often_as_it_says(self) -> None:
        draws, covered, runs, edges = np.random.default_rng(3), 0, 150, np.linspace(-3, 4, 33)
        for _ in range(runs):
            sites = []
            for _ in range(3):
                sides = [np.histogram(np.clip(draws.normal(m, size=20), -3, 4), edges)[0].tolist() for m in (0, 1)]
                sites.append(BinnedScores(tuple(edges), tuple(sides[0]), tuple(sides[1])))
            found = bca_interval(resample(sites, fixed_classes=True, samples=200, rng=draws), auc_of)
            covered += found.low <= 0.760250 <= found.high  # Φ(1/√2)
        assert 0.89 <= covered / runs <= 0.99
