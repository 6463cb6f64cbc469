"""Exports tell who, when, by which permit, what left; they quote nothing else, are signed, and are recorded."""

from __future__ import annotations

import csv
import datetime
import io
import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from eucaim_fl.errors import AuditError
from eucaim_fl.signing import PrivateKey
from eucaim_fl.site.audit import AuditLog, verify_log
from eucaim_fl.site.audit_export import EXPORT_SCHEMA, ExportScope, Format, export, export_is_genuine
from eucaim_fl.site.audit_words import Askers, line_of

pytestmark = pytest.mark.integration

KEY = PrivateKey.create()
PLAN, OTHER = "a" * 64, "b" * 64
DATA = ("ds-5", "doi:10.1/x")
ASKED = {"holder": "=university", "permit": "P-1", "purpose": "scientific_research"}


class Clock:
    day = 0

    def __call__(self) -> datetime.datetime:
        self.day += 1
        return datetime.datetime(2026, 3, (self.day + 1) // 2, 12, tzinfo=datetime.UTC)


@pytest.fixture
def log(tmp_path: Path) -> AuditLog:
    """Seven records on seven days: a plan with a permit is answered twice, one without is withheld."""
    log = AuditLog(tmp_path / "audit", KEY, "a", clock=Clock())
    log._clock.day = 0  # type: ignore[attr-defined]
    answer = {"bytes": 1000, "arrays": 5, "patients": 70, "digest": "d" * 64, "update_norm": 1.5, "epsilon": None}
    metrics = {"metrics": {"validation": ["dice", "hd95_mm"]}, "pictures": 2}
    log.append("started", {"version": "0.1.0", "policy_sha256": "c" * 64, "pid": 5})
    log.append("decision", {"plan": PLAN, "kind": "round", "round": 1, "verdict": "allow", "reasons": [], **ASKED})
    log.append("sent", {"plan": PLAN, "kind": "round", "round": 1, **answer, **metrics, "secret": "/srv/PATIENT-7"})
    log.append("approved", {"plan": OTHER, "by": "it-night"})
    log.append("decision", {"plan": OTHER, "kind": "hello", "round": 0, "verdict": "refuse", "reasons": ["hours"]})
    log.append("withheld", {"plan": OTHER, "kind": "hello", "round": 0, "code": "EFL310", "reasons": ["/srv/data/x"]})
    log.append("sent", {"plan": PLAN, "kind": "final", "round": 2, **answer})
    return log


def day(number: int) -> datetime.datetime:
    return datetime.datetime(2026, 3, number, tzinfo=datetime.UTC)


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


class TestEhds:
    def test_a_line_says_who_when_by_what_right_what_data_and_what_left(self, log: AuditLog, tmp_path: Path) -> None:
        head = log.head()
        assert export(log, tmp_path / "x", "ehds", ExportScope(DATA)) == head
        start, *lines, end = lines_of(tmp_path / "x")
        assert (start["schema"], start["site"], start["key"]) == (EXPORT_SCHEMA, "a", KEY.public)
        assert start["head"] == {"count": 7, "hash": head.hash}
        assert [line["operation"] for line in lines] == [record.kind for record in log.records(before=8)]
        sent = lines[2]
        assert (sent["user"], sent["permit"], sent["purpose"]) == ("=university", "P-1", "scientific_research")
        assert (sent["plan"], sent["data"], sent["asked"]) == (PLAN, list(DATA), "to train round 1")
        assert sent["left"] == {
            "bytes": 1000,
            "arrays": 5,
            "patients": 70,
            "metrics": {"validation": ["dice", "hd95_mm"]},
            "pictures": 2,
            "digest": "d" * 64,
            "update_norm": 1.5,
            "epsilon": None,
            "delta": None,
            "ledger_count": None,
            "ledger": None,
            "record": None,
        }
        assert (lines[3]["decided_by"], lines[4]["outcome"], lines[4]["reasons"]) == ("it-night", "refused", ["hours"])
        assert lines[0]["data"] == []
        assert set(end) == {"sha256", "signature"}

    def test_a_period_knows_who_asked_before_it(self, log: AuditLog, tmp_path: Path) -> None:
        first = next(log.records(before=8, last=1)).time
        since = datetime.datetime.fromisoformat(first)
        export(log, tmp_path / "x", "ehds", ExportScope(since=since))
        _, line, _ = lines_of(tmp_path / "x")
        assert (line["number"], line["user"]) == (7, "=university")


class TestTracer:
    def test_one_call_a_plan_for_which_something_left(self, log: AuditLog, tmp_path: Path) -> None:
        export(log, tmp_path / "x", "tracer", ExportScope(DATA))
        found = json.loads((tmp_path / "x").read_text())
        assert found["calls"] == [
            {
                "USE_DATASETS": {
                    "userId": "=university",
                    "datasetsIds": list(DATA),
                    "toolName": "eucaim_fl",
                    "toolVersion": "0.1.0",
                }
            }
        ]
        assert found["head"]["count"] == 7

    def test_without_a_permit_nobody_is_named(self, tmp_path: Path) -> None:
        log = AuditLog(tmp_path / "audit", KEY, "a")
        log.append("sent", {"plan": PLAN, "bytes": 1})
        export(log, tmp_path / "x", "tracer", ExportScope())
        (call,) = json.loads((tmp_path / "x").read_text())["calls"]
        assert (call["USE_DATASETS"]["userId"], call["USE_DATASETS"]["toolVersion"]) == (None, None)


class TestCsv:
    def test_a_spreadsheet_gets_rows_and_no_formulas(self, log: AuditLog, tmp_path: Path) -> None:
        export(log, tmp_path / "x", "csv", ExportScope(DATA))
        rows = list(csv.reader(io.StringIO((tmp_path / "x").read_text())))
        assert (rows[0][0], rows[-1][0], len(rows)) == ("export", "signature", 10)
        row = dict(zip(rows[1], rows[4], strict=True))
        assert (row["user"], row["bytes"], row["metrics"]) == ("'=university", "1000", "validation: dice hd95_mm")
        assert (row["digest"], row["data"], row["epsilon"]) == ("d" * 64, "ds-5 doi:10.1/x", "")


@pytest.mark.parametrize("form", ["ehds", "tracer", "csv"])
class TestEveryFormat:
    def test_it_is_signed_and_an_altered_one_is_not_genuine(self, log: AuditLog, tmp_path: Path, form: Format) -> None:
        path = tmp_path / "x"
        for _ in range(4):  # signatures are as good as random: one may begin with a sign that is marked
            export(log, path, form, ExportScope(DATA))
            assert export_is_genuine(path, KEY.public)
        assert not export_is_genuine(path, PrivateKey.create().public)
        text = path.read_text()
        for altered in (text.replace("ds-5", "ds-6", 1), text[:-20], "", "{", "x", "[" * 50_000, text * 2):
            path.write_text(altered)
            assert not export_is_genuine(path, KEY.public)

    def test_it_quotes_no_paths_and_nothing_that_is_not_listed(
        self, log: AuditLog, tmp_path: Path, form: Format
    ) -> None:
        export(log, tmp_path / "x", form, ExportScope(DATA))
        text = (tmp_path / "x").read_text()
        assert "/srv" not in text
        assert "PATIENT" not in text
        assert str(tmp_path) not in text

    def test_it_is_recorded(self, log: AuditLog, tmp_path: Path, form: Format) -> None:
        export(log, tmp_path / "x", form, ExportScope(since=day(1)))
        record = next(log.records(last=1))
        assert (record.kind, record.body["format"], record.seq) == ("exported", form, 8)
        assert verify_log(log.folder, KEY.public, site="a") == ()

    def test_one_that_can_not_be_written_or_recorded_is_not_there(
        self, log: AuditLog, tmp_path: Path, form: Format, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "folder").write_text("a file")
        with pytest.raises(AuditError, match="export can't be written") as caught:
            export(log, tmp_path / "folder" / "x", form, ExportScope())
        assert str(tmp_path) not in str(caught.value)

        def refuse(*_: object) -> None:
            raise AuditError("The disk is full.")

        monkeypatch.setattr(log, "append", refuse)
        before = sorted(tmp_path.iterdir())
        with pytest.raises(AuditError, match="disk is full"):
            export(log, tmp_path / "x", form, ExportScope())
        assert sorted(tmp_path.iterdir()) == before

    def test_an_altered_log_is_not_signed_anew(self, log: AuditLog, tmp_path: Path, form: Format) -> None:
        with sqlite3.connect(log.folder / "audit.sqlite") as base:
            sql = base.execute("SELECT sql FROM sqlite_master WHERE name = 'records_update'").fetchone()[0]
            base.execute("DROP TRIGGER records_update")
            base.execute("UPDATE records SET kind = 'stopped' WHERE seq = 1")
            base.execute(sql)
        base.close()
        with pytest.raises(AuditError, match="was altered, so it is not exported"):
            export(log, tmp_path / "x", form, ExportScope())
        assert not (tmp_path / "x").exists()


class TestWords:
    def test_what_looks_like_a_path_or_is_too_long_is_not_shown(self, tmp_path: Path) -> None:
        log = AuditLog(tmp_path / "audit", KEY, "a")
        reasons = ["read /etc/passwd", "C:\\data", "~/x", "../x", "x" * 400, "mean/std below 5", "red\x1b[31m", 7]
        log.append("withheld", {"plan": PLAN, "reasons": reasons, "code": "a b"})
        (record,) = log.records()
        line = line_of(record, Askers(log).of(record))
        assert line.reasons == (*["(not shown)"] * 6, "mean/std below 5", "red [31m", "(not shown)")

    def test_odd_bodies_are_borne(self, tmp_path: Path) -> None:
        log = AuditLog(tmp_path / "audit", KEY, "a")
        odd: dict[str, Any] = {"plan": 3, "verdict": [], "kind": {}, "round": True, "bytes": -1, "metrics": [1]}
        for kind in ("sent", "decision", "something_else"):
            log.append(kind, odd | {"arrays": "x", "digest": "y", "reasons": "z", "holder": 5})
        askers = Askers(log)
        found = [line_of(record, askers.of(record)) for record in log.records()]
        assert [line.plan for line in found] == [None] * 3
        assert found[0].left is not None
        assert (found[0].left.bytes, found[0].left.metrics, found[2].happened) == (0, {}, "something else")


class TestReadingAnExport:
    def test_one_that_is_missing_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(AuditError, match="export can't be read"):
            export_is_genuine(tmp_path / "nothing", KEY.public)
