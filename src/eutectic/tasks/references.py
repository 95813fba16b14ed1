"""Per-element references and scales, fitted to the training labels before training.

All sums are in float64, since rounding a total energy to float32 exceeds the error of models; data are streamed, since
a data set may not fit in memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property

import numpy as np
import pyarrow.compute as pc
from ase.data import chemical_symbols
from jaxtyping import Float, Int

from eutectic.atoms import MAX_ATOMIC_NUMBER, PROPERTIES, EutecticError, Property
from eutectic.data.store import Store


@dataclass(frozen=True, kw_only=True)
class References:
    """One value per element; their sum over atoms is the part of a property that depends on composition only.

    Attributes:
        property: name of the fitted property ("energy", "u0", …).
        values: atomic number → value in the property's unit, for the elements of the training structures.
    """

    property: str
    values: Mapping[int, float]

    def table(self) -> Float[np.ndarray, " 119"]:
        """Values by atomic number; NaN for elements absent from training."""
        table = np.full(MAX_ATOMIC_NUMBER + 1, np.nan)
        table[list(self.values)] = list(self.values.values())
        return table

    def of(self, numbers: Int[np.ndarray, " atoms"]) -> float:
        """Sum over the atoms of a structure, in the property's unit.

        Raises:
            EutecticError: an element that was absent from training.
        """
        counts = np.bincount(numbers, minlength=MAX_ATOMIC_NUMBER + 1).astype(float)
        return float(self._of_compositions(counts[None])[0])

    def of_atoms(self, numbers: Int[np.ndarray, " atoms"]) -> Float[np.ndarray, " atoms"]:
        """Reference of each atom, in the property's unit; 0 for an element absent from training."""
        return np.asarray(self._filled[numbers])

    def subtract(self, numbers: Int[np.ndarray, " atoms"], value: float) -> float:
        """A structure's value minus the sum over its atoms.

        Raises:
            EutecticError: an element that was absent from training.
        """
        return float(value) - self.of(numbers)

    def unseen(self) -> tuple[str, ...]:
        """Symbols of the elements, H to Og, without a reference."""
        return tuple(chemical_symbols[z] for z in range(1, MAX_ATOMIC_NUMBER + 1) if z not in self.values)

    def to_dict(self) -> dict[str, object]:
        """Plain JSON, with elements by symbol."""
        return {
            "property": self.property,
            "values": {chemical_symbols[z]: v for z, v in self.values.items()},
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> References:
        """The inverse of `to_dict`."""
        table: Mapping[str, float] = values["values"]  # type: ignore[assignment]
        return cls(
            property=str(values["property"]),
            values={chemical_symbols.index(symbol): float(v) for symbol, v in table.items()},
        )

    @cached_property
    def _absent(self) -> np.ndarray:
        return np.isnan(self.table())

    @cached_property
    def _filled(self) -> np.ndarray:
        return np.nan_to_num(self.table())

    def _of_compositions(self, counts: Float[np.ndarray, "n 119"]) -> Float[np.ndarray, " n"]:
        missing = self._absent & (counts > 0).any(axis=0)
        if missing.any():
            symbols = ", ".join(chemical_symbols[z] for z in np.flatnonzero(missing))
            raise EutecticError(
                f"reference values of {self.property}",
                f"element {symbols} has no reference: absent from training",
                f"only elements {', '.join(chemical_symbols[z] for z in sorted(self.values))}",
                "leave these structures out, or train on structures with this element",
            )
        return counts @ self._filled


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Mean and standard deviation of labels, which are normalised as (label − mean) / std.

    Attributes:
        mean: in the property's unit; 0 for vectors and tensors, whose mean direction has no meaning.
        std: population standard deviation around `mean`, in the property's unit; 1 where all labels are equal.
    """

    mean: float
    std: float

    def to_dict(self) -> dict[str, float]:
        """Plain JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, float]) -> Scale:
        """The inverse of `to_dict`."""
        return cls(mean=float(values["mean"]), std=float(values["std"]))


def fit_references(store: Store, indices: Int[np.ndarray, " n"], property: str = "energy") -> References:
    """Least-squares fit, without intercept, of a property to the number of atoms of each element.

    These are the linear references of JMP and OC20. If the training structures do not determine every element (a single
    molecule determines only the sum), the minimum-norm solution is taken; sums over structures of the same composition
    are still exact.

    Args:
        store: data set with the labels.
        indices: (n,) training rows; rows without the label are skipped.
        property: an extensive property of structures.

    Raises:
        EutecticError: the property is not extensive, or no row has its label.
    """
    prop = _known(store, property)
    if not prop.extensive or prop.level != "structure" or prop.rank > 0:
        raise EutecticError(
            f"references of {property}",
            f"{property} is not extensive",
            f"one of {', '.join(p.name for p in PROPERTIES.values() if p.extensive)}",
            "fit only its mean and standard deviation",
        )
    normal, right = np.zeros((MAX_ATOMIC_NUMBER + 1, MAX_ATOMIC_NUMBER + 1)), np.zeros(MAX_ATOMIC_NUMBER + 1)
    for counts, values in _with_compositions(store, indices, property):
        present = np.flatnonzero(counts.any(axis=0))
        present_counts = counts[:, present]
        # Sums of products of integers are exact in float64 up to 2^53. einsum starts no threads for these small
        # matrices (on a busy machine, threads were forty times slower).
        normal[np.ix_(present, present)] += np.einsum("ni,nj->ij", present_counts, present_counts)
        right[present] += np.einsum("ni,n->i", present_counts, values)
    solution = least_squares(normal, right)
    if not solution:
        raise _no_label(store, property)
    return References(property=property, values=solution)


def least_squares(normal: Float[np.ndarray, "119 119"], right: Float[np.ndarray, " 119"]) -> dict[int, float]:
    """Minimum-norm solution of the normal equations: atomic number → value, for the elements that occur.

    Args:
        normal: products of the numbers of atoms of each pair of elements, summed over structures.
        right: products of the numbers of atoms and the values to fit, summed over structures.
    """
    seen = np.flatnonzero(normal.diagonal())
    if not len(seen):
        return {}
    # Columns are scaled to unit length, so that a rare element does not count as a null direction.
    length = np.sqrt(normal[seen, seen])
    eigenvalues, vectors = np.linalg.eigh(normal[np.ix_(seen, seen)] / np.outer(length, length))
    known = eigenvalues > 1e-10 * eigenvalues[-1]
    parts = vectors[:, known].T @ (right[seen] / length)
    solution = (vectors[:, known] @ (parts / eigenvalues[known])) / length
    return dict(zip(seen.tolist(), solution.tolist(), strict=True))


def fit_scale(
    store: Store, indices: Int[np.ndarray, " n"], property: str, references: References | None = None
) -> Scale:
    """Mean and population standard deviation of a property over training rows.

    Args:
        store: data set with the labels.
        indices: (n,) training rows; rows without the label are skipped.
        property: for vectors and tensors, the result is the root mean square of components, with mean 0.
        references: subtracted before fitting.

    Raises:
        EutecticError: no row has the label; an element without a reference.
    """
    prop = _known(store, property)
    count, mean, squares = 0, 0.0, 0.0
    for values in _residuals(store, indices, prop, references):
        if not values.size:
            continue
        # Sums of squares about a mean, combined as in Chan, Golub and LeVeque (1983).
        part_mean = float(values.mean()) if prop.rank == 0 else 0.0
        part_squares = float(((values - part_mean) ** 2).sum())
        total = count + values.size
        squares += part_squares + (part_mean - mean) ** 2 * count * values.size / total
        mean += (part_mean - mean) * values.size / total
        count = total
    if not count:
        raise _no_label(store, property)
    std = math.sqrt(squares / count)
    # Labels that are equal up to rounding are not scaled.
    return Scale(mean=mean, std=std if std > 1e-12 * max(1.0, abs(mean)) else 1.0)


def mean_atoms(store: Store, indices: Int[np.ndarray, " n"]) -> float:
    """Mean number of atoms per structure."""
    atoms = structures = 0
    for batch in store.take(indices, "n_atoms"):
        atoms += int(batch.column("n_atoms").to_numpy().sum(dtype=np.int64))
        structures += batch.num_rows
    return atoms / max(structures, 1)


def _residuals(
    store: Store, indices: np.ndarray, prop: Property, references: References | None
) -> Iterator[np.ndarray]:
    if prop.rank > 0 or prop.level == "atom":
        for batch in store.take(indices, prop.name):
            yield batch.column(prop.name).flatten().to_numpy().astype(np.float64)
    elif references is None:
        for batch in store.take(indices, prop.name):
            yield batch.column(prop.name).drop_null().to_numpy()
    else:
        for counts, values in _with_compositions(store, indices, prop.name):
            yield values - references._of_compositions(counts)


def _with_compositions(
    store: Store, indices: np.ndarray, name: str
) -> Iterator[tuple[Float[np.ndarray, "n 119"], Float[np.ndarray, " n"]]]:
    """Number of atoms of each element, and the label, for the rows that have the label."""
    for batch in store.take(indices, "numbers", name):
        rows = batch.filter(batch.column(name).is_valid())
        numbers = rows.column("numbers")
        which = np.repeat(np.arange(rows.num_rows), pc.list_value_length(numbers).to_numpy())
        columns = MAX_ATOMIC_NUMBER + 1
        cells = which * columns + numbers.flatten().to_numpy().astype(np.int64)
        counts = np.bincount(cells, minlength=rows.num_rows * columns).reshape(-1, columns)
        yield counts.astype(np.float64), rows.column(name).to_numpy()


def _known(store: Store, property: str) -> Property:
    if property not in store.card.properties:
        raise EutecticError(
            str(store.path),
            f"property {property!r}",
            f"one of {', '.join(store.card.properties)}",
            "choose one of these",
        )
    return PROPERTIES[property]


def _no_label(store: Store, property: str) -> EutecticError:
    return EutecticError(
        str(store.path),
        f"no training structure has {property}",
        "at least one",
        "check the split, or choose a property that the data set has (`eutectic data info`)",
    )
