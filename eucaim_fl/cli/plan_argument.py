"""The argument PLAN of commands at a site: a file, or the beginning of a plan's SHA-256."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from eucaim_fl.errors import PlanError

if TYPE_CHECKING:
    from eucaim_fl.plan import FederationPlan
    from eucaim_fl.site.home import SiteHome

__all__ = ["read_plan_argument"]

_LONGEST_PLAN = 1024 * 1024
_DIGITS = re.compile(r"[0-9a-f]{1,64}")


def read_plan_argument(words: str, home: SiteHome | None) -> FederationPlan:
    """The plan in a file, or one that the home keeps. Raises PlanError if there is none, or it is not valid."""
    from eucaim_fl.plan import read_plan
    from eucaim_fl.signing import canonical_json
    from eucaim_fl.site.approvals import find_plan

    path = Path(words)
    if home is not None and not path.exists() and _DIGITS.fullmatch(words):
        return find_plan(home, words)
    try:
        if not path.is_file():
            raise ValueError("no such file")
        with path.open("rb") as stream:
            raw = stream.read(_LONGEST_PLAN)
        text = canonical_json(json.loads(raw)).decode()  # as `plan show` prints it, people may have it indented
    except (OSError, ValueError, RecursionError) as problem:
        raise PlanError(
            "The plan can't be read.",
            fix="Name a JSON file, such as plan.json of a run folder; or with --home, 4 or more digits of its SHA-256.",
            local_detail=f"{path}: {(problem.strerror if isinstance(problem, OSError) else None) or problem}",
        ) from None
    return read_plan(text)
