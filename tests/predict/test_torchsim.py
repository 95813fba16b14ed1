"""A model for TorchSim: results of the calculator, batches, relaxations and dynamics; and what is said without it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import logging
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from ase.filters import FrechetCellFilter
from ase.optimize import FIRE

import eutectic
from eutectic.atoms import EutecticError
from eutectic.checkpoints.model import TrainedModel, build_backbone
from eutectic.graph import GraphSettings
from eutectic.models.heads import HeadSettings
from eutectic.models.multitask import MultitaskModel
from eutectic.predict.model import TORCHSIM, Model
from eutectic.tasks import Normaliser, Target, TargetSettings, Task
from eutectic.tasks.references import References

SMOOTH = GraphSettings(cutoff=4.5, max_neighbours=12, smooth_cap=0.5)
ELEMENTS = {1: -13.6, 6: -1000.0, 8: -2000.0, 11: -5.0, 12: -8.0, 14: -7.0, 17: -9.0, 26: -20.0, 29: -30.0}


def target(name: str, scale: float, references: References | None = None, **head: Any) -> dict[str, Target]:
    return {name: Target(TargetSettings(head=HeadSettings(**head)), Normaliser(references, 0.0, scale), 1.0)}


@pytest.fixture(scope="module")
def random() -> Model:
    """Random weights; the energy is smooth."""
    energy = target("energy", 2.0, References(property="energy", values=ELEMENTS), layers=1)
    tasks = (
        Task("direct", "none", energy | target("forces", 0.7), SMOOTH),
        Task("alone", "none", energy, SMOOTH),
        Task("with_stress", "none", energy | target("forces", 0.7) | target("stress", 0.1), SMOOTH),
        Task("gap", "none", target("gap", 3.0), SMOOTH),
        Task("many", "none", energy, GraphSettings(cutoff=4.5, max_neighbours=1000)),
    )
    torch.manual_seed(0)
    settings = {"width": 16, "layers": 2, "cutoff": 4.5}
    module = MultitaskModel(build_backbone("painn", settings)[0], {t.name: t.heads for t in tasks}).double().eval()
    provenance = {"pretrained_on": {"some": {"elements": list(ELEMENTS)}}}
    return Model(TrainedModel(module, tasks, "painn", settings, SMOOTH, provenance), "random")


# --- without it ------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="this Python is new enough")
def test_an_old_python_is_told(random: Model) -> None:
    with pytest.raises(EutecticError) as error:
        random.torchsim(task="direct")
    assert error.value.where == "package torch-sim-atomistic"
    assert error.value.given == "Python 3.11"
    assert error.value.expected == "Python 3.12 or later"
    assert error.value.fix.endswith("pip install 'eutectic[torchsim]'")


def test_a_missing_package_or_another_version_is_told(random: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eutectic.predict.model.TORCHSIM", replace(TORCHSIM, python=None))

    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(EutecticError, match=r"not installed; expected version 0\.6\.2 .*'eutectic\[torchsim\]'"):
        random.torchsim(task="direct")
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.7.0")
    with pytest.raises(EutecticError, match=r"version 0\.7\.0, which is untested"):
        random.torchsim(task="direct")


def test_the_extra_installs_what_is_accepted() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    (lowest, below), python = TORCHSIM.versions, TORCHSIM.python
    assert python is not None
    wanted = f"{TORCHSIM.distribution}>={lowest},<{below}; python_version >= '{python[0]}.{python[1]}'"
    assert project["optional-dependencies"][TORCHSIM.extra] == [wanted]


def test_it_is_not_imported_until_asked_for() -> None:
    code = (
        "import sys, eutectic\n"
        "eutectic.load('eutectic-small', device='cpu').calculator(task='bulk')\n"
        "assert 'torch_sim' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- with it ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ts() -> ModuleType:
    if sys.version_info < (3, 12):
        pytest.skip("TorchSim needs Python 3.12")
    if importlib.util.find_spec("torch_sim") is None:
        pytest.skip("torch-sim-atomistic is not installed")
    TORCHSIM.load("models.interface")
    return sys.modules["torch_sim"]


def rattled(atoms: Atoms, amount: float = 0.07, seed: int = 0) -> Atoms:
    atoms.rattle(amount, rng=np.random.default_rng(seed))
    return atoms


def molecules() -> list[Atoms]:
    return [rattled(molecule(name)) for name in ("CH3CH2OH", "H2O", "C6H6")]


def crystals() -> list[Atoms]:
    sheared = rattled(bulk("MgO", "rocksalt", a=4.3) * (2, 1, 1))
    sheared.set_cell(sheared.cell.array @ [[1.01, 0.02, 0.0], [0.02, 0.98, 0.03], [0.0, 0.03, 1.0]])
    outside = rattled(bulk("NaCl", "rocksalt", a=5.64, cubic=True))
    outside.positions[2] += 3 * outside.cell[0] - outside.cell[1]
    return [sheared, bulk("Cu"), outside]


def slabs() -> list[Atoms]:
    return [rattled(fcc111("Cu", (2, 2, 3), vacuum=6.0)), rattled(fcc111("Cu", (1, 1, 4), vacuum=5.0))]


GROUPS: dict[str, Callable[[], list[Atoms]]] = {"molecules": molecules, "crystals": crystals, "slabs": slabs}


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize(("task", "conservative"), [("direct", True), ("with_stress", False), ("alone", None)])
def test_results_are_those_of_the_calculator(
    ts: ModuleType, random: Model, task: str, conservative: bool | None, group: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = GROUPS[group]()
    calc = random.calculator(task=task, conservative=conservative, dtype="float64")
    model = random.torchsim(task=task, conservative=conservative, dtype="float64")
    assert model.conservative == calc.conservative
    for at_once in (1024, 8):
        monkeypatch.setattr("eutectic.predict.torchsim.ON_CPU", at_once)
        found = model(ts.initialize_state(frames, model.device, model.dtype))
        assert set(found) == {"energy", "forces", "stress"}
        assert all(value.dtype == torch.float64 for value in found.values())
        forces = found["forces"].split([len(atoms) for atoms in frames])
        for k, atoms in enumerate(frames):
            atoms.calc = calc
            assert float(found["energy"][k]) == pytest.approx(atoms.get_potential_energy(), abs=1e-8)
            np.testing.assert_allclose(forces[k].numpy(), atoms.get_forces(), atol=1e-8)
            if group == "crystals":
                np.testing.assert_allclose(found["stress"][k].numpy(), atoms.get_stress(voigt=False), atol=1e-9)
            else:
                assert found["stress"][k].isnan().all()


def test_a_model_of_the_package_gives_the_same_in_single_precision(ts: ModuleType) -> None:
    small = eutectic.load("eutectic-small", device="cpu")
    frames = crystals()
    model = small.torchsim(task="bulk", conservative=True)
    assert model.dtype == torch.float32
    found = model(ts.initialize_state(frames, model.device, model.dtype))
    expected = small.predict(frames, task="bulk", conservative=True)
    np.testing.assert_allclose(found["energy"].numpy(), [float(one["energy"]) for one in expected], atol=1e-4)
    np.testing.assert_allclose(found["forces"].numpy(), np.concatenate([one["forces"] for one in expected]), atol=1e-3)
    np.testing.assert_allclose(found["stress"].numpy(), np.stack([one["stress"] for one in expected]), atol=1e-4)


@pytest.mark.parametrize(
    ("task", "conservative"), [("direct", False), ("direct", True), ("with_stress", False), ("alone", None)]
)
def test_torchsims_own_validation(ts: ModuleType, random: Model, task: str, conservative: bool | None) -> None:
    from torch_sim.models.interface import validate_model_outputs

    model = random.torchsim(task=task, conservative=conservative, dtype=torch.float64)
    validate_model_outputs(model, model.device, model.dtype)
    assert model.compute_stress == (task != "direct" or conservative)


def test_what_is_computed_can_be_chosen(ts: ModuleType, random: Model) -> None:
    model = random.torchsim(task="direct", conservative=True, dtype="float64", compute_stress=False)
    state = ts.initialize_state(crystals(), model.device, model.dtype)
    assert set(model(state)) == {"energy", "forces"}
    model.compute_stress, model.compute_forces = True, False
    assert set(model(state)) == {"energy", "stress"}
    direct = random.torchsim(task="direct")
    assert repr(direct).endswith("predicted directly, not derivatives of the energy: dynamics do not conserve energy")
    with pytest.raises(NotImplementedError, match="conservative=True"):
        direct.compute_stress = True
    with pytest.raises(NotImplementedError, match="conservative=True"):
        random.torchsim(task="alone", conservative=False).compute_forces = True


def test_what_it_cannot_do_is_an_error(ts: ModuleType, random: Model) -> None:
    with pytest.raises(EutecticError, match="model for TorchSim, dtype: 'float16'"):
        random.torchsim(task="direct", dtype=torch.float16)
    with pytest.raises(EutecticError, match="heads for gap; expected a task with a head for the energy"):
        random.torchsim(task="gap")
    with pytest.raises(EutecticError, match=r"no head for the stress.*conservative=True"):
        random.torchsim(task="direct", compute_stress=True)
    model = random.torchsim(task="direct")
    with pytest.raises(EutecticError, match="element S, never seen in training"):
        model(ts.initialize_state([molecule("SH2")], model.device, model.dtype))
    # TorchSim's: one `pbc` for all systems of a state.
    with pytest.raises(ValueError, match="periodic boundary conditions"):
        ts.initialize_state([molecule("H2O"), bulk("Cu")], model.device, model.dtype)


def test_memory_follows_the_edges_unless_neighbours_are_few(ts: ModuleType, random: Model) -> None:
    assert random.torchsim(task="direct").memory_scales_with == "n_atoms"
    assert random.torchsim(task="many").memory_scales_with == "n_edges"


def test_a_system_that_cannot_be_predicted_leaves_the_others_alone(
    ts: ModuleType, random: Model, caplog: pytest.LogCaptureFixture
) -> None:
    model = random.torchsim(task="alone", dtype="float64")
    frames = molecules()
    expected = model(ts.initialize_state(frames, model.device, model.dtype))
    frames[1].positions[0] = np.nan
    caplog.clear()
    with caplog.at_level(logging.WARNING, "eutectic"):
        for _ in range(2):
            found = model(ts.initialize_state(frames, model.device, model.dtype))
    (said,) = [record.getMessage() for record in caplog.records if record.name.startswith("eutectic")]
    assert "a structure H2O, atom 0 has position [nan, nan, nan]; expected finite coordinates" in said
    assert found["energy"].isnan().tolist() == [False, True, False]
    torch.testing.assert_close(found["energy"][[0, 2]], expected["energy"][[0, 2]])
    forces, whole = (one["forces"].split([len(atoms) for atoms in frames]) for one in (found, expected))
    assert forces[1].isnan().all()
    torch.testing.assert_close(forces[2], whole[2])


def test_tags_are_an_atom_extra_of_the_state(ts: ModuleType) -> None:
    from eutectic.predict.torchsim import _structures

    frames = slabs()
    frames[0].set_tags(np.arange(len(frames[0])) % 3)
    frames[1].set_tags(0)
    state = ts.io.atoms_to_state(frames, torch.device("cpu"), torch.float64, atom_extras_map={"tags": "tags"})
    for given, own in ((state, frames[0].get_tags()), (ts.initialize_state(frames, state.device, state.dtype), 2)):
        first, second = _structures(given)
        assert (first.tags == own).all()
        assert (second.tags == 2).all()


def relaxed(frames: list[Atoms], calc: Any, fmax: float, steps: int, cell: bool) -> np.ndarray:
    """Energies after ASE's FIRE, one structure at a time, eV."""
    energies = []
    for start in frames:
        atoms = start.copy()
        atoms.calc = calc
        assert FIRE(FrechetCellFilter(atoms) if cell else atoms, logfile=None).run(fmax=fmax, steps=steps)
        energies.append(atoms.get_potential_energy())
    return np.array(energies)


@pytest.mark.parametrize("group", ["crystals", "molecules"])
def test_relaxations_end_where_those_of_ase_do(ts: ModuleType, group: str) -> None:
    small = eutectic.load("eutectic-small", device="cpu")
    make: list[Callable[[], Atoms]] = (
        [lambda: bulk("Cu", cubic=True), lambda: bulk("NaCl", "rocksalt", a=5.64)]
        if group == "crystals"
        else [lambda: molecule("H2O"), lambda: molecule("CH3OH"), lambda: molecule("C2H4")]
    )
    frames = [rattled(make[i % len(make)](), 0.05, seed=i) for i in range(5)]
    task = "bulk" if group == "crystals" else "molecules"
    model = small.torchsim(task=task, conservative=True, dtype="float64")
    converged = ts.generate_force_convergence_fn(0.03)
    final = ts.optimize(
        system=frames,
        model=model,
        optimizer=ts.Optimizer.fire,
        convergence_fn=converged,
        max_steps=200,
        steps_between_swaps=1,
        # Three or more in a batch: as one is relaxed, another takes its place.
        autobatcher=ts.InFlightAutoBatcher(
            model, memory_scales_with="n_atoms", max_memory_scaler=3 * max(len(atoms) for atoms in frames)
        ),
    )
    assert converged(final).all()
    calc = small.calculator(task=task, conservative=True, dtype="float64")
    expected = relaxed(frames, calc, 0.03, 200, cell=False)
    # The same minima; the first step of one that joins a batch differs from ASE's.
    np.testing.assert_allclose(final.energy.numpy(), expected, atol=1e-3)


def test_cells_relax_too(ts: ModuleType) -> None:
    small = eutectic.load("eutectic-small", device="cpu")
    frames = [bulk("Cu", a=3.5), bulk("NaCl", "rocksalt", a=5.5)]
    model = small.torchsim(task="bulk", conservative=True, dtype="float64")
    converged = ts.generate_force_convergence_fn(0.02, include_cell_forces=True)
    final = ts.optimize(
        system=frames,
        model=model,
        optimizer=ts.Optimizer.fire,
        convergence_fn=converged,
        max_steps=200,
        steps_between_swaps=1,
        init_kwargs={"cell_filter": ts.CellFilter.frechet},
    )
    assert converged(final).all()
    calc = small.calculator(task="bulk", conservative=True, dtype="float64")
    np.testing.assert_allclose(final.energy.numpy(), relaxed(frames, calc, 0.02, 200, cell=True), atol=1e-3)


def test_dynamics_conserve_energy_where_forces_are_derivatives(ts: ModuleType, random: Model) -> None:
    frames = [rattled(molecule("CH3CH2OH"), seed=seed) for seed in (1, 2)]

    def spread(conservative: bool, step: float) -> np.ndarray:
        """Standard deviation of the total energy of each system over 10 fs, eV."""
        model = random.torchsim(task="direct", conservative=conservative, dtype="float64")
        state = ts.initialize_state(frames, model.device, model.dtype)
        state.rng = 0
        kT = torch.tensor(1000 * float(ts.units.MetalUnits.temperature), dtype=model.dtype)
        state = ts.nve_init(state=state, model=model, kT=kT)
        dt = torch.tensor(step * 1e-3 * float(ts.units.MetalUnits.time), dtype=model.dtype)  # of ps
        energies = []
        for _ in range(round(10 / step)):
            state = ts.nve_step(state=state, model=model, dt=dt)
            kinetic = ts.calc_kinetic_energy(masses=state.masses, momenta=state.momenta, system_idx=state.system_idx)
            energies.append((state.energy + kinetic).numpy())
        return np.std(energies, axis=0)

    coarse, fine = spread(True, 0.5), spread(True, 0.25)
    # The error of Verlet's method: four times smaller for half the step.
    np.testing.assert_allclose(coarse / fine, 4.0, rtol=0.2)
    assert (spread(False, 0.25) > 100 * fine).all()
