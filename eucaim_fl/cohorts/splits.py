"""Patient-level splits: derived from the seed, stratified, and independent of the order of anything."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from eucaim_fl.config import SplitConfig
from eucaim_fl.records import SplitName
from eucaim_fl.seeding import derive_seed

__all__ = ["HeldOut", "split_patients"]


@dataclass(frozen=True)
class HeldOut:
    """Patients whom a site keeps out of training for all plans: drawn with a key of its own, so no plan chooses them.

    share: of the patients, met on average; between 0 and 1. splits: those that they alone fill. key: secret bytes that
    stay the same; another key draws others.
    Raises ValueError if the share is not between 0 and 1, or no split is named.
    """

    share: float
    splits: tuple[Literal["validation", "test"], ...]
    key: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if not 0 < self.share < 1 or not self.splits:
            raise ValueError("a share between 0 and 1 and at least one split are needed")

    def holds(self, patient: str) -> bool:
        """Whether a patient is held out: the first 8 bytes of HMAC-SHA256(key, patient), over 2⁶⁴, below the share."""
        digest = hmac.new(self.key, patient.encode(), hashlib.sha256).digest()
        return int.from_bytes(digest[:8], "big") < self.share * 2**64


def _sizes(patients: int, config: SplitConfig) -> tuple[int, int]:
    """Numbers of validation and test patients: rounded half up, at least one each from three patients on."""
    if patients < 3:
        return 0, 0
    validation = max(1, int(patients * config.validation + 0.5))
    test = max(1, int(patients * config.test + 0.5))
    while validation + test > patients - 1:
        validation, test = (validation - 1, test) if validation > test else (validation, test - 1)
    return validation, test


def _spread(line: list[str], count: int) -> list[str]:
    """`count` members of a line at equal distances, so that every stretch of it gives its share."""
    return [line[(2 * i + 1) * len(line) // (2 * count)] for i in range(count)]


def split_patients(
    strata: Mapping[str, str],
    config: SplitConfig,
    seed: int,
    site: str,
    *,
    each_alone: bool = False,
    held_out: HeldOut | None = None,
) -> dict[SplitName, tuple[str, ...]]:
    """Which of a site's patients train, which validate and which are kept for the final test.

    strata: patient → stratum (see `targets.Wanted`; the same text for all in a segmentation). Within a stratum patients
    are put in the order of a hash of (seed, site, patient); then validation and test patients are taken at equal
    distances along all strata, so each stratum gives its share to within one patient.
    Every patient is in exactly one split. With three or more patients each split has at least one; with fewer all
    train. The names in each split are sorted.
    each_alone: a patient's split follows from the hash of that patient alone, so that nobody else moves if one comes or
    goes, as differential privacy by patient needs; the shares are then met on average, and strata are not looked at.
    held_out: who is held out is only in the splits that it names, and nobody else is there, whatever seed and shares;
    both groups are divided among their own splits in proportion to the shares, each patient alone.

    >>> parts = split_patients({f"p{i}": "" for i in range(10)}, SplitConfig(), seed=0, site="a")
    >>> [len(parts[name]) for name in ("train", "validation", "test")]
    [6, 2, 2]
    """
    if each_alone or held_out is not None:
        return _each_alone(strata, config, (seed, site), held_out)
    line = sorted(strata, key=lambda patient: (strata[patient], derive_seed(seed, "split", site, patient), patient))
    validation_size, test_size = _sizes(len(line), config)
    test = _spread(line, test_size)
    rest = [patient for patient in line if patient not in set(test)]
    validation = _spread(rest, validation_size)
    train = [patient for patient in rest if patient not in set(validation)]
    return {"train": tuple(sorted(train)), "validation": tuple(sorted(validation)), "test": tuple(sorted(test))}


def _each_alone(
    patients: Iterable[str], config: SplitConfig, drawn_by: tuple[int, str], held_out: HeldOut | None
) -> dict[SplitName, tuple[str, ...]]:
    """Each patient by a hash of (seed, site, patient); shares lie along [0, 1) in the order test, validation, train."""
    seed, site = drawn_by
    taken = config.test + config.validation
    line: list[tuple[SplitName, float]] = [
        ("test", config.test),
        ("validation", config.validation),
        ("train", 1 - taken),
    ]
    parts: dict[SplitName, list[str]] = {"train": [], "validation": [], "test": []}
    for patient in sorted(patients):
        own = line
        if held_out is not None:
            held = held_out.holds(patient)
            own = [(name, share) for name, share in line if (name in held_out.splits) == held]
        parts[_stretch(own, derive_seed(seed, "split", site, patient) / 2.0**63)].append(patient)
    return {name: tuple(members) for name, members in parts.items()}


def _stretch(line: list[tuple[SplitName, float]], place: float) -> SplitName:
    """The split at a place in [0, 1] of a line that shares are laid along; the last one takes what rounding leaves."""
    whole, reached = sum(share for _, share in line), 0.0
    for name, share in line[:-1]:
        reached += share
        if place * whole < reached:
            return name
    return line[-1][0]
