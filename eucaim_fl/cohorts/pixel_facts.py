"""What the pixels of one stack say, in one pass: enough for the check of a cohort, and nothing that names a person."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from eucaim_fl.cohorts.manifest import Case
from eucaim_fl.cohorts.volume import Volume
from eucaim_fl.errors import DataError, LabelError, SeriesError

__all__ = [
    "LabelFacts",
    "PixelFacts",
    "examine",
    "from_json",
    "read_pixel_facts",
    "to_json",
    "volume_sha256",
]


@dataclass(frozen=True)
class LabelFacts:
    """One label value of a case: how many voxels of the image it covers, and how large that is.

    name: the known words of the segment's name, or `segment 1` and so on.
    """

    name: str
    voxels: int
    volume_mm3: float


@dataclass(frozen=True, kw_only=True)
class PixelFacts:
    """What the check knows of one case's pixels. Values are in the image's unit (HU for CT), as training sees them; of
    colours they are those of the luminance.

    sha256: of shape and voxels (hexadecimal); equal for images with the very same voxels. at_minimum, at_maximum: share
    of voxels with the least and the largest value. border: mean of the outermost rows and columns of all slices.
    shape, spacing_mm: along I, J, K. text: whether a slice, or a colour of it, seems to hold written text. labels: one
    for each segment. label_sha256: of the label on the image's grid; empty without label. label_problems: codes of
    `labels.checks`. label_code, label_reason: why the label can't be used. thumbnail: PNG as base64 text.
    code, reason: why the image can't be used (safe outside the hospital); the rest is empty then.
    """

    sha256: str = ""
    minimum: float = 0.0
    maximum: float = 0.0
    mean: float = 0.0
    deviation: float = 0.0
    at_minimum: float = 0.0
    at_maximum: float = 0.0
    border: float = 0.0
    shape: tuple[int, int, int] = (0, 0, 0)
    spacing_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    text: bool = False
    labels: tuple[LabelFacts, ...] = ()
    label_sha256: str = ""
    label_problems: tuple[str, ...] = ()
    label_code: str = ""
    label_reason: str = ""
    thumbnail: str = ""
    code: str = ""
    reason: str = ""


def to_json(facts: PixelFacts) -> dict[str, Any]:
    """The facts as JSON values."""
    return asdict(facts)


def from_json(value: Mapping[str, Any]) -> PixelFacts:
    """What `to_json` gave, back again, with every type checked.

    Raises ValueError if something is missing, unknown or of another type.
    """
    known = asdict(PixelFacts())
    if set(value) != set(known):
        raise ValueError("other facts than expected")
    result: dict[str, Any] = {}
    for name, example in known.items():
        given = value[name]
        if name == "labels":
            result[name] = tuple(_label_from_json(one) for one in _items(given, dict))
        elif name == "label_problems":
            result[name] = tuple(_items(given, str))
        elif name in ("shape", "spacing_mm"):
            result[name] = tuple(_items(given, int if name == "shape" else float, length=3))
        else:
            result[name] = _typed(given, type(example))
    return PixelFacts(**result)


def _typed(value: Any, kind: type[Any]) -> Any:
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise ValueError(f"a value that is no {kind.__name__}")
    return value


def _items(value: Any, kind: type[Any], length: int | None = None) -> list[Any]:
    if not isinstance(value, list | tuple) or (length is not None and len(value) != length):
        raise ValueError("a value that is no list of the expected length")
    return [_typed(one, kind) for one in value]


def _label_from_json(value: dict[str, Any]) -> LabelFacts:
    if set(value) != {"name", "voxels", "volume_mm3"}:
        raise ValueError("other facts of a label than expected")
    return LabelFacts(_typed(value["name"], str), _typed(value["voxels"], int), _typed(value["volume_mm3"], float))


def volume_sha256(array: npt.NDArray[Any]) -> str:
    """SHA-256 (hexadecimal) of an array's shape and values, slice by slice along the third axis, whatever its memory
    order. -0 counts as 0.
    """
    digest = hashlib.sha256(repr((array.shape, array.dtype.str)).encode())
    for k in range(array.shape[2]):
        digest.update((array[:, :, k] + array.dtype.type(0)).tobytes())
    return digest.hexdigest()


def read_pixel_facts(case: Case) -> PixelFacts:
    """Read a case's image and label once.

    A label that can't be used leaves its code and reason in the facts; an image that can't is an error.
    Raises SeriesError or UnreadableFileError if the files form no volume, hold values that are no numbers, or can't be
    read.
    """
    from eucaim_fl.cohorts.deidentification.burned_in import text_in_volume
    from eucaim_fl.cohorts.label_names import read_every_label
    from eucaim_fl.cohorts.thumbnail import png_base64, slice_picture

    volume, colours = _read_image(case)
    facts: dict[str, Any] = _statistics(volume)
    label: npt.NDArray[np.uint8] | None = None
    if case.label:
        try:
            names, label = read_every_label(case, volume)
            facts |= _label_facts(case, volume, label, names)
        except DataError as error:
            facts |= {"label_code": error.code, "label_reason": error.message}
        except Exception:  # noqa: BLE001 - a foreign label can make its reader raise anything
            facts |= {"label_code": LabelError.code, "label_reason": "A label can't be read for an unforeseen reason."}
    return PixelFacts(
        **facts,
        text=any(text_in_volume(one.array, case.modality) for one in (volume, *colours)),
        thumbnail=png_base64(slice_picture(volume, label, colours)),
    )


def examine(item: Mapping[str, Any]) -> dict[str, Any]:
    """`read_pixel_facts` of a case from `preparation.case_to_json`, as JSON values, for isolated workers.

    An image that can't be used leaves its code and reason.
    """
    from eucaim_fl.cohorts.preparation import case_from_json

    try:
        return to_json(read_pixel_facts(case_from_json(item)))
    except DataError as error:
        return to_json(PixelFacts(code=error.code, reason=error.message))


def _read_image(case: Case) -> tuple[Volume, tuple[Volume, ...]]:
    """One value a voxel, and the colours of an image that has such as a plan can take."""
    from eucaim_fl.cohorts.case_image import has_colours, luminance, read_case, read_case_colours

    if has_colours(case):
        try:
            colours = read_case_colours(case)
        except SeriesError:
            return read_case(case), ()
        return luminance(colours), colours
    return read_case(case), ()


def _statistics(volume: Volume) -> dict[str, Any]:
    """Everything that needs no label; slice by slice, so that no second volume is made."""
    array = volume.array
    low, high = float(array.min()), float(array.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise SeriesError("An image holds values that are NaN or infinite.")
    total = squares = edges = 0.0
    at_low = at_high = edge_count = 0
    for k in range(array.shape[2]):
        plane = np.asarray(array[:, :, k], dtype=np.float64)
        total += float(plane.sum())
        squares += float(((plane - low) ** 2).sum())
        at_low += int((plane == low).sum())
        at_high += int((plane == high).sum())
        frame = np.concatenate([plane[0], plane[-1], plane[:, 0], plane[:, -1]])
        edges += float(frame.sum())
        edge_count += frame.size
    mean = total / array.size
    return {
        "sha256": volume_sha256(array),
        "minimum": low,
        "maximum": high,
        "mean": mean,
        "deviation": float(np.sqrt(max(squares / array.size - (mean - low) ** 2, 0.0))),
        "at_minimum": at_low / array.size,
        "at_maximum": at_high / array.size,
        "border": edges / edge_count,
        "shape": volume.shape,
        "spacing_mm": tuple(round(mm, 6) for mm in volume.spacing_mm),
    }


def _shown_name(name: str, value: int) -> str:
    """The known words of a segment's name: anybody may have written anything there."""
    from eucaim_fl.cohorts.deidentification.words import plain_words

    words = plain_words(name)
    return words if any(letter.isalpha() for letter in words) else f"segment {value}"


def _label_facts(case: Case, volume: Volume, label: npt.NDArray[np.uint8], names: Sequence[str]) -> dict[str, Any]:
    from eucaim_fl.cohorts.labels.checks import check_label

    counts = np.bincount(label.ravel(), minlength=len(names) + 1)
    voxel_mm3 = float(abs(np.linalg.det(volume.affine[:3, :3])))
    return {
        "labels": tuple(
            LabelFacts(_shown_name(name, value), int(counts[value]), round(float(counts[value]) * voxel_mm3, 3))
            for value, name in enumerate(names, start=1)
        ),
        "label_sha256": volume_sha256(label),
        "label_problems": check_label(volume, label, "" if case.facts is None else case.facts.laterality),
    }
