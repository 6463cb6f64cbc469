"""`eucaim-fl federation invite`, `admit`, `remove` and `heads`: who belongs to a federation."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from eucaim_fl.errors import EnrolmentError

if TYPE_CHECKING:
    from eucaim_fl.federation.home import FederationHome

__all__ = ["admit", "heads", "invite", "remove"]


@click.command("invite", short_help="Write an invitation for a site.")
@click.argument("name")
@click.argument("site")
@click.option("--patients", type=click.IntRange(1), default=50_000, show_default=True, help="More are not believed.")
@click.option("--days", type=click.IntRange(1, 365), default=14, show_default=True, help="It can be answered so long.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Default: SITE.invite.json here.")
def invite(name: str, site: str, patients: int, days: int, out: Path | None) -> None:
    """Write a signed invitation for SITE. Hand it over in confidence; read out the fingerprint over the telephone.

    \b
    Example:
      eucaim-fl federation invite liver hospital_a --patients 400
    """
    from eucaim_fl.federation import admission
    from eucaim_fl.federation.home import find_home, write_private_json
    from eucaim_fl.signing import fingerprint

    home = find_home(name)
    target = out or Path(f"{site}.invite.json")
    if target.exists():
        raise EnrolmentError(
            "The invitation's file exists already; nothing was changed.",
            fix="Name another with --out, or delete it.",
            local_detail=str(target),
        )
    document = admission.invite(home, site, datetime.now(UTC), days=days, patients=patients)
    write_private_json(target, document)
    click.echo(
        f"Wrote {target}; it can be answered for {days} days, once. Earlier invitations of {site} count no more."
    )
    click.echo(f"Fingerprint to read out: {fingerprint(home.coordinator_key.public)}")


@click.command("admit", short_help="Admit a site that answered its invitation.")
@click.argument("name")
@click.argument("request", type=click.Path(path_type=Path))
@click.option("--yes", is_flag=True, help="The fingerprint was compared already.")
def admit(name: str, request: Path, yes: bool) -> None:
    """Admit the site that made REQUEST (a JSON file), after its fingerprint was compared with the site's own words.

    \b
    Example:
      eucaim-fl federation admit liver hospital_a.request.json
    """
    from eucaim_fl.federation import admission
    from eucaim_fl.federation.home import find_home
    from eucaim_fl.signing import fingerprint, load_document

    home = find_home(name)
    document = load_document(request, "request", EnrolmentError)
    site = admission.requested(home, document, datetime.now(UTC))
    click.echo(f"Site: {site.site}, at most {site.largest_patients} patients")
    click.echo(f"Fingerprint of the site's key: {fingerprint(site.site_key)}")
    if not yes:
        click.confirm("Did the site read out the same fingerprint?", abort=True)
    admission.admit(home, site)
    click.echo(f"Admitted {site.site}. {_told(home, 'It can connect now.')}")


@click.command("remove", short_help="Shut a site out.")
@click.argument("name")
@click.argument("site")
@click.option("--yes", is_flag=True, help="Do not ask.")
def remove(name: str, site: str, yes: bool) -> None:
    """Shut SITE out: its calls are refused from now on. Its record is kept; to come back it needs new keys.

    \b
    Example:
      eucaim-fl federation remove liver hospital_a
    """
    from eucaim_fl.federation import admission
    from eucaim_fl.federation.home import find_home

    home = find_home(name)
    if not yes:
        click.confirm(f"Shut out {site}? Its keys are not taken again.", abort=True)
    admission.remove(home, site, datetime.now(UTC))
    click.echo(f"Removed {site}. {_told(home, 'Its calls are refused now.')}")


def _told(home: FederationHome, done: str) -> str:
    from eucaim_fl.federation.nodes import tell

    return done if tell(home) is not None else "The SuperLink does not answer now; it learns this when it does."


@click.command("heads", short_help="Print the heads of a site's audit log, for comparison.")
@click.argument("name")
@click.argument("site")
def heads(name: str, site: str) -> None:
    """Print, as JSON, the signed heads of SITE's audit log that came with its replies.

    The site compares them with its log: eucaim-fl site audit verify --heads FILE

    \b
    Example:
      eucaim-fl federation heads liver hospital_a > hospital_a.heads.json
    """
    from eucaim_fl.federation.heads import read_heads
    from eucaim_fl.federation.home import find_home

    home = find_home(name)
    known = {*home.sites(), *(one.site for one in home.removed())}
    if site not in known:
        raise EnrolmentError(f"No site called '{site}' was ever admitted.", fix=f"Known: {', '.join(sorted(known))}.")
    entries = [{key: head.get(key) for key in ("count", "hash", "at")} for head in read_heads(home.heads_folder, site)]
    click.echo(json.dumps({"site": site, "heads": entries}, indent=2))
