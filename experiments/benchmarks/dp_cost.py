"""What privacy costs: time of a step and peak memory with and without it, for every way to gradients per patient.

    python experiments/benchmarks/dp_cost.py [--only NAME]… [--quick] [--steps N] [--json FILE]

Each way has a process of its own with one thread, as sites have; all of a network live at the same time and take one
step after the other in turns, so that what else the machine does meets them alike. Reported are medians, ratios of
medians to the step without privacy (forward, backward, update; the same network and the same batch), and memory above
the imports. Noise is not in a step, for it is the same for all ways: its time is beside. `opacus …` is Opacus as it
comes, on a network whose activations don't work in place.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

__all__ = ["NETWORKS", "compare", "main"]

_HERE = Path(__file__).resolve().parent
_WAYS = ("plain", "loop", "functorch", "hooks", "ghost", "opacus hooks", "opacus ghost")
_TARGETS = {"time": 2.0, "memory": 1.5}

NETWORKS: Mapping[str, dict[str, Any]] = {
    "small_cnn-2d": {"network": "small_cnn", "args": {}, "task": "classification", "size": [64, 64], "patients": 16},
    "densenet121-2d": {
        "network": "densenet121", "args": {"norm": "group"}, "task": "classification", "size": [64, 64],
        "patients": 16,
    },
    "unet-3d": {"network": "unet", "args": {}, "task": "segmentation", "size": [48] * 3, "patients": 8},
    "segresnet-3d": {"network": "segresnet", "args": {}, "task": "segmentation", "size": [32] * 3, "patients": 8},
}  # fmt: skip
"""Networks, tasks and logical batches; arguments that are not given are the product's defaults."""
_QUICK = {"size": 16, "patients": 2}


def compare(runs: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """For each way that ran: median seconds, peak bytes, and both over those of `plain`."""
    plain = runs["plain"]
    base = statistics.median(plain["seconds"])
    return {
        way: {
            "seconds": statistics.median(run["seconds"]),
            "peak": run["peak"],
            "time": statistics.median(run["seconds"]) / base,
            "memory": run["peak"] / plain["peak"],
        }
        for way, run in runs.items()
        if "failed" not in run
    }


def _start(job: Mapping[str, Any]) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(_HERE / "dp_cost_process.py"), json.dumps(job)]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def _heard(process: subprocess.Popen[str], line: str | None = None) -> dict[str, Any]:
    """The next line of a process's answer, after asking for it; why it ended, if it did."""
    if process.stdin is None or process.stdout is None or process.stderr is None:
        raise RuntimeError("the process was started without pipes")
    if line is not None:
        process.stdin.write(line + "\n")
        process.stdin.flush()
    answer = process.stdout.readline()
    if not answer:
        return {"failed": process.stderr.read().strip().splitlines()[-1]}
    found: dict[str, Any] = json.loads(answer)
    return found


def measure(job: Mapping[str, Any], ways: Sequence[str], steps: int) -> dict[str, Any]:
    """Every way's steps in turns; a way that can't train this network says why."""
    processes: dict[str, subprocess.Popen[str]] = {}
    try:
        for way in ways:
            processes[way] = _start({**job, "way": way})
        runs = {way: {**_heard(process), "seconds": []} for way, process in processes.items()}
        running = [way for way, run in runs.items() if "failed" not in run]
        for _ in range(steps):
            for way in running:
                runs[way]["seconds"].append(_heard(processes[way], "step")["seconds"])
        for way in running:
            runs[way] |= _heard(processes[way], "")
    finally:
        for process in processes.values():
            process.kill()
            process.communicate()
    return {"job": dict(job), "runs": runs, "compared": compare(runs)}


def _table(found: Mapping[str, Any]) -> Table:
    table = Table("network", "way", "a step", "time", "peak", "memory", title="Cost of privacy", title_justify="left")
    for name, case in found.items():
        noise = case["runs"]["plain"]["noise"]
        for way, run in case["runs"].items():
            if "failed" in run:
                table.add_row(name, way, "fails", "", "", "")
                continue
            entry = case["compared"][way]
            table.add_row(
                name,
                way,
                f"{entry['seconds'] * 1e3:.0f} ms",
                f"{entry['time']:.2f}",
                f"{entry['peak'] / 1e6:.0f} MB",
                f"{entry['memory']:.2f}",
            )
        table.add_row(name, "noise", f"{noise * 1e3:.0f} ms", "", "", "")
        table.add_section()
    return table


def main() -> None:
    """Measure, print the table, and write everything as JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=[*NETWORKS], help="measure this network only; repeatable")
    parser.add_argument("--way", action="append", choices=_WAYS[1:], help="this way only, beside plain; repeatable")
    parser.add_argument("--quick", action="store_true", help="tiny images and batches: shows that it works, no more")
    parser.add_argument("--steps", type=int, default=9, help="steps of each way")
    parser.add_argument("--physical-batch", type=int, default=16, help="patients in memory at a time")
    parser.add_argument("--json", type=Path, help="file for all figures")
    options = parser.parse_args()
    found: dict[str, Any] = {}
    for name in options.only or NETWORKS:
        job = {**NETWORKS[name], "physical_batch": options.physical_batch}
        if options.quick:
            job |= {"size": [max(_QUICK["size"], 32 if "dense" in name else 0)] * len(job["size"])}
            job |= {"patients": _QUICK["patients"]}
        ways = ["plain", *(options.way or _WAYS[1:])]
        found[name] = measure(job, ways, 2 if options.quick else options.steps)
    Console(width=100).print(_table(found))
    if options.json is not None:
        machine = {"cores": len(os.sched_getaffinity(0)), "load": os.getloadavg()[0], "torch": version("torch")}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({"machine": machine, "targets": _TARGETS, "networks": found}, indent=1))


if __name__ == "__main__":
    main()
