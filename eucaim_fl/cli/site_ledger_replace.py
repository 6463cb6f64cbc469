"""`eucaim-fl site ledger replace`: the way on when the privacy ledger is lost and there is no copy of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from eucaim_fl.cli.home_option import home_option
from eucaim_fl.errors import ConfigError

if TYPE_CHECKING:
    from eucaim_fl.site.ledger_replacement import Spent

__all__ = ["replace"]


@click.command("replace", short_help="Begin a new ledger when the old one is lost.")
@home_option()
@click.option(
    "--by", metavar="NAME", help="Who decides, such as dpo-2: the log keeps it beside the login name, unchecked."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--yes", is_flag=True, help="Do not ask whether there is no copy, and who decides.")
@click.option(
    "--no-local-runs",
    is_flag=True,
    help="Say that no plan with noise was trained here without the client; asked for where no record can tell.",
)
def replace(home: Path, by: str | None, as_json: bool, yes: bool, no_local_runs: bool) -> None:
    """Begin a new ledger in the place of one that is lost, charged with all that can have been spent.

    Only if no copy is left: the newest copy is always better. The audit log and the plans that the home keeps say how
    often each round was allowed. Who took part was in the lost ledger alone, so everybody is charged with all of it,
    also patients who are new here or come back; and figures of test data leave without noise no more. Whatever is left
    of the old ledger is moved aside, and the audit log records who decided. The site's client must not run.

    Not for a site where plans with noise were trained without the client: the log does not know of these. The record of
    who was used, beside the ledger, names them; where it is missing, a person has to say that there were none.

    \b
    Example:
      eucaim-fl site ledger replace --home /srv/eucaim-fl
    """
    from eucaim_fl.signing import PrivateKey
    from eucaim_fl.site.approvals import login_name, stated_name
    from eucaim_fl.site.audit import AuditLog
    from eucaim_fl.site.check_report import printable
    from eucaim_fl.site.home import SiteHome
    from eucaim_fl.site.ledger_look import locate_ledger
    from eucaim_fl.site.ledger_replacement import begin_anew, what_was_spent

    stated, login = None if by is None else stated_name(by), login_name()
    place, here = locate_ledger(home, None), SiteHome(home)
    delta = None if place.privacy is None else place.privacy.delta
    log = AuditLog(here.audit_folder, PrivateKey.load(here.site_key), place.site.name)
    shown = what_was_spent(place, log)
    click.echo(printable(f"Looked in {shown.folder.absolute()}. Is that where the ledger lay?"), err=True)
    click.echo(f"What the lost ledger of {place.site.name} can have held, by the audit log:", err=True)
    for line in _lines(shown.spent, delta):
        click.echo(line, err=True)
    click.echo("Everybody will be charged with it, known here or not. It can't be taken back.", err=True)
    if shown.lineage_missing and not no_local_runs:
        no_local_runs = _without_local_runs(yes)
    if not yes:
        who = login if stated is None else f"{stated} (login name {login})"
        click.confirm(f"Is there no copy of the ledger, and shall a new one begin so, as {who}?", abort=True, err=True)
    head = begin_anew(place, log, shown, login, stated, no_local_runs=no_local_runs)
    if as_json:
        told = {"records": head.count, "hash": head.hash, "plans": len(set(_plans(shown.spent)))}
        click.echo(json.dumps({"site": place.site.name, **told, "lineage_missing": shown.lineage_missing}))
    else:
        click.echo(f"A new ledger has begun with {len(shown.spent):,} charges to everybody; the audit log has it.")


def _without_local_runs(yes: bool) -> bool:
    """Have a person say that nothing was trained without the client. yes: nobody is asked, so it can't be said so."""
    click.echo(
        "The record of who was used (lineage.sqlite) is missing there, or lacks answers that left: nobody can see "
        "whether plans with noise were trained here without the client, and these would be forgotten.",
        err=True,
    )
    if yes:
        raise ConfigError(
            "The record of who was used is missing, and --yes does not answer for it.",
            fix="Put the record back, or say with --no-local-runs that no plan with noise was trained without the "
            "client.",
        )
    click.confirm("Is it sure that no plan with noise was trained without the client?", abort=True, err=True)
    return True


def _lines(spent: Sequence[Spent], delta: float | None) -> list[str]:
    """One for each plan, and one for all together; epsilon where the policy names a delta to tell it at."""
    from eucaim_fl.privacy.accounting import epsilon
    from eucaim_fl.site.check_report import printable
    from eucaim_fl.site.ledger_words import count, figure

    def cost(some: Sequence[Spent]) -> str:
        return "" if delta is None else f", epsilon {figure(epsilon([one.mechanism for one in some], delta))}"

    by_plan = {plan: [one for one in spent if one.what.plan == plan] for plan in dict.fromkeys(_plans(spent))}
    lines = []
    for plan, own in by_plan.items():
        rounds = count(len({one.round for one in own if one.what.use == "train"}), "round")
        lines.append(printable(f"- {own[0].what.name} ({plan[:12]}): {rounds}{cost(own)}"))
    at = "" if delta is None else f" at delta {delta:g}"
    return [*lines, f"- together: {count(len(by_plan), 'plan')}{cost(spent)}{at}"]


def _plans(spent: Sequence[Spent]) -> list[str]:
    return [one.what.plan for one in spent]
