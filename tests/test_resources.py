"""Recipes and site files are found in the user's folder first, then beside the package."""

from __future__ import annotations

from pathlib import Path

import pytest

from eucaim_fl.errors import SiteFileError
from eucaim_fl.resources import configs_folder, experiment_files, site_file

CHECKOUT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


class TestExperimentFiles:
    def test_the_recipes_of_the_package_are_there_in_any_folder(self) -> None:
        assert experiment_files()["demo"] == CHECKOUT / "experiments" / "demo.yaml"

    def test_the_users_own_recipe_goes_first(self, tmp_path: Path) -> None:
        (tmp_path / "experiments").mkdir()
        (tmp_path / "experiments" / "demo.yaml").write_text("name: mine")
        assert experiment_files()["demo"].absolute() == tmp_path / "experiments" / "demo.yaml"


class TestConfigsFolder:
    def test_it_holds_the_entry_of_all_recipes(self) -> None:
        assert (configs_folder() / "train.yaml").is_file()


class TestSiteFile:
    def test_a_name_is_looked_up_in_the_users_folder_first(self, tmp_path: Path) -> None:
        assert site_file("a") == CHECKOUT / "sites" / "a.yaml"
        (tmp_path / "sites").mkdir()
        (tmp_path / "sites" / "a.yaml").write_text("name: a")
        assert site_file("a") == tmp_path / "sites" / "a.yaml"

    def test_a_path_is_taken_as_it_is(self, tmp_path: Path) -> None:
        (tmp_path / "north.yml").write_text("name: north")
        assert site_file("north.yml") == tmp_path / "north.yml"
        assert site_file(str(tmp_path / "north.yml")) == tmp_path / "north.yml"

    def test_an_unknown_name_is_refused_with_the_nearest_one(self) -> None:
        with pytest.raises(SiteFileError, match=r"no site file for 'lidc_x'\. Did you mean 'lidc_"):
            site_file("lidc_x")

    def test_a_path_that_does_not_exist_is_refused_without_telling_it(self) -> None:
        with pytest.raises(SiteFileError, match=r"^A site file named in the recipe does not exist\.$") as caught:
            site_file("/srv/hospital/north.yaml")
        assert caught.value.local_detail == "/srv/hospital/north.yaml"
