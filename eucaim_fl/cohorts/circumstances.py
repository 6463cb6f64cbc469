"""What a case's files and table tell of patient and scanner, for figures by groups of patients."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from eucaim_fl.cohorts.codes.placing import is_sex_column
from eucaim_fl.cohorts.manifest import Case

__all__ = ["Circumstances", "circumstances_of"]

_AGE_COLUMNS = ("age", "age_years", "age_at_diagnosis", "age_at_imaging")
_YEARS = ("", "a", "y", "year", "years")
_OLDEST = 130.0


@dataclass(frozen=True)
class Circumstances:
    """Of one case; empty or None where it is not known. These stay at the site.

    sex: a word or letter, as the table has it. age: years. manufacturer: of the scanner. field_strength_t: tesla.
    slice_thickness_mm: of the image as it was taken, or the distance of its slices where no thickness is stated.
    """

    sex: str = ""
    age: float | None = None
    manufacturer: str = ""
    field_strength_t: float | None = None
    slice_thickness_mm: float | None = None


def circumstances_of(case: Case) -> Circumstances:
    """What is known of a case: sex and age by the clinical table, the scanner by the index.

    Age is read from the first of the columns `age`, `age_years`, `age_at_diagnosis`, `age_at_imaging` that has a number
    from 0 to 130; with a column of its unit beside (`age_unit`) only where that says years. Other names of columns can
    be mapped to these in the site file.
    """
    columns = {name.casefold(): value for name, value in case.clinical.items()}
    sex = next((value for name, value in case.clinical.items() if value and is_sex_column(name)), "")
    facts = case.facts
    if facts is None:
        return Circumstances(sex, _age(columns))
    thickness = facts.thickness_mm if facts.thickness_mm is not None else facts.spacing_mm[2]
    return Circumstances(sex, _age(columns), facts.manufacturer, facts.field_strength_t, thickness)


def _age(columns: Mapping[str, str]) -> float | None:
    for name in _AGE_COLUMNS:
        if columns.get(f"{name}_unit", "").strip().casefold() not in _YEARS:
            continue
        try:
            found = float(columns.get(name, ""))
        except ValueError:
            continue
        if math.isfinite(found) and 0 <= found <= _OLDEST:
            return found
    return None
