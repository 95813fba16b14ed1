"""Conformance checks of a backbone: symmetries, batches, derivatives, precision.

`BACKBONE_CHECKS` lists all checks. `check_backbone` runs them and reports all failures together;
`parametrize_backbone_checks` makes each one a pytest item. Each can also be called separately, for example
`check_rotation(backbone, graph_settings)`.
"""

from __future__ import annotations

import copy
import io
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from eutectic.atoms import Structure
from eutectic.graph import Graph, GraphSettings
from eutectic.models.backbone import Features
from eutectic.testing.observation import (
    Observed,
    atom_rows,
    energy,
    gradient,
    graph_of,
    in_float64,
    largest_difference,
    observe,
    worst_deviation,
)
from eutectic.testing.results import DEFAULT_TOLERANCES, CheckResult, ConformanceError, Tolerances, raise_if_failed
from eutectic.testing.structures import (
    STRUCTURES,
    Structures,
    generic_structures,
    random_rotation,
    rotated,
    side_by_side,
)

# --- checks and their registry --------------------------------------------------------------------


@dataclass(frozen=True)
class Deviation:
    """Deviation measured by a check.

    Attributes:
        worst: the number that the tolerance bounds; NaN fails.
        where: the structure (and quantity) with the worst deviation.
        fault: description of a failure that does not depend on `worst`.
    """

    worst: float
    where: str = ""
    fault: str = ""


NOTHING_TO_COMPARE = Deviation(0.0, "no applicable structure")

Run = Callable[[Any, GraphSettings, Structures], Deviation]
"""Measures the deviation of a float64 backbone in evaluation mode (or, if `Check.builds`, of the function that builds
backbones), for given graph settings and structures."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Check:
    """One check of a backbone. Call it to run only this check.

    Attributes:
        name: used in results and by `skip`.
        tolerance: the field of `Tolerances` that bounds the deviation; None if the deviation must be zero.
        meaning: explanation of a failure.
        run: measures the deviation; its docstring describes the check.
        structures: default structures.
        advisory: a failure is reported but is not an error.
        above: the deviation must exceed the tolerance instead.
        builds: the check takes a function that builds a backbone instead of a backbone.
    """

    name: str
    tolerance: str | None
    meaning: str
    run: Run
    structures: Structures = field(default_factory=lambda: STRUCTURES)
    advisory: bool = False
    above: bool = False
    builds: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "__doc__", self.run.__doc__)

    def __call__(
        self,
        backbone: nn.Module | Callable[[], nn.Module],
        graph_settings: GraphSettings,
        structures: Structures | None = None,
        tolerances: Tolerances = DEFAULT_TOLERANCES,
    ) -> CheckResult:
        """Run this check.

        Args:
            backbone: the backbone (a copy is checked), or a function that builds one if `builds` is set.
            graph_settings: settings of the backbone's graphs.
            structures: test structures; ignored by checks that have their own.
            tolerances: see `Tolerances`.

        Raises:
            ConformanceError: the check failed and is not advisory.
            TypeError: a backbone was passed instead of a function, or the reverse.
        """
        if isinstance(backbone, nn.Module) == self.builds:
            expected = (
                "a function that builds a backbone" if self.builds else "a backbone, not a function that builds one"
            )
            raise TypeError(f"the check {self.name!r} takes {expected}")
        subject = in_float64(backbone) if isinstance(backbone, nn.Module) else backbone
        deviation = self.run(subject, graph_settings, self.structures if structures is None else structures)
        tolerance = 0.0 if self.tolerance is None else float(getattr(tolerances, self.tolerance))
        within = deviation.worst > tolerance if self.above else deviation.worst <= tolerance
        meanings = [deviation.fault] if deviation.fault else []
        if not (within and meanings):
            meanings.append(self.meaning)
        result = CheckResult(
            name=self.name,
            passed=within and not deviation.fault,
            worst=deviation.worst,
            tolerance=tolerance,
            where=deviation.where,
            meaning="; ".join(meanings),
            advisory=self.advisory,
        )
        raise_if_failed("conformance", [result])
        return result


BACKBONE_CHECKS: dict[str, Check] = {}
"""All checks of a backbone by name, in the order in which they run."""


def _check(name: str, tolerance: str | None, meaning: str, **options: Any) -> Callable[[Run], Check]:
    """Make the decorated function a `Check` (`options`: its other fields) and register it."""

    def register(run: Run) -> Check:
        BACKBONE_CHECKS[name] = Check(name=name, tolerance=tolerance, meaning=meaning, run=run, **options)
        return BACKBONE_CHECKS[name]

    return register


# --- shape, finiteness, sensitivity ---------------------------------------------------------------


@_check("contract", "symmetry", "directions are not the main edges' unit vectors, source to target")
def check_contract(backbone: nn.Module, graph_settings: GraphSettings, structures: Structures) -> Deviation:
    """`Features` have the declared widths, one row per atom and per main edge, and the edges' directions."""
    graph = graph_of(list(structures.values()), graph_settings, backbone)
    with torch.no_grad():
        features: Features = backbone(graph)
    n, m = len(graph.numbers), len(graph.main)
    faults, worst = [], 0.0
    if tuple(features.atoms.shape) != (n, int(cast(int, backbone.atom_width))):
        faults.append(f"atoms of shape {tuple(features.atoms.shape)} for {n} atoms and width {backbone.atom_width}")
    if features.edges is not None and tuple(features.edges.shape) != (m, int(cast(int, backbone.edge_width))):
        faults.append(f"edges of shape {tuple(features.edges.shape)} for {m} edges and width {backbone.edge_width}")
    if tuple(features.directions.shape) != (m, 3):
        faults.append(f"directions of shape {tuple(features.directions.shape)} for {m} edges")
    else:
        worst = largest_difference(features.directions, graph.vectors(graph.main)[1])
    return Deviation(worst, fault="; ".join(faults))


@_check("finite", None, "non-finite values; one such structure in a data set can ruin a training run")
def check_finite(backbone: nn.Module, graph_settings: GraphSettings, structures: Structures) -> Deviation:
    """Features, forces and the parameter gradient of a force loss are finite for each structure: one atom, no edges,
    collinear or coplanar atoms, perfect crystals."""
    weights = [p for p in backbone.parameters() if p.requires_grad]
    failed = []
    for name, structure in structures.items():
        graph = graph_of([structure], graph_settings, backbone)
        positions = graph.positions.clone().requires_grad_()
        seen = observe(backbone, graph.with_positions(positions))
        total = energy(backbone, graph.with_positions(positions)).sum()
        slope = gradient(total, positions, create=True, retain=True)
        loss = total.square() + slope.square().sum()
        grads = torch.autograd.grad(loss, weights, allow_unused=True) if loss.requires_grad and weights else ()
        parts: dict[str, Sequence[Tensor | None]] = {
            "features": list(seen.parts().values()),
            "forces": [slope],
            "gradient of a loss on forces": grads,
        }
        bad = (k for k, values in parts.items() if not all(v is None or bool(v.isfinite().all()) for v in values))
        failed += [f"{name} ({part})" for part in itertools.islice(bad, 1)]
    return Deviation(float(len(failed)), ", ".join(failed))


@_check("sensitivity", "nothing", "features do not change with this modification", above=True)
def check_sensitivity(backbone: nn.Module, graph_settings: GraphSettings, structures: Structures) -> Deviation:
    """Features depend on element, bond length and angle (a constant would pass every other check).

    The structures are variants of water; `structures` is not used.
    """
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
    graph = graph_of([water, *others.values()], graph_settings, backbone)
    with torch.no_grad():
        seen = observe(backbone, graph).atoms.reshape(4, -1)
    changes = (seen[1:] - seen[0]).abs().amax(1) / seen.abs().max().clamp(min=1e-30)
    return Deviation(float(changes.min()), list(others)[int(changes.argmin())])


# --- symmetries -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class _Equivalent:
    """An equivalent description of a structure. `origin`: original index of each atom. `rotation`: x → rotation · x."""

    structure: Structure
    origin: np.ndarray
    rotation: np.ndarray


def _compare(
    backbone: nn.Module,
    graph_settings: GraphSettings,
    structures: Structures,
    transform: Callable[[Structure, np.random.Generator], _Equivalent | None],
) -> Deviation:
    """Compare features before and after `transform`, which returns None for structures it does not apply to."""
    rng = np.random.default_rng(11)
    pairs = {key: (s, other) for key, s in structures.items() if (other := transform(s, rng)) is not None}
    if not pairs:
        return NOTHING_TO_COMPARE
    old = {key: s for key, (s, _) in pairs.items()}
    new = {key: other.structure for key, (_, other) in pairs.items()}
    with torch.no_grad():
        before = observe(backbone, graph_of(list(old.values()), graph_settings, backbone))
        after = observe(backbone, graph_of(list(new.values()), graph_settings, backbone))
    expected = []
    for keep, (_, other) in zip(atom_rows(old).values(), pairs.values(), strict=True):
        rows = before.rows(keep).rows(torch.from_numpy(other.origin))
        expected.append(replace(rows, vectors=rows.vectors @ torch.from_numpy(other.rotation).T.to(rows.vectors)))
    return Deviation(*worst_deviation(Observed.concatenate(expected), after, atom_rows(new)))


def _rotated(structure: Structure, rotation: np.ndarray) -> _Equivalent:
    return _Equivalent(structure=rotated(structure, rotation), origin=np.arange(len(structure)), rotation=rotation)


def _rewritten(structure: Structure, **changes: np.ndarray) -> _Equivalent:
    """The same atoms in the same order and orientation."""
    return _Equivalent(structure=replace(structure, **changes), origin=np.arange(len(structure)), rotation=np.eye(3))


@_check("rotation", "symmetry", "features depend on the orientation of the structure")
def check_rotation(backbone: nn.Module, graph_settings: GraphSettings, structures: Structures) -> Deviation:
    """Features are invariant, and vectors Σ f_e · direction rotate with the structure."""
    return _compare(backbone, graph_settings, structures, lambda s, rng: _rotated(s, random_rotation(rng)))


@_check("inversion", "symmetry", "features change when the structure is inverted")
def check_inversion(backbone: nn.Module, graph_settings: GraphSettings, structures: Structures) -> Deviation:
    """x → -x: features are invariant (mirror images have the same energy), vectors change sign."""
    return _compare(backbone, graph_settings, structures, lambda s, rng: _rotated(s, -np.eye(3)))


@_check("translation", "symmetry", "features depend on absolute positions")
def check_translation(backbone: nn.Module, graph_settings: GraphSettings, structures: Structures) -> Deviation:
    """Features do not depend on the origin."""

    def transform(s: Structure, rng: np.random.Generator) -> _Equivalent:
        return _rewritten(s, positions=s.positions + rng.normal(0.0, 10.0, 3))

    return _compare(backbone, graph_settings, structures, transform)


@_check("permutation", "symmetry", "features depend on the order of the atoms")
def check_permutation(backbone: nn.Module, graph_settings: GraphSettings, structures: Structures) -> Deviation:
    """Permuting the atoms permutes the features.

    The published rule, `GraphSettings(symmetry="lower_source")`, fails this check if the neighbour cap is reached.
    """

    def transform(s: Structure, rng: np.random.Generator) -> _Equivalent:
        order = rng.permutation(len(s))
        reordered = {k: getattr(s, k)[order] for k in ("numbers", "positions", "tags", "fixed")}
        return _Equivalent(structure=replace(s, **reordered), origin=order, rotation=np.eye(3))

    return _compare(backbone, graph_settings, structures, transform)


@_check("lattice wrap", "symmetry", "features depend on which periodic image of an atom is given")
def check_lattice_wrap(backbone: nn.Module, graph_settings: GraphSettings, structures: Structures) -> Deviation:
    """Features do not change when atoms are moved by lattice vectors."""

    def transform(s: Structure, rng: np.random.Generator) -> _Equivalent | None:
        jumps = rng.integers(-2, 3, (len(s), 3)) * s.pbc
        return _rewritten(s, positions=s.positions + jumps @ s.cell) if s.pbc.any() else None

    return _compare(backbone, graph_settings, structures, transform)


@_check("cell choice", "symmetry", "features depend on the choice of unit cell")
def check_cell_choice(backbone: nn.Module, graph_settings: GraphSettings, structures: Structures) -> Deviation:
    """Features do not change with other lattice vectors of the same lattice (a sheared cell)."""

    def transform(s: Structure, rng: np.random.Generator) -> _Equivalent | None:
        axes = np.flatnonzero(s.pbc)
        if not len(axes):
            return None
        cell = s.cell.copy()
        if len(axes) == 1:
            cell[axes[0]] *= -1
        else:
            cell[axes[0]] += cell[axes[1]]
            cell[axes[-1]] -= 2 * cell[axes[0]]
        return _rewritten(s, cell=cell)

    return _compare(backbone, graph_settings, structures, transform)


@_check("supercell", "symmetry", "features per atom change with the size of the supercell")
def check_supercell(backbone: nn.Module, graph_settings: GraphSettings, structures: Structures) -> Deviation:
    """A doubled cell has the same features per atom."""

    def transform(s: Structure, rng: np.random.Generator) -> _Equivalent | None:
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
        return _Equivalent(structure=doubled, origin=np.tile(np.arange(n), 2), rotation=np.eye(3))

    return _compare(backbone, graph_settings, structures, transform)


# --- batches --------------------------------------------------------------------------------------


@_check("batch equals singles", "symmetry", "features depend on what else is in the batch")
def check_batch(backbone: nn.Module, graph_settings: GraphSettings, structures: Structures) -> Deviation:
    """Features in a batch equal those of the structures one by one."""
    with torch.no_grad():
        together = observe(backbone, graph_of(list(structures.values()), graph_settings, backbone))
        alone = [observe(backbone, graph_of([s], graph_settings, backbone)) for s in structures.values()]
    return Deviation(*worst_deviation(Observed.concatenate(alone), together, atom_rows(structures)))


@_check("isolation", None, "one structure's energy depends on another structure's atoms")
def check_isolation(backbone: nn.Module, graph_settings: GraphSettings, structures: Structures) -> Deviation:
    """The gradient of one structure's energy with respect to another's positions is exactly zero."""
    graph = graph_of(list(structures.values()), graph_settings, backbone)
    positions = graph.positions.clone().requires_grad_()
    energies = energy(backbone, graph.with_positions(positions))
    worst, where = 0.0, ""
    for i, name in enumerate(structures):
        others = gradient(energies[i], positions, retain=True)[graph.structure != i]
        leak = largest_difference(others, torch.zeros_like(others))
        if leak > worst:
            worst, where = leak, name
    return Deviation(worst, where)


@_check("separation", "symmetry", "atoms beyond the cutoff change each other's features")
def check_separation(backbone: nn.Module, graph_settings: GraphSettings, structures: Structures) -> Deviation:
    """Two molecules farther apart than the cutoff have the features of the separate molecules."""
    molecules = {k: s for k, s in structures.items() if not s.pbc.any()}
    pairs = dict(itertools.islice(((f"{a} + {b}", (a, b)) for a, b in itertools.pairwise(molecules)), 4))
    if not pairs:
        return NOTHING_TO_COMPARE
    far = 20 * graph_settings.cutoff + 200.0
    together = {name: side_by_side(molecules[a], molecules[b], far) for name, (a, b) in pairs.items()}
    alone = [molecules[name] for names in pairs.values() for name in names]
    with torch.no_grad():
        observed = observe(backbone, graph_of(list(together.values()), graph_settings, backbone))
        expected = observe(backbone, graph_of(alone, graph_settings, backbone))
    return Deviation(*worst_deviation(expected, observed, atom_rows(together)))


# --- derivatives ----------------------------------------------------------------------------------


def _difference(f: Callable[[float], Tensor], h: float = 3e-4) -> Tensor:
    """f'(0) to fourth order in h: (8 (f(h) - f(-h)) - (f(2h) - f(-2h))) / 12h."""
    return (8 * (f(h) - f(-h)) - (f(2 * h) - f(-2 * h))) / (12 * h)


def _per_structure(values: Tensor, graph: Graph) -> Tensor:
    return values.new_zeros(graph.n_structures).index_add(0, graph.structure, values.sum(-1))


def _relative(error: Tensor, scale: Tensor) -> Tensor:
    """error / scale for each structure; scales are at least a thousandth of the largest."""
    least = 1e-3 * float(scale.max()) or 1.0
    return (error.abs() / scale.clamp(min=least)).nan_to_num(nan=math.inf)


def _directions(graph: Graph, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(graph.positions.shape, generator=generator, dtype=graph.positions.dtype)


@_check("straightening", "growth", "gradient forces diverge as atoms become collinear", advisory=True)
def check_straightening(backbone: nn.Module, graph_settings: GraphSettings, structures: Structures) -> Deviation:
    """Forces stay bounded as a molecule approaches a straight line, to within 1e-7 Å.

    Advisory: dihedral angles are undefined there. This matters for molecular dynamics with gradient forces, but not for
    a model whose energy is never differentiated. `structures` is not used.
    """
    bend = np.random.default_rng(3).normal(size=(4, 3))
    straight = STRUCTURES["acetylene"]
    amounts = [0.3, 0.1] + [10.0**-k for k in range(2, 8)]
    bent = [replace(straight, positions=straight.positions + a * bend) for a in amounts]
    graph = graph_of(bent, graph_settings, backbone)
    positions = graph.positions.clone().requires_grad_()
    slope = gradient(energy(backbone, graph.with_positions(positions)).sum(), positions)
    largest = slope.abs().reshape(len(bent), -1).amax(1)  # (structures,)
    growth = float((largest[2:].max() / largest[:2].max().clamp(min=1e-30)).nan_to_num(nan=math.inf))
    return Deviation(growth, "acetylene")


@_check("cutoff", "cutoff", "features jump when an edge appears (no envelope, or a cutoff larger than the graph's)")
def check_cutoff(backbone: nn.Module, graph_settings: GraphSettings, structures: Structures) -> Deviation:
    """Features and the gradient of the energy are continuous when an atom crosses the cutoff.

    The structures are a pair and a triangle of atoms that move apart; `structures` is not used.
    """
    c, step = graph_settings.cutoff, 1e-5

    def at(distance: float) -> tuple[Observed, Tensor]:
        opened = [
            Structure(numbers=np.array([8, 1]), positions=np.array([[0.0, 0, 0], [distance, 0, 0]])),
            Structure(
                numbers=np.array([8, 6, 1]),
                positions=np.array([[0.0, 0, 0], [0.45 * c, 0.9, 0], [distance, 0, 0]]),
            ),
        ]
        graph = graph_of(opened, graph_settings, backbone)
        positions = graph.positions.clone().requires_grad_()
        slope = gradient(energy(backbone, graph.with_positions(positions)).sum(), positions)
        with torch.no_grad():
            return observe(backbone, graph), slope

    inside, slope_inside = at(c - step)
    outside, slope_outside = at(c + step)
    _, slope_near = at(0.4 * c)
    worst, where = worst_deviation(outside, inside, {"pair": slice(0, 2), "triangle": slice(2, 5)})
    jump = largest_difference(slope_inside, slope_outside) / (float(slope_near.abs().max()) or 1.0)
    return Deviation(jump, "gradient of the energy") if jump > worst else Deviation(worst, where)


@_check(
    "gradient",
    "derivative",
    "autograd forces differ from the numerical gradient of the energy (a detach? a kink?)",
    structures=generic_structures(),
)
def check_gradient(backbone: nn.Module, graph_settings: GraphSettings, structures: Structures) -> Deviation:
    """Forces and stress from autograd equal finite differences with fixed edges (default: `GENERIC`)."""
    graph = graph_of(list(structures.values()), graph_settings, backbone)
    positions, cell = graph.positions.clone().requires_grad_(), graph.cell.clone().requires_grad_()
    total = energy(backbone, graph.with_positions(positions, cell)).sum()
    by_positions = gradient(total, positions, retain=True)
    by_cell = gradient(total, cell)
    strain = torch.tensor([[0.3, 0.1, -0.2], [0.1, -0.5, 0.4], [-0.2, 0.4, 0.6]], dtype=graph.cell.dtype)
    moves = {f"direction {k}": (_directions(graph, k), torch.zeros_like(graph.cell)) for k in range(2)}
    moves["strain"] = (graph.positions @ strain, graph.cell @ strain)
    worst, where = 0.0, ""
    for move, (u, c) in moves.items():

        def moved(x: float, u: Tensor = u, c: Tensor = c) -> Tensor:
            with torch.no_grad():
                return energy(backbone, graph.with_positions(graph.positions + x * u, graph.cell + x * c))

        slope = _per_structure(by_positions * u, graph) + (by_cell * c).sum((1, 2))
        scale = _per_structure((by_positions * u).abs(), graph) + (by_cell * c).abs().sum((1, 2))
        error = _relative(slope - _difference(moved), scale)
        if float(error.max()) > worst:
            worst, where = float(error.max()), f"{list(structures)[int(error.argmax())]} ({move})"
    return Deviation(worst, where)


@_check(
    "second derivative",
    "second_derivative",
    "the derivative of the forces is wrong, so training on conservative forces would be wrong too",
    structures=generic_structures(),
)
def check_second_derivative(backbone: nn.Module, graph_settings: GraphSettings, structures: Structures) -> Deviation:
    """Forces can be differentiated again, as in training on conservative forces (default: `GENERIC`)."""
    graph = graph_of(list(structures.values()), graph_settings, backbone)
    u, w = _directions(graph, 5), _directions(graph, 6)

    def slopes(positions: Tensor, create: bool) -> Tensor:
        total = energy(backbone, graph.with_positions(positions)).sum()
        return gradient(total, positions, create=create) * w

    def moved(x: float) -> Tensor:
        return _per_structure(slopes((graph.positions + x * u).requires_grad_(), False), graph).detach()

    positions = graph.positions.clone().requires_grad_()
    curvature = gradient(slopes(positions, True).sum(), positions) * u
    error = _relative(_per_structure(curvature, graph) - _difference(moved), _per_structure(curvature.abs(), graph))
    return Deviation(float(error.max()), list(structures)[int(error.argmax())])


# --- precision and reproducibility ----------------------------------------------------------------


@_check("precision", "precision", "float32 loses precision")
def check_precision(backbone: nn.Module, graph_settings: GraphSettings, structures: Structures) -> Deviation:
    """Features in float32 agree with those in float64, and are float32."""
    single = copy.deepcopy(backbone).float().eval()
    graph = graph_of(list(structures.values()), graph_settings, backbone)
    with torch.no_grad():
        exact = observe(backbone, graph)
        rough = observe(single, graph.to("cpu", torch.float32))
    kept = rough.atoms.dtype == torch.float32 and rough.vectors.dtype == torch.float32
    rough = Observed(**{k: v.double() for k, v in rough.parts().items()})
    worst, where = worst_deviation(exact, rough, atom_rows(structures))
    return Deviation(worst, where, "" if kept else "features of a float32 graph are not float32")


@_check("deterministic", None, "the same input gives different results in evaluation mode")
def check_deterministic(backbone: nn.Module, graph_settings: GraphSettings, structures: Structures) -> Deviation:
    """The same graph gives bitwise identical features twice, in evaluation mode."""
    graph = graph_of(list(structures.values()), graph_settings, backbone)
    with torch.no_grad():
        first, second = (observe(backbone, graph) for _ in range(2))
    return Deviation(*worst_deviation(first, second, atom_rows(structures)))


@_check("state dict", None, "the features depend on something that is not in the state dict", builds=True)
def check_state_dict(make: Callable[[], nn.Module], graph_settings: GraphSettings, structures: Structures) -> Deviation:
    """A second backbone that loads the state dict of the first gives bitwise identical features."""
    first, second = _built(make, seed=1), _built(make, seed=2)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True), strict=True)
    graph = graph_of(list(structures.values()), graph_settings, first)
    with torch.no_grad():
        expected, observed = (observe(in_float64(b), graph) for b in (first, second))
    return Deviation(*worst_deviation(expected, observed, atom_rows(structures)))


# --- all of them ----------------------------------------------------------------------------------


def _built(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def _check_names(skip: Sequence[str]) -> None:
    if unknown := set(skip) - set(BACKBONE_CHECKS):
        raise ValueError(f"no checks named {sorted(unknown)}; there are {list(BACKBONE_CHECKS)}")


def check_backbone(
    make: Callable[[], nn.Module],
    graph_settings: GraphSettings,
    *,
    skip: Sequence[str] = (),
    tolerances: Tolerances = DEFAULT_TOLERANCES,
) -> list[CheckResult]:
    """Run all checks on a backbone with its initial weights.

    Args:
        make: builds the backbone; called several times, with different random seeds.
        graph_settings: settings of the backbone's graphs; use `symmetry="union"`, since the published rule is not
            invariant.
        skip: names of checks to omit ("inversion" for a chiral model; also "rotation" for a model that learned its
            invariance instead of having it by construction).
        tolerances: see `Tolerances`.

    Raises:
        ConformanceError: some checks failed; its message lists all of them.
        ValueError: `skip` has an unknown name.
    """
    _check_names(skip)
    backbone = _built(make)
    results = []
    for name, check in BACKBONE_CHECKS.items():
        if name in skip:
            continue
        try:
            results.append(check(make if check.builds else backbone, graph_settings, tolerances=tolerances))
        except ConformanceError as error:
            results += error.results
        except Exception as error:  # a crash counts as a failed check; the other checks still run
            lines = str(error).strip().splitlines()
            crash = f"raised {type(error).__name__}: {lines[0] if lines else ''}"
            results.append(CheckResult(name=name, passed=False, worst=math.inf, tolerance=0.0, meaning=crash))
    raise_if_failed(type(backbone).__name__, results)
    return results


def parametrize_backbone_checks(
    make: Callable[[], nn.Module],
    graph_settings: GraphSettings,
    *,
    skip: Sequence[str] = (),
    tolerances: Tolerances = DEFAULT_TOLERANCES,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A pytest decorator that makes one item per check, with the argument `check`, a function without arguments.

        @parametrize_backbone_checks(lambda: MyBackbone(width=32), GraphSettings(cutoff=5.0))
        def test_my_backbone(check):
            check()

    Each item builds a new backbone. Items are named after the checks, with underscores, so that
    `pytest -k batch_equals_singles` runs one. Checks in `skip` are reported as skipped; a failed advisory check is
    reported as an expected failure (`x`), with its reason.

    Args:
        make, graph_settings, skip, tolerances: as for `check_backbone`.

    Raises:
        ValueError: `skip` has an unknown name.
    """
    import pytest  # optional dependency, needed only here

    _check_names(skip)

    def item(check: Check) -> Callable[[], CheckResult]:
        def run() -> CheckResult:
            result = check(make if check.builds else _built(make), graph_settings, tolerances=tolerances)
            if not result.passed:
                pytest.xfail(str(result))
            return result

        return run

    return pytest.mark.parametrize(
        "check",
        [
            pytest.param(
                item(check),
                id=name.replace(" ", "_"),
                marks=[pytest.mark.skip(reason="named in `skip`")] if name in skip else [],
            )
            for name, check in BACKBONE_CHECKS.items()
        ],
    )
