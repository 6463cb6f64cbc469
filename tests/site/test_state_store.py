"""What a site keeps of a plan between rounds: whole files of its own, few of them, and the newest intact one counts."""

from __future__ import annotations

import json
import logging
import stat
from pathlib import Path

import numpy as np
import pytest

from eucaim_fl.arrays import Arrays, encode_arrays
from eucaim_fl.durable import write_atomically
from eucaim_fl.errors import JournalError, StorageLimitError
from eucaim_fl.records import Past
from eucaim_fl.site.state_store import StateStore, joined, kept, part

PLAN = "ab" * 32
TEXT = json.dumps({"name": "lesions"})


def state(value: float) -> Arrays:
    return {"own:w": np.full((2,), value, np.float32), "own:n": np.array(3, np.int64)}


@pytest.fixture
def store(tmp_path: Path) -> StateStore:
    return StateStore(tmp_path, PLAN)


def value(arrays: Arrays) -> float:
    return float(arrays["own:w"][0])


class TestKeeping:
    def test_a_round_begins_with_the_newest_state_before_it(self, store: StateStore) -> None:
        for number in (1, 2, 3):
            store.keep(number, state(number), TEXT)
        assert [value(store.before(number)) for number in (2, 3, 4, 9)] == [1, 2, 3, 3]
        assert store.before(4)["own:n"].shape == ()

    def test_the_newest_three_rounds_stay(self, store: StateStore, tmp_path: Path) -> None:
        for number in range(1, 13):
            store.keep(number, state(number), TEXT)
        names = sorted(path.name for path in (tmp_path / "models" / PLAN).rglob("*"))
        assert names == ["plan.json", *(f"round-{n:04d}.safetensors" for n in (10, 11, 12)), "unnamed"]

    def test_a_repeated_round_takes_the_place_of_the_first_and_of_what_came_after(self, store: StateStore) -> None:
        for number in (1, 2, 3):
            store.keep(number, state(number), TEXT)
        store.keep(2, state(7), TEXT)
        assert value(store.before(9)) == 7

    def test_nothing_is_there_before_the_first_round(self, store: StateStore, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.WARNING, logger="eucaim_fl.site"):
            assert store.before(1) == {}
        assert not caplog.text

    def test_a_state_that_was_expected_and_is_not_there_is_said(
        self, store: StateStore, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.WARNING, logger="eucaim_fl.site"):
            assert store.before(5) == {}
        assert "Nothing is kept here of rounds before 5" in caplog.text

    @pytest.mark.parametrize("fault", ["cut", "changed", "other plan", "other round", "other run"])
    def test_a_damaged_or_foreign_file_is_passed_over(
        self, store: StateStore, tmp_path: Path, fault: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        for number in (1, 2):
            store.keep(number, state(number), TEXT)
        path = tmp_path / "models" / PLAN / "unnamed" / "round-0002.safetensors"
        content = path.read_bytes()
        if fault == "cut":
            path.write_bytes(content[:-1])
        elif fault == "changed":
            path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        elif fault == "other plan":
            other = StateStore(tmp_path, "cd" * 32)
            other.keep(2, state(9), TEXT)
            path.write_bytes((tmp_path / "models" / ("cd" * 32) / "unnamed" / path.name).read_bytes())
        elif fault == "other run":
            store.keep(2, state(9), TEXT, Past("a" * 32))
            path.write_bytes((tmp_path / "models" / PLAN / ("a" * 32) / path.name).read_bytes())
        else:
            path.write_bytes(path.with_name("round-0001.safetensors").read_bytes())
        with caplog.at_level(logging.WARNING, logger="eucaim_fl.site"):
            assert value(store.before(3)) == 1
        assert "A kept state is damaged" in caplog.text

    def test_only_the_site_s_user_can_read_it(self, store: StateStore, tmp_path: Path) -> None:
        store.keep(1, state(1), TEXT)
        store.keep_final({"local": {"w": np.zeros(1)}}, "local", TEXT)
        folder = tmp_path / "models" / PLAN
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700 == stat.S_IMODE(folder.parent.stat().st_mode)
        assert stat.S_IMODE((folder / "unnamed").stat().st_mode) == 0o700
        assert {stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*") if path.is_file()} == {0o600}

    def test_what_can_not_be_written_is_an_error(self, tmp_path: Path) -> None:
        (tmp_path / "models").write_text("no folder")
        store = StateStore(tmp_path, PLAN)
        with pytest.raises(JournalError, match="can't be read or written"):
            store.keep(1, state(1), TEXT)
        with pytest.raises(JournalError, match="can't be read or written"):
            store.keep_final({}, "", TEXT)
        with pytest.raises(JournalError, match="can't be read or written"):
            store.remove()
        with pytest.raises(JournalError, match="can't be read or written"):
            store.plan_json()
        with pytest.raises(JournalError, match="can't be read or written"):
            store.summary()
        with pytest.raises(JournalError, match="can't be read"):
            kept(tmp_path)


def both(value: float) -> Arrays:
    """A state with a part that counts (`control`) and one that does not."""
    return {"own:w": np.full((2,), value, np.float32), "control:w": np.full((2,), value, np.float32)}


class TestWhatCounted:
    RUN, OTHER = "a" * 32, "b" * 32

    def kept(self, store: StateStore, *rounds: tuple[int, int]) -> None:
        """Keep the state of each round, which began with the one that counted last."""
        for number, counted in rounds:
            store.keep(number, both(number), TEXT, Past(self.RUN, counted))

    def begun(self, store: StateStore, number: int, past: Past) -> tuple[float, ...]:
        """Of the start of a round: its own part, and the one that counts."""
        start = store.start(number, past, ("control",))
        return tuple(float(part(start, kind)["w"][0]) for kind in ("own", "control") if part(start, kind))

    def test_the_counting_part_is_that_of_the_round_and_the_rest_is_the_newest(self, store: StateStore) -> None:
        self.kept(store, (1, 0), (2, 1), (3, 1))
        assert self.begun(store, 4, Past(self.RUN, 1)) == (3, 1)
        assert self.begun(store, 4, Past(self.RUN, 3)) == (3, 3)
        assert self.begun(store, 4, Past(self.RUN, 0)) == (3,)
        assert self.begun(store, 4, Past(self.RUN)) == (3, 3), "where it is not told, the newest"
        assert self.begun(store, 4, Past()) == (), "a run without a name is another one"

    def test_it_stays_however_many_rounds_do_not_count(self, store: StateStore) -> None:
        self.kept(store, (1, 0), *((number, 1) for number in range(2, 9)))
        assert self.begun(store, 9, Past(self.RUN, 1)) == (8, 1)

    def test_it_stays_for_the_round_before_once_the_next_one_has_begun(self, store: StateStore) -> None:
        self.kept(store, (1, 0), *((number, 1) for number in range(2, 7)), (7, 6))
        assert self.begun(store, 6, Past(self.RUN, 1)) == (5, 1)
        self.kept(store, (8, 7))
        assert sorted(store._rounds(self.RUN)) == [6, 7, 8]

    def test_one_that_is_lost_begins_anew_and_the_log_says_so(
        self, store: StateStore, caplog: pytest.LogCaptureFixture
    ) -> None:
        self.kept(store, (1, 0), (3, 1))
        with caplog.at_level(logging.WARNING, logger="eucaim_fl.site"):
            assert self.begun(store, 4, Past(self.RUN, 2)) == (3,)
        assert "Nothing is kept here of round 2, the last that counted" in caplog.text

    def test_nothing_of_another_run_is_used_and_it_stays_for_that_one_to_go_on(self, store: StateStore) -> None:
        self.kept(store, (1, 0), (2, 1), (3, 2))
        assert self.begun(store, 2, Past(self.OTHER, 0)) == ()
        assert store.before(4, self.OTHER) == {}
        assert store.start(4, Past(self.OTHER, 2), ("control",)) == {}
        store.keep(2, both(9), TEXT, Past(self.OTHER, 0))
        assert store._rounds(self.OTHER) == [2]
        assert self.begun(store, 3, Past(self.OTHER, 2)) == (9, 9)
        assert self.begun(store, 4, Past(self.RUN, 2)) == (3, 2)


class TestRuns:
    """The same plan run again: each run has a state and models of its own, and only the newest two stay."""

    NAMES = tuple(letter * 32 for letter in "abcd")

    def final(self, store: StateStore, run: str, value: float) -> None:
        store.keep_final({"local": {"w": np.full(1, value, np.float32)}}, "local", TEXT, run)

    def told(self, store: StateStore, run: str | None = None) -> float | None:
        final = store.final(run)
        return None if final is None else float(part(final.load(), "local")["w"][0])

    def test_an_older_one_goes_when_a_third_one_first_keeps_something(self, store: StateStore, tmp_path: Path) -> None:
        first, second, third, fourth = self.NAMES
        for run in (first, second, third):
            store.keep(1, state(1), TEXT, Past(run))
        assert [store._rounds(run) for run in self.NAMES] == [[], [1], [1], []]
        store.keep(2, state(2), TEXT, Past(second))  # resumed, so it is the newer of the two
        store.keep(1, state(1), TEXT, Past(fourth))
        assert [sorted(store._rounds(run)) for run in self.NAMES] == [[], [1, 2], [], [1]]
        assert sorted(path.name for path in (tmp_path / "models" / PLAN).iterdir()) == [second, fourth, "plan.json"]

    def test_a_run_without_a_name_is_one_of_them(self, store: StateStore) -> None:
        first, second = self.NAMES[:2]
        store.keep(1, state(5), TEXT)
        store.keep(1, state(6), TEXT, Past(first))
        assert value(store.before(2)) == 5
        store.keep(1, state(7), TEXT, Past(second))
        assert (store._rounds(""), store._rounds(first)) == ([], [1])

    def test_the_models_of_the_end_are_those_of_their_run(self, store: StateStore) -> None:
        first, second = self.NAMES[:2]
        self.final(store, first, 1.0)
        store.keep(1, state(1), TEXT, Past(second))
        assert (self.told(store, first), self.told(store, second), self.told(store, "")) == (1.0, None, None)
        assert self.told(store) == 1.0
        self.final(store, second, 2.0)
        assert (self.told(store, first), self.told(store, second), self.told(store)) == (1.0, 2.0, 2.0)
        assert (store.summary().runs, store.summary().round) == (2, 1)

    def test_the_newest_models_of_an_end_outlast_runs_that_did_not_end(self, store: StateStore) -> None:
        first, *others = self.NAMES
        store.keep(1, state(1), TEXT, Past(first))
        self.final(store, first, 1.0)
        for run in others:
            store.keep(1, state(1), TEXT, Past(run))
        assert (store._rounds(first), self.told(store)) == ([], 1.0)
        self.final(store, others[-1], 4.0)
        assert (self.told(store), self.told(store, first)) == (4.0, None)

    def test_all_of_them_take_room_but_those_that_go(self, store: StateStore, tmp_path: Path) -> None:
        first, second, third, fourth = self.NAMES
        store.keep(1, state(1), TEXT, Past(first))
        one = sum(path.stat().st_size for path in (tmp_path / "models" / PLAN / first).iterdir())
        StateStore(tmp_path, PLAN, one).check_space(one, first)
        tight = StateStore(tmp_path, PLAN, 2 * one - 1)
        with pytest.raises(StorageLimitError, match="as many models of its own as it may"):
            tight.check_space(one, second)
        store.keep(1, state(1), TEXT, Past(second))
        StateStore(tmp_path, PLAN, 2 * one).check_space(one, third)
        wide = StateStore(tmp_path, PLAN, kept(tmp_path)[0].bytes)
        wide.keep(1, state(1), TEXT, Past(third))
        with pytest.raises(StorageLimitError, match="as many models of its own as it may"):
            wide.keep(1, {"own:w": np.zeros(10_000)}, TEXT, Past(fourth))
        assert [store._rounds(run) for run in self.NAMES] == [[], [1], [1], []], "a refused one takes nobody's place"


class TestTheLimit:
    OTHER = "cd" * 32

    def total(self, folder: Path) -> int:
        return sum(one.bytes for one in kept(folder))

    def test_what_other_plans_keep_counts(self, store: StateStore, tmp_path: Path) -> None:
        store.keep(1, state(1), TEXT)
        there = self.total(tmp_path)
        full = StateStore(tmp_path, self.OTHER, there + 10)
        with pytest.raises(StorageLimitError, match="as many models of its own as it may"):
            full.keep(1, state(1), TEXT)
        with pytest.raises(StorageLimitError, match="as many models of its own as it may"):
            full.keep_final({"local": {"w": np.zeros(9)}}, "local", TEXT)
        with pytest.raises(StorageLimitError, match="as many models of its own as it may") as caught:
            full.check_space(11)
        assert str(there) in caught.value.local_detail
        full.check_space(10)
        assert [path.name for path in (tmp_path / "models" / self.OTHER).rglob("*")] == ["plan.json"]
        store.remove()
        full.check_space(there)

    def test_its_own_earlier_states_do_not_stand_in_the_way_of_a_plan(self, tmp_path: Path) -> None:
        store = StateStore(tmp_path, PLAN)
        for number in range(1, 5):
            store.keep(number, state(number), TEXT)
        tight = StateStore(tmp_path, PLAN, self.total(tmp_path))
        for number in range(5, 9):
            tight.keep(number, state(number), TEXT)
        tight.keep(8, state(8), TEXT)
        tight.check_space(self.total(tmp_path))

    def test_where_nothing_lies_everything_fits(self, tmp_path: Path) -> None:
        StateStore(tmp_path, PLAN, 1).check_space(1)
        StateStore(tmp_path, PLAN).check_space(10**30)

    def test_a_refusal_says_nothing_of_the_place(self, tmp_path: Path) -> None:
        with pytest.raises(StorageLimitError, match="has no room for this plan's") as caught:
            StateStore(tmp_path, PLAN, 1).check_space(2)
        assert str(tmp_path) not in str(caught.value)
        (tmp_path / "models").write_text("no folder")
        with pytest.raises(JournalError, match="can't be read or written"):
            StateStore(tmp_path, PLAN, 1).check_space(2)


class TestTheEnd:
    def test_the_models_of_the_end_are_found_again(self, store: StateStore) -> None:
        models = {"common": {"w": np.ones(2, np.float32)}, "local": {"w": np.zeros(2, np.float32)}}
        store.keep_final(models, "local", TEXT)
        final = store.final()
        assert final is not None
        assert final.metadata["chosen"] == "local"
        assert part(final.load(), "common")["w"].tolist() == [1, 1]

    def test_there_are_none_before(self, store: StateStore, tmp_path: Path) -> None:
        assert store.final() is None
        store.keep(1, state(1), TEXT)
        assert store.final() is None
        damaged = tmp_path / "models" / PLAN / "unnamed" / "final.safetensors"
        write_atomically(damaged, encode_arrays(state(1), {"round": "final"}))
        assert store.final() is None


class TestJoined:
    def test_parts_come_out_as_they_went_in(self) -> None:
        parts = {"own": {"a.b": np.ones(1)}, "control": {"a.b": np.zeros(1)}, "local": {}}
        together = joined(parts)
        assert {kind: set(part(together, kind)) for kind in parts} == {
            "own": {"a.b"},
            "control": {"a.b"},
            "local": set(),
        }


class TestSummary:
    def test_it_says_what_is_there(self, store: StateStore, tmp_path: Path) -> None:
        assert kept(tmp_path) == ()
        store.keep(4, {**state(1), "local:w": np.zeros(1)}, TEXT)
        (tmp_path / "models" / "not a plan").mkdir()
        (found,) = kept(tmp_path)
        assert (found.plan_sha256, found.name, found.round) == (PLAN, "lesions", 4)
        assert (found.parts, found.models, found.chosen) == (("local", "own"), (), "")
        store.keep_final({"common": {"w": np.zeros(1)}, "local": {"w": np.zeros(1)}}, "common", TEXT)
        assert (store.summary().models, store.summary().chosen) == (("common", "local"), "common")
        assert store.summary().bytes > found.bytes > 0

    def test_a_plan_that_is_damaged_has_no_name(self, store: StateStore, tmp_path: Path) -> None:
        store.keep(1, state(1), TEXT)
        (tmp_path / "models" / PLAN / "plan.json").write_bytes(b"\xff")
        assert store.summary().name == ""
        with pytest.raises(JournalError, match="damaged"):
            store.plan_json()

    def test_what_was_removed_is_gone(self, store: StateStore, tmp_path: Path) -> None:
        store.keep(1, state(1), TEXT)
        store.remove()
        assert kept(tmp_path) == ()
        assert store.before(1) == {}
