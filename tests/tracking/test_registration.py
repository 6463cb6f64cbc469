"""A plan is registered once, before any site is asked; when records came is added to, never replaced."""

from __future__ import annotations

import json
import re

import pytest

from eucaim_fl.errors import JournalError
from eucaim_fl.tracking.registration import Registration, note_first_record, read_registration, register

PLAN, OTHER = "a" * 64, "b" * 64
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00")


class TestRegister:
    def test_the_first_entry_stays(self, tmp_path):
        register(tmp_path, PLAN)
        before = (tmp_path / "registered.json").read_bytes()
        register(tmp_path, PLAN)
        assert (tmp_path / "registered.json").read_bytes() == before
        found = read_registration(tmp_path)
        assert (found.plan_sha256, found.came) == (PLAN, ())
        assert TIME.fullmatch(found.at)

    @pytest.mark.parametrize("text", [None, "{", "[]", '{"at": 1}'])
    def test_register_refuses_another_plan_in_the_same_folder(self, tmp_path, text):
        register(tmp_path, PLAN)
        if text is not None:
            (tmp_path / "registered.json").write_text(text)
        with pytest.raises(JournalError, match="not the one that this run registered"):
            register(tmp_path, OTHER)

    def test_what_can_not_be_written_is_said(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(JournalError, match="can't be written"):
            note_first_record(tmp_path / "file")


class TestRecords:
    def test_each_first_record_is_one_more_time(self, tmp_path):
        for _ in range(2):
            note_first_record(tmp_path)
        found = read_registration(tmp_path)
        assert len(found.came) == 2
        assert all(TIME.fullmatch(time) for time in found.came)

    @pytest.mark.parametrize(
        ("fixed", "came"),
        [
            ({"plan_sha256": "x", "at": "yesterday"}, {"at": ["now", 3]}),
            ({"plan_sha256": [], "at": "2026-01-01T00:00:00+00:00"}, {"at": "2026-01-01T00:00:00+00:00"}),
            ([], "text"),
        ],
    )
    def test_what_is_damaged_is_not_on_record(self, tmp_path, fixed, came):
        (tmp_path / "journal").mkdir()
        (tmp_path / "registered.json").write_text(json.dumps(fixed))
        (tmp_path / "journal" / "first-records.json").write_text(json.dumps(came))
        assert read_registration(tmp_path) == Registration()
        assert read_registration(tmp_path / "nowhere") == Registration()
