"""The same fine-tuning from two starts: learning rates chosen on validation data, several seeds, one table."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import torch
from ase.data import chemical_symbols
from rich.console import Console

import eutectic
from eutectic.atoms import PROPERTIES
from eutectic.checkpoints.model import load_model
from eutectic.data.catalogue import open_store
from eutectic.models.heads import HeadSettings
from eutectic.study.results import Curve, Run, Start, TaskComparison, Trial
from eutectic.study.runs import run_all
from eutectic.tasks import TargetSettings
from eutectic.train.finetune import FinetuneResult, split_of
from eutectic.train.settings import FinetuneSettings, OptimiserSettings, TrainSettings

STARTS: tuple[Start, Start] = ("scratch", "pretrained")
SWEEP_SEED = 1000
"""Learning rates are chosen with a seed that no reported run uses."""

FINETUNING_OPTIMISER = OptimiserSettings(
    learning_rate=2e-3, warmup_steps=20, weight_decay=0.01, clip_norm=5.0, ema_decay=0.9
)
"""For runs of a few hundred steps: an average of the weights that does not lag behind (see docs/log.md)."""


def short_run(steps: int, batch_size: int) -> TrainSettings:
    """How long a compared run is: judged ten times, on one thread of a CPU, so that runs go side by side."""
    return TrainSettings(
        steps=steps, batch_size=batch_size, evaluate_every=max(1, steps // 10), threads=1, accelerator="cpu"
    )


Choice = Mapping[str, float]
"""Settings of the optimiser that are chosen for each start: `learning_rate`, and `weight_decay` if swept."""


def target_of(name: str, *, layers: int = 1, forces: Literal["direct", "gradient"] = "direct") -> TargetSettings:
    """How a property is learned unless told otherwise: as the table of properties says."""
    kind = "gradient_forces" if name == "forces" and forces == "gradient" else None
    return TargetSettings(head=HeadSettings(kind=kind, layers=layers))


def variant(base: FinetuneSettings, start: str, model: Path | None, *, seed: int, choice: Choice) -> FinetuneSettings:
    """One run of a comparison: both starts share everything but the first weights and what `choice` says.

    Args:
        base: everything else.
        start: 'pretrained' or 'scratch'.
        model: the pre-trained model's folder, which also gives the size of a model from scratch.
        choice: settings of the optimiser, chosen for this start on validation data.
    """
    given = None if model is None else str(model)
    return base.model_copy(
        update={
            "start": "scratch" if start == "scratch" else given,
            "architecture_from": given if start == "scratch" else None,
            "head_from": base.head_from if start == "pretrained" else None,
            "optimiser": base.optimiser.model_copy(update=dict(choice)),
            "train": base.train.model_copy(update={"seed": seed}),
        }
    )


def announce(base: FinetuneSettings, model: Path | None, starts: Sequence[Start], console: Console) -> None:
    """Before anything runs: what was read, how it is split, what is kept of the model and what starts fresh."""
    store = open_store(base.data.store)
    parts = split_of(store, base)
    counts = store.label_counts()
    console.print(
        f"{store.card.name} ({store.card.level_of_theory}): {len(store):,} structures, "
        + ", ".join(f"{name} {counts[name]:,}" for name in base.targets if name in counts)
        + f"; split {parts.name!r}: {len(parts.train):,} training, {len(parts.validation):,} validation, "
        f"{len(parts.test):,} test",
        highlight=False,
    )
    if "pretrained" in starts and model is not None:
        loaded = load_model(model)
        trained_on = loaded.provenance.get("pretrained_on", {})
        heads = f"those of {base.head_from}" if base.head_from else "fresh"
        console.print(
            f"pretrained: {loaded.backbone} backbone of {model}, trained on {', '.join(trained_on) or 'unknown data'};"  # type: ignore[arg-type]
            f" heads {heads}; references and scales fitted anew",
            highlight=False,
        )
        seen = {z for entry in trained_on.values() for z in entry["elements"]}  # type: ignore[attr-defined]
        unseen = [chemical_symbols[z] for z in store.composition() if seen and z not in seen]
        if unseen:
            console.print(f"elements the backbone never saw: {', '.join(unseen)}", highlight=False)


def sweep(
    bases: Sequence[FinetuneSettings],
    model: Path | None,
    choices: Sequence[Choice],
    folder: Path,
    *,
    starts: Sequence[Start] = STARTS,
    workers: int | None,
    console: Console,
) -> dict[str, list[Trial]]:
    """Every start with every choice, the same for all starts, judged on validation data alone; task → trials."""
    plan = [(base, start, choice) for base in bases for start in starts for choice in choices]
    results = run_all(
        [
            (
                variant(b, start, model, seed=SWEEP_SEED, choice=choice),
                folder / b.name / "-".join([start, *(f"{value:g}" for value in choice.values())]),
            )
            for b, start, choice in plan
        ],
        title="choosing rates",
        workers=workers,
        console=console,
    )
    trials: dict[str, list[Trial]] = {base.name: [] for base in bases}
    for (base, start, _), result in zip(plan, results, strict=True):
        trials[base.name].append(Trial(start, result.learning_rate, result.weight_decay, min(result.errors)))
    return trials


def best_choices(trials: Sequence[Trial]) -> dict[str, Choice]:
    """Start → the learning rate and weight decay with the lowest validation error."""
    chosen: dict[str, Choice] = {}
    for start in {trial.start for trial in trials}:
        best = min((t for t in trials if t.start == start), key=lambda t: t.validation_error)
        chosen[start] = {"learning_rate": best.learning_rate, "weight_decay": best.weight_decay}
    return chosen


def compare(
    bases: Sequence[tuple[FinetuneSettings, str]],
    model: Path | None,
    choices: Mapping[str, Mapping[str, Choice]],
    folder: Path,
    *,
    seeds: Sequence[int],
    starts: Sequence[Start] = STARTS,
    trials: Mapping[str, list[Trial]] | None = None,
    workers: int | None,
    console: Console,
) -> list[TaskComparison]:
    """Every task from every start over all seeds, in parallel; finished runs are read back.

    Args:
        bases: settings and title of each task.
        choices: task → start → what was chosen for it.
        trials: those that led to the choices, for the record.
    """
    plan = [(base, start, seed) for base, _ in bases for start in starts for seed in seeds]
    results = run_all(
        [
            (variant(b, start, model, seed=seed, choice=choices[b.name][start]), folder / b.name / f"{start}-{seed}")
            for b, start, seed in plan
        ],
        title="fine-tuning",
        workers=workers,
        console=console,
    )
    return [
        comparison([r for r in results if r.name == base.name], title, (trials or {}).get(base.name, []))
        for base, title in bases
    ]


def comparison(results: Sequence[FinetuneResult], title: str, trials: Sequence[Trial] = ()) -> TaskComparison:
    """The runs of one task, gathered."""
    first = results[0]
    return TaskComparison(
        name=first.name,
        title=title,
        dataset=first.dataset,
        property=first.property,
        symbol=PROPERTIES[first.property].symbol,
        unit=first.unit,
        level_of_theory=first.level_of_theory,
        n_train=first.trained_on,
        n_validation=first.validated_on,
        n_test=first.tested_on,
        steps=first.total_steps,
        trials=list(trials),
        runs=[
            Run(
                start=cast(Start, r.start),
                seed=r.seed,
                learning_rate=r.learning_rate,
                weight_decay=r.weight_decay,
                curve=Curve(r.steps, r.seconds, r.errors),
                test_error=r.test_error,
                truth=r.truth,
                prediction=r.prediction,
                seconds=r.wall_seconds,
            )
            for r in results
        ],
    )


def environment() -> dict[str, Any]:
    """Versions and hardware, for the foot of a report."""
    return {
        "eutectic": eutectic.__version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
