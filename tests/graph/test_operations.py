"""Sums over neighbours, by hand and with both derivatives."""

from __future__ import annotations

import torch

from eutectic.graph import Edges
from eutectic.graph.operations import carry, meet, sum_over_neighbours

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


SOURCE, TO = torch.tensor([1, 2, 0, 1, 1, 3]), torch.tensor([0, 0, 2, 2, 2, 1])


def test_carry_and_meet_by_hand() -> None:
    degrees = (1, 3)
    w, x, y = torch.randn(6, 2, 2), torch.randn(4, 4, 2), torch.randn(4, 4, 2)
    spread = w[:, [0, 1, 1, 1]]
    expected = torch.zeros(4, 4, 2)
    for e in range(6):
        expected[TO[e]] += spread[e] * x[SOURCE[e]]
    torch.testing.assert_close(carry(w, x, SOURCE, TO, degrees), expected)
    products = x[SOURCE] * y[TO]
    torch.testing.assert_close(
        meet(x, y, SOURCE, TO, degrees), torch.stack([products[:, 0], products[:, 1:].sum(1)], dim=1)
    )


def test_many_edges_are_worked_through_in_pieces() -> None:
    """More edges than one piece holds."""
    n, atoms, width = 3000, 40, 16
    source, target = torch.randint(atoms, (2, n))
    w, x = torch.randn(n, 2, width, dtype=torch.float64), torch.randn(atoms, 4, width, dtype=torch.float64)
    expected = torch.zeros_like(x).index_add(0, target, w[:, [0, 1, 1, 1]] * x[source])
    torch.testing.assert_close(carry(w, x, source, target, (1, 3)), expected)
    torch.testing.assert_close(meet(x, x, source, target, (4,))[:, 0], (x[source] * x[target]).sum(1))


def test_derivatives_of_carry_and_meet() -> None:
    w = torch.randn(6, 2, 2, dtype=torch.float64, requires_grad=True)
    x, y = (torch.randn(4, 4, 2, dtype=torch.float64, requires_grad=True) for _ in range(2))

    def carried(w: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return carry(w, x, SOURCE, TO, (1, 3)) ** 2

    def met(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return meet(x, y, SOURCE, TO, (1, 3)) ** 2

    for function, inputs in ((carried, (w, x)), (met, (x, y))):
        assert torch.autograd.gradcheck(function, inputs)
        assert torch.autograd.gradgradcheck(function, inputs)
