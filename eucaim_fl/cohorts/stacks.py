"""Which images of a series form one volume, by what their headers say. Never by names, or by the order of files."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

__all__ = ["SAME_PLACE_MM", "Placed", "split_stacks"]

SAME_PLACE_MM = 0.01
"""Two slices nearer to each other than this along their normal lie at the same place."""
_SAME_COSINE = 1e-3
_MOSAICS = frozenset({"MOSAIC", "VFRAME"})  # all slices of a volume in one plane, by Siemens and United Imaging
_Codes = npt.NDArray[np.int64]


class Placed(Protocol):
    """What is asked of an image: a file of one frame, or one frame of a file. Names and units as in `FileFacts`."""

    @property
    def position(self) -> tuple[float, ...] | None:
        """ImagePositionPatient, LPS+ mm."""

    @property
    def orientation(self) -> tuple[float, ...] | None:
        """ImageOrientationPatient, six cosines."""

    @property
    def rows(self) -> int | None:
        """Rows of the stored plane."""

    @property
    def columns(self) -> int | None:
        """Columns of the stored plane."""

    @property
    def spacing(self) -> tuple[float, ...] | None:
        """Between rows, between columns, mm."""

    @property
    def image_type(self) -> tuple[str, ...]:
        """ImageType, () where it is not stated."""

    @property
    def acquisition(self) -> int | None:
        """AcquisitionNumber."""

    @property
    def temporal_position(self) -> int | None:
        """TemporalPositionIdentifier or TemporalPositionIndex."""

    @property
    def echo_time_ms(self) -> float | None:
        """EchoTime or EffectiveEchoTime."""

    @property
    def b_value(self) -> float | None:
        """DiffusionBValue, s/mm²."""

    @property
    def sop_uid(self) -> str:
        """SOPInstanceUID; empty where images of one file are told apart."""

    @property
    def instance_number(self) -> int | None:
        """InstanceNumber, or the number of the frame."""


def _rounded(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else float(f"{value:.6g}")


_DISCRIMINATORS: dict[str, Callable[[Placed], Any]] = {
    "type": lambda image: tuple(image.image_type),
    "b": lambda image: _rounded(image.b_value),
    "echo": lambda image: _rounded(image.echo_time_ms),
    "time": lambda image: image.temporal_position,
    "acquisition": lambda image: image.acquisition,
}


def _finite(values: tuple[float, ...] | None, count: int) -> bool:
    return values is not None and len(values) == count and bool(np.isfinite(values).all())


def _clusters(values: npt.NDArray[np.float64], gap: float, codes: _Codes) -> _Codes:
    """Codes split further wherever sorted values of one code leave a gap; numbered in the order (code, value)."""
    order = np.lexsort((values, codes))
    starts = (np.diff(codes[order]) > 0) | (np.diff(values[order]) > gap)
    result = np.empty(len(values), dtype=np.int64)
    result[order] = np.concatenate([[0], np.cumsum(starts)])
    return result


def _planes(images: Sequence[Placed]) -> list[list[int]]:
    """Groups of one size, orientation and pixel spacing, in an order that doesn't depend on that of the images.

    Images that state no place join the first group of their size, so that nobody takes the rest for a whole volume.
    """
    placed = [n for n, i in enumerate(images) if _finite(i.position, 3) and _finite(i.orientation, 6)]
    groups: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    if placed:
        codes = np.zeros(len(placed), dtype=np.int64)
        for column in np.array([images[n].orientation for n in placed], dtype=np.float64).T:
            codes = _clusters(column, _SAME_COSINE, codes)
        stated = [images[n].spacing for n in placed if _finite(images[n].spacing, 2)]
        usual = min((s for s in stated if s is not None), default=(0.0, 0.0))  # the reader refuses who states none
        spacings = [images[n].spacing if _finite(images[n].spacing, 2) else usual for n in placed]
        for column in np.array(spacings, dtype=np.float64).T:
            codes = _clusters(np.log(np.maximum(column, 1e-9)), _SAME_COSINE, codes)
        for n, code in zip(placed, codes.tolist(), strict=True):
            groups[images[n].rows or 0, images[n].columns or 0, code].append(n)
    known = set(placed)
    first_of_size = {key[:2]: key for key in sorted(groups, reverse=True)}
    for n, image in enumerate(images):
        if n not in known:
            size = (image.rows or 0, image.columns or 0)
            groups[first_of_size.get(size, (*size, -1))].append(n)
    return [sorted(groups[key]) for key in sorted(groups)]


def _places(images: Sequence[Placed]) -> _Codes:
    """Number of each image's place along the normal; all that state none, or hold many slices, lie at one place."""
    placed = np.array(
        [_finite(i.position, 3) and _finite(i.orientation, 6) and _MOSAICS.isdisjoint(i.image_type) for i in images]
    )
    codes = np.zeros(len(images), dtype=np.int64)
    if placed.any():
        some = [image for image, is_placed in zip(images, placed, strict=True) if is_placed]
        across = np.asarray(some[0].orientation, dtype=np.float64)
        normal = np.cross(across[:3], across[3:])
        depth = np.array([i.position for i in some], dtype=np.float64) @ normal
        codes[placed] = 1 + _clusters(depth, SAME_PLACE_MM, np.zeros(len(some), dtype=np.int64))
    return codes


def _coded(values: Sequence[Any]) -> tuple[_Codes, list[Any]]:
    """Each value's number in the sorted list of different values; None comes first."""
    known = sorted(set(values), key=lambda v: (v is not None, v))
    number = {value: n for n, value in enumerate(known)}
    return np.array([number[value] for value in values], dtype=np.int64), known


def _joined(codes: Sequence[_Codes], count: int) -> _Codes:
    """One code for each combination, numbered in sorted order."""
    result = np.zeros(count, dtype=np.int64)
    for code in codes:
        result = np.unique(result * (int(code.max()) + 1) + code, return_inverse=True)[1].reshape(-1)
    return result


def _members(group: _Codes) -> list[_Codes]:
    """Indices of each group's members, ascending, in the order of the groups' numbers."""
    order = np.argsort(group, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(group[order])) + 1)


def _repeats(group: _Codes, places: _Codes) -> bool:
    return len(np.unique(group * (int(places.max()) + 1) + places)) < len(places)


def _choose(codes: dict[str, _Codes], places: _Codes) -> tuple[str, ...] | None:
    """The smallest set of discriminators without repeated places; of equal ones that with the fewest groups."""
    count, most = len(places), int(np.bincount(places).max())
    for size in range(1, len(codes) + 1):
        found = []
        for names in combinations(codes, size):
            group = _joined([codes[name] for name in names], count)
            groups = int(group.max()) + 1
            mostly_single = groups > most and count < 2 * groups  # a number that merely counts the slices
            if not mostly_single and not _repeats(group, places):
                found.append((groups, names))
        if found:
            return min(found, key=lambda pair: pair[0])[1]
    return None


def _passes(images: Sequence[Placed], places: _Codes) -> _Codes | None:
    """Which of several complete passes over the same places each image belongs to, by instance number; else None."""
    numbers = [image.instance_number for image in images]
    if None in numbers or len(set(numbers)) < len(numbers):
        return None
    each = len(np.unique(places))
    if len(images) % each:
        return None
    order = np.argsort(np.array(numbers, dtype=np.float64))
    blocks = np.sort(places[order].reshape(-1, each), axis=1)
    if each > 1 and (blocks[:, :-1] == blocks[:, 1:]).any():
        return None
    result = np.empty(len(images), dtype=np.int64)
    result[order] = np.repeat(np.arange(len(blocks)), each)
    return result


def _by_passes(
    images: Sequence[Placed], codes: dict[str, _Codes], places: _Codes
) -> tuple[tuple[str, ...], _Codes] | None:
    """The discriminators, and the number of the pass in each of their groups, with the fewest passes; else None."""
    best: tuple[int, tuple[str, ...], _Codes] | None = None
    for size in range(len(codes) + 1):
        for names in combinations(codes, size):
            group = _joined([codes[name] for name in names], len(images))
            if int(group.max()) > 0 and len(images) < 2 * (int(group.max()) + 1):
                continue
            result = np.zeros(len(images), dtype=np.int64)
            for members in _members(group):
                found = _passes([images[n] for n in members], places[members])
                if found is None:
                    break
                result[members] = found
            else:
                if best is None or int(result.max()) < best[0]:
                    best = int(result.max()), names, result
    return None if best is None else best[1:]


def _plain(text: str) -> str:
    """A token of an image type with nothing in it but what such tokens are made of."""
    return "".join(c for c in text.upper() if c.isascii() and (c.isalnum() or c in "_-."))[:16]


def _labels(name: str, values: Sequence[Any]) -> list[str]:
    """Names of one discriminator's values, all different."""
    if name == "type":
        common = set.intersection(*(set(tokens) for tokens in values)) if values else set()
        texts = ["/".join(_plain(t) for t in tokens if t not in common)[:48] or "other" for tokens in values]
    else:
        unit = "ms" if name == "echo" else ""
        texts = ["none" if v is None else f"{v:.6g}{unit}" for v in values]
    seen: dict[str, int] = defaultdict(int)
    labels = []
    for text in texts:
        seen[text] += 1
        labels.append(f"{name}={text}" + (f"~{seen[text]}" if seen[text] > 1 else ""))
    return labels


def _divided(images: Sequence[Placed]) -> Iterator[tuple[str, list[int]]]:
    """Stacks among images of one plane, as names and indices."""
    everything = list(range(len(images)))
    places = _places(images)
    if len(np.unique(places)) == len(images):
        yield "", everything
        return
    coded = {name: _coded([of(image) for image in images]) for name, of in _DISCRIMINATORS.items()}
    varying = {name: codes for name, (codes, known) in coded.items() if len(known) > 1}
    names = _choose(varying, places)
    passes: _Codes | None = None
    if names is None:
        names, passes = _by_passes(images, varying, places) or ((), None)
    keys = [varying[name] for name in names]
    labels = {name: _labels(name, coded[name][1]) for name in names}
    group = _joined(keys if passes is None else [*keys, passes], len(images))
    outer = _joined(keys, len(images))
    several = set() if passes is None else set(outer[passes > 0].tolist())
    for members in _members(group):
        first = int(members[0])
        parts = [labels[name][int(varying[name][first])] for name in names]
        if passes is not None and int(outer[first]) in several:
            parts.append(f"pass={int(passes[first]) + 1}")
        yield ",".join(parts), members.tolist()


def _without_copies(images: Sequence[Placed]) -> tuple[list[int], dict[int, list[int]]]:
    """Indices of the different images, and of each one's copies: same SOP instance, place and kind."""
    kept: list[int] = []
    first: dict[tuple[Any, ...], int] = {}
    copies: dict[int, list[int]] = defaultdict(list)
    for n, image in enumerate(images):
        if not image.sop_uid:
            kept.append(n)
            continue
        kind = (of(image) for of in _DISCRIMINATORS.values())
        key = (image.sop_uid, image.position, image.orientation, image.rows, image.columns, image.spacing, *kind)
        original = first.setdefault(key, n)
        if original == n:
            kept.append(n)
        else:
            copies[original].append(n)
    return kept, copies


def split_stacks(images: Sequence[Placed]) -> list[tuple[str, tuple[int, ...]]]:
    """The stacks in one series: names and indices into `images` (ascending); together they hold every image once.

    A name is empty if the series is one stack, else it says what tells the stack from its sisters: `plane=2` (another
    size, orientation or pixel spacing), `type=ADC`, `b=800`, `echo=2.5ms`, `time=3`, `acquisition=2`, `pass=1`, joined
    by commas. The result doesn't depend on the order of the images. Cost: n log n.
    Images of different planes never share a stack. Within a plane a stack is divided only where places repeat, by the
    smallest set of image type, b-value, echo time, temporal position and acquisition number whose groups repeat none;
    where these don't do, complete passes over the same places are told apart by instance number. What nothing tells
    apart stays one stack, which no reader can take for a volume. Copies of a SOP instance stay with the first one.

    >>> from eucaim_fl.cohorts.facts import FileFacts
    >>> flat = dict(size=1, mtime_ns=0, ctime_ns=0, inode=0, rows=4, columns=4, orientation=(1, 0, 0, 0, 1, 0))
    >>> images = [FileFacts(path=f"{z}{b}", position=(0, 0, z), b_value=b, **flat) for z in (0, 3) for b in (50, 800)]
    >>> split_stacks(images)
    [('b=50', (0, 2)), ('b=800', (1, 3))]
    """
    if not images:
        return []
    kept, copies = _without_copies(images)
    distinct = [images[n] for n in kept]
    planes = _planes(distinct)
    result = []
    for number, plane in enumerate(planes, start=1):
        for name, members in _divided([distinct[n] for n in plane]):
            own = [kept[plane[m]] for m in members]
            everyone = sorted([*own, *(copy for n in own for copy in copies.get(n, ()))])
            parts = [f"plane={number}"] if len(planes) > 1 else []
            result.append((",".join([*parts, name] if name else parts), tuple(everyone)))
    return result
