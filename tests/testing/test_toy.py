"""The toy labels are exact, and so are the stores of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from ase.calculators.lj import LennardJones

from eutectic.atoms import Structure
from eutectic.testing import (
    DEPTH,
    PAIR_CUTOFF,
    STRUCTURES,
    Kind,
    check_dataset,
    lennard_jones,
    morse,
    tiny_store,
)

KINDS: tuple[Kind, ...] = get_args(Kind)


@pytest.mark.parametrize("labels", [lennard_jones, morse])
@pytest.mark.parametrize("name", ["ethanol_rattled", "skewed_cell", "unwrapped", "slab_on_its_side"])
def test_forces_are_the_slope_of_the_energy(name: str, labels: Callable[[Structure], tuple[float, np.ndarray]]) -> None:
    structure = STRUCTURES[name]
    direction = np.random.default_rng(0).normal(size=structure.positions.shape)

    def at(x: float) -> float:
        return labels(replace(structure, positions=structure.positions + x * direction))[0]

    h = 1e-4
    slope = (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h)
    forces = labels(structure)[1]
    assert -(forces * direction).sum() == pytest.approx(slope, rel=1e-7, abs=1e-9)
    np.testing.assert_allclose(forces.sum(0), 0, atol=1e-10)


def test_lennard_jones_equals_ase() -> None:
    # Argon, r0 = 2 · 1.06 Å; ASE's σ is r0 / 2^(1/6). ASE shifts the energy at its cutoff and not the force,
    # so that pairs differ by the linear term of ours, added here.
    positions = np.array([[0.0, 0, 0], [2.3, 0, 0], [0.4, 2.6, 0.1]])
    argon = Structure(numbers=np.full(3, 18), positions=positions)
    atoms = argon.to_ase()
    atoms.calc = LennardJones(sigma=2.12 / 2 ** (1 / 6), epsilon=DEPTH, rc=PAIR_CUTOFF)
    x = (2.12 / PAIR_CUTOFF) ** 6
    end_slope = 12 * DEPTH * (x - x * x) / PAIR_CUTOFF
    pairs = [np.linalg.norm(positions[i] - positions[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    linear = sum(end_slope * (d - PAIR_CUTOFF) for d in pairs)
    assert lennard_jones(argon)[0] == pytest.approx(atoms.get_potential_energy() - linear, rel=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_a_tiny_store_passes(kind: Kind, tmp_path: Path) -> None:
    store = tiny_store(tmp_path / kind, kind, 24, seed=3)
    assert len(store) == 24
    results = check_dataset(store)
    assert all(r.passed for r in results), [str(r) for r in results]
    assert check_dataset(store, limit=3)
    assert len(set(store.column("group"))) >= 6
    again = tiny_store(tmp_path / "again", kind, 24, seed=3)
    other = tiny_store(tmp_path / "other", kind, 24, seed=4)
    assert np.array_equal(store.column("energy"), again.column("energy"))
    assert not np.array_equal(store.column("energy"), other.column("energy"))


@pytest.mark.parametrize("kind", KINDS)
def test_stored_forces_belong_to_the_stored_positions(kind: Kind, tmp_path: Path) -> None:
    labels = morse if kind == "molecules" else lennard_jones
    store = tiny_store(tmp_path / kind, kind, 12)
    for row in store:
        np.testing.assert_allclose(row.labels["forces"], labels(row.structure)[1], rtol=1e-6, atol=1e-7)


def test_stress_is_the_slope_of_the_energy(tmp_path: Path) -> None:
    strain = np.array([[0.3, 0.1, -0.2], [0.1, -0.5, 0.4], [-0.2, 0.4, 0.6]])
    for row in tiny_store(tmp_path / "crystals", "crystals", 6):
        s = row.structure

        def at(x: float, s: Structure = s) -> float:
            grown = np.eye(3) + x * strain
            return lennard_jones(replace(s, positions=s.positions @ grown, cell=s.cell @ grown))[0]

        h = 1e-4
        slope = (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h)
        volume = abs(np.linalg.det(s.cell))
        assert (row.labels["stress"] * strain).sum() * volume == pytest.approx(slope, rel=1e-5, abs=1e-6)


def test_slabs_have_tags_and_fixed_atoms(tmp_path: Path) -> None:
    row = tiny_store(tmp_path / "slabs", "slabs", 1)[0]
    assert set(row.structure.tags) == {0, 1, 2}
    assert row.structure.fixed.sum() == 4
    assert row.structure.pbc.tolist() == [True, True, False]
