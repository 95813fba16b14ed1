"""Ridge regression on frozen features: the weights of linear heads in closed form.

A head without hidden layers is linear in its weights w: ŷ = D w. D has one row per label value (of a structure, an
atom, or a component) and contains the backbone's features, summed or averaged over atoms like the property. With the
columns C of unpenalised parameters (numbers of atoms of each element for a property with references per element, a
constant for a property with a mean), the minimum of

    ‖y − D w − C c‖² + λ ‖w‖²

is found from DᵀD, CᵀD, CᵀC, Dᵀy and Cᵀy, which are accumulated batch by batch in float64, so that the training
structures need not fit into memory. λ is the value in `PENALTIES` (relative to the mean eigenvalue) with the lowest
error on validation structures. Hoerl and Kennard, Technometrics 1970, 12, 55.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, vmap

from eutectic.models.backbone import Backbone
from eutectic.models.heads import Head, TaskFeatures
from eutectic.models.multitask import MultitaskModel, features_of_task
from eutectic.tasks import Normaliser, Sample, Task, make_batch
from eutectic.train.batches.sampler import TaskDataset

PENALTIES = tuple(10.0 ** (k / 2) for k in range(-20, 3))
"""λ, relative to the mean eigenvalue of the penalised part."""

MOST_VALIDATED = 500
"""Maximum number of validation structures for the choice of λ."""

BATCH = 16


def why_not(task: Task) -> dict[str, str]:
    """Properties whose heads cannot be fitted in closed form → reason."""
    reasons = {}
    for name, head in task.heads.items():
        if head.entry.derivative:
            reasons[name] = f"{name.replace('_', ' ')} are derivatives of the energy"
        elif head.entry.categorical:
            reasons[name] = f"{name.replace('_', ' ')} has classes"
        elif "vectors" in head.entry.needs:
            reasons[name] = f"{name.replace('_', ' ')} would have a weight for every product of features"
        elif head.pooling == "max":
            reasons[name] = f"{name.replace('_', ' ')} is the largest value of an atom"
    return reasons


def with_linear_heads(task: Task, properties: Sequence[str]) -> Task:
    """The task with only these properties, and heads without hidden layers."""
    targets = {}
    for name in properties:
        target = task.targets[name]
        head = target.settings.head.model_copy(update={"layers": 0})
        targets[name] = replace(target, settings=target.settings.model_copy(update={"head": head}))
    return replace(task, targets=targets)


@dataclass
class Sums:
    """Products of the columns [C D] and y, summed over rows; all float64.

    Attributes:
        free: number of columns C that are not penalised.
        gram: (columns, columns) [C D]ᵀ[C D].
        along: (columns,) [C D]ᵀ y.
    """

    free: int
    gram: Float[np.ndarray, "columns columns"]
    along: Float[np.ndarray, " columns"]

    @classmethod
    def of(cls, free: int, width: int) -> Sums:
        """Empty sums."""
        return cls(free, np.zeros((free + width, free + width)), np.zeros(free + width))

    def add(self, columns: Float[np.ndarray, "rows columns"], y: Float[np.ndarray, " rows"]) -> None:
        self.gram += columns.T @ columns
        self.along += columns.T @ y

    def solutions(self, penalties: Sequence[float]) -> Float[np.ndarray, "penalties columns"]:
        """[c w] for each penalty, relative to the mean eigenvalue of the penalised part."""
        f = self.free
        inverse = np.linalg.pinv(self.gram[:f, :f], rcond=1e-10, hermitian=True)
        # Eliminate the free columns: w is fitted to the residual.
        part = self.gram[f:, f:] - self.gram[f:, :f] @ inverse @ self.gram[:f, f:]
        along = self.along[f:] - self.gram[f:, :f] @ inverse @ self.along[:f]
        values, vectors = np.linalg.eigh((part + part.T) / 2)
        values = np.clip(values, 0.0, None)
        scale = float(values.mean()) or 1.0
        found = []
        for penalty in penalties:
            w = vectors @ ((vectors.T @ along) / (values + penalty * scale))
            c = inverse @ (self.along[:f] - self.gram[:f, f:] @ w)
            found.append(np.concatenate([c, w]))
        return np.stack(found)


@dataclass(frozen=True)
class Ridge:
    """Linear heads in closed form.

    Attributes:
        model: the backbone with these heads, in evaluation mode.
        task: with the corresponding references and means.
        penalties: property → λ, relative to the mean eigenvalue.
    """

    model: MultitaskModel
    task: Task
    penalties: Mapping[str, float] = field(default_factory=dict)


def fit_ridge(
    backbone: Backbone, task: Task, training: TaskDataset, validation: TaskDataset, device: torch.device | str = "cpu"
) -> Ridge:
    """Fit linear heads for every property of a task; `why_not` must name none of them.

    Args:
        backbone: whose features are used; copied.
        task: with heads without hidden layers (`with_linear_heads`), and fitted references and scales.
        training: structures to which the heads are fitted.
        validation: structures for the choice of λ; at least one.
        device: to compute features on.
    """
    model = MultitaskModel(copy.deepcopy(backbone), {task.name: task.heads})
    model = model.to(device, next(model.backbone.parameters()).dtype).eval()
    sums: dict[str, Sums] = {}
    for name, columns, y in _rows(model, task, training, device):
        if name not in sums:
            free = _n_free(task, name)
            sums[name] = Sums.of(free, columns.shape[1] - free)
        sums[name].add(columns, y)
    solutions = {name: found.solutions(PENALTIES) for name, found in sums.items()}
    errors = {name: np.zeros(len(PENALTIES)) for name in sums}
    some = replace(validation, rows=validation.rows[:MOST_VALIDATED], kept={})
    for name, columns, y in _rows(model, task, some, device):
        if name in solutions:
            errors[name] += np.abs(columns @ solutions[name].T - y[:, None]).sum(0)
    penalties, targets = {}, dict(task.targets)
    for name, found in solutions.items():
        # For equal errors (no validation labels), the largest penalty.
        best = len(PENALTIES) - 1 - int(np.argmin(errors[name][::-1]))
        penalties[name] = PENALTIES[best]
        free = _n_free(task, name)
        _set_weights(_head(model, task.name, name), found[best, free:])
        targets[name] = replace(task.targets[name], normaliser=_shifted(task, name, found[best, :free]))
    return Ridge(model, replace(task, targets=targets), penalties)


def _rows(
    model: MultitaskModel, task: Task, data: TaskDataset, device: torch.device | str
) -> Iterator[tuple[str, Float[np.ndarray, "rows columns"], Float[np.ndarray, " rows"]]]:
    """Property, columns [C D] and normalised labels of the labelled rows, batch by batch."""
    dtype = next(model.parameters()).dtype
    for first in range(0, len(data), BATCH):
        items = replace(data, task=task, rows=data.rows[first : first + BATCH], kept={}).items()
        items = [replace(item, task=0) for item in items]
        batch = make_batch(items, [task], dtype).to(device)
        with torch.no_grad():
            features = features_of_task(batch.parts[0], batch.graph, model.backbone(batch.graph))
            for name in task.targets:
                columns = _design(_head(model, task.name, name), features)
                y = batch.labels[task.name][name].reshape(-1).double().cpu().numpy()
                labelled = np.isfinite(y)
                free = _free(task, name, items, len(y))
                if labelled.any():
                    yield name, np.concatenate([free, columns.cpu().numpy()], axis=1)[labelled], y[labelled]


def _head(model: MultitaskModel, task: str, name: str) -> Head:
    return cast(Head, cast(nn.ModuleDict, model.heads[task])[name])


def _design(head: Head, features: TaskFeatures) -> Float[Tensor, "rows weights"]:
    """Predictions of a linear head for unit vectors as weights: one column per weight, float64."""
    names, shapes = zip(*((name, p.shape) for name, p in head.named_parameters()), strict=True)
    sizes = [shape.numel() for shape in shapes]

    def predicted(weights: Tensor) -> Tensor:
        parts = [part.view(shape) for part, shape in zip(weights.split(sizes), shapes, strict=True)]
        return cast(Tensor, functional_call(head, dict(zip(names, parts, strict=True)), (features,)))

    unit = torch.eye(sum(sizes), dtype=features.atoms.dtype, device=features.atoms.device)
    return vmap(predicted)(unit).flatten(1).T.double()


def _set_weights(head: Head, weights: Float[np.ndarray, " weights"]) -> None:
    with torch.no_grad():
        first = 0
        for parameter in head.parameters():
            n = parameter.numel()
            parameter.copy_(torch.from_numpy(weights[first : first + n]).view(parameter.shape))
            first += n


def _n_free(task: Task, name: str) -> int:
    references = task.targets[name].normaliser.references
    return len(references.values) if references is not None else int(task.property(name).rank == 0)


def _free(task: Task, name: str, items: Sequence[Sample], rows: int) -> Float[np.ndarray, "rows free"]:
    """The columns C."""
    references = task.targets[name].normaliser.references
    if references is None:
        return np.ones((rows, _n_free(task, name)))
    return np.array(
        [[np.count_nonzero(item.graph.structure.numbers == z) for z in references.values] for item in items],
        dtype=float,
    )


def _shifted(task: Task, name: str, c: Float[np.ndarray, " free"]) -> Normaliser:
    """References or mean with C c added."""
    normaliser = task.targets[name].normaliser
    if not len(c):
        return normaliser
    if normaliser.references is None:
        return replace(normaliser, mean=normaliser.mean + float(c[0]) * normaliser.scale)
    values = {
        z: v + float(d) * normaliser.scale for (z, v), d in zip(normaliser.references.values.items(), c, strict=True)
    }
    return replace(normaliser, references=replace(normaliser.references, values=values))
