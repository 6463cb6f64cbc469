"""Whatever is done to a ledger's files is found; each case edits them as an attacker with full access would."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest

from eucaim_fl.errors import LedgerError
from eucaim_fl.privacy.accounting import Mechanism
from eucaim_fl.site.ledger import Ledger, LedgerHead, Limits, Purchase, verify_ledger

pytestmark = pytest.mark.integration

WHAT = Purchase("a" * 64, "name", "research", "x", "train", True)
OPEN = Limits(None, None, None, None)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[LedgerHead, ...]]:
    """A ledger of six records about two sets of patients, and the head after each of them."""
    ledger, heads = Ledger(tmp_path_factory.mktemp("site") / "ledger", "a"), []
    ledger.reserve(WHAT, Mechanism(4.0, 1.0, 4), ["p1", "p2"], OPEN, 1)
    heads.append(ledger.head())
    for number in range(4):
        ledger.commit(WHAT, number, Mechanism(4.0, 1.0, 1), ["p1", "p2"][: 1 + number % 2], OPEN, 1)
        heads.append(ledger.head())
    ledger.reserve(WHAT, Mechanism(4.0, 1.0, 9), ["p1"], OPEN, 1)
    return ledger.folder, (*heads, ledger.head())


@pytest.fixture
def folder(original: tuple[Path, tuple[LedgerHead, ...]], tmp_path: Path) -> Path:
    return Path(shutil.copytree(original[0], tmp_path / "ledger"))


def tamper(folder: Path, *statements: str) -> None:
    """Edit the database without its guards, and put them back as if nothing had happened."""
    base = sqlite3.connect(folder / "ledger.sqlite", isolation_level=None)
    guards = base.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
    for name, _ in guards:
        base.execute(f"DROP TRIGGER {name}")
    for one in statements:
        base.execute(one)
    for _, sql in guards:
        base.execute(sql)
    base.close()


DOWN = tuple(f"UPDATE records SET seq = {n - 1} WHERE seq = {n}" for n in (4, 5, 6))  # noqa: S608
LESS_NOISE = "UPDATE records SET body = replace(body, '\"steps\":1', '\"steps\":0') WHERE seq = 3"
EDITS: dict[str, tuple[tuple[str, ...], str]] = {
    "fewer steps": ((LESS_NOISE,), "Record 3 was changed: its content does not fit its hash."),
    "a record taken out": (("DELETE FROM records WHERE seq = 3",), "Record 3 is missing."),
    "one taken out and the rest renumbered": (
        (
            "DELETE FROM records WHERE seq = 3",
            *DOWN,
        ),
        "Record 3 does not follow the record before it",
    ),
    "two exchanged": (
        tuple(f"UPDATE records SET seq = {new} WHERE seq = {old}" for new, old in ((-1, 3), (3, 4), (4, -1))),  # noqa: S608
        "do not follow the records before them",
    ),
    "one inserted": (
        ("INSERT INTO records SELECT 7, time, kind, body, previous, hash, signature FROM records WHERE seq = 2",),
        "Record 7 does not follow",
    ),
    "a signature": (
        ("UPDATE records SET signature = 'AAAA' WHERE seq = 2",),
        "Record 2 is not signed by this site's key.",
    ),
    "the end cut off": (
        ("DELETE FROM records WHERE seq > 4",),
        "The ledger ends with record 4, but the ledger's signed head knows of 6",
    ),
    "other patients in a set": (
        ("UPDATE sets SET members = randomblob(16) WHERE length(members) = 16",),
        "The patients of record 2 were changed or removed.",
    ),
    "patients who are texts": (("UPDATE sets SET members = 'x'",), "The patients of record 1 were changed or removed."),
    "no sets": (("DELETE FROM sets",), "The patients of record 1 were changed or removed."),
    "a set more": (("INSERT INTO sets VALUES ('x', x'00')",), "Sets of patients that no record names: 1."),
    "another site's name": (("UPDATE about SET site = 'b'",), "does not begin the ledger of this site and this key"),
    "another key": (("UPDATE about SET key = 'ed25519:x'",), "The ledger says that it is of another key."),
    "a view as its table": (
        ("DROP TABLE sets", "CREATE VIEW sets AS SELECT '' AS digest, x'00' AS members"),
        "tables or indexes are not those of a privacy ledger",
    ),
}


class TestVerifying:
    def test_an_untouched_ledger_is_intact_and_agrees_with_all_heads(
        self, folder: Path, original: tuple[Path, tuple[LedgerHead, ...]]
    ) -> None:
        public = Ledger(folder, "a").identity().public
        assert verify_ledger(folder, public, original[1]) == verify_ledger(folder) == ()
        tamper(folder)
        assert verify_ledger(folder, public) == (), "the tests' own tool leaves no traces"

    @pytest.mark.parametrize("name", EDITS)
    def test_an_edit_is_found_and_nothing_is_charged(
        self, folder: Path, name: str, original: tuple[Path, tuple[LedgerHead, ...]]
    ) -> None:
        statements, expected = EDITS[name]
        public = Ledger(folder, "a").identity().public
        if name == "a view as its table":
            base = sqlite3.connect(folder / "ledger.sqlite", isolation_level=None)
            for statement in statements:
                base.execute(statement)
            base.close()
        else:
            tamper(folder, *statements)
        assert expected in " ".join(verify_ledger(folder, public))
        if name not in ("a signature", "a set more"):  # which change nothing of what was charged
            with pytest.raises(LedgerError, match=r"was altered|another site or another key"):
                Ledger(folder, "a")

    def test_the_last_signature_vouches_for_all_that_is_charged(self, folder: Path) -> None:
        tamper(folder, "UPDATE records SET signature = 'AAAA' WHERE seq = 6")
        with pytest.raises(LedgerError, match="was altered") as caught:
            Ledger(folder, "a")
        assert "Record 6 is not signed" in caught.value.local_detail

    def test_heads_that_the_audit_log_kept_and_that_do_not_fit(self, folder: Path) -> None:
        assert verify_ledger(folder, None, [LedgerHead(2, "0" * 64)]) == (
            "Record 2 is not the one that the audit log knows: the ledger was rebuilt or replaced.",
        )
        found = verify_ledger(folder, None, [LedgerHead(9, "0" * 64)])
        assert "but the audit log knows of 9: the end was removed, or the ledger was replaced." in found[0]

    def test_what_is_missing_or_garbage(self, folder: Path) -> None:
        (folder / "head.json").write_text("{}")
        assert verify_ledger(folder) == ("The ledger's signed head was altered, or is that of another site or key.",)
        (folder / "head.json").unlink()
        assert verify_ledger(folder) == ("The ledger's signed head is missing.",)
        (folder / "ledger.sqlite").write_bytes(b"garbage " * 1000)
        assert verify_ledger(folder)
        (folder / "ledger.sqlite").unlink()
        assert verify_ledger(folder) == ("The ledger's database is missing.", "The ledger's signed head is missing.")

    def test_it_does_not_write(self, folder: Path) -> None:
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        verify_ledger(folder)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before

    @pytest.mark.parametrize(
        "statement",
        ["UPDATE records SET kind = 'x'", "DELETE FROM records", "UPDATE sets SET members = x'00'", "DELETE FROM sets",
         "INSERT OR REPLACE INTO sets SELECT digest, x'00' FROM sets"],
    )  # fmt: skip
    def test_accidents_are_stopped_by_the_database(self, folder: Path, statement: str) -> None:
        with sqlite3.connect(folder / "ledger.sqlite") as base, pytest.raises(sqlite3.IntegrityError, match="append"):
            base.execute(statement)
        base.close()
