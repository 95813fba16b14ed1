"""Fit scale factors before training (GemNet, Gasteiger et al. 2021, section "scaling factors")."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from eutectic.graph import Graph
from eutectic.models.gemnet_oc.layers import ScaleFactor


@torch.no_grad()
def fit_scale_factors(backbone: nn.Module, graphs: Iterable[Graph]) -> dict[str, float]:
    """Set each factor so that its layer preserves the variance of its input.

    A factor depends on all earlier ones, so they must be fitted in order. One forward pass does this: each factor is
    set when it is first reached and applied immediately. With several batches this is repeated for each, and the
    variances are averaged. A factor without data (no quadruplets, for example) stays 1.

    Args:
        backbone: any module that contains `ScaleFactor`s; its training mode is preserved.
        graphs: one or more representative training batches; a few hundred atoms are enough.

    Returns:
        Name → fitted factor, in the order of the modules.
    """
    factors = {name: m for name, m in backbone.named_modules() if isinstance(m, ScaleFactor)}
    training = backbone.training
    backbone.eval()
    batches = 0
    for factor in factors.values():
        factor.observed = []
    try:
        for graph in graphs:
            batches += 1
            for factor in factors.values():
                factor.value.fill_(1.0)
            backbone(graph)
        for factor in factors.values():
            if factor.observed:
                before, after = (torch.stack(v).mean() for v in zip(*factor.observed, strict=True))
                factor.value.copy_((before / after).sqrt())
    finally:
        for factor in factors.values():
            factor.observed = None
        backbone.train(training)
    if not batches:
        raise ValueError(
            "fit_scale_factors: no batch was given; expected at least one graph; pass a few batches of training data"
        )
    return {name: float(factor.value) for name, factor in factors.items()}
