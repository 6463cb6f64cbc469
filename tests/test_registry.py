"""Names that users write, and what they are told about the others."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eucaim_fl.errors import RecipeError, SiteFileError
from eucaim_fl.registry import lookup, nearest, suggestion, suggestions

METHODS = {"fedavg": 1, "fedprox": 2, "krum": 3}


class TestNearest:
    def test_a_misspelt_name_finds_the_one_that_was_meant(self) -> None:
        assert nearest("fedporx", METHODS) == "fedprox"

    def test_a_name_like_no_other_finds_none(self) -> None:
        assert nearest("zzz", METHODS) is None
        assert nearest("fedavg", []) is None

    @given(st.text(), st.permutations(sorted(METHODS)))
    def test_the_order_of_the_known_names_does_not_matter(self, name: str, known: list[str]) -> None:
        assert nearest(name, known) == nearest(name, METHODS)


class TestSuggestion:
    def test_it_names_the_nearest_and_all_known(self) -> None:
        assert suggestion("krm", METHODS) == "Did you mean 'krum'? Known: fedavg, fedprox, krum."

    def test_without_a_nearest_it_lists_the_known(self) -> None:
        assert suggestion("zzz", METHODS) == "Known: fedavg, fedprox, krum."

    def test_a_long_list_is_not_shown(self) -> None:
        many = [f"name{number:03d}" for number in range(31)]
        assert suggestion("name017x", many) == "Did you mean 'name017'?"

    def test_a_guess_that_could_do_harm_is_left_out(self) -> None:
        assert suggestion("krm", METHODS, guess=False) == "Known: fedavg, fedprox, krum."

    def test_of_several_names_each_list_stands_once(self) -> None:
        names = sorted(METHODS)
        assert suggestions([("krm", names), ("zzz", names), ("x", ["y"])]) == (
            "Did you mean 'krum' instead of 'krm'? Known: fedavg, fedprox, krum. Known: y."
        )
        assert suggestions([("krm", names)]) == suggestion("krm", names)
        assert suggestions([]) == ""

    def test_nothing_known_leaves_nothing_to_say(self) -> None:
        assert suggestion("krum", []) == ""


class TestLookup:
    def test_a_known_name_gives_its_entry(self) -> None:
        assert lookup(METHODS, "krum", "method") == 3

    def test_an_unknown_name_is_refused_with_the_nearest_one(self) -> None:
        with pytest.raises(RecipeError, match=r"no method called 'fedavgg'\. Did you mean 'fedavg'\?"):
            lookup(METHODS, "fedavgg", "method")

    def test_the_caller_chooses_the_error(self) -> None:
        with pytest.raises(SiteFileError, match="no layout called 'x'"):
            lookup(METHODS, "x", "layout", SiteFileError)
