"""What a validation's numbers say in plain English: the sentences of the first page, and whether patients were enough.

Sentences follow from numbers by these rules alone; no number is judged that the plan or chance gives no measure for.

does it work  AUC and c-index: better than chance if the interval lies above ½, worse if below, else not shown. Other
              figures are told as they are. A comparison with a margin: its non-inferiority; without one, or beside it,
              a difference is shown if the adjusted p-value is below 0.05.
where         the hospitals with the lowest and highest first main figure; whether they differ by more than chance
              (p of heterogeneity below 0.05); the prediction for a further hospital, with a warning where an AUC's
              reaches ½. With one hospital: that nothing follows for others.
for whom      each difference of groups with an adjusted p-value below 0.05; else that none was shown, of how many
              tests; of how many groups that somebody told of some hospital tells nothing.
how sure      intervals that are wider than the plan wants; hospitals that told nothing or withhold everything; images
              without an answer; calibration, where the interval of slope or intercept leaves out 1 or 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from eucaim_fl.validation.agreement import enough
from eucaim_fl.validation.analysis_between import LOWER_IS_BETTER, main_figures
from eucaim_fl.validation.analysis_input import Asked, figure_key, label_of
from eucaim_fl.validation.group_words import group_name, rule_name
from eucaim_fl.validation.intervals import Interval
from eucaim_fl.validation.result_schema import (
    BetweenSites,
    ComparisonResult,
    EnoughResult,
    Figure,
    GroupDifference,
    ModelResult,
    ScopeResult,
    SiteLine,
    Verdict,
)

__all__ = ["Findings", "enough_of", "figure_words", "verdicts"]

_ALPHA = 0.05
_MOST = 4  # sentences of a kind; the rest is counted
_CHANCE = ("auc", "macro_auc", "c_index")
_WORDS = {
    "auc": "AUC",
    "macro_auc": "mean AUC over labels",
    "c_index": "concordance index",
    "dice": "mean Dice",
    "hd95_mm": "mean HD95 (mm)",
    "surface_dice": "mean surface Dice",
    "brier": "Brier score",
    "ppv": "positive predictive value",
    "npv": "negative predictive value",
    "f1": "F1 score",
    "lr_positive": "positive likelihood ratio",
    "lr_negative": "negative likelihood ratio",
    "volume_difference_ml": "mean volume difference (ml)",
    "lesion_sensitivity": "share of lesions found",
    "false_positives_per_patient": "false findings per patient",
}


class Findings:
    """What sentences are made of: the parts of a result that are there when they are written."""

    def __init__(
        self,
        asked: Asked,
        models: Sequence[ModelResult],
        differences: Sequence[GroupDifference],
        comparisons: Sequence[ComparisonResult],
        half_widths: Sequence[EnoughResult],
        sites: Sequence[SiteLine],
    ) -> None:
        """All of one result; models in the plan's order."""
        self.asked = asked
        self.models = models
        self.differences = differences
        self.comparisons = comparisons
        self.half_widths = half_widths
        self.sites = sites

    @property
    def whole(self) -> ScopeResult:
        """The model under test on all patients."""
        return self.models[0].scopes[0]


def figure_words(asked: Asked, key: str) -> str:
    """A figure's name as people say it.

    key: as `figure_key` makes it.
    """
    metric, label = label_of(asked, key)
    name, _, threshold = metric.partition("@")
    words = _WORDS.get(name, name.replace("_", " "))
    return f"{words}{threshold and f' at {threshold}'}{label and f' of {label}'}"


def enough_of(asked: Asked, model: ModelResult) -> tuple[EnoughResult, ...]:
    """For each half width that the plan wants, and each label that has the figure, whether the interval is as narrow.

    A figure at thresholds is that at the first one. About how many patients would do: as `agreement.enough` says it,
    counted as the figure counts them (of a sensitivity, patients with the disease).
    """
    found = []
    for metric, wanted in asked.validation.half_widths.items():
        figures = model.scopes[0].figures
        first = f"{asked.first_threshold:g}"
        own = {
            key: figure
            for key, figure in figures.items()
            if label_of(asked, key)[0] in (metric, f"{metric}@{first}") or key == metric
        }
        if metric in {label_of(asked, key)[0] for key in own}:
            own = {key: figure for key, figure in own.items() if "@" not in key}
        if not own:
            found.append(_enough(asked, (model.name, metric), None, wanted))
        for key, figure in own.items():
            found.append(_enough(asked, (model.name, key), figure, wanted))
    return tuple(found)


def _enough(asked: Asked, of: tuple[str, str], figure: Figure | None, wanted: float) -> EnoughResult:
    name = figure_words(asked, of[1])
    result = EnoughResult(
        model=of[0], figure=of[1], enough=None, half_width=None, wanted_half_width=wanted,
        patients=None if figure is None else figure.patients, needed=None, sentence="",
    )  # fmt: skip
    if figure is None:
        return result.model_copy(update={"sentence": f"No site told what '{of[1]}' is made of."})
    if figure.value is None or figure.low is None or figure.high is None:
        sentence = f"{_capital(name)} has no interval, so nobody knows how many patients would do. {figure.reason}"
        return result.model_copy(update={"sentence": sentence.strip()})
    one = enough(Interval(figure.value, figure.low, figure.high), wanted, figure.patients or 0)
    good = f"{_capital(name)}: the interval is ±{one.half_width:.3g}, at most the ±{wanted:.3g} that was wanted."
    return result.model_copy(
        update={
            "enough": one.enough,
            "half_width": one.half_width,
            "needed": one.needed,
            "sentence": good if one.enough else f"{_capital(name)}: {one.note[0].lower()}{one.note[1:]}",
        }
    )


def verdicts(found: Findings) -> tuple[Verdict, ...]:
    """The sentences of the first page, about the model under test, in the order of the four questions.

    The rules are those of this module's docstring.
    """
    return (*_works(found), *_where(found), *_for_whom(found), *_how_sure(found))


def _works(found: Findings) -> list[Verdict]:
    figures, sites = found.whole.figures, sum(site.patients is not None for site in found.sites)
    keys = [main.key for main in main_figures(found.asked)]
    if len(keys) > _MOST:
        known = {key: figures[key].value or 0.0 for key in keys if key in figures and figures[key].value is not None}
        keys = ["macro_auc"] if "macro_auc" in figures else []
        keys += sorted({min(known, key=known.__getitem__), max(known, key=known.__getitem__)}) if known else []
    told = [_worth(found.asked, key, figures.get(key), sites) for key in keys]
    return [*told, *(_of_two(found.asked, one) for one in found.comparisons)]


def _worth(asked: Asked, key: str, figure: Figure | None, sites: int) -> Verdict:
    words = _capital(figure_words(asked, key))
    if figure is None or figure.value is None:
        reason = "no site told it." if figure is None else f"{figure.reason[:1].lower()}{figure.reason[1:]}"
        return Verdict(question="does_it_work", tone="warning", sentence=f"{words} is not known: {reason}")
    over = f" over {figure.patients} patients" if figure.patients is not None else ""
    sentence = f"{words} is {_with_limits(figure)}{over} of {_hospitals(sites)}"
    if label_of(asked, key)[0] not in _CHANCE or figure.low is None or figure.high is None:
        return Verdict(question="does_it_work", tone="plain", sentence=f"{sentence}.")
    if figure.low > 0.5:
        return Verdict(question="does_it_work", tone="good", sentence=f"{sentence}: better than chance (0.5).")
    if figure.high < 0.5:
        return Verdict(question="does_it_work", tone="bad", sentence=f"{sentence}: worse than chance (0.5).")
    return Verdict(question="does_it_work", tone="bad", sentence=f"{sentence}: not shown to be better than chance.")


def _of_two(asked: Asked, one: ComparisonResult) -> Verdict:
    names = [model.name for model in asked.validation.models]
    words = figure_words(asked, one.figure)
    if one.difference is None or one.low is None or one.high is None:
        sentence = f"{names[0]} and {names[1]} can't be compared by {words}: {one.reason}"
        return Verdict(question="does_it_work", tone="warning", sentence=sentence)
    shown = one.p_adjusted is not None and one.p_adjusted < _ALPHA
    sentence = (
        f"{_capital(words)}, {names[0]} less {names[1]}: {one.difference:+.3g} (95 % interval {one.low:+.3g} to "
        f"{one.high:+.3g}); {'a difference is shown' if shown else 'no difference is shown'}{_p(one.p_adjusted)}."
    )
    ahead = (one.difference > 0) == (one.better == "higher") and one.better != "neither"
    tones = {"shown": "good", "inferior_shown": "bad", "not_shown": "warning"}
    if one.outcome is not None:
        tone = tones[one.outcome]
    else:
        tone = "plain" if not shown or one.better == "neither" else "good" if ahead else "bad"
    return Verdict.model_validate(
        {"question": "does_it_work", "tone": tone, "sentence": f"{sentence} {one.sentence}".strip()}
    )


def _where(found: Findings) -> list[Verdict]:
    if not found.whole.between:
        return []
    one = found.whole.between[0]
    words = _capital(figure_words(found.asked, one.figure))
    known = sorted((row.value, row.site) for row in one.rows if row.value is not None)
    if not known:
        return [Verdict(question="where", tone="warning", sentence=f"No hospital has a value: {words}.")]
    if len(known) == 1:
        sentence = f"Only {known[0][1]} has a value; nothing follows for other hospitals."
        return [Verdict(question="where", tone="warning", sentence=sentence)]
    low, high = known[0], known[-1]
    sentence = f"{words} lies between {low[0]:.3f} ({low[1]}) and {high[0]:.3f} ({high[1]}) at {_hospitals(len(known))}"
    return [_apart(sentence, one), *_ahead(figure_words(found.asked, one.figure), one)]


def _apart(sentence: str, one: BetweenSites) -> Verdict:
    if one.p_heterogeneity is None:
        return Verdict(question="where", tone="plain", sentence=f"{sentence}. {one.reason}".strip())
    share = "" if one.i2 is None else f", I² {100 * one.i2:.0f} %"
    told = f"p {_short_p(one.p_heterogeneity)}{share}"
    if one.p_heterogeneity < _ALPHA:
        return Verdict(question="where", tone="warning", sentence=f"{sentence}: more apart than by chance ({told}).")
    open_ = "no more apart than by chance" if one.sites > 2 else "two hospitals can't show how far hospitals differ"
    return Verdict(question="where", tone="plain", sentence=f"{sentence}: {open_} ({told}).")


def _ahead(words: str, one: BetweenSites) -> list[Verdict]:
    if one.prediction_low is None or one.prediction_high is None:
        return []
    limits = f"{one.prediction_low:.3f} to {one.prediction_high:.3f}"
    sentence = f"In a further hospital of this kind expect {words} from {limits} (95 % prediction interval)."
    poor = one.figure.split("_")[0] == "auc" and one.prediction_low <= 0.5
    return [Verdict(question="where", tone="warning" if poor else "plain", sentence=sentence)]


def _for_whom(found: Findings) -> list[Verdict]:
    if not found.asked.validation.subgroups:
        return [Verdict(question="for_whom", tone="plain", sentence="The plan asked for no groups of patients.")]
    own = [one for one in found.differences if one.model == found.models[0].name]
    tested = [one for one in own if one.p_adjusted is not None]
    shown = sorted(
        (one for one in tested if one.p_adjusted is not None and one.p_adjusted < _ALPHA), key=lambda one: one.p or 0.0
    )
    told = [Verdict(question="for_whom", tone="warning", sentence=_group(found.asked, one)) for one in shown[:_MOST]]
    if len(shown) > _MOST:
        sentence = f"{len(shown) - _MOST} further differences between groups are shown."
        told.append(Verdict(question="for_whom", tone="warning", sentence=sentence))
    if tested and not shown:
        sentence = (
            f"No difference between groups of patients is shown ({len(tested)} compared); that does not prove that "
            "there is none."
        )
        told.append(Verdict(question="for_whom", tone="plain", sentence=sentence))
    if not tested:
        sentence = "No groups of patients could be compared: too few patients, or withheld."
        told.append(Verdict(question="for_whom", tone="warning", sentence=sentence))
    groups = [scope for scope in found.models[0].scopes[1:] if len(scope.withheld) < len(scope.sites)]
    if hidden := sum(bool(scope.withheld) for scope in groups):
        sentence = (
            f"Of {hidden} of {len(groups)} groups some hospital tells no figures: it has nobody, or too few, in them."
        )
        told.append(Verdict(question="for_whom", tone="plain", sentence=sentence))
    return told


def _group(asked: Asked, one: GroupDifference) -> str:
    worse = (one.difference or 0.0) < 0
    if one.figure.split("_")[0] in LOWER_IS_BETTER:
        worse = not worse
    rule = rule_name(one.rule)
    return (
        f"{_capital(figure_words(asked, one.figure))} is {'worse' if worse else 'better'} for "
        f"{group_name(one.group)} than for {group_name(one.reference)} ({rule[:1].lower()}{rule[1:]}): by "
        f"{abs(one.difference or 0.0):.3g}{_p(one.p_adjusted)}."
    )


def _how_sure(found: Findings) -> list[Verdict]:
    told = [
        Verdict(question="how_sure", tone="good" if one.enough else "warning", sentence=one.sentence)
        for one in found.half_widths
        if one.model == found.models[0].name
    ]
    silent = [site.site for site in found.sites if not site.answered]
    hiding = [site.site for site in found.sites if site.answered and site.patients is None]
    for names, what in ((silent, "told nothing"), (hiding, "withheld all figures")):
        if names:
            sentence = f"{len(names)} of {_hospitals(len(found.sites))} {what}: {', '.join(names[:_MOST])}"
            more = f" and {len(names) - _MOST} more." if len(names) > _MOST else "."
            told.append(Verdict(question="how_sure", tone="warning", sentence=sentence + more))
    if failed := sum(sum(site.failed.values()) for site in found.sites):
        sentence = f"A model gave no answer for {failed} images; they are in no figure."
        told.append(Verdict(question="how_sure", tone="warning", sentence=sentence))
    wide = [] if found.half_widths else _wide(found)
    return [*wide, *told, *_calibrated(found.asked, found.models[0].name, found.whole.figures)]


def _wide(found: Findings) -> list[Verdict]:
    """How wide the main figures' intervals are, where the plan does not say how narrow they should be."""
    told = []
    for main in main_figures(found.asked)[:_MOST]:
        figure = found.whole.figures.get(main.key)
        if figure is None or figure.low is None or figure.high is None:
            continue
        sentence = (
            f"The interval of {figure_words(found.asked, main.key)} is {figure.high - figure.low:.2g} wide; "
            "the plan does not say how narrow it should be."
        )
        told.append(Verdict(question="how_sure", tone="plain", sentence=sentence))
    return told


def _calibrated(asked: Asked, model: str, figures: Mapping[str, Figure]) -> list[Verdict]:
    if len(asked.names) != 1:
        return []
    told = []
    for metric, ideal, high, low in (
        ("calibration_slope", 1.0, "too little apart", "too extreme"),
        ("calibration_intercept", 0.0, "too low on the whole", "too high on the whole"),
    ):
        figure = figures.get(figure_key(metric, asked.names[0]))
        if figure is None or figure.value is None or figure.low is None or figure.high is None:
            continue
        if figure.low > ideal or figure.high < ideal:
            what = f"Probabilities of {model} are {high if figure.low > ideal else low}"
            sentence = f"{what}: {figure_words(asked, metric)} {_with_limits(figure)}, {ideal:g} would be right."
            told.append(Verdict(question="how_sure", tone="warning", sentence=sentence))
    return told


def _with_limits(figure: Figure) -> str:
    value = f"{figure.value:.3f}"
    if figure.low is None or figure.high is None:
        return value
    return f"{value} (95 % interval {figure.low:.3f} to {figure.high:.3f})"


def _hospitals(number: int) -> str:
    return f"{number} hospital{'' if number == 1 else 's'}"


def _p(p: float | None) -> str:
    return "" if p is None else f" (adjusted p {_short_p(p)})"


def _short_p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]
