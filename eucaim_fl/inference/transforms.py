"""What a bundle does to images before its network, in this software's words: orientation, spacing, size, intensity."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from eucaim_fl.config import DataConfig, parse
from eucaim_fl.errors import ConfigError, ModelRefusedError

__all__ = ["data_of"]

_ADVICE = "Give `data` yourself, if you know that it amounts to the same."
_ORDER = ("Orientation", "Spacing", "ScaleIntensityRange", "ResizeWithPadOrCrop")
_SILENT = {  # change no value and no place
    "LoadImage": {"reader", "image_only", "ensure_channel_first", "dtype", "simple_keys"},
    "EnsureChannelFirst": {"channel_dim", "strict_check"},
    "EnsureType": {"dtype", "device", "data_type", "track_meta"},
    "ToTensor": set(),
}


def data_of(preprocessing: Any, modality: str | None, channels: int) -> DataConfig:
    """The data part of a contract, from a bundle's `preprocessing` as plain values (see `bundle_config`).

    Read are Orientationd, Spacingd (bilinear), ScaleIntensityRanged (to 0…1, clipped) and ResizeWithPadOrCropd, in this
    order, beside what only loads. Any other step, or one of these with other arguments, is refused: left out in
    silence, it would give the model images it was not made for. MONAI's NormalizeIntensityd and percentiles count other
    voxels than `zscore` and `percentile` here do, so they are no exception.
    Raises ModelRefusedError for what can't be said in a DataConfig; ConfigError for values that it can't have.
    """
    if channels != 1:
        raise _refused(f"the bundle takes {channels} channels; which image is which is not said in it")
    steps = preprocessing.get("transforms") if isinstance(preprocessing, Mapping) else None
    if (
        not isinstance(steps, list)
        or _name(preprocessing) != "Compose"
        or set(preprocessing) != {"_target_", "transforms"}
    ):
        raise _refused("preprocessing is no Compose of a list of transforms")
    found: dict[str, Any] = {}
    last = -1
    for number, step in enumerate(steps):
        place = f"preprocessing.transforms.{number}"
        if not isinstance(step, Mapping):
            raise _refused(f"{place} is no transform")
        name = _name(step).removesuffix("d")
        given = {key: value for key, value in step.items() if key not in ("_target_", "keys", "allow_missing_keys")}
        if name in _SILENT:
            if set(given) - _SILENT[name] or str(given.get("dtype", "float32")) not in (
                "float32",
                "np.float32",
                "torch.float32",
            ):
                raise _refused(f"{place} ({name}) has arguments that are not known")
            continue
        if name not in _ORDER or _ORDER.index(name) <= last:
            raise _refused(f"{place} ({name or 'no name'}) is not known, or not at that place")
        last = _ORDER.index(name)
        try:
            found |= _READ[name](given)
        except (KeyError, TypeError, ValueError):
            raise _refused(f"{place} ({name}) has arguments that are not known, or of another meaning") from None
    for needed, transform in (("orientation", "Orientationd"), ("intensity", "ScaleIntensityRanged")):
        if needed not in found:
            raise _refused(f"preprocessing has no {transform}, so {needed} is not said")
    return parse(DataConfig, {"modality": modality, **found}, "The bundle's preprocessing", ConfigError)


def _name(step: Mapping[str, Any]) -> str:
    target = step.get("_target_")
    return target.rpartition(".")[2] if isinstance(target, str) and len(target) < 100 else ""


def _refused(what: str) -> ModelRefusedError:
    return ModelRefusedError(f"The bundle's images can't be prepared here: {what}.", fix=_ADVICE)


def _only(given: Mapping[str, Any], allowed: Mapping[str, Any], *needed: str) -> None:
    """See that arguments are the needed ones, and others only with a value that changes nothing."""
    for key, value in given.items():
        plain = value[0] if isinstance(value, list) and len(value) == 1 else value
        if key not in needed and not (key in allowed and plain == allowed[key]):
            raise ValueError(key)


def _orientation(given: Mapping[str, Any]) -> dict[str, Any]:
    _only(given, {"as_closest_canonical": False}, "axcodes")
    return {"orientation": given["axcodes"]}


def _spacing(given: Mapping[str, Any]) -> dict[str, Any]:
    _only(given, {"mode": "bilinear", "diagonal": False, "padding_mode": "border"}, "pixdim")
    spacing = [float(mm) for mm in given["pixdim"]]
    if len(spacing) != 3:
        raise ValueError("pixdim")
    return {"spacing_mm": [mm if mm > 0 else None for mm in spacing]}


def _window(given: Mapping[str, Any]) -> dict[str, Any]:
    _only(given, {"b_min": 0, "b_max": 1, "clip": True}, "a_min", "a_max")
    if not {"b_min", "b_max", "clip"} <= set(given):
        raise ValueError("clip")
    return {"intensity": {"kind": "window", "low": float(given["a_min"]), "high": float(given["a_max"])}}


def _size(given: Mapping[str, Any]) -> dict[str, Any]:
    _only(given, {"mode": "constant", "method": "symmetric"}, "spatial_size")
    return {"size_voxels": [int(n) if n > 0 else None for n in given["spatial_size"]]}


_READ: Mapping[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "Orientation": _orientation,
    "Spacing": _spacing,
    "ScaleIntensityRange": _window,
    "ResizeWithPadOrCrop": _size,
}
