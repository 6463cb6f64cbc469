"""One pass over the pixels of a cohort's cases, each stack in a worker that may die of it; what is known is kept."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from eucaim_fl.cohorts.isolation import map_isolated
from eucaim_fl.cohorts.manifest import Case
from eucaim_fl.cohorts.pixel_facts import PixelFacts, from_json
from eucaim_fl.cohorts.pixel_store import PixelStore, content_key
from eucaim_fl.cohorts.preparation import case_to_json
from eucaim_fl.cohorts.volume import LARGEST_VOLUME_BYTES
from eucaim_fl.errors import UnreadableFileError
from eucaim_fl.sitefile import SiteFile

__all__ = ["known_pixels", "read_pixels"]

_SECONDS_A_STACK = 300.0  # as much as a run gives a case, or a check would set aside what a run can use
_MEMORY_BYTES = 4 * LARGEST_VOLUME_BYTES
_WORK = "eucaim_fl.cohorts.pixel_facts:examine"


def read_pixels(site: SiteFile, cases: Sequence[Case], tell: Callable[[int, int], None]) -> list[PixelFacts]:
    """Pixel facts of every case, in the order given; what is known by content is not read again.

    Each stack is read in a process with the time and memory that preparing a case has, 5 minutes and 8 GB. One that
    dies of it leaves a code and a reason, and is tried again by the next call. tell: is told (stacks read, stacks to
    read) from the start on.
    Raises CohortError if what was found can't be kept; WorkerError if no process can be started.
    """
    keys = [content_key(case) for case in cases]
    with PixelStore(_folder(site)) as store:
        known = dict(store.known(sorted(set(keys))))
        unread = {key: case for key, case in zip(keys, cases, strict=True) if key not in known}
        missing = list(unread)
        tell(0, len(missing))
        results = map_isolated(
            _WORK,
            (case_to_json(replace(unread[key], clinical={})) for key in missing),
            workers=min(site.compute.readers or len(os.sched_getaffinity(0)), max(len(missing), 1)),
            seconds=_SECONDS_A_STACK,
            memory_bytes=_MEMORY_BYTES,
        )
        for done, (number, result) in enumerate(results, start=1):
            facts = _checked(result.value)
            if facts is not None:
                store.keep(missing[number], facts)
            known[missing[number]] = facts or PixelFacts(
                code=result.code or UnreadableFileError.code,
                reason=result.reason or "Reading a file gave no proper answer.",
            )
            tell(done, len(missing))
    return [known[key] for key in keys]


def known_pixels(site: SiteFile, cases: Sequence[Case]) -> list[PixelFacts | None]:
    """What an earlier pass found for each case, None where it isn't known; nothing is read.

    Raises CohortError if the cache's folder can't be made or written.
    """
    keys = [content_key(case) for case in cases]
    with PixelStore(_folder(site)) as store:
        known = dict(store.known(sorted(set(keys))))
    return [known.get(key) for key in keys]


def _folder(site: SiteFile) -> Path:
    return site.cache_folder() / "check"


def _checked(value: object) -> PixelFacts | None:
    """What a worker said, or None if it is not what it should be: it has parsed foreign files."""
    try:
        return from_json(value) if isinstance(value, dict) else None
    except (ValueError, TypeError):
        return None
