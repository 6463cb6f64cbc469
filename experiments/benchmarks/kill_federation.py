"""Disturb a deployed federation at random moments, run after run, and compare the weights with an undisturbed run.

    python experiments/benchmarks/kill_federation.py --runs 50 --seed 0

A coordinator and three sites run on this machine as in hospitals. In each run of a tiny recipe (all three sites are
needed in every round) one to three faults are done: kill -9 or SIGSTOP of a site's client, its worker or the worker's
server, of SuperLink, proxy, supervisor or the `train` process; a disk that is full for one of them; a locked MLflow
database. What dies is started again as the shipped systemd units do, only sooner; a `train` that ended is resumed.
A run's outcome is

    same        the weights of the undisturbed run, without a word from `train` that it could not go on
    resumable   `train` ended with a reason, and `train resume=` led to the same weights
    failed      anything else

Results go to a file of JSON lines, one a run; a second call goes on where the first one ended.
Exit 1 if a run failed.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from federation_faults import Faults, draw
from hospitals import Job, write_hospitals, write_recipe

from eucaim_fl.errors import EucaimError, ServiceError
from eucaim_fl.federation.rehearsal import Rehearsal

__all__ = ["longest_silence", "outcome", "summary"]

_ROUNDS = 5
_TRACKED = 0.25
_PATIENCE_S = 300.0
_RESUMES = 5
_AGAIN_S, _BY_HAND_S = 3.0, 5.0
_JOB = Job(network="cnn-0.1M", sites=3, workers=1, rounds=_ROUNDS, images=12, batch=4, pixels=32)
_OVERRIDES = (
    "federation.quorum=3",
    "federation.quorum_wait_s=90",
    "federation.round_deadline_s=120",
    "federation.link_wait_s=60",
)


@dataclass
class Train:
    """One `train` process and the moments (monotonic seconds) at which it said something."""

    process: subprocess.Popen[str]
    moments: list[float]
    lines: list[str] = field(default_factory=list)
    reader: threading.Thread | None = None
    ended: float = 0.0

    def read(self) -> None:
        """Take the lines as they come; runs in a thread of its own."""
        assert self.process.stdout is not None  # noqa: S101  (it was started with a pipe)
        for line in self.process.stdout:
            self.moments.append(time.monotonic())
            self.lines.append(line.rstrip())


def start(rehearsal: Rehearsal, *words: str) -> Train:
    """Start `train` in a session of its own."""
    process = subprocess.Popen(
        [*rehearsal.command, "train", *words], cwd=rehearsal.folder, env=rehearsal.environment, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    train = Train(process, [time.monotonic()])
    train.reader = threading.Thread(target=train.read, daemon=True)
    train.reader.start()
    return train


def longest_silence(moments: Sequence[float], frozen: Iterable[tuple[float, float]] = ()) -> float:
    """The longest time between two moments that follow each other, without the time in which the speaker was frozen."""
    stopped = list(frozen)
    gaps = [
        late - early - sum(max(0.0, min(late, end) - max(early, begin)) for begin, end in stopped)
        for early, late in itertools.pairwise(moments)
    ]
    return max(gaps, default=0.0)


def outcome(weights: str | None, wanted: str, reasons: Sequence[str], unexplained: int) -> str:
    """weights: of the finished run, None if it did not finish. unexplained: ends of `train` without a reason."""
    if weights != wanted or unexplained:
        return "failed"
    return "resumable" if reasons else "same"


def summary(records: Sequence[Mapping[str, Any]]) -> str:
    """Shares, silence and time to finish, in words."""
    if not records:
        return "no runs"
    count = {name: sum(r["outcome"] == name for r in records) for name in ("same", "resumable", "failed")}
    shares = ", ".join(f"{name} {n} ({100 * n / len(records):.0f} %)" for name, n in count.items())
    silent, took = [r["silent_s"] for r in records], [r["seconds"] for r in records]
    lines = [
        f"{len(records)} runs, {sum(len(r['faults']) for r in records)} faults: {shares}",
        f"longest silence of train: {max(silent):.0f} s (median of the runs {statistics.median(silent):.0f} s;"
        f" undisturbed {statistics.median([r['undisturbed_silent_s'] for r in records]):.0f} s, while it starts)",
        f"time to finish: median {statistics.median(took):.0f} s, longest {max(took):.0f} s"
        f" (undisturbed {statistics.median([r['undisturbed_s'] for r in records]):.0f} s)",
    ]
    lines += [f"FAILED run {r['run']}: {'; '.join(d['fault'] for d in r['done'])}" for r in records
              if r["outcome"] == "failed"]  # fmt: skip
    return "\n".join(lines)


class _Watchdog:
    """Starts clients and supervisor again when they ended, as systemd would: not after exit code 2; that a person does,
    once what was wrong is over.
    """

    def __init__(self, rehearsal: Rehearsal) -> None:
        self._rehearsal = rehearsal
        self._ended = threading.Event()
        self._due: dict[str, float] = {}
        self.by_hand: list[str] = []
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> _Watchdog:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.3):
            servers = self._rehearsal.servers
            processes = {**self._rehearsal.clients, **({"supervisor": servers} if servers else {})}
            for name, process in processes.items():
                if process.poll() is None:
                    continue
                if name not in self._due:
                    hand = process.returncode == 2
                    self._due[name] = time.monotonic() + (_BY_HAND_S if hand else _AGAIN_S)
                    if hand:
                        self.by_hand.append(name)
                elif time.monotonic() >= self._due[name]:
                    del self._due[name]
                    self._start(name)

    def _start(self, name: str) -> None:
        if name != "supervisor":
            self._rehearsal.start_site(name)
        else:
            self._rehearsal.servers = self._rehearsal.spawn("federation", "federation", "start", self._rehearsal.name)


class _Suite:
    """One standing rehearsal, and the undisturbed run that the others are compared with."""

    def __init__(self, rehearsal: Rehearsal, recipe: str, seed: int) -> None:
        self._rehearsal, self._seed = rehearsal, seed
        self._database = rehearsal.folder / "mlflow.db"
        self._words = (f"experiment={recipe}", f"federation={rehearsal.name}", *_OVERRIDES)
        self._train: Train | None = None
        self.wanted, self.undisturbed_s, self.undisturbed_silent_s = "", 0.0, 0.0

    def prepare(self) -> None:
        """The undisturbed runs: the first also fills caches and makes the tracking database. Raises ServiceError."""
        for tracking in (True, False):
            record = self.run(-1, (), tracking=tracking)
            if record["outcome"] != "same":
                raise ServiceError("The undisturbed run failed.", local_detail="\n".join(record["said"]))
            self.undisturbed_s, self.undisturbed_silent_s = record["seconds"], record["silent_s"]

    def drawn(self, number: int) -> dict[str, Any]:
        """The run of that number."""
        rng = random.Random(f"{self._seed}/{number}")
        tracking = rng.random() < _TRACKED
        return self.run(number, draw(rng, self._rehearsal.sites, tracking=tracking), tracking=tracking)

    def run(self, number: int, faults: tuple[Any, ...], *, tracking: bool) -> dict[str, Any]:
        """One run from its start to its weights, or to the end of patience."""
        runs = self._rehearsal.folder / "runs" / f"{number:03d}"
        shutil.rmtree(runs, ignore_errors=True)
        track = ("tracking=mlflow", f"tracking.uri=sqlite:///{self._database}") if tracking else ("tracking=none",)
        fresh = (*self._words, *track, f"runs_dir={runs}")
        ongoing = Faults(self._rehearsal, self._database, self._pid)
        reasons: list[str] = []
        trains: list[Train] = []
        unexplained = 0
        began = time.monotonic()
        with _Watchdog(self._rehearsal) as watchdog:
            ongoing.begin(faults, self.undisturbed_s)
            while time.monotonic() - began < _PATIENCE_S and len(trains) <= _RESUMES:
                known = [path.parent for path in runs.glob("*/plan.json")]
                self._train = start(self._rehearsal, *((f"resume={known[0]}",) if known else fresh))
                trains.append(self._train)
                code = self._wait(self._train, began + _PATIENCE_S)
                if code == 0:
                    break
                reason = _reason(self._train.lines)
                if code in (-9, None):
                    reasons += [] if code == -9 else ["it did not end in time"]
                elif reason:
                    reasons.append(reason)
                else:
                    unexplained += 1
                time.sleep(1.0)
            finished = time.monotonic() - began
            ongoing.cancel()
            ongoing.join()
            again_s = self._recovered()
        result = next(iter(sorted(runs.glob("*/result.json"))), None)
        weights = None if result is None else str(json.loads(result.read_text())["weights_sha256"])
        found = outcome(weights, self.wanted or (weights or ""), reasons, unexplained)
        if not self.wanted:
            self.wanted = weights or ""
        found = "failed" if again_s is None else found
        record = {
            "seed": self._seed, "run": number, "outcome": found, "tracking": tracking,
            "faults": [str(fault) for fault in faults], "done": ongoing.done, "reasons": reasons,
            "resumes": len(trains) - 1, "started_by_hand": watchdog.by_hand, "seconds": round(finished, 1),
            "silent_s": round(max(longest_silence([*t.moments, t.ended], ongoing.frozen_train) for t in trains), 1),
            "all_connected_after_s": again_s, "undisturbed_s": self.undisturbed_s,
            "undisturbed_silent_s": self.undisturbed_silent_s, "weights_sha256": weights,
            "said": [line for train in trains for line in [*train.lines, "--"]],
        }  # fmt: skip
        if found != "failed":
            shutil.rmtree(runs, ignore_errors=True)
        return record

    def _pid(self) -> int | None:
        train = self._train
        return train.process.pid if train is not None and train.process.poll() is None else None

    @staticmethod
    def _wait(train: Train, until: float) -> int | None:
        code: int | None = None
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = train.process.wait(max(1.0, until - time.monotonic()))
        train.ended = time.monotonic()
        if code is None:
            train.process.kill()
            train.process.wait()
        if train.reader is not None:
            train.reader.join(5.0)
        return code

    def _recovered(self) -> float | None:
        """Seconds until all sites are connected again; None if they are not within two minutes."""
        began = time.monotonic()
        while time.monotonic() - began < 120.0:
            with contextlib.suppress(ServiceError):
                self._rehearsal.wait_connected(self._rehearsal.sites, 5.0)
                return round(time.monotonic() - began, 1)
            time.sleep(0.5)
        return None


def _reason(lines: Sequence[str]) -> str:
    """The last line with an error code."""
    return next((line for line in reversed(lines) if re.match(r"EFL\d{3}", line)), "")


def _read(path: Path, seed: int) -> dict[int, dict[str, Any]]:
    """Records of a results file of this seed; the last of each run, half-written lines are skipped."""
    found: dict[int, dict[str, Any]] = {}
    with contextlib.suppress(FileNotFoundError):
        for line in path.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):
                record = json.loads(line)
                if record["seed"] == seed:
                    found[record["run"]] = record
    return found


def main() -> int:
    """Run what is missing, print progress and the summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, nargs="+", help="Numbers of runs to do (again).")
    parser.add_argument("--results", type=Path, default=Path("runs/kill_federation.jsonl"), help="Default: %(default)s")
    parser.add_argument("--folder", type=Path, help="Work and leave everything here; default: a temporary folder.")
    parser.add_argument("--report", action="store_true", help="Only print the summary of the results.")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the federation is stopped
    known = _read(given.results, given.seed)
    todo = given.only or [n for n in range(given.runs) if n not in known]
    if todo and not given.report:
        try:
            known = _do(given, todo)
        except EucaimError as problem:  # the suite itself could not go on
            print(problem.for_terminal(), file=sys.stderr)
            return 2
    records = [
        record for number, record in sorted(known.items()) if number < given.runs or number in (given.only or ())
    ]
    print(summary(records))
    return int(any(record["outcome"] == "failed" for record in records))


def _do(given: argparse.Namespace, todo: Sequence[int]) -> dict[int, dict[str, Any]]:
    folder = (given.folder or Path(tempfile.mkdtemp(prefix="kill-federation-"))).absolute()
    given.results.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    hospitals = folder / "hospitals"
    hospitals.mkdir(parents=True)
    files = write_hospitals(hospitals, _JOB)
    recipe = write_recipe(folder, Job(**{**vars(_JOB), "site_files": files}))
    with Rehearsal(folder, files) as rehearsal:
        print(f"In {folder}", flush=True)
        rehearsal.set_up()
        rehearsal.start(timeout_s=180.0)
        suite = _Suite(rehearsal, recipe, given.seed)
        suite.prepare()
        print(f"undisturbed: {suite.undisturbed_s:.0f} s, weights {suite.wanted[:12]}", flush=True)
        for number in todo:
            record = suite.drawn(number)
            with given.results.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(record) + "\n")
            told = (
                f"run {number:3d}: {record['outcome']:9} {record['seconds']:5.0f} s, silent {record['silent_s']:4.0f} s"
            )
            print(" | ".join([told, "; ".join(record["faults"]), *record["reasons"]]), flush=True)
            if record["all_connected_after_s"] is None:  # the next run deserves a federation that works
                rehearsal.stop()
                rehearsal.end_all()
                rehearsal.start(timeout_s=180.0)
    if given.folder is None:
        shutil.rmtree(folder, ignore_errors=True)
    return _read(given.results, given.seed)


if __name__ == "__main__":
    sys.exit(main())
