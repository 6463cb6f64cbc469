"""What a researcher calls a model, turned into a contract and a file that can travel to the sites.

model.onnx, model.pt, model.pt2   with a description in model.yaml beside it
a run's folder, or its name       a model that this software has trained
a MONAI bundle's folder or ZIP    (data in a YAML file of the same stem beside it, where the bundle's can't be said)
mlflow:RUN_ID, models:/NAME@best  the same as a run, from MLflow
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from eucaim_fl.config import DataConfig, ExperimentConfig, SplitConfig, TaskConfig, ValidationRecipe, parse
from eucaim_fl.errors import ConfigError, RecipeError, RunNotFoundError
from eucaim_fl.federation.run import find_run
from eucaim_fl.inference.bundle_config import read_mapping
from eucaim_fl.inference.bundles import FrozenModel, from_bundle, from_onnx, from_program, from_run
from eucaim_fl.plan import FederationPlan, read_plan
from eucaim_fl.registry import suggestion
from eucaim_fl.tracking.address import tracking_uri
from eucaim_fl.tracking.model_source import is_reference, logged_run

__all__ = ["Frozen", "freeze", "freeze_all", "seen_by"]

_PROGRAMS = (".pt", ".pt2", ".pth", ".ts")
_NO_USE = "not stated"
_TAKEN = (
    "Give a file .onnx, .pt or .pt2 with its description in the YAML file of the same stem beside it; a run's folder "
    "or name; a MONAI bundle's folder or ZIP file; or mlflow:RUN_ID, models:/NAME@best."
)


@dataclass(frozen=True)
class Frozen:
    """A frozen model. trained_by: the plan of the run that made it; None for a model from elsewhere."""

    model: FrozenModel
    trained_by: FederationPlan | None = None


def freeze_all(config: ExperimentConfig, sites: Sequence[str]) -> tuple[tuple[Frozen, ...], str]:
    """The models of a recipe, under test first, all with the split that the plan has; and whose patients see them.

    Models of the same name are told apart: the second gets `-2`. sites: who is asked.
    Raises RecipeError if the recipe names no model, both are the same, a run's is of another task, or its patients
    can't be left out (see `seen_by`); and what `freeze` raises.
    """
    asked = config.validation
    if asked.model is None:
        raise RecipeError("The recipe names no frozen model.", fix=f"Give model=PATH. {_TAKEN}")
    found = [freeze(place, config) for place in (asked.model, asked.against) if place is not None]
    for one in found:
        if one.trained_by is not None and one.trained_by.task != config.task:
            raise RecipeError(
                f"The model {one.model.contract.name} was trained for another task than the recipe's.",
                fix="Name the recipe that it was trained with, or one with the same task.",
            )
    contracts = [one.model.contract for one in found]
    if len({contract.sha256 for contract in contracts}) < len(contracts):
        raise RecipeError("Both models are the same file.", fix="Give another one with against=PATH, or leave it out.")
    patients, split = seen_by(asked, [one.trained_by for one in found], config.data.split, sites)
    names = [contract.name for contract in contracts]
    if len(set(names)) < len(names):
        names[1] = f"{names[1][:60]}-2"
    frozen = []
    for one, name in zip(found, names, strict=True):
        data = one.model.contract.data.model_copy(update={"split": split})
        contract = one.model.contract.model_copy(update={"name": name, "data": data})
        frozen.append(replace(one, model=replace(one.model, contract=contract)))
    return tuple(frozen), patients


def freeze(place: str, config: ExperimentConfig) -> Frozen:
    """The frozen model that some words name; see this module. config: a recipe, for task, runs and MLflow.

    Raises RecipeError, which lists what is taken, if the words name nothing of the kind, or it can't be read;
    ModelRefusedError and ConfigError as `inference.bundles` does; RunNotFoundError if MLflow has no such model.
    """
    try:
        if is_reference(place):
            with logged_run(place, tracking_uri(config.tracking, config.runs_dir), config.validation.which) as folder:
                return _of_run(folder, config.validation)
        return _of_path(place, config)
    except OSError as problem:
        raise RecipeError("The model can't be read.", fix=_TAKEN, local_detail=f"{place}: {problem.strerror}") from None


def _of_path(place: str, config: ExperimentConfig) -> Frozen:
    asked, task, path = config.validation, config.task, Path(place)
    if path.is_dir():
        if (path / "plan.json").is_file():
            return _of_run(path, asked)
        if (path / "configs").is_dir():
            return Frozen(_of_bundle(path, task))
        raise RecipeError("The folder holds neither a run nor a MONAI bundle.", fix=_TAKEN, local_detail=place)
    if not path.exists():
        return _of_run(_named(place, config.runs_dir), asked)
    kind, described = path.suffix.lower(), path.with_suffix(".yaml")
    if kind == ".onnx":
        return Frozen(from_onnx(path, task, described))
    if kind in _PROGRAMS:
        return Frozen(from_program(path, described))
    if kind == ".zip":
        return Frozen(_of_bundle(path, task))
    raise RecipeError("The file is of no kind that is taken as a frozen model.", fix=_TAKEN, local_detail=place)


def _named(place: str, runs_dir: Path) -> Path:
    try:
        return find_run(place, runs_dir)
    except RunNotFoundError as problem:
        known = [path.parent.name for path in runs_dir.glob("*/plan.json")]
        closest = problem.fix if suggestion(Path(place).name, known).startswith("Did") else ""
        raise RecipeError(
            "There is no such model: neither a file, nor a folder, nor a run.",
            fix=f"{closest} {_TAKEN}".strip(),
            local_detail=place,
        ) from None


def _of_run(folder: Path, asked: ValidationRecipe) -> Frozen:
    model = from_run(folder, intended_use=asked.intended_use or _NO_USE, which=asked.which)
    return Frozen(model, read_plan((folder / "plan.json").read_text(encoding="utf-8")))


def _of_bundle(path: Path, task: TaskConfig) -> FrozenModel:
    """A bundle, with name and data from a YAML file beside it where there is one."""
    described = path.with_name(f"{path.stem if path.is_file() else path.name}.yaml")
    if not described.is_file():
        return from_bundle(path, task)
    fields = read_mapping(described.read_bytes(), "The bundle's description")
    if stray := sorted(set(fields) - {"name", "data"}):
        raise ConfigError(
            f"The bundle's description states {stray[0]}, which the bundle says itself.",
            fix="Only name and data may stand there.",
        )
    data = (
        parse(DataConfig, fields["data"], "The bundle's description: data", ConfigError) if "data" in fields else None
    )
    name = re.sub(r"[^a-z0-9_-]", "-", str(fields.get("name", "")).lower()).strip("-_")[:63]
    return from_bundle(path, task, name=name, data=data)


def seen_by(
    asked: ValidationRecipe, trained_by: Sequence[FederationPlan | None], split: SplitConfig, sites: Sequence[str]
) -> tuple[str, SplitConfig]:
    """Whose patients see the models: `all` or `test`; and the split that says who these are.

    A model that was trained at one of the sites is judged there on the patients whom its training held out, by its own
    split and seed, never on those whom it has seen. trained_by: the plans that made the models. split: the recipe's.
    Sites are told apart by name, and a cohort is taken to be the one of the training.
    Raises RecipeError if a model would be judged on patients that it has seen, or those whom training held out can't be
    found again: it added noise, whose splits are others, or two models held out different ones.
    """
    seen = [plan for plan in trained_by if plan is not None and set(plan.sites) & set(sites)]
    if not seen:
        return asked.patients or "all", split
    where = ", ".join(sorted(set(sites) & {site for plan in seen for site in plan.sites}))
    if asked.patients == "all":
        raise RecipeError(
            f"A model was trained at {where}, and would be judged there on patients that it has seen.",
            fix="Set validation.patients=test, for those whom training held out; or ask sites that it has not seen.",
        )
    if any(plan.privacy.mechanism != "none" for plan in seen):
        raise RecipeError(
            f"A model was trained with differential privacy at {where}; whom such a training held out is drawn in "
            "another way, so they can't be told from those that it has seen.",
            fix="Ask sites that it has not seen.",
        )
    splits = [plan.data.split.model_copy(update={"seed": plan.split_seed()}) for plan in seen]
    if any(one != splits[0] for one in splits):
        raise RecipeError(
            f"The two models were trained at {where} with different splits, so each has seen patients whom the other's "
            "training held out.",
            fix="Train both with the same data.split and seed, or ask sites that neither has seen.",
        )
    return "test", splits[0]
