"""Fitting of scale factors before training (GemNet, Gasteiger et al. 2021, section "scaling factors")."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from eutectic.graph import Graph
from eutectic.models.gemnet_oc.layers import ScaleFactor


@torch.no_grad()
def fit_scale_factors(backbone: nn.Module, graphs: Iterable[Graph]) -> dict[str, float]:
    """Set each factor so that its layer keeps the variance of its input.

    A factor depends on all before it, so they must be fitted in order. One forward pass does that: each factor
    sets itself when it is first reached, and scales with that value at once. With several batches this is done
    anew on each, and the variances are averaged. A factor that no row reached (no quadruplets, say) stays 1.

    Args:
        backbone: any module that holds `ScaleFactor`s; left in the mode it was in.
        graphs: one or more batches like those of training; a few hundred atoms are enough.

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
                given, got = (torch.stack(v).mean() for v in zip(*factor.observed, strict=True))
                factor.value.copy_((given / got).sqrt())
    finally:
        for factor in factors.values():
            factor.observed = None
        backbone.train(training)
    if not batches:
        raise ValueError(
            "fit_scale_factors: no batch was given; expected at least one graph; pass a few batches of training data"
        )
    return {name: float(factor.value) for name, factor in factors.items()}
