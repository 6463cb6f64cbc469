"""The option that names a site's home; every command of a running site has it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from eucaim_fl.site.home import HOME_VARIABLE

__all__ = ["home_option"]


def home_option(says: str = "the current folder") -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """`--home FOLDER`, or what EUCAIM_FL_SITE_HOME says, or the current folder.

    says: what happens without it, where that is something else; the command then gets None.
    """
    here = says == "the current folder"
    return click.option(
        "--home",
        type=click.Path(path_type=Path),
        envvar=HOME_VARIABLE,
        show_envvar=True,
        default=Path() if here else None,
        show_default=says,
        help="The site's home, as `site init` made it." if here else "The site's home.",
    )
