"""A smooth cap: edges fade out before the end of an atom's list, which changes smoothly with all neighbours.

An edge of length d into atom i has the weight S((e_i − d)/f), with the fade width f and S(x) = 6x⁵ − 15x⁴ + 10x³ from 0
at x = 0 to 1 at x = 1. The end e_i is the solution of

    Σ_j S((e_i − d_ij)/f) + k S((e_i − c + f)/f) = k − ½

with the cap k and the cutoff c: the weights sum to less than k, and where there are few neighbours the second term ends
the list before the cutoff. ½ because the left-hand side is constant between two shells of neighbours, where it would
not determine e_i, only at whole numbers. If instead a list ended at the first neighbour beyond the cap, the derivatives
of the energy would jump whenever another neighbour became the first: in a crystal, where many are equally far, at every
step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from eutectic.graph.neighbours import NeighbourList

FLATTEST = 0.5
"""Lower bound of the derivative of the left-hand side times f; at the solution, it is at least S'(½) = 1.875."""

ACCURACY = 1e-6
"""Å, of the ends with which a graph is built; a Newton step of the model squares the relative error."""

Array = TypeVar("Array", np.ndarray, Tensor)


@dataclass(frozen=True, kw_only=True, eq=False)
class SmoothCutoff:
    """What determines the end of each atom's edge lists.

    Attributes:
        end: (n_atoms, 4) ends of the lists at the positions of the search, Å; a column for each of `LISTS`.
        cap: (n_atoms, 4) number of neighbours k.
        cutoff: (n_atoms,) c, Å.
        width: (n_atoms,) f, Å; 0 for a hard cap.
    """

    end: Float[Tensor, "atoms 4"]
    cap: Float[Tensor, "atoms 4"]
    cutoff: Float[Tensor, atoms]
    width: Float[Tensor, atoms]

    def weights(
        self, column: int, distance: Float[Tensor, edges], atoms: tuple[Int[Tensor, edges], ...]
    ) -> list[Float[Tensor, edges]]:
        """Weights of the edges in the lists of their targets, or of other atoms.

        Args:
            column: place in `LISTS`.
            distance: (n_edges,) Å; the weights are differentiable in these, in first and second order.
            atoms: for each result, the (n_edges,) atoms whose lists count; the first are the edges' targets.
        """
        hard = self.width == 0
        width = torch.where(hard, 1.0, self.width)

        def sum_at_targets(x: Tensor) -> Tensor:
            return x.new_zeros(width.shape[0]).index_add_(0, atoms[0], x)

        end = self.end[:, column].detach()
        # The solution found with the graph has no derivatives. A Newton step from it has the first, another the second.
        for _ in range(2):
            x = (end[atoms[0]] - distance) / width[atoms[0]]
            y = (end - self.cutoff + width) / width
            excess, slope = _excess(x, y, self.cap[:, column], sum_at_targets)
            end = end - excess * width / slope
        return [torch.where(hard[atom], 1.0, _step((end[atom] - distance) / width[atom])) for atom in atoms]


def _step(x: Array) -> Array:
    x = x.clip(0, 1)
    return x**3 * (10 + x * (6 * x - 15))


def _step_derivative(x: Array) -> Array:
    x = x.clip(0, 1)
    return 30 * (x * (1 - x)) ** 2


def _excess(x: Array, y: Array, cap: Array, sum_at_targets: Callable[[Array], Array]) -> tuple[Array, Array]:
    """Left-hand minus right-hand side of the equation for the ends, and its derivative times the width.

    Args:
        x, y: arguments of S for each edge and for each atom.
        cap: (n_atoms,) k.
        sum_at_targets: (n_edges,) → (n_atoms,).
    """
    excess = sum_at_targets(_step(x)) + cap * _step(y) - (cap - 0.5)
    slope = sum_at_targets(_step_derivative(x)) + cap * _step_derivative(y)
    return excess, slope.clip(min=FLATTEST)


def list_ends(edges: NeighbourList, cap: int, cutoff: float, width: float, n_atoms: int) -> np.ndarray:
    """(n_atoms,) ends of the lists of all atoms, Å: Newton's method between two bounds.

    Args:
        edges: all candidates, sorted by target and distance.
        cap, cutoff, width: k, c and f; c and f in Å.
        n_atoms: number of atoms.
    """
    counts = np.bincount(edges.target, minlength=n_atoms)
    capped = counts >= cap
    last = np.full(n_atoms, cutoff)  # distance of the k-th neighbour
    last[capped] = edges.distance[(np.cumsum(counts) - counts)[capped] + cap - 1]
    # Up to its k-th neighbour an atom's weights sum to at most k − 1; a width beyond it, to at least k.
    low, high = np.minimum(last, cutoff - width), np.minimum(last + width, cutoff)
    near = edges.distance < high[edges.target]
    distance, target, caps = edges.distance[near], edges.target[near], np.full(n_atoms, float(cap))

    def sum_at_targets(x: np.ndarray) -> np.ndarray:
        return np.bincount(target, x, minlength=n_atoms)

    end = 0.5 * (low + high)
    # Halving alone reaches the accuracy in 20 steps, Newton's method in about four.
    for _ in range(30):
        x, y = (end[target] - distance) / width, (end - cutoff + width) / width
        excess, slope = _excess(x, y, caps, sum_at_targets)
        low, high = np.where(excess > 0, low, end), np.where(excess > 0, end, high)
        newton = end - excess * width / slope
        new = np.where((newton >= low) & (newton <= high), newton, 0.5 * (low + high))
        # An end that has been found stays, whatever others in the batch still need.
        found = np.abs(new - end) < ACCURACY
        if found.all():
            break
        end = np.where(found, end, new)
    return end
