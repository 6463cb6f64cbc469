"""Kill the demo's coordinator at random moments, resume it each time, and compare the weights with an undisturbed run.

    python experiments/benchmarks/kill_anywhere.py --kills 20

Prints each kill (seconds after the start, rounds complete by then) and whether the final weights are the same bits.
Exit 1 if they are not.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

OVERRIDES = ["experiment=demo", "rounds=8", "training.local_steps=10", "tracking=none"]
COMMAND = [sys.executable, "-m", "eucaim_fl", "train"]


def start(*words: str) -> subprocess.Popen[str]:
    """The command in a session of its own, so that only its own process is killed."""
    return subprocess.Popen([*COMMAND, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                            start_new_session=True)  # fmt: skip


def finished(process: subprocess.Popen[str]) -> Path:
    """The run folder that a run printed last."""
    output, _ = process.communicate()
    if process.returncode != 0:
        sys.exit(f"a run failed:\n{output}")
    return Path(output.strip().splitlines()[-1])


def rounds_done(folder: Path) -> int:
    """Completed rounds in a run's journal."""
    return len(list(folder.glob("journal/round-*/record.json")))


def main() -> None:
    """Run, kill, resume, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    runs = Path(tempfile.mkdtemp(prefix="kill-anywhere-"))
    fresh = [*OVERRIDES, f"runs_dir={runs}"]
    began = time.monotonic()
    reference = finished(start(*fresh))
    whole = time.monotonic() - began
    want = json.loads((reference / "result.json").read_text())["weights_sha256"]
    moments, folder, kills = random.Random(given.seed), None, 0
    while kills < given.kills:
        known = set(reference.parent.glob("*/plan.json"))
        process = start(f"resume={folder}") if folder else start(*fresh)
        wait = moments.uniform(0.5, whole)
        try:
            process.wait(wait)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
            new = set(reference.parent.glob("*/plan.json")) - known
            folder = folder or next((path.parent for path in new), None)
            print(f"kill {kills:2d} after {wait:5.1f} s, rounds complete: {rounds_done(folder) if folder else 0}")
            continue
        if not folder:
            folder = finished(process)
        print("ended before it was killed; starting again")
        check(folder, want)
        folder = None
    folder = finished(start(f"resume={folder}") if folder else start(*fresh))
    check(folder, want)


def check(folder: Path, want: str) -> None:
    """Compare a finished run's weights."""
    found = json.loads((folder / "result.json").read_text())["weights_sha256"]
    print("same weights to the bit" if found == want else f"OTHER WEIGHTS: {found} instead of {want}")
    if found != want:
        sys.exit(1)


if __name__ == "__main__":
    main()
