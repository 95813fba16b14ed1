"""The demonstration: pre-train on four domains, fine-tune on five unseen tasks, and compare with training from scratch.

    eutectic demo --out demo-output

About ten minutes on two CPU cores.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from eutectic.data.catalogue import open_store
from eutectic.graph import GraphSettings
from eutectic.models.gemnet_oc import GemNetOCSettings
from eutectic.models.heads import HeadSettings
from eutectic.plan.plan import plan_run
from eutectic.study.compare import compare, environment
from eutectic.study.results import PretrainingSummary, StudyResults, summarise
from eutectic.study.variants import Choice
from eutectic.tasks import TargetSettings
from eutectic.train.pretrain import PretrainResult, pretrain
from eutectic.train.runtime.journal import read_journal
from eutectic.train.settings import (
    BackboneChoice,
    DataSettings,
    FinetuneSettings,
    FinetuneTrainSettings,
    OptimiserSettings,
    PretrainSettings,
    SetSettings,
    TrainSettings,
    default_targets,
)

SEEDS = (0, 1, 2)


def demo(*, steps: int = 2300, processes: int = 2, seed: int = 0) -> PretrainSettings:
    """Joint pre-training of a small GemNet-OC (0.4M parameters) on the four embedded domains.

    Command: `eutectic pretrain demo --out runs/demo`. Two CPU cores: four and a half minutes, 270 structures per
    second. Expected validation errors of forces / baseline (zero forces), in meV/Å: metal slabs 215/646, oxide
    slabs 316/782, molecules 104/1266, reactions 154/517.
    """
    return PretrainSettings(
        sets={
            name: SetSettings(
                store=name,
                targets={
                    "energy": TargetSettings(head=HeadSettings(layers=1)),
                    "forces": TargetSettings(head=HeadSettings(kind="direct_forces", layers=1), weight_by_size=True),
                },
                validation=64,
            )
            for name in ("metal_slabs", "oxide_slabs", "molecules", "reactions")
        },
        backbone=BackboneChoice(name="gemnet_oc", settings=GemNetOCSettings.tiny(radial_cutoff=None).model_dump()),
        graph=GraphSettings(cutoff=6.0, max_neighbours=8),
        optimiser=OptimiserSettings(learning_rate=3e-3, warmup_steps=100, weight_decay=0.01, clip_norm=5.0),
        train=TrainSettings(steps=steps, batch_size=32, evaluate_every=230, seed=seed, processes=processes, threads=1),
    )


@dataclass(frozen=True, kw_only=True)
class DemoTask:
    """A fine-tuning task of the demonstration. The list was fixed before any results were known.

    Attributes:
        name, title: for tables.
        store: an embedded data set that is not used in pre-training.
        property: the target.
        train, validation, test: numbers of structures.
        steps, batch_size: the budget, the same for both starts.
        choices: start → learning rate and weight decay, chosen beforehand on validation data from the same grid for
            both starts (`docs/results/demo-choices.json`).
    """

    name: str
    title: str
    store: str
    property: str
    train: int
    validation: int
    test: int
    steps: int
    batch_size: int
    choices: dict[str, Choice]


TASKS: tuple[DemoTask, ...] = (
    DemoTask(
        name="aspirin",
        title="Aspirin, molecular dynamics at 500 K",
        store="md_aspirin",
        property="forces",
        train=100,
        validation=50,
        test=200,
        steps=180,
        batch_size=8,
        choices={
            "pretrained": {"learning_rate": 0.002, "weight_decay": 0.01},
            "scratch": {"learning_rate": 0.008, "weight_decay": 0.01},
        },
    ),
    DemoTask(
        name="alanine_dipeptide",
        title="Alanine dipeptide, molecular dynamics at 500 K",
        store="md_alanine_dipeptide",
        property="forces",
        train=100,
        validation=50,
        test=200,
        steps=180,
        batch_size=8,
        choices={
            "pretrained": {"learning_rate": 0.002, "weight_decay": 0.01},
            "scratch": {"learning_rate": 0.004, "weight_decay": 0.01},
        },
    ),
    DemoTask(
        name="qm9_gap",
        title="QM9, HOMO-LUMO gap",
        store="qm9_sample",
        property="gap",
        train=1000,
        validation=120,
        test=500,
        steps=180,
        batch_size=16,
        choices={
            "pretrained": {"learning_rate": 0.001, "weight_decay": 0.01},
            "scratch": {"learning_rate": 0.004, "weight_decay": 0.01},
        },
    ),
    DemoTask(
        name="qm9_u0",
        title="QM9, atomisation energy at 0 K",
        store="qm9_sample",
        property="u0",
        train=1000,
        validation=120,
        test=500,
        steps=180,
        batch_size=16,
        choices={
            "pretrained": {"learning_rate": 0.001, "weight_decay": 0.01},
            "scratch": {"learning_rate": 0.004, "weight_decay": 0.01},
        },
    ),
    DemoTask(
        name="crystals",
        title="Crystals, formation energy",
        store="crystals",
        property="formation_energy",
        train=300,
        validation=60,
        test=100,
        steps=180,
        batch_size=16,
        choices={
            "pretrained": {"learning_rate": 0.004, "weight_decay": 3.0},
            "scratch": {"learning_rate": 0.008, "weight_decay": 0.01},
        },
    ),
)


def finetuning(task: DemoTask) -> FinetuneSettings:
    """Settings shared by all runs of a task; `variant` adds start, seed and learning rate."""
    return FinetuneSettings(
        name=task.name,
        data=DataSettings(store=task.store, train=task.train, validation=task.validation, test=task.test),
        targets=default_targets([task.property]),
        start="scratch",
        head_from=None,
        # Concurrent runs, one thread each.
        train=FinetuneTrainSettings(steps=task.steps, batch_size=task.batch_size, threads=1, accelerator="cpu"),
    )


def pretraining_summary(settings: PretrainSettings, result: PretrainResult) -> PretrainingSummary:
    """Summary of a pre-training for the report."""
    journal = read_journal(result.folder)
    every = max(1, len(journal) // 200)
    summary = result.summary
    return PretrainingSummary(
        sets=[summarise(open_store(chosen.store), summary["drawn"][name]) for name, chosen in settings.sets.items()],
        journal=journal[::every],
        validation=summary["validation"],
        drawn=summary["drawn"],
        seconds=summary["seconds"],
        n_parameters=summary["n_parameters"],
        backbone=summary["backbone"],
    )


def run_demo(
    out: Path,
    *,
    settings: PretrainSettings,
    seeds: Sequence[int],
    tasks: Sequence[DemoTask],
    workers: int | None,
    console: Console,
) -> StudyResults:
    """Pre-train, fine-tune, compare. After an interruption, the same call resumes."""
    began = time.monotonic()
    pretrained = pretrain(settings, out / "pretrain", console=console, planner=plan_run)
    middle = time.monotonic()
    compared = compare(
        [(finetuning(task), task.title) for task in tasks],
        pretrained.model,
        {task.name: task.choices for task in tasks},
        out / "finetune",
        seeds=seeds,
        workers=workers,
        console=console,
    )
    ended = time.monotonic()
    return StudyResults(
        tasks=compared,
        pretraining=pretraining_summary(settings, pretrained),
        settings={
            "pretrain": settings.model_dump(mode="json"),
            "finetune": {
                task.name: {**finetuning(task).model_dump(mode="json"), "choices": task.choices} for task in tasks
            },
        },
        times={
            "pretraining_seconds": round(pretrained.summary["seconds"], 1),
            "pretraining_wall_seconds": round(middle - began, 1),
            "finetuning_wall_seconds": round(ended - middle, 1),
            "total_wall_seconds": round(ended - began, 1),
        },
        environment=environment(),
    )
