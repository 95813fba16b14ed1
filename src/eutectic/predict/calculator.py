"""A model as an ASE calculator: optimisation, molecular dynamics, vibrations, reaction paths."""

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
"""Fraction of the sum of two covalent radii. The shortest bonds of stable molecules have 0.77 of it (N2)."""

FAR_FROM_TRAINING = 20.0
"""Multiple of the root mean square of the training forces' components, for the largest predicted component."""


class EutecticCalculator(Calculator):
    """Energies, forces and the other properties of one task of a model, for ASE.

    `energy` and `free_energy` (eV), `forces` (eV/Å), `stress` (6,) (eV/Å³; xx, yy, zz, yz, xz, xy; positive is
    tension), `energies` (eV, the part of each atom, references included, where the head of the energy sums them), and
    any further property of the task under its own name. A stress exists only for structures periodic in three
    directions. `energy_uncertainty` (eV) and those of other scalars are standard deviations, where the
    model knows them.

    Everything is calculated at once, and kept until positions, numbers, cell, boundary conditions or tags change.
    Charges, magnetic moments and constraints are no input of a model.

    Args:
        model: weights, tasks and provenance; not changed.
        task: name of the task; the only one if not given.
        conservative: True: forces and stress are derivatives of the energy, and dynamics conserve energy. False: they
            are what the task's heads predict: faster, but if a head predicts forces directly, dynamics gain or lose
            energy. Default: False where the task has a head for forces, otherwise True.
        dtype: precision; finite differences (vibrations, phonons) need float64.
        device: "cpu", "cuda", …; default: that of the model.
        skin: Å added to the cutoff of the neighbour search, which is repeated only after an atom has moved by half of
            it; results do not depend on it. 0: a search in every step.

    Attributes:
        conservative: as it was decided.
        neighbours: that are reused.

    Raises:
        EutecticError: no such task, or several and no name; derivatives from a task without an energy; another
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
    ) -> None:
        super().__init__()
        self._prepared = prepared(
            model, task=task, conservative=conservative, dtype=dtype, device=device, where="calculator"
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
        """Where it computes."""
        return self._prepared.device

    @property
    def forces_are(self) -> str:
        """What the forces are, in words."""
        return self._prepared.forces_are

    def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list[str]:
        """What changed since the last calculation; tags too, since they select edges."""
        changes = list(super().check_state(atoms, tol=tol))
        if self.atoms is not None and not changes and not np.array_equal(self.atoms.get_tags(), atoms.get_tags()):
            changes.append("tags")
        return changes

    def get_property(self, name: str, atoms: Atoms | None = None, allow_calculation: bool = True) -> Any:
        """As ASE's, with a hint for a stress that only derivatives give."""
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
        """Calculate everything.

        Raises:
            EutecticError: a structure that is invalid, has elements that the model or its task has not seen, does not
                fit into memory, or has a prediction that is not finite.
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
        found = finished(self.task, values, structure, conservative=self.conservative)
        results: dict[str, Any] = {
            name: float(value) if value.ndim == 0 else np.array(value) for name, value in found.items()
        }
        if "energy" in results:
            results["free_energy"] = results["energy"]
        if "stress" in results:
            results["stress"] = full_3x3_to_voigt_6_stress(results["stress"])
        self._warn(structure, graph, results)
        self.results = results

    def export_properties(self) -> Properties:
        """The results that ASE knows."""
        return Properties({name: value for name, value in self.results.items() if name in all_outputs})

    def todict(self, skip_default: bool = True) -> dict[str, Any]:
        """What a trajectory notes."""
        return {"task": self.task.name, "conservative": self.conservative, "dtype": self.dtype}

    def _check(self, structure: Structure) -> None:
        structure.check(self._where)
        self._prepared.check_elements(structure.numbers.tolist(), self._where)
        check_references(structure, self.task)

    @property
    def _where(self) -> str:
        return f"calculator of task {self.task.name}"

    def _warn(self, structure: Structure, graph: StructureGraph, results: dict[str, Any]) -> None:
        """Say once of each kind what makes a prediction doubtful."""
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
            largest, spread = float(np.abs(results["forces"]).max()), self.task.targets["forces"].normaliser.scale
            if largest > FAR_FROM_TRAINING * spread:
                times = f"{largest / spread:.0f} times the spread of the training forces"
                self._say("far", f"a force of {largest:.3g} eV/Å, {times}")

    def _say(self, kind: str, what: str) -> None:
        self._warned.add(kind)
        log.warning(
            "%s: %s; far from the structures it was trained on, predictions mean little (said once)", self._where, what
        )

    def __repr__(self) -> str:
        return (
            f"EutecticCalculator, task {self.task.name} ({self.task.level_of_theory}), {self.dtype} on {self.device}: "
            f"{', '.join(self.implemented_properties)}; forces: {self.forces_are}"
        )
