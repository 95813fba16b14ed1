"""Choose the demonstration's learning rates and weight decays on validation data, for each task and start.

    python benchmarks/demo_choices.py demo-output/pretrain/model --out docs/results/demo-choices.json

Requires the pre-trained model of a demonstration. Every trial has the length of a reported run and a seed that no
reported run uses; the choice does not use the test split. Can be resumed after an interruption.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from eutectic.recipes.demonstration import TASKS, finetuning
from eutectic.study.compare import best_choices, sweep
from eutectic.study.variants import SWEEP_SEED

RATES = (1e-3, 2e-3, 4e-3, 8e-3)
DECAYS = (0.01, 3.0)
GRID = [{"learning_rate": rate, "weight_decay": decay} for decay in DECAYS for rate in RATES]


def main() -> None:
    """Run the sweep and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs/demo-choices"))
    parser.add_argument("--workers", type=int)
    given = parser.parse_args()
    trials = sweep(
        [finetuning(task) for task in TASKS],
        given.model,
        GRID,
        given.work,
        workers=given.workers,
        console=Console(),
    )
    record = {
        "how": "lowest validation error over the run; the test split is not used",
        "seed": SWEEP_SEED,
        "chosen": {
            name: {start: dict(c) for start, c in sorted(best_choices(tried).items())} for name, tried in trials.items()
        },
        "trials": {name: [asdict(trial) for trial in tried] for name, tried in trials.items()},
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(record, indent=1) + "\n")
    for name, chosen in record["chosen"].items():  # type: ignore[attr-defined]
        print(name, chosen)


if __name__ == "__main__":
    main()
