"""Tasks: the properties of one data set, each with a head, a loss and a normaliser."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from scipy.special import softmax

from eutectic.atoms import PROPERTIES, EutecticError, LabelledStructure, Property, define
from eutectic.graph import GraphSettings
from eutectic.models.heads import HeadSettings, resolve
from eutectic.tasks.references import References

Loss = Literal["mae", "mse", "huber", "cross_entropy"]


class TargetSettings(BaseModel):
    """One property to learn. Defaults depend on the property (see `resolve`)."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    head: HeadSettings = Field(default=HeadSettings(), description="head that predicts the property")
    weight: float = Field(default=1.0, ge=0, description="weight of this property in the loss")
    weight_by_size: bool = Field(
        default=False,
        description="multiply the weight by the mean number of atoms of a training structure (JMP's force weight)",
    )
    loss: Loss | None = Field(
        default=None,
        description="mae, mse or huber of normalised values (see tasks/loss.py); cross_entropy for classes only. "
        "Default: mae; for classes cross_entropy",
    )

    def resolve(self, prop: Property) -> TargetSettings:
        """These settings with all defaults filled in, except the number of classes."""
        head = resolve(self.head, prop)
        loss: Loss = self.loss or ("cross_entropy" if head.entry.categorical else "mae")
        return self.model_copy(update={"head": head, "loss": loss})


@dataclass(frozen=True)
class Normaliser:
    """Maps a label to (label − Σ references − mean) / scale, in float64.

    Attributes:
        references: per-element references, or None for a property without them.
        mean, scale: shift and divisor, in the property's unit.
    """

    references: References | None
    mean: float
    scale: float

    def normalise(self, value: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """Convert a label to model units."""
        reference = self.references.of(numbers) if self.references is not None else 0.0
        return np.asarray((np.asarray(value, dtype=np.float64) - reference - self.mean) / self.scale)

    def denormalise(self, value: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """Convert a prediction to the property's unit."""
        reference = self.references.of(numbers) if self.references is not None else 0.0
        return np.asarray(np.asarray(value, dtype=np.float64) * self.scale + self.mean + reference)

    def of_atoms(self, values: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """Per-atom contributions (n_atoms,) in the property's unit; they sum to `denormalise` of the summed input."""
        reference = self.references.of_atoms(numbers) if self.references is not None else 0.0
        return np.asarray(np.asarray(values, dtype=np.float64) * self.scale + self.mean / len(numbers) + reference)

    def to_dict(self) -> dict[str, object]:
        """Plain JSON."""
        references = None if self.references is None else self.references.to_dict()
        return {"references": references, "mean": self.mean, "scale": self.scale}

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> Normaliser:
        """The inverse of `to_dict`."""
        references = values["references"]
        return cls(
            references=None if references is None else References.from_dict(references),  # type: ignore[arg-type]
            mean=float(values["mean"]),  # type: ignore[arg-type]
            scale=float(values["scale"]),  # type: ignore[arg-type]
        )


@dataclass(frozen=True)
class Target:
    """A property to learn, with its settings, normaliser and loss weight."""

    settings: TargetSettings
    normaliser: Normaliser
    weight: float

    @property
    def categorical(self) -> bool:
        """Whether the head predicts logits of classes."""
        return self.settings.head.entry.categorical

    def physical(self, value: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """A head's prediction for one structure in the property's unit; for classes (n_classes,) probabilities."""
        if self.categorical:
            return np.asarray(softmax(np.asarray(value, dtype=np.float64), axis=-1))
        return self.normaliser.denormalise(value, numbers)


@dataclass(frozen=True)
class Task:
    """A data set's targets and graph settings.

    Attributes:
        name: name of the task and of its heads.
        level_of_theory: level of theory of the labels.
        targets: property name → target; its settings are resolved.
        graph: graph settings of this task's structures.
    """

    name: str
    level_of_theory: str
    targets: Mapping[str, Target]
    graph: GraphSettings

    def __post_init__(self) -> None:
        resolved = {n: replace(t, settings=t.settings.resolve(self.property(n))) for n, t in self.targets.items()}
        object.__setattr__(self, "targets", resolved)

    @property
    def heads(self) -> dict[str, HeadSettings]:
        """Property → head, in the form that `MultitaskModel` expects."""
        return {name: target.settings.head for name, target in self.targets.items()}

    @property
    def has_derivatives(self) -> bool:
        """Whether a head is a derivative of the energy."""
        return any(head.entry.derivative for head in self.heads.values())

    def property(self, name: str) -> Property:
        """The definition of a target's property."""
        return PROPERTIES[name]

    def normalised_labels(self, labelled: LabelledStructure) -> dict[str, np.ndarray]:
        """The labels of this task's targets, in model units; missing labels are left out.

        Raises:
            EutecticError: an element without a reference.
        """
        numbers = labelled.structure.numbers
        try:
            return {
                name: target.normaliser.normalise(labelled.labels[name], numbers)
                for name, target in self.targets.items()
                if name in labelled.labels
            }
        except EutecticError as error:
            raise EutecticError(f"{self.name}, {labelled.id}", error.given, error.expected, error.fix) from error

    def to_dict(self) -> dict[str, object]:
        """Plain JSON."""
        return {
            "name": self.name,
            "level_of_theory": self.level_of_theory,
            "graph": self.graph.model_dump(mode="json"),
            "targets": {
                name: {
                    "settings": target.settings.model_dump(mode="json"),
                    "normaliser": target.normaliser.to_dict(),
                    "weight": target.weight,
                    "unit": self.property(name).unit,
                    "property": self.property(name).to_dict(),
                }
                for name, target in self.targets.items()
            },
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> Task:
        """The inverse of `to_dict`; defines properties that are not built in.

        Raises:
            EutecticError: a target's unit or definition differs from the one in this process.
        """
        targets: Mapping[str, Mapping[str, object]] = values["targets"]  # type: ignore[assignment]
        for name, target in targets.items():
            _check_property(f"task {values['name']!r} of the model, target {name!r}", name, target)
        return cls(
            name=str(values["name"]),
            level_of_theory=str(values["level_of_theory"]),
            graph=GraphSettings.model_validate(values["graph"]),
            targets={
                name: Target(
                    settings=TargetSettings.model_validate(target["settings"]),
                    normaliser=Normaliser.from_dict(target["normaliser"]),  # type: ignore[arg-type]
                    weight=float(target["weight"]),  # type: ignore[arg-type]
                )
                for name, target in targets.items()
            },
        )


def _check_property(where: str, name: str, target: Mapping[str, Any]) -> None:
    """Reject a target that was learned with another unit or definition than in this process."""
    if "property" in target:
        define(Property.from_dict(target["property"], where), where)
    if name not in PROPERTIES:
        raise EutecticError(
            where,
            "a property that is not defined here",
            f"its definition in the model, or one of {', '.join(PROPERTIES)}",
            "define it first: eutectic.atoms.define",
        )
    # Models of older versions record only the unit.
    if target.get("unit", PROPERTIES[name].unit) != PROPERTIES[name].unit:
        raise EutecticError(
            where,
            f"learned in {target['unit']!r}",
            f"{PROPERTIES[name].unit!r}, the unit of {name} in eutectic",
            "use the version of eutectic that wrote the model, or train it again",
        )
