"""Federated averaging as a bare loop: the same steps in the same process layout, without journal, checks or Flower.

python bare.py JOB.json WEIGHTS.npz
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, cast

import numpy as np
from stamps import stamp

__all__: list[str] = []

Arrays = dict[str, np.ndarray[Any, Any]]


def _site(pipe: Connection, job_file: str) -> None:
    from bare_site import serve  # with torch, which this module and so the parent does without

    serve(pipe, job_file)


def _answers(pipes: list[Connection], sites: int, number: int, weights: Arrays) -> Iterator[tuple[int, Any]]:
    """Send the round to all sites, as many at a time as there are workers; yield (site, answer) as they come."""
    waiting, idle, busy = list(range(sites)), list(pipes), dict[Connection, int]()
    while waiting or busy:
        while waiting and idle:
            pipe = idle.pop(0)
            busy[pipe] = waiting.pop(0)
            pipe.send((busy[pipe], number, weights))
        for ready in wait(list(busy)):
            pipe = cast(Connection, ready)
            idle.append(pipe)
            yield busy.pop(pipe), pipe.recv()


def _mean(updates: Mapping[int, Arrays], patients: list[int]) -> Arrays:
    """Average by patients in float64, in the order of sites."""
    shares = np.array(patients) / sum(patients)
    mean: Arrays = {}
    for name, first in updates[0].items():
        total = np.zeros(first.shape)
        for site, share in enumerate(shares):
            total += share * updates[site][name]
        mean[name] = total.astype(first.dtype)
    return mean


def main(job_file: str, weights_file: str) -> None:
    """Run all rounds and the last evaluation, save the weights."""
    job = json.loads(Path(job_file).read_text())
    sites, rounds = len(job["sites"]), job["rounds"]
    pipes = []
    for _ in range(job["workers"]):
        here, there = context.Pipe()
        context.Process(target=_site, args=(there, job_file), daemon=True).start()
        there.close()
        pipes.append(here)
    pipes[0].send((0, 0, None))
    weights = pipes[0].recv()
    for number in range(rounds + 1):
        stamp(f"round-{number + 1}")
        answers = dict(_answers(pipes, sites, number, weights))
        scores = np.mean([scores for scores, _ in answers.values()], axis=0)
        print(f"round {number + 1}: accuracy {' '.join(f'{score:.3f}' for score in scores)}")
        if number < rounds:
            weights = _mean({s: update for s, (_, update) in answers.items()}, [len(s["train"]) for s in job["sites"]])
    np.savez(weights_file, **weights)


context = get_context("forkserver")
if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    context.set_forkserver_preload(["first_step", "bare_site"])
    main(*sys.argv[1:])
