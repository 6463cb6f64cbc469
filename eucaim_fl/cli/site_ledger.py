"""`eucaim-fl site ledger`: what of its patients' privacy a site has spent, on what, and what is left."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click

from eucaim_fl.cli.ledger_place import located, place_options
from eucaim_fl.cli.site_ledger_replace import replace
from eucaim_fl.errors import ConfigError, LedgerError

if TYPE_CHECKING:
    from eucaim_fl.plan import FederationPlan
    from eucaim_fl.site.ledger_look import LedgerPlace
    from eucaim_fl.site.ledger_sums import RunSum, Spending

__all__ = ["command"]

_EXPORT_SCHEMA = "eucaim-fl-ledger-export/1"


@click.group("ledger", short_help="Show what privacy was spent here, and what is left.")
def command() -> None:
    """The site's privacy ledger: which noise was paid for, over whose data, and what is left of the budgets.

    The ledger lies beside the cache and belongs to the site. It holds charges (noise, sampling rate, steps, patients as
    keyed hashes); epsilon is computed from them each time. Nothing is sent, and only `release` and `replace` change
    anything.
    """


command.add_command(replace)


_delta_option = click.option("--delta", type=float, help="Tell epsilon at this delta; else the policy's, or a plan's.")


@command.command("show")
@place_options
@_delta_option
@click.option("--plan", help="Only the run of this plan (SHA-256, or its first characters).")
def show(home: Path | None, site_file: Path | None, as_json: bool, delta: float | None, plan: str | None) -> None:
    """Say what was spent and what is left: of the cohort, by purpose, for patients, by run, and what is reserved.

    Two figures stand side by side. "Done" is the epsilon of all that was charged (tight accountant). "Counts" is what
    counts against the policy's budgets over all plans, with what is reserved, and is larger. Patients are only counted.

    \b
    Examples:
      eucaim-fl site ledger show --home /srv/eucaim-fl
      eucaim-fl site ledger show --site sites/a.yaml --delta 1e-5 --json
    """
    from eucaim_fl.site.ledger_look import whole_plan
    from eucaim_fl.site.ledger_state import read_state
    from eucaim_fl.site.ledger_sums import ceilings_of, cohort_spending, patients_of, purpose_spending, run_sums
    from eucaim_fl.site.ledger_words import (
        budget_rows,
        patient_lines,
        patients_json,
        reservation_lines,
        run_json,
        spending_json,
        state_words,
    )

    place = located(home, site_file)
    state, ceilings = read_state(place.folder), ceilings_of(place.privacy)
    if not state.head.count and not as_json:
        click.echo("Nothing was spent: this site has no privacy ledger yet. It begins with the first plan with noise.")
        return
    chosen = None if plan is None else whole_plan(state, plan)
    plans = {entry.what.plan for entry in state.entries if chosen in (None, entry.what.plan)}
    at = place.delta(delta, _largest_delta(place, plans)) if state.entries else delta or 1e-5
    cohorts = cohort_spending(state, ceilings.dataset, at)
    purposes = purpose_spending(state, ceilings.purposes, at)
    patients = patients_of(state, ceilings.patient, at)
    runs = run_sums(state, ceilings.dataset, at, chosen)
    if as_json:
        told = {
            "site": place.site.name,
            "ledger": {"records": state.head.count, "hash": state.head.hash, "key": state.key},
            "delta": at if state.entries else None,
            "datasets": {name: spending_json(one) for name, one in cohorts.items()},
            "purposes": {name: spending_json(one) for name, one in purposes.items()},
            "patients": patients_json(patients),
            "runs": [run_json(run, place.reserved_days) for run in runs],
        }
        click.echo(json.dumps(told, indent=2, ensure_ascii=False))
        return
    click.echo(f"Privacy ledger of {place.site.name}: {state_words(state)}. Epsilon at delta {at:g}.")
    if chosen is None:
        _print_budgets(budget_rows(cohorts, purposes, patients))
        click.echo("\nPatients: " + "\n".join(patient_lines(patients)))
    _print_runs(runs)
    for line in reservation_lines(runs, place.reserved_days, datetime.now(UTC)):
        click.echo(_printable(line))
    click.echo("\nWhether the ledger was altered: site ledger verify.")


@command.command("verify")
@place_options
@click.option(
    "--heads",
    type=click.Path(path_type=Path),
    help="An audit log whose heads of this ledger must fit: a home, or a copy of its `state/audit`.",
)
@click.pass_context
def verify(ctx: click.Context, home: Path | None, site_file: Path | None, as_json: bool, heads: Path | None) -> None:
    """Find changed, removed, reordered or inserted records. Exit 0: intact; 2: it is not, with what was found.

    With a home, every head of the ledger that the audit log has of what was sent must be in the ledger's chain: a
    ledger that was put back to an earlier state, or made anew, is found so. --heads names another copy of that log.

    \b
    Examples:
      eucaim-fl site ledger verify --home /srv/eucaim-fl
      eucaim-fl site ledger verify --site site.yaml --heads copy-of-audit
    """
    from eucaim_fl.site.audit_reader import AuditReader
    from eucaim_fl.site.ledger_look import audit_heads, ledger_faults
    from eucaim_fl.site.ledger_reader import LedgerReader, has_ledger

    place = located(home, site_file)
    folder = _audit_folder(place, heads)
    known = () if folder is None else audit_heads(AuditReader(folder))
    faults = ledger_faults(place, known)
    begun = has_ledger(place.folder)
    count = LedgerReader(place.folder).head().count if begun and not faults else None
    if as_json:
        found = {"intact": not faults, "faults": list(faults), "begun": begun, "records": count, "heads": len(known)}
        click.echo(json.dumps(found, indent=2, ensure_ascii=False))
    elif faults:
        click.echo("The privacy ledger is NOT intact:")
        for fault in faults:
            click.echo(f"  - {fault}")
        click.echo("Keep the files as they are, stop the client, and ask who answers for data protection.")
    elif not begun:
        click.echo("This site has no privacy ledger yet, and no answer that left names one.")
    else:
        agreed = f"; it agrees with {len(known):,} heads in the audit log" if known else ""
        click.echo(f"The privacy ledger of {place.site.name} is intact: {count:,} records{agreed}.")
    ctx.exit(2 if faults else 0)


@command.command("export")
@place_options
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="The file to write; else it is printed.")
@click.option("--format", "form", type=click.Choice(["json", "csv"]), default="json", show_default=True)
def export(home: Path | None, site_file: Path | None, as_json: bool, out: Path | None, form: str) -> None:
    """Write the charges for others: noise, rate, steps, and how many patients; nothing that tells patients apart.

    Of confidential data the number of patients is told on the site's base of counts, and the time to the day, so that
    nobody sees a patient come or go. The ledger is verified first. A file that is there already is not replaced.

    \b
    Example:
      eucaim-fl site ledger export --home /srv/eucaim-fl --format csv --out charges.csv
    """
    from eucaim_fl.durable import write_atomically
    from eucaim_fl.site.ledger_look import ledger_faults
    from eucaim_fl.site.ledger_state import read_state
    from eucaim_fl.site.ledger_words import as_announced, charge_rows, charges_csv

    place = located(home, site_file)
    if ledger_faults(place, ()):
        raise LedgerError(
            "The privacy ledger was altered, so it is not exported.",
            fix="Run `eucaim-fl site ledger verify`, and keep the files as they are.",
            local_detail=str(place.folder),
        )
    state = read_state(place.folder)
    charges = as_announced(state.charges, place.count_base)
    if form == "csv":
        text = charges_csv(charges)
    else:
        rows = charge_rows(charges)
        head = {"count": state.head.count, "hash": state.head.hash}
        told = {"schema": _EXPORT_SCHEMA, "site": place.site.name, "key": state.key, "head": head, "charges": rows}
        text = json.dumps(told, indent=2, ensure_ascii=False) + "\n"
    if out is None:
        click.echo(text, nl=False)
        return
    _not_there(out)
    write_atomically(out, text.encode())
    out.chmod(0o600)
    words = {"file": str(out.absolute()), "charges": len(state.charges)}
    click.echo(json.dumps(words) if as_json else f"{len(state.charges):,} charges written to {out.absolute()}.")


@command.command("project")
@click.argument("plan")
@place_options
@click.pass_context
def project(ctx: click.Context, plan: str, home: Path | None, site_file: Path | None, as_json: bool) -> None:
    """Say what PLAN would cost here, and whether every budget holds it. Nothing is reserved.

    PLAN is a file (`plan.json` of a run, or what `plan show --json` prints), or with --home the SHA-256, or 4 or more
    of its first digits, of a plan that was asked for. What it has reserved itself, and what other plans have reserved
    that were idle for the policy's `privacy.reserved_days`, is not counted. Exit 0: it fits; 2: it does not.

    \b
    Examples:
      eucaim-fl site ledger project plan.json --home /srv/eucaim-fl
      eucaim-fl site ledger project 3f2a91c0 --home /srv/eucaim-fl
    """
    from eucaim_fl.cli.plan_argument import read_plan_argument
    from eucaim_fl.site import ledger_projection
    from eucaim_fl.site.ledger_state import read_state
    from eucaim_fl.site.ledger_sums import ceilings_of
    from eucaim_fl.site.ledger_words import projection_json, projection_lines

    place = located(home, site_file)
    asked = read_plan_argument(plan, place.home)
    idle_since = datetime.now(UTC) - timedelta(days=place.reserved_days)
    state = read_state(place.folder, apart=asked.sha256(), idle_since=idle_since)
    declared = () if place.privacy is None else place.privacy.test_data
    found = ledger_projection.project(
        state, asked, ceilings_of(place.privacy), declared, place.site.name, place.at_least
    )
    fits = found.fits(place.at_least, all_must_pay=asked.privacy.mechanism == "update_dp")
    if as_json:
        told = {"plan": asked.name, "plan_sha256": asked.sha256(), "fits": fits, **projection_json(found)}
        click.echo(json.dumps(told, indent=2))
    else:
        click.echo(f"Plan {asked.name}, SHA-256 {asked.sha256()}")
        for line in projection_lines(found, all_must_pay=asked.privacy.mechanism == "update_dp"):
            click.echo(f"- {line}")
        if found.to_pay:
            click.echo("\nThe budgets hold it." if fits else "\nThe budgets do not hold it: it would be refused.")
    ctx.exit(0 if fits else 2)


@command.command("release")
@click.argument("plan")
@place_options
@click.option("--yes", is_flag=True, help="Do not ask.")
def release(plan: str, home: Path | None, site_file: Path | None, as_json: bool, yes: bool) -> None:
    """Free what PLAN has reserved and was not charged for, if its run was given up. The ledger records it.

    Without this it is freed when another plan reserves, once PLAN was idle for the policy's `privacy.reserved_days`.
    PLAN is its SHA-256, or the first characters, or a file as for `project`. Nothing that was charged comes back. A run
    that goes on reserves anew, as far as the budgets then hold it.

    \b
    Example:
      eucaim-fl site ledger release 3f2a91c0 --home /srv/eucaim-fl
    """
    from eucaim_fl.cli.plan_argument import read_plan_argument
    from eucaim_fl.site.ledger import Ledger
    from eucaim_fl.site.ledger_look import whole_plan
    from eucaim_fl.site.ledger_state import read_state
    from eucaim_fl.site.ledger_words import count

    place = located(home, site_file)
    state = read_state(place.folder)
    chosen = whole_plan(state, read_plan_argument(plan, None).sha256() if Path(plan).is_file() else plan)
    held = [one for one in state.held if one.what.plan == chosen]
    steps = sum(one.mechanism.steps for one in held)
    if held and not yes:
        click.confirm(
            f"Free {count(steps, 'step')} that {_printable(held[0].what.name)} ({chosen[:12]}) has reserved?",
            abort=True,
            err=True,
        )
    if held:
        Ledger(place.folder, place.site.name).release(chosen)
    if as_json:
        click.echo(json.dumps({"plan": chosen, "released_steps": steps}))
    else:
        nothing = "This plan has nothing reserved; what was charged stays."
        click.echo(f"Released: {count(steps, 'step')}." if held else nothing)


@command.command("page")
@click.argument("plan")
@place_options
@_delta_option
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), help="The page; default PLAN-NAME.privacy.html."
)
def page(
    plan: str, home: Path | None, site_file: Path | None, as_json: bool, delta: float | None, out: Path | None
) -> None:
    """Make the page on one run for the data-protection officer: promised, spent, left, sent, and what attacks found.

    PLAN as for `project`. The page needs nothing from elsewhere and is for this hospital only. If `eucaim-fl privacy
    audit` has tried attacks on the run here, what they found stands in it. A page that is there is replaced.

    \b
    Example:
      eucaim-fl site ledger page 3f2a91c0 --home /srv/eucaim-fl --out run.html
    """
    from eucaim_fl.cli.plan_argument import read_plan_argument
    from eucaim_fl.site.check_report import write_page
    from eucaim_fl.site.ledger_look import page_of
    from eucaim_fl.site.ledger_page import render_page

    place = located(home, site_file)
    asked = read_plan_argument(plan, place.home)
    target = out or Path(f"{asked.name}.privacy.html")
    write_page(render_page(page_of(place, asked, delta)), target, place.site.cohort_folder())
    where = str(target.absolute())
    click.echo(json.dumps({"page": where, "plan_sha256": asked.sha256()}) if as_json else f"Written to {where}.")


def _audit_folder(place: LedgerPlace, named: Path | None) -> Path | None:
    """The audit log to compare with: the one that is named, else the home's; None if there is none yet."""
    from eucaim_fl.site.home import SiteHome

    if named is not None:
        inside = SiteHome(named).audit_folder
        return inside if inside.is_dir() else named
    if place.home is None or not place.home.audit_folder.is_dir():
        return None
    return place.home.audit_folder


def _largest_delta(place: LedgerPlace, plans: Iterable[str]) -> float | None:
    """The largest delta of the plans (SHA-256) that the home keeps; None if it keeps none of them."""
    from eucaim_fl.errors import PlanError
    from eucaim_fl.site.approvals import find_plan

    if place.home is None:
        return None
    found: list[float] = []
    for plan in plans:
        with contextlib.suppress(PlanError):
            kept: FederationPlan = find_plan(place.home, plan)
            found += [] if kept.privacy.delta is None else [kept.privacy.delta]
    return max(found, default=None)


def _not_there(path: Path) -> None:
    if path.exists() or path.is_symlink():
        raise ConfigError("There is such a file already.", fix="Name another one with --out.", local_detail=str(path))


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _print_table(title: str, columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        console = Console(width=140)
    table = Table(title=title, title_justify="left")
    for index, name in enumerate(columns):
        table.add_column(name, justify="right" if index else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(_printable(cell)) for cell in row))
    console.print()
    console.print(table)


def _print_budgets(rows: list[tuple[str, Spending]]) -> None:
    from eucaim_fl.site.ledger_words import COUNTS, DONE, PARTS, budget_cells

    columns = ("what was spent of", "done (epsilon)", "counts (epsilon)", "limit", "of the budget")
    _print_table("Over all plans", columns, [budget_cells(whose, spending) for whose, spending in rows])
    click.echo(f"{DONE}\n{COUNTS}\n{PARTS}")


def _print_runs(runs: tuple[RunSum, ...]) -> None:
    from eucaim_fl.site.ledger_words import run_cells

    columns = ("run", "plan", "purpose", "rounds", "patients", "done (epsilon)", "figures", "reserved", "of the budget")
    _print_table("By run", columns, [run_cells(run) for run in runs])
