"""Where choices and noise come from: the distributions, the two kinds of source, and what must never happen."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats

from eucaim_fl.training.randomness import Randomness

NEVER = 1e-9
"""How often a test of secure numbers may fail by chance."""
KINDS: list[Callable[[], Randomness]] = [Randomness.secure, lambda: Randomness.seeded(0)]
BOTH = pytest.mark.parametrize("make", KINDS, ids=["secure", "seeded"])


def told(*uniform: float, is_secure: bool = False) -> Randomness:
    """A source that gives these numbers in [0, 1) one after the other."""
    waiting: Iterator[int] = iter([int(u * 2**53) << 11 for u in uniform])
    return Randomness(lambda n: np.array([next(waiting) for _ in range(n)], np.uint64), is_secure=is_secure)


def extreme(word: int) -> Randomness:
    def words(n: int) -> NDArray[np.uint64]:
        return np.full(n, word, np.uint64)

    return Randomness(words, is_secure=False)


class TestUniform:
    def test_the_largest_word_is_below_one_and_the_smallest_is_zero(self) -> None:
        assert extreme(2**64 - 1).uniform(3).tolist() == [1 - 2**-53] * 3
        assert extreme(0).uniform(1).tolist() == [0.0]

    def test_the_last_of_53_bits_counts(self) -> None:
        assert extreme(1 << 11).uniform(1).tolist() == [2**-53]

    @BOTH
    def test_numbers_are_spread_evenly(self, make: Callable[[], Randomness]) -> None:
        drawn = make().uniform(20_000)
        assert drawn.dtype == np.float64
        assert stats.kstest(drawn, "uniform").pvalue > NEVER

    @BOTH
    def test_none_may_be_asked_for(self, make: Callable[[], Randomness]) -> None:
        assert make().uniform(0).shape == (0,)


class TestNormal:
    def test_two_numbers_by_hand(self) -> None:
        radius = math.sqrt(-2 * math.log(0.5))
        assert told(0.5, 0.0).normal((2,)).tolist() == pytest.approx([radius, 0.0])
        assert told(0.5, 0.125).normal((2,)).tolist() == pytest.approx([radius / math.sqrt(2)] * 2)

    def test_a_secure_number_is_made_as_a_seeded_one_is(self) -> None:
        assert told(0.3, 0.2, is_secure=True).normal((2,)).equal(told(0.3, 0.2).normal((2,)))

    def test_a_number_far_out_is_made_of_a_second_word_too(self) -> None:
        """Else two numbers of such a pair would lie on circles, of which few meet a point of the noise's grid."""
        for second in (0.25, 0.75):
            drawn = told(2.0**-52, second, 0.0).normal((2,), dtype=torch.float64)[0].item()
            uniform = (2**12 + second + 2**-53) * 2.0**-64
            assert drawn == pytest.approx(math.sqrt(-2 * math.log(uniform)), rel=1e-14)
        assert told(0.0, 0.0, 0.0).normal((1,), dtype=torch.float64).item() == pytest.approx(
            math.sqrt(2 * 117 * math.log(2))
        )

    @pytest.mark.parametrize("word", [0, 2**64 - 1])
    def test_no_word_gives_an_infinite_number(self, word: int) -> None:
        drawn = extreme(word).normal((5,), dtype=torch.float64)
        assert drawn.isfinite().all()
        assert drawn.abs().max() <= math.sqrt(2 * 117 * math.log(2)) + 1e-9

    @BOTH
    def test_mean_deviation_and_shape_are_those_of_the_normal_distribution(
        self, make: Callable[[], Randomness]
    ) -> None:
        drawn = make().normal((150_001,), dtype=torch.float64).numpy()
        low, high = stats.chi2.ppf([NEVER / 2, 1 - NEVER / 2], len(drawn))
        assert low < (drawn**2).sum() < high
        assert stats.kstest(drawn, "norm").pvalue > NEVER

    @BOTH
    def test_numbers_that_were_made_together_are_independent(self, make: Callable[[], Randomness]) -> None:
        drawn = make().normal((40_000,), dtype=torch.float64).numpy()
        first, second = drawn[:20_000], drawn[20_000:]
        for one, other in ((first, second), (first**2, second**2), (drawn[:-1], drawn[1:])):
            assert abs(np.corrcoef(one, other)[0, 1]) < 7 / math.sqrt(len(one))

    @BOTH
    @pytest.mark.parametrize("shape", [(), (1,), (3, 5), (0, 4), (65_537,)], ids=str)
    def test_any_shape_may_be_asked_for(self, make: Callable[[], Randomness], shape: tuple[int, ...]) -> None:
        drawn = make().normal(shape)
        assert drawn.shape == shape
        assert drawn.dtype == torch.float32
        assert drawn.unique().numel() == drawn.numel() or drawn.numel() > 1000

    def test_the_same_numbers_come_in_either_type(self) -> None:
        once, again = Randomness.seeded(1), Randomness.seeded(1)
        assert torch.equal(once.normal((9,)), again.normal((9,), dtype=torch.float64).float())


class TestSources:
    def test_one_seed_gives_one_stream_and_another_seed_another(self) -> None:
        def drawn(seed: int) -> tuple[object, ...]:
            source = Randomness.seeded(seed)
            return source.uniform(3).tolist(), source.normal((3,)).tolist(), source.choices().integers(2**62)

        assert drawn(0) == drawn(0) != drawn(1)

    def test_a_stream_goes_on(self) -> None:
        source = Randomness.seeded(0)
        assert source.uniform(1) != source.uniform(1)
        assert source.choices().integers(2**62) != source.choices().integers(2**62)

    def test_secure_numbers_never_come_again(self) -> None:
        drawn = [int(Randomness.secure().uniform(1)[0] * 2**53) for _ in range(50)]
        assert len(set(drawn)) == 50
        assert Randomness.secure().choices().integers(2**62) != Randomness.secure().choices().integers(2**62)

    def test_each_knows_of_which_kind_it_is(self) -> None:
        assert Randomness.secure().is_secure
        assert not Randomness.seeded(0).is_secure
        assert Randomness.secure().spawned().is_secure
        assert not Randomness.seeded(0).spawned().is_secure

    def test_a_spawned_stream_does_not_depend_on_what_is_drawn_from_its_source_later(self) -> None:
        source, again = Randomness.seeded(0), Randomness.seeded(0)
        one, other = source.spawned(), again.spawned()
        again.uniform(10)
        assert one.uniform(4).tolist() == other.uniform(4).tolist()
        assert source.spawned().uniform(1) != Randomness.seeded(0).spawned().uniform(1)

    @BOTH
    def test_nothing_global_is_touched(self, make: Callable[[], Randomness]) -> None:
        def state() -> tuple[object, ...]:
            return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002

        before = state()
        source = make()
        source.uniform(3), source.normal((3,)), source.choices().permutation(3)
        assert state() == before

    def test_global_seeds_do_not_reach_secure_numbers(self) -> None:
        def drawn() -> list[float]:
            random.seed(0)
            np.random.seed(0)  # noqa: NPY002
            torch.manual_seed(0)
            return Randomness.secure().normal((2,)).tolist()

        with torch.random.fork_rng():
            assert drawn() != drawn()
