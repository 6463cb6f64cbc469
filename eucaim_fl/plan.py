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
    SeriesRule,
    TaskConfig,
    TrainingConfig,
    parse,
)
from eucaim_fl.errors import PlanError

__all__ = [
    "LARGEST_MODEL_BYTES",
    "SCHEMA_VERSION",
    "FederationPlan",
    "ParticipationRules",
    "explain",
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
        if self.task.name == "classification" and self.training.loss in ("dice", "dice_ce"):
            raise ValueError("training.loss: Dice is for segmentation; use cross_entropy")
        return self

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
    config: ExperimentConfig, site_names: tuple[str, ...], permit: Mapping[str, JsonValue] | None = None
) -> FederationPlan:
    """The plan of a recipe over named sites (put in canonical order).

    permit: the signed document, where one is needed.
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
        "participation": {
            "quorum": federation.quorum,
            "round_deadline_s": federation.round_deadline_s,
            "quorum_wait_s": federation.quorum_wait_s,
            "largest_norm_ratio": federation.largest_norm_ratio,
        },
    }
    for part in ("task", "model", "data", "training", "method", "privacy"):
        values[part] = getattr(config, part).model_dump()
    return parse(FederationPlan, values, "The recipe")


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


def _range(limits: tuple[float, float], unit: str) -> str:
    low, high = limits
    return f"{low:g} {unit}" if low == high else f"{low:g} to {high:g} {unit}"


def _explain_rule(rule: SeriesRule) -> str:
    """What a series must be like to become a channel. Words are quoted as `repr` does: they came from elsewhere."""
    words, unwanted, kinds = (
        joint.join(map(repr, chosen))
        for joint, chosen in ((" and ", rule.words), (" or ", rule.without), (" and ", rule.image_type))
    )
    parts = (
        f"modality {rule.modality}" if rule.modality else "",
        f"described with {words}" if words else "",
        f"not described with {unwanted}" if unwanted else "",
        f"image type {kinds}" if kinds else "",
        f"body part {rule.body_part!r}" if rule.body_part else "",
        f"{rule.plane} slices" if rule.plane else "",
        f"slice thickness {_range(rule.thickness_mm, 'mm')}" if rule.thickness_mm else "",
        f"b-value {_range(rule.b_value, 's/mm²')}" if rule.b_value else "",
        f"echo time {_range(rule.echo_time_ms, 'ms')}" if rule.echo_time_ms else "",
        "" if rule.contrast is None else "with contrast agent" if rule.contrast else "without contrast agent",
    )
    several = {
        "most_slices": "the one with most slices",
        "thinnest": "the one with the thinnest slices",
        "first": "the first by its UID",
    }
    return f"{rule.name} = {', '.join(filter(None, parts)) or 'any series'}; of several {several[rule.prefer]}"


def _explain_channels(plan: FederationPlan) -> list[str]:
    """Which series are taken, and what happens to labels on other voxels; nothing where the default holds."""
    lines = []
    rules = plan.data.channels
    if rules:
        several = (
            " The first gives the grid; the others are interpolated onto it by their stated position, and a patient is "
            "set aside where one states another frame of reference or covers less than half of it."
            if len(rules) > 1
            else ""
        )
        lines.append(
            f"Channels: of each patient one study that has {'all of these' if len(rules) > 1 else 'this'}, and one "
            f"series for each: {'. '.join(_explain_rule(rule) for rule in rules)}. A patient without is set aside with "
            f"the reason.{several}"
        )
    if plan.task.name == "segmentation" and plan.data.labels_on_other_grid == "resample":
        lines.append(
            "Labels: one that lies on other voxels than its image is brought onto the image's by its stated position; "
            "each voxel takes the label that lies at its centre, and what lies outside the image is cut off."
        )
    return lines


def explain(plan: FederationPlan) -> list[str]:
    """In plain words: what each site is asked to do, and what it is asked to send."""
    task, training, method = plan.task, plan.training, plan.method
    length = (
        f"{training.local_steps} optimizer steps"
        if training.local_steps is not None
        else f"{training.local_epochs} epochs over its training patients"
    )
    goal = (
        f"segmentation of {', '.join(task.labels)}"
        if task.name == "segmentation"
        else f"classification of '{task.target}' into {', '.join(task.classes)}"
    )
    metrics = "Dice and HD95 in mm" if task.name == "segmentation" else "AUC, balanced accuracy and Brier score"
    sums = (
        "count, sum and sum of squares over patients"
        if task.name == "segmentation"
        else "counts of true against predicted class, sums of the Brier score, and where the site file permits it a "
        "histogram of scores by class"
    )
    share = plan.data.split
    proximal = (
        f" The loss has a proximal term with mu = {method.objective.mu:g}."
        if method.objective.name == "proximal"
        else ""
    )
    return [
        f"Purpose: {goal} with a {task.spatial_dims}-D {plan.model.name}, over {len(plan.sites)} sites "
        f"({', '.join(plan.sites)}).",
        f"By what right: asked for {plan.purpose.replace('_', ' ')} (Art. 53 EHDS), "
        f"{'without' if plan.permit is None else 'with'} a data permit.",
        f"Data: the site reads its own cohort{f' of {plan.data.modality} series' if plan.data.modality else ''}, "
        "takes only patients whom its consent table and its rules on identifiers allow, "
        f"keeps {share.validation:.0%} of its patients for validation and {share.test:.0%} for the final test, "
        "and trains on the rest. A patient is in one of these only.",
        *_explain_channels(plan),
        f"Each of {plan.rounds} rounds: evaluate the arriving model on the validation patients, then train for "
        f"{length} (batch {training.batch_size}, {training.optimizer.name}, learning rate "
        f"{training.optimizer.lr:g}).{proximal}",
        "Sent at the start: the site's short name, the number of its training patients and of cases set aside, and a "
        "SHA-256 over its cohort's content.",
        f"Sent after each round: the change of every model weight, the mean training loss, seconds, and {metrics} over "
        f"the validation patients with the sums they are pooled by ({sums}).",
        "Sent once at the end: the same metrics of the final model over validation and test patients; and, only by "
        "sites whose site file calls their data synthetic or public, three small pictures of predictions.",
        "Withheld: every figure over fewer patients than the site's minimum.",
        "Never sent: images, labels, clinical values, identifiers, file names or paths (but for the pictures above).",
        f"Combined by: {method.rule.name}, server optimizer {method.server_optimizer.name}; weights by patients. "
        f"A round needs {plan.participation.quorum} of {len(plan.sites)} sites within "
        f"{plan.participation.round_deadline_s:g} s.",
        "Privacy: no noise is added; the update itself may reveal information about training patients."
        if plan.privacy.mechanism == "none"
        else f"Privacy: {plan.privacy.mechanism}.",
    ]
