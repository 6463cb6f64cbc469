"""What this framework costs beyond the training itself, side by side with a bare loop that does the same work.

    python experiments/benchmarks/overhead.py [--only NAME]… [--quick] [--json FILE]

start-up      process start to the first optimizer step of any site; one round over three sites.
rounds        five rounds over 3 and 10 sites, 64 images of 64 x 64 a site in batches of 16: the rounds alone, and the
              whole process from start to exit, without tracking and with MLflow.
memory        peak of aggregating 4, 16, 64 updates of 100 MB from disk.
many-sites    100 sites with a small network: seconds a round, overhead a site and round.

The bare loop (bare.py, bare_site.py) starts as many workers in the same way, reads the same cached tensors, passes
arrays through pipes and averages with numpy. Both do equal work: a site evaluates the arriving model on its validation
images, then trains; the final model is evaluated on validation and test images. Both start from the same weights and
see the same batches, and their final weights are compared. The bare loop has no journal, checks, report or Flower.

How the times are taken: on the clock that processes share. A hook of PyTorch's own, imported into the server that
workers are forked from, stamps the first optimizer step; a listener of the run stamps each round's start. The command
is `eucaim-fl train` from a recipe file, with interpreter start and imports. Runs of both kinds alternate. First, one
run of each is thrown away: it fills the preprocessing cache, the disk cache and MLflow's database.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from eucaim_fl.arrays import ArrayFile, encode_arrays
from eucaim_fl.plan import read_plan

_HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(_HERE))

from hospitals import Job, write_bare_job, write_hospitals, write_recipe  # noqa: E402
from overhead_table import make_table  # noqa: E402
from stamps import VARIABLE, read_stamps  # noqa: E402

__all__ = ["MEASUREMENTS", "Options", "Times", "compare", "main", "measure_job"]

_LARGEST_DIFFERENCE = 0.05  # of the way that training went: rounding grows with each step, other work would be further


@dataclass(frozen=True)
class Options:
    """quick: everything as small as it can be, to see that it works. repeat: runs of each kind that count."""

    quick: bool = False
    repeat: int = 5
    workers: int = len(os.sched_getaffinity(0))
    networks: tuple[str, ...] = ("cnn-0.1M", "cnn-7M")


@dataclass(frozen=True)
class Times:
    """Seconds of one run: to the first optimizer step, of the training rounds, of the whole process."""

    first_step: float
    rounds: float
    process: float


# --- running ------------------------------------------------------------------------------------------------------


def _run(command: Sequence[str], folder: Path, rounds: int) -> tuple[Times, str]:
    """Run a command with stamps in a process of its own; its times and what it printed."""
    stamps = folder / "stamps.txt"
    stamps.unlink(missing_ok=True)
    path = os.pathsep.join(filter(None, (str(_HERE), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path, VARIABLE: str(stamps)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # what is installed has its byte code; so should a checkout
    with (folder / "stderr.txt").open("w+") as errors:
        started = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, *command], cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True
        )
        process.wait()  # what it prints fits into the pipe
        ended = time.monotonic()
        printed, _ = process.communicate()  # ends when all of its processes have ended: none disturbs the next run
        if process.returncode != 0:
            errors.seek(0)
            raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{printed}{errors.read()}")
    at = read_stamps(stamps)
    times = Times(at["first_step"] - started, at[f"round-{rounds + 1}"] - at["round-1"], ended - started)
    return times, printed


def _ours(recipe: str, tracking: str, folder: Path, rounds: int) -> tuple[Times, Path]:
    """One run of the command; its times and run folder."""
    command = [str(_HERE / "observed.py"), "train", f"experiment={recipe}", f"tracking={tracking}"]
    times, printed = _run(command, folder, rounds)
    return times, Path(printed.splitlines()[-1])


def _bare(job_file: Path, folder: Path, rounds: int) -> tuple[Times, dict[str, Any]]:
    """One run of the bare loop; its times and final weights."""
    weights = folder / "bare.npz"
    times, _ = _run([str(_HERE / "bare.py"), str(job_file), str(weights)], folder, rounds)
    with np.load(weights) as arrays:
        return times, dict(arrays)


def _difference(run: Path, bare: Mapping[str, Any]) -> float:
    """Distance of both final weights, as a share of the way from the initial ones: rounding alone leaves next to none.

    Raises RuntimeError if the two did not train alike.
    """
    ours = ArrayFile(run / "models" / "last.safetensors").load()
    first = ArrayFile(run / "journal" / "round-0000" / "weights.safetensors").load()
    if set(ours) != set(bare):
        raise RuntimeError("the two networks differ")

    def distance(a: Mapping[str, Any], b: Mapping[str, Any]) -> float:
        return math.sqrt(sum(float(np.square(a[n].astype(np.float64) - b[n]).sum()) for n in a))

    share = distance(ours, bare) / distance(ours, first)
    if not share <= _LARGEST_DIFFERENCE:
        raise RuntimeError(f"the final weights are {share:.1%} of the way apart: the two did not do the same work")
    return share


def measure_job(job: Job, root: Path, options: Options, trackings: Sequence[str] = ("none",)) -> dict[str, Any]:
    """Times of one job: ours with each kind of tracking, and the bare loop's, in turn."""
    recipe = write_recipe(root, job)
    job_file = root / f"{recipe}.json"
    runs: dict[str, list[Times]] = {}
    apart = 0.0
    for number in range(0 if options.quick else -1, options.repeat):  # −1: to warm up
        for tracking in trackings:
            times, run = _ours(recipe, tracking, root, job.rounds)
            if number >= 0:
                runs.setdefault(tracking, []).append(times)
        if not job_file.exists():
            write_bare_job(job_file, read_plan((run / "plan.json").read_text()), job)
        times, weights = _bare(job_file, root, job.rounds)
        apart = max(apart, _difference(run, weights))
        if number >= 0:
            runs.setdefault("bare", []).append(times)
    return {
        "job": {k: v for k, v in asdict(job).items() if k != "site_files"},
        "weights_apart": apart,
        "times": {kind: [asdict(t) for t in times] for kind, times in runs.items()},
        "compared": {kind: compare(runs[kind], runs["bare"]) for kind in trackings},
    }


def compare(ours: Sequence[Times], bare: Sequence[Times]) -> dict[str, dict[str, float]]:
    """For each of the times: both medians, their ratio and difference, the extremes of the ratio run by run."""
    table = {}
    for name in ("first_step", "rounds", "process"):
        a, b = [getattr(t, name) for t in ours], [getattr(t, name) for t in bare]
        ratios = [x / y for x, y in zip(a, b, strict=True)]
        x, y = statistics.median(a), statistics.median(b)
        table[name] = {
            "ours_s": x,
            "bare_s": y,
            "ratio": x / y,
            "later_s": x - y,
            "ratio_low": min(ratios),
            "ratio_high": max(ratios),
        }
    return table


# --- measurements -------------------------------------------------------------------------------------------------


def _with_hospitals(job: Job, root: Path) -> Job:
    return replace(job, site_files=write_hospitals(root, job))


def start_up(options: Options, root: Path) -> dict[str, Any]:
    """Process start to the first step."""
    job = Job("cnn-0.1M", 3, min(options.workers, 3), rounds=1, images=32 if options.quick else 64)
    return {"target_later_s": 1.0, **measure_job(_with_hospitals(job, root), root, options)}


def rounds(options: Options, root: Path) -> dict[str, Any]:
    """Rounds and whole process, over few and more sites, without and with tracking."""
    sizes = (3,) if options.quick else (3, 10)
    base = Job("", max(sizes), options.workers, rounds=2 if options.quick else 5, images=32 if options.quick else 64)
    files = write_hospitals(root, base)
    cases = [
        measure_job(
            replace(base, network=network, sites=n, workers=min(options.workers, n), site_files=files[:n]),
            root,
            options,
            ("none", "mlflow"),
        )
        for network in options.networks
        for n in sizes
    ]
    return {"target_rounds": 1.05, "target_process": 1.3, "cases": cases}


def many_sites(options: Options, root: Path) -> dict[str, Any]:
    """Many hospitals, each with next to nothing to compute: what a site costs in a round."""
    job = Job("cnn-0.1M", 10 if options.quick else 100, options.workers, rounds=2 if options.quick else 5, images=16)
    found = measure_job(_with_hospitals(job, root), root, options)
    rounds = found["compared"]["none"]["rounds"]
    return {
        **found,
        "seconds_a_round": rounds["ours_s"] / job.rounds,
        "bare_seconds_a_round": rounds["bare_s"] / job.rounds,
        "overhead_ms_a_site_and_round": 1000 * rounds["later_s"] / job.rounds / job.sites,
    }


_AGGREGATIONS: Mapping[str, dict[str, Any]] = {
    "weighted mean": {"rule": {"name": "weighted_mean"}, "server_optimizer": {"name": "plain"}},
    "median": {"rule": {"name": "median"}, "server_optimizer": {"name": "plain"}},
    "multi-Krum": {"rule": {"name": "multi_krum", "suspects": 0}, "server_optimizer": {"name": "plain"}},
    "weighted mean, Adam": {"rule": {"name": "weighted_mean"}, "server_optimizer": {"name": "adam", "lr": 0.01}},
}


def memory(options: Options, root: Path) -> dict[str, Any]:
    """Peak memory of aggregation; all updates are one file under many names (hard links), so the disk holds one.

    The model is one array of half its size and 25 equal ones. Adam's own state is four more models (old and new m
    and v), so it has no target.
    """
    size = (20 if options.quick else 100) * 10**6
    counts = (4,) if options.quick else (4, 16, 64)
    rng = np.random.default_rng(0)
    arrays = {"large": rng.standard_normal(size // 8, dtype=np.float32)}
    arrays |= {f"small{n:02d}": rng.standard_normal(size // 200, dtype=np.float32) for n in range(25)}
    first = root / "update-0.safetensors"
    with first.open("wb") as stream:
        stream.writelines(encode_arrays(arrays))
    del arrays
    paths = [str(first), *(str(root / f"update-{n}.safetensors") for n in range(1, max(counts)))]
    for path in paths[1:]:
        os.link(first, path)
    cases = []
    for name, settings in _AGGREGATIONS.items():
        for count in counts:
            command = [sys.executable, str(_HERE / "aggregation_peak.py"), *paths[:count]]
            done = subprocess.run(command, input=json.dumps(settings), capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise RuntimeError(done.stderr)
            case = {"method": name, "updates": count, **json.loads(done.stdout)}
            cases.append({**case, "peak_in_models": case["peak"] / case["model"]})
    for path in paths:
        Path(path).unlink()
    return {"target_in_models": 4.0, "cases": cases}


MEASUREMENTS: Mapping[str, Callable[[Options, Path], dict[str, Any]]] = {
    "start-up": start_up,
    "rounds": rounds,
    "memory": memory,
    "many-sites": many_sites,
}

# --- telling ------------------------------------------------------------------------------------------------------


def _machine() -> dict[str, Any]:
    return {
        "cores": len(os.sched_getaffinity(0)),
        "load_before": os.getloadavg()[0],
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in ("eucaim-fl", "torch", "monai", "flwr", "numpy", "mlflow")},
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table, write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=list(MEASUREMENTS), help="one measurement; may be repeated")
    parser.add_argument(
        "--quick", action="store_true", help="as small as possible: shows that it works, not what it costs"
    )
    parser.add_argument("--repeat", type=int, help="runs of each kind that count (default 5; quick: 1)")
    parser.add_argument("--network", action="append", choices=["cnn-0.1M", "cnn-7M", "densenet121"], help="of `rounds`")
    parser.add_argument("--json", type=Path, default=Path("runs/overhead.json"), metavar="FILE")
    given = parser.parse_args(arguments)
    options = Options(given.quick, given.repeat or (1 if given.quick else 5))
    if given.network or given.quick:
        options = replace(options, networks=tuple(given.network or ["cnn-0.1M"]))
    result: dict[str, Any] = {
        "schema_version": 1,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": _machine(),
        "options": asdict(options),
        "equal_work": "Both evaluate the arriving model on the validation images each round and the final model on "
        "validation and test images; same initial weights, batches, steps; one thread a process.",
        "measurements": {},
    }
    console = Console(width=max(120, Console().width))
    for name in given.only or MEASUREMENTS:
        console.print(f"{name} …")
        with tempfile.TemporaryDirectory(prefix="overhead-") as folder:
            result["measurements"][name] = MEASUREMENTS[name](options, Path(folder))
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(result, indent=2) + "\n")
    console.print(make_table(result["measurements"]))
    console.print(f"{result['equal_work']}\n{given.json}")


if __name__ == "__main__":
    main()
