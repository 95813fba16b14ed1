"""Building blocks that several models share."""

from __future__ import annotations

import torch
from torch import Tensor

SILU_GAIN = 1 / 0.6
"""SiLU times this keeps the variance of a standard normal input (GemNet, Gasteiger et al. 2021, appendix)."""


def polynomial_envelope(x: Tensor, exponent: int) -> Tensor:
    """1 at x = 0, and 0 from x = 1 on, where its slope and curvature are 0 too.

    u(x) = 1 - (p+1)(p+2)/2 x^p + p(p+2) x^(p+1) - p(p+1)/2 x^(p+2) (DimeNet, Gasteiger et al. 2020,
    arXiv:2003.03123, eq. 8).

    Args:
        x: distance over cutoff, of any shape.
        exponent: p.
    """
    p = exponent
    a, b, c = -(p + 1) * (p + 2) / 2, p * (p + 2), -p * (p + 1) / 2
    return torch.where(x < 1, 1 + x**p * (a + x * (b + x * c)), 0)
