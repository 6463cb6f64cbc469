"""How people call groups of patients."""

from __future__ import annotations

import math

from eucaim_fl.validation.record import EVERYBODY

__all__ = ["group_name", "rule_name", "rule_of"]

_RULES = {
    "sex": ("Sex", ""),
    "age": ("Age", "years"),
    "manufacturer": ("Scanner's manufacturer", ""),
    "field_strength_t": ("Field strength", "T"),
    "slice_thickness_mm": ("Slice thickness", "mm"),
    "lesion_volume_ml": ("Volume of the lesions", "ml"),
}
_SEXES = {"F": "female", "M": "male", "O": "other"}


def rule_of(scope: str) -> str:
    """What a group of patients is made by.

    >>> rule_of("age=50-70"), rule_of("slice_thickness_mm>=3"), rule_of("all")
    ('age', 'slice_thickness_mm', '')
    """
    if scope == EVERYBODY:
        return ""
    return scope[: min((at for at in map(scope.find, "<>=") if at >= 0), default=len(scope))]


def rule_name(rule: str) -> str:
    """A rule of groups, with its unit."""
    words, unit = _RULES.get(rule, (rule.replace("_", " "), ""))
    return f"{words}, {unit}" if unit else words


def group_name(scope: str) -> str:
    """A group without its rule.

    >>> group_name("age=50-70"), group_name("age<50"), group_name("sex=F"), group_name("all")
    ('50 to below 70', 'below 50', 'female', 'all patients')
    """
    if scope == EVERYBODY:
        return "all patients"
    rule = rule_of(scope)
    rest = scope.removeprefix(rule)
    if rest.startswith(">="):
        return f"{rest[2:]} and more"
    if rest.startswith("<"):
        return f"below {rest[1:]}"
    value = rest.removeprefix("=")
    if rule == "sex":
        return _SEXES.get(value, value)
    low, cut, high = value.partition("-")
    return f"{low} to below {high}" if cut and rule in _RULES and _is_number(low) and _is_number(high) else value


def _is_number(words: str) -> bool:
    try:
        return math.isfinite(float(words))
    except ValueError:
        return False
