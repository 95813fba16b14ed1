"""Complete settings of a fine-tuning from its most important options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eutectic.atoms import PROPERTIES, EutecticError, did_you_mean
from eutectic.checkpoints.description import read_description
from eutectic.checkpoints.shipped import model_folder
from eutectic.models.heads import HeadSettings
from eutectic.train.settings import FinetuneSettings, default_targets, merged, parse, task_name


def finetuning(
    data: str | Path,
    properties: Sequence[str],
    *,
    model: str | Path | None = "eutectic-small",
    from_scratch: bool = False,
    head_from: str | None = "auto",
    conservative: bool | None = None,
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
    weights: Mapping[str, float] | None = None,
    loss: str | None = None,
    freeze: Sequence[str] | str = (),
    keep_blocks: int | None = None,
    lora: int | None = None,
    layer_decay: float | None = None,
    energy_stage: float | None = None,
    effort: str | None = None,
    keys: Mapping[str, str] | None = None,
    units: Mapping[str, str] | None = None,
    define: Sequence[str] = (),
    elements: str | None = None,
    level_of_theory: str | None = None,
    skip_unconverged: bool = False,
    test_file: str | Path | None = None,
    together_with: Sequence[str | Path] = (),
    remember: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
) -> FinetuneSettings:
    """Settings of one fine-tuning; defaults are those of `FinetuneSettings`.

    Args:
        data: name of a data set, path of a store, or a file that ASE reads.
        properties: to learn; the best step is chosen by all of them.
        model: pre-trained model to start from; with `from_scratch`, only its architecture is used.
        from_scratch: start from random weights.
        head_from: task of the model whose heads are reused where they fit; "auto": a task that beats the mean
            predictor, or halves its error at another level of theory, or the only task of a model of another package;
            None: new heads.
        conservative: predict forces as derivatives of the energy, which is learned too (True), or directly by a
            separate head (False: two to three times as fast, but not conservative); None: conservative if both energy
            and forces are learned.
        split: name of the split.
        n_train, n_validation, n_test: numbers of structures.
        steps, epochs, time: length of the training, only one of them; a time in seconds, or as "30m".
        until_converged: train until the validation error no longer falls; `epochs` or `time` is then the maximum.
        batch_size, learning_rate, weight_decay, seed: of the training.
        weights: property → its weight in the loss of normalised values; default: 1, and 10 for conservative forces.
        loss: mae, mse or huber, for all properties that are not classes; default: mae.
        freeze: parts of the model that are not trained: embedding, blocks, block_0, readout, …, backbone, heads.
        keep_blocks: keep only the first blocks of the backbone, this many.
        lora: train low-rank updates (LoRA) of this rank instead of the backbone's weights.
        layer_decay: learning rate of each block relative to the next block.
        energy_stage: final fraction of the run with a larger weight of the energy.
        effort: instead of a length, a ladder of trainings as long as the error improves, for about a minute
            ("seconds"), ten minutes ("minutes"), an hour ("hour"), or until each has converged ("full").
        keys, units, elements, level_of_theory: how to read a file.
        skip_unconverged: skip calculations of a file that did not converge.
        test_file: store or file to test on, read like the data; no test split is then taken from the data.
        together_with: other data to learn from at the same time, with separate heads: names of data sets, stores or
            files. Learned are the properties of the model's task of the same name, or else those of the run that are
            present; NAME=PROPERTY,… selects others.
        remember: tasks that the model should not forget: its predictions on the training structures are learned too.
        define: new properties, as NAME=UNIT[,atom][,vector|tensor|class][,extensive].
        settings: any other setting, section by section, e.g. {"train": {"precision": "bf16-mixed"}}.

    Raises:
        EutecticError: unknown properties or settings (with the nearest known name), values out of range.
    """
    if isinstance(properties, str):
        properties = [properties]
    start = None if model is None else str(model)
    if conservative and "forces" not in properties:
        raise EutecticError(
            "conservative",
            f"requested without forces among {', '.join(properties)}",
            "forces to learn",
            "add the property forces, or leave it out",
        )
    if conservative is None:
        conservative = {"energy", "forces"} <= set(properties)
    lengths = _given(steps=steps, epochs=epochs, time=time, until_converged=until_converged or None)
    if effort is not None and lengths:
        raise EutecticError(
            "effort",
            f"{effort}, together with {', '.join(lengths)}",
            "an effort or a length: an effort sets the lengths of its trainings",
            "leave one of them out",
        )
    targets = default_targets(properties, conservative=conservative)
    if head_from is not None and not from_scratch:
        of_start = _Heads.of(start)
        if head_from == "auto" and of_start.default is not None:
            head_from = of_start.default
        # Heads must have the settings of the kept heads to fit them.
        heads = of_start.by_task.get(head_from, {})
        kept = {n: heads[n] for n, t in targets.items() if n in heads and t.head.kind in (None, heads[n].kind)}
        targets |= {n: targets[n].model_copy(update={"head": head}) for n, head in kept.items()}
    unknown = [name for name in weights or {} if name not in targets]
    if unknown:
        raise EutecticError(
            "weights",
            f"a weight for {', '.join(unknown)}",
            f"weights of learned properties: {', '.join(targets)}",
            did_you_mean(unknown[0], targets, "learn it too, or leave out its weight"),
        )
    companions = _companions(together_with, remember)
    chosen = {name: target.model_dump(exclude_none=True) for name, target in targets.items()}
    for name in targets:
        if weights and name in weights:
            chosen[name]["weight"] = weights[name]
        if loss is not None and not PROPERTIES[name].categorical:
            chosen[name]["loss"] = loss
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
            "skip_unconverged": skip_unconverged,
            "test_file": None if test_file is None else str(test_file),
        },
        "targets": chosen,
        "start": "scratch" if from_scratch else start,
        "architecture_from": start if from_scratch and "backbone" not in (settings or {}) else None,
        "head_from": head_from,
        "companions": companions,
        "freeze": freeze if isinstance(freeze, str) else list(freeze),
        "keep_blocks": keep_blocks,
        "lora": lora,
        "effort": effort,
        "optimiser": _given(learning_rate=learning_rate, weight_decay=weight_decay, layer_decay=layer_decay),
        "train": {**lengths, **_given(batch_size=batch_size, seed=seed)},
    }
    if energy_stage is not None:
        values["energy_stage"] = energy_stage
    if level_of_theory is not None:
        values["data"]["level_of_theory"] = level_of_theory
    return parse(FinetuneSettings, merged(values, dict(settings or {})), "settings of the fine-tuning")


def _companions(together_with: Sequence[str | Path], remember: Sequence[str]) -> dict[str, Any]:
    """Settings of companions: task → data and properties, or task of the starting model.

    Raises:
        EutecticError: two companions with the same name.
    """
    found: dict[str, Any] = {}
    for given in together_with:
        path, _, names = str(given).partition("=")
        properties = [name.strip() for name in names.split(",") if name.strip()]
        companion: dict[str, Any] = {"store": path}
        if properties:
            targets = default_targets(properties, conservative={"energy", "forces"} <= set(properties))
            companion["targets"] = {name: target.model_dump(exclude_none=True) for name, target in targets.items()}
        _add(found, task_name(path), companion)
    for task in remember:
        _add(found, task, {"head_from": task})
    return found


def _add(found: dict[str, Any], name: str, companion: dict[str, Any]) -> None:
    if name in found:
        raise EutecticError(
            "together_with and remember",
            f"{name!r} twice",
            "different names, which become the names of their tasks in the model",
            "leave one out, or rename a file",
        )
    found[name] = companion


@dataclass(frozen=True)
class _Heads:
    """The heads of the model that a fine-tuning starts from.

    Attributes:
        by_task: task → property → head.
        default: the only task of a model of another package, since new heads would discard its energy.
    """

    by_task: Mapping[str, Mapping[str, HeadSettings]]
    default: str | None = None

    @classmethod
    def of(cls, model: str | None) -> _Heads:
        """Read the model's description; no heads if it cannot be read, which the run itself reports."""
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


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
