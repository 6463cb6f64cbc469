"""Rules for the clinical values of a cohort's patients: missing, contradictory, impossible. Pure."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from eucaim_fl.cohorts.codes.vocabulary import WORDS
from eucaim_fl.cohorts.deidentification.names import masked
from eucaim_fl.cohorts.deidentification.tables import identifiers_in_values, is_identifying_column
from eucaim_fl.cohorts.deidentification.vocabulary import CLINICAL_WORDS, LAYOUT_WORDS
from eucaim_fl.cohorts.deidentification.words import is_imaging_word, tokens
from eucaim_fl.cohorts.findings import Finding, merge
from eucaim_fl.cohorts.manifest import Case
from eucaim_fl.cohorts.quality import Rule

__all__ = ["CLINICAL_RULES", "NOT_SHOWN", "Column", "clinical_columns", "clinical_findings"]

_MOST_CLASSES = 10
_SMALL_CLASS = 5
_MISSING_SHARE = 0.2
_OLDEST = 120.0
NOT_SHOWN = "(not shown)"
"""In the place of a class that could be a person's name."""
_SHORT = 3
_LETTERS = re.compile(r"[^\W\d_]+")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
_KEYS = frozenset({"patient_id", "dataset_id"})
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")
_YEARS = frozenset({"", "y", "a", "year", "years"})

CLINICAL_RULES: Mapping[str, Rule] = {
    "two_splits": Rule(
        "warns",
        "Patients who stand in two splits in the column split.",
        "Give every patient one split. Runs here divide patients on their own; whoever uses the column would test on "
        "patients that were trained with.",
    ),
    "values_differ": Rule(
        "warns",
        "Patients whose rows give different values in a column with few classes.",
        "Mend the table: one row a patient, or the same value in all of a patient's rows.",
    ),
    "impossible_age": Rule(
        "warns",
        "Patients with an age below 0 or above 120.",
        "Mend the table; ages must be in years unless a column of units says otherwise.",
    ),
    "missing_values": Rule(
        "informs",
        "Columns in which more than a fifth of the patients have no value.",
        "A plan that needs such a column leaves these patients out; complete it if the values exist.",
    ),
    "small_class": Rule(
        "warns",
        "Columns with a class of fewer than 5 patients.",
        "Results by class will be withheld for such a class; join it with another if that makes sense.",
    ),
    "one_value": Rule(
        "informs",
        "Columns in which all patients have the same value.",
        "Nothing can be learnt from such a column at this site.",
    ),
}
"""Rules of this module by the part of their name behind `quality.`"""


@dataclass(frozen=True)
class Column:
    """One clinical column over all patients.

    known, missing: patients with and without a value. distinct: number of different values. classes: value → patients,
    the most frequent first,
    for columns of at most 10 values that can name nobody; for this machine's eyes only. A value with a word that isn't
    known stands there as `NOT_SHOWN`, more than once if there are several. plain: whether the name
    looks like one (letters, digits, underscores; in lower case, or of known words), so that it may be shown elsewhere.
    """

    name: str
    known: int
    missing: int
    distinct: int
    classes: tuple[tuple[str, int], ...] = ()
    plain: bool = True

    @property
    def missing_share(self) -> float:
        """Share of patients without a value, 0 to 1."""
        return self.missing / max(self.known + self.missing, 1)


def _by_patient(cases: Iterable[Case]) -> dict[str, dict[str, set[str]]]:
    """Patient → column → different values, as written but for spaces and case. Keys of tables are no values."""
    values: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for case in cases:
        columns = values[case.patient]
        for name, value in case.clinical.items():
            if value.strip() and name not in _KEYS:
                columns[name].add(value.strip().casefold())
    return values


def clinical_columns(cases: Sequence[Case]) -> tuple[Column, ...]:
    """Every clinical column that a patient has a value in, by name. A patient counts once for each different value.

    Of several spellings of a value the first in the alphabet is shown.
    """
    patients = _by_patient(cases)
    spelled: dict[str, str] = {}
    for value in (value.strip() for case in cases for value in case.clinical.values()):
        spelled[value.casefold()] = min(value, spelled.get(value.casefold(), value))
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    known: Counter[str] = Counter()
    for columns in patients.values():
        for name, values in columns.items():
            counts[name].update(values)
            known[name] += 1
    return tuple(
        Column(
            name,
            known[name],
            len(patients) - known[name],
            len(values),
            _classes(name, {spelled[value]: count for value, count in values.items()}, known[name]),
            _NAME.fullmatch(name) is not None and (name.islower() or _is_plain(name)) and masked(name) == name,
        )
        for name, values in sorted(counts.items())
    )


def _classes(name: str, values: Mapping[str, int], known: int) -> tuple[tuple[str, int], ...]:
    """The classes of a column; none if it has too many values, if they are days, tell patients apart,
    or could name them."""
    if len(values) > _MOST_CLASSES or len(values) > known / 2 or is_identifying_column(name):
        return ()
    if all(map(_DAY.fullmatch, values)) or any(identifiers_in_values([(name, value)]) for value in values):
        return ()
    shown = [(value if _is_plain(value) else NOT_SHOWN, count) for value, count in values.items()]
    return tuple(sorted(shown, key=lambda item: (-item[1], item[0])))


def _is_plain(text: str) -> bool:
    """Whether every word of a text is one of medicine, imaging, tables or the vocabulary of codes: a name of one word
    alone can't be told from any other word."""
    return all(len(word) < _SHORT or _is_known(word) for word in _LETTERS.findall(" ".join(tokens(text))))


def _is_known(word: str) -> bool:
    return word in CLINICAL_WORDS or word in LAYOUT_WORDS or word in _words_of_codes() or is_imaging_word(word)


@lru_cache(maxsize=1)
def _words_of_codes() -> frozenset[str]:
    return frozenset(word for words in WORDS.values() for text in words.values() for word in tokens(text))


def clinical_findings(cases: Sequence[Case]) -> tuple[Finding, ...]:
    """What is to be said of the clinical values of a cohort's usable cases, one finding a rule, the gravest first."""
    patients = _by_patient(cases)
    columns = clinical_columns(cases)
    grouped = {column.name for column in columns if column.classes and column.name != "split"}
    differing = [
        patient
        for patient, values in patients.items()
        if any(len(found) > 1 and name in grouped for name, found in values.items())
    ]
    return merge(
        [
            *_of_patients("two_splits", [p for p, values in patients.items() if len(values.get("split", ())) > 1]),
            *_of_patients("values_differ", differing),
            *_of_patients("impossible_age", [p for p, values in patients.items() if _odd_age(values)]),
            *_of_columns("missing_values", [c.name for c in columns if c.missing_share > _MISSING_SHARE]),
            *_of_columns(
                "small_class",
                [c.name for c in columns if len(c.classes) > 1 and min(n for _, n in c.classes) < _SMALL_CLASS],
            ),
            *_of_columns("one_value", [c.name for c in columns if _says_nothing(c)]),
        ]
    )


def _says_nothing(column: Column) -> bool:
    """Whether everybody has the same value, where values are expected to differ: units are not."""
    return column.distinct == 1 and column.known >= _SMALL_CLASS and not column.name.casefold().endswith("_unit")


def _of_patients(name: str, patients: Sequence[str]) -> list[Finding]:
    return _finding(name, "patients", patients)


def _of_columns(name: str, columns: Sequence[str]) -> list[Finding]:
    return _finding(name, "columns", columns)


def _finding(name: str, unit: Literal["patients", "columns"], subjects: Sequence[str]) -> list[Finding]:
    rule = CLINICAL_RULES[name]
    who = tuple(sorted(subjects))
    return [Finding(f"quality.{name}", rule.severity, len(who), unit, rule.says, rule.do, who)] if who else []


def _odd_age(values: Mapping[str, set[str]]) -> bool:
    """Whether a column that is called an age holds a number that no age in years is."""
    for name, found in values.items():
        words = set(re.split(r"[^a-z]+", name.casefold()))
        if "age" not in words or "unit" in words or "units" in words:
            continue
        units = {u for other, us in values.items() if {"age", "unit"} <= set(other.casefold().split("_")) for u in us}
        if not units <= _YEARS:
            continue
        for text in found:
            try:
                age = float(text)
            except ValueError:
                continue
            if not math.isnan(age) and not 0 <= age <= _OLDEST:
                return True
    return False
