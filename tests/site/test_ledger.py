"""The ledger that the hospital owns: paid before noise is drawn, over rounds, runs and restarts, by many processes."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from eucaim_fl.errors import LedgerError, PrivacyBudgetError
from eucaim_fl.privacy.accounting import Mechanism, epsilon
from eucaim_fl.privacy.budget import Budget
from eucaim_fl.site import ledger as ledger_module
from eucaim_fl.site.audit_base import AuditFiles
from eucaim_fl.site.ledger import Ledger, LedgerReader, Limits, Purchase, has_ledger, verify_ledger
from eucaim_fl.site.ledger_base import LEDGER
from eucaim_fl.site.ledger_books import Books
from eucaim_fl.site.ledger_reader import read_books

pytestmark = pytest.mark.integration

A, B = "a" * 64, "b" * 64
PATIENTS = [f"PATIENT-{number:03d}" for number in range(6)]
BUDGET = Budget(3.0, 1e-5)
"""Holds seven steps of `once`."""
OPEN = Limits(None, None, None, None)
PATIENT = Limits(None, BUDGET, None, None)


def once(steps: int = 1) -> Mechanism:
    return Mechanism(4.0, 1.0, steps)


def purchase(plan: str = A, use: str = "train", part: str = "") -> Purchase:
    return Purchase(plan, "name", "research", "x", "train" if use == "train" else "figures", True, part)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger", "a")


class TestTwoPhases:
    def test_rounds_take_from_what_was_reserved_and_nobody_else_can(self, ledger: Ledger) -> None:
        assert ledger.reserve(purchase(), once(6), PATIENTS, PATIENT, 6) == frozenset(PATIENTS)
        assert ledger.commit(purchase(B), 1, once(1), PATIENTS, PATIENT, 6) == frozenset(PATIENTS)
        with pytest.raises(PrivacyBudgetError, match="Too few patients"):
            ledger.commit(purchase(B), 2, once(1), PATIENTS, PATIENT, 1)
        for number in range(6):
            assert ledger.commit(purchase(), number, once(1), PATIENTS, PATIENT, 6) == frozenset(PATIENTS)
        with pytest.raises(PrivacyBudgetError, match="Too few patients"):
            ledger.commit(purchase(), 5, once(1), PATIENTS, PATIENT, 1)
        assert ledger.plan_mechanisms(A) == (once(6),)
        assert ledger.patient_mechanisms(PATIENTS[0]) == (once(7),)
        assert ledger.patient_mechanisms("somebody") == ()
        assert ledger.reservations() == ()

    def test_a_round_that_is_done_again_is_charged_again(self, ledger: Ledger) -> None:
        ledger.commit(purchase(), 1, once(), PATIENTS, OPEN, 1)
        ledger.commit(purchase(), 1, once(), PATIENTS, OPEN, 1)
        assert ledger.plan_mechanisms(A) == (once(2),)

    def test_composition_over_rounds_runs_and_a_restart_is_that_of_one_accountant(self, ledger: Ledger) -> None:
        sampled = Mechanism(1.1, 0.05, 10)
        for plan in (A, B):
            ledger.reserve(purchase(plan), sampled.times(3), PATIENTS, OPEN, 1)
            for number in range(3):
                Ledger(ledger.folder, "a").commit(purchase(plan), number, sampled, PATIENTS, OPEN, 1)
        ledger.commit(purchase(B, "figures"), 3, once(2), PATIENTS, OPEN, 1)
        found = Ledger(ledger.folder, "a").patient_mechanisms(PATIENTS[0])
        assert found == (Mechanism(1.1, 0.05, 60), once(2))
        assert epsilon(found, 1e-5) == epsilon([*[sampled] * 6, once(), once()], 1e-5)
        assert ledger.plan_mechanisms(B, "train") == (sampled.times(3),)

    def test_patients_without_budget_leave_and_the_others_go_on(self, ledger: Ledger) -> None:
        ledger.commit(purchase(B), 1, once(5), PATIENTS[:2], PATIENT, 1)
        assert ledger.preview(purchase(), once(3), PATIENTS, PATIENT, 1) == frozenset(PATIENTS[2:])
        assert ledger.reserve(purchase(), once(3), PATIENTS, PATIENT, 1) == frozenset(PATIENTS[2:])
        assert ledger.commit(purchase(), 1, once(3), PATIENTS, PATIENT, 1) == frozenset(PATIENTS[2:])
        sizes = {
            (one.patients, sum(m.steps for several in one.spent.values() for m in several))
            for one in ledger.histories()
        }
        assert sizes == {(4, 3), (2, 5)}
        with pytest.raises(PrivacyBudgetError, match="Too few patients"):
            ledger.preview(purchase(), once(3), PATIENTS, PATIENT, 5)

    def test_what_a_plan_held_is_free_when_it_ends(self, ledger: Ledger) -> None:
        ledger.reserve(purchase(), once(7), PATIENTS, PATIENT, 1)
        with pytest.raises(PrivacyBudgetError, match="Too few patients"):
            ledger.reserve(purchase(B), once(1), PATIENTS, PATIENT, 1)
        ledger.release(A)
        ledger.release(A)
        assert ledger.head().count == 2, "there was nothing left to free"
        assert ledger.reserve(purchase(B), once(7), PATIENTS, PATIENT, 6) == frozenset(PATIENTS)

    def test_to_reserve_the_same_again_writes_nothing_and_a_part_holds_its_own(self, ledger: Ledger) -> None:
        for part in ("validation", "test", "validation"):
            ledger.reserve(purchase(use="figures", part=part), once(2), PATIENTS, PATIENT, 1)
        assert ledger.head().count == 2
        assert [(one.what.part, one.mechanism, one.patients) for one in ledger.reservations()] == [
            ("test", once(2), 6),
            ("validation", once(2), 6),
        ]
        with pytest.raises(PrivacyBudgetError, match="Too few patients"):
            ledger.reserve(purchase(), once(4), PATIENTS, PATIENT, 1)

    def test_a_budget_that_was_lowered_stops_a_plan_that_had_reserved(self, ledger: Ledger) -> None:
        ledger.reserve(purchase(), once(7), PATIENTS, PATIENT, 1)
        with pytest.raises(PrivacyBudgetError, match="budget for the data"):
            ledger.commit(purchase(), 1, once(1), PATIENTS, Limits(None, None, Budget(2.0, 1e-5), None), 1)
        assert ledger.plan_mechanisms(A) == ()

    def test_what_makes_no_sense_is_not_written(self, ledger: Ledger) -> None:
        with pytest.raises(ValueError, match="at least one step"):
            ledger.reserve(purchase(), once(0), PATIENTS, OPEN, 1)
        with pytest.raises(ValueError, match="at least one step"):
            ledger.preview(purchase(), once(0), PATIENTS, OPEN, 1)
        with pytest.raises(ValueError, match="rounds are numbered"):
            ledger.commit(purchase(), -1, once(), PATIENTS, OPEN, 1)
        assert ledger.head().count == 0

    def test_names_of_patients_are_in_no_file(self, ledger: Ledger) -> None:
        ledger.commit(purchase(), 1, once(), PATIENTS, OPEN, 1)
        assert not any(b"PATIENT-" in path.read_bytes() for path in ledger.folder.iterdir())
        assert ledger.folder.stat().st_mode & 0o077 == 0
        assert all((ledger.folder / name).stat().st_mode & 0o077 == 0 for name in ("ledger.key", "ledger.sqlite"))


class TestSeveralAtOnce:
    def test_what_another_run_wrote_meanwhile_is_decided_on_anew(
        self, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rival = Ledger(ledger.folder, "a")
        rival.commit(purchase(B), 1, once(4), PATIENTS[:3], PATIENT, 1)
        assert ledger.commit(purchase(), 1, once(4), PATIENTS, PATIENT, 1) == frozenset(PATIENTS[3:])
        assert verify_ledger(ledger.folder) == ()
        monkeypatch.setattr(ledger, "_write", lambda *_: False)
        monkeypatch.setattr(ledger_module, "_ATTEMPTS", 3)
        with pytest.raises(LedgerError, match="all the time"):
            ledger.commit(purchase(), 1, once(1), PATIENTS[3:], PATIENT, 1)

    def test_a_budget_that_became_free_meanwhile_is_seen(self, ledger: Ledger) -> None:
        rival = Ledger(ledger.folder, "a")
        ledger.reserve(purchase(B), once(7), PATIENTS, PATIENT, 1)
        rival.release(B)
        assert ledger.commit(purchase(), 1, once(7), PATIENTS, PATIENT, 6) == frozenset(PATIENTS)

    def test_threads_together_stay_within_the_budget(self, ledger: Ledger) -> None:
        paid: list[int] = []

        def work() -> None:
            for number in range(3):
                try:
                    ledger.commit(purchase(), number, once(), PATIENTS, PATIENT, 6)
                except PrivacyBudgetError:
                    continue
                paid.append(number)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(paid) == 7
        assert ledger.plan_mechanisms(A) == (once(7),)

    def test_nothing_is_held_while_costs_are_computed(self, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
        rival = Ledger(ledger.folder, "a")
        real = ledger_module.affordable

        def slow(*given: object) -> frozenset[bytes]:
            monkeypatch.setattr(ledger_module, "affordable", real)
            rival.commit(purchase(B), 1, once(), PATIENTS, PATIENT, 1)
            return real(*given)  # type: ignore[arg-type]

        monkeypatch.setattr(ledger_module, "affordable", slow)
        ledger.commit(purchase(), 1, once(), PATIENTS, PATIENT, 1)
        assert ledger.patient_mechanisms(PATIENTS[0]) == (once(2),)


class TestOpening:
    def test_a_folder_without_one(self, tmp_path: Path) -> None:
        assert not has_ledger(tmp_path)
        with pytest.raises(LedgerError, match="no privacy ledger here"):
            LedgerReader(tmp_path)
        (tmp_path / "head.json").mkdir()
        with pytest.raises(LedgerError, match="can't be read or written"):
            has_ledger(tmp_path)

    def test_a_folder_that_can_not_be_written(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(LedgerError, match="can't be read or written") as caught:
            Ledger(tmp_path / "file" / "ledger", "a")
        assert str(tmp_path) not in str(caught.value)

    @pytest.mark.parametrize("name", ["ledger.key", "ledger.sqlite", "head.json"])
    def test_a_part_that_is_missing_is_never_begun_anew(self, ledger: Ledger, name: str) -> None:
        ledger.commit(purchase(), 1, once(), PATIENTS, OPEN, 1)
        (ledger.folder / name).unlink()
        assert has_ledger(ledger.folder)
        with pytest.raises(LedgerError, match="part of the privacy ledger is missing"):
            Ledger(ledger.folder, "a")
        if name == "ledger.key":
            (ledger.folder / "head.json").unlink()
            with pytest.raises(LedgerError, match="part of the privacy ledger is missing"):
                Ledger(ledger.folder, "a")

    def test_another_site_s_ledger_and_a_key_of_others_are_not_used(self, ledger: Ledger, tmp_path: Path) -> None:
        ledger.commit(purchase(), 1, once(), PATIENTS, OPEN, 1)
        with pytest.raises(LedgerError, match="another site or another key"):
            Ledger(ledger.folder, "b")
        other = Ledger(tmp_path / "other", "a")
        key = (ledger.folder / "ledger.key").read_bytes()
        (ledger.folder / "ledger.key").write_bytes((other.folder / "ledger.key").read_bytes())
        with pytest.raises(LedgerError, match="another site or another key"):
            Ledger(ledger.folder, "a")
        (ledger.folder / "ledger.key").write_bytes(key)
        (ledger.folder / "ledger.key").chmod(0o644)
        with pytest.raises(LedgerError, match="key of the privacy ledger can't be used"):
            Ledger(ledger.folder, "a")

    def test_a_write_ahead_log_that_was_deleted_is_noticed(self, ledger: Ledger, tmp_path: Path) -> None:
        """A look that is still open keeps SQLite from taking the write-ahead log into the database."""
        ledger.commit(purchase(), 1, once(), PATIENTS, OPEN, 1)
        look = sqlite3.connect(ledger.folder / "ledger.sqlite")
        look.execute("SELECT count(*) FROM records").fetchone()
        ledger.commit(purchase(), 2, once(), PATIENTS, OPEN, 1)
        copy = Path(shutil.copytree(ledger.folder, tmp_path / "copy"))
        look.close()
        whole = Path(shutil.copytree(copy, tmp_path / "whole"))
        assert Ledger(whole, "a").plan_mechanisms(A) == (once(2),)
        (copy / "ledger.sqlite-wal").unlink()
        (copy / "ledger.sqlite-shm").unlink()
        with pytest.raises(LedgerError, match="was altered, so nothing is charged"):
            Ledger(copy, "a")
        assert "ends with record 1, but the ledger's signed head knows of 2" in " ".join(verify_ledger(copy))

    def test_records_that_were_cut_off_while_it_was_open_stop_it(self, ledger: Ledger) -> None:
        names = ("ledger.sqlite", "head.json")
        ledger.commit(purchase(), 1, once(), PATIENTS, OPEN, 1)
        old = [(ledger.folder / name).read_bytes() for name in names]
        ledger.commit(purchase(), 2, once(), PATIENTS, OPEN, 1)
        for name, content in zip(names, old, strict=True):
            (ledger.folder / name).write_bytes(content)
        for call in changes(ledger):
            with pytest.raises(LedgerError, match="was altered, so nothing is"):
                call()

    def test_a_ledger_ahead_of_its_head_is_a_crash_not_an_attack(self, ledger: Ledger) -> None:
        old = (ledger.folder / "head.json").read_bytes()
        ledger.commit(purchase(), 1, once(), PATIENTS, OPEN, 1)
        (ledger.folder / "head.json").write_bytes(old)
        assert Ledger(ledger.folder, "a").plan_mechanisms(A) == (once(1),)


def changes(ledger: Ledger) -> list[Callable[[], object]]:
    return [
        lambda: ledger.reserve(purchase(), once(), PATIENTS, OPEN, 1),
        lambda: ledger.commit(purchase(), 1, once(), PATIENTS, OPEN, 1),
        lambda: ledger.release(A),
    ]


class TestDamage:
    def test_a_damaged_one_answers_nothing(self, ledger: Ledger) -> None:
        reader = LedgerReader(ledger.folder)
        (ledger.folder / "ledger.sqlite").write_bytes(b"no database, and long enough to be looked at" * 10)
        with pytest.raises(LedgerError, match="is damaged"):
            Ledger(ledger.folder, "a")
        with pytest.raises(LedgerError, match="is damaged"):
            ledger.reserve(purchase(), once(), PATIENTS, OPEN, 1)
        with pytest.raises(LedgerError, match="is damaged"):
            ledger.commit(purchase(), 1, once(), PATIENTS, OPEN, 1)
        with pytest.raises(LedgerError, match="is damaged"):
            ledger.release(A)
        with pytest.raises(LedgerError, match="is damaged"):
            ledger.preview(purchase(), once(), PATIENTS, OPEN, 1)
        with pytest.raises(LedgerError, match="is damaged"):
            ledger.patient_mechanisms("x")
        with pytest.raises(LedgerError, match="is damaged"):
            reader.identity()
        with pytest.raises(LedgerError, match="is damaged"):
            reader.head()
        with pytest.raises(LedgerError, match="is damaged"):
            reader.hash_at(1)
        with pytest.raises(LedgerError, match="is damaged"):
            list(reader.entries())
        with pytest.raises(LedgerError, match="is damaged"):
            reader.charges(A, 0)
        with pytest.raises(LedgerError, match="is damaged"):
            reader.rounds_committed(A)
        with pytest.raises(LedgerError, match="is damaged"):
            reader.plan_mechanisms(A)
        with pytest.raises(LedgerError, match="is damaged"):
            reader.mechanisms()
        with pytest.raises(LedgerError, match="is damaged"):
            reader.histories()
        with pytest.raises(LedgerError, match="is damaged"):
            reader.reservations()
        with pytest.raises(LedgerError, match="is damaged") as caught:
            reader.books()
        assert str(ledger.folder) not in str(caught.value)
        identity = ledger.identity()
        with pytest.raises(LedgerError, match="is damaged"):
            read_books(AuditFiles(ledger.folder, LEDGER), identity, Books(identity.start))

    def test_one_that_may_not_be_looked_at_is_an_error(self, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object) -> None:
            raise PermissionError(13, "no")

        monkeypatch.setattr("eucaim_fl.site.audit_verify.head_bytes", refuse)
        with pytest.raises(LedgerError, match="can't be read or written"):
            verify_ledger(ledger.folder)

    def test_a_head_that_can_not_be_written_leaves_no_record(self, ledger: Ledger) -> None:
        (ledger.folder / "head.next.json").mkdir()
        for call in changes(ledger)[:2]:
            with pytest.raises(LedgerError, match=r"Nothing can be written into the privacy ledger\."):
                call()
        (ledger.folder / "head.next.json").rmdir()
        assert ledger.head().count == 0
        assert ledger.commit(purchase(), 1, once(), PATIENTS, OPEN, 1) == frozenset(PATIENTS)

    @pytest.mark.federated
    @pytest.mark.parametrize("limit", [0, 20_000, 60_000])
    def test_a_full_disk_is_told_and_leaves_nothing_half_written(self, ledger: Ledger, limit: int) -> None:
        """The system's limit on a file's size stands for the full disk; it strikes head, journal or database."""
        script = (
            "import resource, sys; from pathlib import Path\n"
            "from eucaim_fl.privacy.accounting import Mechanism\n"
            "from eucaim_fl.site.ledger import Ledger, Limits, Purchase\n"
            "ledger = Ledger(Path(sys.argv[1]), 'a')\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))\n"
            "what = Purchase('a' * 64, 'n', 'research', 'x', 'train', True)\n"
            "try:\n"
            "    for n in range(9):\n"
            "        names = [f'{n} {m}' for m in range(500)]\n"
            "        ledger.commit(what, n, Mechanism(4.0, 1.0, 1), names, Limits(None, None, None, None), 1)\n"
            "        print(n)\n"
            "except Exception as problem: print(type(problem).__name__, problem)\n"
        )
        words = [sys.executable, "-B", "-c", script, str(ledger.folder), str(limit)]
        output = subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()
        assert output[-1].startswith("LedgerError "), output
        assert verify_ledger(ledger.folder) == ()
        again = Ledger(ledger.folder, "a")
        assert len(output) - 1 <= again.head().count <= len(output)
        assert again.commit(purchase(), 1, once(), PATIENTS, OPEN, 1) == frozenset(PATIENTS)


class TestReading:
    def test_questions_need_no_key(self, ledger: Ledger) -> None:
        ledger.reserve(purchase(), once(3), PATIENTS, OPEN, 1)
        ledger.commit(purchase(), 1, once(), PATIENTS, OPEN, 1)
        ledger.commit(purchase(), 2, once(), PATIENTS[:2], OPEN, 1)
        ledger.commit(purchase(use="figures"), 3, once(2), PATIENTS[:1], OPEN, 1)
        (ledger.folder / "ledger.key").unlink()
        reader = LedgerReader(ledger.folder)
        assert reader.identity() == ledger.identity()
        assert reader.head().hash == reader.hash_at(4)
        assert reader.hash_at(9) == ""
        assert [record.kind for record in reader.entries()] == ["reserved", "committed", "committed", "committed"]
        assert list(reader.entries(B)) == []
        assert [(one.what.use, one.round, one.mechanism, one.count) for one in reader.charges(A, 2)] == [
            ("train", 2, once(), 2),
            ("figures", 3, once(2), 1),
        ]
        assert reader.charges(A, 4) == reader.charges(B, 0) == ()
        assert reader.rounds_committed(A) == {1, 2}
        assert reader.plan_mechanisms(A, "train") == (once(2),)
        assert reader.mechanisms(dataset="x") == (once(4),)
        assert reader.mechanisms(purpose="research", held=True) == (once(5),)
        found = [(one.patients, one.spent[("research", A)]) for one in reader.histories()]
        assert found == [(4, (once(1),)), (1, (once(2),)), (1, (once(4),))]
        assert [one.mechanism for one in reader.reservations()] == [once(1)]

    def test_an_empty_one_has_the_head_of_its_site_and_key(self, ledger: Ledger) -> None:
        assert LedgerReader(ledger.folder).head() == ledger.identity().start
        assert ledger.histories() == ledger.reservations() == ledger.plan_mechanisms(A) == ()

    def test_a_folder_that_may_not_be_written_can_be_read(
        self, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ledger.commit(purchase(), 1, once(), PATIENTS, OPEN, 1)
        monkeypatch.setattr(os, "access", lambda *_: False)
        assert LedgerReader(ledger.folder).plan_mechanisms(A) == (once(),)


class TestIdlePlans:
    """A clock that tests set: the ledger says the time of its records by it."""

    @pytest.fixture
    def now(self) -> list[datetime]:
        return [datetime(2026, 3, 1, tzinfo=UTC)]

    @pytest.fixture
    def ledger(self, tmp_path: Path, now: list[datetime]) -> Ledger:
        return Ledger(tmp_path / "ledger", "a", clock=lambda: now[0])

    def test_what_they_hold_is_free_after_so_many_days_and_the_ledger_says_so(
        self, ledger: Ledger, now: list[datetime]
    ) -> None:
        ledger.reserve(purchase(B), once(6), PATIENTS, PATIENT, 6)
        now[0] += timedelta(days=30, microseconds=-1)
        ledger.release_idle(30, keep=A)
        with pytest.raises(PrivacyBudgetError, match="Too few patients"):
            ledger.reserve(purchase(), once(2), PATIENTS, PATIENT, 6)
        now[0] += timedelta(microseconds=1)
        ledger.release_idle(30, keep=A)
        assert ledger.reserve(purchase(), once(2), PATIENTS, PATIENT, 6) == frozenset(PATIENTS)
        assert [(one.kind, one.body["plan"]) for one in ledger.entries()][1:] == [("released", B), ("reserved", A)]
        assert verify_ledger(ledger.folder) == ()

    def test_whoever_comes_back_pays_as_far_as_the_budgets_hold_it(self, ledger: Ledger, now: list[datetime]) -> None:
        ledger.reserve(purchase(B), once(6), PATIENTS, PATIENT, 6)
        now[0] += timedelta(days=1)
        ledger.release_idle(1, keep=A)
        ledger.reserve(purchase(), once(5), PATIENTS, PATIENT, 6)
        for number in (1, 2):
            assert ledger.commit(purchase(B), number, once(), PATIENTS, PATIENT, 6) == frozenset(PATIENTS)
        with pytest.raises(PrivacyBudgetError, match="Too few patients"):
            ledger.commit(purchase(B), 3, once(), PATIENTS, PATIENT, 6)

    def test_a_charge_is_a_sign_of_life_and_the_plan_itself_is_kept(self, ledger: Ledger, now: list[datetime]) -> None:
        ledger.reserve(purchase(B), once(6), PATIENTS, OPEN, 6)
        ledger.reserve(purchase(), once(6), PATIENTS, OPEN, 6)
        now[0] += timedelta(days=1)
        ledger.commit(purchase(B), 1, once(), PATIENTS, OPEN, 6)
        ledger.release_idle(1, keep=A)
        assert [one.what.plan for one in ledger.reservations()] == [A, B]
        now[0] -= timedelta(days=400)  # a clock that was put back frees nothing
        ledger.release_idle(1, keep="c" * 64)
        assert len(ledger.reservations()) == 2

    def test_all_of_them_are_freed_however_many(self, ledger: Ledger, now: list[datetime]) -> None:
        for letter in "bcd":
            ledger.reserve(purchase(letter * 64), once(), PATIENTS, OPEN, 6)
            ledger.reserve(purchase(letter * 64, "figures", "test"), once(), PATIENTS, OPEN, 6)
        now[0] += timedelta(days=9)
        ledger.release_idle(9, keep="d" * 64)
        assert [one.kind for one in ledger.entries()][6:] == ["released", "released"]
        assert {one.what.plan for one in ledger.reservations()} == {"d" * 64}

    def test_a_ledger_that_can_not_be_read_frees_and_knows_nothing(self, ledger: Ledger) -> None:
        ledger.reserve(purchase(B), once(6), PATIENTS, OPEN, 6)
        (ledger.folder / "ledger.sqlite").write_bytes(b"spoilt")
        with pytest.raises(LedgerError, match="privacy ledger"):
            ledger.release_idle(1, keep=A)
        with pytest.raises(LedgerError, match="privacy ledger"):
            ledger.trained(PATIENTS)

    def test_who_ever_trained_is_known_by_name(self, ledger: Ledger) -> None:
        ledger.reserve(purchase(B), once(6), PATIENTS, OPEN, 6)
        assert ledger.trained(PATIENTS) == frozenset()
        ledger.commit(purchase(B), 1, once(), PATIENTS[:2], OPEN, 1)
        ledger.commit(purchase(use="figures"), 1, once(), PATIENTS[2:], OPEN, 1)
        assert ledger.trained([*PATIENTS[1:], "somebody"]) == {PATIENTS[1]}


class TestAmongReserved:
    def test_who_was_left_out_stays_out_when_all_that_was_reserved_is_used(self, tmp_path: Path) -> None:
        ledger, what = Ledger(tmp_path / "ledger", "a"), Purchase(A, "n", "research", "x", "train", True)
        once = Mechanism(4.0, 1.0, 1)
        assert ledger.among_reserved(what, ["p1", "p2"]) == {"p1", "p2"}
        ledger.reserve(what, once, ["p1", "p2"], OPEN, 1)
        assert ledger.among_reserved(what, ["p1", "p2", "p3"]) == {"p1", "p2"}
        ledger.commit(what, 1, once, ["p1", "p2"], OPEN, 1)
        assert not ledger.books().held
        assert ledger.among_reserved(what, ["p1", "p3"]) == {"p1"}
