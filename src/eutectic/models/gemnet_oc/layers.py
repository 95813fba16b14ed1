"""What GemNet-OC is made of (Gasteiger et al., TMLR 2022; GemNet: Gasteiger et al., NeurIPS 2021, appendix)."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

SILU_GAIN = 1 / 0.6
"""Keeps the variance of a standard normal input (GemNet, appendix on the architecture)."""

HALF = 1 / math.sqrt(2)
"""Keeps the variance of a sum of two."""


def scaled_silu(x: Tensor) -> Tensor:
    """SiLU(x) / 0.6, differentiable twice."""
    return _ScaledSiLU.apply(x)


class _ScaledSiLU(torch.autograd.Function):
    """With its second derivative written out: PyTorch's own comes to some twenty passes over memory, and where
    forces are trained on as gradients of the energy that was a quarter of the time."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return F.silu(x).mul_(SILU_GAIN)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return _ScaledSiLUGradient.apply(grad, x) if torch.is_grad_enabled() else _silu_gradient(grad, x)


class _ScaledSiLUGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, grad: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(grad, x)
        return _silu_gradient(grad, x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, second: Tensor) -> tuple[Tensor, Tensor]:
        grad, x = ctx.saved_tensors
        # SiLU'' = σ (1 - σ) (2 + x (1 - 2σ))
        sigmoid = torch.sigmoid(x)
        factor = (1 - 2 * sigmoid).mul_(x).add_(2)
        factor.mul_(sigmoid.addcmul_(sigmoid, sigmoid, value=-1)).mul_(grad).mul_(second).mul_(SILU_GAIN)
        return _silu_gradient(second, x), factor


def _silu_gradient(grad: Tensor, x: Tensor) -> Tensor:
    return torch.ops.aten.silu_backward(grad, x).mul_(SILU_GAIN)


def he_orthogonal_(weight: Tensor) -> None:
    """Fills a weight with an orthogonal matrix, standardised over its inputs, of variance 1 / fan-in.

    Args:
        weight: (out, in), or (in, angular, interaction) of a basis, whose inputs are the first two axes. Left alone
            on the meta device.
    """
    if weight.is_meta:
        return
    inputs = (1,) if weight.ndim == 2 else (0, 1)
    with torch.no_grad():
        nn.init.orthogonal_(weight)
        # A single input has no variance to standardise.
        if math.prod(weight.shape[i] for i in inputs) > 1:
            variance, mean = torch.var_mean(weight, dim=inputs, keepdim=True)
            weight.sub_(mean).div_((variance + 1e-6).sqrt())
        weight.mul_(math.sqrt(1 / math.prod(weight.shape[i] for i in inputs)))


class Linear(nn.Module):
    """A matrix product; no bias.

    Args:
        width_in, width_out: sizes of the last axes.
    """

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width_out, width_in))
        he_orthogonal_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)


class Dense(Linear):
    """A matrix product, then the activation."""

    def forward(self, x: Tensor) -> Tensor:
        return scaled_silu(F.linear(x, self.weight))


class Residual(nn.Module):
    """(x + f(x)) / √2, f two dense layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = Dense(width, width)
        self.second = Dense(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.second(self.first(x))).mul_(HALF)


def residuals(count: int, width: int) -> nn.Sequential:
    """`count` residual layers in a row; none gives the identity."""
    return nn.Sequential(*(Residual(width) for _ in range(count)))


class ScaleFactor(nn.Module):
    """Multiplies by a number fitted once before training, so that a layer keeps its input's variance.

    The number is a buffer: 1 until fitted, saved with the weights, never read back from the device. See
    `fit_scale_factors`.
    """

    value: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("value", torch.ones(()))
        self.observed: list[tuple[Tensor, Tensor]] | None = None

    def forward(
        self,
        x: Tensor,
        reference: Tensor,
        rows: Bool[Tensor, " rows"] | None = None,
        reference_rows: Bool[Tensor, " reference_rows"] | None = None,
    ) -> Tensor:
        """x, scaled.

        Args:
            x: (rows, features) what a layer gave.
            reference: (reference_rows, features) what it was given; of another size perhaps.
            rows, reference_rows: which of them are real, if not all; only fitting needs to know.
        """
        if self.observed is not None:
            self._fit(
                x if rows is None else x[rows],
                reference if reference_rows is None else reference[reference_rows],
            )
        return x * self.value

    def _fit(self, x: Tensor, reference: Tensor) -> None:
        assert self.observed is not None
        if min(len(x), len(reference)) > 1:
            given, got = reference.var(0).mean(), x.var(0).mean()
            if got > 0 and given > 0:
                self.observed.append((given, got))
                self.value.copy_((given / got).sqrt())


def sum_to_atoms(
    x: Float[Tensor, "edges width"], target: Int[Tensor, edges], n_atoms: int
) -> Float[Tensor, "atoms width"]:
    """Sum over the edges into each atom."""
    return x.new_zeros(n_atoms, x.shape[1]).index_add(0, target, x)
