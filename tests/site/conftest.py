"""A tiny hospital whose files a test may spoil, and reading without other processes."""

from __future__ import annotations

import csv
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from eucaim_fl.cohorts import isolation, pixel_pass
from eucaim_fl.cohorts.index import scan
from eucaim_fl.site import locate
from eucaim_fl.sitefile import SiteFile, load_site_file


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Foreign files are read in this process: a test starts no others."""
    alone = functools.partial(_alone, isolation.map_isolated)
    monkeypatch.setattr(scan, "map_isolated", alone)
    monkeypatch.setattr(pixel_pass, "map_isolated", alone)
    monkeypatch.setattr(locate, "map_isolated", alone)


def _alone(real: Callable[..., Any], work: str, items: Any, **options: Any) -> Any:
    return real(work, items, **{**options, "workers": 0})


class Hospital:
    """A tiny hospital whose files a test may spoil."""

    def __init__(self, site_file: Path) -> None:
        self.site_file = site_file
        self.folder = self.site.cohort_folder()

    @property
    def site(self) -> SiteFile:
        return load_site_file(self.site_file)

    def image(self, number: int) -> Path:
        return self.folder / "images" / f"PATIENT-{number:03d}.nii.gz"

    def rows(self, change: Callable[[list[dict[str, str]]], object]) -> None:
        with (self.folder / "clinical.csv").open(newline="") as stream:
            rows = list(csv.DictReader(stream))
        change(rows)
        with (self.folder / "clinical.csv").open("w", newline="") as stream:
            writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)

    def settings(self, **changes: Any) -> None:
        values = yaml.safe_load(self.site_file.read_text())
        self.site_file.write_text(yaml.safe_dump({**values, **changes}))

    def consent(self, *lines: str) -> None:
        (self.folder / "consent.csv").write_text("\n".join(["patient_id,status,date,purposes", *lines]) + "\n")
        self.settings(consent={"table": "consent.csv"})


@pytest.fixture
def place(hospital: Callable[..., Path]) -> Hospital:
    return Hospital(hospital("a"))
