"""Networks from a recipe's model and task, and their weights as named arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from eucaim_fl.arrays import Arrays
from eucaim_fl.config import ModelConfig, TaskConfig
from eucaim_fl.errors import EucaimError, PlanError, RecipeError
from eucaim_fl.models.arguments import check_input_size, check_model
from eucaim_fl.models.assembly import Ends, assemble
from eucaim_fl.records import ArraySpec

__all__ = [
    "LARGEST_PARAMETERS",
    "array_specs",
    "build",
    "get_arrays",
    "outline",
    "output_channels",
    "parameter_count",
    "set_arrays",
]

LARGEST_PARAMETERS = 500_000_000
"""A network of more trainable numbers than this is refused before memory is taken."""


class _Outline(TorchFunctionMode):
    """Within it, weights get a shape but no memory, and nothing is drawn.

    `torch.device("meta")` alone won't do: SwinUNETR reads numbers from tensors while it is built, and drawing on the
    meta device imports a second's worth of decompositions.
    """

    _weights = (torch.empty, torch.zeros, torch.ones, torch.randn, torch.rand)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in self._weights and kwargs.get("device") is None:
            return func(*args, **{**kwargs, "device": "meta"})
        fills = getattr(func, "__name__", "").endswith("_") and not func.__name__.startswith("__")
        if fills and args and isinstance(args[0], torch.Tensor) and args[0].is_meta:
            return args[0]
        return func(*args, **kwargs)


def output_channels(task: TaskConfig) -> int:
    """Logits per voxel or per image: background and labels, classes, targets, or a log risk."""
    return task.outputs()


def outline(
    model: ModelConfig, task: TaskConfig, *, in_channels: int = 1, image_size: tuple[int, ...] | None = None
) -> torch.nn.Module:
    """The network without its weights: names and shapes only, next to no memory, nothing to run.

    Raises RecipeError as `build` does.
    """
    arguments = check_model(model, task)
    if image_size is not None:
        check_input_size(model, task, image_size)
    elif arguments.fixed_size:
        raise RecipeError(
            f"{model.name} is built for one image size, and the recipe gives none.",
            fix="Set training.patch_voxels, or data.size_voxels along every axis.",
        )
    with _Outline():
        network = assemble(arguments, Ends(task.spatial_dims, in_channels, output_channels(task), image_size))
    if (parameters := parameter_count(network)) > LARGEST_PARAMETERS:
        raise RecipeError(
            f"{model.name} would have {parameters:,} parameters; at most {LARGEST_PARAMETERS:,} are allowed.",
            fix="Make the network narrower or shallower.",
        )
    return network


def build(
    model: ModelConfig,
    task: TaskConfig,
    *,
    in_channels: int = 1,
    seed: int | None = None,
    image_size: tuple[int, ...] | None = None,
) -> torch.nn.Module:
    """The network on the CPU: (batch, in_channels, *size) float32 → logits.

    Logits are (batch, 1 + labels, *size) for segmentation, background first; (batch, classes) for classification,
    (batch, targets) for a multi-label task and (batch, 1), the log risk, for survival.
    image_size: voxels of what the network will be trained on (a patch, or whole images), first axis first; needed by
    networks whose weights depend on it, checked for the others if given.
    seed: the initial weights depend on it only, and PyTorch's global random state stays as it was. None: the weights
    are to be replaced by `set_arrays`.

    Raises RecipeError if the recipe's model or image size doesn't fit, or the network is too large.
    """
    outline(model, task, in_channels=in_channels, image_size=image_size)
    ends = Ends(task.spatial_dims, in_channels, output_channels(task), image_size)
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(0 if seed is None else seed)  # leaves the GPUs' generators alone
        return assemble(check_model(model, task), ends)


def _tensors(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and persistent buffers in sorted order of names; one that is reachable twice, by its first name."""
    found: dict[int, tuple[str, torch.Tensor]] = {}
    for name, tensor in network.state_dict(keep_vars=True).items():
        found.setdefault(id(tensor), (name, tensor))
    return dict(sorted(found.values()))


def parameter_count(network: torch.nn.Module) -> int:
    """How many numbers training changes; buffers are not among them."""
    return sum(parameter.numel() for parameter in network.parameters())


def array_specs(network: torch.nn.Module) -> tuple[ArraySpec, ...]:
    """What the network's arrays are called and look like, in sorted order of names; an outline will do."""
    return tuple(
        ArraySpec(name, tuple(t.shape), str(t.dtype).removeprefix("torch."), isinstance(t, torch.nn.Parameter))
        for name, t in _tensors(network).items()
    )


def get_arrays(network: torch.nn.Module) -> Arrays:
    """Copies of the network's parameters and persistent buffers, C-contiguous, in sorted order of names."""
    return {name: np.array(t.detach().cpu().numpy(), order="C") for name, t in _tensors(network).items()}


def set_arrays(
    network: torch.nn.Module, arrays: Mapping[str, np.ndarray[Any, Any]], *, error: type[EucaimError] = PlanError
) -> None:
    """Copy `arrays` into the network, in place and on its device; the inverse of `get_arrays`.

    Raises PlanError (or `error`) unless names, shapes and dtypes are the network's own; then nothing is changed. Only
    the network's own names appear in its text, for the others came from elsewhere.
    """
    tensors = _tensors(network)
    missing = [name for name in tensors if name not in arrays]
    unknown = sum(name not in tensors for name in arrays)
    if missing or unknown:
        shown = f" (the first is {missing[0]})" if missing else ""
        raise error(f"The arrays are not this network's: {len(missing)} are missing{shown}, {unknown} are unknown.")
    given = {name: np.asarray(arrays[name]) for name in tensors}  # sums of 0-d arrays are numpy scalars
    for spec in array_specs(network):
        array = given[spec.name]
        if array.shape != spec.shape or array.dtype != np.dtype(spec.dtype):
            raise error(
                f"Array {spec.name} should be {spec.dtype} of shape {list(spec.shape)}, "
                f"but is {array.dtype.name} of shape {list(array.shape)}."
            )
    with torch.no_grad():
        for name, tensor in tensors.items():
            array = given[name]
            ready = array.flags.writeable and array.flags.c_contiguous  # what PyTorch can look at without a copy
            tensor.copy_(torch.from_numpy(array if ready else array.copy()))
