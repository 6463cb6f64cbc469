"""Of which groups of patients figures may be told side by side, so that none of their sums tells of a few. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse import csgraph

from eucaim_fl.site.disclosure import LeastPeople
from eucaim_fl.validation.record import EVERYBODY

__all__ = ["beside_told", "tellable_scopes", "thinnest_cut"]

_TOGETHER = 10**6


def tellable_scopes(
    population: frozenset[str],
    members: Mapping[str, frozenset[str]],
    rules: Sequence[Sequence[str]],
    least: LeastPeople,
) -> frozenset[str]:
    """Scopes whose figures over one population (the patients of a class, or with a value of a metric) may be told.

    members: scope → patients. rules: names of each rule's groups, which do not overlap and hold everybody together.
    least: `metric`, behind each figure; `apart`, by so many patients two sets must differ, or not at all; 1 compares
    nothing. `EVERYBODY` is in the answer unless it is empty. Groups may be taken out of the answer afterwards: the rest
    only grows by them, so what is left tells of no few either.

    Sums can be subtracted, so more is told than stands there. (1) Of a rule whose other groups are told, the groups
    held back are told together: everybody less the others. If that rest is of fewer than `apart` patients, the smallest
    group that is told is held back too, until the rest is large enough; so one group is never alone held back because
    it is small. (2) Groups of two rules overlap: if the women are all who are under 50 but one, the difference is that
    one's. So of each two rules all unions of groups (and rests) of the one are compared with all unions of the other: a
    pair that differs by fewer than `apart` patients, but by some, is a cut of the graph whose nodes are the groups of
    both and whose edges weigh as many patients as two groups share. As long as a part of the graph that hangs together
    has a cut that thin, the smallest told group at the cut is held back, which joins it to the rest: each cut of the
    joined graph is one of the former.
    Rounding alone would not do it: counts on a base of 5 leave five possible numbers each, but means are told as they
    are, and so the sums are known for each of few combinations. It comes on top, and is what stands against sets of
    three and more rules that isolate a patient only together, which are not searched.
    """
    if len(population) < least.metric:
        return frozenset()
    parts = {name: members[name] & population for rule in rules for name in rule}
    told = {name for name, own in parts.items() if len(own) >= least.metric}
    if least.apart > 1:
        while (surplus := _to_hold_back(population, parts, rules, told, least.apart)) is not None:
            told.remove(surplus)
    return frozenset({EVERYBODY, *told})


def beside_told(
    told: frozenset[str],
    population: frozenset[str],
    members: Mapping[str, frozenset[str]],
    rules: Sequence[Sequence[str]],
    before: Sequence[Sequence[frozenset[str]]],
    apart: int,
) -> frozenset[str]:
    """Of the scopes that may be told by themselves those that may be told beside what other plans were told.

    told: see `tellable_scopes`, whose other arguments are here too. before: groups that were told side by side, of the
    same or another population, each time with what was left of everybody. A second plan with one more edge, moved by
    one patient, can be got around any comparison of single groups: under 50 against the sum of under 30 and 30 to 51.
    So as in one record all unions of the groups of one rule, and what is left, are compared with all unions of what was
    told side by side before; and as there the smallest told group at a cut that is too thin is held back. Nothing is
    told where everybody is too near to one of these unions. Three rules that isolate a patient only together are not
    searched.
    """
    known = [_none_small(parts, apart) for parts in before]
    if not told or any(_too_near([population], parts, apart) for parts in known):
        return frozenset()
    left = set(told)
    for rule in rules:
        while kept := [name for name in rule if name in left]:
            sets = [members[name] & population for name in kept]
            rest = population.difference(*sets)
            found = (_too_near([*sets, *([rest] if rest else [])], parts, apart) for parts in known)
            at = next((nodes for nodes in found if nodes), None)
            if at is None:
                break
            near = [name for k, name in enumerate(kept) if k in at] or kept
            left.remove(min(near, key=lambda name: (len(members[name] & population), rule.index(name))))
    return frozenset(left)


def _none_small(parts: Sequence[frozenset[str]], apart: int) -> list[frozenset[str]]:
    """Parts that were told of when fewer patients were enough, joined to others: who is told apart by them alone is
    told apart already, and no later figure changes that."""
    found = sorted(parts, key=lambda part: (len(part), sorted(part)))
    while len(found) > 1 and len(found[0]) < apart:
        found = sorted([found[0] | found[1], *found[2:]], key=lambda part: (len(part), sorted(part)))
    return [part for part in found if len(part) >= apart]


def _too_near(asked: Sequence[frozenset[str]], told: Sequence[frozenset[str]], apart: int) -> frozenset[int]:
    """Numbers of the asked sets at a place where a union of them and one of the told sets differ by fewer than `apart`
    patients, but by some; −1 stands for none of them. Empty if there is no such place.

    Who is in none of one side's sets is on the side of those that were not chosen: one more row and column, which
    belong together.
    """
    here, there = (frozenset[str]().union(*sets) for sets in (asked, told))
    shared = [[*(len(a & b) for b in told), len(a - there)] for a in asked]
    shared.append([*(len(b - here) for b in told), _TOGETHER])
    weight, at = thinnest_cut(np.array(shared, dtype=np.int64))
    if not 0 < weight < apart:
        return frozenset()
    return frozenset(node for node in at if node < len(asked)) or frozenset({-1})


def thinnest_cut(shared: NDArray[np.int64]) -> tuple[int, frozenset[int]]:
    """The least weight above 0 by which rows and columns can be parted in two, and the nodes at the cut.

    shared: patients that group i of one rule and group j of another share, shape (n, m). Node i < n is a row, n + j a
    column. Returns (0, ∅) where every part that hangs together is a single row or column.
    Source: max-flow min-cut (Ford and Fulkerson 1956) between one node and each other of its part.

    >>> thinnest_cut(np.array([[9, 1], [0, 10]]))
    (1, frozenset({0, 3}))
    """
    return _thinnest_cut(shared.shape, shared.astype(np.int32).tobytes())


@lru_cache(maxsize=256)  # most pairs of rules stay as they are when a group of a third one is held back
def _thinnest_cut(shape: tuple[int, ...], cells: bytes) -> tuple[int, frozenset[int]]:
    rows, columns = shape
    weights = np.zeros((rows + columns,) * 2, dtype=np.int32)
    weights[:rows, rows:] = np.frombuffer(cells, dtype=np.int32).reshape(shape)
    weights += weights.T
    graph = sparse.csr_array(weights)
    _, part_of = csgraph.connected_components(graph, directed=False)
    best: tuple[int, frozenset[int]] = (0, frozenset())
    for part in range(int(part_of.max(initial=-1)) + 1):
        source, *others = np.flatnonzero(part_of == part).tolist()
        for sink in others:
            found = csgraph.maximum_flow(graph, source, sink)
            if not best[0] or found.flow_value < best[0]:
                left = (weights - found.flow.toarray() > 0).astype(np.int32)
                side = csgraph.breadth_first_order(sparse.csr_array(left), source, return_predecessors=False)
                inside = np.isin(np.arange(rows + columns), side)
                crossing = np.argwhere((weights > 0) & (inside[:, None] != inside))
                best = int(found.flow_value), frozenset(crossing.ravel().tolist())
    return best


def _to_hold_back(
    population: frozenset[str],
    parts: Mapping[str, frozenset[str]],
    rules: Sequence[Sequence[str]],
    told: Collection[str],
    apart: int,
) -> str | None:
    """A told group that can't stay; None if all can."""
    order = [name for rule in rules for name in rule]

    def smallest(names: Collection[str]) -> str:
        return min(names, key=lambda name: (len(parts[name]), order.index(name)))

    split = []
    for rule in rules:
        kept = [name for name in rule if name in told]
        rest = population.difference(*(parts[name] for name in kept))
        if kept and 0 < len(rest) < apart:
            return smallest(kept)
        if kept:
            split.append((kept, [*(parts[name] for name in kept), *([rest] if rest else [])]))
    for (names, sets), (other_names, other_sets) in combinations(split, 2):
        weight, at = thinnest_cut(np.array([[len(a & b) for b in other_sets] for a in sets], dtype=np.int64))
        if 0 < weight < apart:
            nodes = dict(enumerate(names)) | {len(sets) + k: name for k, name in enumerate(other_names)}
            return smallest([nodes[k] for k in at if k in nodes] or [*names, *other_names])
    return None
