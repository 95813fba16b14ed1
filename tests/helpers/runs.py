"""Settings of short runs, and what they leave."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from eutectic.data.store import Store
from eutectic.train.settings import BatchingSettings, Coefficients, FinetuneSettings, PretrainSettings

PAINN = {"name": "painn", "settings": {"width": 16, "layers": 2, "cutoff": 4.0}}
GRAPH = {"cutoff": 4.0, "max_neighbours": 12}
TARGETS = {
    "energy": {"head": {"layers": 4}},
    "forces": {"head": {"kind": "direct_forces", "layers": 4}, "weight_by_size": True},
}
"""JMP's heads."""
BY_COST = BatchingSettings(by="cost", window=3, coefficients=Coefficients(atom=1.0, edge=0.05))


def settings_for(molecules: Store, slabs: Store, **train: Any) -> PretrainSettings:
    """Eight steps on two sets; `train` changes how."""
    return PretrainSettings.model_validate(
        {
            "sets": {
                "molecules": {"store": str(molecules.path), "validation": 8, "split": "random", "targets": TARGETS},
                "slabs": {"store": str(slabs.path), "validation": 8, "split": "random", "targets": TARGETS},
            },
            "backbone": PAINN,
            "graph": GRAPH,
            "optimiser": {"learning_rate": 1e-3, "warmup_steps": 2},
            "train": {"steps": 8, "batch_size": 8, "evaluate_every": 4, "threads": 1, "accelerator": "cpu"} | train,
        }
    )


def settings_of(stores: dict[str, Store], train: dict[str, Any] | None = None, **more: Any) -> PretrainSettings:
    """Six steps on any sets, of a smaller backbone with more weight decay; `train` and `more` change what and how."""
    return PretrainSettings.model_validate(
        {
            "sets": {n: {"store": str(s.path), "validation": 8, "split": "random"} for n, s in stores.items()},
            "backbone": {"name": "painn", "settings": {"width": 16, "layers": 1, "cutoff": 4.0}},
            "graph": GRAPH,
            "optimiser": {"learning_rate": 1e-3, "warmup_steps": 2, "weight_decay": 0.5},
            "train": {"steps": 6, "batch_size": 12, "evaluate_every": 3, "threads": 1, "accelerator": "cpu"}
            | (train or {}),
            "loggers": ["csv"],
        }
        | more
    )


def small_finetuning(store: Path, start: str = "scratch", **changes: Any) -> FinetuneSettings:
    """Of a small PaiNN: energies and forces as their derivatives, 40 steps, unless changed."""
    data = {"store": str(store), "split": "random", "train": 60, "validation": 12, "test": 12}
    values: dict[str, Any] = {
        "data": data | changes.pop("data", {}),
        "targets": {"energy": {}, "forces": {"head": {"kind": "gradient_forces"}}},
        "start": start,
        "train": {"steps": 40, "batch_size": 8, "evaluate_every": 20, "threads": 1, "accelerator": "cpu"},
        "name": "mine",
    }
    if start == "scratch":
        values |= {"backbone": {"name": "painn", "settings": {"width": 16, "layers": 1, "cutoff": 4.0}}}
        values |= {"graph": {"cutoff": 4.0}, "optimiser": {"learning_rate": 1e-2}}
    return FinetuneSettings.model_validate(values | changes)


def journal(folder: Path) -> list[dict[str, Any]]:
    """The entries of a run's journal."""
    return [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]


def losses(folder: Path) -> list[float]:
    """Of a run, by step."""
    return [entry["loss"] for entry in journal(folder)]


def same(folder: Path, other: Path, rtol: float = 2e-4) -> None:
    """Losses, gradients and final weights of two runs are the same but for rounding."""
    for key in ("loss", "gradient_norm"):
        found, expected = ([entry[key] for entry in journal(f)] for f in (folder, other))
        np.testing.assert_allclose(found, expected, rtol=rtol)
    for file in ("model", "raw"):
        weights = [load_file(f / "model" / f"{file}.safetensors") for f in (folder, other)]
        for name, value in weights[0].items():
            torch.testing.assert_close(value, weights[1][name], rtol=1e-2, atol=2e-4, msg=f"{file}, {name}")


def command_for(settings: PretrainSettings, folder: Path) -> list[str]:
    """The command that pre-trains in `folder / "run"`."""
    file = folder / "settings.json"
    file.write_text(settings.model_dump_json())
    return [sys.executable, "-m", "eutectic", "pretrain", str(file), "--out", str(folder / "run")]
