"""Operations on a graph's edges."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from eutectic.graph.graph import Edges


def sum_over_neighbours(messages: Tensor, edges: Edges, n_atoms: int) -> Tensor:
    """Sum the messages over the edges into each atom: (edges, …) → (atoms, …), in at least float32."""
    messages = messages.float() if messages.dtype in (torch.bfloat16, torch.float16) else messages
    if torch.compiler.is_compiling():
        return _summed(messages, edges.target, n_atoms)
    result: Tensor = _Sum.apply(messages, edges.target, n_atoms)
    return result


def _summed(messages: Tensor, target: Tensor, n_atoms: int) -> Tensor:
    return messages.new_zeros((n_atoms, *messages.shape[1:])).index_add_(0, target, messages)


class _Sum(torch.autograd.Function):
    """`index_add` that does not save the messages for the backward pass, as PyTorch's version does for their shape."""

    @staticmethod
    def forward(ctx: Any, messages: Tensor, target: Tensor, n_atoms: int) -> Tensor:
        ctx.save_for_backward(target)
        return _summed(messages, target, n_atoms)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (target,) = ctx.saved_tensors
        return grad.index_select(0, target), None, None
