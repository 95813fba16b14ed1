"""What a fine-tuning prints before it trains: its data, and which parts of the model are kept, new or dropped.

These functions only print, and leave the run as it is; checks that also warn are with the preparation.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from ase.data import chemical_symbols
from rich.console import Console
from torch import nn

from eutectic.checkpoints.model import elements_seen, task_named
from eutectic.models.registry import backbone_entry
from eutectic.tasks.metrics import shown
from eutectic.train.batches.sampler import TaskDataset
from eutectic.train.evaluation import evaluate
from eutectic.train.finetune_preparation import Prepared
from eutectic.train.kept_heads import AUTO, TRIED_ON
from eutectic.train.loop import can_compile_derivatives
from eutectic.train.ridge import fit_ridge, why_not, with_linear_heads
from eutectic.train.settings import FinetuneSettings

RIDGE_FITTED_TO = 256
"""Training structures of the ridge regression at the start of a run."""

WORTH_COMPILING = 900.0
"""Seconds of training from which on compilation is recommended."""


def announce(console: Console, settings: FinetuneSettings, prepared: Prepared) -> None:
    """Before training, print the data, the split, which parts of the model are kept or new, and what is faster."""
    _announce_data(console, settings, prepared)
    _announce_start(console, settings, prepared)
    if _is_worth_compiling(settings, prepared):
        console.print(
            "faster: --train.compile true compiles for a few minutes, and then saves a third of a step or more",
            highlight=False,
        )


def _is_worth_compiling(settings: FinetuneSettings, prepared: Prepared) -> bool:
    """Whether a long run with conservative forces could be compiled, and is not."""
    train, backbone = settings.train, backbone_entry(prepared.backbone.name).module
    return (
        not train.compile
        and (train.time or 0.0) >= WORTH_COMPILING
        and prepared.task.has_derivatives
        and can_compile_derivatives(prepared.tasks, train, getattr(backbone, "traceable", False))
        # The gain was measured on CPUs only. There, torch.compile needs a C++ compiler.
        and not torch.accelerator.is_available()
        and any(map(shutil.which, ("c++", "g++", "clang++")))
    )


def _announce_data(console: Console, settings: FinetuneSettings, prepared: Prepared) -> None:
    store, parts, task = prepared.store, prepared.split, prepared.task
    counts = store.label_counts()
    console.print(
        f"{store.card.name} ({store.card.level_of_theory}): {len(store):,} structures, "
        + ", ".join(f"{name} {counts[name]:,}" for name in task.targets if name in counts)
        + f"; split {parts.name!r}: {len(parts.train):,} training, {len(parts.validation):,} validation, "
        f"{len(parts.test):,} test",
        highlight=False,
    )
    missing = {
        "validation": "the weights of the last step are kept, and there is no validation error",
        "test": "there is no test error",
    }
    for part, rows in (("validation", parts.validation), ("test", parts.test)):
        if not len(rows) and not (part == "test" and prepared.test is not None):
            console.print(f"[yellow]no {part} structures:[/] {missing[part]}", highlight=False)
    if settings.energy_stage:
        console.print(
            f"in the last {settings.energy_stage:.0%} of the run, the weight of the energy is multiplied by "
            f"{settings.energy_stage_factor:g}",
            highlight=False,
        )
    if settings.graph is None and prepared.graph.smooth_cap:
        console.print(
            f"graph: {prepared.graph.max_neighbours} neighbours; the farthest fade out over "
            f"{prepared.graph.smooth_cap:g} Å, so that conservative forces are continuous",
            highlight=False,
        )
    for companion in prepared.companions:
        console.print(f"together with: {companion.in_words}", highlight=False)


def _announce_start(console: Console, settings: FinetuneSettings, prepared: Prepared) -> None:
    parts, task, store, start = prepared.split, prepared.task, prepared.store, prepared.start
    if start is None:
        like = f" with the architecture of {settings.architecture_from}" if settings.architecture_from else ""
        console.print(f"from scratch: {prepared.backbone.name}{like}, seed {settings.train.seed}", highlight=False)
        return
    kept = prepared.kept
    if settings.keep_blocks is not None:
        console.print(f"kept: the first {settings.keep_blocks} blocks", highlight=False)
    trained_on = cast(Mapping[str, Any], start.provenance.get("pretrained_on", {}))
    finetuned_on = start.provenance.get("finetuned_on")
    parameters = sum(p.numel() for p in cast(nn.Module, start.module.backbone).parameters())
    console.print(
        f"loaded: {start.backbone} backbone of {settings.start} ({parameters:,} parameters), trained on "
        f"{', '.join(trained_on) or finetuned_on or 'unknown data'}",
        highlight=False,
    )
    if kept.task is not None:
        number = min(TRIED_ON, len(parts.validation) or len(parts.train))
        errors = ", ".join(
            f"{name} {error:.4g} (mean predictor {kept.baselines[name]:.4g}) {shown(name, 1.0)[1]}"
            for name, error in kept.errors.items()
        )
        level = task_named(start.tasks, kept.task, "head_from").level_of_theory
        other = f" ({level}, another level of theory)" if level != task.level_of_theory else ""
        console.print(
            f"kept: heads of task {kept.task}{other}: {', '.join(kept.properties)}; before training, on {number} "
            f"{'validation' if len(parts.validation) else 'training'} structures: {errors}",
            highlight=False,
        )
    elif settings.head_from not in (None, AUTO):
        console.print(
            f"[yellow]no head of task {settings.head_from} fits:[/] none has the same property, kind and size",
            highlight=False,
        )
    for name, ratio in kept.rejected.items():
        console.print(
            f"not kept: heads of task {name}, of the same level of theory: errors {ratio:.2f} times those of the mean "
            "predictor",
            highlight=False,
        )
    _announce_ridge(console, prepared)
    fresh = [name for name in task.targets if name not in kept.properties and not task.heads[name].entry.derivative]
    if fresh:
        console.print(f"reset: new heads for {', '.join(fresh)}", highlight=False)
    derived = [name for name in task.targets if task.heads[name].entry.derivative]
    if derived:
        console.print(f"conservative: {', '.join(derived)} as derivatives of the energy", highlight=False)
    used = {kept.task, *(companion.kept.task for companion in prepared.companions)}
    dropped = [donor.name for donor in start.tasks if donor.name not in used]
    if dropped:
        console.print(f"dropped: heads of {', '.join(dropped)}", highlight=False)
    fitted = "references and scales"
    if kept.refitted:
        fitted += " (references to the residuals of the kept heads)"
    elif kept.task is not None:
        fitted = "scales (kept heads keep their references)"
    console.print(f"fitted to the training split: {fitted}", highlight=False)
    seen = elements_seen(start)
    unseen = [chemical_symbols[z] for z in store.composition() if seen and z not in seen]
    if unseen:
        console.print(f"[yellow]elements not in the pre-training data:[/] {', '.join(unseen)}", highlight=False)


def _announce_ridge(console: Console, prepared: Prepared) -> None:
    """Print the errors of a ridge regression on the backbone's features, fitted to a part of the data."""
    parts, task = prepared.split, prepared.baseline
    names = [name for name in task.targets if name not in why_not(task)]
    if prepared.start is None or not names or not len(parts.validation):
        return
    linear = with_linear_heads(task, names)
    training, validation = (
        TaskDataset(0, linear, prepared.store, rows, edge_lists=prepared.edge_lists)
        for rows in (parts.train[:RIDGE_FITTED_TO], parts.validation[:TRIED_ON])
    )
    ridge = fit_ridge(prepared.start.module.backbone, linear, training, validation)
    items = replace(validation, task=ridge.task, kept={}).items()
    found = evaluate(ridge.model, [ridge.task], items, baseline=task)[task.name]
    errors = ", ".join(
        f"{name} {shown(name, e.mae)[0]:.4g} (mean predictor {shown(name, e.baseline_mae)[0]:.4g}) "
        f"{shown(name, 1.0)[1]}"
        for name, e in found.items()
        if e.count
    )
    if errors:
        console.print(
            f"ridge regression on the features of {len(training)} training structures, on {len(items)} validation "
            f"structures: {errors}",
            highlight=False,
        )
