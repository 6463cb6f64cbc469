"""One round of private training: the noise that lands, the influence of one patient, and what stays nowhere."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor, nn

from eucaim_fl.arrays import arrays_sha256
from eucaim_fl.cohorts.cohort import PreparedCase
from eucaim_fl.config import ClassificationConfig
from eucaim_fl.errors import NotFiniteError, PrivateTrainingError
from eucaim_fl.models.networks import build, get_arrays
from eucaim_fl.plan import FederationPlan
from eucaim_fl.privacy.accounting import Mechanism
from eucaim_fl.training import private_loop
from eucaim_fl.training.patients import PatientLoader
from eucaim_fl.training.private_loop import train_privately
from eucaim_fl.training.randomness import Randomness

Plans = Callable[..., FederationPlan]
Cases = Callable[..., PreparedCase]

CLASSES_2D = ClassificationConfig(spatial_dims=2, target="malignant", classes=("no", "yes"))
PRIVATE = {
    "mechanism": "patient_dp",
    "noise_multiplier": 0.5,
    "delta": 1e-3,
    "clipping_norm": 2.0,
    "sampling_rate": 1.0,
    "secure": False,
    "gradients": "loop",
}
PLAIN_SGD = {"name": "sgd", "lr": 1.0, "momentum": 0.0}
TRAINING = {
    "local_steps": 1,
    "optimizer": PLAIN_SGD,
    "augmentation": {"flip": 0.0, "scale_intensity": 0.0, "shift_intensity": 0.0},
}
CLIPPED = 2.0 * (1 - 1e-4)
"""How long a gradient is that was clipped to 2: a little shorter, so that rounding does not carry it over."""
PUBLIC = 10
"""Patients as they are told; a round's step of everybody is divided by it."""


class Silent(Randomness):
    """Draws as its seed says, but its noise is nothing."""

    def normal(self, shape: Sequence[int], *, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.zeros(tuple(shape), dtype=dtype)


def silent() -> Silent:
    return Silent(Randomness.seeded(0)._words, is_secure=False)


def linear(seed: int = 0, inputs: int = 16) -> nn.Module:
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(inputs, 2))


def weights(network: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten().double() for p in network.parameters()])


def mistaken(cases: Sequence[PreparedCase]) -> list[PreparedCase]:
    """The same images with the class that the network finds less likely, so that their gradients are large."""
    network = linear()
    return [replace(c, target=int(network(torch.tensor(c.image()[None, ..., 0])).argmin())) for c in cases]


def everybody(patients: frozenset[str], _mechanism: Mechanism) -> frozenset[str]:
    return patients


def trained(
    network: nn.Module,
    cases: Sequence[PreparedCase],
    plan: FederationPlan,
    randomness: Randomness,
    paying: Collection[str] | None = None,
) -> Tensor:
    """By how much a round moves the weights."""
    loader = PatientLoader(cases, plan, randomness)
    loader.charge(lambda patients, _: patients if paying is None else frozenset(paying))
    before = weights(network)
    assert train_privately(network, loader, plan, PUBLIC, randomness) == loader.mechanism.steps
    return weights(network) - before


@pytest.fixture
def plan_of(plan_for: Plans) -> Plans:
    """Makes a plan of private training, a single step of plain SGD; keywords are the privacy's."""

    def make(training: dict[str, Any] | None = None, method: Any = None, model: Any = None, **privacy: Any) -> Any:
        changes = {"model": model} if model else {}
        return plan_for(
            CLASSES_2D,
            training={**TRAINING, **(training or {})},
            privacy={**PRIVATE, **privacy},
            **({"method": method} if method else {}),
            **changes,
        )

    return make


@pytest.fixture
def images(prepared_case: Cases) -> Callable[..., list[PreparedCase]]:
    """Makes cases of 4 × 4 × 1 random voxels; how many each patient has. `scale` makes gradients larger."""

    def make(scale: float = 1.0, seed: int = 0, **patients: int) -> list[PreparedCase]:
        draw = np.random.default_rng(seed)
        names = [name for name, count in patients.items() for _ in range(count)]
        return [prepared_case(scale * draw.normal(size=(4, 4, 1)), None, name, n % 2) for n, name in enumerate(names)]

    return make


class TestNoise:
    @pytest.mark.parametrize("secure", [False, True], ids=["seeded", "secure"])
    @pytest.mark.parametrize(
        ("noise", "norm", "rate", "steps"), [(0.5, 2.0, 1.0, 1), (3.0, 0.1, 0.25, 1), (1.0, 1.0, 0.5, 4)]
    )
    def test_what_lands_in_the_weights_has_the_stated_deviation(
        self, plan_of: Plans, images: Any, noise: float, norm: float, rate: float, steps: int, secure: bool
    ) -> None:
        plan = plan_of(
            {"local_steps": steps}, noise_multiplier=noise, clipping_norm=norm, sampling_rate=rate, secure=secure
        )
        network = linear(inputs=10_000)
        source = Randomness.secure() if secure else Randomness.seeded(1)
        moved = trained(network, images(a=1), plan, source, paying=())
        deviation = noise * norm / (rate * PUBLIC) * math.sqrt(steps)
        low, high = stats.chi2.ppf([5e-10, 1 - 5e-10], len(moved))
        assert low < float(moved.div(deviation).square().sum()) < high
        assert stats.kstest((moved / deviation).numpy(), "norm").pvalue > 1e-9

    def test_every_step_has_noise_of_its_own_in_every_weight(self, plan_of: Plans, images: Any) -> None:
        def moved(steps: int) -> Tensor:
            plan = plan_of({"local_steps": steps})
            return trained(linear(), images(a=1), plan, Randomness.seeded(0), paying=())

        assert (moved(1) != 0).all()
        assert (moved(2) - moved(1)).abs().min() > 0
        assert not torch.allclose(moved(2) - moved(1), moved(1))

    def test_noise_is_added_to_data_and_does_not_replace_it(self, plan_of: Plans, images: Any) -> None:
        plan, cases = plan_of(), images(a=1, b=1)
        source, same = Randomness.seeded(0), Randomness.seeded(0)
        noise = trained(linear(), cases, plan, source, paying=())
        data = trained(linear(), cases, plan, silent())
        torch.testing.assert_close(trained(linear(), cases, plan, same), noise + data, atol=1e-6, rtol=1e-5)

    def test_its_sum_with_data_lies_on_a_grid(self) -> None:
        exact = torch.linspace(-3.0, 3.0, 1001)
        noised = private_loop._noised(exact, 1.5, Randomness.seeded(0))
        assert noised.dtype == torch.float32
        assert torch.equal(noised, (noised * 2**19).round() / 2**19)
        assert float((noised - exact).std()) == pytest.approx(1.5, rel=0.1)

    def test_an_optimizer_step_needs_a_sum_of_its_own(self) -> None:
        weight = nn.Parameter(torch.zeros(2))
        optimizer = private_loop._PatientOptimizer(
            torch.optim.SGD([weight], lr=1.0), Mechanism(1.0, 1.0, 1), 1.0, 1, Randomness.seeded(0)
        )
        with pytest.raises(RuntimeError, match="a sum of clipped gradients of its own"):
            optimizer.step()
        optimizer.give([torch.ones(2)])
        optimizer.step()
        with pytest.raises(RuntimeError, match="a sum of clipped gradients of its own"):
            optimizer.step()


class TestInfluence:
    """What one patient adds to the sum of clipped gradients; noise is silenced, everybody takes part."""

    def added(self, cases: list[PreparedCase], plan: FederationPlan, patient: str) -> Tensor:
        rest = {case.patient for case in cases} - {patient}
        with_all = trained(linear(), cases, plan, silent())
        without = trained(linear(), cases, plan, silent(), paying=rest)
        return (without - with_all) * PUBLIC  # SGD with rate 1 goes against the gradient

    @pytest.mark.parametrize("multiplicity", [1, 4])
    @pytest.mark.parametrize("patient", ["many", "one"])
    def test_200_images_move_the_sum_as_far_as_one_and_no_farther_than_the_clipping_norm(
        self, plan_of: Plans, images: Any, patient: str, multiplicity: int
    ) -> None:
        cases = mistaken(images(scale=1e3, many=200, one=1, other=1))
        moved = self.added(cases, plan_of(multiplicity=multiplicity), patient)
        assert float(moved.norm()) == pytest.approx(CLIPPED, rel=1e-4)

    @settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(scale=st.floats(1e-3, 1e6), norm=st.floats(1e-3, 1e3), seed=st.integers(0, 99))
    def test_no_patient_moves_it_farther(
        self, plan_of: Plans, images: Any, scale: float, norm: float, seed: int
    ) -> None:
        cases = images(scale=scale, seed=seed, a=3, b=1)
        moved = self.added(cases, plan_of(clipping_norm=norm, multiplicity=2), "a")
        assert float(moved.norm()) <= norm * (1 + 1e-4) + 1e-5  # weights are float32

    def test_a_small_gradient_is_the_mean_over_the_examples_and_not_clipped(self, plan_of: Plans, images: Any) -> None:
        cases = images(scale=1e-2, a=2, b=1)
        network = linear()
        loss = nn.functional.cross_entropy(
            network(torch.from_numpy(np.stack([c.image()[..., 0] for c in cases[:2]]))), torch.tensor([0, 1])
        )
        expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(network.parameters()))])
        moved = self.added(cases, plan_of(clipping_norm=1.0, noise_multiplier=0.05, multiplicity=2), "a")
        torch.testing.assert_close(moved.float(), expected, atol=2e-6, rtol=1e-3)

    def test_the_mean_counts_the_public_number_of_patients_not_those_who_came(
        self, plan_of: Plans, images: Any
    ) -> None:
        cases = mistaken(images(scale=1e3, a=1, b=1))
        one = trained(linear(), cases, plan_of(), silent(), paying={"a"})
        assert float(one.norm()) == pytest.approx(CLIPPED / PUBLIC, rel=1e-4)

    @pytest.mark.parametrize("mode", ["loop", "functorch", "hooks", "ghost"])
    @pytest.mark.parametrize("bad", [math.nan, math.inf, 1e38])
    def test_a_patient_whose_gradient_is_not_finite_adds_nothing_and_the_step_goes_on(
        self, plan_of: Plans, images: Any, prepared_case: Cases, bad: float, mode: str
    ) -> None:
        plan = plan_of({"local_steps": 2}, gradients=mode)
        cases = [*images(a=1, b=1), prepared_case(np.full((4, 4, 1), bad), None, "bad", 1)]
        moved = trained(linear(), cases, plan, silent())
        torch.testing.assert_close(moved, trained(linear(), cases, plan, silent(), paying={"a", "b"}))
        assert trained(linear(), cases, plan, Randomness.seeded(0)).isfinite().all()


class TestRound:
    def test_steps_rate_and_noise_are_those_that_were_charged_for(
        self, plan_of: Plans, images: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        plan = plan_of({"local_steps": None, "local_epochs": 1}, sampling_rate=0.4)
        source, told, sizes = Randomness.seeded(0), list[Mechanism](), list[int]()
        given_sums = private_loop.clipped_sum

        def counted(*given: Any) -> Any:
            sizes.append(len(given[3]))
            return given_sums(*given)

        monkeypatch.setattr(private_loop, "clipped_sum", counted)
        network = linear(inputs=16)
        loader = PatientLoader(images(a=1, b=1, c=1), plan, source)
        loader.charge(lambda patients, mechanism: (told.append(mechanism), patients)[1])
        assert told == [Mechanism(noise=0.5, rate=0.4, steps=3)]
        assert train_privately(network, loader, plan, PUBLIC, source) == len(sizes) == 3
        assert set(sizes) <= {0, 1, 2, 3}

    def test_the_noise_is_the_loader_s_and_not_what_a_plan_says_later(self, plan_of: Plans, images: Any) -> None:
        source = Randomness.seeded(0)
        loader = PatientLoader(images(a=1), plan_of(noise_multiplier=4.0), source)
        loader.charge(lambda _patients, _mechanism: frozenset())
        network = linear(inputs=10_000)
        before = weights(network)
        train_privately(network, loader, plan_of(noise_multiplier=0.05), PUBLIC, source)
        assert float((weights(network) - before).std()) == pytest.approx(4.0 * 2.0 / PUBLIC, rel=0.05)

    def test_nothing_is_trained_that_was_not_charged_for(self, plan_of: Plans, images: Any) -> None:
        plan, network = plan_of(), linear()
        before = weights(network)
        with pytest.raises(RuntimeError, match="only after they were charged"):
            train_privately(network, PatientLoader(images(a=1), plan, silent()), plan, PUBLIC, silent())
        assert torch.equal(weights(network), before)

    def test_a_charge_pays_for_one_round(self, plan_of: Plans, images: Any) -> None:
        plan, network, source = plan_of(), linear(), Randomness.seeded(0)
        loader = PatientLoader(images(a=1), plan, source)
        loader.charge(everybody)
        train_privately(network, loader, plan, PUBLIC, source)
        with pytest.raises(RuntimeError, match="one pass"):
            train_privately(network, loader, plan, PUBLIC, source)

    def test_a_seed_is_not_secure(self, plan_of: Plans, images: Any) -> None:
        plan = plan_of(secure=True)
        loader = PatientLoader(images(a=1), plan, Randomness.secure())
        loader.charge(everybody)
        with pytest.raises(RuntimeError, match="promises secure randomness"):
            train_privately(linear(), loader, plan, PUBLIC, Randomness.seeded(0))

    @pytest.mark.parametrize("public", [0, -1])
    def test_a_public_number_of_patients_is_needed(self, plan_of: Plans, images: Any, public: int) -> None:
        loader = PatientLoader(images(a=1), plan_of(), silent())
        loader.charge(everybody)
        with pytest.raises(RuntimeError, match="public number of patients"):
            train_privately(linear(), loader, plan_of(), public, silent())

    @pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
    def test_seeded_rounds_repeat_to_the_bit_and_others_differ(self, plan_of: Plans, images: Any, name: str) -> None:
        optimizer = {"name": name, "lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}
        changes = {"local_steps": 3, "optimizer": optimizer, "augmentation": {"flip": 0.5, "noise_std": 0.1}}
        plan = plan_of(changes, sampling_rate=0.5, multiplicity=2)
        cases = images(a=3, b=1, c=1)
        once, again, other = (trained(linear(), cases, plan, Randomness.seeded(seed)) for seed in (0, 0, 1))
        assert torch.equal(once, again)
        assert not torch.equal(once, other)

    def test_secure_rounds_never_repeat(self, plan_of: Plans, images: Any) -> None:
        plan, cases = plan_of(secure=True), images(a=1)
        once, again = (trained(linear(), cases, plan, Randomness.secure()) for _ in range(2))
        assert not (once == again).any()

    def test_how_many_patients_are_in_memory_changes_no_result(self, plan_of: Plans, images: Any) -> None:
        cases = images(a=2, b=1, c=1, d=1, e=3)
        each = [
            trained(linear(), cases, plan_of(gradients="hooks", physical_batch=n), Randomness.seeded(0))
            for n in (1, 2, 8)
        ]
        torch.testing.assert_close(each[1], each[0], atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(each[2], each[0], atol=1e-6, rtol=1e-5)

    def test_a_network_that_is_no_longer_finite_ends_the_round(self, plan_of: Plans, images: Any) -> None:
        plan = plan_of({"local_steps": 3, "optimizer": {**PLAIN_SGD, "lr": 1e38}}, noise_multiplier=500.0)
        loader = PatientLoader(images(a=1), plan, Randomness.seeded(0))
        loader.charge(everybody)
        network = linear()
        with pytest.raises(NotFiniteError, match=r"not finite after private step 1.*Lower training\.optimizer\.lr"):
            train_privately(network, loader, plan, PUBLIC, Randomness.seeded(0))
        assert all(p.grad is None for p in network.parameters())

    def test_weights_that_arrive_so_end_it_too(self, plan_of: Plans, images: Any) -> None:
        network = linear()
        with torch.no_grad():
            next(network.parameters())[0, 0] = math.nan
        with pytest.raises(NotFiniteError, match="private step 1"):
            trained(network, images(a=1), plan_of({"local_steps": 3}), Randomness.seeded(0))

    def test_a_network_that_mixes_patients_is_refused(self, plan_of: Plans, images: Any) -> None:
        loader = PatientLoader(images(a=1), plan_of(), silent())
        loader.charge(everybody)
        network = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(16, 2))
        with pytest.raises(PrivateTrainingError, match="mix the patients of a batch"):
            train_privately(network, loader, plan_of(), PUBLIC, silent())

    def test_a_frozen_parameter_stays(self, plan_of: Plans, images: Any) -> None:
        network = nn.Sequential(nn.Flatten(), nn.Linear(16, 3), nn.Linear(3, 2))
        network[1].weight.requires_grad_(False)
        before = network[1].weight.detach().clone()
        trained(network, images(a=1), plan_of(), Randomness.seeded(0))
        assert torch.equal(network[1].weight, before)
        assert network[1].bias.requires_grad

    def test_a_built_network_trains_in_other_modes_from_the_same_draws(
        self, plan_of: Plans, prepared_case: Cases
    ) -> None:
        draw = np.random.default_rng(0)
        cases = [prepared_case(draw.normal(size=(16, 16, 2)), None, f"p{n}", n % 2) for n in range(3)]
        model = {"name": "small_cnn", "args": {"channels": [8, 16], "strides": [2, 2]}}
        moved = []
        for mode in ("loop", "ghost"):
            plan = plan_of({"local_steps": 2}, model=model, gradients=mode)
            network = build(plan.model, plan.task, seed=0, image_size=(16, 16))
            moved.append(trained(network, cases, plan, Randomness.seeded(0)))
        torch.testing.assert_close(moved[1], moved[0], atol=1e-5, rtol=1e-4)


class TestPenalty:
    @staticmethod
    def proximal(mu: float) -> dict[str, Any]:
        return {"objective": {"name": "proximal", "mu": mu}}

    def test_the_proximal_term_pulls_back_and_adds_no_data(self, plan_of: Plans, images: Any) -> None:
        """After the noise it adds mu × (weights − arriving weights), nothing else."""
        start = weights(linear())
        cases, two = images(a=1), {"local_steps": 2, "optimizer": {**PLAIN_SGD, "lr": 0.5}}
        first = trained(linear(), cases, plan_of({**two, "local_steps": 1}), Randomness.seeded(0), paying=())
        free = trained(linear(), cases, plan_of(two), Randomness.seeded(0), paying=())
        held = trained(linear(), cases, plan_of(two, self.proximal(0.8)), Randomness.seeded(0), paying=())
        torch.testing.assert_close(held, free - 0.5 * 0.8 * first, atol=1e-6, rtol=1e-5)
        assert float(start.norm()) > 0.5  # so a penalty towards 0 would show

    def test_the_first_step_is_the_same_to_the_bit(self, plan_of: Plans, images: Any) -> None:
        cases = images(scale=1e3, a=2, b=1)
        free = trained(linear(), cases, plan_of(), Randomness.seeded(0))
        assert torch.equal(free, trained(linear(), cases, plan_of(method=self.proximal(5.0)), Randomness.seeded(0)))

    def test_what_data_add_in_a_later_step_is_clipped_all_the_same(self, plan_of: Plans, images: Any) -> None:
        cases, method = images(scale=1e4, a=2, b=1), self.proximal(0.5)
        first = trained(linear(), cases, plan_of(method=method), silent())
        both = trained(linear(), cases, plan_of({"local_steps": 2}, method), silent())
        data = both - first + 0.5 * first
        assert 0 < float(data.norm()) <= 2 * 2.0 / PUBLIC * (1 + 1e-3)


class TestSchedule:
    def test_a_round_has_its_own_learning_rate(self, plan_of: Plans, images: Any) -> None:
        """Of plain SGD, and one step that has nothing but noise: half the rate, half the way."""
        cases = images(a=1)
        plan = plan_of({"schedule": {"kind": "linear"}}).model_copy(update={"rounds": 2})

        def moved(number: int) -> Tensor:
            network, randomness = linear(), Randomness.seeded(0)
            loader = PatientLoader(cases, plan, randomness)
            loader.charge(lambda _patients, _mechanism: frozenset())
            before = weights(network)
            train_privately(network, loader, plan, PUBLIC, randomness, number=number)
            return weights(network) - before

        torch.testing.assert_close(moved(2), moved(1) / 2, atol=1e-6, rtol=1e-5)
        assert float(moved(1).norm()) > 0


class TestTraces:
    def test_no_gradient_stays_on_the_network(self, plan_of: Plans, images: Any) -> None:
        network = linear()
        names = {name for p in network.parameters() for name in vars(p)}
        trained(network, images(a=1), plan_of(), Randomness.seeded(0))
        assert all(p.grad is None for p in network.parameters())
        assert {name for p in network.parameters() for name in vars(p)} == names
        assert not any(module._forward_hooks or module._backward_hooks for module in network.modules())

    def test_global_random_state_is_left_alone(self, plan_of: Plans, images: Any) -> None:
        def state() -> tuple[object, ...]:
            return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002

        plan = plan_of({"augmentation": {"noise_std": 0.1, "rotate90": 0.5}}, multiplicity=3)
        network, cases = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(16, 2)), images(a=1)
        before = state()
        trained(network, cases, plan, Randomness.seeded(0))
        assert state() == before

    def test_dropout_draws_from_the_source_and_not_from_outside(self, plan_of: Plans, images: Any) -> None:
        def network() -> nn.Module:
            return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), linear()[1])

        def round_of(seed: int) -> str:
            made = network()
            source = Silent(Randomness.seeded(seed)._words, is_secure=False)
            trained(made, images(a=1), plan_of({"local_steps": 2}), source)
            return arrays_sha256(get_arrays(made))

        first = round_of(0)
        torch.rand(10)
        assert round_of(0) == first != round_of(1)

    def test_no_loss_is_told(self, plan_of: Plans, images: Any, caplog: pytest.LogCaptureFixture) -> None:
        loader = PatientLoader(images(a=1), plan_of(), silent())
        loader.charge(everybody)
        assert type(train_privately(linear(), loader, plan_of(), PUBLIC, silent())) is int
        assert not caplog.records
