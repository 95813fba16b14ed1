#!/usr/bin/env python
"""Write docs/results/index.md from the results files beside it.

python docs/make_results.py           # write the page
python docs/make_results.py --check   # exit with 1 if the page is out of date
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent / "results"
PAGE = FOLDER / "index.md"
HEAD = """# Results

Generated from the results files in `docs/results` by `python docs/make_results.py`; do not edit. Each section names the
script that measures it; times are of the machine that it ran on, so that only ratios within a table mean something.

- [What was measured, and how to repeat it](measured.md)
- [Fine-tuning, pre-trained and from scratch](transfer.md)
- [All data sets: preparation, check and training](data-sets.md)
"""


def read(name: str) -> Any:
    return json.loads((FOLDER / f"{name}.json").read_text())


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|---|" + "--:|" * (len(header) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(map(str, row)) + " |" for row in rows)]) + "\n"


def inference() -> str:
    """Predictions and dynamics per second beside other packages."""
    measured = read("inference")
    rows = [
        (
            f"{case['structure']}, {case['atoms']} atoms: {run['model']}",
            f"{run['structures_per_second']:.3g}",
            f"{run['steps_per_second']:.3g}",
            f"{100 * run['neighbour_share']:.0f} %" if run.get("neighbour_share") is not None else "",
        )
        for case in measured["cases"]
        for run in case["runs"]
    ]
    return (
        "## Inference\n\n`python benchmarks/inference.py`. "
        + measured["note"]
        + "\n\n"
        + table(("structure: model", "structures/s", "MD steps/s", "neighbour list"), rows)
    )


def step() -> str:
    """A training step of JMP-S beside its roofline."""
    rows = [
        (f"{case['case']}, {case['precision']}", f"{case['milliseconds']:.0f}", f"{case['times_floor']:.2f}")
        for name in ("step-time-fp32", "step-time-bf16")
        for case in read(name)["cases"]
    ]
    return (
        "## A training step of JMP-S\n\n`python benchmarks/step_time.py`, two CPU cores. The roofline is the time of "
        "the step's floating-point operations at the speed of the machine's matrix products.\n\n"
        + table(("case", "ms", "times roofline"), rows)
    )


def fairchem() -> str:
    """The same step beside fairchem's GemNet-OC."""
    rows = []
    for name in ("against-fairchem-fp32", "against-fairchem-bf16"):
        for case in read(name)["cases"]:
            time, memory = case["milliseconds"], case["peak_memory_gb"]
            rows.append(
                (
                    f"{case['case']}, {case['precision']}",
                    f"{time['ours']:.0f}",
                    f"{time['theirs']:.0f}",
                    f"{time['theirs'] / time['ours']:.2f}",
                    f"{memory['ours'] / memory['theirs']:.2f}",
                )
            )
    return (
        "## The same step beside fairchem's GemNet-OC\n\n`python benchmarks/against_fairchem.py`, the same weights and "
        "structures, in turn in one process.\n\n"
        + table(("case", "eutectic, ms", "fairchem, ms", "times faster", "memory, ratio"), rows)
    )


def drift() -> str:
    """Energy drift in dynamics."""
    measured = read("drift")
    rows = [
        (
            f"{run['structure']}, {run['forces']}",
            f"{run['drift_meV_per_atom_per_ps']:.3g}",
            f"{run['spread_meV_per_atom']:.3g}",
        )
        for run in measured["runs"]
    ]
    return (
        f"## Energy drift at constant energy\n\n`python benchmarks/drift.py`, {measured['model']}, "
        f"{measured['picoseconds']:g} ps.\n\n"
        + table(("structure, forces", "drift, meV/atom/ps", "spread, meV/atom"), rows)
    )


def contest() -> str:
    """Backbones trained for the same CPU time."""
    rows = [
        (
            name,
            f"{run['test_forces']:.1f}",
            f"{run['structures_per_second']:.0f}",
            f"{run['inference']:.0f}",
        )
        for name, run in read("backbones/ethanol-2min").items()
    ]
    return (
        "## Backbones from scratch, two CPU minutes each\n\n`python benchmarks/backbones.py`, rMD17 ethanol, 950 "
        "training structures, conservative forces.\n\n"
        + table(("backbone", "forces, meV/Å", "training, structures/s", "inference, structures/s"), rows)
    )


def page() -> str:
    """The whole page."""
    sections = [contest(), step(), fairchem(), drift()]
    if (FOLDER / "inference.json").exists():
        sections.insert(0, inference())
    return "\n".join([HEAD, *sections])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if the page is out of date")
    if parser.parse_args().check:
        if PAGE.is_file() and PAGE.read_text() == page():
            return 0
        print(f"{PAGE.name} is out of date; run python docs/make_results.py", file=sys.stderr)
        return 1
    PAGE.write_text(page())
    return 0


if __name__ == "__main__":
    sys.exit(main())
