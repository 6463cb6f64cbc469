"""Whoever changes anything of a report is found, and what was changed is named."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import numpy as np
import pytest

from eucaim_fl.errors import DataError, PlanError, ReplyError, ReportError
from eucaim_fl.signing import PrivateKey
from eucaim_fl.validation import document as document_module
from eucaim_fl.validation.document import (
    Circumstances,
    CohortFacts,
    Told,
    about_of,
    make_document,
    page_of,
    plan_of,
    read_document,
    to_bytes,
)
from eucaim_fl.validation.signed import PURPOSE, RecordSignature, statement
from eucaim_fl.validation.verification import verify_report
from tests.validation.site_records import decided, plan_for, record, whole

SITES = ("a", "b", "c", "d")
PLAN = plan_for("classification", SITES, bootstrap_samples=20, bins=20)
KEYS = {site: PrivateKey.create() for site in SITES}
PUBLIC = {site: {key.public} for site, key in KEYS.items()}
CIRCUMSTANCES = Circumstances(
    registered=PLAN.sha256(),
    registered_at="2026-11-02T09:14:00+00:00",
    records_came=("2026-11-09T16:40:00+00:00",),
    cohorts={"a": CohortFacts(sha256="c" * 64, quarantined=5)},
    provenance=(("python", "3.11"),),
)


def told_by(site: str, number: int, **more):
    rng = np.random.default_rng(number)
    truth = rng.integers(0, 2, 60)
    scores = np.clip(0.3 * truth + 0.7 * rng.random(60), 0, 1)
    return record(PLAN, site, whole(60, decided(PLAN, scores, truth)), data_is="public", **more)


RECORDS = tuple(told_by(site, number) for number, site in enumerate("abc"))


def sign(one, key: PrivateKey) -> RecordSignature:
    return RecordSignature(key.public, key.sign(PURPOSE, statement(one)))


def content_of(records=RECORDS, *, signed: bool = True, plan=PLAN, circumstances=CIRCUMSTANCES) -> bytes:
    signatures = {one.site: sign(one, KEYS[one.site]) for one in records} if signed else {}
    return to_bytes(make_document(plan, Told(records, signatures), circumstances))


@pytest.fixture(scope="module")
def content():
    """A report of three of four hospitals, all of which signed."""
    return content_of()


@pytest.fixture(scope="module")
def page(content):
    return page_of(content).encode()


def changed(content: bytes, *place, to=None) -> bytes:
    """The report with another value at a place; without one, the place is removed."""
    values = json.loads(content)
    inner = values
    for step in place[:-1]:
        inner = inner[step]
    if to is None:
        del inner[place[-1]]
    else:
        inner[place[-1]] = to
    return json.dumps(values).encode()


def faults(content: bytes, keys=PUBLIC, page=None) -> dict[tuple[str, str], str]:
    """What failed, by what and whose it is, with what is said."""
    found = verify_report(content, keys, page)
    assert found.holds is not any(check.state in ("fails", "open") for check in found.checks)
    return {(check.what, check.site): check.said for check in found.checks if check.state == "fails"}


class TestAGoodReport:
    def test_it_holds_with_keys_and_page(self, content, page):
        found = verify_report(content, PUBLIC, page)
        assert found.holds
        assert found.vouched
        assert [check.what for check in found.checks if check.state == "holds"] == [
            *("file", "plan", "record", "record", "record", "signature", "signature", "signature", "result", "page")
        ]
        assert set(found.records) == {"a", "b", "c"}

    def test_it_names_who_is_missing_and_when_it_was_fixed(self, content):
        notes = [check.said for check in verify_report(content, PUBLIC).checks if check.state == "note"]
        assert any("no record of d" in said for said in notes)
        assert any("registered 2026-11-02 09:14:00 UTC" in said for said in notes)

    def test_another_indentation_changes_nothing(self, content):
        assert verify_report(json.dumps(json.loads(content)).encode(), PUBLIC).holds

    def test_without_keys_it_holds_and_nobody_vouches(self, content):
        found = verify_report(content)
        assert found.holds
        assert not found.vouched
        assert "nobody vouches" in found.signatures[0].said

    def test_a_run_on_one_machine_passes_unsigned_but_not_where_keys_are_given(self):
        unsigned = content_of(signed=False)
        assert verify_report(unsigned).holds
        assert not verify_report(unsigned).vouched
        assert faults(unsigned) == dict.fromkeys([("signature", site) for site in "abc"], "there is none")


class TestTampering:
    def test_a_threshold_of_the_plan(self, content):
        found = faults(changed(content, "plan", "validation", "thresholds", to=[0.4]))
        assert list(found) == [("plan", "")]
        assert "not the one that the report names" in found["plan", ""]

    def test_a_threshold_with_a_new_hash_everywhere_but_in_the_records(self, content):
        values = json.loads(changed(content, "plan", "validation", "thresholds", to=[0.4]))
        other = plan_of(read_document(json.dumps(values).encode())).sha256()
        values["plan_sha256"] = values["result"]["plan_sha256"] = other
        found = faults(json.dumps(values).encode())
        assert set(found) == {*(("record", site) for site in "abc"), ("circumstances", "")}

    def test_another_plan_under_the_old_signatures(self, content):
        other = plan_for("classification", SITES, bootstrap_samples=21, bins=20)
        records = tuple(replace(one, plan_sha256=other.sha256()) for one in RECORDS)
        forged = json.loads(content_of(records, signed=False, plan=other))
        forged["signatures"] = json.loads(content)["signatures"]
        found = faults(json.dumps(forged).encode())
        assert {("signature", site) for site in "abc"} <= set(found)
        assert "one of them was changed" in found["signature", "a"]
        assert ("circumstances", "") in found

    def test_one_count_of_one_record(self, content):
        values = json.loads(content)
        counts = values["records"][1]["scopes"][0]["models"][0]["scores"]["yes"]
        full = next(place for place, count in enumerate(counts[0]) if count)
        counts[0][full] -= 1
        counts[0][full + 1] += 1
        found = faults(json.dumps(values).encode())
        assert set(found) == {("signature", "b"), ("result", "")}
        assert "values differ" in found["result", ""]

    def test_one_count_of_one_record_with_a_result_that_follows_from_it(self):
        scope = RECORDS[1].scopes[0]
        figures = replace(scope.models[0], moments={"brier": (60.0, 6.0, 1.0)})
        other = (RECORDS[0], replace(RECORDS[1], scopes=(replace(scope, models=(figures,)),)), RECORDS[2])
        signatures = {one.site: sign(one, KEYS[one.site]) for one in RECORDS}
        forged = to_bytes(make_document(PLAN, Told(other, signatures), CIRCUMSTANCES))
        assert set(faults(forged)) == {("signature", "b")}

    def test_a_figure_of_the_result(self, content):
        forged = changed(content, "result", "models", 0, "scopes", 0, "figures", "auc", "value", to=0.99)
        found = faults(forged)
        assert list(found) == [("result", "")]
        assert "result.models[0].scopes[0].figures.auc.value: 0.99 in the report" in found["result", ""]

    def test_a_sentence_of_the_result(self, content):
        found = faults(changed(content, "result", "verdicts", 0, "sentence", to="It works."))
        assert "verdicts[0].sentence" in found["result", ""]

    def test_a_signature(self, content):
        text = json.loads(content)["signatures"]["c"]["signature"]
        other = ("B" if text[0] == "A" else "A") + text[1:]
        found = faults(changed(content, "signatures", "c", "signature", to=other))
        assert list(found) == [("signature", "c")]
        without = faults(changed(content, "signatures", "c"))
        assert without == {("signature", "c"): "there is none"}
        assert list(faults(changed(content, "signatures", "c"), keys=None)) == [("signature", "c")]

    def test_the_key(self, content):
        forger = PrivateKey.create()
        values = json.loads(content)
        own = sign(RECORDS[0], forger)
        values["signatures"]["a"] = {"key": own.key, "signature": own.signature}
        forged = json.dumps(values).encode()
        assert "another key than the one on file" in faults(forged)["signature", "a"]
        assert not faults(forged, keys=None)  # nobody vouches for any: it says so
        values["signatures"]["a"]["signature"] = json.loads(content)["signatures"]["a"]["signature"]
        assert "one of them was changed" in faults(json.dumps(values).encode())["signature", "a"]

    def test_a_key_that_was_not_given_is_open(self, content):
        found = verify_report(content, {site: PUBLIC[site] for site in "ab"})
        assert [(check.state, check.site) for check in found.checks if check.state == "open"] == [("open", "c")]
        assert not found.holds

    def test_a_record_left_out(self, content):
        values = json.loads(content)
        del values["records"][1]
        found = faults(json.dumps(values).encode())
        assert set(found) == {("signature", "b"), ("result", "")}
        del values["signatures"]["b"]
        assert set(faults(json.dumps(values).encode())) == {("result", "")}

    def test_a_record_left_out_of_everything_is_named_as_missing(self):
        less = content_of((RECORDS[0], RECORDS[2]))
        said = [check.said for check in verify_report(less, PUBLIC).checks if check.what == "sites"]
        assert said[0].startswith("no record of b and d.")

    def test_a_site_added(self, content):
        values = json.loads(content)
        values["records"].append({**copy.deepcopy(values["records"][0]), "site": "x"})
        found = faults(json.dumps(values).encode())
        assert "a site that the plan does not name" in found["record", "x"]
        assert found["signature", "x"] == "there is none"
        values["records"][-1]["site"] = "a"
        assert ("record", "") in faults(json.dumps(values).encode())

    def test_a_registration_of_another_plan(self, content):
        found = faults(changed(content, "circumstances", "registered", to="0" * 64))
        assert list(found) == [("circumstances", "")]

    def test_other_software_is_no_forger_but_no_proof_either(self, content):
        forged = changed(content, "result", "models", 0, "scopes", 0, "figures", "auc", "value", to=0.99)
        other = changed(forged, "software", "numpy", to="1.0.0")
        found = verify_report(other, PUBLIC)
        assert not found.holds
        assert [(check.what, check.state) for check in found.checks if check.state != "holds"][-2:] == [
            ("result", "open"), ("circumstances", "note"),
        ]  # fmt: skip
        assert any("numpy 1.0.0" in check.said for check in found.checks)


class TestThePage:
    def test_it_names_the_report(self, content, page):
        other = content_of(circumstances=Circumstances())
        assert "does not name this report" in faults(other, page=page)["page", ""]

    def test_a_changed_word_is_found(self, content, page):
        assert "is not the one that it gives" in faults(content, page=page + b" ")["page", ""]

    def test_of_other_software_it_is_open(self, content, page):
        other = changed(content, "software", "python", to="3.0")
        found = verify_report(other, PUBLIC, page_of(other).encode() + b" ")
        assert [check.state for check in found.checks if check.what == "page"] == ["open"]

    def test_it_is_not_drawn_from_figures_that_do_not_follow(self, content, page):
        forged = changed(content, "result", "models", to=[])
        found = verify_report(forged, PUBLIC, page)
        assert [check.state for check in found.checks if check.what == "page"] == ["open"]


class TestReading:
    @pytest.mark.parametrize(
        "content",
        [
            b"", b"{", b"null", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"schema_version": 2}', b'{"schema_version": 1}',
            b'{"schema_version": 1, "schema_version": 1}', b'{"schema_version": NaN}', b"9" * 10_000,
        ],
        ids=range(11),
    )  # fmt: skip
    def test_what_is_no_report_is_none(self, content):
        with pytest.raises(ReportError, match="report"):
            read_document(content)
        found = verify_report(content, PUBLIC)
        assert [(check.what, check.state) for check in found.checks] == [("file", "fails")]

    def test_read_document_refuses_one_that_is_too_long(self, monkeypatch, content):
        monkeypatch.setattr(document_module, "LARGEST_REPORT_BYTES", 1000)
        with pytest.raises(ReportError, match="longer than 1000 bytes"):
            read_document(content)

    @pytest.mark.parametrize(
        "place",
        [
            ("more",),
            ("records", 0, "more"),
            ("records", 0, "scopes", 0, "models", 0, "more\x1b[2J"),
            ("result", "more"),
            ("signatures", "a", "more"),
            ("circumstances", "more"),
        ],
        ids=str,
    )
    def test_anything_unknown_is_refused_wherever_it_stands(self, content, place):
        forged = changed(content, *place, to="hidden")
        with pytest.raises(ReportError, match="report"):
            read_document(forged)
        (check,) = verify_report(forged, PUBLIC).checks
        assert check.state == "fails"
        assert "more" in check.said
        assert "\x1b" not in check.said

    def test_what_was_read_gives_the_same_bytes(self, content):
        assert to_bytes(read_document(content)) == content

    def test_a_plan_that_can_not_be_used_is_said_and_the_rest_is_left(self, content):
        forged = changed(content, "plan", "software", to="99.0")
        with pytest.raises(PlanError, match=r"asks for eucaim_fl 99\.0"):
            plan_of(read_document(forged))
        found = {check.what: check.state for check in verify_report(forged, PUBLIC).checks}
        assert (found["plan"], found["record"], found["signature"], found["result"]) == (
            *("fails", "open", "holds", "open"),
        )

    def test_figures_that_no_patients_can_have_are_not_analysed(self, content):
        forged = changed(content, "records", 0, "told_before", to=-1)
        found = faults(forged)
        assert set(found) == {("record", "a"), ("signature", "a")}

    def test_make_document_and_page_of_say_what_they_are_made_of(self, content):
        with pytest.raises(ReplyError, match="No site told anything"):
            make_document(PLAN, Told(()), CIRCUMSTANCES)
        with pytest.raises(DataError, match="other models than the plan"):
            page_of(changed(content, "result", "models", to=[]))


class TestAbout:
    def about(self, records=RECORDS, *, signed=True, **facts):
        circumstances = Circumstances.model_validate({**CIRCUMSTANCES.model_dump(), **facts})
        return about_of(read_document(content_of(records, signed=signed, circumstances=circumstances)), PLAN)

    def test_nothing_speaks_against_a_plan_that_came_first(self):
        about = self.about()
        assert about.changes == ()
        assert about.fixed_at == "2026-11-02 09:14:00 UTC"
        assert "before any hospital was asked" in about.fixed_by
        assert about.first_seen_at == "2026-11-09 16:40:00 UTC"
        assert [one.state for one in about.signatures] == ["verified"] * 3
        assert ("a", "Cohort, SHA-256 of its content", "c" * 64) in about.data
        assert ("b", "Data, as the hospital calls it", "public") in about.data

    def test_figures_that_were_told_before_are_said(self):
        known = (replace(RECORDS[0], told_before=3), *RECORDS[1:])
        about = self.about(known)
        assert about.changes == (
            "At 1 of 3 sites figures of this model had been told before, under other plans: thresholds and margins may "
            "have been chosen after seeing results.",
        )
        assert ("a", "Other plans that had figures of this model", "3") in about.data

    def test_a_run_that_was_interrupted_or_registered_late_says_so(self):
        times = ("2026-11-01T00:00:00+00:00", "2026-11-09T16:40:00+00:00", "2026-11-10T16:40:00+00:00")
        changes = self.about(records_came=times, registered="0" * 64).changes
        assert [words.split()[2:5] for words in changes] == [
            ["that", "was", "registered"], ["record", "came", "before"], ["was", "interrupted", "after"],
        ]  # fmt: skip

    def test_what_is_not_on_record_is_empty(self):
        about = self.about(registered="", registered_at="", records_came=(), cohorts={}, signed=False)
        assert (about.fixed_at, about.fixed_by, about.first_seen_at) == ("", "", "")
        assert {one.state for one in about.signatures} == {"missing"}
        assert "no keys" in about.signatures[0].said

    def test_made_up_data_is_named(self):
        assert self.about((replace(RECORDS[0], data_is="synthetic"), *RECORDS[1:])).synthetic == ("a",)
