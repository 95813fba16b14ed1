"""Model interface for TorchSim: batched relaxations and molecular dynamics of many structures.

Only `Model.torchsim` imports this module: it needs the package torch-sim-atomistic.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch_sim.models.interface import ModelInterface
from torch_sim.state import SimState
from torch_sim.typing import MemoryScaling

from eutectic.atoms import EutecticError, Structure
from eutectic.checkpoints.model import TrainedModel
from eutectic.graph import build_graphs
from eutectic.predict.memory import check_memory
from eutectic.predict.prediction import Prediction, check_references, finished, forward
from eutectic.predict.prepared import prepared
from eutectic.tasks import Sample

log = logging.getLogger(__name__)

ON_CPU = 1024
"""Atoms per batch on a CPU; larger batches only need more memory without being faster."""

FEW_NEIGHBOURS = 32
"""Neighbour cap up to which the number of edges, and thus the memory, is proportional to the number of atoms."""


class EutecticTorchSim(ModelInterface):
    """Energies, forces and stress of one task of a model, for TorchSim.

    Graphs, and thus all results, are the same as for `EutecticCalculator`. They are rebuilt in every step for the whole
    batch, which is faster than reusing the neighbours of each structure.

    All structures of a state have the same boundary conditions, since TorchSim keeps one `pbc` for all. Tags, which
    select edges in GemNet-OC, are read from the state's atom extra "tags", if present.

    Args:
        model: weights, tasks and provenance; not changed.
        task, conservative, device: as for `EutecticCalculator`.
        dtype: "float32", "float64" or "bfloat16" (matrix products only; the state is float32), or `torch.float64`, …
            TorchSim keeps positions and energies in this precision too: in float32, 6,000 eV is rounded to 0.5 meV.
        compute_stress: whether results include a stress; default: whether the task has a head for it or derivatives are
            taken.
        compile: as for `EutecticCalculator`.

    Attributes:
        conservative: whether forces and stress are derivatives of the energy.

    Raises:
        EutecticError: as for `EutecticCalculator`; a task without an energy; a requested stress that is not available.
    """

    def __init__(
        self,
        model: TrainedModel,
        *,
        task: str | None = None,
        conservative: bool | None = None,
        dtype: str | torch.dtype = "float32",
        device: str | torch.device | None = None,
        compute_stress: bool | None = None,
        compile: bool = False,
    ) -> None:
        super().__init__()
        name = str(dtype).removeprefix("torch.")
        chosen = prepared(
            model,
            task=task,
            conservative=conservative,
            dtype=name,
            device=device,
            compile=compile,
            where="model for TorchSim",
        )
        # Not a submodule: `to` would move the weights but not the device and dtype that TorchSim reads.
        self._prepared = chosen
        self.task = chosen.task
        self.conservative = chosen.conservative
        if "energy" not in self.task.heads:
            raise EutecticError(
                self._where,
                f"heads for {', '.join(self.task.heads)}",
                "a task with a head for the energy, which TorchSim needs",
                "choose another task",
            )
        self._has_forces = self.conservative or "forces" in self.task.heads
        self._has_stress = self.conservative or "stress" in self.task.heads
        self._device, self._dtype = chosen.device, next(chosen.model.module.parameters()).dtype
        self._compute_forces = self._has_forces
        self._compute_stress = self._has_stress
        if compute_stress and not self._has_stress:
            raise EutecticError(
                self._where,
                "compute_stress=True, and no head for the stress",
                "derivatives of the energy, or a task with a head for the stress",
                "add conservative=True",
            )
        if compute_stress is not None:
            self._compute_stress = compute_stress
        few = self.task.graph.max_neighbours <= FEW_NEIGHBOURS
        self._memory_scales_with: MemoryScaling = "n_atoms" if few else "n_edges"
        self._checked_size = 0
        self._said: set[str] = set()

    @property
    def compute_stress(self) -> bool:
        """Whether results include a stress; can be set if the stress is predicted or derived."""
        return self._compute_stress

    @compute_stress.setter
    def compute_stress(self, compute_stress: bool) -> None:
        # TorchSim interprets this error as a model without stress.
        if compute_stress and not self._has_stress:
            raise NotImplementedError(f"{self._where}: no head predicts stress; make it with conservative=True")
        self._compute_stress = compute_stress

    @property
    def compute_forces(self) -> bool:
        """Whether results include forces; can be set if forces are predicted or derived."""
        return self._compute_forces

    @compute_forces.setter
    def compute_forces(self, compute_forces: bool) -> None:
        if compute_forces and not self._has_forces:
            raise NotImplementedError(f"{self._where}: no head predicts forces; make it with conservative=True")
        self._compute_forces = compute_forces

    def forward(self, state: SimState, **kwargs: Any) -> dict[str, Tensor]:
        """Predict the systems of a state.

        A system that cannot be predicted, for instance because its atoms flew apart, has NaN results and is warned of;
        the others continue.

        Args:
            state: positions, Å, may lie outside the cells.
            kwargs: ignored.

        Returns:
            "energy" (n_systems,) eV, "forces" (n_atoms, 3) eV/Å and "stress" (n_systems, 3, 3) eV/Å³, positive for
            tension, NaN for a system that is not periodic in three directions.

        Raises:
            EutecticError: elements unseen in training; a structure that does not fit into memory.
        """
        structures = _structures(state)
        self._prepared.check_elements(torch.unique(state.atomic_numbers).tolist(), self._where)
        predictions: list[Prediction] = [{}] * len(structures)
        for part in self._parts(structures):
            for index, prediction in zip(part, self._predicted([structures[i] for i in part]), strict=True):
                predictions[index] = prediction
        results = {"energy": np.array([p.get("energy", np.nan) for p in predictions])}
        if self._compute_forces:
            forces = (
                p.get("forces", np.full((len(s), 3), np.nan)) for p, s in zip(predictions, structures, strict=True)
            )
            results["forces"] = np.concatenate(list(forces))
        if self._compute_stress:
            results["stress"] = np.stack([p.get("stress", np.full((3, 3), np.nan)) for p in predictions])
        return {
            name: torch.from_numpy(value).to(device=self._device, dtype=self._dtype) for name, value in results.items()
        }

    def _parts(self, structures: Sequence[Structure]) -> Iterator[list[int]]:
        """Indices of valid structures, in parts that are computed together."""
        part: list[int] = []
        atoms = 0
        for index, structure in enumerate(structures):
            try:
                structure.check(self._where)
            except EutecticError as error:
                self._say(structure, error)
                continue
            # On a GPU, TorchSim itself limits the batch size.
            if part and atoms + len(structure) > ON_CPU and self._device.type == "cpu":
                yield part
                part, atoms = [], 0
            part.append(index)
            atoms += len(structure)
        if part:
            yield part

    def _predicted(self, structures: Sequence[Structure]) -> list[Prediction]:
        """Predictions for valid structures; empty if not finite."""
        model, task = self._prepared.model, self.task
        for structure in structures:
            check_references(structure, task)
        graphs = build_graphs(structures, task.graph, lists=model.module.backbone.edge_lists)
        samples = [Sample(0, graph, {}) for graph in graphs]
        largest = max(len(structure) for structure in structures)
        if self._device.type == "cpu" and largest > self._checked_size:
            check_memory(model, task, samples, self.conservative)
            self._checked_size = largest
        predictions: list[Prediction] = []
        computed = forward(model, task, samples, self.conservative, autocast=self._prepared.autocast)
        for structure, values in zip(structures, computed, strict=True):
            try:
                predictions.append(finished(task, values, structure, conservative=self.conservative))
            except EutecticError as error:
                self._say(structure, error)
                predictions.append({})
        return predictions

    def _say(self, structure: Structure, error: EutecticError) -> None:
        """Warn of a structure that cannot be predicted, once per composition."""
        formula = structure.to_ase().get_chemical_formula()
        if formula not in self._said:
            self._said.add(formula)
            what = f"{error.given}; expected {error.expected}"
            log.warning(
                "%s: a structure %s, %s; its results are NaN (shown once for %s)", self._where, formula, what, formula
            )

    @property
    def _where(self) -> str:
        return f"model for TorchSim, task {self.task.name}"

    def __repr__(self) -> str:
        names = ["energy", *(["forces"] if self._compute_forces else []), *(["stress"] if self._compute_stress else [])]
        return (
            f"EutecticTorchSim, task {self.task.name} ({self.task.level_of_theory}), {self._dtype} on {self._device}: "
            f"{', '.join(names)}; forces: {self._prepared.forces_are}"
        )


def _structures(state: SimState) -> list[Structure]:
    """The systems of a state."""
    positions, cells, numbers, systems, pbc = (
        tensor.detach().cpu().numpy()
        for tensor in (
            state.positions.double(),
            # Columns of TorchSim's cell are lattice vectors.
            state.cell.double().mT.contiguous(),
            state.atomic_numbers.long(),
            state.system_idx,
            state.pbc.bool(),
        )
    )
    tags = state.atom_extras.get("tags")
    ends = np.cumsum(np.bincount(systems, minlength=len(cells)))[:-1]
    by_system = [np.split(values, ends) for values in (positions, numbers)]
    if tags is None:
        by_tags: list[np.ndarray | None] = [None] * len(cells)
    else:
        # As in `Structure.from_ase`, all-zero tags mean no tags.
        split = np.split(tags.detach().cpu().long().numpy(), ends)
        by_tags = [own if own.any() else None for own in split]
    return [
        Structure(numbers=z, positions=r, cell=cell, pbc=pbc, tags=own)
        for r, z, cell, own in zip(*by_system, cells, by_tags, strict=True)
    ]
