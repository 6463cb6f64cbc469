"""The first parts of the validation's page: the answer, how it was asked, and of whom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from eucaim_fl.config import IntensityConfig
from eucaim_fl.errors import DataError
from eucaim_fl.plan import FederationPlan
from eucaim_fl.task_config import TaskConfig
from eucaim_fl.validation.group_words import group_name, rule_name, rule_of
from eucaim_fl.validation.page.about import About
from eucaim_fl.validation.page.blocks import Block, Items, Pairs, Section, Table, Words, joined
from eucaim_fl.validation.page.charts import everybody, participation_plot, told_by_nobody
from eucaim_fl.validation.page.names import (
    classes_of,
    figure_name,
    head_figures,
    percent,
    reason_words,
    show_figure,
)
from eucaim_fl.validation.record import EVERYBODY
from eucaim_fl.validation.result_schema import ScopeResult, ValidationResult, Verdict
from eucaim_fl.validation.wording import count
from eucaim_fl.validation_config import ModelContract, ValidationConfig

__all__ = ["Answer", "asked_section", "data_section", "left_out", "opening", "task_words"]

_QUESTIONS = {
    "does_it_work": "Does it work?",
    "where": "Where?",
    "for_whom": "For whom?",
    "how_sure": "How sure is this?",
}
_LONGEST = 400
_MOST = {"does_it_work": 5, "where": 3, "for_whom": 4, "how_sure": 5}
_WEIGHT = ("bad", "warning", "good", "plain")
_TONES = {"good": "Good", "bad": "Bad", "warning": "Note", "plain": ""}


@dataclass(frozen=True)
class Answer:
    """What the first page says.

    models: names. about: what is said of them, by model: hash, intended use, origin; whether it is a hash. questions:
    with (tone, its word, sentence). facts: name and value. notices: tone and sentence, of what must not be overlooked.
    results: name, figure by model.
    """

    title: str
    task: str
    models: list[str]
    about: list[tuple[str, list[str], bool]]
    questions: list[tuple[str, list[tuple[str, str, str]]]]
    facts: list[tuple[str, str]]
    notices: list[tuple[str, str]]
    results: list[tuple[str, list[str]]]


def task_words(task: TaskConfig) -> str:
    """What the models are for, by the plan."""
    if task.name == "segmentation":
        return f"Outlines of {joined(task.labels)} in {task.spatial_dims}-D images"
    if task.name == "multilabel":
        return f"Yes or no for each of {joined(task.targets)}"
    if task.name == "survival":
        return f"Risk, by {task.time} until {task.event}"
    return f"Classification of {task.target} into {joined(task.classes)}"


def opening(result: ValidationResult, plan: FederationPlan, about: About) -> Answer:
    """The first page, from the result's own sentences."""
    asked = _asked(plan)
    answered = [site for site in result.sites if site.answered]
    told = [site for site in answered if site.patients is not None]
    first = everybody(result.models[0])
    labels = classes_of(plan.task)
    names = head_figures(list(first.figures), labels, 1) if first is not None else []
    scopes = [everybody(model) for model in result.models]
    return Answer(
        title=f"Validation of {joined([model.name for model in asked.models])}",
        task=task_words(plan.task),
        models=[one.name for one in asked.models],
        about=[
            ("SHA-256", [one.sha256 for one in asked.models], True),
            ("Intended use, by its maker", [_clipped(one.intended_use) for one in asked.models], False),
            ("Trained on, by its maker", [_clipped(one.trained_on) or "not said" for one in asked.models], False),
        ],
        questions=_questions(result.verdicts),
        facts=[
            ("Patients", "none told" if first is None or not told else f"{first.patients:,}"),
            ("Hospitals with figures", f"{len(told)} of {len(result.sites)}"),
            ("Intervals", percent(result.level)),
            ("Signatures verified", _signed(about, len(answered))),
        ],
        notices=_notices(result, plan, about),
        results=[
            (
                figure_name(name, labels),
                [show_figure(scope.figures.get(name), name, labels) if scope is not None else "–" for scope in scopes],
            )
            for name in names
        ],
    )


def asked_section(result: ValidationResult, plan: FederationPlan, about: About) -> Section:
    """The pre-registration: what was fixed, when, by which hash, and whether anything was changed after."""
    asked = _asked(plan)
    labels = classes_of(plan.task)
    fixed = f"{about.fixed_at}{f' ({about.fixed_by})' if about.fixed_by else ''}" if about.fixed_at else "not on record"
    blocks: list[Block] = [
        Words(
            "The plan below was fixed as a whole, and its hash is what every hospital judged, accepted and signed with "
            "its record. A plan with any other threshold, margin or group has another hash."
        )
    ]
    if plan.sha256() != result.plan_sha256:
        blocks.append(Words(_OTHER_PLAN, "alarm"))
    if about.changes:
        blocks.append(Words(f"This speaks against a plan that came first: {' '.join(about.changes)}", "alarm"))
    elif plan.sha256() == result.plan_sha256:
        blocks.append(
            Words("Nothing was changed after the plan was fixed." if about.fixed_at else _UNKNOWN_TIME,
                  "good" if about.fixed_at else "warning")
        )  # fmt: skip
    pairs = [
        ("Plan, SHA-256", result.plan_sha256, True),
        ("Fixed", fixed, False),
        ("First record received", about.first_seen_at or "not on record", False),
        ("Question", task_words(plan.task), False),
        ("Patients asked for", _whom(asked), False),
        ("Comparisons and margins", _comparisons(asked, labels), False),
        ("Groups", _groups(asked), False),
        ("Precision wanted", _widths(asked, labels), False),
    ]
    if plan.task.name in ("classification", "multilabel"):
        pairs += [
            ("Thresholds", ", ".join(f"{one:g}" for one in asked.thresholds) or "none", False),
            ("Score bins", f"{asked.bins} of equal width, and the thresholds as edges", False),
        ]
    if plan.task.name == "segmentation":
        pairs.append(("Surface Dice", f"within {asked.tolerance_mm:g} mm", False))
        pairs.append(("A lesion counts as found", f"from an overlap (IoU) of {asked.lesion_overlap:g}", False))
    pairs += [
        (
            "Intervals",
            f"{percent(result.level)}; bootstrap with {asked.bootstrap_samples} samples, seed {result.seed}",
            False,
        ),
        ("Limits of a model", f"{asked.limits.image_seconds:g} s an image, {asked.limits.memory_gb:g} GB", False),
    ]
    blocks.append(Pairs(pairs))
    blocks += [
        Table(("Model", one.name), _contract(one), f"Contract of {one.name}", frozenset({1})) for one in asked.models
    ]
    return Section("asked", "How it was asked", blocks)


def data_section(result: ValidationResult, plan: FederationPlan, about: About) -> Section:
    """Of whom the figures are: hospitals, patients, and how many of which group."""
    blocks: list[Block] = [participation_plot(result), Words(result.counted_in, "note")]
    if about.synthetic:
        blocks.append(Words(f"Made-up data, which says nothing of patients: {joined(about.synthetic)}.", "alarm"))
    scope = everybody(result.models[0])
    rows = _prevalence(result)
    if rows:
        blocks.append(Table(("Hospital", "Patients", "With it", "Share"), rows, "Patients with what is looked for"))
        if any("none told" in row for row in rows):
            blocks.append(Words(_NONE_TOLD, "note"))
    groups = _group_sizes(result.models[0].scopes)
    if groups:
        blocks.append(
            Table(
                ("Grouped by", "Group", "Patients", "Hospitals that told"),
                groups,
                "Who the patients are",
                frozenset({1}),
            )
        )
    if about.data:
        blocks.append(
            Table(("Hospital", "What", ""), about.data, "What hospitals say of their data", frozenset({1, 2}))
        )
    failed = [(one.site, reason_words(why), f"{n:,}") for one in result.sites for why, n in one.failed.items()]
    if failed:
        blocks.append(Table(("Hospital", "Reason", "Images"), failed, "Images without an answer", frozenset({1})))
    blocks.append(
        Items(
            [
                "The reference standard is what each hospital has in its cohort; how it was made is for the hospital "
                "to say.",
                "Patients were taken as each hospital's consent and eligibility rules let them; who was left out is "
                "known there only.",
            ]
            + ([] if scope is not None else ["No figures of all patients were told."])
        )
    )
    return Section("data", "Data", blocks, bool(result.sites))


_OTHER_PLAN = (
    "The plan of these results is not the plan shown here: their hashes differ. Don't rely on what this section says."
)
_UNKNOWN_TIME = "When the plan was fixed is not on record here; its hash alone says what was fixed, not when."


def _asked(plan: FederationPlan) -> ValidationConfig:
    if plan.validation is None:
        raise DataError("The plan asks for no validation.", fix="Take the plan of the validation's own run.")
    return plan.validation


def _clipped(words: str) -> str:
    """The beginning of a long text; the whole stands in the model's contract."""
    return words if len(words) <= _LONGEST else f"{words[:_LONGEST].rstrip()} … (more in its contract below)"


def _questions(verdicts: tuple[Verdict, ...]) -> list[tuple[str, list[tuple[str, str, str]]]]:
    found = []
    for question, words in _QUESTIONS.items():
        own = [one for one in verdicts if one.question == question]
        said: list[tuple[str, str, str]] = [(one.tone, _TONES[one.tone], one.sentence) for one in _weightiest(own)]
        if len(own) > len(said):
            more = count(len(own) - len(said), "more sentence")
            said.append(("plain", "", f"{more} on this: see “In sentences” under “Results”."))
        found.append((words, said or [("plain", "", "The result says nothing on this.")]))
    return found


def _weightiest(own: Sequence[Verdict]) -> list[Verdict]:
    """What the first page has room for, in its order: the first sentence, then bad news and warnings before good."""
    if not own:
        return []
    ranked = sorted(range(1, len(own)), key=lambda at: (_WEIGHT.index(own[at].tone), at))
    return [own[at] for at in sorted([0, *ranked[: _MOST[own[0].question] - 1]])]


def left_out(result: ValidationResult) -> bool:
    """Whether the first page has no room for some of the result's sentences."""
    own = ([one for one in result.verdicts if one.question == question] for question in _QUESTIONS)
    return any(len(said) > len(_weightiest(said)) for said in own)


def _notices(result: ValidationResult, plan: FederationPlan, about: About) -> list[tuple[str, str]]:
    found = []
    if plan.sha256() != result.plan_sha256:
        found.append(("alarm", _OTHER_PLAN))
    if about.changes:
        found.append(("alarm", "Something speaks against a plan that came before any result; see “How it was asked”."))
    if broken := [one.site for one in about.signatures if one.state == "broken"]:
        found.append(("alarm", f"The signature does not fit the record of {joined(broken)}."))
    if about.synthetic:
        found.append(("warning", f"Data of {joined(about.synthetic)} is made up and says nothing of patients."))
    return found


def _signed(about: About, answered: int) -> str:
    return f"{sum(one.state == 'verified' for one in about.signatures)} of {answered}"


def _whom(asked: ValidationConfig) -> str:
    return "all usable patients of each hospital" if asked.patients == "all" else "those of each hospital's test split"


def _comparisons(asked: ValidationConfig, labels: tuple[str, ...]) -> str:
    if not asked.comparisons:
        return "none"
    return "; ".join(
        f"{figure_name(one.metric, labels)}"
        + (f", not worse by {one.margin:g} or more" if one.margin is not None else ", difference only")
        for one in asked.comparisons
    )


def _groups(asked: ValidationConfig) -> str:
    if not asked.subgroups:
        return "none"
    return "; ".join(
        f"{rule_name(one.by)}: {', '.join(map(group_name, one.groups())) or 'as patients have it'}"
        for one in asked.subgroups
    )


def _widths(asked: ValidationConfig, labels: tuple[str, ...]) -> str:
    found = (f"{figure_name(name, labels)} ± {width:g}" for name, width in asked.half_widths.items())
    return "; ".join(found) or "none stated"


def _contract(model: ModelContract) -> list[tuple[str, str]]:
    intensity = model.data.intensity
    return [
        ("File", f"{model.format}, {model.size_bytes:,} bytes"),
        ("SHA-256", model.sha256),
        ("Intended use, by its maker", model.intended_use),
        ("Trained on, by its maker", model.trained_on or "not said"),
        ("Input", _input(model)),
        ("Intensities", intensity.kind if intensity.kind == "zscore" else _window(intensity)),
        ("Output", model.outputs),
    ]


def _window(intensity: IntensityConfig) -> str:
    return f"{intensity.kind} from {intensity.low:g} to {intensity.high:g}, to 0 … 1"


def _input(model: ModelContract) -> str:
    data = model.data
    channels = ", ".join(f"{rule.name} ({rule.modality or 'any'})" for rule in data.channels)
    size, spacing = ("×".join(f"{n:g}" if n else "any" for n in three) for three in (data.size_voxels, data.spacing_mm))
    kind = channels or f"{data.modality or 'any modality'}{', in colour' if data.colour else ''}"
    windows = "" if model.patch_voxels is None else f", in windows of {'×'.join(map(str, model.patch_voxels))}"
    grid = f"{size} voxels of {spacing} mm, {data.orientation}{windows}"
    return f"{count(data.number_of_channels(), 'channel')}: {kind}; {grid}"


_NONE_TOLD = (
    "“None told”: in that hospital there is nobody with it, or there are too few to be told; hospitals do not say "
    "which. Those few are in none of its figures."
)


def _group_sizes(scopes: Sequence[ScopeResult]) -> list[tuple[str, str, str, str]]:
    """Patients of each group; those of a rule of which no hospital tells share a row at its end."""
    rows = []
    for rule in dict.fromkeys(rule_of(one.scope) for one in scopes if one.scope != EVERYBODY):
        own = [one for one in scopes if rule_of(one.scope) == rule]
        hidden = [one for one in own if told_by_nobody(one)]
        rows += [
            (rule_name(rule), group_name(one.scope), f"{one.patients:,}" if one.patients else "suppressed",
             f"{len(one.sites) - len(one.withheld)}" if one.sites else "–")
            for one in own if one not in hidden
        ]  # fmt: skip
        if hidden:
            rows.append((rule_name(rule), joined([group_name(one.scope) for one in hidden]), "suppressed or none", "0"))
    return rows


def _prevalence(result: ValidationResult) -> list[tuple[str, str, str, str]]:
    """Patients with the disease by hospital, from counts at the first threshold of the first label."""
    scope = everybody(result.models[0])
    if scope is None or not scope.thresholds or len({one.label for one in scope.thresholds}) > 1:
        return []

    def row(name: str, counts: tuple[int, int]) -> tuple[str, str, str, str]:
        with_it, patients = counts
        if not 0 < with_it < patients:  # a class that a hospital keeps to itself looks like one that nobody is in
            return name, f"{patients:,}", f"{with_it:,}" if with_it else "none told", "can't be told"
        return name, f"{patients:,}", f"{with_it:,}", percent(with_it / patients)

    rows = []
    for site in scope.sites:
        if site.thresholds:
            one = site.thresholds[0]
            with_it = one.true_positives + one.false_negatives
            rows.append(row(site.site, (with_it, with_it + one.false_positives + one.true_negatives)))
    one = scope.thresholds[0]
    with_it = one.true_positives + one.false_negatives
    return [*rows, row("All", (with_it, with_it + one.false_positives + one.true_negatives))] if rows else []
