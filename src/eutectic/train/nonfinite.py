"""Save training steps with a non-finite loss or gradient, and replay them.

`FOLDER/nonfinite-steps/step-000123/` holds `model/` (the weights before the step, a model folder like any other),
`structures.safetensors` (structures and labels of the step, in the library's units) and `step.json` (their draws, and
all settings).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase.data import chemical_symbols
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_weights

import eutectic
from eutectic.atoms import PROPERTIES, EutecticError, LabelledStructure, Structure
from eutectic.checkpoints.model import TrainedModel, load_model, save_model
from eutectic.files import replacing
from eutectic.graph import build_graph
from eutectic.tasks import Sample, make_batch, structure_losses
from eutectic.train.batches.sampler import BatchSampler, SampleKey
from eutectic.train.runtime.launch import make_fabric
from eutectic.train.settings import LoopSettings, OptimiserSettings

log = logging.getLogger(__name__)

OUTLIER = 10.0
"""Normalised labels larger than this in absolute value are reported."""

ARRAYS = ("numbers", "positions", "cell", "pbc", "tags", "fixed")


def save_nonfinite_step(
    folder: Path,
    entry: Mapping[str, Any],
    batches: range,
    source: BatchSampler,
    model: TrainedModel,
    settings: LoopSettings,
    optimiser_settings: OptimiserSettings,
) -> None:
    """Save a step for `replay`. If the disk is full, the step is not saved, and the run continues.

    Args:
        folder: the run's.
        entry: the step's line in the journal.
        batches: indices of the step's batches in `source`.
        model: with the weights before the step.
        settings, optimiser_settings: the run's.
    """
    place = folder / "nonfinite-steps" / f"step-{entry['step']:06d}"
    try:
        with replacing(place, folder=True, errors=()) as half:
            arrays: dict[str, np.ndarray] = {}
            records: list[dict[str, Any]] = []
            for batch in batches:
                for which, position, draw in zip(*source.chosen(batch), source.draws(batch), strict=True):
                    data = source.sets[which]
                    labelled = data.store[int(data.rows[position])]
                    prefix = str(len(records))
                    arrays |= {f"{prefix}.{name}": np.asarray(getattr(labelled.structure, name)) for name in ARRAYS}
                    arrays |= {f"{prefix}.labels.{name}": np.asarray(label) for name, label in labelled.labels.items()}
                    records.append(
                        {
                            "task": data.task.name,
                            "id": labelled.id,
                            "group": labelled.group,
                            "draw": list(draw),
                            "edge_dropout": data.edge_dropout,
                        }
                    )
            save_file({k: np.ascontiguousarray(v) for k, v in arrays.items()}, half / "structures.safetensors")
            save_model(half / "model", model)
            description = {
                "eutectic": eutectic.__version__,
                "entry": dict(entry),
                "batches": list(batches),
                "divided_by": len(batches) * source.batch_size,
                "train": settings.model_dump(mode="json", include=set(LoopSettings.model_fields)),
                "optimiser": optimiser_settings.model_dump(mode="json"),
                "structures": records,
            }
            (half / "step.json").write_text(json.dumps(description, indent=1, ensure_ascii=False), encoding="utf-8")
        log.warning(
            "step %s had a non-finite loss or gradient; replay it with `eutectic replay %s`", entry["step"], place
        )
    except (OSError, SafetensorError, EutecticError) as error:
        log.warning("step %s had a non-finite loss or gradient, but could not be saved: %s", entry["step"], error)


@dataclass(frozen=True, kw_only=True)
class ReplayedStructure:
    """One structure of a replayed step.

    Attributes:
        task, id: identify the structure.
        formula, n_atoms: its composition and size.
        loss: as in training; can be NaN or infinite.
        gradient_norm: norm of the gradient of this structure's loss.
        problems: non-finite labels, outliers, and other problems.
    """

    task: str
    id: str
    formula: str
    n_atoms: int
    loss: float
    gradient_norm: float
    problems: list[str]


@dataclass(frozen=True, kw_only=True)
class Replay:
    """A replayed step.

    Attributes:
        step: its number.
        recorded_loss, loss: mean over structures, in the run and in the replay.
        gradient_norm: of the step, before clipping.
        gradient_norms: module → norm of its gradient.
        structures: those with problems first, then by loss.
    """

    step: int
    recorded_loss: float
    loss: float
    gradient_norm: float
    gradient_norms: dict[str, float]
    structures: list[ReplayedStructure]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)


def replay(folder: Path, *, progress: Callable[[int, int], None] = lambda done, n: None) -> Replay:
    """Repeat a saved step on this machine's device, in the run's precision.

    Args:
        folder: one of a run's `nonfinite-steps`.
        progress: called with the number of structures done and their total.

    Raises:
        EutecticError: the folder does not hold a saved step.
    """
    folder = Path(folder)
    description, structures = _read(folder)
    model = load_model(folder / "model", finite=False)
    tasks = model.tasks
    index = {task.name: i for i, task in enumerate(tasks)}
    known = LoopSettings.model_fields.keys() & description["train"].keys()
    settings = LoopSettings.model_validate({name: description["train"][name] for name in known})
    fabric = make_fabric(settings, alone=True)
    dtype = torch.float64 if settings.precision == "64-true" else torch.float32
    module = model.module.to(fabric.device, dtype).train()
    # Load again in the run's precision, since `load_model` loads in single precision.
    module.load_state_dict(load_weights(folder / "model" / "model.safetensors"))
    wrapped = fabric.setup_module(module)

    def make_sample(labelled: LabelledStructure, record: Mapping[str, Any]) -> Sample:
        task = tasks[index[record["task"]]]
        dropout = float(record["edge_dropout"])
        draw: SampleKey = tuple(record["draw"])
        rng = np.random.default_rng(draw) if dropout else None
        lists = module.backbone.edge_lists
        graph = build_graph(labelled.structure, task.graph, lists=lists, edge_dropout=dropout, rng=rng)
        return Sample(task=index[task.name], graph=graph, labels=task.normalised_labels(labelled))

    parameters = dict(module.named_parameters())
    summed = {name: torch.zeros_like(p) for name, p in parameters.items()}
    replayed: list[ReplayedStructure] = []
    n = len(structures)
    # With batches cut by cost, the gradient is divided by the mean number of structures per step.
    divided_by = description.get("divided_by", n)
    for done, (labelled, record) in enumerate(zip(structures, description["structures"], strict=True), 1):
        module.zero_grad(set_to_none=True)
        sample = make_sample(labelled, record)
        batch = make_batch([sample], tasks, dtype).to(fabric.device)
        loss = torch.cat(structure_losses(wrapped(batch.graph, batch.parts), batch, tasks)).sum()
        loss.backward()
        gradients = {name: p.grad for name, p in parameters.items() if p.grad is not None}
        for name, value in gradients.items():
            summed[name] += value / divided_by
        norm = torch.stack([value.norm() for value in gradients.values()]).norm()
        task = tasks[index[record["task"]]]
        replayed.append(
            ReplayedStructure(
                task=task.name,
                id=labelled.id,
                formula=labelled.structure.to_ase().get_chemical_formula(),
                n_atoms=len(labelled.structure),
                loss=float(loss.detach()),
                gradient_norm=float(norm),
                problems=_problems(labelled, sample, float(loss.detach()), float(norm)),
            )
        )
        progress(done, n)
    norms: dict[str, list[torch.Tensor]] = {}
    for name, value in summed.items():
        norms.setdefault(_module_of(name), []).append(value.norm())
    by_module = {name: float(torch.stack(values).norm()) for name, values in norms.items()}
    recorded = description["entry"]["loss"]
    return Replay(
        step=int(description["entry"]["step"]),
        recorded_loss=float("nan") if recorded is None else float(recorded),
        loss=sum(s.loss for s in replayed) / n,
        gradient_norm=float(torch.tensor(list(by_module.values()), dtype=torch.float64).norm()),
        gradient_norms=by_module,
        structures=sorted(replayed, key=lambda s: (not s.problems, -np.nan_to_num(s.loss, nan=np.inf))),
    )


def _read(folder: Path) -> tuple[dict[str, Any], list[LabelledStructure]]:
    try:
        description = json.loads((folder / "step.json").read_text())
        arrays = load_file(folder / "structures.safetensors")
        structures = []
        for number, record in enumerate(description["structures"]):
            prefix = f"{number}.labels."
            structures.append(
                LabelledStructure(
                    structure=Structure(**{name: arrays[f"{number}.{name}"] for name in ARRAYS}),
                    labels={k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)},
                    id=record["id"],
                    group=record["group"],
                )
            )
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise EutecticError(
            str(folder),
            f"not a saved step ({type(error).__name__}: {error})",
            "a folder nonfinite-steps/step-… of a run",
            "choose a folder in nonfinite-steps of the run",
        ) from error
    return description, structures


def _module_of(parameter: str) -> str:
    """The module under which a parameter is reported: a block, a basis or a head."""
    parts = parameter.split(".")
    return ".".join(parts[:3] if len(parts) > 3 and (parts[0] == "heads" or parts[2].isdigit()) else parts[:2])


def _problems(labelled: LabelledStructure, sample: Sample, loss: float, norm: float) -> list[str]:
    problems = []
    numbers = labelled.structure.numbers
    for name, value in sample.labels.items():
        unit = PROPERTIES[name].unit
        value = np.atleast_1d(np.asarray(value, dtype=np.float64))
        raw = np.atleast_1d(np.asarray(labelled.labels[name], dtype=np.float64))
        of_atoms = PROPERTIES[name].level == "atom"
        each = np.abs(value).reshape(len(value), -1).max(1) if of_atoms else np.abs(value).max()[None]
        original = np.abs(raw).reshape(len(raw), -1).max(1) if of_atoms else np.abs(raw).max()[None]
        worst = int(np.argmax(np.nan_to_num(each, nan=np.inf)))
        where = f" of atom {worst} ({chemical_symbols[int(numbers[worst])]})" if of_atoms else ""
        if not np.isfinite(each[worst]):
            problems.append(f"label {name}{where} is not finite")
        elif each[worst] > OUTLIER:
            problems.append(f"label {name}{where} is {original[worst]:.6g} {unit}, {each[worst]:.0f} times its scale")
    if not np.isfinite(labelled.structure.positions).all():
        problems.append("positions are not finite")
    elif len(sample.graph.main) == 0 and len(numbers) > 1:
        problems.append("no two atoms are within the cutoff")
    elif len(numbers) > 1 and (closest := float(sample.graph.main.distance.min())) < 0.5:
        problems.append(f"two atoms are {closest:.3f} Å apart")
    if not problems and not np.isfinite(loss):
        problems.append("the loss is not finite, but the labels are")
    elif not problems and not np.isfinite(norm):
        problems.append("the gradient is not finite, but the loss is")
    return problems
