"""Frozen models of what users write, and one way to read them: every fault is named with its place."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from eucaim_fl.errors import ConfigError, RecipeError
from eucaim_fl.registry import suggestion

__all__ = ["SITE_NAME", "Config", "parse"]

SITE_NAME = r"^[a-z0-9][a-z0-9_-]{0,62}$"
"""Names of sites, runs and labels: short, lower case, safe as a file name."""


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
        fixes: list[str] = []
        found: list[str] = []
        for item in failure.errors(include_url=False, include_context=False):
            place = ".".join(str(part) for part in item["loc"]) or "(top)"
            if item["type"] == "extra_forbidden":
                key = str(item["loc"][-1])
                faults.append(f"unknown key '{place}'")
                fixes.append(suggestion(key, _known_keys(model, item["loc"][:-1])))
            else:
                plain = isinstance(item["input"], str | int | float | None)  # aliases can make a list endless to print
                shown = repr(item["input"]) if plain else ""
                got = "" if item["type"] == "missing" or not 0 < len(shown) <= 60 else f" (got {shown})"
                if error is not RecipeError:
                    found.append(f"{place}:{got}" if got else "")
                    got = ""
                message = item["msg"].removeprefix("Value error, ")
                if SITE_NAME in message:
                    message = "must be lower-case letters, digits, - and _, at most 63 of them"
                faults.append(f"{place}: {message[0].lower()}{message[1:]}{got}")
        raise error(
            f"{what} is not valid: {'; '.join(faults)}.",
            fix=" ".join(filter(None, fixes)),
            local_detail="; ".join(filter(None, found)),
        ) from None
