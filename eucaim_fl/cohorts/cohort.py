"""A site's cohort, ready for training: every usable case prepared and kept, patients split, the rest quarantined."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from eucaim_fl.cohorts.cache import CACHE_VERSION, Cache, Entry, combine
from eucaim_fl.cohorts.labels import read_class
from eucaim_fl.cohorts.manifest import Case, Manifest, Quarantined, read_manifest
from eucaim_fl.cohorts.preprocess import Prepared, prepare, preprocessing_key
from eucaim_fl.cohorts.splits import split_patients
from eucaim_fl.errors import CohortError, DataError, LabelError, UnreadableFileError
from eucaim_fl.plan import FederationPlan
from eucaim_fl.records import SplitName
from eucaim_fl.sitefile import SiteFile

__all__ = ["Cohort", "PreparedCase", "open_cohort"]

_LOG = logging.getLogger("eucaim_fl.site")


@dataclass(frozen=True, eq=False)
class PreparedCase:
    """One image of one patient on the plan's grid; its tensors stay on disk until they are read.

    target: class index in classification, else None. spacing_mm: along I, J, K.
    foreground_slices: the K that hold a label. foreground_voxels: shape (n, 3), at most 256 labelled voxels.
    """

    patient: str
    target: int | None
    entry: Entry

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance in mm between neighbouring voxels along I, J and K."""
        return self.entry.spacing_mm

    @property
    def foreground_slices(self) -> tuple[int, ...]:
        """The K whose slices hold a label."""
        return self.entry.foreground_slices

    @property
    def foreground_voxels(self) -> npt.NDArray[np.int64]:
        """A fixed sample of labelled voxels, shape (n, 3)."""
        return self.entry.foreground_voxels

    def image(self) -> npt.NDArray[np.float32]:
        """The image, shape (1, I, J, K), read-only and mapped from the disk."""
        return _mapped(self.entry.image_path)

    def label(self) -> npt.NDArray[np.uint8] | None:
        """The label, shape (I, J, K), read-only and mapped from the disk; None if the plan needs none."""
        return None if self.entry.label_path is None else _mapped(self.entry.label_path)


@lru_cache(maxsize=256)
def _mapped(path: Path) -> npt.NDArray[Any]:
    """A tensor of the cache. A map holds a file open, so only the last few hundred are kept."""
    mapped: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    return mapped


@dataclass(frozen=True, eq=False)
class Cohort:
    """The usable cases of a site by split, and what was left out.

    fingerprint: SHA-256 over the contents of all usable cases (and their classes), in an order of their own; it holds
    no identifier and is the same wherever the same files lie.
    """

    site: str
    splits: Mapping[SplitName, tuple[PreparedCase, ...]]
    quarantined: tuple[Quarantined, ...]
    fingerprint: str

    def cases(self, split: SplitName) -> tuple[PreparedCase, ...]:
        """Cases of one split in canonical order; a patient may have several, all in the same split."""
        return self.splits[split]

    def patients(self, split: SplitName) -> int:
        """Number of distinct patients of one split."""
        return len({case.patient for case in self.splits[split]})


def _manifest(site: SiteFile, cache: Cache) -> Manifest:
    """The manifest as it was kept, if nothing that it was made from has changed since; else read anew."""
    about = {"cohort": site.cohort.model_dump(mode="json"), "folder": str(site.cohort_folder())}
    key = json.dumps({"manifest": CACHE_VERSION, "site": site.name, **about}, sort_keys=True)
    try:
        memo = cache.recall(key)
        if memo is not None and all(cache.signature(path) == known for path, known in memo["watched"].items()):
            cases = [
                Case(**{**c, "image": tuple(map(Path, c["image"])), "label": tuple(map(Path, c["label"]))})
                for c in memo["cases"]
            ]
            return Manifest(site.name, tuple(cases), tuple(Quarantined(**q) for q in memo["quarantined"]))
    except (KeyError, TypeError, AttributeError):
        _LOG.info("The kept list of cases is damaged; it is made again.")
    manifest = read_manifest(site)
    watched = {str(path) for path in manifest.sources}
    for case in manifest.cases:
        watched.update(map(str, (*case.image, *case.label)))
    cases_as_json: list[dict[str, Any]] = [
        {
            **vars(c),
            "image": [str(p) for p in c.image],
            "label": [str(p) for p in c.label],
            "clinical": dict(c.clinical),
        }
        for c in manifest.cases
    ]
    memo = {
        "watched": {path: cache.signature(path) for path in sorted(watched)},
        "cases": cases_as_json,
        "quarantined": [asdict(q) for q in manifest.quarantined],
    }
    cache.keep(key, memo)
    return manifest


def _select(manifest: Manifest, plan: FederationPlan) -> tuple[list[Case], list[Quarantined]]:
    """The cases that the plan wants: of its modality, and with a label where the task needs one.

    Of a patient with a labelled image the other images are simply not used; one without any is quarantined.
    """
    wanted = plan.data.modality
    cases = [case for case in manifest.cases if wanted is None or case.modality in ("", wanted)]
    if plan.task.name == "classification":
        return cases, []
    labelled = {case.patient for case in cases if case.label}
    bare = {case.patient: case for case in reversed(cases) if case.patient not in labelled}
    without = [
        Quarantined.because(patient, LabelError("A patient's image has no label.", local_detail=case.series))
        for patient, case in sorted(bare.items())
    ]
    return [case for case in cases if case.label], without


def open_cohort(site: SiteFile, plan: FederationPlan) -> Cohort:
    """Open a site's cohort for a plan: find the cases, prepare each through the cache, split the patients.

    A case that can't be used is quarantined, logged with its place on the local log `eucaim_fl.site`, and the others go
    on. Tensors are prepared now, not during training; a second call for the same files and plan reads only the cache.
    Raises CohortError if the folder or its tables are missing, no case can be used, fewer patients than
    `release.minimum_patients` would train, or the cache can't be written.
    """
    cache = Cache(site.cache_folder())
    manifest = _manifest(site, cache)
    chosen, without_label = _select(manifest, plan)
    quarantined = [*manifest.quarantined, *without_label]
    preparation, task = preprocessing_key(plan), plan.task
    usable: list[PreparedCase] = []
    contents: list[str] = []
    for case in chosen:

        def make(case: Case = case) -> Prepared:
            return prepare(case, plan)

        try:
            target = read_class(case, task) if task.name == "classification" else None
            content = cache.content(case)
            entry = cache.obtain(combine(content, preparation), make)
        except CohortError:
            raise
        except DataError as error:
            quarantined.append(Quarantined.because(case.patient, error))
            continue
        except Exception as error:  # noqa: BLE001  one odd file must not cost the site its other patients
            unforeseen = UnreadableFileError(
                "A case can't be read for an unforeseen reason.", local_detail=f"{case.image[0]}: {error!r}"
            )
            quarantined.append(Quarantined.because(case.patient, unforeseen))
            continue
        usable.append(PreparedCase(case.patient, target, entry))
        contents.append(combine(content, str(target)))
    cache.save()
    for bad in quarantined:
        _LOG.warning("Quarantined: %s %s patient %s, %s", bad.code, bad.reason, bad.patient, bad.local_detail)
    if not usable:
        raise CohortError(
            "No case of the cohort can be used"
            + (f" ({', '.join(sorted({q.code for q in quarantined}))})." if quarantined else " for this plan."),
            fix="The site's local log names each case and what is wrong with it.",
            local_detail=str(site.cohort_folder()),
        )
    strata = {case.patient: "" if case.target is None else f"{case.target:03d}" for case in usable}
    splits = split_patients(strata, plan.data.split, plan.split_seed(), site.name)
    if len(splits["train"]) < site.release.minimum_patients:
        raise CohortError(
            "Fewer patients would train than the site's minimum.",
            fix=f"release.minimum_patients in the site file is {site.release.minimum_patients}.",
            local_detail=f"{len(splits['train'])} training patients, {len(quarantined)} quarantined cases",
        )
    members = {patient: name for name, patients in splits.items() for patient in patients}
    names: tuple[SplitName, ...] = ("train", "validation", "test")
    return Cohort(
        site.name,
        {name: tuple(case for case in usable if members[case.patient] == name) for name in names},
        tuple(quarantined),
        combine(*sorted(contents)),
    )
