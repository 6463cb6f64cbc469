"""`eucaim-fl site approve` and `refuse`: a person's word on a plan, in the audit log."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from eucaim_fl.cli.home_option import home_option
from eucaim_fl.errors import SiteFileError

if TYPE_CHECKING:
    from eucaim_fl.site.home import SiteHome
    from eucaim_fl.site.policy_decision import Decision

__all__ = ["approve", "refuse"]


_BY = click.option(
    "--by", metavar="NAME", help="Who decides, such as dpo-2: the log keeps it beside the login name, unchecked."
)


@click.command("approve", short_help="Let a plan run that waits for a decision.")
@click.argument("plan", metavar="HASH")
@home_option()
@_BY
@click.option("--yes", is_flag=True, help="Don't ask.")
def approve(plan: str, home: Path, by: str | None, yes: bool) -> None:
    """Show a plan that was asked for, and what the policy says to it; then let it run.

    HASH is the plan's SHA-256 or its first digits, as `site status` shows it. The audit log keeps who approved: the
    login name, and in a container, where all share one, the name given with --by. All else that the policy asks for
    stays in force. A later `site refuse` takes it back from the next instruction on.

    \b
    Examples:
      eucaim-fl site approve 3f2a91c0 --home /srv/eucaim-fl
      eucaim-fl site approve 3f2a91c0 --home /home/site --by dpo-2
    """
    _decide("approved", plan, home, by, yes)


@click.command("refuse", short_help="Refuse a plan.")
@click.argument("plan", metavar="HASH")
@home_option()
@_BY
@click.option("--yes", is_flag=True, help="Don't ask.")
def refuse(plan: str, home: Path, by: str | None, yes: bool) -> None:
    """Show a plan that was asked for, and refuse it from the next instruction on. What was sent before stays sent.

    HASH is the plan's SHA-256 or its first digits. The audit log keeps who refused, as with `site approve`, which takes
    it back.

    \b
    Example:
      eucaim-fl site refuse 3f2a91c0 --home /srv/eucaim-fl
    """
    _decide("refused", plan, home, by, yes)


def _decide(word: Literal["approved", "refused"], prefix: str, folder: Path, stated_by: str | None, yes: bool) -> None:
    from eucaim_fl.plan_text import explain
    from eucaim_fl.signing import PrivateKey
    from eucaim_fl.site.approvals import decide_now, find_plan, login_name, say, stated_name
    from eucaim_fl.site.audit import AuditLog
    from eucaim_fl.site.check_report import printable
    from eucaim_fl.site.enrol import read_joined
    from eucaim_fl.site.home import SiteHome
    from eucaim_fl.site.policy import load_policy

    stated = None if stated_by is None else stated_name(stated_by)
    home = SiteHome(folder).require()
    plan = find_plan(home, prefix)
    site = read_joined(home).site
    audit = AuditLog(home.audit_folder, PrivateKey.load(home.site_key), site)
    policy, confidential = load_policy(home.policy_file), _confidential(home)
    decision = decide_now(plan, site, policy, audit, datetime.now(UTC), confidential=confidential)
    click.echo(f"Plan {plan.name}, SHA-256 {plan.sha256()}\n")
    for sentence in explain(plan):
        click.echo(f"- {printable(sentence)}")
    click.echo()
    _show(decision, word == "approved")
    before = audit.approval(plan.sha256())
    if before is not None:
        click.echo(f"A person here has {before} it before; this word counts from now on.")
    by = login_name()
    who = by if stated is None else f"{stated} (login name {by})"
    if not yes:
        click.confirm(f"{'Approve' if word == 'approved' else 'Refuse'} it as {who}?", abort=True)
    say(audit, plan.sha256(), word, by, stated)
    click.echo(f"{word.capitalize()} by {who}; the audit log has it. It counts from the next instruction on.")


def _confidential(home: SiteHome) -> bool:
    """Whether the data are, which a site file that can't be read does not keep a person from deciding."""
    from eucaim_fl.sitefile import load_site_file

    try:
        return load_site_file(home.site_file).release.data_is == "confidential"
    except SiteFileError:
        return True


def _show(decision: Decision, approving: bool) -> None:
    """What the policy says, apart from the approval itself."""
    from eucaim_fl.site.check_report import printable

    others = [clause for clause in decision.clauses if clause.key != "approval"]
    for clause in others:
        word = clause.verdict if clause.verdict == "allows" else clause.verdict.upper()
        click.echo(printable(f"  {word:<8} {clause.key}: {clause.says}. The plan: {clause.asks}."))
    refused = [clause.key for clause in others if clause.verdict == "refuses"]
    if refused and approving:
        click.echo(f"\nThe policy refuses this plan whatever you say here: {', '.join(refused)}.")
    later = [clause.key for clause in others if clause.verdict == "waits"]
    if later and approving:
        click.echo(f"\nAt this moment the policy makes it wait in any case: {', '.join(later)}.")
    click.echo()
