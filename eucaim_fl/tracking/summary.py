"""The list of runs, read from the run folders themselves: no database is needed to know what was done."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from eucaim_fl.records import RoundRecord

__all__ = ["RunKind", "RunRow", "RunState", "list_runs", "read_records"]

RunState = Literal["running", "finished", "interrupted", "failed"]
RunKind = Literal["training", "validation"]
_HEADLINE = ("dice", "auc", "auc_site_mean", "c_index", "c_index_site_mean", "balanced_accuracy")
_MAIN = ("macro_auc", "auc", "dice", "c_index", "accuracy")


@dataclass(frozen=True)
class RunRow:
    """One run of `eucaim-fl runs`.

    name: the run folder's. plan: the recipe's name. started: UTC; None if unknown. state: `failed` if the folder says
    so (`status.json`) or its plan can't be read, `interrupted` if it is neither finished nor held by a process.
    metric: pooled headline metric (name and value) of the final model, of a validation that of the model under test;
    None until there is one. interval: its limits, of a validation. models: frozen ones that a validation judges, the
    one under test first.
    """

    name: str
    plan: str
    started: datetime | None
    state: RunState
    rounds_done: int
    rounds: int
    metric: tuple[str, float] | None
    plan_sha256: str
    kind: RunKind
    models: tuple[str, ...]
    interval: tuple[float, float] | None


def list_runs(runs_dir: Path) -> list[RunRow]:
    """All runs under `runs_dir`, newest first; a damaged folder is a row with what can still be read of it.

    A folder without `plan.json` is no run. Nothing is written. A folder that does not exist holds no runs.
    """
    folders = [f for f in _children(runs_dir) if (f / "plan.json").is_file()]
    rows = [_row(folder) for folder in folders]
    return sorted(rows, key=lambda r: (r.started.timestamp() if r.started else 0.0, r.name), reverse=True)


def read_records(run_folder: Path) -> list[RoundRecord]:
    """Completed rounds of a run from `journal/round-NNNN/record.json`, in order; unreadable ones are left out."""
    records: list[RoundRecord] = []
    for folder in _children(run_folder / "journal"):
        if not folder.name.startswith("round-"):  # one that is being written has another name
            continue
        value = _json(folder / "record.json")
        with contextlib.suppress(KeyError, TypeError, AttributeError):
            records.append(RoundRecord.from_json(value))
    return sorted(records, key=lambda r: r.round)


def _row(folder: Path) -> RunRow:
    plan, result = _json(folder / "plan.json"), _json(folder / "result.json")
    started = None
    with contextlib.suppress(OSError):
        started = datetime.fromtimestamp((folder / "plan.json").stat().st_mtime, tz=UTC)
    rounds = plan.get("rounds")
    total = rounds if isinstance(rounds, int) else 0
    done = len([r for r in read_records(folder) if r.round <= total])
    digest = result.get("plan_sha256")
    validates = isinstance(plan.get("validation"), dict)
    metric, interval = _main(_json(folder / "report.json")) if validates and result else (_headline(result), None)
    return RunRow(
        name=folder.name,
        plan=str(plan.get("name", "")),
        started=started,
        state=_state(folder, plan, result),
        rounds_done=total if result else done,
        rounds=total,
        metric=metric,
        plan_sha256=digest[:12] if isinstance(digest, str) else _digest(plan),
        kind="validation" if validates else "training",
        models=_models(plan) if validates else (),
        interval=interval,
    )


def _state(folder: Path, plan: Mapping[str, Any], result: Mapping[str, Any]) -> RunState:
    if _held(folder):
        return "running"
    if result:
        return "finished"
    return "failed" if not plan or _json(folder / "status.json").get("state") == "failed" else "interrupted"


def _held(folder: Path) -> bool:
    """Whether a process holds the run folder; asks with a shared lock that is given back at once."""
    try:
        with (folder / ".lock").open("rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _headline(result: Mapping[str, Any]) -> tuple[str, float] | None:
    try:
        pooled = result["metrics"]["pooled"]
        name = next(name for name in _HEADLINE if isinstance(pooled.get(name), int | float))
        return name, float(pooled[name])
    except (KeyError, TypeError, AttributeError, StopIteration):
        return None


def _main(report: Mapping[str, Any]) -> tuple[tuple[str, float] | None, tuple[float, float] | None]:
    """The main figure of a validation's first model on all patients, and its interval."""
    try:
        figures = report["result"]["models"][0]["scopes"][0]["figures"]
        name, one = next((n, figures[n]) for n in _MAIN if isinstance(figures.get(n, {}).get("value"), int | float))
        low, high = one.get("low"), one.get("high")
    except (KeyError, IndexError, TypeError, AttributeError, StopIteration):
        return None, None
    limits = (float(low), float(high)) if isinstance(low, int | float) and isinstance(high, int | float) else None
    return (name, float(one["value"])), limits


def _models(plan: Mapping[str, Any]) -> tuple[str, ...]:
    try:
        return tuple(str(one["name"]) for one in plan["validation"]["models"])
    except (KeyError, TypeError):
        return ()


def _digest(plan: Mapping[str, Any]) -> str:
    """Start of the plan's SHA-256, over its canonical text however the file is laid out; empty if there is none."""
    text = json.dumps(plan, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12] if plan else ""


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _children(folder: Path) -> list[Path]:
    try:
        return sorted(f for f in folder.iterdir() if f.is_dir())
    except OSError:
        return []
