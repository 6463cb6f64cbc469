"""Frozen models as researchers have them, brought into a contract and a file that can travel: no code, no pickle.

A MONAI bundle becomes one of this software's networks with safetensors; so does the model of a run. ONNX stays what it
is, and so do programs, of which nothing is loaded. For the researcher's machine; a site takes only what comes out of
here.
"""

from __future__ import annotations

import hashlib
import io
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eucaim_fl.arrays import ArrayFile, Arrays, encode_arrays
from eucaim_fl.config import DataConfig, ModelConfig, TaskConfig, parse
from eucaim_fl.errors import ConfigError, JournalError, ModelRefusedError, PlanError
from eucaim_fl.inference.bundle_config import BundleConfig, read_mapping
from eucaim_fl.inference.bundle_files import BundleFiles, open_bundle
from eucaim_fl.inference.monai_networks import translate
from eucaim_fl.inference.onnx_file import read_onnx
from eucaim_fl.inference.transforms import data_of
from eucaim_fl.plan import read_plan
from eucaim_fl.validation_config import LARGEST_MODEL_FILE, ModelContract

__all__ = ["FrozenModel", "from_bundle", "from_onnx", "from_program", "from_run"]

_WEIGHTS = "models/model.pt"
_WRAPPERS = ("model", "state_dict", "net", "network")


@dataclass(frozen=True)
class FrozenModel:
    """A contract, and the bytes that it describes."""

    contract: ModelContract
    content: bytes


def _frozen(content: bytes, fields: Mapping[str, Any]) -> FrozenModel:
    described = {**fields, "sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}
    return FrozenModel(parse(ModelContract, described, "The model's contract", ConfigError), content)


def from_bundle(path: Path, task: TaskConfig, *, name: str = "", data: DataConfig | None = None) -> FrozenModel:
    """A MONAI bundle's network and weights. path: its folder, or a ZIP file.

    Read as data are network_def, inferer and preprocessing of configs/inference, and configs/metadata.json; nothing
    else of it. Nothing is executed: expressions in these parts are refused, and models/model.pt is read for plain
    tensors only. The last activation is the contract's (softmax; sigmoid for several labels).
    name: of the model in reports; empty makes one of the bundle's. data: how images are prepared, where the bundle's
    own steps can't be said here.
    Raises ModelRefusedError that says what can't be taken over, and what to do; ConfigError if metadata.json states
    something that a contract can't hold.
    """
    files = open_bundle(path)
    config = BundleConfig(files)
    patch = _window_of(config.part("inferer"), task)
    translated = translate(config.part("network_def"), task, patch)
    inputs = config.metadata.get("network_data_format", {})
    image = inputs.get("inputs", {}).get("image", {}) if isinstance(inputs, dict) else {}
    modality = image.get("modality") if isinstance(image, dict) else None
    taken = data or data_of(
        config.part("preprocessing"), modality if modality in ("CT", "MR", "PT") else None, translated.in_channels
    )
    if taken.number_of_channels() != translated.in_channels:
        raise ModelRefusedError(
            f"The bundle's network takes {translated.in_channels} channels, `data` has {taken.number_of_channels()}.",
            fix="Name each channel in data.channels.",
        )
    fields = {
        "name": name or _named_after(path),
        "format": "network",
        "network": translated.model.model_dump(mode="json"),
        "data": taken.model_dump(mode="json"),
        "patch_voxels": patch,
        "intended_use": str(config.metadata.get("intended_use") or "not stated by the bundle")[:4000],
        "trained_on": str(config.metadata.get("data_source") or "")[:4000],
    }
    arrays = _fitted(
        _state(files), _names(translated.model, task, translated.in_channels, patch), translated.plain_instance
    )
    return _frozen(b"".join(map(bytes, encode_arrays(arrays))), fields)


def _window_of(inferer: Any, task: TaskConfig) -> tuple[int, ...] | None:
    """Voxels of the window that a bundle's sliding inferer takes; None for one that takes whole images."""
    kind = str(inferer.get("_target_", "")).rpartition(".")[2] if isinstance(inferer, dict) else ""
    if inferer is None or kind == "SimpleInferer":
        return None
    size = inferer.get("roi_size") if kind == "SlidingWindowInferer" else None
    size = [size] * task.spatial_dims if type(size) is int else size
    if not isinstance(size, list) or len(size) != task.spatial_dims or any(type(n) is not int or n < 1 for n in size):
        raise ModelRefusedError(
            "The bundle's inferer is not known here.",
            fix="Use a SlidingWindowInferer with a roi_size for each axis, or a SimpleInferer.",
        )
    return tuple(size)


def _names(model: ModelConfig, task: TaskConfig, channels: int, size: tuple[int, ...] | None) -> Mapping[str, Any]:
    """Shape and dtype of the arrays that our network has."""
    from eucaim_fl.models.networks import array_specs, outline

    return {spec.name: spec for spec in array_specs(outline(model, task, in_channels=channels, image_size=size))}


def _state(files: BundleFiles) -> Arrays:
    """The arrays of models/model.pt, read without executing anything."""
    raw = files.read(_WEIGHTS, LARGEST_MODEL_FILE)
    if raw is None:
        raise ModelRefusedError(f"The bundle has no {_WEIGHTS}.", fix="Download the bundle with its weights.")
    import torch

    try:
        found = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    except Exception as problem:  # noqa: BLE001 - a foreign file can make the reader raise anything
        raise ModelRefusedError(
            f"{_WEIGHTS} of the bundle holds more than tensors, or can't be read; unpickling it would run its code.",
            fix="Save the network's state_dict alone: torch.save(network.state_dict(), path).",
            local_detail=f"{type(problem).__name__}: {problem}"[:500],
        ) from None
    for wrapper in _WRAPPERS:
        if isinstance(found, dict) and len(found) < 20 and isinstance(found.get(wrapper), dict):
            found = found[wrapper]
            break
    if not isinstance(found, dict) or not all(isinstance(v, torch.Tensor) for v in found.values()):
        raise ModelRefusedError(
            f"{_WEIGHTS} of the bundle is no state_dict.", fix="Save the network's state_dict alone."
        )
    try:
        return {str(name).removeprefix("module."): tensor.numpy() for name, tensor in found.items()}
    except (TypeError, RuntimeError) as problem:
        raise ModelRefusedError(
            f"{_WEIGHTS} of the bundle holds tensors of a kind that is not known.", local_detail=str(problem)[:500]
        ) from None


def _fitted(state: Arrays, specs: Mapping[str, Any], plain_instance: bool) -> Arrays:
    """The bundle's arrays as our network's: same names, shapes and dtypes (half precision becomes float32)."""
    fitted: Arrays = {}
    faults: list[str] = []
    for name, spec in specs.items():
        array = state.get(name)
        if array is None and plain_instance and name.endswith((".N.weight", ".N.bias", "norm.weight", "norm.bias")):
            array = (np.ones if name.endswith("weight") else np.zeros)(spec.shape, spec.dtype)
        if array is None:
            faults.append(f"{name} is missing")
        elif array.shape != spec.shape:
            faults.append(f"{name} has the shape {list(array.shape)}, not {list(spec.shape)}")
        elif array.dtype != spec.dtype and not (array.dtype == np.float16 and spec.dtype == "float32"):
            faults.append(f"{name} is {array.dtype}, not {spec.dtype}")
        else:
            fitted[name] = np.array(array, dtype=spec.dtype, order="C")  # keeps single numbers without an axis
    unknown = len(set(state) - set(specs))
    if unknown:
        faults.append(f"{unknown} arrays are unknown")
    if faults:
        raise ModelRefusedError(
            f"The bundle's weights are not its network's: {'; '.join(faults[:5])}"
            + (f"; and {len(faults) - 5} more." if len(faults) > 5 else "."),
            fix="Check that models/model.pt and network_def belong together.",
        )
    return fitted


def from_run(folder: Path, *, name: str = "", intended_use: str, which: str = "best") -> FrozenModel:
    """The model that a run of this software has made. folder: the run's. which: `best` or `last`.

    Its contract has the plan's network, data and window; trained_on names plan and sites.
    Raises ModelRefusedError if the run's sites kept part of the model, its network has no part in the run, or its
    arrays are not the network's; ConfigError if plan.json or the model can't be read, or a name does not fit.
    """
    try:
        plan = read_plan((folder / "plan.json").read_text(encoding="utf-8"))
        arrays = ArrayFile(folder / "models" / f"{which}.safetensors").load()
    except (OSError, UnicodeDecodeError, JournalError, PlanError) as problem:
        raise ConfigError(
            f"The run's plan.json or models/{which}.safetensors can't be read.",
            fix="Give the folder of a run that has ended; `last` is always there, `best` if the plan measures.",
            local_detail=f"{folder}: {problem}",
        ) from None
    if plan.leaves_arrays() or plan.validation is not None:
        raise ModelRefusedError(
            "The run's model is not whole: part of it stays at the sites, or the run trained none.",
            fix="Take a run without personal arrays and with data.standardise none or federation.",
        )
    classes = plan.asked_classes()
    balance = plan.training.balance
    begun = "" if plan.start_sha256 is None else f", begun with an earlier run's weights ({plan.start_sha256[:12]})"
    fields = {
        "name": name or plan.name,
        "format": "network",
        "network": plan.model.model_dump(mode="json"),
        "data": {**plan.data.model_dump(mode="json"), "standardise": "none"},
        "patch_voxels": plan.training.patch_voxels,
        "standardised": plan.data.standardise == "federation",
        "class_shares": (balance.taken_out() if balance.expect == "federation" else 0.0) if classes else None,
        "intended_use": intended_use,
        "trained_on": f"plan {plan.name} ({plan.sha256()[:12]}), sites {', '.join(plan.sites)}{begun}"[:4000],
    }
    frozen = _frozen(b"".join(map(bytes, encode_arrays(arrays))), fields)
    from eucaim_fl.inference.runtime import planned_network
    from eucaim_fl.models.networks import set_arrays

    set_arrays(planned_network(frozen.contract, plan.task), arrays, error=ModelRefusedError)
    return frozen


def from_onnx(path: Path, task: TaskConfig, described: Path) -> FrozenModel:
    """An ONNX file, checked as `read_onnx` does, with a contract of which a YAML file gives the fields.

    described: YAML with data, intended_use and what else a contract has, and a name if the file's own is not to be it;
    format, sha256 and size_bytes follow from the file.
    Raises ModelRefusedError for a file that would be refused at the sites; ConfigError if one of the files can't be
    read, or the fields are no contract's.
    """
    content, fields = _described(path, described)
    frozen = _frozen(content, {**fields, "format": "onnx"})
    read_onnx(content, frozen.contract, task)
    return frozen


def from_program(path: Path, described: Path) -> FrozenModel:
    """A TorchScript file or an exported program, with a contract of which a YAML file gives the fields.

    It is hashed and measured, and of its archive the names of the parts are looked at, which tell its kind; nothing of
    it is loaded on this machine. described: as for `from_onnx`.
    Raises ModelRefusedError if it is neither, such as weights without a network; ConfigError if one of the files can't
    be read, or the fields are no contract's.
    """
    content, fields = _described(path, described)
    return _frozen(content, {**fields, "format": _kind_of_program(content)})


def _described(path: Path, described: Path) -> tuple[bytes, dict[str, Any]]:
    """A model's file, and what its description says."""
    try:
        with path.open("rb") as stream:
            content = stream.read(LARGEST_MODEL_FILE + 1)
        raw = described.read_bytes()
    except OSError as problem:
        raise ConfigError(
            "The model's file or its description can't be read.",
            fix=f"Put a YAML file called {described.name} beside it, with data and intended_use.",
            local_detail=str(problem),
        ) from None
    fields = read_mapping(raw, "The model's description")
    if stray := sorted({"format", "sha256", "size_bytes", "network"} & set(fields)):
        raise ConfigError(
            f"The model's description states {stray[0]}, which follows from the file.", fix="Leave it out."
        )
    return content, {"name": _named_after(path), **fields}


def _named_after(path: Path) -> str:
    return re.sub(r"[^a-z0-9_-]", "-", path.stem.lower()).strip("-_")[:63]


def _kind_of_program(content: bytes) -> str:
    """Which format an archive is, by the names of its parts."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError):
        names = []
    inner = [name.partition("/")[2] for name in names]
    if any(name.startswith("code/") for name in inner) and "constants.pkl" in inner:
        return "torchscript"
    if any(name.startswith("models/") or name.endswith("_weights_config.json") for name in inner):
        return "exported"
    weights = "data.pkl" in inner
    raise ModelRefusedError(
        "The file holds weights without a network (torch.save), which nobody can run."
        if weights
        else "The file is neither TorchScript nor an exported program.",
        fix="Export the network: torch.onnx.export, torch.jit.save or torch.export.save; or bring a MONAI bundle.",
    )
