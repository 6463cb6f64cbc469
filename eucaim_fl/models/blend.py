"""Two networks as one: the mean of what they say."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["Blend"]


class Blend(nn.Module):
    """The mean of two networks' logits: of a softmax, the geometric mean of their probabilities, scaled to sum to 1."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, images: Tensor) -> Tensor:
        """images: (batch, channels, *size) → logits, of the shape that both have."""
        logits: Tensor = (self.first(images) + self.second(images)) / 2
        return logits
