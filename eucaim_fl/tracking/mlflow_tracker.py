"""MLflow: what a run folder holds, logged once. mlflow is imported only when something is logged.

A run is logged from its folder alone, so live logging, continuing after a resume and logging a finished run again
are the same code. What was logged stands in `mlflow.json` beside the rest; the folder holds

    plan.json  recipe.yaml  provenance.json  journal/round-NNNN/record.json
    result.json  report.html  models/best.safetensors  models/best.json  models/last.safetensors
    report.json                                                               of a validation, which logs no model

Steps: `train_loss`, `seconds`, `bytes_*` and `round_seconds` of round r have step r. What sites measured on the model
that arrived in round r has step r - 1: step 0 is the untrained model, the last step the final one. A model of which
some arrays stay at the sites is not logged, for nobody could use it. A validation of frozen models has the tag
`kind` = `validation`; `validation_entries` says what else is logged of it. Its models are somebody's own and are not.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from eucaim_fl.arrays import ArrayFile, arrays_sha256
from eucaim_fl.config import TrackingConfig
from eucaim_fl.durable import write_json
from eucaim_fl.errors import RunNotFoundError
from eucaim_fl.plan import FederationPlan, read_plan
from eucaim_fl.records import ModelName, RoundRecord
from eucaim_fl.tracking.address import check_database, tracking_uri
from eucaim_fl.tracking.model_export import SOURCE_TAGS, log_network, quiet_mlflow
from eucaim_fl.tracking.summary import read_records
from eucaim_fl.validation.choice import by_model
from eucaim_fl.validation.pooling import pool

__all__ = ["MlflowTracker", "TrackedState", "replay", "round_metrics"]

_LOG = logging.getLogger("eucaim_fl.tracking")

TrackedState = Literal["running", "finished", "interrupted", "failed"]
_STATUS: dict[TrackedState, str] = {
    "running": "RUNNING", "finished": "FINISHED", "interrupted": "KILLED", "failed": "FAILED",
}  # fmt: skip
_TEXTS = ("plan.json", "recipe.yaml", "provenance.json", "result.json", "report.json", "report.html")
_ROLES = ("best", "last")
_METRICS_A_BATCH, _PARAMS_A_BATCH, _LONGEST_PARAM = 1000, 100, 6000


def round_metrics(record: RoundRecord, model: ModelName = "common") -> Iterator[tuple[str, float, int]]:
    """(name, value, step) of everything that a round measured; values that are not finite are left out.

    Metrics of the arriving model have step round - 1, because that many rounds made it.
    model: whose metrics have no model in their name; those of others, and of what sites chose, do.
    """
    arrived = record.round - 1

    def beside() -> Iterator[tuple[str, float, int]]:
        for split in ("validation", "test"):
            for other, sites in by_model(record.metrics, record.chosen, split).items():
                if other != model:
                    for name, value in pool(list(sites.values())).items():
                        yield f"{split}/{other}/pooled/{name}", value, arrived
        for other in sorted(set(record.chosen.values())):
            yield f"chosen/{other}", list(record.chosen.values()).count(other), arrived

    def found() -> Iterator[tuple[str, float, int]]:
        for split, values in record.pooled.items():
            for name, value in values.items():
                yield f"{split}/pooled/{name}", value, arrived
        for site, entries in record.metrics.items():
            for entry in entries:
                where = f"{entry.split}/site/{site}" if entry.model == model else f"{entry.split}/{entry.model}/{site}"
                yield f"{where}/patients", entry.patients, arrived
                for name, value in entry.values.items():
                    yield f"{where}/{name}", value, arrived
        yield from beside()
        for site, value in record.train_loss.items():
            yield f"train_loss/site/{site}", value, record.round
        for entry_of in record.participation:
            for name in ("seconds", "bytes_up", "bytes_down"):
                yield f"{name}/site/{entry_of.site}", getattr(entry_of, name), record.round
        yield "sites", len([p for p in record.participation if p.status == "took_part"]), record.round
        yield "round_seconds", record.seconds, record.round

    return ((name, float(value), step) for name, value, step in found() if math.isfinite(value))


class MlflowTracker:
    """Keeps one MLflow run in step with one run folder.

    `sync` may be called at any time and any number of times: it logs what is new, and continues the same MLflow run
    in another process. Whatever MLflow raises passes through, and the next `sync` goes on where this one ended.
    """

    def __init__(self, run_folder: Path, config: TrackingConfig, runs_dir: Path) -> None:
        self.run_folder = run_folder
        self.config = config
        self.uri = tracking_uri(config, runs_dir)
        self._runs_dir = runs_dir
        self._plan = _plan_of(run_folder)
        self._memory = _json(run_folder / "mlflow.json")
        self._checked = False

    @property
    def run_id(self) -> str | None:
        """The MLflow run; None until the first `sync`."""
        return self._memory.get("run_id")

    def sync(self, state: TrackedState = "running") -> None:
        """Log what is new in the folder and set the run's state; models, or a validation's figures, when `finished`.

        Raises RunError if the SQLite database is held by another process or can't be opened; JournalError if it is a
        validation's folder whose report can't be read.
        """
        check_database(self.uri)
        client = quiet_mlflow().MlflowClient(self.uri)
        run_id = self._open(client)
        if state == "running" and self._memory.get("state", state) != state:
            client.update_run(run_id, status=_STATUS[state])
        self._log_texts(client, run_id)
        self._log_rounds(client, run_id)
        try:
            if state == "finished" and self._plan.validation is not None:
                self._log_validation(client, run_id)
            elif state == "finished":
                for role in _ROLES:
                    self._log_model(client, run_id, role)
        finally:  # the rounds are all there, even if a model can't be exported
            if state != "running" and self._memory.get("state") != state:
                client.set_terminated(run_id, _STATUS[state])
        self._remember(state=state)

    def _open(self, client: Any) -> str:
        """The MLflow run of this folder, made with its parameters if there is none (any more)."""
        from mlflow.exceptions import MlflowException

        known = self.run_id
        if known is not None and not self._checked:
            try:
                if client.get_run(known).info.lifecycle_stage != "active":
                    known = None
            except MlflowException as problem:
                if problem.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                known = None
        if known is None:
            known = client.create_run(
                self._experiment(client), run_name=self.run_folder.name, tags=self._tags()
            ).info.run_id
            self._memory = {}
            self._remember(run_id=known)
        if not self._memory.get("params"):
            from mlflow.entities import Param

            params = [Param(k, v) for k, v in _flatten(self._params())]
            for batch in _batches(params, _PARAMS_A_BATCH):
                client.log_batch(known, params=batch)
            self._remember(params=True)
        self._checked = True
        return known

    def _params(self) -> dict[str, Any]:
        if self._plan.validation is None:
            return self._plan.model_dump(mode="json")
        from eucaim_fl.tracking.validation_entries import validation_params

        return validation_params(self._plan)

    def _experiment(self, client: Any) -> str:
        from mlflow.exceptions import MlflowException

        name = self.config.experiment or self._plan.name
        # A tracking server keeps artefacts where it says; for a bare database MLflow's default is the current folder.
        served = urlsplit(self.uri).scheme in ("http", "https")
        location = None if served else (self._runs_dir / "mlartifacts").absolute().as_uri()
        for last_try in (False, True):
            if (found := client.get_experiment_by_name(name)) is not None:
                return str(found.experiment_id)
            try:
                return str(client.create_experiment(name, artifact_location=location))
            except MlflowException as problem:  # another run made it in between
                if last_try or problem.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
        raise AssertionError("unreachable")

    def _tags(self) -> dict[str, str]:
        """Provenance as tags."""
        known = _json(self.run_folder / "provenance.json")
        packages, git = known.get("packages") or {}, known.get("git") or {}
        tags = {
            **SOURCE_TAGS,
            "plan_sha256": self._plan.sha256(),
            "seed": str(self._plan.seed),
            "python": str(known.get("python", "")),
            **{f"version.{name}": str(version) for name, version in packages.items()},
            **{f"cohort.{site}": str(digest) for site, digest in (known.get("cohorts") or {}).items()},
        }
        if self._plan.validation is not None:
            tags |= {"kind": "validation", "mlflow.source.name": "eucaim-fl validate"}
        if git:
            tags |= {"mlflow.source.git.commit": str(git.get("commit")), "git.dirty": str(git.get("dirty")).lower()}
        return {name: value for name, value in tags.items() if value}

    def _log_texts(self, client: Any, run_id: str) -> None:
        logged = dict(self._memory.get("files", {}))
        for name in _TEXTS:
            path = self.run_folder / name
            if not path.is_file():
                continue
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            if logged.get(name) != digest:
                client.log_artifact(run_id, str(path))
                if name == "provenance.json":  # it may come after the run was made
                    for tag, value in self._tags().items():
                        client.set_tag(run_id, tag, value)
                logged[name] = digest
                self._remember(files=logged)

    def _log_rounds(self, client: Any, run_id: str) -> None:
        from mlflow.entities import Metric

        logged = set(self._memory.get("rounds", []))
        for record in read_records(self.run_folder):
            if record.round in logged:
                continue
            path = self.run_folder / "journal" / f"round-{record.round:04d}" / "record.json"
            # The file's own time: a round that is logged twice after a crash gives equal rows, which MLflow drops.
            moment = int((path.stat().st_mtime if path.exists() else time.time()) * 1000)
            measured = round_metrics(record, self._plan.method.personal.candidates()[0])
            entries = [Metric(name, value, moment, step) for name, value, step in measured]
            for site, chosen in sorted(record.chosen.items()):
                client.set_tag(run_id, f"chosen.{site}", chosen)
            for batch in _batches(entries, _METRICS_A_BATCH):
                client.log_batch(run_id, metrics=batch)
            logged.add(record.round)
            self._remember(rounds=sorted(logged))

    def _log_validation(self, client: Any, run_id: str) -> None:
        """Metrics and tags of a validation's report, once for the same report."""
        from mlflow.entities import Metric, RunTag

        from eucaim_fl.tracking.validation_entries import read_result, validation_entries

        path = self.run_folder / "report.json"
        entries = validation_entries(self._plan, read_result(self.run_folder, self._plan))
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if self._memory.get("report") == digest:
            return
        moment = int(path.stat().st_mtime * 1000)  # the file's own, as in `_log_rounds`
        for batch in _batches((Metric(k, v, moment, 0) for k, v in entries.metrics.items()), _METRICS_A_BATCH):
            client.log_batch(run_id, metrics=batch)
        for batch in _batches((RunTag(k, v) for k, v in entries.tags.items()), _PARAMS_A_BATCH):
            client.log_batch(run_id, tags=batch)
        self._remember(report=digest)

    def _log_model(self, client: Any, run_id: str, role: str) -> None:
        """Log and register one model, once for the same weights; the alias of its role moves to it."""
        path = self.run_folder / "models" / f"{role}.safetensors"
        if not path.is_file():
            return
        if self._plan.leaves_arrays():
            _LOG.warning("the %s model is not logged: some of its arrays stay at the sites", role)
            return
        arrays = ArrayFile(path).load()
        digest = arrays_sha256(arrays)
        logged = dict(self._memory.get("models", {}))
        if logged.get(role) == digest:
            return
        from mlflow.exceptions import MlflowException

        after = _json(path.with_suffix(".json")).get("after_round", self._plan.rounds)
        info = log_network(self.uri, run_id, role, self._plan, arrays, digest, step=int(after))
        name = self.config.register_as or self._plan.name
        try:
            client.create_registered_model(name)
        except MlflowException as problem:
            if problem.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        tags = {"role": role, "run": self.run_folder.name, "weights_sha256": digest}
        tags |= {"plan_sha256": self._plan.sha256(), "after_round": str(after)}
        version = client.create_model_version(
            name, info.artifact_path, run_id=run_id, tags=tags, model_id=info.model_id, await_creation_for=0,
            description=f"The {role} model of {self.run_folder.name}. Loaded with mlflow.pytorch.load_model it is "
            "already in evaluation mode.",
        )  # fmt: skip
        client.set_registered_model_alias(name, role, version.version)
        logged[role] = digest
        self._remember(models=logged)

    def _remember(self, **news: Any) -> None:
        self._memory |= news
        write_json(self.run_folder / "mlflow.json", self._memory)


def replay(run_folder: Path, config: TrackingConfig | None = None, runs_dir: Path | None = None) -> str:
    """Log a run folder (again) as far as it isn't logged yet, and return the MLflow run's id.

    runs_dir: where the default database lies; None is the folder that holds `run_folder`. What MLflow raises passes.
    Raises RunNotFoundError if the folder holds no readable plan.
    """
    tracker = MlflowTracker(run_folder, config or TrackingConfig(), runs_dir or run_folder.absolute().parent)
    tracker.sync("finished" if (run_folder / "result.json").is_file() else "interrupted")
    return str(tracker.run_id)


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """`{"a": {"b": 1}}` → ("a.b", "1"); lists stay JSON."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", (value if isinstance(value, str) else json.dumps(value))[:_LONGEST_PARAM]


def _batches(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    pending = list(items)
    return (pending[start : start + size] for start in range(0, len(pending), size))


def _plan_of(run_folder: Path) -> FederationPlan:
    values = _json(run_folder / "plan.json")
    if not values:
        raise RunNotFoundError("This folder holds no readable plan, so no run.", local_detail=str(run_folder))
    return read_plan(json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False))


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
