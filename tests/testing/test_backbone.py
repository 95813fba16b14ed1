"""Every registered backbone passes the checks, and each check catches a backbone that is wrong."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from eutectic import testing
from eutectic.graph import Graph, GraphSettings
from eutectic.models.backbone import Backbone, Features
from eutectic.models.painn import PaiNN, PaiNNSettings
from eutectic.models.registry import BACKBONES
from eutectic.testing import (
    BACKBONE_CHECKS,
    DEFAULT_TOLERANCES,
    Check,
    CheckResult,
    ConformanceError,
    Tolerances,
    check_backbone,
    check_rotation,
    check_straightening,
    parametrize_backbone_checks,
)

GRAPH = GraphSettings(cutoff=6.0, max_neighbours=8, symmetry="union")


def backbone_of(name: str) -> Backbone:
    entry = BACKBONES[name]
    return entry.module(entry.settings.tiny().for_graphs([GRAPH]))


@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_keeps_the_contract(name: str) -> None:
    torch.set_num_threads(1)
    results = check_backbone(lambda: backbone_of(name), GRAPH)
    assert [r.name for r in results] == list(BACKBONE_CHECKS)
    assert all(r.passed for r in results), [str(r) for r in results if not r.passed]


@pytest.mark.parametrize("name", BACKBONES)
def test_base_class(name: str) -> None:
    assert isinstance(backbone_of(name), Backbone)


def test_painn_without_edge_features() -> None:
    check_backbone(lambda: PaiNN(PaiNNSettings(width=8, layers=1, edge_width=0, cutoff=5.0)), GRAPH)


# --- backbones with one fault each ----------------------------------------------------------


class Faulty(PaiNN):
    """A correct backbone with one fault added to its features."""

    def __init__(self) -> None:
        super().__init__(PaiNNSettings(width=8, layers=1, edge_width=4, cutoff=5.0))

    def forward(self, graph: Graph) -> Features:
        return self.spoil(graph, super().forward(graph))

    def spoil(self, graph: Graph, features: Features) -> Features:
        raise NotImplementedError


def plus(features: Features, something: Tensor) -> Features:
    return replace(features, atoms=features.atoms + something)


class RawPositions(Faulty):
    def spoil(self, graph: Graph, features: Features) -> Features:
        return plus(features, graph.positions.sum(1, keepdim=True))


class MixesStructures(Faulty):
    def spoil(self, graph: Graph, features: Features) -> Features:
        return plus(features, features.atoms.mean(0))


class SeesFarAtoms(Faulty):
    def spoil(self, graph: Graph, features: Features) -> Features:
        means = features.atoms.new_zeros(graph.n_structures, features.atoms.shape[1])
        means = means.index_add(0, graph.structure, features.atoms) / graph.n_atoms[:, None]
        return plus(features, means[graph.structure])


class CountsAtoms(Faulty):
    def spoil(self, graph: Graph, features: Features) -> Features:
        first = torch.cumsum(graph.n_atoms, 0) - graph.n_atoms
        return plus(features, (torch.arange(len(graph.numbers)) - first[graph.structure])[:, None])


class KnowsTheCell(Faulty):
    def spoil(self, graph: Graph, features: Features) -> Features:
        return plus(features, graph.cell.square().sum((1, 2))[graph.structure][:, None])


class KnowsLeftFromRight(Faulty):
    def spoil(self, graph: Graph, features: Features) -> Features:
        length, direction = graph.vectors(graph.main)
        z = graph.numbers[graph.main.source].to(length)
        moments = [
            length.new_zeros(len(graph.numbers), 3).index_add(
                0, graph.main.target, (z * (-k * length).exp())[:, None] * direction
            )
            for k in (0.5, 1.0, 2.0)
        ]
        return plus(features, torch.linalg.det(torch.stack(moments, 1))[:, None])


class ForgetsTheLattice(Faulty):
    def forward(self, graph: Graph) -> Features:
        directions = graph.vectors(graph.main)[1]
        # An atom's own images keep their offset: zero lengths would fail every check at once.
        own = (graph.main.source == graph.main.target)[:, None]
        offset = torch.where(own, graph.main.offset, 0.0)
        wrong = replace(graph, main=replace(graph.main, offset=offset))
        return replace(PaiNN.forward(self, wrong), directions=directions)


class WrongWay(Faulty):
    def spoil(self, graph: Graph, features: Features) -> Features:
        return replace(features, directions=-features.directions)


class NoEnvelope(Faulty):
    def spoil(self, graph: Graph, features: Features) -> Features:
        atoms = features.atoms
        return plus(features, torch.bincount(graph.main.target, minlength=len(atoms))[:, None].to(atoms))


class CutsTheGradient(Faulty):
    def forward(self, graph: Graph) -> Features:
        still = PaiNN.forward(self, graph.with_positions(graph.positions.detach(), graph.cell.detach()))
        return plus(PaiNN.forward(self, graph), still.atoms)


class CutsTheSecondDerivative(Faulty):
    def spoil(self, graph: Graph, features: Features) -> Features:
        length = graph.vectors(graph.main)[0]
        # The value and slope of exp(-d), with the slope's own dependence on d cut off.
        held = length.detach()
        term = (-held).exp() - (-held).exp() * (length - held)
        return plus(
            features,
            features.atoms.new_zeros(len(features.atoms)).index_add(
                0, graph.main.target, term * (6.0 - held) ** 3 / 200
            )[:, None],
        )


class DividesBySines(Faulty):
    """A dihedral of the four atoms of acetylene, as its bare quotient."""

    def spoil(self, graph: Graph, features: Features) -> Features:
        extra = torch.zeros_like(features.atoms[:, :1])
        for i in range(graph.n_structures):
            mine = graph.structure == i
            if graph.numbers[mine].tolist() == [6, 6, 1, 1]:
                a, b, c, d = graph.positions[mine][[2, 0, 1, 3]]
                m, n = torch.linalg.cross(a - b, b - c), torch.linalg.cross(b - c, c - d)
                sines = torch.linalg.vector_norm(m) * torch.linalg.vector_norm(n)
                extra = extra + torch.where(mine[:, None], (m @ n) / sines.clamp(min=1e-30), 0.0)
        return plus(features, extra)


class RootOfZero(Faulty):
    def spoil(self, graph: Graph, features: Features) -> Features:
        strength = features.atoms.new_ones(len(graph.main), 1)
        vectors = features.atoms.new_zeros(len(features.atoms), 3)
        vectors = vectors.index_add(0, graph.main.target, strength * features.directions * 0.0)
        return plus(features, torch.linalg.vector_norm(vectors, dim=1, keepdim=True).sqrt())


class NeedsEdges(Faulty):
    def spoil(self, graph: Graph, features: Features) -> Features:
        return plus(features, features.edges.max() * 0)  # type: ignore[union-attr]


class LosesDigits(Faulty):
    def spoil(self, graph: Graph, features: Features) -> Features:
        return replace(features, atoms=(features.atoms + 1e6) - 1e6)


class AlwaysNoisy(Faulty):
    def spoil(self, graph: Graph, features: Features) -> Features:
        return plus(features, torch.randn_like(features.atoms))


class HiddenState(Faulty):
    def __init__(self) -> None:
        super().__init__()
        self.hidden = [torch.randn(()).item()]

    def spoil(self, graph: Graph, features: Features) -> Features:
        return plus(features, features.atoms * self.hidden[0])


class Blind(Faulty):
    def spoil(self, graph: Graph, features: Features) -> Features:
        return replace(features, atoms=torch.ones_like(features.atoms))


class WrongWidth(Faulty):
    def __init__(self) -> None:
        super().__init__()
        self.atom_width = 9

    def spoil(self, graph: Graph, features: Features) -> Features:
        return features


@pytest.mark.parametrize(
    ("wrong", "noticed"),
    [
        (RawPositions, {"rotation", "inversion", "translation", "lattice wrap"}),
        (MixesStructures, {"batch equals singles", "isolation"}),
        (SeesFarAtoms, {"separation"}),
        (CountsAtoms, {"permutation", "supercell"}),
        (KnowsTheCell, {"cell choice", "supercell"}),
        (KnowsLeftFromRight, {"inversion"}),
        (ForgetsTheLattice, {"lattice wrap", "supercell"}),
        (WrongWay, {"contract"}),
        (NoEnvelope, {"cutoff"}),
        (CutsTheGradient, {"gradient"}),
        (CutsTheSecondDerivative, {"second derivative"}),
        (RootOfZero, {"finite"}),
        (NeedsEdges, {"finite"}),
        (LosesDigits, {"precision"}),
        (AlwaysNoisy, {"deterministic"}),
        (HiddenState, {"state dict"}),
        (Blind, {"sensitivity"}),
        (WrongWidth, {"contract"}),
    ],
)
def test_a_fault_is_noticed(wrong: Callable[[], nn.Module], noticed: set[str]) -> None:
    others = [name for name in BACKBONE_CHECKS if name not in noticed]
    with pytest.raises(ConformanceError) as caught:
        check_backbone(wrong, GRAPH, skip=others)
    failed = {r.name for r in caught.value.results if not r.passed}
    assert failed == noticed
    for name in noticed:
        assert name in str(caught.value)


def test_every_check_is_proven() -> None:
    """Each check catches at least one fault above: a check that cannot fail proves nothing."""
    marks = test_a_fault_is_noticed.pytestmark  # type: ignore[attr-defined]
    proven = set().union(*(noticed for _, noticed in marks[0].args[1]))
    assert proven | {"straightening"} == set(BACKBONE_CHECKS)
    assert [name for name, check in BACKBONE_CHECKS.items() if check.advisory] == ["straightening"]


def test_left_from_right_is_only_an_inversion_fault() -> None:
    results = check_backbone(KnowsLeftFromRight, GRAPH, skip=["inversion", "cutoff"])
    assert all(r.passed for r in results)


def test_undefined_dihedrals_are_only_advisory() -> None:
    result = check_straightening(DividesBySines(), GRAPH)
    assert result.advisory
    assert not result.passed
    assert str(result).startswith("WARNING  straightening")


def test_one_check_alone_says_where() -> None:
    backbone = RawPositions()
    with pytest.raises(ConformanceError, match=r"rotation.*worst in .*atoms.*orientation of the structure"):
        check_rotation(backbone, GRAPH)
    assert next(backbone.parameters()).dtype == torch.float32  # the caller's module is untouched


def test_published_symmetry_rule_depends_on_the_order_of_atoms() -> None:
    with pytest.raises(ConformanceError, match="permutation"):
        check_backbone(
            lambda: PaiNN(PaiNNSettings(width=8, layers=1, cutoff=5.0)),
            GraphSettings(cutoff=6.0, max_neighbours=3, symmetry="lower_source"),
        )


def test_unknown_check_names_are_refused() -> None:
    with pytest.raises(ValueError, match="rotatoin"):
        check_backbone(KnowsLeftFromRight, GRAPH, skip=["rotatoin"])


# --- the registry -----------------------------------------------------------------------------


@pytest.mark.parametrize("check", BACKBONE_CHECKS.values(), ids=lambda check: check.name)
def test_every_check_is_described_and_public(check: Check) -> None:
    assert check.__doc__ == check.run.__doc__
    assert len(check.__doc__ or "") > 20
    assert check.meaning
    assert check.tolerance is None or check.tolerance in {f.name for f in fields(Tolerances)}
    assert check in vars(testing).values()


def test_tolerances_are_not_loosened() -> None:
    bounds = {
        name: check.tolerance and getattr(DEFAULT_TOLERANCES, check.tolerance)
        for name, check in BACKBONE_CHECKS.items()
    }
    symmetries = ("rotation", "inversion", "translation", "permutation", "lattice wrap", "cell choice", "supercell")
    assert bounds == {
        **dict.fromkeys(("contract", *symmetries, "batch equals singles", "separation"), 1e-8),
        **dict.fromkeys(("finite", "isolation", "deterministic", "state dict"), None),
        "sensitivity": 1e-9,
        "straightening": 10.0,
        "cutoff": 1e-3,
        "gradient": 1e-6,
        "second derivative": 1e-5,
        "precision": 1e-3,
    }


def test_a_backbone_is_not_confused_with_the_function_that_makes_it() -> None:
    with pytest.raises(TypeError, match="'rotation' takes a backbone"):
        check_rotation(RawPositions, GRAPH)
    with pytest.raises(TypeError, match="'state dict' takes a function that builds a backbone"):
        BACKBONE_CHECKS["state dict"](RawPositions(), GRAPH)


class TwoFaults(WrongWidth):
    def spoil(self, graph: Graph, features: Features) -> Features:
        return replace(features, directions=-features.directions)


def test_all_faults_of_one_check_are_listed() -> None:
    with pytest.raises(ConformanceError, match=r"and width 9; directions are not the main edges' unit vectors"):
        BACKBONE_CHECKS["contract"](TwoFaults(), GRAPH)


def test_a_tighter_tolerance_is_used() -> None:
    with pytest.raises(ConformanceError, match=r"rotation: .*\(tolerance 1e-30"):
        check_rotation(
            PaiNN(PaiNNSettings(width=8, layers=1, cutoff=5.0)), GRAPH, tolerances=Tolerances(symmetry=1e-30)
        )


# --- for pytest -------------------------------------------------------------------------------


@parametrize_backbone_checks(lambda: PaiNN(PaiNNSettings(width=8, layers=1, cutoff=5.0)), GRAPH)
def test_painn_check_by_check(check: Callable[[], CheckResult]) -> None:
    assert check().passed


def items(make: Callable[[], nn.Module], **options: object) -> dict[str, tuple[Callable[[], CheckResult], list[str]]]:
    """Name → (function, marks) of each pytest item."""
    mark = parametrize_backbone_checks(make, GRAPH, **options)  # type: ignore[arg-type]
    params = mark.args[1]  # type: ignore[attr-defined]
    return {p.id: (p.values[0], [m.name for m in p.marks]) for p in params}


def test_one_item_per_check() -> None:
    found = items(RawPositions, skip=["state dict"])
    assert list(found) == [name.replace(" ", "_") for name in BACKBONE_CHECKS]
    assert [name for name, (_, marks) in found.items() if marks == ["skip"]] == ["state_dict"]
    with pytest.raises(ConformanceError, match="rotation"):
        found["rotation"][0]()
    assert found["isolation"][0]().passed


def test_an_advisory_item_is_an_expected_failure() -> None:
    with pytest.raises(pytest.xfail.Exception, match="WARNING  straightening"):
        items(DividesBySines)["straightening"][0]()


def test_unknown_names_are_refused_when_items_are_collected() -> None:
    with pytest.raises(ValueError, match="rotatoin"):
        items(RawPositions, skip=["rotatoin"])


def test_the_example_runs_in_another_repository(tmp_path: Path) -> None:
    example = re.search(r"( {4}from eutectic\.graph.*?check\(\)\n)", testing.__doc__ or "", re.DOTALL)
    assert example
    head = "from eutectic.models.painn import PaiNN, PaiNNSettings\n\ndef MyBackbone(width):\n"
    head += "    return PaiNN(PaiNNSettings(width=width, layers=1, cutoff=5.0))\n\n"
    code = head + "\n".join(line[4:] for line in example[1].splitlines())
    (tmp_path / "test_mine.py").write_text(code)
    wanted = "rotation or batch_equals_singles"
    command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "-k", wanted, "test_mine.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "test_my_backbone[batch_equals_singles] PASSED" in done.stdout
    assert "test_my_backbone[rotation] PASSED" in done.stdout
    assert f"{len(BACKBONE_CHECKS) - 2} deselected" in done.stdout
