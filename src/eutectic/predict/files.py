"""Predict the structures of a file in constant memory: read, predict and write them in order."""

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
from eutectic.predict.prepared import compiled


@dataclass(frozen=True)
class Read:
    """A structure of a file, or why it could not be read.

    Attributes:
        index: index in the file.
        where: location, for errors.
        atoms: the structure as ASE reads it, with all its data.
        structure: the same as a `Structure`.
        error: why it could not be read.
    """

    index: int
    where: str
    atoms: Atoms | None = None
    structure: Structure | None = None
    error: EutecticError | None = None


def read_each(
    source: Path, elements: Elements | None = None, units: Mapping[str, str] | None = None, *, first: int = 0
) -> Iterator[Read]:
    """Every structure of a file or a store; for those that cannot be read, the error.

    If nothing after a structure can be read, the error of the last item says so.

    Args:
        source: a file that ASE reads, or the path or name of a store.
        elements: type or label of an atom → symbol of its element, for a file that does not name elements.
        units: "positions" and "cell" → unit in the file, overriding the one that it states; Å by default.
        first: index of the first structure to read.

    Raises:
        EutecticError: not a file of structures at all.
    """
    source = Path(source)
    store = store_of(source)
    if store is not None:
        yield from _rows(store, first)
        return
    if source.is_dir():
        raise EutecticError(str(source), "a folder", "one file of structures, or a store", "name its files one by one")
    if not source.exists():
        raise EutecticError(str(source), "does not exist", "a file of structures", "check the path")
    index = first
    # Consecutive failures; they count as structures only if a readable one follows.
    lost: list[Read] = []
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
                raise  # the file itself cannot be read
            lost.append(Read(index, error.where, error=error))
            index += 1
            if len(lost) == ase_files.MOST_IN_A_ROW:
                break
    if lost:
        begin, first_error = lost[0], cast(EutecticError, lost[0].error)
        given = f"{first_error.given}; nothing after it could be read"
        ended = EutecticError(first_error.where, given, first_error.expected, first_error.fix)
        yield Read(begin.index, begin.where, error=ended)


def store_of(source: Path) -> Store | None:
    """The store at this path or with this name; None for a file."""
    if is_store(source):
        return Store(source)
    if source.exists():
        return None
    try:
        return catalogue.open_store(source)
    except EutecticError:
        return None


def about_how_many(source: Path) -> int | None:
    """Number of structures in a store, or an estimate for an xyz file from its size and first megabyte; else None."""
    if (store := store_of(source)) is not None:
        return len(store)
    if source.suffix not in {".xyz", ".extxyz"} or not source.is_file():
        return None
    frames, used = 0, 0
    try:
        with source.open("rb") as file:
            lines = iter(file.read(2**20).splitlines(keepends=True))
    except OSError:  # reported when the file is read
        return None
    for line in lines:
        # A longer number cannot be a number of atoms, and Python may refuse to convert it.
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
"""Called with a structure and its result (a prediction, an embedding) or the error that prevented it."""


@dataclass
class Summary:
    """Counts of predicted and failed structures of a file.

    Attributes:
        predicted: number of structures with a prediction.
        failed: number of structures without a prediction.
        reasons: the errors of the first of these.
        unseen: element unseen in training → number of predicted structures with it.
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
        """Lines of text to show; empty if every prediction succeeded on elements seen in training."""
        lines = []
        if self.failed:
            lines.append(f"{self.failed:,} of {self.structures:,} structures could not be predicted:")
            lines += [f"  {error.where}: {error.given}" for error in self.reasons]
            if self.failed > len(self.reasons):
                lines.append(f"  and {self.failed - len(self.reasons):,} more")
        if self.unseen:
            counts = ", ".join(f"{symbol} ({n:,} structures)" for symbol, n in self.unseen.items())
            lines.append(f"elements unseen in training: {counts}")
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
    compile: bool = False,
    folder: Path | None = None,
    devices: Sequence[torch.device] = (),
    summary: Summary | None = None,
    after_window: Callable[[Summary], object] = lambda summary: None,
    stop: Callable[[], bool] = lambda: False,
    on_done: Callable[[int], None] = lambda structures: None,
) -> Summary:
    """Predict the structures of a file in order, in constant memory.

    Args:
        model, task_name, batch_size, normalised, conservative, on_done: as for `predict_each`.
        source: a file that ASE reads, or a store.
        writers: called for every structure, in order.
        elements, units: as for `read_each`.
        compile: see `compiled`.
        folder: model folder; needed for several devices.
        devices: several devices have one process each; otherwise the model's device is used.
        summary: summary of the structures at the beginning of the file that are skipped: whole windows only.
        after_window: called after the last structure of each window was written (see `predict_each`).
        stop: checked between windows, and between structures while reading.

    Raises:
        EutecticError: as `predict_each`; no structure of the file could be predicted.
        Interrupted: `stop` returned true.
    """
    options: dict[str, Any] = {"batch_size": batch_size, "normalised": normalised, "conservative": conservative}

    def predictions(structures: Iterable[Structure]) -> Iterator[Prediction | EutecticError]:
        if folder is not None and len(devices) > 1:
            return predict_on(devices, folder, task_name, structures, on_done=on_done, compile=compile, **options)
        return predict_each(compiled(model) if compile else model, task_name, structures, on_done=on_done, **options)

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
    """Pass the structures of a file to a model and the results to writers, in order and in constant memory.

    Args:
        model: its training elements are compared with those of the structures.
        source, elements, units: as for `read_each`.
        each: yields the result or error of each structure, in order.
        writers: called for every structure, in order.
        summary, after_window: as for `predict_file`.
        window: number of structures that `each` reads together.
        stop: checked between windows, and between structures while reading.

    Raises:
        EutecticError: as `each`; no structure of the file has a result.
        Interrupted: `stop` returned true.
    """
    summary = Summary() if summary is None else summary
    begun = summary.structures
    waiting: deque[Read] = deque()
    seen = elements_seen(model)

    def check_stop() -> None:
        if stop():
            raise Interrupted(f"{summary.predicted:,} structures were predicted; the same command starts again")

    def readable() -> Iterator[Structure]:
        for read in read_each(source, elements, units, first=begun):
            check_stop()
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

    def flush_unreadable() -> None:
        while waiting and waiting[0].error is not None:
            read = waiting.popleft()
            done(read, cast(EutecticError, read.error))

    # `closing` ends the processes of several devices if an error is raised here.
    with closing(cast("Generator[R | EutecticError]", each(readable()))) as outcomes:
        for number, outcome in enumerate(outcomes, 1):
            flush_unreadable()
            read = waiting.popleft()
            if isinstance(outcome, EutecticError):
                outcome = EutecticError(read.where, outcome.given, outcome.expected, outcome.fix)
            done(read, outcome)
            if number % window == 0:
                after_window(summary)
                check_stop()
    flush_unreadable()
    if not summary.predicted:
        first = summary.reasons[0]
        given = first.given if summary.failed == 1 else f"{first.given} (and no other structure could be predicted)"
        raise EutecticError(first.where, given, first.expected, first.fix)
    return summary
