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
from statistics import mean, stdev
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


def rate(value: float) -> str:
    """Three digits, and all before the decimal point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def inference() -> str:
    """Predictions and dynamics per second beside other packages."""
    measured = read("inference")
    head = ("model", "structures/s", "MD steps/s", "times MACE", f"in batches of {measured['batch']}", "neighbour list")
    told = [
        f"## Inference\n\n`python benchmarks/inference.py`. {measured['note']} Structures per second: energy and "
        f"forces, one by one with the calculator, and with `predict()` in batches of {measured['batch']}.\n"
    ]
    for case in measured["cases"]:
        (peer,) = [run for run in case["runs"] if run["model"] == "MACE"]
        rows = [
            (
                run["model"],
                rate(run["structures_per_second"]),
                rate(run["steps_per_second"]),
                f"{run['structures_per_second'] / peer['structures_per_second']:.2g}",
                rate(run["batched_per_second"]) if run.get("batched_per_second") is not None else "",
                f"{100 * run['neighbour_share']:.0f} %" if run.get("neighbour_share") is not None else "",
            )
            for run in case["runs"]
        ]
        told.append(f"### {case['structure']}, {case['atoms']} atoms\n\n{table(head, rows)}")
    return "\n".join(told)


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
            f"{run['model']}, {run['structure']}, {run['forces']}",
            f"{run['drift_meV_per_atom_per_ps']:.3g}",
            f"{run['spread_meV_per_atom']:.3g}",
        )
        for run in measured["runs"]
    ]
    return (
        f"## Energy drift at constant energy\n\n`python benchmarks/drift.py`, {measured['picoseconds']:g} ps.\n\n"
        + table(("model, structure, forces", "drift, meV/atom/ps", "spread, meV/atom"), rows)
    )


def contest() -> str:
    """Backbones at equal CPU time, one table for each molecule and time."""
    told = [
        "## Backbones at equal CPU time\n\n`python benchmarks/backbones.py`, rMD17, 950 training structures (lips: 150 "
        "of Li₆.₇₅P₃S₁₁), energies and conservative forces, one core. From scratch unless a starting model is named; "
        "MACE with the values of its documentation. sGDML, a kernel method for one molecule, takes no steps: it solves "
        "a linear system for the number of structures given, in 45 to 190 CPU seconds, here with a kernel width of 10. "
        "Test errors, evaluated once; the rows are from several runs on a shared machine. CPU min: of the whole "
        "process, with start, validation and test; more than planned where other programs slowed the steps down. "
        "Memory: peak of the training process (batches of 8, MACE 5), where it was recorded.\n\n"
        "![Error of forces against CPU time on three molecules](../pictures/error-against-time.svg)\n\n"
        "Runs planned for half an hour on 950 structures: errors on the 50 validation structures. Learning rates fall "
        "over the whole run, except MACE's; a shorter run ends lower than these curves are at its time.\n"
    ]
    for path in sorted((FOLDER / "backbones").glob("*min.json")):
        molecule, _, minutes = path.stem.rpartition("-")
        if molecule in {"mixture", "temperature"}:
            continue
        rows = [
            (
                name,
                f"{run['test_forces']:.1f}",
                f"{run['test_energy']:.1f}",
                f"{run['structures_per_second']:.0f}",
                f"{run['inference']:.0f}",
                f"{run['training_memory_mib']:.0f}" if "training_memory_mib" in run else "",
                f"{run['process_cpu_seconds'] / 60:.1f}",
            )
            for name, run in sorted(json.loads(path.read_text()).items(), key=lambda item: item[1]["test_forces"])
        ]
        head = (
            "backbone",
            "forces, meV/Å",
            "energy, meV",
            "training, structures/s",
            "inference, structures/s",
            "memory, MiB",
            "CPU min",
        )
        told.append(f"### {molecule.capitalize()}, {minutes.removesuffix('min')} minutes\n\n" + table(head, rows))
    return "\n".join(told)


def mixture() -> str:
    """Joint pre-training on the embedded sets."""
    rows = []
    for path in sorted((FOLDER / "backbones").glob("mixture-*min.json"), key=lambda p: int(p.stem[8:-3]), reverse=True):
        for name, run in json.loads(path.read_text()).items():
            errors = run["validation"][-1]["by_set"]
            rows.append(
                (
                    name,
                    f"{run['process_cpu_seconds'] / 60:.1f}",
                    f"{run['steps']:,}",
                    *(f"{one['forces_mae']:.0f}" for one in errors.values()),
                )
            )
    sets = [name.replace("_", " ") for name in errors]
    return (
        "## Joint pre-training on the embedded sets\n\n`python benchmarks/backbones.py mixture`, four sets, direct "
        "forces, one core. Errors of forces in meV/Å on 64 structures of each set that are never learned "
        "from.\n\n" + table(("backbone", "CPU min", "steps", *sets), rows)
    )


def temperatures() -> str:
    """Errors at the training temperature and on hotter frames."""
    rows = [
        (
            name,
            f"{run['tests']['same']['forces']:.1f}",
            f"{run['tests']['hotter']['forces']:.1f}",
            f"{run['tests']['hotter']['forces'] / run['tests']['same']['forces']:.2f}",
            f"{run['tests']['same']['energy']:.1f}",
            f"{run['tests']['hotter']['energy']:.1f}",
        )
        for name, run in read("backbones/temperature-3min").items()
    ]
    head = ("backbone", "300 K, meV/Å", "hotter, meV/Å", "times", "300 K, meV", "hotter, meV")
    return (
        "## Outside the training temperature, three CPU minutes each\n\n`python benchmarks/backbones.py temperature`, "
        "3BPA: 400 frames of 300 K to learn from; tested on 50 more of them, and on 500 of mixed temperatures up to "
        "1,200 K.\n\n" + table(head, rows)
    )


def forty() -> str:
    """Tasks of JMP that were run, beside the published errors."""
    told = []
    for path in sorted((FOLDER / "forty").glob("*.json")):
        measured = json.loads(path.read_text())
        ran = [task for task in measured["tasks"] if task["ours"] is not None]
        rows = [
            (
                f"{task['name']}, {task['unit']}{' †' if task['departures'] else ''}",
                *(
                    "" if task[column] is None else f"{task[column]:.3g}"
                    for column in ("ours", "ours_scratch", "scratch_l", "jmp_s", "jmp_l", "best_known")
                ),
                "" if task["improvement"] is None else f"{task['improvement']:+.0f} %",
            )
            for task in ran
        ]
        head = ("task", path.stem, "its scratch", "GN-OC-L scratch", "JMP-S", "JMP-L", "best known", "over its scratch")
        notes = "; ".join(dict.fromkeys(note for task in ran for note in task["departures"]))
        told.append(table(head, rows) + (f"\n† {notes}.\n" if notes else ""))
    return (
        "## Tasks of the paper\n\n`eutectic benchmark`, 32 epochs as published, with another optimiser setting and "
        "batch size ([settings](measured.md#tasks-of-the-paper)), one CPU core, one seed. JMP-L has 235 million "
        "parameters, the models here 0.2 to 0.4.\n\n" + "\n".join(told)
    )


def starts() -> str:
    """Three tasks from three starts."""
    rows = []
    for key, run in read("starts").items():
        task, start, minutes = key.split(", ")
        errors = ", ".join(f"{name.replace('_', ' ')} {error:.4g}" for name, error in run["test"].items())
        rows.append((task, start, minutes, f"{run['steps']:,}", f"{run['rate']:g}", errors))
    return (
        "## Three tasks from three starts in equal CPU time\n\n`python benchmarks/starts.py`, one core, test errors in "
        "meV, meV/Å and meV/atom; the better of two learning rates on validation data.\n\n"
        + table(("task", "start", "time", "steps", "rate", "test errors"), rows)
    )


def selection() -> str:
    """Errors after labelling what `select` proposes, or as many frames at random."""
    runs, rows = read("selection"), []
    names = {"before": "none", "selected": "60, by `select`", "random": "60, at random"}
    for kind, name in names.items():
        cells = [name]
        for test in ("300 K", "hotter"):
            for quantity in ("energy", "forces"):
                values = [run[kind][test][quantity]["mae"] for run in runs]
                cells.append(f"{mean(values):.1f} ± {stdev(values):.1f}")
            coverage = [run[kind][test]["energy"]["uncertainty"]["coverage"] for run in runs]
            cells.append(" and ".join(f"{100 * mean(c[level] for c in coverage):.0f}" for level in ("0.68", "0.95")))
        rows.append(cells)
    head = [
        f"{test}: {what}" for test in ("300 K", "hotter") for what in ("energy, meV", "forces, meV/Å", "coverage, %")
    ]
    return (
        "## What to label next\n\n`python benchmarks/selection.py`, 3BPA: `eutectic-small` learns from 60 frames of "
        "300 K, then from 60 more out of 300 of mixed temperatures up to 1,200 K, and is tested on 200 others of these "
        f"and on 100 of 300 K. {len(runs)} seeds, 300 steps each. Coverage: how many energies lie within the central "
        "68 and 95 % of the predicted distribution.\n\n" + table(("labelled", *head), rows)
    )


def page() -> str:
    """The whole page."""
    sections = [inference(), contest(), mixture()]
    if (FOLDER / "backbones/temperature-3min.json").exists():
        sections.append(temperatures())
    if (FOLDER / "starts.json").exists():
        sections.append(starts())
    if (FOLDER / "forty").exists():
        sections.append(forty())
    sections += [selection(), step(), fairchem(), drift()]
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
