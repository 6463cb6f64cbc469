"""One import from beginning to end: hold the cohort, let a source bring in what it has, give the tables their rows."""

from __future__ import annotations

from collections.abc import Callable

from eucaim_fl.cohorts.intake.landing import Landing, open_landing
from eucaim_fl.cohorts.intake.query import CohortQuery
from eucaim_fl.cohorts.intake.report import ImportReport
from eucaim_fl.cohorts.intake.tables import update_tables
from eucaim_fl.errors import EucaimError, ImportFailedError, InterruptedRunError
from eucaim_fl.sitefile import SiteFile

__all__ = ["run_import"]


def run_import(
    site: SiteFile,
    query: CohortQuery,
    bring: Callable[[Landing], None],
    *,
    deidentify: bool = False,
    dry_run: bool = False,
) -> ImportReport:
    """Run one import. bring: a source, such as `import_folder` with its folder; it counts into the landing's tally.

    What ends it early (a lost connection, a full disk, Ctrl-C) is the report's `problem`; what came in until then stays
    and has its rows in the tables, and the next import goes on from there. A dry run writes nothing into the cohort.
    Raises ImportFailedError if it can't begin: see `open_landing`; JournalError if the site's records can't be written.
    """
    with open_landing(site, query, deidentify=deidentify, dry_run=dry_run) as landing:
        problem: EucaimError | None = None
        try:
            bring(landing)
        except EucaimError as error:
            problem = error
        except KeyboardInterrupt:
            problem = InterruptedRunError("The import was stopped.", fix="Start it again: it goes on where it ended.")
        rows = 0
        if not dry_run:
            try:
                rows = _list_series(site, landing)
            except EucaimError as error:
                problem = problem or error
        report = landing.tally.report(new_rows=rows, dry_run=dry_run, problem=problem)
    if problem is None and report.refused and not (report.brought_in or report.already_there):
        nothing = ImportFailedError("Nothing came in: all that fits the query was refused.", fix="See the reasons.")
        report = landing.tally.report(dry_run=dry_run, problem=nothing)
    return report


def _list_series(site: SiteFile, landing: Landing) -> int:
    rows = landing.journal.unlisted()
    added = update_tables(landing.folder, site.cohort.layout, rows, site.name) if rows else 0
    landing.journal.listed(rows)
    return added
