"""Federated against centralised: every figure of a validation beside the same one from the patients themselves.

    eucaim-fl prepare ham10000 --from FOLDER && eucaim-fl prepare ham10000 --from FOLDER --split chance
    eucaim-fl prepare lidc_nodules --from FOLDER
    python experiments/benchmarks/validation_centralised.py [--folder FOLDER] [--partitions 20] [--cohorts NAME,…]

Two models are trained for each task, by this software's FedAvg in some minutes (the second one with a quarter of the
rounds), frozen, and judged by the sites' own code (`JudgingNode`): on HAM10000's test patients, by true source and
dealt by chance, and on all of LIDC-IDRI's nodules. Of some patients the models know more than they should (LIDC-IDRI's,
and some of those dealt by chance, were trained on), so the figures say nothing of the models; what is looked at is
whether sites' sums give what the patients together give. The patients' own results, which the sites keep, are joined,
and every number of the report is computed from them anew with numpy, scipy and scikit-learn
(`centralised_figures.py`), and compared (`centralised.py`). Then the patients of HAM10000 are dealt to 3 to 6 sites of
unequal size at random so many times, without running a model again, and compared again.

Records are those of sites with public data, which tell counts exactly; figures of fewer patients of a class than the
site's minimum are withheld, and the patients' figures are then of those who are told of. HAM10000's are told once more
by the policy and the site file that hospitals get, for confidential data (`centralised_policy.py`): what is told lies
within what rounding allows, and what is withheld says so and is no number.

Each model, each site's answer (`centralised_kept.py`) and each comparison (as long as its code is the same) is kept in
the folder as it ends: called again, the script goes on behind the last. The tables are printed, and written to
validation_centralised.md in the folder, with every number that is outside of its bound to validation_centralised.json.
Public data only.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import centralised_table as table
import numpy as np
import yaml
from centralised import compare
from centralised_kept import COHORTS, Kept, cohort_of, rules_of
from centralised_people import Hospital, Row
from centralised_policy import compare_told

import eucaim_fl
from eucaim_fl.durable import exclusive, write_atomically, write_json
from eucaim_fl.errors import DataError, EucaimError
from eucaim_fl.plan import FederationPlan
from eucaim_fl.site.policy import load_policy
from eucaim_fl.site.policy_decision import bounds
from eucaim_fl.site.validation_cells import told_record, told_sets
from eucaim_fl.site.validation_rounding import CellRules, objections_to
from eucaim_fl.sitefile import ReleaseConfig
from eucaim_fl.validation.analysis import analyse
from eucaim_fl.validation.groups import possible_groups

__all__ = ["compared", "dealt", "hospital_rules", "lighter", "main", "under_policy"]

_FEWEST, _MOST = 3, 6  # sites of a partition


def hospital_rules() -> CellRules:
    """What a hospital with confidential data tells by the policy and the site file that it gets."""
    templates = files("eucaim_fl.site") / "templates"
    release = yaml.safe_load((templates / "site.yaml").read_text())["release"]
    policy = load_policy(Path(str(templates / "policy.yaml"))).policy
    return bounds(policy, ReleaseConfig.model_validate(release)).cells


# --- whose patients ---------------------------------------------------------------------------------------------------


def lighter(plan: FederationPlan, **changes: Any) -> FederationPlan:
    """The plan with another number of resamples, or without groups: no model has to run again for that."""
    asked = plan.model_dump()
    return FederationPlan.model_validate({**asked, "validation": {**asked["validation"], **changes}})


def dealt(plan: FederationPlan, kept: Sequence[Kept], seed: int) -> tuple[FederationPlan, list[Kept]]:
    """All patients dealt at random to 3 to 6 sites of unequal sizes; records are yet to be made."""
    rng, count = np.random.default_rng(seed), _FEWEST + seed % (_MOST - _FEWEST + 1)
    patients = sorted(patient for one in kept for patient in one.groups)
    where = rng.choice(count, size=len(patients), p=rng.dirichlet(np.full(count, 2.0)))
    results = tuple({p: row for one in kept for p, row in one.results[k].items()} for k in range(len(kept[0].results)))
    groups = {p: names for one in kept for p, names in one.groups.items()}
    parts = [[p for p, place in zip(patients, where, strict=True) if place == k] for k in range(count)]
    sites = tuple(f"part_{k + 1}" for k in range(count))
    return FederationPlan.model_validate({**plan.model_dump(), "sites": sites}), [
        Kept(tuple({p: one[p] for p in part} for one in results), {p: groups[p] for p in part}, kept[0].record)
        for part in parts
    ]


def _asked_groups(plan: FederationPlan, kept: Kept) -> dict[str, frozenset[str]]:
    """The groups that the plan has: it may have been asked without some of those that were kept."""
    rules = plan.validation.subgroups if plan.validation is not None else ()
    known = {name for rule in rules for name in possible_groups(rule)}
    return {patient: names & known for patient, names in kept.groups.items()}


def told_by(plan: FederationPlan, kept: Kept, rules: CellRules) -> Hospital:
    """A site's patients, and of whom it tells in each group."""
    told: dict[str, frozenset[str]] = {}
    groups = _asked_groups(plan, kept)
    whole = {"each patient"} if plan.task.name == "segmentation" else set(plan.task.classes)
    for (population, scope), members in told_sets(plan, kept.results, groups, rules).items():
        if population in whole and members:
            told[scope] = told.get(scope, frozenset()) | members
    return Hospital(kept.results, groups, told)


# --- comparisons ------------------------------------------------------------------------------------------------------


def compared(plan: FederationPlan, kept: Sequence[Kept], rules: CellRules, *, own: bool) -> list[Row]:
    """Every number of the report beside that of the patients. own: records are those that the sites made."""
    hospitals = {site: told_by(plan, one, rules) for site, one in zip(plan.sites, kept, strict=True)}
    if own:
        records = [replace(one.record, plan_sha256=plan.sha256()) for one in kept]
    else:
        records = [
            told_record(site, plan, one.results, hospitals[site].groups, rules)
            for site, one in zip(plan.sites, kept, strict=True)
        ]
    return compare(plan, analyse(plan, records, seed=plan.seed), hospitals)


def under_policy(plan: FederationPlan, kept: Sequence[Kept], rules: CellRules) -> list[Row]:
    """The same of sites that tell by these rules, which list no scores; the gate must let each record out."""
    hospitals = {site: told_by(plan, one, rules) for site, one in zip(plan.sites, kept, strict=True)}
    records = [
        told_record(site, plan, one.results, one.groups, rules)
        for site, one in zip(plan.sites, hospitals.values(), strict=True)
    ]
    rows = compare_told(plan, analyse(plan, records, seed=plan.seed), hospitals, rules)
    for record in records:
        found = "; ".join(objections_to(record, plan, rules))
        rows.append(Row(("gate", record.site), found or None, None, 0.0, "withheld", not found))
    return rows


@cache
def _code() -> str:
    """SHA-256 of the code that a comparison depends on."""
    product, here = Path(eucaim_fl.__file__).parent, Path(__file__).parent
    sources = [*(product / "validation").glob("*.py"), *(product / "site").glob("*.py"), *here.glob("*centralised*.py")]
    table_of = {here / "centralised_table.py"}
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted({*sources} - table_of))).hexdigest()


def _step(folder: Path, title: str, plan: FederationPlan, work: Callable[[], list[Row]]) -> list[Row]:
    """A comparison, done unless the folder has it by the same plan and code."""
    named = hashlib.sha256(f"{title} {plan.sha256()} {_code()}".encode()).hexdigest()[:16]
    place = folder / "compared" / f"{named}.json"
    if not place.is_file():
        rows = work()
        place.parent.mkdir(parents=True, exist_ok=True)
        told = [[list(r.path), r.federated, r.centralised, _written(r.bound), r.kind, r.within] for r in rows]
        write_atomically(place, json.dumps(told).encode())
        print(f"{title}: {len(rows)} numbers", file=sys.stderr, flush=True)
    return [
        Row(tuple(path), told, value, float(bound), kind, within)
        for path, told, value, bound, kind, within in json.loads(place.read_text())
    ]


def _written(bound: float) -> float | str:
    """JSON has no infinity."""
    return bound if np.isfinite(bound) else "inf"


def comparisons_of(name: str, folder: Path, *, partitions: int, samples: int) -> Mapping[str, list[Row]]:
    """All comparisons of a cohort, by title; what is missing is done."""
    plan, kept = cohort_of(name, folder)
    if name not in COHORTS or not kept:
        raise DataError(f"No cohort is called {name}.")
    rules, hospital = rules_of(COHORTS[name].least), hospital_rules()
    whole = lighter(plan, bootstrap_samples=samples)
    found = {name: _step(folder, name, whole, lambda: compared(whole, kept, rules, own=True))}
    if plan.task.name == "classification":
        title = f"{name}, under a hospital's policy"
        found[title] = _step(folder, title, whole, lambda: under_policy(whole, kept, hospital))
    for seed in range(partitions if name == "ham" else 0):
        small, parts = dealt(lighter(plan, bootstrap_samples=20), kept, seed)
        title = f"{name}, dealt at random to {len(parts)} sites, seed {seed}"
        found[title] = _step(folder, title, small, lambda p=small, k=parts: compared(p, k, rules, own=False))  # type: ignore[misc]
        title = f"{title}, under a hospital's policy"
        found[title] = _step(folder, title, small, lambda p=small, k=parts: under_policy(p, k, hospital))  # type: ignore[misc]
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what is missing, compare, print and write; returns 1 if a number is outside of its bound."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/validation_centralised"))
    parser.add_argument("--partitions", type=int, default=20, help="times that HAM10000's patients are dealt at random")
    parser.add_argument(
        "--samples", type=int, default=200, help="resamples behind intervals, at most 256; the default plan has 2000"
    )
    parser.add_argument("--cohorts", default=",".join(COHORTS), help="names, separated by commas; default: all")
    given = parser.parse_args(arguments)
    folder: Path = given.folder.absolute()
    found: dict[str, list[Row]] = {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with exclusive(folder):
            for name in given.cohorts.split(","):
                found |= comparisons_of(name, folder, partitions=given.partitions, samples=given.samples)
            outside = [
                [title, "/".join(r.path), r.federated, r.centralised]
                for title, rows in found.items()
                for r in rows
                if not r.within
            ]
            text = table.report(found)
            numbers = sum(map(len, found.values()))
            write_json(folder / "validation_centralised.json", {"numbers": numbers, "outside": outside})
            write_atomically(folder / "validation_centralised.md", text.encode())
    except EucaimError as problem:
        print(problem.for_terminal(), file=sys.stderr, flush=True)
        return 2
    print(text)
    return 1 if outside else 0


if __name__ == "__main__":
    sys.exit(main())
