"""What a site's policy says to frozen models that a plan brings to be judged: formats, size, what they may take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, PositiveFloat

from eucaim_fl.parsing import Config
from eucaim_fl.plan import FederationPlan
from eucaim_fl.task_config import TaskName
from eucaim_fl.validation_config import ModelFormat

if TYPE_CHECKING:
    from eucaim_fl.site.policy import Policy

__all__ = ["MODEL_KEYS", "FrozenModelsPolicy", "asked_figures", "model_words", "validation_answers"]

_MB = 10**6


class FrozenModelsPolicy(Config):
    """Frozen models of others, run here to be judged; left out, none is.

    formats: `network` (one of this software's networks, with its weights) and `onnx` are data that this software reads;
    `torchscript` and `exported` are programs, which run locked in, but run. megabytes: of a model's file. memory_gb,
    image_seconds: what its process may take, and how long for one image.
    """

    formats: tuple[ModelFormat, ...] = ()
    megabytes: PositiveFloat | None = None
    memory_gb: PositiveFloat | None = None
    image_seconds: Annotated[float, Field(gt=0, le=3600)] | None = None


MODEL_KEYS = tuple(f"frozen_models.{name}" for name in FrozenModelsPolicy.model_fields)
"""Dotted keys of what a policy says to frozen models alone."""


def asked_figures(task: TaskName) -> frozenset[str]:
    """Names, as a policy lists them, of the figures that a validation of a task asks for."""
    figures: Mapping[TaskName, tuple[str, ...]] = {
        "segmentation": ("dice", "hd95_mm", "surface_dice", "volume_difference_ml", "lesions"),
        "classification": ("confusion", "scores", "brier"),
        "multilabel": ("scores", "brier"),
        "survival": ("concordance",),
    }
    return frozenset(figures[task])


def model_words(policy: FrozenModelsPolicy, silent: str) -> dict[str, str]:
    """Dotted key → what the policy says there. silent: for a key that is left out."""
    words = ", ".join(policy.formats)

    def said(value: float | None, sentence: str) -> str:
        return silent if value is None else sentence.format(value)

    return {
        "frozen_models.formats": f"frozen models of these formats may be run here to be judged: {words}"
        if policy.formats
        else silent,
        "frozen_models.megabytes": said(policy.megabytes, "a model's file has at most {:g} million bytes"),
        "frozen_models.memory_gb": said(policy.memory_gb, "its process has at most {:g} GB of memory"),
        "frozen_models.image_seconds": said(policy.image_seconds, "it has at most {:g} s for an image"),
    }


def validation_answers(plan: FederationPlan, policy: Policy) -> dict[str, tuple[bool, str]]:
    """Dotted key → whether the policy allows what a validation asks there, and that in plain words.

    Only keys to which a validation has another answer than a training; empty of a plan that trains.
    """
    asked = plan.validation
    if asked is None:
        return {}
    figures, frozen = asked_figures(plan.task.name), policy.frozen_models
    networks = {model.network.name for model in asked.models if model.network is not None}
    largest = max(model.size_bytes for model in asked.models)
    limits, whom = asked.limits, "all patients" if asked.patients == "all" else "test patients"
    nothing_trains = (True, "no training")
    return {
        "networks": (
            policy.networks == "any" or networks <= set(policy.networks),
            ", ".join(sorted(networks)) or "no network of this software",
        ),
        "frozen_models.formats": (
            all(model.format in frozen.formats for model in asked.models),
            ", ".join(f"{one.name} ({one.format}, SHA-256 {one.sha256[:12]}…)" for one in asked.models),
        ),
        "frozen_models.megabytes": (
            _within(largest, None if frozen.megabytes is None else frozen.megabytes * _MB),
            f"a file of {largest / _MB:.1f} million bytes",
        ),
        "frozen_models.memory_gb": (
            _within(limits.memory_gb, frozen.memory_gb),
            f"{limits.memory_gb:g} GB for its process",
        ),
        "frozen_models.image_seconds": (
            _within(limits.image_seconds, frozen.image_seconds),
            f"{limits.image_seconds:g} s for an image",
        ),
        "patients.training": nothing_trains,
        "patients.batch": nothing_trains,
        "patients.metric": (policy.patients.metric is not None, f"figures over {whom}"),
        "metrics.names": (figures <= set(policy.metrics.names), ", ".join(sorted(figures))),
        "pictures": (True, "no pictures"),
        "rounds": (True, "no round: models are judged once"),
        "sent_mb.message": (policy.sent_mb.message is not None, "one message"),
        "update.largest_norm": nothing_trains,
    }


def _within(wanted: float, allowed: float | None) -> bool:
    return allowed is not None and wanted <= allowed
