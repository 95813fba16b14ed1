"""Tasks, normalisers, losses and metrics."""

from eutectic.tasks.batch import Batch, Sample, labelled_structures, make_batch
from eutectic.tasks.fit import fit_task
from eutectic.tasks.loss import structure_losses, target_losses, weighted_sums
from eutectic.tasks.targets import Targets, check_targets, targets_for
from eutectic.tasks.task import Normaliser, Target, TargetSettings, Task

__all__ = [
    "Batch",
    "Normaliser",
    "Sample",
    "Target",
    "TargetSettings",
    "Targets",
    "Task",
    "check_targets",
    "fit_task",
    "labelled_structures",
    "make_batch",
    "structure_losses",
    "target_losses",
    "targets_for",
    "weighted_sums",
]
