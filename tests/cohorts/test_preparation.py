from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest

from eucaim_fl.cohorts import preparation
from eucaim_fl.cohorts.cache import Cache
from eucaim_fl.cohorts.facts import SeriesFacts
from eucaim_fl.cohorts.isolation import map_isolated
from eucaim_fl.cohorts.manifest import Case
from eucaim_fl.cohorts.preparation import case_from_json, case_to_json, make_entry, prepare_all, recall_all
from eucaim_fl.errors import CohortError, DataError, LabelError, SeriesError, UnreadableFileError, WorkerError

pytestmark = pytest.mark.integration

GRADE = {"name": "classification", "target": "grade", "classes": ("low", "high")}


@pytest.fixture
def cases(tiny, tmp_path):
    """Six images of noise, two channels each; the fourth has no second channel, the fifth is no NIfTI file."""
    made = []
    for number in range(6):
        paths = []
        for channel in range(2):
            values = np.random.default_rng([number, channel]).normal(size=(6, 5, 4)).astype(np.float32)
            paths.append(tiny.nifti(tmp_path / "cohort" / f"{number}-{channel}.nii.gz", values))
        further = () if number == 3 else (Case(f"P{number}", "", "", (paths[1],), "nifti"),)
        made.append(Case(f"P{number}", "", "", (paths[0],), "nifti", clinical={"grade": "low"}, further=further))
    made[4].image[0].write_bytes(b"not a NIfTI file")
    return made


@pytest.fixture
def plan(tiny):
    return tiny.plan(GRADE, channels=[{"name": "a"}, {"name": "b"}], spacing_mm=(1.3, 1.7, 2.9))


@pytest.fixture
def everything_apart(monkeypatch):
    """Nothing is small enough to be prepared here."""
    monkeypatch.setattr(preparation, "_FEW_FILES", 0)


@pytest.fixture
def work(monkeypatch, tmp_path):
    """What isolated processes do instead of preparing: a function of (item, shared), given as text."""

    def become(body: str) -> None:
        (tmp_path / "modules").mkdir(exist_ok=True)
        name = f"work_{abs(hash(body))}"
        (tmp_path / "modules" / f"{name}.py").write_text(f"import os\ndef work(item, shared):\n    {body}\n")
        monkeypatch.syspath_prepend(str(tmp_path / "modules"))
        monkeypatch.setattr(preparation, "_WORK", f"{name}:work")

    return become


def summary(outcomes):
    """What there is of each case: its content and tensors, or its error."""
    return [
        (o.content, np.load(o.entry.image_path).tobytes(), o.channels()) if o.entry else (type(o.error), str(o.error))
        for o in outcomes
    ]


class TestPrepareAll:
    def test_the_outcomes_are_in_order_with_each_case_its_own(self, cases, plan, tmp_path):
        outcomes = prepare_all(cases, plan, Cache(tmp_path / "cache"))
        assert [type(outcome.error) for outcome in outcomes] == [
            type(None), type(None), type(None), SeriesError, UnreadableFileError, type(None),
        ]  # fmt: skip
        assert len({outcome.content for outcome in outcomes}) == 6
        assert all(len(outcome.channels()) == 2 for outcome in outcomes if outcome.entry)

    def test_a_second_time_nothing_is_made(self, cases, plan, tmp_path, monkeypatch):
        cache = Cache(tmp_path / "cache")
        first = summary(prepare_all(cases[:4], plan, cache))
        cache.save()
        monkeypatch.setattr(preparation, "prepare", lambda *_: pytest.fail("it was prepared again"))
        told = []
        again = prepare_all(cases[:4], plan, Cache(tmp_path / "cache"), tell=lambda *n: told.append(n))
        assert summary(again) == first
        assert told == [(4, 4)]

    def test_in_another_process_everything_is_the_same(self, cases, plan, tmp_path, monkeypatch, everything_apart):
        """Without the process: what crosses to it and back, as text."""
        here = Cache(tmp_path / "here")
        monkeypatch.setattr(preparation, "_FEW_FILES", 2000)
        wanted = summary(prepare_all(cases, plan, here))
        monkeypatch.setattr(preparation, "_FEW_FILES", 0)
        asked = []

        def in_this_process(work, items, **options):
            asked.append(options)
            return map_isolated(work, items, **{**options, "workers": 0})

        monkeypatch.setattr(preparation, "map_isolated", in_this_process)
        there, told = Cache(tmp_path / "there"), []
        assert summary(prepare_all(cases, plan, there, readers=3, tell=lambda *n: told.append(n))) == wanted
        assert (asked[0]["workers"], asked[0]["seconds"]) == (3, 300.0)
        assert [done for done, _ in told] == list(range(7))
        there.save()
        assert summary(recall_all(cases[:4], plan, Cache(tmp_path / "there"))) == wanted[:4]

    @pytest.mark.federated
    def test_the_number_of_processes_changes_no_bit(self, cases, plan, tmp_path, everything_apart, monkeypatch):
        results = [summary(prepare_all(cases, plan, Cache(tmp_path / str(n)), readers=n)) for n in (1, 2)]
        monkeypatch.setattr(preparation, "_FEW_FILES", 2000)
        assert results == [summary(prepare_all(cases, plan, Cache(tmp_path / "here")))] * 2

    def test_a_case_that_kills_its_process_costs_itself_alone_and_is_tried_again_after_a_day(
        self, cases, plan, tmp_path, everything_apart, work, monkeypatch
    ):
        work("os._exit(7)")
        cache = Cache(tmp_path / "cache")
        outcomes = prepare_all(cases[:2], plan, cache, readers=1)
        assert [str(outcome.error) for outcome in outcomes] == ["Reading a file crashed its process."] * 2
        assert all(isinstance(outcome.error, UnreadableFileError) for outcome in outcomes)
        monkeypatch.setattr(preparation, "map_isolated", lambda *_, **__: pytest.fail("it was tried again"))
        assert summary(prepare_all(cases[:2], plan, Cache(tmp_path / "cache"))) == summary(outcomes)

    def test_a_case_that_takes_too_long_is_left_out(self, cases, plan, tmp_path, everything_apart, work, monkeypatch):
        monkeypatch.setattr(preparation, "_SECONDS", 0.2)
        work("import time; time.sleep(60)")
        (outcome,) = prepare_all(cases[:1], plan, Cache(tmp_path / "cache"))
        assert "took longer than 0.2 s" in str(outcome.error)

    def test_a_case_that_ended_this_process_before_is_tried_apart(self, cases, plan, tmp_path, work, monkeypatch):
        child = os.fork()
        if not child:
            monkeypatch.setattr(preparation, "prepare", lambda *_: os._exit(9))
            make_entry(cases[1], plan, Cache(tmp_path / "cache"))
        os.waitpid(child, 0)
        work("os._exit(7)")
        outcomes = prepare_all(cases[:3], plan, Cache(tmp_path / "cache"))
        assert [outcome.error is None for outcome in outcomes] == [True, False, True]
        assert str(outcomes[1].error) == "Reading a file crashed its process."

    def test_a_disk_that_is_full_over_there_ends_it_here(self, cases, plan, tmp_path, everything_apart, work):
        error = {
            "class": "CohortError",
            "message": "The disk of the site's cache is full.",
            "fix": "",
            "local_detail": "",
        }
        work(f"return {json.dumps({'content': '', 'state': [], 'error': error})}")
        with pytest.raises(CohortError, match="disk of the site's cache is full"):
            prepare_all(cases, plan, Cache(tmp_path / "cache"))

    def test_no_process_at_all_is_an_error(self, cases, plan, tmp_path, everything_apart, monkeypatch):
        monkeypatch.setattr(preparation, "_WORK", "no_such_module:work")
        with pytest.raises(WorkerError, match="could not be started"):
            prepare_all(cases, plan, Cache(tmp_path / "cache"), readers=1)

    def test_an_entry_that_was_removed_meanwhile_is_made_here(self, cases, plan, tmp_path, everything_apart, work):
        work("return {'content': 'x', 'state': []}")
        (outcome,) = prepare_all(cases[:1], plan, Cache(tmp_path / "cache"))
        assert outcome.entry is not None


class TestMakeEntry:
    def test_a_file_that_changes_while_it_is_read_is_not_kept(self, cases, plan, tmp_path, monkeypatch):
        real = preparation.prepare

        def prepare(case, plan):
            made = real(case, plan)
            case.image[0].touch()
            return made

        monkeypatch.setattr(preparation, "prepare", prepare)
        outcome = make_entry(cases[0], plan, Cache(tmp_path / "cache"))
        assert str(outcome.error) == "A file of the cohort changed while it was read."
        monkeypatch.setattr(preparation, "prepare", real)
        assert make_entry(cases[0], plan, Cache(tmp_path / "cache")).entry is not None

    def test_what_nobody_foresaw_is_the_case_s_own_misfortune(self, cases, plan, tmp_path, monkeypatch):
        monkeypatch.setattr(preparation, "prepare", lambda *_: 1 / 0)
        outcome = make_entry(cases[0], plan, Cache(tmp_path / "cache"))
        assert str(outcome.error) == "A case can't be read for an unforeseen reason."
        assert "ZeroDivisionError" in outcome.error.local_detail

    def test_a_cache_that_can_not_be_written_is_an_error(self, cases, plan, tmp_path, monkeypatch):
        cache = Cache(tmp_path / "cache")
        monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(CohortError, match="disk of the site's cache is full"):
            make_entry(cases[0], plan, cache)


class TestRecallAll:
    def test_files_of_unknown_content_are_compared_and_never_opened_as_images(self, cases, plan, tmp_path, monkeypatch):
        monkeypatch.setattr(preparation, "prepare", lambda *_: pytest.fail("it was opened"))
        cases[5].image[0].unlink()
        cache = Cache(tmp_path / "cache")
        outcomes = recall_all(cases, plan, cache)
        assert [outcome.content for outcome in outcomes[:5]] == [cache.content(case) for case in cases[:5]]
        assert all(outcome.entry is None for outcome in outcomes)
        assert isinstance(outcomes[5].error, UnreadableFileError)

    def test_a_cache_without_room_is_an_error(self, cases, plan, tmp_path):
        cache = Cache(tmp_path / "cache")
        prepare_all(cases[:1], plan, cache)
        cache.save()
        with pytest.raises(CohortError, match="this cohort needs about"):
            recall_all(cases[:1], plan, Cache(tmp_path / "cache", 100))


class TestJson:
    def test_a_case_comes_back_as_it_was(self, cases):
        facts = SeriesFacts(
            folder="a", files=(), kind="dicom", stack="b=800", size=(3, 4, 5), spacing_mm=(1.0, None, 2.5),
            b_value=800.0, image_type=("ORIGINAL", "PRIMARY"), identifiers={"deid.file_date": 1},
            plane="axial", contrast=False,
        )  # fmt: skip
        case = dataclasses.replace(
            cases[0],
            facts=facts,
            stack="b=800",
            label=(Path("/x/1.dcm"), Path("/x/\udcff.dcm")),
            label_format="rtstruct",
            label_identifiers={"deid.file_person": 3},
        )
        assert case_from_json(json.loads(json.dumps(case_to_json(case)))) == case

    @pytest.mark.parametrize("kind", [SeriesError, LabelError, UnreadableFileError, DataError])
    def test_an_error_keeps_its_class(self, cases, plan, tmp_path, monkeypatch, everything_apart, kind):
        def fail(*_):
            raise kind("It is bad.", fix="Mend it.", local_detail="/a/b")

        monkeypatch.setattr(preparation, "prepare", fail)
        monkeypatch.setattr(
            preparation, "map_isolated", lambda work, items, **o: map_isolated(work, items, **{**o, "workers": 0})
        )
        (outcome,) = prepare_all(cases[:1], plan, Cache(tmp_path / "cache"))
        assert type(outcome.error) is kind
        assert (outcome.error.message, outcome.error.fix, outcome.error.local_detail) == (
            "It is bad.",
            "Mend it.",
            "/a/b",
        )
