"""Arguments of the networks that give every image a class."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from eucaim_fl.models.bounds import (
    GROUPS,
    Activation,
    Channels,
    Dropout,
    Heads,
    Kernel,
    NetworkArguments,
    Norm,
    StridedArguments,
    Switch,
    TransformerArguments,
    Units,
    require_groups,
)

__all__ = [
    "Densenet121Arguments",
    "EfficientnetArguments",
    "ResnetArguments",
    "ScatteringArguments",
    "SmallCnnArguments",
    "VitArguments",
]


class VitArguments(TransformerArguments):
    """Vision transformer with a class token; the defaults are ViT-Tiny's. Source: Dosovitskiy et al. 2021."""

    task = "classification"
    patch_size: int = Field(16, strict=True, ge=2, le=64)
    hidden_size: int = Field(192, strict=True, ge=8, le=2048)
    mlp_dim: int = Field(768, strict=True, ge=8, le=8192)
    num_layers: int = Field(12, strict=True, ge=1, le=48)
    num_heads: Heads = 3

    def reduction(self, spatial_dims: int) -> tuple[int, ...]:
        """A patch becomes one token."""
        return (self.patch_size,) * spatial_dims


class Densenet121Arguments(NetworkArguments):
    """DenseNet of 121 layers. Source: Huang et al. 2017."""

    task = "classification"
    divisible = False
    least = 32
    stride = 32
    init_features: int = Field(64, strict=True, ge=8, le=256)
    growth_rate: int = Field(32, strict=True, ge=4, le=128)
    norm: Norm = "batch"
    dropout: Dropout = 0.0

    @model_validator(mode="after")
    def _norm_fits(self) -> Self:
        width = self.init_features
        for layers in (6, 12, 24, 16):
            require_groups(self.norm, (width, self.growth_rate))
            width = (width + layers * self.growth_rate) // 2
        return self


class ResnetArguments(NetworkArguments):
    """ResNet of `depth` layers; `width` channels in the first stage, doubled three times. Source: He et al. 2016.

    conv1_t_size, conv1_t_stride, no_max_pool: the entrance; smaller steps suit small images.
    """

    task = "classification"
    divisible = False
    depth: Literal[10, 18, 34, 50, 101] = 18
    width: int = Field(64, strict=True, ge=8, le=256, multiple_of=GROUPS)
    conv1_t_size: Kernel = 7
    conv1_t_stride: int = Field(2, strict=True, ge=1, le=2)
    no_max_pool: Switch = False
    norm: Norm = "batch"

    def reduction(self, spatial_dims: int) -> tuple[int, ...]:
        """Three halvings, and those of the entrance."""
        return (8 * self.conv1_t_stride * (1 if self.no_max_pool else 2),) * spatial_dims


class EfficientnetArguments(NetworkArguments):
    """EfficientNet, scaled by its variant. Source: Tan and Le 2019."""

    task = "classification"
    divisible = False
    least = 32
    stride = 32
    variant: Literal["b0", "b1", "b2", "b3", "b4", "b5", "b6", "b7"] = "b0"
    norm: Norm = "batch"


class SmallCnnArguments(StridedArguments):
    """A chain of strided convolutions and one linear layer, for small images and quick runs.

    pooled: the linear layer sees the mean of each channel of the last convolution over the image, not every place: far
    fewer weights, and where in the image something lies does not matter.
    centred: what comes as 0 to 1 is first brought to −2 to 2, without which photographs, being bright, learn slowly.
    """

    task = "classification"
    divisible = False
    fixed_size = True
    channels: Channels = (16, 32, 64)
    kernel_size: Kernel = 3
    num_res_units: Units = 0
    act: Activation = "relu"
    norm: Norm = "group"
    dropout: Dropout = 0.0
    pooled: Switch = False
    centred: Switch = False

    @model_validator(mode="after")
    def _levels_fit(self) -> Self:
        levels = len(self.channels)
        if self.pooled and self.num_res_units:
            raise ValueError("pooled has plain convolutions; set num_res_units to 0")
        if len(self.strides) != levels:
            raise ValueError(f"{levels} channels need {levels} strides, got {len(self.strides)}")
        require_groups(self.norm, self.channels)
        return self


class ScatteringArguments(NetworkArguments):
    """Fixed wavelets and one linear layer: some hundred weights to learn. Source: Bruna and Mallat 2013.

    scales: sizes at which the image is looked at, each half of the last. shrink: voxels along each axis that are
    averaged into one before. per_image: whether each image's features are centred and scaled by themselves.
    """

    task = "classification"
    divisible = False
    fixed_size = True
    scales: int = Field(3, strict=True, ge=1, le=5)
    shrink: int = Field(2, strict=True, ge=1, le=8)
    per_image: Switch = True

    def reduction(self, spatial_dims: int) -> tuple[int, ...]:
        """The smallest scale."""
        return (self.shrink * 2 ** (self.scales - 1),) * spatial_dims
