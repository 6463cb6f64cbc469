"""Every chosen case prepared, through the cache: what isn't there yet is made, side by side if it is much.

What is much goes to isolated processes, one case at a time, bounded in time and memory. A few small files are quicker
done here than such a process starts; a case that killed a process once is never tried here again. The tensors are the
same bits either way.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eucaim_fl import errors
from eucaim_fl.cohorts.cache import Cache, Entry, State, combine
from eucaim_fl.cohorts.facts import SeriesFacts
from eucaim_fl.cohorts.isolation import close, map_isolated
from eucaim_fl.cohorts.manifest import Case
from eucaim_fl.cohorts.preprocess import Prepared, prepare, preprocessing_key
from eucaim_fl.cohorts.volume import LARGEST_VOLUME_BYTES
from eucaim_fl.errors import CohortError, DataError, UnreadableFileError
from eucaim_fl.plan import FederationPlan

__all__ = ["Outcome", "case_from_json", "case_to_json", "make_entry", "prepare_all", "recall_all"]

_FEW_FILES, _FEW_BYTES = 2_000, 256 * 2**20  # about as long as an isolated process takes to load its libraries
_SECONDS, _MEMORY_BYTES = 300.0, 4 * LARGEST_VOLUME_BYTES
_WORK = "eucaim_fl.cohorts.preparation_worker:work"


@dataclass(frozen=True, eq=False)
class Outcome:
    """What became of a case: its content and entry, or the error why there is none."""

    content: str = ""
    entry: Entry | None = None
    error: DataError | None = None

    def channels(self) -> tuple[str, ...]:
        """SHA-256 of each channel's values on the plan's grid, as far as there are any that say something."""
        return () if self.entry is None else tuple(digest for digest in self.entry.channels if digest)


def prepare_all(
    cases: Sequence[Case],
    plan: FederationPlan,
    cache: Cache,
    *,
    readers: int | None = None,
    tell: Callable[[int, int], object] | None = None,
) -> list[Outcome]:
    """The outcome of each case, in order.

    readers: isolated processes at a time; None takes one a core. tell: called with the number of cases that are done
    and the number of all, first for what is in the cache already.
    Raises CohortError if the cache can't be written or has no room, WorkerError if no isolated process can be started.
    """
    key, states = preprocessing_key(plan), [cache.state(case) for case in cases]
    outcomes: list[Outcome | None] = [_known(cache, key, state) for state in states]
    missing = [number for number, outcome in enumerate(outcomes) if outcome is None]
    done = len(cases) - len(missing)
    cache.expect(len(cases))
    tell = tell or (lambda _done, _total: None)
    tell(done, len(cases))
    small = (
        sum(states[n].files for n in missing) <= _FEW_FILES and sum(states[n].size_bytes for n in missing) <= _FEW_BYTES
    )
    here = [n for n in missing if small and not cache.is_suspect(_attempt(states[n], key))]
    apart = [n for n in missing if n not in set(here)]
    for number in here:
        outcomes[number] = make_entry(cases[number], plan, cache)
        done += 1
        tell(done, len(cases))
    try:
        with closing(_apart([(n, cases[n], states[n]) for n in apart], plan, cache, readers or _cores())) as answers:
            for number, outcome in answers:
                outcomes[number] = outcome
                done += 1
                tell(done, len(cases))
    finally:
        if apart:
            close()  # such a process holds a quarter of a gigabyte, and training goes on for hours
    return [outcome or Outcome(error=_unforeseen("no answer")) for outcome in outcomes]


def recall_all(cases: Sequence[Case], plan: FederationPlan, cache: Cache) -> list[Outcome]:
    """What is known of cases that must not be prepared: the content, the entry if there happens to be one, the error.

    Files of unknown content are compared byte by byte (hashed), but not opened as images.
    Raises CohortError if the cache has no room.
    """
    key = preprocessing_key(plan)
    outcomes = []
    for case in cases:
        outcome = _known(cache, key, cache.state(case))
        try:
            outcomes.append(outcome or Outcome(cache.content(case)))
        except DataError as error:
            outcomes.append(Outcome(error=error))
    return outcomes


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _known(cache: Cache, key: str, state: State) -> Outcome | None:
    """What is known of a case in this state without opening its files."""
    content = cache.recall(state)
    found = None if content is None else cache.find(combine(content, key))
    if content is not None and isinstance(found, Entry):
        return Outcome(content, found)
    died = found or cache.find(_attempt(state, key))
    return Outcome(content or "", error=died) if isinstance(died, DataError) else None


def _attempt(state: State, key: str) -> str:
    """Names an attempt at a case by what is known before its files are opened."""
    return combine("attempt", state.place, state.signature, key)


def _unforeseen(detail: str) -> DataError:
    return UnreadableFileError("A case can't be read for an unforeseen reason.", local_detail=detail)


def make_entry(case: Case, plan: FederationPlan, cache: Cache) -> Outcome:
    """Prepare one case in this process, unless the cache has it. Its content is remembered by `cache`, but not saved.

    Raises CohortError if the cache can't be written or has no room; all other errors are in the outcome.
    """
    state, key, content = cache.state(case), preprocessing_key(plan), ""

    def make() -> Prepared:
        prepared = prepare(case, plan)
        if cache.state(case) != state:
            raise UnreadableFileError(
                "A file of the cohort changed while it was read.", local_detail=str(case.image[0])
            )
        return prepared

    try:
        with cache.trying(_attempt(state, key)):
            content = cache.content(case)
            return Outcome(content, cache.obtain(combine(content, key), make))
    except CohortError:
        raise
    except DataError as error:
        return Outcome(content, error=error)
    except Exception as error:  # noqa: BLE001  one odd file must not cost the site its other patients
        return Outcome(content, error=_unforeseen(f"{case.image[0]}: {error!r}"))


# --- in isolated processes ------------------------------------------------------------------------------------


def _apart(
    jobs: Sequence[tuple[int, Case, State]], plan: FederationPlan, cache: Cache, readers: int
) -> Generator[tuple[int, Outcome], None, None]:
    """Outcomes of (number, case, state) from isolated processes, as they come."""
    if not jobs:
        return
    shared = {"plan": plan.canonical_json(), "cache": str(cache.folder)}
    key = preprocessing_key(plan)
    results = map_isolated(
        _WORK,
        ({"case": case_to_json(case)} for _, case, _ in jobs),
        shared=shared,
        workers=min(readers, len(jobs)),
        seconds=_SECONDS,
        memory_bytes=_MEMORY_BYTES,
    )
    with closing(results):
        for place, result in results:
            number, case, state = jobs[place]
            if result.code:  # it took too long, too much memory, or its process with it
                died = UnreadableFileError(result.reason, local_detail=f"{case.image[0]}: {result.local_detail}")
                cache.refuse(_attempt(state, key), died, for_ever=False)
                yield number, Outcome(error=died)
                continue
            outcome = _answered(result.value, state, key, cache)
            yield number, outcome or make_entry(case, plan, cache)  # None: another opening has removed it to make room


def _answered(value: Any, state: State, key: str, cache: Cache) -> Outcome | None:
    """The outcome that an isolated process tells of; the tensors are looked at in the cache, None if they are lost."""
    error = value.get("error")
    content = str(value["content"])
    if content and value["state"] == [state.place, state.signature]:
        cache.learn(state, content)
    if error is None:
        found = cache.find(combine(content, key))
        return Outcome(content, found) if isinstance(found, Entry) else None
    kind = getattr(errors, str(error["class"]))
    made: DataError = kind(str(error["message"]), fix=str(error["fix"]), local_detail=str(error["local_detail"]))
    if isinstance(made, CohortError):
        raise made
    return Outcome(content, error=made)


def case_to_json(case: Case) -> dict[str, Any]:
    """A case as JSON values."""
    values = {field.name: getattr(case, field.name) for field in dataclasses.fields(case)}
    return {
        **values,
        "image": [str(path) for path in case.image],
        "label": [str(path) for path in case.label],
        "clinical": dict(case.clinical),
        "label_identifiers": dict(case.label_identifiers),
        # The list of files is in `image` already; only the reader's own names for them are left out.
        "facts": None if case.facts is None else _facts_to_json(case.facts),
        "further": [case_to_json(other) for other in case.further],
    }


def _facts_to_json(facts: SeriesFacts) -> dict[str, Any]:
    values = {field.name: getattr(facts, field.name) for field in dataclasses.fields(facts)}
    return {**values, "files": (), "identifiers": dict(facts.identifiers)}


def case_from_json(values: Mapping[str, Any]) -> Case:
    """The inverse of `case_to_json`, but for the names of files in `facts`."""
    facts: dict[str, Any] | None = values["facts"]
    if facts is not None:
        facts = {name: tuple(value) if isinstance(value, list) else value for name, value in facts.items()}
    return Case(
        **{
            **values,
            "image": tuple(Path(path) for path in values["image"]),
            "label": tuple(Path(path) for path in values["label"]),
            "facts": None if facts is None else SeriesFacts(**facts),
            "further": tuple(case_from_json(other) for other in values["further"]),
        }
    )
