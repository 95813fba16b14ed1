"""Building blocks that several models share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

SILU_GAIN = 1 / 0.6
"""Factor on SiLU that preserves the variance of a standard normal input (GemNet, Gasteiger et al. 2021, appendix)."""


def polynomial_envelope(x: Tensor, exponent: int) -> Tensor:
    """Polynomial cutoff: 1 at x = 0; 0 for x ≥ 1, with zero slope and curvature at x = 1.

    u(x) = 1 - (p+1)(p+2)/2 x^p + p(p+2) x^(p+1) - p(p+1)/2 x^(p+2) (DimeNet, Gasteiger et al. 2020,
    arXiv:2003.03123, eq. 8).

    Args:
        x: distance over cutoff, of any shape.
        exponent: p.
    """
    p = exponent
    a, b, c = -(p + 1) * (p + 2) / 2, p * (p + 2), -p * (p + 1) / 2
    return torch.where(x < 1, 1 + x**p * (a + x * (b + x * c)), 0)


def perceptron(width_in: int, width: int, width_out: int) -> nn.Sequential:
    """Two linear layers with a SiLU between them."""
    return nn.Sequential(nn.Linear(width_in, width), nn.SiLU(), nn.Linear(width, width_out))
