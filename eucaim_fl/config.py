"""What users write, as frozen models: unknown keys are errors, defaults live here, units are in the names."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self, get_args

from pydantic import (
    Field,
    JsonValue,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from eucaim_fl.parsing import SITE_NAME, Config, parse
from eucaim_fl.privacy_config import PrivacyConfig

__all__ = [
    "PURPOSES",
    "SITE_NAME",
    "AugmentationConfig",
    "ClassificationConfig",
    "Config",
    "DataConfig",
    "ExperimentConfig",
    "FederationConfig",
    "IntensityConfig",
    "LocalOptimizerConfig",
    "MethodConfig",
    "ModelConfig",
    "ObjectiveConfig",
    "PermitFiles",
    "PrivacyConfig",
    "Purpose",
    "RuleConfig",
    "SegmentationConfig",
    "SeriesRule",
    "ServerOptimizerConfig",
    "SplitConfig",
    "TaskConfig",
    "TrackingConfig",
    "TrainingConfig",
    "parse",
]

Name = Annotated[str, Field(pattern=SITE_NAME)]
Fraction = Annotated[float, Field(gt=0, lt=1)]


class SegmentationConfig(Config):
    """Every voxel gets one class: background, or one of `labels` (in this order 1, 2, …)."""

    name: Literal["segmentation"] = "segmentation"
    spatial_dims: Literal[2, 3] = 3
    labels: tuple[Name, ...] = Field(min_length=1, max_length=32)


class ClassificationConfig(Config):
    """Every patient's image gets one of `classes`, read from the clinical column `target`.

    For two classes the second one is the positive class.
    """

    name: Literal["classification"] = "classification"
    spatial_dims: Literal[2, 3] = 2
    target: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]{0,63}$")]
    classes: tuple[Annotated[str, Field(min_length=1, max_length=64)], ...] = Field(min_length=2, max_length=64)

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("classes must differ from each other")
        return self


TaskConfig = Annotated[SegmentationConfig | ClassificationConfig, Field(discriminator="name")]


class ModelConfig(Config):
    """A network by its name in the allow-list of `eucaim_fl.models`; arguments are typed there."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")]
    args: dict[str, JsonValue] = Field(default_factory=dict, max_length=32)


class IntensityConfig(Config):
    """How stored values become network inputs.

    window: `low`…`high` in the image's unit (HU for CT) → 0…1, clipped.
    percentile: the image's own `low`…`high` percentiles (0–100) → 0…1, clipped.
    zscore: (value − mean) / standard deviation of the image's non-zero voxels.
    """

    kind: Literal["window", "percentile", "zscore"] = "window"
    low: float = -160.0
    high: float = 240.0

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.kind != "zscore" and self.low >= self.high:
            raise ValueError("intensity.low must be below intensity.high")
        if self.kind == "percentile" and not (self.low >= 0 and self.high <= 100):
            raise ValueError("percentiles lie between 0 and 100")
        return self


class SplitConfig(Config):
    """Shares of each site's patients; the rest trains. `seed`: None takes the run's seed."""

    validation: Fraction = 0.2
    test: Fraction = 0.2
    seed: NonNegativeInt | None = None

    @model_validator(mode="after")
    def _leaves_training(self) -> Self:
        if self.validation + self.test > 0.9:
            raise ValueError("validation and test together may take at most 0.9 of the patients")
        return self


Word = Annotated[str, Field(min_length=1, max_length=64)]


class SeriesRule(Config):
    """Which series of a patient becomes one channel of the network's input. What is left out does not matter.

    words: all of these must stand in the series' description, protocol or sequence name, whatever the case; without:
    none of these may. image_type: all of these must be among its values of ImageType. plane: of the stated
    orientation. thickness_mm, b_value (s/mm²), echo_time_ms: least and largest value allowed. contrast: with or without
    contrast agent.
    prefer: which one is taken if several fit; what is still equal is decided by the order of UIDs.
    """

    name: Name
    modality: Annotated[str, Field(pattern=r"^[A-Z]{2,16}$")] | None = None
    words: tuple[Word, ...] = Field(default=(), max_length=16)
    without: tuple[Word, ...] = Field(default=(), max_length=16)
    image_type: tuple[Word, ...] = Field(default=(), max_length=8)
    body_part: Word | None = None
    plane: Literal["axial", "coronal", "sagittal"] | None = None
    thickness_mm: tuple[NonNegativeFloat, PositiveFloat] | None = None
    b_value: tuple[NonNegativeFloat, NonNegativeFloat] | None = None
    echo_time_ms: tuple[NonNegativeFloat, PositiveFloat] | None = None
    contrast: bool | None = None
    prefer: Literal["thinnest", "most_slices", "first"] = "most_slices"

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        for name in ("thickness_mm", "b_value", "echo_time_ms"):
            limits = getattr(self, name)
            if limits is not None and limits[0] > limits[1]:
                raise ValueError(f"{name}: the least value is above the largest")
        return self


class DataConfig(Config):
    """The grid and the intensities that every site brings its images to.

    channels: one rule for each channel of the network's input; the first one's image gives the grid, and the others
    are brought onto it by their stated position. Empty: one channel, any image of `modality`.
    labels_on_other_grid: `refuse` sets a patient aside whose label does not lie on the image's own voxels; `resample`
    brings it there by its stated position (nearest neighbour).

    colour: each image gives three channels, red, green and blue; it must be a colour NIfTI. Otherwise colours become
    their luminance.
    modality: DICOM modality to take (CT, MR, …); None takes any. NIfTI has none and always fits.
    orientation: axis codes of the array, e.g. RAS: first index grows to the patient's right, and so on.
    spacing_mm: voxel size along those three axes; null keeps the image's own along that axis.
    size_voxels: crop or pad (around the centre) to this size; null keeps the image's own along that axis.
    """

    modality: Annotated[str, Field(pattern=r"^[A-Z]{2,16}$")] | None = None
    channels: tuple[SeriesRule, ...] = Field(default=(), max_length=16)
    colour: bool = False
    labels_on_other_grid: Literal["refuse", "resample"] = "refuse"
    orientation: Annotated[str, Field(pattern=r"^[RL][AP][SI]$")] = "RAS"
    spacing_mm: tuple[PositiveFloat | None, PositiveFloat | None, PositiveFloat | None] = (None, None, None)
    size_voxels: tuple[
        Annotated[int, Field(ge=1, le=1024)] | None,
        Annotated[int, Field(ge=1, le=1024)] | None,
        Annotated[int, Field(ge=1, le=1024)] | None,
    ] = (None, None, None)
    intensity: IntensityConfig = IntensityConfig()
    split: SplitConfig = SplitConfig()

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        names = [rule.name for rule in self.channels]
        if len(set(names)) != len(names):
            raise ValueError("channels: two rules have the same name")
        if self.channels and self.modality is not None:
            raise ValueError("modality: with channels, each rule names its own modality")
        if self.channels and self.colour:
            raise ValueError("colour: an image's colours are its channels; leave out the rules of data.channels")
        return self

    def number_of_channels(self) -> int:
        """Channels of the network's input."""
        return 3 if self.colour else max(1, len(self.channels))


class LocalOptimizerConfig(Config):
    """The optimizer of local training, made anew each round."""

    name: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: PositiveFloat = 0.01
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: NonNegativeFloat = 0.0


class AugmentationConfig(Config):
    """Random changes of training images; probabilities per image."""

    flip: Annotated[float, Field(ge=0, le=1)] = 0.5
    rotate90: Annotated[float, Field(ge=0, le=1)] = 0.0
    scale_intensity: NonNegativeFloat = 0.0
    shift_intensity: NonNegativeFloat = 0.0
    noise_std: NonNegativeFloat = 0.0


class TrainingConfig(Config):
    """Local training within one round: exactly one of `local_steps` (optimizer steps) and `local_epochs`.

    patch_voxels: training patch, first axis first (two values for a 2-D network); None takes whole images.
    foreground_share: share of patches (or slices) centred on a labelled voxel.
    gradient_clip: largest L2 norm of a step's gradient; None does not clip.
    """

    batch_size: Annotated[int, Field(ge=1, le=4096)] = 8
    local_steps: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    local_epochs: Annotated[int, Field(ge=1, le=10_000)] | None = None
    loss: Literal["dice_ce", "dice", "cross_entropy"] | None = None
    optimizer: LocalOptimizerConfig = LocalOptimizerConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    patch_voxels: tuple[Annotated[int, Field(ge=4, le=512)], ...] | None = None
    foreground_share: Annotated[float, Field(ge=0, le=1)] = 0.5
    gradient_clip: PositiveFloat | None = None
    inference_batch: Annotated[int, Field(ge=1, le=1024)] = 8
    inference_overlap: Annotated[float, Field(ge=0, lt=1)] = 0.25

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.local_steps is None) == (self.local_epochs is None):
            raise ValueError("set exactly one of training.local_steps and training.local_epochs")
        return self


class RuleConfig(Config):
    """How the sites' updates become one. Weights are numbers of training patients.

    trim: share cut at each end (trimmed_mean). suspects: how many sites may be wrong (krum, multi_krum).
    keep: how many sites multi_krum averages; None keeps all but the suspects.
    """

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")] = "weighted_mean"
    trim: Annotated[float, Field(ge=0, lt=0.5)] = 0.2
    suspects: NonNegativeInt = 1
    keep: PositiveInt | None = None


class ServerOptimizerConfig(Config):
    """What the server does with the common update. `lr` 1 and `plain` is federated averaging."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")] = "plain"
    lr: PositiveFloat = 1.0
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.99
    tau: PositiveFloat = 1e-3


class ObjectiveConfig(Config):
    """What is added to the local loss. proximal: mu/2 · ‖w − w_global‖² (FedProx)."""

    name: Literal["none", "proximal"] = "none"
    mu: NonNegativeFloat = 0.01


class MethodConfig(Config):
    """A method is three independent choices: aggregation rule × server optimizer × local objective."""

    rule: RuleConfig = RuleConfig()
    server_optimizer: ServerOptimizerConfig = ServerOptimizerConfig()
    objective: ObjectiveConfig = ObjectiveConfig()


Purpose = Literal[
    "public_health", "policy_making", "statistics", "education", "scientific_research", "personalised_care"
]
"""What data may be used for: the purposes of Art. 53(1) of the EHDS regulation (EU 2025/327), (a) to (f)."""
PURPOSES: tuple[str, ...] = get_args(Purpose)


class PermitFiles(Config):
    """Who asks: the data permit that an access body issued, and the key of its holder, which signs the plan.

    file: the permit (JSON); None asks without one. holder_key: the holder's private key, a file of mode 0600.
    """

    file: Path | None = None
    holder_key: Path | None = None


class FederationConfig(Config):
    """Where the sites are, and when a round counts.

    engine: `local` drives worker processes on this machine; `ray` Flower's simulation engine; `superlink` reaches
    hospitals through the federation that `eucaim-fl federation init` made in the folder `home`.
    sites: with `superlink`, the names of the admitted sites to ask; None asks all of them.
    largest_norm_ratio: a site is left out of a round if its update is longer (L2) than this many times the median's.
    link_wait_s: with `superlink`, how long the run waits for servers that do not answer before it stops, resumable.
    quorum: least number of sites whose valid replies make a round.
    round_deadline_s: a site that has not answered by then is left out of the round.
    quorum_wait_s: how long a round below quorum keeps asking the missing sites before the run ends.
    workers: processes at a time (local engine); None takes one a core, at most one a site.
    """

    engine: Literal["local", "ray", "superlink"] = "local"
    home: Path | None = None
    sites: tuple[Name, ...] | None = None
    quorum: PositiveInt = 1
    round_deadline_s: PositiveFloat = 3600.0
    quorum_wait_s: NonNegativeFloat = 60.0
    workers: Annotated[int, Field(ge=1, le=512)] | None = None
    largest_norm_ratio: Annotated[float, Field(gt=1)] = 20.0
    link_wait_s: NonNegativeFloat = 60.0

    @model_validator(mode="after")
    def _has_a_home(self) -> Self:
        if (self.engine == "superlink") != (self.home is not None):
            raise ValueError("federation.home and engine superlink belong together")
        return self


class TrackingConfig(Config):
    """MLflow on the coordinator. uri: None is `sqlite:///<runs_dir>/mlflow.db`."""

    enabled: bool = True
    uri: str | None = None
    experiment: str | None = None
    register_as: str | None = None


class ExperimentConfig(Config):
    """A whole recipe as Hydra composes it; the plan is the part of it that sites see."""

    name: Name
    title: str = Field(default="", max_length=200)
    seed: NonNegativeInt = 0
    purpose: Purpose = "scientific_research"
    permit: PermitFiles = PermitFiles()
    rounds: Annotated[int, Field(ge=1, le=10_000)] = 10
    sites: tuple[str, ...] = Field(min_length=1)
    prepare: Literal["demo"] | None = None
    task: TaskConfig
    model: ModelConfig
    data: DataConfig = DataConfig()
    training: TrainingConfig
    method: MethodConfig = MethodConfig()
    privacy: PrivacyConfig = PrivacyConfig()
    federation: FederationConfig = FederationConfig()
    tracking: TrackingConfig = TrackingConfig()
    runs_dir: Path = Path("runs")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(set(self.sites)) != len(self.sites):
            raise ValueError("sites: a site is named twice")
        if self.federation.engine != "superlink" and self.federation.quorum > len(self.sites):
            raise ValueError(f"federation.quorum is {self.federation.quorum}, but there are {len(self.sites)} sites")
        return self
