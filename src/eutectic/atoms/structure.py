"""Structures and labelled structures. Labels are kept separate from the structure, which is all a model sees."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from ase import Atoms
from jaxtyping import Bool, Float, Int

from eutectic.atoms.errors import EutecticError
from eutectic.atoms.home import home_positions
from eutectic.atoms.properties import PROPERTIES

MAX_ATOMIC_NUMBER = 118
"""Atomic number of oganesson. Tables indexed by atomic number have one more row; row 0 is unused."""

FARTHEST = 1e8
"""Largest coordinate, Å. Neighbour searches, and moving distant structures back, are done in double precision."""

WIDEST = 1e4
"""Largest extent of a structure or lattice vector, Å: a micrometre, which single precision resolves to 5e-4 Å."""

THINNEST = 0.2
"""Smallest distance of lattice planes, Å: a third of the shortest bond. Thinner cells have millions of images within a
cutoff."""

_AXIS = (0.31783724519578227, 0.2915026221291812, 0.24494897427831780)
"""A direction along which distinct lattice points do not coincide."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Structure:
    """Atoms with positions, cell and boundary conditions.

    Attributes:
        numbers: (n_atoms,) atomic numbers Z.
        positions: (n_atoms, 3) Cartesian, Å.
        cell: (3, 3) Å, rows are lattice vectors; zeros for a vector that does not exist.
        pbc: (3,) periodic along each lattice vector. A molecule has pbc False in all directions, not a large cell.
        tags: (n_atoms,) as in OC20: 0 slab bulk, 1 slab surface, 2 adsorbate, and 2 for all atoms of a molecule or
            crystal.
        fixed: (n_atoms,) whether the atom was held fixed when the labels were computed.
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
        """Convert from `ase.Atoms`; tags are kept if any is nonzero, and atoms that cannot move are `fixed`."""
        tags = np.asarray(atoms.get_tags(), dtype=np.int64)
        return cls(
            numbers=np.asarray(atoms.numbers, dtype=np.int64),
            positions=np.asarray(atoms.positions, dtype=np.float64),
            cell=np.asarray(atoms.cell.array, dtype=np.float64),
            pbc=np.asarray(atoms.pbc, dtype=bool),
            tags=tags if tags.any() else np.full(len(atoms), 2, dtype=np.int64),
            fixed=_immovable(atoms),
        )

    def to_ase(self) -> Atoms:
        """Convert to `ase.Atoms`, with fixed atoms as a FixAtoms constraint."""
        from ase.constraints import FixAtoms

        atoms = Atoms(self.numbers, self.positions, cell=self.cell, pbc=self.pbc, tags=self.tags)
        if self.fixed.any():
            atoms.set_constraint(FixAtoms(mask=self.fixed))
        return atoms

    def check(self, where: str) -> None:
        """Check that the structure is valid.

        Args:
            where: location given in the error, e.g. "train.xyz, structure 12".

        Raises:
            EutecticError: no atoms; a non-finite or astronomical coordinate or cell entry; an atomic number outside
                1…118; a periodic cell without volume, or with lattice planes that nearly coincide; an atom far from the
                others; two atoms at the same position.
        """
        if len(self) == 0:
            raise EutecticError(where, "no atoms", "at least one atom", "remove this structure or repair the file")
        largest = float(np.abs(self.positions).max())
        if not largest <= FARTHEST:
            finite = np.isfinite(self.positions).all()
            atom = int(np.argwhere(~(np.abs(self.positions) <= FARTHEST))[0, 0])
            raise EutecticError(
                where,
                f"atom {atom} has position {self.positions[atom].tolist()}",
                f"coordinates within {FARTHEST:.0e} Å, where double precision resolves 1e-8 Å"
                if finite
                else "finite coordinates in Å",
                "remove this structure or repair the file",
            )
        outside = (self.numbers < 1) | (self.numbers > MAX_ATOMIC_NUMBER)
        if outside.any():
            atom = int(np.argmax(outside))
            raise EutecticError(
                where,
                f"atom {atom} has atomic number {int(self.numbers[atom])}",
                f"an element, 1 (H) to {MAX_ATOMIC_NUMBER} (Og)",
                "name the element in the file; dummy atoms are not supported",
            )
        if not np.abs(self.cell).max() <= FARTHEST:
            raise EutecticError(
                where, f"cell {self.cell.tolist()}", f"finite lattice vectors, up to {WIDEST:,.0f} Å", "repair the cell"
            )
        if self.pbc.any():
            self._check_cell(where)
        open_and_far = not self.pbc.all() and largest > 0.5 * WIDEST
        if open_and_far and np.abs(home_positions([self], np.inf)[0]).max() > 0.5 * WIDEST:
            middle = np.median(self.positions, axis=0)
            atom = int(np.abs(self.positions - middle).max(axis=1).argmax())
            raise EutecticError(
                where,
                f"atom {atom}, at {self.positions[atom].tolist()}, is far from the others",
                f"a structure at most {WIDEST:,.0f} Å wide",
                "check the unit of length, remove the atom, or split the structure in two",
            )
        # Only exact coincidence is an error; short distances may be physical.
        if self._has_coincident_atoms():
            raise EutecticError(
                where,
                "two atoms have the same position",
                "distinct positions",
                "remove the duplicate atom",
            )

    def _check_cell(self, where: str) -> None:
        vectors = self.cell[self.pbc]
        given = f"periodic along {self.pbc.tolist()} with cell {self.cell.tolist()}"
        if np.abs(vectors).max() > WIDEST:
            raise EutecticError(
                where,
                given,
                f"lattice vectors of at most {WIDEST:,.0f} Å",
                "check the unit of length, or set pbc=False along directions that are not periodic",
            )
        # Spanned by the periodic vectors only: a length for a wire, an area for a slab.
        metric = vectors @ vectors.T
        if float(np.linalg.det(metric)) <= 1e-6:
            raise EutecticError(
                where,
                f"{given}, which has no volume",
                "linearly independent lattice vectors along every periodic direction",
                "set the cell, or pbc=False for a molecule",
            )
        # Distance between the planes spanned by the other vectors.
        distance = float(np.linalg.inv(metric).diagonal().max()) ** -0.5
        if not distance >= THINNEST:
            raise EutecticError(
                where,
                f"{given}, whose lattice planes are {distance:.2g} Å apart",
                f"at least {THINNEST} Å",
                "check the unit of length; reduce the cell if it is very oblique (ase.build.niggli_reduce)",
            )

    def _has_coincident_atoms(self) -> bool:
        # Coincident atoms have equal projections on any axis; on a skew axis, hardly any others do. Sorting one number
        # per atom is five to thirty times faster than comparing rows, and this runs for every structure of a store.
        x, y, z = self.positions.T
        along = np.sort(x * _AXIS[0] + y * _AXIS[1] + z * _AXIS[2])
        return bool((along[1:] == along[:-1]).any()) and len(np.unique(self.positions, axis=0)) < len(self)


def _immovable(atoms: Atoms) -> np.ndarray:
    """(n_atoms,) whether an atom's constraints leave it no direction to move in.

    File formats express the same fixed atom differently: FixAtoms, FixCartesian or FixScaled along all three axes, or
    several constraints together.
    """
    fixed = np.zeros(len(atoms), dtype=bool)
    blocked: dict[int, list[np.ndarray]] = {}
    for constraint in atoms.constraints:
        kind = type(constraint).__name__
        mask = np.asarray(getattr(constraint, "mask", ()), dtype=bool)
        if kind == "FixAtoms" or (kind in ("FixCartesian", "FixScaled") and mask.all()):
            fixed[constraint.index] = True
            continue
        # Rows are directions in which these constraints allow no motion.
        if kind == "FixCartesian":
            rows = np.eye(3)[mask]
        elif kind == "FixScaled":
            rows = np.linalg.pinv(atoms.cell.array).T[mask]
        elif kind in ("FixedLine", "FixedPlane"):
            unit = np.asarray(constraint.dir, dtype=np.float64)
            unit = unit / np.linalg.norm(unit)
            rows = unit[None] if kind == "FixedPlane" else np.eye(3) - np.outer(unit, unit)
        else:
            continue
        for atom in np.atleast_1d(constraint.index).tolist() if len(rows) else ():
            blocked.setdefault(int(atom), []).append(rows / np.linalg.norm(rows))
    for atom, together in blocked.items():
        if len(together) > 1:
            fixed[atom] |= np.linalg.matrix_rank(np.concatenate(together), tol=1e-6) == 3
    return fixed


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelledStructure:
    """A structure with its labels.

    Attributes:
        structure: input of a model.
        labels: property name → float64 array of the property's shape, in the library's units. Unknown labels are
            absent, never NaN.
        id: unique within its data set.
        group: structures of one group (molecule, reaction, trajectory, bulk) must not be split between training and
            testing.
    """

    structure: Structure
    labels: Mapping[str, np.ndarray]
    id: str
    group: str

    def check(self, where: str) -> None:
        """Check that the structure and its labels are valid.

        Raises:
            EutecticError: as `Structure.check`; a label of unknown name or wrong shape; a non-finite label; a class
                that is not an integer.
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
                    or "check that the labels belong to these atoms",
                )
            if not np.isfinite(value).all():
                raise EutecticError(
                    where,
                    f"{name} is not finite",
                    "finite numbers; unknown labels must be absent",
                    "drop the label or the structure",
                )
            if prop.categorical and not (np.equal(np.rint(value), value) & np.greater_equal(value, 0)).all():
                raise EutecticError(
                    where,
                    f"{name} {np.ravel(value)[:3].tolist()}",
                    "a class: one of the integers 0, 1, …",
                    "number the classes, or define the property without `class`",
                )
