"""Names that a user may write, and what to say about the others."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from eucaim_fl.errors import ConfigError, RecipeError

__all__ = ["lookup", "nearest", "suggestion", "suggestions"]

T = TypeVar("T")


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name most like `name`, or None if none is alike.

    >>> nearest("fedprx", ["fedavg", "fedprox"])
    'fedprox'
    """
    found = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.5)
    return found[0] if found else None


def suggestion(name: str, known: Iterable[str], *, guess: bool = True) -> str:
    """A sentence for an error's `fix`: the nearest known name, and all of them if they are few.

    guess: False only lists them, where a wrong guess could do harm.
    """
    names = sorted(known)
    closest = nearest(name, names) if guess else None
    hint = f"Did you mean '{closest}'? " if closest else ""
    return f"{hint}{_listed(names)}".strip()


def suggestions(wrong: Iterable[tuple[str, Sequence[str]]]) -> str:
    """As `suggestion`, for several names, each with those that are known in its place; a list stands once.

    >>> suggestions([("lrr", ["lr", "momentum"]), ("xyz", ["lr", "momentum"])])
    "Did you mean 'lr' instead of 'lrr'? Known: lr, momentum."
    """
    pairs = [(name, tuple(sorted(known))) for name, known in wrong]
    if len(pairs) == 1:
        return suggestion(*pairs[0])
    closest = ((name, nearest(name, known)) for name, known in pairs)
    hints = [f"Did you mean '{found}' instead of '{name}'?" for name, found in closest if found]
    return " ".join(filter(None, (*hints, *(_listed(names) for names in dict.fromkeys(k for _, k in pairs)))))


def _listed(names: Sequence[str]) -> str:
    return f"Known: {', '.join(names)}." if 0 < len(names) <= 30 else ""


def lookup(table: Mapping[str, T], name: str, what: str, error: type[ConfigError] = RecipeError) -> T:
    """The entry of `table` called `name`.

    Raises RecipeError (or `error`) that names the nearest known entry if there is none.
    """
    if name not in table:
        raise error(f"There is no {what} called '{name}'.", fix=suggestion(name, table))
    return table[name]
