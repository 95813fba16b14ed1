"""Checks that a backbone or a data set keeps its promises, and small exact data to try everything else on.

    from eutectic.testing import check_backbone
    for result in check_backbone(lambda: MyBackbone(width=32), GraphSettings(cutoff=5.0)):
        print(result)

`check_backbone` runs every check and raises one `ConformanceError` that lists all that failed; each check can
be called alone as well. The structures are few and small but chosen for cunning (see `STRUCTURES`), the
arithmetic is float64, and every tolerance has a name and a reason (see `Tolerances`).
"""

from __future__ import annotations

import copy
import io
import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast

import numpy as np
import pyarrow as pa
import torch
from ase.build import add_adsorbate, bulk, fcc111, molecule
from ase.data import covalent_radii
from jaxtyping import Float
from torch import Tensor, nn

from eutectic.atoms import EutecticError, LabelledStructure, Structure
from eutectic.atoms.units import BOHR
from eutectic.data.card import Card
from eutectic.data.store import Store, write_store
from eutectic.graph import Graph, GraphSettings, build_graph, collate
from eutectic.graph.neighbours import neighbour_list
from eutectic.models.backbone import Features

# --- tolerances and results -----------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Tolerances:
    """How much two numbers that physics calls equal may differ, relative to the largest of their kind.

    Attributes:
        symmetry: float64 rounding (1e-16), grown by a deep network and divisions by small lengths; a broken
            symmetry shows at 1e-3 and above.
        derivative: a fourth-order difference of step 3e-4 Å misses about 1e-8 of a smooth function's slope; a
            forgotten term shows at 1e-2 and above.
        second_derivative: the same for the slope of a slope, one order rougher.
        precision: float32 against float64: 6e-8 grown by the network's depth and the cancellation in sums.
        cutoff: change over 2e-5 Å across the cutoff; smooth functions change by about that, a missing
            envelope (features) or one with a kink (their slope) by 1e-2 and above.
        nothing: changes below this mean that the backbone does not see the difference at all.
        growth: forces on a nearly straight molecule over those on a bent one; dividing by the angle's sine
            gives 1e3 and above.
        net_force: eV/Å per atom; self-consistent fields and grids leave about 1e-3.
    """

    symmetry: float = 1e-8
    derivative: float = 1e-6
    second_derivative: float = 1e-5
    precision: float = 1e-3
    cutoff: float = 1e-3
    nothing: float = 1e-9
    growth: float = 10.0
    net_force: float = 2e-3


USUAL = Tolerances()


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """One check, done.

    Attributes:
        name: of the check.
        passed: whether the promise was kept.
        worst: largest deviation found.
        tolerance: what would have been accepted.
        where: the structure (and quantity) with the worst deviation.
        meaning: what a failure means, in words.
        advisory: worth a look, never an error.
    """

    name: str
    passed: bool
    worst: float
    tolerance: float
    where: str = ""
    meaning: str = ""
    advisory: bool = False

    def __str__(self) -> str:
        word = "passed" if self.passed else "look at" if self.advisory else "FAILED"
        where = f", worst in {self.where}" if self.where else ""
        line = f"{word}  {self.name}: {self.worst:.2g} (tolerance {self.tolerance:.2g}{where})"
        return line if self.passed or not self.meaning else f"{line}: {self.meaning}"


class ConformanceError(AssertionError):
    """Promises were not kept; the message lists which, and where.

    Attributes:
        results: every result of the run, the kept ones too.
    """

    def __init__(self, subject: str, results: Sequence[CheckResult]) -> None:
        self.results = list(results)
        broken = [r for r in results if not r.passed and not r.advisory]
        lines = "\n".join(f"  {r}" for r in broken)
        super().__init__(f"{subject}: {len(broken)} of {len(results)} checks failed\n{lines}")


def _concluded(result: CheckResult) -> CheckResult:
    if not result.passed and not result.advisory:
        raise ConformanceError("conformance", [result])
    return result


# --- structures -----------------------------------------------------------------------------------


def _shaken(structure: Structure, amount: float, seed: int) -> Structure:
    noise = np.random.default_rng(seed).normal(0.0, amount, structure.positions.shape)
    return replace(structure, positions=structure.positions + noise)


def _molecule(name: str) -> Structure:
    return Structure.from_ase(molecule(name))


def _beside(first: Structure, second: Structure, distance: float) -> Structure:
    """Two molecules as one structure, the second moved along (1, 1, 1)."""
    moved = second.positions + distance / math.sqrt(3)
    return Structure(
        numbers=np.concatenate([first.numbers, second.numbers]),
        positions=np.concatenate([first.positions, moved]),
        tags=np.concatenate([first.tags, second.tags]),
        fixed=np.concatenate([first.fixed, second.fixed]),
    )


def _rock_salt() -> Structure:
    return Structure.from_ase(bulk("NaCl", "rocksalt", a=5.64))


def _slab(seed: int, amount: float, element: str = "Cu") -> Structure:
    """2 × 2 × 2 atoms of a (111) surface with an oxygen on it; the bottom layer is held."""
    slab = fcc111(element, (2, 2, 2), vacuum=None)
    layer = np.asarray(slab.get_tags())  # 1 is the topmost layer
    add_adsorbate(slab, "O", 1.3, "fcc")
    tags = np.concatenate([np.where(layer == 1, 1, 0), [2]])
    cell = np.asarray(slab.cell.array)
    cell[2] = 0.0
    return _shaken(
        Structure(
            numbers=np.asarray(slab.numbers, dtype=np.int64),
            positions=np.asarray(slab.positions, dtype=np.float64),
            cell=cell,
            pbc=np.array([True, True, False]),
            tags=tags,
            fixed=np.concatenate([layer == layer.max(), [False]]),
        ),
        amount,
        seed,
    )


def _slab_across_the_boundary() -> Structure:
    slab = _slab(seed=5, amount=0.05)
    cell = slab.cell.copy()
    cell[2, 2] = 14.0
    wrapped = slab.positions.copy()
    wrapped[:, 2] = (wrapped[:, 2] - 1.0) % 14.0
    return replace(slab, positions=wrapped, cell=cell, pbc=np.ones(3, dtype=bool))


def _slab_on_its_side() -> Structure:
    slab = _slab(seed=6, amount=0.05)
    turn = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]])
    cell = np.zeros((3, 3))
    cell[0], cell[2] = slab.cell[0] @ turn.T, slab.cell[1] @ turn.T
    return replace(slab, positions=slab.positions @ turn.T, cell=cell, pbc=np.array([True, False, True]))


def _skewed() -> Structure:
    cell = np.array([[4.2, 0.0, 0.0], [3.9, 2.1, 0.0], [3.5, 1.9, 3.0]])
    places = np.array([[0.1, 0.2, 0.3], [0.62, 0.74, 0.83]])
    return Structure(numbers=np.array([12, 8]), positions=places @ cell, cell=cell, pbc=np.ones(3, dtype=bool))


def _unwrapped() -> Structure:
    crystal = _shaken(Structure.from_ase(bulk("MgO", "rocksalt", a=4.21, cubic=True)), 0.05, seed=4)
    jumps = np.random.default_rng(4).integers(-3, 4, (len(crystal), 3))
    return replace(crystal, positions=crystal.positions + jumps @ crystal.cell)


def _left_handed() -> Structure:
    crystal = _shaken(_rock_salt(), 0.1, seed=3)
    return replace(crystal, cell=crystal.cell[[1, 0, 2]])


STRUCTURES: dict[str, Structure] = {
    "helium": Structure(numbers=np.array([2]), positions=np.zeros((1, 3))),
    "two_far_atoms": Structure(numbers=np.array([1, 8]), positions=np.array([[0.0, 0, 0], [90.0, 0, 0]])),
    "hydrogen": _molecule("H2"),
    "water": _molecule("H2O"),
    "carbon_dioxide": _molecule("CO2"),
    "acetylene": _molecule("C2H2"),
    "benzene": _molecule("C6H6"),
    "ethanol_rattled": _shaken(_molecule("CH3CH2OH"), 0.1, seed=1),
    "two_molecules_apart": _beside(_molecule("H2O"), _molecule("CH4"), 60.0),
    "sodium_chloride": _rock_salt(),
    "copper_one_atom": Structure.from_ase(bulk("Cu", "fcc", a=3.61)),
    "skewed_cell": _skewed(),
    "left_handed_cell": _left_handed(),
    "unwrapped": _unwrapped(),
    "slab_two_periodic": _slab(seed=2, amount=0.1),
    "slab_across_boundary": _slab_across_the_boundary(),
    "slab_on_its_side": _slab_on_its_side(),
}
"""Small structures chosen for cunning.

helium, two_far_atoms: no edge at all. hydrogen: no angle. carbon_dioxide, acetylene: three and four atoms in
a line, so that an angle is 180° and a dihedral is not defined. benzene: flat, and ties between equivalent
neighbours. two_molecules_apart: parts that do not see each other. sodium_chloride, copper_one_atom: perfect
crystals (ties at every cap, angles of 180°) whose cells are smaller than the cutoff, so that atoms see their
own images; one atom catches squeezed axes. skewed_cell: images that matter are not the nearest cells.
left_handed_cell: negative volume. unwrapped: atoms several cells away. slab_two_periodic: its third lattice
vector is zero. slab_across_boundary: periodic three times, cut in two by z = 0. slab_on_its_side: periodic
along the first and third vector, the second is zero.
"""

GENERIC = ("ethanol_rattled", "skewed_cell", "left_handed_cell", "unwrapped", "slab_two_periodic")
"""Names of the structures without symmetry: derivatives are compared with differences on these. (A crystal
whose atoms see their own images always has some angles of 180°.)"""

Structures = Mapping[str, Structure]


def generic_structures() -> dict[str, Structure]:
    """The structures that `GENERIC` names."""
    return {name: STRUCTURES[name] for name in GENERIC}


# --- what is looked at ----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class Observed:
    """What the checks compare: one row for each atom, whatever the order of the edges.

    Attributes:
        atoms: (n_atoms, atom_width) invariant features.
        edges: (n_atoms, edge_width) sum of the features of each atom's incoming edges.
        vectors: (n_atoms, 3) sum over them of f_e · direction, f_e a fixed random mixture of edge features.
    """

    atoms: Tensor
    edges: Tensor
    vectors: Tensor

    def rows(self, keep: Tensor | slice) -> Observed:
        """Some of the atoms."""
        return Observed(atoms=self.atoms[keep], edges=self.edges[keep], vectors=self.vectors[keep])

    def parts(self) -> dict[str, Tensor]:
        """The three, by name."""
        return {"atoms": self.atoms, "edges": self.edges, "vectors": self.vectors}


def _readout(width: int, like: Tensor) -> Tensor:
    weights = torch.randn(width, generator=torch.Generator().manual_seed(17), dtype=torch.float64)
    return (weights / math.sqrt(max(width, 1))).to(like)


def observe(backbone: nn.Module, graph: Graph) -> Observed:
    """One forward pass, summed to rows per atom."""
    features: Features = backbone(graph)
    n = len(graph.numbers)
    edges = features.atoms.new_zeros(n, 0)
    vectors = features.atoms.new_zeros(n, 3)
    if features.edges is not None:
        edges = features.edges.new_zeros(n, features.edges.shape[1]).index_add(0, graph.main.target, features.edges)
        strength = features.edges @ _readout(features.edges.shape[1], features.edges)  # (edges,)
        vectors = vectors.index_add(0, graph.main.target, strength[:, None] * features.directions)
    return Observed(atoms=features.atoms, edges=edges, vectors=vectors)


def energy(backbone: nn.Module, graph: Graph) -> Float[Tensor, structures]:
    """A made-up energy of each structure: a fixed random mixture of its atoms' features, summed."""
    atoms = backbone(graph).atoms
    each = atoms @ _readout(atoms.shape[1], atoms)  # (atoms,)
    return each.new_zeros(graph.n_structures).index_add(0, graph.structure, each)


def _graph(structures: Sequence[Structure], settings: GraphSettings, dtype: torch.dtype = torch.float64) -> Graph:
    return collate([build_graph(s, settings) for s in structures], dtype)


def _double(backbone: nn.Module) -> nn.Module:
    """A copy in float64 that neither drops out nor updates running means; the caller's stays as it is."""
    return copy.deepcopy(backbone).double().eval()


def _far(a: Tensor, b: Tensor) -> float:
    """Largest difference; infinite where either is not a number."""
    if a.shape != b.shape:
        return math.inf
    return float((a - b).abs().nan_to_num(nan=math.inf).max()) if a.numel() else 0.0


def _slices(structures: Sequence[Structure]) -> Iterator[slice]:
    ends = np.cumsum([len(s) for s in structures])
    return (slice(int(end) - len(s), int(end)) for s, end in zip(structures, ends, strict=True))


def _worst(expected: Observed, found: Observed, rows: Mapping[str, slice]) -> tuple[float, str]:
    """Largest difference relative to the largest value of its kind in the whole batch, and where it is.

    Not relative to each structure's own: in a perfect crystal every vector is a sum that cancels.
    """
    worst, where = 0.0, ""
    for part, a in expected.parts().items():
        b = found.parts()[part]
        scale = float(a.abs().max()) if a.numel() else 0.0
        for name, keep in rows.items():
            difference = _far(a[keep], b[keep]) / (scale or 1.0)
            difference = math.inf if math.isnan(difference) else difference
            if difference > worst:
                worst, where = difference, f"{name} ({part})"
    return worst, where


# --- symmetries -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class _Moved:
    """A structure written differently. `origin`: which old atom each new one is. `turn`: x → turn · x."""

    structure: Structure
    origin: np.ndarray
    turn: np.ndarray


def _compare(
    name: str,
    meaning: str,
    backbone: nn.Module,
    settings: GraphSettings,
    structures: Structures,
    tolerance: float,
    move: Callable[[Structure, np.random.Generator], _Moved | None],
) -> CheckResult:
    rng = np.random.default_rng(11)
    pairs = {key: (s, moved) for key, s in structures.items() if (moved := move(s, rng)) is not None}
    if not pairs:
        return CheckResult(name=name, passed=True, worst=0.0, tolerance=tolerance, where="no structure it applies to")
    backbone = _double(backbone)
    old = [s for s, _ in pairs.values()]
    new = [m.structure for _, m in pairs.values()]
    with torch.no_grad():
        before = observe(backbone, _graph(old, settings))
        after = observe(backbone, _graph(new, settings))
    expected = []
    for keep, (_, moved) in zip(_slices(old), pairs.values(), strict=True):
        rows = before.rows(keep).rows(torch.from_numpy(moved.origin))
        expected.append(replace(rows, vectors=rows.vectors @ torch.from_numpy(moved.turn).T.to(rows.vectors)))
    joined = Observed(
        **{part: torch.cat([e.parts()[part] for e in expected]) for part in ("atoms", "edges", "vectors")}
    )
    worst, where = _worst(joined, after, dict(zip(pairs, _slices(new), strict=True)))
    return _concluded(
        CheckResult(
            name=name,
            passed=worst <= tolerance,
            worst=worst,
            tolerance=tolerance,
            where=where,
            meaning=meaning,
        )
    )


def _random_rotation(rng: np.random.Generator) -> np.ndarray:
    q, r = np.linalg.qr(rng.normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    return np.asarray(q * np.sign(np.linalg.det(q)))


def _turned(structure: Structure, turn: np.ndarray) -> _Moved:
    moved = replace(structure, positions=structure.positions @ turn.T, cell=structure.cell @ turn.T)
    return _Moved(structure=moved, origin=np.arange(len(structure)), turn=turn)


def check_rotation(
    backbone: nn.Module,
    graph_settings: GraphSettings,
    structures: Structures = STRUCTURES,
    tolerances: Tolerances = USUAL,
) -> CheckResult:
    """Features stay, vectors made as Σ f_e · direction turn with the structure."""
    return _compare(
        "rotation",
        "features depend on how the structure lies in space",
        backbone,
        graph_settings,
        structures,
        tolerances.symmetry,
        lambda s, rng: _turned(s, _random_rotation(rng)),
    )


def check_inversion(
    backbone: nn.Module,
    graph_settings: GraphSettings,
    structures: Structures = STRUCTURES,
    tolerances: Tolerances = USUAL,
) -> CheckResult:
    """x → -x: features stay (energies do not know left from right), vectors change sign."""
    return _compare(
        "inversion",
        "features change when the structure is mirrored through a point",
        backbone,
        graph_settings,
        structures,
        tolerances.symmetry,
        lambda s, rng: _turned(s, -np.eye(3)),
    )


def _same(structure: Structure, **changes: np.ndarray) -> _Moved:
    return _Moved(structure=replace(structure, **changes), origin=np.arange(len(structure)), turn=np.eye(3))


def check_translation(
    backbone: nn.Module,
    graph_settings: GraphSettings,
    structures: Structures = STRUCTURES,
    tolerances: Tolerances = USUAL,
) -> CheckResult:
    """Features do not know where the origin is."""
    return _compare(
        "translation",
        "features depend on absolute positions",
        backbone,
        graph_settings,
        structures,
        tolerances.symmetry,
        lambda s, rng: _same(s, positions=s.positions + rng.normal(0.0, 10.0, 3)),
    )


def check_permutation(
    backbone: nn.Module,
    graph_settings: GraphSettings,
    structures: Structures = STRUCTURES,
    tolerances: Tolerances = USUAL,
) -> CheckResult:
    """Atoms in another order: the same features in that order.

    The published rule, `GraphSettings(symmetry="lower_source")`, fails here wherever the cap cuts.
    """

    def move(s: Structure, rng: np.random.Generator) -> _Moved:
        order = rng.permutation(len(s))
        shuffled = replace(
            s,
            numbers=s.numbers[order],
            positions=s.positions[order],
            tags=s.tags[order],
            fixed=s.fixed[order],
        )
        return _Moved(structure=shuffled, origin=order, turn=np.eye(3))

    meaning = "features depend on the order of the atoms"
    return _compare("permutation", meaning, backbone, graph_settings, structures, tolerances.symmetry, move)


def check_lattice_wrap(
    backbone: nn.Module,
    graph_settings: GraphSettings,
    structures: Structures = STRUCTURES,
    tolerances: Tolerances = USUAL,
) -> CheckResult:
    """Each atom moved by some whole lattice vectors is the same structure."""

    def move(s: Structure, rng: np.random.Generator) -> _Moved | None:
        jumps = rng.integers(-2, 3, (len(s), 3)) * s.pbc
        return _same(s, positions=s.positions + jumps @ s.cell) if s.pbc.any() else None

    meaning = "features depend on which image of an atom the file names"
    return _compare("lattice wrap", meaning, backbone, graph_settings, structures, tolerances.symmetry, move)


def check_cell_choice(
    backbone: nn.Module,
    graph_settings: GraphSettings,
    structures: Structures = STRUCTURES,
    tolerances: Tolerances = USUAL,
) -> CheckResult:
    """Other lattice vectors of the same lattice (a sheared cell) are the same structure."""

    def move(s: Structure, rng: np.random.Generator) -> _Moved | None:
        axes = np.flatnonzero(s.pbc)
        if not len(axes):
            return None
        cell = s.cell.copy()
        if len(axes) == 1:
            cell[axes[0]] *= -1
        else:
            cell[axes[0]] += cell[axes[1]]
            cell[axes[-1]] -= 2 * cell[axes[0]]
        return _same(s, cell=cell)

    meaning = "features depend on which cell describes the lattice"
    return _compare("cell choice", meaning, backbone, graph_settings, structures, tolerances.symmetry, move)


def check_supercell(
    backbone: nn.Module,
    graph_settings: GraphSettings,
    structures: Structures = STRUCTURES,
    tolerances: Tolerances = USUAL,
) -> CheckResult:
    """A cell and its double: the same features per atom."""

    def move(s: Structure, rng: np.random.Generator) -> _Moved | None:
        if not s.pbc.any():
            return None
        axis, n = int(np.argmax(s.pbc)), len(s)
        cell = s.cell.copy()
        cell[axis] *= 2
        doubled = replace(
            s,
            numbers=np.tile(s.numbers, 2),
            positions=np.concatenate([s.positions, s.positions + s.cell[axis]]),
            cell=cell,
            tags=np.tile(s.tags, 2),
            fixed=np.tile(s.fixed, 2),
        )
        return _Moved(structure=doubled, origin=np.tile(np.arange(n), 2), turn=np.eye(3))

    meaning = "features per atom change with the size of the cell that is repeated"
    return _compare("supercell", meaning, backbone, graph_settings, structures, tolerances.symmetry, move)


# --- batches --------------------------------------------------------------------------------------


def check_batch(
    backbone: nn.Module,
    graph_settings: GraphSettings,
    structures: Structures = STRUCTURES,
    tolerances: Tolerances = USUAL,
) -> CheckResult:
    """A batch gives what its structures give one by one."""
    backbone = _double(backbone)
    all_of_them = list(structures.values())
    with torch.no_grad():
        together = observe(backbone, _graph(all_of_them, graph_settings))
        alone = [observe(backbone, _graph([s], graph_settings)).parts() for s in all_of_them]
    joined = Observed(**{part: torch.cat([a[part] for a in alone]) for part in ("atoms", "edges", "vectors")})
    worst, where = _worst(joined, together, dict(zip(structures, _slices(all_of_them), strict=True)))
    return _concluded(
        CheckResult(
            name="batch equals singles",
            passed=worst <= tolerances.symmetry,
            worst=worst,
            tolerance=tolerances.symmetry,
            where=where,
            meaning="features depend on what else is in the batch",
        )
    )


def check_isolation(
    backbone: nn.Module,
    graph_settings: GraphSettings,
    structures: Structures = STRUCTURES,
    tolerances: Tolerances = USUAL,
) -> CheckResult:
    """The gradient of one structure's energy with respect to another's positions is exactly zero."""
    backbone = _double(backbone)
    graph = _graph(list(structures.values()), graph_settings)
    positions = graph.positions.clone().requires_grad_()
    energies = energy(backbone, graph.with_positions(positions))
    worst, where = 0.0, ""
    for i, name in enumerate(structures):
        gradient = _gradient(energies[i], positions, retain=True)
        leak = float(gradient[graph.structure != i].abs().nan_to_num(nan=math.inf).max())
        if leak > worst:
            worst, where = leak, name
    return _concluded(
        CheckResult(
            name="isolation",
            passed=worst == 0.0,
            worst=worst,
            tolerance=0.0,
            where=where,
            meaning="one structure's energy depends on another structure's atoms",
        )
    )


def check_separation(
    backbone: nn.Module,
    graph_settings: GraphSettings,
    structures: Structures = STRUCTURES,
    tolerances: Tolerances = USUAL,
) -> CheckResult:
    """Two molecules farther apart than the cutoff have the features of each alone."""
    molecules = {k: s for k, s in structures.items() if not s.pbc.any()}
    backbone = _double(backbone)
    pairs = dict(itertools.islice(((f"{a} + {b}", (a, b)) for a, b in itertools.pairwise(molecules)), 4))
    if not pairs:
        return CheckResult(name="separation", passed=True, worst=0.0, tolerance=0.0, where="no structure it applies to")
    far = 20 * graph_settings.cutoff + 200.0
    together = [_beside(molecules[a], molecules[b], far) for a, b in pairs.values()]
    alone = [molecules[name] for names in pairs.values() for name in names]
    with torch.no_grad():
        found = observe(backbone, _graph(together, graph_settings))
        expected = observe(backbone, _graph(alone, graph_settings))
    worst, where = _worst(expected, found, dict(zip(pairs, _slices(together), strict=True)))
    return _concluded(
        CheckResult(
            name="separation",
            passed=worst <= tolerances.symmetry,
            worst=worst,
            tolerance=tolerances.symmetry,
            where=where,
            meaning="atoms beyond the cutoff change each other's features",
        )
    )


# --- derivatives ----------------------------------------------------------------------------------


def _gradient(value: Tensor, of: Tensor, *, retain: bool = False, create: bool = False) -> Tensor:
    """Zeros where `value` does not depend on `of` (there is no edge)."""
    if not value.requires_grad:
        return torch.zeros_like(of)
    (gradient,) = torch.autograd.grad(value, of, retain_graph=retain or create, create_graph=create, allow_unused=True)
    return torch.zeros_like(of) if gradient is None else gradient


def _difference(f: Callable[[float], Tensor], h: float = 3e-4) -> Tensor:
    """f'(0) to fourth order in h: (8 (f(h) - f(-h)) - (f(2h) - f(-2h))) / 12h."""
    return (8 * (f(h) - f(-h)) - (f(2 * h) - f(-2 * h))) / (12 * h)


def _per_structure(values: Tensor, graph: Graph) -> Tensor:
    return values.new_zeros(graph.n_structures).index_add(0, graph.structure, values.sum(-1))


def _least(scale: Tensor) -> float:
    """A structure at rest has no slope to be relative to: a thousandth of the others' stands in."""
    return 1e-3 * float(scale.max()) or 1.0


def _directions(graph: Graph, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(graph.positions.shape, generator=generator, dtype=graph.positions.dtype)


def check_gradient(
    backbone: nn.Module,
    graph_settings: GraphSettings,
    structures: Structures | None = None,
    tolerances: Tolerances = USUAL,
) -> CheckResult:
    """Forces and stress by autograd equal finite differences on fixed edges (default: `GENERIC`)."""
    structures = generic_structures() if structures is None else structures
    backbone = _double(backbone)
    graph = _graph(list(structures.values()), graph_settings)
    positions, cell = graph.positions.clone().requires_grad_(), graph.cell.clone().requires_grad_()
    total = energy(backbone, graph.with_positions(positions, cell)).sum()
    by_positions = _gradient(total, positions, retain=True)
    by_cell = _gradient(total, cell)
    strain = torch.tensor([[0.3, 0.1, -0.2], [0.1, -0.5, 0.4], [-0.2, 0.4, 0.6]], dtype=graph.cell.dtype)
    moves = {f"direction {k}": (_directions(graph, k), torch.zeros_like(graph.cell)) for k in range(2)}
    moves["strain"] = (graph.positions @ strain, graph.cell @ strain)
    worst, where = 0.0, ""
    for what, (u, c) in moves.items():

        def moved(x: float, u: Tensor = u, c: Tensor = c) -> Tensor:
            with torch.no_grad():
                return energy(backbone, graph.with_positions(graph.positions + x * u, graph.cell + x * c))

        expected = _difference(moved)
        found = _per_structure(by_positions * u, graph) + (by_cell * c).sum((1, 2))
        scale = _per_structure((by_positions * u).abs(), graph) + (by_cell * c).abs().sum((1, 2))
        error = ((found - expected).abs() / scale.clamp(min=_least(scale))).nan_to_num(nan=math.inf)
        if float(error.max()) > worst:
            worst, where = float(error.max()), f"{list(structures)[int(error.argmax())]} ({what})"
    return _concluded(
        CheckResult(
            name="gradient",
            passed=worst <= tolerances.derivative,
            worst=worst,
            tolerance=tolerances.derivative,
            where=where,
            meaning="autograd's forces are not the slope of the energy (a detach? a kink?)",
        )
    )


def check_second_derivative(
    backbone: nn.Module,
    graph_settings: GraphSettings,
    structures: Structures | None = None,
    tolerances: Tolerances = USUAL,
) -> CheckResult:
    """Forces can be differentiated again, as training on conservative forces does (default: `GENERIC`)."""
    structures = generic_structures() if structures is None else structures
    backbone = _double(backbone)
    graph = _graph(list(structures.values()), graph_settings)
    u, w = _directions(graph, 5), _directions(graph, 6)

    def slopes(positions: Tensor, create: bool) -> Tensor:
        total = energy(backbone, graph.with_positions(positions)).sum()
        return _gradient(total, positions, create=create) * w

    def moved(x: float) -> Tensor:
        return _per_structure(slopes((graph.positions + x * u).requires_grad_(), False), graph).detach()

    positions = graph.positions.clone().requires_grad_()
    curvature = _gradient(slopes(positions, True).sum(), positions) * u
    error = (_per_structure(curvature, graph) - _difference(moved)).abs()
    scale = _per_structure(curvature.abs(), graph)
    error = (error / scale.clamp(min=_least(scale))).nan_to_num(nan=math.inf)
    worst = float(error.max())
    return _concluded(
        CheckResult(
            name="second derivative",
            passed=worst <= tolerances.second_derivative,
            worst=worst,
            tolerance=tolerances.second_derivative,
            where=list(structures)[int(error.argmax())],
            meaning="the derivative of the forces is wrong, and so would be training on conservative forces",
        )
    )


def check_finite(
    backbone: nn.Module,
    graph_settings: GraphSettings,
    structures: Structures = STRUCTURES,
    tolerances: Tolerances = USUAL,
) -> CheckResult:
    """Features, forces and a force loss's gradient in the parameters are finite for every structure alone:
    one atom, no edges, atoms in a line or a plane, perfect crystals."""
    backbone = _double(backbone)
    weights = [p for p in backbone.parameters() if p.requires_grad]
    worst = []
    for name, structure in structures.items():
        graph = _graph([structure], graph_settings)
        positions = graph.positions.clone().requires_grad_()
        seen = observe(backbone, graph.with_positions(positions))
        total = energy(backbone, graph.with_positions(positions)).sum()
        slope = _gradient(total, positions, create=True, retain=True)
        loss = total.square() + slope.square().sum()
        grads = torch.autograd.grad(loss, weights, allow_unused=True) if loss.requires_grad and weights else ()
        parts: dict[str, Sequence[Tensor | None]] = {
            "features": list(seen.parts().values()),
            "forces": [slope],
            "gradient of a loss on forces": grads,
        }
        bad = (k for k, values in parts.items() if not all(v is None or bool(v.isfinite().all()) for v in values))
        worst += [f"{name} ({part})" for part in itertools.islice(bad, 1)]
    return _concluded(
        CheckResult(
            name="finite",
            passed=not worst,
            worst=float(len(worst)),
            tolerance=0.0,
            where=", ".join(worst),
            meaning="not a number: the first such structure in a data set ends a training run",
        )
    )


def check_straightening(
    backbone: nn.Module,
    graph_settings: GraphSettings,
    structures: Structures | None = None,
    tolerances: Tolerances = USUAL,
) -> CheckResult:
    """Forces stay bounded while a molecule is bent less and less, down to 1e-7 Å from a straight line.

    Advisory: dihedral angles are not defined there, and a model that never differentiates its energy may live
    with that; molecular dynamics on its gradient would not. `structures` is not used.
    """
    backbone = _double(backbone)
    bend = np.random.default_rng(3).normal(size=(4, 3))
    straight = STRUCTURES["acetylene"]
    amounts = [0.3, 0.1] + [10.0**-k for k in range(2, 8)]
    bent = [replace(straight, positions=straight.positions + a * bend) for a in amounts]
    graph = _graph(bent, graph_settings)
    positions = graph.positions.clone().requires_grad_()
    slope = _gradient(energy(backbone, graph.with_positions(positions)).sum(), positions)
    largest = slope.abs().reshape(len(bent), -1).amax(1)  # (structures,)
    growth = float((largest[2:].max() / largest[:2].max().clamp(min=1e-30)).nan_to_num(nan=math.inf))
    return CheckResult(
        name="straightening",
        passed=growth <= tolerances.growth,
        worst=growth,
        tolerance=tolerances.growth,
        where="acetylene",
        meaning="forces by gradient grow without bound as atoms come into line",
        advisory=True,
    )


def check_cutoff(
    backbone: nn.Module,
    graph_settings: GraphSettings,
    structures: Structures | None = None,
    tolerances: Tolerances = USUAL,
) -> CheckResult:
    """An atom that crosses the cutoff changes nothing at that moment: neither features nor their slopes jump.

    The structures are made here, a pair and a triangle that open; `structures` is not used.
    """
    backbone = _double(backbone)
    c, step = graph_settings.cutoff, 1e-5

    def at(distance: float) -> tuple[Observed, Tensor]:
        opened = [
            Structure(numbers=np.array([8, 1]), positions=np.array([[0.0, 0, 0], [distance, 0, 0]])),
            Structure(
                numbers=np.array([8, 6, 1]),
                positions=np.array([[0.0, 0, 0], [0.45 * c, 0.9, 0], [distance, 0, 0]]),
            ),
        ]
        graph = _graph(opened, graph_settings)
        positions = graph.positions.clone().requires_grad_()
        slope = _gradient(energy(backbone, graph.with_positions(positions)).sum(), positions)
        with torch.no_grad():
            return observe(backbone, graph), slope

    (inside, slope_inside), (outside, slope_outside), (_, slope_near) = (
        at(c - step),
        at(c + step),
        at(0.4 * c),
    )
    worst, where = _worst(outside, inside, {"pair": slice(0, 2), "triangle": slice(2, 5)})
    jump = _far(slope_inside, slope_outside) / (float(slope_near.abs().max()) or 1.0)
    if jump > worst:
        worst, where = jump, "slope of the energy"
    return _concluded(
        CheckResult(
            name="cutoff",
            passed=worst <= tolerances.cutoff,
            worst=worst,
            tolerance=tolerances.cutoff,
            where=where,
            meaning="features jump where an edge appears (no envelope, or a cutoff larger than the graph's)",
        )
    )


# --- the rest -------------------------------------------------------------------------------------


def check_contract(
    backbone: nn.Module,
    graph_settings: GraphSettings,
    structures: Structures = STRUCTURES,
    tolerances: Tolerances = USUAL,
) -> CheckResult:
    """`Features` of the declared widths, a row per atom and per main edge, with the edges' own directions."""
    backbone = _double(backbone)
    graph = _graph(list(structures.values()), graph_settings)
    with torch.no_grad():
        features: Features = backbone(graph)
    n, m = len(graph.numbers), len(graph.main)
    wrong, worst = [], 0.0
    if tuple(features.atoms.shape) != (n, int(cast(int, backbone.atom_width))):
        wrong.append(f"atoms of shape {tuple(features.atoms.shape)} for {n} atoms and width {backbone.atom_width}")
    if features.edges is not None and tuple(features.edges.shape) != (m, int(cast(int, backbone.edge_width))):
        wrong.append(f"edges of shape {tuple(features.edges.shape)} for {m} edges and width {backbone.edge_width}")
    if tuple(features.directions.shape) != (m, 3):
        wrong.append(f"directions of shape {tuple(features.directions.shape)} for {m} edges")
    else:
        worst = _far(features.directions, graph.vectors(graph.main)[1])
        if worst > tolerances.symmetry:
            wrong.append("directions are not the main edges' unit vectors, source to target")
    return _concluded(
        CheckResult(
            name="contract",
            passed=not wrong,
            worst=worst,
            tolerance=tolerances.symmetry,
            meaning="; ".join(wrong),
        )
    )


def check_sensitivity(
    backbone: nn.Module,
    graph_settings: GraphSettings,
    structures: Structures | None = None,
    tolerances: Tolerances = USUAL,
) -> CheckResult:
    """Features notice an element, a length and an angle (a constant would pass every other check)."""
    backbone = _double(backbone)
    water = STRUCTURES["water"]
    longer = water.positions.copy()
    longer[1] += 0.1 * (longer[1] - longer[0])
    half = 0.1
    turn = np.array([[1, 0, 0], [0, math.cos(half), -math.sin(half)], [0, math.sin(half), math.cos(half)]])
    bent = water.positions.copy()
    bent[1] = turn @ (bent[1] - bent[0]) + bent[0]
    others = {
        "element": replace(water, numbers=np.array([16, 1, 1])),
        "length": replace(water, positions=longer),
        "angle": replace(water, positions=bent),
    }
    with torch.no_grad():
        seen = observe(backbone, _graph([water, *others.values()], graph_settings)).atoms.reshape(4, -1)
    changes = (seen[1:] - seen[0]).abs().amax(1) / seen.abs().max().clamp(min=1e-30)
    least = float(changes.min())
    return _concluded(
        CheckResult(
            name="sensitivity",
            passed=least > tolerances.nothing,
            worst=least,
            tolerance=tolerances.nothing,
            where=list(others)[int(changes.argmin())],
            meaning="features do not notice this change at all",
        )
    )


def check_precision(
    backbone: nn.Module,
    graph_settings: GraphSettings,
    structures: Structures = STRUCTURES,
    tolerances: Tolerances = USUAL,
) -> CheckResult:
    """float32 gives what float64 gives, and stays float32."""
    single = copy.deepcopy(backbone).float().eval()
    graph = _graph(list(structures.values()), graph_settings)
    with torch.no_grad():
        exact = observe(_double(backbone), graph)
        rough = observe(single, graph.to("cpu", torch.float32))
    kept = rough.atoms.dtype == torch.float32 and rough.vectors.dtype == torch.float32
    rough = Observed(**{k: v.double() for k, v in rough.parts().items()})
    worst, where = _worst(exact, rough, dict(zip(structures, _slices(list(structures.values())), strict=True)))
    return _concluded(
        CheckResult(
            name="precision",
            passed=kept and worst <= tolerances.precision,
            worst=worst,
            tolerance=tolerances.precision,
            where=where,
            meaning="float32 loses digits somewhere" if kept else "a float32 graph gave features of another type",
        )
    )


def check_deterministic(
    backbone: nn.Module,
    graph_settings: GraphSettings,
    structures: Structures = STRUCTURES,
    tolerances: Tolerances = USUAL,
) -> CheckResult:
    """The same graph twice, in evaluation mode, gives the same bits."""
    backbone = _double(backbone)
    graph = _graph(list(structures.values()), graph_settings)
    with torch.no_grad():
        first, second = (observe(backbone, graph) for _ in range(2))
    worst, where = _worst(first, second, dict(zip(structures, _slices(list(structures.values())), strict=True)))
    return _concluded(
        CheckResult(
            name="deterministic",
            passed=worst == 0.0,
            worst=worst,
            tolerance=0.0,
            where=where,
            meaning="the same input gave two answers in evaluation mode",
        )
    )


def check_state_dict(
    make: Callable[[], nn.Module],
    graph_settings: GraphSettings,
    structures: Structures = STRUCTURES,
    tolerances: Tolerances = USUAL,
) -> CheckResult:
    """A second backbone given the first one's saved state is the first one, to the bit."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        first = make()
        torch.manual_seed(2)
        second = make()
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True), strict=True)
    graph = _graph(list(structures.values()), graph_settings)
    with torch.no_grad():
        one, two = (observe(_double(b), graph) for b in (first, second))
    worst, where = _worst(one, two, dict(zip(structures, _slices(list(structures.values())), strict=True)))
    return _concluded(
        CheckResult(
            name="state dict",
            passed=worst == 0.0,
            worst=worst,
            tolerance=0.0,
            where=where,
            meaning="something that decides the features is not in the state dict",
        )
    )


BackboneCheck = Callable[..., CheckResult]

BACKBONE_CHECKS: dict[str, BackboneCheck] = {
    "contract": check_contract,
    "finite": check_finite,
    "sensitivity": check_sensitivity,
    "rotation": check_rotation,
    "inversion": check_inversion,
    "translation": check_translation,
    "permutation": check_permutation,
    "lattice wrap": check_lattice_wrap,
    "cell choice": check_cell_choice,
    "supercell": check_supercell,
    "batch equals singles": check_batch,
    "isolation": check_isolation,
    "separation": check_separation,
    "straightening": check_straightening,
    "cutoff": check_cutoff,
    "gradient": check_gradient,
    "second derivative": check_second_derivative,
    "precision": check_precision,
    "deterministic": check_deterministic,
}
"""Every check of one backbone, by name: check(backbone, graph_settings, structures, tolerances)."""


def check_backbone(
    make: Callable[[], nn.Module],
    graph_settings: GraphSettings,
    *,
    skip: Sequence[str] = (),
    tolerances: Tolerances = USUAL,
) -> list[CheckResult]:
    """Every check, on one backbone at its initial weights.

    Args:
        make: builds the backbone; called a few times, with different random seeds.
        graph_settings: of the graphs it is for; `symmetry="union"`: the published rule is not invariant.
        skip: names of checks to leave out ("inversion" for a chiral model).
        tolerances: see there.

    Raises:
        ConformanceError: some checks failed; its message lists all of them.
    """
    unknown = set(skip) - {*BACKBONE_CHECKS, "state dict"}
    if unknown:
        raise ValueError(f"no checks named {sorted(unknown)}; there are {[*BACKBONE_CHECKS, 'state dict']}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = make()
    checks: dict[str, Callable[[], CheckResult]] = {
        name: lambda check=check: check(backbone, graph_settings, tolerances=tolerances)  # type: ignore[misc]
        for name, check in BACKBONE_CHECKS.items()
    }
    checks["state dict"] = lambda: check_state_dict(make, graph_settings, tolerances=tolerances)
    results = []
    for name, check in checks.items():
        if name in skip:
            continue
        try:
            results.append(check())
        except ConformanceError as error:
            results += error.results
        except Exception as error:  # a crash is a failed check, and the others are still worth knowing
            lines = str(error).strip().splitlines()
            said = f"raised {type(error).__name__}: {lines[0] if lines else ''}"
            results.append(CheckResult(name=name, passed=False, worst=math.inf, tolerance=0.0, meaning=said))
    if not all(r.passed or r.advisory for r in results):
        raise ConformanceError(type(backbone).__name__, results)
    return results


# --- data sets ------------------------------------------------------------------------------------


def check_dataset(
    store: Store,
    *,
    limit: int | None = None,
    tolerances: Tolerances = USUAL,
) -> list[CheckResult]:
    """Every check of a store.

    Args:
        store: opened.
        limit: look at this many structures, evenly spread (default: all).
        tolerances: see there.

    Returns:
        The results. "net force" is advisory: the forces on an isolated molecule sum to zero, but programs
        that compute on a grid leave some, and an external field or a solvent model leaves more.

    Raises:
        ConformanceError: some checks failed; its message lists all of them.
    """
    card = store.card
    indices = np.arange(len(store)) if limit is None else np.unique(np.linspace(0, len(store) - 1, limit, dtype=int))
    seen: dict[str, int] = dict.fromkeys(card.properties, 0)
    ids: set[str] = set()
    unusable, net, net_where = [], 0.0, ""
    for index in indices:
        row = store[int(index)]
        ids.add(row.id)
        try:
            row.check(f"structure {index} ({row.id})")
        except EutecticError as error:
            unusable.append(str(error))
        for name in row.labels:
            seen[name] = seen.get(name, 0) + 1
        forces = row.labels.get("forces")
        if forces is not None and not row.structure.pbc.any() and not row.structure.fixed.any():
            left = float(np.abs(forces.sum(0)).max()) / len(row.structure)
            if left > net:
                net, net_where = left, row.id

    def counted(name: str, problems: Sequence[str]) -> CheckResult:
        few = "; ".join(problems[:3]) + (f"; and {len(problems) - 3} more" if len(problems) > 3 else "")
        return CheckResult(name=name, passed=not problems, worst=float(len(problems)), tolerance=0.0, meaning=few)

    words = ("name", "title", "domain", "level_of_theory", "licence", "citation", "source", "default_split")
    empty = [f"card.{w} is empty" for w in words if not str(getattr(card, w)).strip()]
    if not card.properties:
        empty.append("card.properties is empty")
    results = [
        counted("card", empty),
        counted("units", _undeclared_units(store)),
        counted("structures and labels", unusable),
        counted("unique ids", [] if len(ids) == len(indices) else [f"{len(indices) - len(ids)} ids occur twice"]),
        counted("declared labels", [f"no structure has {name}" for name, n in seen.items() if n == 0]),
        CheckResult(
            name="net force",
            passed=net <= tolerances.net_force,
            worst=net,
            tolerance=tolerances.net_force,
            where=net_where,
            meaning="forces on an isolated molecule should sum to zero (eV/Å per atom)",
            advisory=True,
        ),
    ]
    if not all(r.passed or r.advisory for r in results):
        raise ConformanceError(card.name, results)
    return results


def _undeclared_units(store: Store) -> list[str]:
    """What the first shard's schema says of its units, against the library's own."""
    with pa.memory_map(str(sorted(store.path.glob("shard-*.arrow"))[0])) as file:
        schema = pa.ipc.open_file(file).schema
    units = json.loads((schema.metadata or {}).get(b"units", b"{}"))
    return [
        f"{p.name} is declared in {units.get(p.name)!r}, not in {p.unit!r}"
        for p in store.card.property_table()
        if units.get(p.name) != p.unit
    ]


# --- exact labels ---------------------------------------------------------------------------------

PAIR_CUTOFF = 6.0
"""Å. Beyond it the toy potentials are zero; at it, neither energy nor force jumps."""

DEPTH = 0.3
"""eV. Depth of the toy potentials' well, the same for every pair of elements."""

RadialFunction = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""(distances, distances of the minimum) → energies, slopes."""


def _lennard_jones(r: np.ndarray, r0: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """ε ((r0/r)¹² - 2 (r0/r)⁶) and its slope."""
    x = (r0 / r) ** 6
    return DEPTH * (x * x - 2 * x), 12 * DEPTH * (x - x * x) / r


def _morse(r: np.ndarray, r0: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """ε ((1 - exp(-a (r - r0)))² - 1) and its slope, a = 2 / Å."""
    x = np.exp(-2.0 * (r - r0))
    return DEPTH * ((1 - x) ** 2 - 1), 4.0 * DEPTH * (1 - x) * x


def _pairwise(structure: Structure, radial: RadialFunction) -> tuple[float, np.ndarray, np.ndarray]:
    """Energy (eV), forces (eV/Å) and virial dE/dε (eV) of a sum over pairs, shifted so that energy and force
    vanish together at the cutoff (Allen & Tildesley, "Computer Simulation of Liquids", eq. 5.10)."""
    edges = neighbour_list([structure], PAIR_CUTOFF)
    s, t, d = edges.source, edges.target, edges.distance
    vector = structure.positions[t] - structure.positions[s] - edges.offset @ structure.cell  # source → target
    radii = covalent_radii[structure.numbers]
    value, slope = radial(d, radii[s] + radii[t])
    end, end_slope = radial(np.full_like(d, PAIR_CUTOFF), radii[s] + radii[t])
    value, slope = value - end - (d - PAIR_CUTOFF) * end_slope, slope - end_slope
    forces = np.zeros((len(structure), 3))
    # Every pair is in the list twice: half its energy each time, and its whole force on the target.
    np.add.at(forces, t, -(slope / d)[:, None] * vector)
    virial = 0.5 * np.einsum("e,ei,ej->ij", slope / d, vector, vector)
    return 0.5 * float(value.sum()), forces, virial


def lennard_jones(structure: Structure) -> tuple[float, np.ndarray]:
    """Energy (eV) and forces (n_atoms, 3) (eV/Å): Lennard-Jones, each pair's minimum at the sum of the two
    covalent radii. Exact and conservative, for molecules, slabs and crystals alike."""
    value, forces, _ = _pairwise(structure, _lennard_jones)
    return value, forces


def morse(structure: Structure) -> tuple[float, np.ndarray]:
    """The same with Morse's potential: another "level of theory"."""
    value, forces, _ = _pairwise(structure, _morse)
    return value, forces


Kind = Literal["molecules", "crystals", "slabs"]

_MOLECULES = (
    "H2O",
    "CH4",
    "NH3",
    "CH3OH",
    "C2H4",
    "C2H6",
    "HCN",
    "CO2",
    "H2CO",
    "CH3CH2OH",
    "HCOOH",
    "C2H2",
)
_CRYSTALS = (
    *(("fcc", name, a) for name, a in (("Cu", 3.61), ("Al", 4.05), ("Ni", 3.52), ("Ag", 4.09))),
    *(("rocksalt", name, a) for name, a in (("MgO", 4.21), ("NaCl", 5.64), ("LiF", 4.03), ("CaO", 4.81))),
    *(("diamond", name, a) for name, a in (("Si", 5.43), ("C", 3.57))),
    *(("bcc", name, a) for name, a in (("Fe", 2.87), ("W", 3.16))),
)
_SURFACES = ("Cu", "Al", "Ni", "Ag", "Pt", "Pd")


def _tiny_structure(kind: Kind, index: int, rng: np.random.Generator) -> tuple[Structure, str]:
    """A shaken structure and what it was made from."""
    if kind == "molecules":
        name = _MOLECULES[index % len(_MOLECULES)]
        made = _turned(_molecule(name), _random_rotation(rng)).structure
    elif kind == "crystals":
        lattice, name, a = _CRYSTALS[index % len(_CRYSTALS)]
        made = Structure.from_ase(bulk(name, lattice, a=a * rng.uniform(0.97, 1.06)).repeat((2, 1, 1)))
    else:
        name = _SURFACES[index % len(_SURFACES)]
        made = _slab(seed=0, amount=0.0, element=name)
    made = _shaken(made, 0.06, seed=int(rng.integers(2**31)))
    # A store keeps float32 positions; labels belong to what is kept.
    kept = {k: np.asarray(getattr(made, k), dtype=np.float32).astype(np.float64) for k in ("positions", "cell")}
    return replace(made, **kept), name


def tiny_store(path: Path, kind: Kind, n: int, seed: int = 0) -> Store:
    """A small store with exact labels, made in a moment.

    Each kind has its own toy "level of theory", with its own energy for each element, as real data sets do:
    molecules (Morse, -10 eV · Z per atom; also ⟨R²⟩ of point charges), crystals (Lennard-Jones, no offset;
    also stress) and slabs (Lennard-Jones, -1 eV · Z per atom; tags, a held bottom layer). Forces and stress
    are the exact derivatives of the energy. Structures made from the same thing share a group.

    Args:
        path: the folder to make.
        kind: "molecules", "crystals" or "slabs".
        n: number of structures.
        seed: the same seed makes the same store.
    """
    radial, per_charge = {
        "molecules": (_morse, -10.0),
        "crystals": (_lennard_jones, 0.0),
        "slabs": (_lennard_jones, -1.0),
    }[kind]
    extra = {"molecules": ("electronic_spatial_extent",), "crystals": ("stress",), "slabs": ()}[kind]

    def rows() -> Iterator[LabelledStructure]:
        rng = np.random.default_rng(seed)
        for index in range(n):
            structure, made_from = _tiny_structure(kind, index, rng)
            value, forces, virial = _pairwise(structure, radial)
            labels = {"energy": np.asarray(value + per_charge * structure.numbers.sum()), "forces": forces}
            if kind == "crystals":
                labels["stress"] = virial / abs(np.linalg.det(structure.cell))
            if kind == "molecules":
                z = structure.numbers / structure.numbers.sum()
                from_centre = structure.positions - z @ structure.positions
                squared = structure.numbers @ (from_centre**2).sum(1)
                labels["electronic_spatial_extent"] = np.asarray(squared / BOHR**2)
            yield LabelledStructure(structure=structure, labels=labels, id=f"{kind}-{index}", group=made_from)

    card = Card(
        name=f"tiny_{kind}",
        title=f"toy {kind} for tests",
        domain=kind,
        properties=("energy", "forces", *extra),
        level_of_theory="Morse pair potential" if kind == "molecules" else "Lennard-Jones pair potential",
        licence="CC0-1.0",
        citation="none: made by eutectic.testing",
        source="eutectic.testing.tiny_store",
    )
    write_store(path, card, rows())
    return Store(path)
