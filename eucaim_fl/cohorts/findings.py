"""What a check of a cohort found: the rule, how grave, how many, and what to do. Never the values themselves."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

__all__ = ["Finding", "Severity", "merge"]

Severity = Literal["blocks", "warns", "informs"]


@dataclass(frozen=True, order=True)
class Finding:
    """One rule of one check, over the whole cohort.

    rule: short name, `check.rule` (lower case, digits, `_` and one dot), the same for ever. count: how many `unit`s
    it concerns. says: the fact, in plain words; do: what hospital IT can do about it. Both are fixed texts: they hold
    no path, name, identifier or stored value. subjects: patients (as the cohort names them) that it concerns, or
    columns where the unit is columns or cells; for this machine's terminal only. () where nobody can be named.
    """

    rule: str
    severity: Severity
    count: int
    unit: Literal["patients", "series", "files", "values", "columns", "cells", "cohort"]
    says: str
    do: str
    subjects: tuple[str, ...] = ()


def merge(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """One finding a rule: counts added, subjects united; the gravest first, then by rule."""
    by_rule: dict[str, Finding] = {}
    for one in findings:
        known = by_rule.get(one.rule)
        by_rule[one.rule] = (
            one
            if known is None
            else replace(known, count=known.count + one.count, subjects=tuple(sorted({*known.subjects, *one.subjects})))
        )
    rank = {"blocks": 0, "warns": 1, "informs": 2}
    return tuple(sorted(by_rule.values(), key=lambda f: (rank[f.severity], f.rule)))
