"""Operations on a graph's edges."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from eutectic.graph.graph import Edges


def sum_over_neighbours(messages: Tensor, edges: Edges, n_atoms: int) -> Tensor:
    """Sum the messages over the edges into each atom: (edges, …) → (atoms, …), in at least float32."""
    messages = messages.float() if messages.dtype in (torch.bfloat16, torch.float16) else messages
    if torch.compiler.is_compiling():
        return summed(messages, edges.target, n_atoms)
    result: Tensor = _Sum.apply(messages, edges.target, n_atoms)
    return result


def summed(messages: Tensor, target: Tensor, n_atoms: int) -> Tensor:
    """Sum rows with the same target, as plain operations: (edges, …), (edges,) → (atoms, …)."""
    return messages.new_zeros((n_atoms, *messages.shape[1:])).index_add_(0, target, messages)


class _Sum(torch.autograd.Function):
    """`index_add` that does not save the messages for the backward pass; PyTorch's saves them only for their shape."""

    @staticmethod
    def forward(ctx: Any, messages: Tensor, target: Tensor, n_atoms: int) -> Tensor:
        ctx.save_for_backward(target)
        return summed(messages, target, n_atoms)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (target,) = ctx.saved_tensors
        return grad.index_select(0, target), None, None


def carry(
    weights: Float[Tensor, "edges degrees width"],
    x: Float[Tensor, "atoms components width"],
    source: Int[Tensor, edges],
    target: Int[Tensor, edges],
    degrees: tuple[int, ...],
) -> Float[Tensor, "atoms components width"]:
    """Σ_e w_e ∘ x_source(e) over the edges e into each atom, with one weight for all components of a degree.

    The derivatives of this and `meet` are expressed by each other, so no derivative of any order holds a tensor of
    (edges, components, width): edges are processed in pieces that fit into a core's cache.

    Args:
        weights: one number per edge, degree and channel.
        x: features of the atoms.
        source, target: atoms of each edge, in any order.
        degrees: number of components of each degree; they sum to the number of components.
    """
    if torch.compiler.is_compiling():
        spread = weights.repeat_interleave(torch.tensor(degrees, device=x.device), dim=1, output_size=sum(degrees))
        return torch.zeros_like(x).index_add(0, target, spread * x[source])
    result: Tensor = _Carry.apply(weights, x, source, target, degrees)
    return result


def meet(
    x: Float[Tensor, "atoms components width"],
    y: Float[Tensor, "atoms components width"],
    source: Int[Tensor, edges],
    target: Int[Tensor, edges],
    degrees: tuple[int, ...],
) -> Float[Tensor, "edges degrees width"]:
    """Inner products Σ_m x_source,m y_target,m of each edge over the components m of each degree (see `carry`)."""
    if torch.compiler.is_compiling():
        products = (x[source] * y[target]).split(degrees, dim=1)
        return torch.stack([product.sum(1) for product in products], dim=1)
    result: Tensor = _Meet.apply(x, y, source, target, degrees)
    return result


def _pieces(source: Tensor, target: Tensor, numbers: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Ranges of edges with their atoms: about 2^18 numbers each on a CPU, all edges at once on other devices."""
    n = len(source)
    step = max(1, 2**18 // max(numbers, 1)) if source.device.type == "cpu" else max(n, 1)
    for first in range(0, n, step):
        part = slice(first, min(first + step, n))
        yield part, source[part], target[part]


class _Carry(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, weights: Tensor, x: Tensor, source: Tensor, target: Tensor, degrees: tuple[int, ...]
    ) -> Tensor:
        ctx.save_for_backward(weights, x, source, target)
        ctx.degrees = degrees
        result = torch.zeros_like(x)
        for part, begin, end in _pieces(source, target, x[:1].numel()):
            message = x.index_select(0, begin)
            for d, components in enumerate(message.split(degrees, dim=1)):
                components.mul_(weights[part, d : d + 1])
            result.index_add_(0, end, message)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        weights, x, source, target = ctx.saved_tensors
        needs_weights, needs_x, *_ = ctx.needs_input_grad
        return (
            meet(x, grad, source, target, ctx.degrees) if needs_weights else None,
            carry(weights, grad, target, source, ctx.degrees) if needs_x else None,
            None,
            None,
            None,
        )


class _Meet(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, source: Tensor, target: Tensor, degrees: tuple[int, ...]) -> Tensor:
        ctx.save_for_backward(x, y, source, target)
        ctx.degrees = degrees
        result = x.new_empty(len(source), len(degrees), x.shape[2])
        for part, begin, end in _pieces(source, target, x[:1].numel()):
            product = x.index_select(0, begin).mul_(y.index_select(0, end))
            for d, components in enumerate(product.split(degrees, dim=1)):
                torch.sum(components, dim=1, out=result[part, d])
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        x, y, source, target = ctx.saved_tensors
        needs_x, needs_y, *_ = ctx.needs_input_grad
        return (
            carry(grad, y, target, source, ctx.degrees) if needs_x else None,
            carry(grad, x, source, target, ctx.degrees) if needs_y else None,
            None,
            None,
            None,
        )
