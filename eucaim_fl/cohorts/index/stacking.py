"""From files of one folder and series to stacks: what forms a volume, and what makes it unusable."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise
from statistics import median
from typing import Literal, TypeVar

from eucaim_fl.cohorts.facts import FileFacts, SeriesFacts
from eucaim_fl.cohorts.stacks import SAME_PLACE_MM, split_stacks

__all__ = ["MOST_FILES", "plane_of", "stacks_of"]

MOST_FILES = 50_000
"""Of one series; a folder where everybody has the same series UID must not fill the memory."""
_UNFIT = "EFL202"
_STEEP = math.cos(math.radians(35.0))
Plane = Literal["axial", "coronal", "sagittal", "oblique", ""]
T = TypeVar("T")


def plane_of(orientation: Sequence[float] | None) -> Plane:
    """The plane of an orientation (six cosines, LPS+): the axis within 35° of its normal; `oblique` if there is none,
    "" if none is stated or its two directions are no plane.

    >>> plane_of((1, 0, 0, 0, 1, 0)), plane_of((1, 0, 0, 0, 0, -1)), plane_of((0, 1, 0, 0, 0, -1)), plane_of(None)
    ('axial', 'coronal', 'sagittal', '')
    """
    normal = _normal(orientation)
    if normal is None:
        return ""
    steepest = max(range(3), key=lambda axis: abs(normal[axis]))
    planes: tuple[Plane, Plane, Plane] = ("sagittal", "coronal", "axial")
    return planes[steepest] if abs(normal[steepest]) >= _STEEP else "oblique"


def _normal(orientation: Sequence[float] | None) -> tuple[float, float, float] | None:
    if orientation is None or len(orientation) != 6:
        return None
    (a, b, c), (d, e, f) = orientation[:3], orientation[3:]
    x, y, z = b * f - c * e, c * d - a * f, a * e - b * d
    length = math.sqrt(x * x + y * y + z * z)
    return (x / length, y / length, z / length) if length > 1e-6 else None


def stacks_of(folder: str, files: Sequence[FileFacts]) -> list[SeriesFacts]:
    """Stacks of the files of one folder and series; files that can't be read may be among them, and make it unusable.

    folder: of all files. Images are divided by `split_stacks`; a file of several frames, and one that is no image, is a
    stack of its own. Without a series UID each file is a stack of its own.
    """
    files = sorted(files, key=lambda one: one.path)
    uid = next((one.series_uid for one in files if one.series_uid), "")
    if not uid:
        return [_alone(folder, one) for one in files]
    if len(files) > MOST_FILES:
        reason = f"A series has more than {MOST_FILES} files in one folder."
        return [replace(_stack(folder, files[:1], ""), code=_UNFIT, reason=reason)]
    good, broken = [f for f in files if not f.code], [f for f in files if f.code]
    found = [_stack(folder, members, name) for name, members in _divided(good)] or [_stack(folder, broken, "")]
    if len({one.patient_id for one in good}) > 1:
        reason = "The files of one series state different patients."
        found = [replace(one, code=_UNFIT, reason=reason) for one in found]
    if broken:
        first = broken[0]
        counted = _identifiers([broken[n] for n in range(len(broken))]) if good else {}
        found = [replace(one, code=first.code, reason=first.reason, local_detail=first.local_detail) for one in found]
        found[0] = replace(found[0], identifiers=dict(Counter(found[0].identifiers) + Counter(counted)))
    return sorted(found, key=lambda one: (one.stack, one.files))


def _alone(folder: str, one: FileFacts) -> SeriesFacts:
    """A file that belongs to no series."""
    stack = _stack(folder, [one], "")
    if one.code or one.kind == "nifti":
        return replace(stack, code=one.code, reason=one.reason, local_detail=one.local_detail)
    return replace(stack, code=_UNFIT, reason="A DICOM file states no series.")


def _divided(files: list[FileFacts]) -> list[tuple[str, list[FileFacts]]]:
    """Name and files of each stack."""
    planes = [one for one in files if one.rows and (one.frames or 1) <= 1]  # fewer than one is met by the reader
    objects = sorted((one for one in files if not one.rows or (one.frames or 1) > 1), key=lambda f: (f.sop_uid, f.path))
    found = [(name, [planes[n] for n in members]) for name, members in split_stacks(planes)] if planes else []
    if len(objects) == 1 and not found:
        return [("", objects)]
    return [*found, *((f"object={number}", [one]) for number, one in enumerate(objects, start=1))]


def _stack(folder: str, files: Sequence[FileFacts], name: str) -> SeriesFacts:
    first = files[0]
    slices = first.frames or 1 if len(files) == 1 else len(files)
    rows, columns = first.spacing if first.spacing is not None and len(first.spacing) == 2 else (None, None)
    return SeriesFacts(
        folder=folder,
        files=tuple(one.path for one in files),
        kind=first.kind,
        stack=name,
        patient_id=first.patient_id,
        study_uid=first.study_uid,
        series_uid=first.series_uid,
        modality=first.modality,
        body_part=first.body_part,
        laterality=first.laterality,
        description=first.series_description,
        protocol=first.protocol,
        sequence=first.sequence,
        image_type=first.image_type,
        manufacturer=first.manufacturer,
        model=first.model,
        study_date=first.study_date,
        frame_of_reference=first.frame_of_reference,
        transfer_syntax=first.transfer_syntax,
        plane=plane_of(first.orientation),
        size=(first.rows or 0, first.columns or 0, slices if first.rows else 0),
        samples=_same(one.samples for one in files),
        photometric=_same(one.photometric for one in files) or "",
        spacing_mm=(rows, columns, first.thickness_mm if first.kind == "nifti" else _between(files)),
        thickness_mm=_same(one.thickness_mm for one in files),
        contrast=_same(one.contrast for one in files),
        echo_time_ms=_same(one.echo_time_ms for one in files),
        b_value=_same(one.b_value for one in files),
        field_strength_t=_same(one.field_strength_t for one in files),
        references=tuple(dict.fromkeys(uid for one in files for uid in one.references)),
        identifiers=_identifiers(files),
        content=hashlib.sha256("\n".join(one.content for one in files).encode()).hexdigest(),
    )


def _same(values: Iterable[T | None]) -> T | None:
    """What all state alike, else None."""
    found = set(values)
    return found.pop() if len(found) == 1 else None


def _identifiers(files: Iterable[FileFacts]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for one in files:
        total.update(one.identifiers)
    return dict(sorted(total.items()))


def _between(files: Sequence[FileFacts]) -> float | None:
    """The median distance in mm of neighbouring slices along the normal; None for fewer than two places."""
    normal = _normal(files[0].orientation)
    if normal is None or any(one.position is None or len(one.position) != 3 for one in files):
        return None
    places = sorted(sum(x * n for x, n in zip(one.position or (), normal, strict=True)) for one in files)
    gaps = [after - before for before, after in pairwise(places) if after - before > SAME_PLACE_MM]
    return round(median(gaps), 6) if gaps else None
