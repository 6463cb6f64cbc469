"""From words on the command line to a checked plan."""

from __future__ import annotations

import pytest
import yaml

from eucaim_fl.compose import compose, resolve, sweep
from eucaim_fl.errors import RecipeError, SiteFileError


class TestCompose:
    def test_overrides_win_over_the_recipe_and_the_recipe_over_the_defaults(self):
        config = compose(["experiment=demo", "rounds=3"])
        assert (config.name, config.rounds) == ("demo", 3)

    def test_a_recipe_of_the_working_folder_is_found(self, tmp_path, monkeypatch):
        (tmp_path / "experiments").mkdir()
        (tmp_path / "experiments" / "own.yaml").write_text("name: own\nsites: [a]\nrounds: 2\n")
        monkeypatch.chdir(tmp_path)
        assert compose(["experiment=own"]).rounds == 2

    def test_a_group_of_the_working_folder_is_found(self, tmp_path, monkeypatch):
        (tmp_path / "configs" / "method").mkdir(parents=True)
        values = compose(["experiment=demo"]).method.model_dump(mode="json")
        values["server_optimizer"]["lr"] = 0.5
        (tmp_path / "configs" / "method" / "slow.yaml").write_text(yaml.safe_dump(values))
        monkeypatch.chdir(tmp_path)
        assert compose(["experiment=demo", "method=slow"]).method.server_optimizer.lr == 0.5

    @pytest.mark.parametrize("text", ["{", "!!python/object:os.system {}", "- 1\n"])
    def test_a_recipe_that_is_no_plain_yaml_is_an_error(self, tmp_path, monkeypatch, text):
        (tmp_path / "experiments").mkdir()
        (tmp_path / "experiments" / "bad.yaml").write_text(text)
        monkeypatch.chdir(tmp_path)
        with pytest.raises(RecipeError, match="bad"):
            compose(["experiment=bad"])

    def test_a_sweep_is_not_one_recipe(self):
        with pytest.raises(RecipeError, match="several runs"):
            compose(["--multirun", "experiment=demo", "seed=0,1"])

    def test_what_the_job_raises_comes_out_and_ends_the_sweep(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        seen = []

        def job(config):
            seen.append(config.seed)
            raise SiteFileError("no")

        with pytest.raises(SiteFileError, match="no"):
            sweep(["--multirun", "experiment=demo", "seed=0,1,2"], job)
        assert seen == [0]

    def test_an_unknown_key_is_refused_by_sweep_too(self):
        with pytest.raises(RecipeError, match="metod"):
            sweep(["experiment=demo", "metod=x"], print)


class TestResolve:
    def test_the_plan_names_sites_in_order_and_arguments_in_full(self, hospital, recipe):
        resolved = resolve(recipe([hospital("b"), hospital("a")]))
        assert resolved.plan.sites == ("a", "b")
        assert resolved.plan.model.args["kernel_size"] == 3

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"model": {"name": "unett"}}, "unett"),
            ({"model": {"args": {"channels": [4, 8], "strides": [2], "depth": 3}}}, "depth"),
            ({"model": {"args": {"channels": "many", "strides": [2]}}}, "channels"),
            ({"data": {"size_voxels": [15, 15, None]}}, "15"),
            ({"data": {"size_voxels": [None, 16, None]}}, "no fixed size"),
            ({"training": {"patch_voxels": [16]}}, "patch_voxels"),
            ({"method": {"rule": {"name": "krumm"}}}, "krum"),
            ({"method": {"rule": {"name": "krum"}}}, "quorum|sites"),
            ({"method": {"server_optimizer": {"name": "addam"}}}, "adam"),
        ],
    )
    def test_what_can_not_work_is_refused_before_anything_runs(self, hospital, recipe, change, said):
        with pytest.raises(RecipeError, match=said):
            resolve(recipe([hospital("a")], **change))

    def test_two_sites_of_one_name_are_refused(self, hospital, recipe, tmp_path):
        first = hospital("a")
        second = tmp_path / "again.yaml"
        second.write_text(first.read_text())
        with pytest.raises(RecipeError, match="Two site files"):
            resolve(recipe([first, second]))

    def test_a_site_file_that_is_missing_is_an_error(self, recipe, tmp_path):
        with pytest.raises(SiteFileError, match="does not exist"):
            resolve(recipe([tmp_path / "none.yaml"]))
