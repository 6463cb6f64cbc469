"""The command as users meet it: help, errors with exit codes, plans, runs, training, JSON."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from rich.console import Console

from eucaim_fl.cli import cli, main
from eucaim_fl.cli.compare import command as compare_command
from eucaim_fl.cli.prepare import ensure_prepared
from eucaim_fl.cli.validation_tables import print_validation
from eucaim_fl.errors import CohortError, RecipeError
from eucaim_fl.plan import read_plan
from tests.tracking.finished_validation import answer, asking, begin, finish

pytestmark = pytest.mark.integration


def command(*words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "eucaim_fl", *words], capture_output=True, text=True, cwd=cwd, timeout=300
    )


@pytest.fixture
def own_recipe(tmp_path, hospital, recipe):
    """A working folder with a recipe `mine` of its own, as a researcher would have it."""

    def write(**changes):
        config = recipe([hospital(name) for name in "ab"], **changes)
        values = config.model_dump(mode="json")
        (tmp_path / "experiments").mkdir()
        defaults = {"defaults": [{"override /tracking": "none"}]}
        (tmp_path / "experiments" / "mine.yaml").write_text(yaml.safe_dump({**defaults, **values}))
        return tmp_path

    return write


@pytest.fixture
def here(tmp_path, monkeypatch, capsys):
    """Runs the command's entry point in this process, in an empty folder; returns exit code, output, errors."""
    warmed = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("eucaim_fl.federation.processes.warm_up", lambda: warmed.append(True))
    monkeypatch.setattr("eucaim_fl.federation.processes.cool_down", warmed.clear)

    def run(*words: str) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", ["eucaim-fl", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        assert not warmed  # a command that failed leaves no process that still loads
        told = capsys.readouterr()
        return ended.value.code, told.out, told.err

    return run


class TestHelp:
    @pytest.mark.parametrize("words", [["train"], ["compare"], ["plan", "show"], ["prepare", "demo"], ["runs"]])
    def test_every_command_has_help_with_an_example(self, words):
        result = CliRunner().invoke(cli, [*words, "--help"])
        assert result.exit_code == 0
        assert "Example" in result.output

    def test_the_first_page_names_all_commands(self):
        result = CliRunner().invoke(cli, ["--help"])
        assert all(word in result.output for word in ("train", "compare", "plan", "prepare", "runs"))


@pytest.mark.usefixtures("composed_once")
class TestErrors:
    @pytest.mark.parametrize(
        ("words", "nearest"),
        [
            (["train", "experiment=demmo"], "'demo'"),
            (["train", "experiment=demo", "method=fedprx"], "'fedprox'"),
            (["train", "experiment=demo", "metod=fedprox"], "'method'"),
            (["train", "experiment=demo", "training.batchsize=4"], "batch_size"),
            (["train", "experiment=demo", "+training.batchsize=4"], "batch_size"),
            (["train", "experiment=demo", "model=unett"], "'unet'"),
            (["train", "experiment=demo", "model.args.channels=many"], "channels"),
            (["train", "experiment=demo", "sites=[a,b,c,dd]"], "no site file"),
            (["train", "resume=nothing"], "no such run"),
            (["train", "experiment=demo", "rounds=0"], "rounds"),
            (["train"], "experiment=demo"),
            (["plan", "show", "experiment=demo", "model.args.strides=[2,2,2]"], "strides"),
        ],
    )
    def test_bad_input_says_what_is_wrong_names_the_nearest_and_exits_with_2(self, words, nearest, here, tmp_path):
        code, _, told = here(*words)
        assert code == 2, told
        assert nearest in told
        assert "Traceback" not in told
        assert told.startswith("EFL")
        assert not (tmp_path / "runs").exists()
        assert not (tmp_path / "data").exists()

    def test_a_process_of_its_own_ends_like_that_too(self, tmp_path):
        result = command("train", "experiment=demmo", cwd=tmp_path)
        assert result.returncode == 2, result.stderr
        assert result.stderr.startswith("EFL")
        assert "'demo'" in result.stderr
        assert "Traceback" not in result.stderr

    def test_a_resumed_run_keeps_its_plan(self, here):
        code, _, told = here("train", "resume=x", "rounds=5")
        assert code == 2
        assert "keeps its plan" in told

    def test_seeds_must_be_numbers(self):
        result = CliRunner().invoke(compare_command, ["experiment=demo", "--seeds", "a,b"])
        assert isinstance(result.exception, RecipeError)

    def test_a_folder_with_something_else_is_not_taken_for_demo_data(self, tmp_path, monkeypatch, hospital, recipe):
        monkeypatch.setenv("EUCAIM_FL_DATA", str(tmp_path))
        (tmp_path / "demo").mkdir()
        (tmp_path / "demo" / "thesis.txt").write_text("dear to somebody")
        config = recipe([hospital("a")], prepare="demo")
        with pytest.raises(CohortError, match="other files"):
            ensure_prepared(config, Console())
        assert (tmp_path / "demo" / "thesis.txt").exists()


@pytest.mark.usefixtures("composed_once")
class TestPlanShow:
    def test_it_prints_plan_hash_and_plain_words(self):
        result = command("plan", "show", "experiment=demo")
        assert result.returncode == 0, result.stderr
        assert "SHA-256: " in result.stdout
        assert "Never sent: images" in result.stdout

    def test_the_json_is_the_canonical_plan(self, here):
        code, told, _ = here("plan", "show", "--json", "experiment=demo")
        plan = read_plan(told.strip())
        assert (code, plan.sites) == (0, ("a", "b", "c", "d"))
        assert plan.sha256() in here("plan", "show", "experiment=demo")[1]

    def test_a_large_delta_is_warned_of(self, here):
        words = ("plan", "show", "experiment=demo", "privacy=update_dp")
        told = here(*words, "privacy.delta=0.3")[1]
        assert "Warning: delta 0.3 protects only sites of fewer than 4 training patients" in told
        assert "Warning" not in here(*words)[1]

    def test_overrides_reach_the_plan(self, here):
        _, told, _ = here("plan", "show", "--json", "experiment=demo", "method=fedprox", "rounds=3", "seed=7")
        plan = read_plan(told.strip())
        assert (plan.rounds, plan.seed, plan.method.objective.name) == (3, 7, "proximal")


class TestValidationRuns:
    @pytest.fixture
    def run(self, tmp_path):
        """The folder of a finished validation, in the place where commands look for runs."""
        folder, plan = tmp_path / "runs" / "run-1", asking()
        begin(folder, plan)
        answer(folder, plan)
        finish(folder, plan)
        return folder

    def test_the_list_says_what_was_validated_and_the_main_figure(self, run):
        words = CliRunner(env={"COLUMNS": "200"}).invoke(cli, ["runs", "--runs-dir", str(run.parent)]).stdout
        assert "validation of model-1 against model-2" in words
        assert re.search(r"auc 0\.\d{3} \(0\.\d{3} to \d\.\d{3}\)", words)

    def test_its_result_is_printed_as_sentences_and_who_is_missing(self, run, capsys):
        result = json.loads((run / "result.json").read_text())
        result["participation"][1] |= {"status": "deadline", "reason": "No answer in 5 s [b]."}
        print_validation(Console(width=500), asking(), run, result)
        words = capsys.readouterr().out
        assert all(sentence in words for sentence in result["validation"])
        assert "b is missing: No answer in 5 s [b].\n" in words


@pytest.mark.federated
class TestTrain:
    def test_the_last_line_is_the_run_folder(self, own_recipe, monkeypatch):
        folder = own_recipe()
        monkeypatch.chdir(folder)
        result = CliRunner().invoke(cli, ["train", "experiment=mine"])
        assert result.exit_code == 0, result.output
        run = Path(result.stdout.strip().splitlines()[-1])
        assert (run / "result.json").is_file()
        assert "report.html" in result.stdout
        listed = CliRunner().invoke(cli, ["runs", "--json"])
        assert [row["state"] for row in json.loads(listed.stdout)] == ["finished"]
        assert "finished" in CliRunner().invoke(cli, ["runs"]).stdout

    def test_json_is_the_result_and_nothing_else(self, own_recipe):
        result = command("train", "--json", "experiment=mine", "rounds=1", cwd=own_recipe())
        assert result.returncode == 0, result.stderr
        values = json.loads(result.stdout)
        assert set(values["metrics"]["sites"]) == {"a", "b"}
        assert values["rounds"] == 1

    @pytest.mark.long
    def test_a_sweep_makes_one_run_for_each_seed(self, own_recipe, monkeypatch):
        folder = own_recipe()
        monkeypatch.chdir(folder)
        result = CliRunner().invoke(cli, ["train", "--multirun", "experiment=mine", "seed=0,1", "rounds=1"])
        assert result.exit_code == 0, result.output
        runs = [json.loads(p.read_text()) for p in sorted((folder / "runs").glob("*/plan.json"))]
        assert sorted(run["seed"] for run in runs) == [0, 1]

    @pytest.mark.long
    def test_compare_prints_one_table_and_writes_its_json(self, own_recipe, monkeypatch):
        monkeypatch.chdir(own_recipe(rounds=1))
        result = CliRunner().invoke(cli, ["compare", "experiment=mine", "--seeds", "0,1"])
        assert result.exit_code == 0, result.output
        run = Path(result.stdout.strip().splitlines()[-1])
        values = json.loads((run / "comparison.json").read_text())
        assert set(values["models"]) == {"local a", "local b", "pooled", "federated"}
        assert values["seeds"] == [0, 1]
        assert values["steps"] == 3
        for row in values["models"].values():
            assert row["low"] <= row["estimate"] <= row["high"]

    def test_confidential_data_is_never_pooled(self, tmp_path, own_recipe, here):
        own_recipe()
        site = yaml.safe_load((tmp_path / "a.yaml").read_text())
        site["release"]["data_is"] = "confidential"
        (tmp_path / "a.yaml").write_text(yaml.safe_dump(site))
        code, _, told = here("compare", "experiment=mine")
        assert code == 2
        assert "EFL304" in told
