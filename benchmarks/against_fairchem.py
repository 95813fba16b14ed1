"""Compare a training step of GemNet-OC with fairchem-core 1.10 (MIT licence), alternating in one process.

    python -m venv other && other/bin/pip install torch==2.13.0 setuptools wheel && other/bin/pip install .
    other/bin/pip install --no-deps fairchem-core==1.10.0
    other/bin/pip install torch_geometric e3nn numba submitit hydra-core torchtnt pymatgen wandb tensorboard
    other/bin/pip install huggingface_hub
    other/bin/pip install --no-build-isolation torch-scatter torch-sparse    # compiled: twenty minutes
    other/bin/python benchmarks/against_fairchem.py                # float32, all cases, about six minutes
    other/bin/python benchmarks/against_fairchem.py --precision bf16 --json FILE

fairchem has the published GemNet-OC, of which JMP's is a variant. Both models have the sizes of JMP-S, the same
weights, one energy and one direct force output of one layer each, and the same structures with the same neighbours.
Graphs are built beforehand, with the index sets of triplets and quadruplets. Neither model includes the heads of four
tasks, which JMP's own code runs on every row. Timings of both keep freed memory (`train.runtime.memory`).

`--precision` applies to our step only; fairchem's is float32 throughout. `times_faster` is the median over consecutive
steps. `difference` is the largest difference between the two models' energies and forces, over the largest value; if
neighbours tie at a cap (an atom's own images in a slab), fairchem drops some and we keep all, which gives 2e-3 to 1e-2.
Memory is the peak resident set of a process that runs only three steps of one of the two.
"""

from __future__ import annotations

import argparse
import json
import logging
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from eutectic.atoms import Structure
from eutectic.graph import GraphSettings, build_graph
from eutectic.graph.padded import layout
from eutectic.models.gemnet_oc import GemNetOC, GemNetOCSettings
from eutectic.models.gemnet_oc.published import SETTINGS, from_published, published_from_fairchem
from eutectic.models.heads import HeadSettings
from eutectic.models.multitask import MultitaskModel
from eutectic.tasks import Sample, Task, make_batch
from eutectic.tasks.batch import Batch
from eutectic.tasks.task import Normaliser, Target, TargetSettings
from eutectic.train.runtime.matmul import prefer_fast_matmul
from eutectic.train.runtime.memory import keep_freed_memory
from step_time import CASES, MOLECULE, PERIODIC, mixed_precision, product_rate

SECONDS = 30.0
"""Approximate seconds per case."""


class Runnable(NamedTuple):
    """A model with its batch.

    Attributes:
        model: in training mode.
        step: forward, loss, backward; gives energies and forces.
        graphs: builds the graphs of the batch and the index sets or tables of its triplets and quadruplets.
        edges: number of edges of its main graph.
    """

    model: Any
    step: Callable[[], tuple[Tensor, Tensor]]
    graphs: Callable[[], object]
    edges: int


def loss_of(energy: Tensor, forces: Tensor) -> Tensor:
    """A loss that depends on all outputs."""
    return energy.square().mean() + forces.square().sum(1).mean()


def model_options(graph: GraphSettings) -> dict[str, Any]:
    """Options of fairchem's GemNet-OC, besides its sizes, that make it the same model as ours."""
    caps = graph.caps
    return {
        "regress_forces": True,
        "direct_forces": True,
        "otf_graph": True,
        "cutoff": graph.cutoff,
        "max_neighbors": caps["main"],
        "max_neighbors_qint": caps["quadruplet"],
        "max_neighbors_aeaint": caps["atom_edge"],
        "max_neighbors_aint": caps["atom_atom"],
        "enforce_max_neighbors_strictly": True,
        "cbf": {"name": "spherical_harmonics"},
        "sbf": {"name": "legendre_outer"},
        "qint_tags": list(graph.quadruplet_tags),
    }


def theirs(structures: Sequence[Structure], graph: GraphSettings, settings: GemNetOCSettings) -> Runnable:
    """fairchem's model with a batch."""
    from fairchem.core.models.gemnet_oc.gemnet_oc import GemNetOC as Theirs
    from torch_geometric.data import Batch as Collated
    from torch_geometric.data import Data

    sizes = {name: getattr(settings, ours) for name, ours in SETTINGS.items() if name.startswith(("num_", "emb_"))}
    sizes |= {name: True for name in SETTINGS if name.endswith("_interaction")}
    model = Theirs(
        **sizes,
        **model_options(graph),
    ).train()
    data = Collated.from_data_list(
        [
            Data(
                pos=torch.as_tensor(s.positions, dtype=torch.float32),
                # A molecule gets a cell large enough to have no effect.
                cell=torch.as_tensor(s.cell if s.pbc.any() else 1000.0 * torch.eye(3), dtype=torch.float32)[None],
                atomic_numbers=torch.as_tensor(s.numbers, dtype=torch.float32),
                tags=torch.as_tensor(s.tags),
                natoms=len(s),
            )
            for s in structures
        ]
    )
    build = model.get_graphs_and_indices
    prepared = build(data)
    model.get_graphs_and_indices = lambda _: prepared

    def step() -> tuple[Tensor, Tensor]:
        model.zero_grad(set_to_none=True)
        predicted = model(data)
        loss_of(predicted["energy"], predicted["forces"]).backward()
        return predicted["energy"].detach(), predicted["forces"].detach()

    return Runnable(model, step, lambda: build(data), prepared[0]["edge_index"].shape[1])


def ours(structures: Sequence[Structure], graph: GraphSettings, settings: GemNetOCSettings, precision: str) -> Runnable:
    """Our model with a batch."""
    plain = Normaliser(references=None, mean=0.0, scale=1.0)
    heads = {"energy": HeadSettings(layers=0), "forces": HeadSettings(kind="direct_forces", layers=0)}
    targets = {p: Target(TargetSettings(head=head), plain, 1.0) for p, head in heads.items()}
    made = [Task(name="all", level_of_theory="none", targets=targets, graph=graph)]
    model = MultitaskModel(GemNetOC(settings), {"all": heads}).train()

    def graphs() -> Batch:
        batch = make_batch([Sample(0, build_graph(s, graph), {}) for s in structures], made, torch.float32)
        layout(batch.graph)
        return batch

    batch = graphs()
    device = torch.device("cpu")

    def step() -> tuple[Tensor, Tensor]:
        model.zero_grad(set_to_none=True)
        with mixed_precision(precision, device):
            predicted = model(batch.graph, batch.parts)["all"]
        loss_of(predicted["energy"], predicted["forces"]).backward()
        return predicted["energy"].detach(), predicted["forces"].detach()

    return Runnable(model, step, graphs, len(batch.graph.main))


def same_weights(mine: MultitaskModel, state: Mapping[str, Tensor], settings: GemNetOCSettings) -> None:
    """Copy fairchem's weights to our model."""
    mine.backbone.load_state_dict(from_published(published_from_fairchem(state, settings), settings))
    heads: Any = mine.heads["all"]
    heads["energy"].perceptron[0].load_state_dict({"weight": state["out_energy.linear.weight"]})
    heads["forces"].perceptron[0].load_state_dict({"weight": state["out_forces.linear.weight"]})


def inputs(case: str) -> tuple[list[Structure], GraphSettings, GemNetOCSettings]:
    """Inputs of both models; fairchem's radial basis has the cutoff of its graph."""
    structures = [structure for _, structure in CASES[case]()]
    graph = PERIODIC if structures[0].pbc.any() else MOLECULE
    return structures, graph, GemNetOCSettings(radial_cutoff=graph.cutoff)


def peak(case: str, who: str, precision: str) -> float:
    """GB, of this process."""
    run = theirs(*inputs(case)) if who == "theirs" else ours(*inputs(case), precision)
    for _ in range(3):
        run.step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024e-9


def compare(case: str, precision: str) -> dict[str, object]:
    """Times of alternating steps."""
    structures, graph, settings = inputs(case)
    runs = {"ours": ours(structures, graph, settings, precision), "theirs": theirs(structures, graph, settings)}
    same_weights(runs["ours"].model, runs["theirs"].model.state_dict(), settings)
    results = [run.step() for run in runs.values()]
    difference = max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(*results, strict=True))
    gflop = {}
    for who, run in runs.items():
        with FlopCounterMode(display=False) as work:
            run.step()
        gflop[who] = work.get_total_flops() * 1e-9
    steps: dict[str, list[float]] = {who: [] for who in runs}
    graphs: dict[str, list[float]] = {who: [] for who in runs}
    rates = []
    end = time.perf_counter() + SECONDS
    while len(rates) < 5 or time.perf_counter() < end:
        for who, run in runs.items():
            for times, work_of in ((graphs, run.graphs), (steps, run.step)):
                start = time.perf_counter()
                work_of()
                times[who].append(time.perf_counter() - start)
        rates.append(product_rate(torch.float32, torch.device("cpu"), 1536))
    rate = statistics.median(rates)
    milliseconds = {who: 1000 * statistics.median(steps[who]) for who in runs}
    return {
        "case": case,
        "precision": precision,
        "parameters": {who: sum(p.numel() for p in run.model.parameters()) for who, run in runs.items()},
        "edges": {who: run.edges for who, run in runs.items()},
        "difference": difference,
        "milliseconds": milliseconds,
        "graph_milliseconds": {who: 1000 * statistics.median(graphs[who]) for who in runs},
        "gflop": gflop,
        "gemm_gflops": rate,
        "times_floor": {who: milliseconds[who] * 1e-3 * rate / gflop[who] for who in runs},
        # Ratios of consecutive steps, so that a slow period affects both.
        "times_faster": statistics.median(b / a for a, b in zip(steps["ours"], steps["theirs"], strict=True)),
    }


def main() -> None:
    """Run each case in its own processes and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="precision of our steps")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--json", metavar="FILE", help="also write the results to this file")
    parser.add_argument("--one", choices=("both", "ours", "theirs"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    absent = [name for name in ("fairchem", "torch_geometric", "torch_scatter", "torch_sparse") if not find_spec(name)]
    if absent:
        parser.error(f"not installed: {', '.join(absent)}; `--help` begins with the commands that install them")
    if given.one:
        logging.disable()  # fairchem warns that scale factors are not fitted: they are 1 in both
        if given.one != "theirs":
            keep_freed_memory()
        prefer_fast_matmul(torch.nn.Linear(512, 512))
        case = given.cases[0]
        print(
            json.dumps(
                compare(case, given.precision) if given.one == "both" else peak(case, given.one, given.precision)
            )
        )
        return
    rows = []
    for case in given.cases:
        print(f"{case} …", file=sys.stderr, flush=True)
        found = {}
        for one in ("both", "ours", "theirs"):
            command = [sys.executable, __file__, "--one", one, "--cases", case, "--precision", given.precision]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            found[one] = json.loads(done.stdout.splitlines()[-1])
        rows.append(found["both"] | {"peak_memory_gb": {who: found[who] for who in ("ours", "theirs")}})
    print(
        f"{'':12}        ms, ours  fairchem  x floor, ours  fairchem   GB, ours  fairchem  "
        "ms for graphs, ours  fairchem  times faster  difference"
    )
    for r in rows:
        ms, floor, gb, graphs = (r[n] for n in ("milliseconds", "times_floor", "peak_memory_gb", "graph_milliseconds"))
        print(
            f"{r['case']:12}  {ms['ours']:14.0f}  {ms['theirs']:8.0f}  {floor['ours']:13.2f}  {floor['theirs']:8.2f}  "
            f"{gb['ours']:9.2f}  {gb['theirs']:8.2f}  {graphs['ours']:19.1f}  {graphs['theirs']:8.1f}  "
            f"{r['times_faster']:12.2f}  {r['difference']:10.0e}"
        )
    if given.json:
        with open(given.json, "w") as file:
            json.dump({"threads": torch.get_num_threads(), "torch": torch.__version__, "cases": rows}, file, indent=1)


if __name__ == "__main__":
    main()
