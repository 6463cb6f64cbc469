"""The middle parts of the validation's page: figures, hospitals, groups, calibration, comparison, sample size."""

from __future__ import annotations

from collections.abc import Sequence

from eucaim_fl.plan import FederationPlan
from eucaim_fl.validation.group_words import group_name, rule_name
from eucaim_fl.validation.page.blocks import Block, Head, Items, Pairs, Plots, Section, Table, Words
from eucaim_fl.validation.page.chart_curves import MOST_LABELS, calibration_plots, curve_plots, decision_plots
from eucaim_fl.validation.page.charts import (
    agreement_plots,
    difference_words,
    everybody,
    forests,
    group_plots,
    matrix_plot,
)
from eucaim_fl.validation.page.meanings import meanings
from eucaim_fl.validation.page.names import (
    classes_of,
    digits_of,
    figure_name,
    number_or,
    p_words,
    parsed,
    percent,
    show_figure,
)
from eucaim_fl.validation.page.opening import left_out
from eucaim_fl.validation.result_schema import (
    BetweenSites,
    ComparisonResult,
    Curves,
    Figure,
    ScopeResult,
    ValidationResult,
)
from eucaim_fl.validation.wording import count

__all__ = [
    "between_section",
    "calibration_section",
    "comparison_section",
    "groups_section",
    "results_section",
    "sample_section",
]

_OUTCOMES = {"shown": "Non-inferiority shown", "not_shown": "Not shown", "inferior_shown": "Inferiority shown"}
_MOST_GROUP_ROWS = 120
_AGREEMENT = (
    "The diamond is the mean of found − true; 95 % of patients' differences are expected in the shaded range, between "
    "the limits of agreement."
)
_SPREAD = (
    "I²: share of the variance between hospitals' estimates that is more than chance. τ: how far hospitals' true "
    "figures lie apart, as a standard deviation; of shares on the logit scale. p: of estimates at least as far apart "
    "if all hospitals were alike. A new hospital: 95 % prediction interval."
)
_ADJUSTED = "Adjusted: by Holm's method over all differences of all models, so that many looks don't count as one."


def results_section(result: ValidationResult, plan: FederationPlan) -> Section:
    """Every figure on all patients with its interval, the curves, and the counts behind."""
    labels = classes_of(plan.task)
    blocks: list[Block] = []
    if left_out(result):
        blocks += [Head("In sentences"), Items([one.sentence for one in result.verdicts])]
    for model in result.models:
        scope = everybody(model)
        if scope is None:
            continue
        blocks.append(Head(model.name))
        if scope.figures:
            rows = [_figure_row(name, figure, labels) for name, figure in scope.figures.items()]
            heads = (
                "Figure",
                f"Estimate ({percent(result.level)} interval)",
                "Counting may hide",
                "Patients",
                "Hospitals",
                "",
            )
            blocks.append(Table(heads, rows, text=frozenset({5})))
        else:
            blocks.append(Words("No figures were told."))
        blocks += _counts(scope, plan)
    if plots := curve_plots(result):
        blocks += [Head("Curves"), _legend(result), Plots(plots)]
        blocks += _left_out(result)
    if volumes := agreement_plots(result):
        blocks += [Head("Agreement of volumes (Bland–Altman)"), Words(_AGREEMENT, "soft"), Plots(volumes, wide=True)]
    scopes = [scope for model in result.models if (scope := everybody(model)) is not None]
    if any(one.lowest is not None for scope in scopes for one in scope.figures.values()):
        blocks.append(
            Words(
                "“Counting may hide”: scores reach the report as counts in bins, so the figure of the patients' own "
                "scores lies in this range; empty where counting changes nothing or no range is known.",
                "note",
            )
        )
    named = {parsed(name, labels).metric: None for scope in scopes for name in scope.figures}
    if told := meanings(named):
        blocks += [Head("What the figures mean"), Pairs([(name, words, False) for name, words in told])]
    return Section("results", "Results", blocks, bool(blocks))


def between_section(result: ValidationResult, plan: FederationPlan) -> Section:
    """Forest plots of the first model's first figures, a table of all of them, and the models at every hospital."""
    labels = classes_of(plan.task)
    plots = forests(result.models[0], plan.task)
    blocks: list[Block] = []
    if plots:
        blocks += [
            Words(
                "Each hospital's own figure with its interval; the larger its dot, the more it weighs. Diamond: the "
                "mean over hospitals (random effects, REML, Hartung–Knapp). Line below: where the true figure of a "
                "further hospital of this kind is to be expected.",
                "soft",
            ),
            Plots(plots, wide=True),
        ]
    for model in result.models:
        scope = everybody(model)
        if scope is not None and scope.between:
            rows = [_between_row(one, labels) for one in scope.between]
            heads = ("Figure", "Mean over hospitals", "A new hospital", "I²", "τ", "p", "Worst at", "Hospitals")
            blocks.append(Table(heads, rows, f"Between hospitals: {model.name}", frozenset({6})))
    if any(scope is not None and scope.between for scope in map(everybody, result.models)):
        blocks.append(Words(_SPREAD, "note"))
    matrix = matrix_plot(result, plan.task)
    if matrix is not None:
        blocks += [Head("At every hospital"), matrix]
    if not plots:
        blocks.append(Words("Nothing can be said of differences between hospitals: too few told their figures."))
    return Section("between", "Between hospitals", blocks, bool(plots))


def groups_section(result: ValidationResult, plan: FederationPlan) -> Section:
    """Groups of patients by the plan's rules, and how they differ."""
    labels = classes_of(plan.task)
    asked = plan.validation.subgroups if plan.validation is not None else ()
    plots = group_plots(result, asked, plan.task)
    if not plots:
        words = "The plan asked for no groups." if not asked else "No figures of groups were told."
        return Section("groups", "Groups of patients", [Words(words)], answered=False)
    blocks: list[Block] = [
        Words(
            "Dot: the group; upright line: all patients. The difference is that from the largest group of the same "
            "rule. A group with too few patients is suppressed at the hospitals, and named here as such.",
            "soft",
        ),
        Plots(plots, wide=True),
    ]
    first = [one for one in result.differences if one.model == result.models[0].name]
    known = [one for one in first if one.difference is not None]
    if known:
        rows = [
            (
                rule_name(one.rule),
                f"{group_name(one.group)} − {group_name(one.reference)}",
                figure_name(one.figure, labels),
                difference_words(one, digits_of(one.figure, labels)),
                p_words(one.p),
                p_words(one.p_adjusted),
            )
            for one in known[:_MOST_GROUP_ROWS]
        ]
        heads = ("Grouped by", "Groups", "Figure", "Difference", "p", "p,\u00a0adjusted")
        blocks.append(Table(heads, rows, f"Differences between groups: {first[0].model}", frozenset({1, 2})))
        blocks.append(Words(_ADJUSTED, "note"))
    if len(first) > len(known):
        missing = len(first) - len(known)
        blocks.append(
            Words(f"{count(missing, 'difference')} can't be told, since a group's figure is not there.", "note")
        )
    if len(known) > _MOST_GROUP_ROWS or len(result.differences) > len(first):
        blocks.append(Words("Further differences, and those of the other model, are in report.json.", "note"))
    return Section("groups", "Groups of patients", blocks)


def calibration_section(result: ValidationResult, plan: FederationPlan) -> Section:
    """Whether probabilities are right, and what acting on them is worth."""
    plots = calibration_plots(result)
    thresholds = plan.validation.thresholds if plan.validation is not None else ()
    decisions = decision_plots(result, thresholds)
    if not plots and not decisions:
        return Section(
            "calibration",
            "Calibration and use",
            [Words("There are no probabilities of patients, so there is no calibration and no decision curve.")],
            answered=False,
        )
    blocks: list[Block] = []
    if plots or decisions:
        blocks += [
            Words(
                "Points: groups of about as many patients, by their score, with the share of them that has the "
                "disease. On the dotted diagonal probabilities are right; the line is the calibration line. Bars: "
                "patients in each group.",
                "soft",
            ),
            _legend(result),
            Plots([*plots, *decisions]),
        ]
    return Section("calibration", "Calibration and use", blocks)


def comparison_section(result: ValidationResult, plan: FederationPlan) -> Section:
    """The first model against the second."""
    labels = classes_of(plan.task)
    if not result.comparisons:
        words = "The plan asked for no comparison." if len(result.models) < 2 else "Nothing was compared."
        return Section("comparison", "Comparison", [Words(words)], answered=False)
    first, second = (model.name for model in result.models[:2])
    blocks: list[Block] = [Words(f"{first} − {second}, on the same patients.", "soft")]
    for one in result.comparisons:
        if one.outcome is not None:
            tone = {"shown": "good", "not_shown": "warning", "inferior_shown": "alarm"}[one.outcome]
            words = f"{figure_name(one.figure, labels)}: {one.sentence or _OUTCOMES[one.outcome]}"
            blocks.append(Words(words, tone))  # type: ignore[arg-type]
    heads = ("Figure", "Difference", "Margin", "p", "p,\u00a0adjusted", "Patients", "Hospitals", "")
    rows = [_comparison_row(one, labels) for one in result.comparisons]
    blocks.append(Table(heads, rows, text=frozenset({7})))
    counted = [one for one in result.comparisons if one.counts is not None]
    if counted:
        cells = [(figure_name(one.figure, labels), *(f"{n:,}" for n in one.counts or ())) for one in counted]
        right = ("Figure", "Both right", f"Only {first}", f"Only {second}", "Neither")
        blocks.append(Table(right, cells, "Patients by who was right"))
    return Section("comparison", "Comparison and non-inferiority", blocks)


def sample_section(result: ValidationResult, plan: FederationPlan) -> Section:
    """Whether there were enough patients for the precision that the plan wants."""
    labels = classes_of(plan.task)
    if not result.half_widths:
        words = (
            "The plan states no precision that it wants, so this report can't say whether there were enough patients."
        )
        return Section("sample", "Sample size", [Words(words)], answered=False)
    several = len(result.models) > 1
    rows = [
        (
            figure_name(one.figure, labels),
            *((one.model,) if several else ()),
            {True: "yes", False: "no", None: "can't be told"}[one.enough],
            number_or(one.half_width, digits_of(one.figure, labels)),
            number_or(one.wanted_half_width, digits_of(one.figure, labels)),
            "–" if one.patients is None else f"{one.patients:,}",
            "–" if one.needed is None else f"about {one.needed:,}",
            one.sentence,
        )
        for one in result.half_widths
    ]
    heads = (
        "Figure",
        *(("Model",) if several else ()),
        "Enough?",
        "±\u00a0found",
        "±\u00a0wanted",
        "Patients",
        "Needed",
        "",
    )
    return Section(
        "sample", "Sample size", [Table(heads, rows, text=frozenset({1, len(heads) - 1} if several else {6}))]
    )


def _figure_row(name: str, figure: Figure, labels: Sequence[str]) -> tuple[str, ...]:
    digits = digits_of(name, labels)
    bounds = ""
    if figure.lowest is not None and figure.highest is not None:
        bounds = f"{number_or(figure.lowest, digits)} to {number_or(figure.highest, digits)}"
    return (
        figure_name(name, labels),
        show_figure(figure, name, labels) if figure.value is not None else "no figure",
        bounds,
        "–" if figure.patients is None else f"{figure.patients:,}",
        f"{figure.sites}",
        figure.reason,
    )


def _between_row(one: BetweenSites, labels: Sequence[str]) -> tuple[str, ...]:
    digits = digits_of(one.figure, labels)
    value = one.reason or "no figure"
    if one.value is not None:
        value = f"{number_or(one.value, digits)} ({number_or(one.low, digits)} to {number_or(one.high, digits)})"
    new = "–"
    if one.prediction_low is not None and one.prediction_high is not None:
        new = f"{number_or(one.prediction_low, digits)} to {number_or(one.prediction_high, digits)}"
    share = "–" if one.i2 is None else percent(one.i2)
    if one.i2_low is not None and one.i2_high is not None:
        share += f" ({percent(one.i2_low)} to {percent(one.i2_high)})"
    name = figure_name(one.figure, labels)
    tau, p = number_or(one.tau, 2), p_words(one.p_heterogeneity)
    return name, value, new, share, tau, p, one.worst_site or "–", f"{one.sites}"


def _comparison_row(one: ComparisonResult, labels: Sequence[str]) -> tuple[str, ...]:
    return (
        figure_name(one.figure, labels),
        difference_words(one, digits_of(one.figure, labels)) if one.difference is not None else "no figure",
        "–" if one.margin is None else f"{one.margin:g}",
        p_words(one.p),
        p_words(one.p_adjusted),
        "–" if one.patients is None else f"{one.patients:,}",
        f"{one.sites}",
        one.reason,
    )


def _counts(scope: ScopeResult, plan: FederationPlan) -> list[Block]:
    """Decisions at thresholds, confusion matrix and lesions."""
    blocks: list[Block] = []
    if scope.thresholds:
        several = len({one.label for one in scope.thresholds}) > 1
        rows = [
            (
                f"{one.threshold:g}{f', {one.label}' if several else ''}",
                f"{one.true_positives:,}",
                f"{one.false_positives:,}",
                f"{one.false_negatives:,}",
                f"{one.true_negatives:,}",
            )
            for one in scope.thresholds
        ]
        heads = ("Threshold", "True positives", "False positives", "False negatives", "True negatives")
        blocks.append(Table(heads, rows, "Patients by decision"))
    names = classes_of(plan.task)
    if scope.confusion and len(names) ** 2 == len(scope.confusion) and plan.task.name == "classification":
        size = len(names)
        matrix = [
            (name, *(f"{count:,}" for count in scope.confusion[size * at : size * (at + 1)]))
            for at, name in enumerate(names)
        ]
        blocks.append(Table(("Truth ↓, answer →", *names), matrix, "Patients by truth and likeliest class"))
    if scope.lesions:
        lesions = [
            (one.label or "all", f"{one.lesions:,}", f"{one.found:,}", f"{one.false_positives:,}", f"{one.patients:,}")
            for one in scope.lesions
        ]
        blocks.append(Table(("Lesions", "True", "Found", "False", "Patients"), lesions, "Lesions"))
    return blocks


def _legend(result: ValidationResult) -> Words:
    names = [model.name for model in result.models]
    words = f"{names[0]}: full line and dot."
    return Words(words + (f" {names[1]}: broken line and hollow square." if len(names) > 1 else ""), "soft")


def _left_out(result: ValidationResult) -> list[Block]:
    scope = everybody(result.models[0])
    drawn: tuple[Curves, ...] = scope.curves if scope is not None else ()
    if len(drawn) <= MOST_LABELS:
        return []
    return [Words(f"Curves of {len(drawn) - MOST_LABELS} more labels are in report.json.", "note")]
