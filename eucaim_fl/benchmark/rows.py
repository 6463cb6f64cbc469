"""The rows of a benchmark: what is trained, by which words of a recipe."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from eucaim_fl.config import BalanceConfig, ExperimentConfig, MethodConfig
from eucaim_fl.errors import RecipeError
from eucaim_fl.federation.poison import Poison, read_poison
from eucaim_fl.plan import FederationPlan
from eucaim_fl.registry import suggestion

__all__ = ["FLOWER", "Row", "Trained", "as_shipped", "check_row", "poisoned_name", "rows_of"]

Trained = Literal["federation", "local", "pooled", "flower"]
FLOWER = "flower_fedavg"
_LONGEST_NAME, _DIGEST = 63, 12  # characters, as `parsing.SITE_NAME` has it
_BUILT_IN: Mapping[str, tuple[str, ...]] = {
    "local": ("trained=local",),
    "pooled": ("trained=pooled",),
    FLOWER: ("trained=flower",),
}


@dataclass(frozen=True)
class Row:
    """One row: overrides as the recipe has them on the command line, how it is trained, and which site is bad."""

    name: str
    overrides: tuple[str, ...]
    trained: Trained = "federation"
    poison: Poison | None = None


def rows_of(given: Mapping[str, Sequence[str]], chosen: Sequence[str] = ()) -> tuple[Row, ...]:
    """The benchmark's own rows (`local`, `pooled`, `flower_fedavg`) and the recipe's, in this order.

    given: name → overrides; `trained=…` and `poison=KIND:SITE` are taken out of them. A row of the recipe with a
    built-in one's name takes its place. chosen: names to keep; empty keeps all.
    Raises RecipeError for a word that is not known, a name that no row has, or poison where nobody federates.
    """
    for name in sorted({"local_mean", "local_own"} & set(given)):
        raise RecipeError(f"benchmark.rows.{name}: the table has a row of that name already.", fix="Rename the row.")
    rows = [_row(name, overrides) for name, overrides in {**_BUILT_IN, **given}.items()]
    known = [row.name for row in rows]
    for name in chosen:
        if name not in known:
            raise RecipeError(f"The recipe has no benchmark row '{name}'.", fix=suggestion(name, known))
    return tuple(row for row in rows if not chosen or row.name in chosen)


def _row(name: str, overrides: Sequence[str]) -> Row:
    words = {"trained": "federation", "poison": ""}
    rest = []
    for override in overrides:
        key, _, value = override.partition("=")
        if key in words:
            words[key] = value
        else:
            rest.append(override)
    trained = next((one for one in get_args(Trained) if one == words["trained"]), None)
    if trained is None:
        raise RecipeError(
            f"benchmark.rows.{name}: there is no way to train called '{words['trained']}'.",
            fix=suggestion(words["trained"], get_args(Trained)),
        )
    poison = read_poison(words["poison"]) if words["poison"] else None
    if poison is not None and trained != "federation":
        raise RecipeError(f"benchmark.rows.{name}: a bad site is for rows with trained=federation.")
    return Row(name, tuple(rest), trained, poison)


def check_row(row: Row, plan: FederationPlan, base: FederationPlan) -> None:
    """Whether a row can stand beside the recipe's own models: the same patients, tested alike, as many steps.

    Raises RecipeError if its data, task, sites or number of optimizer steps differ, it begins with given weights (which
    were trained before, and which rows without federation do not have), its bad site is none of the plan's, or a row
    without federation asks for what only a federation has.
    """
    for what, mine, theirs in (
        ("sites", plan.sites, base.sites),
        ("task", plan.task, base.task),
        ("data.split", plan.data.split, base.data.split),
        ("privacy", plan.privacy, base.privacy),
    ):
        if mine != theirs:
            raise RecipeError(
                f"benchmark.rows.{row.name} changes {what}, so its figures are not of the same patients.",
                fix="Give it a recipe of its own.",
            )
    if plan.start_sha256 is not None:
        raise RecipeError(
            f"benchmark.rows.{row.name} begins with given weights, and rows without federation with random ones: steps "
            "that were made before would count for some rows only.",
            fix="Leave start out.",
        )
    steps, expected = (p.rounds * (p.training.local_steps or 0) for p in (plan, base))
    if steps != expected:
        raise RecipeError(
            f"benchmark.rows.{row.name} makes {steps} optimizer steps and the recipe {expected}.",
            fix="Keep rounds × training.local_steps the same.",
        )
    method = plan.method
    own = method.personal.candidates() != ("common",) or method.objective.name not in ("none", "proximal")
    if row.trained == "flower" and (own or plan.needs_statistics()):
        raise RecipeError(
            f"benchmark.rows.{row.name}: Flower's FedAvg has no rounds of statistics, guides or personal models.",
            fix="Choose method=fedavg, and what needs nothing of the federation before its first round.",
        )
    if row.poison is not None and row.poison.site not in plan.sites:
        raise RecipeError(
            f"benchmark.rows.{row.name}: there is no site '{row.poison.site}'.",
            fix=suggestion(row.poison.site, plan.sites),
        )
    if (
        row.poison is not None
        and row.poison.kind == "flip"
        and plan.task.name not in ("segmentation", "classification")
    ):
        raise RecipeError(f"benchmark.rows.{row.name}: labels of this task can't be exchanged.")


def as_shipped(config: ExperimentConfig) -> ExperimentConfig:
    """A recipe as Flower's own FedAvg would run it: the same data, network, optimizer and schedule, and nothing beside.

    The method is plain; what needs to be agreed on before the first round (class shares, the federation's input
    statistics) or trained beside is left out.
    """
    data = config.data
    if data.standardise != "none":
        data = data.model_copy(update={"standardise": "none"})
    training = config.training.model_copy(update={"balance": BalanceConfig()})
    return config.model_copy(update={"method": MethodConfig(), "data": data, "training": training})


def poisoned_name(name: str, poison: Poison | None) -> str:
    """The plan's name of a row: a run with a bad site must not share a site's state with one without.

    >>> poisoned_name("demo", Poison("flip", "a"))
    'demo-flip-a'

    What is longer than a name may be is cut, and ends with a digest of the whole.
    """
    if poison is None:
        return name
    whole = f"{name}-{poison.kind}-{poison.site}"
    if len(whole) <= _LONGEST_NAME:
        return whole
    digest = hashlib.sha256(whole.encode()).hexdigest()[:_DIGEST]
    return f"{whole[: _LONGEST_NAME - _DIGEST - 1]}-{digest}"
