"""The last parts of the validation's page: what was suppressed, what can't be concluded, who signed, from what."""

from __future__ import annotations

import re
from collections.abc import Sequence

from eucaim_fl.plan import FederationPlan
from eucaim_fl.validation.group_words import group_name, rule_name, rule_of
from eucaim_fl.validation.page.about import About
from eucaim_fl.validation.page.blocks import Block, Items, Pairs, Section, Table, Words, joined
from eucaim_fl.validation.page.charts import everybody
from eucaim_fl.validation.page.names import classes_of, figure_name, reason_words
from eucaim_fl.validation.record import EVERYBODY
from eucaim_fl.validation.result_schema import ValidationResult

__all__ = ["limits_section", "provenance_section", "signatures_section", "suppressed_section"]

_STATES = {
    "verified": "verified",
    "broken": "DOES NOT FIT the record",
    "unchecked": "there, not checked",
    "missing": "none",
}
_MOST_ROWS = 400


def suppressed_section(result: ValidationResult, plan: FederationPlan) -> Section:
    """What hospitals kept to themselves, by group and reason, and what is not defined."""
    labels = classes_of(plan.task)
    blocks: list[Block] = []
    missing = [one.site for one in result.sites if not one.answered]
    silent = [("all patients", joined(missing), "did not answer")] if missing else []
    grouped: dict[tuple[str, str], list[str]] = {}
    for scope in result.models[0].scopes if result.models else ():
        for cell in scope.withheld:
            grouped.setdefault((scope.scope, reason_words(cell.reason)), []).append(cell.site)
    alike: dict[tuple[str, str, str], list[str]] = {}
    for (name, reason), sites in grouped.items():
        alike.setdefault((rule_of(name), joined(sites), reason), []).append(name)
    rows = [*silent, *((_scope_words(names), sites, reason) for (_, sites, reason), names in alike.items())]
    if rows:
        shown = rows[:_MOST_ROWS]
        blocks.append(
            Words("What a hospital keeps to itself is missing from every figure above; it is never counted as 0.")
        )
        blocks.append(Table(("Of whom", "Hospitals", "Reason"), shown, text=frozenset({1, 2})))
        if len(rows) > len(shown):
            blocks.append(Words(f"{len(rows) - len(shown)} more are in report.json.", "note"))
    else:
        blocks.append(Words("No hospital withheld anything that the plan asked for."))
    undefined = [
        (model.name, figure_name(name, labels), f"{count:,}")
        for model in result.models
        if (whole := everybody(model)) is not None
        for name, count in whole.undefined.items()
        if count
    ]
    if undefined:
        blocks.append(
            Table(("Model", "Figure", "Patients"), undefined, "Not defined for these patients", frozenset({1}))
        )
    blocks.append(
        Words(
            "No patient's result, image or identifier left a hospital. What left are counts and sums of groups that "
            "are large enough for the hospital's own rules.",
            "note",
        )
    )
    return Section("suppressed", "What was suppressed, and why", blocks)


def limits_section(result: ValidationResult, plan: FederationPlan) -> Section:
    """What these figures can't show, whatever they are."""
    items = [
        "The hospitals are those that took part: no random sample of hospitals, and neither are their patients.",
        "Figures hold for this frozen model by its hash, these inputs and these thresholds. Another version is another "
        "model.",
        "Truth is what the hospitals have as truth. Where it is wrong or differs between hospitals, so do the figures.",
        "Patients of whom a model gave no answer, or whom a hospital set aside, are in no figure.",
        "Hospitals know a model again by the SHA-256 of its file: of one that was saved anew, or that the maker tested "
        "elsewhere, they can't tell that figures were seen before.",
        "Intervals tell of chance only. They know nothing of errors in the data, of selection, or of counts that a "
        "hospital rounds before it tells them.",
        "PPV, NPV, F1, accuracy and net benefit hold for the share of diseased patients in these data.",
        "A difference that is not shown is not shown to be absent, in groups least of all.",
        "Nothing here is about patients who were followed up with the model in use: this is a test on data, no trial.",
    ]
    if any(one.trained_on == "" for one in (plan.validation.models if plan.validation is not None else ())):
        items.insert(2, "A maker does not say what data a model was trained on, so patients may be among them.")
    scope = everybody(result.models[0]) if result.models else None
    if scope is not None and sum(not site.withheld for site in scope.sites) < 3:
        items.insert(0, "With fewer than three hospitals, nothing can be said of how a further one would fare.")
    return Section("limits", "Limits", [Items(items)])


def signatures_section(result: ValidationResult, about: About) -> Section:
    """Who signed what was told, and whether it was verified."""
    known = {one.site: one for one in about.signatures}
    rows = []
    for line in result.sites:
        one = known.get(line.site)
        state = _STATES[one.state] if one is not None else "none" if line.answered else "did not answer"
        rows.append((line.site, state, one.key if one is not None else "", one.said if one is not None else ""))
    verified = sum(one.state == "verified" for one in about.signatures)
    answered = sum(line.answered for line in result.sites)
    words = (
        f"Each hospital signs the plan's hash together with its record. {verified} of {answered} signatures "
        "were verified against the hospitals' keys when the records came. They can be verified again without any "
        "server: eucaim-fl report verify."
    )
    if answered and not any(one.state != "missing" for one in about.signatures):
        words = (
            f"None of the {answered} records is signed, so nothing but the coordinator's word says that hospitals told "
            "these figures. That every number follows from the records can be checked: eucaim-fl report verify."
        )
    broken = any(one.state == "broken" for one in about.signatures)
    blocks: list[Block] = [
        Words(words, "alarm" if broken else "plain"),
        Table(("Hospital", "Signature", "Key", ""), rows, text=frozenset({1, 2, 3})),
    ]
    return Section("signatures", "Signatures", blocks, verified > 0)


def provenance_section(result: ValidationResult, plan: FederationPlan, about: About) -> Section:
    """What the page was made from."""
    pairs = [
        ("Plan, SHA-256", result.plan_sha256, True),
        ("Software of the plan", plan.software, False),
        ("Seed", f"{result.seed}", False),
        ("Numbers", "report.json beside this page holds every number of it", False),
        *((what, value, _HASH.fullmatch(value) is not None) for what, value in about.provenance),
    ]
    return Section("provenance", "Provenance", [Pairs(pairs)])


def _scope_words(scopes: Sequence[str]) -> str:
    """Groups of one rule, or all patients."""
    words = joined([group_name(scope) for scope in scopes])
    return words if scopes[0] == EVERYBODY else f"{rule_name(rule_of(scopes[0]))}: {words}"


_HASH = re.compile(r"[0-9a-f]{40,}")
