from __future__ import annotations

import threading
from pathlib import Path

import pytest

from eucaim_fl.cohorts.intake.journal import JOURNAL_NAME, Journal, Noted, SeriesRow
from eucaim_fl.errors import ImportFailedError

KEY = b"k" * 32
NOTED = Noted("aa", "imaging_data/P1/1.2/1.3/1.4.dcm", "bb", 10, 20)
ROW = SeriesRow("P1", "1.2", "1.3", "MR", "PROSTATE", "Siemens", "M")


class TestJournal:
    def test_what_was_noted_is_found_again_after_it_was_closed(self, tmp_path: Path) -> None:
        journal = Journal(tmp_path, KEY)
        key = journal.key("1.4", deidentified=False)
        assert journal.find(key) is None
        journal.note(key, NOTED, ROW)
        journal.close()
        again = Journal(tmp_path, KEY)
        assert again.find(again.key("1.4", deidentified=False)) == NOTED
        again.close()

    def test_only_its_owner_may_read_it(self, tmp_path: Path) -> None:
        Journal(tmp_path / "records", KEY).close()
        assert (tmp_path / "records" / JOURNAL_NAME).stat().st_mode & 0o777 == 0o600
        assert (tmp_path / "records").stat().st_mode & 0o777 == 0o700

    def test_an_instance_and_its_cleaned_copy_are_two(self, tmp_path: Path) -> None:
        journal = Journal(tmp_path, KEY)
        other = Journal(tmp_path, b"o" * 32)
        keys = {j.key("1.4", deidentified=d) for j in (journal, other) for d in (True, False)}
        assert len(keys) == 4
        assert not any(b"1.4" in key for key in keys)
        journal.close()
        other.close()

    def test_a_series_is_listed_once(self, tmp_path: Path) -> None:
        journal = Journal(tmp_path, KEY)
        for uid in ("1.4", "1.5"):
            journal.note(journal.key(uid, deidentified=False), NOTED, ROW)
        assert journal.unlisted() == [ROW]
        journal.listed([ROW])
        journal.note(journal.key("1.6", deidentified=False), NOTED, ROW)
        assert journal.unlisted() == []
        journal.close()

    def test_many_threads_may_note(self, tmp_path: Path) -> None:
        journal = Journal(tmp_path, KEY)

        def work(number: int) -> None:
            for k in range(20):
                uid = f"1.{number}.{k}"
                journal.note(journal.key(uid, deidentified=False), NOTED, SeriesRow("P", "1", uid))

        threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(journal.unlisted()) == 80
        journal.close()

    def test_a_damaged_file_is_reported(self, tmp_path: Path) -> None:
        (tmp_path / JOURNAL_NAME).write_bytes(b"not a data base" * 100)
        with pytest.raises(ImportFailedError, match="journal of imports"):
            Journal(tmp_path, KEY)
