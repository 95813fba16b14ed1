"""What a structure is. Labels live beside it, never in it: a model is handed the structure alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from ase import Atoms
from jaxtyping import Bool, Float, Int

from eutectic.atoms.errors import EutecticError
from eutectic.atoms.properties import PROPERTIES

MAX_ATOMIC_NUMBER = 118
"""Of oganesson. A table by atomic number has one row more: row 0 is no element."""

_AXIS = (0.31783724519578227, 0.2915026221291812, 0.24494897427831780)
"""A direction along which no lattice repeats; shorter than 1, so that no coordinate overflows."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Structure:
    """Atoms in space.

    Attributes:
        numbers: (n_atoms,) atomic numbers Z.
        positions: (n_atoms, 3) Cartesian, Å.
        cell: (3, 3) Å, rows are lattice vectors; zeros where there is none.
        pbc: (3,) periodic along each lattice vector. A molecule has False three times, never a large cell.
        tags: (n_atoms,) as in OC20: 0 bulk of a slab, 1 its surface, 2 adsorbate, and 2 for every atom of
            a molecule or a crystal.
        fixed: (n_atoms,) held in place when the labels were made.
    """

    numbers: Int[np.ndarray, atoms]
    positions: Float[np.ndarray, "atoms 3"]
    cell: Float[np.ndarray, "3 3"] = field(default_factory=lambda: np.zeros((3, 3)))
    pbc: Bool[np.ndarray, 3] = field(default_factory=lambda: np.zeros(3, dtype=bool))
    tags: Int[np.ndarray, atoms] = None  # type: ignore[assignment]
    fixed: Bool[np.ndarray, atoms] = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.tags is None:
            object.__setattr__(self, "tags", np.full(len(self.numbers), 2, dtype=np.int64))
        if self.fixed is None:
            object.__setattr__(self, "fixed", np.zeros(len(self.numbers), dtype=bool))

    def __len__(self) -> int:
        return len(self.numbers)

    @classmethod
    def from_ase(cls, atoms: Atoms) -> Structure:
        """The structure in an `ase.Atoms`; tags are kept where any is set, FixAtoms becomes `fixed`."""
        fixed = np.zeros(len(atoms), dtype=bool)
        for constraint in atoms.constraints:
            if type(constraint).__name__ == "FixAtoms":
                fixed[constraint.index] = True
        tags = np.asarray(atoms.get_tags(), dtype=np.int64)
        return cls(
            numbers=np.asarray(atoms.numbers, dtype=np.int64),
            positions=np.asarray(atoms.positions, dtype=np.float64),
            cell=np.asarray(atoms.cell.array, dtype=np.float64),
            pbc=np.asarray(atoms.pbc, dtype=bool),
            tags=tags if tags.any() else np.full(len(atoms), 2, dtype=np.int64),
            fixed=fixed,
        )

    def to_ase(self) -> Atoms:
        """The same structure as an `ase.Atoms` (fixed atoms as a FixAtoms constraint)."""
        from ase.constraints import FixAtoms

        atoms = Atoms(self.numbers, self.positions, cell=self.cell, pbc=self.pbc, tags=self.tags)
        if self.fixed.any():
            atoms.set_constraint(FixAtoms(mask=self.fixed))
        return atoms

    def check(self, where: str) -> None:
        """Refuse what no model could use.

        Args:
            where: names the structure in the error, e.g. "train.xyz, structure 12".

        Raises:
            EutecticError: no atoms; a coordinate or cell entry not finite; an atomic number outside 1…118;
                a periodic cell without volume; two atoms in one place.
        """
        if len(self) == 0:
            raise EutecticError(where, "no atoms", "at least one atom", "remove this structure or repair the file")
        if not np.isfinite(self.positions).all():
            atom = int(np.argwhere(~np.isfinite(self.positions))[0, 0])
            raise EutecticError(
                where,
                f"atom {atom} has position {self.positions[atom].tolist()}",
                "finite coordinates in Å",
                "remove this structure or repair the file",
            )
        outside = (self.numbers < 1) | (self.numbers > MAX_ATOMIC_NUMBER)
        if outside.any():
            atom = int(np.argmax(outside))
            raise EutecticError(
                where,
                f"atom {atom} has atomic number {int(self.numbers[atom])}",
                f"an element, 1 (H) to {MAX_ATOMIC_NUMBER} (Og)",
                "name the element in the file; dummy atoms cannot be learned from",
            )
        if not np.isfinite(self.cell).all():
            raise EutecticError(where, f"cell {self.cell.tolist()}", "finite lattice vectors in Å", "repair the cell")
        vectors = self.cell[self.pbc]
        # The volume spanned by the periodic vectors alone: a wire has one, a slab may have two.
        gram = float(np.linalg.det(vectors @ vectors.T)) if len(vectors) else 1.0
        if gram <= 1e-6:
            raise EutecticError(
                where,
                f"periodic along {self.pbc.tolist()} with cell {self.cell.tolist()}, which has no volume",
                "linearly independent lattice vectors along every periodic direction",
                "set the cell, or pbc=False for a molecule",
            )
        # Only an exact coincidence is refused: a short distance is a question of physics, not of form.
        if self._has_coincident_atoms():
            raise EutecticError(
                where,
                "two atoms have the same position",
                "distinct positions",
                "remove the duplicate atom",
            )

    def _has_coincident_atoms(self) -> bool:
        # What coincides in space does so on any axis; on a skew one, hardly anything else does. Sorting one number for
        # each atom is five to thirty times as fast as comparing rows, and this is asked of every structure of a store.
        x, y, z = self.positions.T
        along = np.sort(x * _AXIS[0] + y * _AXIS[1] + z * _AXIS[2])
        return bool((along[1:] == along[:-1]).any()) and len(np.unique(self.positions, axis=0)) < len(self)


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelledStructure:
    """A structure and what is known of it.

    Attributes:
        structure: the input of a model.
        labels: property name → float64 array of the property's shape, in the library's units. A label that
            is not known is absent, never NaN.
        id: unique within its data set.
        group: what must not be split between training and testing (molecule, reaction, trajectory, bulk).
    """

    structure: Structure
    labels: Mapping[str, np.ndarray]
    id: str
    group: str

    def check(self, where: str) -> None:
        """Refuse an unusable structure or label.

        Raises:
            EutecticError: as `Structure.check`; a label of unknown name, wrong shape, or not finite; a class that is
                no whole number.
        """
        self.structure.check(where)
        for name, value in self.labels.items():
            if name not in PROPERTIES:
                raise EutecticError(
                    where,
                    f"label {name!r}",
                    f"one of {', '.join(PROPERTIES)}",
                    "rename or drop the label, or define it (--define)",
                )
            prop = PROPERTIES[name]
            shape = prop.shape(len(self.structure))
            if np.shape(value) != shape:
                raise EutecticError(
                    where,
                    f"{name} of shape {np.shape(value)}",
                    f"shape {shape}",
                    prop.redefined(np.shape(value), len(self.structure))
                    or "check that labels and atoms belong together",
                )
            if not np.isfinite(value).all():
                raise EutecticError(
                    where,
                    f"{name} is not finite",
                    "finite numbers; a label that is not known must be absent",
                    "drop the label or the structure",
                )
            if prop.categorical and not (np.equal(np.rint(value), value) & np.greater_equal(value, 0)).all():
                raise EutecticError(
                    where,
                    f"{name} {np.ravel(value)[:3].tolist()}",
                    "a class: one of the whole numbers 0, 1, …",
                    "number the classes, or define the property without class",
                )
