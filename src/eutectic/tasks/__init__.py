"""What is asked of a model: tasks, normalisers, losses, metrics."""

from eutectic.tasks.batch import Batch, Sample, make_batch
from eutectic.tasks.fit import fit_task
from eutectic.tasks.loss import labelled_structures, structure_losses, target_losses, weighted_sums
from eutectic.tasks.task import Normaliser, Target, TargetSettings, Task

__all__ = [
    "Batch",
    "Normaliser",
    "Sample",
    "Target",
    "TargetSettings",
    "Task",
    "fit_task",
    "labelled_structures",
    "make_batch",
    "structure_losses",
    "target_losses",
    "weighted_sums",
]
