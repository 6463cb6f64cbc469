"""Which runs a patient was used in: the site's own record, written before a reply leaves. It never leaves the site.

Patients stand in it as keyed hashes: whoever has the file alone can't tell who took part, and whoever asks for a
patient by name gets an answer. A crash between record and reply can name a run too many, never one too few.
"""

from __future__ import annotations

import datetime
import hashlib
import hmac
import sqlite3
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from eucaim_fl.durable import local_key
from eucaim_fl.site.small_store import transaction

__all__ = ["Contribution", "Lineage", "Use"]

Use = Literal["train", "validation", "test"]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS groups (id INTEGER PRIMARY KEY, digest TEXT UNIQUE NOT NULL, patients INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS members (
    group_id INTEGER NOT NULL, patient TEXT NOT NULL, use TEXT NOT NULL, PRIMARY KEY (patient, group_id, use)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS answers (
    plan TEXT NOT NULL, name TEXT NOT NULL, round INTEGER NOT NULL, kind TEXT NOT NULL, at TEXT NOT NULL,
    arriving TEXT NOT NULL, group_id INTEGER NOT NULL, PRIMARY KEY (plan, round, kind, group_id, arriving, at)
);
"""


@dataclass(frozen=True)
class Contribution:
    """One run (plan) in which patients of this site were used.

    plan_sha256: the plan's identity. use: what for. rounds: first and last; 0 is the question before
    the first round. since, until: UTC, ISO 8601.
    model_sha256: of the weights that arrived last; those of the final model once the run was evaluated to its end.
    patients: how many of the asked-for patients were used so.
    """

    plan_sha256: str
    name: str
    use: Use
    rounds: tuple[int, int]
    since: str
    until: str
    model_sha256: str
    patients: int


class Lineage:
    """The record in a site's folder for what must outlive the cache; see `SiteFile.records_folder`."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "lineage.sqlite"
        self._key_file = folder / "lineage.key"

    def _open(self) -> AbstractContextManager[sqlite3.Connection]:
        return transaction(self._file, _SCHEMA, "runs")

    def _hidden(self, patients: Iterable[str]) -> dict[str, str]:
        key = local_key(self._key_file)
        return {name: hmac.digest(key, name.encode(), "sha256").hex()[:32] for name in sorted(set(patients))}

    def record(
        self,
        plan: tuple[str, str],
        exchange: tuple[str, int],
        arriving_sha256: str,
        used: Mapping[Use, Iterable[str]],
    ) -> None:
        """Write down that an answer is about to leave, and whom it used.

        plan: its SHA-256 and name. exchange: its kind and number. arriving_sha256: of the weights that it started
        from. used: patients by what they are used for.
        Raises JournalError if it can't be written; then nothing may leave.
        """
        members = [(hidden, use) for use, names in sorted(used.items()) for hidden in self._hidden(names).values()]
        digest = hashlib.sha256(repr(sorted(members)).encode()).hexdigest()
        at = datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds")
        with self._open() as base:
            known = base.execute("SELECT id FROM groups WHERE digest = ?", (digest,)).fetchone()
            if known is None:
                size = len({patient for patient, _ in members})
                group = base.execute("INSERT INTO groups (digest, patients) VALUES (?, ?)", (digest, size)).lastrowid
                base.executemany(
                    "INSERT INTO members (group_id, patient, use) VALUES (?, ?, ?)",
                    [(group, patient, use) for patient, use in members],
                )
            else:
                group = known[0]
            base.execute(
                "INSERT OR REPLACE INTO answers (plan, name, round, kind, at, arriving, group_id) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                (*plan, exchange[1], exchange[0], at, arriving_sha256, group),
            )

    def answers(self) -> Counter[tuple[str, str, int]]:
        """How often each exchange, by plan (SHA-256), kind and number, used patients; empty where nothing is recorded.

        A file that an earlier version began has answers from the same weights over the same patients once only.
        Raises JournalError if the record can't be read.
        """
        if not self._file.exists():
            return Counter()
        with self._open() as base:
            rows = base.execute("SELECT plan, kind, round, count(*) FROM answers GROUP BY plan, kind, round").fetchall()
        return Counter({(plan, kind, number): times for plan, kind, number, times in rows})

    def contributions(self, patients: Iterable[str] | None = None) -> tuple[Contribution, ...]:
        """Runs in which any of `patients` (names; None: anybody) were used, the oldest first.

        Raises JournalError if the record can't be read.
        """
        if not self._file.exists():
            return ()
        hidden = None if patients is None else list(self._hidden(patients).values())
        with self._open() as base:
            base.execute("CREATE TEMP TABLE asked (patient TEXT PRIMARY KEY)")
            if hidden is not None:
                base.executemany("INSERT OR IGNORE INTO asked VALUES (?)", [(one,) for one in hidden])
            rows = base.execute(
                "SELECT a.plan, max(a.name), m.use, min(a.round), max(a.round), "
                "substr(min(a.at), 1, 19) || '+00:00', substr(max(a.at), 1, 19) || '+00:00', "
                "count(DISTINCT m.patient), (SELECT arriving FROM answers l WHERE l.plan = a.plan "
                "ORDER BY l.round DESC, l.at DESC LIMIT 1) "
                "FROM answers a JOIN members m ON m.group_id = a.group_id "
                "WHERE ? OR m.patient IN (SELECT patient FROM asked) "
                "GROUP BY a.plan, m.use ORDER BY min(a.at), a.plan, m.use",
                (hidden is None,),
            ).fetchall()
        return tuple(
            Contribution(plan, name, use, (first, last), since, until, model, count)
            for plan, name, use, first, last, since, until, count, model in rows
        )
