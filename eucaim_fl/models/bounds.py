"""What every network's arguments share: bounded types, so that no plan can ask for a monster, and what images fit.

`norm`: instance and batch normalisation learn a scale and a shift per channel; group has eight groups of channels.
`dropout`: share of activations set to zero in training.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, PlainValidator, model_validator

from eucaim_fl.config import Config

__all__ = [
    "GROUPS",
    "Activation",
    "Channels",
    "Dropout",
    "Heads",
    "Hidden",
    "Kernel",
    "NetworkArguments",
    "Norm",
    "PerAxis",
    "Repeats",
    "StridedArguments",
    "Strides",
    "Switch",
    "TransformerArguments",
    "Units",
    "axes",
    "per_axis",
    "require_groups",
]

GROUPS = 8
"""Groups of channels in group normalisation."""

PerAxis = int | tuple[int, ...]


def per_axis(least: int, most: int) -> PlainValidator:
    """Validator of one whole number for all axes, or one for each of two or three axes."""

    def check(value: object) -> PerAxis:
        listed = isinstance(value, (list, tuple))
        numbers = tuple(n for n in (value if isinstance(value, (list, tuple)) else (value,)) if type(n) is int)
        complete = len(numbers) == (len(value) if isinstance(value, (list, tuple)) else 1)
        if not complete or (listed and len(numbers) not in (2, 3)) or any(not least <= n <= most for n in numbers):
            raise ValueError(f"expected a whole number from {least} to {most}, or one for each of 2 or 3 axes")
        return numbers if listed else numbers[0]

    return PlainValidator(check)


def _odd(value: int) -> int:
    if value % 2 == 0:
        raise ValueError("expected an odd number, or there is no middle")
    return value


# Strict, so that "3", 3.0 and true are no numbers of channels.
Width = Annotated[int, Field(strict=True, ge=2, le=1024)]
Channels = Annotated[tuple[Width, ...], Field(min_length=1, max_length=8)]
Strides = Annotated[tuple[Annotated[PerAxis, per_axis(1, 4)], ...], Field(min_length=1, max_length=8)]
Heads = Annotated[int, Field(strict=True, ge=1, le=64)]
Repeats = Annotated[int, Field(strict=True, ge=1, le=24)]
Hidden = Annotated[int, Field(strict=True, ge=8, le=8192)]
Dropout = Annotated[float, Field(strict=True, ge=0, lt=1)]
Units = Annotated[int, Field(strict=True, ge=0, le=4)]
Switch = Annotated[bool, Field(strict=True)]
Kernel = Annotated[int, Field(strict=True, ge=1, le=7), AfterValidator(_odd)]
Activation = Literal["relu", "leakyrelu", "prelu", "elu"]
Norm = Literal["instance", "batch", "group"]


def axes(value: PerAxis, spatial_dims: int) -> tuple[int, ...]:
    """One number per axis.

    >>> axes(2, 3)
    (2, 2, 2)
    >>> axes((1, 2, 2), 3)
    (1, 2, 2)
    """
    return (value,) * spatial_dims if isinstance(value, int) else value


def require_groups(norm: Norm, channels: Sequence[int]) -> None:
    """See that group normalisation can form its groups of channels.

    Raises ValueError if `norm` is group and a number of channels is not divisible by `GROUPS`.
    """
    if norm == "group" and any(n % GROUPS for n in channels):
        raise ValueError(f"norm group needs numbers of channels divisible by {GROUPS}, got {list(channels)}")


class NetworkArguments(Config):
    """Arguments of one network.

    task: what the network is for; one for classification gives the logits of a whole image for other such tasks too.
    stride: voxels along each axis that become one at the coarsest level.
    divisible: images must be divisible by that. least: smallest image along each axis, in voxels.
    fixed_size: the number of weights depends on the image size, so every input must have the size it was built for.
    """

    task: ClassVar[Literal["segmentation", "classification"]]
    stride: ClassVar[int] = 1
    divisible: ClassVar[bool] = True
    least: ClassVar[int] = 1
    fixed_size: ClassVar[bool] = False

    def reduction(self, spatial_dims: int) -> tuple[int, ...]:
        """How many voxels along each axis become one at the coarsest level."""
        return (self.stride,) * spatial_dims

    def normalises_over_space(self) -> bool:
        """Whether the coarsest level needs more than one voxel, because it is normalised within one image."""
        return getattr(self, "norm", "") == "instance"


class StridedArguments(NetworkArguments):
    """A network whose coarseness is the product of its strides."""

    strides: Strides = (2, 2, 2)

    def reduction(self, spatial_dims: int) -> tuple[int, ...]:
        """Product of the strides along each axis."""
        return tuple(math.prod(along) for along in zip(*(axes(s, spatial_dims) for s in self.strides), strict=True))


class TransformerArguments(NetworkArguments):
    """A vision transformer; its position embedding fits one image size."""

    fixed_size = True
    hidden_size: Hidden
    mlp_dim: Hidden
    num_heads: Heads
    dropout: Dropout = 0.0

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not divisible by num_heads {self.num_heads}")
        return self
