#!/usr/bin/env python
"""Which part of a model to train in a given time: ridge, heads, LoRA, fewer blocks, everything; equal CPU seconds.

    python benchmarks/what_to_train.py rmd17:toluene energy forces --split official_01 --seconds 60
    python benchmarks/what_to_train.py qm9 gap --seconds 40 --only ridge,heads,lora-16,all

Each training starts from `--model` and lasts `--seconds` of CPU time of this process, including validation, so that
the load of the machine does not matter. Prints the validation errors of the step with the lowest one; one seed.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from eutectic.atoms import EutecticError
from eutectic.recipes.finetuning import finetuning
from eutectic.train.effort import fit_rung_in_closed_form
from eutectic.train.finetune import finetune
from eutectic.train.finetune_result import FinetuneResult

WAYS: dict[str, dict[str, Any]] = {
    "ridge": {},
    "heads": {"freeze": "backbone"},
    "lora-4": {"lora": 4},
    "lora-16": {"lora": 16},
    "lora-16, rate 6e-3": {"lora": 16, "learning_rate": 6e-3},
    "first half frozen": {"freeze": "embedding,basis,block_0"},
    "one block": {"keep_blocks": 1},
    "all": {},
    "all, layer decay 0.6": {"layer_decay": 0.6},
    "all, energy stage x 10": {"energy_stage": 0.25},
    "all, energy stage x 100": {"energy_stage": 0.25, "settings": {"energy_stage_factor": 100.0}},
}


def run(arguments: argparse.Namespace, way: str) -> tuple[FinetuneResult, float]:
    """The result of a training and its CPU seconds, with graphs built."""
    train = {"threads": 1, "accelerator": "cpu", "workers": 0}
    choices = {**WAYS[way], "settings": {"train": train, **WAYS[way].get("settings", {})}}
    settings = finetuning(
        arguments.data,
        arguments.properties,
        model=arguments.model,
        split=arguments.split,
        n_train=arguments.n_train,
        n_validation=arguments.n_validation,
        n_test=arguments.n_test,
        batch_size=arguments.batch_size,
        time=arguments.seconds,
        seed=arguments.seed,
        **choices,
    )
    began = time.process_time()
    if way == "ridge":
        with TemporaryDirectory() as folder:
            result = fit_rung_in_closed_form(settings, Path(folder) / "ridge")
    else:
        result = finetune(settings, None, alone=True)
    return result, time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("properties", nargs="+")
    parser.add_argument("--model", default="eutectic-small")
    parser.add_argument("--split")
    parser.add_argument("--n-train", type=int)
    parser.add_argument("--n-validation", type=int)
    parser.add_argument("--n-test", type=int)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=60.0, help="of CPU time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="run only these methods, separated by commas")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    time.monotonic = time.process_time
    ways = list(WAYS) if arguments.only is None else [way for way in WAYS if way in arguments.only.split(",")]
    for way in ways:
        try:
            result, seconds = run(arguments, way)
        except (EutecticError, ValueError) as error:
            print(json.dumps({"way": way, "not possible": str(error)}), flush=True)
            continue
        best = result.steps.index(result.best_step)
        errors = {n: f"{curve[best]:.4g} {result.units[n]}" for n, curve in result.curves.items()}
        row = {"way": way, **errors, "score": round(result.scores[best], 4), "best step": result.best_step}
        baselines = {n: round(e, 2) for n, e in result.validation_baselines.items()}
        print(
            json.dumps({**row, "steps": result.total_steps, "CPU s": round(seconds, 1), "mean": baselines}), flush=True
        )


if __name__ == "__main__":
    main()
