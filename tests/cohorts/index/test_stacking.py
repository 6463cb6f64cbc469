from __future__ import annotations

import math
from typing import Any

import pytest

from eucaim_fl.cohorts.facts import FileFacts
from eucaim_fl.cohorts.index import stacking
from eucaim_fl.cohorts.index.stacking import plane_of, stacks_of


def slice_at(z: float, name: str = "", **changes: Any) -> FileFacts:
    values = {
        "path": f"P1/S1/{name or f'{z:06.1f}'}.dcm", "size": 1, "mtime_ns": 1, "ctime_ns": 1, "inode": 1,
        "kind": "dicom", "series_uid": "1.2.3", "sop_uid": f"1.2.3.{name or z}", "rows": 4, "columns": 5,
        "position": (0.0, 0.0, z), "orientation": (1.0, 0.0, 0.0, 0.0, 1.0, 0.0), "spacing": (2.0, 2.5),
        "thickness_mm": 3.0, "patient_id": "p", "content": f"c{z}", "modality": "MR", **changes,
    }  # fmt: skip
    return FileFacts(**values)


def broken(name: str, **changes: Any) -> FileFacts:
    values = {"path": f"P1/S1/{name}", "size": 1, "mtime_ns": 1, "ctime_ns": 1, "inode": 1, "kind": "dicom"}
    return FileFacts(**{**values, "code": "EFL204", "reason": "A file is empty.", **changes})


class TestPlaneOf:
    @pytest.mark.parametrize(
        ("degrees", "plane"), [(0, "axial"), (34, "axial"), (36, "oblique"), (54, "oblique"), (56, "coronal")]
    )
    def test_a_tilt_of_35_degrees_is_the_limit(self, degrees: float, plane: str) -> None:
        tilt = math.radians(degrees)
        assert plane_of((1, 0, 0, 0, math.cos(tilt), math.sin(tilt))) == plane

    def test_what_is_no_plane_has_none(self) -> None:
        assert plane_of((1, 0, 0, 1, 0, 0)) == plane_of((0,) * 6) == plane_of((1, 0, 0)) == ""


class TestStacksOf:
    def test_slices_of_a_series_are_one_stack(self) -> None:
        (one,) = stacks_of("P1/S1", [slice_at(z, identifiers={"deid.uid": 2}) for z in (6.0, 0.0, 3.0)])
        assert one.files == ("P1/S1/0000.0.dcm", "P1/S1/0003.0.dcm", "P1/S1/0006.0.dcm")
        assert (one.stack, one.plane, one.size, one.spacing_mm) == ("", "axial", (4, 5, 3), (2.0, 2.5, 3.0))
        assert (one.identifiers, one.code, one.series_uid, one.folder) == ({"deid.uid": 6}, "", "1.2.3", "P1/S1")

    def test_the_order_of_files_changes_nothing(self) -> None:
        files = [slice_at(z) for z in (0.0, 3.0, 6.0)]
        assert stacks_of("P1/S1", files) == stacks_of("P1/S1", files[::-1])

    def test_a_missing_slice_does_not_change_the_spacing(self) -> None:
        (one,) = stacks_of("P1/S1", [slice_at(z) for z in (0.0, 3.0, 6.0, 12.0, 15.0)])
        assert one.spacing_mm[2] == 3.0

    def test_b_values_are_stacks_of_their_own(self) -> None:
        files = [slice_at(z, name=f"{z}-{b}", b_value=b) for z in (0.0, 3.0) for b in (50.0, 800.0)]
        assert [(one.stack, one.b_value, one.size[2]) for one in stacks_of("P1/S1", files)] == [
            ("b=50", 50.0, 2),
            ("b=800", 800.0, 2),
        ]

    def test_objects_of_a_series_are_stacks_of_their_own(self) -> None:
        files = [slice_at(0, name=name, modality="SEG", frames=7, position=None) for name in ("b", "a")]
        found = stacks_of("P1/S1", files)
        assert [(one.stack, one.files, one.size) for one in found] == [
            ("object=1", ("P1/S1/a.dcm",), (4, 5, 7)),
            ("object=2", ("P1/S1/b.dcm",), (4, 5, 7)),
        ]
        assert stacks_of("P1/S1", files[:1])[0].stack == ""

    def test_a_broken_file_makes_its_series_unusable(self) -> None:
        files = [slice_at(0.0), slice_at(3.0), broken("x.dcm", identifiers={"deid.file_date": 1})]
        (one,) = stacks_of("P1/S1", files)
        assert (one.code, one.reason, len(one.files)) == ("EFL204", "A file is empty.", 2)
        assert one.identifiers == {"deid.file_date": 1}

    def test_a_series_of_broken_files_alone_is_one_stack(self) -> None:
        files = [slice_at(z, code="EFL204", reason="It ends early.") for z in (0.0, 3.0)]
        (one,) = stacks_of("P1/S1", files)
        assert (one.code, one.reason, len(one.files)) == ("EFL204", "It ends early.", 2)

    def test_two_patients_in_a_series_make_it_unusable(self) -> None:
        (one,) = stacks_of("P1/S1", [slice_at(0.0), slice_at(3.0, patient_id="q")])
        assert (one.code, one.reason) == ("EFL202", "The files of one series state different patients.")

    def test_files_without_a_series_stand_alone(self) -> None:
        nifti = broken("a.nii", kind="nifti", code="", reason="", rows=5, columns=4, frames=6, spacing=(2.0, 2.0))
        lost = slice_at(0.0, series_uid="")
        found = stacks_of("P1/S1", [nifti, broken("b.dcm"), lost])
        assert [(one.files[0][6:], one.code) for one in found] == [
            ("0000.0.dcm", "EFL202"),
            ("a.nii", ""),
            ("b.dcm", "EFL204"),
        ]
        assert found[1].size == (5, 4, 6)

    def test_a_series_without_end_does_not_fill_the_memory(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(stacking, "MOST_FILES", 3)
        (one,) = stacks_of("P1/S1", [slice_at(float(z)) for z in range(4)])
        assert (one.code, len(one.files)) == ("EFL202", 1)
