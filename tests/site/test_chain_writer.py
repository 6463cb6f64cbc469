"""A chained log of any kind is written under a lock, one transaction a record, and stops where it was altered."""

from __future__ import annotations

import datetime
import time
from pathlib import Path

import pytest

from eucaim_fl.errors import AuditError, LedgerError
from eucaim_fl.signing import PrivateKey
from eucaim_fl.site.audit_base import AuditFiles, locked
from eucaim_fl.site.audit_chain import Head, LogIdentity
from eucaim_fl.site.audit_verify import chain_faults
from eucaim_fl.site.chain_writer import ChainWriter
from eucaim_fl.site.ledger_base import LEDGER
from eucaim_fl.site.log_kind import AUDIT, LogKind

KEY = PrivateKey.create()
KINDS = {"audit log": AUDIT, "privacy ledger": LEDGER}


def writer_of(folder: Path, kind: LogKind = AUDIT) -> ChainWriter:
    now = datetime.datetime(2026, 3, 1, tzinfo=datetime.UTC)
    return ChainWriter(AuditFiles(folder, kind), KEY, LogIdentity("a", KEY.public, kind), lambda: now)


class TestTheWriter:
    @pytest.mark.parametrize("name", KINDS)
    def test_what_it_adds_is_intact_and_of_its_own_kind(self, name: str, tmp_path: Path) -> None:
        kind, other = KINDS[name], KINDS[next(iter(KINDS.keys() - {name}))]
        writer = writer_of(tmp_path, kind)
        with writer.writing(1.0) as base:
            writer.begin(base, 1)
        with writer.writing(1.0) as base:
            first = writer.add(base, writer.checked_end(base, 1), "started", {})
        with writer.writing(1.0) as base:
            assert writer.checked_end(base, 5) == Head(first.seq, first.hash)
            assert base.execute("PRAGMA journal_mode").fetchone()[0].upper() == kind.journal
        files = AuditFiles(tmp_path, kind)
        assert chain_faults(files, KEY.public, [Head(first.seq, first.hash)], site="a") == ()
        files.base.rename(tmp_path / other.file)
        assert chain_faults(AuditFiles(tmp_path, other), KEY.public), "no log passes for one of the other kind"

    def test_it_stops_where_the_log_is_held_or_can_not_be_written(self, tmp_path: Path) -> None:
        writer, folder = writer_of(tmp_path / "log"), tmp_path / "log"
        with pytest.raises(AuditError, match="can't be read or written"), writer.transaction():
            pass
        folder.mkdir()
        with (
            locked(AuditFiles(folder), time.monotonic() + 1),
            pytest.raises(AuditError, match="Another process has held"),
            writer.writing(0.0),
        ):
            pass

    def test_it_adds_nothing_to_a_log_that_was_altered(self, tmp_path: Path) -> None:
        writer = writer_of(tmp_path)
        with writer.writing(1.0) as base:
            writer.begin(base, 1)
            with pytest.raises(AuditError, match="no JSON"):
                writer.add(base, writer.checked_end(base, 1), "started", {"x": float("nan")})
        (tmp_path / "head.json").write_text("{}")
        with writer.writing(1.0) as base:
            with pytest.raises(AuditError, match="was altered, so nothing is added to it"):
                writer.checked_end(base, 1)
            with pytest.raises(AuditError, match="was altered, so nothing is added to it"):
                writer.begin(base, 1)

    def test_a_log_that_can_not_be_looked_at_is_an_error(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object) -> None:
            raise PermissionError(13, "no")

        monkeypatch.setattr("eucaim_fl.site.audit_verify.head_bytes", refuse)
        with pytest.raises(AuditError, match="The audit log can't be read"):
            chain_faults(AuditFiles(tmp_path), KEY.public)
        with pytest.raises(LedgerError, match="The privacy ledger can't be read"):
            chain_faults(AuditFiles(tmp_path, LEDGER), KEY.public)

    def test_a_write_ahead_log_is_read_where_nothing_may_be_written(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        writer = writer_of(tmp_path, LEDGER)
        with writer.writing(1.0) as base:
            writer.begin(base, 1)
        before = sorted(tmp_path.iterdir())
        monkeypatch.setattr("eucaim_fl.site.audit_base.os.access", lambda *_: False)
        assert chain_faults(AuditFiles(tmp_path, LEDGER), KEY.public) == ()
        assert sorted(tmp_path.iterdir()) == before
