"""Patient-level splits: derived from the seed, stratified, and independent of the order of anything."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from eucaim_fl.config import SplitConfig
from eucaim_fl.records import SplitName
from eucaim_fl.seeding import derive_seed

__all__ = ["split_patients"]


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
    strata: Mapping[str, str], config: SplitConfig, seed: int, site: str, *, each_alone: bool = False
) -> dict[SplitName, tuple[str, ...]]:
    """Which of a site's patients train, which validate and which are kept for the final test.

    strata: patient → stratum (the class in classification; the same text for all otherwise). Within a stratum patients
    are put in the order of a hash of (seed, site, patient); then validation and test patients are taken at equal
    distances along all strata, so each stratum gives its share to within one patient.
    Every patient is in exactly one split. With three or more patients each split has at least one; with fewer all
    train. The names in each split are sorted.
    each_alone: a patient's split follows from the hash of that patient alone, so that nobody else moves if one comes or
    goes, as differential privacy by patient needs; the shares are then met on average, and strata are not looked at.

    >>> parts = split_patients({f"p{i}": "" for i in range(10)}, SplitConfig(), seed=0, site="a")
    >>> [len(parts[name]) for name in ("train", "validation", "test")]
    [6, 2, 2]
    """
    if each_alone:
        return _each_alone(strata, config, seed, site)
    line = sorted(strata, key=lambda patient: (strata[patient], derive_seed(seed, "split", site, patient), patient))
    validation_size, test_size = _sizes(len(line), config)
    test = _spread(line, test_size)
    rest = [patient for patient in line if patient not in set(test)]
    validation = _spread(rest, validation_size)
    train = [patient for patient in rest if patient not in set(validation)]
    return {"train": tuple(sorted(train)), "validation": tuple(sorted(validation)), "test": tuple(sorted(test))}


def _each_alone(patients: Iterable[str], config: SplitConfig, seed: int, site: str) -> dict[SplitName, tuple[str, ...]]:
    place = {patient: derive_seed(seed, "split", site, patient) / 2.0**63 for patient in sorted(patients)}
    tested, held_out = config.test, config.test + config.validation
    return {
        "train": tuple(p for p, u in place.items() if u >= held_out),
        "validation": tuple(p for p, u in place.items() if tested <= u < held_out),
        "test": tuple(p for p, u in place.items() if u < tested),
    }
