"""`eucaim-fl site status`: is the client connected, admitted and contributing; what waits, and what left."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from eucaim_fl.cli.home_option import home_option
from eucaim_fl.errors import ApprovalPendingError, OutsideHoursError, PolicyRefusalError

if TYPE_CHECKING:
    from eucaim_fl.site.overview import LastStep, Overview
    from eucaim_fl.site.status import Fault, Step

__all__ = ["command"]

_DECIDED = (PolicyRefusalError.code, ApprovalPendingError.code, OutsideHoursError.code)


@click.command("status", short_help="Connected? Contributing? What waits for approval?")
@home_option()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--healthy", is_flag=True, help="Print one line; exit 0 if the client is well, 2 if not.")
@click.pass_context
def command(ctx: click.Context, home: Path, as_json: bool, healthy: bool) -> None:
    """Say how the client of this home is, what waits for a person here, and what has left. Nothing is sent.

    Well means connected, admitted and contributing: the client spoke within the last 60 s, the coordinator admits the
    site, its certificate is valid, and the last instruction did not end in a fault. That a plan waits for approval, or
    that the policy refuses it, is no fault.

    \b
    Examples:
      eucaim-fl site status --home /srv/eucaim-fl
      eucaim-fl site status --home /srv/eucaim-fl --healthy   for containers and service managers
    """
    from eucaim_fl.site.home import SiteHome
    from eucaim_fl.site.overview import look
    from eucaim_fl.site.running import is_running
    from eucaim_fl.site.status import health, read_status, well

    place, now = SiteHome(home).require(), datetime.now(UTC)
    if healthy:
        status = read_status(place)
        reasons = health(status, now, running=is_running(place))
        click.echo(" ".join(reasons) or f"healthy: {well(status)}")
        ctx.exit(2 if reasons else 0)
    seen = look(place, now)
    if as_json:
        click.echo(json.dumps(_as_json(seen), indent=2, sort_keys=True))
        return
    for line in _lines(seen, home.absolute()):
        click.echo("".join(letter if letter.isprintable() else "?" for letter in line))


def _as_json(seen: Overview) -> dict[str, Any]:
    return {
        "site": seen.site,
        "federation": seen.federation,
        "running": seen.running,
        "healthy": not seen.reasons,
        "reasons": list(seen.reasons),
        "client": None if seen.status is None else seen.status.model_dump(mode="json"),
        "waiting": [vars(one) for one in seen.waiting],
        "bytes_sent_today": seen.bytes_today,
        "bytes_sent": seen.bytes_sent,
        "messages_sent": seen.messages_sent,
        "last_asked": None if seen.last_asked is None else vars(seen.last_asked),
        "last_sent": None if seen.last_sent is None else vars(seen.last_sent),
        "privacy_budget": None if seen.privacy is None else dict(seen.privacy),
    }


def _lines(seen: Overview, home: Path) -> list[str]:
    from eucaim_fl.site.ledger_words import status_words
    from eucaim_fl.site.status import well

    lines = [f"Site {seen.site} in federation {seen.federation}, coordinator {seen.address}", ""]
    lines += _client(seen, home)
    lines.append(f"{'Health:':<20}{' '.join(seen.reasons) or well(seen.status)}")
    lines += ["", f"Waiting for a person here: {len(seen.waiting) or 'nothing'}"]
    for one in seen.waiting:
        asked_by = one.holder or "nobody with a data permit"
        lines += [
            f"  {one.name}  {one.plan[:16]}  purpose {one.purpose}, asked by {asked_by}, since {_short(one.since)}",
            f"    eucaim-fl site policy explain {one.plan[:16]} --home {home}",
            f"    eucaim-fl site approve {one.plan[:16]} --home {home}   (or refuse)",
        ]
    noun = "message" if seen.messages_sent == 1 else "messages"
    lines += [
        "",
        f"{'Left today (UTC):':<20}{_size(seen.bytes_today)}",
        f"{'Left in all:':<20}{_size(seen.bytes_sent)} in {seen.messages_sent:,} {noun}; `site audit show` lists them",
        f"{'Privacy budget:':<20}{status_words(seen.privacy)}",
    ]
    return lines


def _client(seen: Overview, home: Path) -> list[str]:
    status, running = seen.status, seen.running
    if status is None:
        return [f"{'Client:':<20}{'starting' if running else 'it has never run here'}"]
    if running:
        state = status.state.replace("_", " ")
        first = f"{state} since {_time(status.since)} (process {status.pid}, version {status.version})"
    elif status.state == "stopped":
        first = f"not running; it was stopped at {_time(status.since)}"
    else:
        first = f"not running; it ended without a word after {_time(status.updated)}"
    lines = [f"{'Client:':<20}{first}"]
    if running:
        yes = {True: "yes", False: "no"}
        lines.append(f"{'Connected:':<20}{yes[status.connected]}")
        unknown = not status.connected and status.state != "not_admitted"
        lines.append(f"{'Admitted:':<20}{'unknown (not connected)' if unknown else yes[status.admitted]}")
    lines.append(f"{'Last asked:':<20}{_recorded(seen.last_asked) or _step(status.last_instruction)}")
    lines.append(
        f"{'Last contributed:':<20}{_recorded(seen.last_sent, outcome=False) or _step(status.last_contribution)}"
    )
    if status.last_problem is not None:
        problem = status.last_problem
        told = _local(problem, seen.last_asked, home)
        lines.append(f"{'Last problem:':<20}{problem.code} at {_time(problem.at)}: {told}")
    return lines


def _local(problem: Fault, asked: LastStep | None, home: Path) -> str:
    """A problem as it is told here: the coordinator's people ask the site, the site's people ask the policy."""
    if problem.code not in _DECIDED:
        return problem.text
    plan = "PLAN" if asked is None else asked.plan[:16]
    text = problem.text.partition("Ask the site;")[0].rstrip()
    return f"{text} `eucaim-fl site policy explain {plan} --home {home}` names the lines."


def _recorded(step: LastStep | None, *, outcome: bool = True) -> str:
    """A step as the audit log has it, which outlives the client; empty without one."""
    if step is None:
        return ""
    text = f"{step.kind} {step.round} of {step.name} ({step.plan[:12]}) at {step.at[:19].replace('T', ' ')} UTC"
    why = f" because of: {'; '.join(step.reasons)}" if step.reasons else ""
    return f"{text}: {step.outcome}{why}" if outcome else text


def _step(step: Step | None) -> str:
    if step is None:
        return "nothing yet"
    return f"{step.kind} {step.round} of {step.name} ({step.plan[:12]}) at {_time(step.at)}"


def _time(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def _short(text: str) -> str:
    return f"{text[:16].replace('T', ' ')} UTC"


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 100_000 else f"{count:,} bytes"
