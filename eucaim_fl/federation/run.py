"""A run from its folder's first file to its report: start, go on, end well or resumable."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import yaml

from eucaim_fl.arrays import ArrayFile, encode_arrays
from eucaim_fl.config import ExperimentConfig, parse
from eucaim_fl.durable import exclusive, write_atomically, write_json
from eucaim_fl.errors import EucaimError, InterruptedRunError, JournalError, RunNotFoundError
from eucaim_fl.federation.launch import launch
from eucaim_fl.federation.local_grid import CLIENT_APP
from eucaim_fl.federation.model_files import FOLDER
from eucaim_fl.federation.processes import context, warm_up
from eucaim_fl.federation.progress import Listener, listening
from eucaim_fl.federation.result import make_result
from eucaim_fl.federation.server_app import START_FILE
from eucaim_fl.federation.validation_result import write_validation
from eucaim_fl.plan import FederationPlan, read_plan
from eucaim_fl.records import RoundRecord
from eucaim_fl.registry import suggestion
from eucaim_fl.sitefile import DATA_VARIABLE, data_root
from eucaim_fl.tracking.journal import Journal
from eucaim_fl.tracking.provenance import collect
from eucaim_fl.tracking.sidecar import Event, Sidecar, TrackingOutcome

if TYPE_CHECKING:
    from eucaim_fl.inference.bundles import FrozenModel

__all__ = ["create_run", "execute", "find_run", "read_recipe"]

_TRACKING_PATIENCE_S = 180.0


def create_run(
    config: ExperimentConfig,
    plan: FederationPlan,
    site_files: Mapping[str, Path],
    holder_signature: str = "",
    frozen: Sequence[FrozenModel] = (),
) -> Path:
    """Make the folder of a new run, with its plan and recipe, and return its absolute path.

    holder_signature: of the permit's holder over the plan. frozen: the models of a plan that judges some.
    Raises JournalError if it can't be written; nothing is left behind then.
    """
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    runs = config.runs_dir.absolute()
    try:
        runs.mkdir(parents=True, exist_ok=True)
        for attempt in range(1000):
            folder = runs / f"{config.name}-{stamp}-{plan.sha256()[:8]}{f'-{attempt}' if attempt else ''}"
            try:
                folder.mkdir()
                break
            except FileExistsError:
                continue
    except OSError as problem:
        raise JournalError(
            "The run folder can't be made.", fix="Check the folder's permissions.", local_detail=f"{runs}: {problem}"
        ) from None
    try:
        recipe = {**config.model_dump(mode="json"), "runs_dir": str(runs)}
        recipe["sites"] = [str(path) for path in site_files.values()] or list(config.sites)
        write_atomically(folder / "recipe.yaml", yaml.safe_dump(recipe, sort_keys=False).encode())
        told = {"data_root": str(data_root().absolute()), "holder_signature": holder_signature}
        write_json(folder / "launch.json", told)
        if config.start is not None:
            write_atomically(folder / START_FILE, encode_arrays(ArrayFile(config.start).load()))
        for model in frozen:
            write_atomically(folder / FOLDER / model.contract.name, model.content)
        write_atomically(folder / "plan.json", plan.canonical_json().encode())
    except JournalError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder


def find_run(name: str, runs_dir: Path) -> Path:
    """The folder of a run given by its path or by its name under `runs_dir`.

    Raises RunNotFoundError that names the nearest run.
    """
    for folder in (Path(name), runs_dir / name):
        if (folder / "plan.json").is_file():
            return folder.absolute()
    known = [p.parent.name for p in runs_dir.glob("*/plan.json")]
    raise RunNotFoundError("There is no such run.", fix=suggestion(Path(name).name, known), local_detail=name)


def read_recipe(folder: Path) -> tuple[ExperimentConfig, FederationPlan]:
    """The recipe and plan of an existing run.

    Raises RunNotFoundError if a file is missing, RecipeError or PlanError if it is damaged.
    """
    try:
        values = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))
        plan = read_plan((folder / "plan.json").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        raise RunNotFoundError("The run folder holds no readable recipe.", local_detail=str(folder)) from None
    return parse(ExperimentConfig, values, "The run's recipe"), plan


class _Notifier(Listener):
    """Tells the tracking process that a round is in the journal."""

    def __init__(self, sidecar: Sidecar) -> None:
        self._sidecar = sidecar

    def round_done(self, record: RoundRecord) -> None:
        self._sidecar.send(Event("running"))


@contextmanager
def _stop_signals() -> Iterator[None]:
    """SIGTERM ends a run as Ctrl-C does: cleanly and resumable."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    try:
        earlier = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, earlier)


def execute(
    folder: Path,
    config: ExperimentConfig,
    site_files: Mapping[str, Path],
    *listeners: Listener,
    client_app: str = CLIENT_APP,
) -> tuple[dict[str, Any], TrackingOutcome | None]:
    """Bring a run to its end from where its journal stands: result.json, report.html, models, MLflow.

    A run that is already complete is only logged again.
    Returns the content of result.json and what became of the tracking (None if it is off).
    Raises RunFolderBusyError if another process works in it, InterruptedRunError after Ctrl-C, and what `launch`
    raises; in all cases the run can be resumed.
    """
    started = time.monotonic()
    with exclusive(folder), _stop_signals(), _data_root_of(folder):
        sidecar: Sidecar | None = None
        try:
            warm_up()
            importlib.import_module("eucaim_fl.validation.report")  # for the end; now the workers' server is waited for
            if config.tracking.enabled:
                sidecar = Sidecar(folder, config.tracking, config.runs_dir, context=context())
                sidecar.start()
            result = _finished(folder)
            if result is None:
                write_json(folder / "status.json", {"state": "running"})
                with listening(*listeners, *([_Notifier(sidecar)] if sidecar else [])):
                    launch(folder, config.federation, site_files, client_app)
                result = _finish(folder, time.monotonic() - started)
                write_json(folder / "status.json", {"state": "finished"})
        except KeyboardInterrupt:
            _give_up(folder, "interrupted", sidecar)
            raise InterruptedRunError(
                "The run was stopped.", fix=f"Go on with: eucaim-fl train resume={folder.name}"
            ) from None
        except EucaimError as problem:
            _give_up(folder, "interrupted" if problem.code.startswith(("EFL3", "EFL5")) else "failed", sidecar)
            raise
        except BaseException:
            _give_up(folder, "failed", sidecar)
            raise
        outcome = None
        if sidecar is not None:
            sidecar.send(Event("finished"))
            outcome = sidecar.close(_TRACKING_PATIENCE_S)
        return result, outcome


def _finished(folder: Path) -> dict[str, Any] | None:
    """The result of a run that is already complete: its provenance and timings are history and stay as they are."""
    try:
        result: dict[str, Any] = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return result if (folder / "report.html").is_file() else None


@contextmanager
def _data_root_of(folder: Path) -> Iterator[None]:
    """Relative cohort folders mean what they meant when the run began, wherever it is resumed from."""
    known = ""
    with suppress(OSError, ValueError, KeyError):
        known = str(json.loads((folder / "launch.json").read_text(encoding="utf-8"))["data_root"])
    if not known or DATA_VARIABLE in os.environ:
        yield
        return
    os.environ[DATA_VARIABLE] = known
    try:
        yield
    finally:
        del os.environ[DATA_VARIABLE]


def _give_up(folder: Path, state: Any, sidecar: Sidecar | None) -> None:
    with suppress(JournalError):  # the disk may be full; the journal itself tells how far the run came
        write_json(folder / "status.json", {"state": state})
    if sidecar is not None:
        sidecar.send(Event(state))
        sidecar.close(5.0)


def _finish(folder: Path, wall_s: float) -> dict[str, Any]:
    """Write what follows from a complete journal."""
    from eucaim_fl.validation.report import render

    journal = Journal(folder)
    _, plan = read_recipe(folder)
    records, sites = journal.records(), journal.sites()
    fingerprints = {site: str(entry["cohort_sha256"]) for site, entry in sites.items()}
    provenance = collect(plan, cohort_fingerprints=fingerprints)
    write_json(folder / "provenance.json", provenance)
    if plan.validation is not None:
        return write_validation(folder, plan, records, provenance, wall_s)
    result = make_result(folder.name, plan, records, wall_s)
    write_json(folder / "result.json", result)
    page = render(plan, records, result, journal.pictures(), provenance)
    write_atomically(folder / "report.html", page.encode())
    return result
