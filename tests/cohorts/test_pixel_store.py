"""Facts kept by content: found again, private, and made anew where damaged."""

from __future__ import annotations

import json
import os
import sqlite3
import stat
from pathlib import Path

import pytest

from eucaim_fl.cohorts.facts import SeriesFacts
from eucaim_fl.cohorts.manifest import Case
from eucaim_fl.cohorts.pixel_facts import LabelFacts, PixelFacts
from eucaim_fl.cohorts.pixel_store import PixelStore, content_key
from eucaim_fl.errors import CohortError

FACTS = PixelFacts(sha256="ab", mean=1.5, shape=(1, 2, 3), labels=(LabelFacts("liver", 3, 4.5),), thumbnail="xyz")


class TestPixelStore:
    def test_what_was_kept_is_known_to_the_next(self, tmp_path):
        with PixelStore(tmp_path / "check") as store:
            store.keep("k", FACTS)
        with PixelStore(tmp_path / "check") as store:
            assert dict(store.known(["k", "other"])) == {"k": FACTS}

    def test_thousands_of_keys_are_found(self, tmp_path):
        with PixelStore(tmp_path) as store:
            store.keep("k1999", FACTS)
            assert dict(store.known([f"k{n}" for n in range(2000)])) == {"k1999": FACTS}

    def test_only_its_owner_may_read_it(self, tmp_path):
        with PixelStore(tmp_path / "check") as store:
            store.keep("k", FACTS)
            for path in (tmp_path / "check").iterdir():
                assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE((tmp_path / "check").stat().st_mode) == 0o700

    def test_a_damaged_file_is_made_again(self, tmp_path):
        (tmp_path / "pixels.sqlite").write_bytes(b"this is no database at all" * 100)
        with PixelStore(tmp_path) as store:
            store.keep("k", FACTS)
            assert dict(store.known(["k"])) == {"k": FACTS}

    def test_a_damaged_row_counts_as_unknown(self, tmp_path):
        with PixelStore(tmp_path) as store:
            store.keep("good", FACTS)
        with sqlite3.connect(tmp_path / "pixels.sqlite") as database:
            database.executemany("INSERT INTO facts VALUES (?, ?)", [("a", "{"), ("b", json.dumps({"mean": 1}))])
        database.close()
        with PixelStore(tmp_path) as store:
            assert dict(store.known(["a", "b", "good"])) == {"good": FACTS}

    def test_facts_of_another_version_are_forgotten(self, tmp_path):
        with PixelStore(tmp_path) as store:
            store.keep("k", FACTS)
        with sqlite3.connect(tmp_path / "pixels.sqlite") as database:
            database.execute("PRAGMA user_version = 99")
        database.close()
        with PixelStore(tmp_path) as store:
            assert dict(store.known(["k"])) == {}

    def test_a_folder_that_cannot_be_made_is_an_error(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(CohortError, match="can't be written"):
            PixelStore(tmp_path / "file" / "check")

    def test_what_cannot_be_kept_is_an_error(self, tmp_path):
        with PixelStore(tmp_path) as store:
            with sqlite3.connect(tmp_path / "pixels.sqlite") as database:
                database.execute("DROP TABLE facts")
            database.close()
            with pytest.raises(CohortError, match="can't be written"):
                store.keep("k", FACTS)


class TestContentKey:
    def case(self, folder: Path, **changes: object) -> Case:
        for name in ("a.nii", "label.nii"):
            if not (folder / name).exists():
                (folder / name).write_bytes(b"x")
        values = {"patient": "P", "study": "1", "series": "1", "image": (folder / "a.nii",), "image_format": "nifti"}
        return Case(**{**values, **changes})  # type: ignore[arg-type]

    def test_names_of_patients_make_no_difference(self, tmp_path):
        assert content_key(self.case(tmp_path)) == content_key(self.case(tmp_path, patient="Q", study="9"))

    def test_a_changed_image_label_stack_or_modality_does(self, tmp_path):
        keys = [content_key(self.case(tmp_path))]
        keys.append(content_key(self.case(tmp_path, label=(tmp_path / "label.nii",), label_format="nifti")))
        keys.append(content_key(self.case(tmp_path, stack="b=800")))
        keys.append(content_key(self.case(tmp_path, modality="CT")))
        (tmp_path / "a.nii").write_bytes(b"other")
        keys.append(content_key(self.case(tmp_path)))
        (tmp_path / "a.nii").unlink()
        keys.append(content_key(Case("P", "1", "1", (tmp_path / "a.nii",), "nifti")))
        assert len(set(keys)) == len(keys)

    def test_with_indexed_content_the_files_are_not_looked_at(self, tmp_path):
        facts = SeriesFacts(folder="", files=("a.nii",), kind="nifti", content="abc")
        key = content_key(self.case(tmp_path, facts=facts))
        os.utime(tmp_path / "a.nii", (1, 1))
        assert content_key(self.case(tmp_path, facts=facts)) == key
        other = SeriesFacts(folder="", files=("a.nii",), kind="nifti", content="abd")
        assert content_key(self.case(tmp_path, facts=other)) != key
