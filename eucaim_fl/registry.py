"""Names that a user may write, and what to say about the others."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

from eucaim_fl.errors import ConfigError, RecipeError

__all__ = ["lookup", "nearest", "suggestion"]

T = TypeVar("T")


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name most like `name`, or None if none is alike.

    >>> nearest("fedprx", ["fedavg", "fedprox"])
    'fedprox'
    """
    found = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.5)
    return found[0] if found else None


def suggestion(name: str, known: Iterable[str]) -> str:
    """A sentence for an error's `fix`: the nearest known name, and all of them if they are few."""
    names = sorted(known)
    closest = nearest(name, names)
    hint = f"Did you mean '{closest}'? " if closest else ""
    if names and len(names) <= 30:
        hint += f"Known: {', '.join(names)}."
    return hint.strip()


def lookup(table: Mapping[str, T], name: str, what: str, error: type[ConfigError] = RecipeError) -> T:
    """The entry of `table` called `name`.

    Raises RecipeError (or `error`) that names the nearest known entry if there is none.
    """
    if name not in table:
        raise error(f"There is no {what} called '{name}'.", fix=suggestion(name, table))
    return table[name]
