"""The learning rate as a function of the step, and the optimiser."""

from __future__ import annotations

import math

import torch

from eutectic.models.multitask import MultitaskModel
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


def make_optimiser(model: MultitaskModel, settings: OptimiserSettings) -> torch.optim.AdamW:
    """AdamW over all parameters, updated in one fused kernel; `set_rate` gives backbone and heads their rates."""
    heads = {id(parameter) for parameter in model.heads.parameters()}
    groups = [
        {"params": [p for p in model.parameters() if id(p) not in heads], "relative": settings.backbone_rate},
        {"params": list(model.heads.parameters()), "relative": 1.0},
    ]
    return torch.optim.AdamW(
        groups, lr=settings.learning_rate, betas=settings.betas, weight_decay=settings.weight_decay, fused=True
    )


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Give every group its share of the learning rate of a step."""
    for group in optimiser.param_groups:
        group["lr"] = rate * group["relative"]
