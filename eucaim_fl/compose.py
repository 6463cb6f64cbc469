"""From recipe to plan: Hydra composes, pydantic freezes. The only module that knows Hydra."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

import hydra
import yaml
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, JsonValue

from eucaim_fl.arrays import ArrayFile, Arrays, arrays_sha256
from eucaim_fl.config import ExperimentConfig, FederationConfig, PermitFiles, parse
from eucaim_fl.errors import JournalError, PermitError, RecipeError
from eucaim_fl.federation.home import known_homes
from eucaim_fl.models.arguments import check_input_size, check_model
from eucaim_fl.models.private import check_private
from eucaim_fl.permits import read_permit, sign_plan
from eucaim_fl.plan import FederationPlan, make_plan
from eucaim_fl.privacy.promise import settled
from eucaim_fl.registry import suggestion
from eucaim_fl.resources import configs_folder, experiment_files, site_file
from eucaim_fl.signing import PrivateKey, fingerprint, load_document
from eucaim_fl.sitefile import load_site_file
from eucaim_fl.strategies.aggregation import check_rule
from eucaim_fl.strategies.server_optimizer import check_optimizer
from eucaim_fl.strategies.weighting import check_weighting

if TYPE_CHECKING:
    from eucaim_fl.inference.bundles import FrozenModel

__all__ = ["Recipe", "compose", "resolve", "resolve_validation", "sweep"]

_GROUPS = ("task", "model", "data", "training", "method", "privacy", "federation", "tracking", "experiment")


@dataclass(frozen=True)
class Recipe:
    """A resolved recipe: its configuration, the plan that sites see, and where this machine's site files are.

    frozen: the models of a plan that judges some, in its order.
    """

    config: ExperimentConfig
    plan: FederationPlan
    site_files: Mapping[str, Path]
    holder_signature: str = ""
    frozen: tuple[FrozenModel, ...] = ()


def resolve(config: ExperimentConfig) -> Recipe:
    """The plan of a configuration, checked as far as it can be without data.

    With the engine `superlink`, the recipe's site files are not looked at: the sites are those that the federation has
    admitted (or `federation.sites` of them), whose own files lie with them.
    Raises RecipeError (unknown network, wrong argument, impossible rule, too few sites, a network that mixes patients
    under patient_dp, weights to start from that can't be read, a frozen model in place of training), SiteFileError
    (a site file that is missing or wrong), PrivacyError (no noise reaches the target epsilon), PermitError or
    KeyFileError (the permit or its holder's key can't be used, or they do not belong together).
    """
    if config.validation.model is not None:
        raise RecipeError(
            "The recipe names a frozen model (validation.model), which is judged and not trained.",
            fix="Judge it: eucaim-fl validate cohort=RECIPE model=PATH; or leave validation.model out.",
        )
    files, names = _sites(config)
    arguments = check_model(config.model, config.task)
    complete = config.model.model_copy(update={"args": arguments.model_dump(mode="json")})
    config = config.model_copy(update={"model": complete})
    if config.privacy.mechanism == "patient_dp":
        check_private(complete, config.task)
    permit, key = _permit_and_key(config.permit)
    private = settled(config.privacy, config.training, config.rounds)
    begins_with = None if config.start is None else arrays_sha256(_start(config.start))
    plan = make_plan(config.model_copy(update={"privacy": private}), names, permit, begins_with)
    size = plan.training.patch_voxels or plan.data.size_voxels[: plan.task.spatial_dims]
    if None in size:
        raise RecipeError(
            "Training images have no fixed size.",
            fix="Set training.patch_voxels, or data.size_voxels along every axis that the network sees.",
        )
    check_input_size(plan.model, plan.task, tuple(int(n) for n in size if n is not None))
    check_rule(plan.method.rule, plan.participation.quorum)
    check_weighting(plan.method.weighting)
    check_optimizer(plan.method.server_optimizer)
    return Recipe(config, plan, dict(sorted(files.items())), "" if key is None else sign_plan(plan, key))


def resolve_validation(config: ExperimentConfig) -> Recipe:
    """The plan that judges a configuration's frozen models, checked as far as it can be without data, and the models.

    Of the configuration it takes name, task, sites, split and permit; what it says of training is not looked at.
    Raises RecipeError (no model, one of another task, one that would be judged on patients that it has seen, a privacy
    mechanism, which a plan that trains nothing can't have; and what `federation.freezing` says), PlanError (a network
    that sites can't build or feed), and what `resolve` raises of sites and permit.
    """
    from eucaim_fl.federation.freezing import freeze_all
    from eucaim_fl.site.askable import check_network

    if config.privacy.mechanism != "none":
        raise RecipeError(
            f"privacy={config.privacy.mechanism} has no meaning where nothing is trained.",
            fix="Add privacy=none: figures leave as sums over enough patients, without noise.",
        )
    files, names = _sites(config)
    config = config.model_copy(update={"start": None})
    permit, key = _permit_and_key(config.permit)
    frozen, patients = freeze_all(config, names)
    own = {"model", "against", "which", "intended_use", "patients"}
    asked: dict[str, Any] = config.validation.model_dump(exclude=own) | {"patients": patients}
    asked["models"] = [one.model.contract.model_dump() for one in frozen]
    plan = make_plan(config, names, permit, validation=asked)
    check_network(plan)
    signature = "" if key is None else sign_plan(plan, key)
    return Recipe(config, plan, dict(sorted(files.items())), signature, tuple(one.model for one in frozen))


def _sites(config: ExperimentConfig) -> tuple[dict[str, Path], tuple[str, ...]]:
    """Site files of this machine by name, none where the sites are hospitals of a federation; and all names."""
    files = {} if config.federation.engine == "superlink" else _own_site_files(config)
    return files, tuple(files) or _admitted(config.federation)


def _start(file: Path) -> Arrays:
    """The weights that a recipe begins with. Raises RecipeError if they can't be read."""
    try:
        return ArrayFile(file).load()
    except JournalError as problem:
        raise RecipeError(
            "The weights that the recipe starts from can't be read.",
            fix="Give start=FILE, e.g. models/last.safetensors of an earlier run's folder.",
            local_detail=problem.local_detail,
        ) from None


def _permit_and_key(files: PermitFiles) -> tuple[Mapping[str, JsonValue] | None, PrivateKey | None]:
    """A signed permit as it goes into the plan, and the key that signs the plan.

    Raises PermitError if the permit is malformed or altered, or the key is missing or not its holder's; KeyFileError
    if the key can't be read.
    """
    key = None if files.holder_key is None else PrivateKey.load(files.holder_key)
    if files.file is None:
        return None, key
    document = load_document(files.file, "permit", PermitError)
    permit, _ = read_permit(document)
    if key is None or key.public != permit.holder_key:
        other = "" if key is None else f" That key is {fingerprint(key.public)}."
        raise PermitError(
            f"This permit's plans must be signed by its holder's key {fingerprint(permit.holder_key)}.{other}",
            fix="Give permit.holder_key=FILE, the private key of the permit's holder.",
        )
    return cast(Mapping[str, JsonValue], document), key


def _own_site_files(config: ExperimentConfig) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for entry in config.sites:
        path = site_file(entry)
        name = load_site_file(path).name
        if name in files:
            raise RecipeError(f"Two site files bear the name '{name}'.")
        files[name] = path
    return files


def _admitted(federation: FederationConfig) -> tuple[str, ...]:
    """Names of the sites that are to be asked. Raises RecipeError for one that is not admitted, or too few."""
    folder = Path(str(federation.home)) / "sites"
    known = {path.stem for path in folder.glob("*.json")}
    asked = known if federation.sites is None else set(federation.sites)
    for name in sorted(asked - known):
        raise RecipeError(f"The federation has admitted no site called '{name}'.", fix=suggestion(name, known))
    if len(asked) < federation.quorum:
        raise RecipeError(
            f"federation.quorum is {federation.quorum}, but {len(asked)} sites are admitted.",
            fix="Invite and admit more sites, or lower the quorum.",
        )
    return tuple(sorted(asked))


def compose(overrides: Sequence[str], config_name: str = "train") -> ExperimentConfig:
    """One configuration from Hydra overrides such as `experiment=demo method=fedprox rounds=20`.

    Raises RecipeError for anything unknown, with the nearest known name.
    """
    if any(word in ("-m", "--multirun") for word in overrides):
        raise RecipeError("These overrides describe several runs.", fix="Sweep with `eucaim-fl train --multirun`.")
    extra = _prepared()
    with _in_our_words(), initialize_config_dir(str(configs_folder()), job_name="eucaim-fl", version_base="1.3"):
        raw = hydra.compose(config_name, [*overrides, *extra])  # once; `sweep` takes two turns for one run
    return _frozen(raw)


def sweep(overrides: Sequence[str], job: Callable[[ExperimentConfig], object], config_name: str = "train") -> None:
    """Let Hydra compose and call `job` for each configuration; `--multirun`, sweepers and launchers are Hydra's own.

    Raises RecipeError for anything unknown, and what `job` raises.
    """
    extra = _prepared()
    failed: list[BaseException] = []
    caller = os.getpid()

    def run(raw: DictConfig) -> None:
        if failed:
            return
        try:
            job(_frozen(raw))
        except (Exception, KeyboardInterrupt) as problem:
            if os.getpid() != caller:
                raise
            failed.append(problem)  # raised below: Hydra would print its own words first

    entry = hydra.main(version_base="1.3", config_path=str(configs_folder()), config_name=config_name)(run)
    argv, full = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv = ["eucaim-fl", *overrides, *extra]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra would print and exit; our caller tells the user
    try:
        with _in_our_words():
            entry()
    finally:
        sys.argv = argv
        if full is None:
            os.environ.pop("HYDRA_FULL_ERROR", None)
        logging.getLogger("hydra").handlers.clear()
    if failed:
        raise failed[0]


def _prepared() -> list[str]:
    """Tell Hydra of recipes and federations; returns the override with which it finds the user's own `configs/`."""
    _register_experiments()
    _register_federations()
    own = Path("configs").absolute()
    return [f"hydra.searchpath=[file://{own}]"] if own.is_dir() and own != configs_folder() else []


@contextmanager
def _in_our_words() -> Iterator[None]:
    """What Hydra refuses becomes a RecipeError that names what is known."""
    try:
        yield
    except MissingConfigException as problem:
        raise _unknown_choice(problem) from None
    except ConfigCompositionException as problem:
        raise _unknown_key(problem) from None
    except (HydraException, OmegaConfBaseException) as problem:
        raise RecipeError(_first_line(problem)) from None


def _frozen(raw: DictConfig) -> ExperimentConfig:
    try:
        values: Any = OmegaConf.to_container(raw, resolve=True, throw_on_missing=False)
    except OmegaConfBaseException as problem:
        raise RecipeError(_first_line(problem)) from None
    missing = sorted(str(key) for key in OmegaConf.missing_keys(raw))
    if missing:
        raise RecipeError(
            f"The recipe leaves open: {', '.join(missing)}.",
            fix=f"Choose a recipe, e.g. experiment=demo. Known: {', '.join(sorted(experiment_files()))}.",
        )
    for unwanted in ("hydra", "experiment"):
        values.pop(unwanted, None)
    return parse(ExperimentConfig, values, "The recipe")


_registered: dict[str, tuple[str, int, int, int]] = {}
"""Recipe → the file, with its number, time of change and size, that Hydra's store holds since this process began."""


def _register_experiments() -> None:
    """Recipes lie outside `configs/`; Hydra gets them as the group `experiment`, a file again when it has changed."""
    store = ConfigStore.instance()
    for name, path in experiment_files().items():
        try:
            now = path.stat()
            version = (str(path.absolute()), now.st_ino, now.st_mtime_ns, now.st_size)
            if _registered.get(name) == version:
                continue
            node = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as problem:
            raise RecipeError(
                f"The recipe '{name}' can't be read as YAML.", local_detail=f"{path}: {problem}"
            ) from None
        if not isinstance(node, dict):
            raise RecipeError(f"The recipe '{name}' holds no mapping of keys to values.", local_detail=str(path))
        store.store(group="experiment", name=name, node=node, package="_global_")
        _registered[name] = version


def _register_federations() -> None:
    """The federations of this machine are choices of the group `federation`, beside `local` and `ray`."""
    store = ConfigStore.instance()
    for name, home in known_homes().items():
        values = FederationConfig(engine="superlink", home=home.folder).model_dump(mode="json")
        store.store(group="federation", name=name, node=values)


def _first_line(problem: BaseException) -> str:
    return str(problem).strip().splitlines()[0].rstrip(".") + "."


def _unknown_choice(problem: MissingConfigException) -> RecipeError:
    """`method=fedprx`: the group is known, the choice is not."""
    found = re.search(r"Could not find '([\w/]+)/([^'/]+)'", str(problem))
    if found is None:
        return RecipeError(_first_line(problem))
    group, choice = found.group(1), found.group(2)
    folders = [configs_folder() / group, Path("configs") / group]
    known = {path.stem for folder in folders for path in folder.glob("*.yaml")}
    if group == "experiment":
        known |= set(experiment_files())
    if group == "federation":
        known |= set(known_homes())
    what = "recipe" if group == "experiment" else group
    guess = group != "privacy"  # nobody is led to less protection by a slip of the hand
    return RecipeError(f"There is no {what} called '{choice}'.", fix=suggestion(choice, known, guess=guess))


def _unknown_key(problem: ConfigCompositionException) -> RecipeError:
    """`metod=fedprox` or `training.batchsize=4`: the key itself is not known."""
    text = str(problem)
    found = re.search(r"Could not (?:override|append|delete)[^']*'([^'=]+)", text) or re.search(
        r"Key '([^']+)' is not in struct", text
    )
    if found is None:
        cause = problem.__cause__
        return RecipeError(_first_line(cause if cause is not None else problem))
    key = found.group(1).lstrip("+~")
    if "/" in key:
        return RecipeError(_first_line(problem))
    known = {*_keys(ExperimentConfig), *_GROUPS}
    if key in known:  # another choice of its group has it
        group = key.partition(".")[0]
        return RecipeError(
            f"The key '{key}' has no meaning with the chosen '{group}'.",
            fix=f"Leave it out, or choose another '{group}'." if group in _GROUPS else "Leave it out.",
        )
    return RecipeError(f"There is no key '{key}' in recipes.", fix=suggestion(key, known))


def _keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """All dotted keys of a configuration model."""
    for name, entry in model.model_fields.items():
        yield prefix + name
        pending: list[Any] = [entry.annotation]
        while pending:
            annotation = pending.pop()
            if isinstance(annotation, type) and issubclass(annotation, BaseModel):
                yield from _keys(annotation, f"{prefix}{name}.")
            pending.extend(get_args(annotation))
