"""`eucaim-fl site audit`: show, verify and export what was asked of this site, decided, and sent."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import click
from pydantic import AwareDatetime, Field, NonNegativeInt

from eucaim_fl.cli.home_option import home_option
from eucaim_fl.errors import AuditError, ConfigError
from eucaim_fl.parsing import SITE_NAME, Config, parse
from eucaim_fl.site.home import SiteHome

if TYPE_CHECKING:
    from eucaim_fl.site.audit_reader import AuditReader
    from eucaim_fl.site.audit_words import Asker, Left, Line

__all__ = ["command"]

_LARGEST_HEADS_BYTES = 64 * 1024 * 1024
_SHOWN = 50
_DATE = click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"])


class _KeptHead(Config):
    count: NonNegativeInt
    hash: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    at: AwareDatetime


class _KeptHeads(Config):
    """What the coordinator keeps of one site's log."""

    site: Annotated[str, Field(pattern=SITE_NAME)]
    heads: tuple[_KeptHead, ...]


@click.group("audit", short_help="Show, verify and export what left this site.")
def command() -> None:
    """The site's audit log: what was asked, what was decided and why, what left. Nothing is sent.

    --home may also be a copy of the log's folder (`state/audit`) alone.
    """


@command.command("show")
@home_option()
@click.option("--plan", help="Only of this plan (SHA-256, or its first characters).")
@click.option("--since", type=_DATE, help="Only from this day (UTC) on.")
@click.option("--last", type=click.IntRange(min=1), help=f"Only the last N records; without any option {_SHOWN}.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with all records unless --last is given.")
def show(home: Path, plan: str | None, since: datetime | None, last: int | None, as_json: bool) -> None:
    """List records in plain words: who asked, what was decided and why, what left. Times are UTC.

    This reads the log as it is; `site audit verify` says whether it was altered.

    \b
    Examples:
      eucaim-fl site audit show --home /srv/eucaim-fl
      eucaim-fl site audit show --home /srv/eucaim-fl --since 2026-03-01 --json
    """
    from eucaim_fl.site.audit_reader import AuditReader
    from eucaim_fl.site.audit_words import Askers, line_of

    reader = AuditReader(_log_folder(home))
    if last is None and not as_json and plan is None and since is None:
        last = _SHOWN
    askers = Askers(reader)
    records = reader.records(plan=_whole_plan(reader, plan), since=_utc(since), last=last)
    lines = (line_of(record, askers.of(record)) for record in records)
    if as_json:
        _print_json(lines)
    else:
        _print_lines(reader, lines)


@command.command("verify")
@home_option()
@click.option("--heads", type=click.Path(path_type=Path), help="Heads of this log that the coordinator kept (JSON).")
@click.option("--key", help="The site's public key (ed25519:…), where only a copy of the log is at hand.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def verify(ctx: click.Context, home: Path, heads: Path | None, key: str | None, as_json: bool) -> None:
    """Find changed, removed, reordered or inserted records. Exit 0: intact; 2: it is not, with what was found.

    A home whose client never ran has no log yet, and nothing to find. Whoever holds the site's key could rebuild the
    whole log; only the heads that the coordinator kept show that.

    \b
    Examples:
      eucaim-fl site audit verify --home /srv/eucaim-fl --heads heads.json
      eucaim-fl site audit verify --home copy-of-audit --key ed25519:…
    """
    from eucaim_fl.signing import fingerprint
    from eucaim_fl.site.audit_chain import Head
    from eucaim_fl.site.audit_reader import NOT_BEGUN
    from eucaim_fl.site.audit_verify import verify_log
    from eucaim_fl.site.running import ever_started

    folder = _log_folder(home)
    kept = None if heads is None else _read_heads(heads)
    if folder != home and not folder.exists() and not (kept is not None and kept.heads):
        SiteHome(home).require_site_file()
        if not ever_started(SiteHome(home)):
            told: dict[str, Any] = {"intact": None, "faults": [], "begun": False}
            click.echo(json.dumps(told, indent=2) if as_json else f"There is no audit log here. {NOT_BEGUN}")
            return
    public = _public_key(home, key, folder)
    other = None if kept is None else _of_another(folder, kept.site)
    if other is not None:
        click.echo(json.dumps({"intact": None, "faults": [other]}, indent=2) if as_json else other)
        ctx.exit(2)
    faults = verify_log(
        folder,
        public,
        [] if kept is None else [Head(one.count, one.hash) for one in kept.heads],
        site=None if kept is None else kept.site,
    )
    found: dict[str, Any] = {"intact": not faults, "faults": list(faults), "key": fingerprint(public)}
    found |= {} if faults else _extent(folder)
    found["heads"] = 0 if kept is None else len(kept.heads)
    if as_json:
        click.echo(json.dumps(found, indent=2, ensure_ascii=False))
    elif faults:
        click.echo("The audit log is NOT intact:")
        for fault in faults:
            click.echo(f"  - {fault}")
        click.echo(f"Key: {found['key']}. Keep the files as they are, and tell the coordinator.")
    else:
        click.echo(_intact(found))
    ctx.exit(2 if faults else 0)


@command.command("export")
@home_option()
@click.option("--format", "form", type=click.Choice(["ehds", "tracer", "csv"]), required=True, help="See above.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="The file to write.")
@click.option("--since", type=_DATE, help="Only from this day (UTC) on.")
@click.option("--until", type=_DATE, help="Only before this day (UTC).")
@click.option("--dataset", "datasets", multiple=True, help="Id of a dataset here; without it, the policy's.")
def export_log(
    home: Path, form: Any, out: Path, since: datetime | None, until: datetime | None, datasets: tuple[str, ...]
) -> None:
    """Write the log for others: signed, without paths, and recorded in the log itself. It is verified first.

    ehds: JSON lines with what the logs of a secure processing environment tell. csv: the same for a spreadsheet.
    tracer: the calls USE_DATASETS for EUCAIM's traceability service. A file that is there already is not replaced.

    \b
    Examples:
      eucaim-fl site audit export --home /srv/eucaim-fl --format ehds --out march.jsonl --since 2026-03-01
      eucaim-fl site audit export --home /srv/eucaim-fl --format tracer --out used.json
    """
    from eucaim_fl.signing import PrivateKey
    from eucaim_fl.site.audit import AuditLog, AuditReader
    from eucaim_fl.site.audit_export import ExportScope, export

    if out.exists() or out.is_symlink():
        raise ConfigError("There is such a file already.", fix="Name another one with --out.", local_detail=str(out))
    place = SiteHome(home)
    site = AuditReader(place.audit_folder).identity().site  # there must be a log: an export does not begin one
    log = AuditLog(place.audit_folder, PrivateKey.load(place.site_key), site)
    head = export(log, out, form, ExportScope(datasets or _datasets(place), _utc(since), _utc(until)))
    out.chmod(0o600)
    click.echo(f"Written to {out.absolute()}, for this user's eyes, and recorded.")
    click.echo(f"The log had {head.count} records, the last one {head.hash[:12]}.")


def _utc(day: datetime | None) -> datetime | None:
    return None if day is None else day.replace(tzinfo=UTC)


def _log_folder(home: Path) -> Path:
    """The log of a home, or the folder itself if it is a copy of a log."""
    alone = not SiteHome(home).audit_folder.exists() and any((home / n).exists() for n in ("audit.sqlite", "head.json"))
    return home if alone else SiteHome(home).audit_folder


def _of_another(folder: Path, site: str) -> str | None:
    """What is said if the heads are of another site than the log; None if not, or if the log does not say it."""
    from eucaim_fl.site.audit_reader import AuditReader

    try:
        stated = AuditReader(folder).identity().site
    except AuditError:  # whatever is wrong with the log, its check says it
        return None
    shown = "".join(letter if letter.isprintable() else "?" for letter in stated)
    return None if stated == site else f"These heads are of site {site}; this is the log of {shown}."


def _public_key(home: Path, key: str | None, folder: Path) -> str:
    import re

    from eucaim_fl.signing import PUBLIC_KEY, PrivateKey

    if key is None:
        if folder == home and not SiteHome(home).site_key.exists():
            raise ConfigError(
                "This is a copy of the log: give --key ed25519:… (the public key stands in NAME.request.json)."
            )
        return PrivateKey.load(SiteHome(home).site_key).public
    if re.fullmatch(PUBLIC_KEY, key) is None:
        raise ConfigError("--key is no public key.", fix="It looks like ed25519: and 43 letters and digits.")
    return key


def _read_heads(path: Path) -> _KeptHeads:
    """Heads as the coordinator writes them. Raises ConfigError if the file is missing, too long or something else."""
    try:
        with path.open("rb") as stream:
            raw = stream.read(_LARGEST_HEADS_BYTES + 1)
        value = json.loads(raw) if len(raw) <= _LARGEST_HEADS_BYTES else None
    except OSError as problem:
        raise ConfigError("The heads can't be read.", local_detail=f"{path}: {problem.strerror}") from None
    except (ValueError, RecursionError):
        raise ConfigError("The heads are no JSON.", local_detail=str(path)) from None
    return parse(_KeptHeads, value, "The heads' file", ConfigError)


def _datasets(place: SiteHome) -> tuple[str, ...]:
    from eucaim_fl.site.policy import load_policy

    return load_policy(place.policy_file).policy.datasets


def _whole_plan(reader: AuditReader, start: str | None) -> str | None:
    """The SHA-256 of the one plan in the log that starts so. Raises ConfigError if there is none, or several."""
    if start is None or len(start) == 64:
        return start
    found = reader.plans(start)
    if len(found) != 1:
        raise ConfigError(
            "The log knows no such plan." if not found else "Several plans in the log start so.",
            fix="Give more characters of its SHA-256; `site audit show` lists them." if found else "",
        )
    return found[0]


def _extent(folder: Path) -> dict[str, Any]:
    from eucaim_fl.site.audit_reader import AuditReader

    reader = AuditReader(folder)
    span = reader.span()
    ends = {} if span is None else {"first": span[0].time, "last": span[1].time}
    return {"site": reader.identity().site, "records": reader.head().count, **ends}


def _intact(found: dict[str, Any]) -> str:
    when = f", from {_minute(found['first'])} to {_minute(found['last'])} UTC" if "first" in found else ""
    heads = f"; it agrees with {found['heads']} heads of the coordinator" if found["heads"] else ""
    return (
        f"The audit log of {found['site']} is intact: {found['records']} records{when}{heads}.\n"
        f"Key: {found['key']} (compare it with the one that the coordinator knows)"
    )


def _minute(time: str) -> str:
    return time[:16].replace("T", " ")


def _print_json(lines: Iterator[Line]) -> None:
    """One JSON list, written as it is read."""
    import dataclasses

    start = "["
    for line in lines:
        click.echo(start + "\n" + json.dumps(dataclasses.asdict(line), ensure_ascii=False), nl=False)
        start = ","
    click.echo("[]" if start == "[" else "\n]")


def _print_lines(reader: AuditReader, lines: Iterator[Line]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        console = Console(width=140)
    table = Table(title=f"Audit log of {reader.identity().site}", title_justify="left", show_lines=True)
    for name in ("no.", "when (UTC)", "who asked", "what happened", "what left"):
        table.add_column(name, justify="right" if name == "no." else "left", overflow="fold")
    for line in lines:
        cells = (str(line.number), _minute(line.time), _who(line.asker), _what(line), _left(line))
        table.add_row(*(Text(cell) for cell in cells))
    if table.row_count == 0:
        console.print("Nothing was recorded yet, or nothing that fits.")
        return
    console.print(table)
    console.print(f"The log has {reader.head().count} records. Whether it was altered: site audit verify.", style="dim")


def _who(asker: Asker) -> str:
    parts = [asker.holder, asker.permit and f"permit {asker.permit}", asker.purpose and asker.purpose.replace("_", " ")]
    return "\n".join(part for part in parts if part)


def _what(line: Line) -> str:
    text = line.happened
    if line.kind == "decision":
        text = f"asked {line.asked}: {line.outcome}" if line.asked else f"asked: {line.outcome}"
    elif line.asked:
        text += f" (asked {line.asked})"
    if line.reasons:
        text += "\nbecause of: " + "; ".join(line.reasons)
    if line.by:
        text += f"\nby {line.by}"
    return text + (f"\nplan {line.plan[:12]}" if line.plan else "")


def _left(line: Line) -> str:
    if line.left is None:
        return "nothing but the reason's code" if line.kind == "withheld" else ""
    left: Left = line.left
    parts = [f"{left.bytes:,} bytes"]
    parts += [] if left.arrays is None else [f"{left.arrays} arrays of weights"]
    parts += [] if left.patients is None else [f"from {left.patients} patients"]
    parts += [f"{split}: {', '.join(names)}" for split, names in left.metrics.items() if names]
    parts += [f"{left.pictures} pictures"] if left.pictures else []
    parts += [f"length of the update {left.update_norm:.4g}"] if left.update_norm is not None else []
    if left.epsilon is not None:
        from eucaim_fl.privacy.promise import epsilon_words

        delta = "" if left.delta is None else f" at delta {left.delta:g}"
        parts.append(f"privacy spent: epsilon {epsilon_words(left.epsilon)}{delta}")
    parts += [] if left.ledger_count is None else [f"privacy ledger at record {left.ledger_count}"]
    parts += [f"signed figures of models {left.record[:12]}"] if left.record else []
    parts += [f"digest {left.digest[:12]}"] if left.digest else []
    return "\n".join(parts)
