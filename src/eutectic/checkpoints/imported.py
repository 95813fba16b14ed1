"""Common parts of importing foreign checkpoints: the report, and checks of the weights."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from eutectic.atoms import EutecticError
from eutectic.checkpoints.safe_pickle import StoredTensor
from eutectic.models.multitask import MultitaskModel


@dataclass(frozen=True, kw_only=True)
class ImportReport:
    """Report of an import.

    Attributes:
        size: the published model that has the same sizes, or a note that there is none.
        parameters: number of imported parameters, including heads.
        taken, left, missing: parts of the checkpoint that were imported, ignored, or absent → number or reason.
    """

    size: str
    parameters: int
    taken: Mapping[str, str]
    left: Mapping[str, str]
    missing: Mapping[str, str]


def check_fit(
    found: Mapping[str, tuple[int, ...]],
    our_names: Mapping[str, str],
    module: MultitaskModel,
    path: Path,
    expected: str,
    computed: Collection[str] = (),
) -> None:
    """Check that the file has every weight of the model, with the right shape.

    Args:
        found: shapes of the entries, by their names in the file.
        our_names: name in the file → name in `module`.
        module: on any device.
        path: path of the file, for the error.
        expected: kind of file, for the error.
        computed: names in `module` that are not stored in the file.

    Raises:
        EutecticError: an entry that is missing, or has another shape.
    """
    shapes = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    for original, name in our_names.items():
        shape = found.get(original)
        if shape is None or shape != shapes.get(name):
            raise EutecticError(
                str(path),
                f"{original} {'is missing' if shape is None else f'has shape {shape}'}",
                f"shape {shapes[name]}, according to the other entries"
                if name in shapes
                else "no such layer in a published head",
                "use the file as it was published",
            )
    absent = sorted(set(shapes).difference(our_names.values(), computed))
    if absent:
        raise EutecticError(str(path), f"no entry for {absent[0]}", expected, "use the file as it was published")


def check_order(entries: Iterable[str], expected: Sequence[str], path: Path, fix: str) -> None:
    """Check that entries are in the published order, by which unnamed averaged weights are identified.

    Args:
        entries: names in the file, in its order; unexpected names are ignored.
        expected: names in the published order, all of them in the file.
        path, fix: for the error.

    Raises:
        EutecticError: a different order.
    """
    known = set(expected)
    for published, actual in zip(expected, (name for name in entries if name in known), strict=True):
        if published != actual:
            raise EutecticError(
                str(path),
                f"{actual} in place of {published}",
                "entries of state_dict in the published order, by which averaged weights are identified",
                fix,
            )


def named_averages(
    averages: Sequence[object], names: Sequence[str], entries: Mapping[str, StoredTensor], path: Path, fix: str
) -> dict[str, StoredTensor]:
    """Averaged weights by name; they are stored without names, in the order of the weights.

    Args:
        averages: averaged weights as stored.
        names: names of the weights, in order.
        entries: the weights by name.
        path, fix: for the error.

    Raises:
        EutecticError: the number of averages, or the shape of one, does not match the weights.
    """
    named: dict[str, StoredTensor] = {}
    wrong = None if len(averages) == len(names) else f"{len(averages)} averaged weights for {len(names)} named ones"
    for i, (name, value) in enumerate(zip(names, averages, strict=False)):
        if isinstance(value, StoredTensor) and value.shape == entries[name].shape:
            named[name] = value
        else:
            shape = getattr(value, "shape", None)
            wrong = f"averaged weight {i} has shape {shape} where {name} has {entries[name].shape}"
            break
    if wrong is not None:
        raise EutecticError(str(path), wrong, "one averaged weight per weight of state_dict, in the same order", fix)
    return named


def check_finite(state: Mapping[str, Tensor], path: Path) -> None:
    """Check that all weights are finite.

    Raises:
        EutecticError: a weight is not finite.
    """
    for name, value in state.items():
        if not torch.isfinite(value).all():
            raise EutecticError(str(path), f"{name} is not finite", "finite weights", "download or copy the file again")
