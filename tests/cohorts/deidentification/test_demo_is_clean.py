"""The demo hospitals are what this project calls clean: no finding at all under EUCAIM's profile."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from eucaim_fl.cohorts.deidentification.headers import identifiers_in_header
from eucaim_fl.cohorts.deidentification.names import identifiers_in_name
from eucaim_fl.cohorts.deidentification.nifti_headers import identifiers_in_nifti
from eucaim_fl.cohorts.deidentification.policy import blocks
from eucaim_fl.cohorts.deidentification.tables import identifiers_in_table, identifiers_in_values
from eucaim_fl.cohorts.deidentification.trailing import identifiers_after_pixels
from eucaim_fl.cohorts.elements import read_elements
from eucaim_fl.cohorts.synthetic import HOSPITALS, write_demo
from eucaim_fl.sitefile import DeidentificationConfig

pytestmark = pytest.mark.integration


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Names and texts of everything in a JSON document."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, key if key != "value" else name)
    elif isinstance(value, list):
        for inner in value:
            yield from leaves(inner, name)
    else:
        yield name, str(value)


def identifiers(folder: Path) -> Counter[str]:
    found: Counter[str] = Counter()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        found.update(identifiers_in_name(name))
        if path.suffix == ".dcm":
            elements = read_elements(path)
            found.update(identifiers_in_header(elements, name))
            with path.open("rb") as stream:
                found.update(identifiers_after_pixels(stream, elements))
        elif path.name.endswith(".nii.gz"):
            found.update(identifiers_in_nifti(path))
        elif path.suffix == ".csv":
            with path.open(newline="") as stream:
                header, *rows = csv.reader(stream)
            found.update(identifiers_in_table(header, rows))
        elif path.suffix == ".json":
            found.update(identifiers_in_values(leaves(json.loads(path.read_text()))))
    return found


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    write_demo(folder, patients=1)
    return folder


class TestDemo:
    @pytest.mark.parametrize("hospital", HOSPITALS)
    def test_no_hospital_has_a_finding_under_the_strictest_policy(self, demo: Path, hospital: str) -> None:
        found = identifiers(demo / hospital)
        assert blocks(found, DeidentificationConfig(profile="eucaim", block="everything")) == ""
        assert found == {}
