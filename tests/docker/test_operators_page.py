"""docker/README.md: its commands name services, images, folders and words that exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

from eucaim_fl.cli import cli
from eucaim_fl.site.policy import load_policy

FOLDER = Path(__file__).parents[2] / "docker"
PAGE = (FOLDER / "README.md").read_text()
SERVICES = yaml.safe_load((FOLDER / "compose.yaml").read_text())["services"]
WITH_VALUE = {"--volume", "--entrypoint", "-e"}


def lines() -> list[str]:
    """Every command of the page's shell blocks, with the variables of its loop filled in."""
    blocks = "\n".join(re.findall(r"```sh\n(.*?)```", PAGE, re.S))
    filled = blocks.replace("$site", "a").replace("$layout", "eucaim_tier3")
    return [line for line in filled.splitlines() if line.strip()]


def compose_words(line: str, verb: str) -> tuple[dict[str, str], str, list[str]]:
    """Options, service and words of `docker compose run` or `exec`."""
    words = shlex.split(line, comments=True)
    words = words[words.index(verb) + 1 :]
    options: dict[str, str] = {}
    while words[0].startswith("-"):
        option = words.pop(0)
        options[option] = words.pop(0) if option in WITH_VALUE else ""
    return options, words[0], [word for word in words[1:] if word not in ("<", ">")]


def accepted(words: list[str]) -> bool:
    """Whether the command line takes these words after `eucaim-fl`."""
    group, rest = cli, words
    while hasattr(group, "get_command"):
        found = group.get_command(None, rest[0])
        if found is None:
            return False
        group, rest = found, rest[1:]
    group.make_context("eucaim-fl", list(rest))
    return True


RUN = [line for line in lines() if line.startswith("docker compose run")]
EXEC = [line for line in lines() if line.startswith("docker compose exec")]


def test_there_are_some() -> None:
    assert len(RUN) >= 5
    assert len(EXEC) >= 8


@pytest.mark.parametrize("line", RUN)
def test_what_is_run_exists(line: str) -> None:
    options, service, words = compose_words(line, "run")
    assert service in SERVICES
    if "--entrypoint" in options:
        assert options["--entrypoint"] in ("cat", "sh")
    else:
        assert accepted(words or SERVICES[service]["command"])


@pytest.mark.parametrize("line", EXEC)
def test_what_is_executed_exists(line: str) -> None:
    _, service, words = compose_words(line, "exec")
    assert service in SERVICES
    if words[0] == "eucaim-fl":
        assert accepted(words[1:])
    else:
        assert words[0] in ("cat", "sh")


def test_services_that_are_started_exist() -> None:
    for line in lines():
        if line.startswith("docker compose up"):
            services = shlex.split(line, comments=True)[4:]
            assert set(services) <= set(SERVICES)


def test_images_and_files_exist() -> None:
    for file in re.findall(r"-f docker/(\S+)", PAGE):
        assert (FOLDER / file).is_file()
    images = {service["image"].partition(":")[0] for service in SERVICES.values()}
    assert set(re.findall(r"\b(eucaim-fl-(?:site|coordinator)):0\.1\.0", PAGE)) == images
    for unit in re.findall(r"systemd/(\S+\.service)", PAGE):
        assert (FOLDER / "systemd" / unit).is_file()


def test_the_page_says_what_each_image_may_write(images) -> None:
    (row,) = [line for line in PAGE.splitlines() if line.startswith("| writes |")]
    for image, cell in zip((images["site"], images["coordinator"]), row.split("|")[2:4], strict=True):
        assert set(re.findall(r"`(/[\w/]+)`", cell)) == {*image.volumes, "/tmp"}  # noqa: S108


def test_the_policy_of_the_demo_is_valid_and_says_that_it_is_for_nobody_else() -> None:
    path = FOLDER / "demo-policy.yaml"
    assert load_policy(path).policy.datasets == ("demo",)
    assert "Not for a hospital" in path.read_text().splitlines()[0] + path.read_text().splitlines()[1]
