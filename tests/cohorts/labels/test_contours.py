from __future__ import annotations

import numpy as np
import pydicom
import pytest

from eucaim_fl.cohorts.labels import contours
from eucaim_fl.cohorts.labels.contours import read_contours
from eucaim_fl.errors import LabelError, UnreadableFileError

TRIANGLE = np.array([(0, 0, 5), (4, 0, 5), (0, 4, 5)], float)


class TestReadContours:
    def test_wanted_structures_come_with_their_points_and_all_names_are_told(self, made, tmp_path):
        path = made.structures(tmp_path / "rt.dcm", {"GTV (left)": [TRIANGLE, TRIANGLE + 1], "Heart": [TRIANGLE]})
        (structure,), names = read_contours(path, {"gtv_left"})
        assert names == ("gtv_left", "heart")
        assert (structure.name, structure.frame_of_reference, structure.ignored) == ("gtv_left", "1.2.3.9", 0)
        assert np.allclose(structure.contours[0], TRIANGLE * (-1, -1, 1))
        assert len(structure.contours) == 2

    def test_points_open_lines_and_pairs_of_points_are_counted_not_taken(self, made, tmp_path):
        path = made.structures(
            tmp_path / "rt.dcm",
            {"gtv": [TRIANGLE, TRIANGLE[:1], TRIANGLE, TRIANGLE, TRIANGLE[:2]]},
            kinds=("CLOSED_PLANAR", "POINT", "OPEN_PLANAR", "CLOSEDPLANAR_XOR", "CLOSED_PLANAR"),
        )
        (structure,), _ = read_contours(path, {"gtv"})
        assert (len(structure.contours), structure.ignored) == (2, 3)

    def test_a_structure_that_nobody_drew_has_no_contours(self, made, tmp_path):
        path = made.structures(tmp_path / "rt.dcm", {"empty": [], "gtv": [TRIANGLE]})
        structures, _ = read_contours(path, {"empty", "gtv"})
        assert [len(s.contours) for s in structures] == [0, 1]

    @pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2", "1.2.840.10008.1.2.1.99"])
    def test_the_transfer_syntax_changes_nothing(self, made, tmp_path, syntax):
        plain = made.structures(tmp_path / "plain.dcm", {"gtv": [TRIANGLE]})
        ds = pydicom.dcmread(plain)
        ds.file_meta.TransferSyntaxUID = syntax
        pydicom.dcmwrite(
            tmp_path / "other.dcm", ds, implicit_vr=syntax == "1.2.840.10008.1.2", little_endian=True,
            force_encoding=True,
        )  # fmt: skip
        (a,), (b,) = (read_contours(path, {"gtv"})[0] for path in (plain, tmp_path / "other.dcm"))
        assert np.array_equal(a.contours[0], b.contours[0])

    @pytest.mark.parametrize("text", [b"nan", b"inf", b"abc", b"1e999", b"1\\\\2"])
    def test_coordinates_that_are_no_finite_numbers_are_refused(self, made, tmp_path, text):
        path = made.structures(tmp_path / "rt.dcm", {"gtv": [TRIANGLE + 100.25]})
        raw = path.read_bytes()
        assert raw.count(b"104.25") == 2
        path.write_bytes(raw.replace(b"104.25", text.ljust(6)))
        with pytest.raises(UnreadableFileError, match="lacks"):
            read_contours(path, {"gtv"})

    def test_a_number_of_coordinates_that_makes_no_points_is_refused(self, made, tmp_path):
        def shorten(ds):
            ds.ROIContourSequence[0].ContourSequence[0].ContourData = [1.0] * 10

        path = made.alter(made.structures(tmp_path / "rt.dcm", {"gtv": [TRIANGLE]}), shorten)
        with pytest.raises(UnreadableFileError, match="lacks"):
            read_contours(path, {"gtv"})

    @pytest.mark.parametrize("limit", ["MOST_POINTS", "MOST_CONTOURS"])
    def test_too_many_contours_or_points_are_refused_before_they_are_converted(
        self, made, tmp_path, monkeypatch, limit
    ):
        path = made.structures(tmp_path / "rt.dcm", {"gtv": [TRIANGLE] * 3, "heart": [TRIANGLE]})
        monkeypatch.setattr(contours, limit, 2)
        with pytest.raises(LabelError, match="has more than"):
            read_contours(path, {"gtv"})
        assert read_contours(path, {"nothing"})[0] == ()

    def test_two_million_points_are_the_end(self, made, tmp_path):
        path = made.structures(tmp_path / "rt.dcm", {"gtv": [TRIANGLE]})

        def swell(ds):
            item = ds.ROIContourSequence[0].ContourSequence[0]
            item.add_new(0x30060050, "UN", b"1\\" * 6_000_003 + b"1")

        made.alter(path, swell)
        with pytest.raises(LabelError, match="2000000 points"):
            read_contours(path, {"gtv"})

    def test_a_file_beyond_all_bounds_is_refused_before_it_is_read(self, tmp_path):
        path = tmp_path / "huge.dcm"
        with path.open("wb") as stream:
            stream.truncate(300 * 1024 * 1024)
        with pytest.raises(UnreadableFileError, match="too large"):
            read_contours(path, {"gtv"})

    def test_a_file_that_is_missing_or_something_else_is_unreadable(self, tiny, tmp_path):
        (image,) = tiny.series(tmp_path / "image", np.zeros((1, 4, 4), np.int16))
        for path in (tmp_path / "none.dcm", image):
            with pytest.raises(UnreadableFileError, match=r"missing|lacks"):
                read_contours(path, {"gtv"})

    def test_a_file_without_preamble_is_read(self, conformance):
        path = conformance / "pydicom/src/pydicom/data/test_files/rtstruct.dcm"
        (structure,), names = read_contours(path, {"patient"})
        assert names == ("isocenter_1", "isocenter_2", "patient")
        assert structure.contours[0][:2].tolist() == [[200.0, -150.0, -200.0], [200.0, 150.0, -200.0]]
