"""The Flower `ServerApp`: the same object on this machine, on a Ray cluster and beside a SuperLink.

Its run configuration names one thing, the run folder (`run-folder`), which holds the plan and the journal. Flower's
simulation engine hands over no run configuration; there the environment names it.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from eucaim_fl.arrays import Array, ArrayFile, Arrays, arrays_sha256
from eucaim_fl.errors import RecipeError, RunNotFoundError
from eucaim_fl.federation.coordinator import Coordinator
from eucaim_fl.federation.model_files import file_specs, read_files
from eucaim_fl.federation.processes import call
from eucaim_fl.federation.progress import listeners
from eucaim_fl.plan import FederationPlan, read_plan
from eucaim_fl.records import ArraySpec
from eucaim_fl.tracking.journal import Journal, JournalState
from eucaim_fl.tracking.registration import register

__all__ = ["RUN_FOLDER_VARIABLE", "START_FILE", "app", "running", "stopping"]

RUN_FOLDER_VARIABLE = "EUCAIM_FL_RUN_FOLDER"
START_FILE = "start.safetensors"
"""In the run folder: the weights that the first round begins with, where the plan names some."""

app = ServerApp()
stopping = threading.Event()
"""Set by who launched the app in a thread that Ctrl-C does not reach: the run ends at its next look, resumable."""
running = threading.Lock()
"""Held while the app runs."""


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the plan of the run folder from where its journal stands.

    A validation's plan is registered before any site is asked.
    Raises RunNotFoundError if the folder holds no plan, PlanError if the plan is damaged, JournalError if another plan
    is registered there.
    """
    folder = Path(str(context.run_config.get("run-folder") or os.environ[RUN_FOLDER_VARIABLE]))
    try:
        plan = read_plan((folder / "plan.json").read_text(encoding="utf-8"))
    except OSError:
        raise RunNotFoundError("The run folder holds no plan.", local_detail=str(folder)) from None
    journal = Journal(folder)
    state = journal.load() or _begin(journal, plan)
    if plan.validation is not None and not state.records:
        register(folder, plan.sha256())
    with running:
        Coordinator(grid, plan, journal, state.specs, listeners(), stopping.is_set).run(state)


def _begin(journal: Journal, plan: FederationPlan) -> JournalState:
    """The model before the first round: from the plan's seed, in a process that has torch, or the one it starts from;
    of a validation, the frozen models' files.

    Raises RecipeError if the one it starts from is not the plan's network, or a file is not the plan's.
    """
    if plan.validation is not None:
        state = JournalState(0, file_specs(plan.validation), read_files(journal.folder, plan.validation), {}, ())
        journal.begin(state.specs, state.weights)
        return state
    specs, weights = call("eucaim_fl.site.node:initial_arrays", plan)
    if plan.start_sha256 is not None:
        weights = _started(journal.folder / START_FILE, plan.start_sha256, weights)
    state = JournalState(0, tuple(ArraySpec(**vars(s)) for s in specs), weights, {}, ())
    journal.begin(state.specs, weights)
    return state


def _started(file: Path, digest: str, like: Arrays) -> Arrays:
    """The weights of a file, which must be those that the plan names, and look like the plan's network."""
    found = ArrayFile(file).load()
    if arrays_sha256(found) != digest:
        raise RecipeError("The weights to start from are not those that the plan names.", local_detail=str(file))
    other = sorted(n for n in {*like, *found} if n not in like or n not in found or not _alike(found[n], like[n]))
    if other:
        raise RecipeError(
            f"The weights to start from are not those of the plan's network: {len(other)} arrays differ in name, shape "
            "or type.",
            fix="Start from a run with the same model, task and channels.",
        )
    return found


def _alike(one: Array, other: Array) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype
