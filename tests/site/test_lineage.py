"""The site knows which runs a patient was used in; the file alone tells nobody who that was."""

from __future__ import annotations

from pathlib import Path

import pytest

from eucaim_fl.errors import JournalError
from eucaim_fl.site.lineage import Lineage

PLAN, OTHER = ("a" * 64, "first"), ("b" * 64, "second")


@pytest.fixture
def lineage(tmp_path: Path) -> Lineage:
    return Lineage(tmp_path / "records")


class TestWhatIsListed:
    def test_a_patient_s_runs_with_their_first_and_last_round(self, lineage: Lineage) -> None:
        for number in (1, 2, 3):
            lineage.record(PLAN, ("round", number), f"{number}" * 64, {"train": ["P1", "P2"], "validation": ["P3"]})
        (found,) = lineage.contributions(["P1"])
        assert (found.plan_sha256, found.name, found.use, found.rounds) == ("a" * 64, "first", "train", (1, 3))
        assert (found.patients, found.model_sha256) == (1, "3" * 64)

    def test_a_patient_who_left_after_round_one_is_listed_with_round_one_only(self, lineage: Lineage) -> None:
        lineage.record(PLAN, ("round", 1), "1" * 64, {"train": ["P1", "P2"]})
        lineage.record(PLAN, ("round", 2), "2" * 64, {"train": ["P2"]})
        assert [one.rounds for one in lineage.contributions(["P1"])] == [(1, 1)]
        assert [one.rounds for one in lineage.contributions(["P2"])] == [(1, 2)]

    def test_everybody_s_runs_without_a_question(self, lineage: Lineage) -> None:
        lineage.record(PLAN, ("round", 1), "1" * 64, {"train": ["P1", "P2"]})
        lineage.record(OTHER, ("final", 5), "5" * 64, {"test": ["P3"]})
        assert [(one.name, one.use, one.patients) for one in lineage.contributions()] == [
            ("first", "train", 2),
            ("second", "test", 1),
        ]

    def test_nobody_s_runs_where_nothing_was_recorded_or_nobody_is_asked_for(self, lineage: Lineage) -> None:
        assert lineage.contributions() == ()
        lineage.record(PLAN, ("round", 1), "1" * 64, {"train": ["P1"]})
        assert lineage.contributions([]) == ()
        assert lineage.contributions(["P9"]) == ()

    def test_the_same_answer_twice_is_one(self, lineage: Lineage) -> None:
        for _ in range(2):
            lineage.record(PLAN, ("round", 1), "1" * 64, {"train": ["P1"]})
        assert len(lineage.contributions(["P1"])) == 1


class TestHowOften:
    def test_every_answer_counts_also_one_from_the_same_weights(self, lineage: Lineage) -> None:
        assert lineage.answers() == {}
        for number, kind in ((1, "round"), (1, "round"), (2, "round"), (2, "final")):
            lineage.record(PLAN, (kind, number), "0" * 64, {"train": ["P1"]})
        plan = PLAN[0]
        assert lineage.answers() == {(plan, "round", 1): 2, (plan, "round", 2): 1, (plan, "final", 2): 1}
        (found,) = lineage.contributions(["P1"])
        assert len(found.since) == len("2026-03-01T12:00:00+00:00")

    def test_a_damaged_record_is_an_error(self, lineage: Lineage, tmp_path: Path) -> None:
        (tmp_path / "records").mkdir()
        (tmp_path / "records" / "lineage.sqlite").write_bytes(b"no database at all, and long enough to look at" * 10)
        with pytest.raises(JournalError, match="record of runs can't be read"):
            lineage.answers()


class TestTheFile:
    def test_it_names_no_patient_and_only_its_owner_may_read_it(self, lineage: Lineage, tmp_path: Path) -> None:
        lineage.record(PLAN, ("round", 1), "1" * 64, {"train": ["MARIA-ROSSI"]})
        for path in (tmp_path / "records").iterdir():
            assert b"MARIA" not in path.read_bytes()
            assert path.stat().st_mode & 0o077 == 0

    def test_one_that_can_not_be_written_stops_the_answer(self, lineage: Lineage, tmp_path: Path) -> None:
        (tmp_path / "records").write_text("a file where the folder should be")
        with pytest.raises(JournalError, match=r"A key of this site can't be read|record of runs can't be"):
            lineage.record(PLAN, ("round", 1), "1" * 64, {"train": ["P1"]})

    def test_a_damaged_one_is_an_error(self, lineage: Lineage, tmp_path: Path) -> None:
        lineage.record(PLAN, ("round", 1), "1" * 64, {"train": ["P1"]})
        (tmp_path / "records" / "lineage.sqlite").write_bytes(b"no database at all, and long enough to look at" * 10)
        with pytest.raises(JournalError, match="record of runs can't be read") as caught:
            lineage.contributions(["P1"])
        assert str(tmp_path) not in str(caught.value)
