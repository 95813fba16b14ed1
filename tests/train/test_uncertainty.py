"""Uncertainties from the last layer: the formula, their calibration, and where they are kept."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase.io import read, write
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import eutectic
from eutectic.atoms import EutecticError, Structure
from eutectic.checkpoints.description import UNCERTAINTY, seal_model
from eutectic.checkpoints.inspection import compare_models, inspect_model
from eutectic.checkpoints.model import load_model, save_model
from eutectic.cli.app import app
from eutectic.data.store import Store
from eutectic.predict.evaluation import compare_uncertainty
from eutectic.predict.selection import spread_out
from eutectic.testing.structures import random_rotation, rotated
from eutectic.train.finetune import finetune
from eutectic.train.settings import FinetuneSettings
from eutectic.train.uncertainty import fit

RUNNER = CliRunner()


def _settings(store: Store, **more: Any) -> FinetuneSettings:
    values: dict[str, Any] = {
        "data": {"store": str(store.path), "split": "random", "train": 50, "validation": 24, "test": 10},
        "targets": {"energy": {}, "forces": {}},
        "start": "scratch",
        "name": "toy",
        "backbone": {"name": "painn", "settings": {"width": 16, "layers": 1, "cutoff": 4.0, "edge_width": 8}},
        "graph": {"cutoff": 4.0},
        "train": {"steps": 30, "batch_size": 8, "threads": 1, "accelerator": "cpu"},
        "optimiser": {"learning_rate": 1e-2},
    }
    return FinetuneSettings.model_validate({**values, **more})


@pytest.fixture(scope="module")
def run(molecules: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uncertain")
    finetune(_settings(molecules), folder)
    return folder


def _known(n: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features of training and other structures, and errors of a ridge regression in these features."""
    rng = np.random.default_rng(seed)
    width, noise = 12, 0.3
    scales = np.logspace(0, -2, width)
    features, held_out = (rng.normal(size=(m, width)) * scales for m in (n, 4000))
    weights = rng.normal(size=width)
    labels = features @ weights + noise * rng.normal(size=n)
    fitted = np.linalg.solve(features.T @ features + noise**2 * np.eye(width), features.T @ labels)
    return features, held_out, held_out @ (fitted - weights)


def test_errors_of_a_linear_model_are_covered_as_its_posterior_says() -> None:
    within = []
    for seed in range(30):
        features, held_out, errors = _known(40, seed)
        made = fit(features, held_out, errors)
        assert made is not None
        sigma = made.of(held_out)
        # Worked out as the formula is written.
        gram = features.T @ features + made.facts["ridge"] * np.eye(12)
        expected = made.alpha * np.sqrt(np.einsum("ni,ij,nj->n", held_out, np.linalg.inv(gram), held_out))
        assert sigma == pytest.approx(expected, rel=1e-6)
        assert np.mean((errors / sigma) ** 2) == pytest.approx(1)  # the condition for the best α
        within.append(np.mean(np.abs(errors) < sigma))
    assert np.mean(within) == pytest.approx(0.68, abs=0.05)


def test_structures_unlike_the_training_ones_are_uncertain() -> None:
    features, held_out, errors = _known(40, 0)
    features[:, 3] = 0.0  # never seen
    made = fit(features, held_out, errors)
    assert made is not None
    seen, unseen = np.eye(12)[0], np.eye(12)[3]
    assert made.of(unseen[None])[0] > 3 * made.of(seen[None])[0]


@pytest.mark.parametrize("case", ["no errors", "no features", "not finite"])
def test_what_tells_nothing_gives_no_uncertainty(case: str) -> None:
    features, held_out, errors = _known(20, 0)
    if case == "no errors":
        errors = 0 * errors
    elif case == "no features":
        features = 0 * features
    else:
        errors[0] = np.nan
    assert fit(features, held_out, errors) is None


def test_predictions_and_the_calculator_have_it(run: Path, molecules: Store) -> None:
    model = eutectic.load(run, device="cpu")
    structures = [molecules[i].structure for i in range(12)]
    together = model.predict(structures)
    (known,) = model.trained.uncertainties["toy"].values()
    for structure, one in zip(structures, together, strict=True):
        assert one["energy_uncertainty"] > 0
        assert model.predict(structure)["energy_uncertainty"] == pytest.approx(one["energy_uncertainty"], rel=1e-4)
        turned = rotated(structure, random_rotation(np.random.default_rng(1)))
        assert model.predict(turned)["energy_uncertainty"] == pytest.approx(one["energy_uncertainty"], rel=1e-3)
        order = np.random.default_rng(2).permutation(len(structure))
        mixed = Structure(numbers=structure.numbers[order], positions=structure.positions[order])
        assert model.predict(mixed)["energy_uncertainty"] == pytest.approx(one["energy_uncertainty"], rel=1e-3)
    atoms = structures[3].to_ase()
    atoms.calc = model.calculator(dtype="float64")
    assert "energy_uncertainty" in atoms.calc.implemented_properties
    assert atoms.calc.get_property("energy_uncertainty", atoms) == pytest.approx(
        float(together[3]["energy_uncertainty"]), rel=1e-4
    )
    assert 0.1 < np.median([one["energy_uncertainty"] for one in together]) / known.typical < 10


def test_the_last_features_give_the_prediction(run: Path, molecules: Store) -> None:
    from eutectic.graph import build_graph
    from eutectic.tasks import Sample, make_batch

    trained = load_model(run)
    (task,) = trained.tasks
    samples = [Sample(0, build_graph(molecules[i].structure, task.graph), {}) for i in range(6)]
    batch = make_batch(samples, [task])
    with torch.no_grad():
        values = trained.module(batch.graph, batch.parts, last_features=["energy", "forces"])["toy"]
    head = trained.module.heads["toy"]["energy"]  # type: ignore[index]
    torch.testing.assert_close(values["energy_last_features"] @ head.perceptron[-1].weight[0], values["energy"])
    assert "forces_last_features" not in values


def test_it_survives_saving_and_is_checked(run: Path, molecules: Store, tmp_path: Path) -> None:
    trained = load_model(run)
    save_model(tmp_path / "copy", trained)
    copy = load_model(tmp_path / "copy")
    before, after = (one.uncertainties["toy"]["energy"] for one in (trained, copy))
    assert torch.equal(before.factor, after.factor)
    assert before.facts == after.facts
    path = tmp_path / "copy" / UNCERTAINTY
    tensors = load_file(str(path))
    save_file({key: 2 * value for key, value in tensors.items()}, str(path))
    with pytest.raises(EutecticError, match="SHA-256"):
        load_model(tmp_path / "copy")
    # Sealed again on purpose, but without its facts.
    seal_model(tmp_path / "copy")
    with pytest.raises(EutecticError, match="cannot be read"):
        load_model(tmp_path / "copy")
    path.unlink()
    with pytest.raises(EutecticError, match="not readable"):
        load_model(tmp_path / "copy")
    seal_model(tmp_path / "copy")
    assert not load_model(tmp_path / "copy").uncertainties


@pytest.mark.parametrize("wrong", ["width", "task", "finite", "facts"])
def test_uncertainties_that_do_not_fit_are_refused(run: Path, tmp_path: Path, wrong: str) -> None:
    trained = load_model(run)
    one = trained.uncertainties["toy"]["energy"]
    name, factor, facts = "toy", one.factor.clone(), dict(one.facts)
    if wrong == "width":
        factor = factor[:3, :3]
    elif wrong == "task":
        name = "another"
    elif wrong == "finite":
        factor[0, 0] = float("nan")
    else:
        facts["alpha"] = "x"
    save_model(
        tmp_path / "m", replace(trained, uncertainties={name: {"energy": replace(one, factor=factor, facts=facts)}})
    )
    with pytest.raises(EutecticError, match="cannot be read"):
        load_model(tmp_path / "m")


def test_files_of_predictions_have_it(run: Path, molecules: Store, tmp_path: Path) -> None:
    write(tmp_path / "in.xyz", [molecules[i].structure.to_ase() for i in range(5)])
    expected = [
        float(p["energy_uncertainty"]) for p in eutectic.load(run, device="cpu").predict(read(tmp_path / "in.xyz", ":"))
    ]
    for name in ("out.xyz", "out.parquet", "out.json"):
        result = RUNNER.invoke(app, ["predict", str(run), str(tmp_path / "in.xyz"), "-o", str(tmp_path / name)])
        assert result.exit_code == 0, result.output
    assert [a.info["toy_energy_uncertainty"] for a in read(tmp_path / "out.xyz", ":")] == pytest.approx(
        expected, rel=1e-4
    )
    import pyarrow.parquet as pq

    table = pq.read_table(tmp_path / "out.parquet")
    assert table["energy_uncertainty"].to_pylist() == pytest.approx(expected, rel=1e-4)
    assert table.schema.field("energy_uncertainty").metadata == {b"unit": b"eV"}
    values = json.loads((tmp_path / "out.json").read_text())
    assert values["units"]["energy_uncertainty"] == "eV"
    assert [one["energy_uncertainty"] for one in values["predictions"]] == pytest.approx(expected, rel=1e-4)


def test_evaluation_compares_it_with_the_errors(run: Path, molecules: Store, tmp_path: Path) -> None:
    result = eutectic.evaluate(run, str(molecules.path), quiet=True, device="cpu", report=tmp_path / "page.html")
    found = result.sets[str(molecules.path)]
    doubt = found["energy"].uncertainty
    assert doubt is not None
    assert found["forces"].uncertainty is None
    model = eutectic.load(run, device="cpu")
    predicted = model.predict([row.structure for row in molecules])
    errors = np.array([float(p["energy"] - row.labels["energy"]) for p, row in zip(predicted, molecules, strict=True)])
    sigma = np.array([float(p["energy_uncertainty"]) for p in predicted])
    assert doubt.coverage["0.68"] == pytest.approx(np.mean(np.abs(errors) < 0.9945 * sigma), abs=0.02)
    assert doubt.median == pytest.approx(1000 * np.median(sigma), rel=1e-3)
    assert doubt.ratio == pytest.approx(np.sqrt(np.mean((errors / sigma) ** 2)), rel=1e-3)
    page = (tmp_path / "page.html").read_text()
    assert "Uncertainties" in page
    assert "if calibrated" in page


def test_a_perfect_uncertainty_is_found_to_be_one() -> None:
    rng = np.random.default_rng(0)
    sigma = np.exp(rng.normal(size=20000))
    found = compare_uncertainty(sigma * rng.normal(size=20000), sigma)
    assert found.coverage["0.68"] == pytest.approx(0.68, abs=0.01)
    assert found.coverage["0.95"] == pytest.approx(0.95, abs=0.01)
    assert found.ratio == pytest.approx(1, abs=0.02)
    for predicted, observed in found.bins:
        assert observed == pytest.approx(predicted, rel=0.1)
    same = compare_uncertainty(np.ones(3), np.ones(3))
    assert same.rank_correlation is None


def test_it_can_be_left_out_and_made_later(molecules: Store, run: Path, tmp_path: Path) -> None:
    finetune(_settings(molecules, uncertainty=False), tmp_path / "run")
    folder = tmp_path / "run" / "model"
    assert not (folder / UNCERTAINTY).exists()
    assert "energy_uncertainty" not in eutectic.load(folder, device="cpu").predict(molecules[0].structure)
    write(tmp_path / "pool.xyz", molecules[0].structure.to_ase())
    refused = RUNNER.invoke(app, ["select", str(folder), str(tmp_path / "pool.xyz"), "-o", str(tmp_path / "c.xyz")])
    assert isinstance(refused.exception, EutecticError)
    assert "eutectic calibrate" in str(refused.exception)
    result = RUNNER.invoke(app, ["calibrate", str(tmp_path / "run"), str(molecules.path), "--split", "random"])
    assert result.exit_code == 0, result.output
    assert "typical uncertainty" in result.output
    made, at_the_end = (load_model(one).uncertainties["toy"]["energy"] for one in (folder, run))
    assert made.facts["trained_on"] == at_the_end.facts["trained_on"] == 50
    assert 0.2 < made.typical / at_the_end.typical < 5
    facts = inspect_model(folder)
    assert facts["uncertainties"]["toy"]["energy"]["calibrated_on"] == made.facts["calibrated_on"]
    differing = compare_models(folder, run)["facts"]
    assert any(name.startswith("uncertainties.toy.energy.") for name in differing)
    assert "## Uncertainties" in (folder / "README.md").read_text()


def test_a_model_by_name_needs_a_folder(molecules: Store) -> None:
    result = RUNNER.invoke(app, ["calibrate", "eutectic-small", str(molecules.path), "--task", "molecules"])
    assert isinstance(result.exception, EutecticError)
    assert "--out" in str(result.exception)


def test_select_takes_uncertain_and_different_structures(run: Path, molecules: Store, tmp_path: Path) -> None:
    # The same structure three times, far from the training ones, among ordinary ones.
    odd = molecules[5].structure.to_ase()
    odd.positions *= 1.25
    write(tmp_path / "pool.xyz", [*(molecules[i].structure.to_ase() for i in range(20)), odd, odd, odd])
    result = RUNNER.invoke(
        app, ["select", str(run), str(tmp_path / "pool.xyz"), "-n", "6", "-o", str(tmp_path / "chosen.xyz")]
    )
    assert result.exit_code == 0, result.output
    chosen = read(tmp_path / "chosen.xyz", ":")
    assert [a.info["selected"] for a in chosen] == [1, 2, 3, 4, 5, 6]
    sigma = [float(p["energy_uncertainty"]) for p in eutectic.load(run, device="cpu").predict(chosen)]
    assert [a.info["toy_energy_uncertainty"] for a in chosen] == pytest.approx(sigma, rel=1e-4)
    left = [a.info["toy_energy_uncertainty_left"] for a in chosen]
    assert left[0] == pytest.approx(sigma[0], rel=1e-4)
    assert all(one <= two * (1 + 1e-6) for one, two in zip(left, sigma, strict=True))
    assert len({a.info["index_in_pool"] for a in chosen}) == 6


def test_the_second_of_two_equal_structures_is_worth_less() -> None:
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(30, 5))
    directions[7] = directions[8] = 10 * directions[0]
    order, left = spread_out(directions, np.ones(30), noise=1.0, count=30)
    assert order[0] == 7
    assert sorted(order) == list(range(30))
    # By the posterior given all labels before, worked out with the whole matrix.
    for k, i in enumerate(order[:6]):
        before = directions[order[:k]]
        gain = np.linalg.solve(before @ before.T + np.eye(k), before @ directions[i])
        expected = directions[i] @ directions[i] - gain @ (before @ directions[i])
        assert left[k] == pytest.approx(np.sqrt(expected), rel=1e-6)
    assert left[order.index(8)] < 1.5  # about that of the noise
