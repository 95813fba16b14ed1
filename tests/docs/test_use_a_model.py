"""The page on using a model runs as it stands."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from ase.build import molecule
from ase.io import write
from ase.optimize import BFGS
from typer.testing import CliRunner

import eutectic
from eutectic import cli
from eutectic.predict.model import TORCHSIM as TORCHSIM_PACKAGE

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "how-to" / "use-a-model.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


(PHONONS,) = (block for block in blocks("python") if "import phonopy" in block)
(TORCHSIM,) = (block for block in blocks("python") if "import torch_sim" in block)


def test_the_python_of_the_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    values: dict[str, object] = {}
    exec(
        compile("".join(b for b in blocks("python") if b not in (PHONONS, TORCHSIM)), "use-a-model.md", "exec"), values
    )
    assert values["features"].shape == (64,)  # type: ignore[attr-defined]
    assert "derivatives of the energy" in capsys.readouterr().out


def test_the_phonons_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("phonopy", reason="phonopy is not installed")
    monkeypatch.chdir(tmp_path)
    values: dict[str, Any] = {"eutectic": eutectic, "BFGS": BFGS}
    exec(compile(PHONONS, "use-a-model.md", "exec"), values)
    (frequencies,) = values["phonons"].band_structure.frequencies
    assert abs(frequencies[0]).max() < 0.01  # Γ, where all are acoustic
    assert frequencies[-1] == pytest.approx([2.24] * 3, abs=0.05)  # H, where all are equal
    assert (tmp_path / "band.png").exists()


def test_the_batch_of_the_page_is_relaxed() -> None:
    if importlib.util.find_spec("torch_sim") is None:
        pytest.skip("torch-sim-atomistic is not installed")
    TORCHSIM_PACKAGE.load("models.interface")
    values: dict[str, Any] = {"eutectic": eutectic}
    exec(compile(TORCHSIM, "use-a-model.md", "exec"), values)
    relaxed = values["relaxed"]
    assert values["ts"].generate_force_convergence_fn(0.05)(relaxed).all()
    assert len(relaxed.to_atoms()) == 4


def test_the_commands_of_the_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write("my.xyz", [molecule(name) for name in ("H2O", "CH4", "NH3", "CH3OH")])
    write("query.xyz", molecule("H2O"))
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    commands = [line for line in lines if not line.startswith("pip ")]
    assert len(commands) == 8
    for command in commands:
        arguments = shlex.split(command.replace("runs/mine", "eutectic-small"))
        result = CliRunner().invoke(cli.app, arguments[1:])
        assert result.exit_code == 0, (command, result.output, result.exception)
    assert (tmp_path / "map.html").exists()


def test_the_drift_is_that_of_the_benchmark() -> None:
    runs = json.loads((ROOT / "docs" / "results" / "drift.json").read_text())["runs"]
    for row in ("direct", "derivatives", "derivatives, hard cap", "derivatives, no cap"):
        (line,) = [line for line in TEXT.splitlines() if line.startswith(f"| {row} |")]
        shown = [float(number) for number in re.findall(r"-?[\d.]+", line.replace("−", "-"))]
        keys = ("drift_meV_per_atom_per_ps", "spread_meV_per_atom")
        measured = [run[key] for run in runs if run["forces"] == row for key in keys]
        assert shown == pytest.approx(measured, rel=0.05)
