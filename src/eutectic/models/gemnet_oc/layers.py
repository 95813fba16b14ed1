"""Layers of GemNet-OC (Gasteiger et al., TMLR 2022; GemNet: Gasteiger et al., NeurIPS 2021, appendix)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from eutectic.models.components import SILU_GAIN
from eutectic.models.precision import lowered

INVERSE_ROOT_2 = 1 / math.sqrt(2)
"""Keeps the variance of a sum of two."""


def scaled_silu(x: Tensor) -> Tensor:
    """SiLU(x) / 0.6, differentiable twice, and in few passes where `second_derivatives` says so."""
    if torch.compiler.is_compiling():
        return F.silu(x) * SILU_GAIN
    # What is written in Python costs tens of microseconds a call, six hundred times a step.
    return _ScaledSiLU.apply(x) if _SECOND.get() else F.silu(x).mul_(SILU_GAIN)


_SECOND: ContextVar[bool] = ContextVar("second", default=False)


@contextmanager
def second_derivatives(wanted: bool) -> Iterator[None]:
    """What is computed inside will be differentiated twice (forces as gradients, that are trained on), or not."""
    token = _SECOND.set(wanted)
    try:
        yield
    finally:
        _SECOND.reset(token)


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
        _orthogonal_(weight)
        # A single input has no variance to standardise.
        if math.prod(weight.shape[i] for i in inputs) > 1:
            variance, mean = torch.var_mean(weight, dim=inputs, keepdim=True)
            weight.sub_(mean).div_((variance + 1e-6).sqrt())
        weight.mul_(math.sqrt(1 / math.prod(weight.shape[i] for i in inputs)))


def _orthogonal_(weight: Tensor) -> None:
    """Uniformly distributed orthogonal matrices as `nn.init.orthogonal_` gives them, with less work.

    That one factorises a matrix of normal numbers. The reflections this leads to are those of independent normal
    vectors, one a number shorter than the last (Stewart, SIAM J. Numer. Anal. 17, 403, 1980): nothing is factorised.
    """
    rows, columns = weight.shape[0], weight[0].numel()
    x = weight.new_empty(max(rows, columns), min(rows, columns)).normal_().tril_()
    diagonal = x.diagonal()
    # Of the triangle's diagonal, which is to be positive for a uniform distribution.
    sign = torch.where(diagonal > 0, -1.0, 1.0).to(x.dtype)
    end = sign * torch.linalg.vector_norm(x, dim=0)
    scale = 1 - diagonal / end
    q = torch.linalg.householder_product(x.div_(diagonal - end), scale).mul_(sign)
    weight.copy_((q if rows >= columns else q.mT).reshape(weight.shape))


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


Recompute = Callable[[], Tensor]
"""Makes a tensor's values once more, from others that are kept anyway."""


SMALL = 2**18
"""Tensors of fewer elements are kept: making them again costs more time than their megabyte is worth."""

_KEEPING_ALL: ContextVar[bool] = ContextVar("keeping_all", default=False)


def recomputing_all(block: Callable[..., Any]) -> Callable[..., Any]:
    """The same computation without `recomputed`: for a block that is as a whole computed again in the backward pass."""

    second = _SECOND.get()

    def run(*given: object) -> Any:
        token = _KEEPING_ALL.set(True)
        try:
            with second_derivatives(second):
                return block(*given)
        finally:
            _KEEPING_ALL.reset(token)

    return run


def recomputed(*cheap: tuple[Tensor, Recompute | None]) -> AbstractContextManager[object]:
    """Operations inside do not keep these tensors for their backward pass: each is computed again when it is needed.

    Saves a third of the memory of a training step, for a few passes of cheap arithmetic.

    Args:
        cheap: a tensor and its maker; without one it is kept.
    """
    # A compiler decides for itself what to keep.
    if not torch.is_grad_enabled() or torch.compiler.is_compiling() or _KEEPING_ALL.get():
        return nullcontext()
    if cheap[0][0].numel() < SMALL:
        return nullcontext()
    makers = {_place(tensor): recompute for tensor, recompute in cheap if recompute is not None}
    device = cheap[0][0].device
    # Made again in the precision it was first made in, whatever holds in the backward pass.
    precision = lowered(device)

    def keep(tensor: Tensor) -> Tensor | Recompute:
        return makers.get(_place(tensor), tensor)

    def give(kept: Tensor | Recompute) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        mixed = nullcontext() if precision is None else torch.autocast(device.type, precision, cache_enabled=False)
        with torch.no_grad(), mixed:
            return kept()

    return torch.autograd.graph.saved_tensors_hooks(keep, give)


def _place(tensor: Tensor) -> tuple[object, ...]:
    """Tells tensors apart, on the meta device as well, where all addresses are 0."""
    return tensor.untyped_storage()._cdata, tensor.storage_offset(), tensor.shape, tensor.dtype


class Dense(Linear):
    """A matrix product, then the activation."""

    def forward(self, x: Tensor) -> Tensor:
        return scaled_silu(F.linear(x, self.weight))


def joined(fresh: Tensor, x: Tensor) -> Tensor:
    """(fresh + x) / √2, in place: `fresh` must not be used elsewhere."""
    # In mixed precision the wider of the two wins.
    return (fresh.add_(x) if fresh.dtype == x.dtype else fresh + x).mul_(INVERSE_ROOT_2)


class Residual(nn.Module):
    """(x + f(x)) / √2, f two dense layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = Dense(width, width)
        self.second = Dense(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.with_recompute(x)[0]

    def with_recompute(self, x: Tensor, again: Recompute | None = None) -> tuple[Tensor, Recompute]:
        """The sum, and what makes it once more; `again` does that for x."""
        with recomputed((x, again)):
            before = F.linear(x, self.first.weight)
        inner = scaled_silu(before)
        with recomputed((inner, lambda: scaled_silu(before))):
            after = F.linear(inner, self.second.weight)

        def total(x: Tensor) -> Tensor:
            return joined(scaled_silu(after), x)

        # Only an x that is made again may be forgotten.
        recompute = (lambda: total(x)) if again is None else (lambda: total(again()))
        return total(x), recompute


class Residuals(nn.Sequential):
    """Residual layers in a row, each keeping for its backward pass only what it cannot make again from the first x."""

    def forward(self, x: Tensor) -> Tensor:
        return self.with_recompute(x)[0]

    def with_recompute(self, x: Tensor) -> tuple[Tensor, Recompute | None]:
        """The features, and what makes them once more (None for no layers)."""
        recompute: Recompute | None = None
        for layer in self:
            x, recompute = layer.with_recompute(x, recompute)  # type: ignore[operator]
        return x, recompute


class Filter(Linear):
    """Features times a linear function of the radial basis: x · W r, r the projected radial basis of an edge."""

    def forward(self, x: Tensor, radial: Tensor, again: Recompute | None = None) -> Tensor:  # type: ignore[override]
        """(rows, width); `again` makes x once more, so that it need not be kept."""
        weight = self.weight
        numbers = F.linear(radial, weight)
        with recomputed((numbers, lambda: F.linear(radial, weight)), (x, again)):
            return x * numbers


def residuals(count: int, width: int) -> Residuals:
    """`count` residual layers in a row; none gives the identity."""
    return Residuals(*(Residual(width) for _ in range(count)))


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
            x: (rows, features) output of a layer.
            reference: (reference_rows, features) its input, perhaps of another size.
            rows, reference_rows: masks of the real rows, if some are padding; used in fitting alone.
        """
        if self.observed is not None:
            self._fit(
                x if rows is None else x[rows],
                reference if reference_rows is None else reference[reference_rows],
            )
        return x * self.value

    def radial(self, filtered: Filter, x: Tensor, radial: Tensor) -> Tensor:
        """The radial basis with which `filtered(x, radial)` is scaled: it is smaller than the product."""
        if self.observed is not None:
            self._fit(filtered(x, radial), x)
        return radial * self.value

    def _fit(self, x: Tensor, reference: Tensor) -> None:
        assert self.observed is not None
        if min(len(x), len(reference)) > 1:
            given, got = reference.var(0).mean(), x.var(0).mean()
            if got > 0 and given > 0:
                self.observed.append((given, got))
                self.value.copy_((given / got).sqrt())
