"""A network that knows its inputs' statistics and the shares of classes: buffers that travel and are kept with it.

Their values come from sums over training patients (`eucaim_fl.training.statistics`); before these are known, inputs
stay as they are and classes have equal shares.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from eucaim_fl.errors import RecipeError
from eucaim_fl.models.assembly import Centred
from eucaim_fl.models.scattering import Scattering
from eucaim_fl.models.voxel_classifier import VoxelClassifier
from eucaim_fl.plan import FederationPlan
from eucaim_fl.records import CLASS_SHARES, INPUT_MEAN, INPUT_STD

__all__ = ["Conditioned", "conditioned"]

_MADE_FOR_0_TO_1 = (Centred, Scattering, VoxelClassifier)


class Conditioned(nn.Module):
    """Logits of a network for (images − input_mean)/input_std; + strength · ln class_shares when it predicts.

    channels: of images whose mean and standard deviation are held, shape (channels,); 0 holds none, and images stay as
    they are. classes: whose shares are held, shape (classes,); 0 holds none. What is not held is None, and no array of
    the model. strength: how much of ln πₖ, for the shares π that are held, training took out of the logits by its loss
    or its sampling, and predictions get back: ln P(k|x) = logitₖ + strength · ln πₖ + constant; 0 adds nothing. In
    training mode logits stay as they are.
    Source: Menon et al. 2021, Long-Tail Learning via Logit Adjustment; Saerens et al. 2002 (priors that change).
    """

    input_mean: Tensor | None
    input_std: Tensor | None
    class_shares: Tensor | None

    def __init__(self, network: nn.Module, *, channels: int = 0, classes: int = 0, strength: float = 0.0) -> None:
        """Raises ValueError if shares are to be added, but none are held."""
        super().__init__()
        if strength and not classes:
            raise ValueError("shares of classes are expected, but there are none")
        self.strength = strength
        self.register_buffer(INPUT_MEAN, torch.zeros(channels) if channels else None)
        self.register_buffer(INPUT_STD, torch.ones(channels) if channels else None)
        self.register_buffer(CLASS_SHARES, torch.full((classes,), 1 / classes) if classes else None)
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """images: (batch, channels, *size) → logits (batch, classes) or (batch, classes, *size)."""
        if self.input_mean is not None and self.input_std is not None:
            shape = (1, -1, *[1] * (images.dim() - 2))
            images = (images - self.input_mean.reshape(shape)) / self.input_std.reshape(shape)
        logits: Tensor = self.network(images)
        if self.strength and not self.training and self.class_shares is not None:
            logits = logits + self.strength * self.class_shares.log().reshape(1, -1, *[1] * (logits.dim() - 2))
        return logits


def conditioned(network: nn.Module, plan: FederationPlan) -> nn.Module:
    """The network with what `data.standardise` and `training.balance` ask for around it, else the network itself.

    Its arrays are called `network.` and what they were called before; beside them stand `records.INPUT_MEAN`,
    `INPUT_STD` and `CLASS_SHARES`, those of them that the plan needs.
    Raises RecipeError if inputs are to be standardised for a network that is made for inputs from 0 to 1.
    """
    standardised = plan.data.standardise != "none"
    if standardised and isinstance(network, _MADE_FOR_0_TO_1):
        raise RecipeError(
            f"{plan.model.name} as the recipe has it is made for inputs from 0 to 1.",
            fix="Set data.standardise to none, or choose another model (of small_cnn, centred: false).",
        )
    if not standardised and not plan.asked_classes():
        return network
    return Conditioned(
        network,
        channels=plan.data.number_of_channels() if standardised else 0,
        classes=plan.asked_classes(),
        strength=plan.training.balance.taken_out() if plan.training.balance.expect == "federation" else 0.0,
    )
