"""How the validation's page names figures and reasons, and writes numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from eucaim_fl.task_config import TaskConfig
from eucaim_fl.validation.page.drawing import Span
from eucaim_fl.validation.page.forest import show_span
from eucaim_fl.validation.record import TOO_FEW
from eucaim_fl.validation.result_schema import Figure
from eucaim_fl.validation.wording import withheld_words

__all__ = [
    "FigureName",
    "classes_of",
    "digits_of",
    "direction",
    "figure_name",
    "head_figures",
    "limits_of",
    "number_or",
    "p_words",
    "parsed",
    "percent",
    "reason_words",
    "show_figure",
    "span_of",
]

_NAMES = {
    "accuracy": "Accuracy",
    "auc": "AUC",
    "average_precision": "Average precision",
    "balanced_accuracy": "Balanced accuracy",
    "brier": "Brier score",
    "c_index": "Concordance index",
    "calibration_error": "Calibration error",
    "calibration_intercept": "Calibration intercept",
    "calibration_slope": "Calibration slope",
    "dice": "Dice",
    "f1": "F1 score",
    "false_positives_per_patient": "False positives per patient",
    "hd95_mm": "HD95",
    "lesion_sensitivity": "Lesion sensitivity",
    "lr_negative": "Negative likelihood ratio",
    "lr_positive": "Positive likelihood ratio",
    "macro_auc": "AUC, mean over labels",
    "npv": "NPV",
    "ppv": "PPV",
    "prevalence": "Prevalence",
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "surface_dice": "Surface Dice",
    "volume_difference_ml": "Volume difference",
}
_UNITS = {"hd95_mm": "mm", "volume_difference_ml": "ml"}
_LOWER = {"brier", "calibration_error", "false_positives_per_patient", "hd95_mm", "lr_negative"}
_NO_DIRECTION = {"prevalence"}
_SHARES = {
    "accuracy", "auc", "average_precision", "balanced_accuracy", "brier", "c_index", "calibration_error", "dice", "f1",
    "lesion_sensitivity", "macro_auc", "npv", "ppv", "prevalence", "sensitivity", "specificity", "surface_dice",
}  # fmt: skip
_FIRST = (
    "macro_auc", "auc", "dice", "c_index", "sensitivity", "specificity", "surface_dice", "hd95_mm",
    "lesion_sensitivity", "accuracy", "balanced_accuracy", "brier",
)  # fmt: skip


class FigureName(NamedTuple):
    """A figure's parts: metric, threshold as it is written (or empty), label or class (or empty)."""

    metric: str
    threshold: str
    label: str


def classes_of(task: TaskConfig) -> tuple[str, ...]:
    """Labels, targets or classes of a task, as figures may have them behind."""
    if task.name == "segmentation":
        return task.labels
    if task.name == "multilabel":
        return task.targets
    return task.classes if task.name == "classification" else ()


def parsed(name: str, labels: Iterable[str] = ()) -> FigureName:
    """The parts of a figure's name.

    >>> parsed("sensitivity@0.5_oedema", ["oedema"]), parsed("surface_dice")
    (FigureName(metric='sensitivity', threshold='0.5', label='oedema'), FigureName(metric='surface_dice', \
threshold='', label=''))
    """
    behind = (one for one in sorted(labels, key=len, reverse=True) if name.endswith(f"_{one}"))
    label = "" if name in _NAMES else next(behind, "")  # a label may be called dice
    whole = name.removesuffix(f"_{label}") if label else name
    metric, _, threshold = whole.partition("@")
    return FigureName(metric, threshold, label)


def figure_name(name: str, labels: Iterable[str] = ()) -> str:
    """A figure as people write it; one that is not known keeps its own name.

    >>> figure_name("sensitivity@0.5_oedema", ["oedema"]), figure_name("hd95_mm")
    ('Sensitivity at 0.5, oedema', 'HD95, mm')
    """
    metric, threshold, label = parsed(name, labels)
    words = _NAMES.get(metric, metric.replace("_", " "))
    words += f" at {threshold}" if threshold else ""
    words += f", {label}" if label else ""
    return words + (f", {_UNITS[metric]}" if metric in _UNITS else "")


def direction(name: str, labels: Iterable[str] = ()) -> int:
    """1 if more is better, −1 if less is, 0 if neither or not known."""
    metric = parsed(name, labels).metric
    if metric in _LOWER:
        return -1
    return 1 if metric in {*_SHARES, "lr_positive"} - _NO_DIRECTION else 0


def limits_of(name: str, labels: Iterable[str] = ()) -> tuple[float, float]:
    """What no figure of this name can leave."""
    return (0.0, 1.0) if parsed(name, labels).metric in _SHARES else (-math.inf, math.inf)


def head_figures(names: Sequence[str], labels: Iterable[str] = (), most: int = 4) -> list[str]:
    """The figures that are drawn first: by kind of metric, then in the result's order; at the lowest threshold only."""
    labels = tuple(labels)
    order = {metric: place for place, metric in enumerate(_FIRST)}
    found: list[str] = []
    seen: set[tuple[str, str]] = set()
    for name in names:
        metric, _, label = parsed(name, labels)
        if metric in order and (metric, label) not in seen:
            seen.add((metric, label))
            found.append(name)
    found.sort(key=lambda name: order[parsed(name, labels).metric])
    return (found or list(names))[:most]


def span_of(figure: Figure | None) -> Span | None:
    """A figure with its limits as plots take it; None without a value."""
    if figure is None or figure.value is None:
        return None
    return Span(figure.value, *(math.nan if end is None else end for end in (figure.low, figure.high)))


def show_figure(figure: Figure | None, name: str, labels: Iterable[str] = ()) -> str:
    """A figure with its interval, or why there is none."""
    if figure is None:
        return "–"
    span = span_of(figure)
    return show_span(span, digits_of(name, labels)) if span is not None else figure.reason or "no figure"


def digits_of(name: str, labels: Iterable[str] = ()) -> int:
    """Decimals of a figure: two of millimetres, millilitres and ratios, else three."""
    return 3 if parsed(name, labels).metric in _SHARES or parsed(name, labels).metric not in _NAMES else 2


def reason_words(reason: str) -> str:
    """Why something is not there, in words; a reason that is not known keeps its own.

    >>> reason_words("too_few"), reason_words("out_of_memory")
    ('too few people, or none: sites do not tell which', 'out of memory')
    """
    if reason == TOO_FEW:
        return "too few people, or none: sites do not tell which"
    known = withheld_words(reason)
    return reason.replace("_", " ") if known == reason else known


def number_or(value: float | None, digits: int = 3, missing: str = "–") -> str:
    """A number, or a word where there is none.

    >>> number_or(-0.12345), number_or(None)
    ('−0.123', '–')
    """
    return missing if value is None else f"{value + 0.0:.{digits}f}".replace("-", "−")


def percent(share: float) -> str:
    """A share in hundredths, as few as it takes.

    >>> percent(0.95), percent(0.995), percent(0.62345)
    ('95 %', '99.5 %', '62.3 %')
    """
    return f"{round(100 * share, 1):g} %"


def p_words(p: float | None) -> str:
    """A p-value for people.

    >>> p_words(0.00004), p_words(0.0312), p_words(None)
    ('< 0.001', '0.031', '–')
    """
    return "–" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"
