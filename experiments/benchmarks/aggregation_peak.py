"""Peak memory of one aggregation, in a process of its own: prints JSON.

python aggregation_peak.py UPDATE.safetensors… < {"rule": …, "server_optimizer": …}
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from eucaim_fl.arrays import ArrayFile
from eucaim_fl.config import RuleConfig, ServerOptimizerConfig
from eucaim_fl.strategies.aggregation import aggregate
from eucaim_fl.strategies.server_optimizer import apply

__all__: list[str] = []


def _status(entry: str) -> int:
    """A line of this process's /proc status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{entry}:"))


def main(paths: list[str]) -> None:
    """Baseline: after the imports, before the model is in memory. Measured: the model, and one whole round's step."""
    settings = json.load(sys.stdin)
    rule, optimizer = RuleConfig(**settings["rule"]), ServerOptimizerConfig(**settings["server_optimizer"])
    updates = [ArrayFile(Path(path)) for path in paths]
    baseline = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from here
    weights = updates[0].load()
    model = sum(array.nbytes for array in weights.values())
    started = time.perf_counter()
    apply(optimizer, weights, aggregate(rule, updates, [10.0] * len(updates)), {}, lambda name: True)
    seconds = time.perf_counter() - started
    print(json.dumps({"model": model, "peak": _status("VmHWM") - baseline, "seconds": seconds}))


if __name__ == "__main__":
    main(sys.argv[1:])
