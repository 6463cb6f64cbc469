"""`eucaim-fl site init`: a site's home, keys and request, from the coordinator's invitation."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import click

from eucaim_fl.cli.home_option import home_option

__all__ = ["command"]


@click.command("init", short_help="Make this site's home and keys from an invitation.")
@click.option("--invite", "invitation", type=click.Path(path_type=Path), required=True, help="The invitation's file.")
@home_option("a new folder with the site's name")
@click.option("--cohort", type=click.Path(path_type=Path), help="The cohort's folder; it can be written later.")
@click.option("--layout", help="How the cohort is laid out, such as eucaim_tier3; with --cohort.")
@click.option("--yes", is_flag=True, help="Don't ask whether the fingerprints were compared.")
def command(invitation: Path, home: Path | None, cohort: Path | None, layout: str | None, yes: bool) -> None:
    """Make a site's home: keys, site file, policy, and the request to send back. Nothing is sent.

    The private keys are made here and never leave. What goes back to the coordinator is NAME.request.json, which holds
    public keys and the invitation's token.

    \b
    Examples:
      eucaim-fl site init --invite invitation.json --home /srv/eucaim
      eucaim-fl site init --invite invitation.json --home /srv/eucaim --cohort /data/prostate --layout eucaim_tier3
    """
    from eucaim_fl.signing import PrivateKey, fingerprint
    from eucaim_fl.site.enrol import LAYOUTS, CohortChoice, make_home, open_invitation, to_compare
    from eucaim_fl.site.home import SiteHome

    if (cohort is None) != (layout is None):
        raise click.UsageError("--cohort and --layout belong together.")
    if layout is not None and layout not in LAYOUTS:
        raise click.UsageError(f"--layout is one of {', '.join(LAYOUTS)}.")
    choice = CohortChoice() if cohort is None or layout is None else CohortChoice(cohort.absolute(), layout)
    invited, document = open_invitation(invitation, datetime.now(UTC))
    for name, value in to_compare(invited):
        click.echo(f"{name + ':':<24}{value}")
    click.echo(
        "\nAnybody can write an invitation. Call the coordinator on a number that you know, and compare the "
        "coordinator's key."
    )
    if not yes:
        click.confirm("Are they the same?", abort=True)
    home = (Path(invited.site) if home is None else home).absolute()
    wanted = make_home(home, invited, document, choice)
    click.echo(f"\nMade {home}.")
    own = fingerprint(PrivateKey.load(SiteHome(home).site_key).public)
    click.echo(f"{'key of this site:':<24}{own}\n\nNext:")
    cohort_step = "" if cohort is not None else " write the cohort's folder and layout into it,"
    for number, step in enumerate(
        (
            f"Look through site.yaml:{cohort_step} and keep or change what may leave.",
            "Look through policy.yaml: as it was made it allows nothing.",
            f"Send {wanted} to the coordinator (it holds no private key), and read out the key of this site.",
            f"eucaim-fl site check --home {home}",
            f"eucaim-fl site start --home {home}   (once the coordinator has admitted this site)",
        ),
        start=1,
    ):
        click.echo(f"  {number}. {step}")
