"""`validate` as its users meet it: what it would ask, what it finds, what it says to bad input, and that it goes on."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from onnx import helper
from rich.console import Console

from eucaim_fl.arrays import encode_arrays
from eucaim_fl.cli import cli, main
from eucaim_fl.cli.progress import LineListener
from eucaim_fl.cli.train import resume
from eucaim_fl.cli.validate import as_recipe
from eucaim_fl.compose import compose, resolve
from eucaim_fl.errors import InterruptedRunError, RecipeError, RunNotFoundError
from eucaim_fl.models.planned import first_arrays
from eucaim_fl.plan import read_plan
from tests.conftest import tiny_recipe, write_hospital
from tests.inference.frozen import linear, onnx_bytes, onnx_model, tensor

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("composed_once")]


def write_model(runs: Path, name: str, plan, seed: int = 0) -> None:
    """A run of a plan as far as its model is needed."""
    (runs / name / "models").mkdir(parents=True)
    (runs / name / "plan.json").write_text(plan.canonical_json())
    weights = first_arrays(plan.model_copy(update={"seed": seed}))
    (runs / name / "models" / "best.safetensors").write_bytes(b"".join(map(bytes, encode_arrays(weights))))


def pixelwise():
    """A model of somebody else: background and lesion are two lines through a pixel's value."""
    weights, bias = np.array([-1.0, 1.0], np.float32).reshape(2, 1, 1, 1), np.array([0.5, -0.5], np.float32)
    node = helper.make_node("Conv", ["x", "w", "b"], ["y"])
    ends = {"shape": ("n", 1, "h", "v"), "answer": ("n", 2, "h", "v")}
    return onnx_model([node], [tensor("w", weights), tensor("b", bias)], **ends)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A working folder: a recipe `mine` over two hospitals, and three runs whose models can be judged."""
    root = tmp_path_factory.mktemp("place")
    config = tiny_recipe(root, [write_hospital(root, name) for name in "ab"])
    (root / "experiments").mkdir()
    values = {**config.model_dump(mode="json"), "runs_dir": "runs"}
    defaults = {"defaults": [{"override /tracking": "none"}]}
    (root / "experiments" / "mine.yaml").write_text(yaml.safe_dump({**defaults, **values}))
    plan = resolve(config).plan
    write_model(root / "runs", "first", plan)
    write_model(root / "runs", "second", plan, seed=1)
    (root / "foreign.onnx").write_bytes(onnx_bytes(pixelwise()))
    card = {"data": config.data.model_dump(mode="json"), "intended_use": "a test"}
    (root / "foreign.yaml").write_text(yaml.safe_dump(card))
    write_model(root / "runs", "elsewhere", plan.model_copy(update={"sites": ("c",), "name": "elsewhere"}))
    policy = {"schema": "eucaim-fl-policy/1", "approval": "automatic", "networks": "any"}
    (root / "policy.yaml").write_text(yaml.safe_dump(policy))
    strict = yaml.safe_load((root / "b.yaml").read_text()) | {"policy": "policy.yaml"}
    (root / "strict.yaml").write_text(yaml.safe_dump(strict))
    return root


@pytest.fixture
def run_in(place, monkeypatch, capsys):
    """Runs the command's entry point in the working folder; returns exit code, output, errors."""
    monkeypatch.chdir(place)
    monkeypatch.setattr("eucaim_fl.federation.processes.warm_up", lambda: None)

    def run(*words: str) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", ["eucaim-fl", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        told = capsys.readouterr()
        return ended.value.code, told.out, told.err

    return run


class TestItsOwnWords:
    def test_paths_are_read_letter_by_letter(self, place, monkeypatch):
        monkeypatch.chdir(place)
        for path in ("runs/a b,c", "it's", "back\\slash\\", "C:\\it\\'s", "models:/demo@best", "a=b"):
            words = as_recipe((f"model={path}", "against=x", "cohort=mine"))
            asked = compose(words).validation
            assert (asked.model, asked.against) == (path, "x")

    def test_all_other_words_stay(self):
        assert as_recipe(("experiment=mine", "seed=1", "--cfg")) == ["experiment=mine", "seed=1", "--cfg"]

    def test_as_recipe_takes_one_run_at_a_time(self):
        with pytest.raises(RecipeError, match="one model at a time"):
            as_recipe(("--multirun", "model=a"))

    def test_resume_keeps_the_plan(self):
        with pytest.raises(RecipeError, match="keeps its plan"):
            resume("x", ["seed=1"], Console(), True)
        with pytest.raises(RunNotFoundError, match="no such run"):
            resume("x", ["runs_dir=/nowhere"], Console(), True)


class TestBadInput:
    @pytest.mark.parametrize(
        ("words", "said"),
        [
            ([], "names no frozen model"),
            (["model=none.onnx"], "no such model"),
            (["model=firsst"], "'first'"),
            (["model=notes.txt"], "no kind that is taken"),
            (["model=net.onnx"], "answers with 2 axes, a segmentation has 4"),
            (["model=colour.onnx"], "takes 1 channels, its contract has 3"),
            (["model=first", "against=first"], "same file"),
            (["model=first", "validation.thresholds=[1.5]"], "less than 1"),
            (["model=first", "validation.thresholds=[0.5,0.2]"], "ascend"),
            (["model=first", "validation.subgroups=[{by: race}]"], "sex"),
            (["model=first", "validation.subgroups=[{by: age}]"], "numbers need edges"),
            (["model=first", "validation.treshold=[0.5]"], "thresholds"),
            (["model=first", "validation.patients=all"], "patients that it has seen"),
            (["model=first", "validation.comparisons=[{metric: dice}]"], "no second model"),
            (["model=first", "+validation.half_widths.auc=0.1"], "segmentation has no figure auc"),
            (["against=first"], "no validation.model"),
            (["model=mlflow:nothing"], "no such model"),
            (["model=first", "--multirun"], "one model at a time"),
            (["model=first", "sites=[nowhere]"], "no site file"),
        ],
        ids=" ".join,
    )
    def test_it_says_what_is_wrong_and_exits_with_2(self, words, said, run_in, place):
        (place / "notes.txt").write_text("no model")
        for name, data in (("net", "size_voxels: [8, 8, null]"), ("colour", "colour: true")):
            (place / f"{name}.onnx").write_bytes(onnx_bytes(linear()))
            (place / f"{name}.yaml").write_text(f"data: {{{data}}}\nintended_use: a test\n")
        before = sorted((place / "runs").iterdir())
        code, _, told = run_in("validate", "cohort=mine", *words)
        assert code == 2, told
        assert said in told
        assert told.startswith("EFL")
        assert "Traceback" not in told
        assert sorted((place / "runs").iterdir()) == before

    @pytest.mark.parametrize("command", ["train", "compare", "benchmark"])
    def test_what_trains_names_the_command_that_judges(self, command, run_in):
        code, _, told = run_in(command, "experiment=mine", "validation.model=first")
        assert code == 2
        assert "eucaim-fl validate cohort=RECIPE model=PATH" in told


class TestDryRun:
    def test_it_says_what_is_asked_what_leaves_and_that_nothing_started(self, run_in, place):
        before = sorted((place / "runs").iterdir())
        code, told, _ = run_in("validate", "model=first", "cohort=mine", "--dry-run")
        assert code == 0
        for phrase in ("Model tiny: one of this software's networks, unet", "how fine", "lesions", "No image leaves",
                       "nothing of a single patient", "a: none refuses", "Nothing was started"):  # fmt: skip
            assert phrase in told
        assert sorted((place / "runs").iterdir()) == before

    def test_json_has_the_plan_and_the_same_as_data(self, run_in):
        words = ("validate", "model=first", "against=second", "cohort=mine", "--dry-run", "--json")
        code, told, _ = run_in(*words)
        found = json.loads(told)
        plan = read_plan(json.dumps(found["plan"], sort_keys=True, separators=(",", ":"), ensure_ascii=False))
        assert code == 0
        assert plan.sha256() == found["plan_sha256"]
        assert [one["name"] for one in found["models"]] == ["tiny", "tiny-2"]
        assert found["leaves"]["numbers"] > sum(one["numbers"] for one in found["leaves"]["figures"])

    def test_a_site_whose_policy_refuses_is_named_with_the_line(self, run_in):
        code, told, _ = run_in("validate", "model=elsewhere", "cohort=mine", "sites=[a.yaml,strict.yaml]", "--dry-run")
        assert code == 0
        assert "- a: none refuses" in told
        assert "- b: refused, or to wait" in told
        assert "frozen_models.formats" in told

    def test_plan_show_says_the_same_plan(self, run_in):
        code, told, _ = run_in("plan", "show", "--json", "experiment=mine", "validation.model=first")
        dry = json.loads(run_in("validate", "model=first", "cohort=mine", "--dry-run", "--json")[1])
        assert code == 0
        assert read_plan(told.strip()).sha256() == dry["plan_sha256"]

    def test_it_is_for_new_runs(self, run_in):
        code, _, told = run_in("validate", "resume=x", "--dry-run")
        assert code == 2
        assert "--dry-run is for new ones" in told


@pytest.mark.long
@pytest.mark.federated
class TestWholeRun:
    def test_one_that_was_interrupted_goes_on_to_its_end(self, place, monkeypatch):
        monkeypatch.chdir(place)
        words = [
            "validate",
            "model=first",
            "against=foreign.onnx",
            "cohort=mine",
            "validation.comparisons=[{metric: dice}]",
        ]
        answered = []

        def stop(listener, number, participation):
            answered.append(participation.site)
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(LineListener, "site_answered", stop)
            result = CliRunner().invoke(cli, words)
        assert isinstance(result.exception, InterruptedRunError)
        assert answered
        (folder,) = (place / "runs").glob("tiny-*")
        assert not (folder / "result.json").exists()
        assert folder.name in result.exception.fix
        done = CliRunner().invoke(cli, ["validate", f"resume={folder.name}"])
        assert done.exit_code == 0, done.output
        assert "Mean Dice" in done.stdout
        assert "foreign" in done.stdout
        assert done.stdout.strip().splitlines()[-1] == str(folder)
        assert (folder / "report.html").is_file()
        again = CliRunner().invoke(cli, ["train", f"resume={folder.name}", "--json"])
        assert json.loads(again.stdout) == json.loads((folder / "result.json").read_text())
