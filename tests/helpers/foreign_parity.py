"""Structures and comparisons for backbones of other packages."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.build import add_adsorbate, bulk, fcc111, molecule
from ase.calculators.calculator import Calculator

from eutectic.graph import GraphSettings
from eutectic.models import Backbone
from eutectic.predict.model import Model
from eutectic.testing import generic_structures
from eutectic.testing.observation import graph_of


def frames() -> dict[str, Atoms]:
    """A molecule, a crystal, a slab that is periodic along two axes, and a lone atom; out of equilibrium, of H, C, O
    and Cu."""
    ethanol = molecule("CH3CH2OH")
    # One of the cells has a single atom, so that it is its own neighbour.
    crystals = {"copper": bulk("Cu"), "oxide": bulk("CuO", "rocksalt", a=4.2) * (2, 1, 1)}
    slab = fcc111("Cu", (2, 2, 2), vacuum=6.0)
    add_adsorbate(slab, "O", 1.2, "fcc")
    made = {"ethanol": ethanol, **crystals, "slab": slab, "lone atom": Atoms("O", positions=[[1.0, 2, 3]])}
    for seed, atoms in enumerate(made.values()):
        atoms.rattle(0.05, seed=seed)
    skewed = made["copper"]
    strain = np.array([[0.02, 0.01, 0], [0, -0.01, 0.03], [0, 0, 0.01]])
    skewed.set_cell(np.asarray(skewed.cell) @ (np.eye(3) + strain), scale_atoms=True)
    return made


def deviations(
    model: Model, calculator: Calculator, task: str | None = None, *, all_axes: bool = False
) -> dict[str, dict[str, float]]:
    """Structure → quantity → largest difference between our predictions, all in one batch, and a calculator's.

    Energy in eV per atom, forces in eV/Å, stress in eV/Å³; and of the batch from single predictions, as "batch".
    `all_axes`: make the slab periodic along its third axis too, for a package that takes no other.
    """
    made = frames()
    if all_axes:
        made["slab"].pbc = True
    found: dict[str, dict[str, float]] = {}
    together = model.predict(list(made.values()), task=task)
    for (name, atoms), ours in zip(made.items(), together, strict=True):
        alone = model.predict(atoms, task=task)
        theirs = atoms.copy()
        theirs.calc = calculator
        differences: dict[str, Any] = {
            "energy": (float(ours["energy"]) - theirs.get_potential_energy()) / len(atoms),
            "forces": ours["forces"] - theirs.get_forces(),
            "batch": [np.abs(ours[k] - alone[k]).max() for k in ours],
        }
        assert ("stress" in ours) == bool(atoms.pbc.all())
        if "stress" in ours:
            differences["stress"] = ours["stress"] - theirs.get_stress(voigt=False)
        found[name] = {k: float(np.abs(v).max()) for k, v in differences.items()}
        assert abs(theirs.get_potential_energy()) > 0.1
    assert max(np.abs(p["forces"]).max() for p in together) > 0.01
    return found


def check_vectors_turn(backbone: Backbone, settings: GraphSettings, *, least: float) -> None:
    """Vectors of a backbone in double precision are some of them longer than `least`, turn with the structure, and
    change sign under inversion."""
    graph = graph_of(list(generic_structures().values()), settings, backbone)
    turn, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))
    with torch.no_grad():
        before = backbone(graph).vectors
        assert before is not None
        assert before.shape == (len(graph.numbers), 3, backbone.vector_width)
        assert float(before.abs().max()) > least
        for rotation in (turn, -np.eye(3)):
            r = torch.from_numpy(rotation)
            after = backbone(graph.with_positions(graph.positions @ r.T, graph.cell @ r.T)).vectors
            assert after is not None
            expected = torch.einsum("ij,ajw->aiw", r, before)
            assert float((after - expected).abs().max()) < 1e-10 * float(before.abs().max())
