"""The index of a cohort: one row a file and one a stack, read from headers, kept as Parquet, asked through DuckDB."""

from __future__ import annotations

from eucaim_fl.cohorts.index.catalogue import Index, open_index
from eucaim_fl.cohorts.index.query import CohortQuery
from eucaim_fl.cohorts.index.scan import IndexReport, update_index

__all__ = ["CohortQuery", "Index", "IndexReport", "open_index", "update_index"]
