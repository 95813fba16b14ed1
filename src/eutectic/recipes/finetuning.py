"""Settings of a fine-tuning from its most important options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eutectic.atoms import EutecticError
from eutectic.checkpoints.description import read_description
from eutectic.checkpoints.shipped import model_folder
from eutectic.models.heads import HeadSettings
from eutectic.train.settings import FinetuneSettings, default_targets, merged, parse


def finetuning(
    data: str | Path,
    properties: Sequence[str],
    *,
    model: str | Path | None = "eutectic-small",
    from_scratch: bool = False,
    head_from: str | None = None,
    forces: str | None = None,
    split: str | None = None,
    n_train: int | None = None,
    n_validation: int | None = None,
    n_test: int | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    weight_decay: float | None = None,
    seed: int | None = None,
    keys: Mapping[str, str] | None = None,
    units: Mapping[str, str] | None = None,
    define: Sequence[str] = (),
    elements: str | None = None,
    level_of_theory: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> FinetuneSettings:
    """Settings of one fine-tuning; defaults are those of `FinetuneSettings`.

    Args:
        data: name of a data set, path of a store, or a file that ASE reads.
        properties: to learn; forces, else the first one, select the best step.
        model: pre-trained model to start from; with `from_scratch` only its architecture is used.
        from_scratch: start from random weights.
        head_from: task of the model whose heads are reused where they fit; default: that of a model of another package.
        forces: "direct", or "gradient" of the energy (conservative); default: as the tasks of the model, and direct
            where these differ or have no forces.
        split: name of the split.
        n_train, n_validation, n_test: numbers of structures.
        steps, batch_size, learning_rate, weight_decay, seed: of the training.
        keys, units, elements, level_of_theory: how to read a file.
        define: new properties, as NAME=UNIT[,atom][,vector|tensor|class][,extensive].
        settings: any other setting, section by section, e.g. {"train": {"precision": "bf16-mixed"}}.

    Raises:
        EutecticError: unknown properties or settings (with the nearest known name), values out of range.
    """
    if forces not in (None, "direct", "gradient"):
        raise EutecticError("forces", repr(forces), "direct or gradient", "choose one of these")
    if isinstance(properties, str):
        properties = [properties]
    start = None if model is None else str(model)
    own = _Heads.of(start)
    head_from = head_from or (None if from_scratch else own.default)
    targets = default_targets(properties, gradient_forces=(forces or own.forces) == "gradient")
    if head_from is not None:
        # Of the kept heads' depth.
        theirs = own.by_task.get(head_from, {})
        kept = {n: theirs[n] for n, t in targets.items() if n in theirs and t.head.kind in (None, theirs[n].kind)}
        targets |= {n: targets[n].model_copy(update={"head": head}) for n, head in kept.items()}
    values: dict[str, Any] = {
        "define": list(define),
        "data": {
            "store": str(data),
            "split": split,
            "train": n_train,
            "validation": n_validation,
            "test": n_test,
            "keys": dict(keys or {}),
            "units": dict(units or {}),
            "elements": elements,
        },
        "targets": {name: target.model_dump(exclude_none=True) for name, target in targets.items()},
        "start": "scratch" if from_scratch else start,
        "architecture_from": start if from_scratch and "backbone" not in (settings or {}) else None,
        "head_from": head_from,
        "optimiser": _given(learning_rate=learning_rate, weight_decay=weight_decay),
        "train": _given(steps=steps, batch_size=batch_size, seed=seed),
    }
    if level_of_theory is not None:
        values["data"]["level_of_theory"] = level_of_theory
    return parse(FinetuneSettings, merged(values, dict(settings or {})), "settings of the fine-tuning")


@dataclass(frozen=True)
class _Heads:
    """The heads of the model that a fine-tuning starts from.

    Attributes:
        by_task: task → property → head.
        default: the only task of a model of another package: new heads would throw its energy away.
    """

    by_task: Mapping[str, Mapping[str, HeadSettings]]
    default: str | None = None

    @classmethod
    def of(cls, model: str | None) -> _Heads:
        """Read from its description; none where it cannot be read, which the run itself reports."""
        if model is None:
            return cls({})
        try:
            description = read_description(model_folder(model))
        except EutecticError:
            return cls({})
        by_task = {
            task["name"]: {n: HeadSettings.model_validate(t["settings"]["head"]) for n, t in task["targets"].items()}
            for task in description["tasks"]
        }
        foreign = "package" in description["provenance"] and len(by_task) == 1
        return cls(by_task, next(iter(by_task)) if foreign else None)

    @property
    def forces(self) -> str:
        kinds = {heads["forces"].kind for heads in self.by_task.values() if "forces" in heads}
        return "gradient" if kinds == {"gradient_forces"} else "direct"


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
