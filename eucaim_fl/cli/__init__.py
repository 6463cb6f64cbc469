"""The command `eucaim-fl`: one file a command; each parses, calls one function, prints."""

from __future__ import annotations

import sys
import traceback

import click

from eucaim_fl import __version__
from eucaim_fl.cli.lazy import LazyGroup
from eucaim_fl.errors import EucaimError, InterruptedRunError

__all__ = ["cli", "main"]

_COMMANDS = {
    "train": "Train one model over the sites of a recipe.",
    "compare": "Compare local, pooled and federated training.",
    "benchmark": "Compare all methods of a recipe with local and pooled training.",
    "validate": "Judge a frozen model on the sites' patients.",
    "plan": "Show what sites will be asked to do and to send.",
    "federation": "For the coordinator: set up, invite, admit, start.",
    "site": "For hospital IT: check, connect, approve, see what left.",
    "privacy": "Attack a plan on this machine: does its promise stand?",
    "report": "Verify the report of a validation, offline.",
    "permit": "Issue, show and verify data permits.",
    "prepare": "Write cohorts: the demo hospitals, or real data sets.",
    "runs": "List the runs of a folder.",
}


@click.group(
    cls=LazyGroup,
    table={name: (f"eucaim_fl.cli.{name}", says) for name, says in _COMMANDS.items()},
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="eucaim-fl")
def cli() -> None:
    """Federated learning on cancer images that stay in their hospitals.

    Start with: eucaim-fl train experiment=demo
    """


def main() -> None:
    """Entry point. Exit 0: done; 1: our defect; 2: the user can mend it; 130: stopped with Ctrl-C."""
    try:
        _main()
    finally:
        processes = sys.modules.get("eucaim_fl.federation.processes")
        if processes is not None:
            processes.cool_down()


def _main() -> None:
    try:
        code = cli(standalone_mode=False)
    except click.exceptions.Abort:
        click.echo("Stopped.", err=True)
        sys.exit(130)
    except click.ClickException as problem:
        problem.show()
        sys.exit(2)
    except InterruptedRunError as problem:
        click.echo(f"\n{problem.for_terminal()}", err=True)
        sys.exit(130)
    except EucaimError as problem:
        click.echo(problem.for_terminal(), err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        click.echo("Stopped.", err=True)
        sys.exit(130)
    except Exception:  # noqa: BLE001  the last stop: say that it is our defect
        traceback.print_exc()
        click.echo("This is a defect of eucaim-fl; please report it with the lines above.", err=True)
        sys.exit(1)
    sys.exit(code if isinstance(code, int) else 0)
