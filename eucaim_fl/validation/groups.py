"""Which groups a patient is in, by a plan's rules: names from a closed list, never a word of the hospital's own."""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from eucaim_fl.validation_config import SubgroupConfig

__all__ = ["MAKERS", "SEXES", "PatientValues", "group_of", "groups_of", "maker", "possible_groups", "sex_letter"]

MAKERS = (
    "GE", "Siemens", "Philips", "Canon", "Toshiba", "Fujifilm", "Hitachi", "Hologic", "United Imaging", "Samsung",
    "Shimadzu", "Esaote", "Mindray", "Neusoft", "Carestream", "Agfa", "Planmed", "IMS", "Bruker", "other",
)  # fmt: skip
"""All makers of scanners that leave a site by name; every other one is `other`."""

SEXES = ("F", "M", "O")
"""As in DICOM's PatientSex (PS3.3 C.7.1.1)."""

_UNKNOWN = "unknown"
_WORD = re.compile(r"[a-z]+")
_OTHER_NAMES = {
    "general electric": "GE",
    "gehealthcare": "GE",
    "uih": "United Imaging",
    "fuji": "Fujifilm",
    "philipsmedical": "Philips",
}
_LETTERS = {"f": "F", "female": "F", "m": "M", "male": "M", "o": "O", "other": "O"}


@dataclass(frozen=True, kw_only=True)
class PatientValues:
    """What is known of one patient, or of one of a patient's images; empty or None where it is not.

    sex: as the cohort has it, a letter or a word. age: years. manufacturer: of the scanner, in any spelling.
    field_strength_t: tesla. slice_thickness_mm: mm. lesion_volume_ml: all true lesions of the patient together, ml.
    """

    sex: str = ""
    age: float | None = None
    manufacturer: str = ""
    field_strength_t: float | None = None
    slice_thickness_mm: float | None = None
    lesion_volume_ml: float | None = None


def sex_letter(text: str) -> str:
    """F, M or O; empty for everything else, such as `unknown`.

    >>> sex_letter("female"), sex_letter(" M "), sex_letter("Mary")
    ('F', 'M', '')
    """
    return _LETTERS.get(text.strip().casefold(), "")


def maker(text: str) -> str:
    """One of `MAKERS`, by whole words, or by a long name's beginning; empty if none is stated.

    >>> maker("GE MEDICAL SYSTEMS"), maker("SIEMENS-Healthineers"), maker("Dr. Smith's scanner"), maker(" ")
    ('GE', 'Siemens', 'other', '')
    """
    if not text.strip():
        return ""
    words = f" {' '.join(_WORD.findall(text[:256].casefold()))} "
    names = {**{name.casefold(): name for name in MAKERS if name != "other"}, **_OTHER_NAMES}
    for written, name in names.items():
        if f" {written} " in words or (len(written) > 4 and f" {written}" in words):
            return name
    return "other"


def possible_groups(rule: SubgroupConfig) -> tuple[str, ...]:
    """All names that a rule can give, in order; the last one is that of patients of whom the value is not known.

    >>> possible_groups(SubgroupConfig(by="sex"))
    ('sex=F', 'sex=M', 'sex=O', 'sex=unknown')
    >>> possible_groups(SubgroupConfig(by="age", edges=(50,)))
    ('age<50', 'age>=50', 'age=unknown')
    """
    words = {"sex": SEXES, "manufacturer": MAKERS}.get(rule.by, ())
    named = [f"{rule.by}={word}" for word in words]
    return tuple(dict.fromkeys([*rule.groups(), *named, f"{rule.by}={_UNKNOWN}"]))


def group_of(values: PatientValues, rule: SubgroupConfig) -> str:
    """The name of the rule's group that these values belong to; see `possible_groups`.

    A number that is missing, negative or not finite is not known. The lower edge belongs to its group.

    >>> rule = SubgroupConfig(by="age", edges=(50, 70))
    >>> [group_of(PatientValues(age=age), rule) for age in (49.9, 50, 70, None)]
    ['age<50', 'age=50-70', 'age>=70', 'age=unknown']
    """
    if rule.by == "sex":
        return f"sex={sex_letter(values.sex) or _UNKNOWN}"
    if rule.by == "manufacturer":
        return f"manufacturer={maker(values.manufacturer) or _UNKNOWN}"
    number = getattr(values, rule.by)
    if number is None or not math.isfinite(number) or number < 0:
        return f"{rule.by}={_UNKNOWN}"
    return rule.groups()[bisect_right(rule.edges, number)]


def groups_of(values: Iterable[PatientValues], rules: Sequence[SubgroupConfig]) -> frozenset[str]:
    """The groups of one patient, exactly one for each rule.

    values: of each of the patient's images. What is not known of one image is taken from the others; images that
    belong to different groups of a rule leave the patient in its group `unknown`, so that groups never overlap.

    >>> rules = [SubgroupConfig(by="sex"), SubgroupConfig(by="manufacturer")]
    >>> images = [PatientValues(sex="F", manufacturer="GE"), PatientValues(manufacturer="Philips")]
    >>> sorted(groups_of(images, rules))
    ['manufacturer=unknown', 'sex=F']
    """
    images = list(values)
    found = set()
    for rule in rules:
        unknown = f"{rule.by}={_UNKNOWN}"
        names = {group_of(one, rule) for one in images} - {unknown}
        found.add(names.pop() if len(names) == 1 else unknown)
    return frozenset(found)
