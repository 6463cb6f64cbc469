"""What model-contrastive training (MOON) would add: AUC and time beside FedAvg, FedProx and FedDyn, on real data.

    python experiments/benchmarks/moon.py [--seeds 0,1,2] [--rows NAME,NAME] [--optimizer adam|sgd] [--json FILE]

Needs `eucaim-fl prepare ham10000 --from FOLDER`. The data and network of the recipe ham10000, with group normalisation,
one common model, and 60 rounds of 8 steps of 32 with an optimizer that begins afresh each round: every row makes the
same steps on the same batches from the same weights.

fedavg, fedprox…, feddyn…  through the federation of this machine, as `eucaim-fl train` runs them.
moon_MU     a loop of this file around the product's batches, losses, optimizers and aggregation. Each step's loss gets
            mu · ℓ of what the last layer is given by three models: the one in training, the one that arrived, and the
            one that the site ended its last round with, which it has to keep (see `moon_training`). moon_0 is this loop
            alone; it should end with FedAvg's very bits.
…_head      the same loop and a network with the paper's projection head (two linear layers) before the last one.

AUC is of all held-out patients and the mean over the sources; `validation` of all validation patients, by which mu may
be chosen. Seconds are medians of a round, all sites one after the other; `time` is the ratio to FedAvg of the
processor's seconds, measured apart, in turns. Each result is a file in the folder, and what is there is not done again;
a killed run goes on behind the last round. Public data only.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from moon_training import Moon, federated, with_head
from torch import nn

from eucaim_fl.arrays import ArrayFile, Arrays, arrays_sha256
from eucaim_fl.benchmark.store import Store
from eucaim_fl.cohorts.cohort import Cohort, open_cohort
from eucaim_fl.comparison import PatientValues, check_comparable, held_out
from eucaim_fl.compose import Recipe, compose, resolve
from eucaim_fl.config import ObjectiveConfig
from eucaim_fl.durable import write_json
from eucaim_fl.errors import EucaimError
from eucaim_fl.federation.run import create_run, execute
from eucaim_fl.models.networks import get_arrays, set_arrays
from eucaim_fl.models.planned import network_for
from eucaim_fl.plan import FederationPlan
from eucaim_fl.records import SplitName
from eucaim_fl.seeding import derive_seed
from eucaim_fl.sitefile import load_site_file
from eucaim_fl.tracking.journal import Journal
from eucaim_fl.training.evaluation import patient_results
from eucaim_fl.training.loop import train_round
from eucaim_fl.training.objective import pull_for, state_after
from eucaim_fl.validation.metrics import auc

__all__ = ["ROWS", "Row", "main", "scores", "table"]

_RECIPE = (
    "experiment=ham10000", "method=fedavg", "model.args.norm=group", "rounds=60", "training.local_steps=8",
    "training.batch_size=32", "training.schedule={kind: cosine, warmup_rounds: 0, floor: 0.0}", "tracking=none",
    "federation.workers=1", "stopping.validate_every=1000", "method.personal.local=false",
    "method.personal.blend=false", "method.personal.choose=false",
)  # fmt: skip
_OPTIMIZERS: Mapping[str, str] = {
    "adam": "{name: adam, lr: 0.003, momentum: 0.9, weight_decay: 0.0, kept: false}",
    "sgd": "{name: sgd, lr: 0.1, momentum: 0.0, weight_decay: 0.0, kept: false}",
}


@dataclass(frozen=True)
class Row:
    """One way to train. contrast: mu of the contrastive loss, in this file's loop; None trains through the product."""

    overrides: tuple[str, ...] = ()
    contrast: float | None = None
    head: bool = False


def _pulled(name: str, mu: float) -> Row:
    return Row((f"method.objective.name={name}", f"method.objective.mu={mu:g}"))


ROWS: Mapping[str, Row] = {
    "fedavg": Row(),
    **{f"fedprox_{mu:g}": _pulled("proximal", mu) for mu in (0.01, 0.1, 1.0)},
    **{f"feddyn_{mu:g}": _pulled("dynamic", mu) for mu in (0.001, 0.01, 0.1)},
    **{f"moon_{mu:g}": Row(contrast=mu) for mu in (0.0, 0.1, 1.0, 5.0)},
    **{f"moon_{mu:g}_head": Row(contrast=mu, head=True) for mu in (0.0, 0.1, 1.0, 5.0)},
}
_TIMED = ("fedavg", "fedprox_0.01", "feddyn_0.01", "moon_1")


# --- rounds -----------------------------------------------------------------------------------------------------


def _through_product(recipe: Recipe, folder: Path) -> tuple[Arrays, list[float]]:
    run = Store(folder).run_of(recipe.plan) or create_run(recipe.config, recipe.plan, recipe.site_files)
    execute(run, recipe.config, recipe.site_files)
    rounds = [r for r in Journal(run).records() if not r.is_final(recipe.plan.rounds)]
    seconds = [sum(one.seconds for one in r.participation) for r in rounds]
    return ArrayFile(run / "models" / "last.safetensors").load(), seconds


def _recipe(row: Row, optimizer: str, seed: int, folder: Path) -> Recipe:
    """Raises GateError if a site's data may not be looked at from outside."""
    given = (
        *_RECIPE,
        f"training.optimizer={_OPTIMIZERS[optimizer]}",
        *row.overrides,
        f"seed={seed}",
        f"runs_dir={folder / 'runs'}",
    )
    recipe = resolve(compose(given))
    check_comparable(recipe.plan, recipe.site_files)
    return recipe


def _values(network: nn.Module, cohorts: Mapping[str, Cohort], plan: FederationPlan, split: SplitName) -> PatientValues:
    return {
        (site, patient): (*map(float, result["probabilities"]), float(result["truth"]))
        for site, cohort in cohorts.items()
        for patient, result in patient_results(network, cohort.cases(split), plan).items()
    }


def _do(name: str, optimizer: str, seed: int, folder: Path) -> dict[str, Any]:
    row = ROWS[name]
    recipe = _recipe(row, optimizer, seed, folder)
    plan = recipe.plan
    cohorts = {site: open_cohort(load_site_file(path), plan) for site, path in recipe.site_files.items()}

    def make() -> nn.Module:
        network = network_for(plan, derive_seed(seed, "initial weights"))
        return with_head(network, derive_seed(seed, "projection head")) if row.head else network

    network = make()
    if row.contrast is None:
        arrays, seconds = _through_product(recipe, folder)
    else:
        sites = {site: (cohort.patients("train"), cohort.cases("train")) for site, cohort in cohorts.items()}
        moon, state = Moon(plan, row.contrast, make), folder / f"{name}-{seed}.part"
        arrays, seconds = federated(moon, sites, get_arrays(network), state)
    set_arrays(network, arrays)
    test = _values(network, cohorts, plan, "test") if row.head else held_out(plan, recipe.site_files, arrays)
    return {
        "row": name, "seed": seed, "optimizer": optimizer, "plan": plan.sha256(), "sha256": arrays_sha256(arrays),
        "round_s": statistics.median(seconds), "model_bytes": sum(array.nbytes for array in arrays.values()),
        "validation": scores(_values(network, cohorts, plan, "validation"))["all"], **scores(test),
    }  # fmt: skip


def _in_turns(optimizer: str, folder: Path, rounds: int = 20) -> dict[str, float]:
    """Row → median seconds of the processor in a round at all sites; the rows take turns, so that all meet alike."""
    recipes = {name: _recipe(ROWS[name], optimizer, 0, folder) for name in _TIMED}
    plan, files = recipes["fedavg"].plan, recipes["fedavg"].site_files
    cases = {site: open_cohort(load_site_file(path), plan).cases("train") for site, path in files.items()}
    network, moon = network_for(plan, 0), Moon(plan, 1.0, lambda: network_for(plan, 0))
    weights, found = get_arrays(network), {name: list[float]() for name in _TIMED}
    state = {name: np.zeros_like(array) for name, array in weights.items()}

    def one(how: ObjectiveConfig, site: str, number: int) -> None:
        set_arrays(network, weights)
        pull, seed = pull_for(how, weights, state, {}), derive_seed(plan.seed, "training", site, number)
        train_round(network, cases[site], plan, seed, rounds=(number,), pull=pull)
        state_after(how, state, {}, {n: after - weights[n] for n, after in get_arrays(network).items()}, 1.0)

    for number in range(1, rounds + 1):
        for name, recipe in recipes.items():
            began = time.process_time()
            for site in cases:
                if ROWS[name].contrast is None:
                    one(recipe.plan.method.objective, site, number)
                else:
                    moon.train(site, cases[site], number, weights)
            found[name].append(time.process_time() - began)
    return {name: statistics.median(seconds) for name, seconds in found.items()}


# --- telling ----------------------------------------------------------------------------------------------------


def scores(values: PatientValues) -> dict[str, Any]:
    """AUC of all patients, by site, and the mean over sites; a site where a class is missing has none."""

    def one(rows: Iterable[tuple[float, ...]]) -> float | None:
        each = np.array(list(rows))
        found = auc(each[:, :-1], each[:, -1].astype(np.int64))
        return None if np.isnan(found) else found

    names = dict.fromkeys(site for site, _ in values)
    sites = {name: one(row for (site, _), row in values.items() if site == name) for name in names}
    known = [value for value in sites.values() if value is not None]
    return {"all": one(values.values()), "mean": float(np.mean(known)) if known else None, "by_site": sites}


def _told(found: Iterable[float | None], sign: str = "") -> str:
    known = [value for value in found if value is not None]
    spread = f" ± {np.std(known, ddof=1):.3f}" if len(known) > 1 else ""
    return f"{np.mean(known):{sign}.3f}{spread}" if known else "–"


def table(cells: Sequence[Mapping[str, Any]], times: Mapping[str, float]) -> str:
    """Markdown: a line a row, mean ± deviation over seeds; distances are to FedAvg with the same network, by seed.

    times: row → seconds of a round, measured in turns.
    """
    known = {(cell["row"], cell["seed"]): cell for cell in cells}
    lines = [
        "| row | seeds | AUC, all | against FedAvg | of sources | against FedAvg | validation | s a round | time |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in dict.fromkeys(cell["row"] for cell in cells):
        base = "moon_0_head" if row.endswith("_head") else "fedavg"
        own = [cell for cell in cells if cell["row"] == row]
        pairs = [(cell, known[base, cell["seed"]]) for cell in own if (base, cell["seed"]) in known and row != base]

        def apart(what: str, pairs: Sequence[tuple[Any, Any]] = pairs) -> str:
            return _told((a[what] - b[what] for a, b in pairs if None not in (a[what], b[what])), "+")

        ratio = f"{times[row] / times['fedavg']:.2f}" if row in times else ""
        every, mean, validation = (_told(cell[what] for cell in own) for what in ("all", "mean", "validation"))
        seconds = statistics.median(cell["round_s"] for cell in own)
        lines.append(
            f"| {row} | {len(own)} | {every} | {apart('all')} | {mean} | {apart('mean')} | {validation} "
            f"| {seconds:.2f} | {ratio} |"
        )
    both = [seed for row, seed in known if row == "moon_0" and ("fedavg", seed) in known]
    same = sum(known["moon_0", seed]["sha256"] == known["fedavg", seed]["sha256"] for seed in both)
    return "\n".join([*lines, "", f"moon_0 ends with the product's bits of fedavg under {same} of {len(both)} seeds."])


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what is missing and print the table; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--rows", default=",".join(ROWS), help=f"of {', '.join(ROWS)}")
    parser.add_argument("--optimizer", choices=[*_OPTIMIZERS], default="adam")
    parser.add_argument("--folder", type=Path, default=Path("runs/moon"), help="for results; a killed run goes on here")
    parser.add_argument("--json", type=Path, help="file for all figures")
    given = parser.parse_args(arguments)
    folder, rows = given.folder.absolute() / given.optimizer, given.rows.split(",")
    if unknown := set(rows) - set(ROWS):
        parser.error(f"There is no row {', '.join(sorted(unknown))}.")

    def kept(name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        path = folder / f"{name}.json"
        if not path.is_file():
            write_json(path, make())
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        print(
            name,
            {what: found[what] for what in ("all", "mean", "round_s") if what in found},
            file=sys.stderr,
            flush=True,
        )
        return found

    folder.mkdir(parents=True, exist_ok=True)
    try:
        wanted = [(row, int(seed)) for seed in given.seeds.split(",") for row in rows]
        cells = [kept(f"{row}-{n}", partial(_do, row, given.optimizer, n, folder)) for row, n in wanted]
        times = kept("times", partial(_in_turns, given.optimizer, folder))
    except EucaimError as problem:
        print(problem.for_terminal(), file=sys.stderr, flush=True)
        return 2
    print(table(cells, times))
    if given.json is not None:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        write_json(given.json, {"cells": cells, "times": times})
    return 0


if __name__ == "__main__":
    logging.getLogger("eucaim_fl.site").setLevel(logging.ERROR)  # patients who are set aside, once a cell
    torch.set_num_threads(1)
    sys.exit(main())
