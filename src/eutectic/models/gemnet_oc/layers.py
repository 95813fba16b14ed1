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
from eutectic.models.precision import autocast_dtype

INVERSE_ROOT_2 = 1 / math.sqrt(2)
"""Factor that preserves the variance of a sum of two terms."""


def scaled_silu(x: Tensor) -> Tensor:
    """SiLU(x) / 0.6, twice differentiable; with an efficient second derivative inside `second_derivatives(True)`."""
    if torch.compiler.is_compiling():
        return F.silu(x) * SILU_GAIN
    # The Python autograd function costs tens of microseconds per call, with six hundred calls per step.
    return _ScaledSiLU.apply(x) if _SECOND.get() else F.silu(x).mul_(SILU_GAIN)


_SECOND: ContextVar[bool] = ContextVar("second", default=False)


@contextmanager
def second_derivatives(enabled: bool) -> Iterator[None]:
    """Declare whether operations inside will be differentiated twice (training on gradient forces)."""
    token = _SECOND.set(enabled)
    try:
        yield
    finally:
        _SECOND.reset(token)


class _ScaledSiLU(torch.autograd.Function):
    """Scaled SiLU with an explicit second derivative. PyTorch's version takes some twenty passes over memory, which
    was a quarter of the time when training on gradient forces."""

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
    """Initialise a weight with an orthogonal matrix, standardised over its inputs, with variance 1 / fan-in.

    Args:
        weight: (out, in), or (in, angular, interaction) for a basis, whose inputs are the first two axes. Unchanged if
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
    """Uniformly distributed orthogonal matrices, as `nn.init.orthogonal_` but cheaper.

    `nn.init.orthogonal_` factorises a matrix of normal random numbers. The resulting reflections are those of
    independent normal vectors of decreasing length, so they can be drawn directly, without a factorisation (Stewart,
    SIAM J. Numer. Anal. 17, 403, 1980).
    """
    rows, columns = weight.shape[0], weight[0].numel()
    x = weight.new_empty(max(rows, columns), min(rows, columns)).normal_().tril_()
    diagonal = x.diagonal()
    # A uniform distribution requires a positive diagonal of the triangular factor.
    sign = torch.where(diagonal > 0, -1.0, 1.0).to(x.dtype)
    end = sign * torch.linalg.vector_norm(x, dim=0)
    scale = 1 - diagonal / end
    q = torch.linalg.householder_product(x.div_(diagonal - end), scale).mul_(sign)
    weight.copy_((q if rows >= columns else q.mT).reshape(weight.shape))


class Linear(nn.Module):
    """Linear layer without bias.

    Args:
        width_in, width_out: sizes of the last axes of input and output.
    """

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width_out, width_in))
        he_orthogonal_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)


Recompute = Callable[[], Tensor]
"""Recomputes a tensor from others that are saved anyway."""


SMALL = 2**18
"""Tensors with fewer elements are saved: recomputing them costs more time than a megabyte of memory is worth."""

_SAVE_ALL: ContextVar[bool] = ContextVar("save_all", default=False)


def without_recompute(block: Callable[..., Any]) -> Callable[..., Any]:
    """The same computation with `recomputed` off, for a block that is checkpointed as a whole."""

    second = _SECOND.get()

    def run(*inputs: object) -> Any:
        token = _SAVE_ALL.set(True)
        try:
            with second_derivatives(second):
                return block(*inputs)
        finally:
            _SAVE_ALL.reset(token)

    return run


def recomputed(*cheap: tuple[Tensor, Recompute | None]) -> AbstractContextManager[object]:
    """Operations inside do not save these tensors for the backward pass, but recompute them when needed.

    Saves a third of the memory of a training step at the cost of a few cheap elementwise passes.

    Args:
        cheap: tensors, each with the function that recomputes it; None saves the tensor.
    """
    # torch.compile decides by itself what to save.
    if not torch.is_grad_enabled() or torch.compiler.is_compiling() or _SAVE_ALL.get():
        return nullcontext()
    if cheap[0][0].numel() < SMALL:
        return nullcontext()
    functions = {_identity(tensor): recompute for tensor, recompute in cheap if recompute is not None}
    device = cheap[0][0].device
    # Recomputed in the precision of the forward pass, whatever autocast state the backward pass has.
    precision = autocast_dtype(device)

    def pack(tensor: Tensor) -> Tensor | Recompute:
        return functions.get(_identity(tensor), tensor)

    def unpack(saved: Tensor | Recompute) -> Tensor:
        if isinstance(saved, Tensor):
            return saved
        mixed = nullcontext() if precision is None else torch.autocast(device.type, precision, cache_enabled=False)
        with torch.no_grad(), mixed:
            return saved()

    return torch.autograd.graph.saved_tensors_hooks(pack, unpack)


def _identity(tensor: Tensor) -> tuple[object, ...]:
    """Key that identifies a tensor, also on the meta device, where all addresses are 0."""
    return tensor.untyped_storage()._cdata, tensor.storage_offset(), tensor.shape, tensor.dtype


class Dense(Linear):
    """Linear layer with activation."""

    def forward(self, x: Tensor) -> Tensor:
        return scaled_silu(F.linear(x, self.weight))


def joined(fresh: Tensor, x: Tensor) -> Tensor:
    """(fresh + x) / √2, in place: `fresh` must not be used elsewhere."""
    # In mixed precision the result has the wider dtype.
    return (fresh.add_(x) if fresh.dtype == x.dtype else fresh + x).mul_(INVERSE_ROOT_2)


class Residual(nn.Module):
    """(x + f(x)) / √2, f two dense layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = Dense(width, width)
        self.second = Dense(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.with_recompute(x)[0]

    def with_recompute(self, x: Tensor, recompute_x: Recompute | None = None) -> tuple[Tensor, Recompute]:
        """The output and a function that recomputes it; `recompute_x` recomputes x."""
        with recomputed((x, recompute_x)):
            before = F.linear(x, self.first.weight)
        inner = scaled_silu(before)
        with recomputed((inner, lambda: scaled_silu(before))):
            after = F.linear(inner, self.second.weight)

        def total(x: Tensor) -> Tensor:
            return joined(scaled_silu(after), x)

        # x need not be saved if it can be recomputed.
        recompute = (lambda: total(x)) if recompute_x is None else (lambda: total(recompute_x()))
        return total(x), recompute


class Residuals(nn.Sequential):
    """Sequence of residual layers; each saves for the backward pass only what cannot be recomputed from the first x."""

    def forward(self, x: Tensor) -> Tensor:
        return self.with_recompute(x)[0]

    def with_recompute(self, x: Tensor) -> tuple[Tensor, Recompute | None]:
        """The features and a function that recomputes them (None if there are no layers)."""
        recompute: Recompute | None = None
        for layer in self:
            x, recompute = layer.with_recompute(x, recompute)  # type: ignore[operator]
        return x, recompute


class Filter(Linear):
    """Radial filter: x · W r, with r the projected radial basis of an edge."""

    def forward(  # type: ignore[override]
        self, x: Tensor, radial: Tensor, recompute_x: Recompute | None = None
    ) -> Tensor:
        """(rows, width); `recompute_x` recomputes x, so that x need not be saved."""
        weight = self.weight
        factors = F.linear(radial, weight)
        with recomputed((factors, lambda: F.linear(radial, weight)), (x, recompute_x)):
            return x * factors


def residuals(count: int, width: int) -> Residuals:
    """A sequence of `count` residual layers; the identity for 0."""
    return Residuals(*(Residual(width) for _ in range(count)))


class ScaleFactor(nn.Module):
    """Scale by a factor fitted once before training, so that a layer preserves the variance of its input.

    The factor is a buffer: 1 until fitted, saved with the weights, never copied from the device. See
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
        """x times the factor.

        Args:
            x: (rows, features) output of a layer.
            reference: (reference_rows, features) input of the layer; its size may differ.
            rows, reference_rows: masks of the rows that are not padding; used only for fitting.
        """
        if self.observed is not None:
            self._fit(
                x if rows is None else x[rows],
                reference if reference_rows is None else reference[reference_rows],
            )
        return x * self.value

    def radial(self, filtered: Filter, x: Tensor, radial: Tensor) -> Tensor:
        """Apply the factor to the radial basis of `filtered(x, radial)`, which is smaller than the product."""
        if self.observed is not None:
            self._fit(filtered(x, radial), x)
        return radial * self.value

    def _fit(self, x: Tensor, reference: Tensor) -> None:
        assert self.observed is not None
        if min(len(x), len(reference)) > 1:
            before, after = reference.var(0).mean(), x.var(0).mean()
            if after > 0 and before > 0:
                self.observed.append((before, after))
                self.value.copy_((before / after).sqrt())
