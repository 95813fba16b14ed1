"""What fine-tuning forgets, and whether learning other tasks at the same time helps beyond the training data.

    python benchmarks/forgetting.py --out docs/results/forgetting.json

The gap of small molecules of QM9 (at most 16 atoms, the embedded sample) is learned from scratch, by plain
fine-tuning, and together with the model's own predictions of energies and forces (`--remember`), or with its
pre-training data (`--together-with`). The test, once at the end, is on larger molecules (20 atoms or more), the
validation on small ones. Forgetting is the change of the error of the model's own task on validation structures of
its own data, which plain fine-tuning only monitors. All runs have the same number of steps with the same number of
structures labelled with the gap.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from eutectic.data.catalogue import open_store
from eutectic.data.store import write_store
from eutectic.recipes.finetuning import finetuning
from eutectic.train.finetune import finetune

SMALL, LARGE = 16, 20
PRETRAINED_ON = "molecules"
WATCHED = {"companions": {PRETRAINED_ON: {"store": PRETRAINED_ON, "ratio": 0.0, "judged": False}}}


def write_parts(folder: Path) -> dict[str, Path]:
    """The small molecules and the large ones, as stores."""
    sample = open_store("qm9_sample")
    paths = {}
    for name, wanted in (("small", lambda n: n <= SMALL), ("large", lambda n: n >= LARGE)):
        rows = [replace(row, labels={"gap": row.labels["gap"]}) for row in sample if wanted(len(row.structure))]
        paths[name] = folder / name
        write_store(paths[name], replace(sample.card, name=name, properties=("gap",)), rows, overwrite=True)
    return paths


def main() -> None:
    """Train each variant with each seed, and write errors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="eutectic-small")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--work", type=Path, help="folder for the runs, default: a temporary one")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    work = given.work or Path(tempfile.mkdtemp())
    work.mkdir(parents=True, exist_ok=True)
    parts = write_parts(work)
    variants: dict[str, dict] = {
        "scratch": {"from_scratch": True},
        "plain": {"settings": WATCHED},
        "remember": {"remember": [PRETRAINED_ON]},
        "together": {"together_with": [PRETRAINED_ON]},
    }
    rows = []
    for seed in range(given.seeds):
        for name, options in variants.items():
            settings = finetuning(
                parts["small"],
                ["gap"],
                model=given.model,
                head_from=None,
                split="random",
                test_file=parts["large"],
                steps=given.steps,
                batch_size=16,
                seed=seed,
                **{
                    **options,
                    "settings": {"train": {"threads": 1, "workers": 0}, "uncertainty": False}
                    | options.get("settings", {}),
                },
            )
            result = finetune(settings, work / f"{name}-{seed}", console=Console(stderr=True))
            companion = result.companions.get(PRETRAINED_ON, {})
            rows.append(
                {
                    "variant": name,
                    "seed": seed,
                    "small_gap": min(result.errors),
                    "large_gap": result.test_error,
                    "mean_predictor_large": result.baseline_error,
                    "seconds": result.wall_seconds,
                    **{k: companion.get(k) for k in ("before", "after")},
                }
            )
            print(json.dumps(rows[-1]), flush=True)
            given.out.parent.mkdir(parents=True, exist_ok=True)
            given.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
