from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eucaim_fl.cohorts.layouts import Place
from eucaim_fl.cohorts.layouts.places import outermost
from eucaim_fl.errors import CohortError, DataError


class TestClaim:
    def test_it_is_the_path_below_the_folder_with_slashes(self, tmp_path):
        assert Place(tmp_path).claim("a/b", "c") == "a/b/c"
        assert Place(tmp_path).claim(".") == ""

    @pytest.mark.parametrize(
        "parts", [("..",), ("a", "../.."), ("/etc",), ("a", "/etc"), ("",), ("a", ""), ("a\0",), ("\ud800",)]
    )
    def test_what_leads_out_or_is_no_path_is_refused_without_saying_where(self, tmp_path, parts):
        with pytest.raises(DataError, match="leads out of the cohort's folder") as caught:
            Place(tmp_path).claim(*parts)
        assert str(tmp_path) not in str(caught.value)

    def test_a_link_may_lead_inside_and_into_allowed_folders_only(self, tmp_path):
        cohort, lake, other = (tmp_path / name for name in ("cohort", "lake", "other"))
        for folder in (cohort / "real", lake / "study", other):
            folder.mkdir(parents=True)
        (cohort / "inside").symlink_to(cohort / "real")
        (cohort / "allowed").symlink_to(lake / "study")
        (cohort / "astray").symlink_to(other)
        place = Place(cohort, links=(lake.resolve(),))
        assert [place.claim("inside"), place.claim("allowed", "x")] == ["inside", "allowed/x"]
        with pytest.raises(DataError, match="leads out"):
            place.claim("astray", "x")
        with pytest.raises(DataError, match="leads out"):
            Place(cohort).claim("allowed")

    def test_links_in_a_circle_are_refused(self, tmp_path):
        (tmp_path / "a").symlink_to(tmp_path / "b")
        (tmp_path / "b").symlink_to(tmp_path / "a")
        with pytest.raises(DataError, match="leads out"):
            Place(tmp_path).claim("a", "x")

    @given(st.lists(st.text(max_size=20), max_size=4))
    def test_whatever_is_claimed_lies_inside_or_is_refused(self, parts):
        root = Path("/nowhere/cohort")
        try:
            relative = Place(root).claim(*parts)
        except DataError:
            return
        assert (root / relative).resolve().is_relative_to(root)


class TestClaimNames:
    def test_each_name_is_one_step(self, tmp_path):
        assert Place(tmp_path).claim_names("P1", "1.2", below="imaging_data") == "imaging_data/P1/1.2"

    @pytest.mark.parametrize("name", ["P1/1.2", ".", "./P1", "P1/", "..", "", "/P1"])
    def test_a_patient_can_not_be_another_one_by_its_spelling(self, tmp_path, name):
        with pytest.raises(DataError, match="leads out"):
            Place(tmp_path).claim_names(name, "x")


class TestPlace:
    def test_it_is_what_the_site_file_says(self, tiny, tmp_path):
        site = tiny.site(tmp_path)
        cohort = site.cohort.model_copy(update={"links": (tmp_path / "lake",), "words": ("prostata",)})
        place = Place.of(site.model_copy(update={"cohort": cohort}))
        assert place == Place(tmp_path / "cohort", ((tmp_path / "lake").resolve(),), frozenset({"prostata"}))

    def test_hidden_folders_and_files_are_no_subfolders(self, tmp_path):
        for name in ("b", "a", ".hidden"):
            (tmp_path / name).mkdir()
        (tmp_path / "file").touch()
        assert Place(tmp_path).subfolders() == ["a", "b"]

    def test_a_folder_that_is_not_there_has_none(self, tmp_path):
        with pytest.raises(CohortError, match="may not be listed"):
            Place(tmp_path / "gone").subfolders()


class TestOutermost:
    def test_folders_inside_others_are_left_out_but_not_those_that_only_begin_alike(self):
        assert outermost(["a/b", "ab", "a", "a/b/c", "c/d"]) == ["a", "ab", "c/d"]

    def test_the_cohorts_own_folder_holds_all(self):
        assert outermost(["a", "", "b/c"]) == [""]

    def test_nothing_stays_nothing(self):
        assert outermost([]) == []


class TestFiles:
    @pytest.mark.parametrize("folder", ["", "a", "a/b"])
    def test_they_are_the_absolute_paths_in_the_given_order(self, tmp_path, folder):
        relative = [f"{folder}/{name}".lstrip("/") for name in ("2.dcm", "1.dcm")]
        place = Place(tmp_path)
        assert place.files(folder, relative) == tuple(map(place.path, relative))


class TestAbsent:
    def test_a_name_that_the_index_hides_is_the_reason_and_not_that_a_file_is_missing(self, tmp_path):
        (tmp_path / "Rossi_Maria").mkdir()
        missing = DataError("A file is missing.")
        found = Place(tmp_path).absent("Rossi_Maria", missing)
        assert (found.code, found.message) == ("EFL205", "A file's name can name a person.")
        assert Place(tmp_path).absent("Bianchi_Carlo", missing) is missing
        assert Place(tmp_path).absent("P1", missing) is missing
        assert Place(tmp_path, blocks=False).absent("Rossi_Maria", missing) is missing
