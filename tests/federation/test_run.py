"""Whole runs over worker processes: same bits however they are run, and what becomes of faults."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from eucaim_fl.compose import resolve
from eucaim_fl.config import ExperimentConfig
from eucaim_fl.errors import (
    InterruptedRunError,
    JournalError,
    PlanError,
    RecipeError,
    RunFolderBusyError,
    RunNotFoundError,
)
from eucaim_fl.federation.progress import Listener
from eucaim_fl.federation.run import create_run, execute, find_run, read_recipe
from tests.conftest import tiny_recipe, write_hospital

pytestmark = pytest.mark.federated
APPS = Path(__file__).parent / "apps"


def go(config, folder=None, *listeners, **options):
    resolved = resolve(config)
    folder = folder or create_run(config, resolved.plan, resolved.site_files)
    return execute(folder, config, resolved.site_files, *listeners, **options)[0], folder


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    """The site files of four hospitals, prepared once; each test has its runs in a folder of its own."""
    folder = tmp_path_factory.mktemp("four")
    return [write_hospital(folder, name) for name in "abcd"]


class Finished(NamedTuple):
    """A run that is over, and where the data of its first hospital lie."""

    config: ExperimentConfig
    result: dict[str, Any]
    folder: Path
    data: Path


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The run that nothing disturbs, over the same four hospitals in a folder of its own. Tests leave it as it is."""
    folder = tmp_path_factory.mktemp("reference")
    config = tiny_recipe(folder, [write_hospital(folder, name) for name in "abcd"], rounds=3)
    return Finished(config, *go(config), folder / "data")


@pytest.fixture(scope="module")
def reference(finished):
    """Its result."""
    return finished.result


class TestReproducible:
    @pytest.mark.long
    def test_the_number_of_workers_changes_no_bit(self, four, recipe, reference):
        for workers in (1, 4):
            result, _ = go(recipe(four, rounds=3, federation={"workers": workers}))
            assert result["weights_sha256"] == reference["weights_sha256"]
            assert result["metrics"] == reference["metrics"]

    def test_another_seed_gives_another_model(self, four, recipe, reference):
        assert go(recipe(four, rounds=3, seed=1))[0]["weights_sha256"] != reference["weights_sha256"]


@pytest.fixture
def faulty(monkeypatch):
    monkeypatch.syspath_prepend(str(APPS))

    def set_fault(**fault):
        (APPS / "fault.json").write_text(json.dumps(fault))
        return "faulty_site_app:app"

    yield set_fault
    (APPS / "fault.json").unlink(missing_ok=True)


class TestOneSiteOfFourFails:
    @pytest.mark.parametrize(
        ("how", "status"),
        [
            *[("raise", "lost"), ("die", "lost"), ("nan", "rejected")],
            pytest.param("hang", "deadline", marks=pytest.mark.long),
            pytest.param("freeze", "deadline", marks=pytest.mark.long),
        ],
    )
    def test_the_run_ends_well_with_three_and_says_so(self, four, recipe, faulty, how, status):
        app = faulty(site="b", round=2, how=how)
        config = recipe(four, rounds=3, federation={"quorum": 2, "round_deadline_s": 15.0})
        result, folder = go(config, client_app=app)
        by_round = {r["round"]: {p["site"]: p for p in r["sites"]} for r in result["participation"]}
        assert by_round[2]["b"]["status"] == status
        assert by_round[2]["b"]["code"].startswith("EFL")
        assert all(by_round[r][s]["status"] == "took_part" for r in (1, 2, 3) for s in "acd")
        assert by_round[3]["b"]["status"] == "took_part"
        everything = json.dumps(result) + (folder / "report.html").read_text()
        assert "PATIENT-7" not in everything
        assert "secret" not in everything


@pytest.mark.long
class TestOneWorker:
    def test_a_hanging_site_costs_its_own_deadline_and_not_the_others(self, four, recipe, faulty):
        app = faulty(site="a", round=1, how="hang")
        config = recipe(four, rounds=1, federation={"workers": 1, "round_deadline_s": 6.0})
        result, _ = go(config, client_app=app)
        first = {p["site"]: p["status"] for p in result["participation"][0]["sites"]}
        assert first == {"a": "deadline", "b": "took_part", "c": "took_part", "d": "took_part"}


SCRIPT = """
import sys
from pathlib import Path
from eucaim_fl.cli import main
if __name__ == "__main__":
    sys.argv = ["eucaim-fl", "train", "resume=" + sys.argv[1]]
    main()
"""


class TestResume:
    @pytest.mark.long
    def test_killed_at_several_moments_it_ends_with_the_weights_of_the_undisturbed_run(
        self, four, recipe, reference, tmp_path
    ):
        script = tmp_path / "resume.py"
        script.write_text(SCRIPT)
        config = recipe(four, rounds=3)
        resolved = resolve(config)
        folder = create_run(config, resolved.plan, resolved.site_files)
        moments = ("spool/*/*", "journal/round-0001/record.json", "journal/round-0002/record.json")
        kills = 0
        for file in moments:  # a reply has come, a round is written, and the next
            process = subprocess.Popen(
                [sys.executable, str(script), str(folder)],
                start_new_session=True,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            until = time.monotonic() + 120
            while process.poll() is None and not any(folder.glob(file)):
                assert time.monotonic() < until
                time.sleep(0.005)
            kills += process.poll() is None
            process.kill()  # the coordinator only: its workers must end by themselves
            process.wait()
        assert not (folder / "result.json").exists()
        result, _ = go(config, folder)
        assert kills == len(moments)
        assert result["weights_sha256"] == reference["weights_sha256"]
        assert _left_over(folder) == []

    def test_ctrl_c_ends_cleanly_and_the_run_goes_on_later(self, four, recipe, reference):
        class Impatient(Listener):
            def round_done(self, record):
                if record.round == 1:
                    os.kill(os.getpid(), signal.SIGINT)

        config = recipe(four, rounds=3)
        resolved = resolve(config)
        folder = create_run(config, resolved.plan, resolved.site_files)
        with pytest.raises(InterruptedRunError, match="resume="):
            execute(folder, config, resolved.site_files, Impatient())
        assert json.loads((folder / "status.json").read_text())["state"] == "interrupted"
        result, _ = go(config, folder)
        assert result["weights_sha256"] == reference["weights_sha256"]

    def test_a_finished_run_can_be_resumed_without_changing_anything_and_its_history_is_left_alone(
        self, four, recipe, reference
    ):
        config = recipe(four, rounds=3)
        first, folder = go(config)
        before = {name: (folder / name).read_bytes() for name in ("provenance.json", "result.json", "report.html")}
        again, _ = go(config, folder)
        assert {name: (folder / name).read_bytes() for name in before} == before
        assert again["weights_sha256"] == first["weights_sha256"] == reference["weights_sha256"]
        assert again["metrics"] == first["metrics"]

    def test_two_runs_at_once_over_one_folder_are_refused(self, four, recipe):
        class Greedy(Listener):
            def round_started(self, number, sites):
                if number == 1:
                    with pytest.raises(RunFolderBusyError, match="Another process"):
                        self.execute()

            def execute(self):
                run = "from eucaim_fl.durable import exclusive; from pathlib import Path; import sys\n"
                run += "with exclusive(Path(sys.argv[1])): pass"
                ended = subprocess.run([sys.executable, "-c", run, str(folder)], capture_output=True, text=True)
                if "RunFolderBusyError" in ended.stderr:
                    raise RunFolderBusyError("Another process works in this run folder.")

        config = recipe(four, rounds=1)
        resolved = resolve(config)
        folder = create_run(config, resolved.plan, resolved.site_files)
        execute(folder, config, resolved.site_files, Greedy())


def _left_over(folder: Path) -> list[int]:
    """Processes that still write this run's log, ten seconds after it ended at the latest."""
    for _ in range(50):
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                try:
                    command = (entry / "environ").read_bytes() + (entry / "cmdline").read_bytes()
                except OSError:
                    continue
                if str(folder).encode() in command:
                    found.append(int(entry.name))
        if not found:
            return []
        time.sleep(0.2)
    return found


class TestFiles:
    def test_the_folder_holds_plan_recipe_provenance_models_and_result(self, finished):
        folder = finished.folder
        names = {p.name for p in folder.iterdir()}
        assert {"plan.json", "recipe.yaml", "provenance.json", "result.json", "report.html"} <= names
        assert {p.name for p in (folder / "models").glob("*.safetensors")} == {"best.safetensors", "last.safetensors"}
        assert json.loads((folder / "result.json").read_text()) == finished.result
        assert not list((folder / "spool").glob("*/*"))

    def test_what_the_coordinator_keeps_names_no_patient_and_no_path_of_a_site(self, finished):
        assert (finished.data / "a").is_dir()
        for path in finished.folder.rglob("*"):
            if path.is_file() and path.name not in ("sites.log", "recipe.yaml"):
                content = path.read_bytes()
                assert not re.search(rb"PATIENT-\d", content), path.name
                assert str(finished.data).encode() not in content, path.name

    def test_old_rounds_keep_their_record_but_not_their_arrays(self, four, recipe):
        _, folder = go(recipe(four[:1], rounds=5))
        kept = sorted(p.parent.name for p in (folder / "journal").glob("*/weights.safetensors"))
        assert kept == ["round-0000", "round-0005", "round-0006"]
        assert len(list((folder / "journal").glob("*/record.json"))) == 6


class TestFindRun:
    def test_an_unknown_run_names_the_nearest(self, tmp_path):
        (tmp_path / "demo-1").mkdir()
        (tmp_path / "demo-1" / "plan.json").write_text("{}")
        with pytest.raises(RunNotFoundError, match="demo-1"):
            find_run("demo-2", tmp_path)

    def test_a_folder_without_recipe_is_no_run(self, tmp_path):
        with pytest.raises(RunNotFoundError, match="no readable recipe"):
            read_recipe(tmp_path)

    def test_a_damaged_recipe_or_plan_is_named(self, tmp_path, hospital, recipe):
        config = recipe([hospital("a")])
        resolved = resolve(config)
        folder = create_run(config, resolved.plan, resolved.site_files)
        (folder / "recipe.yaml").write_text("name: 1\n")
        with pytest.raises(RecipeError, match="not valid"):
            read_recipe(folder)
        (folder / "plan.json").write_text("{}")
        with pytest.raises(PlanError, match="schema version"):
            read_recipe(folder)

    def test_a_run_folder_that_can_not_be_made_leaves_nothing(self, tmp_path, hospital, recipe):
        (tmp_path / "runs").write_text("a file")
        config = recipe([hospital("a")])
        resolved = resolve(config)
        with pytest.raises(JournalError, match="can't be made"):
            create_run(config, resolved.plan, resolved.site_files)


@pytest.mark.long
class TestFullDisk:
    def test_a_full_disk_ends_the_run_resumable_and_leaves_nothing_half_written(self, four, recipe, reference):
        """A limit on file size makes every larger write fail as a full disk does."""
        config = recipe(four, rounds=3)
        resolved = resolve(config)
        folder = create_run(config, resolved.plan, resolved.site_files)
        program = (
            "import resource, sys\n"
            "from eucaim_fl.cli import main\n"
            "if __name__ == '__main__':\n"
            "    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))\n"
            "    sys.argv = ['eucaim-fl', 'train', 'resume=' + sys.argv[1]]\n"
            "    main()\n"
        )
        script = folder.parent / "full.py"
        script.write_text(program)
        ended = subprocess.run(
            [sys.executable, str(script), str(folder)],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},  # else Python keeps its byte code, cut off
        )
        assert ended.returncode == 2, ended.stderr
        assert "disk is full" in ended.stderr
        assert not list(folder.rglob("*.part"))
        result, _ = go(config, folder)
        assert result["weights_sha256"] == reference["weights_sha256"]
