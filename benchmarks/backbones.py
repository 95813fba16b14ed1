"""Compare backbones at equal CPU time: dynamics of one molecule or crystal, energies and conservative forces.

    python -m venv mace && mace/bin/pip install torch==2.13.0 mace-torch            # the peer, in its own environment
    eutectic data prepare rmd17:aspirin --source FOLDER --store stores/aspirin
    python benchmarks/backbones.py stores/aspirin --minutes 2 --mace mace/bin/python --out docs/results/backbones
    python benchmarks/backbones.py stores/aspirin --minutes 2 --only gotennet --rate 2e-3 --rate 4e-3
    eutectic data prepare records --source lips_data.lmdb --unit positions=angstrom --unit energy=eV \
        --unit forces=eV/angstrom --store stores/lips                                   # a crystal: matsciml's sample
    python benchmarks/backbones.py stores/lips --structures 150 20 30 --minutes 3 --mace mace/bin/python
    python benchmarks/backbones.py mixture --minutes 5 --out docs/results/backbones
    python benchmarks/backbones.py temperature --files train_300K.xyz hotter.xyz --minutes 3 --mace mace/bin/python

Every entrant trains on the same structures (950, unless given) on one core (pinned, one thread), is validated on the
same 50, and tested once, at the end, on the same 1,000. Machines are shared and noisy, so a budget is CPU time of the
process and its children, not wall time: two short runs give the CPU time of a step (an epoch for MACE), and the length
of the run follows. With several cores (`--cores 0 1`, a thread on each) it is wall time, and nothing else may run.
Memory is the peak of the training process. Learning rates of our entrants are the best of those given, by validation
error; MACE has the values of its documentation.
Errors are mean absolute errors of force components (meV/Å) and of energies (meV). Inference is energies and forces of
the test structures in batches of 32, in structures per CPU second.

`mixture` is joint pre-training on the four embedded sets with direct forces, as `eutectic demo` does it: validation
errors by set after the same CPU time (64 structures of each set, which pre-training never learns from).

`temperature` learns from 400 frames of one temperature and is tested on 50 more of it and on all of a hotter file.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

STRUCTURES = (950, 50, 1000)
"""For training, validation and test: of rMD17's official splits."""
COMPLETE = ["--graph.cutoff", "5", "--graph.max_neighbours", "100"]
LEARNING = ["--weight", "forces=10", "--optimiser.ema_decay", "0.99", "--optimiser.clip_norm", "10"]
LEARNING += ["--optimiser.warmup_steps", "50", "--optimiser.final_lr_ratio", "0.02", "--weight-decay", "0"]
"""Of all our entrants; chosen on validation errors of GotenNet on ethanol (docs/log.md)."""
ENTRANTS: dict[str, tuple[list[str], float]] = {
    "gotennet": (["--backbone.name", "gotennet", *COMPLETE], 5e-3),
    "gotennet, compiled": (["--backbone.name", "gotennet", "--train.compile", "true", *COMPLETE], 5e-3),
    "painn": (["--backbone.name", "painn", *COMPLETE], 3e-3),
    "painn, compiled": (["--backbone.name", "painn", "--train.compile", "true", *COMPLETE], 3e-3),
    "painn, width 128": (["--backbone.name", "painn", "--backbone.settings.width", "128", *COMPLETE], 3e-3),
    "gemnet_oc": ([], 3e-3),
    "gemnet_oc, 20 neighbours": (["--graph.max_neighbours", "20", "--graph.smooth_cap", "0.5"], 3e-3),
}
"""Entrant → options of `eutectic finetune --from-scratch`, and the learning rate if none is given. GemNet-OC is that of
`eutectic-small`."""
NEQUIP = {
    "interaction_type": "nequip",
    "self_connection_type": "nequip",
    "channel": 32,
    "lmax": 1,
    "lmax_edge": -1,
    "lmax_node": -1,
    "is_parity": True,
    "num_convolution_layer": 3,
    "irreps_manual": False,
    "conv_denominator": 14.0,  # neighbours within 5 Å in toluene
    "train_denominator": False,
    "cutoff": 5.0,
    "cutoff_function": {"cutoff_function_name": "poly_cut", "poly_cut_p_value": 6},
    "radial_basis": {"radial_basis_name": "bessel", "bessel_basis_num": 8},
    "weight_nn_hidden_neurons": [64, 64],
    "act_gate": {"e": "silu", "o": "tanh"},
    "act_radial": "silu",
    "act_scalar": {"e": "silu", "o": "tanh"},
    "use_bias_in_linear": False,
    "readout_as_fcn": False,
    "_normalize_sph": True,
    "_number_of_species": 4,
    "use_modal_node_embedding": False,
    "use_modal_output_block": False,
    "use_modal_self_inter_intro": False,
    "use_modal_self_inter_outro": False,
}
"""A NequIP of about MACE's size here (68,000 parameters), in the terms of the package `sevenn`."""
OF_NEQUIP = ["--backbone.settings.config", json.dumps(NEQUIP), "--backbone.settings.elements", "[1,6,7,8]"]
OF_NEQUIP += ["--backbone.settings.cutoff", "5", "--backbone.settings.edge_width", "0"]
if importlib.util.find_spec("sevenn"):  # in the environment of this script
    ENTRANTS["nequip"] = ["--backbone.name", "sevennet", *OF_NEQUIP, *COMPLETE], 5e-3

MIXTURE_HEADS = [
    option
    for name in ("metal_slabs", "oxide_slabs", "molecules", "reactions")
    for option in (f"--sets.{name}.targets.forces.head.kind", "atom_vector")
]
OF_VECTORS = ["--backbone.settings.edge_width", "0", *MIXTURE_HEADS]
MIXTURE: dict[str, tuple[list[str], float]] = {
    "gemnet_oc": ([], 3e-3),
    "gotennet, 8 neighbours": (["--backbone.name", "gotennet", *OF_VECTORS], 3e-3),
    "gotennet": (["--backbone.name", "gotennet", *COMPLETE, *OF_VECTORS], 3e-3),
    "painn": (["--backbone.name", "painn", *COMPLETE, *OF_VECTORS], 3e-3),
    "painn, 8 neighbours": (["--backbone.name", "painn", *OF_VECTORS], 3e-3),
}
"""Entrant → options of `eutectic pretrain demo`, and the learning rate if none is given. GotenNet and PaiNN predict
forces from their vectors."""

MACE = {
    "model": "MACE",
    "hidden_irreps": "32x0e + 32x1o",
    "r_max": "5.0",
    "E0s": "average",
    "batch_size": "5",
    "lr": "0.01",
    "ema_decay": "0.99",
    "default_dtype": "float32",
    "device": "cpu",
    "seed": "1",
    "error_table": "TotalMAE",
}
MACE_INFERENCE = """
import sys, time, json, torch, ase.io
from mace.tools import torch_geometric
from mace import data
torch.set_num_threads(int(sys.argv[3]))
clock = time.process_time if sys.argv[3] == "1" else time.perf_counter
# MACE saves whole modules, as pickles; this one was written by this script a moment ago, in a folder of its own.
model = torch.load(sys.argv[1], map_location="cpu", weights_only=False).float()
torch.set_default_dtype(torch.float32)
from mace.tools import AtomicNumberTable
table = AtomicNumberTable([int(z) for z in model.atomic_numbers])
key = data.KeySpecification() if hasattr(data, "KeySpecification") else None
frames = ase.io.read(sys.argv[2], ":320")
def run():
    configs = [data.config_from_atoms(a, key_specification=key) for a in frames]
    sets = [data.AtomicData.from_config(c, z_table=table, cutoff=float(model.r_max)) for c in configs]
    for batch in torch_geometric.dataloader.DataLoader(dataset=sets, batch_size=32, shuffle=False):
        model(batch.to_dict(), compute_stress=False)
run()
start = clock(); run(); print(len(frames) / (clock() - start))
"""

SGDML = """
import sys, json, time, numpy as np, ase.io
from sgdml.predict import GDMLPredict
from sgdml.train import GDMLTrain
from sgdml.utils import io

def data(name, path):
    frames = ase.io.read(path, ":")
    values = {
        "type": "d", "name": np.array(name), "theory": np.array("unknown"), "z": frames[0].numbers,
        "R": np.array([a.positions for a in frames]),
        "E": np.array([a.info["REF_energy"] for a in frames]),
        "F": np.array([a.arrays["REF_forces"] for a in frames]),
    }
    return {**values, "md5": io.dataset_md5(values)}

folder, points = sys.argv[1], int(sys.argv[2])
learned, held_out, test = (data(name, f"{folder}/{name}.xyz") for name in ("train", "validation", "test"))

def errors(model, of):
    predict = GDMLPredict(model, max_processes=1)
    start = time.process_time()
    energy, forces = predict.predict(of["R"].reshape(len(of["R"]), -1))
    speed = len(of["R"]) / (time.process_time() - start)
    gap = (float(np.abs(forces.reshape(of["F"].shape) - of["F"]).mean()), float(np.abs(energy - of["E"]).mean()))
    return (*gap, speed)

trainer, tried = GDMLTrain(max_processes=1), {}
for width in map(int, sys.argv[3].split(",")):
    task = trainer.create_task(learned, points, held_out, len(held_out["E"]), width)
    model = trainer.train(task)
    tried[width] = (errors(model, held_out)[0], model)
best = min(tried, key=lambda width: tried[width][0])
forces, energy, speed = errors(tried[best][1], test)
print(json.dumps({
    "points": points, "width": best, "widths_tried": {w: 1000 * e for w, (e, _) in tried.items()},
    "test_forces": 1000 * forces, "test_energy": 1000 * energy, "inference": speed,
}))
"""


class Used(NamedTuple):
    """What a command took: CPU time of all its processes, wall time (both in s), and the peak memory of one in MiB."""

    cpu: float
    wall: float
    memory: float


def measured(command: Sequence[str], cores: Sequence[int], log: Path) -> Used:
    """Run a command with a thread on each of these cores.

    Raises:
        RuntimeError: the command failed.
    """
    threads = str(len(cores))
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    began, memory = time.perf_counter(), 0.0
    with log.open("w") as out:
        process = subprocess.Popen(
            ["taskset", "-c", ",".join(map(str, cores)), *command],
            stdout=out,
            stderr=subprocess.STDOUT,
            env=environment,
        )
        while True:
            memory = max(memory, peak_memory(process.pid))
            ended, status, used = os.wait4(process.pid, os.WNOHANG)
            if ended:
                break
            time.sleep(0.1)
    if status:
        raise RuntimeError(f"{' '.join(command[:6])} …: status {status}; see {log}\n{log.read_text()[-2000:]}")
    return Used(used.ru_utime + used.ru_stime, time.perf_counter() - began, memory)


def difference(short: Used, long: Used, cores: Sequence[int]) -> float:
    """Seconds by which one run is longer than another."""
    return long.cpu - short.cpu if len(cores) == 1 else long.wall - short.wall


def peak_memory(process: int) -> float:
    """Peak memory of a running process in MiB; 0 if it has ended.

    The record that the system keeps for its parent (`ru_maxrss`) begins with the memory of the parent.
    """
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
    return int(found[1]) / 1024 if found else 0.0


def of_store(structures: Sequence[int]) -> Callable[[str], list[str]]:
    """The default split of a store; runs that only measure a step need no test."""
    train, validation, test = structures

    def parts(name: str) -> list[str]:
        tested = test if name == "run" else 1
        return ["--n-train", str(train), "--n-validation", str(validation), "--n-test", str(tested)]

    return parts


def train_ours(
    data: Path,
    folder: Path,
    options: list[str],
    rate: float,
    seconds: float,
    cores: Sequence[int],
    parts: Callable[[str], list[str]],
) -> dict[str, Any]:
    def run(steps: int, name: str) -> tuple[Used, dict[str, Any]]:
        out = folder / name
        command = [
            *(sys.executable, "-m", "eutectic", "finetune", str(data), "-p", "energy", "-p", "forces"),
            *("--conservative", "--out", str(out), "--steps", str(steps)),
            *(() if "--model" in options else ("--from-scratch",)),
            *("--batch-size", "8", "--optimiser.learning_rate", str(rate), "--train.threads", str(len(cores))),
            *("--train.evaluate_every", str(max(1, steps // 10)), "--train.workers", "0"),
            *(*parts(name), *LEARNING, *options),
        ]
        used = measured(command, cores, folder / f"{name}.log")
        return used, json.loads((out / "result.json").read_text())

    folder.mkdir(parents=True, exist_ok=True)
    if "--train.compile" in options:
        run(10, "first")  # whose compilation the others find in the cache
    short, long = run(10, "short")[0], run(60, "long")[0]
    per_step = difference(short, long, cores) / 50
    steps = max(20, int(seconds / per_step))
    used, result = run(steps, "run")
    return {
        "rate": rate,
        "steps": steps,
        "structures_per_second": 8 / per_step,
        "process_cpu_seconds": used.cpu,
        "training_memory_mib": used.memory,
        "validation_forces": result["curves"]["forces"],
        "validation_at": [s * per_step for s in result["steps"]],
        "test_forces": result["test_errors"].get("forces"),
        "test_energy": result["test_errors"].get("energy"),
        "model": str(folder / "run" / "model"),
    }


def pretrain_ours(
    folder: Path, options: list[str], rate: float, seconds: float, cores: Sequence[int]
) -> dict[str, Any]:
    def run(steps: int, name: str) -> tuple[Used, dict[str, Any]]:
        command = [
            *(sys.executable, "-m", "eutectic", "pretrain", "demo", "--out", str(folder / name)),
            *("--train.steps", str(steps), "--train.evaluate_every", str(max(1, steps // 5))),
            *("--train.processes", "1", "--train.threads", str(len(cores)), "--train.workers", "0"),
            *("--optimiser.learning_rate", str(rate), *options),
        ]
        used = measured(command, cores, folder / f"{name}.log")
        return used, json.loads((folder / name / "results.json").read_text())

    folder.mkdir(parents=True, exist_ok=True)
    short, long = run(5, "short")[0], run(25, "long")[0]
    per_step = difference(short, long, cores) / 20
    steps = max(20, int(seconds / per_step))
    used, result = run(steps, "run")
    return {
        "rate": rate,
        "steps": steps,
        "structures_per_second": 32 / per_step,
        "process_cpu_seconds": used.cpu,
        "training_memory_mib": used.memory,
        "validation": result["validation"],
    }


def train_mace(
    python: str, files: dict[str, Path], folder: Path, seconds: float, cores: Sequence[int], n_train: int
) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    script = Path(python).with_name("mace_run_train")

    def run(epochs: int, name: str) -> Used:
        options = {
            **MACE,
            "name": name,
            "train_file": str(files["train"]),
            "valid_file": str(files["validation"]),
            "test_file": str(files["test"] if name == "run" else files["validation"]),
            "energy_key": "REF_energy",
            "forces_key": "REF_forces",
            "max_num_epochs": str(epochs),
            "work_dir": str(folder / name),
            "eval_interval": "1",
        }
        command = [str(script), "--ema", "--amsgrad", *(x for k, v in options.items() for x in (f"--{k}", v))]
        return measured(command, cores, folder / f"{name}.log")

    short, long = run(1, "short"), run(2, "long")
    per_epoch = difference(short, long, cores)
    epochs = max(1, round(seconds / per_epoch))
    used = run(epochs, "run")
    log = (folder / "run.log").read_text()
    validation = [float(x) for x in re.findall(r"Epoch \d+:.*?MAE_F=\s*([\d.]+)", log)]
    table = log[log.rindex("Error-table on TEST") :] if "Error-table on TEST" in log else ""
    row = re.findall(r"\|\s*(\S+)\s*\|\s*([\d.]+)\s*\|\s*([\d.]+)", table)
    tests = {name.removesuffix("_Default"): {"energy": float(e), "forces": float(f)} for name, e, f in row}
    first = next(iter(tests.values()), {"energy": float("nan"), "forces": float("nan")})
    (model,) = (folder / "run").rglob("run.model")
    return {
        "epochs": epochs,
        "structures_per_second": n_train / per_epoch,
        "process_cpu_seconds": used.cpu,
        "training_memory_mib": used.memory,
        "validation_forces": validation,
        "validation_at": [(k + 1) * per_epoch for k in range(len(validation))],
        "test_forces": first["forces"],
        "test_energy": first["energy"],
        "tests": tests,
        "model": str(model),
    }


def fit_sgdml(python: str, folder: Path, points: int, widths: Sequence[int], cores: Sequence[int]) -> dict[str, Any]:
    """A kernel method for one molecule: no steps, but a linear system whose size is the number of points."""
    log = folder / "sgdml.log"
    used = measured([python, "-c", SGDML, str(folder), str(points), ",".join(map(str, widths))], cores, log)
    found = dict(json.loads(log.read_text().splitlines()[-1]))
    # Of all widths, and of the test.
    return found | {
        "process_cpu_seconds": used.cpu,
        "training_memory_mib": used.memory,
        "structures_per_second": points * len(widths) / used.cpu,
    }


def infer_ours(model: str, test: Path, cores: Sequence[int]) -> float:
    import ase.io
    import torch

    import eutectic

    os.sched_setaffinity(0, cores)
    torch.set_num_threads(len(cores))
    clock = time.process_time if len(cores) == 1 else time.perf_counter
    loaded, frames = eutectic.load(model), ase.io.read(test, ":320")
    loaded.predict(frames[:32])
    start = clock()
    loaded.predict(frames)
    return len(frames) / (clock() - start)


def write_files(store: Path, folder: Path, structures: Sequence[int]) -> dict[str, Path]:
    """The rows of our split, as extended xyz files for MACE."""
    import ase.io

    from eutectic.data.catalogue import open_store
    from eutectic.data.splits import split

    opened = open_store(str(store))
    train, validation, test = structures
    parts = split(opened, opened.card.default_split, n_train=train, n_validation=validation, n_test=test)
    files = {}
    for name in ("train", "validation", "test"):
        frames = []
        for row in getattr(parts, name):
            structure = opened[int(row)]
            atoms = structure.structure.to_ase()
            frames.append(for_mace(atoms, structure.labels["energy"], structure.labels["forces"]))
        files[name] = folder / f"{name}.xyz"
        ase.io.write(files[name], frames, format="extxyz")
    return files


def for_mace(atoms: Any, energy: Any, forces: Any, kind: str = "Default") -> Any:
    """A frame with labels under keys that are not ASE's own; the table of test errors has a row for each kind."""
    frame = atoms.copy()
    frame.calc = None
    frame.info = {"REF_energy": float(energy), "config_type": kind}
    frame.arrays = {name: atoms.arrays[name] for name in ("numbers", "positions")}
    frame.arrays["REF_forces"] = np.asarray(forces)
    return frame


def compare_temperatures(given: argparse.Namespace, work: Path, seconds: float, rows: dict[str, Any]) -> None:
    """Errors on frames of the training temperature, and on hotter ones."""
    import ase.io

    frames, hotter = (ase.io.read(path, ":") for path in given.files)
    order = np.random.default_rng(0).permutation(len(frames))
    parts = {"train": order[100:], "validation": order[50:100], "same": order[:50]}
    ours, files = {"hotter": Path(given.files[1])}, {}
    for name, several in {"learned from": order[50:], "same": parts["same"]}.items():
        ours[name] = work / f"ours-{name.replace(' ', '-')}.xyz"
        ase.io.write(ours[name], [frames[i] for i in several], format="extxyz")
    labelled = {
        name: [for_mace(a, a.get_potential_energy(), a.get_forces(), name) for a in several]
        for name, several in {**{n: [frames[i] for i in p] for n, p in parts.items()}, "hotter": hotter}.items()
    }
    for name, several in (
        ("train", labelled["train"]),
        ("validation", labelled["validation"]),
        ("test", [*labelled["same"], *labelled["hotter"]]),
    ):
        files[name] = work / f"{name}.xyz"
        ase.io.write(files[name], several, format="extxyz")

    starts = {f"from {s.parent.name}": (["--model", str(s), "--head-from", "none"], 3e-3) for s in given.start}
    learned = ["--n-train", str(len(parts["train"])), "--n-validation", "50", "--n-test", "0"]
    for name, (options, usual) in {**ENTRANTS, **starts}.items():
        if given.only and name not in starts and name not in given.only:
            continue
        rate = (given.rate or [usual])[0]
        folder = work / name.replace(", ", "-")
        rows[name] = train_ours(ours["learned from"], folder, options, rate, seconds, given.cores, lambda _: learned)
        rows[name]["tests"] = {}
        for test in ("same", "hotter"):
            command = [sys.executable, "-m", "eutectic", "evaluate", str(folder / "run"), str(ours[test]), "--json"]
            told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            (errors,) = json.loads(told)["sets"].values()
            rows[name]["tests"][test] = {p: one["mae"] for p, one in errors.items()}
            assert {one["unit"] for one in errors.values()} == {"meV", "meV/Å"}, errors
        print(name, rows[name]["tests"], flush=True)
    if given.mace and not (given.only and "mace" not in given.only):
        rows["mace"] = train_mace(given.mace, files, work / "mace", seconds, given.cores, n_train=len(parts["train"]))
        print("mace", rows["mace"]["tests"], flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "store",
        type=Path,
        help="store of one molecule or crystal, whose default split is used; mixture; or temperature",
    )
    parser.add_argument("--minutes", type=float, default=2.0, help="CPU minutes of training for each entrant")
    parser.add_argument("--structures", nargs=3, type=int, default=STRUCTURES, help="for training, validation and test")
    parser.add_argument("--only", action="append", help="entrants, default: all")
    parser.add_argument("--rate", action="append", type=float, help="learning rates to try, default: one for each")
    parser.add_argument(
        "--start", action="append", type=Path, default=[], help="model to fine-tune too, as RUN/model; repeat"
    )
    parser.add_argument("--mace", help="Python of an environment with mace-torch")
    parser.add_argument("--sgdml", help="Python of an environment with sgdml (and numpy < 2.4)")
    parser.add_argument("--points", type=int, default=400, help="training structures of sGDML, which set its time")
    parser.add_argument("--width", type=int, action="append", help="kernel widths of sGDML to try; default: 10, 20")
    parser.add_argument("--files", nargs=2, type=Path, help="for `temperature`: training file, hotter file")
    parser.add_argument("--cores", nargs="+", type=int, default=[0], help="a thread on each")
    parser.add_argument("--work", type=Path, help="folder for the runs, default: a temporary one")
    parser.add_argument("--out", type=Path, help="folder for STORE-MINUTES.json, or STORE-MINUTES-CORES.json")
    given = parser.parse_args()
    work = given.work or Path(tempfile.mkdtemp())
    work.mkdir(parents=True, exist_ok=True)
    seconds, rows = 60 * given.minutes, {}
    several = f"-{len(given.cores)}cores" if len(given.cores) > 1 else ""
    if str(given.store) == "mixture":
        compare_mixture(work, seconds, given.cores, given.only, given.rate, rows)
        if given.out:
            keep(given.out / f"mixture-{given.minutes:g}min{several}.json", rows)
        return
    if str(given.store) == "temperature":
        compare_temperatures(given, work, seconds, rows)
        for row in rows.values():
            del row["model"]
        if given.out:
            keep(given.out / f"temperature-{given.minutes:g}min{several}.json", rows)
        return
    files = write_files(given.store, work, given.structures)
    starts = {}
    for start in given.start:
        starts[f"from {start.parent.name or start.name.rpartition(':')[2]}"] = options_of_start(start, seconds)
    for name, (options, usual) in {**ENTRANTS, **starts}.items():
        if given.only and name not in starts and name not in given.only:
            continue
        tried = [
            train_ours(
                given.store, work / f"{name}-{rate:g}", options, rate, seconds, given.cores, of_store(given.structures)
            )
            for rate in given.rate or [usual]
        ]
        rows[name] = min(tried, key=lambda r: min(r["validation_forces"]))
        rows[name]["rates_tried"] = {f"{r['rate']:g}": min(r["validation_forces"]) for r in tried}
        rows[name]["inference"] = infer_ours(rows[name]["model"], files["test"], given.cores)
        show(name, rows[name])
    if given.mace and not (given.only and "mace" not in given.only):
        rows["mace"] = train_mace(given.mace, files, work / "mace", seconds, given.cores, n_train=given.structures[0])
        log = work / "mace-inference.log"
        measured(
            [given.mace, "-c", MACE_INFERENCE, rows["mace"]["model"], str(files["test"]), str(len(given.cores))],
            given.cores,
            log,
        )
        rows["mace"]["inference"] = float(log.read_text().split()[-1])
        show("mace", rows["mace"])
    if given.sgdml:
        name = f"sGDML, {given.points} points"
        rows[name] = fit_sgdml(given.sgdml, work, given.points, given.width or [10, 20], given.cores)
        show(name, rows[name])
    if given.out:
        for row in rows.values():
            row.pop("model", None)
        keep(given.out / f"{given.store.name}-{given.minutes:g}min{several}.json", rows)


def options_of_start(start: Path, seconds: float) -> tuple[list[str], float]:
    """Options and learning rate with which a model is fine-tuned.

    A model of another package keeps its energy head, as is the default: it has learned its derivatives, and a new head
    takes more than twice as long on toluene (docs/log.md).
    """
    if not start.is_dir():
        return ["--model", str(start)], 1e-3
    # As `eutectic finetune` advises for runs of this length; models of other packages cannot be compiled.
    compiled = ["--train.compile", "true"] if seconds >= 15 * 60 else []
    return ["--model", str(start), "--head-from", "none", *compiled], 3e-3


def compare_mixture(
    work: Path,
    seconds: float,
    cores: Sequence[int],
    only: list[str] | None,
    rates: list[float] | None,
    rows: dict[str, Any],
) -> None:
    for name, (options, usual) in MIXTURE.items():
        if only and name not in only:
            continue
        for rate in rates or [usual]:
            row = pretrain_ours(work / f"{name}-{rate:g}".replace(", ", "-"), options, rate, seconds, cores)
            rows[f"{name}, rate {rate:g}"] = row
            last = row["validation"][-1]["by_set"]
            errors = ", ".join(f"{k} {v['forces_mae']:.0f}" for k, v in last.items())
            print(
                f"{name:26} rate {rate:g}: {row['structures_per_second']:.0f} structures/s; meV/Å: {errors}", flush=True
            )


def keep(path: Path, rows: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    before = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**before, **rows}, indent=1))


def show(name: str, row: dict[str, Any]) -> None:
    print(
        f"{name:26} structures/s: training {row['structures_per_second']:6.1f}, inference {row['inference']:6.1f}; "
        f"test errors {row['test_forces']:6.1f} meV/Å, {row['test_energy']:6.1f} meV",
        flush=True,
    )


if __name__ == "__main__":
    main()
