"""What a site's policy makes of counted identifiers: who is set aside, and what the report says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from eucaim_fl.cohorts.deidentification.rules import RULES, kind_of
from eucaim_fl.cohorts.findings import Finding, Severity
from eucaim_fl.sitefile import DeidentificationConfig

__all__ = ["blocks", "to_findings"]


def _blocks(rule: str, policy: DeidentificationConfig) -> bool:
    kind = kind_of(rule, policy)
    return {"nothing": False, "identifiers": kind == "identifier", "everything": kind != ""}[policy.block]


def blocks(identifiers: Mapping[str, int], policy: DeidentificationConfig) -> str:
    """The rule for which a patient with these counts is set aside, or "" if the patient may be used.

    Of several, the first in the order of `rules.RULES`; a rule that isn't known there blocks like an identifier.
    """
    broken = {rule for rule, count in identifiers.items() if count > 0 and _blocks(rule, policy)}
    for rule in RULES:
        if rule in broken:
            return rule
    return min(broken, default="")


def to_findings(
    by_patient: Iterable[tuple[str, Mapping[str, int]]], policy: DeidentificationConfig
) -> tuple[Finding, ...]:
    """One finding a rule: how many patients break it. A patient may come several times, once a file or stack.

    What blocks under the policy comes first; identifiers that don't block warn, advice informs. Rules that the profile
    doesn't know are left out. Texts are those of the rule: nothing of the values.
    """
    patients: dict[str, set[str]] = {}
    for patient, identifiers in by_patient:
        for rule, count in identifiers.items():
            if count > 0 and kind_of(rule, policy):
                patients.setdefault(rule, set()).add(patient)
    rank: dict[Severity, int] = {"blocks": 0, "warns": 1, "informs": 2}
    findings = [_finding(rule, who, policy) for rule, who in patients.items()]
    return tuple(sorted(findings, key=lambda f: (rank[f.severity], f.rule)))


def _finding(rule: str, patients: set[str], policy: DeidentificationConfig) -> Finding:
    severity: Severity = (
        "blocks" if _blocks(rule, policy) else "warns" if kind_of(rule, policy) == "identifier" else "informs"
    )
    known = RULES.get(rule)
    says = known.says if known else "A rule of the de-identification check that this version doesn't know was broken."
    do = known.do if known else "Scan the cohort again."
    return Finding(rule, severity, len(patients), "patients", says, do, tuple(sorted(patients)))
