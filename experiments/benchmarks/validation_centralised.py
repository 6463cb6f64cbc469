"""Federated against centralised: every figure of a validation beside the same one from the patients themselves.

    eucaim-fl prepare ham10000 --from FOLDER && eucaim-fl prepare ham10000 --from FOLDER --split chance
    eucaim-fl prepare lidc_nodules --from FOLDER
    python experiments/benchmarks/validation_centralised.py [--folder FOLDER] [--partitions 20] [--cohorts NAME,…]

Two models are trained for each task, by this software's FedAvg in some minutes (the second one with a quarter of the
rounds), frozen, and judged by the sites' own code (`JudgingNode`) on all of their patients: those of HAM10000 by true
source and dealt by chance, and LIDC-IDRI's nodules. Most patients were trained on, so the figures say nothing of the
models; what is looked at is whether sites' sums give what the patients together give. The patients' own results, which
the sites keep, are joined, and every number of the report is computed from them anew with numpy, scipy and scikit-learn
(`centralised_figures.py`), and compared (`centralised.py`). Then the patients of HAM10000 are dealt to four sites at
random so many times, without running a model again, and compared again.

Records are those of sites with public data, which tell counts exactly; figures of fewer patients of a class than the
site's minimum are withheld, and the patients' figures are then of those who are told of.

Each model and each site's answer is kept in the folder as it ends: called again, the script goes on behind the last.
The table is printed, and written to validation_centralised.md in the folder, with every number that is outside of its
bound to validation_centralised.json. Public data only.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from centralised import compare
from centralised_people import Hospital, Row
from pydantic import TypeAdapter

from eucaim_fl.compose import Recipe, compose, resolve
from eucaim_fl.durable import exclusive, write_atomically, write_json
from eucaim_fl.errors import CohortError, EucaimError
from eucaim_fl.federation.run import create_run, execute
from eucaim_fl.plan import FederationPlan
from eucaim_fl.site.disclosure import least_people
from eucaim_fl.site.judging import JudgingNode
from eucaim_fl.site.validation_cells import told_record, told_sets
from eucaim_fl.site.validation_rounding import CellRules
from eucaim_fl.sitefile import load_site_file
from eucaim_fl.validation.analysis import analyse
from eucaim_fl.validation.record import ValidationRecord

__all__ = ["COHORTS", "Kept", "judged", "main", "trained", "validating"]

_RECORD: TypeAdapter[ValidationRecord] = TypeAdapter(ValidationRecord)
_COMMON = ("tracking=none", "method=fedavg", "method.personal.local=false", "method.personal.blend=false")
_HAM = ("experiment=ham10000", *_COMMON, "method.personal.choose=false", "training.local_steps=12")
_LIDC = ("experiment=lidc_nodules", *_COMMON, "method.personal.choose=false")
_SHARES = ("auc", "accuracy", "sensitivity", "specificity", "brier")
_SHOWN = ("value", "low", "high")
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


def recipe_of(cohort: Judged, rounds: int, folder: Path) -> Recipe:
    """The recipe by which a cohort's models are trained. Raises CohortError if a cohort is not prepared."""
    words = (*cohort.words, f"sites=[{','.join(cohort.sites)}]", f"rounds={rounds}", f"runs_dir={folder / 'runs'}")
    recipe = resolve(compose((*words, f"stopping.validate_every={rounds}")))
    for site, path in recipe.site_files.items():
        if not load_site_file(path).cohort_folder().is_dir():
            raise CohortError(f"The cohort of '{site}' is missing.", fix="Write it: eucaim-fl prepare … --from FOLDER.")
    return recipe


def trained(name: str, cohort: Judged, rounds: int, folder: Path) -> bytes:
    """The weights of a model after so many rounds, as a file; trained if it is not in the folder yet."""
    place = folder / "models" / f"{cohort.trained_in or name}-{rounds}.safetensors"
    if not place.is_file():
        recipe = recipe_of(cohort, rounds, folder)
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


def judged(plan: FederationPlan, site: Path, files: Mapping[str, bytes], folder: Path) -> Kept:
    """What a site found and told, by its own code; kept in the folder."""
    name = load_site_file(site).name
    place = folder / "sites" / f"{plan.sha256()[:12]}-{name}.json"
    if not place.is_file():
        node = JudgingNode(site, plan)
        record = node.validate(1, {model: memoryview(content) for model, content in files.items()}).report.validated
        own = node.site.records_folder() / "validations" / f"{plan.sha256()}.json"
        told = {"patients": json.loads(own.read_text())["patients"], "record": _RECORD.dump_python(record, mode="json")}
        place.parent.mkdir(parents=True, exist_ok=True)
        write_json(place, told)
    told = json.loads(place.read_text())
    names = list(files)
    patients = {f"{name}/{patient}": one for patient, one in told["patients"].items()}
    return Kept(
        tuple({patient: _defined(one["models"][model]) for patient, one in patients.items()} for model in names),
        {patient: frozenset(one["groups"]) for patient, one in patients.items()},
        _RECORD.validate_python(told["record"]),
    )


def _defined(result: Mapping[str, Any]) -> dict[str, Any]:
    """A patient's result with NaN where the site's file has null."""
    return {name: float("nan") if value is None else value for name, value in result.items()}


def cohort_of(name: str, folder: Path) -> tuple[FederationPlan, list[Kept]]:
    """The plan of a cohort's validation, and what each of its sites found and told; what is missing is done."""
    cohort = COHORTS[name]
    files = {f"rounds-{rounds}": trained(name, cohort, rounds, folder) for rounds in cohort.rounds}
    recipe = recipe_of(cohort, cohort.rounds[0], folder)
    plan = validating(recipe.plan, files, cohort.asked)
    return plan, [judged(plan, recipe.site_files[site], files, folder) for site in plan.sites]


# --- what is compared -------------------------------------------------------------------------------------------------


def lighter(plan: FederationPlan, **changes: Any) -> FederationPlan:
    """The plan with another number of resamples, or without groups: no model has to run again for that."""
    asked = plan.model_dump()
    return FederationPlan.model_validate({**asked, "validation": {**asked["validation"], **changes}})


def told_by(plan: FederationPlan, kept: Kept, rules: CellRules) -> Hospital:
    """A site's patients, and of whom it tells in each group."""
    told: dict[str, frozenset[str]] = {}
    whole = {"each patient"} if plan.task.name == "segmentation" else set(plan.task.classes)
    for (population, scope), members in told_sets(plan, kept.results, kept.groups, rules).items():
        if population in whole and members:
            told[scope] = told.get(scope, frozenset()) | members
    return Hospital(kept.results, kept.groups, told)


def dealt(plan: FederationPlan, kept: Sequence[Kept], seed: int) -> list[Kept]:
    """All patients dealt to as many sites at random, of unequal sizes; records are yet to be made."""
    rng = np.random.default_rng(seed)
    patients = sorted(patient for one in kept for patient in one.groups)
    shares = rng.dirichlet(np.full(len(plan.sites), 2.0))
    where = rng.choice(len(plan.sites), size=len(patients), p=shares)
    results = tuple({p: row for one in kept for p, row in one.results[k].items()} for k in range(len(kept[0].results)))
    groups = {p: names for one in kept for p, names in one.groups.items()}
    parts = [[p for p, place in zip(patients, where, strict=True) if place == k] for k in range(len(plan.sites))]
    return [
        Kept(tuple({p: one[p] for p in part} for one in results), {p: groups[p] for p in part}, kept[0].record)
        for part in parts
    ]


def compared(plan: FederationPlan, kept: Sequence[Kept], rules: CellRules, *, own: bool) -> list[Row]:
    """Every number of the report beside that of the patients. own: records are those that the sites made."""
    hospitals = {site: told_by(plan, one, rules) for site, one in zip(plan.sites, kept, strict=True)}
    if own:
        records = [replace(one.record, plan_sha256=plan.sha256()) for one in kept]
    else:
        records = [
            told_record(site, plan, one.results, one.groups, rules) for site, one in zip(plan.sites, kept, strict=True)
        ]
    return compare(plan, analyse(plan, records, seed=plan.seed), hospitals)


# --- the table --------------------------------------------------------------------------------------------------------


def summary(title: str, rows: Sequence[Row]) -> str:
    """Markdown: how many numbers were compared, and the figures of all patients that binning can change."""
    kinds = Counter(row.kind for row in rows)
    outside = sum(not row.within for row in rows)
    counted = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    lines = [f"**{title}**: {len(rows)} numbers ({counted}); outside of their bounds: {outside}.", ""]
    lines += ["| model, figure | federated | centralised | difference | bound | within |", "|---|--:|--:|--:|--:|---|"]
    for row in rows:
        place = row.path
        if place[:1] != ("models",) or place[2:5] != ("scopes", "0", "figures") or place[6] not in _SHOWN:
            continue
        if isinstance(row.federated, float) and isinstance(row.centralised, float):
            name = f"{int(place[1]) + 1}, {place[5]}" + ("" if place[6] == "value" else f", {place[6]} end")
            bound = "0 (exact)" if row.kind == "exact" else f"{row.bound:.5f} ({row.kind})"
            lines.append(
                f"| {name} | {row.federated:.5f} | {row.centralised:.5f} | {row.difference:+.1e} | {bound} "
                f"| {'yes' if row.within else '**no**'} |"
            )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what is missing, compare, print and write; returns 1 if a number is outside of its bound."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/validation_centralised"))
    parser.add_argument("--partitions", type=int, default=20, help="times that HAM10000's patients are dealt at random")
    parser.add_argument(
        "--samples", type=int, default=200, help="resamples behind intervals; the default plan has 2000"
    )
    parser.add_argument("--cohorts", default=",".join(COHORTS), help="names, separated by commas; default: all")
    given = parser.parse_args(arguments)
    folder: Path = given.folder.absolute()
    texts, outside, compared_numbers = [], [], 0
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with exclusive(folder):
            for name in given.cohorts.split(","):
                plan, kept = cohort_of(name, folder)
                rules = CellRules(least_people(confidential=False, training=10, metric=COHORTS[name].least))
                found = [(name, compared(lighter(plan, bootstrap_samples=given.samples), kept, rules, own=True))]
                for seed in range(given.partitions if name == "ham" else 0):
                    small = lighter(plan, bootstrap_samples=20, subgroups=[])
                    rows = compared(small, dealt(plan, kept, seed), rules, own=False)
                    print(f"{name}, dealt at random, seed {seed}: {len(rows)} numbers", file=sys.stderr, flush=True)
                    found.append((f"{name}, dealt at random, seed {seed}", rows))
                for title, rows in found:
                    compared_numbers += len(rows)
                    texts.append(summary(title, rows))
                    outside += [[title, "/".join(r.path), r.federated, r.centralised] for r in rows if not r.within]
            report = {"numbers": compared_numbers, "outside": outside}
            write_json(folder / "validation_centralised.json", report)
            write_atomically(folder / "validation_centralised.md", ("\n\n".join(texts) + "\n").encode())
    except EucaimError as problem:
        print(problem.for_terminal(), file=sys.stderr, flush=True)
        return 2
    print("\n\n".join(texts))
    return 1 if outside else 0


if __name__ == "__main__":
    sys.exit(main())
