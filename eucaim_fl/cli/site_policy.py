"""`eucaim-fl site policy`: what this site's policy allows, in plain words and line by line."""

from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from eucaim_fl.cli.plan_argument import read_plan_argument
from eucaim_fl.errors import ConfigError
from eucaim_fl.site.home import HOME_VARIABLE, SiteHome

if TYPE_CHECKING:
    from eucaim_fl.plan import FederationPlan
    from eucaim_fl.site.audit_words import Line
    from eucaim_fl.site.policy import Policy
    from eucaim_fl.site.policy_decision import Clause, Decision, Situation

__all__ = ["command"]


@click.group("policy", short_help="Say what the policy allows of a plan, line by line.")
def command() -> None:
    """The site's policy: what a federation may do here. Nothing is sent, and nothing is changed."""


@command.command("explain")
@click.argument("plan")
@click.option(
    "--home",
    type=click.Path(path_type=Path),
    envvar=HOME_VARIABLE,
    show_envvar=True,
    help="The site's home: its policy, and what was approved and sent so far.",
)
@click.option("--policy", "policy_file", type=click.Path(path_type=Path), help="A policy alone, instead of a home.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def explain_plan(ctx: click.Context, plan: str, home: Path | None, policy_file: Path | None, as_json: bool) -> None:
    """Say what the policy allows or refuses of PLAN, and which line says so.

    PLAN is a file (`plan.json` of a run, or what `plan show --json` prints), or with --home the SHA-256, or 4 or more
    of its first digits, of a plan that was asked for; what was decided of it last is said too.

    The function that answers is the one that decides when the plan is asked.
    Exit 0: allowed; 2: refused, or waiting for a person or for its hours.

    \b
    Examples:
      eucaim-fl site policy explain plan.json --policy policy.yaml
      eucaim-fl site policy explain 3f2a91c0 --home /srv/eucaim-fl
    """
    from eucaim_fl.site.policy import load_policy
    from eucaim_fl.site.policy_decision import decide

    place = SiteHome(home).require_site_file() if home is not None and policy_file is None else None
    asked = read_plan_argument(plan, place)
    if place is not None:
        policy_file = place.policy_file
    if policy_file is None:
        raise ConfigError("There is no policy to ask.", fix="Name one with --policy, or the site's home with --home.")
    loaded = load_policy(policy_file)
    decision = decide(asked, loaded, _situation(asked, place))
    last = _last_decided(asked, place)
    if as_json:
        told = _as_json(asked, loaded.sha256, decision)
        if place is not None:
            told["last_decided"] = last and {"outcome": last.outcome, "at": last.time, "reasons": list(last.reasons)}
        click.echo(json.dumps(told, indent=2))
    else:
        _print(asked, decision, None if place is None else _decided(last))
    ctx.exit(0 if decision.allowed else 2)


@command.command("check")
@click.argument("policy_file", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def check_policy(policy_file: Path, as_json: bool) -> None:
    """Read a policy and say in plain words what it allows. Exit 0: it can be used; 2: it can't, and why.

    \b
    Example:
      eucaim-fl site policy check policy.yaml
    """
    from eucaim_fl.site.policy import load_policy
    from eucaim_fl.site.policy_text import describe

    loaded = load_policy(policy_file)
    open_keys = _unfilled(loaded.policy)
    lines = {key: (loaded.lines.get(key), says) for key, says in describe(loaded.policy).items()}
    if as_json:
        told = [{"key": key, "line": line, "says": says} for key, (line, says) in lines.items()]
        click.echo(json.dumps({"policy_sha256": loaded.sha256, "unfilled": open_keys, "says": told}, indent=2))
        return
    for key, (line, says) in lines.items():
        click.echo(f"{_line(line)}  {key}: {says}.")
    verdict = "The policy can be used."
    if open_keys:
        verdict = f"It reads well, but allows nothing until these are filled in: {', '.join(open_keys)}."
    click.echo(f"\n{verdict} SHA-256: {loaded.sha256}")


def _unfilled(policy: Policy) -> list[str]:
    """Keys that refuse every plan because nothing stands there. Without targets a segmentation can still be done, and
    without a word on frozen models any training."""
    from eucaim_fl.site.policy_models import MODEL_KEYS
    from eucaim_fl.site.policy_text import SILENT, describe

    found = {key for key, says in describe(policy).items() if says == SILENT} - {*MODEL_KEYS}
    if policy.asking.permits == "required" and not policy.asking.bodies:
        found.add("asking.bodies")
    if not policy.tasks or "segmentation" in policy.tasks:
        found.discard("targets")
    order = list(describe(policy))
    return sorted(found, key=lambda key: order.index(key.removesuffix(".bodies")))


def _situation(plan: FederationPlan, home: SiteHome | None) -> Situation:
    """What is known now: with a home what its records say, without one nothing."""
    from eucaim_fl.site.policy_decision import Situation

    now = datetime.now(UTC)
    if home is None:
        return Situation(site="", now=now, preview=True, confidential=None)
    from eucaim_fl.sitefile import load_site_file

    known: dict[str, Any] = {}
    if home.audit_folder.is_dir():
        from eucaim_fl.site.audit import AuditReader

        audit = AuditReader(home.audit_folder)
        sent = audit.sent(plan.sha256())
        known = {
            "rounds_done": sent.rounds,
            "bytes_sent": sent.bytes,
            "bytes_sent_today": audit.sent_today(now),
            "plans_today": audit.plans_allowed(now.replace(hour=0, minute=0, second=0, microsecond=0)),
            "plans_ever": audit.plans_allowed(),
            "approval": audit.approval(plan.sha256()),
        }
    site = load_site_file(home.site_file)
    confidential = site.release.data_is == "confidential"
    return Situation(site=site.name, now=now, preview=True, confidential=confidential, **known)


def _last_decided(plan: FederationPlan, home: SiteHome | None) -> Line | None:
    """What the audit log has of the last decision on a plan; None without one."""
    if home is None or not home.audit_folder.is_dir():
        return None
    from eucaim_fl.site.audit import AuditReader
    from eucaim_fl.site.audit_words import Asker, line_of

    found = AuditReader(home.audit_folder).records(plan=plan.sha256(), kind="decision", last=1)
    return next((line_of(record, Asker()) for record in found), None)


def _decided(last: Line | None) -> str:
    if last is None:
        return "nothing yet"
    why = f" because of: {'; '.join(last.reasons)}" if last.reasons else ""
    return f"{last.outcome} at {last.time[:19].replace('T', ' ')} UTC{why}"


def _open(plan: FederationPlan, decision: Decision) -> dict[str, str]:
    """What only run time can tell, of the clauses that do not refuse anyway."""
    from eucaim_fl.privacy.promise import site_is_charged
    from eucaim_fl.site.policy_decision import RUN_TIME
    from eucaim_fl.site.policy_privacy import OPEN_WITH_NOISE

    refused = {clause.key for clause in decision.refused}
    known = {**RUN_TIME, **({"privacy": OPEN_WITH_NOISE} if site_is_charged(plan.privacy) else {})}
    return {key: what for key, what in known.items() if key not in refused}


def _as_json(plan: FederationPlan, policy_sha256: str, decision: Decision) -> dict[str, Any]:
    from eucaim_fl.plan_text import explain

    return {
        "plan": plan.name,
        "plan_sha256": plan.sha256(),
        "policy_sha256": policy_sha256,
        "allowed": decision.allowed,
        "refused": [clause.key for clause in decision.refused],
        "waiting": [clause.key for clause in decision.waiting],
        "clauses": [dataclasses.asdict(clause) for clause in decision.clauses],
        "open_until_run_time": _open(plan, decision),
        "asks": explain(plan),
    }


def _print(plan: FederationPlan, decision: Decision, last: str | None) -> None:
    from eucaim_fl.plan_text import explain

    _say(f"Plan {plan.name}, SHA-256 {plan.sha256()}\n\nWhat it asks:")
    for sentence in explain(plan):
        _say(f"- {sentence}")
    _say("\nWhat the policy says:")
    for clause in decision.clauses:
        word = clause.verdict if clause.verdict == "allows" else clause.verdict.upper()
        _say(f"  {word:<8} {_line(clause.line)}  {clause.key}: {clause.says}. The plan: {clause.asks}.")
    _say("\nOpen until run time:")
    for key, what in _open(plan, decision).items():
        _say(f"- {key}: {what}")
    if last is not None:
        _say(f"\nLast decided here: {last}.")
    if decision.allowed:
        _say("\nAllowed.")
    if decision.refused:
        _say(f"\nRefused by {_list(decision.refused)}.")
    if decision.waiting:
        _say(f"\n{'It would also wait' if decision.refused else 'Waits'} for {_list(decision.waiting)}.")


def _say(text: str) -> None:
    """Print what may hold words from elsewhere: nothing in it steers the terminal."""
    click.echo("".join(letter if letter.isprintable() or letter == "\n" else "?" for letter in text))


def _line(line: int | None) -> str:
    return "not stated" if line is None else f"line {line:>5}"


def _list(clauses: tuple[Clause, ...]) -> str:
    return ", ".join(f"{c.key} ({'not stated' if c.line is None else f'line {c.line}'})" for c in clauses)
