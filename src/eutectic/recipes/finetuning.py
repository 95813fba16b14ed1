"""Settings of a fine-tuning from its most important options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eutectic.atoms import EutecticError
from eutectic.train.settings import FinetuneSettings, default_targets, merged, parse


def finetuning(
    data: str | Path,
    properties: Sequence[str],
    *,
    model: str | Path | None = "eutectic-small",
    from_scratch: bool = False,
    head_from: str | None = None,
    forces: str = "direct",
    split: str | None = None,
    n_train: int | None = None,
    n_validation: int | None = None,
    n_test: int | None = None,
    steps: int | None = None,
    epochs: float | None = None,
    time: float | str | None = None,
    until_converged: bool = False,
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
        head_from: task of the model whose heads are reused where they fit.
        forces: predicted directly, or as the gradient of the energy (conservative).
        split: name of the split.
        n_train, n_validation, n_test: numbers of structures.
        steps, epochs, time: length of the training, one of them; a time in seconds, or as "30m".
        until_converged: train until the validation error no longer falls; `epochs` or `time` is then the most.
        batch_size, learning_rate, weight_decay, seed: of the training.
        keys, units, elements, level_of_theory: how to read a file.
        define: new properties, as NAME=UNIT[,atom][,vector|tensor|class][,extensive].
        settings: any other setting, section by section, e.g. {"train": {"precision": "bf16-mixed"}}.

    Raises:
        EutecticError: unknown properties or settings (with the nearest known name), values out of range.
    """
    if forces not in ("direct", "gradient"):
        raise EutecticError("forces", repr(forces), "direct or gradient", "choose one of these")
    if isinstance(properties, str):
        properties = [properties]
    start = None if model is None else str(model)
    targets = default_targets(properties, gradient_forces=forces == "gradient")
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
        "train": _given(
            steps=steps,
            epochs=epochs,
            time=time,
            until_converged=until_converged or None,
            batch_size=batch_size,
            seed=seed,
        ),
    }
    if level_of_theory is not None:
        values["data"]["level_of_theory"] = level_of_theory
    return parse(FinetuneSettings, merged(values, dict(settings or {})), "settings of the fine-tuning")


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
