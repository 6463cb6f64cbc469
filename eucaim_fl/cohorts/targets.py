"""What a plan wants predicted of a case, and where that puts the patient when a cohort is split."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Wanted"]


@dataclass(frozen=True)
class Wanted:
    """target: class index in classification, else None. targets: see `PreparedCase`. stratum: patients of one are
    shared out over the splits alike: those of a class; those with any label, and those without; those whose event was
    seen, and the others."""

    target: int | None = None
    targets: tuple[float, ...] = ()
    stratum: str = ""

    @classmethod
    def of_class(cls, target: int) -> Wanted:
        """Of a classification."""
        return cls(target, (), f"{target:03d}")

    @classmethod
    def of_labels(cls, labels: tuple[float, ...]) -> Wanted:
        """Of a multi-label task. labels: 0, 1 or NaN for each target.

        >>> Wanted.of_labels((0.0, math.nan, 1.0)).stratum
        '1'
        """
        return cls(None, labels, str(int(1.0 in labels)))

    @classmethod
    def of_survival(cls, time: float, *, event: bool) -> Wanted:
        """Of a survival task."""
        return cls(None, (time, float(event)), str(int(event)))

    def text(self) -> str:
        """For the cohort's fingerprint: the class, or the values in full; the same wherever they are the same.

        >>> Wanted.of_class(2).text(), Wanted().text(), Wanted.of_survival(12, event=True).text()
        ('2', 'None', '12.0 1.0')
        """
        if not self.targets:
            return str(self.target)
        return " ".join("nan" if math.isnan(value) else repr(float(value)) for value in self.targets)
