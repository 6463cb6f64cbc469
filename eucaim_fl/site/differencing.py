"""Which sets of patients figures were told about: what two of them tell apart may not be a few patients.

A plan chooses seeds, shares and targets of splits, so sets of different plans overlap; and whoever sends the weights
can send the same ones to each. If a figure is told over a set and over the same set without one patient, the difference
is that patient's. So a set is told about only if it equals, or differs by enough patients from, each set before. A
withdrawal, which takes one patient from a set, would silence the site for good; instead a few others are left out of
its figures too, so that what was there before and is not any more is a group of enough patients.

Pairs are compared; of groups that are told side by side, all unions of those of two rules (`validation_sets`). Three or
more sets or rules that only together isolate a patient are not found, nor is what a network of the plan's choice tells
of one patient in a single figure; against these only noise helps.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import sqlite3
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import reduce
from operator import or_
from pathlib import Path
from typing import TypeAlias, TypeVar

from eucaim_fl.durable import local_key
from eucaim_fl.site.disclosure import announced
from eucaim_fl.site.small_store import transaction

__all__ = ["Group", "Parts", "Told", "ToldSet", "number_for", "tellable", "too_near"]

Parts: TypeAlias = tuple[frozenset[str], ...]
"""Groups of patients that do not overlap, and of which figures are told side by side."""
_Chosen = TypeVar("_Chosen")

_SCHEMA = """
CREATE TABLE IF NOT EXISTS patients (id INTEGER PRIMARY KEY, hidden BLOB UNIQUE NOT NULL);
CREATE TABLE IF NOT EXISTS told (
    kind TEXT NOT NULL, digest BLOB NOT NULL, patients BLOB NOT NULL, size INTEGER NOT NULL, times INTEGER NOT NULL,
    PRIMARY KEY (kind, digest)
);
CREATE TABLE IF NOT EXISTS numbers (
    what TEXT NOT NULL, plan TEXT NOT NULL, patients BLOB NOT NULL, number INTEGER NOT NULL, PRIMARY KEY (what, plan)
);
CREATE TABLE IF NOT EXISTS models (plan TEXT NOT NULL, model TEXT NOT NULL, PRIMARY KEY (plan, model));
CREATE TABLE IF NOT EXISTS parts (kind TEXT NOT NULL, masks TEXT NOT NULL, PRIMARY KEY (kind, masks));
"""
_FIGURES = "figures"
_WINDOWS = 16
"""From so many places of a group patients are tried to be left out."""


# --- what decides: sets are whole numbers, one bit a patient ----------------------------------------------------------


def too_near(asked: int, told: Iterable[int], least: int) -> bool:
    """Whether a set differs from one that was told about, but by fewer than the least number of patients.

    >>> [too_near(0b1110, [told], 3) for told in (0b1110, 0b1111, 0b0111, 0b0001)]
    [False, True, True, False]
    """
    return any(0 < (asked ^ one).bit_count() < least for one in told)


def tellable(groups: Sequence[int], told: Collection[int], least: int, smallest: int) -> tuple[int, ...]:
    """Each group with as few patients left out that neither it nor all together is too near to a set told about.

    groups: disjoint; the classes, or one group of all; nothing is told of none. smallest: patients that are left in a
    group at least; a group of which they would not be is 0. All are 0 if there is no other way. A part of a group that
    was told about before is taken again, so that later rounds find the same patients.
    """
    kept = [_part(group, told, least, smallest) for group in groups]
    whole = reduce(or_, kept, 0)
    if not whole or whole in told or not too_near(whole, told, least):
        return tuple(kept)
    largest = max(range(len(kept)), key=lambda k: kept[k].bit_count())
    rest, near = whole & ~kept[largest], _near(kept[largest], told, least)
    near_all = _near(whole, told, least)

    def fits(part: int) -> bool:
        return not too_near(part, near, least) and not too_near(part | rest, near_all, least)

    kept[largest] = _left_out(kept[largest], fits, least, smallest)
    return tuple(kept) if kept[largest] else (0,) * len(kept)


def _part(group: int, told: Collection[int], least: int, smallest: int) -> int:
    if group.bit_count() < smallest:
        return 0
    if group in told or not too_near(group, told, least):
        return group
    near = _near(group, told, least)
    again = [one for one in near if one & ~group == 0 and one.bit_count() >= smallest]
    if again:
        return max(again, key=lambda one: (one.bit_count(), -one))
    return _left_out(group, lambda part: not too_near(part, near, least), least, smallest)


def _near(group: int, told: Iterable[int], least: int) -> list[int]:
    """Sets that a group could be too near to after up to 2·least patients of it were left out."""
    return [one for one in told if (group ^ one).bit_count() < 3 * least]


def _left_out(group: int, fits: Callable[[int], bool], least: int, smallest: int) -> int:
    """The first part of a group that fits, with ever more neighbours in the (random) order of patients left out."""
    members = [bit for bit in range(group.bit_length()) if group >> bit & 1]
    seed = hashlib.sha256(group.to_bytes(group.bit_length() // 8 + 1, "little")).digest()
    for fewer in range(1, min(2 * least, len(members) - smallest) + 1):
        for window in range(_WINDOWS):
            start = int.from_bytes(seed[2 * window : 2 * window + 2], "little")
            part = group & ~sum(1 << members[(start + k) % len(members)] for k in range(fewer))
            if fits(part):
                return part
    return 0


def number_for(
    patients: int, own: tuple[int, int] | None, others: Iterable[tuple[int, int]], base: int
) -> tuple[int, int]:
    """The set that a number of patients is remembered with, and that number: near the truth, and constant while the set
    changes by fewer patients than the base, so that it does not show who withdrew.

    own: what this plan told before of the same thing; if the set is another one by now, the number can only fall.
    others: all else that was told, also under another name: a plan can put the same patients into another split or
    class to hear of them anew. The nearest set's number is repeated if it is near enough. Thus it is at most
    1.5 · base off.
    """
    if own is not None:
        if (own[0] ^ patients).bit_count() < base:
            return own
        return patients, min(own[1], announced(patients.bit_count(), base))
    near = [other for other in others if (other[0] ^ patients).bit_count() < base]
    if near:
        return min(near, key=lambda other: ((other[0] ^ patients).bit_count(), other))
    return patients, announced(patients.bit_count(), base)


# --- what remembers ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Group:
    """Patients whom figures may be told about, and the number of them that is told."""

    patients: frozenset[str]
    number: int


@dataclass(frozen=True)
class ToldSet:
    """A set that was told about: how many patients, how often, what (`figures` or another kind)."""

    kind: str
    patients: int
    times: int


class Told:
    """The site's memory, in a folder for what must outlive the cache; see `SiteFile.records_folder`. It never leaves.

    Patients stand in it as keyed hashes. Decision and record are one transaction that is on the disk before anything is
    told: two plans at once can't both tell, and a crash between record and reply remembers a set too many.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / "told.sqlite"
        self._key_file = folder / "lineage.key"

    def _open(self) -> AbstractContextManager[sqlite3.Connection]:
        return transaction(self._file, _SCHEMA, "what was told")

    def figures(
        self, what: str, plan: str, groups: Mapping[str, Collection[str]], least: int, base: int
    ) -> tuple[Group, ...]:
        """The groups about which figures may be told, remembered as told; those that must stay are missing.

        what: the split. plan: its SHA-256. groups: class → patients, see `disclosure.enough_by_class`. least: by so
        many patients sets must differ, and so many a group has at least. base: of the numbers told (see `number_for`),
        which are not below what the least would be told as.
        Raises JournalError if it can't be remembered; then nothing may leave.
        """
        with self._open() as store:
            ids = self._ids(store, [patient for group in groups.values() for patient in group])
            asked = [sum(1 << ids[patient] for patient in set(group)) for group in groups.values()]
            kept = tellable(asked, _sets(store, _FIGURES), least, least)
            for one in {*kept, reduce(or_, kept, 0)} - {0}:
                _remember(store, _FIGURES, one)
            found = []
            for name, whole, part in zip(groups, asked, kept, strict=True):
                if part:
                    number = self._number(store, f"{what} {name}", plan, whole, base)
                    members = frozenset(patient for patient in groups[name] if part >> ids[patient] & 1)
                    found.append(Group(members, max(number, announced(least, base))))
            return tuple(found)

    def may_tell(self, kind: str, patients: Collection[str], least: int) -> bool:
        """Whether a figure that nobody can be left out of (a training loss) may be told; remembered as told if so.

        Sets are compared within their kind. Raises JournalError if it can't be remembered.
        """
        with self._open() as store:
            ids = self._ids(store, patients)
            asked = sum(1 << ids[patient] for patient in set(patients))
            told = _sets(store, kind)
            if asked not in told and too_near(asked, told, least):
                return False
            _remember(store, kind, asked)
            return True

    def beside(
        self,
        patients: Collection[str],
        choose: Callable[[Callable[[str], Sequence[Parts]]], tuple[_Chosen, Mapping[str, Collection[Parts]]]],
    ) -> _Chosen:
        """What is chosen to be told of groups, knowing all that were told of side by side before; remembered as told.

        patients: all of whom something may be told. choose: is given what was told by kind, and answers with what it
        has chosen, and by kind what is told by it. Who is not among the patients stands in earlier groups under a name
        that nobody has. Raises JournalError if it can't be remembered; then nothing may leave.
        """
        with self._open() as store:
            ids = self._ids(store, patients)
            names = {bit: name for name, bit in ids.items()}

            def before(kind: str) -> list[Parts]:
                rows = store.execute("SELECT masks FROM parts WHERE kind = ? ORDER BY masks", (kind,)).fetchall()
                return [tuple(_members(int(mask, 16), names) for mask in json.loads(masks)) for (masks,) in rows]

            chosen, told = choose(before)
            for kind, several in told.items():
                for parts in several:
                    masks = sorted(sum(1 << ids[patient] for patient in part) for part in parts)
                    for mask in masks:
                        _remember(store, kind, mask)
                    text = json.dumps([f"{mask:x}" for mask in masks])
                    store.execute("INSERT OR IGNORE INTO parts VALUES (?, ?)", (kind, text))
            return chosen

    def number(self, what: str, plan: str, patients: Collection[str], least: int, base: int) -> int:
        """The number of patients that is told (see `number_for`), remembered for this plan; not below what the least
        would be told as. Raises JournalError if it can't be remembered."""
        with self._open() as store:
            ids = self._ids(store, patients)
            asked = sum(1 << ids[patient] for patient in set(patients))
            return max(self._number(store, what, plan, asked, base), announced(least, base))

    def of_models(self, plan: str, models: Collection[str]) -> None:
        """Remember that figures of frozen models leave under a plan; both by their SHA-256. Whoever lets them out asks
        it just before. Raises JournalError if it can't be remembered; then nothing may leave."""
        with self._open() as store:
            store.executemany("INSERT OR IGNORE INTO models VALUES (?, ?)", [(plan, model) for model in models])

    def other_plans(self, plan: str, models: Collection[str]) -> int:
        """Under how many other plans figures of any of these models left. Raises JournalError if it can't be read."""
        if not self._file.exists():
            return 0
        with self._open() as store:
            rows = store.execute("SELECT plan, model FROM models WHERE plan != ?", (plan,)).fetchall()
        return len({other for other, model in rows if model in set(models)})

    def remembered(self) -> tuple[ToldSet, ...]:
        """All sets that were told about, the most often told first. Raises JournalError if they can't be read."""
        if not self._file.exists():
            return ()
        with self._open() as store:
            rows = store.execute("SELECT kind, size, times FROM told ORDER BY times DESC, kind, size").fetchall()
        return tuple(ToldSet(*row) for row in rows)

    def _ids(self, store: sqlite3.Connection, patients: Collection[str]) -> dict[str, int]:
        """Patient → bit. New ones get theirs in the order of their hashes, which is a random one."""
        key = local_key(self._key_file)
        hidden = {name: hmac.new(key, name.encode(), hashlib.sha256).digest()[:16] for name in set(patients)}
        known: dict[bytes, int] = dict(store.execute("SELECT hidden, id FROM patients"))
        new = {code: len(known) + k for k, code in enumerate(sorted(set(hidden.values()) - known.keys()))}
        store.executemany("INSERT INTO patients (hidden, id) VALUES (?, ?)", new.items())
        known |= new
        return {name: known[code] for name, code in hidden.items()}

    @staticmethod
    def _number(store: sqlite3.Connection, what: str, plan: str, patients: int, base: int) -> int:
        rows = store.execute("SELECT what, plan, patients, number FROM numbers").fetchall()
        told = {(use, name): (int.from_bytes(mask, "little"), number) for use, name, mask, number in rows}
        own = told.pop((what, plan), None)
        mask, number = number_for(patients, own, told.values(), base)
        store.execute("INSERT OR REPLACE INTO numbers VALUES (?, ?, ?, ?)", (what, plan, _packed(mask), number))
        return number


def _members(mask: int, names: Mapping[int, str]) -> frozenset[str]:
    return frozenset(names.get(bit, f"\0{bit}") for bit in range(mask.bit_length()) if mask >> bit & 1)


def _packed(patients: int) -> bytes:
    return patients.to_bytes((patients.bit_length() + 7) // 8, "little")


def _sets(store: sqlite3.Connection, kind: str) -> set[int]:
    rows = store.execute("SELECT patients FROM told WHERE kind = ?", (kind,))
    return {int.from_bytes(packed, "little") for (packed,) in rows}


def _remember(store: sqlite3.Connection, kind: str, patients: int) -> None:
    packed = _packed(patients)
    store.execute(
        "INSERT INTO told VALUES (?, ?, ?, ?, 1) ON CONFLICT (kind, digest) DO UPDATE SET times = times + 1",
        (kind, hashlib.sha256(packed).digest(), packed, patients.bit_count()),
    )
