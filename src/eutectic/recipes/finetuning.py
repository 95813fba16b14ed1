"""Settings of a fine-tuning from its most important options."""

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
        properties: to learn; all together select the best step.
        model: pre-trained model to start from; with `from_scratch` only its architecture is used.
        from_scratch: start from random weights.
        head_from: task of the model whose heads are reused where they fit; "auto": one of the same level of theory
            whose errors are below the mean predictor's, or the only task of a model of another package; None: new
            heads.
        conservative: predict forces as derivatives of the energy, which is learned too (True), or directly, by a head
            of their own (False: two to three times as fast, but the forces of no energy); None: conservative where
            both energy and forces are asked for.
        split: name of the split.
        n_train, n_validation, n_test: numbers of structures.
        steps, epochs, time: length of the training, one of them; a time in seconds, or as "30m".
        until_converged: train until the validation error no longer falls; `epochs` or `time` is then the most.
        batch_size, learning_rate, weight_decay, seed: of the training.
        weights: property → its weight in the loss, of normalised values; 1 each by default, 10 for conservative
            forces.
        loss: mae, mse or huber, of every property that is not a class; mae by default.
        freeze: parts of the model that are not trained: embedding, blocks, block_0, readout, …, backbone, heads.
        keep_blocks: leave out all blocks of the backbone but this many, the first.
        lora: train low-rank changes of this rank in place of the backbone's weights.
        layer_decay: learning rate of each block relative to that of the block after it.
        energy_stage: last part of the run, as a fraction, in which the energy weighs more.
        effort: climb a ladder of trainings while that pays, for about a minute ("seconds"), ten ("minutes"), an hour
            ("hour"), or until each has converged ("full"), in place of a length.
        keys, units, elements, level_of_theory: how to read a file.
        skip_unconverged: leave out calculations of a file that did not converge.
        test_file: a store or file to test on, read like the data, of which nothing is then set aside for a test.
        together_with: other data to learn from at the same time, with heads of its own: names of data sets, stores or
            files, each with =PROPERTY,… where not all properties of the run that it has, or those of the model's task
            of the same name, are learned.
        remember: tasks of the model whose predictions on the training structures are learned too, so that it does not
            forget them.
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
            f"asked for, and no forces among {', '.join(properties)}",
            "forces to learn",
            "add the property forces, or leave it out",
        )
    if conservative is None:
        conservative = {"energy", "forces"} <= set(properties)
    lengths = _given(steps=steps, epochs=epochs, time=time, until_converged=until_converged or None)
    if effort is not None and lengths:
        raise EutecticError(
            "effort",
            f"{effort}, beside {', '.join(lengths)}",
            "an effort or a length: an effort decides the lengths of its trainings",
            "leave one of them out",
        )
    targets = default_targets(properties, conservative=conservative)
    if head_from is not None and not from_scratch:
        own = _Heads.of(start)
        if head_from == "auto" and own.default is not None:
            head_from = own.default
        # Of the kept heads' depth.
        theirs = own.by_task.get(head_from, {})
        kept = {n: theirs[n] for n, t in targets.items() if n in theirs and t.head.kind in (None, theirs[n].kind)}
        targets |= {n: targets[n].model_copy(update={"head": head}) for n, head in kept.items()}
    unknown = [name for name in weights or {} if name not in targets]
    if unknown:
        raise EutecticError(
            "weights",
            f"a weight for {', '.join(unknown)}",
            f"properties that are learned: {', '.join(targets)}",
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
    """Settings of companions: task → data and properties, or the start's own task.

    Raises:
        EutecticError: one name for two of them.
    """
    found: dict[str, Any] = {}
    for given in together_with:
        path, _, names = str(given).partition("=")
        properties = [name.strip() for name in names.split(",") if name.strip()]
        one: dict[str, Any] = {"store": path}
        if properties:
            targets = default_targets(properties, conservative={"energy", "forces"} <= set(properties))
            one["targets"] = {name: target.model_dump(exclude_none=True) for name, target in targets.items()}
        _add(found, task_name(path), one)
    for task in remember:
        _add(found, task, {"head_from": task})
    return found


def _add(found: dict[str, Any], name: str, one: dict[str, Any]) -> None:
    if name in found:
        raise EutecticError(
            "together_with and remember",
            f"{name!r} twice",
            "a name for each, which its task gets in the model",
            "leave one out, or rename a file",
        )
    found[name] = one


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


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
