"""`eucaim-fl permit`: for access bodies that issue data permits, and for those who hold or check one."""

from __future__ import annotations

import json
import re
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from eucaim_fl.errors import ConfigError, JournalError, PermitError, PlanError

if TYPE_CHECKING:
    from eucaim_fl.permits import SignedPermit
    from eucaim_fl.plan import FederationPlan

__all__ = ["command"]

_LARGEST_FILE_BYTES = 256 * 1024


@click.group("permit", short_help="Issue, show and verify data permits.")
def command() -> None:
    """Data permits: what an access body allows whom to do with which data. All of this works offline.

    Start with: eucaim-fl permit keygen issuer_key.pem
    """


@command.command("keygen", short_help="Make a signing key and print its public part.")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def keygen(file: Path, as_json: bool) -> None:
    """Make a private key in FILE, which only you can read, and print its public key.

    An access body gives the public key to hospitals, who put it into their policy; a holder gives theirs to the access
    body. The fingerprint is what people compare over the telephone. FILE must not exist yet.

    \b
    Example:
      eucaim-fl permit keygen issuer_key.pem
    """
    from eucaim_fl.signing import PrivateKey, fingerprint

    key = PrivateKey.create()
    key.save(file)
    if as_json:
        click.echo(json.dumps({"public_key": key.public, "fingerprint": fingerprint(key.public)}, indent=2))
        return
    click.echo(f"Public key:  {key.public}\nFingerprint: {fingerprint(key.public)}")


@command.command("issue", short_help="Sign a permit and write it to a file.")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--key", "key_file", type=click.Path(path_type=Path), required=True, help="The issuer's private key.")
@click.option("--from", "file", type=click.Path(path_type=Path), help="YAML or JSON with such values; options win.")
@click.option("--id", help="As the issuer counts its permits.")
@click.option("--issuer", help="Short name of the access body.")
@click.option("--holder", help="Short name of who may ask.")
@click.option("--holder-key", help="The holder's public key; it has to sign each plan.")
@click.option("--purpose", "purposes", multiple=True, help="Such as scientific_research; may be repeated.")
@click.option("--dataset", "datasets", multiple=True, help="As the catalogue calls it; may be repeated.")
@click.option("--task", "tasks", multiple=True, help="Such as segmentation; may be repeated; without it, any.")
@click.option("--network", "networks", multiple=True, help="Such as unet; may be repeated; without it, any.")
@click.option("--rounds", type=int, help="Largest number of a plan's rounds; without it, any.")
@click.option("--plans", type=int, help="Different plans at one site, at most; 1 if not given.")
@click.option("--privacy-required/--no-privacy-required", default=None, help="Whether a plan must name a mechanism.")
@click.option("--valid-from", help="YYYY-MM-DD, or a time with its zone: 2026-01-01T09:00:00Z.")
@click.option("--valid-until", help="Likewise; a day is the last day (UTC) on which the permit is valid.")
@click.option("--json", "as_json", is_flag=True, help="Print the document too.")
def issue_command(out: Path, key_file: Path, file: Path | None, as_json: bool, **options: Any) -> None:
    """Sign a permit and write it to OUT. Everything is checked first; a file that exists is not replaced.

    \b
    Examples:
      eucaim-fl permit issue permit.json --key issuer_key.pem --from terms.yaml
      eucaim-fl permit issue permit.json --key issuer_key.pem --id P-2026-17 --issuer hdab-es --holder upv \\
        --holder-key ed25519:… --purpose scientific_research --dataset ds-5 --rounds 50 \\
        --valid-from 2026-01-01 --valid-until 2026-12-31
    """
    from eucaim_fl.config import TASKS, parse
    from eucaim_fl.models import ARGUMENTS
    from eucaim_fl.permits import Permit, describe, issue
    from eucaim_fl.registry import lookup
    from eucaim_fl.signing import PrivateKey

    values = {} if file is None else _terms(file)
    values |= {name: value for name, value in options.items() if value not in (None, ())}
    for name, is_last in (("valid_from", False), ("valid_until", True)):
        if name in values:
            values[name] = _moment(values[name], is_last)
    permit = parse(Permit, values, "The permit", PermitError)
    for name in permit.networks or ():
        lookup(ARGUMENTS, name, "network", PermitError)
    for name in permit.tasks or ():
        lookup(dict.fromkeys(TASKS), name, "task", PermitError)
    document = issue(permit, PrivateKey.load(key_file))
    _write_new(out, document)
    if as_json:
        click.echo(json.dumps(document, indent=2, sort_keys=True))
        return
    for sentence in describe(permit):
        click.echo(f"- {sentence}")
    click.echo(f"\nPermit: {out}")


@command.command("show", short_help="Say what a permit allows and until when.")
@click.argument("permit_file", metavar="PERMIT", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def show(ctx: click.Context, permit_file: Path, as_json: bool) -> None:
    """Say in plain words what a permit allows and until when, and whether its signature fits.

    Whether its key is that of the access body is for you to know: compare the fingerprint, or use `permit verify`.
    Exit 0: the signature fits. Exit 2: it does not, or the file is no permit.

    \b
    Example:
      eucaim-fl permit show permit.json
    """
    from eucaim_fl.permits import describe
    from eucaim_fl.signing import fingerprint

    found = _inspect(permit_file)
    now = datetime.now(UTC)
    is_over, is_early = now >= found.permit.valid_until, now < found.permit.valid_from
    if as_json:
        says = {
            "permit": found.permit.model_dump(mode="json"),
            "key": found.key,
            "fingerprint": fingerprint(found.key),
            "signature_fits": found.fits,
            "valid_now": found.fits and not is_over and not is_early,
        }
        click.echo(json.dumps(says, indent=2, sort_keys=True))
    else:
        for sentence in describe(found.permit):
            click.echo(f"- {sentence}")
        click.echo(f"\nToday: {'it has expired' if is_over else 'not valid yet' if is_early else 'within its time'}.")
        click.echo(f"Key it bears: {found.key}\nFingerprint:  {fingerprint(found.key)}")
        click.echo(
            "Signature: fits."
            if found.fits
            else "Signature: DOES NOT FIT. The permit was altered, or signed with another key; nothing above counts."
        )
    ctx.exit(0 if found.fits else 2)


@command.command("verify", short_help="Check a permit offline, also against a plan.")
@click.argument("permit_file", metavar="PERMIT", type=click.Path(path_type=Path))
@click.option("--body", required=True, help="Public key of the access body that you trust, or NAME=KEY.")
@click.option("--plan", "plan_file", type=click.Path(path_type=Path), help="A plan, as `plan show --json` prints it.")
@click.option("--dataset", "datasets", multiple=True, help="What a site's cohort stands for; may be repeated.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def verify_command(
    ctx: click.Context, permit_file: Path, body: str, plan_file: Path | None, datasets: tuple[str, ...], as_json: bool
) -> None:
    """Check a permit offline, now: signature, issuer and time; with --plan and --dataset whether it covers them.

    The holder's signature over a plan, and how many plans used the permit already, only a site can check.
    Exit 0: nothing speaks against it. Exit 2: something does, and the reasons are printed.

    \b
    Examples:
      eucaim-fl permit verify permit.json --body hdab-es=ed25519:…
      eucaim-fl plan show --json experiment=demo permit.file=permit.json > plan.json
      eucaim-fl permit verify permit.json --body ed25519:… --plan plan.json --dataset ds-5
    """
    from eucaim_fl.permits import dataset_problems, scope_problems, standing_problems
    from eucaim_fl.signing import PUBLIC_KEY

    found = _inspect(permit_file)
    name, _, key = body.rpartition("=")
    if not re.fullmatch(PUBLIC_KEY, key):
        raise click.BadParameter("it must be a public key (ed25519:…), or NAME=KEY", param_hint="--body")
    reasons = list(standing_problems(found, {name or found.permit.issuer: key}, datetime.now(UTC)))
    if plan_file is not None:
        plan = _plan(plan_file)
        if plan.permit is None or not _is_same(plan.permit, found):
            reasons.append("The plan does not carry this permit.")
        reasons += scope_problems(found.permit, plan)
    if datasets:
        reasons += dataset_problems(found.permit, datasets)
    missing = sorted(set(datasets) - set(found.permit.datasets))
    if as_json:
        click.echo(json.dumps({"holds": not reasons, "reasons": reasons, "datasets_missing": missing}, indent=2))
    else:
        click.echo("The permit does not hold:" if reasons else "Nothing speaks against this permit.")
        for reason in reasons:
            click.echo(f"- {reason}")
        if missing:
            click.echo(f"Not covered: {', '.join(missing)}.")
    ctx.exit(2 if reasons else 0)


def _inspect(path: Path) -> SignedPermit:
    from eucaim_fl.permits import inspect_permit
    from eucaim_fl.signing import load_document

    return inspect_permit(load_document(path, "permit", PermitError))


def _is_same(document: dict[str, Any], found: SignedPermit) -> bool:
    from eucaim_fl.permits import inspect_permit

    try:
        return inspect_permit(document) == found
    except PermitError:
        return False


def _read(path: Path, what: str, error: type[ConfigError]) -> str:
    try:
        with path.open("rb") as stream:
            content = stream.read(_LARGEST_FILE_BYTES + 1)
        if len(content) > _LARGEST_FILE_BYTES:
            raise error(f"{what} is longer than {_LARGEST_FILE_BYTES} bytes.", local_detail=str(path))
        return content.decode()
    except (OSError, UnicodeDecodeError) as problem:
        raise error(f"{what} can't be read.", fix="Check its name.", local_detail=f"{path}: {problem}") from None


def _plan(path: Path) -> FederationPlan:
    from eucaim_fl.plan import read_plan

    return read_plan(_read(path, "The plan", PlanError).removesuffix("\n"))


def _terms(path: Path) -> dict[str, Any]:
    """The values of a permit as a person wrote them, in YAML, of which JSON is a part."""
    import yaml

    try:
        values = yaml.safe_load(_read(path, "The file of the permit's values", PermitError))
    except (yaml.YAMLError, RecursionError, ValueError) as problem:
        raise PermitError(
            "The file of the permit's values is not YAML.", fix="Plain YAML or JSON.", local_detail=f"{path}: {problem}"
        ) from None
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise PermitError("The file of the permit's values holds no mapping.", local_detail=str(path))
    return values


def _moment(value: object, is_last: bool) -> object:
    """A day becomes its beginning, or as the last day its end, in UTC; anything else is left to the permit's checks."""
    if isinstance(value, str):
        try:
            value = date.fromisoformat(value)
        except ValueError:
            return value
    if isinstance(value, date) and not isinstance(value, datetime) and value < date.max:
        return datetime(value.year, value.month, value.day, tzinfo=UTC) + timedelta(days=int(is_last))
    return value


def _write_new(path: Path, document: dict[str, Any]) -> None:
    from eucaim_fl.durable import write_json

    if path.exists():
        raise PermitError("There is a file of this name already.", fix="Name another.", local_detail=str(path))
    try:
        write_json(path, document)
        path.chmod(0o644)
    except (JournalError, OSError) as problem:
        where = problem.local_detail if isinstance(problem, JournalError) else f"{path}: {problem.strerror}"
        raise PermitError(
            "The permit can't be written.", fix="Is the disk full, or the folder not yours?", local_detail=where
        ) from None
