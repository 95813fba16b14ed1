"""Drift of the total energy in molecular dynamics, with direct forces and with derivatives of the energy.

    python benchmarks/drift.py --out docs/results/drift.json

A molecule (ethanol) and a crystal (NaCl, 16 atoms) are relaxed, given momenta of twice the temperature, and moved at
constant energy (velocity Verlet). The drift is the slope of a line through the total energy, in meV per atom and
picosecond; beside it is the spread around that line. Two variants use the same weights with another graph, which
changes the energy, but shows where drift comes from: `hard cap`, whose neighbours end at the cap instead of fading out
there (graph.smooth_cap: 0), and `no cap`, with all neighbours within the cutoff.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS

import eutectic
from eutectic.predict.calculator import EutecticCalculator

STRUCTURES = {
    "ethanol": (molecule("CH3CH2OH"), "molecules", 0.5, 300.0),
    "NaCl, 16 atoms": (bulk("NaCl", "rocksalt", a=5.64) * (2, 2, 2), "bulk", 2.0, 300.0),
}
"""Structure, task of the model, time step in fs and temperature in K."""

MODELS = ("eutectic-small", "eutectic-fast")

VARIANTS: dict[str, dict[str, Any]] = {
    "direct": {"conservative": False},
    "derivatives": {"conservative": True},
    "derivatives, hard cap": {"conservative": True, "graph": {"smooth_cap": 0.0}},
    "derivatives, no cap": {"conservative": True, "graph": {"max_neighbours": 200}},
}


def calculator(
    model: eutectic.Model, task: str, *, conservative: bool, graph: dict[str, Any] | None = None
) -> EutecticCalculator:
    """In double precision, so that rounding does not enter."""
    tasks = [replace(t, graph=t.graph.model_copy(update=graph or {})) for t in model.trained.tasks]
    trained = replace(model.trained, tasks=tuple(tasks))
    return EutecticCalculator(trained, task=task, conservative=conservative, dtype="float64")


def run(atoms: Atoms, step: float, temperature: float, picoseconds: float) -> dict[str, Any]:
    """Drift, spread and speed of one run."""
    BFGS(atoms, logfile=None).run(fmax=0.02, steps=50)
    noise = np.random.default_rng(0).normal(size=(len(atoms), 3))
    momenta = noise * np.sqrt(atoms.get_masses() * units.kB * 2 * temperature)[:, None]
    atoms.set_momenta(momenta - momenta.mean(axis=0))
    dynamics = VelocityVerlet(atoms, timestep=step * units.fs)
    steps = round(1000 * picoseconds / step)
    searches, began = atoms.calc.neighbours.searches, time.perf_counter()
    energies, temperatures = np.empty(steps), np.empty(steps)
    for i in range(steps):
        dynamics.run(1)
        energies[i], temperatures[i] = atoms.get_total_energy(), atoms.get_temperature()
    seconds = time.perf_counter() - began
    times = np.arange(steps) * step * 1e-3
    slope, start = np.polyfit(times, energies, 1)
    meV = 1000 / len(atoms)
    return {
        "drift_meV_per_atom_per_ps": slope * meV,
        "spread_meV_per_atom": float(np.std(energies - start - slope * times)) * meV,
        "change_meV_per_atom": (energies[-1] - energies[0]) * meV,
        "mean_temperature_K": float(temperatures.mean()),
        "last_temperature_K": float(temperatures[-steps // 10 :].mean()),
        "steps": steps,
        "searches": atoms.calc.neighbours.searches - searches,
        "steps_per_second": steps / seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--picoseconds", type=float, default=1.0)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    results: dict[str, Any] = {"picoseconds": arguments.picoseconds, "runs": []}
    print("model, structure, forces: drift in meV/atom/ps, spread in meV/atom, mean and last temperature in K")
    for of_model, (name, case), (variant, options) in itertools.product(MODELS, STRUCTURES.items(), VARIANTS.items()):
        structure, task, step, temperature = case
        atoms = structure.copy()
        atoms.calc = calculator(eutectic.load(of_model, device="cpu"), task, **options)
        found = run(atoms, step, temperature, arguments.picoseconds)
        results["runs"].append({"model": of_model, "structure": name, "forces": variant, "step_fs": step} | found)
        drift, spread = found["drift_meV_per_atom_per_ps"], found["spread_meV_per_atom"]
        heat = f"{found['mean_temperature_K']:>8.0f}{found['last_temperature_K']:>8.0f}"
        print(f"{of_model:<16}{name:<16}{variant:<25}{drift:>9.3f}{spread:>9.3f}{heat}", flush=True)
        if arguments.out is not None:
            arguments.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
