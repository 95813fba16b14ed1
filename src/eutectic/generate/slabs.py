"""Slabs with small adsorbates, for metals and oxides: cut a slab, place an adsorbate, relax briefly.

Systems are deliberately small (about 10 to 30 atoms): the variety of surfaces matters more than their size.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.build import make_supercell
from ase.constraints import FixAtoms
from ase.data import covalent_radii
from ase.geometry import get_distances

from eutectic.atoms import LabelledStructure
from eutectic.generate.engine import Rejected
from eutectic.generate.labels import CHGNET, chgnet, labelled, relax

VACUUM = 16.0
"""Distance between the top of a structure and the bottom of its image, Å."""

SURFACE_DEPTH = 2.0
"""Slab atoms at most this far (Å) below the topmost one are surface atoms, as in OC20."""

FCC = np.array([[0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
BCC = np.array([[-0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0.5, 0.5, -0.5]])
"""The primitive vectors of ASE's `bulk`, in units of the cubic ones."""

# The binding atom is first, at the origin; z points away from the surface; Å. Bond lengths of the free molecules or
# radicals and rounded angles, since a relaxation follows.
ADSORBATES: dict[str, tuple[str, list[tuple[float, float, float]]]] = {
    "H": ("H", [(0, 0, 0)]),
    "C": ("C", [(0, 0, 0)]),
    "N": ("N", [(0, 0, 0)]),
    "O": ("O", [(0, 0, 0)]),
    "OH": ("OH", [(0, 0, 0), (0.87, 0, 0.40)]),
    "CO": ("CO", [(0, 0, 0), (0, 0, 1.15)]),
    "CN": ("CN", [(0, 0, 0), (0, 0, 1.17)]),
    "NO": ("NO", [(0, 0, 0), (0, 0, 1.17)]),
    "N2": ("NN", [(0, 0, 0), (0, 0, 1.11)]),
    "CH": ("CH", [(0, 0, 0), (0, 0, 1.09)]),
    "CH2": ("CHH", [(0, 0, 0), (0.90, 0, 0.62), (-0.90, 0, 0.62)]),
    "CH3": ("CHHH", [(0, 0, 0), (1.03, 0, 0.36), (-0.515, 0.892, 0.36), (-0.515, -0.892, 0.36)]),
    "NH": ("NH", [(0, 0, 0), (0, 0, 1.02)]),
    "NH2": ("NHH", [(0, 0, 0), (0.82, 0, 0.60), (-0.82, 0, 0.60)]),
    "NH3": ("NHHH", [(0, 0, 0), (0.94, 0, 0.38), (-0.47, 0.814, 0.38), (-0.47, -0.814, 0.38)]),
    "H2O": ("OHH", [(0, 0, 0), (0.76, 0, 0.59), (-0.76, 0, 0.59)]),
    "CHO": ("COH", [(0, 0, 0), (1.02, 0, 0.65), (-0.94, 0, 0.58)]),
    "COH": ("COH", [(0, 0, 0), (0, 0, 1.33), (0.91, 0, 1.62)]),
    "NNH": ("NNH", [(0, 0, 0), (0, 0, 1.20), (0.90, 0, 1.60)]),
    "NOH": ("NOH", [(0, 0, 0), (0, 0, 1.38), (0.92, 0, 1.67)]),
    "OOH": ("OOH", [(0, 0, 0), (1.20, 0, 0.75), (1.10, 0, 1.72)]),
    "HCOO": ("OOCH", [(0, 0, 0), (2.24, 0, 0), (1.12, 0, 0.58), (1.12, 0, 1.68)]),
    "COOH": ("COOH", [(0, 0, 0), (1.05, 0, 0.62), (-1.12, 0, 0.72), (-1.00, 0, 1.68)]),
    "CHOH": ("COHH", [(0, 0, 0), (1.15, 0, 0.65), (-0.92, 0, 0.60), (1.20, 0, 1.62)]),
    "OCH3": (
        "OCHHH",
        [(0, 0, 0), (0, 0, 1.42), (1.03, 0, 1.79), (-0.515, 0.892, 1.79), (-0.515, -0.892, 1.79)],
    ),
    "CCH": ("CCH", [(0, 0, 0), (0, 0, 1.22), (0, 0, 2.28)]),
    "CCH3": (
        "CCHHH",
        [(0, 0, 0), (0, 0, 1.49), (1.03, 0, 1.85), (-0.515, 0.892, 1.85), (-0.515, -0.892, 1.85)],
    ),
}


@dataclass(frozen=True, kw_only=True)
class Surface:
    """A surface.

    Attributes:
        name: name of the bulk ("Cu", "Pt3Ni", "TiO2-rutile").
        bulk: primitive cell of the bulk.
        miller: conventional Miller indices ("111").
        plane: Miller indices for the vectors of `bulk`.
    """

    name: str
    bulk: Atoms
    miller: str
    plane: tuple[int, int, int]


def plane_of(miller: tuple[int, int, int], vectors: np.ndarray) -> tuple[int, int, int]:
    """Miller indices for other lattice vectors.

    Args:
        miller: indices for the conventional vectors.
        vectors: (3, 3) the other lattice vectors, in units of the conventional ones; the indices of a plane transform
            like the vectors.
    """
    twice = np.rint(2 * vectors @ np.array(miller)).astype(int)
    h, k, m = twice // np.gcd.reduce(twice)
    return int(h), int(k), int(m)


def _reduced(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The shortest two vectors of a plane's lattice (Lagrange and Gauss)."""
    while True:
        if a @ a > b @ b:
            a, b = b, a
        times = a @ b / (a @ a)
        # The tolerance prevents an infinite loop by rounding.
        if abs(times) < 0.5 + 1e-6:
            return a, b
        b = b - np.rint(times) * a


def _oriented(bulk: Atoms, plane: tuple[int, int, int]) -> Atoms:
    """The same crystal in a cell of the same volume whose first two vectors are in the plane.

    ASE's `surface` makes the third vector perpendicular, after which the crystal is no longer periodic along it and
    cannot be cut elsewhere.
    """
    h = np.array(plane)
    vectors = np.array(list(itertools.product(range(-3, 4), repeat=3)))
    vectors = vectors[np.argsort(np.linalg.norm(vectors @ bulk.cell.array, axis=1), kind="stable")]
    within = vectors[(vectors @ h == 0) & vectors.any(axis=1)]
    # Two vectors span the lattice of the plane if their cross product is the plane itself.
    a, b = next((a, b) for b in within for a in within if (np.cross(a, b) == h).all())
    c = next(v for v in vectors if v @ h == 1)
    oriented = make_supercell(bulk, np.array([a, b, c]))
    if np.linalg.det(oriented.cell.array) < 0:
        oriented.set_cell(oriented.cell.array[[1, 0, 2]], scale_atoms=False)
    return oriented


def _widened(slab: Atoms, width: float) -> Atoms:
    """The smallest in-plane supercell with both of its lattice vectors at least `width` long."""
    for n in itertools.count(1):
        best, shape = 0.0, None
        for p in (p for p in range(1, n + 1) if n % p == 0):
            for shift in range(n // p):
                a = p * slab.cell[0] + shift * slab.cell[1]
                a, b = _reduced(a, n // p * slab.cell[1])
                if np.linalg.norm(a) > best:
                    best, shape = float(np.linalg.norm(a)), (a, b)
        if best >= width and shape is not None:
            a, b = shape
            c = slab.cell[2]
            if np.cross(a, b) @ c < 0:
                b = -b
            matrix = np.rint(np.array([a, b, c]) @ np.linalg.inv(slab.cell.array)).astype(int)
            return make_supercell(slab, matrix)
    raise AssertionError


def cut(kind: Surface, rng: np.random.Generator, *, width: float, thickness: float, most: int) -> Atoms:
    """A slab of whole bulk units, cut at a random one of its wider gaps, in a cell with vacuum along z.

    Args:
        kind: bulk and plane.
        rng: random number generator for the cut.
        width: minimum length of a lattice vector in the plane, Å.
        thickness: minimum distance from the lowest to the highest atom, Å.
        most: maximum number of atoms.

    Returns:
        The slab with tags 1 (surface) and 0 (below, fixed); its lowest atom is at z = 1 Å.
    """
    oriented = _widened(_oriented(kind.bulk, kind.plane), width)
    for units in range(1, 12):
        slab = oriented.repeat((1, 1, units))
        if len(slab) > most:
            raise Rejected("the slab would be too large")
        # Normal of the plane along z, first vector along x.
        slab.rotate(slab.cell[0], "x", rotate_cell=True)
        normal = np.cross(slab.cell[0], slab.cell[1])
        angle = np.degrees(np.arctan2(normal[1], normal[2]))
        slab.rotate(angle, "x", rotate_cell=True)
        period = float(slab.cell[2, 2])
        levels = np.sort(slab.positions[:, 2] % period)
        gaps = np.diff(np.append(levels, levels[0] + period))
        wide = np.flatnonzero(gaps > 0.6 * gaps.max())
        below = int(rng.choice(wide))
        bottom = levels[(below + 1) % len(levels)] - 1e-3
        # Subtract whole lattice vectors, so that atoms keep their lateral positions in the bulk.
        slab.positions -= np.outer((slab.positions[:, 2] - bottom) // period, slab.cell[2])
        z = slab.positions[:, 2]
        if np.ptp(z) >= thickness:
            break
    else:
        raise Rejected("no slab thick enough")
    slab.positions[:, 2] += 1.0 - z.min()
    slab.set_cell([slab.cell[0], slab.cell[1], [0, 0, np.ptp(z) + VACUUM]], scale_atoms=False)
    slab.set_pbc(True)
    slab.wrap(pbc=(True, True, False))
    z = slab.positions[:, 2]
    slab.set_tags(np.where(z >= z.max() - SURFACE_DEPTH, 1, 0))
    slab.set_constraint(FixAtoms(mask=slab.get_tags() == 0))
    return slab


def with_adsorbate(slab: Atoms, name: str, rng: np.random.Generator) -> Atoms:
    """The slab with one adsorbate at a random lateral position, at touching height.

    Args:
        slab: slab from `cut`.
        name: key of `ADSORBATES`.
        rng: random number generator for position, orientation (up to 15° from upright) and distance (0.95 to 1.1 ×
            the sum of covalent radii).
    """
    symbols, positions = ADSORBATES[name]
    adsorbate = Atoms(list(symbols), positions, tags=[2] * len(symbols))
    adsorbate.rotate(rng.uniform(-15, 15), "y")
    adsorbate.rotate(rng.uniform(0, 360), "z")
    place = rng.random(2) @ slab.cell.array[:2]
    touching = rng.uniform(0.95, 1.1) * (
        covalent_radii[adsorbate.numbers][:, None] + covalent_radii[slab.numbers][None, :]
    )
    top = slab.positions[:, 2].max()
    base = adsorbate.positions - [0, 0, adsorbate.positions[:, 2].min()]
    for height in np.arange(0.6, 4.0, 0.1):
        adsorbate.positions = base + np.array([place[0], place[1], top + height])
        apart = get_distances(adsorbate.positions, slab.positions, cell=slab.cell, pbc=True)[1]
        if (apart > touching).all():
            break
    combined = slab + adsorbate
    combined.set_cell(
        combined.cell.array + np.diag([0, 0, np.ptp(combined.positions[:, 2]) + VACUUM - combined.cell[2, 2]])
    )
    combined.set_constraint(FixAtoms(mask=combined.get_tags() == 0))
    if len(adsorbate) > 1 and _nearest_image(combined) < 1.5:
        raise Rejected("the adsorbate would meet its own image")
    return combined


def _nearest_image(combined: Atoms) -> float:
    """Distance from an adsorbate to its periodic images, Å."""
    positions = combined.positions[combined.get_tags() == 2]
    shifts = [i * combined.cell[0] + j * combined.cell[1] for i in (-1, 0, 1) for j in (-1, 0, 1) if (i, j) != (0, 0)]
    images = np.concatenate([positions + s for s in shifts])
    return float(np.linalg.norm(positions[:, None] - images[None, :], axis=-1).min())


def _shaken(atoms: Atoms, size: float, rng: np.random.Generator) -> Atoms:
    """A copy with free atoms displaced by normal random numbers of standard deviation `size` (Å)."""
    copy = atoms.copy()
    copy.positions[copy.get_tags() != 0] += rng.normal(scale=size, size=(int((copy.get_tags() != 0).sum()), 3))
    return copy


def frames(
    atoms: Atoms, rng: np.random.Generator, *, system: str, steps: int, deepest: float
) -> list[LabelledStructure]:
    """Four structures of one system: rattled start, partly relaxed, relaxed for `steps`, and rattled again.

    Args:
        atoms: slab, with or without adsorbate.
        rng: random number generator.
        system: name of the system; becomes the group.
        steps: number of LBFGS steps.
        deepest: maximum energy gain (eV); larger ones indicate an unphysical surface and are rejected.
    """
    start = _shaken(atoms, rng.uniform(0.03, 0.10), rng)
    start.calc = chgnet()
    first = start.get_potential_energy()
    if np.abs(start.get_forces(apply_constraint=False)).max() > 40:
        raise Rejected("atoms too close at the start")
    path: list[Atoms] = []
    relax(start, fmax=0.05, steps=steps, maxstep=0.1, watch=lambda: path.append(start.copy()))
    gained = first - start.get_potential_energy()
    if gained < -0.05:
        raise Rejected("the relaxation went uphill")
    if gained > deepest:
        raise Rejected(f"the relaxation gained more than {deepest:g} eV")
    relaxed, tags = path[-1], atoms.get_tags()
    if (tags == 2).any():
        height = relaxed.positions[tags == 2, 2].min() - relaxed.positions[tags == 1, 2].max()
        if height < -0.8:
            raise Rejected("the adsorbate went into the slab")
        if height > 4:
            raise Rejected("the adsorbate left the surface")
    chosen = [path[0], path[min(len(path) - 1, int(rng.integers(3, 7)))], relaxed]
    chosen.append(_shaken(relaxed, rng.uniform(0.03, 0.10), rng))
    return [labelled(frame, CHGNET, id=f"{system}/{i}", group=system) for i, frame in enumerate(chosen)]
