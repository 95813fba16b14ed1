"""Benchmark time, FLOP and memory of a training step of GemNet-OC at the published sizes.

    python benchmarks/step_time.py                      # JMP-S, float32, all cases, about four minutes
    python benchmarks/step_time.py --precision bf16     # matrix products in bfloat16
    python benchmarks/step_time.py --plain              # unmodified PyTorch, without training's CPU setup
    python benchmarks/step_time.py --compile --json -   # torch.compile; print JSON
    python benchmarks/step_time.py --error              # bfloat16 and float32 against float64, no timing
    python benchmarks/step_time.py --profile            # also list the most expensive kernels

The same commands run on a GPU, with two additional cases that fill it; `waits` is the number of synchronisations per
step, and `busy` is the fraction of a step in which the device computes.

A step is forward, loss and backward on prebuilt graphs, with four tasks that have an energy and a direct force head
each. Every case runs in its own process, whose peak resident set is the peak memory (on a GPU: the allocator's peak).

A CPU is set up as in training (`train.runtime.memory`, `train.runtime.matmul`): freed memory is kept, and oneDNN
computes float32 products on AMD's Zen 5 and later.

The roofline of a step (`floor` in the output) is the time its matrix products would take at the rate of one large
product (float32, or bfloat16 with `--precision bf16`), measured between the steps of the case, because machines are
noisy but ratios within a case are not. `times_floor` counts our own products, with the library that the step uses.
`published_gflop` counts those of the published implementation on the same graphs from the sizes of its layers, with all
four heads on every row. The fraction of its time spent on products depends on the machine, so times are compared in
`against_fairchem.py`, in one process.

`products` (CPU) is the time of exactly the products of a step, run one after the other on uncached random numbers,
relative to the roofline: small products run at a lower rate than the large one, so a step cannot be faster than this.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.build import add_adsorbate, fcc111, molecule
from ase.spacegroup import crystal as space_group
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from eutectic.atoms import Structure
from eutectic.data.catalogue import open_store
from eutectic.graph import GraphSettings, StructureGraph, build_graph
from eutectic.graph.padded import layout
from eutectic.models.gemnet_oc import GemNetOC, GemNetOCSettings
from eutectic.models.heads import HeadSettings
from eutectic.models.multitask import MultitaskModel
from eutectic.tasks import Sample, Task, make_batch, structure_losses
from eutectic.tasks.batch import Batch
from eutectic.tasks.task import Normaliser, Target, TargetSettings
from eutectic.train.runtime.matmul import prefer_fast_matmul
from eutectic.train.runtime.memory import keep_freed_memory

MOLECULE = GraphSettings(cutoff=8, max_neighbours=30, symmetry="lower_source")
PERIODIC = GraphSettings(cutoff=12, max_neighbours=30, symmetry="lower_source")
TASKS = {"oc20": PERIODIC, "oc22": PERIODIC, "ani1x": MOLECULE, "transition1x": MOLECULE}
SECONDS = {"cpu": 12.0, "cuda": 3.0}
"""Approximate seconds per case."""


def molecules(sizes: Sequence[int]) -> list[tuple[int, Structure]]:
    """Embedded molecules of given sizes, as (task, structure)."""
    store = open_store("molecules")
    atoms = np.asarray(store.column("n_atoms"))
    found = []
    for place, size in enumerate(sizes):
        rows = np.flatnonzero(atoms == size)
        found.append((2 + place % 2, store[int(rows[place % len(rows)])].structure))
    return found


def slab(metal: str, lattice: float, seed: int) -> Structure:
    """36 atoms of a (111) surface and CO, rattled."""
    atoms: Atoms = fcc111(metal, (3, 3, 4), a=lattice, vacuum=10.0)
    tags = np.where(atoms.get_tags() == 1, 1, 0)
    add_adsorbate(atoms, molecule("CO"), 1.9, "ontop", mol_index=1)
    atoms.set_tags(np.concatenate([tags, [2, 2]]))
    atoms.pbc = True
    atoms.rattle(0.08, seed=seed)
    return Structure.from_ase(atoms)


def rutile() -> Structure:
    """12 atoms of TiO2, rattled."""
    cell = space_group(
        ["Ti", "O"], [(0, 0, 0), (0.305, 0.305, 0)], spacegroup=136, cellpar=[4.594, 4.594, 2.959, 90, 90, 90]
    )
    atoms: Atoms = cell.repeat((1, 1, 2))
    atoms.rattle(0.08, seed=3)
    return Structure.from_ase(atoms)


CASES: dict[str, Callable[[], list[tuple[int, Structure]]]] = {
    "4 molecules": lambda: molecules((13, 14, 15, 15)),
    "8 molecules": lambda: molecules((12, 13, 14, 14, 15, 15, 16, 17)),
    "1 slab": lambda: [(0, slab("Cu", 3.61, 1))],
    "2 slabs": lambda: [(0, slab("Cu", 3.61, 1)), (1, slab("Pt", 3.92, 2))],
    "1 crystal": lambda: [(0, rutile())],
}
ON_GPU: dict[str, Callable[[], list[tuple[int, Structure]]]] = {
    "64 molecules": lambda: molecules([12, 13, 14, 14, 15, 15, 16, 17] * 8),
    "16 slabs": lambda: [(i % 2, slab(*(("Cu", 3.61), ("Pt", 3.92))[i % 2], i)) for i in range(16)],
}


def tasks() -> list[Task]:
    """The four tasks of pre-training; labels are already normalised, so nothing is fitted."""
    plain = Normaliser(references=None, mean=0.0, scale=1.0)
    heads = {"energy": HeadSettings(), "forces": HeadSettings(kind="direct_forces")}
    targets = {p: Target(TargetSettings(head=head), plain, 1.0) for p, head in heads.items()}
    return [Task(name=name, level_of_theory="none", targets=targets, graph=graph) for name, graph in TASKS.items()]


def batch_of(case: str, dtype: torch.dtype, device: torch.device) -> tuple[Batch, list[Task], list[StructureGraph]]:
    """Structures with random labels, as one batch."""
    random = np.random.default_rng(0)
    made, items, graphs = tasks(), [], []
    for index, structure in (CASES | ON_GPU)[case]():
        graphs.append(build_graph(structure, made[index].graph))
        labels = {"energy": np.asarray(random.normal()), "forces": random.normal(size=(len(structure), 3))}
        items.append(Sample(index, graphs[-1], labels))
    return make_batch(items, made, dtype).to(device), made, graphs


def model_of(size: str, dtype: torch.dtype, device: torch.device) -> MultitaskModel:
    """A fresh model, without the slow orthogonal initialisation."""
    settings = getattr(GemNetOCSettings, size)()
    with torch.device("meta"):
        model = MultitaskModel(GemNetOC(settings), {t.name: t.heads for t in tasks()})
    if device.type == "meta":
        return model
    model = model.to_empty(device=device).to(dtype)
    generator = torch.Generator(device=device).manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            fan = max(1, parameter[0].numel() if parameter.ndim > 1 else 1)
            parameter.normal_(generator=generator).mul_((1 / fan) ** 0.5 if parameter.ndim > 1 else 0.0)
        radial = model.backbone.bases.radial  # type: ignore[attr-defined]
        radial.centres.copy_(torch.linspace(0, 1, len(radial.centres)))
        radial.sharpness.fill_(0.5 * (len(radial.centres) - 1) ** 2)
        for name, buffer in model.named_buffers():
            if name.endswith(".value"):
                buffer.fill_(1.0)
    return model.train()


def published_gflop(graphs: Sequence[StructureGraph], s: GemNetOCSettings, n_tasks: int = 4) -> float:
    """Products of the published implementation for a training step, from the sizes of its layers.

    Three products (forward, and two backward) of 2 · rows · in · out each for every dense layer; heads of all tasks
    on all rows. Triplet and quadruplet sums are left out: they are a few percent.
    """
    atoms = sum(len(g.structure) for g in graphs)
    main = sum(len(g.main) for g in graphs)
    near = sum(len(g.atom_edge) for g in graphs)
    a, e, r, k = s.atom_width, s.edge_width, s.radial_width, s.num_radial
    c, sb = s.circular_width, s.spherical_width

    def residual(width: int, count: int) -> int:
        return 2 * width * width * count

    update_edges, update_atoms = r * e, e * a + residual(a, s.residuals_atom)
    block_edges = (
        e * e  # direct
        + (e * e + r * e + e * s.triplet_in + c * s.triplet_in * s.triplet_out + 2 * s.triplet_out * e)
        + (e * e + r * e + e * s.quadruplet_in + sb * s.quadruplet_in * s.quadruplet_out + 2 * s.quadruplet_out * e)
        + (c * s.triplet_in * s.triplet_out + 2 * s.triplet_out * e)  # atoms to edges
        + (e * e + r * e + e * s.triplet_in)  # edges to atoms
        + residual(e, s.residuals_before_skip + s.residuals_after_skip + s.residuals_concat)
        + (2 * a + e) * e
        + update_edges
    )
    block_near = a * a + r * a + a * s.triplet_in
    block_atoms = (
        c * s.triplet_in * s.triplet_out
        + s.triplet_out * a
        + a * s.pair_in
        + r * s.pair_in * s.pair_out
        + s.pair_out * a
        + residual(a, s.residuals_atom_skip)
        + update_atoms
    )
    output_edges = residual(e, s.residuals_atom) + r * e + update_edges
    output_atoms = update_atoms + residual(a, s.residuals_output)
    joined = (s.blocks + 1) * e * e + residual(e, s.residuals_readout)
    basis_edges = (2 * a + k) * e + k * (5 * r + 2 * 7 * c + 49 * sb)
    heads_edges, heads_atoms = n_tasks * (4 * e * e + e), n_tasks * (4 * a * a + a)
    per_edge = s.blocks * block_edges + (s.blocks + 1) * output_edges + joined + basis_edges + heads_edges
    per_atom = s.blocks * block_atoms + (s.blocks + 1) * output_atoms + (s.blocks + 1) * a * a + heads_atoms
    return 6e-9 * (main * per_edge + atoms * per_atom + near * s.blocks * block_near)


def step(model: Callable[..., Any], batch: Batch, made: Sequence[Task], mixed: AbstractContextManager[object]) -> Any:
    """Forward, loss, backward."""
    with mixed:
        predictions = model(batch.graph, batch.parts)
    loss = torch.stack([x.mean() for x in structure_losses(predictions, batch, made) if len(x)]).mean()
    loss.backward()
    return loss


def wait(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def product_rate(dtype: torch.dtype, device: torch.device, size: int) -> float:
    """GFLOP/s of one large matrix product."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    a @ b
    wait(device)
    start = time.perf_counter()
    for _ in range(3):
        a @ b
    wait(device)
    return 3 * 2e-9 * size**3 / (time.perf_counter() - start)


class Products(TorchDispatchMode):
    """Record the shapes of all matrix products inside the context."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, list[Any]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.name in ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"):
            shapes = [(tuple(x.shape), tuple(x.stride()), x.dtype) for x in args if isinstance(x, torch.Tensor)]
            if all(0 not in shape for shape, _, _ in shapes):
                self.calls.append((getattr(torch, func._schema.name[6:]), shapes))
        return func(*args, **(kwargs or {}))

    def alone(self) -> Callable[[], None]:
        """Repeat all products in order, each kind alternating between several sets of random inputs."""
        made: dict[Any, list[torch.Tensor]] = {}
        ready = []
        for product, shapes in self.calls:
            given = []
            for place, (shape, stride, dtype) in enumerate(shapes):
                several = made.setdefault((shape, stride, dtype), [])
                if len(several) < 4:
                    room = 1 + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
                    several.append(torch.randn(room).to(dtype).as_strided(shape, stride))
                given.append(several[(len(ready) + place) % len(several)])
            ready.append((product, given))

        def run() -> None:
            for product, given in ready:
                product(*given)

        return run


def against_large(
    products: Callable[[], None], gflop: float, dtype: torch.dtype, device: torch.device, large: int
) -> float:
    """Time of the products over their time at the rate of a large product, measured alternately."""
    products()
    ratios = []
    for _ in range(7):
        start = time.perf_counter()
        products()
        ratios.append((time.perf_counter() - start) * product_rate(dtype, device, large) / gflop)
    return statistics.median(ratios)


def on_device(run: Callable[[], object], show: bool) -> dict[str, float]:
    """GPU synchronisations per step, and the fraction of its time in which the GPU computes."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        run()
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    kinds = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=kinds) as profiler:
        start = time.perf_counter()
        run()
        torch.cuda.synchronize()
        wall = time.perf_counter() - start
    kernels = [e for e in profiler.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    if show:
        print(profiler.key_averages().table(sort_by="self_cuda_time_total", row_limit=25), file=sys.stderr)
    waits = sum("called a synchronizing" in str(w.message) for w in caught)
    computing = sum(e.device_time for e in kernels) * 1e-6
    return {
        "waits": waits,
        "kernels": len(kernels),
        "device_milliseconds": 1000 * computing,
        "profiled_milliseconds": 1000 * wall,
    }


def mixed_precision(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Autocast for bf16, otherwise a null context."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def measure(
    case: str, size: str, precision: str, compiled: bool, device: torch.device, profiled: bool = False
) -> dict[str, object]:
    """Run one case in this process."""
    batch, made, graphs = batch_of(case, torch.float32, device)
    model = model_of(size, torch.float32, device)
    rate_of = torch.bfloat16 if precision == "bf16" else torch.float32
    if compiled:
        model.compile_parts()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    step(model, batch, made, mixed_precision(precision, device))
    wait(device)
    first = time.perf_counter() - start
    for _ in range(3):
        model.zero_grad(set_to_none=True)
        step(model, batch, made, mixed_precision(precision, device))
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated() * 1e-9
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024e-9
    large = 8192 if device.type == "cuda" else 1536
    seconds, rates = [], []
    end = time.perf_counter() + SECONDS.get(device.type, 12.0)
    while len(seconds) < 5 or time.perf_counter() < end:
        model.zero_grad(set_to_none=True)
        start = time.perf_counter()
        step(model, batch, made, mixed_precision(precision, device))
        wait(device)
        seconds.append(time.perf_counter() - start)
        rates.append(product_rate(rate_of, device, large))
    rate, median = statistics.median(rates), statistics.median(seconds)
    model.zero_grad(set_to_none=True)
    gpu: dict[str, float] = {}
    if device.type == "cuda":
        gpu = on_device(lambda: step(model, batch, made, mixed_precision(precision, device)), profiled)
        # The profiler slows a step, so the device time is divided by the time of a step without it.
        gpu["busy"] = gpu["device_milliseconds"] / (1000 * median)
    with FlopCounterMode(display=False) as counter, torch.compiler.set_stance("force_eager"):
        step(model, batch, made, nullcontext())
    gflop = counter.get_total_flops() * 1e-9
    published = published_gflop(graphs, getattr(GemNetOCSettings, size)())
    floor = gflop / rate
    if device.type == "cpu":
        # Last, because the memory it takes would slow the steps.
        with Products() as noted, torch.compiler.set_stance("force_eager"):
            step(model, batch, made, mixed_precision(precision, device))
        products = against_large(noted.alone(), gflop, rate_of, device, large)
    return {
        "case": case,
        "size": size,
        "precision": precision,
        "compiled": compiled,
        "structures": len(graphs),
        "atoms": len(batch.graph.numbers),
        "edges": len(batch.graph.main),
        "milliseconds": 1000 * median,
        "gflop": gflop,
        "gemm_gflops": rate,
        "times_floor": median / floor,
        **({"products_times_floor": products} if device.type == "cpu" else {}),
        "peak_memory_gb": peak,
        "structures_per_second": len(graphs) / median,
        "first_step_seconds": first,
        "published_gflop": published,
        "flop_ratio": gflop / published,
        "graph_share": graph_seconds(case) / median,
        **gpu,
    }


def graph_seconds(case: str) -> float:
    """Build neighbour lists, the four graphs and the padded tables of a batch."""
    made, structures = tasks(), (CASES | ON_GPU)[case]()
    best = []
    for _ in range(5):
        start = time.perf_counter()
        items = [Sample(i, build_graph(s, made[i].graph), {}) for i, s in structures]
        layout(make_batch(items, made, torch.float32).graph)
        best.append(time.perf_counter() - start)
    return statistics.median(best)


def errors(case: str, size: str, device: torch.device) -> dict[str, object]:
    """Predictions and gradients in float32 and bfloat16 against float64: largest difference over the largest value."""
    found: dict[str, dict[str, torch.Tensor]] = {}
    for name in ("float64", "fp32", "bf16"):
        dtype = torch.float64 if name == "float64" else torch.float32
        batch, made, _ = batch_of(case, dtype, device)
        model = model_of(size, torch.float64, device).to(dtype)
        with mixed_precision(name, device):
            predictions = model(batch.graph, batch.parts)
        losses = structure_losses(predictions, batch, made)
        torch.stack([x.mean() for x in losses if len(x)]).mean().backward()
        values = {
            p: torch.cat([predictions[t.name][p].reshape(-1) for t in made]).double() for p in ("energy", "forces")
        }
        gradient = [p.grad.reshape(-1).double() for p in model.parameters() if p.grad is not None]
        found[name] = {**values, "gradient": torch.cat(gradient)}
    report: dict[str, object] = {"case": case, "size": size}
    for name in ("fp32", "bf16"):
        for what, exact in found["float64"].items():
            report[f"{name}_{what}"] = ((found[name][what] - exact).norm() / exact.norm()).item()
    return report


def main() -> None:
    """Run each case in its own process and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("small", "large"), default="small", help="JMP-S or JMP-L")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--compile", action="store_true", help="use torch.compile")
    plain = "unmodified PyTorch: freed memory is returned, default matmul library"
    parser.add_argument("--plain", action="store_true", help=plain)
    parser.add_argument("--error", action="store_true", help="measure rounding errors instead of time")
    parser.add_argument("--profile", action="store_true", help="list the most expensive kernels (GPU)")
    parser.add_argument("--cases", nargs="+", choices=[*CASES, *ON_GPU], help="all for the device if not given")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads; all if not given")
    parser.add_argument(
        "--json", metavar="FILE", help="write the figures to this file; - prints them instead of the table"
    )
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        if given.threads:
            torch.set_num_threads(given.threads)
        device = torch.device(given.device)
        case = given.cases[0]
        if device.type == "cpu" and not given.plain:
            keep_freed_memory()
            if given.precision == "fp32":
                prefer_fast_matmul(model_of(given.size, torch.float32, torch.device("meta")))
        if given.error:
            print(json.dumps(errors(case, given.size, device)))
        else:
            print(json.dumps(measure(case, given.size, given.precision, given.compile, device, given.profile)))
        return
    rows = []
    for case in given.cases or [*CASES, *(ON_GPU if given.device.startswith("cuda") else ())]:
        print(f"{case} …", file=sys.stderr, flush=True)
        command = [sys.executable, __file__, "--one", "--cases", case, "--size", given.size, "--device", given.device]
        command += ["--precision", given.precision] + ["--compile"] * given.compile + ["--error"] * given.error
        command += ["--plain"] * given.plain + ["--profile"] * given.profile
        command += ["--threads", str(given.threads)] if given.threads else []
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
    name = torch.cuda.get_device_name() if given.device.startswith("cuda") else f"{torch.get_num_threads()} threads"
    result = {"device": name, "torch": torch.__version__, "cases": rows}
    if given.json == "-":
        print(json.dumps(result, indent=1))
        return
    print(table(rows, given.error))
    if given.json:
        with open(given.json, "w") as file:
            json.dump(result, file, indent=1)


def table(rows: Sequence[dict[str, Any]], error: bool) -> str:
    """Summary of one case."""
    if error:
        names = [k for k in rows[0] if k not in ("case", "size")]
        lines = [f"{'case':12}" + "".join(f"{n:>15}" for n in names)]
        return "\n".join(lines + [f"{r['case']:12}" + "".join(f"{r[n]:15.1e}" for n in names) for r in rows])
    lines = ["case          atoms edges      ms  GFLOP of theirs  GEMM/s  x floor  products     GB  graphs"]
    for r in rows:
        lines.append(
            f"{r['case']:12}  {r['atoms']:5d} {r['edges']:5d} {r['milliseconds']:7.0f} {r['gflop']:6.0f} "
            f"{r['flop_ratio']:9.2f} {r['gemm_gflops']:7.0f} {r['times_floor']:8.2f}  "
            f"{r.get('products_times_floor', float('nan')):8.2f}  "
            f"{r['peak_memory_gb']:5.2f} {100 * r['graph_share']:5.1f} %"
            + (f"  {r['structures_per_second']:.0f}/s, {r['waits']} waits, busy {r['busy']:.2f}" if "busy" in r else "")
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
