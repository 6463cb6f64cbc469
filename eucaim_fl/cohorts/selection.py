"""Which images of a cohort a plan takes: values in, values out. Who is left out is counted, with the rule and why."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from eucaim_fl.cohorts.case_image import is_grey
from eucaim_fl.cohorts.facts import SeriesFacts
from eucaim_fl.cohorts.manifest import Case
from eucaim_fl.config import SeriesRule
from eucaim_fl.errors import DataError, LabelError, SeriesError
from eucaim_fl.plan import FederationPlan

__all__ = ["LeftOut", "Selection", "fits", "select"]

_SHORT_WORD = 2
_UNKNOWN = SeriesFacts(folder="", files=(), kind="other")


@dataclass(frozen=True)
class LeftOut:
    """A patient of whom a plan takes nothing.

    rule: the channel's rule that failed first, `label` where the label is missing. code, reason: safe outside the
    hospital. local_detail: how many of the patient's series fail at what.
    """

    patient: str
    rule: str
    code: str
    reason: str
    local_detail: str = ""


@dataclass(frozen=True)
class Selection:
    """What a plan takes of a cohort.

    cases: in the order of the manifest; with `data.channels` one a patient, the first channel's image with those of
    the other channels in `further`. left_out: patients of whom nothing is taken, by name.
    """

    cases: tuple[Case, ...]
    left_out: tuple[LeftOut, ...] = ()

    def reasons(self) -> dict[str, int]:
        """Reason → number of patients left out for it; the most frequent first. The texts hold no stored value."""
        counts = Counter(one.reason for one in self.left_out)
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def select(cases: Sequence[Case], plan: FederationPlan) -> Selection:
    """The cases that a plan takes. The order of `cases` changes nothing but the order of what is returned.

    Without `data.channels`: every image of `data.modality`, with `data.colour` only those whose headers don't say that
    they are grey, and in segmentation only those with a label; a patient who has images but none of these is left out.
    With channels: at most one case a patient. All channels come from one study, each from another stack: the rules are
    served in the plan's order, each by the best of the stacks that fit (`SeriesRule.prefer`, then series UID and
    stack). In segmentation a label is needed: for the first channel labelled stacks go before `prefer`; if the
    chosen one has none, the label of another channel's image is taken, which then lies on another grid (see
    `data.labels_on_other_grid`). Of several studies with all channels the first by UID is taken.
    """
    if plan.data.channels:
        return _by_rules(cases, plan.data.channels, labelled=plan.task.name == "segmentation")
    wanted = plan.data.modality
    fitting = [case for case in cases if wanted is None or case.modality in ("", wanted)]
    taken = [case for case in fitting if not (plan.data.colour and is_grey(case))]
    left_out = [
        LeftOut(patient, "colour", SeriesError.code, "A patient's image has no colours.", case.series)
        for patient, case in _others(fitting, taken).items()
    ]
    if plan.task.name != "segmentation":
        return Selection(tuple(taken), tuple(left_out))
    labelled = [case for case in taken if case.label]
    left_out += [_without_label(patient, case.series) for patient, case in _others(taken, labelled).items()]
    return Selection(tuple(labelled), tuple(sorted(left_out, key=lambda one: one.patient)))


def _others(cases: Sequence[Case], taken: Sequence[Case]) -> dict[str, Case]:
    """Patient, by name → the first image, of those of whom nothing was taken."""
    known = {case.patient for case in taken}
    first = {case.patient: case for case in reversed(cases) if case.patient not in known}
    return dict(sorted(first.items()))


def _without_label(patient: str, detail: str) -> LeftOut:
    return LeftOut(patient, "label", LabelError.code, "A patient's image has no label.", detail)


# --- one series and one rule -----------------------------------------------------------------------------------


def _tokens(text: str) -> list[str]:
    """Runs of letters and digits, in lower case.

    >>> _tokens("T2_TSE tra-Pelvis")
    ['t2', 'tse', 'tra', 'pelvis']
    """
    return "".join(c if c.isalnum() else " " for c in text.casefold()).split()


def _says(facts: SeriesFacts, word: str) -> bool:
    """Whether a word stands in a series' description, protocol or sequence, alone or as a part of a longer token.

    Words of one or two characters only begin a token: "t2" is in "t2w", but "ce" is not in "space".
    """
    found = _tokens(f"{facts.description} {facts.protocol} {facts.sequence}")
    parts = _tokens(word)
    return bool(parts) and all(
        any(token.startswith(part) if len(part) <= _SHORT_WORD else part in token for token in found) for part in parts
    )


def _modality(case: Case) -> str:
    return case.modality or (case.facts or _UNKNOWN).modality


def _within(value: float | None, limits: tuple[float, float]) -> bool:
    return value is not None and limits[0] <= value <= limits[1]


def _equal(value: str, wanted: str) -> bool:
    return value.strip().casefold() == wanted.strip().casefold()


_Criterion = tuple[str, str, Callable[[Case, SeriesFacts, Any], bool]]

_CRITERIA: tuple[_Criterion, ...] = (
    # NIfTI states no modality, so it may be any; a DICOM series that states none fits no rule that asks for one.
    ("modality", "another modality", lambda c, _, v: _modality(c) == v or (not _modality(c) and _is_nifti(c))),
    ("words", "a wanted word missing", lambda _, f, v: all(_says(f, word) for word in v)),
    ("without", "a word that is not wanted", lambda _, f, v: not any(_says(f, word) for word in v)),
    ("image_type", "another kind of image", lambda _, f, v: all(any(_equal(t, w) for t in f.image_type) for w in v)),
    ("body_part", "another part of the body", lambda _, f, v: _equal(f.body_part, v)),
    ("plane", "another plane", lambda _, f, v: f.plane == v),
    ("thickness_mm", "another slice thickness", lambda _, f, v: _within(f.thickness_mm, v)),
    ("b_value", "another b-value", lambda _, f, v: _within(f.b_value, v)),
    ("echo_time_ms", "another echo time", lambda _, f, v: _within(f.echo_time_ms, v)),
    ("contrast", "contrast agent stated otherwise", lambda _, f, v: f.contrast is v),
)
"""Field of `SeriesRule`, what is wrong where it fails, and whether a series fits, in this order."""


def _is_nifti(case: Case) -> bool:
    return case.image_format == "nifti"


def _first_failure(case: Case, rule: SeriesRule) -> int:
    """Index of the first criterion that a series fails; `len(_CRITERIA)` if it fits."""
    facts = case.facts or _UNKNOWN
    for index, (name, _, holds) in enumerate(_CRITERIA):
        wanted = getattr(rule, name)
        if wanted is not None and wanted != () and not holds(case, facts, wanted):
            return index
    return len(_CRITERIA)


def fits(case: Case, rule: SeriesRule) -> bool:
    """Whether an image is what a rule asks for. What is not stated fails a rule that asks for it, except for the
    modality of a NIfTI file."""
    return _first_failure(case, rule) == len(_CRITERIA)


def _rank(case: Case, rule: SeriesRule) -> tuple[float, str, str]:
    """The smallest is taken first."""
    facts = case.facts or _UNKNOWN
    if rule.prefer == "most_slices":
        place = -float(facts.size[2])
    elif rule.prefer == "thinnest":
        stated = facts.thickness_mm if facts.thickness_mm is not None else facts.spacing_mm[2]
        place = float("inf") if stated is None else stated
    else:
        place = 0.0
    return place, case.series, case.stack


# --- a patient's studies and all rules -------------------------------------------------------------------------


@dataclass(frozen=True)
class _Attempt:
    """One study against all rules: the channels that were found, and why the next one was not."""

    channels: tuple[Case, ...]
    label: Case | None = None
    failure: LeftOut | None = None


def _attempt(study: Sequence[Case], rules: Sequence[SeriesRule], labelled: bool) -> _Attempt:
    chosen: list[Case] = []
    for rule in rules:
        fitting = [case for case in study if fits(case, rule)]
        free = [case for case in fitting if not any(case is taken for taken in chosen)]
        if not free:
            return _Attempt(tuple(chosen), failure=_why(study, rule, len(fitting)))
        first = labelled and not chosen
        chosen.append(min(free, key=lambda case: (first and not case.label, _rank(case, rule))))
    label = next((case for case in chosen if case.label), None)
    if labelled and label is None:
        return _Attempt(tuple(chosen), failure=_without_label(chosen[0].patient, chosen[0].series))
    return _Attempt(tuple(chosen), label)


def _why(study: Sequence[Case], rule: SeriesRule, taken: int) -> LeftOut:
    """The patient is left out for what the series that come nearest fail at."""
    failures = Counter(_first_failure(case, rule) for case in study)
    said = {index: text for index, (_, text, _) in enumerate(_CRITERIA)} | {len(_CRITERIA): "taken by another channel"}
    nearest = said[max(failures)]
    detail = ", ".join(f"{count}: {said[index]}" for index, count in sorted(failures.items(), reverse=True))
    return LeftOut(
        study[0].patient,
        rule.name,
        DataError.code,
        f"No series of a patient fits the rule '{rule.name}' ({nearest}).",
        f"series of the study that comes nearest: {detail}" if not taken else f"fitting series: {taken}; {detail}",
    )


def _by_rules(cases: Sequence[Case], rules: Sequence[SeriesRule], *, labelled: bool) -> Selection:
    patients: dict[str, dict[str, list[Case]]] = defaultdict(lambda: defaultdict(list))
    for case in cases:
        patients[case.patient][case.study].append(case)
    taken: list[Case] = []
    left_out: list[LeftOut] = []
    for patient in sorted(patients):
        attempts = [_attempt(study, rules, labelled) for _, study in sorted(patients[patient].items())]
        complete = next((attempt for attempt in attempts if attempt.failure is None), None)
        if complete is None:
            nearest = max(attempts, key=lambda attempt: len(attempt.channels))
            left_out.extend([nearest.failure] if nearest.failure is not None else [])
            continue
        first, *further = complete.channels
        label = complete.label if labelled else None
        taken.append(
            replace(
                first,
                further=tuple(replace(case, label=(), label_format=None) for case in further),
                label=() if label is None else label.label,
                label_format=None if label is None else label.label_format,
            )
        )
    return Selection(tuple(taken), tuple(left_out))
