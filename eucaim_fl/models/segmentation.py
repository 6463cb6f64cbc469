"""Arguments of the networks that give every voxel a class. Sequences run from the finest level to the coarsest."""

from __future__ import annotations

from typing import Annotated, Literal, Self

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
    PerAxis,
    Repeats,
    StridedArguments,
    Strides,
    Switch,
    TransformerArguments,
    Units,
    axes,
    per_axis,
    require_groups,
)

__all__ = [
    "AttentionUnetArguments",
    "DynunetArguments",
    "SegresnetArguments",
    "SwinUnetrArguments",
    "UnetArguments",
    "UnetrArguments",
    "VoxelClassifierArguments",
]


class _LevelArguments(StridedArguments):
    """A U-Net described by its levels' channels; `strides` lie between the levels."""

    channels: Channels = (16, 32, 64, 128)
    kernel_size: Kernel = 3
    dropout: Dropout = 0.0

    @model_validator(mode="after")
    def _lengths_fit(self) -> Self:
        levels = len(self.channels)
        if len(self.strides) != levels - 1:
            raise ValueError(f"{levels} channels need {levels - 1} strides, got {len(self.strides)}")
        return self


class UnetArguments(_LevelArguments):
    """Residual U-Net. Source: Kerfoot et al. 2018."""

    task = "segmentation"
    num_res_units: Units = 2
    act: Activation = "prelu"
    norm: Norm = "instance"

    @model_validator(mode="after")
    def _norm_fits(self) -> Self:
        if self.norm == "group" and self.num_res_units:
            raise ValueError("norm group needs num_res_units 0, for residual units normalise the output channels too")
        require_groups(self.norm, self.channels)
        return self


class AttentionUnetArguments(_LevelArguments):
    """U-Net with attention gates; batch and instance normalisation are built in. Source: Oktay et al. 2018."""

    task = "segmentation"

    def normalises_over_space(self) -> bool:
        """What leaves an attention gate is normalised within one image."""
        return True


class DynunetArguments(StridedArguments):
    """nnU-Net's network without deep supervision; one entry per level. Source: Isensee et al. 2021."""

    task = "segmentation"
    filters: Channels = (16, 32, 64, 128)
    kernel_size: tuple[Annotated[PerAxis, per_axis(1, 7)], ...] = Field((3, 3, 3, 3), max_length=8)
    strides: Strides = (1, 2, 2, 2)
    res_block: Switch = False
    act: Activation = "leakyrelu"
    norm: Norm = "instance"
    dropout: Dropout = 0.0

    @model_validator(mode="after")
    def _levels_fit(self) -> Self:
        if not 3 <= len(self.filters) == len(self.kernel_size) == len(self.strides):
            raise ValueError("filters, kernel_size and strides need one entry per level, and three levels at least")
        if set(axes(self.strides[0], 1)) != {1}:
            raise ValueError("the first of strides must be 1, or the output would be coarser than the image")
        for kernel, stride in zip(self.kernel_size, self.strides, strict=True):
            if any(k % 2 == 0 or k < s - 1 for k, s in zip(axes(kernel, 3), axes(stride, 3), strict=False)):
                raise ValueError("kernel_size must be odd, and at least its level's stride less one")
            if self.res_block and max(axes(stride, 1)) > 2:
                raise ValueError("res_block needs strides of at most 2, for its shortcuts have kernels of one voxel")
        require_groups(self.norm, self.filters)
        return self


class SegresnetArguments(NetworkArguments):
    """Residual encoder, light decoder; the width doubles from level to level. Source: Myronenko 2018.

    upsample: `deconv` and `pixelshuffle` can be repeated to the bit on a GPU, `nontrainable` (linear) can't.
    """

    task = "segmentation"
    init_filters: int = Field(16, strict=True, ge=8, le=128, multiple_of=GROUPS)
    blocks_down: tuple[Repeats, ...] = Field((1, 2, 2, 4), min_length=2, max_length=6)
    blocks_up: tuple[Repeats, ...] = Field((1, 1, 1), max_length=5)
    act: Activation = "relu"
    norm: Norm = "group"
    upsample: Literal["deconv", "pixelshuffle", "nontrainable"] = "deconv"
    dropout: Dropout = 0.0

    @model_validator(mode="after")
    def _levels_fit(self) -> Self:
        if len(self.blocks_up) != len(self.blocks_down) - 1:
            raise ValueError("blocks_up needs one entry less than blocks_down")
        return self

    def reduction(self, spatial_dims: int) -> tuple[int, ...]:
        """Halved from level to level."""
        return (2 ** (len(self.blocks_down) - 1),) * spatial_dims


class SwinUnetrArguments(NetworkArguments):
    """Shifted-window transformer encoder, convolutional decoder, four stages. Source: Hatamizadeh et al. 2022."""

    task = "segmentation"
    stride = 32
    feature_size: int = Field(24, strict=True, ge=12, le=96, multiple_of=12)
    depths: tuple[Repeats, Repeats, Repeats, Repeats] = (2, 2, 2, 2)
    num_heads: tuple[Heads, Heads, Heads, Heads] = (3, 6, 12, 24)
    window_size: int = Field(7, strict=True, ge=2, le=8)
    use_v2: Switch = False
    use_checkpoint: Switch = False
    dropout: Dropout = 0.0

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        for level, heads in enumerate(self.num_heads):
            features = self.feature_size * 2**level
            if features % heads:
                raise ValueError(
                    f"num_heads[{level}] is {heads}, which does not divide that stage's {features} features"
                )
        return self

    def normalises_over_space(self) -> bool:
        """Its decoder has instance normalisation."""
        return True


class UnetrArguments(TransformerArguments):
    """Twelve transformer layers over patches of 16 voxels, convolutional decoder. Source: Hatamizadeh et al. 2022."""

    task = "segmentation"
    stride = 16
    feature_size: int = Field(16, strict=True, ge=4, le=128)
    hidden_size: int = Field(384, strict=True, ge=8, le=2048)
    mlp_dim: int = Field(1536, strict=True, ge=8, le=8192)
    num_heads: Heads = 6


class VoxelClassifierArguments(NetworkArguments):
    """Fixed features of each voxel and one linear layer: some tens of weights to learn. Source: Sommer et al. 2011.

    scales: standard deviations in voxels at which intensities and edges are looked at. levels: intensities, on the
    scale of 0 to 1 that images come in, that part bodies from what is around them. reaches: voxels within which a body
    may end. bright: bodies are above the levels, else below.
    """

    task = "segmentation"
    divisible = False
    scales: tuple[Annotated[int, Field(strict=True, ge=1, le=16)], ...] = Field((1, 2, 4), max_length=5)
    levels: tuple[Annotated[float, Field(strict=True, gt=0, lt=1)], ...] = Field((0.5,), max_length=4)
    reaches: tuple[Annotated[int, Field(strict=True, ge=1, le=64)], ...] = Field((4, 7, 11, 16), max_length=6)
    bright: Switch = True

    @model_validator(mode="after")
    def _something_is_looked_at(self) -> Self:
        if any(list(values) != sorted(set(values)) for values in (self.scales, self.levels, self.reaches)):
            raise ValueError("scales, levels and reaches must grow from entry to entry")
        if not (self.scales or self.levels):
            raise ValueError("scales or levels need an entry, or there is nothing to look at")
        if self.levels and not self.reaches:
            raise ValueError("levels need reaches")
        return self
