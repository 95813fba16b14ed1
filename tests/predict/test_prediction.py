"""Predictions for structures without labels, from Python and from the command line."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from typer.testing import CliRunner

from eutectic import cli
from eutectic.atoms import EutecticError, Structure
from eutectic.checkpoints.model import TrainedModel, build_backbone, load_model, save_model
from eutectic.data.datasets import ase_files
from eutectic.data.store import Store
from eutectic.graph import GraphSettings, build_graph
from eutectic.models.heads import HeadSettings
from eutectic.models.multitask import MultitaskModel
from eutectic.predict.files import Read
from eutectic.predict.outputs import JSONWriter, XYZWriter, key_of, writing_predictions
from eutectic.predict.prediction import predict, predict_each, relative_energies
from eutectic.tasks import Normaliser, Sample, Target, TargetSettings, Task, fit_task
from eutectic.tasks.references import References
from eutectic.train.evaluation import evaluate

RUNNER = CliRunner()
GRAPH = GraphSettings(cutoff=4.0, max_neighbours=12)
DIRECT = {
    "energy": TargetSettings(head=HeadSettings(layers=1)),
    "forces": TargetSettings(head=HeadSettings(kind="direct_forces", layers=1)),
}
GRADIENT = {**DIRECT, "forces": TargetSettings(head=HeadSettings(kind="gradient_forces"))}


def _relative(name: str) -> Task:
    """As an imported task: no references."""
    scales = {"energy": 3.0, "forces": 0.5}
    return Task(
        name=name,
        level_of_theory="none",
        targets={p: Target(DIRECT[p], Normaliser(None, 0.0, s), 1.0) for p, s in scales.items()},
        graph=GRAPH,
    )


@pytest.fixture(scope="module")
def model(molecules: Store) -> TrainedModel:
    everything = np.arange(len(molecules))
    tasks = (
        fit_task("direct", molecules, everything, DIRECT, GRAPH),
        fit_task("gradient", molecules, everything, GRADIENT, GRAPH),
        _relative("relative"),
    )
    torch.manual_seed(0)
    settings = {"width": 16, "layers": 1, "cutoff": 4.0}
    backbone, _ = build_backbone("painn", settings)
    module = MultitaskModel(backbone, {task.name: task.heads for task in tasks}).double().eval()
    return TrainedModel(module, tasks, "painn", settings, GRAPH, {"energies": "relative: by their provenance"})


@pytest.mark.parametrize("name", ["direct", "gradient"])
def test_predictions_have_the_errors_that_evaluation_finds(model: TrainedModel, molecules: Store, name: str) -> None:
    index = [task.name for task in model.tasks].index(name)
    task = model.tasks[index]
    rows = [molecules[i] for i in range(20)]
    items = [Sample(index, build_graph(r.structure, task.graph), task.normalised_labels(r)) for r in rows]
    errors = evaluate(model.module, model.tasks, items)[name]
    predictions = predict(model, name, [row.structure for row in rows], batch_size=7)
    for prop in ("energy", "forces"):
        mine = np.concatenate([np.ravel(p[prop] - row.labels[prop]) for p, row in zip(predictions, rows, strict=True)])
        assert np.abs(mine).mean() == pytest.approx(errors[prop].mae, rel=1e-9)


def test_mixed_sizes_keep_their_order(model: TrainedModel) -> None:
    structures = [Structure.from_ase(molecule(m)) for m in ("CH3CH2OH", "H2O", "CH3OH", "OH", "C2H6")]
    together = predict(model, "relative", structures, batch_size=3)
    for structure, prediction in zip(structures, together, strict=True):
        alone = predict(model, "relative", [structure])[0]
        assert prediction["energy"].shape == ()
        assert prediction["forces"].shape == (len(structure), 3)
        for name, value in alone.items():
            assert value.dtype == np.float64
            np.testing.assert_allclose(prediction[name], value, rtol=1e-10, atol=1e-12)
    assert predict(model, "relative", []) == []


def test_normalised_values_have_neither_scale_nor_references(model: TrainedModel) -> None:
    water = Structure.from_ase(molecule("H2O"))
    for task in model.tasks:
        bare, physical = predict(model, task.name, [water], normalised=True)[0], predict(model, task.name, [water])[0]
        for name, target in task.targets.items():
            np.testing.assert_allclose(physical[name], target.normaliser.denormalise(bare[name], water.numbers))


def test_conservative_forces_and_stress_are_slopes_of_the_energy(model: TrainedModel) -> None:
    copper = bulk("Cu", cubic=True)
    copper.rattle(0.05, seed=1)

    def energy(atoms: Atoms) -> float:
        return float(predict(model, "relative", [Structure.from_ase(atoms)])[0]["energy"])

    found = predict(model, "relative", [Structure.from_ase(copper)], conservative=True)[0]
    h = 1e-5
    moved = [copper.copy() for _ in range(2)]
    for atoms, sign in zip(moved, (1, -1), strict=True):
        atoms.positions[1, 2] += sign * h
    slope = (energy(moved[0]) - energy(moved[1])) / (2 * h)
    assert found["forces"][1, 2] == pytest.approx(-slope, rel=1e-4, abs=1e-7)
    strained = [copper.copy() for _ in range(2)]
    for atoms, sign in zip(strained, (1, -1), strict=True):
        atoms.set_cell(copper.cell.array @ (np.eye(3) + sign * h * np.diag([1, 0, 0])), scale_atoms=True)
    slope = (energy(strained[0]) - energy(strained[1])) / (2 * h * copper.get_volume())
    # Tension is positive, as in ASE.
    assert found["stress"][0, 0] == pytest.approx(slope, rel=1e-4, abs=1e-8)
    water = predict(model, "relative", [Structure.from_ase(molecule("H2O"))], conservative=True)[0]
    assert "stress" not in water


def test_the_mode_of_the_model_is_left_as_it_was(model: TrainedModel) -> None:
    model.module.train()
    predict(model, "relative", [Structure.from_ase(molecule("H2O"))])
    assert model.module.training
    model.module.eval()


def test_errors_have_four_parts(model: TrainedModel) -> None:
    water = Structure.from_ase(molecule("H2O"))
    with pytest.raises(EutecticError, match="did you mean 'gradient'") as caught:
        predict(model, "Gradent", [water])
    assert "direct, gradient, relative" in caught.value.expected
    with pytest.raises(EutecticError, match="name one of these"):
        predict(model, "xyz", [water])
    with pytest.raises(EutecticError, match=r"direct, structure 1, .* element Cu has no reference"):
        predict(model, "direct", [water, Structure.from_ase(bulk("Cu"))])
    same = Structure(numbers=np.array([1, 1]), positions=np.zeros((2, 3)))
    with pytest.raises(EutecticError, match=r"structure 1: .*same position"):
        predict(model, "relative", [water, same])
    for batch_size in (0, -1):
        with pytest.raises(EutecticError, match="at least one structure per batch"):
            predict(model, "relative", [water], batch_size=batch_size)


def test_one_after_the_other_goes_on_after_a_bad_structure(model: TrainedModel) -> None:
    water, copper = Structure.from_ase(molecule("H2O")), Structure.from_ase(bulk("Cu"))
    same = Structure(numbers=np.array([1, 1]), positions=np.zeros((2, 3)))
    given = [water, copper, same, *[water] * 30, copper]
    (expected,) = predict(model, "direct", [water])
    read = 0

    def structures() -> Iterator[Structure]:
        nonlocal read
        for structure in given:
            read += 1
            yield structure

    done: list[int] = []
    found = predict_each(model, "direct", structures(), batch_size=1, on_done=done.append)
    first = next(found)
    assert read < len(given)  # not all at once
    for index, one in enumerate([first, *found]):
        if index in (1, 2, len(given) - 1):
            assert isinstance(one, EutecticError)
            assert f"structure {index}" in one.where
        else:
            assert not isinstance(one, EutecticError)
            np.testing.assert_allclose(one["energy"], expected["energy"], rtol=1e-12)
    assert sum(done) == len(given)


def test_a_prediction_that_is_not_finite_is_an_error(model: TrainedModel) -> None:
    broken = copy.deepcopy(model)
    next(broken.module.parameters()).data.fill_(float("nan"))
    with pytest.raises(EutecticError, match=r"structure 0, \w+: \w+ of task relative predicted as nan"):
        predict(broken, "relative", [Structure.from_ase(molecule("H2O"))])


def test_energies_without_references_are_called_relative(model: TrainedModel) -> None:
    assert relative_energies(model, "direct") is None
    assert relative_energies(model, "relative") == "relative: by their provenance"
    assert isinstance(model.tasks[0].targets["energy"].normaliser.references, References)


def test_predictions_are_never_named_like_labels() -> None:
    assert key_of("oc20", "energy") == "oc20_energy"
    labels = {prefix + "energy" for prefix in ase_files.PREFIXES}
    assert not {key_of(task, "energy") for task in ("REF", "dft", "oc20")} & labels


# --- far from home ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cells", [10, 1000, 50_000])
def test_forces_of_atoms_far_from_their_cell_are_those_at_home(cells: int) -> None:
    small = load_model("eutectic-small")
    atoms = bulk("Cu", cubic=True)
    atoms.numbers[0] = 79
    atoms.rattle(0.1, seed=1)
    home = Structure.from_ase(atoms)
    jumps = np.random.default_rng(0).integers(-cells, cells + 1, (4, 3))
    far = replace(home, positions=home.positions + jumps @ home.cell)
    together = replace(home, positions=home.positions + cells * home.cell[0])
    for conservative in (False, True):
        expected, *found = predict(small, "metal_slabs", [home, far, together], conservative=conservative)
        for one in found:
            np.testing.assert_allclose(one["forces"], expected["forces"], atol=1e-5)
            np.testing.assert_allclose(one["energy"], expected["energy"], atol=1e-5)


@pytest.mark.parametrize("away", [25.0, 1e3, 1e6, 5e7])
def test_forces_of_a_molecule_far_from_the_origin_are_those_at_home(away: float) -> None:
    small = load_model("eutectic-small")
    atoms = molecule("CH3CH2OH")
    atoms.rattle(0.05, seed=1)
    home = Structure.from_ase(atoms)
    far = replace(home, positions=home.positions + away * np.array([0.6, -1.0, 0.3]))
    boxed = replace(home, positions=(home.positions - 0.3) % 900, cell=900 * np.eye(3), pbc=np.ones(3, dtype=bool))
    apart = Structure(
        numbers=np.concatenate([home.numbers] * 2),
        positions=np.concatenate([home.positions, home.positions + min(away, 9e3) * np.array([[0, 0.6, 0.8]])]),
    )
    expected, *found, two = predict(small, "molecules", [home, far, boxed, apart])
    for one in found:
        np.testing.assert_allclose(one["forces"], expected["forces"], atol=1e-5)
    # Two parts beside each other are wider than one, and coarser.
    np.testing.assert_allclose(two["forces"], np.concatenate([expected["forces"]] * 2), atol=3e-5)


@pytest.mark.parametrize("away", [1e3, 1e6])
def test_another_backbone_predicts_far_structures_as_at_home(model: TrainedModel, away: float) -> None:
    single = replace(model, module=copy.deepcopy(model.module).float())
    atoms = molecule("CH3CH2OH")
    atoms.rattle(0.05, seed=1)
    home = Structure.from_ase(atoms)
    far = replace(home, positions=home.positions + away)
    for name in ("direct", "gradient"):
        expected, found = predict(single, name, [home, far])
        np.testing.assert_allclose(found["forces"], expected["forces"], atol=1e-5)


# --- files -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(model: TrainedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prediction")
    save_model(folder / "model", model)
    labelled = molecule("CH3OH")
    labelled.info |= {"REF_energy": -3.5, "name": "methanol"}
    labelled.calc = SinglePointCalculator(labelled, energy=-3.0, forces=np.ones((len(labelled), 3)))
    write(folder / "in.xyz", [molecule("H2O"), labelled], format="extxyz")
    return folder


def test_files_hold_vectors_tensors_and_classes(tmp_path: Path) -> None:
    names = ("charges", "dipole", "stress", "is_metal")
    targets = {n: Target(TargetSettings(), Normaliser(None, 0.0, 2.0), 1.0) for n in names}
    task = Task("any", "none", targets, GRAPH)
    torch.manual_seed(0)
    settings = {"width": 8, "layers": 1, "cutoff": 4.0}
    backbone, _ = build_backbone("painn", settings)
    module = MultitaskModel(backbone, {"any": task.heads}).double().eval()
    trained = TrainedModel(module, (task,), "painn", settings, GRAPH)
    copper = bulk("Cu", cubic=True)
    copper.rattle(0.1, seed=1)
    atoms = [molecule("H2O"), copper]
    made = predict(trained, "any", [Structure.from_ase(a) for a in atoms])
    assert [set(p) for p in made] == [set(names) - {"stress"}, set(names)]
    assert made[1]["is_metal"].sum() == pytest.approx(1.0)
    bare = predict(trained, "any", [Structure.from_ase(copper)], normalised=True)[0]["is_metal"]
    np.testing.assert_allclose(made[1]["is_metal"], np.exp(bare) / np.exp(bare).sum())

    text = StringIO()
    json_writer = JSONWriter(text.write, task, list(task.heads))
    with writing_predictions(tmp_path / "out.xyz") as stream:
        for writer in (XYZWriter(stream, task), json_writer):
            for index, (one, prediction) in enumerate(zip(atoms, made, strict=True)):
                writer.add(Read(index, "", atoms=one), prediction)
    json_writer.close(complete=True)
    for written, expected in zip(read(tmp_path / "out.xyz", ":"), made, strict=True):
        for name, value in expected.items():
            found = written.arrays if name == "charges" else written.info
            np.testing.assert_allclose(found[f"any_{name}"], value, rtol=1e-6, atol=1e-7)
    content = json.loads(text.getvalue())
    assert content["units"] == {
        "charges": "e",
        "dipole": "e Å",
        "stress": "eV/Å³",
        "is_metal": "probability of each class",
    }
    for found, expected in zip(content["predictions"], made, strict=True):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value)


def _run(folder: Path, *arguments: str) -> str:
    result = RUNNER.invoke(
        cli.app, ["predict", str(folder / "model"), str(folder / "in.xyz"), "--task", "relative", *arguments]
    )
    assert result.exit_code == 0, result.output
    return result.stdout


def _expected(model: TrainedModel, folder: Path, **options: bool) -> list[dict[str, np.ndarray]]:
    structures = [Structure.from_ase(atoms) for atoms in read(folder / "in.xyz", ":")]
    return predict(model, "relative", structures, **options)


def test_the_command_writes_beside_labels_and_not_over_them(model: TrainedModel, folder: Path) -> None:
    said = " ".join(_run(folder, "-o", str(folder / "out.xyz")).split())
    assert "2 structures, task relative" in said
    assert "relative: by their provenance" in said
    written = read(folder / "out.xyz", ":")
    for atoms, expected in zip(written, _expected(model, folder), strict=True):
        assert isinstance(atoms, Atoms)
        assert atoms.info["relative_energy"] == pytest.approx(float(expected["energy"]), rel=1e-5)
        np.testing.assert_allclose(atoms.arrays["relative_forces"], expected["forces"], rtol=1e-5, atol=1e-6)
    labelled = written[1]
    assert labelled.info["REF_energy"] == -3.5
    assert labelled.info["name"] == "methanol"
    assert labelled.get_potential_energy() == -3.0
    assert (labelled.get_forces() == 1).all()


def test_the_command_speaks_json(model: TrainedModel, folder: Path) -> None:
    made = json.loads(_run(folder, "--json"))
    assert made["task"] == "relative"
    assert made["units"] == {"energy": "eV", "forces": "eV/Å"}
    assert made["energies"] == "relative: by their provenance"
    for got, expected in zip(made["predictions"], _expected(model, folder), strict=True):
        np.testing.assert_allclose(got["energy"], expected["energy"], rtol=1e-5)
        np.testing.assert_allclose(got["forces"], expected["forces"], rtol=1e-5, atol=1e-6)
    bare = json.loads(_run(folder, "--json", "--normalised"))
    assert bare["units"] == {"energy": "normalised", "forces": "normalised"}
    assert bare["predictions"][0]["energy"] == pytest.approx(made["predictions"][0]["energy"] / 3.0)


def test_the_command_needs_somewhere_to_write_and_a_file(folder: Path) -> None:
    start = ["predict", str(folder / "model")]
    for arguments, says in (
        ([str(folder / "in.xyz"), "--task", "relative"], "no output for the predictions"),
        ([str(folder), "--task", "relative", "--json"], "one file"),
        ([str(folder / "absent.xyz"), "--task", "relative", "--json"], "does not exist"),
        ([str(folder / "in.xyz"), "--task", "relativ", "--json"], "did you mean 'relative'"),
    ):
        result = RUNNER.invoke(cli.app, start + arguments)
        assert isinstance(result.exception, EutecticError)
        assert says in str(result.exception)


@pytest.mark.parametrize("command", ["predict", "import-jmp"])
def test_help_shows_examples(command: str) -> None:
    result = RUNNER.invoke(cli.app, [command, "--help"])
    assert result.exit_code == 0
    assert f"eutectic {command}" in result.output
