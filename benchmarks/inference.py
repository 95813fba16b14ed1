"""Predictions and steps of molecular dynamics per second, beside MACE and SevenNet, on the same structures and core.

    python benchmarks/inference.py --mace MACE_PYTHON --sevennet SEVENNET_PYTHON --out docs/results/inference.json

MACE_PYTHON and SEVENNET_PYTHON are the interpreters of environments with mace-torch and sevenn. Each entrant is a
process of its own, pinned to one core with one thread; they are asked in turn, `--rounds` times, and the best time
counts, so that a busy machine hurts all alike. A prediction is energy and forces of a structure that the calculator has
not seen; a step of dynamics is velocity Verlet at 300 K, in which neighbour lists may be reused. MACE has the sizes of
MACE-MP-0 small with random weights, since speed does not depend on them; SevenNet is 7net-0.
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.build import add_adsorbate, bulk, fcc111, molecule
from ase.md.verlet import VelocityVerlet

TASKS = {"ethanol": "molecules", "CO on Cu(111)": "metal_slabs", "NaCl": "bulk"}
"""Structure → task of our models."""
OURS: dict[str, dict[str, Any]] = {
    "eutectic-small, direct": {"conservative": False},
    "eutectic-small, conservative": {"conservative": True},
    "eutectic-small, conservative, bfloat16": {"conservative": True, "dtype": "bfloat16"},
    "eutectic-small, direct, compiled": {"conservative": False, "compile": True},
    "eutectic-small, conservative, compiled": {"conservative": True, "compile": True},
    "eutectic-fast, direct": {"conservative": False},
    "eutectic-fast, conservative": {"conservative": True},
    "eutectic-fast, direct, compiled": {"conservative": False, "compile": True},
    "eutectic-fast, conservative, compiled": {"conservative": True, "compile": True},
}
BATCH = 16


def structure(name: str) -> Atoms:
    """A molecule of 9 atoms, a slab of 29, a crystal of 16."""
    if name == "ethanol":
        return molecule("CH3CH2OH")
    if name == "NaCl":
        return bulk("NaCl", "rocksalt", a=5.64) * (2, 2, 2)
    slab = fcc111("Cu", (3, 3, 3), vacuum=8.0, periodic=True)
    add_adsorbate(slab, molecule("CO"), 1.85, "ontop", mol_index=1)
    slab.info.clear()  # MACE's calculator cannot compare what ASE notes there
    return slab


class Timed:
    """Seconds spent in a function: `module.name` is replaced by one that counts."""

    def __init__(self, owner: Any, name: str) -> None:
        self.seconds, inner = 0.0, getattr(owner, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return inner(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - start

        setattr(owner, name, staticmethod(counted) if inspect.ismethod(inner) else counted)


def entrant(name: str) -> tuple[Callable[[str], Any], Timed | None, Callable[[str, list[Atoms]], None] | None]:
    """Calculator of a structure's name, the timer of its neighbour lists, and prediction of a batch."""
    import torch

    torch.set_num_threads(1)
    if name in OURS:
        import eutectic
        from eutectic.graph import reuse

        model = eutectic.load(name.partition(",")[0])
        options = OURS[name]

        def batch(which: str, frames: list[Atoms]) -> None:
            model.predict(frames, task=TASKS[which], batch_size=BATCH, **options)

        timer = Timed(reuse.ReusedNeighbours, "graph")
        calculators = {which: model.calculator(task=task, **options) for which, task in TASKS.items()}
        return calculators.__getitem__, timer, None if "dtype" in options else batch
    if name == "MACE":
        from mace import data, modules
        from mace.calculators import MACECalculator

        irreps = modules.models.o3.Irreps  # e3nn must be imported by MACE, which says how its constants are read
        torch.manual_seed(0)
        numbers = sorted({int(z) for which in TASKS for z in structure(which).numbers})
        model = modules.ScaleShiftMACE(
            r_max=6.0,
            num_bessel=10,
            num_polynomial_cutoff=5,
            max_ell=3,
            interaction_cls=modules.interaction_classes["RealAgnosticResidualInteractionBlock"],
            interaction_cls_first=modules.interaction_classes["RealAgnosticResidualInteractionBlock"],
            num_interactions=2,
            num_elements=len(numbers),
            hidden_irreps=irreps("128x0e"),
            MLP_irreps=irreps("16x0e"),
            gate=torch.nn.functional.silu,
            atomic_energies=np.zeros(len(numbers)),
            avg_num_neighbors=60.0,
            atomic_numbers=numbers,
            correlation=3,
            atomic_inter_scale=1.0,
            atomic_inter_shift=0.0,
        ).float()
        calculator = MACECalculator(models=[model], device="cpu", default_dtype="float32")
        return (lambda _: calculator), Timed(data.AtomicData, "from_config"), None
    import sevenn.calculator

    calculator = sevenn.calculator.SevenNetCalculator("7net-0", device="cpu")
    return (lambda _: calculator), Timed(sevenn.calculator, "unlabeled_atoms_to_graph"), None


def serve(name: str) -> None:
    """Answer requests [structure, what, number] on standard input with seconds and those of neighbour lists."""
    out, sys.stdout = sys.stdout, sys.stderr
    with contextlib.redirect_stdout(io.StringIO()):
        calculators, timer, batch = entrant(name)
    print("ready", file=out, flush=True)
    for line in sys.stdin:
        which, what, number = json.loads(line)
        rng = np.random.default_rng(0)
        frames = []
        for _ in range(number if what != "steps" else 1):
            atoms = structure(which)
            atoms.positions += rng.normal(scale=0.03, size=atoms.positions.shape)
            atoms.calc = calculators(which)
            frames.append(atoms)
        frames[0].get_forces()
        before = timer.seconds if timer else 0.0
        if what == "steps":
            atoms = frames[0]
            noise = rng.normal(size=(len(atoms), 3))
            atoms.set_momenta(noise * np.sqrt(atoms.get_masses() * units.kB * 300)[:, None])
            dynamics = VelocityVerlet(atoms, 1.0 * units.fs)
            start = time.perf_counter()
            dynamics.run(number)
        elif what == "batch":
            start = time.perf_counter()
            if batch:
                batch(which, [Atoms(atoms) for atoms in frames])
        else:
            # The first has been predicted above, and its result is kept.
            frames[0].positions += 0.01 * rng.normal(size=frames[0].positions.shape)
            start = time.perf_counter()
            for atoms in frames:
                atoms.get_potential_energy()
                atoms.get_forces()
        seconds = time.perf_counter() - start
        lists = timer.seconds - before if timer else None
        print(json.dumps([seconds if what != "batch" or batch else None, lists]), file=out, flush=True)


def ask(process: subprocess.Popen[str], request: tuple[str, str, int]) -> list[float | None]:
    assert process.stdin
    assert process.stdout
    process.stdin.write(json.dumps(request) + "\n")
    process.stdin.flush()
    answer = process.stdout.readline()
    if not answer:
        raise RuntimeError(f"{request}: the process ended with status {process.wait()}")
    return list(json.loads(answer))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mace", help="Python of an environment with mace-torch")
    parser.add_argument("--sevennet", help="Python of an environment with sevenn")
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--number", type=int, default=8, help="predictions, and steps, of a round")
    parser.add_argument("--note", default="", help="to be shown beside the figures")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        serve(given.serve)
        return
    pythons = dict.fromkeys(OURS, sys.executable)
    pythons |= {"MACE": given.mace} if given.mace else {}
    pythons |= {"SevenNet": given.sevennet} if given.sevennet else {}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    processes = {}
    for name, python in pythons.items():
        processes[name] = subprocess.Popen(
            ["taskset", "-c", str(given.core), python, __file__, "--serve", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )
        stdout = processes[name].stdout
        assert stdout
        if stdout.readline().strip() != "ready":
            raise RuntimeError(f"{name} did not start")
    cases = []
    for which in TASKS:
        best: dict[str, dict[str, list[float | None]]] = {name: {} for name in processes}
        for _ in range(given.rounds):
            for what in ("predictions", "steps", "batch"):
                for name, process in processes.items():
                    answer = ask(process, (which, what, BATCH if what == "batch" else given.number))
                    before = best[name].get(what)
                    if answer[0] is not None and (before is None or answer[0] < before[0]):  # type: ignore[operator]
                        best[name][what] = answer
        runs: list[dict[str, Any]] = []
        for name, times in best.items():
            seconds, lists = times["predictions"]
            assert seconds
            runs.append(
                {
                    "model": name,
                    "structures_per_second": given.number / seconds,
                    "steps_per_second": given.number / times["steps"][0],
                    "batched_per_second": BATCH / times["batch"][0] if "batch" in times else None,  # type: ignore[operator]
                    "neighbour_share": lists / seconds if lists is not None else None,
                }
            )
            print(which, json.dumps(runs[-1]), flush=True)
        cases.append({"structure": which, "atoms": len(structure(which)), "runs": runs})
    for process in processes.values():
        process.terminate()
    if given.out:
        note = (
            f"One core, one thread, float32 unless said; best of {given.rounds} rounds, in turn. {given.note}".strip()
        )
        given.out.write_text(json.dumps({"note": note, "batch": BATCH, "cases": cases}, indent=1))


if __name__ == "__main__":
    main()
