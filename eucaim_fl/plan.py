"""The federation plan: the one contract between researcher, coordinator and site.

Canonical JSON (sorted keys, no white space, UTF-8, shortest floats, no NaN) with a schema version; its SHA-256 is
what a site accepts, refuses, logs and reports by. It holds values only: no paths, no code, no environment.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, JsonValue, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from eucaim_fl import __version__
from eucaim_fl.config import (
    SITE_NAME,
    Config,
    DataConfig,
    ExperimentConfig,
    MethodConfig,
    ModelConfig,
    PrivacyConfig,
    Purpose,
    StoppingConfig,
    TaskConfig,
    TrainingConfig,
    parse,
)
from eucaim_fl.errors import PlanError
from eucaim_fl.method_rules import check_conditioning, check_method, check_task
from eucaim_fl.validation_config import ValidationConfig, check_metrics

__all__ = [
    "LARGEST_MODEL_BYTES",
    "SCHEMA_VERSION",
    "FederationPlan",
    "ParticipationRules",
    "make_plan",
    "read_plan",
]

SCHEMA_VERSION = 1
LARGEST_GRID_VOXELS = 2**27
"""Of one image on the plan's grid, all channels: half a gigabyte as float32, which a site keeps in its cache for every
case."""
LARGEST_BATCH_VOXELS = 2**29
LARGEST_MODEL_BYTES = 4 * 2**30
"""Of all arrays of a model together, as it travels."""
_LARGEST_PLAN_BYTES = 256 * 1024


class ParticipationRules(Config):
    """When a round counts, and whose update; see `FederationConfig`."""

    quorum: PositiveInt
    round_deadline_s: PositiveFloat
    quorum_wait_s: NonNegativeFloat
    largest_norm_ratio: Annotated[float, Field(gt=1)]


class FederationPlan(Config):
    """Everything that decides a run's result, apart from the cohorts; and by what right it is asked for.

    permit: the data permit as its issuer signed it (see `eucaim_fl.permits`); None asks without one.
    start_sha256: digest of the weights that the first round begins with (see `arrays_sha256`); None begins with random
    ones, which follow from the seed.
    validation: what is asked of frozen models; such a plan trains nothing, and its `data` is the first model's. None
    trains.
    """

    schema_version: Literal[1] = 1
    software: Annotated[str, Field(pattern=r"^\d+\.\d+$")]
    name: Annotated[str, Field(pattern=SITE_NAME)]
    purpose: Purpose
    permit: dict[str, JsonValue] | None
    seed: NonNegativeInt
    rounds: Annotated[int, Field(ge=1, le=10_000)]
    sites: tuple[Annotated[str, Field(pattern=SITE_NAME)], ...] = Field(min_length=1, max_length=10_000)
    task: TaskConfig
    model: ModelConfig
    data: DataConfig
    training: TrainingConfig
    method: MethodConfig
    privacy: PrivacyConfig
    participation: ParticipationRules
    stopping: StoppingConfig
    start_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    validation: ValidationConfig | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if list(self.sites) != sorted(set(self.sites)):
            raise ValueError("sites must be sorted and differ from each other")
        patch = self.training.patch_voxels
        if patch is not None and len(patch) != self.task.spatial_dims:
            raise ValueError(
                f"training.patch_voxels has {len(patch)} values, but the network is {self.task.spatial_dims}-D"
            )
        grid, channels = [n for n in self.data.size_voxels if n is not None], self.data.number_of_channels()
        if math.prod(grid) * channels > LARGEST_GRID_VOXELS:
            raise ValueError(
                f"data.size_voxels asks for more than {LARGEST_GRID_VOXELS} voxels"
                + (" in all channels together" if channels > 1 else "")
            )
        seen = patch or tuple(grid)
        if math.prod(seen) * channels * self.training.batch_size > LARGEST_BATCH_VOXELS:
            raise ValueError(f"a training batch would have more than {LARGEST_BATCH_VOXELS} voxels")
        turned = patch or self.data.size_voxels
        if self.training.augmentation.rotate90 > 0 and turned[0] != turned[1]:
            raise ValueError("training.augmentation.rotate90 needs images with equal sides along the first two axes")
        if self.task.name == "segmentation" and len(set(self.task.labels)) != len(self.task.labels):
            raise ValueError("task.labels must differ from each other")
        privacy = self.privacy
        if privacy.target_epsilon is not None:
            raise ValueError("privacy: a plan states its noise, not the epsilon that the noise is for")
        if privacy.mechanism == "patient_dp" and self.training.gradient_clip is not None:
            raise ValueError("training.gradient_clip: with patient_dp every patient's gradient is clipped instead")
        if privacy.mechanism == "central_dp" and self.method.rule.name != "weighted_mean":
            raise ValueError("method.rule: central_dp adds noise to the sites' mean; choose weighted_mean")
        check_task(self.task.name, self.training, privacy)
        if self.stopping.keep == "best" and self.method.personal.arrays != "none":
            raise ValueError("stopping.keep: the sites keep their own arrays of the last round only; set it to last")
        check_method(self.method, self.training, privacy.mechanism)
        check_conditioning(self.task.name, self.data, self.training, privacy.mechanism)
        if self.validation is not None:
            self._check_validation(self.validation)
        return self

    def _check_validation(self, asked: ValidationConfig) -> None:
        if self.data != asked.models[0].data:
            raise ValueError("data: where models are validated, it is that of validation.models[0]")
        if self.rounds != 1 or self.privacy.mechanism != "none" or self.start_sha256 is not None:
            raise ValueError("validation: such a plan trains nothing; leave rounds at 1, privacy at none, start out")
        for model in asked.models:
            if model.data.split != self.data.split:
                raise ValueError("validation.models: all have the same data.split, or they are asked of other patients")
        check_metrics(asked, self.task)

    def needs_statistics(self) -> bool:
        """Whether the sites are asked for sums over their training patients before the first round."""
        return self.asked_channels() > 0 or self.asked_classes() > 0

    def asked_channels(self) -> int:
        """Channels of whose values the sites are asked for moments; 0 where they are not."""
        return self.data.number_of_channels() if self.data.standardise == "federation" else 0

    def asked_classes(self) -> int:
        """Classes whose patients the sites are asked to count; 0 where they are not."""
        if self.task.name != "classification" or not self.training.balance.counts_federation():
            return 0
        return len(self.task.classes)

    def measured_rounds(self) -> tuple[int, ...]:
        """Exchanges in which the model that arrives is measured on validation patients; the last is `rounds + 1`."""
        return (*filter(self.stopping.validates, range(1, self.rounds + 1)), self.rounds + 1)

    def leaves_arrays(self) -> bool:
        """Whether some of the network's arrays stay at the sites, so that what travels is no whole model."""
        return self.method.personal.arrays != "none" or self.data.standardise == "site"

    def keeps_state(self) -> bool:
        """Whether a site keeps anything from round to round: its own arrays or models, an objective's state, or what
        optimizers remember."""
        personal = self.method.personal
        own = personal.arrays != "none" or personal.ditto is not None or personal.local
        return own or self.training.optimizer.kept or self.method.objective.has_state()

    def keeps_models(self) -> bool:
        """Whether a site keeps models of its own when a run has ended."""
        return self.method.personal.candidates() != ("common",)

    def keeps_records(self) -> bool:
        """Whether a site keeps anything of a run that is not the common model: state, or models in the end."""
        return self.keeps_state() or self.keeps_models()

    def canonical_json(self) -> str:
        """The text that is hashed and sent."""
        return json.dumps(
            self.model_dump(mode="json"),
            sort_keys=True,
            separators=(",", ":"),
            ensure_ascii=False,
            allow_nan=False,
        )

    def sha256(self) -> str:
        """The plan's identity: SHA-256 of its canonical JSON, in hexadecimal."""
        return hashlib.sha256(self.canonical_json().encode()).hexdigest()

    def split_seed(self) -> int:
        """Seed of the patient-level splits: its own if the recipe gives one, else the run's."""
        return self.seed if self.data.split.seed is None else self.data.split.seed


def _compatible() -> str:
    return ".".join(__version__.split(".")[:2])


def make_plan(
    config: ExperimentConfig,
    site_names: tuple[str, ...],
    permit: Mapping[str, JsonValue] | None = None,
    start_sha256: str | None = None,
    validation: Mapping[str, Any] | None = None,
) -> FederationPlan:
    """The plan of a recipe over named sites (put in canonical order).

    permit: the signed document, where one is needed. start_sha256: of the weights in the recipe's `start`.
    validation: what is asked of frozen models, as `ValidationConfig` has it. Such a plan trains nothing: of the recipe
    it has name, task and who takes part, and of `training` how images are cut up for a network.
    Raises RecipeError if values contradict each other.
    """
    federation = config.federation
    values: dict[str, Any] = {
        "software": _compatible(),
        "name": config.name,
        "purpose": config.purpose,
        "permit": None if permit is None else dict(permit),
        "seed": config.seed,
        "rounds": config.rounds,
        "sites": tuple(sorted(site_names)),
        "start_sha256": start_sha256,
        "participation": {
            "quorum": federation.quorum,
            "round_deadline_s": federation.round_deadline_s,
            "quorum_wait_s": federation.quorum_wait_s,
            "largest_norm_ratio": federation.largest_norm_ratio,
        },
    }
    for part in ("task", "model", "data", "training", "method", "privacy", "stopping"):
        values[part] = getattr(config, part).model_dump()
    if validation is not None:
        values |= _judging(config, parse(ValidationConfig, validation, "The recipe's validation"))
    return parse(FederationPlan, values, "The recipe")


def _judging(config: ExperimentConfig, asked: ValidationConfig) -> dict[str, Any]:
    """The parts of a plan that judges models and trains none."""
    training = config.training
    networks = [one.network for one in asked.models if one.network is not None]
    return {
        "rounds": 1,
        "model": (networks or [config.model])[0].model_dump(),
        "data": asked.models[0].data.model_dump(),
        "training": {
            "batch_size": 2,
            "local_steps": 1,
            "inference_batch": training.inference_batch,
            "inference_overlap": training.inference_overlap,
        },
        "method": {},
        "privacy": {},
        "stopping": {},
        "start_sha256": None,
        "validation": asked.model_dump(),
    }


def read_plan(text: str) -> FederationPlan:
    """Read a plan that came from elsewhere; everything in it is hostile until checked.

    Raises PlanError if it is too long, no JSON, has unknown or wrong values, is not in canonical form, or asks for
    another version of this software.
    """
    try:
        if len(text.encode()) > _LARGEST_PLAN_BYTES:
            raise PlanError(f"The plan is longer than {_LARGEST_PLAN_BYTES} bytes.")
        values = json.loads(text)
    except (ValueError, RecursionError):
        raise PlanError("The plan is not JSON.") from None
    if isinstance(values, dict) and values.get("schema_version") != SCHEMA_VERSION:
        raise PlanError(
            f"The plan's schema version is not {SCHEMA_VERSION}.", fix="Use the same eucaim_fl on both ends."
        )
    plan = parse(FederationPlan, values, "The plan", PlanError)
    if plan.software != _compatible():
        raise PlanError(
            f"The plan asks for eucaim_fl {plan.software}, this is {__version__}.",
            fix="Use the same eucaim_fl on both ends.",
        )
    if plan.canonical_json() != text:
        raise PlanError("The plan is not in canonical form, so its hash would not be the one that was agreed.")
    return plan
