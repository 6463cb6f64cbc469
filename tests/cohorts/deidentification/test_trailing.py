from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from pydicom.dataset import Dataset

from eucaim_fl.cohorts.deidentification.trailing import identifiers_after_pixels
from eucaim_fl.cohorts.elements import read_elements
from eucaim_fl.errors import UnreadableFileError


def found(header: SimpleNamespace, folder: Path, dataset: Dataset, more: bytes = b"") -> dict[str, int]:
    path = folder / "a.dcm"
    path.write_bytes(header.content(dataset) + more)
    with path.open("rb") as stream:
        return identifiers_after_pixels(stream, read_elements(path))


class TestIdentifiersAfterPixels:
    def test_a_file_that_ends_with_its_pixels_has_nothing_there(self, header: SimpleNamespace, tmp_path: Path) -> None:
        assert found(header, tmp_path, header.clean()) == {}

    def test_a_private_group_behind_the_pixels_counts(self, header: SimpleNamespace, tmp_path: Path) -> None:
        ds = header.clean()
        ds.private_block(0x7FE1, "ACME", create=True).add_new(0x01, "LO", "Rossi")
        assert found(header, tmp_path, ds) == {"deid.private": 1}

    @pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2", "1.2.840.10008.1.2.1"])
    def test_padding_counts_unless_it_is_empty(self, header: SimpleNamespace, tmp_path: Path, syntax: str) -> None:
        empty, full = header.clean(), header.clean()
        for ds, value in ((empty, bytes(8)), (full, b"Rossi123")):
            ds.file_meta.TransferSyntaxUID = syntax
            ds.add_new(0xFFFCFFFC, "OB", value)
        assert found(header, tmp_path, empty) == {}
        assert found(header, tmp_path, full) == {"deid.private": 1}

    def test_compressed_pixels_are_stepped_over(self, header: SimpleNamespace, tmp_path: Path) -> None:
        from pydicom.encaps import encapsulate

        ds = header.clean()
        ds.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.5"
        ds.PixelData = encapsulate([b"\1\2\3\4", b"\5\6\7\7"])
        ds["PixelData"].VR = "OB"
        assert found(header, tmp_path, ds) == {}
        ds.private_block(0x7FE1, "ACME", create=True).add_new(0x01, "LO", "Rossi")
        assert found(header, tmp_path, ds) == {"deid.private": 1}

    def test_bytes_that_are_no_elements_are_worth_a_look(self, header: SimpleNamespace, tmp_path: Path) -> None:
        assert found(header, tmp_path, header.clean(), b"Rossi Maria, born 1953") == {"deid.trailing": 1}

    def test_a_file_that_can_not_be_read_any_more_is_refused(self, header: SimpleNamespace, tmp_path: Path) -> None:
        path = header.write(tmp_path / "a.dcm", header.clean())
        elements = read_elements(path)
        stream = path.open("rb")
        stream.close()
        with pytest.raises(UnreadableFileError, match="can't be read"):
            identifiers_after_pixels(stream, elements)
