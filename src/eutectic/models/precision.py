"""Mixed precision: query and disable autocast."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The dtype that autocast uses for matrix products on a device; None if autocast is off.

    The meta device does not support autocast, and querying it raises an error.
    """
    if device.type == "meta" or not torch.is_autocast_enabled(device.type):
        return None
    return torch.get_autocast_dtype(device.type)


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Disable autocast within the context."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)
