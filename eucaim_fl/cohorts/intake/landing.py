"""Where instances land: written beside their place, examined, then renamed into it; noted, so that nothing comes twice.

A source hands over temporary files and is told what became of them. Nothing that a file or an archive says is used in
a path unless it was checked; what is there is never replaced.
"""

from __future__ import annotations

import contextlib
import errno
import hmac
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from eucaim_fl.cohorts.intake.headers import Header, content_hash, is_image_class, is_uid, place_of, read_header
from eucaim_fl.cohorts.intake.journal import Journal, Noted, SeriesRow
from eucaim_fl.cohorts.intake.query import CohortQuery
from eucaim_fl.cohorts.intake.report import Outcome, Reason, Tally
from eucaim_fl.cohorts.isolation import map_isolated
from eucaim_fl.durable import exclusive, local_key
from eucaim_fl.errors import IdentifierError, ImportFailedError, RunFolderBusyError, UnreadableFileError
from eucaim_fl.sitefile import SiteFile

__all__ = ["LARGEST_INSTANCE_BYTES", "LAYOUTS", "Landing", "TooLargeError", "open_landing"]

LARGEST_INSTANCE_BYTES = 2**31
"""No instance may be larger, whatever a source says of it."""
LAYOUTS = ("eucaim_tier3", "folder_csv")
"""Layouts of cohorts that images can be brought into."""
_INCOMING = ".eucaim_fl_incoming"
_CLEANING_S = 300.0


class TooLargeError(ValueError):
    """An instance is larger than it may be."""


@dataclass(eq=False)
class Landing:
    """The place that instances of one import come to; may be used from several threads. Made by `open_landing`.

    folder: the cohort's. limit: most bytes of one instance. links: where links below the folder may lead.
    """

    folder: Path
    query: CohortQuery
    journal: Journal
    secret: bytes
    deidentify: bool = False
    dry_run: bool = False
    links: tuple[Path, ...] = ()
    limit: int = LARGEST_INSTANCE_BYTES
    tally: Tally = field(default_factory=Tally)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def temporary(self) -> Path:
        """A new empty file (0600) beside the places; `settle` takes it away.

        Raises ImportFailedError if there is no room for it.
        """
        with self.room():
            incoming = self.folder / _INCOMING
            incoming.mkdir(mode=0o700, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=incoming, suffix=".part")
            os.close(handle)
            return Path(name)

    @contextlib.contextmanager
    def room(self) -> Iterator[None]:
        """Around writing below the cohort's folder.

        Raises ImportFailedError if the system says that the disk is full, or the folder can't be written.
        """
        try:
            yield
        except OSError as problem:
            full = problem.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            raise ImportFailedError(
                "The disk is full; nothing half-written was left behind."
                if full
                else "The cohort's folder can't be written.",
                fix="Free some space, then import again: it goes on where it ended."
                if full
                else "Check the permissions of the cohort's folder.",
                local_detail=f"{self.folder}: {problem}",
            ) from None

    @contextlib.contextmanager
    def writing(self, temporary: Path) -> Iterator[Callable[[bytes | bytearray | memoryview], None]]:
        """A function that appends to a temporary file.

        It raises TooLargeError once the file is larger than an instance may be, ImportFailedError if the disk is full.
        """
        total = 0
        with self.room():
            stream = temporary.open("wb", buffering=0)

        def write(block: bytes | bytearray | memoryview) -> None:
            nonlocal total
            total += len(block)
            if total > self.limit:
                raise TooLargeError("larger than an instance may be")
            left = memoryview(block)
            with self.room():
                while left:
                    left = left[stream.write(left) :]

        with contextlib.closing(stream):
            yield write

    def count(self, outcome: Outcome) -> Outcome:
        """Count an outcome; returns it."""
        self.tally.add(outcome)
        return outcome

    def have(self, sop_uid: str) -> Outcome | None:
        """What is known of an instance before it is fetched: it is there, or was changed since; None to fetch it."""
        noted = self.journal.find(self._key(sop_uid))
        here = None if noted is None else self._is_here(noted)
        if here is None:
            return None
        return Outcome("already_there") if here else Outcome("refused", Reason.CHANGED)

    def judge(self, path: Path, header: Header | None = None) -> Outcome | Header:
        """Whether a file is wanted: its header if it may come in, else what becomes of it. The file stays as it is."""
        try:
            header = header or read_header(path)
            if not is_image_class(header.sop_class):
                return Outcome("left", Reason.NOT_AN_IMAGE)
            if not self.query.asks_for(header):
                return Outcome("left", Reason.NOT_ASKED_FOR)
            if not header.patient_id:
                return Outcome("refused", Reason.NO_PATIENT)
            if not all(map(is_uid, (header.study_uid, header.series_uid, header.sop_uid))):
                return Outcome("refused", Reason.NO_UIDS)
            if path.stat().st_size > self.limit:
                return Outcome("refused", Reason.TOO_LARGE)
            noted = self.journal.find(self._key(header.sop_uid))
            here = None if noted is None else self._is_here(noted)
            if noted is None or here is None:
                return header
            if not here:
                return Outcome("refused", Reason.CHANGED)
            same = content_hash(path, header) == noted.source
            return Outcome("already_there") if same else Outcome("refused", Reason.OTHER_CONTENT)
        except (UnreadableFileError, OSError):
            return Outcome("refused", Reason.BROKEN)

    def would_come(self, path: Path, header: Header) -> Outcome:
        """The outcome of a dry run for a file that was judged to be wanted."""
        self.tally.belongs(header.patient_id.hex(), header.series_uid)
        return Outcome("brought_in", size=path.stat().st_size)

    def settle(self, temporary: Path, header: Header | None = None) -> Outcome:
        """Bring a temporary file to its place if it is wanted and not there; it is gone afterwards in any case.

        header: of this very file, where it was read already.
        Raises ImportFailedError if the disk is full, or the cohort can't be written.
        """
        cleaned: Path | None = None
        try:
            verdict = self.judge(temporary, header)
            if isinstance(verdict, Outcome):
                return verdict
            header = verdict
            if self.dry_run:
                return self.would_come(temporary, header)
            source = content_hash(temporary, header)
            ready, final, content = temporary, header, source
            if self.deidentify:
                ready = cleaned = self.temporary()
                final = self._clean(temporary, cleaned)
                content = content_hash(cleaned, final)
            return self._place(ready, final, self._key(header.sop_uid), source, content)
        except IdentifierError as problem:
            return Outcome("refused", f"{Reason.NOT_CLEANED}: {problem.message}")
        except UnreadableFileError:
            return Outcome("refused", Reason.BROKEN)
        finally:
            for path in (temporary, cleaned):
                if path is not None:
                    path.unlink(missing_ok=True)

    def _key(self, sop_uid: str) -> bytes:
        return self.journal.key(sop_uid, deidentified=self.deidentify)

    def _is_here(self, noted: Noted) -> bool | None:
        """Whether a noted file is in its place as it was; False if it was changed, None if it is gone."""
        path = self.folder / noted.place
        try:
            status = path.stat()
            if (status.st_size, status.st_mtime_ns) == (noted.size, noted.mtime_ns):
                return True
            return content_hash(path, read_header(path)) == noted.content
        except FileNotFoundError:
            return None
        except (OSError, UnreadableFileError):
            return False

    def _clean(self, source: Path, target: Path) -> Header:
        """De-identify in a process of its own. Raises IdentifierError if it can't be done."""
        item = {"source": str(source), "target": str(target)}
        shared = {"secret": self.secret.hex()}
        work = "eucaim_fl.cohorts.intake.cleaning:clean"
        for _, result in map_isolated(work, [item], shared=shared, seconds=_CLEANING_S, memory_bytes=8 * 10**9):
            if result.code:  # what a worker says came from our own texts, but it has read a foreign file
                known = result.code == IdentifierError.code and len(result.reason) < 120 and result.reason.isprintable()
                raise IdentifierError(result.reason if known else "The file could not be read.")
        return read_header(target)

    def _place(self, ready: Path, header: Header, key: bytes, source: str, content: str) -> Outcome:
        try:
            place = place_of(header, self.secret)
        except ImportFailedError:
            return Outcome("refused", Reason.NO_UIDS)
        target = self.folder / place
        with self._lock, self.room():
            if not self._leads_inside(target.parent):
                return Outcome("refused", Reason.LEADS_OUT)
            if os.path.lexists(target):
                return self._compare(target, place, key, source, content, header)
            target.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(ready, os.O_RDONLY)
            try:
                os.fchmod(handle, 0o640)
                os.fdatasync(handle)  # a name must not outlive its bytes when the power goes
            finally:
                os.close(handle)
            status = ready.stat()
            noted = Noted(source, str(place), content, status.st_size, status.st_mtime_ns)
            self.journal.note(key, noted, _row(place, header))
            ready.replace(target)
        self.tally.belongs(place.parts[1], header.series_uid)
        return Outcome("brought_in", size=status.st_size)

    def _compare(
        self, target: Path, place: PurePosixPath, key: bytes, source: str, content: str, header: Header
    ) -> Outcome:
        """What lies in the place already: the same (then it is noted), or something else, which stays."""
        try:
            same = not target.is_symlink() and content_hash(target, read_header(target)) == content
        except UnreadableFileError:
            same = False
        if not same:
            return Outcome("refused", Reason.OTHER_CONTENT)
        status = target.stat()
        noted = Noted(source, str(place), content, status.st_size, status.st_mtime_ns)
        self.journal.note(key, noted, _row(place, header))
        return Outcome("already_there")

    def _leads_inside(self, folder: Path) -> bool:
        real = folder.resolve()
        return any(real.is_relative_to(root) for root in (self.folder.resolve(), *self.links))


def _row(place: PurePosixPath, header: Header) -> SeriesRow:
    _, patient, study, series, _ = place.parts
    return SeriesRow(
        patient, study, series, header.modality[:16], header.body_part[:64], header.manufacturer[:64], header.sex[:1]
    )


@contextlib.contextmanager
def open_landing(
    site: SiteFile, query: CohortQuery, *, deidentify: bool = False, dry_run: bool = False
) -> Iterator[Landing]:
    """Hold a site's cohort for one import; what an import that was killed left half-written is removed.

    Raises ImportFailedError if images can't be brought into the site's layout, the cohort's folder can't be made, or
    another import is under way; JournalError if the site's records can't be written.
    """
    if site.cohort.layout not in LAYOUTS:
        raise ImportFailedError(
            f"Images can't be brought into a cohort with the layout {site.cohort.layout}.",
            fix=f"Layouts that take images: {', '.join(LAYOUTS)}.",
        )
    folder, records = site.cohort_folder(), site.records_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise ImportFailedError(
            "The cohort's folder can't be made.", fix="Check cohort.folder.", local_detail=f"{folder}: {problem}"
        ) from None
    secret = local_key(records / "pseudonyms.key")
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(exclusive(records / "import"))
        except RunFolderBusyError as problem:
            raise ImportFailedError(
                "Another import into this cohort is under way.",
                fix="Wait for it to end, or stop it.",
                local_detail=problem.local_detail,
            ) from None
        shutil.rmtree(folder / _INCOMING, ignore_errors=True)
        journal = Journal(records, hmac.digest(secret, b"journal of imports", "sha256"))
        held.callback(journal.close)
        held.callback(shutil.rmtree, folder / _INCOMING, ignore_errors=True)
        yield Landing(folder, query, journal, secret, deidentify, dry_run, site.link_folders())
