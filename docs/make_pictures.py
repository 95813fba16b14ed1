#!/usr/bin/env python
"""Draw docs/pictures.

python docs/make_pictures.py
"""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
from ase.build import fcc111
from matplotlib import pyplot as plt

from eutectic.atoms import Structure
from eutectic.graph import GraphSettings, build_graph

FOLDER = Path(__file__).resolve().parent / "pictures"


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


if __name__ == "__main__":
    mpl.rcParams["svg.hashsalt"] = "eutectic"
    FOLDER.mkdir(exist_ok=True)
    four_graphs()
