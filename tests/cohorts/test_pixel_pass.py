"""One pass over pixels: kept by content, and what a worker says is checked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from eucaim_fl.cohorts import pixel_pass
from eucaim_fl.cohorts.isolation import Result
from eucaim_fl.cohorts.manifest import Case
from eucaim_fl.cohorts.pixel_facts import PixelFacts, examine, to_json
from eucaim_fl.cohorts.pixel_pass import known_pixels, read_pixels
from eucaim_fl.errors import CohortError, WorkerError

pytestmark = pytest.mark.integration


@pytest.fixture
def site(tmp_path, tiny):
    return tiny.site(tmp_path)


@pytest.fixture
def cases(tmp_path, tiny):
    def make(count: int) -> list[Case]:
        return [
            Case(f"P{n}", "1", "1", (tiny.nifti(tmp_path / f"{n}.nii.gz", np.full((2, 3, 4), n, np.int16)),), "nifti")
            for n in range(count)
        ]

    return make


@pytest.fixture
def workers(monkeypatch):
    """Replaces the isolated workers; returns what they were asked."""

    def use(answer: Any) -> list[Any]:
        asked: list[Any] = []

        def fake(work: str, items: Any, **limits: Any) -> Iterator[tuple[int, Result]]:
            assert limits["seconds"] == 300.0
            assert limits["memory_bytes"] == 2**33
            listed = list(items)
            asked.append([item["image"] for item in listed])
            for number in reversed(range(len(listed))):
                yield number, answer(listed[number])

        monkeypatch.setattr(pixel_pass, "map_isolated", fake)
        return asked

    return use


class TestReadPixels:
    def test_facts_come_in_the_order_of_cases_whoever_is_ready_first(self, site, cases, workers):
        workers(lambda item: Result(examine(item)))
        told: list[tuple[int, int]] = []
        facts = read_pixels(site, cases(4), lambda *said: told.append(said))
        assert [one.mean for one in facts] == [0.0, 1.0, 2.0, 3.0]
        assert told == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]

    def test_what_is_known_is_not_read_again(self, site, cases, workers):
        asked = workers(lambda item: Result(examine(item)))
        three, four = cases(3), cases(4)
        read_pixels(site, three, lambda *_: None)
        facts = read_pixels(site, four[3:] + three, lambda *_: None)
        assert [len(names) for names in asked] == [3, 1]
        assert [one.mean for one in facts] == [3.0, 0.0, 1.0, 2.0]

    def test_names_of_patients_and_clinical_values_are_not_what_workers_need(self, site, cases, workers):
        items: list[Any] = []
        workers(lambda item: items.append(item) or Result(examine(item)))
        (case,) = cases(1)
        read_pixels(site, [Case(**{**vars(case), "clinical": {"age": "70"}})], lambda *_: None)
        assert items[0]["clinical"] == {}

    def test_a_worker_that_dies_leaves_a_reason_and_is_asked_again(self, site, cases, workers):
        asked = workers(lambda item: Result(None, "EFL204", "A file took longer than 300 s to read."))
        for _ in range(2):
            (facts,) = read_pixels(site, cases(1), lambda *_: None)
            assert (facts.code, facts.reason) == ("EFL204", "A file took longer than 300 s to read.")
        assert len(asked[1]) == 1

    @pytest.mark.parametrize("value", ["text", {"mean": 1}, [1], {**to_json(PixelFacts()), "mean": "x"}])
    def test_an_answer_of_another_form_is_no_answer(self, site, cases, workers, value):
        workers(lambda item: Result(value))
        (facts,) = read_pixels(site, cases(1), lambda *_: None)
        assert facts.code == "EFL204"
        assert "no proper answer" in facts.reason
        assert known_pixels(site, cases(1)) == [None]

    def test_a_cache_that_cannot_be_written_is_an_error(self, site, cases, tmp_path):
        (tmp_path / "cache").write_text("")
        with pytest.raises(CohortError, match="can't be written"):
            read_pixels(site, cases(1), lambda *_: None)
        with pytest.raises(CohortError, match="can't be written"):
            known_pixels(site, cases(1))

    def test_no_worker_at_all_is_an_error(self, site, cases, monkeypatch):
        def fails(*_: object, **__: object) -> None:
            raise WorkerError("A process for reading files could not be started.")

        monkeypatch.setattr(pixel_pass, "map_isolated", fails)
        with pytest.raises(WorkerError, match="could not be started"):
            read_pixels(site, cases(1), lambda *_: None)


class TestKnownPixels:
    def test_it_says_what_an_earlier_pass_found_and_reads_nothing(self, site, cases, workers):
        workers(lambda item: Result(examine(item)))
        two = cases(2)
        (facts,) = read_pixels(site, two[:1], lambda *_: None)
        assert known_pixels(site, two) == [facts, None]
