"""From typed arguments to networks, MONAI's but for two: the one place that calls their constructors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from eucaim_fl.models.bounds import GROUPS, NetworkArguments, Norm
from eucaim_fl.models.classification import (
    Densenet121Arguments,
    EfficientnetArguments,
    ResnetArguments,
    ScatteringArguments,
    SmallCnnArguments,
    VitArguments,
)
from eucaim_fl.models.scattering import Scattering
from eucaim_fl.models.segmentation import (
    AttentionUnetArguments,
    DynunetArguments,
    SegresnetArguments,
    SwinUnetrArguments,
    UnetArguments,
    UnetrArguments,
    VoxelClassifierArguments,
)
from eucaim_fl.models.voxel_classifier import VoxelClassifier

__all__ = ["Centred", "Ends", "FirstOutput", "assemble", "monai_call"]


@dataclass(frozen=True)
class Ends:
    """What a network joins: images of `in_channels` on `spatial_dims` axes, and `out` logits.

    image_size: voxels, first axis first; None where the weights don't depend on it.
    """

    spatial_dims: int
    in_channels: int
    out: int
    image_size: tuple[int, ...] | None = None


class FirstOutput(torch.nn.Module):
    """A network that answers with more than its logits, reduced to these."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """images: (batch, channels, *size) → logits (batch, classes)."""
        logits: torch.Tensor = self.network(images)[0]
        return logits


class Centred(torch.nn.Module):
    """A network whose inputs, 0 to 1, are brought to −2 to 2 first."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """images: (batch, channels, *size) → logits."""
        logits: torch.Tensor = self.network((images - 0.5) * 4.0)
        return logits


def _norm(name: Norm) -> tuple[str, dict[str, Any]]:
    options: dict[str, dict[str, Any]] = {
        "instance": {"affine": True},
        "batch": {},
        "group": {"num_groups": GROUPS},
    }
    return name, options[name]


def _unet(a: UnetArguments, ends: Ends, nets: Any) -> Any:
    return nets.UNet(
        ends.spatial_dims, ends.in_channels, ends.out, a.channels, a.strides, kernel_size=a.kernel_size,
        num_res_units=a.num_res_units, act=a.act, norm=_norm(a.norm), dropout=a.dropout,
    )  # fmt: skip


def _attention_unet(a: AttentionUnetArguments, ends: Ends, nets: Any) -> Any:
    return nets.AttentionUnet(
        ends.spatial_dims, ends.in_channels, ends.out, a.channels, a.strides, a.kernel_size, dropout=a.dropout
    )


def _dynunet(a: DynunetArguments, ends: Ends, nets: Any) -> Any:
    return nets.DynUNet(
        ends.spatial_dims, ends.in_channels, ends.out, a.kernel_size, a.strides, a.strides[1:], a.filters,
        dropout=a.dropout or None, norm_name=_norm(a.norm), act_name=a.act, res_block=a.res_block,
    )  # fmt: skip


def _segresnet(a: SegresnetArguments, ends: Ends, nets: Any) -> Any:
    return nets.SegResNet(
        ends.spatial_dims, a.init_filters, ends.in_channels, ends.out, dropout_prob=a.dropout or None, act=a.act,
        norm=_norm(a.norm), blocks_down=a.blocks_down, blocks_up=a.blocks_up, upsample_mode=a.upsample,
    )  # fmt: skip


def _swin_unetr(a: SwinUnetrArguments, ends: Ends, nets: Any) -> Any:
    return nets.SwinUNETR(
        ends.in_channels, ends.out, depths=a.depths, num_heads=a.num_heads, window_size=a.window_size,
        feature_size=a.feature_size, drop_rate=a.dropout, use_checkpoint=a.use_checkpoint, use_v2=a.use_v2,
        spatial_dims=ends.spatial_dims,
    )  # fmt: skip


def _unetr(a: UnetrArguments, ends: Ends, nets: Any) -> Any:
    return nets.UNETR(
        ends.in_channels, ends.out, ends.image_size, feature_size=a.feature_size, hidden_size=a.hidden_size,
        mlp_dim=a.mlp_dim, num_heads=a.num_heads, dropout_rate=a.dropout, spatial_dims=ends.spatial_dims,
    )  # fmt: skip


def _vit(a: VitArguments, ends: Ends, nets: Any) -> Any:
    return FirstOutput(
        nets.ViT(
            ends.in_channels, ends.image_size, a.patch_size, a.hidden_size, a.mlp_dim, a.num_layers, a.num_heads,
            classification=True, num_classes=ends.out, dropout_rate=a.dropout, spatial_dims=ends.spatial_dims,
            post_activation=None,
        )
    )  # fmt: skip


def _densenet121(a: Densenet121Arguments, ends: Ends, nets: Any) -> Any:
    return nets.DenseNet121(
        ends.spatial_dims, ends.in_channels, ends.out, a.init_features, a.growth_rate, norm=_norm(a.norm),
        dropout_prob=a.dropout,
    )  # fmt: skip


def _resnet(a: ResnetArguments, ends: Ends, nets: Any) -> Any:
    blocks = {10: [1, 1, 1, 1], 18: [2, 2, 2, 2], 34: [3, 4, 6, 3], 50: [3, 4, 6, 3], 101: [3, 4, 23, 3]}

    class Normalised(nets.ResNet):  # type: ignore[misc]
        """MONAI's ResNet passes its normalisation on to its first layer alone; here its blocks have it too."""

        def _make_layer(self, *args: Any, **options: Any) -> torch.nn.Sequential:
            made: torch.nn.Sequential = super()._make_layer(*args, **{**options, "norm": _norm(a.norm)})
            return made

    return Normalised(
        "bottleneck" if a.depth >= 50 else "basic", blocks[a.depth], [a.width * 2**stage for stage in range(4)],
        ends.spatial_dims, ends.in_channels, a.conv1_t_size, a.conv1_t_stride, a.no_max_pool, num_classes=ends.out,
        bias_downsample=False, norm=_norm(a.norm),
    )  # fmt: skip


def _efficientnet(a: EfficientnetArguments, ends: Ends, nets: Any) -> Any:
    return nets.EfficientNetBN(
        f"efficientnet-{a.variant}", pretrained=False, spatial_dims=ends.spatial_dims, in_channels=ends.in_channels,
        num_classes=ends.out, norm=_norm(a.norm),
    )  # fmt: skip


def _small_cnn(a: SmallCnnArguments, ends: Ends, nets: Any) -> Any:
    network = (
        _pooled_cnn(a, ends)
        if a.pooled
        else nets.Classifier(
            (ends.in_channels, *(ends.image_size or ())), ends.out, a.channels, a.strides, a.kernel_size,
            a.num_res_units, act=a.act, norm=_norm(a.norm), dropout=a.dropout or None,
        )
    )  # fmt: skip
    return Centred(network) if a.centred else network


def _pooled_cnn(a: SmallCnnArguments, ends: Ends) -> torch.nn.Module:
    """Convolutions, each with normalisation and activation, then the mean over the image, then one linear layer."""
    from monai.networks.blocks import Convolution
    from monai.networks.layers.factories import Pool

    blocks = [
        Convolution(
            ends.spatial_dims, before, after, strides=stride, kernel_size=a.kernel_size, act=a.act, norm=_norm(a.norm),
            dropout=a.dropout or None,
        )
        for before, after, stride in zip((ends.in_channels, *a.channels), a.channels, a.strides, strict=False)
    ]  # fmt: skip
    mean = Pool[Pool.ADAPTIVEAVG, ends.spatial_dims](1)
    return torch.nn.Sequential(*blocks, mean, torch.nn.Flatten(), torch.nn.Linear(a.channels[-1], ends.out))


def _scattering(a: ScatteringArguments, ends: Ends, nets: Any) -> Any:
    return Scattering(ends.in_channels, ends.image_size or (), ends.out, a.scales, a.shrink, per_image=a.per_image)


def _voxel_classifier(a: VoxelClassifierArguments, ends: Ends, nets: Any) -> Any:
    return VoxelClassifier(
        ends.spatial_dims, ends.in_channels, ends.out, a.scales, a.levels, a.reaches, bright=a.bright
    )


_BUILDERS: Mapping[type[NetworkArguments], Callable[[Any, Ends, Any], Any]] = {
    AttentionUnetArguments: _attention_unet,
    Densenet121Arguments: _densenet121,
    DynunetArguments: _dynunet,
    EfficientnetArguments: _efficientnet,
    ResnetArguments: _resnet,
    ScatteringArguments: _scattering,
    SegresnetArguments: _segresnet,
    SmallCnnArguments: _small_cnn,
    SwinUnetrArguments: _swin_unetr,
    UnetArguments: _unet,
    UnetrArguments: _unetr,
    VitArguments: _vit,
    VoxelClassifierArguments: _voxel_classifier,
}


class _Asked:
    """In the place of MONAI's networks: remembers which one was asked for, and how."""

    def __init__(self) -> None:
        self.call: tuple[str, tuple[Any, ...], dict[str, Any]] = ("", (), {})

    def __getattr__(self, name: str) -> Callable[..., torch.nn.Module]:
        def remember(*positional: Any, **named: Any) -> torch.nn.Module:
            self.call = name, positional, named
            return torch.nn.Identity()

        return remember


def monai_call(arguments: NetworkArguments, ends: Ends) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
    """Which of MONAI's networks `assemble` would build, with what arguments by place and by name; nothing is built.

    Raises TypeError for `resnet`, which is a class of its own.
    """
    asked = _Asked()
    _BUILDERS[type(arguments)](arguments, ends, asked)
    return asked.call


def assemble(arguments: NetworkArguments, ends: Ends) -> torch.nn.Module:
    """The network in training mode, with fresh weights from PyTorch's global random state.

    Activations don't work in place where MONAI leaves the choice: gradients per patient need them as they were. What
    a transformer holds for cross attention and never uses is left out: it would travel every round for nothing.
    """
    from monai.networks import nets  # takes seconds, and who only checks a recipe never needs it

    network: torch.nn.Module = _BUILDERS[type(arguments)](arguments, ends, nets)
    modules: Iterable[Any] = network.modules()
    for module in modules:
        if getattr(module, "inplace", False) is True:
            module.inplace = False
        if getattr(module, "with_cross_attention", None) is False:
            module.norm_cross_attn = torch.nn.Identity()
    return network
