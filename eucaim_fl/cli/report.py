"""`eucaim-fl report`: is the report of a validation what its hospitals told?"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from eucaim_fl.errors import ReportError

if TYPE_CHECKING:
    from eucaim_fl.validation.verification import Verification

__all__ = ["command"]

_MARKS = {"holds": "holds", "fails": "FAILS", "open": "open", "note": "note"}
_LARGEST_PAGE_BYTES = 64 * 2**20
_Keys = dict[str, set[str]]


@click.group("report", short_help="Verify the report of a validation, offline.")
def command() -> None:
    """Reports of validations: report.json and report.html in the folder of a run."""


@command.command("verify")
@click.argument("report", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--federation", help="Take the sites' keys from a federation of this machine.")
@click.option("--key", "given", multiple=True, metavar="SITE=KEY", help="A site's public key; may be repeated.")
@click.option("--page", type=click.Path(path_type=Path, dir_okay=False), help="Does this report.html belong to it?")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def verify(
    ctx: click.Context, report: Path, federation: str | None, given: tuple[str, ...], page: Path | None, as_json: bool
) -> None:
    """Check a validation's report.json without any server: the plan's hash, each site's record and signature, and that
    every number follows from the records, which are analysed again.

    With --federation or --key every record must bear a signature by its site's key. Without them, signatures are
    compared with the keys in the report, which shows damage but no forger, and a run on one machine, whose sites have
    no keys, passes unsigned; the last line says so. Exit 0: nothing speaks against the report. Exit 2: something does,
    or could not be looked at.

    A hospital gives its own public key, which stands in its NAME.request.json, and sees whether its figures are those
    that it signed; `site audit show --json` has the SHA-256 of its record, too.

    \b
    Examples:
      eucaim-fl report verify runs/RUN/report.json --federation NAME
      eucaim-fl report verify report.json --page report.html --key hospital_a=ed25519:…
    """
    from eucaim_fl.validation.document import LARGEST_REPORT_BYTES
    from eucaim_fl.validation.verification import verify_report

    content = _read(report, LARGEST_REPORT_BYTES, "The report")
    shown = None if page is None else _read(page, _LARGEST_PAGE_BYTES, "The page")
    keys = _keys(federation, given)
    found = verify_report(content, keys, shown)
    if as_json:
        checks = [vars(check) for check in found.checks]
        told = {"holds": found.holds, "vouched": found.vouched, "checks": checks, "records": dict(found.records)}
        click.echo(json.dumps(told, indent=2, ensure_ascii=False))
    else:
        for check in found.checks:
            what = f"{check.what} of {check.site}" if check.site else check.what
            click.echo(f"{_MARKS[check.state]:<6} {what}: {check.said.rstrip('.')}.")
        click.echo(_verdict(found, with_keys=keys is not None))
    ctx.exit(0 if found.holds else 2)


def _verdict(found: Verification, *, with_keys: bool) -> str:
    if any(check.state == "fails" for check in found.checks):
        return "\nThis report does NOT hold."
    if not found.holds:
        return "\nNothing speaks against this report, but not all of it could be looked at: see what is open."
    if with_keys:
        return "\nThis report holds, and every record is signed by its site."
    unsigned = all(check.state == "note" and check.said.startswith("there is none") for check in found.signatures)
    if unsigned:
        return "\nThe numbers follow from the records. NOBODY signed these: only who ran it says that they are true."
    return "\nThe numbers follow from the records. NOBODY vouches for the keys: give --federation or --key."


def _read(path: Path, largest: int, what: str) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(largest + 1)
    except OSError as problem:
        raise ReportError(
            f"{what} can't be read.", fix="Check its name.", local_detail=f"{path}: {problem.strerror}"
        ) from None
    if len(content) > largest:
        raise ReportError(
            f"{what} is longer than {largest} bytes.", fix="Is it the right file?", local_detail=str(path)
        )
    return content


def _keys(federation: str | None, given: tuple[str, ...]) -> _Keys | None:
    """Site → its public keys; None if nobody was asked for any."""
    from eucaim_fl.parsing import SITE_NAME
    from eucaim_fl.signing import PUBLIC_KEY

    if federation is None and not given:
        return None
    keys: _Keys = {}
    if federation is not None:
        from eucaim_fl.federation.home import find_home

        home = find_home(federation)
        for one in (*home.sites().values(), *home.removed()):
            keys.setdefault(one.site, set()).add(one.site_key)
    for text in given:
        site, _, key = text.partition("=")
        if not re.fullmatch(SITE_NAME, site) or not re.fullmatch(PUBLIC_KEY, key):
            raise click.BadParameter("it looks like hospital_a=ed25519:… (43 letters and digits)", param_hint="--key")
        keys.setdefault(site, set()).add(key)
    return keys
