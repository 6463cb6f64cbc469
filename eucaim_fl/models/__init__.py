"""Networks by name: typed arguments (`arguments`, light to import) and the networks themselves (`networks`)."""

from __future__ import annotations

from eucaim_fl.models.arguments import (
    ARGUMENTS,
    NetworkArguments,
    check_input_size,
    check_model,
    required_divisor,
)

__all__ = ["ARGUMENTS", "NetworkArguments", "check_input_size", "check_model", "required_divisor"]
