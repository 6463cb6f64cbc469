"""What figures mean, in plain words, for readers who do not work with them."""

from __future__ import annotations

from collections.abc import Iterable

from eucaim_fl.validation.page.names import figure_name

__all__ = ["meanings"]

_MEANINGS = {
    "auc": "How often a patient with it gets a higher score than one without: 1 always, 0.5 as by chance.",
    "macro_auc": "The plain mean of the labels' AUCs.",
    "average_precision": "Precision over all recalls: 1 is best; guessing gets the share of patients with it.",
    "prevalence": "Share of these patients with it.",
    "brier": "Mean squared distance between probability and truth: 0 is best.",
    "calibration_slope": "1 is right; above 1 probabilities are too little apart, below 1 too extreme.",
    "calibration_intercept": "0 is right; above 0 probabilities are too low on the whole, below 0 too high.",
    "calibration_error": "Mean distance between probabilities and shares that were seen: 0 is best.",
    "sensitivity": "Share of patients with it whom the model finds at this threshold.",
    "specificity": "Share of patients without it whom the model leaves alone at this threshold.",
    "ppv": "Positive predictive value: share of those whom the model calls positive who have it.",
    "npv": "Negative predictive value: share of those whom the model calls negative who do not have it.",
    "f1": "Harmonic mean of sensitivity and positive predictive value.",
    "accuracy": "Share of patients who are called what they are; without a threshold, by the likeliest class.",
    "balanced_accuracy": "Mean over the classes of the share of their patients who are called what they are.",
    "lr_positive": "How many times as likely a positive answer is in patients with it as in those without.",
    "lr_negative": "How many times as likely a negative answer is in patients with it as in those without.",
    "c_index": "Of pairs of patients of whom one had the event first, how often that one got the higher risk.",
    "dice": "Overlap of the model's outline with the true one: 1 is the same, 0 none.",
    "surface_dice": "Share of both surfaces that lie within the plan's tolerance of each other.",
    "hd95_mm": "Distance within which 95 % of both surfaces lie from each other: 0 is best.",
    "volume_difference_ml": "Volume that was found less the true one.",
    "lesion_sensitivity": "Share of true lesions that were found.",
    "false_positives_per_patient": "Findings that are no true lesion, per patient.",
}


def meanings(metrics: Iterable[str]) -> list[tuple[str, str]]:
    """Name and meaning of each metric that is known, in the order given.

    >>> meanings(["dice", "unheard_of"])
    [('Dice', "Overlap of the model's outline with the true one: 1 is the same, 0 none.")]
    """
    return [(figure_name(metric), _MEANINGS[metric]) for metric in metrics if metric in _MEANINGS]
