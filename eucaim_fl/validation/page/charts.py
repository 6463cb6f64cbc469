"""The plots of a validation's result."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from eucaim_fl.task_config import TaskConfig
from eucaim_fl.validation.group_words import group_name, rule_name, rule_of
from eucaim_fl.validation.page.blocks import Plot, Plots
from eucaim_fl.validation.page.drawing import Span
from eucaim_fl.validation.page.forest import Forest, Row, agreement_svg, forest_svg, subgroup_svg
from eucaim_fl.validation.page.names import (
    classes_of,
    digits_of,
    direction,
    figure_name,
    head_figures,
    limits_of,
    number_or,
    percent,
    span_of,
)
from eucaim_fl.validation.page.tables import Cell, Taking, matrix_svg, participation_svg
from eucaim_fl.validation.record import EVERYBODY
from eucaim_fl.validation.result_schema import (
    BetweenSites,
    ComparisonResult,
    Figure,
    GroupDifference,
    ModelResult,
    ScopeResult,
    ValidationResult,
)
from eucaim_fl.validation_config import SubgroupConfig

__all__ = [
    "agreement_plots",
    "difference_words",
    "everybody",
    "forests",
    "group_plots",
    "heterogeneity_words",
    "matrix_plot",
    "participation_plot",
    "told_by_nobody",
]


def everybody(model: ModelResult) -> ScopeResult | None:
    """A model's figures on all patients."""
    return next((scope for scope in model.scopes if scope.scope == EVERYBODY), None)


def told_by_nobody(scope: ScopeResult) -> bool:
    """Whether every hospital that answered keeps a group's figures to itself, or has nobody in it."""
    return bool(scope.sites) and len(scope.withheld) == len(scope.sites)


def heterogeneity_words(between: BetweenSites) -> str:
    """How far hospitals differ, in a line."""
    parts = []
    if between.i2 is not None:
        limits = "" if between.i2_low is None or between.i2_high is None else (
            f" ({percent(between.i2_low)} to {percent(between.i2_high)})"
        )  # fmt: skip
        parts.append(f"I² {percent(between.i2)}{limits}")
    if between.tau is not None:
        limits = "" if between.tau_low is None or between.tau_high is None else (
            f" ({between.tau_low:.3g} to {between.tau_high:.3g})"
        )  # fmt: skip
        parts.append(f"τ {between.tau:.3g}{limits}{' on the logit scale' if between.scale == 'logit' else ''}")
    if between.q is not None and between.p_heterogeneity is not None:
        p = "p < 0.001" if between.p_heterogeneity < 0.001 else f"p = {between.p_heterogeneity:.3f}"
        parts.append(f"Q {between.q:.1f}, {p}")
    if between.prediction_low is None and between.value is not None:
        parts.append("no prediction for a new hospital from so few")
    return "; ".join(parts)


def forests(model: ModelResult, task: TaskConfig) -> list[Plot]:
    """The first figures of a model over hospitals, at most four."""
    scope, labels = everybody(model), classes_of(task)
    if scope is None:
        return []
    found = {between.figure: between for between in scope.between}
    plots = []
    for place, name in enumerate(head_figures(list(found), labels)):
        between = found[name]
        title = figure_name(name, labels)
        most = max((row.weight or 0.0 for row in between.rows), default=0.0) or 1.0
        rows = [
            Row(
                row.site,
                None if row.value is None else Span(row.value, _or_nan(row.low), _or_nan(row.high)),
                f"{row.patients:,}" if row.patients else "–",
                None if row.weight is None else row.weight / most,
                silent=row.reason or "no figure",
            )
            for row in between.rows
        ]
        drawing = forest_svg(
            Forest(f"forest-{place}", f"{title} by hospital", title, limits_of(name, labels), None, digits_of(name)),
            rows,
            None if between.value is None else Span(between.value, _or_nan(between.low), _or_nan(between.high)),
            None
            if between.prediction_low is None or between.prediction_high is None
            else (between.prediction_low, between.prediction_high),
            heterogeneity_words(between),
        )
        notes = [heterogeneity_words(between), between.reason]
        plots.append(Plot(f"{title}: {model.name}", drawing, ". ".join(filter(None, notes))))
    return plots


def group_plots(result: ValidationResult, rules: Sequence[SubgroupConfig], task: TaskConfig) -> list[Plot]:
    """Groups of patients by their rules, by the first figures of the first model, at most three.

    rules: of the plan, in its order; a group that it names and nobody told of is there too. Differences are those from
    the largest group of the rule.
    """
    model, labels = result.models[0], classes_of(task)
    scopes = {scope.scope: scope for scope in model.scopes if scope.scope != EVERYBODY}
    planned = [name for rule in rules for name in rule.groups()]
    silent = {name for name, scope in scopes.items() if told_by_nobody(scope) and name not in planned}
    order: dict[str, int] = {rule.by: place for place, rule in enumerate(rules)}
    names = sorted(
        [*planned, *(scope for scope in scopes if scope not in set(planned))],
        key=lambda scope: order.get(rule_of(scope), len(order)),
    )
    if not names:
        return []
    whole = everybody(model)
    figures = list(whole.figures) if whole is not None else [name for one in scopes.values() for name in one.figures]
    plots = []
    for place, figure in enumerate(head_figures(figures, labels, 3)):
        drawing = subgroup_svg(
            Forest(
                f"groups-{place}",
                f"{figure_name(figure, labels)} by group of patients",
                figure_name(figure, labels),
                limits_of(figure, labels),
                None,
                digits_of(figure, labels),
                ("Group", "Patients", "Estimate (95 %)", "Difference"),
            ),
            _group_rows(result, names, scopes, figure, silent),
            overall.value if (overall := (whole.figures.get(figure) if whole else None)) else None,
        )
        plots.append(Plot(f"{figure_name(figure, labels)}: {model.name}", drawing))
    return plots


def _group_rows(
    result: ValidationResult,
    names: Sequence[str],
    scopes: dict[str, ScopeResult],
    figure: str,
    silent: Collection[str],
) -> list[Row]:
    """silent: groups of which no hospital tells; several of a rule share a row."""
    model = result.models[0].name
    rows: list[Row] = []
    rule = ""
    many = {one for one in map(rule_of, names) if sum(rule_of(name) == one for name in silent) > 1}
    apart = [name for name in names if name in silent and rule_of(name) in many]
    for name in names:
        if rule_of(name) != rule:
            rule = rule_of(name)
            rows.append(Row(rule_name(rule), kind="heading"))
        if name in apart:
            own = [one for one in apart if rule_of(one) == rule]
            if name == own[-1]:
                rows.append(Row(f"{len(own)} other groups", None, "–", grouped=True, silent=_NOBODY))
            continue
        scope = scopes.get(name)
        found = scope.figures.get(figure) if scope is not None else None
        difference = next(
            (
                one
                for one in result.differences
                if (one.model, one.figure) == (model, figure) and name in (one.group, one.reference)
            ),
            None,
        )
        aside = ""
        if difference is not None and difference.reference == name:
            aside = "largest group"
        elif difference is not None and difference.difference is not None:
            aside = difference_words(difference, digits_of(figure))
        rows.append(
            Row(
                group_name(name),
                span_of(found),
                f"{scope.patients:,}" if scope is not None and scope.patients else "–",
                aside=aside,
                grouped=True,
                silent=_silence(scope, found),
            )
        )
    return rows


def difference_words(one: GroupDifference | ComparisonResult, digits: int = 3) -> str:
    """A difference with its interval, with its sign."""
    if one.difference is None:
        return one.reason or "no figure"
    limits = [number_or(end, digits) for end in (one.low, one.high)]
    return f"{number_or(one.difference, digits)} ({limits[0]} to {limits[1]})"


_NOBODY = "suppressed, or nobody in them: no hospital tells (see Data)"


def _silence(scope: ScopeResult | None, figure: Figure | None) -> str:
    """Why a group has no figure."""
    if scope is not None and scope.withheld and not scope.patients:
        return "suppressed: too few patients, or the sites' rules let none leave"
    if scope is None:
        return "suppressed, or no patients: no site told of this group"
    return (figure.reason if figure is not None else "") or "suppressed or not defined: no figure"


def agreement_plots(result: ValidationResult) -> list[Plot]:
    """Bias and limits of agreement of volumes, of every model and label."""
    plots = []
    for which, model in enumerate(result.models):
        scope = everybody(model)
        for place, volume in enumerate(scope.volumes if scope is not None else ()):
            spans = [span_of(one) for one in (volume.bias, volume.lower, volume.upper)]
            if spans[0] is None:
                continue
            bias, lower, upper = (span or Span(math.nan) for span in spans)
            title = f"{model.name}{f', {volume.label}' if volume.label else ''}"
            forest = Forest(
                f"agreement-{which}-{place}",
                f"Agreement of volumes, {title}",
                "Volume found − true, ml",
                reference=(0.0, "no difference"),
                digits=2,
                columns=("", "", "ml (95 % interval)", ""),
            )
            note = f"{volume.patients} patients. No patient is drawn as a point: only sums leave a hospital."
            plots.append(Plot(title, agreement_svg(forest, bias, lower, upper), note))
    return plots


def matrix_plot(result: ValidationResult, task: TaskConfig) -> Plots | None:
    """Models' first figures at every hospital, at most six columns."""
    labels = classes_of(task)
    scopes = [(model.name, scope) for model in result.models if (scope := everybody(model)) is not None]
    if not scopes:
        return None
    names = head_figures(list(scopes[0][1].figures), labels, 6 // len(scopes))
    columns = [(name, model, scope) for name in names for model, scope in scopes]
    values = {(name, model): {one.site: one.figures.get(name) for one in scope.sites} for name, model, scope in columns}
    rows = []
    for line in result.sites:
        cells = []
        for name, model, _ in columns:
            others = [
                figure.value
                for _, other in {(n, m) for n, m, _ in columns if n == name}
                for figure in values[name, other].values()
                if figure is not None and figure.value is not None
            ]
            found = values[name, model].get(line.site)
            cells.append(_cell(found, name, others, direction(name, labels), labels))
        rows.append((line.site, cells))
    heads = [(figure_name(name, labels), *((model,) if len(scopes) > 1 else ())) for name, model, _ in columns]
    drawing = matrix_svg("matrix", "Figures of the models at every hospital", heads, rows)
    note = "The darker, the worse beside the others of the same figure. Where neither way is better, there is no shade."
    return Plots([Plot("Models at every hospital", drawing, note)], wide=True)


def _cell(found: Figure | None, name: str, others: Sequence[float], sign: int, labels: Sequence[str]) -> Cell:
    if found is None or found.value is None:
        return Cell("–" if found is None else "not told")
    low, high = min(others), max(others)
    good = math.nan
    if sign and high > low:
        good = (found.value - low) / (high - low) if sign > 0 else (high - found.value) / (high - low)
    return Cell(number_or(found.value, digits_of(name, labels)), good)


def participation_plot(result: ValidationResult) -> Plots:
    """Every site of the plan: patients with figures, images without an answer, or why it is missing."""
    rows = []
    for site in result.sites:
        words = "" if site.patients is not None else "withheld"
        told = words if site.answered else "did not answer"
        rows.append(Taking(site.site, site.patients or 0, sum(site.failed.values()), told))
    return Plots([Plot("Patients by hospital", participation_svg("participation", rows))], wide=True)


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value
