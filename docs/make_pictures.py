#!/usr/bin/env python
"""Draw docs/pictures.

python docs/make_pictures.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from ase.build import fcc111
from matplotlib import pyplot as plt

from eutectic.atoms import Structure
from eutectic.graph import GraphSettings, build_graph

DOCS = Path(__file__).resolve().parent
FOLDER = DOCS / "pictures"

MOLECULES = ("ethanol", "toluene", "aspirin")
LINES = {
    "from eutectic-small": ("eutectic-small, fine-tuned", "#d9480f"),
    "from eutectic-fast": ("eutectic-fast, fine-tuned", "#f59f00"),
    "gotennet, compiled": ("GotenNet from scratch", "#4051b5"),
    "painn, compiled": ("PaiNN from scratch", "#74b0f4"),
    "from 7net-0, own head": ("SevenNet's 7net-0, own head", "#8a5cb8"),
    "from 7net-0, new head": ("7net-0 with a new head", "#c9a9e4"),
    "mace": ("MACE from scratch", "#222222"),
}
"""Entrant of `benchmarks/backbones.py` → name and colour in the picture."""


def four_graphs() -> None:
    """The neighbours of one atom of a copper surface in each of GemNet-OC's graphs, from above."""
    atoms = fcc111("Cu", (8, 8, 1), vacuum=5.0)
    graph = build_graph(Structure.from_ase(atoms), GraphSettings(cutoff=9.0, max_neighbours=18))
    centre = int(np.argmin(np.linalg.norm(atoms.positions[:, :2] - atoms.positions[:, :2].mean(0), axis=1)))
    caps = GraphSettings(max_neighbours=18).caps
    figure, axes = plt.subplots(1, 4, figsize=(9, 2.5), layout="constrained")
    for axis, name in zip(axes, ("quadruplet", "atom_edge", "main", "atom_atom"), strict=True):
        edges = getattr(graph, name)
        mine = edges.target == centre
        ends = (atoms.positions[edges.source[mine]] + edges.offset[mine] @ atoms.cell.array)[:, :2]
        start = atoms.positions[centre, :2]
        for end in ends:
            axis.plot(*zip(start, end, strict=True), color="#4051b5", lw=1, zorder=1)
        axis.scatter(*atoms.positions[:, :2].T, s=22, color="#bbbbbb", zorder=2)
        axis.scatter(*ends.T, s=22, color="#4051b5", zorder=3)
        axis.scatter(*start, s=40, color="#d9480f", zorder=4)
        axis.set(xlim=start[0] + np.array([-10, 10]), ylim=start[1] + np.array([-10, 10]), aspect="equal")
        axis.set_title(f"{name}: the nearest {caps[name]}", fontsize=9)
        axis.axis("off")
    figure.savefig(FOLDER / "four-graphs.svg", facecolor="white", metadata={"Date": None})
    plt.close(figure)


def error_against_time() -> None:
    """Validation errors of about half an hour on three molecules: ours, MACE, SevenNet, sGDML."""
    figure, axes = plt.subplots(1, 3, figsize=(9, 3.4), layout="constrained", sharex=True)
    for axis, molecule in zip(axes, MOLECULES, strict=True):
        runs: dict[str, Any] = json.loads((DOCS / f"results/backbones/{molecule}-30min.json").read_text())
        for entrant, (name, colour) in LINES.items():
            if entrant in runs:
                # The planned times, which end where the process did: other programs changed the time of a step.
                planned = np.array(runs[entrant]["validation_at"])
                minutes = planned / planned[-1] * runs[entrant]["process_cpu_seconds"] / 60
                later = minutes > 0.5
                errors = np.array(runs[entrant]["validation_forces"])
                axis.plot(minutes[later], errors[later], label=name, color=colour, lw=1.5, marker=".", ms=4)
        short = {**json.loads((DOCS / f"results/backbones/{molecule}-2min.json").read_text()), **runs}
        for run in (run for entrant, run in short.items() if entrant.startswith("sGDML")):
            minutes, error = run["process_cpu_seconds"] / 60, min(run["widths_tried"].values())
            axis.plot(minutes, error, "D", color="#2b8a3e", ms=5, label="sGDML")
        axis.set(title=molecule, xscale="log", yscale="log", xlabel="CPU time, minutes", xlim=(0.7, 62))
        axis.set_xticks([1, 3, 10, 30, 60], ["1", "3", "10", "30", "60"])
        low, high = axis.get_ylim()
        ticks = [value for value in (3, 5, 10, 20, 30, 50, 100, 200) if low <= value <= high]
        axis.set_yticks(ticks, [str(value) for value in ticks])
        axis.minorticks_off()
        axis.grid(color="#e5e5e5", lw=0.6)
    axes[0].set_ylabel("error of forces, meV/Å")
    labels = {label: line for axis in axes for line, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(labels.values(), labels.keys(), loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    figure.savefig(FOLDER / "error-against-time.svg", facecolor="white", metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    mpl.rcParams["svg.hashsalt"] = "eutectic"
    FOLDER.mkdir(exist_ok=True)
    four_graphs()
    error_against_time()
