"""What the server does with the common update; numbers from algorithm 2 of Reddi et al. 2021."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray

from eucaim_fl.arrays import Arrays, arrays_sha256
from eucaim_fl.config import ServerOptimizerConfig
from eucaim_fl.errors import JournalError, RecipeError, ReplyError
from eucaim_fl.strategies.server_optimizer import OPTIMIZERS, apply, check_optimizer

ADAPTIVE = {"lr": 0.5, "beta1": 0.5, "beta2": 0.75, "tau": 0.5}


def config(name: str, **values: float) -> ServerOptimizerConfig:
    return ServerOptimizerConfig.model_validate({"name": name, **values})


def everything(name: str) -> bool:
    return True


def run(optimizer: ServerOptimizerConfig, *deltas: float) -> tuple[float, dict[str, float]]:
    """One weight, from 0, through several updates."""
    weights: Arrays = {"w": np.zeros(1)}
    state: Arrays = {}
    for delta in deltas:
        weights, state = apply(optimizer, weights, [("w", np.array([delta]))], state, everything)
    return float(weights["w"][0]), {key: float(value[0]) for key, value in state.items()}


class TestFormulas:
    def test_plain_with_learning_rate_one_is_federated_averaging(self) -> None:
        assert run(config("plain"), 2.0, 3.0) == (5.0, {})

    def test_plain_scales_the_step_by_the_learning_rate(self) -> None:
        assert run(config("plain", lr=0.25), 2.0) == (0.5, {})

    def test_momentum_remembers_a_share_of_the_last_steps(self) -> None:
        # m: 2, then 0.5·2 + 3 = 4; w: 2, then 6
        assert run(config("momentum", beta1=0.5), 2.0, 3.0) == (6.0, {"m.w": 4.0})

    def test_adagrad_adds_squares(self) -> None:
        # v: 0.25 + 4 = 4.25, then + 9; m: 0.5·2 = 1, then 0.5·1 + 0.5·3 = 2
        weight, state = run(config("adagrad", **ADAPTIVE), 2.0, 3.0)
        assert state == {"m.w": 2.0, "v.w": 13.25}
        assert weight == pytest.approx(0.5 * 1 / (math.sqrt(4.25) + 0.5) + 0.5 * 2 / (math.sqrt(13.25) + 0.5))

    def test_adam_averages_squares(self) -> None:
        # v: 0.75·0.25 + 0.25·4 = 1.1875, then 0.75·1.1875 + 0.25·9 = 3.140625
        weight, state = run(config("adam", **ADAPTIVE), 2.0, 3.0)
        assert state == {"m.w": 2.0, "v.w": 3.140625}
        assert weight == pytest.approx(0.5 * 1 / (math.sqrt(1.1875) + 0.5) + 0.5 * 2 / (math.sqrt(3.140625) + 0.5))

    def test_yogi_moves_towards_the_square_by_a_share_of_the_square(self) -> None:
        # v: 0.25 + 0.25·4 = 1.25 (0.25 < 4); then Δ² = 1 < 1.25: 1.25 − 0.25·1 = 1
        weight, state = run(config("yogi", **ADAPTIVE), 2.0, 1.0)
        assert state == {"m.w": 1.0, "v.w": 1.0}
        assert weight == pytest.approx(0.5 * 1 / (math.sqrt(1.25) + 0.5) + 0.5 * 1 / 1.5)

    @pytest.mark.parametrize("name", ["adagrad", "adam", "yogi"])
    def test_no_update_is_no_step_and_no_division_by_zero(self, name: str) -> None:
        assert run(config(name), 0.0)[0] == 0.0


class TestWhatIsKept:
    @pytest.mark.parametrize("name", sorted(OPTIMIZERS))
    @settings(max_examples=30)
    @given(
        delta=arrays(
            st.sampled_from([np.float16, np.float32, np.float64]),
            array_shapes(min_dims=0, max_dims=3, max_side=4),
            elements=st.floats(-8, 8, width=16),
        )
    )
    def test_dtypes_shapes_and_inputs(self, name: str, delta: NDArray[np.floating]) -> None:
        weights = {"w": np.ones_like(delta)}
        state: Arrays = {}
        for _ in range(2):
            before = (arrays_sha256(weights), arrays_sha256(state), delta.tobytes())
            new, following = apply(config(name), weights, [("w", delta)], state, everything)
            assert (arrays_sha256(weights), arrays_sha256(state), delta.tobytes()) == before
            assert new["w"].dtype == delta.dtype
            assert new["w"].shape == delta.shape
            assert sorted(following) == sorted(f"{slot}.w" for slot in OPTIMIZERS[name].slots)
            assert {a.dtype.name for a in following.values()} <= {"float64" if delta.dtype == np.float64 else "float32"}
            weights, state = new, following

    @pytest.mark.parametrize("name", sorted(OPTIMIZERS))
    def test_buffers_integers_and_booleans_take_the_plain_update(self, name: str) -> None:
        weights: Arrays = {"mean": np.array([1.0], np.float32), "n": np.array(5), "on": np.array([False])}
        update = [("mean", np.array([0.5], np.float32)), ("n", np.array(9)), ("on", np.array([True]))]
        new, state = apply(config(name, lr=0.1), weights, update, {}, lambda key: key != "mean")
        assert new["mean"].tolist() == [1.5]
        assert new["n"].shape == ()
        assert new["n"].dtype == np.int64
        assert new["n"] == 9
        assert new["on"].tolist() == [True]
        assert state == {}

    @pytest.mark.parametrize("name", sorted(OPTIMIZERS))
    def test_long_arrays_are_worked_on_piece_by_piece_with_the_same_result(self, name: str) -> None:
        rng = np.random.default_rng(1)
        old, delta = rng.normal(size=(2, (1 << 18) + 3)).astype(np.float32)
        at_once, _ = apply(config(name), {"w": old}, [("w", delta)], {}, everything)
        halves, _ = apply(
            config(name), {"a": old[:1000], "b": old[1000:]}, [("a", delta[:1000]), ("b", delta[1000:])], {}, everything
        )
        assert at_once["w"].tobytes() == halves["a"].tobytes() + halves["b"].tobytes()

    def test_an_iterator_of_updates_is_enough(self) -> None:
        new, _ = apply(config("plain"), {"w": np.ones(2)}, iter([("w", np.ones(2))]), {}, everything)
        assert new["w"].tolist() == [2.0, 2.0]


class TestWhatDoesNotFit:
    def test_an_unknown_optimizer_names_the_nearest(self) -> None:
        with pytest.raises(RecipeError, match="Did you mean 'adam'"):
            check_optimizer(config("adamm"))
        with pytest.raises(RecipeError, match="server optimizer called 'nadam'"):
            apply(config("nadam"), {}, [], {}, everything)

    @pytest.mark.parametrize(
        ("update", "message"),
        [
            ([("v", np.zeros(2))], "the model has not"),
            ([("w", np.zeros(2)), ("w", np.zeros(2))], "or twice"),
            ([("w", np.zeros(3))], "shape or dtype"),
            ([("w", np.zeros(2, np.float32))], "shape or dtype"),
            ([], "lacks 'w'"),
        ],
    )
    def test_an_update_of_another_model_is_refused(
        self, update: list[tuple[str, NDArray[np.floating]]], message: str
    ) -> None:
        with pytest.raises(ReplyError, match=message):
            apply(config("plain"), {"w": np.zeros(2)}, update, {}, everything)

    @pytest.mark.parametrize(
        ("name", "state"),
        [
            ("adam", {"m.w": np.zeros(2)}),
            ("adam", {"m.w": np.zeros(2), "v.w": np.zeros(3)}),
            ("plain", {"m.w": np.zeros(2)}),
            ("momentum", {"m.w": np.zeros(2), "v.w": np.zeros(2)}),
        ],
    )
    def test_the_state_of_another_optimizer_is_refused(self, name: str, state: Arrays) -> None:
        with pytest.raises(JournalError, match="belongs to another model or optimizer"):
            apply(config(name), {"w": np.zeros(2)}, [("w", np.zeros(2))], state, everything)
