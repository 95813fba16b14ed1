"""ASE calculator: geometry optimisation, molecular dynamics, vibrations, reaction paths."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, PropertyNotImplementedError, all_changes
from ase.data import covalent_radii
from ase.outputs import Properties, all_outputs
from ase.stress import full_3x3_to_voigt_6_stress

from eutectic.atoms import Structure
from eutectic.checkpoints.model import TrainedModel
from eutectic.checkpoints.uncertainty import SUFFIX
from eutectic.graph import ReusedNeighbours, StructureGraph
from eutectic.predict.memory import check_memory
from eutectic.predict.prediction import check_references, finished, forward
from eutectic.predict.prepared import prepared
from eutectic.tasks import Sample, Task

log = logging.getLogger(__name__)

TOO_CLOSE = 0.6
"""Distance below which a warning is given, as a fraction of the sum of the two covalent radii. The shortest bond of a
stable molecule (N2) is at 0.77."""

FAR_FROM_TRAINING = 20.0
"""Largest force component above which a warning is given, as a multiple of the RMS component of the training forces."""


class EutecticCalculator(Calculator):
    """Energies, forces and the other properties of one task of a model, for ASE.

    `energy` and `free_energy` (eV), `forces` (eV/Å), `stress` (6,) (eV/Å³; xx, yy, zz, yz, xz, xy; positive is
    tension), `energies` (eV, the contribution of each atom with its reference, if the energy head sums over atoms),
    and any further property of the task under its own name. A stress exists only for structures periodic in three
    directions. `energy_uncertainty` (eV) and the uncertainties of other scalars are standard deviations, available if
    the model was calibrated.

    All properties are calculated together and kept until positions, numbers, cell, boundary conditions or tags change.
    Charges, magnetic moments and constraints are not inputs of the model.

    Args:
        model: weights, tasks and provenance; not changed.
        task: name of the task; needed if the model has several.
        conservative: True: forces and stress are derivatives of the energy, and dynamics conserve energy. False: the
            task's heads predict them, which is faster; if the forces are predicted directly, dynamics do not conserve
            energy. Default: False if the task has a head for forces, otherwise True.
        dtype: precision; finite differences (vibrations, phonons) need float64.
        device: "cpu", "cuda", …; default: the model's device.
        skin: Å added to the cutoff of the neighbour list, which is rebuilt only after an atom has moved by half the
            skin; results do not depend on it. 0 rebuilds the list in every step.
        compile: compile the model in the first calculation, which takes 10 to 40 s; then, on a CPU, 1.2 to 1.7
            times as many steps per second.

    Attributes:
        conservative: whether forces and stress are derivatives of the energy.
        neighbours: neighbour lists, reused between steps.

    Raises:
        EutecticError: no such task, or several and no name; derivatives from a task without an energy; an unknown
            precision; a skin that is negative or larger than the cutoff.
    """

    ignored_changes = {"initial_charges", "initial_magmoms"}  # noqa: RUF012

    def __init__(
        self,
        model: TrainedModel,
        *,
        task: str | None = None,
        conservative: bool | None = None,
        dtype: str = "float32",
        device: str | torch.device | None = None,
        skin: float = 0.5,
        compile: bool = False,
    ) -> None:
        super().__init__()
        self._prepared = prepared(
            model,
            task=task,
            conservative=conservative,
            dtype=dtype,
            device=device,
            compile=compile,
            where="calculator",
        )
        self.task: Task = self._prepared.task
        self.conservative = self._prepared.conservative
        self.dtype: str = dtype
        self._model = self._prepared.model
        self.neighbours = ReusedNeighbours(self.task.graph, lists=model.module.backbone.edge_lists, skin=skin)
        self._of_atoms = model.module.sums_energies(self.task.name)
        names = dict.fromkeys(self.task.heads)
        if self.conservative:
            names |= dict.fromkeys(("forces", "stress"))
        if "energy" in names:
            names |= dict.fromkeys(("free_energy", *(("energies",) if self._of_atoms else ())))
        names |= dict.fromkeys(f"{name}{SUFFIX}" for name in model.uncertainties.get(self.task.name, {}))
        self.implemented_properties = list(names)
        self._warned: set[str] = set()
        self._checked_size = 0

    @property
    def device(self) -> torch.device:
        """Device on which predictions run."""
        return self._prepared.device

    @property
    def forces_are(self) -> str:
        """How the forces are obtained, as text."""
        return self._prepared.forces_are

    def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list[str]:
        """Changes since the last calculation; includes tags, since they select edges."""
        changes = list(super().check_state(atoms, tol=tol))
        if self.atoms is not None and not changes and not np.array_equal(self.atoms.get_tags(), atoms.get_tags()):
            changes.append("tags")
        return changes

    def get_property(self, name: str, atoms: Atoms | None = None, allow_calculation: bool = True) -> Any:
        """As in ASE, with a hint if the stress is available only as a derivative."""
        if name == "stress" and name not in self.implemented_properties and "energy" in self.task.heads:
            raise PropertyNotImplementedError(
                f"task {self.task.name}: no head predicts stress; make the calculator with conservative=True"
            )
        return super().get_property(name, atoms, allow_calculation)

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """Calculate all properties.

        Raises:
            EutecticError: a structure that is invalid, has elements unseen in training, does not fit into memory, or
                has a prediction that is not finite.
        """
        self.results = {}
        super().calculate(atoms, properties, system_changes)
        structure = Structure.from_ase(self.atoms)
        self._check(structure)
        graph = self.neighbours.graph(structure)
        sample = Sample(0, graph, {})
        if len(structure) > self._checked_size:
            check_memory(self._model, self.task, [sample], self.conservative)
            self._checked_size = len(structure)
        (values,) = forward(
            self._model,
            self.task,
            [sample],
            self.conservative,
            of_atoms=self._of_atoms,
            autocast=self._prepared.autocast,
        )
        prediction = finished(self.task, values, structure, conservative=self.conservative)
        results: dict[str, Any] = {
            name: float(value) if value.ndim == 0 else np.array(value) for name, value in prediction.items()
        }
        if "energy" in results:
            results["free_energy"] = results["energy"]
        if "stress" in results:
            results["stress"] = full_3x3_to_voigt_6_stress(results["stress"])
        self._warn(structure, graph, results)
        self.results = results

    def export_properties(self) -> Properties:
        """The results that are ASE properties."""
        return Properties({name: value for name, value in self.results.items() if name in all_outputs})

    def todict(self, skip_default: bool = True) -> dict[str, Any]:
        """Parameters that ASE stores in a trajectory."""
        return {"task": self.task.name, "conservative": self.conservative, "dtype": self.dtype}

    def _check(self, structure: Structure) -> None:
        structure.check(self._where)
        self._prepared.check_elements(structure.numbers.tolist(), self._where)
        check_references(structure, self.task)

    @property
    def _where(self) -> str:
        return f"calculator of task {self.task.name}"

    def _warn(self, structure: Structure, graph: StructureGraph, results: dict[str, Any]) -> None:
        """Warn of unreliable predictions, once per kind of cause."""
        edges = graph.main
        if "close" not in self._warned and len(edges):
            radii = covalent_radii[structure.numbers]
            ratio = edges.distance / (radii[edges.source] + radii[edges.target])
            k = int(ratio.argmin())
            if ratio[k] < TOO_CLOSE:
                i, j = int(edges.source[k]), int(edges.target[k])
                self._say("close", f"atoms {i} and {j} are {edges.distance[k]:.2f} Å apart, closer than any bond")
        if "alone" not in self._warned and len(structure) > 1:
            alone = np.bincount(edges.target, minlength=len(structure)) == 0
            if alone.any():
                cutoff = self.task.graph.cutoff
                self._say("alone", f"atom {int(alone.argmax())} has no neighbour within the cutoff of {cutoff:g} Å")
        if "far" not in self._warned and "forces" in self.task.targets:
            largest, rms = float(np.abs(results["forces"]).max()), self.task.targets["forces"].normaliser.scale
            if largest > FAR_FROM_TRAINING * rms:
                times = f"{largest / rms:.0f} times the RMS of the training forces"
                self._say("far", f"a force of {largest:.3g} eV/Å, {times}")

    def _say(self, kind: str, what: str) -> None:
        self._warned.add(kind)
        log.warning(
            "%s: %s; far from the training structures, predictions are unreliable (shown once)", self._where, what
        )

    def __repr__(self) -> str:
        return (
            f"EutecticCalculator, task {self.task.name} ({self.task.level_of_theory}), {self.dtype} on {self.device}: "
            f"{', '.join(self.implemented_properties)}; forces: {self.forces_are}"
        )
