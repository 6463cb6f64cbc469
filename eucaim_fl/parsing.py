"""Frozen models of what users write, and one way to read them: every fault is named with its place."""

from __future__ import annotations

import re
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from eucaim_fl.errors import ConfigError, RecipeError
from eucaim_fl.registry import suggestions

__all__ = ["IN_RANGE", "SITE_NAME", "Config", "parse", "short_numbers"]

SITE_NAME = r"^[a-z0-9][a-z0-9_-]{0,62}$"
"""Names of sites, runs and labels: short, lower case, safe as a file name."""

IN_RANGE = "Give a value within the range."
"""What is to be done about a number that is out of its range."""
_RANGES = ("greater_than", "less_than")
_LONG_NUMBER = re.compile(r"(?<![\w.])0\.0{4,}[0-9]+(?![\w.])")


def short_numbers(text: str) -> str:
    """A sentence with its very small numbers as people write them.

    >>> short_numbers("greater than or equal to 0.000000000000001 (got 0.5)")
    'greater than or equal to 1e-15 (got 0.5)'
    """
    return _LONG_NUMBER.sub(lambda found: f"{float(found[0]):g}", text)


class Config(BaseModel):
    """Base of every configuration: frozen, no unknown keys, no NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)


C = TypeVar("C", bound=BaseModel)


def _known_keys(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """Field names at a location inside a model, as far as they can be followed."""
    from typing import get_args

    current: list[type[BaseModel]] = [model]
    for part in location:
        following: list[type[BaseModel]] = []
        for candidate in current:
            if part in candidate.model_fields:
                pending: list[Any] = [candidate.model_fields[str(part)].annotation]
                while pending:
                    annotation = pending.pop()
                    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
                        following.append(annotation)
                    pending.extend(get_args(annotation))
            elif isinstance(part, str) and part in {
                str(d.default) for n, d in candidate.model_fields.items() if n == "name"
            }:
                following.append(candidate)  # the tag of a discriminated union
        current = following or current
    return sorted({name for candidate in current for name in candidate.model_fields})


def parse(model: type[C], values: object, what: str, error: type[ConfigError] = RecipeError) -> C:
    """Validate `values` as `model`; every fault is named with its place, unknown keys with the nearest known one.

    Raises RecipeError (or `error`) with all faults at once. What was given instead stands in a recipe's error; for any
    other file it may be a path or an identifier, and is a local detail.
    """
    try:
        return model.model_validate(values)
    except ValidationError as failure:
        faults: list[str] = []
        unknown: list[tuple[str, list[str]]] = []
        fixes: list[str] = []
        found: list[str] = []
        for item in failure.errors(include_url=False, include_context=False):
            place = ".".join(str(part) for part in item["loc"]) or "(top)"
            if item["type"] == "extra_forbidden":
                key = str(item["loc"][-1])
                faults.append(f"unknown key '{place}'")
                unknown.append((key, _known_keys(model, item["loc"][:-1])))
            else:
                plain = isinstance(item["input"], str | int | float | None)  # aliases can make a list endless to print
                shown = repr(item["input"]) if plain else ""
                got = "" if item["type"] == "missing" or not 0 < len(shown) <= 60 else f" (got {shown})"
                if error is not RecipeError:
                    found.append(f"{place}:{got}" if got else "")
                    got = ""
                message = short_numbers(item["msg"].removeprefix("Value error, "))
                fixes += [IN_RANGE] if item["type"].startswith(_RANGES) else []
                if SITE_NAME in message:
                    message = "must be lower-case letters, digits, - and _, at most 63 of them"
                faults.append(f"{place}: {message[0].lower()}{message[1:]}{got}")
        raise error(
            f"{what} is not valid: {'; '.join(faults)}.",
            fix=" ".join(filter(None, dict.fromkeys((suggestions(unknown), *fixes)))),
            local_detail="; ".join(filter(None, found)),
        ) from None
