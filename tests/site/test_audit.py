"""The audit log can only be added to; what can't be written down stops its caller; questions cost what they answer."""

from __future__ import annotations

import datetime
import multiprocessing
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from eucaim_fl.errors import AuditError
from eucaim_fl.signing import PrivateKey
from eucaim_fl.site import audit, audit_base
from eucaim_fl.site.audit import AuditLog, AuditReader, Head, verify_log
from eucaim_fl.site.audit_base import AuditFiles, guarded, locked, record_of
from eucaim_fl.site.audit_chain import LARGEST_BODY_BYTES, LogIdentity, seal_record
from eucaim_fl.site.audit_reader import utc_text

pytestmark = pytest.mark.integration

KEY = PrivateKey.create()
PLAN, OTHER = "a" * 64, "b" * 64


def moment(text: str) -> datetime.datetime:
    return datetime.datetime.fromisoformat(text).replace(tzinfo=datetime.UTC)


class Clock:
    def __init__(self) -> None:
        self.now = moment("2026-03-01T12:00")

    def __call__(self) -> datetime.datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def log(tmp_path: Path, clock: Clock) -> AuditLog:
    return AuditLog(tmp_path / "audit", KEY, "a", clock=clock)


def decision(plan: str, verdict: str = "allow", permit: str | None = "P-1") -> dict[str, str | None]:
    return {"plan": plan, "verdict": verdict, "permit": permit}


def sent(plan: str, kind: str, number: int, size: int) -> dict[str, str | int]:
    return {"plan": plan, "kind": kind, "round": number, "bytes": size}


class TestAppending:
    def test_records_are_numbered_chained_and_intact(self, log: AuditLog) -> None:
        empty = log.head()
        assert empty.count == 0
        first = log.append("started", {"pid": 1})
        second = log.append("stopped", {"pid": 1})
        assert (first.count, second.count) == (1, 2)
        one, two = log.records()
        assert (one.previous, one.hash, two.previous, two.hash) == (empty.hash, first.hash, first.hash, second.hash)
        assert (one.kind, one.body, one.time) == ("started", {"pid": 1}, "2026-03-01T12:00:00.000000+00:00")
        assert log.head() == second
        assert verify_log(log.folder, KEY.public) == ()

    def test_another_process_s_records_are_followed(self, log: AuditLog) -> None:
        other = AuditLog(log.folder, KEY, "a")
        log.append("started", {})
        other.append("approved", {"plan": PLAN})
        assert log.append("stopped", {}).count == 3
        assert verify_log(log.folder, KEY.public, site="a") == ()

    def test_what_is_no_json_or_too_large_is_refused(self, log: AuditLog) -> None:
        deep: list[object] = []
        for _ in range(100_000):
            deep = [deep]
        for body in ({"x": float("nan")}, {"x": object()}, {"x": "\ud800"}, {"x": deep}):
            with pytest.raises(AuditError, match="no JSON"):
                log.append("started", body)  # type: ignore[arg-type]
        with pytest.raises(AuditError, match="too large"):
            log.append("started", {"x": "y" * LARGEST_BODY_BYTES})
        with pytest.raises(AuditError, match="kind is no word"):
            seal_record(KEY, "a", Head(0, "0" * 64), "", "Started!", {})
        assert log.head().count == 0

    def test_only_its_owner_may_read_it(self, log: AuditLog) -> None:
        log.append("started", {})
        assert log.folder.stat().st_mode & 0o077 == 0
        assert (log.folder / "audit.sqlite").stat().st_mode & 0o077 == 0

    def test_threads_take_turns(self, log: AuditLog) -> None:
        threads = [threading.Thread(target=lambda: [log.append("started", {}) for _ in range(5)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert log.head().count == 20
        assert verify_log(log.folder, KEY.public, [log.head()]) == ()

    @pytest.mark.parametrize("statement", ["UPDATE records SET kind = 'x'", "DELETE FROM records"])
    def test_accidents_are_stopped_by_the_database(self, log: AuditLog, statement: str) -> None:
        log.append("started", {})
        with (
            sqlite3.connect(log.folder / "audit.sqlite") as base,
            pytest.raises(sqlite3.IntegrityError, match="append"),
        ):
            base.execute(statement)
        base.close()

    def test_a_record_is_put_nowhere_but_at_the_end(self, log: AuditLog) -> None:
        log.append("started", {})
        with sqlite3.connect(log.folder / "audit.sqlite") as base:
            for number in (1, 3):
                with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                    base.execute("INSERT OR REPLACE INTO records VALUES (?, '', '', '{}', '', '', '')", (number,))
        base.close()


class TestWhatStopsIt:
    def test_a_log_that_is_held_is_waited_for_and_then_an_error(
        self, log: AuditLog, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(audit, "PATIENCE_S", 0.1)
        with locked(AuditFiles(log.folder), time.monotonic()):
            started = time.monotonic()
            with pytest.raises(AuditError, match="Another process has held"):
                log.append("started", {})
            assert time.monotonic() - started < 5
            with pytest.raises(AuditError, match="Another process has held"), locked(AuditFiles(log.folder), 0.0):
                pass
        assert log.append("started", {}).count == 1

    def test_a_database_that_is_held_is_an_error(self, log: AuditLog, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(audit_base, "PATIENCE_S", 0.1)
        base = sqlite3.connect(log.folder / "audit.sqlite", isolation_level=None)
        base.execute("BEGIN EXCLUSIVE")
        with pytest.raises(AuditError, match="Another process has held"):
            log.append("started", {})
        with pytest.raises(AuditError, match="Another process has held"):
            verify_log(log.folder, KEY.public)
        base.close()
        assert log.append("started", {}).count == 1

    def test_a_folder_that_can_not_be_written(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(AuditError, match="can't be read or written") as caught:
            AuditLog(tmp_path / "file" / "audit", KEY, "a")
        assert str(tmp_path) not in str(caught.value)
        with pytest.raises(AuditError, match="can't be read or written"), guarded(tmp_path):
            raise PermissionError(13, "no")
        with pytest.raises(AuditError, match="is damaged"), guarded(tmp_path):
            b"\xff".decode()  # as Python's sqlite3 does with a damaged schema

    def test_a_head_that_can_not_be_written_leaves_no_record(self, log: AuditLog) -> None:
        log.append("started", {})
        (log.folder / "head.next.json").mkdir()
        with pytest.raises(AuditError, match=r"Nothing can be written into the audit log\."):
            log.append("stopped", {})
        (log.folder / "head.next.json").rmdir()
        assert log.head().count == 1
        assert log.append("stopped", {}).count == 2

    @pytest.mark.federated
    @pytest.mark.parametrize("limit", [0, 5_000, 60_000])
    def test_a_full_disk_is_told_and_leaves_nothing_half_written(self, log: AuditLog, limit: int) -> None:
        """The system's limit on a file's size stands for the full disk; it strikes head, journal or database."""
        script = (
            "import resource, sys; from pathlib import Path\n"
            "from eucaim_fl.signing import PrivateKey; from eucaim_fl.site.audit import AuditLog\n"
            "log = AuditLog(Path(sys.argv[1]), PrivateKey.load(Path(sys.argv[2])), 'a')\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))\n"
            "try:\n"
            "    for _ in range(3): print(log.append('started', {'x': 'y' * 20_000}).count)\n"
            "except Exception as problem: print(type(problem).__name__, problem)\n"
        )
        key_file = log.folder.parent / "key.pem"
        KEY.save(key_file)
        log.append("started", {"pid": 7})
        words = [sys.executable, "-B", "-c", script, str(log.folder), str(key_file), str(limit)]
        output = subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()
        assert output[-1].startswith("AuditError "), output
        assert log.head().count == 1 + len(output) - 1
        assert verify_log(log.folder, KEY.public, [log.head()]) == ()
        assert AuditLog(log.folder, KEY, "a").append("stopped", {}).count == len(output) + 1

    @pytest.mark.federated
    def test_a_process_killed_at_any_moment_leaves_an_intact_log(self, log: AuditLog) -> None:
        context = multiprocessing.get_context("fork")
        for number in range(8):
            seen = context.Value("q", 0)
            child = context.Process(target=_append_for_ever, args=(log.folder, seen))
            child.start()
            while seen.value == 0:
                time.sleep(0.001)
            time.sleep(0.002 * number)
            assert child.pid is not None
            os.kill(child.pid, signal.SIGKILL)
            child.join()
            assert verify_log(log.folder, KEY.public) == ()
            assert AuditLog(log.folder, KEY, "a").head().count >= seen.value, "what was confirmed is there"


def _append_for_ever(folder: Path, seen: object) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    log = AuditLog(folder, KEY, "a")
    while True:
        seen.value = log.append("started", {}).count  # type: ignore[attr-defined]


class TestOpening:
    def test_a_log_ahead_of_its_head_is_a_crash_not_an_attack(
        self, log: AuditLog, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(audit, "_CHECKED_AT_OPENING", 3)
        old = (log.folder / "head.json").read_bytes()
        for _ in range(5):
            log.append("started", {})
        (log.folder / "head.json").write_bytes(old)
        assert verify_log(log.folder, KEY.public) == ()
        assert AuditLog(log.folder, KEY, "a").append("stopped", {}).count == 6

    def test_a_beginning_that_was_cut_short_is_begun_again(self, tmp_path: Path) -> None:
        (tmp_path / "audit").mkdir()
        (tmp_path / "audit" / "audit.sqlite").touch()
        assert AuditLog(tmp_path / "audit", KEY, "a").append("started", {}).count == 1
        (tmp_path / "audit" / "head.json").unlink()
        with pytest.raises(AuditError, match="was altered"):
            AuditLog(tmp_path / "audit", KEY, "a")

    def test_a_head_without_its_database_is_not_the_beginning_of_a_log(self, log: AuditLog) -> None:
        log.append("started", {})
        (log.folder / "audit.sqlite").unlink()
        with pytest.raises(AuditError, match="can't be read or written"):
            AuditLog(log.folder, KEY, "a")
        (log.folder / "audit.sqlite").touch()
        with pytest.raises(AuditError, match="was altered"):
            AuditLog(log.folder, KEY, "a")

    def test_another_site_s_or_key_s_log_is_not_continued(self, log: AuditLog) -> None:
        log.append("started", {})
        for key, site in ((KEY, "b"), (PrivateKey.create(), "a")):
            with pytest.raises(AuditError, match="another site or another key"):
                AuditLog(log.folder, key, site)

    def test_a_database_that_is_none_is_an_error_without_its_place(self, log: AuditLog) -> None:
        (log.folder / "audit.sqlite").write_bytes(b"no database, and long enough to be looked at" * 10)
        for call in (lambda: AuditLog(log.folder, KEY, "a"), log.head, lambda: log.append("started", {})):
            with pytest.raises(AuditError, match="is damaged") as caught:
                call()
            assert str(log.folder) not in str(caught.value)

    def test_an_end_that_was_cut_off_while_the_client_ran_is_noticed(self, log: AuditLog) -> None:
        files = [log.folder / "audit.sqlite", log.folder / "head.json"]
        log.append("started", {})
        old = [path.read_bytes() for path in files]
        log.append("stopped", {})
        for path, content in zip(files, old, strict=True):
            path.write_bytes(content)
        with pytest.raises(AuditError, match="was altered, so nothing is added"):
            log.append("started", {})


class TestQuestions:
    def test_the_last_decision_of_a_person_counts(self, log: AuditLog) -> None:
        assert log.approval(PLAN) is None
        log.append("approved", {"plan": PLAN, "by": "it"})
        assert log.approval(PLAN) == "approved"
        log.append("refused", {"plan": PLAN, "by": "it"})
        assert log.approval(PLAN) == "refused"
        assert log.approval(OTHER) is None

    def test_a_permit_s_plans_are_those_that_were_allowed(self, log: AuditLog) -> None:
        for body in (decision(PLAN), decision(PLAN), decision(OTHER), decision("c" * 64, "refuse")):
            log.append("decision", body)
        log.append("decision", decision("d" * 64, permit="P-2"))
        log.append("decision", decision("e" * 64, permit=None))
        assert log.permit_plans("P-1") == {PLAN, OTHER}
        assert log.permit_plans("P-2") == {"d" * 64}
        assert log.permit_plans("P-3") == frozenset()

    def test_what_left_for_a_plan(self, log: AuditLog) -> None:
        for body in (sent(PLAN, "hello", 0, 1), sent(PLAN, "round", 1, 10), sent(PLAN, "round", 2, 10)):
            log.append("sent", body)
        log.append("sent", sent(PLAN, "final", 3, 5))
        log.append("sent", sent(OTHER, "round", 9, 1000))
        found = log.sent(PLAN)
        assert (found.bytes, found.rounds) == (26, {1, 2})
        assert (log.sent("c" * 64).bytes, log.sent("c" * 64).rounds) == (0, frozenset())

    def test_a_day_is_that_of_the_asked_moment(self, log: AuditLog, clock: Clock) -> None:
        for when, size in (("2026-03-01T23:59:59", 1), ("2026-03-02T00:00", 10), ("2026-03-02T23:59:59", 100)):
            clock.now = moment(when)
            log.append("sent", sent(PLAN, "round", 1, size))
        assert log.sent_today(moment("2026-03-02T08:00")) == 110
        assert log.sent_today(moment("2026-03-03T08:00")) == 0
        east = datetime.timezone(datetime.timedelta(hours=2))
        assert log.sent_today(datetime.datetime(2026, 3, 2, 1, tzinfo=east)) == 11
        with pytest.raises(ValueError, match="time zone"):
            log.sent_today(datetime.datetime(2026, 3, 2))
        with pytest.raises(ValueError, match="time zone"):
            utc_text(datetime.datetime(2026, 3, 2))

    def test_the_hash_of_a_record_by_its_number(self, log: AuditLog) -> None:
        heads = [log.append("started", {"pid": number}) for number in range(3)]
        assert [log.hash_at(head.count) for head in heads] == [head.hash for head in heads]
        assert [log.hash_at(number) for number in (0, -1, 4, 2**53)] == [""] * 4

    def test_the_ledger_s_head_as_it_was_noted_last(self, log: AuditLog, clock: Clock) -> None:
        assert log.ledger_head() is None
        log.append("sent", sent(PLAN, "hello", 0, 1))
        assert log.ledger_head() is None  # a plan without noise notes none
        for count in (4, 7):  # in the same second
            log.append("sent", {**sent(PLAN, "round", count, 1), "ledger_count": count, "ledger": f"hash {count}"})
        assert log.ledger_head() == (7, "hash 7")
        clock.now += datetime.timedelta(days=1)
        log.append("sent", {**sent(OTHER, "round", 1, 1), "again": True})
        log.append("withheld", {**sent(PLAN, "round", 9, 1), "ledger_count": 9, "ledger": "hash 9"})
        assert log.ledger_head() == (7, "hash 7")
        log.append("sent", {**sent(OTHER, "round", 1, 1), "ledger_count": 8, "ledger": "hash 8"})
        assert AuditReader(log.folder).ledger_head() == (8, "hash 8")
        log.append("ledger_replaced", {"ledger_count": 2, "ledger": "hash 2", "lost_count": 8, "lost": "hash 8"})
        assert log.ledger_head() == (2, "hash 2")

    def test_how_often_a_question_was_allowed(self, log: AuditLog) -> None:
        for plan, kind, number, verdict in (
            (PLAN, "round", 1, "allow"), (PLAN, "round", 1, "allow"), (PLAN, "round", 1, "refuse"),
            (PLAN, "round", 2, "allow"), (PLAN, "final", 1, "allow"), (OTHER, "round", 1, "allow"),
        ):  # fmt: skip
            log.append("decision", {**decision(plan, verdict), "kind": kind, "round": number})
        log.append("sent", sent(PLAN, "round", 1, 10))
        assert log.times_asked(PLAN, "round", 1) == 2
        assert log.times_asked(PLAN, "round", 3) == log.times_asked("c" * 64, "round", 1) == 0

    def test_plans_that_were_allowed_ever_and_since(self, log: AuditLog, clock: Clock) -> None:
        for day, plan, verdict in ((1, PLAN, "allow"), (2, OTHER, "allow"), (2, OTHER, "allow"), (2, "c" * 64, "wait")):
            clock.now = moment(f"2026-03-0{day}")
            log.append("decision", decision(plan, verdict, permit=""))
        assert log.plans_allowed() == {PLAN, OTHER}
        assert log.plans_allowed(moment("2026-03-02")) == {OTHER}
        assert log.plans_allowed(moment("2026-03-03")) == frozenset()

    def test_records_by_plan_kind_time_and_number(self, log: AuditLog, clock: Clock) -> None:
        for day, kind, plan in ((1, "decision", PLAN), (2, "sent", PLAN), (3, "sent", OTHER), (4, "stopped", None)):
            clock.now = moment(f"2026-03-0{day}")
            log.append(kind, {} if plan is None else {"plan": plan})

        def numbers(**asked: object) -> list[int]:
            return [record.seq for record in log.records(**asked)]  # type: ignore[arg-type]

        assert numbers() == [1, 2, 3, 4]
        assert numbers(plan=PLAN) == [1, 2]
        assert numbers(kind="sent") == [2, 3]
        assert numbers(since=moment("2026-03-02"), until=moment("2026-03-04")) == [2, 3]
        assert numbers(before=3) == [1, 2]
        assert numbers(last=2) == [3, 4]
        assert numbers(kind="sent", last=1, before=3) == [2]
        assert numbers(plan="c" * 64, last=5) == []
        assert log.plans("b") == (OTHER,)
        assert log.plans("") == (PLAN, OTHER)

    def test_more_records_than_are_fetched_at_once(self, log: AuditLog, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("eucaim_fl.site.audit_reader._BATCH", 3)
        for _ in range(10):
            log.append("started", {"plan": PLAN})
        assert [record.seq for record in log.records(kind="started")] == list(range(1, 11))

    def test_they_are_answered_by_indexes(self, log: AuditLog) -> None:
        base = sqlite3.connect(log.folder / "audit.sqlite")
        asked: list[str] = []
        log._ask = lambda query, *values: asked.append((query, values)) or [[None, None, None]]  # type: ignore
        log.approval(PLAN)
        log.sent(PLAN)
        log.sent_today(moment("2026-03-02"))
        log._ask = lambda query, *values: asked.append((query, values)) or []  # type: ignore
        log.permit_plans("P-1")
        log.hash_at(1)
        log.plans_allowed(moment("2026-03-02"))
        list(log.records(kind="sent"))
        list(log.records(plan=PLAN))
        log.ledger_head()
        log._ask = lambda query, *values: asked.append((query, values)) or [[0]]  # type: ignore
        log.times_asked(PLAN, "round", 1)
        for query, values in asked:
            steps = [row[3] for row in base.execute(f"EXPLAIN QUERY PLAN {query}", values)]
            assert "INDEX" in steps[0] or "PRIMARY KEY" in steps[0], (query, steps)
        base.close()
        assert len(asked) == 11


class TestReading:
    def test_it_needs_no_key_and_a_log(self, log: AuditLog, tmp_path: Path) -> None:
        head = log.append("started", {"pid": 1})
        reader = AuditReader(log.folder)
        assert (reader.head(), reader.identity()) == (head, LogIdentity("a", KEY.public))
        span = reader.span()
        assert span is not None
        assert [record.seq for record in span] == [1, 1]
        with pytest.raises(AuditError, match="no audit log here"):
            AuditReader(tmp_path)

    def test_an_empty_log_has_the_head_of_its_site_and_key(self, log: AuditLog) -> None:
        reader = AuditReader(log.folder)
        assert reader.head() == LogIdentity("a", KEY.public).start == Head(0, log.head().hash)
        assert reader.head() != LogIdentity("b", KEY.public).start
        assert reader.span() is None
        assert list(reader.records()) == []

    def test_a_folder_that_may_not_be_written_can_be_read(self, log: AuditLog, monkeypatch: pytest.MonkeyPatch) -> None:
        log.append("started", {})
        monkeypatch.setattr(audit_base.os, "access", lambda *_: False)
        assert AuditReader(log.folder).head().count == 1
        assert verify_log(log.folder, KEY.public) == ()

    def test_a_damaged_one_is_an_error_at_every_question(self, log: AuditLog) -> None:
        log.append("started", {"plan": PLAN})
        reader = AuditReader(log.folder)
        (log.folder / "audit.sqlite").write_bytes(b"no database, and long enough to be looked at" * 10)
        with pytest.raises(AuditError, match="damaged"):
            reader.identity()
        with pytest.raises(AuditError, match="damaged"):
            reader.head()
        with pytest.raises(AuditError, match="damaged"):
            reader.span()
        with pytest.raises(AuditError, match="damaged"):
            list(reader.records())
        with pytest.raises(AuditError, match="damaged"):
            reader.approval(PLAN)
        with pytest.raises(AuditError, match="damaged"):
            reader.permit_plans("P-1")
        with pytest.raises(AuditError, match="damaged"):
            reader.sent(PLAN)
        with pytest.raises(AuditError, match="damaged"):
            reader.sent_today(moment("2026-03-02"))
        with pytest.raises(AuditError, match="damaged"):
            reader.plans("a")
        with pytest.raises(AuditError, match="damaged"):
            reader.ledger_head()
        with pytest.raises(AuditError, match="damaged"):
            reader.hash_at(1)
        with pytest.raises(AuditError, match="damaged"):
            reader.times_asked(PLAN, "round", 1)
        with pytest.raises(AuditError, match="damaged"):
            reader.plans_allowed()

    def test_a_damaged_index_leads_nobody_in_circles(self, log: AuditLog, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(log, "_ask", lambda *_: [("b" * 64,)])
        with pytest.raises(AuditError, match="was altered"):
            log.permit_plans("P-1")
        monkeypatch.setattr(log, "_ask", lambda *_: [(1, "", "started", "{}", "", "", "")])
        with pytest.raises(AuditError, match="was altered"):
            list(log.records())

    def test_a_body_that_is_no_object_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(AuditError, match="a record can't be read"):
            record_of((1, "", "started", "[", "", "", ""), tmp_path)

    def test_a_log_of_another_version_is_an_error(self, log: AuditLog) -> None:
        with sqlite3.connect(log.folder / "audit.sqlite") as base:
            base.execute("DROP TRIGGER about_update")
            base.execute("UPDATE about SET schema = 'eucaim-fl-audit/9'")
        base.close()
        with pytest.raises(AuditError, match="another version"):
            AuditReader(log.folder).identity()
