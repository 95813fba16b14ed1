"""Compiled models wherever predictions are made: files, lists, calculators; the model itself stays as it is."""

from __future__ import annotations

from functools import partialmethod
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.build import molecule
from ase.io import read, write
from typer.testing import CliRunner

import eutectic
from eutectic import cli
from eutectic.models.multitask import MultitaskModel
from eutectic.predict.model import Model

COMPILE = MultitaskModel.compile_predictions


@pytest.fixture(autouse=True)
def traced_only(unchecked_types: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without machine code, which takes half a minute."""
    torch._dynamo.reset()
    monkeypatch.setattr(MultitaskModel, "compile_predictions", partialmethod(COMPILE, backend="aot_eager"))


@pytest.fixture(scope="module")
def model() -> Model:
    return eutectic.load("eutectic-fast", device="cpu")


def test_lists_of_structures(model: Model) -> None:
    frames = [molecule(name) for name in ("H2O", "CH4", "C6H6")]
    expected = model.predict(frames, task="molecules", conservative=True)
    for _ in range(2):
        given = model.predict(frames, task="molecules", conservative=True, compile=True)
        for one, other in zip(given, expected, strict=True):
            np.testing.assert_allclose(one["forces"], other["forces"], atol=1e-4)
            np.testing.assert_allclose(one["energy"], other["energy"], atol=1e-4)
    assert model._compiled is not model.trained
    assert all(p.requires_grad for p in model.trained.module.parameters())
    assert model.trained.module._compiled_predictions is None


@pytest.mark.parametrize(("dtype", "closely"), [("float32", 1e-4), ("float64", 1e-10), ("bfloat16", 0.3)])
def test_a_calculator(model: Model, dtype: str, closely: float) -> None:
    options = {"task": "molecules", "conservative": True, "dtype": dtype}
    plain, compiled = (model.calculator(**options, compile=which) for which in (False, True))  # type: ignore[arg-type]
    atoms = molecule("CH3CH2OH")
    for _ in range(2):
        atoms.rattle(0.05, seed=0)
        expected, given = (calculator.get_forces(atoms) for calculator in (plain, compiled))
        np.testing.assert_allclose(given, expected, atol=closely)
        energies = [calculator.get_potential_energies(atoms) for calculator in (plain, compiled)]
        np.testing.assert_allclose(*energies, rtol=1e-6, atol=closely)


def test_a_file(tmp_path: Path) -> None:
    frames = [molecule(name) for name in ("H2O", "CH4", "C6H6", "NH3", "H2", "H2O2")]
    write(tmp_path / "in.xyz", frames)
    forces = []
    for extra in ([], ["--compile"]):
        out = tmp_path / f"out{len(extra)}.xyz"
        arguments = ["predict", "eutectic-fast", str(tmp_path / "in.xyz"), "--task", "molecules", "-o", str(out)]
        # The last batch is a single structure.
        result = CliRunner().invoke(cli.app, [*arguments, "--batch-size", "5", "--device", "cpu", *extra])
        assert result.exit_code == 0, result.output
        assert ("compiling" in result.output) == bool(extra)
        assert "not compiled" not in result.output
        forces.append(np.concatenate([atoms.arrays["molecules_forces"] for atoms in read(out, ":")]))
    np.testing.assert_allclose(*forces, atol=1e-4)
