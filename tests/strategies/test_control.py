"""What the server does under SCAFFOLD and FedDyn, from the common update alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from eucaim_fl.arrays import Array, Arrays, arrays_sha256
from eucaim_fl.config import ObjectiveConfig
from eucaim_fl.errors import JournalError, NotFiniteError
from eucaim_fl.strategies.control import control_after, guide

SCAFFOLD = ObjectiveConfig(name="scaffold")
DYNAMIC = ObjectiveConfig(name="dynamic", mu=0.5)
BOTH = [SCAFFOLD, DYNAMIC]


def everything(name: str) -> bool:
    return True


def after(
    objective: ObjectiveConfig,
    common: Mapping[str, Array],
    state: Mapping[str, Array],
    share: float = 1.0,
    lr_sum: float = 1.0,
) -> tuple[Arrays, Arrays]:
    """The update and the state, both complete."""
    update, following = control_after(objective, common.items(), state, share, lr_sum, everything)
    return dict(update), following


def one(value: float) -> Arrays:
    return {"w": np.array([value])}


def control(value: float) -> Arrays:
    return {"control.w": np.array([value])}


class TestFormulas:
    def test_scaffold_by_hand(self) -> None:
        # half of the patients, lr_sum 4: 0.5·3 − 0.5·8/4
        update, state = after(SCAFFOLD, one(8.0), control(3.0), share=0.5, lr_sum=4.0)
        assert update == one(8.0)
        assert state == control(0.5)

    def test_dynamic_by_hand(self) -> None:
        # half of the patients, mu 0.5: h = 3 − 0.5·0.5·8 = 1; update 8 − 1/0.5
        update, state = after(DYNAMIC, one(8.0), control(3.0), share=0.5)
        assert state == control(1.0)
        assert update == one(6.0)

    @pytest.mark.parametrize("objective", BOTH, ids=lambda objective: objective.name)
    def test_the_first_round_begins_at_zero(self, objective: ObjectiveConfig) -> None:
        assert after(objective, one(8.0), {}, 0.5, 4.0) == after(objective, one(8.0), control(0.0), 0.5, 4.0)

    @pytest.mark.parametrize("name", ["none", "proximal"])
    def test_other_objectives_change_nothing_and_keep_nothing(self, name: str) -> None:
        assert after(ObjectiveConfig.model_validate({"name": name}), one(8.0), {}) == (one(8.0), {})


@st.composite
def rounds(draw: st.DrawFn) -> list[tuple[list[float], list[bool]]]:
    """Of each round: three sites' updates, and who takes part (at least one)."""
    updates = st.lists(st.integers(-8, 8).map(float), min_size=3, max_size=3)
    present = st.lists(st.booleans(), min_size=3, max_size=3).filter(any)
    return draw(st.lists(st.tuples(updates, present), min_size=1, max_size=5))


class TestDefinitions:
    """The server never sees a site's own state, and yet keeps the weighted mean of all of these."""

    @given(rounds(), st.lists(st.integers(1, 9), min_size=3, max_size=3), st.sampled_from(BOTH))
    def test_the_servers_state_is_the_weighted_mean_of_the_sites_states(
        self, history: list[tuple[list[float], list[bool]]], patients: list[int], objective: ObjectiveConfig
    ) -> None:
        lr_sum, all_shares = 0.25, np.array(patients) / sum(patients)
        own, state = np.zeros(3), dict[str, NDArray[np.float64]]()
        for updates, present in history:
            here, delta, shares = np.array(present), np.array(updates), all_shares * np.array(present)
            common = float(shares @ delta / shares.sum())
            server = state["control.w"][0] if state else 0.0
            moved = own - server - delta / lr_sum if objective.name == "scaffold" else own - objective.mu * delta
            own = np.where(here, moved, own)
            _, state = after(objective, one(common), state, float(shares.sum()), lr_sum)
            assert state["control.w"][0] == pytest.approx(all_shares @ own, abs=1e-9)


class TestArrays:
    @pytest.mark.parametrize("objective", BOTH, ids=lambda objective: objective.name)
    def test_buffers_integers_and_booleans_pass_as_they_are(self, objective: ObjectiveConfig) -> None:
        common: Arrays = {"mean": np.array([0.5], np.float32), "n": np.array(9), "on": np.array([True])}
        update, state = control_after(objective, common.items(), {}, 1.0, 1.0, lambda name: name != "mean")
        assert all(array is common[name] for name, array in update)
        assert state == {}

    @pytest.mark.parametrize("objective", BOTH, ids=lambda objective: objective.name)
    @pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
    def test_dtypes_and_shapes_are_kept_and_inputs_are_not_changed(
        self, objective: ObjectiveConfig, dtype: str
    ) -> None:
        common: Arrays = {"w": np.arange(6.0).reshape(2, 3).astype(dtype), "scale": np.array(2.0, dtype)}
        kept = "float64" if dtype == "float64" else "float32"
        state: Arrays = {f"control.{name}": np.ones(array.shape, kept) for name, array in common.items()}
        before = arrays_sha256({**common, **state})
        update, following = after(objective, common, state, 0.5, 0.1)
        assert arrays_sha256({**common, **state}) == before
        assert {(a.dtype.name, a.shape) for a in update.values()} == {(dtype, (2, 3)), (dtype, ())}
        assert {(a.dtype.name, a.shape) for a in following.values()} == {(kept, (2, 3)), (kept, ())}

    @pytest.mark.parametrize("objective", BOTH, ids=lambda objective: objective.name)
    def test_long_arrays_are_worked_on_piece_by_piece_with_the_same_result(self, objective: ObjectiveConfig) -> None:
        delta, old = np.random.default_rng(0).normal(size=(2, (1 << 18) + 3)).astype(np.float32)
        update, state = after(objective, {"w": delta}, {"control.w": old}, 0.3, 0.7)
        parts = {"a": delta[:1000], "b": delta[1000:]}, {"control.a": old[:1000], "control.b": old[1000:]}
        halves, halves_state = after(objective, *parts, 0.3, 0.7)
        assert update["w"].tobytes() == halves["a"].tobytes() + halves["b"].tobytes()
        assert state["control.w"].tobytes() == halves_state["control.a"].tobytes() + halves_state["control.b"].tobytes()

    def test_the_update_is_taken_one_array_at_a_time_and_the_state_grows_with_it(self) -> None:
        taken: list[str] = []

        def common() -> Sequence[tuple[str, Array]]:
            for name in ("a", "b"):
                taken.append(name)
                yield name, np.ones(1)

        update, state = control_after(SCAFFOLD, common(), {}, 1.0, 1.0, everything)
        assert (taken, state) == ([], {})
        next(update)
        assert (taken, sorted(state)) == (["a"], ["control.a"])

    def test_arrays_of_other_parts_in_the_state_are_left_alone(self) -> None:
        _, state = after(SCAFFOLD, one(1.0), {"m.w": np.ones(1), **control(1.0)})
        assert sorted(state) == ["control.w"]


class TestGuide:
    def test_scaffold_tells_the_sites_its_control_variate(self) -> None:
        state = {**control(2.0), "m.w": np.ones(1)}
        found = guide(SCAFFOLD, state)
        assert list(found) == ["guide:w"]
        assert found["guide:w"] is state["control.w"]

    def test_before_the_first_round_there_is_nothing_to_tell(self) -> None:
        assert guide(SCAFFOLD, {}) == {}

    @pytest.mark.parametrize("name", ["none", "proximal", "dynamic"])
    def test_other_objectives_tell_nothing(self, name: str) -> None:
        assert guide(ObjectiveConfig.model_validate({"name": name}), control(1.0)) == {}


class TestWhatDoesNotFit:
    @pytest.mark.parametrize(("share", "lr_sum"), [(0.0, 1.0), (1.01, 1.0), (1.0, 0.0), (1.0, np.inf), (np.nan, 1.0)])
    def test_shares_and_learning_rates_out_of_range_are_refused_at_the_call(self, share: float, lr_sum: float) -> None:
        with pytest.raises(ValueError, match=r"lie between 0 and 1"):
            control_after(SCAFFOLD, one(1.0).items(), {}, share, lr_sum, everything)

    @pytest.mark.parametrize(
        "state",
        [
            {"control.v": np.ones(1)},
            {"control.w": np.ones(2)},
            {"control.w": np.ones(1), "control.v": np.ones(1)},
        ],
    )
    def test_the_state_of_another_model_is_refused(self, state: Arrays) -> None:
        update, _ = control_after(DYNAMIC, one(1.0).items(), state, 1.0, 1.0, everything)
        with pytest.raises(JournalError, match="belongs to another model"):
            list(update)
        with pytest.raises(JournalError, match="belongs to another model"):
            dict(control_after(DYNAMIC, one(1.0).items(), state, 1.0, 1.0, everything)[0])

    def test_a_state_that_becomes_infinite_is_told(self) -> None:
        with pytest.raises(NotFiniteError, match="keeps for scaffold is not finite"):
            dict(control_after(SCAFFOLD, [("w", np.ones(1, np.float32))], {}, 1.0, 1e-300, everything)[0])
