"""A bundle's network as one of this software's: the same class of MONAI with the same arguments, or none."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from eucaim_fl.config import ModelConfig, TaskConfig
from eucaim_fl.errors import ModelRefusedError, RecipeError

__all__ = ["TARGETS", "Translated", "translate"]

_NO_EFFECT = {
    "dropout", "dropout_prob", "dropout_rate", "drop_rate", "attn_drop_rate", "dropout_path_rate", "pretrained",
    "progress", "use_checkpoint", "save_attn",
}  # fmt: skip
"""Arguments that matter in training only, or to where weights come from."""
_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "instance": {"eps": 1e-5, "affine": False, "track_running_stats": False},
    "batch": {"eps": 1e-5, "affine": True, "track_running_stats": True},
    "group": {"eps": 1e-5, "affine": True},
    "leakyrelu": {"negative_slope": 0.01},
    "elu": {"alpha": 1.0},
    "prelu": {"num_parameters": 1},
}
_IRRELEVANT = {"inplace", "momentum", "init"}


@dataclass(frozen=True)
class Translated:
    """A network of this software, its input channels, and whether the bundle's own one has no scale and shift after
    instance normalisation: then ours gets 1 and 0, which is the same."""

    model: ModelConfig
    in_channels: int
    plain_instance: bool


def translate(definition: Any, task: TaskConfig, image_size: tuple[int, ...] | None) -> Translated:
    """This software's name and arguments for a bundle's `network_def`, as plain values.

    Our registry is asked what it would call for them; class and arguments of that call, defaults filled in, must be the
    bundle's, apart from what matters in training only.
    Raises ModelRefusedError for a class that is not in `TARGETS`, for arguments that our registry can't say or would
    not pass on as they are, and if ends or axes don't fit the task.
    """
    from monai.networks import nets

    from eucaim_fl.models.arguments import check_model
    from eucaim_fl.models.assembly import Ends, monai_call

    target = definition.get("_target_") if isinstance(definition, Mapping) else None
    name = target.rpartition(".")[2] if isinstance(target, str) else ""
    if name not in TARGETS or target not in (name, f"monai.networks.nets.{name}"):
        raise ModelRefusedError(
            "The bundle's network_def names no network that is known here.",
            fix=f"Known: {', '.join(sorted(TARGETS))}. Bring others as ONNX.",
        )
    given = {key: _plain(value) for key, value in definition.items() if key != "_target_"}
    try:
        full = _bound(getattr(nets, name), (), given)
        ours, arguments = TARGETS[name](full)
        model = ModelConfig(name=ours, args={k: v for k, v in arguments.items() if v is not None})
        checked = check_model(model, task)
    except (KeyError, TypeError, ValueError, AttributeError, RecipeError) as problem:
        raise ModelRefusedError(
            f"The bundle's arguments of {name} are not among those that are known here.",
            fix="Bring the model as ONNX.",
            local_detail=str(problem)[:500],
        ) from None
    channels = full.get("in_channels", 1)
    size = image_size or (None if not isinstance(full.get("img_size"), tuple) else full["img_size"])
    called, positional, named = monai_call(checked, Ends(task.spatial_dims, channels, task.outputs(), size))
    wanted = _bound(getattr(nets, called), positional, named)
    if "pretrained" in full:  # a constructor that hands on what it does not name
        full |= {key: value for key, value in given.items() if key not in full}
    different = [key for key in sorted({*full, *wanted} - _NO_EFFECT) if not _same(key, full.get(key), wanted.get(key))]
    plain_instance = False
    for key in [key for key in different if key in ("norm", "norm_name")]:
        a, b = _named(full[key]), _named(wanted[key])
        if a[0] == b[0] == "instance" and {**a[1], "affine": True} == b[1]:
            different.remove(key)
            plain_instance = True
    if called != name or different:
        raise ModelRefusedError(
            f"The bundle's {name} differs from the one that would be built here: {', '.join(different) or called}.",
            fix="Correct the task (labels, spatial_dims) if these are meant; else bring the model as ONNX.",
        )
    return Translated(model, int(channels), plain_instance)


def _bound(kind: Any, positional: tuple[Any, ...], named: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments of a call by name, defaults filled in. Raises TypeError for unknown or missing ones."""
    bound = inspect.signature(kind).bind(*positional, **named)
    bound.apply_defaults()
    found = dict(bound.arguments)
    for parameter in inspect.signature(kind).parameters.values():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            found |= found.pop(parameter.name)
    return {key: _plain(value) for key, value in found.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(map(_plain, value))
    return getattr(value, "value", value)  # MONAI's enumerations are text


def _named(value: Any) -> tuple[str, dict[str, Any]]:
    """A layer's name in small letters, and its options without those that change nothing."""
    name, options = (value, {}) if isinstance(value, str) else value
    name = str(name).lower()
    full = {**_OPTIONS.get(name, {}), **options}
    return name, {key: option for key, option in full.items() if key not in _IRRELEVANT}


def _same(key: str, theirs: Any, ours: Any) -> bool:
    if key in ("act", "act_name", "norm", "norm_name"):
        if theirs is None or ours is None or "" in (theirs, ours):
            return bool(theirs == ours) or (key == "norm" and theirs is None and _named(ours) == _named("batch"))
        return _named(theirs) == _named(ours)
    if key in ("kernel_size", "up_kernel_size"):
        return bool(_one(theirs) == _one(ours))
    return bool(theirs == ours)


def _one(value: Any) -> Any:
    return value[0] if isinstance(value, tuple) and len(set(value)) == 1 else value


def _listed(value: Any) -> Any:
    return list(map(_listed, value)) if isinstance(value, tuple) else value


def _levels(a: Mapping[str, Any]) -> dict[str, Any]:
    return {"channels": _listed(a["channels"]), "strides": _listed(a["strides"]), "kernel_size": _one(a["kernel_size"])}


def _unet(a: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    kinds = {"act": _named(a["act"])[0], "norm": _named(a["norm"])[0]}
    return "unet", {**_levels(a), **kinds, "num_res_units": a["num_res_units"]}


def _attention_unet(a: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    return "attention_unet", _levels(a)


def _dynunet(a: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    kinds = {"act": _named(a["act_name"])[0], "norm": _named(a["norm_name"])[0], "res_block": a["res_block"]}
    lists = {"filters": a["filters"], "kernel_size": a["kernel_size"], "strides": a["strides"]}
    return "dynunet", {**{key: _listed(value) for key, value in lists.items()}, **kinds}


def _segresnet(a: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    blocks = {key: _listed(a[key]) for key in ("blocks_down", "blocks_up")}
    return "segresnet", {
        "init_filters": a["init_filters"], **blocks, "act": _named(a["act"])[0], "upsample": a["upsample_mode"]
    }  # fmt: skip


def _swin_unetr(a: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    names = ("depths", "num_heads", "feature_size", "use_v2")
    return "swin_unetr", {**{key: _listed(a[key]) for key in names}, "window_size": _one(a["window_size"])}


def _unetr(a: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    return "unetr", {key: a[key] for key in ("feature_size", "hidden_size", "mlp_dim", "num_heads")}


def _densenet121(a: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    norm = _named(a.get("norm", "batch"))[0]
    return "densenet121", {"init_features": a["init_features"], "growth_rate": a["growth_rate"], "norm": norm}


TARGETS: Mapping[str, Callable[[Mapping[str, Any]], tuple[str, dict[str, Any]]]] = {
    "UNet": _unet,
    "AttentionUnet": _attention_unet,
    "DynUNet": _dynunet,
    "SegResNet": _segresnet,
    "SwinUNETR": _swin_unetr,
    "UNETR": _unetr,
    "DenseNet121": _densenet121,
}
"""MONAI's networks that a bundle may name, each with how its arguments are said here."""
