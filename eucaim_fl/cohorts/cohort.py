"""A site's cohort, ready for training: every usable case prepared and kept, patients split, the rest quarantined."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from eucaim_fl.cohorts.cache import Cache, Entry, combine
from eucaim_fl.cohorts.circumstances import Circumstances, circumstances_of
from eucaim_fl.cohorts.consent import read_consent
from eucaim_fl.cohorts.manifest import Case, Quarantined, read_manifest
from eucaim_fl.cohorts.preparation import Outcome, prepare_all, recall_all
from eucaim_fl.cohorts.selection import select
from eucaim_fl.cohorts.splits import HeldOut, split_patients
from eucaim_fl.cohorts.targets import Wanted
from eucaim_fl.cohorts.tensors import tensor
from eucaim_fl.errors import CohortError, DataError, IdentifierError, SeriesError
from eucaim_fl.plan import FederationPlan
from eucaim_fl.records import SplitName
from eucaim_fl.sitefile import SiteFile

__all__ = ["Cohort", "PreparedCase", "open_cohort", "too_few"]

_LOG = logging.getLogger("eucaim_fl.site")
_GB = 10**9


@dataclass(frozen=True, eq=False)
class PreparedCase:
    """One image of one patient on the plan's grid; its tensors stay on disk until they are read.

    target: class index in classification, else None. targets: of a multi-label task 0, 1 or NaN (not known) for each
    of the plan's targets; of a survival task time and event (0 or 1); else empty. spacing_mm: along I, J, K.
    foreground_slices: the K that hold a label. foreground_voxels: shape (n, 3), at most 256 labelled voxels.
    circumstances: what is known of patient and scanner.
    """

    patient: str
    target: int | None
    entry: Entry
    targets: tuple[float, ...] = field(default=(), kw_only=True)
    circumstances: Circumstances = field(default=Circumstances(), kw_only=True)

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
        """The image, shape (C, I, J, K), read-only; a large one is mapped, so processes share one copy."""
        return tensor(self.entry.image_path)

    def label(self) -> npt.NDArray[np.uint8] | None:
        """The label, shape (I, J, K), read-only; None if the plan needs none."""
        return None if self.entry.label_path is None else tensor(self.entry.label_path)


@dataclass(frozen=True, eq=False)
class Cohort:
    """The usable cases of a site by split, and what was left out.

    fingerprint: SHA-256 over the contents of all cases that the data allow (and their targets), in an order of their
    own; it holds no identifier and is the same wherever the same files lie. Consent changes neither it nor the splits:
    who has withdrawn is missing from `splits`, nobody else moves.
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

    def without(self, patients: Collection[str]) -> Cohort:
        """The same cohort without some patients, such as those who withdrew; the others stay in their splits."""
        gone = set(patients)
        kept = {name: tuple(c for c in cases if c.patient not in gone) for name, cases in self.splits.items()}
        return replace(self, splits=kept)


@dataclass(frozen=True, eq=False)
class _Found:
    """A case that the data allow, with what is to be predicted; entry is None for who may not be used."""

    case: Case
    wanted: Wanted
    outcome: Outcome


def _identified(cases: Sequence[Case], site: SiteFile) -> dict[str, Quarantined]:
    """Patients with a file that can still name a person, as far as the site's policy minds."""
    from eucaim_fl.cohorts.deidentification.policy import blocks

    blocked: dict[str, Quarantined] = {}
    for case in cases:
        counts: Counter[str] = Counter(case.label_identifiers)
        counts.update({} if case.facts is None else case.facts.identifiers)
        rule = blocks(counts, site.deidentification)
        if rule and case.patient not in blocked:
            blocked[case.patient] = Quarantined.because(case.patient, _identifier_error(rule))
    return blocked


def _with_text(found: Sequence[_Found], site: SiteFile) -> dict[str, Quarantined]:
    """Patients whose images seem to hold written text, as far as the site's policy minds."""
    from eucaim_fl.cohorts.deidentification.burned_in import TEXT_SEEN
    from eucaim_fl.cohorts.deidentification.policy import blocks

    if not blocks({TEXT_SEEN: 1}, site.deidentification):
        return {}
    seen = {one.case.patient for one in found if one.outcome.entry is not None and one.outcome.entry.text}
    return {patient: Quarantined.because(patient, _identifier_error(TEXT_SEEN)) for patient in sorted(seen)}


def _identifier_error(rule: str) -> IdentifierError:
    """Why a patient's files can't be used."""
    return IdentifierError(f"Files of this patient can still name a person (rule {rule}).")


def _twice(found: Sequence[_Found]) -> dict[str, Quarantined]:
    """Patients who share an image with another patient; the headers may differ, the prepared values are the same.

    Nobody can tell whose image it is, so all of them are set aside: else one person could be in training and in test,
    or be used under another's consent. An image that holds a single value says nothing.
    """
    owners: dict[str, set[str]] = defaultdict(set)
    for one in found:
        for digest in one.outcome.channels():
            owners[digest].add(one.case.patient)
    shared = {patient for patients in owners.values() if len(patients) > 1 for patient in patients}
    error = SeriesError("The same images lie under two patients.")
    return {patient: Quarantined.because(patient, error) for patient in sorted(shared)}


def _with_targets(
    cases: Sequence[Case], plan: FederationPlan, quarantined: list[Quarantined]
) -> list[tuple[Case, Wanted]]:
    """Each case with what its clinical columns say is to be predicted; who has nothing of it is quarantined."""
    if not plan.task.columns():
        return [(case, Wanted()) for case in cases]
    from eucaim_fl.cohorts.labels import read_wanted  # here, because it brings what decodes files

    kept: list[tuple[Case, Wanted]] = []
    for case in cases:
        try:
            kept.append((case, read_wanted(case, plan.task)))
        except DataError as error:
            quarantined.append(Quarantined.because(case.patient, error))
    return kept


def _log(quarantined: Sequence[Quarantined]) -> None:
    from eucaim_fl.cohorts.deidentification.names import masked, masked_detail

    for bad in quarantined:
        who, where = masked(bad.patient), masked_detail(bad.local_detail)
        _LOG.warning("Quarantined: %s %s patient %s, %s", bad.code, bad.reason, who, where)


def open_cohort(
    site: SiteFile,
    plan: FederationPlan,
    *,
    held_out: HeldOut | None = None,
    tell: Callable[[int, int], object] | None = None,
) -> Cohort:
    """Open a site's cohort for a plan: find the cases, choose the plan's, prepare each through the cache, split.

    A case that can't be used is quarantined, logged with its place on the local log `eucaim_fl.site`, and the others go
    on; so is a patient whose files can still name a person, who has not consented, or whose images lie under another
    patient too. Tensors are prepared now, not during training; a second call for the same files and plan reads only the
    cache. Patients are split before those who may not be used are taken out, so a withdrawal moves nobody else; of
    these patients files are compared, never prepared. held_out: who never trains, whatever the plan's split says.
    tell: called with the number of cases that are ready, and of all.
    Raises CohortError if the folder or its tables are missing, no case can be used, fewer patients than
    `release.minimum_patients` would train (or, where frozen models are judged, fewer than
    `release.minimum_metric_patients` would be), or the cache can't be written or has no room; ConsentError if the
    consent table can't be trusted.
    """
    limit = site.cache.limit_gb
    cache = Cache(site.cache_folder(), None if limit is None else int(limit * _GB))
    manifest, consent = read_manifest(site), read_consent(site)
    identified = _identified(manifest.cases, site)
    selection = select([case for case in manifest.cases if case.patient not in identified], plan)
    quarantined = [*manifest.quarantined, *identified.values()]
    quarantined += [Quarantined(one.patient, one.code, one.reason, one.local_detail) for one in selection.left_out]
    chosen = _with_targets(selection.cases, plan, quarantined)
    refused = {one.patient: one for one in consent.refused(case.patient for case, _ in chosen)}
    allowed = [case for case, _ in chosen if case.patient not in refused]
    outcomes = iter(prepare_all(allowed, plan, cache, readers=site.compute.readers, tell=tell))
    known = iter(recall_all([case for case, _ in chosen if case.patient in refused], plan, cache))
    cache.save()
    found: list[_Found] = []
    for case, wanted in chosen:
        outcome = next(known if case.patient in refused else outcomes)
        if outcome.error is None:
            found.append(_Found(case, wanted, outcome))
        elif case.patient not in refused:
            quarantined.append(Quarantined.because(case.patient, outcome.error))
    after = _with_text(found, site) | _twice(found)
    found = [one for one in found if one.case.patient not in after]
    quarantined = [one for one in quarantined if one.patient not in refused]
    quarantined += [*(one for patient, one in after.items() if patient not in refused), *refused.values()]
    _log(quarantined)
    return _split(found, set(refused), (site, plan, held_out), quarantined)


def _split(
    found: Sequence[_Found],
    refused: Collection[str],
    of: tuple[SiteFile, FederationPlan, HeldOut | None],
    quarantined: Sequence[Quarantined],
) -> Cohort:
    site, plan, held_out = of
    strata = {one.case.patient: one.wanted.stratum for one in found}
    alone = plan.privacy.mechanism != "none"
    parts = split_patients(strata, plan.data.split, plan.split_seed(), site.name, each_alone=alone, held_out=held_out)
    member = {patient: name for name, patients in parts.items() for patient in patients}
    splits: dict[SplitName, list[PreparedCase]] = {"train": [], "validation": [], "test": []}
    for one in found:
        if one.outcome.entry is not None and one.case.patient not in refused:
            own, wanted = one.case.patient, one.wanted
            case = PreparedCase(
                own,
                wanted.target,
                one.outcome.entry,
                targets=wanted.targets,
                circumstances=circumstances_of(one.case),
            )
            splits[member[own]].append(case)
    cohort = Cohort(
        site.name,
        {name: tuple(cases) for name, cases in splits.items()},
        tuple(quarantined),
        combine(*sorted(combine(one.outcome.content, one.wanted.text()) for one in found)),
    )
    asked = plan.validation
    if asked is None and cohort.patients("train") < site.release.minimum_patients:
        raise too_few(cohort)
    if asked is not None:
        judged = [name for name in splits if asked.patients == "all" or name == asked.patients]
        if sum(map(cohort.patients, judged)) < site.release.minimum_metric_patients:
            raise too_few(cohort, "be judged", judged)
    return cohort


def too_few(cohort: Cohort, what: str = "train", splits: Sequence[SplitName] = ("train",)) -> CohortError:
    """The error of a cohort with fewer patients than the site's minimum; it says the same however few.

    what: they would do. splits: whose patients these are.
    """
    codes = ", ".join(sorted({one.code for one in cohort.quarantined})) or "none"
    return CohortError(
        f"Too few patients would {what} at this site.",
        fix="The site's local log names each case that is set aside, and what is wrong with it.",
        local_detail=f"{sum(map(cohort.patients, splits))} patients would {what}; codes of what is set aside: {codes}",
    )
