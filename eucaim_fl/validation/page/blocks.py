"""What sections of the validation's page consist of: words, pairs, tables and plots. Nothing here is escaped yet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

__all__ = ["Block", "Head", "Items", "Pairs", "Plot", "Plots", "Section", "Table", "Words", "joined"]


@dataclass(frozen=True)
class Words:
    """A paragraph. tone: `plain`, `soft`, `note`, or a framed notice: `alarm`, `good`, `warning`."""

    words: str
    tone: Literal["plain", "soft", "note", "alarm", "good", "warning"] = "plain"
    kind: Literal["words"] = "words"


@dataclass(frozen=True)
class Head:
    """A heading within a section."""

    words: str
    kind: Literal["head"] = "head"


@dataclass(frozen=True)
class Items:
    """A list of sentences."""

    items: Sequence[str]
    kind: Literal["items"] = "items"


@dataclass(frozen=True)
class Pairs:
    """Terms with what they are; the third says whether it is a hash, for its letters."""

    pairs: Sequence[tuple[str, str, bool]]
    kind: Literal["pairs"] = "pairs"


@dataclass(frozen=True)
class Table:
    """Rows under heads; the first column names the row. text: columns of words, by number, which stand left."""

    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    text: frozenset[int] = frozenset()
    kind: Literal["table"] = "table"

    @property
    def shown(self) -> tuple[int, ...]:
        """Numbers of the columns in which there is anything, the first always."""
        return tuple(at for at in range(len(self.heads)) if at == 0 or any(row[at] for row in self.rows))

    @property
    def narrow(self) -> bool:
        """Whether a few columns of numbers would stand far apart on the whole width."""
        return len(self.shown) <= 5 and not self.text

    @property
    def short(self) -> bool:
        """Whether it had better stay on one page."""
        return len(self.rows) <= 8


@dataclass(frozen=True)
class Plot:
    """A drawing with its title and a note. svg: safe text, from `eucaim_fl.validation.page`'s own functions only."""

    title: str
    svg: str
    note: str = ""


@dataclass(frozen=True)
class Plots:
    """Drawings beside each other, or below each other if they are wide."""

    plots: Sequence[Plot]
    wide: bool = False
    kind: Literal["plots"] = "plots"


Block: TypeAlias = Words | Head | Items | Pairs | Table | Plots


@dataclass(frozen=True)
class Section:
    """A part of the page. anchor: its address within the page. answered: whether it has what its title says."""

    anchor: str
    title: str
    blocks: Sequence[Block]
    answered: bool = True


def joined(names: Sequence[str], most: int = 40) -> str:
    """Names in a sentence; of very many the first only.

    >>> joined(["a", "b", "c"]), joined(["a", "b", "c"], 1)
    ('a, b and c', 'a and 2 more')
    """
    shown = list(names[:most])
    if len(names) > most:
        return f"{', '.join(shown)} and {len(names) - most} more"
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}" if shown else "none"
