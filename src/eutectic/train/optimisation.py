"""The learning rate as a function of the step, and the optimiser."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from eutectic.train.settings import OptimiserSettings


def learning_rate(settings: OptimiserSettings, step: int, steps: int) -> float:
    """Linear warm-up from `warmup_start`, then a cosine down to `floor` at the last step (JMP, section 4.2).

    Args:
        step: 0 … steps − 1.
        steps: length of the whole run.
    """
    warm = min(settings.warmup_steps, steps)
    if step < warm:
        relative = settings.warmup_start + (1 - settings.warmup_start) * step / max(warm - 1, 1)
    else:
        done = (step - warm) / max(steps - warm - 1, 1)
        relative = settings.floor + (1 - settings.floor) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
    return settings.learning_rate * relative


def make_optimiser(parameters: Iterable[nn.Parameter], settings: OptimiserSettings) -> torch.optim.AdamW:
    """AdamW over all parameters in one group, updated in one fused kernel."""
    return torch.optim.AdamW(
        parameters,
        lr=settings.learning_rate,
        betas=settings.betas,
        weight_decay=settings.weight_decay,
        fused=True,
    )
