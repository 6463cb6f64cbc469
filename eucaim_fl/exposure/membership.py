"""Membership inference: does a model's loss on a patient tell whether the patient was trained on?

The likelihood-ratio attack of Carlini et al. 2022 (Membership Inference Attacks From First Principles), by patients:
models are trained on random halves of the patients; for each patient, the losses of the models that saw it and of those
that did not give two normal distributions, and the likelihood ratio of a further model's loss is the score.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import beta, norm
from torch import Tensor, nn

from eucaim_fl.cohorts.cohort import PreparedCase
from eucaim_fl.exposure.alone import network_for, train_alone
from eucaim_fl.plan import FederationPlan
from eucaim_fl.seeding import derive_seed, generator
from eucaim_fl.tasks import for_task
from eucaim_fl.training.augmentation import augmenter

__all__ = [
    "EXAMPLES",
    "FALSE_POSITIVE_RATES",
    "Membership",
    "Operating",
    "area_under_curve",
    "attack",
    "clopper_pearson",
    "confidences",
    "examples_of",
    "halves",
    "likelihood_ratios",
    "patient_losses",
    "roc",
    "summarised",
]

EXAMPLES = 8
"""Examples of each patient over which its loss is averaged, the same for all models."""
_LEAST_LOSS = 1e-12
_LEAST_DEVIATION = 1e-9
FALSE_POSITIVE_RATES = (0.001, 0.01, 0.1)


@dataclass(frozen=True)
class Operating:
    """How many members are found where at most so many strangers are taken for members.

    false_positives: the share asked for. low, high: 95 % interval of the share found. None where there are too few
    strangers to speak of such a share.
    """

    false_positives: float
    found: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Membership:
    """What the attack achieved. curve: (false, true positive rate) points from (0, 0) to (1, 1).

    auc: 0.5 is guessing. trials: (patient, model) pairs of members, and of strangers.
    """

    auc: float
    curve: tuple[tuple[float, float], ...]
    operating: tuple[Operating, ...]
    trials: tuple[int, int]
    patients: int
    models: int


def halves(patients: int, models: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Which patients each model is trained on, shape (models, patients): random, each patient in half of all models.

    Raises ValueError unless models is even and at least 4, and there are at least 2 patients.
    """
    if models < 4 or models % 2:
        raise ValueError("an even number of models is needed, at least 4")
    if patients < 2:
        raise ValueError("at least two patients are needed")
    pattern = np.zeros((models, patients), dtype=bool)
    pattern[: models // 2] = True
    return np.asarray(rng.permuted(pattern, axis=0))


def confidences(losses: NDArray[np.float64]) -> NDArray[np.float64]:
    """ln(p / (1 − p)) of the likelihood p = e^(−loss): close to normal where the loss is not.

    >>> float(confidences(np.array([np.log(2.0)]))[0])
    0.0
    """
    positive = np.maximum(losses, _LEAST_LOSS)
    return np.asarray(-positive - np.log(-np.expm1(-positive)))


def likelihood_ratios(values: NDArray[np.float64], trained_on: NDArray[np.bool_]) -> NDArray[np.float64]:
    """For each model and patient: the log likelihood ratio of having been trained on, by models that were left out.

    values: (models, patients), larger where a model fits a patient better. Models are scored in pairs, one that saw the
    patient and one that did not, by the rest: leaving out one alone would favour the wrong answer where nothing can be
    told (Airola et al. 2011). Variances are common to all patients, for there are too few models to know them one by
    one. NaN where a model has no counterpart, or no other model was trained on the patient, or all were.
    Source: Carlini et al. 2022, algorithm 1 and section VI.
    """
    models, patients = values.shape
    scores = np.full(values.shape, np.nan)
    sides = [[np.flatnonzero(trained_on[:, p] == side) for p in range(patients)] for side in (True, False)]
    for number in range(models // 2):
        left_out = np.zeros(values.shape, dtype=bool)
        for patient, (saw, missed) in enumerate(zip(*sides, strict=True)):
            if number < min(len(saw), len(missed)):
                left_out[[saw[number], missed[number]], patient] = True
        inside, deviation_in = _normal(values, trained_on & ~left_out)
        outside, deviation_out = _normal(values, ~trained_on & ~left_out)
        seen, unseen = norm.logpdf(values, inside, deviation_in), norm.logpdf(values, outside, deviation_out)
        ratios = np.asarray(seen - unseen)
        scores[left_out] = ratios[left_out]
    return scores


def _normal(values: NDArray[np.float64], chosen: NDArray[np.bool_]) -> tuple[NDArray[np.float64], float]:
    """The mean of each patient's chosen values, NaN without any, and the deviation common to all patients."""
    counts = chosen.sum(axis=0)
    means = np.where(counts > 0, np.where(chosen, values, 0.0).sum(axis=0) / np.maximum(counts, 1), np.nan)
    squares = np.where(chosen, (values - means) ** 2, 0.0).sum()
    freedom = max(1, int((counts - 1).clip(min=0).sum()))
    return means, max(float(np.sqrt(squares / freedom)), _LEAST_DEVIATION)


def roc(members: NDArray[np.float64], strangers: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points (false positive rate, true positive rate) for every threshold, from (0, 0) to (1, 1), shape (n, 2)."""
    thresholds = np.unique(np.concatenate([members, strangers]))[::-1]
    found = [(float((strangers >= t).mean()), float((members >= t).mean())) for t in thresholds]
    return np.array([(0.0, 0.0), *found])


def area_under_curve(members: NDArray[np.float64], strangers: NDArray[np.float64]) -> float:
    """The chance that a member's score is above a stranger's; equal ones count half.

    >>> area_under_curve(np.array([2.0, 1.0]), np.array([1.0, 0.0]))
    0.875
    """
    above = (members[:, None] > strangers[None]).mean() + 0.5 * (members[:, None] == strangers[None]).mean()
    return float(above)


def clopper_pearson(successes: int, trials: int, level: float = 0.95) -> tuple[float, float]:
    """The exact interval of a share. Raises ValueError unless 0 ≤ successes ≤ trials and there is a trial.

    Source: Clopper and Pearson 1934.

    >>> [round(limit, 4) for limit in clopper_pearson(0, 10)]
    [0.0, 0.3085]
    """
    if not 0 <= successes <= trials or trials < 1:
        raise ValueError("successes are some of at least one trial")
    tail = (1 - level) / 2
    low = 0.0 if successes == 0 else float(beta.ppf(tail, successes, trials - successes + 1))
    high = 1.0 if successes == trials else float(beta.ppf(1 - tail, successes + 1, trials - successes))
    return low, high


def summarised(scores: NDArray[np.float64], trained_on: NDArray[np.bool_]) -> Membership:
    """What scores (models, patients) tell of who was trained on; NaN are left out.

    Raises ValueError if no member or no stranger has a score.
    """
    known = np.isfinite(scores)
    members, strangers = scores[trained_on & known], scores[~trained_on & known]
    if not len(members) or not len(strangers):
        raise ValueError("without members and strangers there is nothing to tell apart")
    curve = roc(members, strangers)
    operating = tuple(_operating(members, strangers, rate) for rate in FALSE_POSITIVE_RATES)
    points = tuple((float(x), float(y)) for x, y in curve)
    trials = (len(members), len(strangers))
    return Membership(area_under_curve(members, strangers), points, operating, trials, scores.shape[1], scores.shape[0])


def _operating(members: NDArray[np.float64], strangers: NDArray[np.float64], rate: float) -> Operating:
    allowed = int(rate * len(strangers))
    if allowed < 1:
        return Operating(rate, None, None, None)
    threshold = np.sort(strangers)[::-1][allowed]  # at most `allowed` strangers lie above it
    found = int((members > threshold).sum())
    low, high = clopper_pearson(found, len(members))
    return Operating(rate, found / len(members), low, high)


@torch.no_grad()
def patient_losses(
    network: nn.Module, examples: Sequence[tuple[Tensor, Tensor]], plan: FederationPlan
) -> NDArray[np.float64]:
    """The loss of each patient over its examples together, shape (patients,).

    examples: of each patient images (K, C, *spatial) and targets (K, …).
    """
    measure = for_task(plan.task).loss(plan.training)
    device = next(network.parameters()).device
    network.eval()
    losses = [float(measure(network(images.to(device)), targets.to(device))) for images, targets in examples]
    return np.array(losses, dtype=np.float64)


def examples_of(
    cases: Sequence[Sequence[PreparedCase]], plan: FederationPlan, seed: int, each: int = EXAMPLES
) -> list[tuple[Tensor, Tensor]]:
    """`each` training examples of every patient, drawn and changed as training draws and changes them.

    cases: of each patient, in turn.
    """
    task, rng = for_task(plan.task), generator(seed, "attack")
    change = augmenter(plan.training.augmentation, plan.task.spatial_dims, derive_seed(seed, "attack"))
    result = []
    for own in cases:
        drawn = [change(task.training_example(own[i % len(own)], plan, rng)) for i in range(each)]
        images, targets = zip(*drawn, strict=True)
        result.append((torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(targets))))
    return result


def attack(
    plan: FederationPlan,
    cases: Sequence[PreparedCase],
    models: int,
    seed: int,
    tell: Callable[[int, int], object] = lambda done, total: None,
    device: str = "cpu",
) -> Membership:
    """Train `models` models on random halves of the patients, over all rounds of the plan, and attack each by the rest.

    tell: called with the number of models that are ready, and of all. Everything stays in memory.
    Raises what `halves` and `train_alone` raise.
    """
    by_patient: dict[str, list[PreparedCase]] = {}
    for case in cases:
        by_patient.setdefault(case.patient, []).append(case)
    own = list(by_patient.values())
    trained_on = halves(len(own), models, generator(seed, "halves"))
    examples = examples_of(own, plan, seed)
    losses = []
    for number, chosen in enumerate(trained_on):
        network = network_for(plan, device)
        train_alone(network, [c for i in np.flatnonzero(chosen) for c in own[i]], plan, derive_seed(seed, number))
        losses.append(patient_losses(network, examples, plan))
        tell(number + 1, models)
    return summarised(likelihood_ratios(confidences(np.stack(losses)), trained_on), trained_on)
