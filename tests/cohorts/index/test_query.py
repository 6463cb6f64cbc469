from __future__ import annotations

import pytest

from eucaim_fl.cohorts.index.query import CohortQuery, below_folder, conditions
from eucaim_fl.errors import CohortError


class TestConditions:
    def test_an_empty_query_wants_everything(self) -> None:
        assert conditions(CohortQuery()) == ("true", [])

    def test_values_never_become_part_of_the_text(self) -> None:
        evil = "x' OR 1=1 --"
        query = CohortQuery(
            folders=(evil,), patients=(evil,), modality=(evil,), body_part=(evil,), words=(evil,), manufacturer=(evil,)
        )
        text, values = conditions(query)
        assert "OR 1=1" not in text
        assert text.count("?") == len(values)

    def test_as_many_places_as_values(self) -> None:
        query = CohortQuery(
            folders=("a", "b"),
            series=("1", "2", "3"),
            kind="dicom",
            plane="axial",
            contrast=False,
            usable=True,
            thickness_mm=(0.0, 5.0),
            b_value=(0.0, 50.0),
            slices=(10, 20),
            studied=("2010", "2011"),
            words=("t2", "tse"),
        )
        text, values = conditions(query)
        assert text.count("?") == len(values)

    @pytest.mark.parametrize("day", ["2018-01-01", "18", "201801", "", "２０１８"])
    def test_a_day_that_is_none_is_an_error(self, day: str) -> None:
        with pytest.raises(CohortError, match="neither YYYY nor YYYYMMDD"):
            conditions(CohortQuery(studied=("2018", day)))


class TestBelowFolder:
    def test_the_cohorts_own_folder_is_everything(self) -> None:
        assert below_folder("") == ("true", [])

    def test_siblings_that_only_begin_alike_are_not_meant(self) -> None:
        _, (own, low, high) = below_folder("P1")
        assert own == "P1"
        assert [name for name in ("P1", "P1-a", "P1/x", "P10", "P1/x/y") if low <= name < high] == ["P1/x", "P1/x/y"]
