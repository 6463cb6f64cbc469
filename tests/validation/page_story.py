"""A made-up validation with every kind of result, for the tests of its page: 30 hospitals, 2 models, 6 rules."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from eucaim_fl.config import ExperimentConfig
from eucaim_fl.plan import FederationPlan, make_plan
from eucaim_fl.validation.page import About, Signature
from eucaim_fl.validation.result_schema import (
    AgreementResult,
    Band,
    BetweenSites,
    CalibrationGroup,
    ComparisonResult,
    Curves,
    DecisionPoint,
    EnoughResult,
    Figure,
    ForestRow,
    GroupDifference,
    LesionCounts,
    ModelResult,
    PrPoint,
    RocPoint,
    ScopeResult,
    SiteFigures,
    SiteLine,
    ThresholdCounts,
    ValidationResult,
    Verdict,
    WithheldCell,
)

RULES: tuple[dict[str, Any], ...] = (
    {"by": "sex"},
    {"by": "age", "edges": (50, 70)},
    {"by": "manufacturer"},
    {"by": "field_strength_t", "edges": (2,)},
    {"by": "slice_thickness_mm", "edges": (1.5, 3)},
    {"by": "lesion_volume_ml", "edges": (5, 50)},
)
WORDS = {"sex": ("sex=F", "sex=M"), "manufacturer": ("manufacturer=siemens", "manufacturer=ge")}
METRICS = ("auc", "prevalence", "average_precision", "brier", "calibration_slope", "calibration_intercept",
           "sensitivity@0.3", "specificity@0.3", "ppv@0.3", "npv@0.3", "f1@0.3",
           "sensitivity@0.6", "specificity@0.6", "ppv@0.6", "npv@0.6", "f1@0.6")  # fmt: skip
OUTLINES = ("dice", "hd95_mm", "surface_dice", "volume_difference_ml", "lesion_sensitivity",
            "false_positives_per_patient")  # fmt: skip
SUPPRESSED = "manufacturer=ge"


def plan_of(
    sites: Sequence[str], models: int = 2, rules: int = 6, task: dict[str, Any] | None = None, **words: str
) -> FederationPlan:
    """A plan that asks for a validation. words: intended_use and trained_on of the models."""
    config = ExperimentConfig.model_validate(
        {
            "name": "chest",
            "rounds": 1,
            "sites": sites,
            "task": task
            or {"name": "classification", "spatial_dims": 2, "target": "pneumonia", "classes": ["no", "yes"]},
            "model": {"name": "densenet"},
            "training": {"local_steps": 1},
        }
    )
    whole = make_plan(config, sites).model_dump(mode="json")
    names = ("triage-net", "older-net")[:models]
    drawn = config.task.name == "segmentation"
    first, second = ("dice", "surface_dice") if drawn else ("macro_auc" if task else "auc", "sensitivity")
    whole["validation"] = {
        "models": [
            {
                "name": name,
                "format": "onnx",
                "sha256": f"{index + 1:x}" * 64,
                "size_bytes": 28_374_112,
                "data": whole["data"],
                "intended_use": words.get("intended_use", "Marks chest radiographs of adults for reading first."),
                "trained_on": words.get("trained_on", "Two public collections of adults." if index == 0 else ""),
            }
            for index, name in enumerate(names)
        ],
        "thresholds": [0.3, 0.6],
        "subgroups": RULES[:rules],
        "comparisons": [{"metric": first, "margin": 0.05}, {"metric": second}] if models > 1 else [],
        "half_widths": {first: 0.02, second: 0.05},
    }
    return FederationPlan.model_validate(whole)


def figure(value: float, half: float, patients: int, sites: int = 1) -> Figure:
    """A figure with a symmetric interval."""
    return Figure(value=value, low=value - half, high=value + half, patients=patients, sites=sites)


def _value(metric: str, shift: float) -> tuple[float, float]:
    base = {"hd95_mm": 6.2, "volume_difference_ml": -0.8, "calibration_slope": 0.86, "calibration_intercept": -0.21,
            "brier": 0.121, "prevalence": 0.24, "false_positives_per_patient": 0.6, "sensitivity@0.3": 0.9,
            "specificity@0.3": 0.71,
            "sensitivity@0.6": 0.77, "specificity@0.6": 0.9}.get(metric, 0.84)  # fmt: skip
    scale = 4.0 if metric in ("hd95_mm", "volume_difference_ml") else 0.4 if base < 0.3 else 1.0
    return base + scale * shift, 0.06 * scale


def _figures(metrics: Sequence[str], shift: float, patients: int, sites: int = 1) -> dict[str, Figure]:
    found = {}
    for metric in metrics:
        value, half = _value(metric, shift)
        half = half / math.sqrt(max(patients, 1) / 80)
        found[metric] = figure(min(value, 0.995) if half < 0.2 and value < 1 else value, half, patients, sites)
        if metric not in ("hd95_mm", "volume_difference_ml", "calibration_slope", "calibration_intercept"):
            found[metric] = found[metric].model_copy(
                update={"low": max(0.0, found[metric].low or 0), "high": min(1.0, found[metric].high or 1)}
            )
    if "auc" in found:
        value = found["auc"].value or 0
        found["auc"] = found["auc"].model_copy(update={"lowest": value - 0.004, "highest": value + 0.004})
    return found


def curves(shift: float = 0.0, label: str = "") -> Curves:
    """Curves of scores in 20 bins of which the diseased lie higher."""
    edges = tuple(i / 20 for i in range(21))
    without = tuple(round(400 * math.exp(-i / (4 - 2 * shift))) for i in range(20))
    diseased = tuple(round(90 * math.exp(-((i - 12) ** 2) / 40)) for i in range(20))
    n, m = sum(without), sum(diseased)
    roc = [(1.0, 0.0, 0.0)] + [(edges[i], sum(without[i:]) / n, sum(diseased[i:]) / m) for i in range(19, -1, -1)]
    pr = [(edges[i], sum(diseased[i:]) / m, sum(diseased[i:]) / (sum(diseased[i:]) + sum(without[i:]) or 1))
          for i in range(19, -1, -1)]  # fmt: skip
    groups = []
    for at in range(0, 20, 2):
        patients = sum(without[at : at + 2]) + sum(diseased[at : at + 2])
        share = sum(diseased[at : at + 2]) / patients
        half = 1.96 * math.sqrt(share * (1 - share) / patients)
        groups.append(
            CalibrationGroup(low=edges[at], high=edges[at + 2], patients=patients, mean_score=edges[at + 1],
                             mean_score_lowest=edges[at], mean_score_highest=edges[at + 2],
                             observed=Figure(value=share, low=max(0, share - half), high=min(1, share + half)))
        )  # fmt: skip
    benefit = []
    for i in range(1, 20):
        t, odds = edges[i], edges[i] / (1 - edges[i])
        gained = (sum(diseased[i:]) - odds * sum(without[i:])) / (n + m)
        benefit.append(DecisionPoint(threshold=t, model=gained, low=gained - 0.02, high=gained + 0.02,
                                     everyone=(m - odds * n) / (n + m)))  # fmt: skip
    return Curves(
        label=label, edges=edges, without=without, with_disease=diseased,
        roc=tuple(RocPoint(threshold=t, false_positive_rate=x, sensitivity=y) for t, x, y in roc),
        roc_band=tuple(Band(x=x, low=max(0, y - 0.04), high=min(1, y + 0.04)) for _, x, y in roc),
        pr=tuple(PrPoint(threshold=t, recall=x, precision=y) for t, x, y in pr),
        pr_band=tuple(Band(x=x, low=max(0, y - 0.05), high=min(1, y + 0.05)) for _, x, y in pr),
        calibration=tuple(groups), decision=tuple(benefit),
    )  # fmt: skip


def _counts(patients: int) -> tuple[ThresholdCounts, ...]:
    with_it = patients // 4
    return tuple(
        ThresholdCounts(label="", threshold=t, true_positives=int(with_it * s),
                        false_negatives=with_it - int(with_it * s),
                        false_positives=int((patients - with_it) * (1 - s)),
                        true_negatives=int((patients - with_it) * s))
        for t, s in ((0.3, 0.9), (0.6, 0.75))
    )  # fmt: skip


def scope_of(name: str, sites: Sequence[str], metrics: Sequence[str], shift: float) -> ScopeResult:
    """A scope; every seventh hospital withholds, and every one of the suppressed group."""
    outlines = "dice" in metrics
    told, withheld = [], []
    for index, site in enumerate(sites):
        if name == SUPPRESSED or index % 7 == 6:
            reason = "by_the_sites_rules"
            withheld.append(WithheldCell(site=site, reason=reason))
            told.append(SiteFigures(site=site, patients=None, withheld=reason))
            continue
        patients = 25 + 17 * (index % 9)
        wave = shift + 0.06 * math.sin(index)
        told.append(
            SiteFigures(site=site, patients=patients, figures=_figures(metrics, wave, patients),
                        thresholds=() if outlines else _counts(patients))
        )  # fmt: skip
    patients = sum(one.patients or 0 for one in told)
    live = [one for one in told if one.patients]
    between = []
    for metric in metrics:
        if not live:
            break
        value, half = _value(metric, shift)
        rows = [
            ForestRow(site=one.site, patients=one.patients, value=(f := one.figures[metric]).value, low=f.low,
                      high=f.high, weight=1 / len(live)) if one.patients else
            ForestRow(site=one.site, patients=None, value=None, low=None, high=None, weight=None, reason="withheld")
            for one in told
        ]  # fmt: skip
        few = len(live) < 3
        between.append(
            BetweenSites(
                figure=metric, scale="plain" if metric == "hd95_mm" else "logit", sites=len(live), value=value,
                low=value - half / 2, high=value + half / 2,
                prediction_low=None if few else value - 2 * half, prediction_high=None if few else value + 2 * half,
                tau=0.21, tau_low=0.08, tau_high=0.4, i2=0.62, i2_low=0.4, i2_high=0.77, q=68.2,
                p_heterogeneity=0.00002, worst_site=live[-1].site, rows=tuple(rows),
            )
        )  # fmt: skip
    volumes: tuple[AgreementResult, ...] = ()
    lesions: tuple[LesionCounts, ...] = ()
    if outlines and live:
        volumes = (
            AgreementResult(label="", patients=patients, bias=figure(-0.8, 0.4, patients),
                            lower=figure(-9.1, 0.9, patients), upper=figure(7.5, 0.9, patients)),
        )  # fmt: skip
        lesions = (LesionCounts(label="", lesions=612, found=540, false_positives=88, patients=patients),)
    return ScopeResult(
        scope=name, patients=patients, figures=_figures(metrics, shift, patients, len(live)) if live else {},
        thresholds=_counts(patients) if live and not outlines else (),
        curves=(curves(shift),) if name == "all" and not outlines else (), volumes=volumes, lesions=lesions,
        confusion=() if outlines or not live else (600, 80, 40, 210), undefined={"dice": 3} if outlines else {},
        sites=tuple(told), withheld=tuple(withheld), between=tuple(between) if name == "all" else (),
    )  # fmt: skip


def result_of(plan: FederationPlan, metrics: Sequence[str] = METRICS) -> ValidationResult:
    """A result that fits the plan; the last hospital did not answer."""
    asked = plan.validation
    if asked is None:
        raise ValueError("the plan asks for no validation")
    groups = [name for rule in asked.subgroups for name in rule.groups() or WORDS[rule.by]]
    answering = plan.sites[:-1] if len(plan.sites) > 1 else plan.sites
    models = tuple(
        ModelResult(
            name=model.name,
            scopes=tuple(
                scope_of(name, answering, metrics, (0.0 if name == "all" else 0.01 * (at % 5 - 2)) - 0.05 * index)
                for at, name in enumerate(("all", *groups))
            ),
        )
        for index, model in enumerate(asked.models)
    )
    differences = tuple(
        GroupDifference(
            model=model.name, rule=rule.by, figure=metric, group=name, reference=names[0], difference=-0.031,
            low=-0.08, high=0.018, p=0.21, p_adjusted=0.84,
        )
        for model in asked.models
        for rule in asked.subgroups
        for names in [rule.groups() or WORDS[rule.by]]
        for name in names[1:]
        for metric in metrics[:1]
        if name != SUPPRESSED
    )  # fmt: skip
    comparisons = () if len(asked.models) < 2 else (
        ComparisonResult(metric="auc", figure="auc", better="higher", difference=0.021, low=-0.004, high=0.046, p=0.1,
                         p_adjusted=0.2, pooled_difference=0.02, patients=2100, sites=25, margin=0.05, outcome="shown",
                         sentence="The first model is not worse by 0.05 or more."),
        ComparisonResult(metric="sensitivity", figure="sensitivity@0.3", better="higher", difference=0.01, low=-0.04,
                         high=0.06, p=0.6, p_adjusted=0.6, counts=(380, 41, 36, 43), patients=500, sites=25),
    )  # fmt: skip
    return ValidationResult(
        plan_sha256=plan.sha256(),
        task=plan.task.name,
        level=0.95,
        seed=7,
        sites=tuple(
            SiteLine(site=one.site, answered=True, patients=one.patients, withheld=one.withheld,
                     failed={"too slow": 3} if index % 5 == 1 else {})
            for index, one in enumerate(models[0].scopes[0].sites)
        ) + tuple(SiteLine(site=site, answered=False, patients=None) for site in plan.sites[len(answering):]),
        models=models,
        differences=differences,
        comparisons=comparisons,
        half_widths=(
            EnoughResult(model="triage-net", figure=metrics[0], enough=False, half_width=0.027, wanted_half_width=0.02,
                         patients=2100, needed=3900, sentence="About 1,800 more patients would make it so."),
        ),
        verdicts=(
            Verdict(question="does_it_work", tone="good", sentence="It ranks a patient with pneumonia above one "
                    "without in 84 of 100 pairs (95 % interval 82 to 86)."),
            Verdict(question="where", tone="warning", sentence="Hospitals differ: in a further one an AUC from 0.72 to "
                    "0.93 is to be expected."),
            Verdict(question="for_whom", tone="bad", sentence="Sensitivity is lower in patients from 70 years on."),
            Verdict(question="for_whom", tone="plain", sentence="One group is suppressed: manufacturer ge."),
            Verdict(question="how_sure", tone="warning", sentence="Fewer patients than the plan wants."),
        ),
    )  # fmt: skip


def about_of(plan: FederationPlan, **given: Any) -> About:
    """Circumstances in order: every hospital but two signed."""
    states = ("verified", "missing", "unchecked")
    about = (
        {
            "fixed_at": "2026-11-02 09:14 UTC",
            "fixed_by": "approvals of 30 hospitals",
            "first_seen_at": "2026-11-09 16:40 UTC",
            "signatures": tuple(
                Signature(site, states[index] if index in (1, 2) else "verified", f"{index:04x} 9c2e 77d0 41ab")  # type: ignore[arg-type]
                for index, site in enumerate(plan.sites[:-1])
            ),
            "data": ((plan.sites[0], "Scanners", "Two radiography rooms, 2019–2024."),),
            "provenance": (("Software", "eucaim_fl 1.0"), ("Python", "3.11")),
        }
        | given
    )
    return About(**about)


def hospitals(number: int) -> tuple[str, ...]:
    """Names of hospitals; one of them is long."""
    names = [f"hospital-{index:02d}" for index in range(number)]
    if number > 3:
        names[3] = "hospital-universitario-y-politecnico-de-la-fe-de-valencia"
    return tuple(sorted(names))
