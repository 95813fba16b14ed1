"""Operations on edges as PyTorch operators of their own, which a compiler does not look into.

Each is differentiable any number of times: derivatives are again operators of this file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op


def summed(x: Tensor, index: Tensor, n: int) -> Tensor:
    """Sum of the rows of x with the same index, as plain operations: (rows, …), (rows,) → (n, …)."""
    return x.new_zeros((n, *x.shape[1:])).index_add_(0, index, x)


@custom_op("eutectic::gather", mutates_args=(), schema="(Tensor x, Tensor index) -> Tensor")
def gather(x: Tensor, index: Tensor) -> Tensor:
    """x[index]: (rows, …), (n,) → (n, …)."""
    return x.index_select(0, index)


@custom_op("eutectic::scatter_sum", mutates_args=(), schema="(Tensor x, Tensor index, SymInt n) -> Tensor")
def scatter_sum(x: Tensor, index: Tensor, n: int) -> Tensor:
    """See `summed`."""
    return summed(x, index, n)


@custom_op("eutectic::scatter_largest", mutates_args=(), schema="(Tensor x, Tensor index, SymInt n) -> Tensor")
def scatter_largest(x: Tensor, index: Tensor, n: int) -> Tensor:
    """Largest of 0 and the rows of x with the same index, taken as constants: (rows, m), (rows,) → (n, m)."""
    return x.new_zeros(n, x.shape[1]).scatter_reduce_(0, index[:, None].expand_as(x), x, "amax")


@custom_op(
    "eutectic::carry",
    mutates_args=(),
    schema="(Tensor weights, Tensor x, Tensor source, Tensor target, int[] degrees) -> Tensor",
)
def carry(weights: Tensor, x: Tensor, source: Tensor, target: Tensor, degrees: Sequence[int]) -> Tensor:
    """See `eutectic.graph.operations.carry`."""
    result = torch.zeros_like(x, memory_format=torch.contiguous_format)
    for part, begin, end in _pieces(source, target, x[:1].numel()):
        message = x.index_select(0, begin)
        for d, components in enumerate(message.split(degrees, dim=1)):
            components.mul_(weights[part, d : d + 1])
        result.index_add_(0, end, message)
    return result


@custom_op(
    "eutectic::meet",
    mutates_args=(),
    schema="(Tensor x, Tensor y, Tensor source, Tensor target, int[] degrees) -> Tensor",
)
def meet(x: Tensor, y: Tensor, source: Tensor, target: Tensor, degrees: Sequence[int]) -> Tensor:
    """See `eutectic.graph.operations.meet`."""
    result = x.new_empty(source.shape[0], len(degrees), x.shape[2])
    for part, begin, end in _pieces(source, target, x[:1].numel()):
        product = x.index_select(0, begin).mul_(y.index_select(0, end))
        for d, components in enumerate(product.split(degrees, dim=1)):
            torch.sum(components, dim=1, out=result[part, d])
    return result


def _pieces(source: Tensor, target: Tensor, numbers: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Ranges of edges with their atoms: about 2^18 numbers each on a CPU, so that they fit into a core's cache; all
    edges at once on other devices."""
    n = len(source)
    step = max(1, 2**18 // max(numbers, 1)) if source.device.type == "cpu" else max(n, 1)
    for first in range(0, n, step):
        part = slice(first, min(first + step, n))
        yield part, source[part], target[part]


@gather.register_fake
def _(x: Tensor, index: Tensor) -> Tensor:
    return x.new_empty((index.shape[0], *x.shape[1:]))


@scatter_sum.register_fake
def _(x: Tensor, index: Tensor, n: int) -> Tensor:
    return x.new_empty((n, *x.shape[1:]))


@scatter_largest.register_fake
def _(x: Tensor, index: Tensor, n: int) -> Tensor:
    return x.new_empty(n, x.shape[1])


@carry.register_fake
def _(weights: Tensor, x: Tensor, source: Tensor, target: Tensor, degrees: Sequence[int]) -> Tensor:
    return x.new_empty(x.shape)


@meet.register_fake
def _(x: Tensor, y: Tensor, source: Tensor, target: Tensor, degrees: Sequence[int]) -> Tensor:
    return x.new_empty(source.shape[0], len(degrees), x.shape[2])


own = torch.ops.eutectic


def _gather_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.n, ctx.index = inputs[0].shape[0], inputs[1]


def _sum_context(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: Tensor) -> None:
    ctx.index = inputs[1]


def _edges_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, Tensor, Sequence[int]], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.degrees = inputs[4]


def _carry_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
    weights, x, source, target = ctx.saved_tensors
    needs_weights, needs_x, *_ = ctx.needs_input_grad
    of_weights = own.meet(x, grad, source, target, ctx.degrees) if needs_weights else None
    of_x = own.carry(weights, grad, target, source, ctx.degrees) if needs_x else None
    return of_weights, of_x, None, None, None


def _meet_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
    x, y, source, target = ctx.saved_tensors
    needs_x, needs_y, *_ = ctx.needs_input_grad
    of_x = own.carry(grad, y, target, source, ctx.degrees) if needs_x else None
    of_y = own.carry(grad, x, source, target, ctx.degrees) if needs_y else None
    return of_x, of_y, None, None, None


gather.register_autograd(
    lambda ctx, grad: (own.scatter_sum(grad, ctx.index, ctx.n), None), setup_context=_gather_context
)
scatter_sum.register_autograd(lambda ctx, grad: (own.gather(grad, ctx.index), None, None), setup_context=_sum_context)
scatter_largest.register_autograd(lambda ctx, grad: (None, None, None))
carry.register_autograd(_carry_backward, setup_context=_edges_context)
meet.register_autograd(_meet_backward, setup_context=_edges_context)
