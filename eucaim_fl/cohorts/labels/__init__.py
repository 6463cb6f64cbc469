"""Labels on the image's own grid: segmentations, structure sets and masks; clinical values for other tasks.

A label is moved onto the image's grid by permuting and flipping axes; it is resampled only where the plan says so.
"""

from eucaim_fl.cohorts.labels.checks import LABEL_PROBLEMS, check_label
from eucaim_fl.cohorts.labels.classes import read_class
from eucaim_fl.cohorts.labels.presence import read_presence
from eucaim_fl.cohorts.labels.reading import read_label
from eucaim_fl.cohorts.labels.survival import Survival, read_survival
from eucaim_fl.cohorts.labels.wanted import read_wanted

__all__ = [
    "LABEL_PROBLEMS",
    "Survival",
    "check_label",
    "read_class",
    "read_label",
    "read_presence",
    "read_survival",
    "read_wanted",
]
