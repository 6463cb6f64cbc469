"""Two frozen models of each task, and what sites found and told of them: made once, then kept in a folder.

What is kept says of which plan it is and in which form. An answer of another form, or whose record the present code
would not make from the same patients, is refused: it would be compared with figures of other code.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from eucaim_fl.compose import Recipe, compose, resolve
from eucaim_fl.durable import write_atomically, write_json
from eucaim_fl.errors import CohortError, DataError
from eucaim_fl.federation.run import create_run, execute
from eucaim_fl.plan import FederationPlan
from eucaim_fl.site.disclosure import least_people
from eucaim_fl.site.judging import JudgingNode
from eucaim_fl.site.validation_cells import told_record
from eucaim_fl.site.validation_rounding import CellRules
from eucaim_fl.sitefile import load_site_file
from eucaim_fl.validation.record import ValidationRecord

__all__ = ["COHORTS", "FORM", "Judged", "Kept", "cohort_of", "judged", "kept_in", "rules_of", "trained", "validating"]

FORM = 2
"""Of a kept answer's file; another one is refused."""

_RECORD: TypeAdapter[ValidationRecord] = TypeAdapter(ValidationRecord)
_COMMON = ("tracking=none", "method=fedavg", "method.personal.local=false", "method.personal.blend=false")
_HAM = ("experiment=ham10000", *_COMMON, "method.personal.choose=false", "training.local_steps=12")
_LIDC = ("experiment=lidc_nodules", *_COMMON, "method.personal.choose=false")
_SHARES = ("auc", "accuracy", "sensitivity", "specificity", "brier")
_MEANS = ("dice", "hd95_mm", "surface_dice", "volume_difference_ml")


@dataclass(frozen=True)
class Judged:
    """What is judged where. words: of the recipe. rounds: of the two models. asked: of the plan's validation.
    trained_in: of another cohort, whose models are judged. least: patients behind a figure, as in the site files."""

    words: tuple[str, ...]
    sites: tuple[str, ...]
    rounds: tuple[int, int]
    asked: Mapping[str, Any]
    trained_in: str = ""
    least: int = 5


_LESIONS: Mapping[str, Any] = {
    "patients": "test",
    "thresholds": [0.1, 0.25, 0.5],
    "subgroups": [{"by": "sex"}, {"by": "age", "edges": [40, 60]}],
    "comparisons": [{"metric": name, "margin": 0.05} for name in _SHARES],
    "half_widths": {"auc": 0.01, "sensitivity": 0.02},
}
COHORTS: Mapping[str, Judged] = {
    "ham": Judged(_HAM, ("ham_dias", "ham_modern", "ham_molemax", "ham_rosendahl"), (40, 10), _LESIONS),
    "ham_chance": Judged(_HAM, tuple(f"ham_chance_{part}" for part in "abcd"), (40, 10), _LESIONS, "ham"),
    "lidc": Judged(
        _LIDC,
        ("lidc_a", "lidc_b", "lidc_c", "lidc_d"),
        (20, 5),
        {
            "subgroups": [{"by": "lesion_volume_ml", "edges": [0.3, 1.0]}],
            "comparisons": [{"metric": name, "margin": 0.05} for name in _MEANS],
            "half_widths": {"dice": 0.02},
        },
        least=3,
    ),
}
"""Whom the models are judged on, by name."""


@dataclass(frozen=True)
class Kept:
    """One site: what each model got on each patient, each patient's groups, and the record that left."""

    results: tuple[Mapping[str, Mapping[str, Any]], ...]
    groups: Mapping[str, frozenset[str]]
    record: ValidationRecord


def rules_of(least: int) -> CellRules:
    """What sites with public data tell: all of it, exactly, of so many patients of a class."""
    return CellRules(least_people(confidential=False, training=10, metric=least))


# --- models -----------------------------------------------------------------------------------------------------------


def recipe_of(cohort: Judged, rounds: int, folder: Path) -> Recipe:
    """The recipe by which a cohort's models are trained. Raises CohortError if a cohort is not prepared."""
    words = (*cohort.words, f"sites=[{','.join(cohort.sites)}]", f"rounds={rounds}", f"runs_dir={folder / 'runs'}")
    recipe = resolve(compose((*words, f"stopping.validate_every={rounds}")))
    for site, path in recipe.site_files.items():
        if not load_site_file(path).cohort_folder().is_dir():
            raise CohortError(f"The cohort of '{site}' is missing.", fix="Write it: eucaim-fl prepare … --from FOLDER.")
    return recipe


def trained(cohort: Judged, rounds: int, folder: Path) -> bytes:
    """The weights of a model after so many rounds, as a file; trained if none by the same plan is in the folder yet."""
    cohort = COHORTS[cohort.trained_in] if cohort.trained_in else cohort
    recipe = recipe_of(cohort, rounds, folder)
    place = folder / "models" / f"{recipe.plan.name}-{rounds}-{recipe.plan.sha256()[:12]}.safetensors"
    if not place.is_file():
        run = create_run(recipe.config, recipe.plan, recipe.site_files)
        execute(run, recipe.config, recipe.site_files)
        place.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(place, (run / "models" / "last.safetensors").read_bytes())
    return place.read_bytes()


def validating(plan: FederationPlan, files: Mapping[str, bytes], asked: Mapping[str, Any]) -> FederationPlan:
    """The plan of a validation of frozen weights of the plan's own network."""
    models = [
        {
            "name": name,
            "format": "network",
            "sha256": hashlib.sha256(content).hexdigest(),
            "size_bytes": len(content),
            "network": plan.model.model_dump(mode="json"),
            "data": plan.data.model_dump(mode="json"),
            "intended_use": "A measurement; no clinical use.",
        }
        for name, content in files.items()
    ]
    return FederationPlan.model_validate({**plan.model_dump(), "rounds": 1, "validation": {"models": models, **asked}})


# --- answers ----------------------------------------------------------------------------------------------------------


def judged(plan: FederationPlan, site: Path, files: Mapping[str, bytes], folder: Path, rules: CellRules) -> Kept:
    """What a site found and told, by its own code; kept in the folder. Raises as `kept_in` does."""
    name = load_site_file(site).name
    place = folder / "sites" / f"{plan.sha256()[:12]}-{name}.json"
    if not place.is_file():
        node = JudgingNode(site, plan)
        record = node.validate(1, {model: memoryview(content) for model, content in files.items()}).report.validated
        own = node.site.records_folder() / "validations" / f"{plan.sha256()}.json"
        patients = json.loads(own.read_text())["patients"]
        told = {"patients": patients, "record": _RECORD.dump_python(record, mode="json")}
        place.parent.mkdir(parents=True, exist_ok=True)
        write_json(place, {"form": FORM, "plan": plan.sha256(), "site": name, **told})
    return kept_in(place, plan, name, rules)


def kept_in(place: Path, plan: FederationPlan, site: str, rules: CellRules) -> Kept:
    """A site's kept answer.

    rules: by which the site told; the record is made once more from the patients, which tells whether other code made
    the kept one.
    Raises DataError if the answer is of another form, plan or site, or its record is not what its patients give.
    """
    fix = "Delete the folder's `sites`, or take another folder: the models are run again."
    told = json.loads(place.read_text())
    if (told.get("form"), told.get("plan"), told.get("site")) != (FORM, plan.sha256(), site):
        raise DataError(f"The kept answer of '{site}' is of another version of this script, or another plan.", fix=fix)
    names = [model.name for model in plan.validation.models] if plan.validation is not None else []
    patients = {f"{site}/{patient}": one for patient, one in told["patients"].items()}
    kept = Kept(
        tuple({patient: _defined(one["models"][model]) for patient, one in patients.items()} for model in names),
        {patient: frozenset(one["groups"]) for patient, one in patients.items()},
        _RECORD.validate_python(told["record"]),
    )
    again = told_record(site, plan, kept.results, kept.groups, rules, failed=kept.record.failed)
    if replace(again, told_before=kept.record.told_before, data_is=kept.record.data_is) != kept.record:
        raise DataError(f"The kept record of '{site}' is not what this code makes of its patients.", fix=fix)
    return kept


def _defined(result: Mapping[str, Any]) -> dict[str, Any]:
    """A patient's result with NaN where the site's file has null."""
    return {name: float("nan") if value is None else value for name, value in result.items()}


def cohort_of(name: str, folder: Path) -> tuple[FederationPlan, list[Kept]]:
    """The plan of a cohort's validation, and what each of its sites found and told; what is missing is done."""
    cohort = COHORTS[name]
    files = {f"rounds-{rounds}": trained(cohort, rounds, folder) for rounds in cohort.rounds}
    recipe = recipe_of(cohort, cohort.rounds[0], folder)
    plan = validating(recipe.plan, files, cohort.asked)
    rules = rules_of(cohort.least)
    return plan, [judged(plan, recipe.site_files[site], files, folder, rules) for site in plan.sites]
