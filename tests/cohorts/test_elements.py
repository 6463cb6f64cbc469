from __future__ import annotations

import io
import os
import struct

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
)

from eucaim_fl.cohorts import element_walk, elements
from eucaim_fl.cohorts.elements import PIXEL_DATA, UNDEFINED, read_elements, walk
from eucaim_fl.errors import UnreadableFileError

SYNTAXES = [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian]
ROWS, SERIES, PATIENT_NAME = 0x00280010, 0x0020000E, 0x00100010
REFERENCED, REFERENCED_UID = 0x00081140, 0x00081155


def dataset() -> Dataset:
    """A header with text, numbers, nested and empty sequences, private elements, and four pixels."""
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", "1.2.3"
    ds.Modality, ds.SeriesInstanceUID, ds.PatientName = "CT", "1.2.3.4", "Müller^Anna"
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.ImagePositionPatient, ds.SliceThickness = [1.5, -2, 3e2], None
    inner, outer = Dataset(), Dataset()
    inner.ReferencedSOPInstanceUID = "1.9.9"
    outer.ReferencedSOPInstanceUID, outer.PurposeOfReferenceCodeSequence = "1.9", Sequence([inner, Dataset()])
    ds.ReferencedImageSequence = Sequence([outer])
    ds.ReferencedStudySequence = Sequence([])
    block = ds.private_block(0x0019, "SIEMENS MR HEADER", create=True)
    block.add_new(0x0C, "IS", "800")
    block.add_new(0x28, "FD", 12.5)
    ds.Rows, ds.Columns, ds.BitsAllocated, ds.SamplesPerPixel = 2, 2, 16, 1
    ds.BitsStored, ds.HighBit, ds.PixelRepresentation, ds.PhotometricInterpretation = 16, 15, 0, "MONOCHROME2"
    ds.PixelData = np.arange(4, dtype="<u2").tobytes()
    ds["PixelData"].VR = "OW"
    return ds


def written(ds: Dataset, syntax: str = ExplicitVRLittleEndian, *, undefined: bool = False) -> bytes:
    """A file's bytes. undefined: sequences and items have no length, but delimiters."""
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    if undefined:
        for element in ds.iterall():
            if element.VR == "SQ":
                element.is_undefined_length = True
                for item in element.value:
                    item.is_undefined_length_sequence_item = True
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, ds, enforce_file_format=True)
    return stream.getvalue()


PLAIN = written(dataset())


class TestWalk:
    @pytest.mark.parametrize("undefined", [False, True])
    @pytest.mark.parametrize("syntax", SYNTAXES)
    def test_it_finds_what_pydicom_finds_at_every_depth(self, syntax, undefined):
        raw = written(dataset(), syntax, undefined=undefined)
        found = walk(raw)
        expected = [e for e in pydicom.dcmread(io.BytesIO(raw)).iterall() if e.tag != PIXEL_DATA]
        assert [e.tag for e in found.entries[:-1]] == [int(e.tag) for e in expected]
        assert found.transfer_syntax == syntax
        assert found.text(SERIES) == "1.2.3.4"
        assert found.texts(0x00080008) == ("ORIGINAL", "PRIMARY", "AXIAL")
        assert found.numbers(0x00200032) == (1.5, -2.0, 300.0)
        assert found.numbers(ROWS) == (2,)
        assert found.numbers(0x0019100C) == (800.0,)
        assert found.numbers(0x00180050) is None  # there, but empty
        assert found.numbers(0x00180088) is None  # not there
        assert 0x00180050 in found
        assert 0x00180088 not in found

    @pytest.mark.parametrize("syntax", SYNTAXES)
    def test_pixels_lie_where_it_says(self, syntax):
        found = walk(written(dataset(), syntax))
        assert found.pixels is not None
        order = "<" if found.little_endian else ">"
        assert struct.unpack_from(f"{order}4H", found.raw, found.pixels.start) in ((0, 1, 2, 3), (0, 256, 512, 768))
        assert found.pixels.length == 8

    def test_elements_inside_a_sequence_come_in_order_with_their_depth(self):
        found = walk(PLAIN)
        inside = list(found.inside(REFERENCED))
        assert [(e.depth, found.value(e)) for e in inside if e.tag == REFERENCED_UID] == [
            (1, b"1.9\0"),
            (2, b"1.9.9\0"),
        ]
        assert list(found.inside(0x00081110)) == []  # an empty sequence
        assert list(found.inside(0x00081115)) == []  # none

    def test_encapsulated_pixels_have_no_length(self):
        ds = dataset()
        ds.PixelData = pydicom.encaps.encapsulate([b"\0" * 8])
        ds["PixelData"].is_undefined_length = True
        found = walk(written(ds, JPEG2000Lossless))
        assert found.pixels is not None
        assert found.pixels.length == UNDEFINED
        assert found.value(found.pixels) == b""

    def test_text_outside_ascii_is_replaced(self):
        assert walk(PLAIN).text(PATIENT_NAME) == "M��ller^Anna"

    @pytest.mark.parametrize("explicit", [True, False])
    def test_a_file_without_preamble_is_walked(self, explicit):
        stream = io.BytesIO()
        ds = dataset()
        pydicom.dcmwrite(stream, ds, implicit_vr=not explicit, little_endian=True, enforce_file_format=False)
        raw = stream.getvalue()
        assert raw[128:132] != b"DICM"
        assert walk(raw).text(SERIES) == "1.2.3.4"
        assert walk(raw).transfer_syntax == (ExplicitVRLittleEndian if explicit else ImplicitVRLittleEndian)

    def test_a_header_in_another_encoding_than_announced_is_walked_as_it_is(self):
        first = b"\x08\x00\x05\x00"  # of the data set
        implicit = written(dataset(), ImplicitVRLittleEndian)
        mixed = PLAIN[: PLAIN.index(first)] + implicit[implicit.index(first) :]
        assert walk(mixed).text(SERIES) == "1.2.3.4"

    def test_only_the_wanted_are_kept_and_nobody_takes_the_others_for_absent(self):
        found = walk(written(dataset(), undefined=True), wanted=frozenset({ROWS, REFERENCED}))
        assert [e.tag for e in found.entries if e.depth == 0] == [REFERENCED, ROWS, PIXEL_DATA]
        assert len(list(found.inside(REFERENCED))) == 3
        with pytest.raises(LookupError, match="not walked for"):
            found.find(SERIES)


class TestNumbers:
    @pytest.mark.parametrize(("vr", "raw"), [("US", b"\1"), ("FD", b"\0" * 9), ("DS", b"1.5\\x"), ("IS", b"1A")])
    def test_a_value_that_is_no_number_is_said_to_be_none(self, vr, raw):
        one = elements.Element(ROWS, vr, 0, len(raw), 0)
        with pytest.raises(ValueError, match=r"."):
            elements.Elements(raw, [], [one], ExplicitVRLittleEndian, True).numbers(ROWS)

    def test_an_unknown_representation_of_a_known_tag_is_taken_from_the_dictionary(self):
        one = elements.Element(ROWS, "UN", 0, 2, 0)
        assert elements.Elements(b"\2\1", [], [one], ExplicitVRLittleEndian, True).numbers(ROWS) == (258,)


class TestBroken:
    @pytest.mark.parametrize("raw", [b"", b"x" * 400, bytes(400), b"\0" * 128 + b"DICM", b"\x08\0\5\0"])
    def test_what_is_no_dicom_file_is_said_to_be_none(self, raw):
        with pytest.raises((ValueError, EOFError), match=r"."):
            walk(raw)

    @pytest.mark.parametrize("syntax", SYNTAXES[:3])
    def test_bytes_that_end_within_the_header_end_too_early(self, syntax):
        raw = written(dataset(), syntax)
        pixels = walk(raw).pixels
        assert pixels is not None
        for end in range(140, pixels.start - 12):
            with pytest.raises((EOFError, ValueError), match=r"."):
                walk(raw[:end], whole=False)
        assert walk(raw[: pixels.start], whole=False).pixels == pixels

    def test_an_element_that_reaches_beyond_the_file_ends_too_early(self):
        with pytest.raises(EOFError, match="beyond the last byte"):
            walk(PLAIN[: walk(PLAIN).find(SERIES).start + 3])  # type: ignore[union-attr]

    def test_an_item_longer_than_its_sequence(self):
        at = PLAIN.index(b"\xfe\xff\x00\xe0") + 4
        with pytest.raises(ValueError, match="longer than"):
            walk(PLAIN[:at] + (200).to_bytes(4, "little") + PLAIN[at + 4 :])

    def test_sequences_without_end(self):
        item = b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
        with pytest.raises(ValueError, match="nested deeper"):
            walk(PLAIN[: PLAIN.index(b"\x08\x00\x05\x00")] + item * 10_000)

    def test_more_elements_than_any_header_has(self, monkeypatch):
        monkeypatch.setattr(element_walk, "_MOST_ELEMENTS", 10)
        with pytest.raises(ValueError, match="more than 10"):
            walk(PLAIN)

    def test_a_deflated_stream_that_unpacks_to_more_than_a_volume(self, monkeypatch):
        raw = written(dataset(), DeflatedExplicitVRLittleEndian)
        monkeypatch.setattr(elements, "LARGEST_VOLUME_BYTES", 100)
        with pytest.raises(ValueError, match="unpacks to more"):
            walk(raw)

    @settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow], deadline=None)
    @given(
        changes=st.lists(st.tuples(st.integers(132, len(PLAIN) - 1), st.integers(0, 255)), max_size=4),
        undefined=st.booleans(),
        wanted=st.booleans(),
    )
    def test_damaged_bytes_give_elements_inside_the_file_or_a_plain_error(self, changes, undefined, wanted):
        raw = bytearray(written(dataset(), undefined=undefined) if undefined else PLAIN)
        for place, value in changes:
            raw[place] = value
        try:
            found = walk(bytes(raw), wanted=frozenset({ROWS, SERIES}) if wanted else None)
        except (ValueError, EOFError):
            return
        for element in found.entries:
            if element is not found.pixels:
                assert 132 <= element.start <= element.start + element.length <= len(found.raw)

    @settings(max_examples=100, deadline=None)
    @given(raw=st.binary(max_size=300))
    def test_any_bytes_give_a_header_or_a_plain_error(self, raw):
        try:
            walk(b"\0" * 128 + b"DICM" + raw)
        except (ValueError, EOFError):
            return


class TestReadElements:
    def test_the_beginning_is_enough(self, tmp_path):
        ds = dataset()
        ds.Rows, ds.PixelData = 50_000, bytes(200_000)
        (tmp_path / "a.dcm").write_bytes(written(ds))
        assert len(read_elements(tmp_path / "a.dcm").raw) == 32 * 1024
        assert not read_elements(tmp_path / "a.dcm").whole
        assert len(read_elements(tmp_path / "a.dcm", whole=True).raw) > 200_000

    def test_a_long_header_is_read_to_its_end(self, tmp_path):
        ds = dataset()
        ds.ImageComments = "x" * 9000
        ds.private_block(0x0029, "LONG", create=True).add_new(0x10, "OB", bytes(100_000))
        (tmp_path / "a.dcm").write_bytes(written(ds))
        assert read_elements(tmp_path / "a.dcm").numbers(ROWS) == (2,)

    @pytest.mark.parametrize("content", [None, b"", b"text", PLAIN[:500]])
    def test_a_missing_foreign_or_truncated_file_is_unreadable(self, tmp_path, content):
        path = tmp_path / "PATIENT-X.dcm"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(UnreadableFileError, match="DICOM file") as caught:
            read_elements(path)
        assert "PATIENT-X" not in str(caught.value)
        assert "PATIENT-X" in caught.value.local_detail

    def test_a_pipe_is_not_waited_for(self, tmp_path):
        os.mkfifo(tmp_path / "a.dcm")
        with pytest.raises(UnreadableFileError, match="DICOM file"):
            read_elements(tmp_path / "a.dcm")

    def test_a_file_larger_than_a_volume_is_not_read(self, tmp_path, monkeypatch):
        (tmp_path / "a.dcm").write_bytes(PLAIN)
        monkeypatch.setattr(elements, "LARGEST_VOLUME_BYTES", 100)
        with pytest.raises(UnreadableFileError, match="DICOM file"):
            read_elements(tmp_path / "a.dcm")
