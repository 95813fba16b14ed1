"""Low-rank adaptation (LoRA): train a small change of each weight matrix instead of the matrix.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022 (arXiv:2106.09685): a matrix W (m × n) stays
as it is, and B A is added to it, with B (m × r) and A (r × n) trained, of a rank r far below m and n. A begins as
random numbers of variance 1/n and B as zeros, so that the model begins as it was. Here B A is not scaled (α = r in the
paper).

    add_low_rank(backbone, rank=8)    # the matrices are frozen, and read as W + B A
    …                                 # training
    merge_low_rank(backbone)          # the sums become the weights: an ordinary model again, with the same predictions

Every layer that reads its `weight` sees the sum (`torch.nn.utils.parametrize`), so no layer need know of this, and
derivatives of any order work.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

WEIGHT = "weight"


class LowRankSum(nn.Module):
    """W → W + B A.

    Args:
        weight: W, whose shape, dtype and device are taken.
        rank: of B A; at most the smaller side of W.
    """

    def __init__(self, weight: Float[Tensor, "m n"], rank: int) -> None:
        super().__init__()
        m, n = weight.shape
        rank = min(rank, m, n)
        self.a = nn.Parameter(weight.new_empty(rank, n).normal_(0.0, 1 / math.sqrt(n)))
        self.b = nn.Parameter(weight.new_zeros(m, rank))

    def forward(self, weight: Float[Tensor, "m n"]) -> Float[Tensor, "m n"]:
        return torch.addmm(weight, self.b, self.a)


def weight_matrices(module: nn.Module, wanted: Callable[[str], bool] = lambda name: True) -> Iterator[nn.Module]:
    """The layers with a weight matrix: linear ones of every kind. Embeddings, of which each structure reads a few rows
    only, are not among them, nor are layers compiled by other packages.

    Args:
        module: whose layers are looked for.
        wanted: whether to take the parameter of that name.
    """
    for name, layer in module.named_modules():
        own = dict(layer.named_parameters(recurse=False)).get(WEIGHT)
        if own is None or own.ndim != 2 or isinstance(layer, nn.Embedding | torch.jit.ScriptModule):
            continue
        if wanted(f"{name}.{WEIGHT}" if name else WEIGHT):
            yield layer


def add_low_rank(module: nn.Module, rank: int, wanted: Callable[[str], bool] = lambda name: True) -> int:
    """Freeze a module and add low-rank changes, which are trained, to its weight matrices.

    Args:
        module: in place.
        rank: r.
        wanted: whether to add one to the matrix of that name; all by default.

    Returns:
        The number of matrices.
    """
    module.requires_grad_(False)
    layers = list(weight_matrices(module, wanted))
    for layer in layers:
        parametrize.register_parametrization(layer, WEIGHT, LowRankSum(layer.get_parameter(WEIGHT), rank))
    return len(layers)


def merge_low_rank(module: nn.Module) -> nn.Module:
    """Make the sums the weights, in place: the module is as it was before `add_low_rank`, with other weights.

    Returns:
        The module, all of whose parameters can be trained again.
    """
    for layer in list(module.modules()):
        if parametrize.is_parametrized(layer, WEIGHT):
            parametrize.remove_parametrizations(layer, WEIGHT, leave_parametrized=True)
    return module.requires_grad_(True)
