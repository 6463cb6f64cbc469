"""Which of its models a site is going to use: the one that is best on its own validation patients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from eucaim_fl.records import ModelName, SiteMetrics
from eucaim_fl.validation.pooling import better

__all__ = ["CHOSEN", "best_model", "by_model"]

CHOSEN = "chosen"
"""Stands for each site's own choice where models are named."""


def best_model(task: str, candidates: Sequence[ModelName], metrics: Sequence[SiteMetrics]) -> ModelName | None:
    """The candidate with the best validation figure as it is told; of equals the first; None without a figure of all.

    task: its name. candidates: in order of preference. metrics: a site's records of all its models; other splits than
    validation do not count. The figure is the task's first choice (see `pooling.better`). Where some candidate lacks it
    and all have the one to fall back on, nothing is chosen by that: the first candidate stays. A site whose few
    patients of one class give no AUC would else take the model that says least often that it is there. Since it is the
    figure that leaves, the choice tells nobody more than the figures do.

    >>> figures = [SiteMetrics("validation", 9, {"dice": d}, model=m) for m, d in (("common", 0.7), ("local", 0.8))]
    >>> best_model("segmentation", ("common", "local"), figures)
    'local'
    """
    values = {entry.model: entry.values for entry in metrics if entry.split == "validation"}
    common = set.intersection(*(set(values.get(model, ())) for model in candidates))
    name, direction = better(task, common)
    if name not in common:
        return None
    if name != better(task)[0]:
        return candidates[0]
    sign = -1.0 if direction == "max" else 1.0
    return min(candidates, key=lambda model: sign * values[model][name])


def by_model(
    metrics: Mapping[str, Sequence[SiteMetrics]], chosen: Mapping[str, str], split: str
) -> dict[str, dict[str, SiteMetrics]]:
    """Model → site → its record of one split; under `chosen` that of the model which each site chose.

    metrics, chosen: by site, of the last exchange (see `records.RoundRecord`). A site that chose none is not under
    `chosen`, which is left out where nobody chose.
    """
    found: dict[str, dict[str, SiteMetrics]] = {}
    for site, entries in sorted(metrics.items()):
        for entry in entries:
            if entry.split == split:
                found.setdefault(entry.model, {})[site] = entry
                if chosen.get(site) == entry.model:
                    found.setdefault(CHOSEN, {})[site] = entry
    return found
