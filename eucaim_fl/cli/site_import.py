"""`eucaim-fl site import`: bring images into a site's cohort from a folder, a ZIP file, an archive or senders."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from eucaim_fl.cohorts.intake.landing import Landing

__all__ = ["command"]

_LINE_EVERY_S = 10.0
_DAY = click.DateTime(formats=["%Y-%m-%d"])


@contextmanager
def _progress(console: Console) -> Iterator[Callable[[int, int | None], None]]:
    """A bar on a terminal, a line now and then elsewhere."""
    if not console.is_terminal:
        last = time.monotonic()

        def line(done: int, total: int | None) -> None:
            nonlocal last
            if time.monotonic() - last >= _LINE_EVERY_S:
                last = time.monotonic()
                of = f" of {total}" if total is not None else ""
                console.print(f"{time.strftime('%H:%M:%S')} {done}{of} instances", highlight=False)

        yield line
        return
    columns = (TextColumn("instances"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("", total=None)
        yield lambda done, total: progress.update(bar, completed=done, total=total)


@click.command("import", short_help="Bring images into the cohort.")
@click.argument("site_file", type=click.Path(path_type=Path))
@click.option("--from", "kind", type=click.Choice(["folder", "dicomweb", "dicom"]), required=True, help="Where from.")
@click.argument("source", required=False)
@click.option("--modality", multiple=True, help="Such as MR; may be repeated. Labels are SEG or RTSTRUCT.")
@click.option("--body-part", multiple=True, help="BodyPartExamined, such as PROSTATE; may be repeated.")
@click.option("--from-date", type=_DAY, help="First study date, YYYY-MM-DD.")
@click.option("--to-date", type=_DAY, help="Last study date, YYYY-MM-DD.")
@click.option("--patients", multiple=True, help="A file with one PatientID a line, or IDs separated by commas.")
@click.option("--deidentify", is_flag=True, help="De-identify each file before it lands in the cohort.")
@click.option("--dry-run", is_flag=True, help="Only say what would be brought in.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option("--ca", type=click.Path(path_type=Path), help="dicomweb: file of certificates to trust.")
@click.option("--insecure-http", is_flag=True, help="dicomweb: allow plain http to another machine.")
@click.option("--port", type=click.IntRange(1, 65535), default=11112, show_default=True, help="dicom: port.")
@click.option("--ae", default="EUCAIM", show_default=True, help="dicom: our AE title.")
@click.option("--address", default="127.0.0.1", show_default=True, help="dicom: address to listen on.")
@click.option("--caller", multiple=True, help="dicom: AE title that may send; may be repeated.")
@click.option("--peer", multiple=True, help="dicom: IP address or network that may connect; may be repeated.")
@click.option("--until-idle", type=click.FloatRange(min=0.1), help="dicom: end after so many seconds without data.")
def command(site_file: Path, kind: str, source: str | None, **options: Any) -> None:
    """Bring images into a site's cohort; an import that was cut short goes on where it ended. Nothing is sent out.

    SOURCE is a folder or ZIP file, or the address of a DICOMweb service. Credentials for it come from the environment:
    EUCAIM_FL_DICOMWEB_USER and EUCAIM_FL_DICOMWEB_PASSWORD, or EUCAIM_FL_DICOMWEB_TOKEN.

    \b
    Examples:
      eucaim-fl site import site.yaml --from folder /mnt/export --modality MR --deidentify
      eucaim-fl site import site.yaml --from dicomweb https://pacs.hospital/dicom-web --body-part PROSTATE
      eucaim-fl site import site.yaml --from dicom --port 11112 --ae EUCAIM --until-idle 600
    """
    from eucaim_fl.cohorts.intake.importing import run_import
    from eucaim_fl.cohorts.intake.query import CohortQuery, read_patients
    from eucaim_fl.sitefile import load_site_file

    if (source is None) != (kind == "dicom"):
        raise click.UsageError(f"--from {kind} takes {'no SOURCE' if kind == 'dicom' else 'a SOURCE'}.")
    if kind == "dicom" and options["dry_run"]:
        raise click.UsageError("--dry-run can't be used with --from dicom: nobody knows what will be sent.")
    site = load_site_file(site_file)
    query = CohortQuery(
        modalities=tuple(options["modality"]),
        body_parts=tuple(options["body_part"]),
        from_date=_date(options["from_date"]),
        to_date=_date(options["to_date"]),
        patients=read_patients(options["patients"]),
    )
    console = Console(stderr=True)
    with _progress(console) as tell:
        bring = _source(kind, source or "", options, tell, console)
        report = run_import(site, query, bring, deidentify=options["deidentify"], dry_run=options["dry_run"])
    click.echo(json.dumps(report.as_dict(), indent=2) if options["as_json"] else "\n".join(report.lines()))
    if report.problem is not None:
        raise report.problem


def _date(value: datetime | None) -> Any:
    return None if value is None else value.date()


def _source(
    kind: str, source: str, options: dict[str, Any], tell: Callable[[int, int | None], None], console: Console
) -> Callable[[Landing], None]:
    """The source that the options name, ready to bring in what it has."""
    if kind == "folder":
        from eucaim_fl.cohorts.intake.archive import import_archive
        from eucaim_fl.cohorts.intake.folder import import_folder

        path = Path(source)
        return lambda landing: (import_archive if path.is_file() else import_folder)(path, landing, tell)
    if kind == "dicomweb":
        from eucaim_fl.cohorts.intake.dicomweb import Archive, import_dicomweb
        from eucaim_fl.cohorts.intake.web import Session, credentials

        session = Session(source, credentials(), ca=options["ca"], insecure_http=options["insecure_http"])
        return lambda landing: import_dicomweb(Archive(source, session), landing, tell)
    from eucaim_fl.cohorts.intake.receiver import Listener, receive

    listener = Listener(
        port=options["port"],
        address=options["address"],
        ae_title=options["ae"],
        callers=options["caller"],
        peers=options["peer"],
    )

    def started(port: int) -> None:
        console.print(f"{options['ae']} listens on {options['address']}:{port}; Ctrl-C ends it.", highlight=False)

    return lambda landing: receive(listener, landing, tell, idle_s=options["until_idle"], started=started)
