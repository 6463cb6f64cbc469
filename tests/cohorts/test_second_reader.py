"""Every image series among the real files at hand, read by us and by SimpleITK (GDCM): the same voxels, the same place.

Where SimpleITK doesn't read a file, or is known to do something else, pydicom's pixels are the second opinion, and the
table says why. What we refuse is in a table too: nothing differs, and nothing is left out, without a reason.
"""

from __future__ import annotations

import os
import warnings
from collections import defaultdict
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813 - the name that everybody knows it by
from pydicom.pixels import apply_color_lut, apply_modality_lut, pixel_array

from eucaim_fl.cohorts.dicom import read_series, stack_names
from eucaim_fl.cohorts.stacks import split_stacks
from eucaim_fl.errors import SeriesError, UnreadableFileError

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("EUCAIM_FL_SHARED_DATA") or ROOT.parent / "shared" / "data")
FOLDERS = ("dicom_conformance", "prostatex")
BAG = "pydicom/src/pydicom/data/test_files"  # one folder with many encodings of a few images: each file is a series
GREY = np.array([0.299, 0.587, 0.114], dtype=np.float32)
pytestmark = [
    pytest.mark.realdata,
    pytest.mark.skipif(not (DATA / FOLDERS[0]).is_dir(), reason=f"no real data at {DATA}; set EUCAIM_FL_SHARED_DATA"),
]

SEVERAL_FRAMES = "states no position for its frames"
REFUSED = {
    "CT_DICOM/7106": "not evenly spaced",  # four slices out of a long series
    "77654033/CT2/17106": "not evenly spaced",  # the same four
    "ProstateX-0000-missing-slice/*": "not evenly spaced",
    "DTI_134434/*": "mosaic",  # United Imaging's, whose private header nobody here reads
    "nibabel/*/0.dcm": "mosaic",  # cut to 256 x 256, which 7 x 7 tiles don't fit
    "label.seg": "segmentation",
    "sparse-labelmap-ppv5.dcm": "segmentation",
    "liver.dcm": "segmentation",
    "liver_1frame.dcm": "segmentation",
    "liver_expb_1frame.dcm": "segmentation",
    "partial_overlaps.dcm": "segmentation",
    "sparse-labelmap-noppv.dcm": "segmentation",
    "sr-example/seg.dcm": "segmentation",
    "csa_slice_norm.dcm": "truncated",  # its pixels were cut off to make it small
    "JPEG2000-embedded-sequence-delimiter.dcm": "corrupt",  # a broken stream, made on purpose
    "MR_truncated.dcm": "truncated",
    "badVR.dcm": "corrupt",  # "1A" frames
    "_2frame.dcm": SEVERAL_FRAMES,
    "examples_ybr_color.dcm": SEVERAL_FRAMES,
}
"""Series, by the end of its first file's name → what our refusal says."""
SIMPLEITK = {
    "20180918Si/*": "it leaves mosaics as they are; test_mosaic has the scanner's own positions",
    "SC_rgb_rle_16bit.dcm": "it mixes up the bytes of RLE colours of 16 bits (pure red is not red)",
    "SC_rgb_rle_32bit.dcm": "it mixes up the bytes of RLE colours of 32 bits (likewise)",
    "SC_rgb_jpeg.dcm": "it takes ten seconds over a header that is written in another encoding than announced",
    "examples_palette.dcm": "it looks 16-bit palettes up with their upper 8 bits",
    "rtdose*.dcm": "it leaves out DoseGridScaling, swaps bytes of big endian, and fails without a grid",
}
"""Series, likewise → what SimpleITK does that we don't want."""
PYDICOM = {
    "20180918Si/*": "likewise",
    "JPEG-lossy.dcm": "it hands JPEG of 12 bits to no decoder",
    "JPGExtended.dcm": "likewise",
}
"""Series, likewise → what pydicom doesn't do."""


def is_dicom(path: Path) -> bool:
    """By its first bytes: a header reads slowly, and which tests there are is asked in every process of a run."""
    with path.open("rb") as stream:
        start = stream.read(132)
    return start[128:] == b"DICM" or start[:2] == b"\x08\x00"


@cache
def places() -> tuple[str, ...]:
    """Folders with images, relative; and each file of the bag."""
    if not (DATA / FOLDERS[0]).is_dir():
        return ()
    files = [p for folder in FOLDERS for p in sorted((DATA / folder).rglob("*")) if p.is_file() and is_dicom(p)]
    found = (path if path.parent.as_posix().endswith(BAG) else path.parent for path in files)
    return tuple(dict.fromkeys(place.relative_to(DATA).as_posix() for place in found))


@cache
def series_at(place: str) -> dict[str, list[Path]]:
    """Name (first file, relative) → files of one series that have rows, as pydicom sees them."""
    groups: dict[str, list[Path]] = defaultdict(list)
    wanted = ["Rows", "SeriesInstanceUID", "PerFrameFunctionalGroupsSequence"]
    at = DATA / place
    for path in [at] if at.is_file() else sorted(p for p in at.iterdir() if p.is_file() and is_dicom(p)):
        header = pydicom.dcmread(path, force=True, stop_before_pixels=True, specific_tags=wanted)
        if "Rows" in header:
            alone = at.is_file() or "PerFrameFunctionalGroupsSequence" in header
            groups[path.name if alone else str(header.get("SeriesInstanceUID", ""))].append(path)
    return {files[0].relative_to(DATA).as_posix(): files for files in groups.values()}


@cache
def names() -> tuple[str, ...]:
    """Every series."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return tuple(name for place in places() for name in series_at(place))


def listed(table: dict[str, str], name: str) -> str:
    """What a table has for a series, or an empty text."""
    return next((reason for pattern, reason in table.items() if fnmatch(name, f"*{pattern}")), "")


def placed(header: pydicom.Dataset) -> SimpleNamespace:
    """The facts of one single-frame image that tell stacks apart, as pydicom reads them."""

    def numbers(name: str) -> tuple[float, ...] | None:
        return tuple(map(float, header[name].value)) if header.get(name) else None

    def integer(name: str) -> int | None:
        return None if header.get(name) in (None, "") else int(header[name].value)

    b_value = header.get("DiffusionBValue")
    for private in ((0x0019, 0x100C), (0x0065, 0x1009)):
        if b_value is None and private in header:
            b_value = header[private].value
    return SimpleNamespace(
        position=numbers("ImagePositionPatient"),
        orientation=numbers("ImageOrientationPatient"),
        rows=header.Rows,
        columns=header.Columns,
        spacing=numbers("PixelSpacing"),
        image_type=tuple(header.get("ImageType") or ()),
        acquisition=integer("AcquisitionNumber"),
        temporal_position=integer("TemporalPositionIdentifier"),
        echo_time_ms=header.get("EchoTime"),
        b_value=None if b_value is None else float(b_value),
        sop_uid=str(header.SOPInstanceUID),
        instance_number=integer("InstanceNumber"),
    )


def along(header: pydicom.Dataset) -> float:
    """Where a slice lies along its normal."""
    if "ImagePositionPatient" not in header:
        return 0.0
    directions = np.array(header.ImageOrientationPatient, dtype=float)
    return float(np.cross(directions[:3], directions[3:]) @ np.array(header.ImagePositionPatient, dtype=float))


def by_pydicom(header: pydicom.Dataset) -> np.ndarray:
    """Values of all frames in the modality's unit, shape (frames, rows, columns), as pydicom has them."""
    pixels = pixel_array(header)
    if header.PhotometricInterpretation == "PALETTE COLOR":
        pixels = apply_color_lut(pixels, header)[..., :3]
    if pixels.shape[-1:] == (3,):
        return (pixels.astype(np.float32) @ GREY)[None]
    values = apply_modality_lut(pixels, header).astype(np.float64)
    if header.PhotometricInterpretation == "MONOCHROME1":
        values = apply_modality_lut(np.array([(1 << header.BitsStored) - 1, 0]), header).sum() - values
    if header.get("Modality") == "RTDOSE":
        values = values * float(header.DoseGridScaling)
    return values.reshape(-1, header.Rows, header.Columns)


def by_simpleitk(files: list[Path]) -> tuple[np.ndarray, np.ndarray]:
    """Values, shape (I, J, K), and affine in RAS+."""
    if len(files) == 1:
        image = sitk.ReadImage(str(files[0]))
    else:
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames([str(path) for path in files])
        image = reader.Execute()
    array = sitk.GetArrayFromImage(image)
    if image.GetNumberOfComponentsPerPixel() == 3:
        array = array.astype(np.float32) @ GREY
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    affine[:2] *= -1
    return array.transpose(2, 1, 0), affine


def assert_same_values(ours: np.ndarray, theirs: np.ndarray, who: str) -> None:
    assert ours.shape == theirs.shape, who
    largest = max(1.0, float(np.abs(theirs).max()))
    assert np.abs(ours - theirs).max() <= 1e-6 * largest, who  # float32 has 24 bits


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("place", places())
def test_two_readers_see_the_same_voxels_at_the_same_place(place: str, subtests: pytest.Subtests) -> None:
    for name, files in series_at(place).items():
        with subtests.test(name):
            compare(name, files)


def compare(name: str, files: list[Path]) -> None:
    """One series by all readers."""
    expected = listed(REFUSED, name)
    if expected:
        with pytest.raises((SeriesError, UnreadableFileError), match=expected):
            [read_series(files, stack=stack) for stack in stack_names(files)]
        return
    headers = [pydicom.dcmread(path, force=True) for path in files]
    stacks = {"": list(range(len(files)))}
    if len(files) > 1:
        stacks = {stack: list(members) for stack, members in split_stacks([placed(h) for h in headers])}
        assert stack_names(files) == tuple(stacks)
    for stack, members in stacks.items():
        ours = read_series(files, stack=stack)
        members.sort(key=lambda n: along(headers[n]))
        if not listed(PYDICOM, name):
            values = np.concatenate([by_pydicom(headers[n]) for n in members])
            assert_same_values(ours.array, values.transpose(2, 1, 0), "pydicom")
            for k, n in enumerate(members):
                if "ImagePositionPatient" in headers[n]:
                    x, y, z = headers[n].ImagePositionPatient
                    assert np.allclose((ours.affine @ [0, 0, k, 1])[:3], [-x, -y, z], atol=0.01)
        if not listed(SIMPLEITK, name):
            values, affine = by_simpleitk([files[n] for n in members])
            assert_same_values(ours.array, values, "SimpleITK")
            axes = [0, 1, 2, 3] if ours.shape[2] > 1 else [0, 1, 3]  # of one slice it may not know the thickness
            assert np.abs(ours.affine - affine)[:, axes].max() < 1e-3


class TestTables:
    def test_every_row_is_still_needed(self) -> None:
        for table in (REFUSED, SIMPLEITK, PYDICOM):
            for pattern in table:
                assert any(fnmatch(name, f"*{pattern}") for name in names()), pattern

    def test_most_series_are_read(self) -> None:
        refused = sum(bool(listed(REFUSED, name)) for name in names())
        assert len(names()) > 100
        assert refused < 30
