"""Models that are damaged, structures that crashed the neighbour search, atoms far from home: by the command line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.io import read, write
from safetensors.torch import load_file, save_file

from drills import assert_clear_error, assert_done, eutectic
from eutectic.checkpoints.shipped import model_folder

MODEL, WEIGHTS = "model.json", "model.safetensors"
CASES = Path(__file__).resolve().parents[3] / "shared" / "cases"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Path(shutil.copytree(model_folder("eutectic-small"), tmp_path / "model"))


@pytest.fixture
def water(tmp_path: Path) -> Path:
    write(tmp_path / "water.xyz", molecule("H2O"), format="extxyz")
    return tmp_path / "water.xyz"


def _predict(model: Path | str, file: Path, *options: object, task: str = "molecules"):
    return eutectic("predict", model, file, "--task", task, "--json", *options)


def _unsealed(model: Path, change: Callable[[dict[str, Any]], object]) -> None:
    description = json.loads((model / MODEL).read_text())
    del description["sha256"]
    change(description)
    (model / MODEL).write_text(json.dumps(description))


# --- weights -------------------------------------------------------------------------------------------------------


def _bytes(change: Callable[[bytearray], object]) -> Callable[[Path], None]:
    def damage(model: Path) -> None:
        data = bytearray((model / WEIGHTS).read_bytes())
        change(data)
        (model / WEIGHTS).write_bytes(data)

    return damage


def _flip(place: float) -> Callable[[Path], None]:
    def change(data: bytearray) -> None:
        data[int(place * len(data))] ^= 0x55

    return _bytes(change)


def _sealed_number(model: Path) -> None:
    text = (model / MODEL).read_text()
    (model / MODEL).write_text(text.replace("3.230112467939803", "3.330112467939803", 1))


def _nan(model: Path) -> None:
    _unsealed(model, lambda d: None)
    state = load_file(str(model / WEIGHTS))
    save_file({name: torch.full_like(x, torch.nan) for name, x in state.items()}, str(model / WEIGHTS))


DAMAGED: dict[str, Callable[[Path], None]] = {
    "byte in the middle": _flip(0.5),
    "byte near the end": _flip(0.999),
    "byte in the header": _flip(0.001),
    "cut": _bytes(lambda data: data.__delitem__(slice(len(data) // 2, None))),
    "empty": _bytes(bytearray.clear),
    "altered scale": _sealed_number,
    "NaN without a hash": _nan,
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_weights(model: Path, water: Path, case: str) -> None:
    """weights or numbers altered: refused"""
    DAMAGED[case](model)
    assert_clear_error(_predict(model, water), str(model.name))


def test_half_precision(model: Path, water: Path) -> None:
    """weights in half precision: converted"""
    _unsealed(model, lambda d: None)
    state = load_file(str(model / WEIGHTS))
    save_file({name: x.half() for name, x in state.items()}, str(model / WEIGHTS))
    done = _predict(model, water)
    assert_done(done)
    assert np.isfinite(json.loads(done.output)["predictions"][0]["energy"])


DESCRIPTIONS: dict[str, Callable[[dict[str, Any]], object]] = {
    "no backbone": lambda d: d.pop("backbone"),
    "no tasks": lambda d: d.pop("tasks"),
    "no provenance": lambda d: d.pop("provenance"),
    "10⁹ blocks": lambda d: d["backbone"]["settings"].update(blocks=10**9),
    "900 blocks": lambda d: d["backbone"]["settings"].update(blocks=900),
    "10⁹ radial functions": lambda d: d["backbone"]["settings"].update(num_radial=10**9),
    "cutoff 10⁶": lambda d: d["tasks"][1]["graph"].update(cutoff=1e6),
    "NaN scale of another task": lambda d: d["tasks"][0]["targets"]["energy"]["normaliser"].update(scale=float("nan")),
    "tasks of text": lambda d: d.update(tasks="five"),
}


@pytest.mark.parametrize("case", DESCRIPTIONS)
def test_damaged_description(model: Path, water: Path, case: str) -> None:
    """model.json without a hash, damaged: refused"""
    _unsealed(model, DESCRIPTIONS[case])
    assert_clear_error(_predict(model, water))


@pytest.mark.parametrize("command", ["predict", "models", "finetune"])
def test_no_description(model: Path, water: Path, tmp_path: Path, command: str) -> None:
    """model.json nested deeply: refused by every command"""
    (model / MODEL).write_text("[" * 100_000)
    arguments: dict[str, tuple[object, ...]] = {
        "predict": (model, water, "--task", "molecules", "--json"),
        "models": (model,),
        "finetune": ("qm9_sample", "-p", "gap", "--model", model, "--out", tmp_path / "out"),
    }
    assert_clear_error(eutectic(command, *arguments[command]))


# --- structures ----------------------------------------------------------------------------------------------------


def _slab(z: float) -> Atoms:
    return Atoms("Cu2", [(0, 0, 0), (1.8, 1.8, z)], cell=[3.6, 3.6, 20], pbc=[True, True, False])


HOSTILE: dict[str, Atoms] = {
    "molecule 1e9": Atoms("H2", [(0, 0, 0), (1e9, 0, 0)]),
    "molecule 1e300": Atoms("H2", [(0, 0, 0), (1e300, 0, 0)]),
    "molecule 1.5e6": Atoms("H2", [(0, 0, 0), (1.5e6, 0, 0)]),
    "slab 1e6": _slab(1e6),
    "slab 1e9": _slab(1e9),
    "crystal 1e300": Atoms("Cu2", [(0, 0, 0), (1e300, 0, 0)], cell=[3.6] * 3, pbc=True),
    "cell 1e160": Atoms("Cu", [(0, 0, 0)], cell=[1e160] * 3, pbc=True),
    "cell 1e6": Atoms("Cu", [(0, 0, 0)], cell=[4, 4, 1e6], pbc=True),
    "cell 0.1": Atoms("Cu", [(0, 0, 0)], cell=[0.1] * 3, pbc=True),
    "nearly singular": Atoms("Cu", [(0, 0, 0)], cell=[[3.6, 0, 0], [0, 3.6, 0], [1, 1, 1e-3]], pbc=True),
    "very oblique": Atoms("Cu", [(0, 0, 0)], cell=[[3.6, 0, 0], [9000, 3.6, 0], [0, 0, 3.6]], pbc=True),
    "box of a molecule 1e160": Atoms("H2", [(0, 0, 0), (0.7, 0, 0)], cell=[1e160] * 3),
}


@pytest.mark.parametrize("command", ["predict", "prepare", "check"])
@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_structures(tmp_path: Path, case: str, command: str) -> None:
    """structures that crashed or never ended in the neighbour search: refused"""
    file, numbers = tmp_path / "hostile.xyz", HOSTILE[case]
    lattice = " ".join(f"{x!r}" for x in numbers.cell.array.ravel().tolist())
    periodic = " ".join("FT"[int(p)] for p in numbers.pbc)
    rows = [
        f"{symbol} {' '.join(repr(float(x)) for x in position)}"
        for symbol, position in zip(numbers.symbols, numbers.positions, strict=True)
    ]
    comment = f'Lattice="{lattice}" Properties=species:S:1:pos:R:3 energy=-1.0 pbc="{periodic}"'
    file.write_text("\n".join([str(len(numbers)), comment, *rows, ""]))
    arguments: dict[str, tuple[object, ...]] = {
        "predict": ("predict", "eutectic-small", file, "--task", "bulk", "--normalised", "--json"),
        "prepare": ("data", "prepare", "ase", "--source", file, "--store", tmp_path / "store"),
        "check": ("data", "check", file),
    }
    done = eutectic(*arguments[command], seconds=60.0)
    assert done.code > 0, "not ended by a signal, and not accepted"
    assert "Traceback" not in done.errors + done.output


# --- far from home -------------------------------------------------------------------------------------------------


def _forces(file: Path, task: str, *options: object) -> list[np.ndarray]:
    done = _predict("eutectic-small", file, *options, task=task)
    assert_done(done)
    return [np.array(one["forces"]) for one in json.loads(done.output)["predictions"]]


@pytest.mark.parametrize("conservative", [False, True])
@pytest.mark.parametrize("task", ["bulk", "metal_slabs"])
def test_the_case_of_atoms_far_from_their_cell(task: str, conservative: bool) -> None:
    """atoms far from their cell: forces as at home to 1e-5 eV/Å"""
    case = CASES / "17-far-from-cell.extxyz"
    if not case.is_file():
        pytest.skip("the folder of cases is not beside the project")
    home, *far = _forces(case, task, *(["--conservative"] if conservative else []))
    for forces in far:
        np.testing.assert_allclose(forces, home, atol=1e-5)


@pytest.mark.parametrize("away", [30.0, 5e3, 1e6])
@pytest.mark.parametrize("kind", ["molecule", "slab", "crystal"])
def test_far_structures(tmp_path: Path, kind: str, away: float) -> None:
    """molecules, slabs and crystals far from the origin: forces as at home to 1e-5 eV/Å"""
    atoms = molecule("CH3CH2OH") if kind == "molecule" else bulk("Cu", cubic=True)
    if kind == "slab":
        atoms.pbc = [True, True, False]
    atoms.rattle(0.05, seed=1)
    far = atoms.copy()
    move = np.full(3, away) if kind == "molecule" else np.round(away / 3.61) * atoms.cell.array.sum(axis=0)
    far.positions += move
    write(tmp_path / "both.xyz", [atoms, far], format="extxyz")
    home, found = _forces(tmp_path / "both.xyz", "molecules" if kind == "molecule" else "metal_slabs")
    np.testing.assert_allclose(found, home, atol=1e-5)


def test_a_store_of_far_atoms(tmp_path: Path) -> None:
    """a store written from a file of far atoms: positions as at home"""
    from eutectic.data.store import Store

    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.05, seed=1)
    far = atoms.copy()
    far.positions += 5000 * atoms.cell.array[0]
    for one in (atoms, far):
        one.info["energy"] = -1.0
    write(tmp_path / "both.xyz", [atoms, far], format="extxyz")
    frames = read(tmp_path / "both.xyz", ":")
    assert len(frames) == 2
    done = eutectic("data", "prepare", "ase", "--source", tmp_path / "both.xyz", "--store", tmp_path / "store")
    assert_done(done)
    home, found = (row.structure for row in Store(tmp_path / "store"))
    fractions = (found.positions - home.positions) @ np.linalg.inv(home.cell)
    np.testing.assert_allclose(fractions, np.round(fractions), atol=1e-6)


# --- elements ------------------------------------------------------------------------------------------------------


def test_unseen_elements_with_normalised(tmp_path: Path) -> None:
    """elements the model never saw, --normalised: told"""
    write(tmp_path / "xe.xyz", Atoms("Xe2", [(0, 0, 0), (0, 0, 3.0)]), format="extxyz")
    done = _predict("eutectic-small", tmp_path / "xe.xyz", "--normalised")
    assert_done(done)
    assert "unseen in training" in done.errors
    assert "Xe" in done.errors
