"""`eucaim-fl site check`: who of a cohort can be used and what is amiss with the site, why, and what to do."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from eucaim_fl.cli.home_option import home_option
from eucaim_fl.site.home import SiteHome

if TYPE_CHECKING:
    from eucaim_fl.site.check_report import CheckReport, Section
    from eucaim_fl.site.network import SetupFinding

__all__ = ["command", "print_report", "steps"]

Tell = Callable[[str, int, int | None], None]

_COLOURS = {"blocks": "bold red", "warns": "yellow", "informs": "blue"}
_LINE_EVERY_S = 10.0


@click.command("check", short_help="Say which patients can be used, and what is amiss with the line.")
@click.argument("site_file", type=click.Path(path_type=Path), required=False)
@home_option("the cohort alone is checked")
@click.option("--json", "as_json", is_flag=True, help="Print JSON without any patient's name.")
@click.option("--html", "page", type=click.Path(path_type=Path), help="Write a page with pictures too, for local eyes.")
@click.option("--no-pixels", is_flag=True, help="Headers and tables only; quick, but finds less.")
@click.option("--no-cohort", is_flag=True, help="With --home: line, keys and machine only; takes seconds.")
@click.pass_context
def command(
    ctx: click.Context,
    /,
    site_file: Path | None,
    home: Path | None,
    as_json: bool,
    no_cohort: bool,
    **options: Any,
) -> None:
    """Check a cohort as a run would meet it, and say what to do. Sends nothing of it.

    With --home, the site's home is checked first: keys, policy, disk, memory, and the line to the coordinator, by one
    TLS handshake and an empty request. SITE_FILE is then the home's own, unless another is named.

    Exit 0: the site can take part. Exit 2: it can't, or the site file is wrong.

    \b
    Examples:
      eucaim-fl site check sites/a.yaml
      eucaim-fl site check sites/a.yaml --html check.html
      eucaim-fl site check --home /srv/eucaim-fl
    """
    if site_file is not None and ctx.get_parameter_source("home") is ParameterSource.ENVIRONMENT:
        home = None  # a variable that is set for the service must not make a check of another file connect
    if site_file is None and home is None:
        raise click.UsageError("Name a site file, or the site's home with --home.")
    if no_cohort and (home is None or options["page"] is not None):
        raise click.UsageError("--no-cohort goes with --home, and without --html.")
    found = () if home is None else _check_home(home, as_json)
    value: dict[str, Any] = {"home": [_as_json(one) for one in found]} if home is not None else {}
    good = all(one.severity != "blocks" for one in found)
    unusable = site_file is None and any(one.code in ("home.site_file", "home.cohort") for one in found)
    if not no_cohort and not unusable:
        file = site_file if site_file is not None else SiteHome(home or Path()).site_file
        report = _check_cohort(file, as_json, **options)
        good = good and report[0]
        value.update(report[1])
    if as_json:
        click.echo(json.dumps(value, indent=2, sort_keys=True))
    elif home is not None:
        blocking = sum(one.severity == "blocks" for one in found)
        many = "1 thing blocks" if blocking == 1 else f"{blocking} things block"
        click.echo(f"\nLine, home and machine: {many if blocking else 'nothing blocks'}.")
        click.echo("Whether the coordinator admits this site is shown by `eucaim-fl site status` once the client runs.")
    ctx.exit(0 if good else 2)


def _check_home(folder: Path, as_json: bool) -> tuple[SetupFinding, ...]:
    from eucaim_fl.site.machine import check_home

    found = check_home(SiteHome(folder).require(), lambda: datetime.now(UTC))
    if not as_json:
        Console().print(_setup(found))
    return found


def _as_json(finding: SetupFinding) -> dict[str, str]:
    return {"code": finding.code, "severity": finding.severity, "text": finding.text, "advice": finding.advice}


def _check_cohort(site_file: Path, as_json: bool, page: Path | None, no_pixels: bool) -> tuple[bool, dict[str, Any]]:
    """Whether the cohort can be used, and the report as JSON."""
    from eucaim_fl.site.check_report import render_html, to_json, write_page
    from eucaim_fl.site.preflight import check
    from eucaim_fl.sitefile import load_site_file

    site = load_site_file(site_file)
    with steps(Console(stderr=True)) as tell:
        report = check(site, pixels=not no_pixels, tell=tell)
    if page is not None:
        write_page(render_html(report), page, site.cohort_folder())
    if not as_json:
        print_report(Console(), report)
        if page is not None:
            click.echo(f"\nReport: {page.absolute().as_uri()} (for local eyes only)")
    return report.can_train, to_json(report)


def _setup(found: tuple[SetupFinding, ...]) -> Table:
    from eucaim_fl.site.check_report import printable, severity_word

    table = _table("Line, home and machine", ("", 0), ("what was found", 3), ("what to do", 2))
    table.columns[0].justify = "left"
    for one in found:
        mark = Text(severity_word(one.severity), style=_COLOURS[one.severity])
        detail = f"\n{printable(one.detail)}" if one.detail else ""
        table.add_row(mark, Text.assemble(one.text, (f" {one.code}", "dim"), (detail, "dim")), Text(one.advice))
    return table


@contextmanager
def steps(console: Console) -> Iterator[Tell]:
    """Shows how far each step of a long work is: a bar on a terminal, a line now and then elsewhere.

    Gives a function (what is done, how many are done, how many in all or None).
    """
    if not console.is_terminal:
        yield _Lines(console)
        return
    bars = Progress(
        TextColumn("{task.description:<20}"),
        BarColumn(bar_width=40),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    )
    tasks: dict[str, int] = {}

    def tell(step: str, done: int, total: int | None) -> None:
        if step not in tasks:
            tasks[step] = int(bars.add_task(step, total=total))
        bars.update(tasks[step], completed=done, total=total)  # type: ignore[arg-type]

    with bars:
        yield tell


class _Lines:
    """A line when a step begins and ends, and every ten seconds."""

    def __init__(self, console: Console) -> None:
        self._console, self._step, self._said = console, "", 0.0

    def __call__(self, step: str, done: int, total: int | None) -> None:
        now = time.monotonic()
        if step == self._step and now - self._said < _LINE_EVERY_S and done != total:
            return
        self._step, self._said = step, now
        of = "" if total is None else f" of {total}"
        text = f"{time.strftime('%H:%M:%S')} {step}: {done}{of}"
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)


def print_report(console: Console, report: CheckReport) -> None:
    """The report as tables; at most ten patients with each finding, with identifiers masked."""
    from eucaim_fl.site.check_report import sections, shown

    console.print(_headline(report))
    words = {name: name.replace("_", " ") for name in report.counts}
    counts = [f"{n:,} {words[name].removesuffix('s') if n == 1 else words[name]}" for name, n in report.counts.items()]
    kinds = [f"{count:,} {shown(name) or 'of no stated modality'}" for name, count in report.modalities.items()]
    console.print(Text(" · ".join([*counts, *kinds]), style="dim"))
    if report.set_aside or report.dropped:
        console.print(_aside(report))
    for section in sections(report):
        if section.findings:
            console.print(_findings(section))
        elif section.title != "Cohort":
            console.print(Text.assemble("\n", (section.title, "bold"), ": nothing found."))
    if report.columns:
        console.print(_columns(report))
    text = f"withdrawals in force: {report.withdrawn}." if report.consent else "the site keeps no consent table."
    console.print(Text.assemble("\n", ("Consent", "bold"), f": {text}"))
    if not report.pixels_read:
        console.print("Pixels were not read; run without --no-pixels to find more.", style="dim")
    console.print()
    console.print(_headline(report))  # again: of a long report only the end is on the screen


def _headline(report: CheckReport) -> Text:
    from eucaim_fl.site.check_report import printable

    usable = len(report.usable)
    text = Text.assemble(
        (printable(report.title or report.site), "bold"), f": {usable} of {report.patients} patients can be used. "
    )
    if report.can_train:
        return text.append("This cohort can take part.", style="bold green")
    text.append("This cohort can't take part yet:", style="bold red")
    for obstacle in report.obstacles:
        text.append(f"\n- {obstacle}")
    return text


def _table(title: str, *columns: tuple[str, int]) -> Table:
    """A table without borders; a column of ratio 0 is as wide as it must be, and its numbers stand right."""
    table = Table(title=f"\n{title}", title_justify="left", title_style="bold", box=None, pad_edge=False, expand=True)
    for name, ratio in columns:
        table.add_column(name, ratio=ratio or None, no_wrap=not ratio, justify="left" if ratio else "right")
    return table


def _aside(report: CheckReport) -> Table:
    from eucaim_fl.site.check_report import ADVICE, named

    table = _table("Set aside", ("how many", 0), ("why", 3), ("what to do", 2))
    for group in report.set_aside:
        why = Text.assemble(group.reason, (f" {group.code}", "dim"), ("\n" + named(group.patients), "dim"))
        count = len(group.patients)
        table.add_row(f"{count:,} {'patient' if count == 1 else 'patients'}", why, Text(group.do))
    for code, reason, images in report.dropped:
        table.add_row(
            f"{images:,} series",
            Text.assemble(reason, (f" {code}", "dim")),
            Text(f"{ADVICE.get(code, '')} Other images of these patients are used.".lstrip()),
        )
    return table


def _findings(section: Section) -> Table:
    from eucaim_fl.site.check_report import amount, named, severity_word

    table = _table(section.title, ("", 0), ("how many", 0), ("what was found", 3), ("what to do", 2))
    table.columns[0].justify = "left"
    for f in section.findings:
        mark = Text(severity_word(f.severity), style=_COLOURS[f.severity])
        subjects = "\n" + named(f.subjects) if f.subjects else ""
        found = Text.assemble(f.says, (f" {f.rule}", "dim"), (subjects, "dim"))
        table.add_row(mark, amount(f), found, Text(f.do))
    return table


def _columns(report: CheckReport) -> Table:
    from eucaim_fl.site.check_report import shown

    table = _table("Clinical columns", ("column", 2), ("missing", 0), ("values", 4))
    for c in report.columns:
        values = ", ".join(f"{shown(value)} {count}" for value, count in c.classes) or f"{c.distinct} different"
        table.add_row(Text(shown(c.name)), f"{100 * c.missing_share:.0f} %", Text(values))
    return table
