"""A model for TorchSim, which moves the atoms of many structures at once: relaxations, molecular dynamics.

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
"""Atoms that a CPU computes at once: more are no faster, and only take memory."""

FEW_NEIGHBOURS = 32
"""Cap of neighbours up to which the number of edges, and with it the memory, follows the number of atoms."""


class EutecticTorchSim(ModelInterface):
    """Energies, forces and stress of one task of a model, for TorchSim.

    Graphs, and with them all results, are those of `EutecticCalculator`; they are built anew in every step, for a whole
    batch together, which takes less time than to reuse the neighbours of each structure.

    All structures of a state have the same boundary conditions, since TorchSim keeps one `pbc` for all. Tags, which
    select edges in GemNet-OC, are those in the state's atom extra "tags", if it has one.

    Args:
        model: weights, tasks and provenance; not changed.
        task, conservative, device: as for `EutecticCalculator`.
        dtype: "float32", "float64" or "bfloat16" (matrix products only; the state is float32), or `torch.float64`, …
            TorchSim keeps positions and energies in this precision too: 0.5 meV of 6,000 eV in float32.
        compute_stress: whether results have a stress; default: if the task has a head for it, or derivatives are taken.

    Attributes:
        conservative: as it was decided.

    Raises:
        EutecticError: as for `EutecticCalculator`; a task without an energy; a stress that nothing predicts.
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
    ) -> None:
        super().__init__()
        name = str(dtype).removeprefix("torch.")
        chosen = prepared(
            model, task=task, conservative=conservative, dtype=name, device=device, where="model for TorchSim"
        )
        # No module of this one, whose `to` would move the weights and not what TorchSim knows of them.
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
        """Whether results have a stress; it can be set where the stress is predicted or derived."""
        return self._compute_stress

    @compute_stress.setter
    def compute_stress(self, compute_stress: bool) -> None:
        # TorchSim takes this error for a model that cannot.
        if compute_stress and not self._has_stress:
            raise NotImplementedError(f"{self._where}: no head predicts stress; make it with conservative=True")
        self._compute_stress = compute_stress

    @property
    def compute_forces(self) -> bool:
        """Whether results have forces; it can be set where forces are predicted or derived."""
        return self._compute_forces

    @compute_forces.setter
    def compute_forces(self, compute_forces: bool) -> None:
        if compute_forces and not self._has_forces:
            raise NotImplementedError(f"{self._where}: no head predicts forces; make it with conservative=True")
        self._compute_forces = compute_forces

    def forward(self, state: SimState, **kwargs: Any) -> dict[str, Tensor]:
        """Predict the systems of a state.

        A system that cannot be predicted, for instance since its atoms flew apart, has NaN everywhere and is warned of;
        the others go on.

        Args:
            state: its positions, Å, may lie outside the cells.
            kwargs: without meaning here.

        Returns:
            "energy" (n_systems,) eV, "forces" (n_atoms, 3) eV/Å and "stress" (n_systems, 3, 3) eV/Å³, positive for
            tension, NaN where a system is not periodic in three directions.

        Raises:
            EutecticError: elements that the model or its task has not seen; a structure that does not fit into memory.
        """
        structures = _structures(state)
        self._prepared.check_elements(torch.unique(state.atomic_numbers).tolist(), self._where)
        found: list[Prediction] = [{}] * len(structures)
        for some in self._parts(structures):
            for index, prediction in zip(some, self._predicted([structures[i] for i in some]), strict=True):
                found[index] = prediction
        results = {"energy": np.array([one.get("energy", np.nan) for one in found])}
        if self._compute_forces:
            forces = (one.get("forces", np.full((len(s), 3), np.nan)) for one, s in zip(found, structures, strict=True))
            results["forces"] = np.concatenate(list(forces))
        if self._compute_stress:
            results["stress"] = np.stack([one.get("stress", np.full((3, 3), np.nan)) for one in found])
        return {
            name: torch.from_numpy(value).to(device=self._device, dtype=self._dtype) for name, value in results.items()
        }

    def _parts(self, structures: Sequence[Structure]) -> Iterator[list[int]]:
        """Indices of valid structures that are computed together."""
        part: list[int] = []
        atoms = 0
        for index, structure in enumerate(structures):
            try:
                structure.check(self._where)
            except EutecticError as error:
                self._say(structure, error)
                continue
            # TorchSim itself finds what fits on a GPU.
            if part and atoms + len(structure) > ON_CPU and self._device.type == "cpu":
                yield part
                part, atoms = [], 0
            part.append(index)
            atoms += len(structure)
        if part:
            yield part

    def _predicted(self, structures: Sequence[Structure]) -> list[Prediction]:
        """Predictions of valid structures, empty where they are not finite."""
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
        """Warn of a structure that cannot be predicted, once for each composition."""
        formula = structure.to_ase().get_chemical_formula()
        if formula not in self._said:
            self._said.add(formula)
            what = f"{error.given}; expected {error.expected}"
            log.warning(
                "%s: a structure %s, %s; its results are NaN (said once of %s)", self._where, formula, what, formula
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
        # As in `Structure.from_ase`, all zero is the same as none.
        split = np.split(tags.detach().cpu().long().numpy(), ends)
        by_tags = [own if own.any() else None for own in split]
    return [
        Structure(numbers=z, positions=r, cell=cell, pbc=pbc, tags=own)
        for r, z, cell, own in zip(*by_system, cells, by_tags, strict=True)
    ]
