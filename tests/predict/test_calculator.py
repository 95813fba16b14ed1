"""A model as an ASE calculator: exact derivatives, ASE's conventions and caching, and what one does with it."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import add_adsorbate, bulk, fcc111, molecule
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from ase.filters import FrechetCellFilter
from ase.io import Trajectory, read, write
from ase.md.verlet import VelocityVerlet
from ase.mep import NEB
from ase.optimize import BFGS
from ase.vibrations import Vibrations

import eutectic
from eutectic.atoms import EutecticError
from eutectic.checkpoints.model import TrainedModel, build_backbone
from eutectic.graph import GraphSettings
from eutectic.models.heads import HeadSettings
from eutectic.models.multitask import MultitaskModel
from eutectic.predict.calculator import EutecticCalculator
from eutectic.predict.model import Model
from eutectic.tasks import Normaliser, Target, TargetSettings, Task
from eutectic.tasks.references import References

SMOOTH = GraphSettings(cutoff=4.5, max_neighbours=12, smooth_cap=0.5)
REFERENCES = References(property="energy", values={1: -13.6, 6: -1000.0, 7: -1400.0, 8: -2000.0, 29: -30.0, 12: -8.0})
ENERGY = Target(TargetSettings(head=HeadSettings(layers=1)), Normaliser(REFERENCES, 0.0, 2.0), 1.0)


def target(name: str, scale: float = 1.0, **head: object) -> dict[str, Target]:
    return {name: Target(TargetSettings(head=HeadSettings(**head)), Normaliser(None, 0.0, scale), 1.0)}  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def random() -> Model:
    """Random weights, in double precision; the energy is smooth."""
    tasks = (
        Task("direct", "none", {"energy": ENERGY, **target("forces", 0.7)}, SMOOTH),
        Task("derived", "none", {"energy": ENERGY, **target("forces", 2.0, kind="gradient_forces")}, SMOOTH),
        Task("alone", "none", {"energy": replace(ENERGY, normaliser=Normaliser(REFERENCES, 0.5, 2.0))}, SMOOTH),
        Task("with_stress", "none", {"energy": ENERGY, **target("forces"), **target("stress", 0.1)}, SMOOTH),
        Task(
            "others",
            "none",
            {
                **target("gap", 3.0),
                **target("dipole"),
                **target("charges"),
                **target("is_metal", n_classes=2),
                **target("polarizability", pooling="sum"),
            },
            SMOOTH,
        ),
    )
    torch.manual_seed(0)
    settings = {"width": 16, "layers": 2, "cutoff": 4.5}
    module = MultitaskModel(build_backbone("painn", settings)[0], {t.name: t.heads for t in tasks}).double().eval()
    provenance = {"pretrained_on": {"some": {"elements": [1, 6, 7, 8, 12, 29]}}}
    return Model(TrainedModel(module, tasks, "painn", settings, SMOOTH, provenance), "random")


@pytest.fixture(scope="module")
def small() -> Model:
    return eutectic.load("eutectic-small", device="cpu")


def rattled(atoms: Atoms, amount: float = 0.07) -> Atoms:
    atoms.rattle(amount, rng=np.random.default_rng(0))
    return atoms


def slab() -> Atoms:
    atoms = fcc111("Cu", (2, 2, 3), vacuum=6.0)
    add_adsorbate(atoms, molecule("OH"), 1.9, "fcc")
    atoms.set_tags([{0: 2, 1: 1}.get(tag, 0) for tag in atoms.get_tags()])
    return rattled(atoms)


def crystal() -> Atoms:
    atoms = rattled(bulk("MgO", "rocksalt", a=4.3) * (2, 1, 1))
    atoms.set_cell(atoms.cell.array @ [[1.01, 0.02, 0.0], [0.02, 0.98, 0.03], [0.0, 0.03, 1.0]])
    return atoms


STRUCTURES = {"molecule": lambda: rattled(molecule("CH3CH2OH")), "slab": slab, "crystal": crystal}
TASKS = {"molecule": "molecules", "slab": "metal_slabs", "crystal": "bulk"}


# --- physics ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backbone", "name"), [*(("random", name) for name in STRUCTURES), ("small", "slab"), ("small", "crystal")]
)
def test_forces_and_stress_are_the_derivatives_of_the_energy(
    name: str, backbone: str, request: pytest.FixtureRequest
) -> None:
    model, atoms = request.getfixturevalue(backbone), STRUCTURES[name]()
    task = TASKS[name] if backbone == "small" else "direct"
    atoms.calc = model.calculator(task=task, conservative=True, dtype="float64", device="cpu")
    some = [0, len(atoms) - 1]
    numerical = calculate_numerical_forces(atoms, eps=1e-4, iatoms=some)
    np.testing.assert_allclose(atoms.get_forces()[some], numerical, atol=1e-5)
    if name == "crystal":
        # ASE's sign (positive is tension) and order (xx, yy, zz, yz, xz, xy), which all differ in this structure.
        assert atoms.get_stress().shape == (6,)
        np.testing.assert_allclose(atoms.get_stress(), calculate_numerical_stress(atoms, eps=1e-5), atol=1e-7)


@pytest.mark.parametrize("conservative", [True, False])
@pytest.mark.parametrize("name", STRUCTURES)
def test_results_turn_with_the_structure(random: Model, name: str, conservative: bool) -> None:
    calc = random.calculator(task="with_stress", conservative=conservative, dtype="float64")
    atoms = STRUCTURES[name]()
    turned = atoms.copy()
    turned.rotate(37.0, (1, 2, 3), rotate_cell=True)
    rotation = np.linalg.lstsq(atoms.positions, turned.positions, rcond=None)[0]
    atoms.calc = turned.calc = calc
    assert turned.get_potential_energy() == pytest.approx(atoms.get_potential_energy(), abs=1e-8)
    np.testing.assert_allclose(turned.get_forces(), atoms.get_forces() @ rotation, atol=1e-8)
    if name == "crystal":
        before, after = atoms.get_stress(voigt=False), turned.get_stress(voigt=False)
        np.testing.assert_allclose(after, rotation.T @ before @ rotation, atol=1e-9)


@pytest.mark.parametrize("name", STRUCTURES)
def test_the_order_of_atoms_does_not_matter(random: Model, name: str) -> None:
    calc = random.calculator(task="direct", conservative=True, dtype="float64")
    atoms = STRUCTURES[name]()
    order = np.random.default_rng(1).permutation(len(atoms))
    shuffled = atoms[order]
    atoms.calc = shuffled.calc = calc
    assert shuffled.get_potential_energy() == pytest.approx(atoms.get_potential_energy(), abs=1e-8)
    for get in ("get_forces", "get_potential_energies"):
        np.testing.assert_allclose(getattr(shuffled, get)(), getattr(atoms, get)()[order], atol=1e-8)


def test_a_supercell_has_the_same_forces_and_stress(random: Model) -> None:
    calc = random.calculator(task="direct", conservative=True, dtype="float64")
    atoms = crystal()
    larger = atoms * (2, 1, 2)
    atoms.calc = larger.calc = calc
    assert larger.get_potential_energy() == pytest.approx(4 * atoms.get_potential_energy(), abs=1e-7)
    np.testing.assert_allclose(larger.get_forces(), np.tile(atoms.get_forces(), (4, 1)), atol=1e-8)
    np.testing.assert_allclose(larger.get_stress(), atoms.get_stress(), atol=1e-9)


@pytest.mark.parametrize("task", ["direct", "derived", "alone"])
def test_energies_of_atoms_sum_to_the_energy(random: Model, task: str) -> None:
    atoms = rattled(molecule("CH3CH2OH"))
    atoms.calc = random.calculator(task=task, dtype="float64")
    energies = atoms.get_potential_energies()
    assert energies.sum() == pytest.approx(atoms.get_potential_energy(), abs=1e-9)
    # Near the reference of its element.
    assert abs(energies[atoms.numbers == 8] - REFERENCES.values[8]).max() < 100


def test_predictions_are_those_of_the_model(small: Model) -> None:
    for name, make in STRUCTURES.items():
        atoms = make()
        for conservative in (False, True):
            atoms.calc = small.calculator(task=TASKS[name], conservative=conservative)
            expected = small.predict(atoms, task=TASKS[name], conservative=conservative)
            assert atoms.get_potential_energy() == pytest.approx(float(expected["energy"]), abs=1e-4)
            assert atoms.get_potential_energy(force_consistent=True) == atoms.get_potential_energy()
            np.testing.assert_allclose(atoms.get_forces(), expected["forces"], atol=1e-4)
            if conservative and name == "crystal":
                np.testing.assert_allclose(atoms.get_stress(voigt=False), expected["stress"], atol=1e-5)


# --- precision and device --------------------------------------------------------------------------------------


def test_precisions_agree_and_leave_the_model_as_it_was(small: Model) -> None:
    atoms = rattled(molecule("CH3CH2OH"))
    found = {}
    for dtype in ("float64", "float32", "bfloat16"):
        atoms.calc = small.calculator(task="molecules", conservative=True, dtype=dtype)
        found[dtype] = (atoms.get_potential_energy(), atoms.get_forces())
        assert atoms.get_forces().dtype == np.float64
    exact = found["float64"]
    for dtype, least, most in (("float32", 0.0, 1e-4), ("bfloat16", 1e-5, 0.1)):
        assert least < abs(found[dtype][1] - exact[1]).max() < most
        assert abs(found[dtype][0] - exact[0]) < most
    assert {p.dtype for p in small.trained.module.parameters()} == {torch.float32}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_gives_the_same(small: Model) -> None:
    atoms = rattled(molecule("CH3CH2OH"))
    atoms.calc = small.calculator(task="molecules", conservative=True, dtype="float64")
    expected = atoms.get_forces()
    atoms.calc = small.calculator(task="molecules", conservative=True, dtype="float64", device="cuda")
    assert atoms.calc.device.type == "cuda"
    np.testing.assert_allclose(atoms.get_forces(), expected, atol=1e-8)


# --- ASE's conventions -----------------------------------------------------------------------------------------


@pytest.fixture
def calculations(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with every forward pass."""
    from eutectic.predict import calculator

    made: list[int] = []
    real = calculator.forward

    def counted(*args: object, **kwargs: object) -> object:
        made.append(1)
        return real(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(calculator, "forward", counted)
    return made


def test_nothing_is_calculated_twice(random: Model, calculations: list[int]) -> None:
    atoms = crystal()
    atoms.calc = calc = random.calculator(task="direct", conservative=True)
    assert calc.calculation_required(atoms, ["energy"])
    atoms.get_potential_energy()
    forces = atoms.get_forces()
    atoms.get_stress()
    assert not calc.calculation_required(atoms, ["energy", "forces", "stress"])
    # No input of the model.
    atoms.set_initial_charges([1.0] * len(atoms))
    atoms.set_initial_magnetic_moments([1.0] * len(atoms))
    forces[:] = 7.0
    assert abs(atoms.get_forces()).max() < 7.0, "results are copies"
    assert len(calculations) == 1
    changes = (
        lambda: atoms.positions.__setitem__((0, 0), atoms.positions[0, 0] + 1e-9),
        lambda: atoms.set_cell(atoms.cell * 1.001),
        lambda: atoms.numbers.__setitem__(0, 8),
        lambda: atoms.set_pbc((True, True, False)),
        lambda: atoms.set_tags([1] * len(atoms)),
        lambda: atoms.pop(),
    )
    for n, change in enumerate(changes):
        change()
        assert calc.calculation_required(atoms, ["energy"])
        atoms.get_potential_energy()
        atoms.get_forces()
        assert len(calculations) == n + 2
    other = rattled(molecule("H2O"))
    other.calc = calc
    assert other.get_forces().shape == (3, 3)
    assert atoms.get_forces().shape == (len(atoms), 3)


def test_an_error_leaves_no_results_of_before(random: Model) -> None:
    atoms = rattled(molecule("H2O"))
    atoms.calc = random.calculator(task="direct")
    atoms.get_potential_energy()
    atoms.positions[1] = np.nan
    for _ in range(2):
        with pytest.raises(EutecticError, match="calculator of task direct: atom 1 has position"):
            atoms.get_potential_energy()
    assert atoms.calc.results == {}


def test_other_properties_have_their_own_names(random: Model) -> None:
    atoms = rattled(molecule("CH3OH"))
    atoms.calc = calc = random.calculator(task="others")
    expected = random.predict(atoms, task="others")
    assert set(calc.implemented_properties) == {"gap", "dipole", "charges", "is_metal", "polarizability"}
    for name in ("gap", "polarizability", "is_metal"):
        np.testing.assert_allclose(calc.get_property(name, atoms), expected[name], rtol=1e-5)
    assert isinstance(calc.get_property("gap", atoms), float)
    np.testing.assert_allclose(atoms.get_dipole_moment(), expected["dipole"], atol=1e-6)
    np.testing.assert_allclose(atoms.get_charges(), expected["charges"], atol=1e-6)
    with pytest.raises(PropertyNotImplementedError):
        atoms.get_potential_energy()
    assert set(calc.export_properties()) == {"dipole", "charges", "natoms"}


def test_a_stress_needs_a_crystal_and_derivatives_or_a_head(random: Model) -> None:
    atoms = crystal()
    atoms.calc = random.calculator(task="direct")
    with pytest.raises(PropertyNotImplementedError, match="conservative=True"):
        atoms.get_stress()
    atoms.calc = random.calculator(task="with_stress")
    assert atoms.get_stress().shape == (6,)
    for not_a_crystal in (slab(), molecule("H2O")):
        not_a_crystal.calc = random.calculator(task="direct", conservative=True)
        with pytest.raises(PropertyNotImplementedError):
            not_a_crystal.get_stress()
        assert not_a_crystal.get_forces().any()


def test_forces_are_direct_or_derivatives_and_it_says_which(random: Model, small: Model) -> None:
    atoms = rattled(molecule("H2O"))

    def forces(task: str, conservative: bool | None) -> tuple[np.ndarray, str]:
        calc = random.calculator(task=task, conservative=conservative, dtype="float64")
        atoms.calc = calc
        return atoms.get_forces(), repr(calc)

    direct, said = forces("direct", None)
    assert "predicted directly, not derivatives of the energy: dynamics do not conserve energy" in said
    np.testing.assert_array_equal(direct, forces("direct", False)[0])
    conservative, said = forces("direct", True)
    assert said.endswith("derivatives of the energy: dynamics conserve energy")
    assert abs(conservative - direct).max() > 1e-3
    for task, choices in (("derived", (None, False, True)), ("alone", (None, True))):
        found = [forces(task, choice) for choice in choices]
        assert all("dynamics conserve energy" in said for _, said in found)
        for values, _ in found:
            np.testing.assert_array_equal(values, found[0][0])
    calc = random.calculator(task="alone", conservative=False)
    assert "forces: not predicted" in repr(calc)
    assert "forces" not in calc.implemented_properties
    assert "hard cap" not in repr(small.calculator(task="bulk", conservative=True))
    hard = TrainedModel(
        small.trained.module,
        tuple(replace(task, graph=GraphSettings(cutoff=5.0, max_neighbours=8)) for task in small.trained.tasks),
        small.trained.backbone,
        small.trained.backbone_settings,
        small.trained.graph,
    )
    assert "hard cap" in repr(Model(hard, "hard").calculator(task="bulk", conservative=True))


def test_the_task_is_the_only_one_or_named(random: Model, small: Model) -> None:
    with pytest.raises(EutecticError, match=r"no task given, and 5 tasks in the model.*name one, such as 'direct'"):
        random.calculator()
    with pytest.raises(EutecticError, match="did you mean 'direct'"):
        random.calculator(task="directt")
    with pytest.raises(EutecticError, match="derivatives of the energy requested; its heads: gap"):
        random.calculator(task="others", conservative=True)
    with pytest.raises(EutecticError, match="'float16'; expected one of float32, float64, bfloat16"):
        random.calculator(task="direct", dtype="float16")
    with pytest.raises(EutecticError, match="skin"):
        random.calculator(task="direct", skin=-1.0)
    task = small.trained.tasks[0]
    one = TrainedModel(small.trained.module, (task,), "gemnet_oc", {}, task.graph)
    assert EutecticCalculator(one).task.name == task.name


def test_results_are_written_to_trajectories_and_files(random: Model, tmp_path: Path) -> None:
    atoms = crystal()
    atoms.calc = random.calculator(task="direct", conservative=True)
    atoms.get_forces()
    with Trajectory(tmp_path / "md.traj", "w", atoms) as trajectory:
        trajectory.write()
    write(tmp_path / "out.xyz", atoms)
    for file in ("md.traj", "out.xyz"):
        found = read(tmp_path / file)
        np.testing.assert_allclose(found.get_forces(), atoms.get_forces(), atol=1e-6)
        np.testing.assert_allclose(found.get_stress(), atoms.get_stress(), atol=1e-6)
        assert found.get_potential_energy() == pytest.approx(atoms.get_potential_energy(), abs=1e-6)


# --- what it has not learned -----------------------------------------------------------------------------------


def test_elements_never_seen_are_an_error(random: Model) -> None:
    atoms = molecule("SH2")
    atoms.calc = random.calculator(task="others")
    with pytest.raises(EutecticError, match="element S, never seen in training; expected only elements H, C, N, O"):
        atoms.calc.get_property("gap", atoms)
    neon = Atoms("Ne")
    neon.calc = EutecticCalculator(
        TrainedModel(random.trained.module, random.trained.tasks, "painn", {}, SMOOTH), task="direct"
    )
    with pytest.raises(EutecticError, match="element Ne has no reference"):
        neon.get_potential_energy()


def test_doubtful_structures_are_warned_of_once(random: Model, caplog: pytest.LogCaptureFixture) -> None:
    atoms = molecule("H2O")
    atoms.calc = random.calculator(task="others")

    def warnings_after(change: str) -> list[str]:
        caplog.clear()
        with caplog.at_level(logging.WARNING, "eutectic"):
            atoms.calc.get_property("gap", atoms)
            atoms.positions[2] += 1e-3
            atoms.calc.get_property("gap", atoms)
        return [record.getMessage() for record in caplog.records]

    assert warnings_after("a good structure") == []
    atoms.set_distance(0, 1, 0.4, fix=0)
    (said,) = warnings_after("two atoms close together")
    assert "atoms 1 and 0 are 0.40 Å apart" in said or "atoms 0 and 1 are 0.40 Å apart" in said
    atoms.set_distance(0, 1, 30.0, fix=0)
    (said,) = warnings_after("an atom far away")
    assert "atom 1 has no neighbour within the cutoff of 4.5 Å" in said
    assert warnings_after("the same again") == []


def test_a_force_far_beyond_training_is_warned_of(random: Model, caplog: pytest.LogCaptureFixture) -> None:
    task = random.trained.tasks[0]
    atoms = rattled(molecule("H2O"))
    for scale, n in ((10.0, 0), (1e-4, 1)):
        tiny = Task("tiny", "none", {"energy": ENERGY, **target("forces", scale)}, task.graph)
        module = MultitaskModel(random.trained.module.backbone, {"tiny": tiny.heads}).double()
        calc = EutecticCalculator(TrainedModel(module, (tiny,), "painn", {}, SMOOTH), conservative=True)
        caplog.clear()
        for _ in range(2):
            atoms.calc = calc
            atoms.positions[0] += 0.01
            atoms.get_forces()
        assert sum("times the RMS of the training forces" in r.getMessage() for r in caplog.records) == n


# --- what one does with it -------------------------------------------------------------------------------------


def heat(atoms: Atoms, temperature: float) -> None:
    """Draw momenta at a temperature, K."""
    noise = np.random.default_rng(3).normal(size=(len(atoms), 3))
    atoms.set_momenta(noise * np.sqrt(atoms.get_masses() * units.kB * temperature)[:, None])


def test_a_skin_changes_nothing_in_dynamics(random: Model) -> None:
    paths, searches = [], []
    for skin in (0.0, 0.4):
        atoms = rattled(bulk("Cu", cubic=True) * (2, 1, 1))
        atoms.calc = random.calculator(task="direct", conservative=True, dtype="float64", skin=skin)
        heat(atoms, 600)
        VelocityVerlet(atoms, timestep=2 * units.fs).run(30)
        paths.append(atoms.positions)
        searches.append(atoms.calc.neighbours.searches)
    np.testing.assert_allclose(paths[1], paths[0], atol=1e-9)
    assert searches[0] == 31
    assert searches[1] < 15
    moved = np.linalg.norm(paths[0] - rattled(bulk("Cu", cubic=True) * (2, 1, 1)).positions, axis=1).max()
    assert moved > 0.2


def total_energy_spread(calc: EutecticCalculator, step: float, time: float = 10.0) -> float:
    """Standard deviation of the total energy, eV, over `time` fs of dynamics."""
    atoms = rattled(molecule("CH3CH2OH"))
    atoms.calc = calc
    heat(atoms, 1000)
    dynamics = VelocityVerlet(atoms, timestep=step * units.fs)
    energies = []
    for _ in range(round(time / step)):
        dynamics.run(1)
        energies.append(atoms.get_total_energy())
    return float(np.std(energies))


def test_conservative_dynamics_conserve_energy(random: Model) -> None:
    conservative = random.calculator(task="direct", conservative=True, dtype="float64")
    coarse, fine = (total_energy_spread(conservative, step) for step in (0.5, 0.25))
    # The error of Verlet's method: four times smaller for half the step.
    assert coarse / fine == pytest.approx(4.0, rel=0.2)
    direct = random.calculator(task="direct", conservative=False, dtype="float64")
    assert total_energy_spread(direct, 0.25) > 100 * fine


def test_relaxation_and_vibrations_of_water(small: Model, tmp_path: Path) -> None:
    atoms = molecule("H2O")
    atoms.calc = small.calculator(task="molecules", conservative=True, dtype="float64")
    assert BFGS(atoms, logfile=None).run(fmax=1e-3, steps=30)
    # GFN2-xTB: 0.959 Å and 107.2°.
    assert atoms.get_distance(0, 1) == pytest.approx(0.959, abs=0.03)
    assert atoms.get_angle(1, 0, 2) == pytest.approx(107.2, abs=5)
    vibrations = Vibrations(atoms, name=str(tmp_path / "vibrations"), delta=2e-3)
    vibrations.run()
    frequencies = vibrations.get_frequencies()
    # Translations and rotations, then the bend and two stretches.
    assert abs(frequencies[:6]).max() < 60
    assert frequencies[6].real == pytest.approx(1650, rel=0.2)
    assert frequencies[7:].real == pytest.approx(np.array([3400, 3400]), rel=0.2)


def test_vibrations_are_those_of_the_energy(random: Model, tmp_path: Path) -> None:
    """ASE's vibrations, from forces, beside second differences of the energy."""
    atoms = molecule("H2O")
    atoms.calc = random.calculator(task="direct", conservative=True, dtype="float64")
    vibrations = Vibrations(atoms, name=str(tmp_path / "vibrations"), delta=1e-3)
    vibrations.run()
    found = vibrations.get_vibrations().get_hessian_2d()
    step, positions = 1e-3, atoms.positions.copy()

    def energy(i: int, j: int, a: float, b: float) -> float:
        moved = positions.copy().ravel()
        moved[i] += a
        moved[j] += b
        atoms.positions = moved.reshape(-1, 3)
        return float(atoms.get_potential_energy())

    expected = np.array(
        [
            [
                sum(a * b * energy(i, j, a * step, b * step) for a in (1, -1) for b in (1, -1)) / (4 * step**2)
                for j in range(9)
            ]
            for i in range(9)
        ]
    )
    assert abs(expected).max() > 1e-3
    np.testing.assert_allclose(found, expected, atol=0.02 * abs(expected).max())


def test_a_crystal_relaxes_with_its_cell(random: Model, small: Model) -> None:
    atoms = bulk("Cu", "fcc", a=3.5)
    atoms.calc = small.calculator(task="bulk", conservative=True, dtype="float64")
    assert BFGS(FrechetCellFilter(atoms), logfile=None).run(fmax=0.01, steps=40)
    assert abs(atoms.get_stress()).max() < 2e-3
    volumes = np.linspace(0.94, 1.06, 7)
    energies = []
    for scale in volumes:
        strained = atoms.copy()
        strained.set_cell(atoms.cell * scale ** (1 / 3), scale_atoms=True)
        strained.calc = atoms.calc
        energies.append(strained.get_potential_energy())
    assert np.argmin(energies) == 3


def test_a_band_finds_the_inversion_of_ammonia(small: Model) -> None:
    calc = small.calculator(task="molecules", conservative=True, dtype="float64")
    atoms = molecule("NH3")
    atoms.calc = calc
    assert BFGS(atoms, logfile=None).run(fmax=0.01, steps=30)
    other = atoms.copy()
    other.positions[:, 2] *= -1
    images = [atoms.copy(), atoms.copy(), other]
    for image in images:
        image.calc = calc
    band = NEB(images, allow_shared_calculator=True, method="aseneb")
    band.interpolate()
    assert BFGS(band, logfile=None).run(fmax=0.05, steps=40)
    energies = np.array([image.get_potential_energy() for image in images]) - atoms.get_potential_energy()
    assert energies.argmax() == 1
    np.testing.assert_allclose(energies, energies[::-1], atol=1e-3)
    # The planar molecule: all angles are 120°. Of GFN2-xTB, whose energies it has learned, the barrier is 0.2 eV.
    assert images[1].get_angle(1, 0, 2) == pytest.approx(120, abs=1)
    assert 0.02 < energies[1] < 0.5


def test_phonons_of_a_crystal(small: Model) -> None:
    phonopy = pytest.importorskip("phonopy", reason="phonopy is not installed")
    from phonopy.structure.atoms import PhonopyAtoms

    atoms = bulk("Cu", "fcc", a=3.6)
    atoms.calc = calc = small.calculator(task="bulk", conservative=True, dtype="float64")
    BFGS(FrechetCellFilter(atoms), logfile=None).run(fmax=1e-3, steps=40)
    cell = PhonopyAtoms(symbols=atoms.get_chemical_symbols(), cell=atoms.cell.array, positions=atoms.positions)
    phonons = phonopy.Phonopy(cell, 2 * np.eye(3), primitive_matrix="P")
    phonons.generate_displacements(distance=0.01)
    forces = []
    for displaced in phonons.supercells_with_displacements:
        supercell = Atoms(displaced.symbols, displaced.positions, cell=displaced.cell, pbc=True)
        supercell.calc = calc
        forces.append(supercell.get_forces())
    phonons.forces = forces
    phonons.produce_force_constants()
    phonons.symmetrize_force_constants()
    phonons.run_qpoints([[0, 0, 0], [0.5, 0.5, 0]])
    gamma, x = phonons.qpoints.frequencies
    assert abs(gamma).max() < 0.3
    assert 2 < x.max() < 15  # THz; 7.3 in copper
