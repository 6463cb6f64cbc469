"""What a bad site sends."""

from __future__ import annotations

import numpy as np
import pytest

from eucaim_fl.errors import RecipeError
from eucaim_fl.federation.poison import LONGER, NOISE, Poison, poisoned_update, read_poison

UPDATE = {"w": np.array([3.0, 4.0], np.float32), "steps": np.array(7), "mean": np.ones(2, np.float32)}


class TestReadPoison:
    def test_its_text_is_read_again(self) -> None:
        assert read_poison(str(Poison("noise", "ham_dias"))) == Poison("noise", "ham_dias")

    @pytest.mark.parametrize("text", ["", "flip", "flip:", ":a", "burn:a", "flip:../a", "flip:A"])
    def test_other_texts_are_refused(self, text: str) -> None:
        with pytest.raises(RecipeError, match="KIND:SITE"):
            read_poison(text)


class TestPoisonedUpdate:
    def test_a_scaled_update_is_a_hundred_times_as_long_and_buffers_stay(self) -> None:
        bad = poisoned_update(Poison("scale", "a"), UPDATE, {"w"}, 0)
        assert bad["w"].tolist() == [3 * LONGER, 4 * LONGER]
        assert bad["steps"] == 7
        assert bad["mean"].tolist() == [1.0, 1.0]
        assert bad["w"].dtype == np.float32

    def test_noise_is_ten_times_as_long_as_the_update(self) -> None:
        bad = poisoned_update(Poison("noise", "a"), UPDATE, {"w"}, 0)
        assert np.linalg.norm(bad["w"] - UPDATE["w"]) == pytest.approx(5 * NOISE, rel=1e-5)

    def test_noise_is_the_same_for_the_same_seed(self) -> None:
        twice = [poisoned_update(Poison("noise", "a"), UPDATE, {"w"}, seed)["w"].tolist() for seed in (1, 1, 2)]
        assert twice[0] == twice[1] != twice[2]

    def test_spoilt_data_leave_the_update_and_the_input_untouched(self) -> None:
        before = {name: array.copy() for name, array in UPDATE.items()}
        bad = poisoned_update(Poison("flip", "a"), UPDATE, {"w"}, 0)
        poisoned_update(Poison("scale", "a"), UPDATE, {"w"}, 0)
        assert all(
            np.array_equal(bad[name], before[name]) and np.array_equal(UPDATE[name], before[name]) for name in bad
        )
