"""Mixed precision: which matrix products autocast may lower, and which not."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def lowered(device: torch.device) -> torch.dtype | None:
    """The precision that autocast gives to matrix products on a device; None where it is not on.

    The meta device (shapes without numbers) has no autocast, and may not be asked.
    """
    if device.type == "meta" or not torch.is_autocast_enabled(device.type):
        return None
    return torch.get_autocast_dtype(device.type)


def in_full(device: torch.device) -> AbstractContextManager[object]:
    """Within, nothing is lowered."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)
