"""Why plain federated averaging swings from round to round on HAM10000's four sources, and what ends it.

    eucaim-fl prepare ham10000 --from FOLDER
    eucaim-fl prepare ham10000 --from FOLDER --split chance
    python experiments/benchmarks/oscillation.py [--seeds 0,1,2] [--rows NAME,…] [--rounds N] [--folder FOLDER]

The first row trains the data, network and size of batches of the recipe `ham10000` as Flower's FedAvg would: batch
normalisation whose statistics are averaged with the weights, Adam with lr 0.003 that begins anew each round, and 40
rounds of 12 steps. Each other row changes what its words say and nothing else. All make equally many optimizer steps,
by the product's own federation, and all are measured after equally many: the sites measure the arriving model on their
validation patients every 12 steps.
`chance…` has the same lesions dealt by chance to sites of the same sizes: neither class shares nor images differ there.

How much a figure swings: over the second half of a run, the mean absolute change from one measurement to the next, and
the largest value less the smallest. Mean probability: what the model says of malignancy, mean over a site's validation
patients (from its score histogram, so to within half a hundredth). Test AUC: of the last model. Figures are means over
seeds, ± their standard deviation. Of the 632 validation patients at ham_molemax four are malignant, and a site leaves
classes of fewer than five out of its figures: it has no validation AUC, and in the pooled one its patients are all
benign. The heads of the tables by site say how many are told of. Test AUCs are of everybody.

Each run is kept in the folder as it ends: called again, the script goes on behind the last. The table is printed, and
written with the curves of all runs to oscillation.json and oscillation.md in the folder. Public data only.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from eucaim_fl.benchmark.measures import measures_of
from eucaim_fl.benchmark.outcome import PatientValues
from eucaim_fl.benchmark.rows import Row
from eucaim_fl.benchmark.store import Store
from eucaim_fl.benchmark.training import Work, train_all
from eucaim_fl.comparison import check_comparable
from eucaim_fl.compose import compose, resolve
from eucaim_fl.durable import exclusive, write_atomically, write_json
from eucaim_fl.errors import CohortError, EucaimError, InterruptedRunError, RecipeError, RunNotFoundError
from eucaim_fl.federation.progress import Listener
from eucaim_fl.records import RoundRecord, SiteMetrics
from eucaim_fl.registry import suggestion
from eucaim_fl.sitefile import load_site_file
from eucaim_fl.tracking.journal import Journal

__all__ = ["ROWS", "curve", "main", "summary", "swing", "tables", "words_of", "works_of"]

_BASE = (
    *("experiment=ham10000", "name=ham10000_oscillation", "tracking=none", "method=fedavg"),
    *("method.personal.local=false", "method.personal.blend=false", "method.personal.choose=false"),
    *("training.optimizer.name=adam", "training.optimizer.lr=0.003", "training.optimizer.momentum=0.9"),
    *("training.optimizer.weight_decay=0.0", "training.optimizer.kept=false", "training.batch_size=32"),
    *("training.schedule.kind=constant", "training.schedule.floor=0.0", "training.schedule.warmup_rounds=0"),
    *("model.args.norm=batch", "model.args.pooled=true", "model.args.centred=true", "federation.quorum=4"),
)
"""The first row, whatever the recipe says of method, optimizer, schedule, network and quorum."""
_LOCAL_STEPS = 12
_FIRST = "fedavg"
_CHANCE = "sites=[ham_chance_a,ham_chance_b,ham_chance_c,ham_chance_d]"
_CLASSES, _GROUP, _KEPT = "training.balance.sampling=classes", "model.args.norm=group", "training.optimizer.kept=true"
_COSINE = "training.schedule.kind=cosine"
_OWN_INPUT = ("model.args.centred=false", "data.standardise=site")
_SGD = ("training.optimizer.name=sgd", "training.optimizer.lr=0.1", "training.optimizer.momentum=0.0")

ROWS: Mapping[str, tuple[str, ...]] = {
    _FIRST: (),
    "classes": (_CLASSES,),
    "site_input": _OWN_INPUT,
    "federation_input": ("model.args.centred=false", "data.standardise=federation"),
    "classes_site_input": (_CLASSES, *_OWN_INPUT),
    "chance": (_CHANCE,),
    "chance_classes": (_CHANCE, _CLASSES),
    "group": (_GROUP,),
    "fedbn": ("method=fedbn",),
    "low_lr": ("training.optimizer.lr=0.0005",),
    "short_rounds": (),
    "no_momentum": ("training.optimizer.momentum=0.0",),
    "cosine": (_COSINE,),
    "kept": (_KEPT,),
    "sgd": _SGD,
    "fedadam": ("method=fedadam", *_SGD),
    "fedyogi": ("method=fedyogi", *_SGD),
    "all": (_CLASSES, *_OWN_INPUT, _GROUP, _KEPT, _COSINE),
    "chance_all": (_CHANCE, _CLASSES, _GROUP, _KEPT, _COSINE),
}
"""Row → what it changes in the first one; `short_rounds` has a third of the steps a round, and thrice the rounds."""
_SHORTER = {"short_rounds": 3}


def words_of(name: str, rounds: int, seed: int) -> tuple[str, ...]:
    """The overrides that make a row's recipe. rounds: of the first row; every row makes as many steps as that."""
    part = _SHORTER.get(name, 1)
    length = (f"rounds={rounds * part}", f"training.local_steps={_LOCAL_STEPS // part}")
    return (*_BASE, *ROWS[name], *length, f"stopping.validate_every={part}", f"seed={seed}")


def works_of(names: Sequence[str], rounds: int, seeds: Sequence[int]) -> list[Work]:
    """The runs of some rows, those of one seed together: the first seed's are complete first.

    Raises CohortError if a cohort is not there, GateError if its data is confidential, RecipeError for unknown rows.
    """
    for name in names:
        if name not in ROWS:
            raise RecipeError(f"There is no row '{name}'.", fix=suggestion(name, list(ROWS)))
    works = []
    for seed in seeds:
        for name in names:
            words = words_of(name, rounds, seed)
            recipe = resolve(compose(words))
            check_comparable(recipe.plan, recipe.site_files)
            for site, path in recipe.site_files.items():
                if not load_site_file(path).cohort_folder().is_dir():
                    raise CohortError(
                        f"The cohort of '{site}' is missing.",
                        fix="Write it: eucaim-fl prepare ham10000 --from FOLDER, and once more with --split chance.",
                    )
            row = Row(name, words)
            works.append(Work(row, recipe.config, recipe.plan, recipe.plan.sha256(), recipe.site_files))
    return works


# --- what is measured -------------------------------------------------------------------------------------------


def _mean_probability(metrics: SiteMetrics) -> float | None:
    """Mean of the probabilities of class 1, by its two score histograms; None if the site sent none."""
    sides = [metrics.sums.get(f"scores_1_{side}", ()) for side in ("negative", "positive")]
    counts = np.sum([np.asarray(side) for side in sides if len(side)], axis=0)
    if not np.size(counts) or not counts.sum():
        return None
    return float(counts @ np.linspace(0, 1, len(counts)) / counts.sum())


def _malignant(metrics: SiteMetrics) -> int:
    """Patients of class 1, by the confusion counts; 0 where the site tells of one class only."""
    return int(sum(metrics.sums.get("confusion", ())[2:]))


def curve(records: Sequence[RoundRecord]) -> list[dict[str, Any]]:
    """What the sites measured on validation patients: an entry for each round in which they did, and the last exchange.

    Each has `after` (rounds trained before), pooled `auc` and `brier`, and `sites`: of each site `auc` (null without
    both classes), `brier`, `mean_probability`, `patients` and `malignant`.
    """
    found = []
    for record in records:
        pooled = record.pooled.get("validation")
        if not pooled:
            continue
        sites = {}
        for site, entries in sorted(record.metrics.items()):
            own = next(entry for entry in entries if entry.split == "validation")
            sites[site] = {
                "auc": own.values.get("auc"),
                "brier": own.values.get("brier"),
                "mean_probability": _mean_probability(own),
                "patients": own.patients,
                "malignant": _malignant(own),
            }
        entry = {"after": record.round - 1, "auc": pooled.get("auc"), "brier": pooled.get("brier"), "sites": sites}
        found.append(entry)
    return found


def swing(values: Sequence[float | None]) -> dict[str, float] | None:
    """`change` and `range` over the second half of a curve: mean |xₖ − xₖ₋₁|, and max − min.

    None if a value of that half is not defined, or it is no more than one.

    >>> swing([9.0, 9.0, 0.5, 0.75, 0.5])
    {'change': 0.25, 'range': 0.25}
    """
    half = [value for value in values[(len(values) - 1) // 2 :] if value is not None]
    if len(half) < max(2, len(values) - (len(values) - 1) // 2):
        return None
    changes = [abs(after - before) for before, after in pairwise(half)]
    return {"change": statistics.fmean(changes), "range": max(half) - min(half)}


def _test_auc(values: PatientValues) -> dict[str, Any]:
    """AUC on all test patients, by site, and the mean of the sites'."""
    measure = measures_of("classification").resampled["auc"]

    def one(site: str | None) -> float:
        rows = np.array([row for (where, _), row in sorted(values.items()) if site in (None, where)])
        return float(measure(rows, np.ones((1, len(rows))))[0])

    by_site = {site: one(site) for site in sorted({site for site, _ in values})}
    return {"all": one(None), "mean": float(np.mean(list(by_site.values()))), "by_site": by_site}


def summary(points: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How much the figures of a curve swing: pooled `auc` and `brier`, and by `sites` these and `mean_probability`."""
    sites = {
        site: {
            key: swing([point["sites"].get(site, {}).get(key) for point in points])
            for key in ("auc", "brier", "mean_probability")
        }
        for site in points[-1]["sites"]
    }
    return {**{key: swing([point[key] for point in points]) for key in ("auc", "brier")}, "sites": sites}


def _result(work: Work, values: PatientValues, seconds: float, store: Store) -> dict[str, Any]:
    run = store.run_of(work.plan)
    if run is None:
        raise RunNotFoundError(
            f"The run of row '{work.row.name}' is not in the folder any more.", fix="Begin with a new folder."
        )
    points = curve(Journal(run).records())
    return {
        "row": work.row.name,
        "seed": work.plan.seed,
        "changes": list(ROWS[work.row.name]),
        "plan_sha256": work.plan.sha256(),
        "seconds": round(seconds, 1),
        "swing": summary(points),
        "test_auc": _test_auc(values),
        "curve": points,
    }


# --- the tables -------------------------------------------------------------------------------------------------


def _told(values: Sequence[float | None], digits: int) -> str:
    known = [value for value in values if value is not None and not math.isnan(value)]
    if not known:
        return "–"
    return f"{statistics.fmean(known):.{digits}f}" + (
        f" ± {statistics.stdev(known):.{digits}f}" if len(known) > 1 else ""
    )


def _of(found: Mapping[str, float] | None, key: str) -> float | None:
    return None if found is None else found[key]


def _over_sites(result: Mapping[str, Any], figure: str) -> float | None:
    """Mean over the sites of a figure's change from one measurement to the next."""
    known = [own[figure]["change"] for own in result["swing"]["sites"].values() if own[figure] is not None]
    return statistics.fmean(known) if known else None


_COLUMNS: Mapping[str, tuple[Callable[[Mapping[str, Any]], float | None], int]] = {
    "AUC, change": (lambda r: _of(r["swing"]["auc"], "change"), 4),
    "AUC, range": (lambda r: _of(r["swing"]["auc"], "range"), 3),
    "Brier, change": (lambda r: _of(r["swing"]["brier"], "change"), 4),
    "sites' AUC, change": (lambda r: _over_sites(r, "auc"), 4),
    "sites' Brier, change": (lambda r: _over_sites(r, "brier"), 4),
    "sites' mean probability, change": (lambda r: _over_sites(r, "mean_probability"), 4),
    "test AUC, all": (lambda r: r["test_auc"]["all"], 3),
    "test AUC, mean of sites": (lambda r: r["test_auc"]["mean"], 3),
}
"""Head → the figure of one run, and its digits."""


def tables(results: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: a table of all rows, then for each set of sites one of every row by site."""
    names = list(dict.fromkeys(r["row"] for r in results))
    own = {name: [r for r in results if r["row"] == name] for name in names}
    first = [_of(r["swing"]["auc"], "change") for r in own.get(_FIRST, [])]
    base = statistics.fmean([value for value in first if value is not None]) if any(first) else math.nan
    heads = list(_COLUMNS)
    lines = [
        f"| row | seeds | {heads[0]} | against {_FIRST} | {' | '.join(heads[1:])} |",
        f"|---|---|---|---|{'---|' * len(heads[1:])}",
    ]
    for name in names:
        cells = [_told([take(r) for r in own[name]], digits) for take, digits in _COLUMNS.values()]
        known = [v for v in (_of(r["swing"]["auc"], "change") for r in own[name]) if v is not None]
        ratio = f"{statistics.fmean(known) / base:.2f} ×" if known and not math.isnan(base) else "–"
        lines.append(f"| {name} | {len(own[name])} | {cells[0]} | {ratio} | {' | '.join(cells[1:])} |")
    for sites in dict.fromkeys(tuple(r["curve"][-1]["sites"]) for r in results):
        lines += ["", *_by_site(sites, [r for r in results if tuple(r["curve"][-1]["sites"]) == sites])]
    return "\n".join(lines)


def _by_site(sites: Sequence[str], results: Sequence[Mapping[str, Any]]) -> list[str]:
    """The lines of a table of each site's change of AUC and Brier score, and its test AUC."""
    counted = results[0]["curve"][-1]["sites"]
    heads = [f"{site} ({counted[site]['malignant']} of {counted[site]['patients']} malignant)" for site in sites]
    lines = [
        "By site: change of AUC; change of Brier score; test AUC.",
        "",
        f"| row | {' | '.join(heads)} |",
        f"|---|{'---|' * len(sites)}",
    ]
    for name in dict.fromkeys(r["row"] for r in results):
        own = [r for r in results if r["row"] == name]
        cells = []
        for site in sites:
            changes = [
                _told([_of(r["swing"]["sites"][site][figure], "change") for r in own], 4) for figure in ("auc", "brier")
            ]
            cells.append("; ".join([*changes, _told([r["test_auc"]["by_site"][site] for r in own], 3)]))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what is missing, print the tables and write everything; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--rows", default=",".join(ROWS), help="names, separated by commas; default: all")
    parser.add_argument("--rounds", type=int, default=40, help="of the first row, 12 steps each")
    parser.add_argument("--folder", type=Path, default=Path("runs/oscillation"))
    given = parser.parse_args(arguments)
    folder: Path = given.folder.absolute()
    began = time.monotonic()

    def tell(line: str) -> None:
        print(f"{time.monotonic() - began:6.0f} s  {line}", file=sys.stderr, flush=True)

    try:
        works = works_of(given.rows.split(","), given.rounds, [int(seed) for seed in given.seeds.split(",")])
        store = Store(folder)
        workers = min(len(os.sched_getaffinity(0)), len(works[0].site_files))
        results = []
        folder.mkdir(parents=True, exist_ok=True)
        with exclusive(folder):
            for work, outcome in zip(works, train_all(works, folder, workers, tell, Listener), strict=True):
                results.append(_result(work, outcome.values, outcome.cost.seconds, store))
            text = tables(results)
            write_json(folder / "oscillation.json", {"rounds": given.rounds, "runs": results})
            write_atomically(folder / "oscillation.md", f"{text}\n".encode())
    except InterruptedRunError:
        tell("stopped; the same command goes on from here")
        return 2
    except EucaimError as problem:
        print(problem.for_terminal(), file=sys.stderr, flush=True)
        return 2
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
