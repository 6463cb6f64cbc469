"""All trainings of a benchmark: those in one place side by side, the federated ones after each other."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from eucaim_fl.arrays import ArrayFile, Arrays, arrays_sha256
from eucaim_fl.benchmark.outcome import Cost, Outcome, PatientValues, named
from eucaim_fl.benchmark.rows import Row
from eucaim_fl.benchmark.store import Store
from eucaim_fl.config import ExperimentConfig
from eucaim_fl.errors import WorkerError
from eucaim_fl.federation.flower_baseline import train_with_flower
from eucaim_fl.federation.local_grid import CLIENT_APP
from eucaim_fl.federation.poison import Poison
from eucaim_fl.federation.processes import call, end_calls, warm_up
from eucaim_fl.federation.progress import Listener
from eucaim_fl.federation.run import create_run, execute
from eucaim_fl.plan import FederationPlan
from eucaim_fl.tracking.journal import Journal

__all__ = ["Work", "train_all"]

Tell = Callable[[str], object]
_POISONED = "eucaim_fl.federation.poisoned_app"
"""By name: it loads torch, which this process does without."""


@dataclass(frozen=True)
class Work:
    """One row under one seed. clean_sha256: the plan's, were no site bad. site_files: by name, in canonical order."""

    row: Row
    config: ExperimentConfig
    plan: FederationPlan
    clean_sha256: str
    site_files: Mapping[str, Path]

    def how(self, name: str) -> tuple[str, ...]:
        """What tells this training from others of the same plan."""
        return self.row.trained, name, "" if self.row.poison is None else str(self.row.poison)

    def steps(self) -> int:
        """Optimizer steps of a model that all rounds have trained."""
        return self.plan.rounds * (self.plan.training.local_steps or 0)

    def outcome(self, name: str, digest: str, cost: Cost, values: PatientValues) -> Outcome:
        """The outcome of one of its models."""
        return Outcome(
            name,
            self.row.name,
            self.row.trained,
            self.plan.seed,
            self.plan.sha256(),
            self.clean_sha256,
            digest,
            cost,
            values,
            self.row.poison,
        )


def train_all(
    works: Sequence[Work], folder: Path, workers: int, tell: Tell, listener: Callable[[], Listener]
) -> list[Outcome]:
    """Train and test everything that is not finished yet, and return the outcomes of all.

    folder: of the benchmark; each training is kept there as it ends. workers: processes at a time. tell: called with a
    line for each training. listener: makes who hears of a federated run's rounds.
    Raises what a training raises; what was finished before is kept.
    """
    warm_up()
    store = Store(folder)
    found = _in_one_place([w for w in works if w.row.trained in ("local", "pooled")], store, workers, tell)
    for work in works:
        if work.row.trained in ("local", "pooled"):
            continue
        name = work.row.name
        outcomes = store.finished(name, work.plan, work.how(name))
        if outcomes is None:
            tell(f"seed {work.plan.seed}: {name}")
            started = time.monotonic()
            train = _with_flower if work.row.trained == "flower" else _federated
            outcomes, arrays = train(work, store, workers, listener)
            store.keep(name, work.plan, work.how(name), outcomes, arrays)
            tell(f"seed {work.plan.seed}: {name} done in {time.monotonic() - started:.0f} s")
        found += outcomes
    return found


def _in_one_place(works: Sequence[Work], store: Store, workers: int, tell: Tell) -> list[Outcome]:
    jobs: list[tuple[Work, str, tuple[str, ...]]] = []
    for work in works:
        sites = tuple(work.site_files)
        if work.row.trained == "pooled":
            jobs.append((work, work.row.name, sites))
        else:
            jobs += [(work, f"{work.row.name}:{site}", (site,)) for site in sites]

    def one(job: tuple[Work, str, tuple[str, ...]]) -> Outcome:
        work, name, sites = job
        known = store.finished(name, work.plan, work.how(name))
        if known is not None:
            return known[0]
        files = dict(work.site_files)
        arrays, values, seconds = call("eucaim_fl.benchmark.worker:alone", work.plan, sites, files, name)
        outcome = work.outcome(name, arrays_sha256(arrays), Cost(work.steps(), 0, seconds), values)
        store.keep(name, work.plan, work.how(name), [outcome], arrays)
        tell(f"seed {work.plan.seed}: {name} done, training {seconds:.0f} s")
        return outcome

    pool = ThreadPoolExecutor(workers)
    try:
        return list(pool.map(one, jobs))
    except BaseException:  # Ctrl-C too: nobody waits for trainings whose result is not wanted any more
        pool.shutdown(wait=False, cancel_futures=True)
        end_calls()
        raise
    finally:
        pool.shutdown()


def _tested(work: Work, arrays: Arrays) -> PatientValues:
    values: PatientValues = call("eucaim_fl.comparison:held_out", work.plan, dict(work.site_files), arrays)
    return values


def _with_flower(
    work: Work, store: Store, workers: int, _listener: Callable[[], Listener]
) -> tuple[list[Outcome], Arrays]:
    store.runs.mkdir(parents=True, exist_ok=True)
    done = train_with_flower(work.plan, work.site_files, workers, store.runs / "flower.log")
    cost = Cost(work.steps(), 0, done.seconds, done.bytes_up, done.bytes_down)
    outcome = work.outcome(work.row.name, arrays_sha256(done.arrays), cost, _tested(work, done.arrays))
    return [outcome], done.arrays


def _federated(
    work: Work, store: Store, workers: int, listener: Callable[[], Listener]
) -> tuple[list[Outcome], Arrays]:
    config = work.config.model_copy(
        update={
            "runs_dir": store.runs,
            "federation": work.config.federation.model_copy(update={"workers": workers}),
        }
    )
    run = store.run_of(work.plan) or create_run(config, work.plan, work.site_files)
    heard = listener()
    try:
        result, _ = execute(run, config, work.site_files, heard, client_app=_app(work.row.poison))
    finally:
        close = getattr(heard, "close", None)
        if close is not None:
            close()
    arrays = ArrayFile(run / "models" / "last.safetensors").load()
    personal = work.plan.method.personal
    cost = _cost(work, result)
    if personal.candidates() == ("common",):
        return [work.outcome(work.row.name, arrays_sha256(arrays), cost, _tested(work, arrays))], arrays
    own: dict[str, PatientValues] = call(
        "eucaim_fl.benchmark.worker:own_models",
        work.plan,
        dict(work.site_files),
        dict(Journal(run).records()[-1].chosen),
        Journal(run).run(),
    )
    if not own:
        raise WorkerError("The sites kept no models of their own.", fix="Look into sites.log in the run's folder.")
    common = own.pop("common", None)
    outcomes = []
    if common is not None:
        values = _tested(work, arrays)
        outcomes.append(work.outcome(work.row.name, arrays_sha256(arrays), replace(cost, extra_steps=0), values))
    outcomes += [work.outcome(named(work.row, model), "", cost, values) for model, values in sorted(own.items())]
    return outcomes, arrays


def _app(poison: Poison | None) -> str:
    return CLIENT_APP if poison is None else f"{_POISONED}:{poison}"


def _cost(work: Work, result: Mapping[str, Any]) -> Cost:
    """Of the whole run; extra steps are those of models that the sites train for themselves."""
    personal, local = work.plan.method.personal, work.plan.training.local_steps or 0
    trained = int(result["rounds_trained"]) * local
    second = trained * ((personal.ditto is not None) + personal.local)
    return Cost(
        trained,
        second + personal.fine_tune_steps,
        float(sum(result["timings"]["rounds_s"])),
        sum(int(entry["up"]) for entry in result["bytes"].values()),
        sum(int(entry["down"]) for entry in result["bytes"].values()),
    )
