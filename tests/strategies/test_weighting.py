"""How much each site counts."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eucaim_fl.arrays import Arrays
from eucaim_fl.config import LocalOptimizerConfig, ObjectiveConfig, TrainingConfig, WeightingConfig
from eucaim_fl.errors import JournalError, RecipeError, ReplyError
from eucaim_fl.strategies.weighting import (
    WEIGHTINGS,
    Settings,
    Told,
    Weighed,
    agnostic,
    check_weighting,
    effective_steps,
    on_simplex,
    steps_of,
    trained_norm,
    weigh,
)

TWO = Settings(sites=2, lr=0.1)


def config(name: str, **values: float) -> WeightingConfig:
    return WeightingConfig.model_validate({"name": name, **values})


def told(*rows: tuple[int, int, float | None]) -> list[Told]:
    """Patients, steps and loss of each site, from the first on."""
    return [Told(site, patients, steps, loss) for site, (patients, steps, loss) in enumerate(rows)]


def shares(weighed: Weighed) -> list[float]:
    return [weight / math.fsum(weighed.weights) for weight in weighed.weights]


class TestPatientsAndEqual:
    def test_by_patients_the_weights_are_their_numbers(self) -> None:
        assert weigh(config("patients"), told((30, 5, 1.0), (10, 9, None)), TWO) == Weighed((30.0, 10.0))

    def test_equal_does_not_look_at_patients(self) -> None:
        assert weigh(config("equal"), told((30, 5, 1.0), (10, 9, None)), TWO) == Weighed((1.0, 1.0))


class TestEffectiveSteps:
    def test_plain_sgd_counts_steps(self) -> None:
        assert [effective_steps(n) for n in (1, 7, 1_000_000)] == [1.0, 7.0, 1e6]

    @pytest.mark.parametrize(("steps", "momentum"), [(1, 0.9), (3, 0.5), (40, 0.9)])
    def test_with_momentum_it_is_the_formula_of_the_paper(self, steps: int, momentum: float) -> None:
        expected = (steps - momentum * (1 - momentum**steps) / (1 - momentum)) / (1 - momentum)
        assert effective_steps(steps, momentum) == pytest.approx(expected, rel=1e-12)

    @pytest.mark.parametrize(("steps", "decay"), [(1, 0.3), (5, 0.1), (400, 0.01)])
    def test_with_a_proximal_term_it_is_the_formula_of_the_paper(self, steps: int, decay: float) -> None:
        assert effective_steps(steps, decay=decay) == pytest.approx((1 - (1 - decay) ** steps) / decay, rel=1e-12)

    @given(st.integers(1, 60), st.floats(0, 0.95), st.floats(0, 1))
    def test_it_is_how_far_sgd_goes_against_a_gradient_of_one(self, steps: int, momentum: float, decay: float) -> None:
        went = speed = 0.0
        for _ in range(steps):
            speed = momentum * speed + 1.0 - decay * went
            went += speed
        bounded = min(max(1.0, went), effective_steps(steps, momentum))
        assert effective_steps(steps, momentum, decay) == pytest.approx(bounded, rel=1e-9)

    @pytest.mark.parametrize("decay", [3.0, 1e6])
    @pytest.mark.parametrize("steps", [1, 2, 3, 100_001])
    def test_a_proximal_term_too_strong_for_the_step_gives_no_absurd_number(self, steps: int, decay: float) -> None:
        assert 1.0 <= effective_steps(steps, 0.9, decay) <= effective_steps(steps, 0.9)


class TestNormalised:
    def test_two_sites_with_1_and_3_steps(self) -> None:
        # p = 1/4, 3/4; a = 1, 3: weights 1/4, 1/4; effective steps 1/4 + 9/4 = 2.5, times the sum of weights 1/2
        found = weigh(config("normalised"), told((2, 1, None), (6, 3, None)), TWO)
        assert found == Weighed((0.25, 0.25), 1.25, buffers=(0.25, 0.75))

    def test_with_equal_steps_it_is_by_patients(self) -> None:
        found = weigh(config("normalised"), told((30, 5, None), (10, 5, None)), TWO)
        assert shares(found) == pytest.approx([0.75, 0.25])
        assert found.scale == pytest.approx(1.0)

    def test_momentum_and_proximal_term_count(self) -> None:
        settings = Settings(2, lr=0.5, momentum=0.5, mu=0.2)
        found = weigh(config("normalised"), told((10, 10, None), (20, 20, None)), settings)
        ratio = effective_steps(20, 0.5, 0.1) / effective_steps(10, 0.5, 0.1)
        assert found.weights[1] / found.weights[0] == pytest.approx(2 / ratio)


class TestFair:
    def test_one_step_by_hand(self) -> None:
        # p = 1/2 each, q = 1, L = 10: Σ pLF = 10; h = ‖10Δ‖² + 10F: 100 + 5 and 400 + 15; half of both is 260
        losses = [Told(0, 10, 1, 0.5, norm=1.0), Told(1, 10, 1, 1.5, norm=2.0)]
        found = weigh(config("fair", q=1.0), losses, TWO)
        assert shares(found) == pytest.approx([0.25, 0.75])
        assert found.scale == pytest.approx(10 / 260)

    def test_q_of_zero_is_by_patients(self) -> None:
        found = weigh(config("fair", q=0.0), [Told(0, 30, 1, 0.5, 1.0), Told(1, 10, 1, 9.0, 2.0)], TWO)
        assert shares(found) == [0.75, 0.25]
        assert found.scale == 1.0

    @given(st.floats(0.1, 5), st.floats(0.1, 5), st.floats(0.5, 3))
    def test_the_larger_loss_never_counts_less(self, first: float, second: float, q: float) -> None:
        weights = weigh(config("fair", q=q), told((10, 1, first), (10, 1, second)), TWO).weights
        assert (weights[0] >= weights[1]) == (first >= second) or weights[0] == pytest.approx(weights[1])

    def test_more_local_steps_lower_the_bound_of_curvature(self) -> None:
        sites = [Told(0, 10, 10, 1.0, norm=1.0), Told(1, 10, 10, 1.0, norm=1.0)]
        found = weigh(config("fair", q=1.0), sites, TWO)
        assert found.scale == pytest.approx(1 / (1 + 1))  # L = 1/(0.1·10)

    def test_a_loss_that_is_not_told_is_the_mean_of_the_others(self) -> None:
        settings = Settings(3, lr=0.1)
        silent = weigh(config("fair"), told((1, 1, 1.0), (1, 1, None), (1, 1, 4.0)), settings)
        assert silent == weigh(config("fair"), told((1, 1, 1.0), (1, 1, 2.5), (1, 1, 4.0)), settings)

    @pytest.mark.parametrize("loss", [None, math.nan, math.inf])
    def test_if_nobody_tells_a_loss_it_is_by_patients(self, loss: float | None) -> None:
        assert weigh(config("fair"), told((30, 1, loss), (10, 1, loss)), TWO) == Weighed((30.0, 10.0))

    @pytest.mark.parametrize("q", [0.5, 10.0])
    def test_losses_of_zero_below_and_far_apart_give_numbers(self, q: float) -> None:
        sites = [Told(0, 10, 1, -3.0, 1e30), Told(1, 10, 1, 1e9, 0.0), Told(2, 0, 1, 1e9, 0.0)]
        found = weigh(config("fair", q=q), sites, Settings(3, lr=0.1))
        assert all(math.isfinite(value) for value in (*found.weights, found.scale))
        assert sum(found.weights) > 0

    def test_a_large_loss_of_nobody_leaves_the_others_weights(self) -> None:
        found = weigh(config("fair", q=10.0), told((10, 1, 1e-9), (0, 1, 1e9)), TWO)
        assert found.weights == (1.0, 0.0)


class TestAgnostic:
    def test_it_begins_equal_and_moves_towards_the_larger_loss(self) -> None:
        first = weigh(config("agnostic", step=0.1), told((30, 1, 1.0), (10, 1, 3.0)), TWO)
        assert first.weights == (0.5, 0.5)
        assert first.state["weighting.lambda"].tolist() == pytest.approx([0.4, 0.6])  # 0.6 and 0.8, less 0.2 each
        second = weigh(config("agnostic", step=0.1), told((30, 1, 1.0), (10, 1, 3.0)), TWO, first.state)
        assert second.weights == pytest.approx((0.4, 0.6))

    def test_the_state_that_was_given_stays_as_it_was(self) -> None:
        state: Arrays = {"weighting.lambda": np.array([0.5, 0.5]), "m.w": np.ones(3)}
        found = weigh(config("agnostic"), told((1, 1, 1.0), (1, 1, 3.0)), TWO, state)
        assert state["weighting.lambda"].tolist() == [0.5, 0.5]
        assert sorted(found.state) == ["weighting.lambda"]

    def test_absent_sites_keep_their_share(self) -> None:
        state: Arrays = {"weighting.lambda": np.array([0.25, 0.5, 0.25])}
        present = [Told(0, 10, 1, 0.0), Told(2, 10, 1, 1.0)]
        found = weigh(config("agnostic", step=0.1), present, Settings(3, lr=0.1), state)
        assert found.weights == (0.25, 0.25)
        assert found.state["weighting.lambda"].tolist() == pytest.approx([0.2, 0.5, 0.3])

    def test_if_those_present_have_no_share_they_count_by_patients(self) -> None:
        state: Arrays = {"weighting.lambda": np.array([0.0, 1.0, 0.0])}
        present = [Told(0, 30, 1, 2.0), Told(2, 10, 1, 1.0)]
        found = weigh(config("agnostic"), present, Settings(3, lr=0.1), state)
        assert found.weights == (0.75, 0.25)
        assert found.state["weighting.lambda"].tolist() == [0.0, 1.0, 0.0]

    def test_if_nobody_tells_a_loss_the_shares_stay(self) -> None:
        state: Arrays = {"weighting.lambda": np.array([0.25, 0.75])}
        found = weigh(config("agnostic"), told((30, 1, None), (10, 1, None)), TWO, state)
        assert found.weights == (0.25, 0.75)
        assert found.state["weighting.lambda"].tolist() == [0.25, 0.75]

    @pytest.mark.parametrize("wrong", [np.ones(3), np.array([math.nan, 1.0]), np.array([-1.0, 2.0]), np.array(1.0)])
    def test_the_state_of_other_sites_is_refused(self, wrong: Any) -> None:
        with pytest.raises(JournalError, match="belongs to other sites"):
            weigh(config("agnostic"), told((1, 1, 1.0), (1, 1, 1.0)), TWO, {"weighting.lambda": wrong})
        with pytest.raises(JournalError, match="belongs to other sites"):
            agnostic(config("agnostic"), told((1, 1, 1.0)), TWO, {"weighting.lambda": wrong})

    @given(st.lists(st.tuples(st.booleans(), st.floats(-5, 5)), min_size=4, max_size=4), st.integers(1, 4))
    def test_the_shares_of_all_sites_always_add_up_to_one(self, sites: list[tuple[bool, float]], rounds: int) -> None:
        state: Arrays = {}
        present = [Told(i, 5, 1, loss) for i, (here, loss) in enumerate(sites) if here] or [Told(0, 5, 1, 1.0)]
        for _ in range(rounds):
            state = weigh(config("agnostic", step=1.0), present, Settings(4, lr=0.1), state).state
        assert state["weighting.lambda"].sum() == pytest.approx(1.0, abs=1e-12)
        assert (state["weighting.lambda"] >= 0).all()


class TestSimplex:
    @given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=6), st.floats(0, 10))
    def test_the_projection_is_on_it_and_leaves_what_is_on_it(self, values: list[float], total: float) -> None:
        found = on_simplex(np.array(values), total)
        assert (found >= 0).all()
        assert found.sum() == pytest.approx(total, abs=1e-9)
        assert on_simplex(found, total) == pytest.approx(found, abs=1e-9)

    @given(st.lists(st.floats(-3, 3), min_size=3, max_size=3), st.lists(st.floats(0.01, 1), min_size=3, max_size=3))
    def test_nothing_on_it_is_nearer(self, values: list[float], other: list[float]) -> None:
        point = np.array(other) / sum(other)
        found = on_simplex(np.array(values))
        assert np.linalg.norm(found - values) <= np.linalg.norm(point - values) + 1e-9


class TestWeigh:
    @pytest.mark.parametrize("name", sorted(WEIGHTINGS))
    @pytest.mark.parametrize("places", [[], [1, 0], [0, 0], [0, 2], [-1]])
    def test_sites_that_are_not_the_plans_each_once_in_order_are_refused(self, name: str, places: list[int]) -> None:
        with pytest.raises(ReplyError, match="each once and in its order"):
            weigh(config(name), [Told(place, 10, 1, 1.0) for place in places], TWO)

    @pytest.mark.parametrize("numbers", [(0, 0), (5, -5)])
    def test_sites_without_patients_are_refused(self, numbers: tuple[int, int]) -> None:
        with pytest.raises(ReplyError, match="no patients"):
            weigh(config("patients"), [Told(i, n, 1, 1.0) for i, n in enumerate(numbers)], TWO)

    def test_an_unknown_weighting_names_the_nearest(self) -> None:
        with pytest.raises(RecipeError, match="Did you mean 'normalised'"):
            check_weighting(config("normalized"))
        with pytest.raises(RecipeError, match="weighting called 'mine'"):
            weigh(config("mine"), told((1, 1, 1.0)), TWO)

    @pytest.mark.parametrize("name", sorted(WEIGHTINGS))
    def test_known_ones_pass_and_one_site_alone_keeps_its_update(self, name: str) -> None:
        check_weighting(config(name))
        found = weigh(config(name), told((10, 7, 0.5)), Settings(1, lr=0.1, momentum=0.9))
        assert found.weights[0] > 0
        assert found.scale == pytest.approx(1.0)


class TestSettings:
    def test_momentum_is_that_of_sgd_and_mu_that_of_the_proximal_term(self) -> None:
        training = TrainingConfig(local_epochs=2, batch_size=4, optimizer=LocalOptimizerConfig(lr=0.1, momentum=0.5))
        found = Settings.of(3, ObjectiveConfig(name="proximal", mu=0.3), training, rate=0.5)
        assert found == Settings(3, lr=0.05, momentum=0.5, mu=0.3)

    def test_other_optimizers_have_none_and_other_objectives_neither(self) -> None:
        training = TrainingConfig(local_steps=2, optimizer=LocalOptimizerConfig(name="adam", lr=0.1, momentum=0.5))
        found = Settings.of(3, ObjectiveConfig(name="dynamic", mu=0.3), training)
        assert found == Settings(3, lr=0.1)


class TestStepsOf:
    def test_they_are_the_plans_or_follow_from_its_epochs_and_the_patients(self) -> None:
        epochs = TrainingConfig(local_epochs=2, batch_size=4)
        assert [steps_of(epochs, patients) for patients in (0, 1, 9, 10)] == [1, 1, 5, 5]
        assert steps_of(TrainingConfig(local_steps=8), 1000) == 8


class Update:
    """One update in memory."""

    def __init__(self, **values: Any) -> None:
        self.values = {name: np.asarray(value) for name, value in values.items()}
        self.names = list(values)

    def dtype(self, name: str) -> np.dtype[Any]:
        return self.values[name].dtype

    def shape(self, name: str) -> tuple[int, ...]:
        return self.values[name].shape

    def read(self, name: str, start: int, count: int) -> Any:
        return self.values[name].reshape(-1)[start : start + count]


class TestTrainedNorm:
    def test_it_counts_what_is_trained_and_floating(self) -> None:
        update = Update(a=np.array([[3.0]], np.float32), b=0.0, c=[4.0], mean=[100.0], n=[7])
        assert trained_norm(update, lambda name: name != "mean") == 5.0

    def test_long_arrays_are_counted_to_the_end(self) -> None:
        assert trained_norm(Update(a=np.full(1 << 19, 0.5, np.float32)), lambda name: True) == math.sqrt(1 << 17)
