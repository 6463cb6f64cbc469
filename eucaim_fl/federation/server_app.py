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

from eucaim_fl.errors import RunNotFoundError
from eucaim_fl.federation.coordinator import Coordinator
from eucaim_fl.federation.processes import call
from eucaim_fl.federation.progress import listeners
from eucaim_fl.plan import FederationPlan, read_plan
from eucaim_fl.records import ArraySpec
from eucaim_fl.tracking.journal import Journal, JournalState

__all__ = ["RUN_FOLDER_VARIABLE", "app", "running", "stopping"]

RUN_FOLDER_VARIABLE = "EUCAIM_FL_RUN_FOLDER"

app = ServerApp()
stopping = threading.Event()
"""Set by who launched the app in a thread that Ctrl-C does not reach: the run ends at its next look, resumable."""
running = threading.Lock()
"""Held while the app runs."""


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the plan of the run folder from where its journal stands.

    Raises RunNotFoundError if the folder holds no plan, PlanError if the plan is damaged.
    """
    folder = Path(str(context.run_config.get("run-folder") or os.environ[RUN_FOLDER_VARIABLE]))
    try:
        plan = read_plan((folder / "plan.json").read_text(encoding="utf-8"))
    except OSError:
        raise RunNotFoundError("The run folder holds no plan.", local_detail=str(folder)) from None
    journal = Journal(folder)
    state = journal.load() or _begin(journal, plan)
    with running:
        Coordinator(grid, plan, journal, state.specs, listeners(), stopping.is_set).run(state)


def _begin(journal: Journal, plan: FederationPlan) -> JournalState:
    """The model before the first round, built in a process that has torch, from the plan's seed."""
    specs, weights = call("eucaim_fl.site.node:initial_arrays", plan)
    state = JournalState(0, tuple(ArraySpec(**vars(s)) for s in specs), weights, {}, ())
    journal.begin(state.specs, weights)
    return state
