"""Which choices of a method, of local training and of privacy go together; plain rules, no data."""

from __future__ import annotations

from eucaim_fl.config import DataConfig, MethodConfig, PrivacyConfig, TrainingConfig

__all__ = ["check_conditioning", "check_method", "check_task"]


def check_method(method: MethodConfig, training: TrainingConfig, mechanism: str) -> None:
    """Whether a method can work with this local training under this privacy mechanism.

    Raises ValueError that names the keys, as validators of a plan do.
    """
    rule, weighting = method.rule.name, method.weighting.name
    if weighting != "patients" and rule != "weighted_mean":
        raise ValueError(f"method.weighting: {weighting} weighs a mean, and {rule} takes none; choose weighted_mean")
    if mechanism != "none" and weighting in ("fair", "agnostic"):
        raise ValueError(
            f"method.weighting: {weighting} needs the sites' training loss, which differential privacy withholds"
        )
    if mechanism == "central_dp" and weighting != "patients":
        raise ValueError("method.weighting: with central_dp every site counts alike; leave it out")
    if method.objective.has_state():
        _check_controlled(method, training, mechanism)
    if weighting in ("normalised", "fair") and training.optimizer.name != "sgd":
        raise ValueError(
            f"method.weighting: {weighting} measures updates in steps of sgd; set training.optimizer.name to sgd"
        )
    if weighting in ("normalised", "fair") and training.optimizer.kept:
        raise ValueError(
            f"method.weighting: {weighting} counts the steps of an optimizer that begins afresh; leave "
            "training.optimizer.kept out"
        )
    if weighting == "fair" and training.local_steps is None:
        raise ValueError(
            "method.weighting: fair needs the sites' numbers of steps, and in epochs these follow from images, which "
            "sites do not tell; set training.local_steps"
        )
    if weighting == "normalised" and mechanism == "patient_dp":
        raise ValueError("method.weighting: with patient_dp all sites make equally many steps; leave normalised out")
    if method.personal.candidates() != ("common",) and mechanism != "none":
        raise ValueError("method.personal: a site's own models are not trained under differential privacy")
    _check_steps(training, mechanism)


def _check_steps(training: TrainingConfig, mechanism: str) -> None:
    """Whether the choices of local training go together."""
    if training.balance.loss != "none" and training.balance.sampling == "classes":
        raise ValueError("training.balance: loss and sampling each even the classes out; together they turn them round")
    if mechanism != "none" and training.optimizer.kept:
        raise ValueError("training.optimizer.kept: with noise every round begins with a fresh optimizer; leave it out")
    if mechanism == "patient_dp" and training.precision != "float32":
        raise ValueError("training.precision: steps of patient_dp are made in float32; leave it out")


def _check_controlled(method: MethodConfig, training: TrainingConfig, mechanism: str) -> None:
    name = method.objective.name
    if method.rule.name != "weighted_mean" or method.weighting.name not in ("patients", "equal"):
        raise ValueError(f"method.objective: {name} needs the sites' mean; use rule weighted_mean, weighting patients")
    if mechanism != "none":
        raise ValueError(f"method.objective: {name} keeps a state of its own at the site, without noise")
    if training.local_steps is None:
        raise ValueError(f"method.objective: {name} needs equally many steps at all sites; set training.local_steps")
    if name == "dynamic" and method.objective.mu == 0:
        raise ValueError("method.objective.mu: dynamic divides by it; set it above 0")
    if name == "scaffold":
        plain = training.optimizer.name == "sgd" and training.optimizer.momentum == 0
        if not plain or training.gradient_clip is not None or training.precision == "float16":
            raise ValueError(
                "method.objective: scaffold tells gradients from changes of weights, so training.optimizer must be sgd "
                "with momentum 0, training.gradient_clip null, and training.precision not float16"
            )


def check_conditioning(task: str, data: DataConfig, training: TrainingConfig, mechanism: str) -> None:
    """Whether statistics of the sites' patients can be used with this task under this privacy mechanism.

    They are no part of what noise hides, and not charged for: what all sites tell becomes a part of the model, and a
    site's own count of a class decides on its loss; that only `central_dp` hides, by clipping a site's whole update.
    Probabilities are only brought to the federation's shares where training made them those of equal shares.
    Raises ValueError that names the keys, as validators of a plan do.
    """
    balance = training.balance
    balanced = balance.loss != "none" or balance.sampling != "patients"
    if task != "classification" and (balanced or balance.expect != "equal"):
        raise ValueError("training.balance: shares of classes are those of a classification; leave it out")
    if balance.expect == "federation" and not balanced:
        raise ValueError(
            "training.balance.expect: without loss or sampling that evens the classes out, the model already expects "
            "the shares that it was trained on; set training.balance.loss, or leave expect at equal"
        )
    if balance.expect == "federation" and balance.loss != "none" and balance.shares == "site" and balance.strength != 1:
        raise ValueError(
            "training.balance.expect: with shares of the site and a strength other than 1, each site's model ends at "
            "other shares; set training.balance.shares to federation, or strength to 1"
        )
    if mechanism == "none":
        return
    if data.standardise != "none":
        raise ValueError("data.standardise: statistics of patients are not protected by noise; set it to none")
    if balance.counts_federation() or (balanced and mechanism != "central_dp"):
        raise ValueError("training.balance: counts of classes are not protected by noise; leave it out")


def check_task(task: str, training: TrainingConfig, privacy: PrivacyConfig) -> None:
    """Whether a task can be trained and measured so, by its loss and under this privacy.

    Raises ValueError that names the keys, as validators of a plan do.
    """
    if task != "segmentation" and training.loss in ("dice", "dice_ce"):
        instead = "leave it out" if task == "survival" else "use cross_entropy"
        raise ValueError(f"training.loss: Dice is for segmentation; {instead}")
    if task in ("multilabel", "survival") and privacy.metrics_noise is not None:
        raise ValueError(f"privacy.metrics_noise: figures of {task} can't be noised; leave it out, and none leave")
    if task != "survival":
        return
    if training.loss is not None:
        raise ValueError("training.loss: survival has Cox's partial likelihood; leave it out")
    if training.batch_size < 2:
        raise ValueError("training.batch_size: survival compares the patients of a batch; set it to 2 or more")
    if privacy.mechanism == "patient_dp":
        raise ValueError(
            "privacy.mechanism: survival compares the patients of a batch, so there is no gradient of one patient "
            "alone, which patient_dp clips; choose update_dp or central_dp"
        )
