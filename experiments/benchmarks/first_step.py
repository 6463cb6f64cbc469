"""Imported into the server that workers are forked from: the first optimizer step of each process leaves a stamp.

PyTorch calls the hook after any optimizer's step, so neither the product nor the bare loop knows of it; it takes
itself away when it was called.
"""

from __future__ import annotations

from typing import Any

from stamps import stamp
from torch.optim.optimizer import register_optimizer_step_post_hook

__all__: list[str] = []


def _first(_optimizer: Any, _args: Any, _kwargs: Any) -> None:
    stamp("first_step")
    _handle.remove()


_handle = register_optimizer_step_post_hook(_first)
