"""What a file's header says of each of its planes: one frame, the frames of an enhanced object, or a dose grid.

Source: DICOM PS3.3 C.7.6.2 (Image Plane), C.7.6.16.2 (functional groups), C.8.8.3 (RT Dose), C.11.1 (Modality LUT).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from eucaim_fl.cohorts.decoding import PixelFormat
from eucaim_fl.cohorts.elements import Elements
from eucaim_fl.cohorts.planes import Plane
from eucaim_fl.cohorts.suv import PetFacts
from eucaim_fl.errors import SeriesError

__all__ = ["READ_TAGS", "b_value", "functional_group", "pet_facts", "read_planes"]

# fmt: off
READ_TAGS = frozenset({
    0x00080008, 0x00080016, 0x00080018, 0x00080021, 0x00080022, 0x00080031, 0x00080032, 0x00080060, 0x00101030,
    0x00180050, 0x00180081, 0x00180088, 0x00181164, 0x00181242, 0x00189087, 0x00190010, 0x0019100C, 0x0020000E,
    0x00200012, 0x00200013, 0x00200032, 0x00200037, 0x00200100, 0x20010010, 0x20011003, 0x00280002, 0x00280004,
    0x00280006, 0x00280008, 0x00280010, 0x00280011, 0x00280030, 0x00280051, 0x00280100, 0x00280101, 0x00280102,
    0x00280103, 0x00281052, 0x00281053, 0x00283000, 0x3004000C, 0x3004000E, 0x00430010, 0x00431039, 0x52009230,
    0x00540016, 0x00541001, 0x00541006, 0x00541102, 0x00541300, 0x00650010, 0x00651009, 0x70530010, 0x70531000,
    0x70531009, 0x7FE00001, 0x7FE00002,
})
"""What is asked of the header of an image that is read as a volume, here and in `decoding`."""
# fmt: on
_RADIOGRAPHS = frozenset({"CR", "DX", "IO", "MG", "PX", "RF", "RG", "XA"})
_SEGMENTATIONS = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
_PER_FRAME, _LUT, _GRID = 0x52009230, 0x00283000, 0x3004000C


def _optional(elements: Elements, tag: int) -> float | None:
    """The first number of an attribute that only tells stacks apart; None where it is absent or no number."""
    try:
        found = elements.numbers(tag)
    except ValueError:
        return None
    return None if not found or not np.isfinite(found[0]) else found[0]


def _whole(elements: Elements, tag: int) -> int | None:
    found = _optional(elements, tag)
    return None if found is None else int(found)


def _first(elements: Elements, tag: int, default: float) -> float:
    found = elements.numbers(tag)
    return default if found is None else found[0]


def b_value(elements: Elements) -> float | None:
    """The diffusion weighting of a single-frame MR image in s/mm²; None where it isn't stated.

    The standard's DiffusionBValue, else the private ones of Siemens, United Imaging, Philips and GE.
    """
    found = _optional(elements, 0x00189087)
    if found is not None:
        return found
    for tag, creator, starts in (
        (0x0019100C, 0x00190010, "SIEMENS MR"),
        (0x00651009, 0x00650010, "Image Private Header"),
        (0x20011003, 0x20010010, "Philips Imaging"),
    ):
        if elements.text(creator).startswith(starts):
            found = _optional(elements, tag)
            if found is not None:
                return found
    if elements.text(0x00430010).startswith("GEMS_PARM"):
        found = _optional(elements, 0x00431039)
        return None if found is None else found % 1e9  # GE adds 1e9 to what is one of several b-values
    return None


def _single(elements: Elements, form: PixelFormat) -> Plane:
    position = elements.numbers(0x00200032)
    modality = elements.text(0x00080060)
    spacing = elements.numbers(0x00280030) or (None if position else elements.numbers(0x00181164))
    thickness = abs(_first(elements, 0x00180088, 0.0)) or abs(_first(elements, 0x00180050, 0.0))
    slope, intercept = _first(elements, 0x00281053, 1.0), _first(elements, 0x00281052, 0.0)
    if modality == "RTDOSE":
        slope, intercept = _first(elements, 0x3004000E, 0.0), 0.0  # DoseGridScaling, to gray; `check` refuses 0
    image_type = elements.texts(0x00080008)
    return Plane(
        rows=form.rows,
        columns=form.columns,
        position=position,
        orientation=elements.numbers(0x00200037),
        spacing=spacing,
        thickness_mm=thickness or 1.0,
        slope=slope,
        intercept=intercept,
        image_type=image_type,
        acquisition=_whole(elements, 0x00200012),
        temporal_position=_whole(elements, 0x00200100),
        echo_time_ms=_optional(elements, 0x00180081),
        b_value=b_value(elements) if modality == "MR" else None,
        sop_uid=elements.text(0x00080018),
        instance_number=_whole(elements, 0x00200013),
        series_uid=elements.text(0x0020000E),
        modality=modality,
        inverted=form.photometric == "MONOCHROME1" and (position is None or modality in _RADIOGRAPHS),
        has_lut=_LUT in elements,
        mosaic="MOSAIC" in image_type or "VFRAME" in image_type,  # Siemens; United Imaging
    )


def functional_group(header: Any, frame: int, name: str) -> Any | None:
    """The item of one functional group that counts for a frame: its own, else the shared one, else None.

    header: of an enhanced multi-frame object, as `read_header` gives it. name: such as `PlanePositionSequence`.
    """
    for groups, index in ((header.get("PerFrameFunctionalGroupsSequence"), frame),
                          (header.get("SharedFunctionalGroupsSequence"), 0)):  # fmt: skip
        if groups and index < len(groups):
            items = groups[index].get(name)
            if items:
                return items[0]
    return None


class _Frame:
    """Attributes of one frame of an enhanced object, by the sequences that they may stand in."""

    def __init__(self, header: Any, frame: int) -> None:
        self.header, self.frame = header, frame

    def get(self, name: str, *groups: str) -> Any:
        """The first value found; in files that were converted from single frames also among the unassigned ones."""
        for group in (*groups, "UnassignedPerFrameConvertedAttributes", "UnassignedSharedConvertedAttributes"):
            item = functional_group(self.header, self.frame, f"{group}Sequence")
            value = None if item is None else item.get(name)
            if value is not None and value != "":
                return value
        return None

    def numbers(self, name: str, *groups: str) -> tuple[float, ...] | None:
        """Its values as numbers."""
        value = self.get(name, *groups)
        return None if value is None else tuple(float(v) for v in np.atleast_1d(value))

    def number(self, name: str, *groups: str, default: float = 0.0) -> float:
        """Its value as a number."""
        found = self.numbers(name, *groups)
        return default if found is None else found[0]

    def optional(self, name: str, *groups: str) -> float | None:
        """As `number`, of an attribute that only tells stacks apart."""
        try:
            found = self.numbers(name, *groups)
        except (TypeError, ValueError):
            return None
        return None if not found or not np.isfinite(found[0]) else found[0]

    def whole(self, name: str, *groups: str) -> int | None:
        """As `optional`, as an integer."""
        found = self.optional(name, *groups)
        return None if found is None else int(found)


def _enhanced(base: Plane, header: Any, frames: int) -> list[Plane]:
    if len(header.PerFrameFunctionalGroupsSequence) != frames:
        raise ValueError("not as many functional groups as frames")
    found = []
    for index in range(frames):
        of = _Frame(header, index)
        values, measures = "PixelValueTransformation", "PixelMeasures"
        thickness = abs(of.number("SpacingBetweenSlices", measures)) or abs(of.number("SliceThickness", measures))
        kind = of.get("FrameType", "MRImageFrameType", "CTImageFrameType", "PETFrameType", "XAXRFFrameCharacteristics")
        found.append(
            replace(
                base,
                frame=index,
                position=of.numbers("ImagePositionPatient", "PlanePosition", "PlanePositionVolume"),
                orientation=of.numbers("ImageOrientationPatient", "PlaneOrientation", "PlaneOrientationVolume"),
                spacing=of.numbers("PixelSpacing", measures) or base.spacing,
                thickness_mm=thickness or base.thickness_mm,
                slope=of.number("RescaleSlope", values, default=base.slope),
                intercept=of.number("RescaleIntercept", values, default=base.intercept),
                image_type=base.image_type if kind is None else tuple(str(part) for part in np.atleast_1d(kind)),
                acquisition=of.whole("FrameAcquisitionNumber", "FrameContent"),
                temporal_position=of.whole("TemporalPositionIndex", "FrameContent", "TemporalPosition"),
                echo_time_ms=of.optional("EffectiveEchoTime", "MREcho") or of.optional("EchoTime"),
                b_value=of.optional("DiffusionBValue", "MRDiffusion"),
                sop_uid="",
                instance_number=index + 1,
            )
        )
    return found


def _grid(base: Plane, elements: Elements, frames: int) -> list[Plane]:
    """Planes of a dose grid: offsets along the normal, or z coordinates where the first one is the position's own."""
    offsets = elements.numbers(_GRID)
    if offsets is None or len(offsets) != frames or base.position is None or base.orientation is None:
        raise ValueError("a grid of frames without position, orientation, or an offset for each frame")
    base.check()
    row, column = np.array(base.orientation[:3]), np.array(base.orientation[3:])
    normal, start = np.cross(row, column), np.array(base.position)
    if offsets[0] == 0:
        places = start + np.outer(offsets, normal)
    elif abs(normal[2]) > 0.999 and abs(offsets[0] - start[2]) < 1e-3:
        places = np.array([[start[0], start[1], z] for z in offsets])
    else:
        raise ValueError("a grid of frames whose first offset is neither zero nor the first frame's position")
    return [replace(base, frame=n, position=tuple(map(float, place)), sop_uid="") for n, place in enumerate(places)]


def read_planes(elements: Elements, form: PixelFormat, header: Callable[[], Any]) -> list[Plane]:
    """All planes of one file in the order of its frames.

    header: the file's Dataset, asked for only where there are functional groups.
    Raises SeriesError if a file of several frames states no position for them, or is a segmentation; ValueError if an
    attribute is no number, has the wrong number of values, or makes no sense.
    """
    if elements.text(0x00080016).startswith(_SEGMENTATIONS):
        raise SeriesError("A segmentation is no image.", fix="Give it as a label.")
    base = _single(elements, form)
    if _PER_FRAME in elements:
        planes = _enhanced(base, header(), form.frames)
    elif form.frames == 1:
        planes = [base]
    elif _GRID in elements:
        planes = _grid(base, elements, form.frames)
    else:
        raise SeriesError(
            "A multi-frame image states no position for its frames.",
            fix="Leave loops and captures out, or export each frame or the volume as an image of its own.",
        )
    for plane in planes:
        plane.check()
    return planes


def pet_facts(elements: Elements) -> PetFacts:
    """What a single-frame PET header says of dose, decay and units."""
    inside: dict[int, list[str]] = {}
    for element in elements.inside(0x00540016):
        if element.depth == 1:
            inside.setdefault(element.tag, []).append(elements.value(element).decode("ascii", "replace").strip(" \0"))
    if any(len(values) > 1 for values in inside.values()):
        raise SeriesError("A PET series has several radiopharmaceuticals.")

    def of(tag: int) -> str:
        return inside.get(tag, [""])[0]

    def number(tag: int) -> float | None:
        try:
            return float(of(tag))
        except ValueError:
            return None

    philips = elements.text(0x70530010).startswith("Philips PET")
    return PetFacts(
        units=elements.text(0x00541001),
        suv_type=elements.text(0x00541006),
        decay_correction=elements.text(0x00541102),
        corrected=elements.texts(0x00280051),
        weight_kg=_optional(elements, 0x00101030),
        dose_bq=number(0x00181074),
        half_life_s=number(0x00181075),
        injected=of(0x00181078) or of(0x00181072),
        series_date=elements.text(0x00080021),
        series_time=elements.text(0x00080031),
        acquisition_date=elements.text(0x00080022),
        acquisition_time=elements.text(0x00080032),
        frame_reference_ms=_optional(elements, 0x00541300),
        duration_ms=_optional(elements, 0x00181242),
        philips_suv=_optional(elements, 0x70531000) if philips else None,
        philips_activity=_optional(elements, 0x70531009) if philips else None,
    )
