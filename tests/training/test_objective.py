"""What is added to gradients: by hand, against autograd, and in federations of quadratics whose answer is known."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eucaim_fl.arrays import GUIDE, Arrays
from eucaim_fl.config import ObjectiveConfig
from eucaim_fl.errors import PlanError
from eucaim_fl.strategies.control import control_after, guide
from eucaim_fl.training.objective import Pull, applied, pull_for, state_after

PROXIMAL = ObjectiveConfig(name="proximal", mu=2.0)
SCAFFOLD = ObjectiveConfig(name="scaffold")
DYNAMIC = ObjectiveConfig(name="dynamic", mu=0.5)
ARRIVING = {"w": np.array([1.0, 2.0], np.float32)}
UPDATE = {"w": np.array([-0.6, 0.2], np.float32)}


def array(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def parameter(*values: float, gradient: tuple[float, ...] | None = None) -> torch.nn.Parameter:
    made = torch.nn.Parameter(torch.tensor(values))
    made.grad = torch.zeros(len(values)) if gradient is None else torch.tensor(gradient)
    return made


def plain(arrays: Mapping[str, np.ndarray]) -> dict[str, list[float]]:
    return {name: values.tolist() for name, values in arrays.items()}


class TestApplied:
    def test_two_weights_by_hand(self) -> None:
        weight = parameter(3.0, 1.0, gradient=(10.0, 20.0))
        value = applied(Pull(0.5, ARRIVING, {"w": array(100.0, 200.0)}), {"w": weight})()
        assert value == 0.5 / 2 * (2**2 + 1**2)
        assert weight.grad.tolist() == [10.0 + 0.5 * 2 + 100.0, 20.0 - 0.5 * 1 + 200.0]
        assert weight.tolist() == [3.0, 1.0]

    @given(st.integers(0, 2**32), st.floats(0.0, 10.0))
    def test_it_adds_what_autograd_finds(self, seed: int, mu: float) -> None:
        draw = torch.Generator().manual_seed(seed)
        shapes = {"a": (3, 2), "b": (4,), "c": ()}
        weights = {name: torch.nn.Parameter(torch.randn(shape, generator=draw)) for name, shape in shapes.items()}
        anchor, linear = ({n: torch.randn(s, generator=draw).numpy() for n, s in shapes.items()} for _ in range(2))
        pairs = [(w, torch.from_numpy(anchor[n]), torch.from_numpy(linear[n])) for n, w in weights.items()]
        penalty = sum(mu / 2 * (w - a).pow(2).sum() for w, a, _ in pairs)
        expected = torch.autograd.grad(penalty + sum((w * c).sum() for w, _, c in pairs), list(weights.values()))
        for weight in weights.values():
            weight.grad = torch.zeros_like(weight)
        value = applied(Pull(mu, anchor, linear), weights)()
        assert value == pytest.approx(float(penalty.detach()), rel=1e-4, abs=1e-6)
        for weight, gradient in zip(weights.values(), expected, strict=True):
            torch.testing.assert_close(weight.grad, gradient)

    def test_at_the_anchor_it_is_nothing(self) -> None:
        weight = parameter(1.0, 2.0)
        assert applied(Pull(1.0, ARRIVING, {}), {"w": weight})() == 0.0
        assert weight.grad.tolist() == [0.0, 0.0]

    def test_it_holds_for_every_step_of_a_round(self) -> None:
        weight = parameter(1.0, 2.0)
        add = applied(Pull(1.0, ARRIVING, {}), {"w": weight})
        add()
        with torch.no_grad():
            weight.add_(1.0)
        assert add() == 0.5 * 2
        assert weight.grad.tolist() == [1.0, 1.0]

    def test_a_parameter_without_gradient_is_left_alone(self) -> None:
        frozen = torch.nn.Parameter(torch.ones(2))
        assert applied(Pull(1.0, ARRIVING, {"w": array(1.0, 1.0)}), {"w": frozen})() == 0.0
        assert frozen.grad is None

    def test_a_name_that_is_missing_is_drawn_nowhere(self) -> None:
        own = parameter(5.0)
        assert applied(Pull(1.0, ARRIVING, {"w": array(1.0, 1.0)}), {"own": own})() == 0.0
        assert own.grad.tolist() == [0.0]

    def test_names_of_no_parameter_are_passed_over(self) -> None:
        weight = parameter(1.0, 2.0)
        applied(Pull(1.0, {**ARRIVING, "running_mean": array(7.0)}, {}), {"w": weight})()
        assert weight.grad.tolist() == [0.0, 0.0]

    def test_what_it_was_given_stays_as_it_was(self) -> None:
        anchor, correction = {"w": array(1.0, 2.0)}, {"w": array(3.0, 4.0)}
        weight = parameter(1.0, 1.0)
        applied(Pull(1.0, anchor, correction), {"w": weight})()
        assert plain(anchor) == {"w": [1.0, 2.0]}
        assert plain(correction) == {"w": [3.0, 4.0]}

    @pytest.mark.parametrize(("anchor", "correction"), [(array(1.0), array(1.0, 1.0)), (array(1.0, 1.0), array(1.0))])
    def test_another_shape_is_refused(self, anchor: np.ndarray, correction: np.ndarray) -> None:
        with pytest.raises(PlanError, match="another shape than array w"):
            applied(Pull(1.0, {"w": anchor}, {"w": correction}), {"w": parameter(1.0, 2.0)})


class TestPullFor:
    def test_none_pulls_nowhere(self) -> None:
        assert pull_for(ObjectiveConfig(name="none", mu=5.0), ARRIVING, {}, {}) is None

    def test_proximal_draws_towards_what_arrived_and_tells_it(self) -> None:
        pull = pull_for(PROXIMAL, ARRIVING, {"w": array(9.0, 9.0)}, {"w": array(9.0, 9.0)})
        assert pull is not None
        assert (pull.mu, plain(pull.anchor), plain(pull.correction), pull.told) == (2.0, {"w": [1.0, 2.0]}, {}, True)

    def test_scaffold_adds_the_common_variate_and_takes_off_the_sites_own(self) -> None:
        pull = pull_for(SCAFFOLD, ARRIVING, {"w": array(1.0, 2.0)}, {"w": array(10.0, 20.0)})
        assert pull is not None
        assert (pull.mu, plain(pull.correction), pull.told) == (0.0, {"w": [9.0, 18.0]}, False)

    def test_a_variate_that_is_missing_is_zero(self) -> None:
        pull = pull_for(SCAFFOLD, ARRIVING, {"a": array(1.0)}, {"b": array(2.0)})
        assert pull is not None
        assert plain(pull.correction) == {"a": [-1.0], "b": [2.0]}
        first = pull_for(SCAFFOLD, ARRIVING, {}, {})
        assert first is not None
        assert first.correction == {}

    def test_dynamic_draws_towards_what_arrived_and_takes_off_what_was_gathered(self) -> None:
        pull = pull_for(DYNAMIC, ARRIVING, {"w": array(1.0, -2.0)}, {})
        assert pull is not None
        assert (pull.mu, plain(pull.anchor), pull.told) == (0.5, {"w": [1.0, 2.0]}, False)
        assert plain(pull.correction) == {"w": [-1.0, 2.0]}


class TestStateAfter:
    @pytest.mark.parametrize("objective", [ObjectiveConfig(), PROXIMAL])
    def test_others_remember_nothing(self, objective: ObjectiveConfig) -> None:
        assert state_after(objective, {"w": array(1.0, 1.0)}, {}, UPDATE, 1.0) == {}

    def test_scaffold_by_hand(self) -> None:
        state = state_after(SCAFFOLD, {"w": array(1.0, 2.0)}, {"w": array(0.5, 0.5)}, UPDATE, 0.2)
        assert state["w"].tolist() == pytest.approx([1.0 - 0.5 + 3.0, 2.0 - 0.5 - 1.0])

    def test_scaffold_finds_the_mean_gradient_of_the_rounds_steps(self) -> None:
        weight, rates, met = parameter(1.0), (0.1, 0.05, 0.2), []
        state, common = {"w": array(0.3)}, {"w": array(-0.7)}
        pull = pull_for(SCAFFOLD, {}, state, common)
        assert pull is not None
        add = applied(pull, {"w": weight})
        for rate in rates:
            weight.grad = 4 * weight.detach() - 1  # of 2w² − w
            met.append((rate, float(weight.grad)))
            add()
            with torch.no_grad():
                weight.sub_(rate * weight.grad)
        after = state_after(SCAFFOLD, state, common, {"w": weight.detach().numpy() - 1}, sum(rates))
        assert float(after["w"][0]) == pytest.approx(sum(r * g for r, g in met) / sum(rates), rel=1e-5)

    def test_without_any_step_scaffold_stays_where_it_was(self) -> None:
        state = {"w": array(1.0, 2.0)}
        assert plain(state_after(SCAFFOLD, state, {"w": array(9.0, 9.0)}, UPDATE, 0.0)) == {"w": [1.0, 2.0]}

    def test_dynamic_by_hand(self) -> None:
        state = state_after(DYNAMIC, {"w": array(1.0, 2.0)}, {}, UPDATE, 123.0)
        assert state["w"].tolist() == pytest.approx([1.0 + 0.3, 2.0 - 0.1])

    @pytest.mark.parametrize("objective", [SCAFFOLD, DYNAMIC])
    def test_states_begin_at_zero_and_keep_type_and_shape(self, objective: ObjectiveConfig) -> None:
        update = {"a": np.array(0.5, np.float32), "b": np.ones((2, 3), np.float64)}
        state = state_after(objective, {}, {}, update, 1.0)
        assert {name: (type(v), v.dtype, v.shape) for name, v in state.items()} == {
            name: (np.ndarray, v.dtype, v.shape) for name, v in update.items()
        }
        assert float(state["a"]) == (-0.5 if objective.name == "scaffold" else -0.25)


class TestFederationsOfQuadratics:
    """Sites with the losses aᵢ/2 · (w − bᵢ)², whose mean is least at Σ aᵢbᵢ / Σ aᵢ; averaging alone ends elsewhere."""

    curvatures, minima = (1.0, 4.0, 0.5), (-1.0, 2.0, 8.0)
    best = (-1.0 + 8.0 + 4.0) / 5.5

    def local(self, pull: Pull | None, site: int, start: float, steps: int, rate: float) -> float:
        weight = torch.nn.Parameter(torch.tensor([start], dtype=torch.float64))
        optimizer = torch.optim.SGD([weight], lr=rate)
        add = (lambda: 0.0) if pull is None else applied(pull, {"w": weight})
        for _ in range(steps):
            weight.grad = self.curvatures[site] * (weight.detach() - self.minima[site])
            add()
            optimizer.step()
        return float(weight.detach())

    def federation(
        self, objective: ObjectiveConfig, rounds: int, steps: int = 10, absent: bool = False
    ) -> tuple[float, list[Arrays], Arrays]:
        weights, server, rate = {"w": np.array([5.0])}, dict[str, np.ndarray](), 0.1
        states: list[Arrays] = [{}, {}, {}]
        for number in range(rounds):
            told = {name.removeprefix(GUIDE): array for name, array in guide(objective, server).items()}
            here = [site for site in range(3) if not (absent and number % 3 == site)]
            updates = []
            for site in here:
                pull = pull_for(objective, weights, states[site], told)
                end = self.local(pull, site, float(weights["w"][0]), steps, rate)
                update = {"w": np.array([end]) - weights["w"]}
                states[site] = state_after(objective, states[site], told, update, steps * rate)
                updates.append(update["w"])
            common = [("w", np.mean(updates, axis=0))]
            change, server = control_after(objective, common, server, len(here) / 3, steps * rate, lambda _: True)
            weights = {name: weights[name] + moved for name, moved in change}
        return float(weights["w"][0]), states, server

    def test_averaging_alone_ends_beside_the_best(self) -> None:
        assert abs(self.federation(ObjectiveConfig(), 60)[0] - self.best) > 0.2

    @pytest.mark.parametrize("absent", [False, True])
    def test_scaffold_ends_at_the_best_and_its_variates_at_the_sites_gradients(self, absent: bool) -> None:
        weight, states, server = self.federation(SCAFFOLD, 100, absent=absent)
        assert weight == pytest.approx(self.best, abs=1e-6)
        for state, curvature, minimum in zip(states, self.curvatures, self.minima, strict=True):
            assert float(state["w"][0]) == pytest.approx(curvature * (self.best - minimum), abs=1e-4)
        assert float(next(iter(server.values()))[0]) == pytest.approx(0.0, abs=1e-4)

    @pytest.mark.parametrize("absent", [False, True])
    def test_dynamic_ends_at_the_best_and_its_states_at_the_sites_gradients(self, absent: bool) -> None:
        weight, states, _ = self.federation(ObjectiveConfig(name="dynamic", mu=1.0), 100, absent=absent)
        assert weight == pytest.approx(self.best, abs=1e-6)
        for state, curvature, minimum in zip(states, self.curvatures, self.minima, strict=True):
            assert float(state["w"][0]) == pytest.approx(curvature * (self.best - minimum), abs=1e-4)
