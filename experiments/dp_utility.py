"""What privacy costs in quality, on real data: AUC or Dice at epsilon 1, 3, 8 and without privacy, by site and pooled.

    python experiments/dp_utility.py [--data NAME]… [--epsilon E]… [--seeds 0,1,2] [--method NAME]… [--folder FOLDER]

Needs `eucaim-fl prepare ham10000 --from FOLDER` and `eucaim-fl prepare lidc_nodules --from FOLDER`.

plain    the recipe NAME without privacy.
ours     the recipe NAME_private, through the federation of this machine, as `eucaim-fl train` runs it.
opacus   the recipe NAME with Opacus as its tutorials have it: `make_private_with_epsilon` at each site, one example a
         patient and step, the recipe's batch size, clipping norm 1; batch normalisation replaced by Opacus' own fix.

All train from the same initial weights for a seed, on the same training patients, for the rounds of their recipe; all
are tested on the same held-out patients. The split is that of private plans, where each patient's place follows from
that patient alone. Each result is a file in the folder; what is there is not done again. The table is printed at the
end: mean ± standard deviation over seeds. Public data only: every model is tested in this process.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from eucaim_fl.arrays import ArrayFile, Arrays
from eucaim_fl.cohorts.cohort import PreparedCase, open_cohort
from eucaim_fl.comparison import PatientValues, held_out
from eucaim_fl.compose import Recipe, compose, resolve
from eucaim_fl.durable import write_json
from eucaim_fl.errors import EucaimError, GateError
from eucaim_fl.federation.run import create_run, execute
from eucaim_fl.models.networks import get_arrays, set_arrays
from eucaim_fl.plan import FederationPlan
from eucaim_fl.seeding import derive_seed, generator
from eucaim_fl.site.node import initial_arrays, network_for
from eucaim_fl.sitefile import load_site_file
from eucaim_fl.strategies.server_optimizer import apply
from eucaim_fl.tasks import for_task
from eucaim_fl.training.augmentation import augmenter
from eucaim_fl.training.loop import train_round
from eucaim_fl.training.objective import pull_for
from eucaim_fl.validation.metrics import auc

__all__ = ["DATA", "Cell", "cells", "federated", "main", "scores", "table"]

DATA: Mapping[str, float] = {"ham10000": 1e-4, "lidc_malignancy": 1e-2, "lidc_nodules": 1e-2}
"""Recipe → delta, below 1/patients of its largest site."""
PLAIN: Mapping[str, str] = {"ham10000": "ham10000_plain", "lidc_nodules": "lidc_nodules_plain"}
"""The recipe without privacy, where it has another name."""
METHODS = ("plain", "ours", "opacus")

LocalTraining = Callable[[nn.Module, int], None]
"""Trains a network in place for one round, whose number is given."""


@dataclass(frozen=True)
class Cell:
    """One model to train and test. epsilon: None without privacy."""

    data: str
    method: str
    epsilon: float | None
    seed: int

    def path(self, folder: Path) -> Path:
        """Where its result lies."""
        spent = "none" if self.epsilon is None else f"{self.epsilon:g}"
        return folder / f"{self.data}-{self.method}-{spent}-{self.seed}.json"


def cells(
    data: Sequence[str], methods: Sequence[str], epsilons: Sequence[float], seeds: Sequence[int]
) -> list[Cell]:  # fmt: skip
    """All cells, those of one seed together: the first seed's are complete first."""
    return [
        Cell(name, method, epsilon, seed)
        for seed in seeds
        for name in data
        for method in methods
        for epsilon in ((None,) if method == "plain" else epsilons)
    ]


# --- training ---------------------------------------------------------------------------------------------------


def federated(plan: FederationPlan, sites: Mapping[str, tuple[int, LocalTraining]]) -> Arrays:
    """The weights after the plan's rounds of weighted means and its server optimizer.

    sites: name → training patients, and what trains there. Every site takes part in every round.
    """
    specs, weights = initial_arrays(plan)
    trainable = {spec.name for spec in specs if spec.trainable}
    total = sum(patients for patients, _ in sites.values())
    network, state = network_for(plan, 0), dict[str, Any]()
    for number in range(1, plan.rounds + 1):
        common = {name: np.zeros(array.shape, np.float64) for name, array in weights.items()}
        for _, (patients, train) in sorted(sites.items()):
            set_arrays(network, weights)
            train(network, number)
            for name, array in get_arrays(network).items():
                common[name] += patients / total * (array.astype(np.float64) - weights[name])
        update = [(name, change.astype(weights[name].dtype)) for name, change in common.items()]
        weights, state = apply(plan.method.server_optimizer, weights, update, state, trainable.__contains__)
    return weights


def _plain(plan: FederationPlan, site: str, cases: Sequence[PreparedCase]) -> LocalTraining:
    def train(network: nn.Module, number: int) -> None:
        pull = pull_for(plan.method.objective, get_arrays(network), {}, {})
        train_round(network, cases, plan, derive_seed(plan.seed, "training", site, number), rounds=(number,), pull=pull)

    return train


class _Examples(torch.utils.data.Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """One example a patient, changed at random as the recipe says; a patient with several images gives the first."""

    def __init__(self, cases: Sequence[PreparedCase], plan: FederationPlan, site: str) -> None:
        self._cases = list({case.patient: case for case in reversed(cases)}.values())
        self._plan, self._task = plan, for_task(plan.task)
        self._place = generator(plan.seed, "opacus", site)
        self._change = augmenter(
            plan.training.augmentation, plan.task.spatial_dims, derive_seed(plan.seed, "opacus", site)
        )

    def __len__(self) -> int:
        return len(self._cases)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        example = self._task.training_example(self._cases[index], self._plan, self._place)
        image, target = self._change(example)
        return torch.from_numpy(image), torch.from_numpy(np.asarray(target))


class _Opacus:
    """A site that trains as the tutorials of Opacus do, with one engine for all rounds."""

    def __init__(self, plan: FederationPlan, site: str, cases: Sequence[PreparedCase], epsilon: float) -> None:
        from opacus import PrivacyEngine
        from opacus.validators import ModuleValidator

        torch.manual_seed(derive_seed(plan.seed, "opacus", site) % 2**63)
        examples = _Examples(cases, plan, site)
        loader = torch.utils.data.DataLoader(examples, batch_size=plan.training.batch_size)
        self._plan, self._measure = plan, for_task(plan.task).loss(plan.training)
        self._own = ModuleValidator.fix(network_for(plan, 0))
        optimizer = plan.training.optimizer
        made: torch.optim.Optimizer = (
            torch.optim.SGD(self._own.parameters(), lr=optimizer.lr, momentum=optimizer.momentum)
            if optimizer.name == "sgd"
            else torch.optim.Adam(self._own.parameters(), lr=optimizer.lr)
        )
        steps = plan.rounds * (plan.training.local_steps or 1)
        self._delta = float(plan.privacy.delta or 0)
        self._engine = PrivacyEngine()
        self._network, self._optimizer, self._loader = self._engine.make_private_with_epsilon(
            module=self._own, optimizer=made, data_loader=loader, target_epsilon=epsilon, target_delta=self._delta,
            epochs=steps / len(loader), max_grad_norm=1.0,
        )  # fmt: skip
        self._batches = iter(self._loader)

    def _batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        while (found := next(self._batches, None)) is None:
            self._batches = iter(self._loader)
        return found[0], found[1]

    def __call__(self, network: nn.Module, number: int) -> None:
        self._own.load_state_dict(network.state_dict())
        self._network.train()
        for _ in range(self._plan.training.local_steps or 1):
            images, targets = self._batch()
            self._optimizer.zero_grad()
            if len(images):
                self._measure(self._network(images), targets).backward()
                self._optimizer.step()
        network.load_state_dict(self._own.state_dict())

    def spent(self) -> float:
        """Epsilon by Opacus' own accountant."""
        return float(self._engine.get_epsilon(self._delta))


def _opened(recipe: Recipe) -> Recipe:
    """The recipe itself. Raises GateError if a site's data may not be looked at from outside."""
    for site, path in recipe.site_files.items():
        if load_site_file(path).release.data_is == "confidential":
            raise GateError(f"The data of site '{site}' is confidential.", fix="Measure on public or synthetic data.")
    return recipe


def _baseline(cell: Cell) -> Recipe:
    """The recipe without privacy; its plan names some, so that the split is that of private plans."""
    return _opened(resolve(
        compose([
            f"experiment={PLAIN.get(cell.data, cell.data)}", f"seed={cell.seed}", "privacy=patient_dp",
            f"privacy.delta={DATA[cell.data]}",
        ])
    ))  # fmt: skip


def _train(cell: Cell, folder: Path) -> tuple[Recipe, Arrays, float | None]:
    """The recipe, the weights and what they cost."""
    if cell.method == "ours":
        recipe = _opened(resolve(
            compose([
                f"experiment={cell.data}_private", f"seed={cell.seed}", f"privacy.target_epsilon={cell.epsilon}",
                "++privacy.secure=false", "tracking=none", f"runs_dir={folder / 'runs'}",
            ])
        ))  # fmt: skip
        run = create_run(recipe.config, recipe.plan, recipe.site_files)
        result, _ = execute(run, recipe.config, recipe.site_files)
        return recipe, ArrayFile(run / "models" / "last.safetensors").load(), float(result["privacy"]["epsilon"])
    recipe = _baseline(cell)
    plan, sites, engines = recipe.plan, dict[str, tuple[int, LocalTraining]](), list[_Opacus]()
    for site, path in recipe.site_files.items():
        cohort = open_cohort(load_site_file(path), plan)
        cases = cohort.cases("train")
        if cell.method == "plain" or cell.epsilon is None:
            sites[site] = cohort.patients("train"), _plain(plan, site, cases)
        else:
            engines.append(_Opacus(plan, site, cases, cell.epsilon))
            sites[site] = cohort.patients("train"), engines[-1]
    weights = federated(plan, sites)
    return recipe, weights, max((engine.spent() for engine in engines), default=None)


# --- testing and telling ----------------------------------------------------------------------------------------


def scores(values: PatientValues, task: str) -> dict[str, Any]:
    """Mean Dice of a segmentation, or AUC, pooled and by site; null where it is undefined. Patients without a Dice
    don't count."""
    sites = sorted({site for site, _ in values})

    def one(rows: Sequence[tuple[float, ...]]) -> float | None:
        kept = np.array([row for row in rows if not np.isnan(row).any()])
        if not len(kept):
            return None
        if task == "segmentation":
            return float(kept[:, 0].mean())
        value = auc(kept[:, :-1], kept[:, -1].astype(np.int64))
        return None if np.isnan(value) else value

    return {
        "pooled": one(list(values.values())),
        "by_site": {site: one([row for (where, _), row in values.items() if where == site]) for site in sites},
        "patients": {site: sum(where == site for where, _ in values) for site in sites},
    }


def _told(found: Sequence[float | None]) -> str:
    known = [value for value in found if value is not None]
    if not known:
        return "–"
    return f"{np.mean(known):.3f}" + (f" ± {np.std(known, ddof=1):.3f}" if len(known) > 1 else "")


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: for each data set a row a method and epsilon, mean ± deviation over seeds, and the change to `plain`.

    The change is the mean over the seeds that both have.
    """
    lines: list[str] = []
    for data in dict.fromkeys(r["data"] for r in results):
        here = [r for r in results if r["data"] == data]
        sites = sorted({site for r in here for site in r["by_site"]})
        plain = {r["seed"]: r["pooled"] for r in here if r["method"] == "plain"}
        lines += [
            f"### {data}",
            f"| method | epsilon | seeds | pooled | against plain | {' | '.join(sites)} |",
            f"|---|---|---|---|---|{'---|' * len(sites)}",
        ]
        for method, epsilon in dict.fromkeys((r["method"], r["epsilon"]) for r in here):
            own = [r for r in here if (r["method"], r["epsilon"]) == (method, epsilon)]
            pairs = [r["pooled"] - plain[r["seed"]] for r in own if r["seed"] in plain and r["pooled"] is not None]
            change = f"{np.mean(pairs):+.3f}" if pairs and method != "plain" else ""
            by_site = " | ".join(_told([r["by_site"].get(site) for r in own]) for site in sites)
            shown = "–" if epsilon is None else f"{epsilon:g}"
            pooled = _told([r["pooled"] for r in own])
            lines.append(f"| {method} | {shown} | {len(own)} | {pooled} | {change} | {by_site} |")
        lines.append("")
    return "\n".join(lines)


def _do(cell: Cell, folder: Path) -> dict[str, Any]:
    began = time.monotonic()
    recipe, weights, spent = _train(cell, folder)
    found = {
        "data": cell.data, "method": cell.method, "epsilon": cell.epsilon, "seed": cell.seed, "spent": spent,
        "delta": recipe.plan.privacy.delta, "seconds": round(time.monotonic() - began, 1),
        **scores(held_out(recipe.plan, recipe.site_files, weights), recipe.plan.task.name),
    }  # fmt: skip
    write_json(cell.path(folder), found)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what is missing and print the table; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", action="append", choices=tuple(DATA))
    parser.add_argument("--epsilon", action="append", type=float)
    parser.add_argument("--method", action="append", choices=METHODS)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--folder", type=Path, default=Path("runs/dp_utility"))
    parser.add_argument("--table", action="store_true", help="Only print the table of what is there.")
    given = parser.parse_args(arguments)
    folder: Path = given.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    seeds = [int(seed) for seed in given.seeds.split(",")]
    wanted = cells(given.data or tuple(DATA), given.method or METHODS, given.epsilon or (8.0, 3.0, 1.0), seeds)
    results = []
    try:
        for cell in wanted:
            path = cell.path(folder)
            if not path.is_file() and given.table:
                continue
            found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else _do(cell, folder)
            results.append(found)
            print(path.stem, found["pooled"], found["by_site"], file=sys.stderr, flush=True)
    except EucaimError as problem:
        print(problem.for_terminal(), file=sys.stderr, flush=True)
        return 2
    print(table(results))
    return 0


if __name__ == "__main__":
    warnings.filterwarnings("ignore", module="opacus|torch")
    logging.getLogger("eucaim_fl.site").setLevel(logging.ERROR)  # patients who are set aside, once a cell
    torch.set_num_threads(1)
    sys.exit(main())
