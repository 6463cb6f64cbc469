"""The journal: a round is there in whole or not at all."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from eucaim_fl.arrays import arrays_sha256
from eucaim_fl.errors import JournalError
from eucaim_fl.records import ArraySpec, Participation, RoundRecord, SiteMetrics
from eucaim_fl.tracking.journal import Journal

SPECS = (ArraySpec("w", (2,), "float32", True),)


def weights(value: float):
    return {"w": np.full(2, value, np.float32)}


def record(number: int, value: float) -> RoundRecord:
    return RoundRecord(
        round=number,
        arriving_sha256="a",
        weights_sha256=arrays_sha256(weights(value)),
        participation=(Participation("a", "took_part", patients=3), Participation("b", "lost", "EFL303", "gone")),
        metrics={"a": (SiteMetrics("validation", 3, {"dice": 0.5}, {"dice": (3.0, 1.5, 0.75)}),)},
        pooled={"validation": {"dice": 0.5}},
        train_loss={"a": 0.1},
        aggregated_from=("a",),
        seconds=1.0,
    )


@pytest.fixture
def journal(tmp_path):
    journal = Journal(tmp_path / "run")
    journal.begin(SPECS, weights(0))
    return journal


class TestTheRunsName:
    def test_it_stays_when_the_run_is_resumed_or_its_first_model_is_written_again(self, journal):
        name = journal.run()
        journal.begin(SPECS, weights(1), {"a": {}})
        assert Journal(journal.folder).run() == name
        assert len(name) == 32
        assert set(name) <= set("0123456789abcdef")

    def test_no_two_runs_have_the_same(self, journal, tmp_path):
        other = Journal(tmp_path / "other" / "run")
        assert other.run() == "", "it has not begun"
        other.begin(SPECS, weights(0))
        assert other.run() not in ("", journal.run())

    @pytest.mark.parametrize("text", ["", "{", "[]", "{}", "7", '{"run": 7}'])
    def test_one_that_is_damaged_is_none(self, journal, text):
        (journal.folder / "journal" / "run.json").write_text(text)
        assert journal.run() == ""


class TestLoad:
    def test_nothing_was_written_yet(self, tmp_path):
        assert Journal(tmp_path).load() is None

    def test_what_was_committed_comes_back_to_the_bit(self, journal):
        journal.commit(record(1, 1.5), weights(1.5), {"m.w": np.ones(2)}, better=True)
        state = journal.load()
        assert state.round == 1
        assert state.specs == SPECS
        assert arrays_sha256(state.weights) == arrays_sha256(weights(1.5))
        assert state.optimizer["m.w"].tolist() == [1.0, 1.0]
        assert state.records == (record(1, 1.5),)

    @pytest.mark.parametrize("how", ["truncated", "changed", "missing", "record"])
    def test_a_damaged_round_is_removed_and_the_one_before_is_used(self, journal, how):
        for number in (1, 2):
            journal.commit(record(number, number), weights(number), {}, better=False)
        folder = journal.folder / "journal" / "round-0002"
        path = folder / ("record.json" if how == "record" else "weights.safetensors")
        content = path.read_bytes()
        if how == "missing":
            path.unlink()
        else:
            path.write_bytes(content[:-4] if how != "changed" else content[:-4] + b"\0\0\0\1")
        state = Journal(journal.folder).load()
        assert state.round == 1
        assert state.weights["w"].tolist() == [1.0, 1.0]

    def test_without_any_whole_arrays_it_says_so(self, journal):
        (journal.folder / "journal" / "round-0000" / "weights.safetensors").write_bytes(b"no")
        with pytest.raises(JournalError, match="No completed round"):
            journal.load()

    def test_a_half_written_round_does_not_count(self, journal):
        part = journal.folder / "journal" / ".round-0001.part"
        part.mkdir()
        (part / "record.json").write_text("{")
        assert journal.load().round == 0
        journal.commit(record(1, 1), weights(1), {}, better=False)
        assert journal.load().round == 1


class TestCommit:
    def test_a_folder_that_can_not_be_written_is_an_error_and_leaves_the_round_before(self, journal):
        journal.commit(record(1, 1), weights(1), {}, better=False)
        blocked = journal.folder / "journal" / ".round-0002.part"
        blocked.write_text("a file where a folder is needed")
        with pytest.raises(JournalError, match="can't be written"):
            journal.commit(record(2, 2), weights(2), {}, better=False)
        assert journal.load().round == 1

    def test_begin_says_when_it_can_not_write(self, tmp_path):
        (tmp_path / "run").write_text("a file")
        with pytest.raises(JournalError, match="can't be written"):
            Journal(tmp_path / "run").begin(SPECS, weights(0))

    def test_the_best_arriving_weights_are_kept(self, journal):
        journal.commit(record(1, 1), weights(1), {}, better=True)
        journal.commit(record(2, 2), weights(2), {}, better=True)
        journal.commit(record(3, 3), weights(3), {}, better=False)
        from eucaim_fl.arrays import ArrayFile

        assert ArrayFile(journal.folder / "models" / "best.safetensors").read("w").tolist() == [1.0, 1.0]
        assert json.loads((journal.folder / "models" / "best.json").read_text()) == {"after_round": 1}

    def test_last_and_sites_and_pictures_are_kept(self, journal, tmp_path):
        journal.keep_last(weights(7))
        journal.keep_site("a", 3, 1, "f" * 64)
        journal.keep_pictures("a", np.zeros((1, 2, 2, 3), np.uint8))
        assert journal.sites()["a"] == {"patients": 3, "quarantined": 1, "cohort_sha256": "f" * 64}
        assert journal.pictures()["a"].shape == (1, 2, 2, 3)
        (tmp_path / "other").write_text("a file")
        lame = Journal(tmp_path / "other")
        with pytest.raises(JournalError, match="can't be written"):
            lame.keep_last(weights(1))
        with pytest.raises(JournalError, match="can't be written"):
            lame.keep_site("a", 1, 0, "f" * 64)
        with pytest.raises(JournalError, match="can't be written"):
            lame.keep_pictures("a", np.zeros((1, 2, 2, 3), np.uint8))
        with pytest.raises(JournalError, match="can't be written"):
            lame.spool(1, "a", "x", "{}", weights(1))


class TestSpool:
    def test_a_reply_survives_and_answers_only_the_weights_it_was_made_for(self, journal):
        journal.spool(1, "a", "digest", '{"r": 1}', weights(1))
        found = Journal(journal.folder).spooled(1, "a", "digest")
        assert found.metadata["report"] == '{"r": 1}'
        assert journal.spooled(1, "a", "another digest") is None
        assert journal.spooled(2, "a", "digest") is None

    def test_a_reply_of_before_the_machine_restarted_is_not_trusted(self, journal, monkeypatch):
        journal.spool(1, "a", "digest", "{}", weights(1))
        monkeypatch.setattr("eucaim_fl.tracking.journal._boot", lambda: "another boot")
        assert journal.spooled(1, "a", "digest") is None

    def test_a_truncated_reply_is_not_used(self, journal):
        path = journal.spool(1, "a", "digest", "{}", weights(1)).path
        path.write_bytes(path.read_bytes()[:-1])
        assert journal.spooled(1, "a", "digest") is None

    def test_replies_go_when_their_round_is_complete(self, journal):
        path = journal.spool(1, "a", "digest", "{}", weights(1)).path
        journal.commit(record(1, 1), weights(1), {}, better=False)
        assert not path.exists()


class TestTheBest:
    def test_it_is_the_model_that_arrived_in_its_round(self, journal):
        first = replace(record(1, 1.5), arriving_sha256=arrays_sha256(weights(0)))
        journal.commit(first, weights(1.5), {}, better=True)
        assert journal.best(first)["w"].tolist() == [0.0, 0.0]

    def test_where_it_is_nowhere_that_is_said(self, journal):
        with pytest.raises(JournalError, match="The best model, which arrived in round 1, is not on the disk"):
            journal.best(record(1, 1.5))
        with pytest.raises(JournalError, match="can't be written"):
            journal.keep_best(record(9, 1.5))
