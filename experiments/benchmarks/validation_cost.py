"""What a validation costs: seconds of the analysis and its page, of a site's stages, and of a model's bytes.

    python experiments/benchmarks/validation_cost.py [--part report|site|file]… [--quick] [--json FILE]

`report`: records of 4, 12 and 30 made-up hospitals about two models, with six thresholds, a hundred bins, groups by
four rules (16 scopes) and 2,000 resamples, in a process of its own that imports, reads, analyses and makes the page.
`site`: 1,000 patients of a synthetic hospital, one image of 96 × 96 each, judged by the product's own node; then up to
200 of the same batches with and without a lock, in turns. `file`: a model of 1 GB from the coordinator's disk to the
sealed file of the locked process, all in one process, so memory is that of coordinator and site together. No data are
needed. Each process has one thread, as sites have. CPU seconds stand beside wall seconds, for a machine that does
something else besides; what the locked process takes is told apart.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from rich.console import Console
from rich.table import Table
from validation_records import TASKS, again, plan_of, records_of

from eucaim_fl.validation.record import ValidationRecord

__all__ = ["main", "measure_report"]

_HERE = Path(__file__).resolve().parent
_SITES = (4, 12, 30)
_LONGEST_S = 3600
_RECORDS = TypeAdapter(tuple[ValidationRecord, ...])


def _child(what: str, given: str) -> dict[str, Any]:
    """What a process of its own found; `wall_s` is from its start to its end."""
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, str(_HERE / "validation_cost_process.py"), what, given],
        env={**os.environ, **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")},
        capture_output=True, text=True, timeout=_LONGEST_S, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "the process said nothing")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {**found, "process_wall_s": time.perf_counter() - started}


def measure_report(root: Path, counts: Sequence[int], samples: int) -> list[dict[str, Any]]:
    """Both tasks with each number of sites; plans, records and results stay under root."""
    rows = []
    for task in TASKS:
        largest = records_of(plan_of(task, max(counts), samples))
        for sites in sorted(counts):
            plan = plan_of(task, sites, samples)
            folder = root / f"{task}-{sites}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "plan.json").write_text(plan.canonical_json())
            (folder / "records.json").write_bytes(_RECORDS.dump_json(again(largest, plan)))
            rows.append({"task": task, "sites": sites, "samples": samples, **_child("report", str(folder))})
    return rows


def _seconds(one: Mapping[str, float]) -> str:
    return f"{one['wall_s']:.2f} ({one['cpu_s']:.2f})"


def _report_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(
        "task", "sites", "import", "read", "analyse", "render", "process", "records", "numbers", "page", "peak"
    )
    table.title, table.title_justify = "A report: seconds, wall (CPU)", "left"
    for row in rows:
        stages, sizes = row["stages"], row["bytes"]
        table.add_row(
            row["task"],
            str(row["sites"]),
            *(_seconds(stages[name]) for name in ("import", "read", "analyse", "render")),
            f"{row['process_wall_s']:.2f} ({row['whole']['cpu_s']:.2f})",
            *(f"{sizes[name] / 1e6:.1f} MB" for name in ("records", "result", "page")),
            f"{row['peak_mb']:.0f} MB",
        )
    return table


def _site_table(row: Mapping[str, Any]) -> Table:
    table = Table("stage", "seconds: wall (CPU)")
    table.title = f"A site of {row['patients']} patients, {row['format']}, {row['task']}"
    table.title_justify = "left"
    for name, one in row["stages"].items():
        table.add_row(name, _seconds(one))
    table.add_row("locked process, CPU", f"{row['locked_cpu_s']:.2f}")
    table.add_row("inference, locked / plain, wall", f"{row['ratio']:.2f}")
    table.add_row("bytes that leave", f"{row['bytes']['leaves']:,} ({row['bytes']['as_sent']:,} as sent)")
    table.add_row("peak of the site's process; of the locked one", f"{row['peak_mb']:.0f}; {row['locked_mb']:.0f} MB")
    return table


def _file_table(row: Mapping[str, Any]) -> Table:
    table = Table("step", "seconds: wall (CPU)", "memory afterwards", "peak so far")
    table.title, table.title_justify = f"A model of {row['bytes'] / 1e6:,.0f} MB on its way", "left"
    for name, one in row["steps"].items():
        table.add_row(name, _seconds(one), f"{one['memory_mb']:,.0f} MB", f"{one['peak_mb']:,.0f} MB")
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the tables, and write everything as JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", action="append", choices=["report", "site", "file"], help="this one only; repeatable")
    parser.add_argument("--quick", action="store_true", help="few of everything: shows that it works, no more")
    parser.add_argument("--keep", type=Path, help="folder for plans, records and results; else they are removed")
    parser.add_argument("--json", type=Path, help="file for all figures")
    options = parser.parse_args(arguments)
    parts, quick = options.part or ["report", "site", "file"], options.quick
    found: dict[str, Any] = {"machine": {"cores": len(os.sched_getaffinity(0)), "load": os.getloadavg()[0]}}
    console = Console(width=160)
    with tempfile.TemporaryDirectory() as temporary:
        root = options.keep or Path(temporary)
        if "report" in parts:
            found["report"] = measure_report(root, (2,) if quick else _SITES, 50 if quick else 2000)
            console.print(_report_table(found["report"]))
        if "site" in parts:
            jobs = [{"task": task, "format": kind, "patients": 12 if quick else 1000, "pixels": 32 if quick else 96}
                    for task, kind in (("classification", "onnx"), ("classification", "network"),
                                       ("segmentation", "network"))]  # fmt: skip
            found["site"] = [_child("site", json.dumps(job)) for job in jobs]
            for row in found["site"]:
                console.print(_site_table(row))
        if "file" in parts:
            found["file"] = _child("file", json.dumps({"bytes": 10**6 if quick else 10**9}))
            console.print(_file_table(found["file"]))
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
