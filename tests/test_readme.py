"""The READMEs' commands are commands: every line of a shell block is parsed; `cli/test_cli` runs the cheap ones."""

from __future__ import annotations

import re
import shlex
from functools import cache
from pathlib import Path

import pytest
import yaml

from eucaim_fl.cli import cli
from eucaim_fl.compose import compose, resolve
from eucaim_fl.config import ValidationRecipe, parse
from eucaim_fl.sitefile import SiteFile
from eucaim_fl.validation_config import ValidationConfig

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("composed_once")]

ROOT = Path(__file__).resolve().parent.parent
PAGES = ["README.md", "experiments/README.md", "sites/README.md", "docker/README.md"]


def commands(page: str) -> list[list[str]]:
    """Words of every `eucaim-fl` or `make` line in a page's shell blocks."""
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / page).read_text(), re.S)
    lines = [line for block in blocks for line in re.sub(r"\\\n\s*", " ", block).splitlines()]
    ours = [line for line in lines if re.match(r"(eucaim-fl|make) ", line)]
    return [shlex.split(line, comments=True) for line in ours]


@cache
def makes_a_plan(recipe: tuple[str, ...]) -> None:
    """Once for each recipe: several lines have the same."""
    resolve(compose(recipe))


ALL = [(page, words) for page in PAGES for words in commands(page)]


def test_pages_hold_commands():
    assert len(ALL) >= 8


@pytest.mark.parametrize(("page", "words"), ALL, ids=lambda v: " ".join(v) if isinstance(v, list) else v)
def test_a_command_of_the_readme_exists_and_takes_its_words(page, words):
    if words[0] == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
        assert words[1] in targets
        return
    group, rest = cli, words[1:]
    while hasattr(group, "get_command"):
        command = group.get_command(None, rest[0])
        assert command is not None, f"{page}: {' '.join(words)}"
        group, rest = command, rest[1:]
    context = group.make_context(words[-1], list(rest), resilient_parsing=False)
    overrides = [o for o in context.params.get("overrides", ()) if not o.startswith(("-", "resume="))]
    if any(o.startswith("experiment=") for o in overrides) and "resume=RUN" not in rest:
        single = [re.sub(r"=([^,\[]+),.*$", r"=\1", o) for o in overrides]
        recipe = [o for o in single if not o.startswith(("federation=NAME", "permit."))]  # they are of one's own
        makes_a_plan(tuple(recipe))


def test_the_site_file_of_the_readme_is_valid_and_shows_the_true_defaults():
    block = re.search(r"## The keys of the site file\n```yaml\n(.*?)```", (ROOT / "sites/README.md").read_text(), re.S)
    values = yaml.safe_load(block.group(1))
    shown = parse(SiteFile, values, "The site file")
    least = parse(SiteFile, {"name": "x", "cohort": {"layout": "nifti_csv", "folder": "x"}}, "The site file")
    assert shown.release == least.release
    assert shown.compute == least.compute
    assert shown.cache == least.cache


def test_the_recipe_of_a_validation_and_the_description_of_its_model_are_valid():
    part = (ROOT / "experiments/README.md").read_text().partition("## Validating a frozen model")[2]
    recipe, described = (yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", part, re.S)[:2])
    asked = parse(ValidationRecipe, recipe["validation"], "The recipe")
    file = {"format": "onnx", "sha256": "0" * 64, "size_bytes": 1}
    models = [{**described, **file, "name": name} for name in ("triage-net", "older-net")]
    figures = asked.model_dump(exclude={"model", "against", "which", "intended_use", "patients"})
    assert parse(ValidationConfig, {**figures, "models": models}, "The plan").comparisons == asked.comparisons


def test_links_between_pages_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text()):
            assert (ROOT / page).parent.joinpath(target).exists(), f"{page}: {target}"


def test_make_demo_is_the_recipe_of_the_readme():
    assert "eucaim-fl train experiment=demo" in (ROOT / "Makefile").read_text()
