from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pydicom
import pytest

from eucaim_fl.cohorts.intake.cleaning import clean
from eucaim_fl.errors import UnreadableFileError


class TestClean:
    def test_it_writes_a_clean_copy(self, series: Callable[..., list[Path]], tmp_path: Path) -> None:
        (file,) = series("P1", slices=1, PatientName="Doe^Jane")
        clean({"source": str(file), "target": str(tmp_path / "b")}, {"secret": "00" * 32})
        assert pydicom.dcmread(tmp_path / "b").PatientIdentityRemoved == "YES"

    def test_what_is_no_image_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_text("hello")
        with pytest.raises(UnreadableFileError, match="DICOM"):
            clean({"source": str(tmp_path / "a"), "target": str(tmp_path / "b")}, {"secret": "00" * 32})
