"""Time, memory and cost of a pre-training: on this machine from a short calibration, on a cluster from counted work.

All assumptions are fields of `Cluster` and are shown with the plan.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from rich.console import Console
from rich.table import Table

from eutectic.atoms import EutecticError, LabelledStructure, Structure
from eutectic.checkpoints.model import build_backbone
from eutectic.data.catalogue import embedded, open_store
from eutectic.data.datasets import ani1x, oc20, oc22, transition1x
from eutectic.data.splits import split
from eutectic.data.store import Store, is_store
from eutectic.graph import StructureGraph, build_graph
from eutectic.models.multitask import MultitaskModel
from eutectic.tasks import Normaliser, Sample, Target, Task
from eutectic.train.batches.mixture import Mixture
from eutectic.train.batches.sampler import BatchSampler
from eutectic.train.cost import Calibration, SizeModel, Work, calibrate, count_work, counts_by_set, mixture_shares
from eutectic.train.loop import checkpoint_activations
from eutectic.train.settings import PretrainSettings, SetSettings, Settings

FORWARD_FRACTION = 1 / 3
"""Cost of a forward pass relative to a training step: the backward pass costs two forward passes."""


@dataclass(frozen=True, kw_only=True)
class SetPlan:
    """The plan for one data set.

    Attributes:
        structures: number of training structures.
        share: fraction of the draws.
        drawn, epochs: number of structures drawn, repeats counted, and the corresponding number of epochs.
        atoms, edges: mean per structure.
        source: origin of the size and the typical structures.
        gflops: GFLOP per structure in a training step; 0 if not counted.
        gigabytes: size of the store.
    """

    name: str
    structures: int
    share: float
    drawn: float
    epochs: float
    atoms: float
    edges: float
    source: str
    gflops: float = 0.0
    gigabytes: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Time and memory of a run.

    Attributes:
        where: description of the machine.
        step_seconds: time per step, the sum of `compute_seconds`, `data_seconds` and `communication_seconds`.
        hours: of the run, validations included.
        memory_gigabytes: per process.
        gpu_hours, price: over all GPUs; None without GPUs.
        details: other figures, name → value.
    """

    where: str
    step_seconds: float
    compute_seconds: float
    data_seconds: float
    communication_seconds: float
    hours: float
    memory_gigabytes: float
    gpu_hours: float | None = None
    price: float | None = None
    details: Mapping[str, float | str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The plan of a run.

    Attributes:
        sets: the data sets trained on.
        epoch: structures in one pass over the mixture.
        batch_size: mean number of structures per step.
        estimates: for this machine or another.
        assumptions: one sentence each.
    """

    sets: tuple[SetPlan, ...]
    steps: int
    batch_size: int
    epoch: int
    parameters: int
    estimates: tuple[Estimate, ...]
    assumptions: tuple[str, ...] = ()

    @property
    def structures(self) -> int:
        """Number of structures drawn in the run."""
        return self.steps * self.batch_size

    @property
    def atoms(self) -> float:
        """Number of atoms drawn in the run."""
        return sum(s.drawn * s.atoms for s in self.sets)

    @property
    def edges(self) -> float:
        """Number of edges drawn in the run."""
        return sum(s.drawn * s.edges for s in self.sets)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON, including derived values."""
        seen = {"structures": self.structures, "atoms": self.atoms, "edges": self.edges}
        return {**asdict(self), "seen": seen, "epochs": self.structures / self.epoch}

    def show(self, console: Console) -> None:
        """Print as a table and a few lines."""
        table = Table(title="Plan", title_justify="left", box=None, pad_edge=False)
        for heading in ("set", "structures", "drawn", "epochs", "atoms each", "edges each", "atoms drawn"):
            table.add_column(heading, justify="left" if heading == "set" else "right")
        counted = any(s.gflops for s in self.sets)
        if counted:
            table.add_column("GFLOP each", justify="right")
        for s in self.sets:
            row = [s.name, _short(s.structures), f"{100 * s.share:.0f} %", f"{s.epochs:.3g}", f"{s.atoms:.0f}"]
            row += [f"{s.edges:.0f}", _short(s.drawn * s.atoms), *([f"{s.gflops:,.1f}"] if counted else [])]
            table.add_row(*row)
        console.print(table)
        console.print(
            f"{self.steps:,} steps of {self.batch_size:,} structures: {_many(self.structures)} structures "
            f"({self.structures / self.epoch:.3g} epochs of the mixture), {_many(self.atoms)} atoms, "
            f"{_many(self.edges)} edges; {_many(self.parameters)} parameters",
            highlight=False,
        )
        for e in self.estimates:
            parts = f"computing {_time(e.compute_seconds)}"
            if e.data_seconds:
                parts += f", data {_time(e.data_seconds)}"
            if e.communication_seconds:
                parts += f", communication {_time(e.communication_seconds)}"
            line = (
                f"[bold]{e.where}[/]: {_time(e.step_seconds)} per step ({parts}), {_time(3600 * e.hours)} in total, "
                f"{_bytes(1e9 * e.memory_gigabytes)} of memory per process"
            )
            if e.gpu_hours is not None:
                line += f"; {e.gpu_hours:,.0f} GPU-hours" + ("" if e.price is None else f", {e.price:,.0f} $")
            console.print(line, highlight=False)
            for name, value in e.details.items():
                console.print(
                    f"  {name}: {value if isinstance(value, str) else format(value, ',.4g')}", highlight=False
                )
        for sentence in self.assumptions:
            console.print(f"[dim]assumed: {sentence}[/]", highlight=False)


def _short(value: int | float) -> str:
    """Short number for a column: 1,748, 100 M, 14.6 G."""
    for size, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= size:
            return f"{value / size:.3g} {prefix}"
    return f"{value:,.0f}"


def _many(value: float | int) -> str:
    for size, word in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
        if value >= size:
            return f"{value / size:.3g} {word}"
    return f"{value:,.0f}"


def _bytes(value: float) -> str:
    return f"{value / 1e9:.3g} GB" if value >= 1e9 else f"{value / 1e6:.3g} MB"


def _time(seconds: float) -> str:
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    if seconds < 60:
        return f"{seconds:.3g} s"
    if seconds < 3600:
        return f"{seconds / 60:.3g} min"
    return f"{seconds / 3600:.3g} h" if seconds < 200 * 3600 else f"{seconds / 86400:.3g} days"


def plan_run(
    settings: PretrainSettings,
    source: BatchSampler,
    sizes: Sequence[SizeModel],
    calibration: Calibration,
    *,
    processes: int,
    workers: int,
    parameters: int,
    n_validation: int,
) -> Plan:
    """Plan a run on this machine from measurements.

    Args:
        settings: of the run.
        source: its batches.
        sizes: size model of each set in `source`.
        calibration: on one process, in the run's precision.
        processes: number of processes that share a batch.
        workers: background processes per process that prepare batches on separate cores; 0 on a CPU, where they share
            the cores.
        parameters: number of parameters of the model.
        n_validation: number of structures in a validation.
    """
    mixture, steps, accumulated = source.mixture, settings.train.steps, settings.train.accumulate
    size = accumulated * source.batch_size
    counts, shares = counts_by_set(source, sizes), mixture_shares(mixture)
    batch = source.batch_size * (shares @ counts) / processes
    compute = accumulated * float(calibration.seconds.of(batch))
    data = calibration.data_seconds * size / processes
    if workers:
        data = max(0.0, data / workers - compute)  # batches are prepared during the computation
    each = (float(calibration.seconds.of(batch)) - calibration.seconds.constant) * processes / source.batch_size
    validations = (steps // settings.train.evaluate_every + 1) * FORWARD_FRACTION * each * n_validation / processes
    sets = [
        SetPlan(
            name=name,
            structures=mixture.sizes[name],
            share=float(share),
            drawn=float(steps * size * share),
            epochs=float(steps * size * share / mixture.sizes[name]),
            atoms=float(n[0]),
            edges=float(n[1]),
            source="store",
        )
        for name, share, n in zip(mixture.names, shares, counts, strict=True)
    ]
    estimate = Estimate(
        where=f"here, {processes} process{'es' * (processes > 1)} on {calibration.device}",
        step_seconds=compute + data,
        compute_seconds=compute,
        data_seconds=data,
        communication_seconds=0.0,
        hours=(steps * (compute + data) + validations) / 3600,
        memory_gigabytes=(
            float(calibration.bytes.of(batch)) + _state_bytes(settings, processes, settings.train.strategy) * parameters
        )
        / 1e9,
    )
    assumptions = []
    if processes > 1:
        assumptions.append("communication of gradients takes no time")
    if settings.train.compile:
        assumptions.append("the compiled model is as fast as the uncompiled model that was timed")
    return Plan(
        sets=tuple(sets),
        steps=steps,
        batch_size=size,
        epoch=mixture.length,
        parameters=parameters,
        estimates=(estimate,),
        assumptions=tuple(assumptions),
    )


STATE_BYTES = 20
"""Bytes per parameter during training at 32 bits: weight, gradient, two moments of Adam, EMA."""

CHECKPOINT_BYTES = 16
"""Bytes per parameter in a checkpoint: as in training, without the gradient."""


def _state_bytes(settings: PretrainSettings, processes: int, strategy: str) -> float:
    """Bytes per parameter in each process."""
    wide = 2 if settings.train.precision == "64-true" else 1
    return STATE_BYTES * wide / (processes if strategy == "fsdp" else 1)


class Cluster(Settings):
    """Assumptions about a cluster; defaults are for NVIDIA A100 GPUs (80 GB) with a fast network."""

    gpus: int = Field(default=8, ge=1, description="number of GPUs")
    peak_tflops: float = Field(default=312.0, gt=0, description="peak TFLOP/s per GPU, at the precision of the matmuls")
    efficiency: float = Field(
        default=0.05,
        gt=0,
        le=1,
        description="fraction of the peak reached in training; the 34,400 GPU-hours reported for JMP-L correspond to 6 "
        "TFLOP/s per GPU, with operations counted as here",
    )
    launch_ms: float = Field(
        default=30.0, ge=0, description="minimum time per step, ms, for launching its thousands of kernels"
    )
    memory_gb: float = Field(default=80.0, gt=0, description="memory per GPU, GB")
    link_gb_s: float = Field(default=25.0, gt=0, description="bandwidth between GPUs, per GPU, GB/s")
    strategy: Literal["ddp", "fsdp"] = Field(
        default="ddp", description="replicate the model on each GPU (ddp) or shard it over them (fsdp)"
    )
    price: float = Field(default=2.0, ge=0, description="price of a GPU-hour, $")


@dataclass(frozen=True)
class Published:
    """Size of a data set, for planning without a store.

    Attributes:
        structures, atoms: number of structures, and mean number of atoms (Shoghi et al., ICLR 2024).
        like: embedded data set whose structures are used instead of its own.
    """

    structures: int
    atoms: float
    like: str


PUBLISHED = {
    "oc20": Published(*oc20.PUBLISHED_SIZE, "metal_slabs"),
    "oc22": Published(*oc22.PUBLISHED_SIZE, "oxide_slabs"),
    "ani1x": Published(*ani1x.PUBLISHED_SIZE, "molecules"),
    "transition1x": Published(*transition1x.PUBLISHED_SIZE, "reactions"),
}


def known_sizes(given: Sequence[str] = ()) -> dict[str, Published]:
    """Sizes of data sets without a store; `name=structures,atoms` adds or replaces one.

    Raises:
        EutecticError: an argument in another format.
    """
    table = dict(PUBLISHED)
    for text in given:
        name, _, numbers = text.partition("=")
        try:
            structures, atoms = (float(x) for x in numbers.split(","))
            if not (name and 1 <= structures < math.inf and 1 <= atoms < math.inf):
                raise ValueError
        except ValueError:
            raise EutecticError(
                "--size", repr(text), "name=structures,atoms, e.g. oc20=1e8,73", "correct the option"
            ) from None
        like = table[name].like if name in table else "metal_slabs" if atoms > 40 else "molecules"
        table[name] = Published(int(structures), atoms, like)
    return table


@dataclass(frozen=True)
class _Typical:
    """Size of a data set, and some typical structures, possibly of a similar data set."""

    structures: int
    atoms: float
    rows: list[Structure]
    scale: float
    bytes: float
    source: str


def _typical(name: str, chosen: SetSettings, table: Mapping[str, Published], count: int = 4) -> _Typical:
    store_name = chosen.store
    family = store_name.partition(":")[0]
    if store_name in embedded() or is_store(Path(store_name)):
        store = open_store(store_name)
        sizes = store.column("n_atoms")
        rows = [r.structure for r in _spread(store, count)]
        return _Typical(
            structures=max(1, len(split(store, chosen.split, n_validation=chosen.validation).train)),
            atoms=float(sizes.mean()),
            rows=rows,
            scale=float(sizes.mean() * len(rows) / sum(len(r) for r in rows)),
            bytes=float(store.bytes()),
            source="store",
        )
    if family not in table:
        raise EutecticError(
            f"sets.{name}.store",
            f"{store_name!r}, which has no store here",
            f"a store, or a data set with a known size ({', '.join(table)})",
            f"give its size: --size {family}=STRUCTURES,ATOMS",
        )
    known = table[family]
    stand_in = open_store(known.like)
    rows = [_enlarged(r, known.atoms) for r in _spread(stand_in, count)]
    mean_atoms = sum(len(r) for r in rows) / len(rows)
    per_atom = stand_in.bytes() / float(stand_in.column("n_atoms").sum())
    source = f"{known.structures:,} structures of {known.atoms:g} atoms on average, represented by {known.like}"
    if mean_atoms > 1.5 * float(stand_in.column("n_atoms").mean()):
        source += f", repeated to {mean_atoms:.0f} atoms and scaled"
    return _Typical(
        structures=known.structures,
        atoms=known.atoms,
        rows=rows,
        scale=known.atoms / mean_atoms,
        bytes=known.structures * known.atoms * per_atom,
        source=source,
    )


def _spread(store: Store, count: int) -> list[LabelledStructure]:
    """The structure of median size in each of `count` equal parts, which avoids the smallest and largest."""
    order = np.argsort(store.column("n_atoms"), kind="stable")
    return [store[int(order[int((i + 0.5) * len(order) / count)])] for i in range(count)]


def _enlarged(row: LabelledStructure, atoms: float) -> Structure:
    """Repeat a periodic structure along its two shortest lattice vectors to about `atoms` atoms."""
    structure = row.structure
    if not structure.pbc.any():
        return structure
    lengths = np.where(structure.pbc, np.linalg.norm(structure.cell, axis=1), np.inf)
    repeats = np.ones(3, dtype=int)
    along = np.argsort(lengths)[: min(2, int(structure.pbc.sum()))]
    while len(structure) * repeats.prod() < 0.8 * atoms:
        # Repeat the shorter side, to keep the cell as square as possible.
        repeats[along[int(np.argmin((lengths * repeats)[along]))]] += 1
    shifts = np.array(list(np.ndindex(*repeats))) @ structure.cell
    n = len(shifts)
    return replace(
        structure,
        numbers=np.tile(structure.numbers, n),
        positions=(structure.positions[None] + shifts[:, None]).reshape(-1, 3),
        cell=structure.cell * repeats[:, None],
        tags=np.tile(structure.tags, n),
        fixed=np.tile(structure.fixed, n),
    )


def plan_cluster(
    settings: PretrainSettings,
    cluster: Cluster,
    *,
    sizes: Mapping[str, Published] = PUBLISHED,
    patience: float = 20.0,
    progress: Callable[[str], None] = lambda name: None,
) -> Plan:
    """Plan a run on a cluster; data sets need no store.

    The work of a step is counted on typical structures, and also timed on this machine if a step is short enough.

    Args:
        settings: of the run; `train.batch_size` is shared by all GPUs.
        cluster: assumptions.
        sizes: of data sets without a store.
        patience: maximum time for timing a step on this machine, s, assuming 10 GFLOP/s on a CPU.
        progress: called with the name of each set, then "the mixture", before it is counted.

    Raises:
        EutecticError: a data set without a store and without a known size.
    """
    names = list(settings.sets)
    typical = {n: _typical(n, s, sizes) for n, s in settings.sets.items()}
    mixture = Mixture(
        {n: t.structures for n, t in typical.items()},
        settings.temperature,
        settings.weights,
        caps={n: s.cap for n, s in settings.sets.items() if s.cap is not None},
        max_shares={n: s.max_share for n, s in settings.sets.items() if s.max_share is not None},
    )
    tasks = [_task(n, settings) for n in names]
    lists = settings.backbone.of_backbone().edge_lists
    items = {
        n: [Sample(task=i, graph=_graph(r, tasks[i], lists, settings.edge_dropout), labels={}) for r in typical[n].rows]
        for i, n in enumerate(names)
    }
    work = {}
    checkpointing = settings.train.activation_checkpointing
    for n in names:
        progress(n)
        work[n] = count_work(settings.backbone, tasks, items[n], checkpointing=checkpointing)
    progress("the mixture")
    mixed = _mixed(items, mixture)
    together = count_work(settings.backbone, tasks, mixed, checkpointing=checkpointing)
    apart = sum(work[names[item.task]].flops / len(items[names[item.task]]) for item in mixed)
    padding = together.flops / apart
    parameters = together.parameters

    steps, size = settings.train.steps, settings.train.accumulate * settings.train.batch_size
    plans = []
    flops = saved = 0.0
    for n in names:
        t, share = typical[n], mixture.places[n] / mixture.length
        per = {k: getattr(work[n], k) / len(items[n]) * t.scale for k in ("flops", "bytes")}
        flops, saved = flops + share * per["flops"] * padding, saved + share * per["bytes"] * padding
        edges = float(np.mean([item.graph.counts.edges for item in items[n]])) * t.scale
        drawn = steps * size * share
        plans.append(
            SetPlan(
                name=n,
                structures=mixture.sizes[n],
                share=share,
                drawn=drawn,
                epochs=drawn / mixture.sizes[n],
                atoms=t.atoms,
                edges=edges,
                source=t.source,
                gflops=per["flops"] / 1e9,
                gigabytes=t.bytes / 1e9,
            )
        )
    bits = {"32-true": 32, "64-true": 64}.get(settings.train.precision, 16)
    saved *= bits / 32
    on_cluster = _on_cluster(cluster, settings, flops, saved, parameters)
    local, note = _on_this_machine(settings, tasks, items, work, flops, saved, patience)
    details = {"data, GB": sum(p.gigabytes for p in plans), "a checkpoint, GB": CHECKPOINT_BYTES * parameters / 1e9}
    on_cluster = replace(on_cluster, details={**on_cluster.details, **details})
    assumptions = [f"{p.name}: {p.source}" for p in plans if p.source != "store"] + [
        f"a GPU reaches {100 * cluster.efficiency:g} % of {cluster.peak_tflops:g} TFLOP/s "
        "(--efficiency, --peak-tflops); only matmuls are counted",
        f"a step takes at least {cluster.launch_ms:g} ms, for launching its kernels (--launch-ms)",
        f"mixing sets in a batch pads neighbour lists: {padding:.2f} times the work of separate sets (included)",
        f"{cluster.link_gb_s:g} GB/s between GPUs (--link-gb-s), not overlapped with computation",
        "data are read and graphs are built by other processes during a step",
        f"{_state_bytes(settings, 1, 'ddp'):.0f} bytes per parameter for weights, gradients and optimiser"
        + (", divided over all GPUs" if cluster.strategy == "fsdp" else "")
        + f"; activations at {bits} bits, of average structures",
        f"{cluster.price:g} $ per GPU-hour (--price)",
        "validation: a forward pass of the validation structures every train.evaluate_every steps",
        *([note] if note else []),
    ]
    return Plan(
        sets=tuple(plans),
        steps=steps,
        batch_size=size,
        epoch=mixture.length,
        parameters=parameters,
        estimates=(on_cluster, *([local] if local else [])),
        assumptions=tuple(assumptions),
    )


def _graph(structure: Structure, task: Task, lists: Sequence[str], edge_dropout: float) -> StructureGraph:
    rng = np.random.default_rng(0) if edge_dropout else None
    return build_graph(structure, task.graph, lists=lists, edge_dropout=edge_dropout, rng=rng)


def _task(name: str, settings: PretrainSettings) -> Task:
    """A task for counting work, with heads and graph but no references."""
    chosen = settings.sets[name]
    plain = Normaliser(references=None, mean=0.0, scale=1.0)
    targets = {prop: Target(t, plain, t.weight) for prop, t in chosen.targets.items()}
    return Task(name, "", targets, chosen.graph or settings.graph)


def _mixed(items: Mapping[str, Sequence[Sample]], mixture: Mixture, size: int = 12) -> list[Sample]:
    """A small batch in the proportions of the mixture, with at least one structure of each set."""
    batch: list[Sample] = []
    for name in mixture.names:
        count = max(1, round(size * mixture.places[name] / mixture.length))
        batch += [items[name][i % len(items[name])] for i in range(count)]
    return batch


def _on_cluster(cluster: Cluster, settings: PretrainSettings, flops: float, saved: float, parameters: int) -> Estimate:
    g, size, steps = cluster.gpus, settings.train.batch_size, settings.train.steps
    batches = settings.train.accumulate
    each = size / g
    one = max(flops * each / (1e12 * cluster.peak_tflops * cluster.efficiency), 1e-3 * cluster.launch_ms)
    compute = batches * one
    # Ring algorithms: an all-reduce sends each byte twice through every GPU, an all-gather and a reduce-scatter once.
    # Gradients are sent once per step; with FSDP the parameters are gathered twice per batch.
    times = 2 if cluster.strategy == "ddp" else 2 * batches + 1
    message = times * 4 * parameters * (g - 1) / g
    communication = message / (1e9 * cluster.link_gb_s)
    n_validation = sum(chosen.validation for chosen in (*settings.sets.values(), *settings.watch.values()))
    validations = (steps // settings.train.evaluate_every + 1) * FORWARD_FRACTION * n_validation / size * one
    hours = (steps * (compute + communication) + validations) / 3600
    state = _state_bytes(settings, g, cluster.strategy) * parameters
    memory = state + saved * math.ceil(each)
    moved = "all-reduce" if cluster.strategy == "ddp" else "all-gather and reduce-scatter"
    details: dict[str, float | str] = {
        "structures per GPU and step": batches * each,
        "GFLOP per structure": flops / 1e9,
        "structures per second": batches * size / (compute + communication),
        f"{moved} per GPU and step, GB": message / 1e9,
        "communication, part of a step": communication / (compute + communication),
    }
    fits = (1e9 * cluster.memory_gb - state) / saved
    if memory > 1e9 * cluster.memory_gb:
        details["does not fit"] = (
            f"{cluster.memory_gb:g} GB hold {max(0, math.floor(fits))} structures per GPU, not {math.ceil(each)}: "
            "use more GPUs, a smaller train.batch_size with train.accumulate, or --strategy fsdp"
        )
    else:
        details["structures that fit a GPU"] = math.floor(fits)
    return Estimate(
        where=f"{g} GPU{'s' * (g > 1)} of {cluster.peak_tflops:g} TFLOP/s, {cluster.strategy}",
        step_seconds=compute + communication,
        compute_seconds=compute,
        data_seconds=0.0,
        communication_seconds=communication,
        hours=hours,
        memory_gigabytes=memory / 1e9,
        gpu_hours=hours * g,
        price=hours * g * cluster.price,
        details=details,
    )


def _on_this_machine(
    settings: PretrainSettings,
    tasks: Sequence[Task],
    items: Mapping[str, Sequence[Sample]],
    work: Mapping[str, Work],
    flops: float,
    saved: float,
    patience: float,
) -> tuple[Estimate | None, str]:
    """Estimate for one process on this machine, timed on the cheapest typical structures.

    None, with the reason, if that would take too long.
    """
    cuda = torch.cuda.is_available() and settings.train.accelerator != "cpu"
    lightest = min(work, key=lambda n: work[n].flops)
    guess = 4 * work[lightest].flops / (1e10 if not cuda else 1e13)
    if guess > patience:
        return None, f"this machine was not timed: a few steps would take about {_time(guess)}"
    device = torch.device("cuda" if cuda else "cpu")
    backbone, _ = build_backbone(settings.backbone.name, settings.backbone.settings, settings.graphs)
    model = MultitaskModel(backbone, {task.name: task.heads for task in tasks})
    if settings.train.activation_checkpointing:
        checkpoint_activations(model)
    ordered = sorted(work, key=lambda n: work[n].flops)
    began = time.monotonic()
    calibration = calibrate(model, tasks, (items[n] for n in ordered), device=device, patience=patience / 4)
    last = calibration.batches[-1]
    rate = work[ordered[len(calibration.batches) - 1]].flops / last["seconds"]
    size, steps = settings.train.batch_size, settings.train.steps
    step = settings.train.accumulate * flops * size / rate
    return (
        Estimate(
            where=f"here, one process on {calibration.device}",
            step_seconds=step,
            compute_seconds=step,
            data_seconds=0.0,
            communication_seconds=0.0,
            hours=steps * step / 3600,
            memory_gigabytes=(
                _state_bytes(settings, 1, "ddp") * sum(p.numel() for p in model.parameters()) + saved * size
            )
            / 1e9,
            details={"TFLOP/s reached": rate / 1e12, "measured in, s": time.monotonic() - began},
        ),
        "",
    )
