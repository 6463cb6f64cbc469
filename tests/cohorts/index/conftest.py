"""Small cohorts that are scanned in this process, so that tests of what a scan says need no worker processes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from eucaim_fl.cohorts.index import Index, IndexReport, open_index, scan, update_index
from eucaim_fl.cohorts.isolation import map_isolated
from eucaim_fl.sitefile import SiteFile


@dataclass
class TinyCohort:
    """A site over `base`/cohort, and the indexes that were opened of it."""

    base: Path
    tiny: SimpleNamespace
    changes: dict[str, Any] = field(default_factory=dict)
    opened: list[Index] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        return self.base / "cohort"

    @property
    def index_folder(self) -> Path:
        return self.site().index_folder()

    def site(self) -> SiteFile:
        cohort = {"layout": "xnat", "folder": self.folder, **self.changes.get("cohort", {})}
        others = {key: value for key, value in self.changes.items() if key != "cohort"}
        values = {"name": "a", "cohort": cohort, "cache": {"folder": self.base / "cache"}, "compute": {"readers": 1}}
        return SiteFile.model_validate({**values, **others})

    def series(self, name: str, slices: int = 3, **attributes: Any) -> list[Path]:
        """A series of 4 x 4 slices in a folder of that name; its UID follows from the name."""
        number = sum(ord(letter) * 31**at for at, letter in enumerate(name))
        options = {"uid": f"1.2.840.{number}", "PatientID": "EUCAIM-1", **attributes}
        stored = np.zeros((slices, 4, 4), dtype=np.int16)
        files: list[Path] = self.tiny.series(self.folder / name, stored, **options)
        return files

    def scan(self, *folders: str, **options: Any) -> IndexReport:
        return update_index(self.site(), list(folders) or None, **options)

    def index(self) -> Index:
        self.opened.append(open_index(self.site()))
        return self.opened[-1]


@pytest.fixture
def cohort(tmp_path: Path, tiny: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> Iterator[TinyCohort]:
    """An empty cohort whose files are read in this process."""

    def here(work: str, items: Any, **options: Any) -> Any:
        return map_isolated(work, items, shared=options["shared"], workers=0)

    monkeypatch.setattr(scan, "map_isolated", here)
    made = TinyCohort(tmp_path, tiny)
    made.folder.mkdir()
    yield made
    for one in made.opened:
        one.close()
