"""`eucaim-fl privacy`: what an attacker could get, measured on this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

if TYPE_CHECKING:
    from eucaim_fl.cohorts.splits import HeldOut
    from eucaim_fl.compose import Recipe
    from eucaim_fl.exposure.examination import Examination
    from eucaim_fl.plan import FederationPlan
    from eucaim_fl.site.home import SiteHome
    from eucaim_fl.sitefile import SiteFile

__all__ = ["command"]


@click.group("privacy", short_help="Attack a plan on this machine, and see whether its promise stands.")
def command() -> None:
    """Privacy, measured: what an attacker could get of patients under a plan."""


@command.command("audit", context_settings={"ignore_unknown_options": True, "help_option_names": ["-h", "--help"]})
@click.option(
    "--site", "site_file", type=click.Path(path_type=Path), help="The site file; without: the recipe's first."
)
@click.option("--out", "page", type=click.Path(path_type=Path), default=Path("privacy-audit.html"), show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print the numbers as JSON; they are also beside the page.")
@click.option("--attacks", default="membership,canary,inversion", show_default=True, help="Which, with commas between.")
@click.option(
    "--shadows", type=click.IntRange(4, 512), default=16, show_default=True, help="Models of each kind; even."
)
@click.option(
    "--canaries", type=click.IntRange(20, 200_000), default=10_000, show_default=True, help="At most that many."
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of coins, halves and starts.")
@click.option(
    "--quick",
    "in_short",
    is_flag=True,
    help="Three rounds, 8 models, 1 picture: on two cores two or three minutes instead of a quarter of an hour.",
)
@click.option("--home", type=click.Path(path_type=Path), help="A site's home: its cohort, and plans asked of it.")
@click.argument("overrides", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def audit(
    ctx: click.Context,
    /,
    site_file: Path | None,
    home: Path | None,
    page: Path,
    as_json: bool,
    in_short: bool,
    overrides: tuple[str, ...],
    **options: Any,
) -> None:
    """Attack a recipe's plan on the patients of one site of this machine, and write a page with figures.

    Three attacks, each also on the same plan without protection: who was trained on (membership), a lower bound on
    epsilon (canary; also with noise switched off on purpose, so that the audit can fail), and images from an update
    (inversion). Nothing is sent or charged for. The page holds images of patients: it is for this site's eyes only.

    A hospital attacks a plan that was asked of it with --home: PLAN is then a file, or the SHA-256 (or 4 or more of its
    first digits) of a plan that the home keeps. The numbers are kept beside the site's ledger, for `site ledger page`.

    Exit 0: what was measured agrees with what is promised. Exit 2: the measured lower bound is above the promised
    epsilon, or the recipe or site can't be used.

    \b
    Examples:
      eucaim-fl privacy audit experiment=demo privacy=patient_dp
      eucaim-fl privacy audit experiment=demo privacy=patient_dp --quick --out audit.html
      eucaim-fl privacy audit 3f2a91c0 --home /srv/eucaim-fl --out audit.html
    """
    from eucaim_fl.cli.site_check import steps
    from eucaim_fl.compose import compose, resolve
    from eucaim_fl.exposure.examination import Settings, attacks_named, examine, quick
    from eucaim_fl.exposure.page import render_html, to_json, verdict_sentences
    from eucaim_fl.site.check_report import write_page
    from eucaim_fl.site.home import SiteHome
    from eucaim_fl.sitefile import load_site_file

    chosen = attacks_named(options["attacks"])
    if home is None:
        recipe = resolve(compose(overrides))
        plan, path = recipe.plan, site_file or _first(recipe)
    else:
        place = SiteHome(home).require()
        plan, path = _asked(overrides, place), site_file or place.site_file
    site = load_site_file(path)
    settings = Settings(chosen, options["shadows"], options["canaries"], seed=options["seed"])
    _see_place(page)
    with steps(Console(stderr=True)) as tell:
        asked = quick(settings) if in_short else settings
        found: Examination = examine(site, plan, asked, tell, held_out=_held_out(site, path, plan))
    numbers = json.dumps(to_json(found), indent=2, sort_keys=True)
    write_page(render_html(found), page, site.cohort_folder())
    write_page(numbers + "\n", page.with_suffix(".json"), site.cohort_folder())
    _keep(site, plan, numbers)
    if as_json:
        click.echo(numbers)
    else:
        head, reasons = verdict_sentences(found)
        click.echo(f"{head} {reasons}")
        if found.membership is not None:
            before = "" if found.membership_off is None else f" (without protection {found.membership_off.auc:.2f})"
            click.echo(f"Membership: area under the curve {found.membership.auc:.2f}{before}; 0.5 is guessing.")
        click.echo(f"\nPage: {page.absolute().as_uri()} (for local eyes only)")
    ctx.exit(2 if found.verdict == "broken" else 0)


def _held_out(site: SiteFile, path: Path, plan: FederationPlan) -> HeldOut | None:
    """Who never trains here by the policy that the site file names, as the site's client has it."""
    from eucaim_fl.site.held_out import held_out_of
    from eucaim_fl.site.policy import load_policy

    policy_file = site.policy_path(path)
    return held_out_of(site, plan, None if policy_file is None else load_policy(policy_file).policy)


def _first(recipe: Recipe) -> Path:
    from eucaim_fl.errors import RecipeError

    if not recipe.site_files:
        raise RecipeError("The recipe names no site file of this machine.", fix="Name one with --site FILE.")
    return next(iter(recipe.site_files.values()))


def _asked(words: tuple[str, ...], home: SiteHome) -> FederationPlan:
    """The one plan that is named. Raises PlanError if none or several are, or it is not there."""
    from eucaim_fl.cli.plan_argument import read_plan_argument
    from eucaim_fl.errors import PlanError

    if len(words) != 1:
        raise PlanError("With --home, name one plan.", fix="Give a file, or the SHA-256 of a plan that was asked for.")
    return read_plan_argument(words[0], home)


def _keep(site: SiteFile, plan: FederationPlan, numbers: str) -> None:
    """Keep the numbers where `site ledger page` looks for them."""
    from eucaim_fl.durable import write_atomically

    folder = site.records_folder() / "exposure"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_atomically(folder / f"{plan.sha256()}.json", numbers.encode())


def _see_place(page: Path) -> None:
    """Minutes of work must not end in a folder that is not there. Raises SiteFileError."""
    from eucaim_fl.errors import SiteFileError

    if page.is_dir() or not page.absolute().parent.is_dir():
        raise SiteFileError(
            "The page can't be written there.", fix="Give --out a file in an existing folder.", local_detail=str(page)
        )
