"""No update pulls by its length."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from eucaim_fl.arrays import ArrayFile, encode_arrays
from eucaim_fl.config import RuleConfig
from eucaim_fl.durable import write_atomically
from eucaim_fl.strategies.aggregation import aggregate, aggregate_weighed
from eucaim_fl.strategies.clipping import median_factors, update_lengths
from eucaim_fl.strategies.weighting import Weighed

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


class TestBuffers:
    """Four weights whose changes are short, and running variances that are a thousand times as long."""

    @staticmethod
    def files(folder: Path, sent: list[tuple[float, float]]) -> list[ArrayFile]:
        for site, (w, variance) in enumerate(sent):
            arrays = {"running_var": np.full(4, variance, np.float32), "w": np.full(4, w, np.float32)}
            write_atomically(folder / f"{site}", encode_arrays(arrays))
        return [ArrayFile(folder / f"{site}") for site in range(len(sent))]

    def combined(self, rule: RuleConfig, files: list[ArrayFile], chunk: int = 1 << 18) -> dict[str, list[float]]:
        weighed = Weighed(tuple(1.0 for _ in files))
        found = aggregate_weighed(rule, files, weighed, {"w"}.__contains__, chunk)
        return {name: array.tolist() for name, array in found}

    def test_they_do_not_hide_an_update_that_is_a_hundred_times_as_long(self, tmp_path: Path) -> None:
        files = self.files(tmp_path, [(1.0, 1000.0), (1.0, 1010.0), (100.0, 1000.0)])
        assert self.combined(RULE, files)["w"] == [1.0] * 4

    @pytest.mark.parametrize("name", ["clipped_mean", "krum", "multi_krum", "geometric_median"])
    def test_one_site_does_not_pull_them(self, tmp_path: Path, name: str) -> None:
        others = [(1.0, 2.0), (1.25, 3.0), (0.75, 4.0), (1.5, 5.0)]
        files = self.files(tmp_path, [*others, (1.0, 1e9)])
        found = self.combined(RuleConfig(name=name), files)
        assert found["running_var"] == [4.0] * 4
        assert found == self.combined(RuleConfig(name=name), files, chunk=3)

    @pytest.mark.parametrize("name", ["krum", "geometric_median"])
    def test_a_spoilt_update_is_seen_beside_them(self, tmp_path: Path, name: str) -> None:
        """By their distances of all arrays, the bad site would be the one in the middle."""
        variances = [1000.0, 4000.0, 2400.0, 2600.0, 2500.0]
        files = self.files(tmp_path, [(w, v) for w, v in zip([1.0, 1.1, 0.9, 1.0, -50.0], variances, strict=True)])
        assert self.combined(RuleConfig(name=name), files)["w"] == pytest.approx([1.0] * 4, abs=0.11)


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
