"""Fine-tune to three tasks from another package's model, from `eutectic-small`, and from scratch, in equal CPU time.

    python -m venv peers && peers/bin/pip install torch==2.13.0 'eutectic[sevennet]'
    eutectic data prepare rmd17:toluene --source FOLDER --store stores/toluene      # matbench:jdft2d, oc20:free_energy
    peers/bin/python benchmarks/starts.py --toluene stores/toluene --jdft2d stores/jdft2d --oc20 stores/oc20 \
        --minutes 4 --out docs/results/starts.json

A molecule's dynamics, a crystal set that neither teacher has labelled, and catalysts on systems that are not in the
training part. The three starts get the same data, the same core (pinned, one thread) and the same CPU time of the
process, so that a larger model does fewer steps. Of its learning rates each start keeps the better one, by validation
error; the test part is read once a run and not used to choose. Errors are mean absolute errors. Resumes after an
interruption: a run that is in the file is not made again.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backbones import LEARNING, Used, keep, measured

STARTS: dict[str, tuple[list[str], tuple[float, ...]]] = {
    "scratch": (["--from-scratch"], (5e-3, 2e-3)),
    "eutectic-small": (["--model", "eutectic-small", "--head-from", "none"], (3e-3, 1e-3)),
    "sevennet:7net-0": (["--model", "sevennet:7net-0"], (3e-3, 1e-3, 3e-4)),
}
"""Start → options of `eutectic finetune`, and learning rates to try. 7net-0 keeps its energy head where the energy is
learned, as is the default; other heads are new. `scratch` has the architecture of `eutectic-small`."""


@dataclass(frozen=True, kw_only=True)
class Task:
    properties: tuple[str, ...]
    options: tuple[str, ...]
    batch_size: int


TASKS = {
    "toluene": Task(
        properties=("energy", "forces"),
        options=("--conservative", "--n-train", "950", "--n-validation", "50", "--n-test", "1000", *LEARNING),
        batch_size=8,
    ),
    "jdft2d": Task(
        properties=("exfoliation_energy",),
        options=("--split", "fold_0", "--optimiser.ema_decay", "0.99", "--optimiser.final_lr_ratio", "0.02"),
        batch_size=16,
    ),
    # Direct forces: references for energies of elements that only the test systems have cannot be fitted.
    "oc20": Task(
        properties=("forces",),
        options=(
            "--direct",
            "--n-train",
            "400",
            "--n-validation",
            "40",
            "--n-test",
            "160",
            *LEARNING[2:],
        ),  # without forces' weight relative to energies
        batch_size=4,
    ),
}


def run(
    store: Path, task: Task, options: list[str], rate: float, seconds: float, folder: Path, core: int
) -> dict[str, Any]:
    def train(steps: int, name: str) -> tuple[Used, dict[str, Any]]:
        # Two short runs with one validation each give the length of a step.
        every = max(1, steps // 8) if name == "run" else steps
        command = [
            *(sys.executable, "-m", "eutectic", "finetune", str(store)),
            *(x for p in task.properties for x in ("-p", p)),
            *("--out", str(folder / name), "--steps", str(steps), "--batch-size", str(task.batch_size)),
            *("--optimiser.learning_rate", str(rate), "--train.evaluate_every", str(every)),
            *("--train.threads", "1", "--train.workers", "0", *task.options),
            # They need no test either.
            *(() if name == "run" else ("--n-test", "1")),
            *options,
        ]
        used = measured(command, [core], folder / f"{name}.log")
        return used, json.loads((folder / name / "result.json").read_text())

    folder.mkdir(parents=True, exist_ok=True)
    per_step = (train(25, "long")[0].cpu - train(5, "short")[0].cpu) / 20
    steps = max(10, int(seconds / per_step))
    used, result = train(steps, "run")
    return {
        "rate": rate,
        "steps": steps,
        "seconds_per_step": per_step,
        "process_cpu_seconds": used.cpu,
        "validation": result["curves"],
        "validation_score": min(result["scores"]),
        "test": result["test_errors"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in TASKS:
        parser.add_argument(f"--{name}", type=Path, help="prepared store; the task is left out without it")
    parser.add_argument("--only", action="append", choices=[*STARTS], help="starts; default: all")
    parser.add_argument("--minutes", type=float, default=4.0, help="CPU minutes of training for each run")
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--work", type=Path, help="folder for the runs, default: a temporary one")
    parser.add_argument("--out", type=Path, required=True, help="JSON file of results")
    given = parser.parse_args()
    work = given.work or Path(tempfile.mkdtemp())
    for name, task in TASKS.items():
        store = getattr(given, name)
        for start, (options, rates) in STARTS.items():
            if store is None or (given.only and start not in given.only):
                continue
            done = json.loads(given.out.read_text()) if given.out.exists() else {}
            key = f"{name}, {start}, {given.minutes:g} min"
            if key in done:
                continue
            tried = [
                run(store, task, options, rate, 60 * given.minutes, work / f"{name}-{start}-{rate:g}", given.core)
                for rate in rates
            ]
            best = min(tried, key=lambda r: r["validation_score"])
            keep(given.out, {key: {**best, "rates_tried": {f"{r['rate']:g}": r["validation_score"] for r in tried}}})
            errors = ", ".join(f"{p} {e:.4g}" for p, e in best["test"].items())
            print(f"{key:36} rate {best['rate']:g}, {best['steps']} steps; test errors: {errors}", flush=True)


if __name__ == "__main__":
    main()
