"""No sum of groups that are told side by side tells of a few patients."""

from __future__ import annotations

from itertools import chain, combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eucaim_fl.site.disclosure import LeastPeople
from eucaim_fl.site.validation_sets import beside_told, tellable_scopes, thinnest_cut
from eucaim_fl.validation.record import EVERYBODY

LEAST = LeastPeople(training=10, metric=5, base=5, apart=5)
RULES = (("F", "M", "O"), ("young", "old"), ("GE", "Siemens", "other"))


def members_by(*assigned: list[int]) -> dict[str, frozenset[str]]:
    """Scope → patients, of so many rules; patient n is in group assigned[rule][n]."""
    found = {EVERYBODY: frozenset(f"p{n}" for n in range(len(assigned[0])))}
    for rule, own in zip(RULES, assigned, strict=False):
        for k, name in enumerate(rule):
            found[name] = frozenset(f"p{n}" for n, group in enumerate(own) if group == k)
    return found


def told_of(*assigned: list[int], least: LeastPeople = LEAST) -> set[str]:
    members = members_by(*assigned)
    found = tellable_scopes(members[EVERYBODY], members, RULES[: len(assigned)], least)
    return set(found) - {EVERYBODY}


def unions(sets: list[frozenset[str]]) -> list[frozenset[str]]:
    """All unions, that of none included."""
    chosen = chain.from_iterable(combinations(sets, k) for k in range(len(sets) + 1))
    return [frozenset().union(*some) for some in chosen]


class TestAttacks:
    def test_a_group_of_four_can_not_be_got_by_subtraction(self):
        everybody = [0] * 20 + [1] * 4
        assert told_of(everybody) == set()  # 24 − 20 would be the four men

    def test_the_smallest_other_group_is_held_back_beside_it(self):
        assert told_of([0] * 20 + [1] * 4 + [2] * 9) == {"F"}

    def test_two_small_groups_hide_each_other_only_if_they_are_enough_together(self):
        assert told_of([0] * 20 + [1] * 3 + [2] * 3) == {"F"}
        assert told_of([0] * 20 + [1] * 2 + [2] * 2) == set()

    def test_a_group_of_five_is_told_of(self):
        assert told_of([0] * 20 + [1] * 5) == {"F", "M"}

    def test_a_group_that_is_everybody_is_told_of(self):
        assert told_of([0] * 20) == {"F"}

    def test_two_overlapping_groups_that_differ_by_one_patient_are_not_both_told_of(self):
        sex, age = [0] * 10 + [1] * 12, [0] * 9 + [1] * 13
        assert told_of(sex) == {"F", "M"}
        told = told_of(sex, age)
        assert told
        assert not (told & {"F", "M"} and told & {"young", "old"})

    def test_two_overlapping_groups_that_differ_by_enough_are_both_told_of(self):
        assert told_of([0] * 10 + [1] * 12, [0] * 5 + [1] * 11 + [0] * 6) == {"F", "M", "young", "old"}

    def test_the_same_group_by_two_rules_is_told_of_twice(self):
        assert told_of([0] * 10 + [1] * 12, [0] * 10 + [1] * 12) == {"F", "M", "young", "old"}

    def test_a_union_of_two_groups_that_is_nearly_one_of_another_rule_is_seen(self):
        maker, age = [0] * 8 + [1] * 8 + [2] * 9, [0] * 17 + [1] * 8
        told = told_of([0] * 25, age, maker)
        assert not ({"GE", "Siemens", "other"} <= told and "young" in told)

    def test_data_that_hide_nobody_are_compared_with_nothing(self):
        assert told_of([0] * 20 + [1] * 1, least=LeastPeople(1, 2, 1, 1)) == {"F"}

    def test_fewer_than_the_least_are_not_told_of_at_all(self):
        members = members_by([0] * 4)
        assert tellable_scopes(members[EVERYBODY], members, RULES[:1], LEAST) == frozenset()


def tells_of_few(told: frozenset[str], members: dict[str, frozenset[str]], apart: int) -> bool:
    """Whether unions of groups of two rules, or one and everybody, differ by few: all of them tried."""
    known = [unions([members[name] for name in rule if name in told]) for rule in RULES]
    sets = [{*own, *(members[EVERYBODY] - one for one in own)} for own in known]
    between = any(0 < len(a ^ b) < apart for one, other in combinations(sets, 2) for a in one for b in other)
    return between or any(0 < len(a) < apart for own in sets for a in own)


class TestTellableScopes:
    groups = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1), st.integers(0, 2)), min_size=5, max_size=60)

    @settings(max_examples=150, deadline=None)
    @given(groups, st.integers(2, 8), st.data())
    def test_all_unions_of_two_rules_are_the_same_or_differ_by_enough_even_if_some_are_taken_out(
        self, rows, least, data
    ):
        members = members_by(*(list(column) for column in zip(*rows, strict=True)))
        told = tellable_scopes(members[EVERYBODY], members, RULES, LeastPeople(10, least, 5, least))
        taken = data.draw(st.sets(st.sampled_from(sorted(told)))) if told else set()
        for kept in (told, told - taken):
            assert not tells_of_few(kept, members, least) or not kept

    def test_the_search_finds_what_would_be_told_without_it(self):
        members = members_by([0] * 10 + [1] * 12, [0] * 9 + [1] * 13, [0] * 22)
        assert tells_of_few(frozenset({"F", "M", "young", "old"}), members, 5)


def beside(members: dict[str, frozenset[str]], rules: tuple[tuple[str, ...], ...], before: list[list[frozenset[str]]]):
    """What is told of a rule's groups, as by themselves, beside what was told before."""
    told = tellable_scopes(members[EVERYBODY], members, rules, LEAST)
    return beside_told(told, members[EVERYBODY], members, rules, before, LEAST.apart)


def aged(*ages: int, edges: tuple[int, ...]) -> tuple[dict[str, frozenset[str]], tuple[str, ...]]:
    """Scope → patients, patient n being so old; and the names of the groups."""
    places = np.searchsorted(edges, ages, side="right")
    names = tuple(f"{k}" for k in range(len(edges) + 1))
    found = {name: frozenset(f"p{n}" for n, place in enumerate(places) if place == k) for k, name in enumerate(names)}
    return {EVERYBODY: frozenset(f"p{n}" for n in range(len(ages))), **found}, names


class TestBesideTold:
    AGES = (*range(20, 80), *range(20, 80))

    @pytest.mark.parametrize("edges", [(51,), (51, 65), (35, 51), (35, 51, 65), (30, 40, 51, 60, 70)])
    def test_an_edge_that_is_moved_by_a_year_tells_of_no_few_however_many_others_there_are(self, edges):
        ages = [age for age in self.AGES if age != 50] + [50]  # one patient of 50
        first, names = aged(*ages, edges=(50,))
        before = [[first[name] for name in names]]
        members, own = aged(*ages, edges=edges)
        told = beside(members, (own,), before)
        assert EVERYBODY in told
        for union in unions([members[name] for name in own if name in told]):
            for other in unions(before[0]):
                assert not 0 < len(union ^ other) < LEAST.apart
                assert not 0 < len((members[EVERYBODY] - union) ^ other) < LEAST.apart

    def test_the_same_groups_and_others_that_differ_by_enough_are_told_again(self):
        first, names = aged(*self.AGES, edges=(50,))
        before = [[first[name] for name in names]]
        for edges in ((50,), (40, 50), (40, 50, 60), (53,)):
            members, own = aged(*self.AGES, edges=edges)
            assert beside(members, (own,), before) == {EVERYBODY, *own}

    def test_nothing_is_told_of_everybody_but_one_of_a_group(self):
        first, names = aged(*self.AGES, edges=(50,))
        before = [[first[name] for name in names]]
        fewer = {EVERYBODY: first["0"] - {"p0"}}
        assert beside(fewer, (), before) == frozenset()
        assert beside({EVERYBODY: first["0"]}, (), before) == {EVERYBODY}

    def test_what_was_told_when_fewer_were_enough_silences_nobody(self):
        members, own = aged(*self.AGES, edges=(50,))
        few = [frozenset({"p0", "p1"}), members[EVERYBODY] - {"p0", "p1"}]
        assert beside(members, (own,), [few]) == {EVERYBODY, *own}
        assert beside(members, (own,), [[frozenset({"p0"})]]) == {EVERYBODY, *own}

    @settings(max_examples=100, deadline=None)
    @given(TestTellableScopes.groups, st.lists(st.integers(0, 3), min_size=60, max_size=60), st.integers(0, 3))
    def test_no_union_is_near_to_one_of_what_was_told_before(self, rows, earlier, gone):
        """Some patients of then are no longer there, and some are new."""
        members = members_by(*(list(column) for column in zip(*rows, strict=True)))
        sets = [frozenset(f"p{n + gone}" for n, k in enumerate(earlier[: len(rows)]) if k == part) for part in range(4)]
        before = [part for part in sets if len(part) >= LEAST.apart]
        told = beside(members, RULES, [before])
        known = unions(before)
        for rule in RULES if told else ():
            own = [members[name] for name in rule if name in told]
            rest = members[EVERYBODY].difference(*own)
            for union in unions([*own, rest]):
                assert not union or all(union == one or len(union ^ one) >= LEAST.apart for one in known)


class TestThinnestCut:
    @settings(max_examples=80, deadline=None)
    @given(st.integers(1, 4), st.integers(1, 3), st.data())
    def test_it_is_the_least_of_all_cuts_above_nought(self, rows, columns, data):
        cells = data.draw(st.lists(st.integers(0, 6), min_size=rows * columns, max_size=rows * columns))
        shared = np.array(cells, dtype=np.int64).reshape(rows, columns)
        nodes, weights = range(rows + columns), []
        for inside in chain.from_iterable(combinations(nodes, k) for k in range(len(nodes) + 1)):
            side = np.isin(nodes, inside)
            weights.append(int(shared[side[:rows, None] != side[rows:]].sum()))
        assert thinnest_cut(shared)[0] == min((w for w in weights if w), default=0)

    @pytest.mark.parametrize("shared", [[[4]], [[4, 0], [0, 5]]])
    def test_two_nodes_are_parted_by_what_they_share(self, shared):
        weight, at = thinnest_cut(np.array(shared))
        assert weight == 4
        assert len(at) == 2

    def test_nothing_shared_has_no_cut(self):
        assert thinnest_cut(np.zeros((2, 2), dtype=np.int64)) == (0, frozenset())
