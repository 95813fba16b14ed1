"""Small made-up structures, stores, runs and tasks, with numbers that can be worked by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from ase.build import add_adsorbate, fcc111, molecule

from eutectic.atoms import LabelledStructure, Structure
from eutectic.data.card import Card
from eutectic.data.store import Store, write_store
from eutectic.study.results import (
    Curve,
    Run,
    Start,
    TaskComparison,
    Trial,
)


def slab(metal: str = "Cu") -> Structure:
    """A hydroxyl on a small metal surface, tagged as in OC20."""
    atoms = fcc111(metal, (2, 2, 3), vacuum=8.0)
    add_adsorbate(atoms, molecule("OH"), 1.9, "fcc")
    atoms.pbc = True
    atoms.set_tags([{0: 2, 1: 1}.get(tag, 0) for tag in atoms.get_tags()])
    return Structure.from_ase(atoms)


def make_run(start: Start, seed: int, errors: list[float], test_error: float, steps: list[int] | None = None) -> Run:
    """A run evaluated every 100 steps; predictions are off by its test error."""
    steps = steps or [100 * i for i in range(len(errors))]
    truth = np.linspace(-1, 1, 40)
    return Run(
        start=start,
        seed=seed,
        learning_rate=1e-3 if start == "scratch" else 5e-4,
        weight_decay=0.01,
        curve=Curve(steps=steps, seconds=[0.1 * s for s in steps], errors=errors),
        test_error=test_error,
        truth=truth.tolist(),
        prediction=(truth + test_error).tolist(),
        seconds=12.0,
    )


def make_task(name: str, runs: list[Run], steps: int = 400, title: str = "") -> TaskComparison:
    """A task with everything but its runs made up."""
    return TaskComparison(
        name=name,
        title=title or f"The {name} task",
        dataset="qm9",
        property="dipole_moment",
        symbol="µ",
        unit="D",
        level_of_theory="B3LYP/6-31G(2df,p)",
        n_train=1000,
        n_validation=200,
        n_test=500,
        steps=steps,
        runs=runs,
        trials=[Trial("scratch", 1e-3, 0.01, 0.5), Trial("pretrained", 5e-4, 0.01, 0.4)],
    )


def pair(name: str) -> TaskComparison:
    """Scratch ends at 0.4 and tests at 0.4 ± 0.02; pre-trained reaches 0.4 at step 150 and tests at 0.3."""
    return make_task(
        name,
        [
            make_run("scratch", 0, [2.0, 1.0, 0.7, 0.5, 0.4], 0.42),
            make_run("scratch", 1, [2.0, 1.0, 0.7, 0.5, 0.4], 0.38),
            make_run("pretrained", 0, [1.0, 0.5, 0.3, 0.28, 0.27], 0.31),
            make_run("pretrained", 1, [1.0, 0.5, 0.3, 0.28, 0.27], 0.29),
        ],
    )


def make_store(path: Path, name: str, structures: list[Structure], citation: str = "A. Author (2024)") -> Store:
    """A store of unlabelled value: zero energies and forces."""
    card = Card(
        name=name,
        title=f"The {name} set",
        domain="molecules",
        properties=("energy", "forces"),
        level_of_theory="GFN2-xTB",
        licence="CC0-1.0",
        citation=citation,
        source="made for tests",
    )
    rows = (
        LabelledStructure(
            structure=s,
            labels={"energy": np.array(0.0), "forces": np.zeros((len(s), 3))},
            id=f"{i}",
            group=f"g{i // 2}",
        )
        for i, s in enumerate(structures)
    )
    write_store(path / "store", card, rows)
    return Store(path / "store")
