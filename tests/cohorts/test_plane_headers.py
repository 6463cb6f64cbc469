from __future__ import annotations

import numpy as np
import pydicom
import pytest

from eucaim_fl.cohorts.decoding import as_dataset, pixel_format
from eucaim_fl.cohorts.elements import walk
from eucaim_fl.cohorts.plane_headers import b_value, pet_facts, read_planes
from eucaim_fl.errors import SeriesError

STORED = np.zeros((1, 3, 4), np.uint16)


def planes(path):
    elements = walk(path.read_bytes())
    return read_planes(elements, pixel_format(elements), lambda: as_dataset(elements))


class TestReadPlanes:
    def test_a_single_frame_says_it_all_in_its_header(self, tiny, tmp_path):
        path = tiny.series(
            tmp_path,
            STORED,
            modality="MR",
            ImageType=["ORIGINAL", "PRIMARY"],
            EchoTime=2.5,
            TemporalPositionIdentifier=3,
            AcquisitionNumber=4,
            RescaleSlope=2,
            RescaleIntercept=-1,
            SpacingBetweenSlices=3.5,
        )[0]
        (plane,) = planes(path)
        assert plane.position == (10.0, -20.0, 30.0)
        assert (plane.rows, plane.columns, plane.spacing, plane.thickness_mm) == (3, 4, (2.0, 2.0), 3.5)
        assert (plane.slope, plane.intercept, plane.image_type) == (2.0, -1.0, ("ORIGINAL", "PRIMARY"))
        assert (plane.echo_time_ms, plane.temporal_position, plane.acquisition) == (2.5, 3, 4)
        assert (plane.sop_uid, plane.series_uid, plane.modality) == ("1.2.3.4.1", "1.2.3.4", "MR")

    def test_what_only_tells_stacks_apart_may_be_wrong(self, tiny, tmp_path):
        path = tiny.series(tmp_path, STORED, modality="MR", EchoTime=25)[0]
        raw = path.read_bytes()
        at = raw.index(b"\x18\x00\x81\x00DS") + 8
        path.write_bytes(raw[:at] + b"2x" + raw[at + 2 :])
        assert planes(path)[0].echo_time_ms is None

    def test_what_places_a_plane_may_not(self, tiny, tmp_path):
        path = tiny.series(tmp_path, STORED)[0]
        raw = path.read_bytes()
        at = raw.index(b"\x20\x00\x32\x00DS") + 8
        path.write_bytes(raw[:at] + b"x" + raw[at + 1 :])
        elements = walk(path.read_bytes())
        with pytest.raises(ValueError, match="float"):
            read_planes(elements, pixel_format(elements), lambda: None)

    def test_frames_without_a_place(self, tiny, tmp_path):
        path = tiny.series(tmp_path, STORED, NumberOfFrames=2)[0]
        elements = walk(path.read_bytes())
        with pytest.raises(SeriesError, match="multi-frame"):
            read_planes(elements, pixel_format(elements), lambda: None)


class TestBValue:
    @pytest.mark.parametrize(
        ("group", "creator", "element", "vr", "value", "expected"),
        [
            (0x0019, "SIEMENS MR HEADER", 0x0C, "IS", "800", 800),
            (0x0043, "GEMS_PARM_01", 0x39, "IS", ["1000000800", "8", "0", "0"], 800),
            (0x0043, "GEMS_PARM_01", 0x39, "IS", ["50", "8", "0", "0"], 50),
            (0x2001, "Philips Imaging DD 001", 0x03, "FL", 1000.0, 1000),
            (0x0065, "Image Private Header", 0x09, "FD", 929.75, 929.75),
            (0x0019, "SOMEBODY ELSE", 0x0C, "IS", "800", None),
        ],
    )
    def test_makers_keep_it_in_private_elements(self, tiny, tmp_path, group, creator, element, vr, value, expected):
        path = tiny.series(tmp_path, STORED, modality="MR")[0]
        ds = pydicom.dcmread(path)
        ds.private_block(group, creator, create=True).add_new(element, vr, value)
        ds.save_as(path)
        assert b_value(walk(path.read_bytes())) == expected

    def test_the_standards_own_comes_first(self, tiny, tmp_path):
        path = tiny.series(tmp_path, STORED, modality="MR", DiffusionBValue=400.0)[0]
        assert b_value(walk(path.read_bytes())) == 400


class TestPetFacts:
    def test_nothing_stated_is_nothing_known(self, tiny, tmp_path):
        facts = pet_facts(walk(tiny.series(tmp_path, STORED)[0].read_bytes()))
        assert (facts.units, facts.weight_kg, facts.dose_bq, facts.injected) == ("", None, None, "")
