"""Label what `eutectic select` proposes, or as many frames at random: errors after fine-tuning again.

    python benchmarks/selection.py 3bpa_train_300K.xyz 3bpa_train_mixedT.xyz --seeds 3 --out docs/results/selection.json

A model learns from 60 frames of the first file. Of 300 frames of the second, which is hotter, 60 more are labelled:
those that `select` proposes, or a random choice. The model is fine-tuned anew, with the same settings and number of
steps, and tested on the other frames of the second file and on 100 of the first. What changes with the seed: the first
60 frames, the pool, the random choice and the training. Also the coverage of the model's uncertainties before the new
labels, on both files.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import ase.io
import numpy as np

FIRST, ADDED, POOL, TESTED = 60, 60, 300, 100


def eutectic(*command: str) -> str:
    told = subprocess.run([sys.executable, "-m", "eutectic", *command], capture_output=True, text=True)
    if told.returncode:
        raise RuntimeError(f"eutectic {' '.join(command)}\n{told.stderr[-2000:]}{told.stdout[-2000:]}")
    return told.stdout


def fine_tuned(frames: list[Any], folder: Path, name: str, steps: int, seed: int) -> str:
    file, run = folder / f"{name}.xyz", folder / name
    ase.io.write(file, frames, format="extxyz")
    held_out = max(10, len(frames) // 6)
    eutectic(
        *("finetune", str(file), "-p", "energy", "-p", "forces", "--out", str(run), "--steps", str(steps)),
        *("--n-train", str(len(frames) - held_out), "--n-validation", str(held_out), "--n-test", "0"),
        *("--batch-size", "8", "--train.threads", "1", "--train.seed", str(seed)),
    )
    return str(run)


def errors(run: str, tests: dict[str, Path]) -> dict[str, Any]:
    """Test → property → errors and coverage, without the single values."""
    told = json.loads(eutectic("evaluate", run, *map(str, tests.values()), "--json"))
    kept = [
        {name: {k: v for k, v in one.items() if k not in ("truth", "prediction")} for name, one in found.items()}
        for found in told["sets"].values()
    ]
    return dict(zip(tests, kept, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("known", type=Path, help="frames of one temperature")
    parser.add_argument("hotter", type=Path, help="frames to choose from, and to test on")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    known, hotter = (ase.io.read(path, ":") for path in (given.known, given.hotter))
    results: list[dict[str, Any]] = json.loads(given.out.read_text()) if given.out.exists() else []
    for seed in range(len(results), given.seeds):
        folder, random = Path(tempfile.mkdtemp()), np.random.default_rng(seed)
        of_known, of_hotter = random.permutation(len(known)), random.permutation(len(hotter))
        first = [known[i] for i in of_known[:FIRST]]
        pool = [hotter[i] for i in of_hotter[:POOL]]
        tests = {"300 K": folder / "known.xyz", "hotter": folder / "hotter.xyz"}
        ase.io.write(tests["300 K"], [known[i] for i in of_known[-TESTED:]], format="extxyz")
        ase.io.write(tests["hotter"], [hotter[i] for i in of_hotter[POOL:]], format="extxyz")
        ase.io.write(folder / "pool.xyz", pool, format="extxyz")

        before = fine_tuned(first, folder, "before", given.steps, seed)
        chosen = folder / "chosen.xyz"
        eutectic("select", before, str(folder / "pool.xyz"), "-n", str(ADDED), "-o", str(chosen))
        added = {
            "selected": [pool[int(frame.info["index_in_pool"])] for frame in ase.io.read(chosen, ":")],
            "random": [pool[i] for i in random.choice(POOL, ADDED, replace=False)],
        }
        row = {"before": errors(before, tests)}
        for name, frames in added.items():
            row[name] = errors(fine_tuned([*first, *frames], folder, name, given.steps, seed), tests)
        results.append(row)
        given.out.write_text(json.dumps(results, indent=1) + "\n")
        for name, by_test in row.items():
            words = ", ".join(
                f"{test}: {one['energy']['mae']:.0f} meV, {one['forces']['mae']:.0f} meV/Å"
                for test, one in by_test.items()
            )
            print(f"seed {seed}, {name}: {words}", flush=True)


if __name__ == "__main__":
    main()
