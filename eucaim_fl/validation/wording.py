"""How the report says things: names of metrics, numbers with units, and what happened to a site."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from eucaim_fl.plan import FederationPlan
from eucaim_fl.privacy.promise import epsilon_words
from eucaim_fl.validation.labels import MACRO

__all__ = [
    "STATUS_LETTERS",
    "STATUS_WORDS",
    "count",
    "metric_name",
    "metric_value",
    "model_words",
    "privacy_words",
    "provenance_rows",
    "ranges",
    "show_bytes",
    "show_seconds",
    "task_words",
    "withheld_words",
]

STATUS_WORDS: Mapping[str, str] = {
    "took_part": "took part",
    "error": "reported an error",
    "lost": "its process ended",
    "deadline": "did not answer in time",
    "rejected": "its reply did not fit the plan",
    "absent": "was not connected",
}
STATUS_LETTERS: Mapping[str, str] = {"error": "E", "lost": "L", "deadline": "D", "rejected": "R", "absent": "A"}

_WITHHELD = {
    "by_the_sites_rules": "its rules let none leave (nobody or too few patients, the policy, or privacy; sites do not "
    "tell which)"
}
_METRICS = {
    "dice": "Dice",
    "hd95_mm": "HD95, mm",
    "auc": "AUC",
    "auc_site_mean": "AUC, mean of sites",
    "balanced_accuracy": "Balanced accuracy",
    "brier": "Brier score",
    "c_index": "Concordance index",
    "c_index_site_mean": "Concordance index, mean of sites",
}


def privacy_words(privacy: Mapping[str, Any] | None) -> str:
    """What a run's `privacy` in result.json promises, in one line.

    >>> privacy_words(None)
    'no noise was added'
    """
    if privacy is None:
        return "no noise was added"
    whose = "each patient of a site" if privacy["unit"] == "patient" else "a site as a whole"
    whom = "" if privacy["against"] == "coordinator" else ", from those who see the models, not from the coordinator"
    source = "" if privacy["secure"] else "; the noise follows from the seed, so whoever has the plan can take it off"
    spent = f"epsilon {epsilon_words(privacy['epsilon'])} at delta {privacy['delta']:g}"
    return f"{spent} for {whose}{whom} ({privacy['mechanism']}){source}"


def withheld_words(reason: str) -> str:
    """Why a site withheld its metrics; a reason that is not known keeps its own words.

    >>> withheld_words("too few patients")
    'too few patients'
    """
    return _WITHHELD.get(reason, reason)


def task_words(plan: FederationPlan) -> str:
    """What the network is for, as the headline has it."""
    task = plan.task
    if task.name == "segmentation":
        return f"Segmentation of {', '.join(task.labels)}"
    if task.name == "multilabel":
        return f"Yes or no for each of {', '.join(task.targets)}"
    if task.name == "survival":
        return f"Risk by {task.time} until {task.event}"
    return f"Classification of {task.target} into {', '.join(task.classes)}"


def metric_name(name: str, plan: FederationPlan) -> str:
    """A metric as people write it; one that is not known keeps its own name.

    A label's Dice is `Dice, <label>`, and so are the figures of a multi-label task's targets.
    """
    task = plan.task
    if name in _METRICS:
        return f"{_METRICS[name]}, mean of targets" if task.name == "multilabel" else _METRICS[name]
    if task.name == "multilabel":
        own = ((kind, name.removeprefix(f"{kind}_")) for kind in ("auc_site_mean", *MACRO))
        return next((f"{_METRICS[kind]}, {target}" for kind, target in own if target in task.targets), name)
    if task.name == "segmentation" and name.removeprefix("dice_") in task.labels:
        return f"Dice, {name.removeprefix('dice_')}"
    return name


def metric_value(name: str, value: float) -> str:
    """Three decimals, or two for millimetres.

    >>> metric_value("dice", 0.87312), metric_value("hd95_mm", 4.217)
    ('0.873', '4.22')
    """
    return f"{value:.2f}" if name.endswith("_mm") else f"{value:.3f}"


def model_words(plan: FederationPlan) -> dict[str, str]:
    """What the models are called that sites of a plan have, with how each came about."""
    personal = plan.method.personal
    if personal.ditto is not None:
        how = f"drawn to the common one, λ = {personal.ditto:g}"
    else:
        tuned = f"{count(personal.fine_tune_steps, 'step')} of fine-tuning" if personal.fine_tune_steps else ""
        how = ", ".join(filter(None, ("" if personal.arrays == "none" else f"own {personal.arrays}", tuned)))
    return {
        "common": "Common",
        "personal": f"Personal ({how})" if how else "Personal",
        "local": "Local alone",
        "blended": f"Mean of {personal.blended()} and local",
    }


def count(number: int, noun: str) -> str:
    """A number with its noun.

    >>> count(1, "round"), count(4, "site")
    ('1 round', '4 sites')
    """
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def show_seconds(seconds: float) -> str:
    """A duration for people.

    >>> show_seconds(4.25), show_seconds(130), show_seconds(7500)
    ('4.2 s', '2 min 10 s', '2 h 5 min')
    """
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min"


def show_bytes(number: float) -> str:
    """An amount of data in decimal units.

    >>> show_bytes(999), show_bytes(1_500_000)
    ('999 B', '1.5 MB')
    """
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= factor:
            return f"{number / factor:.1f} {unit}"
    return f"{number:.0f} B"


def ranges(rounds: Sequence[int], last: int) -> str:
    """Rounds in words, runs joined; what comes after the `last` one is the final evaluation.

    >>> ranges([2, 3, 4, 7, 11], 10)
    'rounds 2–4, 7, final'
    """
    parts: list[tuple[int, int]] = []
    for number in sorted(n for n in set(rounds) if n <= last):
        if parts and parts[-1][1] == number - 1:
            parts[-1] = (parts[-1][0], number)
        else:
            parts.append((number, number))
    words = [f"{a}" if a == b else f"{a}–{b}" for a, b in parts]
    many = len(parts) > 1 or (bool(parts) and parts[0][0] != parts[0][1])
    text = f"round{'s' if many else ''} {', '.join(words)}" if words else ""
    return ", ".join(part for part in (text, "final" if max(rounds, default=0) > last else "") if part)


def provenance_rows(provenance: Mapping[str, Any]) -> list[tuple[str, str, bool]]:
    """(what, value, whether it is a hash) for reading; unknown entries are left to the JSON file."""
    machine, git = provenance.get("machine") or {}, provenance.get("git")
    rows = [("Python", str(provenance.get("python", "–")), False)]
    if packages := provenance.get("packages"):
        rows.append(("Packages", ", ".join(f"{name} {version}" for name, version in packages.items()), False))
    commit = f"{git.get('commit')}{' with local changes' if git.get('dirty') else ''}" if git else ""
    rows.append(("Code", commit or "installed package", bool(git)))
    if machine:
        what = " · ".join(str(machine[k]) for k in ("cpu", "architecture", "system") if machine.get(k))
        rows.append(("Coordinator", f"{what} · {count(int(machine.get('cores', 0)), 'core')}", False))
    rows += [(f"Cohort of {site}", str(digest), True) for site, digest in (provenance.get("cohorts") or {}).items()]
    return rows
