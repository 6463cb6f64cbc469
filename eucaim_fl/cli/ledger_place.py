"""The options that name a ledger, and the ledger that they name; every `eucaim-fl site ledger` command has them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from eucaim_fl.site.home import HOME_VARIABLE

if TYPE_CHECKING:
    from eucaim_fl.site.ledger_look import LedgerPlace

__all__ = ["located", "place_options"]


def place_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--home FOLDER`, or `--site FILE` for a site file without a home; and `--json`."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print JSON."),
        click.option(
            "--site", "site_file", type=click.Path(path_type=Path), help="A site file without a home, instead of it."
        ),
        click.option(
            "--home",
            type=click.Path(path_type=Path),
            envvar=HOME_VARIABLE,
            show_envvar=True,
            help="The site's home, as `site init` made it.",
        ),
    ):
        function = option(function)
    return function


def located(home: Path | None, site_file: Path | None) -> LedgerPlace:
    """What the options name; a site file counts more than a home that only the environment names."""
    from eucaim_fl.site.ledger_look import locate_ledger

    source = click.get_current_context().get_parameter_source("home")
    if site_file is not None and source is click.core.ParameterSource.ENVIRONMENT:
        home = None
    return locate_ledger(home, site_file)
