"""The allow-list: what a recipe may name, and whether what it asks for fits its task and its images."""

from __future__ import annotations

import math
from collections.abc import Mapping

from eucaim_fl.config import ModelConfig, TaskConfig, parse
from eucaim_fl.errors import RecipeError
from eucaim_fl.models.bounds import NetworkArguments
from eucaim_fl.models.classification import (
    Densenet121Arguments,
    EfficientnetArguments,
    ResnetArguments,
    ScatteringArguments,
    SmallCnnArguments,
    VitArguments,
)
from eucaim_fl.models.segmentation import (
    AttentionUnetArguments,
    DynunetArguments,
    SegresnetArguments,
    SwinUnetrArguments,
    UnetArguments,
    UnetrArguments,
    VoxelClassifierArguments,
)
from eucaim_fl.registry import lookup

__all__ = ["ARGUMENTS", "NetworkArguments", "check_input_size", "check_model", "required_divisor"]

ARGUMENTS: Mapping[str, type[NetworkArguments]] = {
    "attention_unet": AttentionUnetArguments,
    "densenet121": Densenet121Arguments,
    "dynunet": DynunetArguments,
    "efficientnet": EfficientnetArguments,
    "resnet": ResnetArguments,
    "scattering": ScatteringArguments,
    "segresnet": SegresnetArguments,
    "small_cnn": SmallCnnArguments,
    "swin_unetr": SwinUnetrArguments,
    "unet": UnetArguments,
    "unetr": UnetrArguments,
    "vit": VitArguments,
    "voxel_classifier": VoxelClassifierArguments,
}
"""The allow-list: every network that a recipe may name."""


def check_model(model: ModelConfig, task: TaskConfig) -> NetworkArguments:
    """The network's arguments, complete with defaults.

    Raises RecipeError for a network that is not on the allow-list or is for another task, and for arguments that are
    unknown, of the wrong type, out of bounds, or contradict each other or the task's number of axes.
    """
    kind = lookup(ARGUMENTS, model.name, "network")
    if (kind.task == "segmentation") != (task.name == "segmentation"):
        fitting = ", ".join(sorted(name for name, other in ARGUMENTS.items() if other.task != kind.task))
        raise RecipeError(
            f"{model.name} is a network for {kind.task}, but the task is {task.name}.",
            fix=f"Networks for {task.name}: {fitting}.",
        )
    arguments = parse(kind, model.args, f"The recipe's model.args for {model.name}")
    for name, value in arguments:
        for entry in value if isinstance(value, tuple) else ():
            if isinstance(entry, tuple) and len(entry) != task.spatial_dims:
                raise RecipeError(
                    f"model.args.{name} of {model.name} has an entry with {len(entry)} values, but the task is "
                    f"{task.spatial_dims}-D.",
                    fix="Give one whole number for all axes, or one per axis.",
                )
    return arguments


def required_divisor(model: ModelConfig, task: TaskConfig) -> tuple[int, ...]:
    """What an image's size along each axis must be divisible by; 1 where any size will do.

    Raises RecipeError as `check_model` does.
    """
    arguments = check_model(model, task)
    return arguments.reduction(task.spatial_dims) if arguments.divisible else (1,) * task.spatial_dims


def check_input_size(model: ModelConfig, task: TaskConfig, size: tuple[int, ...]) -> None:
    """See that images (or patches) of `size` voxels, first axis first, can pass through the network.

    Raises RecipeError as `check_model` does, and if the size has the wrong number of axes, is not divisible by what
    the network needs (which is named, with the next larger size that is), or is too small.
    """
    arguments = check_model(model, task)
    given = " × ".join(map(str, size))
    if len(size) != task.spatial_dims:
        raise RecipeError(f"The image size {given} has {len(size)} axes, but the task is {task.spatial_dims}-D.")
    divisor = required_divisor(model, task)
    least = tuple(max(arguments.least, d) for d in divisor)
    if any(n % d or n < 1 for n, d in zip(size, divisor, strict=True)):
        larger = " × ".join(str(max(1, -(-n // d)) * d) for n, d in zip(size, divisor, strict=True))
        raise RecipeError(
            f"{model.name} needs images divisible by {' × '.join(map(str, divisor))}, got {given}.",
            fix=f"Set training.patch_voxels or data.size_voxels to {larger}, for instance.",
        )
    if any(n < m for n, m in zip(size, least, strict=True)):
        raise RecipeError(f"{model.name} needs images of at least {' × '.join(map(str, least))}, got {given}.")
    reduction = arguments.reduction(task.spatial_dims)
    coarsest = math.prod(n // r for n, r in zip(size, reduction, strict=True))
    if arguments.normalises_over_space() and coarsest < 2:
        raise RecipeError(
            f"An image of {given} shrinks to a single voxel in {model.name}, and instance normalisation needs more.",
            fix=f"Use a larger image: {' × '.join(str(2 * r) for r in reduction)}, for instance.",
        )
