"""From what sites told to every number of a validation's report. Pure: the plan, the records and a seed decide all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeAlias

import numpy as np

from eucaim_fl.plan import FederationPlan
from eucaim_fl.seeding import generator
from eucaim_fl.validation.analysis_between import between, main_figures
from eucaim_fl.validation.analysis_input import Asked, Scope, asked_of, by_scope, figure_key, label_of, scores_of
from eucaim_fl.validation.analysis_moments import (
    concordance_figure,
    confusion_figures,
    lesion_figures,
    macro_auc,
    mean_figures,
    undefined_counts,
    volumes,
)
from eucaim_fl.validation.analysis_pairs import comparisons, group_differences
from eucaim_fl.validation.analysis_scores import LEVEL, score_curves, score_figures
from eucaim_fl.validation.analysis_words import Findings, enough_of, verdicts
from eucaim_fl.validation.binned import BinnedScores, pooled_scores
from eucaim_fl.validation.record import EVERYBODY, ModelFigures, ScopeRecord, ValidationRecord
from eucaim_fl.validation.reliability import CalibrationLine, binned_calibration_line, binned_calibration_lines
from eucaim_fl.validation.resampled import Resamples, resample
from eucaim_fl.validation.result_schema import (
    Curves,
    Figure,
    ModelResult,
    ScopeResult,
    SiteFigures,
    SiteLine,
    ThresholdCounts,
    ValidationResult,
    WithheldCell,
)

__all__ = ["analyse"]

_Lines: TypeAlias = dict[BinnedScores, CalibrationLine]


def analyse(plan: FederationPlan, records: Sequence[ValidationRecord], *, seed: int) -> ValidationResult:
    """Every figure of each model and scope, over all patients and at each site; differences; sentences.

    The same plan, records and seed give the same result, in whatever order records come. Pooled figures of counts are
    those of all patients together; those of means too, with an interval that takes sites as they are. What is said of
    hospitals at large is in `between`.
    Raises ReplyError without a record; for one of another plan, or of a site that the plan does not name or that is
    there already; and for figures that no patients can have. DataError if the plan trains.
    """
    asked, scopes = asked_of(plan), by_scope(plan, records)
    lines = _lines(asked, scopes)
    models = tuple(
        ModelResult(
            name=model.name,
            scopes=tuple(
                _scope(asked, scope, number, partial(generator, seed, "validation", model.name, scope.name), lines)
                for scope in scopes
            ),
        )
        for number, model in enumerate(asked.validation.models)
    )  # fmt: skip
    differences = group_differences(asked, [model.name for model in models], scopes[1:])
    compared = comparisons(asked, scopes[0])
    half_widths = tuple(one for model in models for one in enough_of(asked, model))
    sites = _sites(plan, records)
    return ValidationResult(
        plan_sha256=plan.sha256(),
        task=plan.task.name,
        level=LEVEL,
        seed=seed,
        sites=sites,
        models=models,
        differences=differences,
        comparisons=compared,
        half_widths=half_widths,
        verdicts=verdicts(Findings(asked, models, differences, compared, half_widths, sites)),
    )


def _sites(plan: FederationPlan, records: Sequence[ValidationRecord]) -> tuple[SiteLine, ...]:
    told = {record.site: record for record in records}
    lines = []
    for name in plan.sites:
        record = told.get(name)
        if record is None:
            lines.append(SiteLine(site=name, answered=False, patients=None))
            continue
        whole = record.scopes[0]
        patients = None if whole.withheld else whole.patients
        failed = dict(sorted(record.failed.items()))
        lines.append(SiteLine(site=name, answered=True, patients=patients, withheld=whole.withheld, failed=failed))
    return tuple(lines)


@dataclass(frozen=True)
class _Draws:
    """Resamples of a scope's scores, by label and site. site: empty for all sites together."""

    make: partial[np.random.Generator]
    samples: int
    site: str = ""

    def of(self, scores: Sequence[BinnedScores], label: str, *, fixed_classes: bool) -> Resamples | None:
        """Drawn patients; None if there are none."""
        if not sum(pooled_scores(scores).patients):
            return None
        rng = self.make(label, self.site, int(fixed_classes))
        return resample(scores, fixed_classes=fixed_classes, samples=self.samples, rng=rng)


def _scope(asked: Asked, scope: Scope, model: int, make: partial[np.random.Generator], lines: _Lines) -> ScopeResult:
    sites = scope.of_model(model)
    told = [figures for _, figures in sites]
    draws = _Draws(make, asked.validation.bootstrap_samples)
    whole = scope.name == EVERYBODY
    figures, counted, curves = _figures(asked, told, draws, lines, curved=whole)
    own = tuple(
        _site(asked, (site, record), model, replace(draws, site=site) if whole else None, lines)
        for site, record in scope.told
    )
    by_site = {one.site: one.figures for one in own}
    forest = tuple(
        between(
            asked,
            main,
            dict(sites),
            {site: found[main.key] for site, found in by_site.items() if main.key in found},
        )
        for main in main_figures(asked)
    )
    hidden = [SiteFigures(site=site, patients=None, withheld=reason) for site, reason in scope.withheld]
    return ScopeResult(
        scope=scope.name,
        patients=scope.patients,
        figures=figures,
        thresholds=counted,
        curves=curves,
        volumes=volumes(asked, told),
        lesions=lesion_figures(asked, told)[1],
        confusion=_confusion(told),
        undefined=undefined_counts(asked, told),
        sites=tuple(sorted((*own, *hidden), key=lambda one: one.site)),
        withheld=tuple(WithheldCell(site=site, reason=reason) for site, reason in scope.withheld),
        between=forest,
    )


def _lines(asked: Asked, scopes: Sequence[Scope]) -> _Lines:
    """All calibration lines: those of sites fitted together; those of several sites together each by itself, so that
    they are the same to the bit however many sites the patients are at."""
    models = [
        [figures for _, figures in scope.of_model(number)]
        for scope in scopes
        for number in range(len(asked.validation.models))
    ]
    alone, together = dict[BinnedScores, None](), dict[BinnedScores, None]()
    for told in models:
        for label in asked.labels:
            if own := scores_of(asked, told, label):
                alone |= dict.fromkeys(own)
                together[pooled_scores(own)] = None
    scores = [one for one in alone if one not in together]
    found = dict(zip(scores, binned_calibration_lines(scores, LEVEL), strict=True)) if scores else {}
    return found | {one: binned_calibration_line(one, LEVEL) for one in together}


def _site(asked: Asked, of: tuple[str, ScopeRecord], model: int, draws: _Draws | None, lines: _Lines) -> SiteFigures:
    site, record = of
    told = record.models[model]
    figures, counted, _ = _figures(asked, [told], draws, lines)
    return SiteFigures(
        site=site,
        patients=record.patients,
        figures=figures,
        thresholds=counted,
        lesions=lesion_figures(asked, [told])[1],
        confusion=told.confusion,
        undefined=undefined_counts(asked, [told]),
    )


def _figures(
    asked: Asked,
    told: Sequence[ModelFigures],
    draws: _Draws | None,
    lines: _Lines,
    *,
    curved: bool = False,
) -> tuple[dict[str, Figure], tuple[ThresholdCounts, ...], tuple[Curves, ...]]:
    """All figures of one site or of several together; without draws nothing is resampled."""
    figures: dict[str, Figure] = {}
    counted: list[ThresholdCounts] = []
    curves: list[Curves] = []
    for label, name in zip(asked.labels, asked.names, strict=True):
        scores = scores_of(asked, told, label)
        if not scores:
            continue
        free = None if draws is None else draws.of(scores, label, fixed_classes=False)
        of_scores, at_thresholds = score_figures(
            scores,
            asked.validation.thresholds,
            name,
            free,
            exact_brier=_tell(asked, told, figure_key("brier", name)),
            line=lines[pooled_scores(scores)],
        )
        figures |= of_scores
        counted += at_thresholds
        if curved:
            fixed = None if draws is None else draws.of(scores, label, fixed_classes=True)
            curves.append(score_curves(scores, name, fixed, free))
    if len(asked.names) > 1 and figures:
        figures["macro_auc"] = macro_auc([figures.get(figure_key("auc", name)) for name in asked.names])
    figures |= confusion_figures(_confusion(told), sum(bool(one.confusion) for one in told))
    figures |= mean_figures(asked, told)
    figures |= lesion_figures(asked, told)[0]
    index = concordance_figure([one.concordance for one in told if one.concordance])
    return figures if index is None else figures | {"c_index": index}, tuple(counted), tuple(curves)


def _tell(asked: Asked, told: Sequence[ModelFigures], key: str) -> bool:
    """Whether a site told the mean that is called so."""
    names = {name for one in told for name in one.moments}
    return any(figure_key(*label_of(asked, name)) == key for name in names)


def _confusion(told: Sequence[ModelFigures]) -> tuple[int, ...]:
    return tuple(map(sum, zip(*(one.confusion for one in told if one.confusion), strict=True)))
