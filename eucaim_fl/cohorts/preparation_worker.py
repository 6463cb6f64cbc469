"""An isolated process's side of `preparation`: make one case's entry in the cache, and say what became of it.

What `prepare` needs is loaded when this module is, so that it counts neither as time nor as memory of the first case.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from eucaim_fl.cohorts.cache import Cache
from eucaim_fl.cohorts.monai_parts import load
from eucaim_fl.cohorts.preparation import case_from_json, make_entry
from eucaim_fl.errors import CohortError, DataError
from eucaim_fl.plan import FederationPlan, read_plan

__all__ = ["work"]

load("monai.data", "monai.transforms")


@lru_cache(maxsize=4)
def _plan(text: str) -> FederationPlan:
    return read_plan(text)


@lru_cache(maxsize=4)
def _cache(folder: str) -> Cache:
    return Cache(Path(folder))


def work(item: dict[str, Any], shared: dict[str, Any]) -> dict[str, Any]:
    """Make an entry. item: {"case": …}; shared: {"plan": canonical JSON, "cache": folder}.

    Returns {"content": …, "state": [place, signature]} and, if there is no entry, {"error": {"class", "message", "fix",
    "local_detail"}}.
    """
    case, cache = case_from_json(item["case"]), _cache(shared["cache"])
    state = cache.state(case)
    error: DataError | None
    content = ""
    try:
        outcome = make_entry(case, _plan(shared["plan"]), cache)
        content, error = outcome.content, outcome.error
    except CohortError as problem:  # ends the whole opening, but that is for the caller to do
        error = problem
    answer: dict[str, Any] = {"content": content, "state": [state.place, state.signature]}
    if error is not None:
        answer["error"] = {
            "class": type(error).__name__,
            "message": error.message,
            "fix": error.fix,
            "local_detail": error.local_detail,
        }
    return answer
