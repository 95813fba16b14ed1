"""The engine of `eutectic data generate`: parallel, resumable and reproducible.

A generator is a number of items and a pure function `make(item, seed)`. Items are made in chunks by worker processes
of one thread each; every finished chunk is a small store in a hidden folder beside the output, so that an interrupted
run resumes and gives the same bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import math
import re
import shutil
import signal
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

import numpy as np

from eutectic.atoms import EutecticError, Interrupted, LabelledStructure
from eutectic.console import ProgressBar
from eutectic.data.card import Card
from eutectic.data.catalogue import embedded
from eutectic.data.store import Store, write_store
from eutectic.files import write_atomically
from eutectic.processes import run_in_processes

MAX_FORCE = 50.0
"""Structures with a larger force component (eV/Å) are left out: they are unphysical."""

LEFT_OUT = "Left out"
"""Prefix of a note about unusable items."""

EXTRA = "pip install 'eutectic[generate]'"


class Rejected(Exception):
    """An unusable item. Messages are counted, so they name a category rather than a case."""


@dataclass(frozen=True, kw_only=True)
class Generator:
    """Generator of one data set.

    Attributes:
        card: card of the data set.
        items: number of independent items at scale 1.
        make: (item, seed) → its labelled structures; pure, so that order and worker count do not matter.
        needs: packages that must be importable.
        max_force: structures with a larger force component (eV/Å) are left out.
        chunk: items saved at once; small, so that little is lost if the process is killed.
        seconds: time limit of an item; generous, since it is the only machine-dependent setting.
    """

    card: Card
    items: int
    make: Callable[[int, int], list[LabelledStructure]]
    needs: tuple[str, ...]
    max_force: float = MAX_FORCE
    chunk: int = 10
    seconds: float = 120.0

    def count(self, scale: float) -> int:
        """Number of items at a scale; those of a smaller scale are the first of a larger one."""
        return max(1, math.ceil(self.items * scale))

    def check_extras(self) -> None:
        """Check that the packages for computing labels are installed."""
        missing = [name for name in self.needs if importlib.util.find_spec(name) is None]
        if missing:
            raise EutecticError(
                f"generating {self.card.name}",
                f"{', '.join(missing)} not installed",
                "the generate extra",
                EXTRA,
            )


def random_numbers(name: str, seed: int, item: int) -> np.random.Generator:
    """Random number generator of one item."""
    return np.random.default_rng([seed, zlib.crc32(name.encode()), item])


def drawn(name: str, seed: int, size: int, index: int) -> int:
    """Entry `index` of a permutation of 0…size−1 that depends on the name and seed only.

    Raises:
        Rejected: index out of range (a scale far above 1).
    """
    if index >= size:
        raise Rejected("no candidates left")
    return int(np.random.default_rng([seed, zlib.crc32(name.encode())]).permutation(size)[index])


def in_turn(item: int, kinds: Sequence[int]) -> tuple[int, int]:
    """Kind of an item, with kinds assigned cyclically.

    Args:
        item: 0, 1, 2, …
        kinds: kinds of items 0, 1, …, repeated cyclically; a kind may occur several times.

    Returns:
        The item's kind, and its index among all items of that kind.
    """
    round_, turn = divmod(item, len(kinds))
    same = [t for t, kind in enumerate(kinds) if kind == kinds[turn]]
    return kinds[turn], round_ * len(same) + same.index(turn)


def unusable(row: LabelledStructure, max_force: float = MAX_FORCE) -> str | None:
    """Reason why a structure is left out, or None."""
    if not all(np.isfinite(value).all() for value in row.labels.values()):
        return "a label is not finite"
    if "forces" in row.labels and np.abs(row.labels["forces"]).max() >= max_force:
        return f"a force of {max_force:g} eV/Å or more"
    return None


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Reject an item that takes too long (no limit on systems without interval timers)."""
    if not hasattr(signal, "setitimer"):
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise Rejected(f"took longer than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def make_chunk(generator: Generator, seed: int, items: range, folder: Path) -> dict[str, int]:
    """Make some items and save them. The report is written last and marks the chunk as done.

    Args:
        generator: generator of the data set.
        seed: random seed.
        items: items to make.
        folder: store to write, with `report.json` beside the shards.

    Returns:
        The report: reason → number of items or structures left out.
    """
    rows: list[LabelledStructure] = []
    rejected: Counter[str] = Counter()
    for item in items:
        try:
            with _time_limit(generator.seconds):
                structures = generator.make(item, seed)
        except Rejected as reason:
            rejected[str(reason)] += 1
            continue
        except EutecticError:
            raise
        except Exception as error:  # one bad item must not end hours of work
            rejected[f"{type(error).__name__}: {str(error).splitlines()[0][:80] if str(error) else ''}"] += 1
            continue
        for row in structures:
            if reason_for_row := unusable(row, generator.max_force):
                rejected[reason_for_row] += 1
            else:
                rows.append(row)
    shutil.rmtree(folder, ignore_errors=True)
    if rows:
        write_store(folder, generator.card, rows)
    write_atomically(folder / "report.json", json.dumps(dict(sorted(rejected.items()))))
    return dict(rejected)


def _one_torch_thread() -> None:
    with contextlib.suppress(ImportError):
        import torch

        torch.set_num_threads(1)


def _plan(generator: Generator, scale: float, seed: int) -> dict[str, object]:
    """Settings that must be identical for unfinished work to be resumed."""
    code = hashlib.sha256(b"".join(file.read_bytes() for file in sorted(Path(__file__).parent.glob("*.py"))))
    return {
        "seed": seed,
        "items": generator.count(scale),
        "chunk": generator.chunk,
        "code": code.hexdigest()[:16],
    }


def provenance(generator: Generator, scale: float, seed: int) -> str:
    """Note on the card that identifies a finished store."""
    return f"Made from {generator.count(scale)} items with seed {seed}."


def items_in(store: Store, seed: int) -> int:
    """Number of items from which a store was made; 0 if made with another seed."""
    matches = (re.fullmatch(r"Made from (\d+) items with seed (\d+)\.", note) for note in store.card.notes)
    return next((int(m[1]) for m in matches if m and int(m[2]) == seed), 0)


def _reusable_store(card: Card, path: Path | None, seed: int, n_items: int) -> tuple[Path, int] | None:
    """The largest existing store with the first of these items: the embedded one, or one at `path`.

    Items depend on their number and the seed alone, so they can be reused.
    """
    existing = [folder for folder in (path, embedded().get(card.name)) if folder is not None and folder.exists()]
    reusable = [(folder, n) for folder in existing if 0 < (n := items_in(Store(folder), seed)) < n_items]
    return max(reusable, key=lambda entry: entry[1], default=None)


def _rows(folders: Iterable[Path]) -> Iterator[LabelledStructure]:
    seen: set[str] = set()
    for folder in folders:
        for row in Store(folder) if any(folder.glob("shard-*.arrow")) else ():
            assert row.id not in seen, f"duplicate id {row.id}"
            seen.add(row.id)
            yield row


def run(generator: Generator, out: Path, *, scale: float, seed: int, workers: int, overwrite: bool) -> int:
    """Generate one data set, resume an interrupted run, or extend an existing store.

    Structures of the embedded store, or of a smaller one in the same folder, are reused if made with the same seed.

    Args:
        generator: generator of the data set.
        out: output folder; the store is `out/<name>`, unfinished work is kept in `out/.<name>.work`.
        scale: fraction of the generator's items.
        seed: random seed.
        workers: number of processes, of one thread each.
        overwrite: replace a store made with other settings.

    Returns:
        Number of structures in the store.

    Raises:
        EutecticError: an extra is missing; a different store exists at the output path; a worker process died.
        Interrupted: Ctrl-C; finished chunks are kept.
    """
    card, path = generator.card, out / generator.card.name
    note, n_items = provenance(generator, scale, seed), generator.count(scale)
    # With --overwrite an existing store is not reused.
    reused = _reusable_store(card, None if overwrite else path, seed, n_items)
    extended = reused is not None and reused[0] == path
    if path.exists() and not (overwrite or extended):
        if note in (store := Store(path)).card.notes:
            return len(store)
        raise EutecticError(
            str(path), "a store made with other settings", note, "choose another --out, or pass --overwrite"
        )
    generator.check_extras()
    first = reused[1] if reused else 0
    work, plan = out / f".{card.name}.work", {**_plan(generator, scale, seed), "first": first}
    if work.exists() and (not (work / "plan.json").exists() or json.loads((work / "plan.json").read_text()) != plan):
        shutil.rmtree(work)
    if not work.exists():
        work.mkdir(parents=True)
        (work / "plan.json").write_text(json.dumps(plan))
    chunks = {
        work / f"chunk-{start:07d}": range(start, min(start + generator.chunk, n_items))
        for start in range(first, n_items, generator.chunk)
    }
    todo = {folder: items for folder, items in chunks.items() if not (folder / "report.json").exists()}
    _make_all(generator, seed, todo, n_items, workers)
    rejected: Counter[str] = Counter()
    for folder in chunks:
        rejected.update(json.loads((folder / "report.json").read_text()))
    notes = [note]
    if reused:
        earlier = [kept for kept in Store(reused[0]).card.notes if kept.startswith(LEFT_OUT)]
        notes += [
            kept if " of items " in kept else f"{LEFT_OUT} of items below {first}{kept.removeprefix(LEFT_OUT)}"
            for kept in earlier
        ]
    if rejected:
        where = f" of items from {first}" if first else ""
        notes.append(f"{LEFT_OUT}{where}: " + "; ".join(f"{n} × {why}" for why, n in sorted(rejected.items())) + ".")
    folders = [*([reused[0]] if reused else []), *chunks]
    written = write_store(
        path, replace(card, notes=(*card.notes, *notes)), _rows(folders), overwrite=overwrite or extended
    )
    shutil.rmtree(work)
    return written


def _make_all(generator: Generator, seed: int, todo: dict[Path, range], n_items: int, workers: int) -> None:
    """Make the missing chunks in worker processes, with a progress bar."""
    name, chunks, left_out = generator.card.name, list(todo.values()), 0
    finished_items = n_items - sum(len(items) for items in chunks)
    # A log file gets 20 lines.
    with ProgressBar(name, n_items, done=finished_items, unit="items", lines=20) as bar:

        def finished(number: int, rejected: dict[str, int]) -> None:
            nonlocal left_out
            left_out += sum(rejected.values())
            bar.advance(len(chunks[number]), note=f"{left_out} left out")

        try:
            run_in_processes(
                make_chunk,
                [(generator, seed, items, folder) for folder, items in todo.items()],
                workers,
                where=f"generating {name}",
                start=_one_torch_thread,
                finished=finished,
            )
        except KeyboardInterrupt:
            raise Interrupted("finished work is kept; run the same command again to resume") from None
