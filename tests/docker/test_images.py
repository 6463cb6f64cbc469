"""The Dockerfiles: what goes into an image, who runs in it, and what it may write."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from docker.utils.build import exclude_paths

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
BOTH = pytest.mark.parametrize("name", ["site", "coordinator"])
FETCHES = re.compile(r"\b(curl|wget|git clone|ssh|scp)\b|https?://(?!download\.pytorch\.org/whl/)")
SECRETS = re.compile(r"(?i)passw|secret|token|credential|api_?key|private")


def test_the_linter_finds_nothing() -> None:
    files = sorted(str(path) for path in (ROOT / "docker").glob("*.Dockerfile"))
    assert len(files) == 2
    linter = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([linter, "--config", ROOT / "docker/hadolint.yaml", *files], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


@BOTH
class TestWhatGoesIn:
    def test_every_stage_starts_from_one_base_at_an_exact_version(self, images, name) -> None:
        bases = {stage.base for stage in images[name].stages}
        assert len(images[name].stages) == 2
        assert len(bases) == 1
        assert re.fullmatch(r"docker\.io/library/python:3\.11\.\d+-slim-[a-z]+", bases.pop())

    def test_libraries_come_at_the_tested_versions_and_pip_runs_in_the_first_stage_only(self, images, name) -> None:
        build, final = images[name].stages
        (libraries, package) = build.all("RUN")
        for command in re.findall(r"pip [^&]*install [^&]*", libraries):
            assert "--constraint constraints.txt" in command
        assert "--no-deps" in package
        assert not re.search(r"\bpip\b", " ".join(final.all("RUN")))

    def test_torch_comes_for_processors_unless_another_index_is_named(self, images, name) -> None:
        build = images[name].stages[0]
        assert "TORCH_INDEX=https://download.pytorch.org/whl/cpu" in build.all("ARG")
        assert '--no-deps --index-url "${TORCH_INDEX}" torch' in build.all("RUN")[0]

    def test_nothing_is_fetched_but_packages(self, images, name) -> None:
        for stage in images[name].stages:
            assert not stage.all("ADD")
            for word, rest in stage.instructions:
                assert not FETCHES.search(rest), f"{word} {rest}"

    def test_lists_of_packages_are_removed_in_the_layer_that_made_them(self, images, name) -> None:
        for command in [rest for stage in images[name].stages for rest in stage.all("RUN") if "apt-get" in rest]:
            assert "--no-install-recommends" in command
            assert command.endswith("rm -rf /var/lib/apt/lists/*")

    def test_no_secret_is_an_argument_or_in_the_environment(self, images, name) -> None:
        for stage in images[name].stages:
            for word in ("ARG", "ENV", "LABEL"):
                assert not any(SECRETS.search(rest) for rest in stage.all(word))
            assert not any(".env" in rest for rest in stage.all("COPY"))

    def test_it_says_what_it_is(self, images, name) -> None:
        labels = " ".join(images[name].final.all("LABEL"))
        for key in ("title", "description", "licenses", "version", "revision"):
            assert f"org.opencontainers.image.{key}=" in labels
        version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
        assert f"VERSION={version}" in images[name].final.all("ARG")


def test_both_images_are_built_alike(images) -> None:
    assert images["site"].stages[0] == images["coordinator"].stages[0]


def test_requirements_are_those_of_the_package(images) -> None:
    command = re.search(r"python (-c \"import tomllib.*?\") >", images["site"].stages[0].all("RUN")[0])
    assert command is not None
    words = ["/bin/sh", "-c", f"{sys.executable} {command[1]}"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    assert (
        done.stdout.split("\n")[:-1] == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    )


class TestBuildContext:
    """What .dockerignore lets through, judged by the engine's own rules."""

    def sent(self, folder: Path) -> set[str]:
        patterns = [
            line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")
        ]
        return {path for path in exclude_paths(str(folder), patterns) if (folder / path).is_file()}

    def test_everything_that_is_copied_is_there(self, images) -> None:
        sent = self.sent(ROOT)
        for rest in images["site"].stages[0].all("COPY"):
            for source in rest.split()[:-1]:
                assert source in sent or any(path.startswith(f"{source}/") for path in sent), source
        assert "eucaim_fl/federation/server_app.py" in sent
        assert {"sites/a.yaml", "configs/train.yaml", "experiments/demo.yaml"} <= sent

    def test_nothing_else_is(self, tmp_path: Path) -> None:
        private = [
            "data/demo/a/clinical.csv",
            "runs/one/plan.json",
            ".git/config",
            "docker/.env",
            "federations/hospitals/secrets/executor",
            "sites/our_hospital.yaml",
            "sites/home/keys/site_key.pem",
            "eucaim_fl/keys/node_key.pem",
            "eucaim_fl/.env",
            "eucaim_fl/__pycache__/cli.cpython-311.pyc",
            "notes.txt",
        ]
        for name in [*private, "eucaim_fl/cli/__init__.py"]:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        assert self.sent(tmp_path) == {"eucaim_fl/cli/__init__.py"}


@BOTH
class TestWhoRuns:
    def test_nobody_is_root(self, images, name) -> None:
        final = images[name].final
        assert final.all("USER") == ["1000:0"]
        after = [word for word, _ in final.instructions[final.instructions.index(("USER", "1000:0")) :]]
        assert not {"RUN", "COPY", "ADD"} & set(after)

    def test_code_is_not_theirs_and_what_they_write_belongs_to_group_0(self, images, name) -> None:
        final = images[name].final
        assert final.all("COPY") == ["--from=build /opt/eucaim-fl /opt/eucaim-fl"]
        folders = re.search(r"install -d -o 1000 -g 0 -m 0770 (.*)$", final.all("RUN")[-1])
        assert folders is not None
        assert set(images[name].volumes) <= set(folders[1].split())

    def test_every_cache_of_a_library_lies_where_anybody_may_write(self, images, name) -> None:
        environment = images[name].environment
        caches = {key: value for key, value in environment.items() if re.search(r"HOME$|CACHE|CONFIG", key)}
        assert {"HOME", "MPLCONFIGDIR", "FLWR_HOME", "XDG_CACHE_HOME", "TORCH_HOME", "NUMBA_CACHE_DIR"} <= set(caches)
        own = {key for key in caches if key.startswith("EUCAIM_FL_")}
        for key in set(caches) - own:
            assert Path(caches[key]).is_relative_to("/tmp"), key  # noqa: S108
        assert {environment[key] for key in own} <= set(images[name].volumes)

    def test_nobody_is_told_of_its_use(self, images, name) -> None:
        environment = images[name].environment
        assert environment["FLWR_TELEMETRY_ENABLED"] == "0"
        assert environment["FLWR_DISABLE_UPDATE_CHECK"] == "1"
        assert environment["DO_NOT_TRACK"] == "1"
        assert name == "site" or environment["MLFLOW_DISABLE_TELEMETRY"] == "true"

    def test_mlflow_keeps_no_queue_of_jobs(self, images, name) -> None:
        """Fifteen workers that nobody gives work to."""
        assert name == "site" or images[name].environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"

    def test_commands_are_lists_of_words_and_end_on_sigterm(self, images, name) -> None:
        final = images[name].final
        assert images[name].command[:3] == ["eucaim-fl", *final.words("CMD")[:2]]
        assert final.all("STOPSIGNAL") == ["SIGTERM"]
        assert len(final.all("HEALTHCHECK")) == 1
        assert images[name].health[-3:] in (["--healthy", "--home", "/home/site"], ["status", "hospitals", "--check"])


def test_only_the_coordinator_offers_a_port(images) -> None:
    assert images["site"].final.all("EXPOSE") == []
    assert images["coordinator"].final.all("EXPOSE") == ["8443"]
    assert int(images["coordinator"].final.all("EXPOSE")[0]) > 1024, "a port that needs no privilege"


def test_the_linter_would_find_something(tmp_path: Path) -> None:
    bad = tmp_path / "bad.Dockerfile"
    bad.write_text("FROM python\nRUN curl http://x | sh\nCMD python x\n")
    linter = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([linter, "--config", ROOT / "docker/hadolint.yaml", bad], capture_output=True, text=True)
    assert done.returncode == 1
    assert {"DL3006", "DL4006", "DL3025"} <= set(re.findall(r"DL\d{4}", done.stdout))
