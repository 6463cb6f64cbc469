"""Krum's distances, scores and choice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from eucaim_fl.arrays import ArrayFile, Arrays, encode_arrays
from eucaim_fl.errors import RecipeError
from eucaim_fl.strategies.krum import check_krum, krum_choice, krum_scores, squared_distances

LINE = np.array([0.0, 1.0, 3.0, 6.0, 10.0])
DISTANCES = (LINE[:, None] - LINE) ** 2


def files(folder: Path, updates: list[Arrays]) -> list[ArrayFile]:
    for number, update in enumerate(updates):
        (folder / str(number)).write_bytes(b"".join(encode_arrays(update)))
    return [ArrayFile(folder / str(number)) for number in range(len(updates))]


class TestSquaredDistances:
    def test_they_add_up_over_floating_arrays_and_leave_integers_out(self, tmp_path: Path) -> None:
        updates: list[Arrays] = [
            {"a": np.array([0.0, 0.0], np.float32), "b": np.array(0.0), "n": np.array(0)},
            {"a": np.array([3.0, 4.0], np.float32), "b": np.array(1.0), "n": np.array(9)},
        ]
        assert squared_distances(files(tmp_path, updates)).tolist() == [[0.0, 26.0], [26.0, 0.0]]

    def test_what_is_not_trained_does_not_count(self, tmp_path: Path) -> None:
        updates: list[Arrays] = [{"v": np.array([v]), "w": np.array([w])} for v, w in ((0.0, 0.0), (1e6, 3.0))]
        found = squared_distances(files(tmp_path, updates), {"w"}.__contains__)
        assert found.tolist() == [[0.0, 9.0], [9.0, 0.0]]

    def test_arrays_longer_than_a_block_are_counted_to_the_end(self, tmp_path: Path) -> None:
        updates: list[Arrays] = [{"a": np.full(10_000, value, np.float32)} for value in (0.0, 2.0, 3.0)]
        assert squared_distances(files(tmp_path, updates))[0].tolist() == [0.0, 40_000.0, 90_000.0]

    def test_updates_that_are_alike_do_not_cancel(self, tmp_path: Path) -> None:
        updates: list[Arrays] = [{"a": np.array([1e8])}, {"a": np.array([1e8 + 1e-7])}]
        assert squared_distances(files(tmp_path, updates))[0, 1] == pytest.approx(1e-14, rel=0.3)


class TestScores:
    def test_a_score_adds_the_nearest_of_the_others(self) -> None:
        # five sites, one suspect: two nearest others each
        assert krum_scores(DISTANCES, 1).tolist() == [1 + 9, 1 + 4, 4 + 9, 9 + 16, 16 + 49]

    def test_too_few_sites_are_refused(self) -> None:
        with pytest.raises(RecipeError, match="at least 7 sites; there are 5"):
            krum_scores(DISTANCES, 2)

    @pytest.mark.parametrize(("sites", "suspects"), [(2, 0), (4, 1), (10, -1)])
    def test_the_check_alone_says_so_too(self, sites: int, suspects: int) -> None:
        with pytest.raises(RecipeError, match="needs at least"):
            check_krum(sites, suspects)


class TestChoice:
    def test_the_lowest_scores_win_in_canonical_order(self) -> None:
        assert krum_choice(np.array([5.0, 1.0, 4.0, 0.0]), 2) == (1, 3)

    def test_of_equal_scores_the_first_site_wins(self) -> None:
        assert krum_choice(np.array([2.0, 1.0, 1.0])) == (1,)

    def test_a_site_that_is_not_a_number_away_comes_last(self) -> None:
        assert krum_choice(np.array([np.nan, 3.0, 2.0]), 2) == (1, 2)

    @pytest.mark.parametrize("keep", [0, 4])
    def test_more_sites_than_there_are_can_not_be_kept(self, keep: int) -> None:
        with pytest.raises(RecipeError, match=f"can't keep {keep} of 3"):
            krum_choice(np.zeros(3), keep)
