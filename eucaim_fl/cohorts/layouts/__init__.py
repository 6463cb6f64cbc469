"""How cohorts lie on disk at hospitals: one module a layout, each with `scan_folders` and `find`.

`scan_folders` says which folders the tables allow to be scanned; `find` makes cases of what the index knows of them. No
layout opens an image. Everything named in a table is a claim: it must resolve inside the cohort's folder or a folder
that links may lead to, or the case is quarantined. Names of columns drift between EUCAIM tools, so they go through a
table of aliases.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from eucaim_fl.cohorts.facts import Catalogue
from eucaim_fl.cohorts.layouts import bids, folder_csv, nifti_csv, tier3, upv, xnat
from eucaim_fl.cohorts.layouts.notes import Findings
from eucaim_fl.cohorts.layouts.places import Place

__all__ = ["LAYOUTS", "Findings", "Layout", "Place"]


class Layout(NamedTuple):
    """The two steps of one layout."""

    scan_folders: Callable[[Place], Sequence[str]]
    find: Callable[[Place, Catalogue], Findings]


LAYOUTS: Mapping[str, Layout] = MappingProxyType(
    {
        "eucaim_tier3": Layout(tier3.scan_folders, tier3.find),
        "upv_index": Layout(upv.scan_folders, upv.find),
        "nifti_csv": Layout(nifti_csv.scan_folders, nifti_csv.find),
        "xnat": Layout(xnat.scan_folders, xnat.find),
        "bids": Layout(bids.scan_folders, bids.find),
        "folder_csv": Layout(folder_csv.scan_folders, folder_csv.find),
    }
)
"""Name in the site file → layout."""
