"""Distillation: label structures with a model's predictions, to train a faster model on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import tee
from pathlib import Path

import numpy as np

from eutectic.atoms import PROPERTIES, EutecticError, LabelledStructure, Structure, did_you_mean
from eutectic.checkpoints.model import TrainedModel
from eutectic.data.card import Card
from eutectic.data.formats.elements import Elements
from eutectic.data.store import check_place, write_store
from eutectic.predict.files import Read, read_each
from eutectic.predict.prediction import predict_each, relative_energies, task_of


def distil(
    teacher: TrainedModel,
    source: Path,
    out: Path,
    *,
    name: str,
    task: str | None = None,
    properties: Sequence[str] = (),
    conservative: bool = False,
    elements: Elements | None = None,
    batch_size: int = 32,
    on_done: Callable[[int], None] = lambda structures: None,
) -> tuple[int, list[str]]:
    """Write a store of structures with the teacher's predictions as labels.

    The level of theory names the teacher, so that predictions are never mistaken for calculations, nor heads trained on
    them reused for calculations. Groups are those of the source store; for a file, one per composition.

    Args:
        teacher: model whose predictions become labels.
        source: a file that ASE reads, or the path or name of a store; its labels are not used.
        out: store to write.
        name: name of the teacher.
        task: task of the teacher; needed if it has several.
        properties: labels to write; default: all that the task predicts, except classes.
        conservative: forces and stress as derivatives of the energy.
        batch_size: structures per batch.
        on_done: called with the number of structures done since the last call.

    Returns:
        Number of structures written, and the reasons why others were left out.

    Raises:
        EutecticError: no such task or property; something exists at `out`; no structure can be predicted.
    """
    chosen = task_of(teacher, task)
    derived = ("forces", "stress") if conservative else ()
    known = [n for n in dict.fromkeys([*chosen.heads, *derived]) if not PROPERTIES[n].categorical]
    missing = [n for n in properties if n not in known]
    if missing or not known:
        given = ", ".join(missing) or "no property with a value"
        fix = did_you_mean(given, known, "choose from these") if missing else "choose another model"
        raise EutecticError(f"teacher {name}, task {chosen.name}", given, ", ".join(known) or "some property", fix)
    names = tuple(properties or known)
    check_place(Path(out).absolute(), overwrite=False)
    note = relative_energies(teacher, chosen.name)
    card = Card(
        name=Path(out).name,
        title=f"Predictions of {name} on {Path(source).name}",
        domain="predictions of a model",
        properties=names,
        level_of_theory=f"{name}, task {chosen.name} ({chosen.level_of_theory}), predicted",
        licence="that of the structures and of the model",
        citation="that of the structures and of the model",
        source=f"eutectic distill {name} {source}",
        notes=("Labels are predictions, not calculations.", *([f"Energies: {note}"] if note else [])),
    )
    left_out: list[str] = []

    def readable() -> Iterator[tuple[Read, Structure]]:
        for read in read_each(source, elements):
            if read.structure is None:
                left_out.append(f"{read.where}: {read.error}")
            else:
                yield read, read.structure

    def rows() -> Iterator[LabelledStructure]:
        # `tee` buffers at most one window of structures.
        reads, inputs = tee(readable())
        predictions = predict_each(
            teacher,
            chosen.name,
            (structure for _, structure in inputs),
            batch_size=batch_size,
            conservative=conservative,
            on_done=on_done,
        )
        for (read, structure), prediction in zip(reads, predictions, strict=True):
            if isinstance(prediction, EutecticError):
                left_out.append(f"{read.where}: {prediction}")
                continue
            info = {} if read.atoms is None else read.atoms.info
            group = str(info.get("group") or structure.to_ase().get_chemical_formula())
            labels = {
                name: np.asarray(prediction[name], dtype=np.float64).reshape(PROPERTIES[name].shape(len(structure)))
                for name in names
            }
            yield LabelledStructure(structure=structure, labels=labels, id=str(info.get("id", read.index)), group=group)

    return write_store(out, card, rows()), left_out
