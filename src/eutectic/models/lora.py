"""Low-rank adaptation (LoRA): train a low-rank update of each weight matrix instead of the matrix itself.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022 (arXiv:2106.09685): a matrix W (m × n) is
frozen and B A is added to it, with B (m × r) and A (r × n) trained and the rank r far below m and n. A starts from
random numbers of variance 1/n and B from zeros, so that the initial model is unchanged. Here B A is not scaled (α = r
in the paper).

    add_low_rank(backbone, rank=8)    # W is frozen; layers use W + B A
    …                                 # training
    merge_low_rank(backbone)          # W + B A becomes the weight: an ordinary model with the same predictions

Every layer that reads its `weight` gets the sum (`torch.nn.utils.parametrize`), so layers need no change, and
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
        weight: W, which sets shape, dtype and device.
        rank: rank of B A; limited to the smaller side of W.
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
    """The layers with a weight matrix: linear layers of every kind. Embeddings, of which a structure uses only a few
    rows, are excluded, and so are layers compiled by other packages.

    Args:
        module: module to search.
        wanted: whether to include the parameter of that name.
    """
    for name, layer in module.named_modules():
        own = dict(layer.named_parameters(recurse=False)).get(WEIGHT)
        if own is None or own.ndim != 2 or isinstance(layer, nn.Embedding | torch.jit.ScriptModule):
            continue
        if wanted(f"{name}.{WEIGHT}" if name else WEIGHT):
            yield layer


def add_low_rank(module: nn.Module, rank: int, wanted: Callable[[str], bool] = lambda name: True) -> int:
    """Freeze a module and add trainable low-rank updates to its weight matrices.

    Args:
        module: changed in place.
        rank: r.
        wanted: whether to update the matrix of that name; all by default.

    Returns:
        The number of updated matrices.
    """
    module.requires_grad_(False)
    layers = list(weight_matrices(module, wanted))
    for layer in layers:
        parametrize.register_parametrization(layer, WEIGHT, LowRankSum(layer.get_parameter(WEIGHT), rank))
    return len(layers)


def merge_low_rank(module: nn.Module) -> nn.Module:
    """Merge the updates into the weights, in place: the module has its original structure again, with new weights.

    Returns:
        The module, with all parameters trainable.
    """
    for layer in list(module.modules()):
        if parametrize.is_parametrized(layer, WEIGHT):
            parametrize.remove_parametrizations(layer, WEIGHT, leave_parametrized=True)
    return module.requires_grad_(True)
