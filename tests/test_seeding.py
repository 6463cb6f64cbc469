"""Randomness is derived from the run's seed and what it is for."""

from __future__ import annotations

import random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from eucaim_fl.seeding import derive_seed, generator

purposes = st.lists(st.text(max_size=8) | st.integers(), max_size=4)


class TestDeriveSeed:
    def test_its_values_are_the_same_in_every_version(self) -> None:
        assert derive_seed(0, "initial weights") == 3488821423709225726
        assert derive_seed(42, "training", "a", 3) == 8498923877806054153

    @given(st.integers(), purposes)
    def test_it_fits_a_signed_64_bit_integer(self, seed: int, purpose: list[str | int]) -> None:
        assert 0 <= derive_seed(seed, *purpose) < 2**63

    @given(st.integers(), purposes, st.integers(), purposes)
    def test_another_seed_or_purpose_gives_another_value(
        self, seed: int, purpose: list[str | int], other: int, another: list[str | int]
    ) -> None:
        same = (seed, purpose) == (other, another)
        assert (derive_seed(seed, *purpose) == derive_seed(other, *another)) is same

    def test_a_number_and_its_text_are_different_purposes(self) -> None:
        assert derive_seed(0, 1) != derive_seed(0, "1")

    def test_seed_zero_seeds(self) -> None:
        assert derive_seed(0, "x") != derive_seed(1, "x")


class TestGenerator:
    def test_one_purpose_gives_one_sequence(self) -> None:
        assert (generator(0, "order", 1).random(5) == generator(0, "order", 1).random(5)).all()
        assert (generator(0, "order", 1).random(5) != generator(0, "order", 2).random(5)).any()

    def test_global_random_state_is_left_alone(self) -> None:
        before = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
        generator(0, "order").random(100)
        after = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
        assert before == after
