"""Images from a DICOMweb archive: ask what there is, compare with what is here, fetch what is missing.

Everything in the archive's answers is a claim: identifiers are checked before they are used in an address, and what
arrives must be what was asked for. Instances come as they are stored, without being encoded anew.
Source: DICOM PS3.18 chapter 10 (QIDO-RS 10.6, WADO-RS 10.4).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import requests
from dicomweb_client.api import DICOMwebClient

from eucaim_fl.cohorts.intake.folder import Tell
from eucaim_fl.cohorts.intake.headers import is_uid, read_header
from eucaim_fl.cohorts.intake.landing import Landing, TooLargeError
from eucaim_fl.cohorts.intake.multipart import Multipart, boundary_of
from eucaim_fl.cohorts.intake.report import Outcome, Reason
from eucaim_fl.cohorts.intake.web import Session, blocks_of
from eucaim_fl.errors import ImportFailedError, UnreadableFileError

__all__ = ["Archive", "Listed", "import_dicomweb"]

_ACCEPT = 'multipart/related; type="application/dicom"; transfer-syntax=*'
_PAGE = 200
_MOST_SERIES, _MOST_INSTANCES = 1_000_000, 200_000
_STUDY_UID, _SERIES_UID, _SOP_UID, _BODY_PART = "0020000D", "0020000E", "00080018", "00180015"
_FAILURES_IN_A_ROW = 3
_LARGEST_OVERHEAD = 1024 * 1024
_TRY_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})

T = TypeVar("T")


@dataclass(frozen=True)
class Listed:
    """A series that an archive lists, and its instances. body_part: as the list states it; empty if it doesn't."""

    study: str
    series: str
    instances: tuple[str, ...]
    body_part: str = ""


@dataclass(eq=False)
class Archive:
    """A DICOMweb archive.

    timeouts_s: to connect, and between two pieces of an answer. attempts: how often a request is made before it counts
    as failed; each waits twice as long as the one before. instance_s: most time for one instance.
    """

    url: str
    session: Session
    timeouts_s: tuple[float, float] = (10.0, 60.0)
    attempts: int = 6
    instance_s: float = 1800.0
    wait: Callable[[float], None] = time.sleep
    _client: Any = field(init=False)

    def __post_init__(self) -> None:
        self.url = self.url.rstrip("/")
        self._client = DICOMwebClient(self.url, session=self.session, timeout=self.timeouts_s, permissive_uid=True)
        self._client.set_http_retry_params(retry=False)

    def series(self, landing: Landing) -> list[Listed]:
        """What the archive has that the query asks for. What it names without valid UIDs is counted as refused.

        Raises ImportFailedError if it can't be reached, refuses to answer, or its answers can't be understood.
        """
        found: dict[tuple[str, str], str] = {}
        for filters in landing.query.filters():
            search = self._pages(
                *(self._client.search_for_series, _MOST_SERIES),
                search_filters=filters,
                fields=["BodyPartExamined"],
            )
            for item in search:
                study, series = _text(item, _STUDY_UID), _text(item, _SERIES_UID)
                if is_uid(study) and is_uid(series):
                    found[study, series] = _text(item, _BODY_PART)
                else:
                    landing.count(Outcome("refused", Reason.NO_UIDS))
        result: list[Listed] = []
        for (study, series), body_part in sorted(found.items()):
            search = self._pages(
                *(self._client.search_for_instances, _MOST_INSTANCES),
                study_instance_uid=study,
                series_instance_uid=series,
            )
            named = {_text(item, _SOP_UID) for item in search}
            valid = {uid for uid in named if is_uid(uid)}
            landing.tally.add(Outcome("refused", Reason.NO_UIDS), len(named - valid))
            result.append(Listed(study, series, tuple(sorted(valid)), body_part))
        return result

    def fetch(self, listed: Listed, wanted: set[str], landing: Landing, *, whole: bool = False) -> Outcome | None:
        """Bring in instances of a series: all of it with one request, or the one that is in `wanted`.

        What arrives is counted and taken out of `wanted`; the last outcome is returned, None if nothing came.
        Raises ConnectionError if the answer breaks off, ValueError if it isn't what was asked for, ImportFailedError if
        the cohort can't be written or the archive refuses the credentials.
        """
        url = f"{self.url}/studies/{listed.study}/series/{listed.series}"
        url = url if whole else f"{url}/instances/{next(iter(wanted))}"
        outcome: Outcome | None = None
        with self.session.get(url, headers={"Accept": _ACCEPT}, stream=True, timeout=self.timeouts_s) as response:
            response.raise_for_status()
            limit = len(wanted) * (landing.limit + _LARGEST_OVERHEAD)
            until = time.monotonic() + self.instance_s * len(wanted)
            parts = Multipart(blocks_of(response, limit, until), boundary_of(response.headers.get("Content-Type", "")))
            while wanted and parts.next_part():
                temporary = landing.temporary()
                try:
                    with landing.writing(temporary) as write:
                        parts.copy_part(write)
                    header = read_header(temporary)
                    if (header.study_uid, header.series_uid) != (listed.study, listed.series):
                        raise ValueError("of another series")
                    if header.sop_uid not in wanted:
                        raise ValueError("another instance")
                    outcome = landing.count(landing.settle(temporary, header))
                    wanted.discard(header.sop_uid)
                except UnreadableFileError:
                    raise ValueError("no readable DICOM file") from None
                finally:
                    temporary.unlink(missing_ok=True)
        return outcome

    def patiently(self, ask: Callable[[], T]) -> T:
        """Call `ask` until it neither loses the connection nor is told that the archive is in trouble.

        Raises ConnectionError after the last attempt; ImportFailedError if the archive refuses the credentials, or its
        certificate can't be verified.
        """
        for attempt in range(self.attempts):
            try:
                return ask()
            except requests.exceptions.SSLError as problem:
                raise ImportFailedError(
                    "The archive's certificate can't be verified.",
                    fix="Give the hospital's own certificates with --ca.",
                    local_detail=str(problem)[:500],
                ) from None
            except requests.HTTPError as problem:
                status = 0 if problem.response is None else problem.response.status_code
                if status in (401, 403):
                    raise ImportFailedError(
                        f"The archive refuses access (status {status}).",
                        fix="Check the credentials in the environment, and what they may read.",
                    ) from None
                if status not in _TRY_AGAIN:
                    raise
            except (ConnectionError, requests.ConnectionError, requests.Timeout):
                pass
            if attempt + 1 < self.attempts:
                self.wait(0.5 * 2**attempt)
        raise ConnectionError("the archive can't be reached, or is in trouble")

    def _pages(self, search: Callable[..., Any], most: int, **arguments: Any) -> Iterator[dict[str, Any]]:
        """Items of all pages of a search. An archive that gives the same page again and again is stopped."""
        offset, seen = 0, set[tuple[str, ...]]()
        while True:
            page = self._asked(search, offset, arguments)
            items = [item for item in page if isinstance(item, dict)] if isinstance(page, list) else []
            fresh = False
            for item in items:
                names = tuple(_text(item, tag) for tag in (_STUDY_UID, _SERIES_UID, _SOP_UID))
                if names not in seen:
                    fresh = True
                    seen.add(names)
                    yield item
            offset += len(items)
            if not fresh:
                return
            if offset > most:
                raise ImportFailedError(
                    "The archive lists more than can be imported at once.", fix="Narrow the query with its options."
                )

    def _asked(self, search: Callable[..., Any], offset: int, arguments: dict[str, Any]) -> Any:
        try:
            return self.patiently(lambda: search(limit=_PAGE, offset=offset, **arguments))
        except ConnectionError as problem:
            raise ImportFailedError(
                "The archive can't be reached.", fix="Check its address, and try again.", local_detail=str(problem)
            ) from None
        except (requests.RequestException, ValueError, RecursionError, TypeError) as problem:
            raise ImportFailedError(
                "The archive's answer can't be understood.",
                fix="Check that the address is that of its DICOMweb service.",
                local_detail=f"{type(problem).__name__}: {str(problem)[:300]}",
            ) from None


def _text(item: dict[str, Any], tag: str) -> str:
    """The first value of an attribute in DICOM JSON as text; empty where it is absent or something else."""
    attribute = item.get(tag)
    values = attribute.get("Value") if isinstance(attribute, dict) else None
    first = values[0] if isinstance(values, list) and values else ""
    return first.strip(" \0")[:256] if isinstance(first, str) else ""


def import_dicomweb(archive: Archive, landing: Landing, tell: Tell) -> None:
    """Bring in what the query asks for from a DICOMweb archive. What is here already is not fetched.

    Raises ImportFailedError if the archive can't be reached or is lost on the way; what came in until then stays.
    """
    listed = archive.series(landing)
    total = landing.tally.done() + sum(len(one.instances) for one in listed)
    bringer = _Bringer(archive, landing)
    try:
        for one in listed:
            bringer.bring(one)
            tell(landing.tally.done(), total)
    finally:
        landing.tally.add(Outcome("left", Reason.NOT_REACHED), total - landing.tally.done())


class _Bringer:
    """Brings in series after series, and gives up once requests fail for good one after the other."""

    def __init__(self, archive: Archive, landing: Landing) -> None:
        self._archive, self._landing = archive, landing
        self._failures = 0

    def bring(self, listed: Listed) -> None:
        """Compare one series with what is here, and fetch what is missing."""
        landing, missing = self._landing, set[str]()
        for uid in listed.instances:
            known = landing.have(uid)
            if known is None:
                missing.add(uid)
            else:
                landing.count(known)
        asked = {part.upper() for part in landing.query.body_parts}
        if asked and listed.body_part and listed.body_part.upper() not in asked:
            landing.tally.add(Outcome("left", Reason.NOT_ASKED_FOR), len(missing))
        elif landing.dry_run:
            landing.tally.add(Outcome("brought_in"), len(missing))
            landing.tally.belongs("", listed.series if missing else "")
        elif missing:
            self._fetch(listed, missing, probe=bool(asked) and not listed.body_part)

    def _fetch(self, listed: Listed, missing: set[str], *, probe: bool) -> None:
        """probe: whether to look at one instance first; what the query asks about is the same in all of a series."""
        if probe:
            first = min(missing)
            missing.discard(first)
            if self._one(listed, first) == Outcome("left", Reason.NOT_ASKED_FOR):
                self._landing.tally.add(Outcome("left", Reason.NOT_ASKED_FOR), len(missing))
                return
        if 1 < len(missing) >= len(listed.instances) - 1:
            # One request saves the others' round trips. If it fails, the rest comes one by one, with patience.
            with contextlib.suppress(ConnectionError, ValueError, requests.RequestException):
                self._archive.fetch(listed, missing, self._landing, whole=True)
        for uid in sorted(missing):
            self._one(listed, uid)

    def _one(self, listed: Listed, uid: str) -> Outcome:
        wanted = {uid}
        try:
            outcome = self._archive.patiently(lambda: self._archive.fetch(listed, wanted, self._landing))
        except (ConnectionError, requests.RequestException) as problem:
            return self._failed(problem)
        except ValueError as problem:
            reason = Reason.TOO_LARGE if isinstance(problem, TooLargeError) else Reason.WRONG_ANSWER
            return self._landing.count(Outcome("refused", reason))
        if outcome is None:
            return self._landing.count(Outcome("refused", Reason.NOT_SENT))
        self._failures = 0
        return outcome

    def _failed(self, problem: Exception) -> Outcome:
        self._failures += isinstance(problem, ConnectionError)
        if self._failures >= _FAILURES_IN_A_ROW:
            raise ImportFailedError(
                "The archive was lost on the way.",
                fix="Start the import again: it goes on where it ended.",
                local_detail=str(problem)[:300],
            ) from None
        return self._landing.count(Outcome("refused", Reason.NOT_SENT))
