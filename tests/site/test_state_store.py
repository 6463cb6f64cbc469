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
        names = sorted(path.name for path in (tmp_path / "models" / PLAN).iterdir())
        assert names == ["plan.json", *(f"round-{n:04d}.safetensors" for n in (10, 11, 12))]

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

    @pytest.mark.parametrize("fault", ["cut", "changed", "other plan", "other round"])
    def test_a_damaged_or_foreign_file_is_passed_over(
        self, store: StateStore, tmp_path: Path, fault: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        for number in (1, 2):
            store.keep(number, state(number), TEXT)
        path = tmp_path / "models" / PLAN / "round-0002.safetensors"
        content = path.read_bytes()
        if fault == "cut":
            path.write_bytes(content[:-1])
        elif fault == "changed":
            path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        elif fault == "other plan":
            other = StateStore(tmp_path, "cd" * 32)
            other.keep(2, state(9), TEXT)
            path.write_bytes((tmp_path / "models" / ("cd" * 32) / "round-0002.safetensors").read_bytes())
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
        assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}

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
        assert self.begun(store, 4, Past()) == (3, 3)

    def test_it_stays_however_many_rounds_do_not_count(self, store: StateStore) -> None:
        self.kept(store, (1, 0), *((number, 1) for number in range(2, 9)))
        assert self.begun(store, 9, Past(self.RUN, 1)) == (8, 1)

    def test_it_stays_for_the_round_before_once_the_next_one_has_begun(self, store: StateStore) -> None:
        self.kept(store, (1, 0), *((number, 1) for number in range(2, 7)), (7, 6))
        assert self.begun(store, 6, Past(self.RUN, 1)) == (5, 1)
        self.kept(store, (8, 7))
        assert sorted(store._rounds()) == [6, 7, 8]

    def test_one_that_is_lost_begins_anew_and_the_log_says_so(
        self, store: StateStore, caplog: pytest.LogCaptureFixture
    ) -> None:
        self.kept(store, (1, 0), (3, 1))
        with caplog.at_level(logging.WARNING, logger="eucaim_fl.site"):
            assert self.begun(store, 4, Past(self.RUN, 2)) == (3,)
        assert "Nothing is kept here of round 2, the last that counted" in caplog.text

    def test_nothing_of_another_run_is_used_and_it_goes_with_the_first_state_of_the_new_one(
        self, store: StateStore
    ) -> None:
        self.kept(store, (1, 0), (2, 1), (3, 2))
        assert self.begun(store, 2, Past(self.OTHER, 0)) == ()
        assert store.before(4, self.OTHER) == {}
        assert store.start(4, Past(self.OTHER, 2), ("control",)) == {}
        store.keep(2, both(9), TEXT, Past(self.OTHER, 0))
        assert store._rounds() == [2]
        assert self.begun(store, 3, Past(self.OTHER, 2)) == (9, 9)


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
        assert "round-0001" not in " ".join(path.name for path in (tmp_path / "models" / self.OTHER).iterdir())
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
        write_atomically(tmp_path / "models" / PLAN / "final.safetensors", encode_arrays(state(1), {"round": "final"}))
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
