"""Whatever is done to a log's files is found; each case edits them as an attacker with full access would."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eucaim_fl.errors import AuditError
from eucaim_fl.signing import PrivateKey, canonical_json
from eucaim_fl.site.audit import AuditLog, AuditRecord, Head, verify_log
from eucaim_fl.site.audit_base import create, text_row
from eucaim_fl.site.audit_chain import ChainCheck, LogIdentity, Witness, read_head, seal_record, sign_head

pytestmark = pytest.mark.integration

KEY, FOREIGN = PrivateKey.create(), PrivateKey.create()
COUNT = 7


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[Head, ...]]:
    """A log of seven records, and the head after each of them."""
    log = AuditLog(tmp_path_factory.mktemp("site") / "audit", KEY, "a")
    return log.folder, tuple(log.append("decision", {"plan": "a" * 64, "round": n}) for n in range(1, COUNT + 1))


@pytest.fixture
def folder(original: tuple[Path, tuple[Head, ...]], tmp_path: Path) -> Path:
    return Path(shutil.copytree(original[0], tmp_path / "audit"))


@pytest.fixture
def heads(original: tuple[Path, tuple[Head, ...]]) -> tuple[Head, ...]:
    return original[1]


def tamper(folder: Path, *statements: str | tuple[str, tuple[object, ...]]) -> None:
    """Edit the database without its guards, and put them back as if nothing had happened."""
    base = sqlite3.connect(folder / "audit.sqlite", isolation_level=None)
    guards = base.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
    for name, _ in guards:
        base.execute(f"DROP TRIGGER {name}")
    for one in statements:
        base.execute(*((one,) if isinstance(one, str) else one))
    for _, sql in guards:
        base.execute(sql)
    base.close()


def rebuilt(folder: Path, key: PrivateKey, *, from_record: int, signed: bool = True, site: str = "a") -> Head:
    """Change a record and chain all that follow anew, and the signed head too; without `signed` signatures stay."""
    base = sqlite3.connect(folder / "audit.sqlite")
    rows = base.execute("SELECT * FROM records ORDER BY seq").fetchall()
    base.close()
    previous = rows[from_record - 2][5] if from_record > 1 else LogIdentity(site, key.public).start.hash
    changes: list[tuple[str, tuple[object, ...]]] = []
    for seq, time, kind, body, _, _, signature in rows[from_record - 1 :]:
        value = json.loads(body) | ({"round": 99} if seq == from_record else {})
        record = seal_record(key, site, Head(seq - 1, previous), time, kind, value)
        previous = record.hash
        parts = (canonical_json(value).decode(), record.previous, record.hash)
        changes.append(
            (
                "UPDATE records SET body = ?, previous = ?, hash = ?, signature = ? WHERE seq = ?",
                (*parts, record.signature if signed else signature, seq),
            )
        )
    tamper(folder, *changes)
    head = Head(len(rows), previous)
    if signed:
        (folder / "head.json").write_bytes(sign_head(key, site, head, "2026-03-01T12:00:00.000000+00:00"))
    return head


def faults(folder: Path, heads: tuple[Head, ...] = ()) -> str:
    return " ".join(verify_log(folder, KEY.public, heads, site="a"))


FALSE_HASH = "UPDATE records SET hash = printf('%064d', 0) WHERE seq = 2"
FALSE_LINK = "UPDATE records SET previous = printf('%064d', 0) WHERE seq = 4"
SWAP = tuple(f"UPDATE records SET seq = {new} WHERE seq = {old}" for new, old in ((-1, 3), (3, 4), (4, -1)))  # noqa: S608
DOWN = tuple(f"UPDATE records SET seq = {n - 1} WHERE seq = {n}" for n in (5, 6, 7))  # noqa: S608
UP = tuple(f"UPDATE records SET seq = {n + 1} WHERE seq = {n}" for n in (7, 6, 5))  # noqa: S608
COPY = "time, kind, body, previous, hash, signature FROM records"
NUMBERS = "WITH RECURSIVE n(seq) AS (SELECT 1 UNION ALL SELECT seq + 1 FROM n) SELECT * FROM n"
OTHER_TABLES = ("no table", "an endless view as its table", "a table in which numbers may stand twice")
EDITS: dict[str, tuple[tuple[str, ...], str]] = {
    "a body": (
        ("UPDATE records SET body = replace(body, '\"round\":3', '\"round\":8') WHERE seq = 3",),
        "Record 3 was",
    ),
    "a body that is no JSON": (
        ("DROP INDEX records_plan", "DROP INDEX records_permit", "UPDATE records SET body = '{' WHERE seq = 3"),
        "Record 3 was changed",
    ),
    "a body in another form": (("UPDATE records SET body = body || ' ' WHERE seq = 3",), "Record 3 was changed"),
    "a time": (("UPDATE records SET time = '2020-01-01T00:00:00.000000+00:00' WHERE seq = 5",), "Record 5 was changed"),
    "a kind": (("UPDATE records SET kind = 'sent' WHERE seq = 2",), "Record 2 was changed"),
    "a signature": (("UPDATE records SET signature = 'AAAA' WHERE seq = 2",), "Record 2 is not signed by this site"),
    "a hash": (
        (FALSE_HASH,),
        "Record 2 was changed: its content does not fit its hash. Record 2 is not signed by this site's key. Record 3",
    ),
    "a previous hash": ((FALSE_LINK,), "Record 4 does not follow"),
    "a record in the middle taken out": (("DELETE FROM records WHERE seq = 4",), "Record 4 is missing."),
    "several records taken out": (("DELETE FROM records WHERE seq IN (3, 4)",), "Records 3 to 4 are missing."),
    "the beginning taken out": (("DELETE FROM records WHERE seq < 3",), "Records 1 to 2 are missing."),
    "one taken out and the rest renumbered": (
        (
            "DELETE FROM records WHERE seq = 4",
            *DOWN,
        ),
        "Record 4 does not follow the record before it",
    ),
    "the end cut off": (
        ("DELETE FROM records WHERE seq > 5",),
        "The log ends with record 5, but the log's signed head knows of 7",
    ),
    "everything cut off": (("DELETE FROM records",), "ends with record 0, but the log's signed head knows of 7"),
    "two records exchanged": (SWAP, "Records 3 to 5 do not follow"),
    "a record inserted": (
        (
            *UP,
            f"INSERT INTO records SELECT 5, {COPY} WHERE seq = 2",
        ),
        "Records 5 to 6 do not follow",
    ),
    "a record with the number 0": (
        (f"INSERT INTO records SELECT 0, {COPY} WHERE seq = 2",),
        "Record 0 stands in the log twice or in the wrong place.",
    ),
    "a record repeated at the end": (
        (f"INSERT INTO records SELECT 8, {COPY} WHERE seq = 7",),
        "Record 8 does not follow",
    ),
    "bytes where texts should be": (
        ("UPDATE records SET signature = x'05', time = x'ff' WHERE seq = 6",),
        "Record 6 can't be read as a record.",
    ),
    "bytes that are no text": (
        ("UPDATE records SET kind = cast(x'ff' AS TEXT) WHERE seq = 6",),
        "Record 6 was changed",
    ),
    "another site's name in it": (("UPDATE about SET site = 'b'",), "The log says that it is another site's."),
    "another key in it": (("UPDATE about SET key = 'ed25519:x'",), "The log says that it is of another key."),
    "another version in it": (("UPDATE about SET schema = 'x'",), "The log is of another version."),
    "no name in it": (("DELETE FROM about",), "does not say whose log it is"),
    "an index less": (("DROP INDEX records_plan",), "tables or indexes are not those of an audit log"),
    "a trigger more": (
        ("CREATE TRIGGER t AFTER INSERT ON records BEGIN UPDATE records SET kind = 'x'; END",),
        "guards against changes",
    ),
    "no table": (("DROP TABLE records",), "tables or indexes are not those of an audit log"),
    "an endless view as its table": (
        (
            "DROP TABLE records",
            f"CREATE VIEW records AS {NUMBERS}",
        ),
        "tables or indexes are not those of an audit log",
    ),
    "a table in which numbers may stand twice": (
        (
            "CREATE TABLE other AS SELECT * FROM records",
            "INSERT INTO other SELECT * FROM records WHERE seq = 3",
            "DROP TABLE records",
            "ALTER TABLE other RENAME TO records",
        ),
        "Record 3 stands in the log twice",
    ),
}


class TestTampering:
    def test_an_untouched_log_is_intact_and_agrees_with_all_heads(self, folder: Path, heads: tuple[Head, ...]) -> None:
        assert verify_log(folder, KEY.public, (*heads, LogIdentity("a", KEY.public).start), site="a") == ()
        tamper(folder)
        assert verify_log(folder, KEY.public, heads) == (), "the tests' own tool leaves no traces"

    @pytest.mark.parametrize("name", EDITS)
    def test_an_edit_is_found_and_its_record_named(self, folder: Path, name: str) -> None:
        statements, expected = EDITS[name]
        if name in OTHER_TABLES:
            base = sqlite3.connect(folder / "audit.sqlite", isolation_level=None)
            for statement in statements:
                base.execute(statement)
            base.close()
        else:
            tamper(folder, *statements)
        assert expected in faults(folder)

    def test_one_changed_record_is_one_fault(self, folder: Path) -> None:
        tamper(folder, *EDITS["a body"][0])
        assert verify_log(folder, KEY.public) == ("Record 3 was changed: its content does not fit its hash.",)

    def test_guards_that_are_gone_are_told(self, folder: Path) -> None:
        with sqlite3.connect(folder / "audit.sqlite") as base:
            base.execute("DROP TRIGGER records_delete")
        base.close()
        assert faults(folder) == "The database's guards against changes were removed or altered."
        with pytest.raises(AuditError, match="was altered"):
            AuditLog(folder, KEY, "a")

    def test_all_hashes_computed_anew_without_the_key(self, folder: Path) -> None:
        rebuilt(folder, KEY, from_record=3, signed=False)
        found = verify_log(folder, KEY.public)
        assert "Records 3 to 7 are not signed by this site's key." in found
        assert any("Record 7 is not the one that the log's signed head knows" in fault for fault in found)

    def test_records_signed_by_another_key(self, folder: Path) -> None:
        rebuilt(folder, FOREIGN, from_record=5)
        found = faults(folder)
        assert "Records 5 to 7 are not signed by this site's key." in found
        assert "The log's signed head was altered, or is that of another site or key." in found

    def test_a_chain_rebuilt_with_the_key_is_seen_by_the_coordinator_s_heads_only(
        self, folder: Path, heads: tuple[Head, ...]
    ) -> None:
        rebuilt(folder, KEY, from_record=3)
        assert verify_log(folder, KEY.public, heads[:2], site="a") == ()
        assert verify_log(folder, KEY.public, (heads[4],)) == (
            "Record 5 is not the one that the coordinator knows: the log was rebuilt or replaced.",
        )

    def test_an_older_copy_of_all_files_is_seen_by_the_coordinator_s_heads_only(
        self, tmp_path: Path, heads: tuple[Head, ...]
    ) -> None:
        log = AuditLog(tmp_path / "new", KEY, "a")
        log.append("decision", {"plan": "a" * 64, "round": 1})
        assert verify_log(log.folder, KEY.public) == ()
        found = verify_log(log.folder, KEY.public, heads)
        assert "The log ends with record 1, but the coordinator knows of 7: the end was removed" in found[-1]

    def test_another_site_s_log_with_its_own_key_in_its_place(self, tmp_path: Path) -> None:
        log = AuditLog(tmp_path / "b", FOREIGN, "b")
        log.append("started", {})
        found = faults(log.folder)
        assert "The log says that it is another site's." in found
        assert "Record 1 does not begin the log of this site and this key." in found

    def test_a_name_that_was_altered_everywhere_but_in_the_hashes(self, folder: Path) -> None:
        tamper(folder, "UPDATE about SET site = 'b'")
        found = " ".join(verify_log(folder, KEY.public))
        assert "Record 1 does not begin the log of this site and this key." in found
        assert "Records 1 to 7 were changed" in found


class TestFiles:
    def test_what_is_missing(self, folder: Path, tmp_path: Path) -> None:
        (folder / "head.json").unlink()
        assert faults(folder) == "The log's signed head is missing."
        (folder / "audit.sqlite").unlink()
        assert faults(folder) == "The log's database is missing. The log's signed head is missing."
        assert "database is missing" in faults(tmp_path / "nowhere")

    @pytest.mark.parametrize("content", [b"", b"garbage " * 1000, b"SQLite format 3\0" + b"\xff" * 5000])
    def test_a_database_of_garbage(self, folder: Path, content: bytes) -> None:
        (folder / "audit.sqlite").write_bytes(content)
        assert faults(folder)

    @pytest.mark.parametrize(
        "content", [b"", b"[" * 100_000, b"{}", b"[]", b'{"signature": 3}', b"\xff\xfe", b"x" * 10**6]
    )
    def test_a_head_of_garbage(self, folder: Path, content: bytes) -> None:
        (folder / "head.json").write_bytes(content)
        assert faults(folder) == "The log's signed head was altered, or is that of another site or key."

    def test_an_altered_head(self, folder: Path) -> None:
        text = (folder / "head.json").read_text()
        (folder / "head.json").write_text(text.replace('"count": 7', '"count": 3'))
        assert "signed head was altered" in faults(folder)

    def test_a_folder_in_the_place_of_a_file(self, folder: Path) -> None:
        (folder / "audit.sqlite").unlink()
        (folder / "audit.sqlite").mkdir()
        assert "database is missing" in faults(folder)

    def test_a_log_that_may_not_be_looked_at_is_no_fault_of_the_log(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: object) -> None:
            raise PermissionError(13, "no")

        monkeypatch.setattr("eucaim_fl.site.audit_verify.head_bytes", refuse)
        with pytest.raises(AuditError, match="can't be read or written"):
            verify_log(folder, KEY.public)

    def test_a_copy_from_the_middle_of_a_write_is_no_forgery(
        self, folder: Path, heads: tuple[Head, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Where the journal that lies beside the database may be rolled back, it is; elsewhere it is an error."""
        base = sqlite3.connect(folder / "audit.sqlite", isolation_level=None)
        base.execute("PRAGMA cache_size = 1")  # so that pages reach the file before the commit
        base.execute("BEGIN IMMEDIATE")
        for number in range(8, 60):
            base.execute("INSERT INTO records VALUES (?, ?, '', '{}', '', '', '')", (number, "x" * 4000))
        copy = Path(shutil.copytree(folder, tmp_path / "copy"))
        base.close()
        assert (copy / "audit.sqlite-journal").stat().st_size > 0
        monkeypatch.setattr(os, "access", lambda *_: False)
        with pytest.raises(AuditError, match="can't be read or written"):
            verify_log(copy, KEY.public, heads)
        monkeypatch.undo()
        assert verify_log(copy, KEY.public, heads) == ()

    @settings(max_examples=40, deadline=None)
    @given(data=st.data())
    def test_any_changed_byte_of_a_record_is_found_and_nothing_is_raised(
        self, original: tuple[Path, tuple[Head, ...]], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
    ) -> None:
        """Bytes in the records' own pages; others (free space, counters of SQLite's) need not matter."""
        folder = Path(shutil.copytree(original[0], tmp_path_factory.mktemp("copy") / "audit"))
        raw = bytearray((folder / "audit.sqlite").read_bytes())
        found = raw.find(b'{"plan":"aaaa')
        place = data.draw(st.integers(found, found + 60))
        raw[place] ^= data.draw(st.integers(1, 255))
        (folder / "audit.sqlite").write_bytes(raw)
        assert faults(folder)
        anywhere = data.draw(st.integers(0, len(raw) - 1))
        raw[anywhere : anywhere + 50] = data.draw(st.binary(min_size=50, max_size=50))
        (folder / "audit.sqlite").write_bytes(raw)
        verify_log(folder, KEY.public)

    def test_it_does_not_write(self, folder: Path) -> None:
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        faults(folder)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


class TestMany:
    def test_many_faults_are_few_sentences(self) -> None:
        identity = LogIdentity("a", KEY.public)
        check = ChainCheck(identity)
        for number in range(1, 400, 2):  # every second one is missing
            check.take((number + 1, "", "", "{}", "", "0" * 64, ""))
        found = check.faults()
        assert len(found) == 51
        assert found[-1].startswith("There are ")

    def test_garbage_rows_are_told_not_raised(self) -> None:
        check = ChainCheck(LogIdentity("a", KEY.public), [Witness(Head(0, "x"), "coordinator")])
        for row in ((), (None,) * 7, (1, 2, 3, 4, 5, 6, 7), ("1", "", "", "[" * 100_000, "", "0" * 64, "")):
            check.take(row)
        found = check.faults()
        assert "Records 1 to 3 can't be read as records." in found
        assert "Record 0 is not the one that the coordinator knows: the log was rebuilt or replaced." in found

    def test_more_records_than_are_read_at_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("eucaim_fl.site.audit_verify._BATCH", 2)
        log = AuditLog(tmp_path, KEY, "a")
        for _ in range(7):
            log.append("started", {})
        assert verify_log(tmp_path, KEY.public) == ()


class TestParts:
    def test_a_head_is_read_by_whom_it_is_for(self) -> None:
        head = Head(3, "a" * 64)
        raw = sign_head(KEY, "a", head, "2026-03-01T12:00:00.000000+00:00")
        assert read_head(raw, LogIdentity("a", KEY.public)) == head
        assert read_head(raw, LogIdentity("b", KEY.public)) is None
        assert read_head(raw, LogIdentity("a", FOREIGN.public)) is None

    def test_a_record_s_hash_is_that_of_the_canonical_json(self) -> None:
        record = AuditRecord(1, "t", "started", {"b": 1, "a": None}, "p", "", "")
        text = '{"body":{"a":null,"b":1},"kind":"started","previous":"p","seq":1,"site":"s","time":"t"}'
        assert LogIdentity("s", "k").hash_of(record) == hashlib.sha256(text.encode()).hexdigest()

    def test_a_row_of_a_foreign_hand_fits_the_table(self, tmp_path: Path) -> None:
        base = sqlite3.connect(tmp_path / "x", isolation_level=None)
        create(base, "a", KEY.public)
        record = seal_record(KEY, "a", LogIdentity("a", KEY.public).start, "t", "started", {})
        base.execute("INSERT INTO records VALUES (?, ?, ?, ?, ?, ?, ?)", text_row(record, b"{}"))
        assert base.execute("SELECT count(*) FROM records").fetchone() == (1,)
        base.close()
