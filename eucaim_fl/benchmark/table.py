"""The table: every model on the same held-out patients of every source, with intervals and paired differences.

The figure of a model is the mean over seeds of its metric. Intervals (95 %) come from resampling patients within their
sites, and the same resamples serve all models and seeds: a patient that was held out under several seeds is drawn, or
not, under all of them. So intervals tell of other patients, not of another training; `by_seed` and `sd` tell of that.
Scopes: each site; `all` patients together; the `mean` over the sites; `honest`, all but those of sites that some row
poisons. Which local model is the best at a site is chosen by the very figures that are compared, in its favour.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eucaim_fl.benchmark.measures import Measure, Measures, measures_of, over_seeds
from eucaim_fl.benchmark.outcome import Outcome, PatientValues
from eucaim_fl.errors import RecipeError
from eucaim_fl.seeding import generator
from eucaim_fl.validation.intervals import percentile_limits, resample_counts

__all__ = ["LOCAL_MEAN", "LOCAL_OWN", "POOLED", "make_table"]

FloatArray = NDArray[np.float64]
Statistics = dict[str, FloatArray]
"""Scope → the value itself, then those of the resamples."""

LOCAL_MEAN, LOCAL_OWN, POOLED = "local_mean", "local_own", "pooled"
"""The mean of the local models' figures; each site's patients under their own site's model; all data in one place."""
_SAMPLES = 2000


@dataclass(frozen=True)
class _Patients:
    """Who is compared: one order for all models. weights: a first row of ones, then one row a resample."""

    keys: list[tuple[str, str]]
    seeds: list[int]
    weights: FloatArray
    scopes: Mapping[str, NDArray[np.bool_]]
    undefined: int

    @property
    def sites(self) -> list[str]:
        return sorted({site for site, _ in self.keys})


def make_table(outcomes: Sequence[Outcome], task: str, seed: int, samples: int = _SAMPLES) -> dict[str, Any]:
    """The content of benchmark.json, as far as it follows from finished trainings.

    outcomes: of every model under every seed. seed: of the resampling. A patient whose value is undefined under any
    model (an empty mask on both sides) is left out for all under that seed, and counted in `undefined`.
    Returns metrics, lower_is_better, seeds, sites, patients (scope → number), undefined, order (of the models), models
    (name → row, trained, cost, values: metric → scope → estimate, low, high, by_seed, sd; points: metric → scope →
    number), differences (against the pooled model, and at each site against the best of all models that were trained on
    one site) and poisoned (against the same plan without the bad site). None stands for what is not defined.
    Raises RecipeError if models were not tested on the same patients, or the task can't be compared.
    """
    measures = measures_of(task)
    runs = _by_model(outcomes)
    people = _patients(runs, outcomes, seed, samples)
    rows = {name: _rows(by_seed, people) for name, by_seed in runs.items()}
    statistics = {
        name: {metric: _statistics(measure, seeds, people) for metric, measure in measures.resampled.items()}
        for name, seeds in rows.items()
    }
    first = {o.name: o for o in reversed(outcomes)}
    locals_ = [name for name in runs if name in first and first[name].trained == "local"]
    plain = [name for name in locals_ if name.startswith("local:")]
    models = {
        name: _model(first.get(name), [o for o in outcomes if o.name == name], statistics[name], measures)
        | {"points": _points(rows[name], measures, people)}
        for name in runs
    }
    for name, model in models.items():
        _add_seeds(model, rows[name], measures, people)
    if plain:
        statistics[LOCAL_MEAN] = {
            metric: {s: np.mean([statistics[name][metric][s] for name in plain], axis=0) for s in _scopes(people)}
            for metric in measures.resampled
        }
        mean = _model(None, [], statistics[LOCAL_MEAN], measures) | {"points": {}}
        models = {name: models[name] for name in (*plain, LOCAL_OWN)} | {LOCAL_MEAN: mean} | models
    return {
        "task": task,
        "metrics": [*measures.resampled],
        "points": [*measures.points],
        "lower_is_better": sorted(measures.lower),
        "seeds": people.seeds,
        "sites": people.sites,
        "patients": {scope: int(mask.sum()) for scope, mask in people.scopes.items()},
        "undefined": people.undefined,
        "order": [*models],
        "models": models,
        "differences": _differences(statistics, locals_, measures, people),
        "poisoned": _poisoned(first, statistics, measures),
    }


def _by_model(outcomes: Sequence[Outcome]) -> dict[str, dict[int, PatientValues]]:
    """Model → seed → values; and, where all sites have local models, each site's patients under their own."""
    runs: dict[str, dict[int, PatientValues]] = {}
    for one in outcomes:
        runs.setdefault(one.name, {})[one.seed] = dict(one.values)
    own: dict[int, PatientValues] = {}
    for name, by_seed in runs.items():
        if name.startswith("local:"):
            for seed, values in by_seed.items():
                own.setdefault(seed, {}).update({k: v for k, v in values.items() if k[0] == name[len("local:") :]})
    if not own:
        return runs
    alone = {name: by_seed for name, by_seed in runs.items() if name.startswith("local:")}
    return {**alone, LOCAL_OWN: own, **{name: by_seed for name, by_seed in runs.items() if name not in alone}}


def _patients(
    runs: Mapping[str, dict[int, PatientValues]], outcomes: Sequence[Outcome], seed: int, samples: int
) -> _Patients:
    seeds = sorted({one.seed for one in outcomes})
    for number in seeds:
        tested = {frozenset(by_seed.get(number, {})) for by_seed in runs.values()}
        if len(tested) > 1:
            raise RecipeError(
                "Models of the benchmark were not tested on the same patients.",
                fix="Start a new benchmark: the cohorts changed since this one began.",
            )
    keys = sorted({key for by_seed in runs.values() for values in by_seed.values() for key in values})
    undefined = {
        (number, key)
        for by_seed in runs.values()
        for number, values in by_seed.items()
        for key, numbers in values.items()
        if any(math.isnan(n) for n in numbers)
    }
    for by_seed in runs.values():
        for number, key in undefined:
            by_seed[number][key] = tuple(math.nan for _ in by_seed[number][key])
    sites = np.array([site for site, _ in keys])
    bad = {one.poison.site for one in outcomes if one.poison is not None}
    scopes = {site: sites == site for site in sorted(set(sites))}
    scopes["all"] = np.ones(len(keys), bool)
    if bad:
        scopes["honest"] = ~np.isin(sites, sorted(bad))
    drawn = resample_counts([site for site, _ in keys], samples, generator(seed, "bootstrap", "benchmark"))
    weights = np.concatenate([np.ones((1, len(keys))), drawn])
    return _Patients(keys, seeds, weights, scopes, len(undefined))


def _rows(by_seed: Mapping[int, PatientValues], people: _Patients) -> tuple[FloatArray, ...]:
    """One array a seed: values of all patients, NaN for those who were not held out."""
    width = len(next(iter(next(iter(by_seed.values())).values())))
    rows = []
    for seed in people.seeds:
        values, nothing = by_seed.get(seed, {}), (math.nan,) * width
        rows.append(np.array([values.get(key, nothing) for key in people.keys], dtype=np.float64))
    return tuple(rows)


def _scopes(people: _Patients) -> list[str]:
    return [*people.scopes, "mean"]


def _statistics(measure: Measure, seeds: Sequence[FloatArray], people: _Patients) -> Statistics:
    found = {
        scope: over_seeds(measure, [values[mask] for values in seeds], people.weights[:, mask])
        for scope, mask in people.scopes.items()
    }
    found["mean"] = np.mean([found[site] for site in people.sites], axis=0)
    return found


def _model(
    known: Outcome | None,
    outcomes: Sequence[Outcome],
    statistics: Mapping[str, Statistics],
    measures: Measures,
) -> dict[str, Any]:
    cost = None
    if known is not None:
        cost = {
            key: float(np.mean([asdict(o.cost)[key] for o in outcomes]))
            for key in ("steps", "extra_steps", "seconds", "bytes_up", "bytes_down")
        }
    return {
        "row": None if known is None else known.row,
        "trained": None if known is None else known.trained,
        "poison": None if known is None or known.poison is None else asdict(known.poison),
        "cost": cost,
        "plans": {str(o.seed): o.plan_sha256 for o in outcomes},
        "values": {
            metric: {scope: _interval(values) for scope, values in statistics[metric].items()}
            for metric in measures.resampled
        },
    }


def _interval(values: FloatArray) -> dict[str, Any]:
    low, high = percentile_limits(values[1:])
    return {"estimate": _number(values[0]), "low": _number(low), "high": _number(high)}


def _add_seeds(model: dict[str, Any], rows: Sequence[FloatArray], measures: Measures, people: _Patients) -> None:
    """Each seed's own value of every metric, and their standard deviation (with n − 1), at every scope."""
    for metric, measure in measures.resampled.items():
        each = {
            scope: [over_seeds(measure, [values[mask]], np.ones((1, int(mask.sum()))))[0] for values in rows]
            for scope, mask in people.scopes.items()
        }
        each["mean"] = [float(np.mean(values)) for values in zip(*(each[site] for site in people.sites), strict=True)]
        for scope, values in each.items():
            known = [value for value in values if not math.isnan(value)]
            entry = model["values"][metric][scope]
            entry["by_seed"] = {str(seed): _number(value) for seed, value in zip(people.seeds, values, strict=True)}
            entry["sd"] = float(np.std(known, ddof=1)) if len(known) > 1 else None


def _points(rows: Sequence[FloatArray], measures: Measures, people: _Patients) -> dict[str, dict[str, float | None]]:
    """Mean over seeds of the metrics that get no interval."""
    found: dict[str, dict[str, float | None]] = {}
    for metric, point in measures.points.items():
        found[metric] = {}
        for scope, mask in people.scopes.items():
            here = [values[mask] for values in rows]
            defined = [values[~np.isnan(values).any(axis=1)] for values in here]
            each = [point(values) for values in defined if len(values)]
            known = [value for value in each if not math.isnan(value)]
            found[metric][scope] = float(np.mean(known)) if known else None
    return found


def _differences(
    statistics: Mapping[str, Mapping[str, Statistics]],
    locals_: Sequence[str],
    measures: Measures,
    people: _Patients,
) -> list[dict[str, Any]]:
    """Every model minus the pooled one, and at each site minus the best there of those trained on one site; paired."""
    found = []
    for name, by_metric in statistics.items():
        if name in (*locals_, LOCAL_MEAN, LOCAL_OWN, POOLED):
            continue
        for metric in measures.resampled:
            if POOLED in statistics:
                for scope in _scopes(people):
                    other = statistics[POOLED][metric][scope]
                    difference = _interval(by_metric[metric][scope] - other)
                    found.append({"model": name, "metric": metric, "scope": scope, "against": POOLED, **difference})
            for site in people.sites if locals_ else []:
                best = _best([(local, statistics[local][metric][site]) for local in locals_], metric in measures.lower)
                if best is not None:
                    difference = _interval(by_metric[metric][site] - statistics[best][metric][site])
                    found.append({"model": name, "metric": metric, "scope": site, "against": best, **difference})
    return found


def _best(candidates: Sequence[tuple[str, FloatArray]], lower: bool) -> str | None:
    known = [(float(values[0]), name) for name, values in candidates if not math.isnan(values[0])]
    return (min if lower else max)(known)[1] if known else None


def _poisoned(
    first: Mapping[str, Outcome], statistics: Mapping[str, Mapping[str, Statistics]], measures: Measures
) -> list[dict[str, Any]]:
    """Every poisoned model minus the same row's without the bad site, on all patients and on the honest sites'."""
    found = []
    for name, one in first.items():
        clean = next((o for o in first.values() if o.poison is None and _twins(o, one)), None)
        if one.poison is None or clean is None:
            continue
        for metric in measures.resampled:
            for scope in ("all", "honest"):
                difference = _interval(statistics[name][metric][scope] - statistics[clean.name][metric][scope])
                entry = {"model": name, "metric": metric, "scope": scope, "against": clean.name}
                found.append({**entry, **asdict(one.poison), **difference})
    return found


def _twins(one: Outcome, other: Outcome) -> bool:
    """Whether two outcomes are of the same plan and the same kind of model, a bad site apart."""
    kinds = [o.name.removeprefix(o.row) for o in (one, other)]
    return (one.clean_sha256, one.seed, kinds[0]) == (other.clean_sha256, other.seed, kinds[1])


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
