"""A fine-tuned model, and the built documentation."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator

import eutectic

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def structures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `my.xyz`: 24 structures of four molecules, with made-up energies and forces."""
    folder = tmp_path_factory.mktemp("structures")
    rng = np.random.default_rng(0)
    frames = []
    for i in range(24):
        atoms = molecule(["CH3OH", "CH3CHO", "HCOOH", "H2CO"][i % 4])
        atoms.positions += rng.normal(scale=0.05, size=atoms.positions.shape)
        atoms.calc = SinglePointCalculator(
            atoms, energy=float(rng.normal(-10 * len(atoms), 0.1)), forces=rng.normal(size=atoms.positions.shape)
        )
        frames.append(atoms)
    ase.io.write(folder / "my.xyz", frames)
    return folder


@pytest.fixture(scope="session")
def trained(structures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `my.xyz` and `runs/mine`, a model fine-tuned to it for two steps."""
    folder = tmp_path_factory.mktemp("trained")
    shutil.copy(structures / "my.xyz", folder)
    eutectic.finetune(
        folder / "my.xyz",
        ["energy", "forces"],
        out=folder / "runs" / "mine",
        model="eutectic-small",
        n_train=8,
        n_validation=4,
        n_test=4,
        steps=2,
        batch_size=4,
    )
    return folder


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built pages."""
    folder = tmp_path_factory.mktemp("documentation")
    shutil.copytree(ROOT / "docs", folder / "docs")
    shutil.copy(ROOT / "zensical.toml", folder)
    done = subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--strict"], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "site"
