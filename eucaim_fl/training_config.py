"""Local training, as recipes and plans have it."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, model_validator

from eucaim_fl.parsing import Config

__all__ = ["AugmentationConfig", "BalanceConfig", "LocalOptimizerConfig", "ScheduleConfig", "TrainingConfig"]

Share = Annotated[float, Field(ge=0, le=1)]


class LocalOptimizerConfig(Config):
    """The optimizer of local training.

    momentum: of sgd; the rate at which Adam forgets its first moment. kept: the site goes on with the optimizer's state
    of the round before, which it keeps to itself; else each round begins with a fresh one.
    """

    name: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: PositiveFloat = 0.01
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: NonNegativeFloat = 0.0
    kept: bool = False


class AugmentationConfig(Config):
    """Random changes of training images; probabilities per image."""

    flip: Share = 0.5
    rotate90: Share = 0.0
    scale_intensity: NonNegativeFloat = 0.0
    shift_intensity: NonNegativeFloat = 0.0
    noise_std: NonNegativeFloat = 0.0


class ScheduleConfig(Config):
    """The learning rate over the rounds, as a factor of `optimizer.lr`.

    kind: `constant`; `linear` or `cosine` fall from 1 in the first round towards `floor` after the last.
    warmup_rounds: rounds over which the factor rises linearly before that.
    """

    kind: Literal["constant", "linear", "cosine"] = "constant"
    warmup_rounds: NonNegativeInt = 0
    floor: Share = 0.0


class BalanceConfig(Config):
    """What is done where classes have unequal shares.

    loss: `weights` weighs a class with (its share)^−strength, scaled to a mean of 1 over the patients; `logits` adds
    strength · ln(share) to the logits in training only, so that what the model itself says is for equal shares.
    shares: of the `site`'s own training patients, or of all in the `federation` (counted once, before the first round).
    sampling: `classes` draws each class that the site has equally often.
    expect: shares of classes that the finished model's probabilities are for: `equal`, as it was trained, or those of
    the `federation`: what training took out of the logits is added to them whenever it predicts. With shares of the
    `site` that is known for strength 1 only, where every site's model ends at equal shares.
    """

    loss: Literal["none", "weights", "logits"] = "none"
    strength: Annotated[float, Field(gt=0, le=2)] = 1.0
    shares: Literal["site", "federation"] = "site"
    sampling: Literal["patients", "classes"] = "patients"
    expect: Literal["equal", "federation"] = "equal"

    def counts_federation(self) -> bool:
        """Whether the shares of classes in the whole federation are needed, for training or for predictions."""
        return self.expect == "federation" or (self.loss != "none" and self.shares == "federation")

    def taken_out(self) -> float:
        """How much of ln(share) trained logits miss: the loss's strength, or all where classes are drawn equally."""
        if self.loss != "none":
            return self.strength
        return 1.0 if self.sampling == "classes" else 0.0


class TrainingConfig(Config):
    """Local training within one round: exactly one of `local_steps` (optimizer steps) and `local_epochs`.

    patch_voxels: training patch, first axis first (two values for a 2-D network); None takes whole images.
    foreground_share: share of patches (or slices) centred on a labelled voxel.
    gradient_clip: largest L2 norm of a step's gradient; None does not clip.
    precision: of the arithmetic on a GPU; weights and updates are float32 always, and on a processor so is all else.
    """

    batch_size: Annotated[int, Field(ge=1, le=4096)] = 8
    local_steps: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    local_epochs: Annotated[int, Field(ge=1, le=10_000)] | None = None
    loss: Literal["dice_ce", "dice", "cross_entropy"] | None = None
    optimizer: LocalOptimizerConfig = LocalOptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    balance: BalanceConfig = BalanceConfig()
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    augmentation: AugmentationConfig = AugmentationConfig()
    patch_voxels: tuple[Annotated[int, Field(ge=4, le=512)], ...] | None = None
    foreground_share: Share = 0.5
    gradient_clip: PositiveFloat | None = None
    inference_batch: Annotated[int, Field(ge=1, le=1024)] = 8
    inference_overlap: Annotated[float, Field(ge=0, lt=1)] = 0.25

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.local_steps is None) == (self.local_epochs is None):
            raise ValueError("set exactly one of training.local_steps and training.local_epochs")
        return self
