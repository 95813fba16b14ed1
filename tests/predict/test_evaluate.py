"""Errors of a trained model on labelled structures."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase.io import write
from typer.testing import CliRunner

import eutectic
from eutectic.atoms import EutecticError
from eutectic.cli.app import app
from eutectic.data.store import Store, write_store
from eutectic.train.finetune import finetune
from eutectic.train.settings import FinetuneSettings


@pytest.fixture(scope="module")
def run(molecules: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluated")
    values: dict[str, Any] = {
        "data": {"store": str(molecules.path), "split": "random", "train": 40, "validation": 8, "test": 20},
        "targets": {"energy": {}, "forces": {}},
        "start": "scratch",
        "backbone": {"name": "painn", "settings": {"width": 16, "layers": 1, "cutoff": 4.0, "edge_width": 8}},
        "graph": {"cutoff": 4.0},
        "train": {"steps": 20, "batch_size": 8, "threads": 1, "accelerator": "cpu"},
        "optimiser": {"learning_rate": 1e-2},
    }
    finetune(FinetuneSettings.model_validate(values), folder)
    return folder


def test_errors_are_those_of_the_predictions(run: Path, molecules: Store) -> None:
    result = eutectic.evaluate(run, str(molecules.path), quiet=True, device="cpu")
    found = result.sets[str(molecules.path)]
    model, rows = eutectic.load(run, device="cpu"), list(molecules)
    predicted = model.predict([row.structure for row in rows])
    for name in ("energy", "forces"):
        wrong = np.concatenate([np.ravel(p[name] - row.labels[name]) for p, row in zip(predicted, rows, strict=True)])
        assert found[name].mae == pytest.approx(1000 * np.abs(wrong).mean(), rel=1e-4)
        assert found[name].rmse == pytest.approx(1000 * np.sqrt((wrong**2).mean()), rel=1e-4)
        assert found[name].bias == pytest.approx(1000 * wrong.mean(), abs=1e-3 * found[name].mae)
        assert found[name].structures == len(rows)
    by_element: dict[int, list[float]] = {}
    for p, row in zip(predicted, rows, strict=True):
        for z, one in zip(row.structure.numbers, p["forces"] - row.labels["forces"], strict=True):
            by_element.setdefault(int(z), []).extend(np.abs(one))
    assert found["forces"].by_element["H"] == pytest.approx(1000 * np.mean(by_element[1]), rel=1e-4)
    assert len(found["energy"].by_size) > 1
    assert any("trained on 40 of these 96 structures" in note for note in result.notes)


def test_the_test_part_gives_the_test_error(run: Path, molecules: Store) -> None:
    errors = json.loads((run / "result.json").read_text())["test_errors"]
    shown = eutectic.load(run, device="cpu").trained.provenance["learned_rows"]
    assert shown
    store = Store(molecules.path)
    from eutectic.predict.evaluation import evaluate_model
    from eutectic.train.finetune_preparation import split_of
    from eutectic.train.settings import parse

    stored = json.loads((run / "settings.json").read_text())
    settings = parse(FinetuneSettings, {k: v for k, v in stored.items() if k in FinetuneSettings.model_fields}, "run")
    rows = split_of(store, settings).test
    result = evaluate_model(eutectic.load(run, device="cpu").trained, {"test": (store, rows)})
    assert {n: e.mae for n, e in result.sets["test"].items()} == pytest.approx(errors, rel=1e-4)
    assert result.notes == []


def test_conservative_forces_are_compared(run: Path, molecules: Store) -> None:
    chosen = [molecules[i] for i in range(6)]
    model = eutectic.load(run, device="cpu")
    from eutectic.predict.evaluation import evaluate_model

    result = evaluate_model(
        model.trained, {"some": (molecules, np.arange(6))}, conservative=True, properties=["forces"]
    )
    predicted = model.predict([row.structure for row in chosen], conservative=True)
    wrong = np.concatenate(
        [np.ravel(p["forces"] - row.labels["forces"]) for p, row in zip(predicted, chosen, strict=True)]
    )
    assert list(result.sets["some"]) == ["forces"]
    assert result.sets["some"]["forces"].mae == pytest.approx(1000 * np.abs(wrong).mean(), rel=1e-4)


def test_structures_with_unseen_elements_are_left_out_and_said(run: Path, molecules: Store, tmp_path: Path) -> None:
    rows = [molecules[i] for i in range(5)]
    strange = replace(rows[2].structure, numbers=np.full(len(rows[2].structure), 36))
    rows[2] = replace(rows[2], structure=strange)
    write_store(tmp_path / "strange", molecules.card, rows)
    result = eutectic.evaluate(run, tmp_path / "strange", quiet=True, device="cpu")
    number, why = result.left_out[str(tmp_path / "strange")]
    assert number == 1
    assert "Kr" in why
    assert result.sets[str(tmp_path / "strange")]["energy"].structures == 4
    write_store(tmp_path / "all", molecules.card, [rows[2]])
    with pytest.raises(EutecticError, match="Kr"):
        eutectic.evaluate(run, tmp_path / "all", quiet=True, device="cpu")


def test_the_command(run: Path, molecules: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EUTECTIC_DATA", str(tmp_path / "data"))
    frames = []
    for row in (molecules[i] for i in range(12)):
        atoms = row.structure.to_ase()
        atoms.info["E"] = float(row.labels["energy"])
        atoms.arrays["F"] = row.labels["forces"]
        frames.append(atoms)
    write(tmp_path / "a.xyz", frames)
    keys = ["--key", "energy=E", "--key", "forces=F"]
    page = tmp_path / "page.html"
    done = CliRunner().invoke(
        app, ["evaluate", str(run), str(tmp_path / "a.xyz"), str(molecules.path), "-o", str(page), *keys, "--json"]
    )
    assert done.exit_code == 0, done.output
    values = json.loads(done.stdout)
    assert [*values["sets"]] == [str(tmp_path / "a.xyz"), str(molecules.path)]
    # Rounding of the file.
    expected = eutectic.evaluate(run, str(molecules.path), quiet=True, device="cpu").sets[str(molecules.path)]
    assert values["sets"][str(molecules.path)]["energy"]["mae"] == pytest.approx(expected["energy"].mae, rel=1e-4)
    text = page.read_text()
    assert text.count("<svg") >= 4
    assert "by element" in text
    done = CliRunner().invoke(app, ["evaluate", str(run), str(tmp_path / "a.xyz"), *keys])
    assert done.exit_code == 0, done.output
    assert "mean error" in done.output
    assert "levels of theory" not in done.output


def test_what_cannot_be_compared(run: Path, molecules: Store, tmp_path: Path) -> None:
    with pytest.raises(EutecticError, match="gap, which it does not predict"):
        eutectic.evaluate(run, str(molecules.path), ["gap"], quiet=True)
    rows = [replace(molecules[0], labels={"electronic_spatial_extent": np.array(1.0)})]
    write_store(tmp_path / "none", molecules.card, rows)
    with pytest.raises(EutecticError, match="no label of energy, forces; its labels: electronic_spatial_extent"):
        eutectic.evaluate(run, tmp_path / "none", quiet=True)
