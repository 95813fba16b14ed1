"""Operations on a graph's edges."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from eutectic.graph.graph import Edges
from eutectic.graph.operators import own, summed


def sum_over_neighbours(messages: Tensor, edges: Edges, n_atoms: int) -> Tensor:
    """Sum the messages over the edges into each atom: (edges, …) → (atoms, …), in at least float32."""
    messages = messages.float() if messages.dtype in (torch.bfloat16, torch.float16) else messages
    if torch.compiler.is_compiling():
        return summed(messages, edges.target, n_atoms)
    result: Tensor = _Sum.apply(messages, edges.target, n_atoms)
    return result


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


def largest_of_neighbours(
    x: Float[Tensor, "edges columns"], edges: Edges, n_atoms: int
) -> Float[Tensor, "atoms columns"]:
    """The largest number of the edges into each atom, at least 0; taken as a constant in derivatives."""
    result: Tensor = own.scatter_largest(x, edges.target, n_atoms)
    return result


def carry(
    weights: Float[Tensor, "edges degrees width"],
    x: Float[Tensor, "atoms components width"],
    source: Int[Tensor, edges],
    target: Int[Tensor, edges],
    degrees: tuple[int, ...],
) -> Float[Tensor, "atoms components width"]:
    """Σ_e w_e ∘ x_source(e) over the edges e into each atom, with one weight for all components of a degree.

    The derivatives of this and `meet` are expressed by each other, so no derivative of any order holds a tensor of
    (edges, components, width): edges are processed in pieces (`eutectic.graph.operators`).

    Args:
        weights: one number per edge, degree and channel.
        x: features of the atoms.
        source, target: atoms of each edge, in any order.
        degrees: number of components of each degree; they sum to the number of components.
    """
    result: Tensor = own.carry(weights, x, source, target, list(degrees))
    return result


def meet(
    x: Float[Tensor, "atoms components width"],
    y: Float[Tensor, "atoms components width"],
    source: Int[Tensor, edges],
    target: Int[Tensor, edges],
    degrees: tuple[int, ...],
) -> Float[Tensor, "edges degrees width"]:
    """Inner products Σ_m x_source,m y_target,m of each edge over the components m of each degree (see `carry`)."""
    result: Tensor = own.meet(x, y, source, target, list(degrees))
    return result
