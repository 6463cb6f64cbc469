"""`eucaim-fl benchmark` as users meet it: options, one table, expectations, going on."""

from __future__ import annotations

import json

import pytest
import yaml
from click.testing import CliRunner

from eucaim_fl.cli import cli
from eucaim_fl.cli.benchmark import command
from eucaim_fl.errors import RecipeError, RunNotFoundError

pytestmark = pytest.mark.federated


@pytest.fixture
def own_recipe(tmp_path, hospital, recipe, monkeypatch):
    """A working folder with a recipe `mine`, which expects what can't be."""
    benchmark = {
        "seeds": [0],
        "rows": {"longer": ["trained=pooled", "training.optimizer.lr=0.05"], "more": ["rounds=3"]},
        "reduced": ["rounds=1"],
        "expect": ["longer > pooled + 2"],
    }
    values = recipe([hospital(name) for name in "ab"], benchmark=benchmark).model_dump(mode="json")
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "mine.yaml").write_text(yaml.safe_dump(values))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*words: str):
    return CliRunner().invoke(cli, ["benchmark", *words])


class TestBenchmark:
    @pytest.mark.parametrize("seeds", ["a,b", "0,0", "-1"])
    def test_other_seeds_are_refused(self, seeds: str) -> None:
        result = CliRunner().invoke(command, ["experiment=demo", f"--seeds={seeds}"])
        assert isinstance(result.exception, RecipeError)

    def test_nothing_is_given_beside_resume(self) -> None:
        result = run("resume=somewhere", "rounds=3")
        assert isinstance(result.exception, RecipeError)
        assert "beside resume=" in str(result.exception)

    def test_a_folder_without_benchmark_is_named(self, tmp_path) -> None:
        assert isinstance(run(f"resume={tmp_path}").exception, RunNotFoundError)

    def test_rows_that_no_recipe_has_are_refused(self, own_recipe) -> None:
        assert "no benchmark row 'fast'" in str(run("experiment=mine", "--rows", "fast").exception)

    def test_a_row_with_more_steps_is_refused_before_anything_is_trained(self, own_recipe) -> None:
        assert "makes 9 optimizer steps and the recipe 6" in str(run("experiment=mine").exception)
        assert not (own_recipe / "runs").exists()

    @pytest.mark.slow
    def test_chosen_rows_make_one_table_and_going_on_makes_the_same(self, own_recipe) -> None:
        first = run("experiment=mine", "--rows", "pooled,longer", "--json")
        assert first.exit_code == 0, first.output
        folder = next((own_recipe / "runs").glob("benchmark-tiny-*"))
        told = json.loads((folder / "benchmark.json").read_text())
        assert told["order"] == ["pooled", "longer"]
        assert told["command"] == "eucaim-fl benchmark experiment=mine --rows pooled,longer"
        assert json.loads(first.stdout) == told
        (folder / "benchmark.json").unlink()
        again = run(f"resume={folder}")
        assert again.exit_code == 0, again.output
        assert again.stdout.splitlines()[-1] == str(folder)
        assert json.loads((folder / "benchmark.json").read_text()) == told

    @pytest.mark.slow
    def test_an_ordering_that_does_not_hold_ends_with_1_where_it_is_checked(self, own_recipe) -> None:
        recipe = own_recipe / "experiments" / "mine.yaml"
        values = yaml.safe_load(recipe.read_text())
        values["benchmark"]["rows"] = {
            "local": ["trained=pooled"],
            "flower_fedavg": ["trained=pooled"],
            "longer": ["trained=pooled", "training.optimizer.lr=0.05"],
        }
        recipe.write_text(yaml.safe_dump(values))
        result = CliRunner().invoke(
            cli, ["benchmark", "experiment=mine", "--reduced", "--check"], standalone_mode=False
        )
        assert "3 optimizer steps each" in result.output
        assert result.return_value == 1
        assert "does not hold: longer > pooled + 2" in result.output
