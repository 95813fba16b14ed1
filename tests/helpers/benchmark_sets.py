"""A small native file of every data set of the benchmark, in the layout of its publisher."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from ase.symbols import symbols2numbers

from eutectic.atoms.units import KCAL_PER_MOL
from eutectic.data.datasets import matbench, md22, qm9, rmd17
from eutectic.data.formats import sgdml
from eutectic.study.benchmark_tasks import BenchmarkTask

FRAMES = 24


def write_source(task: BenchmarkTask, folder: Path) -> Path:
    """The files of a task's data in a folder, as `prepare` takes them with `--source`."""
    folder.mkdir(parents=True, exist_ok=True)
    member = task.data.partition(":")[2]
    {"qm9": _qm9, "rmd17": _rmd17, "md22": _md22, "spice": _spice, "matbench": write_matbench, "qmof": _qmof}[
        task.family
    ](folder, member)
    return folder


def _positions(n_atoms: int, frames: int, seed: int = 0) -> np.ndarray:
    """(frames, n_atoms, 3) atoms on a grid, 1.6 Å apart, a little displaced; Å."""
    side = int(np.ceil(n_atoms ** (1 / 3)))
    grid = np.stack(np.meshgrid(*[np.arange(side)] * 3), -1).reshape(-1, 3)[:n_atoms]
    return np.asarray(1.6 * grid + np.random.default_rng(seed).normal(scale=0.1, size=(frames, n_atoms, 3)))


def _qm9(folder: Path, member: str) -> None:
    random = np.random.default_rng(0)
    for index in range(1, FRAMES + 1):
        symbols = "CHHHH" if index % 2 else "OHH"
        energies = -40.4 + 0.1 * random.normal(size=4) if index % 2 else -76.4 + 0.1 * random.normal(size=4)
        fixed = [150.0, 150.0, 150.0, random.uniform(), 13 + random.normal(), -0.38, 0.11, 0.5 + 0.1 * random.uniform()]
        values = [*fixed, 35 + random.normal(), 0.04 + 0.01 * random.uniform(), *energies, 6 + random.normal()]
        assert len(values) == len(qm9.COLUMNS)
        atoms = "".join(
            f"{symbol}\t{x:.6f}\t{y:.6f}\t{z:.6f}\t-0.1\n"
            for symbol, (x, y, z) in zip(symbols, _positions(len(symbols), 1, index)[0], strict=True)
        )
        numbers = "\t".join(f"{value:.6f}" for value in values)
        text = f"{len(symbols)}\ngdb {index}\t{numbers}\t\n{atoms}1.0\nC\tC\t\nInChI=1S/{index}\tInChI=1S/{index}\n"
        (folder / f"dsgdb9nsd_{index:06d}.xyz").write_text(text)


def _rmd17(folder: Path, molecule: str) -> None:
    numbers = np.array(symbols2numbers(rmd17.MOLECULES[molecule]))
    random = np.random.default_rng(0)
    np.savez(
        folder / f"rmd17_{molecule}.npz",
        nuclear_charges=numbers,
        coords=_positions(len(numbers), FRAMES),
        energies=-167_000 + random.normal(size=FRAMES),
        forces=20 * random.normal(size=(FRAMES, len(numbers), 3)),
        old_indices=np.arange(FRAMES),
        old_energies=np.zeros(FRAMES),
        old_forces=np.zeros((FRAMES, len(numbers), 3)),
    )


def _md22(folder: Path, molecule: str) -> None:
    numbers = np.array(symbols2numbers(md22.MOLECULES[molecule][0]), dtype=np.uint8)
    random = np.random.default_rng(0)
    np.savez(
        folder / f"md22_{molecule}.npz",
        R=_positions(len(numbers), 12),
        E=sum(sgdml.ATOM_ENERGIES[int(z)] for z in numbers) / KCAL_PER_MOL + random.normal(size=(12, 1)),
        F=20 * random.normal(size=(12, len(numbers), 3)),
        z=numbers,
        e_unit="kcal/mol",
        r_unit="Ang",
    )


def _spice(folder: Path, member: str) -> None:
    subset = {"dipeptides": "Dipeptides", "solvated_amino_acids": "Solvated Amino Acids"}[member]
    random = np.random.default_rng(0)

    def put(group: h5py.Group, name: str, value: np.ndarray, units: str) -> None:
        group[name] = value
        group[name].attrs["units"] = units

    with h5py.File(folder / "SPICE-1.1.4.hdf5", "w") as file:
        for i in range(4):
            numbers, frames = [8, 1, 1, 6, 1, 1, 1, 1], FRAMES // 4
            group = file.create_group(f"{100 + i}")
            group["smiles"] = ["[O:1]([H:2])[H:3].[C:4]([H:5])([H:6])([H:7])[H:8]"]
            group["subset"] = [f"SPICE {subset} Single Points Dataset v1.2"]
            group["atomic_numbers"] = np.array(numbers, dtype=np.int16)
            put(group, "conformations", (_positions(8, frames, i) / 0.529177).astype(np.float32), "bohr")
            put(group, "dft_total_energy", -116.9 + 0.01 * random.normal(size=frames), "hartree")
            put(group, "formation_energy", 0.01 * random.normal(size=frames), "hartree")
            gradient = 0.02 * random.normal(size=(frames, 8, 3))
            put(group, "dft_total_gradient", gradient.astype(np.float32), "hartree/bohr")


def crystal(i: int, symbols: tuple[str, str] = ("Na", "Cl")) -> dict[str, Any]:
    """Rock salt of two atoms, as pymatgen writes it; its lattice constant depends on `i`."""
    a = 2.7 + 0.2 * np.sin(i)
    return {
        "lattice": {"matrix": [[0.0, a, a], [a, 0.0, a], [a, a, 0.01]]},
        "sites": [
            {"species": [{"element": symbols[0], "occu": 1}], "abc": [0.0, 0.0, 0.0], "label": symbols[0]},
            {"species": [{"element": symbols[1], "occu": 1}], "abc": [0.5, 0.5, 0.5], "label": symbols[1]},
        ],
    }


def write_matbench(folder: Path, task: str, rows: int = FRAMES) -> None:
    """`rows` crystals with a target that depends on their lattice constant."""
    pairs = [("Na", "Cl"), ("K", "Cl"), ("Na", "F"), ("Li", "O")]
    data = [[crystal(i, pairs[i % 4]), 1.5 + float(np.sin(i))] for i in range(rows)]
    table = {"index": [*range(rows)], "columns": ["structure", matbench.TASKS[task].column], "data": data}
    with gzip.open(folder / f"matbench_{task}.json.gz", "wt") as file:
        json.dump(table, file)


def _qmof(folder: Path, member: str) -> None:
    names = [f"qmof-{i:07d}" for i in range(FRAMES)]
    targets = [{"qmof_id": k, "name": k, "outputs": {"pbe": {"bandgap": 1 + i % 3}}} for i, k in enumerate(names)]
    structures = [{"qmof_id": k, "name": k, "structure": crystal(i, ("Zn", "O"))} for i, k in enumerate(names)]
    (folder / "qmof.json").write_text(json.dumps(targets))
    (folder / "qmof_structure_data.json").write_text(json.dumps(structures))
