"""Whatever is asked, in whatever order: no two sets of patients that figures were told about differ by a few."""

from __future__ import annotations

import itertools
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eucaim_fl.errors import JournalError
from eucaim_fl.site.differencing import Told, ToldSet, number_for, tellable, too_near

A, B = "a" * 64, "b" * 64


def people(*numbers: int) -> frozenset[str]:
    return frozenset(f"P{n:03d}" for n in numbers)


def first(count: int, start: int = 0) -> frozenset[str]:
    return people(*range(start, start + count))


def mask(*numbers: int) -> int:
    return sum(1 << n for n in numbers)


@pytest.fixture
def told(tmp_path: Path) -> Told:
    return Told(tmp_path / "records")


class TestTooNear:
    def test_the_same_set_and_one_that_differs_by_enough_are_not(self) -> None:
        assert not too_near(mask(1, 2, 3), [mask(1, 2, 3), mask(1, 2, 3, 4, 5)], 2)

    def test_a_set_without_one_patient_with_one_more_or_with_another_is(self) -> None:
        for other in (mask(1, 2), mask(1, 2, 3, 4), mask(1, 2, 4)):
            assert too_near(mask(1, 2, 3), [other], 3)


class TestTellable:
    def test_a_set_that_nobody_asked_for_before_is_told_whole(self) -> None:
        assert tellable([mask(*range(9))], set(), 5, 5) == (mask(*range(9)),)

    def test_after_a_withdrawal_others_are_left_out_with_that_patient(self) -> None:
        before, now = mask(*range(20)), mask(*range(1, 20))
        (found,) = tellable([now], {before}, 5, 5)
        assert found & ~now == 0
        assert (before ^ found).bit_count() == 5

    def test_the_next_round_takes_the_same_patients(self) -> None:
        before, now = mask(*range(20)), mask(*range(1, 20))
        (found,) = tellable([now], {before}, 5, 5)
        assert tellable([now], {before, found}, 5, 5) == (found,)

    def test_a_patient_who_joins_waits_for_others(self) -> None:
        before = mask(*range(20))
        assert tellable([before | mask(20)], {before}, 5, 5) == (before,)
        assert tellable([before | mask(*range(20, 25))], {before}, 5, 5) == (before | mask(*range(20, 25)),)

    def test_without_groups_or_patients_nothing_is_told_of_whatever_was_told_before(self) -> None:
        before = {mask(1, 2)}  # told when fewer were enough
        assert tellable([], before, 5, 5) == ()
        assert tellable([0, mask(1)], before, 5, 5) == (0, 0)

    def test_a_set_that_is_too_small_to_leave_others_out_stays(self) -> None:
        assert tellable([mask(*range(1, 8))], {mask(*range(8))}, 5, 5) == (0,)

    def test_a_class_that_has_to_stay_leaves_the_other_alone(self) -> None:
        many, few = mask(*range(20)), mask(*range(20, 26))
        assert tellable([many, few & ~mask(20)], {many, few, many | few}, 5, 5) == (many, 0)

    def test_classes_that_are_new_may_be_near_only_together(self) -> None:
        halves = mask(*range(12)), mask(*range(12, 23))
        found = tellable(halves, {mask(*range(24))}, 5, 5)
        assert all(found)
        assert not too_near(found[0] | found[1], [mask(*range(24))], 5)

    @settings(max_examples=60, deadline=None)
    @given(st.integers(0, 2**32), st.integers(2, 6))
    def test_no_two_sets_told_about_differ_by_a_few(self, seed: int, least: int) -> None:
        rng = np.random.default_rng(seed)
        known: set[int] = set()
        base = rng.permutation(40)
        for _ in range(12):
            here = [int(n) for n in base[: rng.integers(8, 40)] if rng.random() > 0.05]
            cut = int(rng.integers(0, len(here)))
            groups = [mask(*here)] if rng.random() < 0.5 else [mask(*here[:cut]), mask(*here[cut:])]
            kept = tellable(groups, known, least, least)
            for part, group in zip(kept, groups, strict=True):
                assert part & ~group == 0
                assert part == 0 or part.bit_count() >= least
            known |= {*kept, sum(kept)} - {0}
        for one, other in itertools.combinations(known, 2):
            assert (one ^ other).bit_count() >= least


class TestNumberFor:
    def test_it_is_near_the_truth(self) -> None:
        assert number_for(mask(*range(12)), None, [], 5) == (mask(*range(12)), 10)

    def test_it_stays_while_few_leave_and_then_falls(self) -> None:
        own = (mask(*range(13)), 15)
        assert number_for(mask(*range(1, 13)), own, [], 5) == own
        assert number_for(mask(*range(5, 13)), own, [], 5) == (mask(*range(5, 13)), 10)

    def test_within_a_plan_it_never_rises(self) -> None:
        assert number_for(mask(*range(30)), (mask(*range(8)), 10), [], 5)[1] == 10

    def test_another_plan_repeats_it_if_its_set_is_near(self) -> None:
        before = (mask(*range(13)), 15)
        assert number_for(mask(*range(1, 13)), None, [(mask(99), 0), before], 5) == before
        assert number_for(mask(*range(6, 13)), None, [before], 5)[1] == 5

    @given(st.lists(st.integers(0, 63), max_size=40), st.integers(5, 9))
    def test_however_the_set_drifts_it_is_at_most_one_and_a_half_bases_off(self, left: list[int], base: int) -> None:
        patients, others = 2**64 - 1, []
        for plan in left:
            patients &= ~(1 << plan)
            found = number_for(patients, None, others, base)
            others.append(found)
            assert abs(found[1] - patients.bit_count()) <= 1.5 * base


class TestFigures:
    def test_a_set_is_told_again_as_often_as_is_asked(self, told: Told) -> None:
        for plan in (A, B, A):
            (group,) = told.figures("test", plan, {"all": first(20)}, 5, 5)
            assert (group.patients, group.number) == (first(20), 20)
        assert told.remembered() == (ToldSet("figures", 20, 3),)

    def test_a_withdrawal_takes_others_along_and_the_number_stays(self, told: Told) -> None:
        told.figures("test", A, {"all": first(20)}, 5, 5)
        now = first(19, start=1)
        (group,) = told.figures("test", A, {"all": now}, 5, 5)
        assert group.patients < now
        assert len(first(20) - group.patients) == 5
        assert group.number == 20
        assert told.figures("test", A, {"all": now}, 5, 5) == (group,)
        assert told.figures("validation", B, {"all": now}, 5, 5)[0].patients == group.patients

    def test_classes_are_compared_each_for_itself(self, told: Told) -> None:
        told.figures("test", A, {"0": first(20), "1": first(15, start=50)}, 5, 5)
        found = told.figures("test", A, {"0": first(20), "1": first(14, start=51)}, 5, 5)
        assert [len(group.patients) for group in found] == [20, 10]
        assert [group.number for group in found] == [20, 15]

    def test_a_group_that_must_stay_is_missing(self, told: Told) -> None:
        told.figures("test", A, {"all": first(7)}, 5, 5)
        assert told.figures("test", B, {"all": first(6)}, 5, 5) == ()
        assert told.figures("test", B, {}, 5, 5) == ()

    def test_where_sets_need_not_differ_nothing_is_left_out(self, told: Told) -> None:
        for size in (20, 19, 18):
            (group,) = told.figures("test", A, {"all": first(size)}, 1, 1)
            assert len(group.patients) == size

    def test_of_two_plans_at_once_one_sees_what_the_other_told(self, tmp_path: Path) -> None:
        asked = [first(20), first(19, start=1), first(19), first(18, start=1)]
        with ThreadPoolExecutor(len(asked)) as pool:
            answers = list(
                pool.map(lambda s: Told(tmp_path / "r").figures("test", f"{len(s)}", {"all": s}, 5, 5), asked)
            )
        for one, other in itertools.combinations([group.patients for (group,) in answers], 2):
            assert len(one ^ other) == 0 or len(one ^ other) >= 5

    def test_the_file_names_no_patient_and_only_its_owner_may_read_it(self, told: Told, tmp_path: Path) -> None:
        told.figures("test", A, {"all": {"MARIA-ROSSI", *first(9)}}, 5, 5)
        for path in (tmp_path / "records").iterdir():
            assert b"MARIA" not in path.read_bytes()
            assert path.stat().st_mode & 0o077 == 0

    def test_thousands_of_sets_of_thousands_of_patients_take_no_time(self, told: Told, tmp_path: Path) -> None:
        names = [f"patient-{n}" for n in range(10_000)]
        told.figures("test", A, {"all": names}, 5, 5)
        rng = np.random.default_rng(0)
        rows = [rng.bytes(1250) for _ in range(3000)]
        with sqlite3.connect(tmp_path / "records" / "told.sqlite") as store:
            store.executemany("INSERT INTO told VALUES ('figures', ?, ?, 5000, 1)", [(row[:32], row) for row in rows])
        started = time.process_time()
        (group,) = told.figures("test", B, {"all": names[1:]}, 5, 5)
        assert len(group.patients) == 9995
        assert time.process_time() - started < 5

    def test_what_can_not_be_remembered_is_not_told(self, tmp_path: Path) -> None:
        (tmp_path / "records").write_text("no folder")
        broken = Told(tmp_path / "records")
        with pytest.raises(JournalError, match="record of what was told"):
            broken.figures("test", A, {"all": first(9)}, 5, 5)
        with pytest.raises(JournalError, match="record of what was told"):
            broken.may_tell("loss", first(9), 5)
        with pytest.raises(JournalError, match="record of what was told"):
            broken.beside(first(9), lambda before: (None, {}))
        with pytest.raises(JournalError, match="record of what was told"):
            broken.number("train", A, first(9), 5, 5)

    def test_a_damaged_file_is_said_to_be(self, told: Told, tmp_path: Path) -> None:
        assert told.remembered() == ()
        told.may_tell("loss", first(9), 5)
        (tmp_path / "records" / "told.sqlite").write_bytes(b"not a database" * 100)
        with pytest.raises(JournalError, match="record of what was told"):
            told.remembered()


class TestMayTell:
    def test_a_loss_stays_once_a_patient_has_left(self, told: Told) -> None:
        assert told.may_tell("loss", first(20), 5)
        assert told.may_tell("loss", first(20), 5)
        assert not told.may_tell("loss", first(19), 5)
        assert told.may_tell("loss", first(15), 5)

    def test_kinds_are_compared_among_themselves(self, told: Told) -> None:
        told.figures("test", A, {"all": first(20)}, 5, 5)
        assert told.may_tell("loss", first(19), 5)


class TestBeside:
    def test_what_is_chosen_is_what_the_next_one_knows_of_its_kind(self, told: Told) -> None:
        seen = []

        def choose(*parts: frozenset[str]):
            def chosen(before):
                seen.append([set(one) for one in before("sex")])
                assert before("age") == []
                return len(seen), {"sex": [parts]}

            return chosen

        groups = first(10), first(7, 10)
        assert told.beside(first(17), choose(*groups)) == 1
        assert told.beside(first(17), choose(*groups)) == 2
        assert told.beside(first(16, 1), choose(first(9, 1))) == 3
        assert seen[:2] == [[], [set(groups)]]
        (women, men), strangers = sorted(seen[2][0], key=len, reverse=True), seen[2][0]
        assert (len(seen[2]), men, len(women)) == (1, groups[1], 10)
        assert len(women - groups[0]) == 1  # who is not asked about has no name
        assert women & groups[0] == first(9, 1)
        assert not any(first(1) & one for one in strangers)

    def test_what_can_not_be_chosen_is_not_remembered(self, told: Told) -> None:
        def fails(before):
            raise ValueError("no")

        with pytest.raises(ValueError, match="no"):
            told.beside(first(9), fails)
        assert told.remembered() == ()


class TestNumber:
    def test_within_a_run_a_withdrawal_does_not_show(self, told: Told) -> None:
        assert [told.number("train", A, first(size), 10, 5) for size in (23, 22, 20, 19, 18)] == [25, 25, 25, 25, 20]

    def test_it_is_not_below_what_the_least_would_be_told_as(self, told: Told) -> None:
        told.number("train", A, first(12), 10, 5)
        assert told.number("train", B, first(13), 13, 5) == 15


class TestModels:
    def test_other_plans_of_the_same_models_count_once_each(self, told: Told) -> None:
        assert told.other_plans(A, ["m1"]) == 0
        told.of_models(A, ["m1", "m2"])
        told.of_models(A, ["m1"])
        assert told.other_plans(A, ["m1", "m2"]) == 0
        assert told.other_plans(B, ["m1", "m2"]) == 1
        assert told.other_plans(B, ["m3"]) == 0
        told.of_models(B, ["m2"])
        assert told.other_plans("c" * 64, ["m1", "m2"]) == 2
        assert told.other_plans("c" * 64, ["m1"]) == 1

    def test_what_can_not_be_remembered_or_read_is_an_error(self, tmp_path: Path) -> None:
        (tmp_path / "told.sqlite").write_bytes(b"no database" * 1000)
        broken = Told(tmp_path)
        with pytest.raises(JournalError, match="can't be read or written"):
            broken.of_models(A, ["m1"])
        with pytest.raises(JournalError, match="can't be read or written"):
            broken.other_plans(A, ["m1"])
