"""Choose the faster CPU matmul backend (MKL or oneDNN)."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import nn

WIDE = 256
"""Minimum layer width for oneDNN; narrower layers are slower with it (128: by half)."""

EXACT = 1e-5
"""Largest relative error of a matmul in single precision (bfloat16's is 3e-3)."""

ZEN_5 = 26
"""CPU family of AMD's first processors with full 512-bit units; on earlier ones MKL is as fast."""


def prefer_fast_matmul(model: nn.Module) -> bool:
    """Use oneDNN for single-precision matmuls on AMD's Zen 5 and later: twice as fast as MKL, and as accurate.

    PyTorch uses MKL unless oneDNN may lower the precision (`fp32_precision`); on these processors oneDNN does not lower
    it, which is checked here on one matmul. The choice depends on processor, layer widths and error, not on timing, so
    that a resumed run makes the same choice. It applies to the whole process, and not to GPUs or other precisions.

    Earlier processors use MKL. On Zen 4, oneDNN's matmuls take 7 % less time, but it compiles kernels for every new
    shape, and each batch has new shapes: that takes as much time again, and a gigabyte of memory.

    Args:
        model: the model to run. Only models with layers of at least `WIDE` features benefit.

    Returns:
        Whether oneDNN is used from now on.
    """
    if not any(p.ndim == 2 and min(p.shape) >= WIDE for p in model.parameters()):
        return False
    matmul = getattr(torch.backends.mkldnn, "matmul", None)
    if matmul is None or not torch.backends.mkldnn.is_available() or not _has_wide_units():
        return False
    before = matmul.fp32_precision
    matmul.fp32_precision = "bf16"
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(256, 256, generator=generator) for _ in range(2))
    exact = a.double() @ b.double()
    if ((a @ b).double() - exact).norm() <= EXACT * exact.norm():
        return True
    matmul.fp32_precision = before
    return False


def _has_wide_units() -> bool:
    try:
        cpuinfo = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    family = re.search(r"^cpu family\s*:\s*(\d+)$", cpuinfo, re.MULTILINE)
    return "AuthenticAMD" in cpuinfo and family is not None and int(family[1]) >= ZEN_5
