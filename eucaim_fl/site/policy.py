"""The site's policy, the hospital's contract with a federation: one YAML file, read with the line of every key.

Deny by default: what no line allows is refused. A key that is left out allows nothing (`policy_decision` says which
one is missing), except where silence is the strict choice: permits are required, pictures and score histograms stay,
a person has to approve. Only `patients.batch` asks for nothing where it is left out.
"""

from __future__ import annotations

import hashlib
import re
import zoneinfo
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    PositiveFloat,
    PositiveInt,
    Tag,
    ValidationError,
    model_validator,
)

from eucaim_fl.config import SITE_NAME, Config, Purpose, TaskName
from eucaim_fl.errors import PolicyError
from eucaim_fl.parsing import IN_RANGE, short_numbers
from eucaim_fl.permits import DATASET_NAME
from eucaim_fl.registry import suggestion
from eucaim_fl.signing import PUBLIC_KEY
from eucaim_fl.site.policy_models import FrozenModelsPolicy
from eucaim_fl.site.policy_yaml import LARGEST_POLICY_BYTES, read_yaml

__all__ = [
    "AskingPolicy",
    "Day",
    "LoadedPolicy",
    "MetricName",
    "MetricsPolicy",
    "PatientsPolicy",
    "PlansPolicy",
    "Policy",
    "PrivacyPolicy",
    "SentPolicy",
    "SitesPolicy",
    "UpdatePolicy",
    "Window",
    "WorkPolicy",
    "load_policy",
]

Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
MetricName = Literal[
    "dice",
    "hd95_mm",
    "auc",
    "balanced_accuracy",
    "brier",
    "confusion",
    "scores",
    "c_index",
    "concordance",
    "surface_dice",
    "volume_difference_ml",
    "lesions",
    "intensity_sums",
    "class_counts",
]
_Dataset = Annotated[str, Field(pattern=DATASET_NAME)]
_Network = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")]
_Target = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]{0,63}$")]
_BodyName = Annotated[str, Field(pattern=SITE_NAME)]
_Time = Annotated[str, Field(pattern=r"^(([01][0-9]|2[0-3]):[0-5][0-9]|24:00)$")]


def _known_zone(name: str) -> str:
    try:
        zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError("this machine knows no such time zone; names are like Europe/Madrid") from None
    return name


def _as_written(day: object) -> object:
    if not isinstance(day, date) and not re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", str(day)):
        raise ValueError("write the day as 2027-12-31")
    return day


def _any_or_list(value: object) -> str:
    return "any" if isinstance(value, str) else "list"


class AskingPolicy(Config):
    """Who may ask. permits: `required` takes only plans with a data permit; `not_required` takes plans without one.

    bodies: access bodies whose permits count: the issuer's name as its permits bear it → its public key (`ed25519:…`).
    """

    permits: Literal["required", "not_required"] = "required"
    bodies: dict[_BodyName, Annotated[str, Field(pattern=PUBLIC_KEY)]] = Field(default_factory=dict, max_length=100)


class SitesPolicy(Config):
    """at_least: smallest number of sites that a plan names, this one included.

    It hides no update among others: the coordinator sees each site's update by itself.
    """

    at_least: PositiveInt | None = None


class PatientsPolicy(Config):
    """Least numbers of people behind what leaves; where the site file asks for more, that counts.

    training: patients behind an update; a plan whose steps in a round can't visit so many is refused.
    metric: patients behind every figure, and of each class in figures by class.
    batch: of plans whose noise does not hide the update from the coordinator, images in a training batch, which is as
    few people as crafted weights can bring an update down to; left out, it is not asked.
    """

    training: PositiveInt | None = None
    batch: PositiveInt | None = None
    metric: PositiveInt | None = None


class MetricsPolicy(Config):
    """Figures that may leave. names: dice, hd95_mm, auc, balanced_accuracy, brier, confusion (counts of true against
    predicted class), scores (histograms; `score_histograms` must be true too); of frozen models also surface_dice,
    volume_difference_ml, lesions (counts), and comparisons of two models in what is listed; and of training patients,
    told once before the first round: intensity_sums (mean and spread of image values), class_counts (patients of each
    class). A plan that needs others is refused.

    decimals: decimal places of figures, 0 to 6; means in sums and the training loss are rounded alike.
    """

    names: tuple[MetricName, ...] = ()
    decimals: Annotated[int, Field(ge=0, le=6)] | None = None


class PlansPolicy(Config):
    """Largest number of different plans that are worked for: on a day (UTC), and in all.

    repeats: how often one round of a plan is answered; a run that is resumed or done again asks again.
    """

    day: PositiveInt | None = None
    total: PositiveInt | None = None
    repeats: PositiveInt = 20


class WorkPolicy(Config):
    """minutes: longest time that the site works on one instruction, at most a week; then it stops and says so."""

    minutes: Annotated[float, Field(gt=0, le=10_080)] | None = None


class Window(Config):
    """Hours on days of the week: start and end as "HH:MM" (in quotes) by the clock of `zone`, such as Europe/Madrid.

    The minute of `end` is outside. An end that is not after the start is on the following day, and the window belongs
    to the day on which it starts.
    """

    days: tuple[Day, ...] = Field(min_length=1, max_length=7)
    start: _Time
    end: _Time
    zone: Annotated[str, Field(max_length=64), AfterValidator(_known_zone)]

    @model_validator(mode="after")
    def _starts_within_a_day(self) -> Self:
        if self.start == "24:00":
            raise ValueError("a window starts at 00:00 of the next day, not at 24:00")
        return self


class SentPolicy(Config):
    """How much may leave, in 10⁶ bytes: of one message, of all messages of a plan, of all messages of a day (UTC)."""

    message: PositiveFloat | None = None
    plan: PositiveFloat | None = None
    day: PositiveFloat | None = None


class UpdatePolicy(Config):
    """largest_norm: L2 norm of the change of all weights together in one round; a longer update stays here."""

    largest_norm: Annotated[float, Field(gt=0, le=1e9)] | None = None


class PrivacyPolicy(Config):
    """What a plan must promise. mechanism: `none` takes plans without noise, `dp` only plans with differential privacy.

    epsilon, delta: with `dp`, the largest budget of a plan at this site over all its rounds.
    patient_epsilon, dataset_epsilon, purpose_epsilon: the largest budgets at that delta over all plans together: of
    each patient (who leaves when it is spent; the others go on), of the whole cohort, of the cohort for one purpose.
    Left out, plans together have no limit.
    test_data: splits that this site declares as test data: their figures leave as they are, also for a plan with
    differential privacy. Figures of other patients leave with noise that is charged for, or not at all.
    held_out: share of the patients that is test data, needed with `test_data` only. They are drawn once by a key of
    this site, not by plans: under any plan with noise they never train, and nobody else is in the declared splits.
    reserved_days: how long a plan may be idle, neither reserving nor charged for, before what it has reserved is freed
    for others; at most 3650.
    """

    mechanism: Literal["none", "dp"] | None = None
    epsilon: PositiveFloat | None = None
    delta: Annotated[float, Field(gt=0, lt=1)] | None = None
    patient_epsilon: PositiveFloat | None = None
    dataset_epsilon: PositiveFloat | None = None
    purpose_epsilon: dict[Purpose, PositiveFloat] = Field(default_factory=dict)
    test_data: tuple[Literal["validation", "test"], ...] = ()
    held_out: Annotated[float, Field(gt=0, lt=1)] | None = None
    reserved_days: Annotated[int, Field(ge=1, le=3650)] = 30

    @model_validator(mode="after")
    def _ceilings_belong_to_dp(self) -> Self:
        ceilings = [self.epsilon is not None, self.delta is not None]
        if (self.mechanism == "dp" and not all(ceilings)) or (self.mechanism != "dp" and any(ceilings)):
            raise ValueError("epsilon and delta belong to mechanism dp, which needs both")
        if self.mechanism != "dp" and (self.patient_epsilon or self.dataset_epsilon or self.purpose_epsilon):
            raise ValueError("patient_epsilon, dataset_epsilon and purpose_epsilon belong to mechanism dp")
        return self

    @model_validator(mode="after")
    def _test_data_are_held_out(self) -> Self:
        if bool(self.test_data) != (self.held_out is not None):
            raise ValueError("held_out, the share of patients that never train, and test_data need each other")
        return self


Hours = Annotated[
    Annotated[Literal["any"], Tag("any")] | Annotated[Annotated[tuple[Window, ...], Field(max_length=50)], Tag("list")],
    Discriminator(_any_or_list),
]
Targets = Annotated[
    Annotated[Literal["any"], Tag("any")]
    | Annotated[Annotated[tuple[_Target, ...], Field(max_length=100)], Tag("list")],
    Discriminator(_any_or_list),
]
Networks = Annotated[
    Annotated[Literal["any"], Tag("any")]
    | Annotated[Annotated[tuple[_Network, ...], Field(max_length=100)], Tag("list")],
    Discriminator(_any_or_list),
]


class Policy(Config):
    """What a site lets a federation do.

    valid_until: last day (UTC) on which anything is allowed. datasets: ids that this cohort stands for in permits.
    purposes: of Art. 53(1) EHDS, see `config.PURPOSES`. tasks: of `config.TASKS`. targets: clinical columns, by the
    name in plans, that a plan may learn to predict, or `any`. networks: names of `eucaim_fl.models`, or `any`, to be
    trained or, frozen, judged. pictures, score_histograms: whether they may leave; the site file must agree. rounds:
    largest number in a plan. hours: windows in which work is done, or `any`. approval: whether a person decides on
    every new plan. The other sections say it themselves.
    """

    schema_: Literal["eucaim-fl-policy/1"] = Field(alias="schema")
    valid_until: Annotated[date, BeforeValidator(_as_written)] | None = None
    datasets: tuple[_Dataset, ...] = Field(default=(), max_length=1000)
    asking: AskingPolicy = AskingPolicy()
    purposes: tuple[Purpose, ...] = ()
    tasks: tuple[TaskName, ...] = ()
    targets: Targets = ()
    networks: Networks = ()
    frozen_models: FrozenModelsPolicy = FrozenModelsPolicy()
    sites: SitesPolicy = SitesPolicy()
    patients: PatientsPolicy = PatientsPolicy()
    metrics: MetricsPolicy = MetricsPolicy()
    pictures: bool = False
    score_histograms: bool = False
    rounds: PositiveInt | None = None
    plans: PlansPolicy = PlansPolicy()
    hours: Hours = ()
    work: WorkPolicy = WorkPolicy()
    sent_mb: SentPolicy = SentPolicy()
    update: UpdatePolicy = UpdatePolicy()
    privacy: PrivacyPolicy = PrivacyPolicy()
    approval: Literal["automatic", "manual"] = "manual"


@dataclass(frozen=True)
class LoadedPolicy:
    """A policy as its file has it. sha256: of the file's bytes. lines: dotted key → its line, counted from 1."""

    policy: Policy
    sha256: str
    lines: Mapping[str, int]


def load_policy(path: Path) -> LoadedPolicy:
    """Read and check a policy.

    Raises PolicyError if the file is missing, longer than 64 kB, no plain YAML mapping (tags, anchors, aliases and
    keys that come twice are refused), or has unknown or wrong keys; the lines and known keys are named.
    """
    try:
        if not path.is_file():
            raise FileNotFoundError(2, "no such file")
        with path.open("rb") as stream:
            raw = stream.read(LARGEST_POLICY_BYTES + 1)
    except OSError as problem:
        raise PolicyError(
            "The policy is missing or can't be read.",
            fix="Check its name and permissions.",
            local_detail=f"{path}: {problem.strerror}",
        ) from None
    try:
        values, lines = read_yaml(raw)
    except PolicyError as problem:
        where = f"{path}: {problem.local_detail}" if problem.local_detail else str(path)
        raise PolicyError(problem.message, fix=problem.fix, local_detail=where) from None
    try:
        policy = Policy.model_validate(values)
    except ValidationError as failure:
        raise _not_valid(failure, lines, path) from None
    return LoadedPolicy(policy, hashlib.sha256(raw).hexdigest(), lines)


def _sections() -> dict[str, type[Config]]:
    """Dotted name of every section → its model; "" is the whole policy."""
    found: dict[str, type[Config]] = {"": Policy, "hours": Window}
    for name, field in Policy.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Config):
            found[name] = field.annotation
    return found


def _names(model: type[Config]) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()]


def _not_valid(failure: ValidationError, lines: Mapping[str, int], path: Path) -> PolicyError:
    """The error that names lines and known keys; unknown keys and values, which may hold anything, stay local."""
    sections = _sections()
    safe: list[str] = []
    local: list[str] = []
    fixes: list[str] = []
    for item in failure.errors(include_url=False, include_context=False):
        place, line, section = _place(item["loc"], lines)
        known = ".".join(part for part in place if any(part in _names(model) for model in sections.values()))
        where = f"line {line} " if line else ""
        if item["type"] == "extra_forbidden":
            safe.append(f"{where}(unknown key)")
            fixes.append(suggestion(place[-1], _names(sections.get(section, Policy))))
        elif item["type"] == "missing":
            safe.append(f"{where}({known} is missing)")
            fixes += ["Add the line: schema: eucaim-fl-policy/1"] if place == ["schema"] else []
        else:
            safe.append(f"{where}({known})")
            fixes += [IN_RANGE] if item["type"].startswith(("greater_than", "less_than")) else []
        local.append(f"{where}{'.'.join(place)}: {_told(item)}")
    return PolicyError(
        f"The policy is not valid: {', '.join(dict.fromkeys(safe))}.",
        fix=" ".join(dict.fromkeys(filter(None, fixes))),
        local_detail=f"{path}: {'; '.join(local)}",
    )


def _told(item: Any) -> str:
    message = short_numbers(item["msg"].removeprefix("Value error, "))
    given = item["input"]
    shown = repr(given) if isinstance(given, str | int | float | None) else ""
    got = f" (got {shown})" if item["type"] != "missing" and 0 < len(shown) <= 60 else ""
    return f"{message[0].lower()}{message[1:]}{got}"


def _place(location: tuple[int | str, ...], lines: Mapping[str, int]) -> tuple[list[str], int | None, str]:
    """Keys down to a fault, the line of the deepest one that the file has, and the section that it is in."""
    place: list[str] = []
    line: int | None = None
    for depth, part in enumerate(map(str, location)):
        if depth > 0 and part in ("any", "list", "[key]"):  # marks of the model, not keys of the file
            continue
        place.append(part)
        line = lines.get(".".join(place), line)
    return place, line, "" if len(place) < 2 else place[0]
