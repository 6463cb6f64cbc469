"""`eucaim-fl site`: what hospital IT does with a cohort. One file a command, imported when it is called."""

from __future__ import annotations

import importlib

import click

__all__ = ["command"]

_COMMANDS = {
    "check": "Say which patients can be used, and why others can't.",
    "import": "Bring images into the cohort: folder, ZIP, archive.",
    "index": "Read the headers of new and changed files.",
    "locate": "Name the patients or files that break a rule.",
    "lineage": "Say which runs patients were used in.",
}


class _Lazy(click.Group):
    """Commands are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        found: click.Command = importlib.import_module(f"eucaim_fl.cli.site_{cmd_name}").command
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


@click.group("site", cls=_Lazy, short_help="For hospital IT: check, import, index; sends nothing.")
def command() -> None:
    """For hospital IT. Nothing of the cohort is sent; only `import` asks somebody, the archive that you name.

    Start with: eucaim-fl site check sites/a.yaml
    """
