"""The run report: one HTML file that answers first, needs nothing from elsewhere, and can be printed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eucaim_fl.config import SegmentationConfig
from eucaim_fl.pages import filled
from eucaim_fl.plan import FederationPlan
from eucaim_fl.plan_text import explain
from eucaim_fl.records import Participation, RoundRecord, SiteMetrics
from eucaim_fl.validation.choice import CHOSEN
from eucaim_fl.validation.figures import SITE_COLOURS, Curve, curves_svg, png_data_uri
from eucaim_fl.validation.wording import (
    STATUS_LETTERS,
    STATUS_WORDS,
    count,
    metric_name,
    metric_value,
    model_words,
    privacy_words,
    provenance_rows,
    ranges,
    show_bytes,
    show_seconds,
    task_words,
    withheld_words,
)

__all__ = ["PREDICTION_RGB", "TRUTH_RGB", "render"]

TRUTH_RGB, PREDICTION_RGB = (86, 180, 233), (255, 150, 30)
"""Outline colours of the pictures, as `tasks.pictures` draws them (which would import torch)."""

_HEADLINE = ("dice", "auc", "auc_site_mean", "c_index", "c_index_site_mean", "balanced_accuracy", "brier")
_UNIT_RANGE = ("dice", "auc", "balanced_accuracy", "c_index")
_MOST_CHARTS = 5
_SPLITS = ("test", "validation")


@dataclass(frozen=True)
class _Chart:
    title: str
    note: str
    svg: str
    description: str


@dataclass(frozen=True)
class _Table:
    """columns: names. rows: site, patients, cells; a cell without value says why."""

    split: str
    columns: list[str]
    rows: list[tuple[str, str, list[tuple[str, bool]]]]
    pooled: tuple[str, list[tuple[str, bool]]]
    notes: list[str]


@dataclass(frozen=True)
class _Models:
    """metric: of the table. columns: models. rows: site, cells of text, whether it is a value, whether it was chosen.

    feet: pooled by model. theirs: pooled over each site's own choice, in words. silent: sites that chose none.
    """

    metric: str
    columns: list[str]
    rows: list[tuple[str, list[tuple[str, bool, bool]]]]
    feet: list[tuple[str, bool]]
    theirs: str
    silent: list[str]


def render(
    plan: FederationPlan,
    records: Sequence[RoundRecord],
    result: Mapping[str, Any],
    previews: Mapping[str, NDArray[np.uint8]],
    provenance: Mapping[str, Any],
) -> str:
    """The report of a run as HTML; the same input gives the same text.

    records: rounds 1 … R and, if it took place, the evaluation R + 1. result: content of `result.json`.
    previews: site → pictures of predictions (n, H, W, 3), only of sites whose data may be shown. Everything that came
    from elsewhere (names, reasons, values) is escaped. Metrics that are missing are shown as withheld or not measured.
    """
    ordered = sorted(records, key=lambda r: r.round)
    last = ordered[-1] if ordered else None
    return filled(
        Path(__file__).parent / "templates" / "report.html.j2",
        plan=plan,
        task=plan.task.name,
        headline=_headline(plan, result, ordered),
        charts=_charts(plan, ordered),
        silent=_silent(plan, ordered),
        coloured=len(plan.sites) <= SITE_COLOURS,
        tables=[t for split in _SPLITS if (t := _table(plan, split, result, last)) is not None],
        models=_models_table(plan, result, last),
        incomplete=plan.leaves_arrays(),
        galleries=[(site, [png_data_uri(p) for p in pictures]) for site, pictures in sorted(previews.items())],
        truth="rgb({}, {}, {})".format(*TRUTH_RGB),
        prediction="rgb({}, {}, {})".format(*PREDICTION_RGB),
        rounds=_round_names(plan, ordered),
        matrix=_matrix(plan, ordered),
        letters=STATUS_LETTERS,
        words=STATUS_WORDS,
        seen={p.status for r in ordered for p in r.participation},
        absences=_absences(plan, ordered),
        costs=_costs(plan, ordered),
        plan_words=[_split_label(line) for line in explain(plan)],
        provenance=provenance_rows(provenance),
        weights_sha256=str(result.get("weights_sha256", "")),
    )


def _headline(plan: FederationPlan, result: Mapping[str, Any], records: Sequence[RoundRecord]) -> dict[str, Any]:
    """The answer: the metric, over whom, from how many sites, after how many rounds; then what it took."""
    pooled: Mapping[str, Any] = result.get("metrics", {}).get("pooled") or {}
    measured = {k: float(v) for k, v in pooled.items() if isinstance(v, int | float) and math.isfinite(v)}
    main = next((name for name in _HEADLINE if name in measured), None)
    patients = int(measured.get("patients", 0))
    split = str(result.get("split", "test"))
    took_part = {p.site for r in records for p in r.participation if p.status == "took_part"}
    absent = sum(_of(r, site).status != "took_part" for r in records for site in plan.sites)
    done = len([r for r in records if not r.is_final(plan.rounds)])
    others = [
        (metric_name(name, plan), f"{metric_value(name, measured[name])}{_spread(name, result)}")
        for name in _ordered(measured, plan)
        if name != main
    ]
    whom = f"over {count(patients, f'{split} patient')}" if patients else ""
    return {
        "task": task_words(plan),
        "metric": metric_name(main, plan) if main else "Pooled metric",
        "value": metric_value(main, measured[main]) if main else "withheld",
        "whom": f"{_spread(main, result).strip()} {whom}".strip() if main else whom,
        "context": f"{len(took_part)} of {count(len(plan.sites), 'site')} took part, "
        f"{done} of {count(plan.rounds, 'round')} completed.",
        "others": others,
        "facts": [
            ("Time in rounds", show_seconds(sum(r.seconds for r in records))),
            ("Sent to sites", show_bytes(sum(p.bytes_down for r in records for p in r.participation))),
            ("Received from sites", show_bytes(sum(p.bytes_up for r in records for p in r.participation))),
            ("Privacy", privacy_words(result.get("privacy"))),
            ("Absences", f"{absent} of {len(records) * len(plan.sites)}" if absent else "none"),
        ],
    }


def _spread(name: str, result: Mapping[str, Any]) -> str:
    error = (result.get("metrics", {}).get("standard_error") or {}).get(name)
    return f" ± {metric_value(name, error)}" if isinstance(error, int | float) else ""


def _charts(plan: FederationPlan, records: Sequence[RoundRecord]) -> list[_Chart]:
    pooled_of = [(r.round - 1, r.pooled.get("validation", {})) for r in records]
    seen = {name for _, values in pooled_of for name in values}
    seen |= {n for r in records for site in plan.sites for m in _measured(plan, r, site) for n in m.values}
    charts: list[_Chart] = []
    for index, name in enumerate(_ordered(seen, plan)[:_MOST_CHARTS]):
        pooled = [(at, values[name]) for at, values in pooled_of if name in values]
        sites = {site: _site_curve(plan, records, site, name) for site in plan.sites}
        charts.append(
            _Chart(
                f"{metric_name(name, plan)} on validation patients",
                _course(name, pooled),
                curves_svg(f"m{index}", sites, pooled, plan.rounds, unit_range=name.startswith(_UNIT_RANGE)),
                f"{metric_name(name, plan)} by completed rounds, pooled and per site.",
            )
        )
    losses = {site: [(r.round, r.train_loss[site]) for r in records if site in r.train_loss] for site in plan.sites}
    if any(losses.values()):
        svg = curves_svg("loss", losses, (), plan.rounds)
        charts.append(_Chart("Training loss", "Mean of the round, at each site.", svg, "Training loss by rounds."))
    return charts


def _site_curve(plan: FederationPlan, records: Sequence[RoundRecord], site: str, name: str) -> Curve:
    """What a site measured on the model that r - 1 rounds had made, at r - 1."""
    return [(r.round - 1, m.values[name]) for r in records for m in _measured(plan, r, site) if name in m.values]


def _measured(plan: FederationPlan, record: RoundRecord, site: str, split: str = "validation") -> list[SiteMetrics]:
    """What a site said of the model of the rounds: the common one, or its own where there is none."""
    model = plan.method.personal.candidates()[0]
    return [m for m in record.metrics.get(site, ()) if m.split == split and m.model == model]


def _silent(plan: FederationPlan, records: Sequence[RoundRecord]) -> list[str]:
    """Sites that took part and never sent a value: they withheld all, so they have no curve."""
    heard = {site for r in records for site, entries in r.metrics.items() for m in entries if m.values}
    return [s for s in plan.sites if s not in heard and any(s in r.metrics for r in records)]


def _course(name: str, pooled: Curve) -> str:
    known = [(at, value) for at, value in pooled if math.isfinite(value)]
    if not known:
        return "No pooled value: withheld by the sites, or defined for nobody."
    lower_is_better = name == "hd95_mm" or name.startswith("brier")
    at, best = (min if lower_is_better else max)(known, key=lambda point: point[1])
    first, last = known[0], known[-1]
    start = "untrained" if first[0] == 0 else f"after round {first[0]}"
    best_at = "untrained" if at == 0 else f"after round {at}"
    text = f"Pooled: {metric_value(name, first[1])} {start}, {metric_value(name, last[1])} after round {last[0]}"
    return f"{text}, its best." if at == last[0] else f"{text}; best {metric_value(name, best)} {best_at}."


def _table(plan: FederationPlan, split: str, result: Mapping[str, Any], last: RoundRecord | None) -> _Table | None:
    """Metrics of the final model on one split; None if neither record nor result has any word on it."""
    final = last if last is not None and last.is_final(plan.rounds) else None
    entries = {s: m for s in final.metrics for m in _measured(plan, final, s, split)} if final else {}
    metrics = result.get("metrics", {}) if result.get("split") == split else {}
    pooled = {**(final.pooled.get(split, {}) if final else {}), **(metrics.get("pooled") or {})}
    values = {
        site: {**(entries[site].values if site in entries else {}), **((metrics.get("sites") or {}).get(site) or {})}
        for site in plan.sites
    }
    if not entries and not pooled and not any(values.values()):
        return None
    columns = _ordered((name for row in (pooled, *values.values()) for name in row), plan)
    rows, notes = [], []
    for site in plan.sites:
        entry = entries.get(site)
        missing = "withheld" if entry is not None else "no answer"
        patients = values[site].get("patients", entry.patients if entry and not entry.withheld else None)
        rows.append((site, _patients(patients), [_cell(name, values[site].get(name), missing) for name in columns]))
        if entry is not None and entry.withheld:
            notes.append(f"{site} withheld its metrics: {withheld_words(entry.withheld)}")
    foot = _patients(pooled.get("patients")), [_cell(name, pooled.get(name), "withheld") for name in columns]
    return _Table(split, [metric_name(name, plan) for name in columns], rows, foot, notes)


def _models_table(plan: FederationPlan, result: Mapping[str, Any], last: RoundRecord | None) -> _Models | None:
    """Each site's models on its test patients, by one metric; None where sites have one model only."""
    found: Mapping[str, Any] = result.get("models") or {}
    if not found:
        return None
    pooled = {model: entry.get("pooled") or {} for model, entry in found.items()}
    of_sites = {model: entry.get("sites") or {} for model, entry in found.items()}
    names = {n for values in pooled.values() for n in values}
    names |= {n for sites in of_sites.values() for values in sites.values() for n in values}
    metric = next(iter(_ordered(names, plan)), "")
    models = [*plan.method.personal.candidates()]
    chosen: Mapping[str, Any] = result.get("chosen") or {}
    answered = last.metrics if last is not None and last.is_final(plan.rounds) else {}
    rows = []
    for site in plan.sites:
        missing = "withheld" if site in answered else "no answer"
        cells = [_cell(metric, (of_sites.get(model, {}).get(site) or {}).get(metric), missing) for model in models]
        rows.append((site, [(*cell, chosen.get(site) == model) for model, cell in zip(models, cells, strict=True)]))
    feet = [_cell(metric, pooled.get(model, {}).get(metric), "withheld") for model in models]
    theirs = pooled.get(CHOSEN, {})
    words = model_words(plan)
    return _Models(
        metric_name(metric, plan) if metric else "Metric",
        [words[model] for model in models],
        rows,
        feet,
        f"{metric_value(metric, theirs[metric])} over {_patients(theirs.get('patients'))} patients"
        if metric in theirs
        else "",
        [site for site in plan.sites if site not in chosen] if plan.method.personal.choose else [],
    )


def _ordered(names: Iterable[str], plan: FederationPlan) -> list[str]:
    """Metrics once each, the headline's first; the Dice of an only label is the Dice and left out."""
    lone = plan.task.labels[0] if isinstance(plan.task, SegmentationConfig) and len(plan.task.labels) == 1 else None
    order = {name: index for index, name in enumerate(_HEADLINE)}
    kept = set(names) - {"patients", "withheld", f"dice_{lone}"}
    return sorted(kept, key=lambda name: (order.get(name, len(order)), name))


def _patients(number: Any) -> str:
    return f"{number:g}" if isinstance(number, int | float) else "–"


def _cell(name: str, value: Any, missing: str) -> tuple[str, bool]:
    """Text, and whether it is a value."""
    if isinstance(value, int | float) and math.isfinite(value):
        return metric_value(name, float(value)), True
    return ("not defined" if isinstance(value, float) else missing), False


def _round_names(plan: FederationPlan, records: Sequence[RoundRecord]) -> list[str]:
    """Heads of the matrix; of many rounds only every fifth has its number."""
    every = 5 if len(records) > 20 else 1
    named = {r.round for r in records if r.round % every == 0 or r.round == 1}
    if every > 1 and records[-1].is_final(plan.rounds):
        named -= {records[-1].round - 1, records[-1].round - 2}  # would run into the word
    return ["final" if r.is_final(plan.rounds) else str(r.round) if r.round in named else "" for r in records]


def _matrix(plan: FederationPlan, records: Sequence[RoundRecord]) -> list[tuple[str, list[Participation], int]]:
    """Site → its participation in every round, and in how many it took part."""
    rows = []
    for site in plan.sites:
        here = [_of(record, site) for record in records]
        rows.append((site, here, sum(p.status == "took_part" for p in here)))
    return rows


def _of(record: RoundRecord, site: str) -> Participation:
    return next((p for p in record.participation if p.site == site), Participation(site, "absent"))


def _absences(plan: FederationPlan, records: Sequence[RoundRecord]) -> list[tuple[str, str, str, str]]:
    """(site, rounds, what happened, what was said) for every way in which a site was missing."""
    grouped: dict[tuple[str, str, str], list[int]] = {}
    for site in plan.sites:
        for record in records:
            p = _of(record, site)
            if p.status != "took_part":
                said = f"{p.reason} ({p.code})".strip() if p.code else p.reason
                grouped.setdefault((site, STATUS_WORDS.get(p.status, p.status), said), []).append(record.round)
    return [(site, ranges(rounds, plan.rounds), word, said) for (site, word, said), rounds in grouped.items()]


def _costs(plan: FederationPlan, records: Sequence[RoundRecord]) -> dict[str, Any]:
    rows, totals = [], [0.0, 0.0, 0.0]
    for site in plan.sites:
        mine = [_of(record, site) for record in records]
        sums = [sum(p.seconds for p in mine), sum(p.bytes_down for p in mine), sum(p.bytes_up for p in mine)]
        totals = [a + b for a, b in zip(totals, sums, strict=True)]
        patients = max(
            (p.patients for r, p in zip(records, mine, strict=True) if not r.is_final(plan.rounds)), default=0
        )
        rows.append((site, str(patients or "–"), show_seconds(sums[0]), show_bytes(sums[1]), show_bytes(sums[2])))
    return {
        "rows": rows,
        "total": (show_seconds(totals[0]), show_bytes(totals[1]), show_bytes(totals[2])),
        "rounds": show_seconds(sum(r.seconds for r in records)),
        "aggregation": show_seconds(sum(r.aggregation_seconds for r in records)),
        "repeated": sum(r.attempts > 1 for r in records),
    }


def _split_label(line: str) -> tuple[str, str]:
    """`Purpose: …` → its label and the rest; lines without a short label have none."""
    label, found, rest = line.partition(": ")
    return (label, rest) if found and len(label) <= 40 else ("", line)
