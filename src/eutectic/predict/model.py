"""A trained model, ready to predict."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast, overload

import numpy as np
import torch
from ase import Atoms
from ase.data import chemical_symbols

from eutectic.atoms import PROPERTIES, EutecticError, Structure
from eutectic.checkpoints.model import TrainedModel, elements_seen, load_model
from eutectic.models.foreign.package import Package
from eutectic.predict.calculator import EutecticCalculator
from eutectic.predict.devices import default_device
from eutectic.predict.embedding import embed_each
from eutectic.predict.prediction import Prediction, predict, task_of
from eutectic.predict.prepared import compiled

if TYPE_CHECKING:
    from eutectic.predict.torchsim import EutecticTorchSim

Input = Atoms | Structure

TORCHSIM = Package(
    distribution="torch-sim-atomistic",
    module="torch_sim",
    extra="torchsim",
    versions=("0.6.2", "0.7"),
    python=(3, 12),
)


def load(name_or_path: str | Path, *, device: str | torch.device = "auto") -> Model:
    """Load a model from the package or from a folder.

    Args:
        name_or_path: "eutectic-small", or the `model` folder of a run (or the run's folder itself).
        device: "cpu", "cuda", …; "auto" takes a GPU if there is one.

    Raises:
        EutecticError: no such model, or a damaged one.
    """
    trained = load_model(name_or_path)
    trained.module.to(default_device() if device == "auto" else device)
    return Model(trained, str(name_or_path))


class Model:
    """A trained model that predicts properties of structures; see `load`.

    Args:
        trained: weights, tasks and provenance.
        name: the name or path it was loaded from.
    """

    def __init__(self, trained: TrainedModel, name: str = "") -> None:
        self.trained = trained
        self.name = name

    @property
    def tasks(self) -> dict[str, dict[str, str]]:
        """Task → property → unit of its prediction."""
        return {task.name: {name: PROPERTIES[name].unit for name in task.targets} for task in self.trained.tasks}

    @property
    def elements(self) -> list[str]:
        """Symbols of the elements in its training structures; empty if unknown."""
        return [chemical_symbols[z] for z in sorted(elements_seen(self.trained))]

    @property
    def n_parameters(self) -> int:
        """Number of parameters of the backbone and all heads."""
        return sum(p.numel() for p in self.trained.module.parameters())

    @property
    def device(self) -> torch.device:
        """Device of the weights, on which predictions run."""
        return next(self.trained.module.parameters()).device

    @overload
    def predict(
        self,
        structures: Input,
        *,
        task: str | None = ...,
        batch_size: int = ...,
        conservative: bool = ...,
        compile: bool = ...,
    ) -> Prediction: ...

    @overload
    def predict(
        self,
        structures: Sequence[Input],
        *,
        task: str | None = ...,
        batch_size: int = ...,
        conservative: bool = ...,
        compile: bool = ...,
    ) -> list[Prediction]: ...

    def predict(
        self,
        structures: Input | Sequence[Input],
        *,
        task: str | None = None,
        batch_size: int = 32,
        conservative: bool = False,
        compile: bool = False,
    ) -> Prediction | list[Prediction]:
        """Predict the properties of one or several structures.

        Args:
            structures: `ase.Atoms` or `eutectic.Structure`, one or a sequence.
            task: sets heads, graph, references and level of theory; required if the model has several tasks.
            batch_size: structures per batch.
            conservative: predict forces and, for periodic structures, stress as derivatives of the energy.
            compile: compile the model in the first call, which takes 10 to 40 s; later calls are faster.

        Returns:
            Property → NumPy array in the property's unit: energy () eV, forces (n_atoms, 3) eV/Å, …; for a sequence, a
            list of these.

        Raises:
            EutecticError: several tasks and none given; no such task; a structure that cannot be predicted, with
                its index (see `eutectic.predict.prediction.predict`).
        """
        single = isinstance(structures, Atoms | Structure)
        inputs = _inputs(structures)
        name = task_of(self.trained, task, f"model {self.name}").name
        model = self._compiled if compile else self.trained
        predictions = predict(model, name, inputs, batch_size=batch_size, conservative=conservative)
        return predictions[0] if single else predictions

    @cached_property
    def _compiled(self) -> TrainedModel:
        return compiled(self.trained)

    @overload
    def embed(
        self,
        structures: Input,
        *,
        per: Literal["structure", "atom"] = ...,
        task: str | None = ...,
        batch_size: int = ...,
    ) -> np.ndarray: ...

    @overload
    def embed(
        self,
        structures: Sequence[Input],
        *,
        per: Literal["structure", "atom"] = ...,
        task: str | None = ...,
        batch_size: int = ...,
    ) -> list[np.ndarray]: ...

    def embed(
        self,
        structures: Input | Sequence[Input],
        *,
        per: Literal["structure", "atom"] = "structure",
        task: str | None = None,
        batch_size: int = 32,
    ) -> np.ndarray | list[np.ndarray]:
        """Invariant backbone features of one or several structures.

        Args:
            structures: as for `predict`.
            per: "structure": one embedding per structure, the mean over its atoms; "atom": one per atom.
            task: the task whose graph settings are used; default: the model's own.
            batch_size: structures per batch.

        Returns:
            (width,) for each structure, or (n_atoms, width), float32; for a sequence, a list of these.

        Raises:
            EutecticError: no such task; an invalid structure, with its index.
        """
        single = isinstance(structures, Atoms | Structure)
        inputs = _inputs(structures)
        embeddings = []
        window = max(1, len(inputs))
        for embedding in embed_each(self.trained, inputs, per=per, task=task, batch_size=batch_size, window=window):
            if isinstance(embedding, EutecticError):
                raise embedding
            embeddings.append(embedding)
        return embeddings[0] if single else embeddings

    def calculator(
        self,
        *,
        task: str | None = None,
        conservative: bool | None = None,
        dtype: str = "float32",
        device: str | torch.device | None = None,
        skin: float = 0.5,
        compile: bool = False,
    ) -> EutecticCalculator:
        """An ASE calculator: `atoms.calc = model.calculator()`.

        Args:
            task: required if the model has several tasks.
            conservative: forces and stress are derivatives of the energy (True) or predicted by the task's heads
                (False); default: derivatives only if no head predicts forces.
            dtype: "float32", "float64" or "bfloat16" (matrix products only).
            device: default: the model's device.
            skin: Å; the neighbour list is rebuilt only after an atom has moved by half the skin.
            compile: compile the model in the first calculation (10 to 40 s), for faster steps.

        Raises:
            EutecticError: see `EutecticCalculator`.
        """
        return EutecticCalculator(
            self.trained,
            task=task,
            conservative=conservative,
            dtype=dtype,
            device=device,
            skin=skin,
            compile=compile,
        )

    def torchsim(
        self,
        *,
        task: str | None = None,
        conservative: bool | None = None,
        dtype: str | torch.dtype = "float32",
        device: str | torch.device | None = None,
        compute_stress: bool | None = None,
        compile: bool = False,
    ) -> EutecticTorchSim:
        """A model for TorchSim, which relaxes or simulates many structures at once: `ts.optimize(atoms, model, …)`.

        Args:
            task, conservative, device, compile: as for `calculator`.
            dtype: as for `calculator`, or `torch.float64`, …; also the precision of TorchSim's positions and energies.
            compute_stress: default: whether the task has a stress head or derivatives are taken.

        Raises:
            EutecticError: the package torch-sim-atomistic is missing or its version untested, or Python is too old for
                it; otherwise see `EutecticTorchSim`.
        """
        TORCHSIM.load("models.interface")
        from eutectic.predict.torchsim import EutecticTorchSim

        return EutecticTorchSim(
            self.trained,
            task=task,
            conservative=conservative,
            dtype=dtype,
            device=device,
            compute_stress=compute_stress,
            compile=compile,
        )

    def __repr__(self) -> str:
        lines = [f"Model {self.name}: {self.trained.backbone}, {self.n_parameters:,} parameters, on {self.device}"]
        for task in self.trained.tasks:
            units = ", ".join(f"{name} ({PROPERTIES[name].unit})" for name in task.targets)
            lines.append(f"  {task.name}: {units}; {task.level_of_theory}")
        if elements := self.elements:
            lines.append(f"  elements: {' '.join(elements)}")
        return "\n".join(lines)


def _inputs(structures: Input | Sequence[Input]) -> list[Structure]:
    single = isinstance(structures, Atoms | Structure)
    items = [cast(Input, structures)] if single else list(cast(Sequence[Input], structures))
    return [item if isinstance(item, Structure) else Structure.from_ase(item) for item in items]
