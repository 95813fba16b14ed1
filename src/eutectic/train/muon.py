"""Muon: orthogonalised updates for matrices, and AdamW for everything else.

Jordan et al. 2024, kellerjordan.github.io/posts/muon: the momentum of a matrix is replaced by the nearest matrix with
orthonormal rows or columns, with five Newton-Schulz iterations. Liu et al. 2025 (arXiv 2502.16982): the update is
multiplied by 0.2 √max(rows, columns), which makes its entries as large as those of AdamW, so that AdamW's learning rate
and weight decay can be used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from eutectic.atoms import EutecticError

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Coefficients of x → a x + b x³ + c x⁵; five iterations map singular values in (0, 1] to between 0.7 and 1.2."""

ITERATIONS = 5
MOMENTUM = 0.95
LEAST = 8
"""Minimum rows and columns for orthogonalisation; the last layer of a head, with one row, is treated as a vector."""


def orthogonalised(matrix: Tensor) -> Tensor:
    """Approximately the nearest matrix with orthonormal rows (or columns, if there are fewer of them).

    Args:
        matrix: (rows, columns).
    """
    a, b, c = COEFFICIENTS
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / (x.norm() + 1e-12)
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


class Muon(torch.optim.Optimizer):
    """Muon for matrices, AdamW for embeddings, biases, vectors and last layers.

    Args:
        groups: parameter groups as for other optimisers; `matrices` says whether Muon is used.
        lr, betas, weight_decay: as for AdamW.

    Raises:
        EutecticError: sharded parameters.
    """

    def __init__(
        self, groups: Iterable[dict[str, Any]], *, lr: float, betas: tuple[float, float], weight_decay: float
    ) -> None:
        super().__init__(list(groups), {"lr": lr, "betas": betas, "weight_decay": weight_decay, "matrices": False})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            update = self._muon if group["matrices"] else self._adamw
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                if isinstance(parameter, DTensor):
                    raise EutecticError(
                        "optimiser.name",
                        "muon, with parameters sharded over devices",
                        "full matrices in every process",
                        "use adamw, or a strategy without sharding",
                    )
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update(parameter, group), alpha=-group["lr"])

    def _muon(self, parameter: Tensor, group: dict[str, Any]) -> Tensor:
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        state["momentum"].lerp_(gradient, 1 - MOMENTUM)
        step = gradient.lerp(state["momentum"], MOMENTUM)
        return orthogonalised(step) * (0.2 * math.sqrt(max(parameter.shape)))

    def _adamw(self, parameter: Tensor, group: dict[str, Any]) -> Tensor:
        state, gradient, (first, second) = self.state[parameter], parameter.grad, group["betas"]
        assert gradient is not None
        if not state:
            state["step"] = 0
            state["mean"], state["square"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        state["step"] += 1
        state["mean"].lerp_(gradient, 1 - first)
        state["square"].mul_(second).addcmul_(gradient, gradient, value=1 - second)
        scale = math.sqrt(1 - second ** state["step"]) / (1 - first ** state["step"])
        root = state["square"].sqrt().add_(1e-8 * math.sqrt(1 - second ** state["step"]))
        return scale * state["mean"] / root


def is_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Whether Muon is used for a parameter; embedding tables are lists of vectors, not matrices."""
    return parameter.ndim == 2 and min(parameter.shape) >= LEAST and "embedding" not in name
