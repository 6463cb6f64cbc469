"""What a deployed federation costs: seconds of overhead a round, memory of each process, bytes.

    python experiments/benchmarks/deployment.py              small and large network
    python experiments/benchmarks/deployment.py --profile    and where a round's time goes

Coordinator, proxy and three sites are processes of this machine over TLS. A round's overhead is the time from its start
to the start of the next one, less the seconds of the slowest site's own work (evaluation and one step of training, by
the site's clock). The first rounds are not counted: they fill caches.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import statistics
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deployment_process import PROFILE, STAMPS
from federation_faults import find
from hospitals import Job, write_hospitals, write_recipe

from eucaim_fl.errors import EucaimError
from eucaim_fl.federation.rehearsal import Rehearsal

__all__ = ["CASES", "overheads", "shares", "spread"]

_HERE = Path(__file__).resolve().parent
_LEFT_OUT = 2
_ROLES = ("supervisor", "superlink", "proxy")
_SITE_ROLES = {"client": "border", "worker_server": "worker's server", "worker": "worker"}


@dataclass(frozen=True)
class Case:
    """A measurement: network, rounds, and the most seconds of overhead that a round should cost."""

    network: str
    rounds: int
    target_s: float


CASES: Mapping[str, Case] = {
    "small": Case("cnn-0.1M", 12, 4.0),
    "100 MB": Case("cnn-25M", 8, 15.0),
}


def overheads(
    starts: Mapping[int, float], records: Sequence[Mapping[str, Any]], left_out: int = _LEFT_OUT
) -> list[float]:
    """Seconds of each round beyond the slowest site's own.

    starts: round → moment; also of the last exchange, which ends the last round. records: the journal's, by round.
    left_out: how many of the first rounds do not count.
    """
    found = []
    for record in records:
        number = record["round"]
        if number > left_out and number + 1 in starts:
            slowest = max(p["seconds"] for p in record["participation"] if p["status"] == "took_part")
            found.append(starts[number + 1] - starts[number] - slowest)
    return found


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and largest."""
    return {"median": statistics.median(values), "least": min(values), "largest": max(values)}


def shares(
    events: Sequence[Mapping[str, Any]], starts: Mapping[int, float], left_out: int = _LEFT_OUT
) -> dict[str, dict[str, float]]:
    """Step → seconds in a round: of one call (median), of all calls of a round together, and of processor time."""
    rounds = [n for n in sorted(starts) if n > left_out and n + 1 in starts]
    found: dict[str, dict[str, float]] = {}
    for step in dict.fromkeys(event["step"] for event in events):
        mine = [e for e in events if e["step"] == step]
        inside = [e for n in rounds for e in mine if starts[n] <= e["began"] < starts[n + 1]]
        if inside:
            found[step] = {
                "call_s": statistics.median(e["ended"] - e["began"] for e in inside),
                "round_s": sum(e["ended"] - e["began"] for e in inside) / len(rounds),
                "cpu_s": sum(e["cpu"] for e in inside) / len(rounds),
            }
    return found


class _Watch:
    """Looks at peak memory and processor time of all processes, over and over: some end before the measurement does.

    peaks: MiB of the largest of a kind. used: processor seconds since the first rounds that do not count, of all of a
    kind together.
    """

    def __init__(self, rehearsal: Rehearsal, stamps: Path) -> None:
        self._rehearsal, self._stamps, self._counts = rehearsal, stamps, False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.peaks: dict[str, float] = {}
        self._used: dict[tuple[str, int], tuple[float, float]] = {}

    @property
    def used(self) -> dict[str, float]:
        """Processor seconds by kind."""
        found: dict[str, float] = {}
        for (name, _), (first, last) in self._used.items():
            found[name] = found.get(name, 0.0) + last - first
        return found

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.25):
            if not self._counts and self._stamps.exists():
                self._counts = f'{{"round": {_LEFT_OUT + 1},' in self._stamps.read_text(encoding="utf-8")
            for role in _ROLES:
                self._note(role, find(self._rehearsal, role, None))
            for site in self._rehearsal.sites:
                for role, words in _SITE_ROLES.items():
                    self._note(words, find(self._rehearsal, f"{role}:{site}", None))
            for pid, words in self._rehearsal.processes().items():
                if "deployment_process.py train" in words:
                    self._note("train", [pid])

    def _note(self, name: str, pids: Sequence[int]) -> None:
        for pid in pids:
            with contextlib.suppress(OSError, StopIteration):
                lines = Path(f"/proc/{pid}/status").read_text().splitlines()
                peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
                self.peaks[name] = max(self.peaks.get(name, 0.0), peak / 1024)
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                seconds = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
                first = self._used.get((name, pid), (seconds, 0.0))[0] if self._counts else seconds
                self._used[name, pid] = (first, seconds)


def _stamps(path: Path) -> tuple[dict[int, float], list[dict[str, Any]], list[str]]:
    """Starts of rounds, timed steps, and what could not be timed."""
    values = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    starts = {v["round"]: v["at"] for v in values if "round" in v}
    missing = sorted({v["missing"] for v in values if "missing" in v})
    return starts, [v for v in values if "step" in v], missing


def measure(case: Case, rounds: int, *, profile: bool, keep: Path | None = None) -> dict[str, Any]:
    """One federation, one run of `rounds` rounds."""
    folder = keep or Path(tempfile.mkdtemp(prefix="deployment-"))
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "hospitals").mkdir(parents=True)
    job = Job(network=case.network, sites=3, workers=1, rounds=rounds, images=12, batch=12, pixels=16)
    files = write_hospitals(folder / "hospitals", job)
    recipe = write_recipe(folder, Job(**{**vars(job), "site_files": files}))
    stamps = folder / "stamps.jsonl"
    environment = {STAMPS: str(stamps), **({PROFILE: "1"} if profile else {})}
    try:
        with Rehearsal(folder, files, environment=environment) as rehearsal:
            rehearsal.command = (sys.executable, str(_HERE / "deployment_process.py"))
            rehearsal.set_up()
            rehearsal.start(timeout_s=180.0)
            with _Watch(rehearsal, stamps) as watch:
                result = rehearsal.train(
                    f"experiment={recipe}", "tracking=none", "federation.quorum=3", "federation.quorum_wait_s=60"
                )
            (run,) = (rehearsal.folder / "runs").glob("*/plan.json")
        records = [json.loads(path.read_text()) for path in sorted(run.parent.glob("journal/round-*/record.json"))]
        starts, events, missing = _stamps(stamps)
        beyond = overheads(starts, records)
        return {
            "network": case.network, "rounds": len(beyond), "target_s": case.target_s,
            "overhead_s": spread(beyond), "overheads_s": beyond,
            "sites_s": spread([max(p["seconds"] for p in r["participation"]) for r in records[_LEFT_OUT:rounds]]),
            "bytes": result["bytes"], "memory_mib": {name: round(v) for name, v in sorted(watch.peaks.items())},
            "processor_s": {name: v / len(beyond) for name, v in sorted(watch.used.items())},
            "steps": shares(events, starts), "not_timed": missing,
        }  # fmt: skip
    finally:
        if keep is None:
            shutil.rmtree(folder, ignore_errors=True)


def _print(name: str, found: Mapping[str, Any]) -> None:
    over, own = found["overhead_s"], found["sites_s"]
    print(f"\n{name} ({found['network']}), {found['rounds']} rounds, three sites")
    print(f"  overhead a round   {over['median']:.2f} s ({over['least']:.2f} – {over['largest']:.2f}), "
          f"target under {found['target_s']:g} s")  # fmt: skip
    print(f"  slowest site's own {own['median']:.2f} s ({own['least']:.2f} – {own['largest']:.2f})")
    up, down = (sum(site[way] for site in found["bytes"].values()) for way in ("up", "down"))
    print(f"  arrays in all      {up / 1e6:.1f} MB up, {down / 1e6:.1f} MB down")
    print("  peak memory (MiB)  " + ", ".join(f"{who} {peak}" for who, peak in found["memory_mib"].items()))
    print("  processor time (s a round)  "
          + ", ".join(f"{who} {used:.2f}" for who, used in found["processor_s"].items()))  # fmt: skip
    if found["steps"]:
        print(f"  {'step of a round':<42}{'one call':>10}{'all calls':>11}{'processor':>11}   (seconds)")
        for step, seconds in found["steps"].items():
            print(f"  {step:<42}{seconds['call_s']:>10.3f}{seconds['round_s']:>11.3f}{seconds['cpu_s']:>11.3f}")
    for step in found["not_timed"]:
        print(f"  not timed: {step}")


def main() -> int:
    """Measure, print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=list(CASES), help="One of the measurements.")
    parser.add_argument("--profile", action="store_true", help="Time the steps of a round; costs little.")
    parser.add_argument(
        "--rounds", type=int, help=f"Instead of each measurement's own; the first {_LEFT_OUT} do not count."
    )
    parser.add_argument("--quick", action="store_true", help="Few rounds: whether it works, not how long it takes.")
    parser.add_argument("--folder", type=Path, help="Work and leave everything here.")
    parser.add_argument("--json", type=Path, help="Write the figures here.")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the federation is stopped
    found = {}
    for name in given.only or CASES:
        case = CASES[name]
        rounds = _LEFT_OUT + 1 if given.quick else given.rounds or case.rounds
        try:
            found[name] = measure(case, rounds, profile=given.profile, keep=given.folder and given.folder.absolute())
        except EucaimError as problem:
            print(problem.for_terminal(), file=sys.stderr)
            return 2
        _print(name, found[name])
    if given.json is not None:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(found, indent=2, sort_keys=True))
    return 0


if __name__ == "__main__":
    sys.exit(main())
