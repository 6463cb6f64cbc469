"""No update pulls by its length."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from eucaim_fl.arrays import ArrayFile, encode_arrays
from eucaim_fl.config import RuleConfig
from eucaim_fl.durable import write_atomically
from eucaim_fl.strategies.aggregation import aggregate
from eucaim_fl.strategies.clipping import median_factors, update_lengths

RULE = RuleConfig(name="clipped_mean")


def spooled(folder: Path, *values: float) -> list[ArrayFile]:
    """Updates of four equal weights and a counter."""
    for site, value in enumerate(values):
        arrays = {"steps": np.array(site), "w": np.full(4, value, np.float32)}
        write_atomically(folder / f"{site}", encode_arrays(arrays))
    return [ArrayFile(folder / f"{site}") for site in range(len(values))]


class TestFactors:
    def test_lengths_are_over_floating_arrays(self, tmp_path: Path) -> None:
        assert update_lengths(spooled(tmp_path, 1.0, -3.0)).tolist() == [2.0, 6.0]

    @pytest.mark.parametrize(
        ("lengths", "factors"),
        [([3.0], [1.0]), ([1.0, 4.0], [1.0, 0.25]), ([0.0, 0.0, 5.0], [1.0, 1.0, 0.0]), ([2.0, 2.0], [1.0, 1.0])],
    )
    def test_what_is_longer_than_the_median_is_shortened_to_it(
        self, lengths: list[float], factors: list[float]
    ) -> None:
        assert median_factors(np.array(lengths)).tolist() == factors


class TestClippedMean:
    def test_a_hundredfold_update_counts_like_an_honest_one(self, tmp_path: Path) -> None:
        common = dict(aggregate(RULE, spooled(tmp_path, 1.0, 1.0, 100.0), [10, 10, 20]))
        assert common["w"].tolist() == [1.0] * 4

    def test_its_direction_still_counts_by_patients(self, tmp_path: Path) -> None:
        common = dict(aggregate(RULE, spooled(tmp_path, 1.0, 1.0, -100.0), [10, 10, 20]))
        assert common["w"].tolist() == [0.0] * 4

    def test_counters_are_averaged_as_they_are(self, tmp_path: Path) -> None:
        assert dict(aggregate(RULE, spooled(tmp_path, 1.0, 1.0, 100.0), [1, 1, 2]))["steps"] == 1

    def test_pieces_change_no_bit(self, tmp_path: Path) -> None:
        files = spooled(tmp_path, 0.1, 0.3, 7.0)
        whole, pieces = (dict(aggregate(RULE, files, [1, 2, 3], chunk)) for chunk in (1 << 18, 3))
        assert np.array_equal(whole["w"], pieces["w"])
