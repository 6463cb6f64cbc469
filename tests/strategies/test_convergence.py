"""Where methods end up on a federation whose optimum is known: sites with fᵢ(w) = ½·aᵢ·(w − bᵢ)², by patients nᵢ.

The optimum of the weighted sum is Σ nᵢaᵢbᵢ / Σ nᵢaᵢ. Sites that take several steps by themselves pull each to its own
bᵢ, so that federated averaging stops elsewhere, however many rounds it makes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from eucaim_fl.arrays import Arrays
from eucaim_fl.config import ObjectiveConfig, RuleConfig, ServerOptimizerConfig, WeightingConfig
from eucaim_fl.strategies.aggregation import aggregate_weighed
from eucaim_fl.strategies.control import control_after, guide
from eucaim_fl.strategies.server_optimizer import apply
from eucaim_fl.strategies.weighting import Settings, Told, Weighed, trained_norm, weigh

CURVATURES, MINIMA, PATIENTS = (1.0, 4.0, 0.5), (0.0, 1.0, 5.0), (30, 10, 20)
LR, STEPS = 0.05, 10
PLAIN, BY_PATIENTS = ObjectiveConfig(), WeightingConfig()


def optimum(curvatures: tuple[float, ...] = CURVATURES, patients: tuple[int, ...] = PATIENTS) -> float:
    weights = np.array(curvatures) * np.array(patients)
    return float(weights @ np.array(MINIMA) / weights.sum())


class Update:
    """One site's update of the only weight."""

    names = ("w",)

    def __init__(self, value: float) -> None:
        self.value = np.array([value])

    def dtype(self, name: str) -> np.dtype[Any]:
        return self.value.dtype

    def shape(self, name: str) -> tuple[int, ...]:
        return self.value.shape

    def read(self, name: str, start: int, count: int) -> NDArray[np.float64]:
        return self.value[start : start + count]


@dataclass
class Federation:
    """Three sites and a server."""

    objective: ObjectiveConfig = PLAIN
    weighting: WeightingConfig = BY_PATIENTS
    steps: tuple[int, ...] = (STEPS,) * 3
    curvatures: tuple[float, ...] = CURVATURES
    lr: float = LR
    momentum: float = 0.0
    weights: Arrays = field(default_factory=lambda: {"w": np.array([10.0])})
    state: Arrays = field(default_factory=dict)
    own: list[float] = field(default_factory=lambda: [0.0] * 3)
    """Each site's state: its control variate, or what it has gathered of gradients."""

    def correction(self, site: int) -> float:
        if self.objective.name == "scaffold":
            common = guide(self.objective, self.state).get("guide:w", np.zeros(1))
            return float(common[0]) - self.own[site]
        return -self.own[site] if self.objective.name == "dynamic" else 0.0

    def train(self, site: int) -> tuple[float, float]:
        """The site's update and its mean loss."""
        arriving = w = float(self.weights["w"][0])
        mu = self.objective.mu if self.objective.name in ("proximal", "dynamic") else 0.0
        speed, losses = 0.0, []
        for _ in range(self.steps[site]):
            away = w - MINIMA[site]
            losses.append(0.5 * self.curvatures[site] * away**2)
            gradient = self.curvatures[site] * away + mu * (w - arriving) + self.correction(site)
            speed = self.momentum * speed + gradient
            w -= self.lr * speed
        return w - arriving, float(np.mean(losses))

    def round(self, present: tuple[int, ...] = (0, 1, 2)) -> None:
        trained = [self.train(site) for site in present]
        updates = [Update(delta) for delta, _ in trained]
        told = [
            Told(site, PATIENTS[site], self.steps[site], loss, trained_norm(update, lambda name: True))
            for site, (_, loss), update in zip(present, trained, updates, strict=True)
        ]
        settings = Settings(
            3,
            lr=self.lr,
            momentum=self.momentum,
            mu=self.objective.mu if self.objective.name == "proximal" else 0.0,
        )
        weighed: Weighed = weigh(self.weighting, told, settings, self.state)
        share, lr_sum = sum(PATIENTS[site] for site in present) / sum(PATIENTS), self.lr * self.steps[0]
        common = aggregate_weighed(RuleConfig(), updates, weighed, lambda name: True)
        corrected, control = control_after(self.objective, common, self.state, share, lr_sum, lambda name: True)
        before = guide(self.objective, self.state).get("guide:w", np.zeros(1))[0]
        self.weights, _ = apply(ServerOptimizerConfig(), self.weights, corrected, {}, lambda name: True)
        self.state = {**weighed.state, **control}
        for site, (delta, _) in zip(present, trained, strict=True):
            if self.objective.name == "scaffold":
                self.own[site] -= float(before) + delta / lr_sum
            if self.objective.name == "dynamic":
                self.own[site] -= self.objective.mu * delta

    def after(self, rounds: int, absent: bool = False) -> float:
        for number in range(rounds):
            self.round(tuple(site for site in range(3) if not absent or site != number % 3))
        return float(self.weights["w"][0])


def losses(w: float) -> list[float]:
    return [0.5 * a * (w - b) ** 2 for a, b in zip(CURVATURES, MINIMA, strict=True)]


SCAFFOLD = ObjectiveConfig(name="scaffold")
DYNAMIC = ObjectiveConfig(name="dynamic", mu=1.0)


class TestDrift:
    def test_federated_averaging_stops_beside_the_optimum(self) -> None:
        assert abs(Federation().after(400) - optimum()) > 0.1

    def test_with_one_local_step_it_reaches_it(self) -> None:
        assert Federation(steps=(1, 1, 1)).after(1000) == pytest.approx(optimum(), abs=1e-9)

    def test_a_proximal_term_brings_it_nearer(self) -> None:
        near = Federation(ObjectiveConfig(name="proximal", mu=5.0)).after(400)
        assert abs(near - optimum()) < 0.7 * abs(Federation().after(400) - optimum())

    @pytest.mark.parametrize("objective", [SCAFFOLD, DYNAMIC], ids=lambda objective: objective.name)
    def test_scaffold_and_dynamic_reach_the_optimum(self, objective: ObjectiveConfig) -> None:
        assert Federation(objective).after(400) == pytest.approx(optimum(), abs=1e-9)

    @pytest.mark.parametrize("objective", [SCAFFOLD, DYNAMIC], ids=lambda objective: objective.name)
    def test_so_they_do_where_another_site_is_absent_each_round(self, objective: ObjectiveConfig) -> None:
        assert Federation(objective).after(800, absent=True) == pytest.approx(optimum(), abs=1e-6)

    @pytest.mark.parametrize("objective", [SCAFFOLD, DYNAMIC], ids=lambda objective: objective.name)
    def test_with_equal_weights_it_is_the_optimum_of_sites_that_count_alike(self, objective: ObjectiveConfig) -> None:
        found = Federation(objective, WeightingConfig(name="equal")).after(400)
        assert found == pytest.approx(optimum(patients=(1, 1, 1)), abs=1e-9)

    @pytest.mark.parametrize("mu", [0.1, 3.0])
    def test_dynamic_reaches_it_whatever_mu(self, mu: float) -> None:
        assert Federation(ObjectiveConfig(name="dynamic", mu=mu)).after(400) == pytest.approx(optimum(), abs=1e-6)


class TestUnequalSteps:
    """Steps 8, 3, 100 with one curvature: the optimum is the mean of the minima by patients."""

    STEPS, ALIKE = (8, 3, 100), (1.0, 1.0, 1.0)

    def ends(self, weighting: str, lr: float, rounds: int = 400, **values: Any) -> float:
        """How far from the optimum it ends."""
        federation = Federation(
            weighting=WeightingConfig(name=weighting), steps=self.STEPS, curvatures=self.ALIKE, lr=lr, **values
        )
        return abs(federation.after(rounds) - optimum(self.ALIKE))

    def test_federated_averaging_goes_to_the_site_with_most_steps(self) -> None:
        assert self.ends("patients", 0.001) > 1.0

    def test_normalised_goes_to_the_optimum_as_steps_get_small(self) -> None:
        far, near = self.ends("normalised", 0.004), self.ends("normalised", 0.001)
        assert far < 0.2
        assert near < 0.06
        assert near < 0.3 * far

    def test_so_it_does_with_momentum(self) -> None:
        assert self.ends("normalised", 0.0002, 200, momentum=0.9) < 0.15
        assert self.ends("patients", 0.0002, 200, momentum=0.9) > 1.0

    def test_so_it_does_with_a_proximal_term(self) -> None:
        proximal = ObjectiveConfig(name="proximal", mu=20.0)
        assert self.ends("normalised", 0.001, objective=proximal) < 0.05
        assert self.ends("patients", 0.001, objective=proximal) > 0.3


class TestWorstSite:
    def test_fair_weights_lower_the_worst_loss_and_more_with_larger_q(self) -> None:
        plain = max(losses(Federation(steps=(1, 1, 1)).after(400)))
        little = max(losses(Federation(weighting=WeightingConfig(name="fair", q=1.0), steps=(1, 1, 1)).after(800)))
        much = max(losses(Federation(weighting=WeightingConfig(name="fair", q=5.0), steps=(1, 1, 1)).after(800)))
        assert much < little < plain

    def test_agnostic_weights_reach_the_smallest_worst_loss(self) -> None:
        best = min(max(losses(w)) for w in np.linspace(0, 5, 5001))
        federation = Federation(weighting=WeightingConfig(name="agnostic", step=0.01), steps=(1, 1, 1))
        assert max(losses(federation.after(500))) == pytest.approx(best, rel=0.02)
