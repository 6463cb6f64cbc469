"""Which networks keep patients apart, so that each one's gradient is its own; and what has to change for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from eucaim_fl.config import ModelConfig, TaskConfig
from eucaim_fl.errors import PrivateTrainingError, RecipeError
from eucaim_fl.models.arguments import check_model

if TYPE_CHECKING:
    from torch import nn

__all__ = ["check_private", "made_private"]

_BUILT_IN = {"attention_unet": "unet, dynunet or segresnet"}
"""Networks whose batch normalisation no argument replaces, and what to take."""


def check_private(model: ModelConfig, task: TaskConfig) -> None:
    """See that the recipe's network can be trained with a gradient per patient; loads no torch.

    Batch normalisation can't: what it makes of one patient's image depends on who else is in the batch, so no bound
    on one patient's gradient bounds that patient's influence.
    Raises RecipeError as `check_model` does, and for a network with batch normalisation, with what to set instead.
    """
    arguments = check_model(model, task)
    instead = _BUILT_IN.get(model.name)
    if instead is None and getattr(arguments, "norm", None) != "batch":
        return
    raise RecipeError(
        f"{model.name} with batch normalisation mixes the patients of a batch, so it can't be trained with patient_dp.",
        fix=f"Choose {instead}, whose normalisation can be set." if instead else "Set model.args.norm to group.",
    )


def made_private(network: nn.Module) -> nn.Module:
    """The network itself, changed in place so that gradients per patient can be computed; names and values stay.

    Activations stop working in place, for they would overwrite what a layer's gradient is made of; and those that
    save memory by a hand-written backward pass (EfficientNet's) take the plain one, which can be vectorised.
    Raises PrivateTrainingError naming the layers that mix patients or remember them: batch normalisation, and
    normalisation with running statistics.
    """
    from torch.nn.modules.batchnorm import _NormBase

    layers: list[tuple[str, Any]] = list(network.named_modules())
    mixing = [
        name
        for name, layer in layers
        if isinstance(layer, _NormBase) and ("BatchNorm" in type(layer).__name__ or layer.track_running_stats)
    ]
    if mixing:
        more = f" and {len(mixing) - 3} more" if len(mixing) > 3 else ""
        raise PrivateTrainingError(
            f"These layers of the network mix the patients of a batch: {', '.join(mixing[:3])}{more}.",
            fix="Set model.args.norm to group or instance, or choose a network that has this argument.",
        )
    for _, layer in layers:
        if getattr(layer, "inplace", False) is True:
            layer.inplace = False
        if type(layer).__name__ == "EfficientNet":
            layer.set_swish(memory_efficient=False)
    return network
