"""Predictions for the structures of a file, in constant memory: read, predicted and written one after the other."""

from __future__ import annotations

import itertools
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.data import chemical_symbols
from ase.stress import full_3x3_to_voigt_6_stress

from eutectic.atoms import PROPERTIES, EutecticError, Interrupted, Structure
from eutectic.checkpoints.model import TrainedModel, elements_seen
from eutectic.data import catalogue
from eutectic.data.datasets import ase_files
from eutectic.data.formats.elements import Elements
from eutectic.data.store import Store, is_store
from eutectic.predict.devices import predict_on
from eutectic.predict.prediction import Prediction, predict_each, window_of


@dataclass(frozen=True)
class Read:
    """A structure of a file, or why it could not be read.

    Attributes:
        index: in the file.
        where: its location, for errors.
        atoms: as ASE reads it, with all its data.
        structure: the same.
        error: why there is none.
    """

    index: int
    where: str
    atoms: Atoms | None = None
    structure: Structure | None = None
    error: EutecticError | None = None


def read_each(
    source: Path, elements: Elements | None = None, units: Mapping[str, str] | None = None, *, first: int = 0
) -> Iterator[Read]:
    """Every structure of a file or a store; those that cannot be read are given with the reason.

    Where reading cannot go on after a structure, the last one given says so.

    Args:
        source: a file that ASE reads, or the path or name of a store.
        elements: type or label of an atom → symbol of its element, for a file that does not name elements.
        units: "positions" and "cell" → unit in the file, before the one that it states; Å by default.
        first: the first structure to read.

    Raises:
        EutecticError: no file of structures at all.
    """
    source = Path(source)
    store = store_of(source)
    if store is not None:
        yield from _rows(store, first)
        return
    if source.is_dir():
        raise EutecticError(str(source), "a folder", "one file of structures, or a store", "name its files one by one")
    if not source.exists():
        raise EutecticError(str(source), "nothing is here", "a file of structures", "check the path")
    index = first
    lost: list[Read] = []  # in a row, where reading ended: they are structures only if there are others after them
    while True:
        try:
            for item in ase_files.structures(source, elements, index, units=units):
                yield from lost
                lost.clear()
                if isinstance(item, EutecticError):
                    yield Read(index, item.where, error=item)
                else:
                    yield Read(index, *item)
                index += 1
            break
        except EutecticError as error:
            if index == 0 and "structure 0" not in error.where:
                raise  # of the file
            lost.append(Read(index, error.where, error=error))
            index += 1
            if len(lost) == ase_files.MOST_IN_A_ROW:
                break
    if lost:
        begin, last = lost[0], cast(EutecticError, lost[0].error)
        given = f"{last.given}; nothing after it could be read"
        yield Read(begin.index, begin.where, error=EutecticError(last.where, given, last.expected, last.fix))


def store_of(source: Path) -> Store | None:
    """The store at this path or of this name; None for a file."""
    if is_store(source):
        return Store(source)
    if source.exists():
        return None
    try:
        return catalogue.open_store(source)
    except EutecticError:
        return None


def about_how_many(source: Path) -> int | None:
    """Structures in a store, or about as many in a plain xyz file, from its size and its first megabyte; else None."""
    if (store := store_of(source)) is not None:
        return len(store)
    if source.suffix not in {".xyz", ".extxyz"} or not source.is_file():
        return None
    frames, used = 0, 0
    try:
        with source.open("rb") as file:
            lines = iter(file.read(2**20).splitlines(keepends=True))
    except OSError:  # told where the file is read
        return None
    for line in lines:
        # A longer number is no number of atoms, and no integer that Python reads.
        if not line.strip().isdigit() or len(line) > 12:
            break
        frame = [line, *itertools.islice(lines, int(line) + 1)]
        if len(frame) < int(line) + 2 or not frame[-1].endswith(b"\n"):
            break
        frames, used = frames + 1, used + sum(map(len, frame))
    return round(source.stat().st_size / used * frames) if frames else None


def _rows(store: Store, first: int) -> Iterator[Read]:
    for index in range(first, len(store)):
        row = store[index]
        atoms = row.structure.to_ase()
        atoms.info |= {"id": row.id, "group": row.group}
        known = {name: row.labels[name] for name in ("energy", "forces", "stress") if name in row.labels}
        atoms.calc = SinglePointCalculator(
            atoms,
            **{
                name: full_3x3_to_voigt_6_stress(value)
                if name == "stress"
                else float(value)
                if not value.ndim
                else value
                for name, value in known.items()
            },
        )
        for name in row.labels.keys() - known.keys():
            value = row.labels[name]
            if PROPERTIES[name].level == "atom":
                atoms.arrays[name] = value
            else:
                atoms.info[name] = value if value.ndim else float(value)
        yield Read(index, f"{store.path}, row {index}", atoms, row.structure)


R = TypeVar("R")

Write = Callable[[Read, R | EutecticError], object]
"""Takes a structure with its result (a prediction, an embedding), or the reason why there is none."""


@dataclass
class Summary:
    """What became of the structures of a file.

    Attributes:
        predicted: number of structures.
        failed: number of structures without a prediction.
        reasons: why, for the first of them.
        unseen: element that the model never saw in training → number of predicted structures with it.
    """

    predicted: int = 0
    failed: int = 0
    reasons: list[EutecticError] = field(default_factory=list)
    unseen: Counter[str] = field(default_factory=Counter)

    MOST_REASONS = 10

    @property
    def structures(self) -> int:
        """Number of structures so far."""
        return self.predicted + self.failed

    def lines(self) -> list[str]:
        """The same in words; empty if there is nothing to say."""
        lines = []
        if self.failed:
            lines.append(f"{self.failed:,} of {self.structures:,} structures could not be predicted, the others were:")
            lines += [f"  {error.where}: {error.given}" for error in self.reasons]
            if self.failed > len(self.reasons):
                lines.append(f"  and {self.failed - len(self.reasons):,} more")
        if self.unseen:
            counts = ", ".join(f"{symbol} ({n:,} structures)" for symbol, n in self.unseen.items())
            lines.append(f"elements that the model never saw in training: {counts}")
        return lines


def predict_file(
    model: TrainedModel,
    task_name: str,
    source: Path,
    writers: Sequence[Write[Prediction]],
    *,
    elements: Elements | None = None,
    units: Mapping[str, str] | None = None,
    batch_size: int = 32,
    normalised: bool = False,
    conservative: bool = False,
    folder: Path | None = None,
    devices: Sequence[torch.device] = (),
    summary: Summary | None = None,
    after_window: Callable[[Summary], object] = lambda summary: None,
    stop: Callable[[], bool] = lambda: False,
    on_done: Callable[[int], None] = lambda structures: None,
) -> Summary:
    """Predict the structures of a file one after the other, in constant memory.

    Args:
        model, task_name, batch_size, normalised, conservative, on_done: as for `predict_each`.
        source: a file that ASE reads, or a store.
        writers: called for every structure, in order.
        elements, units: as for `read_each`.
        folder: of the model; needed for several devices.
        devices: if there are several, a process for each predicts on it; otherwise the model's device is used.
        summary: of structures at the beginning of the file, which are left out; they end with a window.
        after_window: called after the last structure of each window was written (see `predict_each`).
        stop: asked between windows, and between structures that are read.

    Raises:
        EutecticError: as `predict_each`; no structure of the file could be predicted.
        Interrupted: `stop` said so.
    """
    options: dict[str, Any] = {"batch_size": batch_size, "normalised": normalised, "conservative": conservative}

    def predictions(structures: Iterable[Structure]) -> Iterator[Prediction | EutecticError]:
        if folder is not None and len(devices) > 1:
            return predict_on(devices, folder, task_name, structures, on_done=on_done, **options)
        return predict_each(model, task_name, structures, on_done=on_done, **options)

    return work_through(
        model,
        source,
        predictions,
        writers,
        elements=elements,
        units=units,
        summary=summary,
        window=window_of(batch_size),
        after_window=after_window,
        stop=stop,
    )


def work_through(
    model: TrainedModel,
    source: Path,
    each: Callable[[Iterable[Structure]], Iterator[R | EutecticError]],
    writers: Sequence[Write[R]],
    *,
    elements: Elements | None = None,
    units: Mapping[str, str] | None = None,
    summary: Summary | None = None,
    window: int = 1,
    after_window: Callable[[Summary], object] = lambda summary: None,
    stop: Callable[[], bool] = lambda: False,
) -> Summary:
    """Give the structures of a file to a model and the results to writers, one after the other, in constant memory.

    Args:
        model: whose training elements are compared with those of the structures.
        source, elements, units: as for `read_each`.
        each: results of structures, in order, or why there is none.
        writers: called for every structure, in order.
        summary, after_window: as for `predict_file`.
        window: number of structures that `each` reads together.
        stop: asked between windows, and between structures that are read.

    Raises:
        EutecticError: those of `each`; no structure of the file has a result.
        Interrupted: `stop` said so.
    """
    summary = Summary() if summary is None else summary
    begun = summary.structures
    waiting: deque[Read] = deque()
    seen = elements_seen(model)

    def go_on() -> None:
        if stop():
            raise Interrupted(f"{summary.predicted:,} structures were predicted; the same command starts again")

    def readable() -> Iterator[Structure]:
        for read in read_each(source, elements, units, first=begun):
            go_on()
            waiting.append(read)
            if read.structure is not None:
                yield read.structure

    def done(read: Read, outcome: R | EutecticError) -> None:
        if isinstance(outcome, EutecticError):
            summary.failed += 1
            if len(summary.reasons) < summary.MOST_REASONS:
                summary.reasons.append(outcome)
        else:
            summary.predicted += 1
            numbers = set() if read.structure is None else set(read.structure.numbers.tolist())
            summary.unseen.update(chemical_symbols[z] for z in sorted(numbers - seen if seen else ()))
        for writer in writers:
            writer(read, outcome)

    def unreadable() -> None:
        while waiting and waiting[0].error is not None:
            read = waiting.popleft()
            done(read, cast(EutecticError, read.error))

    # Closed, so that processes of several devices end with an error here.
    with closing(cast("Generator[R | EutecticError]", each(readable()))) as outcomes:
        for number, outcome in enumerate(outcomes, 1):
            unreadable()
            read = waiting.popleft()
            if isinstance(outcome, EutecticError):
                outcome = EutecticError(read.where, outcome.given, outcome.expected, outcome.fix)
            done(read, outcome)
            if number % window == 0:
                after_window(summary)
                go_on()
    unreadable()
    if not summary.predicted:
        first = summary.reasons[0]
        given = first.given if summary.failed == 1 else f"{first.given} (and no other structure could be predicted)"
        raise EutecticError(first.where, given, first.expected, first.fix)
    return summary
