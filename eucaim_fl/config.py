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

from eucaim_fl.figures_config import ValidationRecipe
from eucaim_fl.method_config import (
    MethodConfig,
    ObjectiveConfig,
    PersonalConfig,
    RuleConfig,
    ServerOptimizerConfig,
    WeightingConfig,
)
from eucaim_fl.parsing import SITE_NAME, Config, parse
from eucaim_fl.privacy_config import PrivacyConfig
from eucaim_fl.task_config import (
    TASKS,
    ClassificationConfig,
    MultilabelConfig,
    SegmentationConfig,
    SurvivalConfig,
    TaskConfig,
    TaskName,
)
from eucaim_fl.training_config import (
    AugmentationConfig,
    BalanceConfig,
    LocalOptimizerConfig,
    ScheduleConfig,
    TrainingConfig,
)

__all__ = [
    "PURPOSES",
    "SITE_NAME",
    "TASKS",
    "AugmentationConfig",
    "BalanceConfig",
    "BenchmarkConfig",
    "ClassificationConfig",
    "Config",
    "DataConfig",
    "ExperimentConfig",
    "FederationConfig",
    "IntensityConfig",
    "LocalOptimizerConfig",
    "MethodConfig",
    "ModelConfig",
    "MultilabelConfig",
    "ObjectiveConfig",
    "PermitFiles",
    "PersonalConfig",
    "PrivacyConfig",
    "Purpose",
    "RuleConfig",
    "ScheduleConfig",
    "SegmentationConfig",
    "SeriesRule",
    "ServerOptimizerConfig",
    "SplitConfig",
    "StoppingConfig",
    "SurvivalConfig",
    "TaskConfig",
    "TaskName",
    "TrackingConfig",
    "TrainingConfig",
    "ValidationRecipe",
    "WeightingConfig",
    "parse",
]

Name = Annotated[str, Field(pattern=SITE_NAME)]
Fraction = Annotated[float, Field(gt=0, lt=1)]


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

    colour: each image gives three channels, red, green and blue; it must be a colour NIfTI, or a DICOM image
    of three samples a pixel and 8 bits each, such as a photograph. Otherwise colours become their luminance. An image
    that states no place (photographs) lies as on a screen: columns to the left (L), rows to posterior (P), 1 mm.
    modality: DICOM modality to take (CT, MR, …); None takes any. NIfTI has none and always fits.
    standardise: what each channel is brought to after `intensity`: `none` leaves it; `site` takes off the mean of the
    site's own training patients and divides by their standard deviation; `federation` does so with those of all sites
    together, which are asked for once, before the first round.
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
    standardise: Literal["none", "site", "federation"] = "none"
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


class StoppingConfig(Config):
    """When the rounds end before their number is reached, and which model is the result.

    validate_every: sites measure the arriving model on their validation patients in the first round, then every so many
    rounds, and in the last exchange.
    patience: the rounds end when the pooled validation metric was not bettered in so many measurements in a row; None
    makes all rounds.
    keep: the model of the last exchange: that of the `last` round, or the `best` by the pooled validation metric.
    """

    validate_every: PositiveInt = 1
    patience: PositiveInt | None = None
    keep: Literal["last", "best"] = "last"

    def validates(self, number: int) -> bool:
        """Whether the sites measure the model that arrives in that round; rounds count from 1."""
        return (number - 1) % self.validate_every == 0


class BenchmarkConfig(Config):
    """What `eucaim-fl benchmark` trains beside the models of one site alone and of all data in one place.

    seeds: each is a run of everything. rows: name → overrides of the recipe, as on the command line, and two words of
    the benchmark's own: `trained=` (federation, local, pooled, flower) and `poison=KIND:SITE` (see
    `eucaim_fl.benchmark.rows`). reduced: overrides of the small form (`--reduced`). expect: orderings that the table
    must show, e.g. `fedavg > local_mean` (see `eucaim_fl.benchmark.expectations`).
    """

    seeds: tuple[NonNegativeInt, ...] = Field(default=(0, 1, 2), min_length=1, max_length=100)
    rows: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")], tuple[str, ...]] = Field(
        default_factory=dict, max_length=64
    )
    reduced: tuple[str, ...] = Field(default=(), max_length=64)
    expect: tuple[Annotated[str, Field(max_length=200)], ...] = Field(default=(), max_length=64)


class ExperimentConfig(Config):
    """A whole recipe as Hydra composes it; the plan is the part of it that sites see.

    start: a file of weights (safetensors, of a run's `models` folder) that the first round begins with; None begins
    with random ones, which follow from the seed.
    """

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
    stopping: StoppingConfig = StoppingConfig()
    start: Path | None = None
    benchmark: BenchmarkConfig = BenchmarkConfig()
    validation: ValidationRecipe = ValidationRecipe()
    tracking: TrackingConfig = TrackingConfig()
    runs_dir: Path = Path("runs")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(set(self.sites)) != len(self.sites):
            raise ValueError("sites: a site is named twice")
        if self.federation.engine != "superlink" and self.federation.quorum > len(self.sites):
            raise ValueError(f"federation.quorum is {self.federation.quorum}, but there are {len(self.sites)} sites")
        return self
