"""`eucaim-fl site locate`: on this machine's terminal, whose files break a rule."""

from __future__ import annotations

import sys
from pathlib import Path

import click
from rich.console import Console

from eucaim_fl.errors import ConfigError
from eucaim_fl.registry import suggestion

__all__ = ["command"]


@click.command("locate", short_help="Name the patients or files that break a rule.")
@click.argument("site_file", type=click.Path(path_type=Path))
@click.argument("rule")
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="Lines printed at most.")
@click.option("--no-pixels", is_flag=True, help="Headers and tables only; quick, but finds less.")
@click.option("--yes-print-identifiers", "sure", is_flag=True, help="Print even if this is no terminal.")
def command(site_file: Path, rule: str, limit: int, no_pixels: bool, sure: bool) -> None:
    """Print the files (or patients) that break RULE, a name from `site check`, so that they can be mended.

    What is printed may name people: it goes to the terminal only, and nothing of it is kept.

    \b
    Examples:
      eucaim-fl site locate sites/a.yaml deid.person_name
      eucaim-fl site locate sites/a.yaml quality.same_pixels --limit 10
    """
    from eucaim_fl.cli.site_check import steps
    from eucaim_fl.site.locate import known_rules, locate
    from eucaim_fl.sitefile import load_site_file

    if not sure and not sys.stdout.isatty():
        raise ConfigError(
            "What this prints may name people, and the output is no terminal.",
            fix="Run it in a terminal, or add --yes-print-identifiers if the output stays on this machine.",
        )
    known = known_rules()
    if rule not in known:
        raise ConfigError(f"There is no rule '{rule[:80]}'.", fix=suggestion(rule, known))
    site = load_site_file(site_file)
    count = 0
    with steps(Console(stderr=True)) as tell:
        for count, line in enumerate(locate(site, rule, pixels=not no_pixels, tell=tell), start=1):
            if count > limit:
                click.echo(f"… there are more; --limit is {limit}", err=True)
                break
            click.echo(line)
    if count == 0:
        click.echo("Nothing breaks this rule.", err=True)
