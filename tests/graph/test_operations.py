"""Sums over neighbours, by hand and with both derivatives."""

from __future__ import annotations

import torch

from eutectic.graph import Edges
from eutectic.graph.operations import sum_over_neighbours

TARGET = torch.tensor([0, 0, 2, 2, 2])
EDGES = Edges(source=torch.tensor([1, 2, 0, 1, 1]), target=TARGET, offset=torch.zeros(5, 3))


def test_by_hand() -> None:
    messages = torch.arange(10.0).view(5, 2)
    assert sum_over_neighbours(messages, EDGES, 4).tolist() == [[2, 4], [0, 0], [18, 21], [0, 0]]
    assert sum_over_neighbours(messages.view(5, 2, 1), EDGES, 4).shape == (4, 2, 1)


def test_sums_of_half_precision_are_single() -> None:
    # 2048 + 1 is 2048 in half precision.
    messages = torch.tensor([2048.0, 1, 2048, 1, 1], dtype=torch.float16)[:, None]
    total = sum_over_neighbours(messages, EDGES, 3)
    assert total.dtype == torch.float32
    assert total[:, 0].tolist() == [2049, 0, 2050]


def test_derivatives() -> None:
    messages = torch.randn(5, 3, 2, dtype=torch.float64, requires_grad=True)

    def cubed(x: torch.Tensor) -> torch.Tensor:
        return sum_over_neighbours(x, EDGES, 4) ** 3

    assert torch.autograd.gradcheck(cubed, (messages,))
    assert torch.autograd.gradgradcheck(cubed, (messages,))
