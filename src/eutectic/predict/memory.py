"""Estimate the memory of a prediction before running it, for large structures."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch

from eutectic.atoms import EutecticError, Structure
from eutectic.checkpoints.model import TrainedModel
from eutectic.graph import build_graph
from eutectic.processes import available_memory
from eutectic.tasks import Sample, Task, make_batch
from eutectic.train.cost import PeakBytes

log = logging.getLogger(__name__)

LARGE = 4000
"""Number of atoms of a batch above which its memory is estimated."""

WORTH_SAYING = 2e9
"""Bytes above which the estimate is logged."""

PROBE = 250
"""Number of atoms of the part of a structure whose memory is measured."""


def check_memory(model: TrainedModel, task: Task, samples: Sequence[Sample], conservative: bool) -> None:
    """Log the memory that a large batch needs before computing it, and refuse one that does not fit.

    The memory of a part of the largest structure is measured and scaled by the number of atoms, edges, triplets or
    quadruplets, whichever grows most.

    Raises:
        EutecticError: it needs more memory than is available.
    """
    total = np.sum([sample.graph.counts for sample in samples], axis=0)
    if total[0] < LARGE:
        return
    device = next(model.module.parameters()).device
    available = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory()
    if available is None:
        return
    needed = needed_memory(model, task, samples, conservative)
    amount = f"about {needed / 1e9:.1f} GB for {total[0]:,} atoms with {total[1]:,} edges"
    if needed > available:
        raise EutecticError(
            f"task {task.name}",
            f"a prediction that needs {amount}",
            f"at most the {available / 1e9:.1f} GB that are available",
            "use a machine with more memory, a smaller --batch-size or a smaller structure",
        )
    if needed > min(WORTH_SAYING, 0.25 * available):
        log.warning("this prediction needs %s; %.1f GB are available", amount, available / 1e9)


def needed_memory(model: TrainedModel, task: Task, samples: Sequence[Sample], conservative: bool) -> float:
    """Estimated bytes of the intermediate results of a batch."""
    largest = max((sample.graph for sample in samples), key=lambda graph: len(graph.structure))
    near = np.linalg.norm(largest.home - largest.home[len(largest.home) // 2], axis=1).argsort(kind="stable")[:PROBE]
    part = Structure(
        numbers=largest.structure.numbers[near], positions=largest.home[near], tags=largest.structure.tags[near]
    )
    graph = build_graph(part, task.graph, lists=model.module.backbone.edge_lists)
    weight = next(model.module.parameters())
    batch = make_batch([Sample(0, graph, {})], [task], weight.dtype).to(weight.device)
    training = model.module.training
    model.module.eval()
    try:
        with torch.no_grad(), PeakBytes() as peak:
            model.module(batch.graph, batch.parts, conservative=conservative)
    finally:
        model.module.train(training)
    counts = np.sum([sample.graph.counts for sample in samples], axis=0)
    ratios = [whole / part for whole, part in zip(counts, graph.counts, strict=True) if part]
    return float(peak.most * max(ratios))
