"""What `eucaim-fl privacy audit` found of a plan, as rows of a page; what is not understood is passed over. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

__all__ = ["attack_rows"]

_LONGEST_TEXT = 600
_FOUND = (
    ("Epsilon that is promised", ("claimed_epsilon", "claim.epsilon")),
    ("Epsilon at least, as measured", ("lower_bound", "canary.plan.epsilon")),
    ("The same without noise, on purpose", ("lower_bound_without_noise", "canary.without_noise.epsilon")),
    ("Telling members from others, AUC (0.5 is guessing)", ("membership_auc", "membership.plan.auc")),
    ("The same without protection, AUC", ("membership_auc_without", "membership.without_protection.auc")),
)
"""What is shown, and where it may stand: names with dots lead into mappings."""
_VERDICTS = {
    "consistent": "What was measured agrees with the promise; without noise the audit would have noticed.",
    "weak": "What was measured agrees with the promise, but without noise the audit would not have noticed either.",
    "broken": "The measured lower bound is ABOVE the promise: do not run this plan.",
    "no_promise": "The plan promises this site’s patients nothing.",
    "not_measured": "No lower bound on epsilon was measured.",
}


def attack_rows(found: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """Labels and what was found.

    >>> attack_rows({"verdict": "weak", "canary": {"plan": {"epsilon": 0.4123}}})[0]
    ('Epsilon at least, as measured', '0.412')
    """
    if found is None:
        return []
    rows = []
    for label, places in _FOUND:
        values = (_number(found, place) for place in places)
        value = next((value for value in values if value is not None), None)
        if value is not None:
            rows.append((label, f"{value:.3g}"))
    verdict = found.get("verdict")
    if isinstance(verdict, str) and verdict:
        rows.append(("Verdict", _VERDICTS.get(verdict, verdict[:_LONGEST_TEXT])))
    run, whole = _number(found, "plan.rounds"), _number(found, "rounds_of_the_whole_plan")
    if run is not None and whole is not None and run < whole:
        rows.append(("How much was tried", f"the first {run:g} of {whole:g} rounds"))
    return rows


def _number(found: Mapping[str, Any], place: str) -> float | None:
    value: Any = found
    for name in place.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None
