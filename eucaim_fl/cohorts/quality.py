"""Rules for images and labels of a cohort: what is double, contradictory, empty or out of the ordinary. Pure."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from eucaim_fl.cohorts.case_image import is_grey
from eucaim_fl.cohorts.findings import Finding, Severity, merge
from eucaim_fl.cohorts.manifest import Case
from eucaim_fl.cohorts.pixel_facts import PixelFacts

__all__ = ["RULES", "Examined", "Rule", "image_findings", "outliers"]

_VOLUMES = frozenset({"CT", "MR", "PT", "NM", ""})
"""Modalities of volumes with values that are measured, where saturation, few slices and odd grids are odd."""
_CLIPPED_SHARE = 0.02
_THICK_MM = 10.0
_ANISOTROPIC = 12.0
_FEW_SLICES = 5
_FEWEST_TO_COMPARE = 8
_AIR_AS_BONE_HU = 300.0


@dataclass(frozen=True)
class Rule:
    """What a rule of quality says, and what can be done. Texts are fixed and safe outside the hospital."""

    severity: Severity
    says: str
    do: str


RULES: Mapping[str, Rule] = {
    "same_pixels": Rule(
        "blocks",
        "Patients whose image has the very same voxels as another patient's.",
        "Find out whose image it is and remove the copies; a patient in two splits makes results too good.",
    ),
    "same_series_twice": Rule(
        "warns",
        "Patients with the same image twice.",
        "Remove the copy, or it counts double in training.",
    ),
    "two_labels": Rule(
        "warns",
        "Patients whose very same image has two different labels.",
        "Decide which label holds and remove the other.",
    ),
    "constant_image": Rule(
        "warns",
        "Images with one value everywhere: nothing can be seen.",
        "Export the images again, or remove them.",
    ),
    "clipped_image": Rule(
        "warns",
        "Images with more than 2 % of their voxels at the largest value: bright parts are cut off.",
        "Look whether the images were windowed at export; export the original values.",
    ),
    "not_hounsfield": Rule(
        "warns",
        "CT images without a negative value: they don't seem to be in Hounsfield units.",
        "Look at RescaleIntercept and RescaleSlope, or at how the images were converted.",
    ),
    "inverted_image": Rule(
        "warns",
        "CT images whose border is brighter than bone: grey values may be inverted.",
        "Look at the images and at PhotometricInterpretation; convert them again.",
    ),
    "odd_spacing": Rule(
        "warns",
        "Images whose pixel or slice distance is far from what is usual here for such series.",
        "Look whether they are localizers, reconstructions of another kind, or wrongly stated.",
    ),
    "odd_field_of_view": Rule(
        "warns",
        "Images that show a far larger or smaller region than is usual here for such series.",
        "Look whether they belong to this cohort; a rule of the plan can leave them out.",
    ),
    "thick_slices": Rule(
        "warns",
        "Images with slices more than 10 mm apart.",
        "Use thinner reconstructions if there are any.",
    ),
    "uneven_voxels": Rule(
        "informs",
        "Images whose voxels are more than 12 times as long as wide.",
        "Expect little detail across slices; a 2-D network may suit them better.",
    ),
    "few_slices": Rule(
        "informs",
        "Volumes of fewer than 5 slices.",
        "Look whether they are localizers; a rule of the plan can leave them out.",
    ),
    "wrong_body_part": Rule(
        "warns",
        "Images that state another body part than cohort.body_parts of the site file.",
        "Look whether they belong to this cohort, or add the body part to the site file.",
    ),
    "grey_among_colours": Rule(
        "warns",
        "Grey images in a cohort whose images of the same modality mostly have colours.",
        "Look whether they belong to this cohort. A plan with data.colour leaves them out.",
    ),
    "without_label": Rule(
        "informs",
        "Patients none of whose images has a label.",
        "They can't train a segmentation; classification needs no labels of this kind.",
    ),
    "label_unreadable": Rule(
        "warns",
        "Labels that can't be used.",
        "`site locate SITE_FILE quality.label_unreadable` says why. Mend or export them again: a segmentation sets "
        "these patients aside.",
    ),
}
"""Rules of this module by the part of their name behind `quality.`"""


@dataclass(frozen=True)
class Examined:
    """A case and what its pixels say; pixels is None if they were not read."""

    case: Case
    pixels: PixelFacts | None = None


@dataclass(frozen=True)
class _Grid:
    """Distances and extent of one image, as far as they are known: mm in the plane and across it."""

    in_plane_mm: float
    across_mm: float | None
    extent_mm: float
    slices: int


def image_findings(
    examined: Sequence[Examined],
    body_parts: Sequence[str] = (),
    label_problems: Mapping[str, Rule] | None = None,
    others: Sequence[Examined] = (),
) -> tuple[Finding, ...]:
    """What is to be said of the images and labels of a cohort's usable cases, one finding a rule, the gravest first.

    Rules about pixels look at the cases whose pixels were read. body_parts: what images should show; empty does not
    check, and images that state none are not counted. label_problems: code of a label's problem → its rule. others:
    images of patients who may not be used, which count only as what a usable image may be a copy of.
    Counts are of images, or of patients where several images are compared.
    """
    found = [
        *_doubles(examined, others),
        *_values(examined),
        *_grids(examined),
        *_colours(examined),
        *_labels(examined, label_problems or {}),
    ]
    wanted = {part.casefold() for part in body_parts}
    wrong = [
        e.case.patient
        for e in examined
        if wanted and e.case.facts and e.case.facts.body_part and e.case.facts.body_part.casefold() not in wanted
    ]
    return merge([*found, *_finding("wrong_body_part", wrong, "series")])


def _finding(
    name: str, patients: Iterable[str], unit: Literal["patients", "series"], rule: Rule | None = None
) -> list[Finding]:
    """One finding over the patients named (once for each image), or none if nobody is."""
    named = list(patients)
    if not named:
        return []
    rule = rule or RULES[name]
    subjects = tuple(sorted(set(named)))
    count = len(subjects) if unit == "patients" else len(named)
    return [Finding(f"quality.{name}", rule.severity, count, unit, rule.says, rule.do, subjects)]


def _keys(one: Examined) -> list[str]:
    """By what an image can be told to be the same as another: its files, and its voxels unless they say nothing."""
    keys = []
    if one.case.facts is not None and one.case.facts.content:
        keys.append(f"files {one.case.facts.content} {one.case.stack}")
    if one.pixels is not None and one.pixels.sha256 and one.pixels.maximum > one.pixels.minimum:
        keys.append(one.pixels.sha256)
    return keys


def _doubles(examined: Sequence[Examined], others: Sequence[Examined]) -> list[Finding]:
    """The same image under two patients, or twice in one; constant images are alike without being copies."""
    alike: dict[str, list[Examined]] = defaultdict(list)
    for one in (*examined, *others):
        for key in _keys(one):
            alike[key].append(one)
    here = {one.case.patient for one in examined}
    shared: set[str] = set()
    twice: set[str] = set()
    disputed: set[str] = set()
    for group in alike.values():
        patients = Counter(one.case.patient for one in group)
        if len(patients) > 1:
            shared.update(patients)
        twice.update(patient for patient, count in patients.items() if count > 1)
        labels = {one.pixels.label_sha256 for one in group if one.pixels is not None} - {""}
        if len(labels) > 1:
            disputed.update(patients)
    return [
        *_finding("same_pixels", shared & here, "patients"),
        *_finding("same_series_twice", twice & here, "patients"),
        *_finding("two_labels", disputed & here, "patients"),
    ]


def _values(examined: Sequence[Examined]) -> list[Finding]:
    """What single images' values say."""

    def odd(test: Callable[[PixelFacts, str], bool]) -> list[str]:
        return [
            e.case.patient
            for e in examined
            if e.pixels is not None and e.pixels.sha256 and test(e.pixels, e.case.modality)
        ]

    def varied(p: PixelFacts) -> bool:
        return p.maximum > p.minimum

    def clipped(p: PixelFacts, modality: str) -> bool:
        # An image of two values is a mask or a drawing; that says another rule, if any.
        grey = p.at_minimum + p.at_maximum < 0.99
        return modality in _VOLUMES and varied(p) and grey and p.at_maximum > _CLIPPED_SHARE

    return [
        *_finding("constant_image", odd(lambda p, _: not varied(p)), "series"),
        *_finding("clipped_image", odd(clipped), "series"),
        *_finding("not_hounsfield", odd(lambda p, m: m == "CT" and varied(p) and p.minimum >= 0), "series"),
        *_finding(
            "inverted_image",
            odd(lambda p, m: m == "CT" and p.minimum < 0 and p.border > max(_AIR_AS_BONE_HU, p.mean)),
            "series",
        ),
    ]


def _grid(one: Examined) -> _Grid | None:
    """The grid as the pixels' reader found it, else as headers state it."""
    if one.pixels is not None and one.pixels.sha256:
        i, j, k = one.pixels.spacing_mm
        shape = one.pixels.shape
        return _Grid(max(i, j), k if shape[2] > 1 else None, max(i * shape[0], j * shape[1]), shape[2])
    facts = one.case.facts
    down, right = (None, None) if facts is None else facts.spacing_mm[:2]
    if facts is None or down is None or right is None or 0 in facts.size:
        return None
    rows, columns, slices = facts.size
    return _Grid(max(down, right), facts.spacing_mm[2], max(rows * down, columns * right), slices)


def _grids(examined: Sequence[Examined]) -> list[Finding]:
    """Odd distances and extents, against fixed limits and against what is usual here for the same kind of series."""
    known = [(e, g) for e in examined if e.case.modality in _VOLUMES and (g := _grid(e)) is not None]
    spacing: set[int] = set()
    extent: set[int] = set()
    alike: dict[tuple[str, str], list[int]] = defaultdict(list)
    for n, (e, _) in enumerate(known):
        alike[e.case.modality, "" if e.case.facts is None else e.case.facts.description].append(n)
    for places in alike.values():
        spacing |= {places[n] for n in outliers([known[n][1].in_plane_mm for n in places])}
        extent |= {places[n] for n in outliers([known[n][1].extent_mm for n in places])}
        deep = [n for n in places if known[n][1].across_mm]
        spacing |= {deep[n] for n in outliers([known[n][1].across_mm or 1.0 for n in deep])}

    def patients(chosen: Callable[[_Grid], bool]) -> list[str]:
        return [e.case.patient for e, g in known if chosen(g)]

    def uneven(g: _Grid) -> bool:
        sides = (g.in_plane_mm, g.across_mm or g.in_plane_mm)
        return max(sides) > _ANISOTROPIC * min(sides)

    return [
        *_finding("odd_spacing", [known[n][0].case.patient for n in sorted(spacing)], "series"),
        *_finding("odd_field_of_view", [known[n][0].case.patient for n in sorted(extent)], "series"),
        *_finding("thick_slices", patients(lambda g: (g.across_mm or 0.0) > _THICK_MM), "series"),
        *_finding("uneven_voxels", patients(uneven), "series"),
        *_finding("few_slices", patients(lambda g: g.slices < _FEW_SLICES), "series"),
    ]


def outliers(values: Sequence[float]) -> set[int]:
    """Indices of positive values that lie far from the median: more than twice or less than half of it, and further
    on the logarithmic scale than 6 times the median absolute deviation.

    With fewer than 8 values nothing is usual, so nothing is odd; and what more than a tenth have is usual. Values that
    aren't positive and finite are odd.

    >>> sorted(outliers([1.0] * 20 + [2.5, 0.3]))
    [20, 21]
    """
    if len(values) < _FEWEST_TO_COMPARE:
        return set()
    logs = {n: math.log(v) for n, v in enumerate(values) if math.isfinite(v) and v > 0}
    if not logs:
        return set()
    middle = median(logs.values())
    spread = median(abs(v - middle) for v in logs.values())
    limit = max(math.log(2.0), 6 * spread)
    found = {n for n in range(len(values)) if n not in logs or abs(logs[n] - middle) > limit}
    return found if len(found) <= max(1, len(values) // 10) else set()


def _colours(examined: Sequence[Examined]) -> list[Finding]:
    """Grey images where most of their modality have colours."""
    stated: dict[str, list[Case]] = defaultdict(list)
    for one in examined:
        if one.case.facts is not None and one.case.facts.samples is not None:
            stated[one.case.modality].append(one.case)
    grey: list[str] = []
    for cases in stated.values():
        some = [case.patient for case in cases if is_grey(case)]
        grey += some if len(some) < len(cases) / 2 else []
    return _finding("grey_among_colours", grey, "series")


def _labels(examined: Sequence[Examined], problems: Mapping[str, Rule]) -> list[Finding]:
    """Labels that are missing, can't be read, or have a problem of their own."""
    labelled = {e.case.patient for e in examined if e.case.label}
    without = [e.case.patient for e in examined if e.case.patient not in labelled]
    unreadable = [e.case.patient for e in examined if e.pixels is not None and e.pixels.label_code]
    by_code: dict[str, list[str]] = defaultdict(list)
    for one in examined:
        for code in one.pixels.label_problems if one.pixels is not None else ():
            by_code[code].append(one.case.patient)
    return [
        *_finding("without_label", without, "patients"),
        *_finding("label_unreadable", unreadable, "series"),
        *(
            found
            for code, patients in sorted(by_code.items())
            if code in problems
            for found in _finding(f"label_{code}", patients, "series", problems[code])
        ),
    ]
