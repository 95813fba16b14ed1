"""The data sets that the commands know by name, and what the commands do with them.

Embedded ones lie in the package as stores; native ones (`rmd17:<molecule>`, `qm9`, `ase`) are read once from
their published files, by `prepare`.
"""

from __future__ import annotations

import difflib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

from ase.data import chemical_symbols
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from eutectic.atoms import PROPERTIES, EutecticError, LabelledStructure
from eutectic.data.card import Card
from eutectic.data.datasets import ase_files, qm9, rmd17
from eutectic.data.store import PublishedSplits, Store, check_place, is_store, write_store

SHOW_AFTER = 5.0
"""Seconds after which `prepare` shows how long it will still take."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of `eutectic data list`.

    Attributes:
        name: what commands call it.
        kind: "embedded" (ready) or "native" (made from published files by `prepare`).
        title: one line.
        domain: part of chemistry.
        properties: labels.
        theory: of the labels.
        licence: of the data.
        structures: how many; None until it is prepared.
        size_bytes: on disk; None until it is prepared.
    """

    name: str
    kind: str
    title: str
    domain: str
    properties: tuple[str, ...]
    theory: str
    licence: str
    structures: int | None = None
    size_bytes: int | None = None


def embedded_folder() -> Path:
    """Where the stores that come with the package lie."""
    return Path(str(resources.files("eutectic.data"))) / "embedded"


def embedded() -> dict[str, Path]:
    """Name → folder of every embedded store."""
    folder = embedded_folder()
    return {path.name: path for path in sorted(folder.iterdir()) if is_store(path)} if folder.is_dir() else {}


def native() -> tuple[str, ...]:
    """Names that `prepare` knows."""
    return (*(f"rmd17:{molecule}" for molecule in rmd17.MOLECULES), "qm9", "ase")


def listing() -> list[Row]:
    """Every data set there is: embedded ones, then those that `prepare` makes."""
    rows = []
    for name, path in embedded().items():
        store = Store(path)
        rows.append(replace(_row(name, "embedded", store.card), structures=len(store), size_bytes=store.bytes()))
    rows += [_row(f"rmd17:{molecule}", "native", rmd17.card(molecule)) for molecule in rmd17.MOLECULES]
    rows.append(_row("qm9", "native", qm9.CARD))
    rows.append(
        Row(
            name="ase",
            kind="native",
            title="Your own structures: any file or folder that ASE reads",
            domain="user",
            properties=(),
            theory="yours",
            licence="yours",
        )
    )
    return rows


def open_store(name_or_path: str | Path) -> Store:
    """The store of an embedded data set, or the one at a path.

    Raises:
        EutecticError: neither; or the store is damaged.
    """
    known, text = embedded(), str(name_or_path)
    if text in known:
        return Store(known[text])
    if Path(text).exists():
        return Store(Path(text))
    if text in native() or text == "rmd17":
        raise EutecticError(
            text,
            "this data set is not embedded",
            f"an embedded one ({', '.join(known)}) or the path of a store",
            f"make a store first: eutectic data prepare {text} --source <its files> --store <folder>",
        )
    near = difflib.get_close_matches(text, [*known, *native()], 1)
    raise EutecticError(
        text,
        "no data set of this name, and nothing at this path",
        f"one of {', '.join(known)}, or the path of a store",
        f"did you mean {near[0]!r}?" if near else "see `eutectic data list`",
    )


def prepare(
    name: str,
    source: Path | None,
    store: Path,
    *,
    molecule: str | None = None,
    keys: Mapping[str, str] | None = None,
    group_key: str | None = None,
    theory: str = "not stated",
    overwrite: bool = False,
    progress: bool = True,
) -> Path:
    """Read a data set's own files into a store.

    Args:
        name: "rmd17:<molecule>" (or "rmd17" with `molecule`), "qm9" or "ase".
        source: its files; None only for QM9 from the package qm9pack.
        store: the folder to make.
        molecule: of rMD17, where `name` does not say it.
        keys: of "ase": property → key in the files.
        group_key: of "ase": entry that names the group of a structure.
        theory: of "ase": level of theory of the labels.
        overwrite: replace a store that is there.
        progress: show count and time left when it takes more than a few seconds.

    Returns:
        `store`.

    Raises:
        EutecticError: an unknown name; no source; files that cannot be read; a place that cannot be written.
    """
    family, _, given = name.partition(":")
    source = None if source is None else Path(source)
    splits: PublishedSplits | None = None
    total: int | None = None
    if family not in ("rmd17", "qm9", "ase") or (given and family != "rmd17"):
        near = difflib.get_close_matches(name, native(), 1)
        raise EutecticError(
            name,
            "no data set that is made from files" + (" (it is embedded)" if name in embedded() else ""),
            f"one of {', '.join(native())}",
            f"did you mean {near[0]!r}?" if near else "choose one of these",
        )
    if source is None and family != "qm9":
        raise EutecticError(name, "no source", "its files", "pass --source with the file or folder")
    check_place(Path(store), overwrite=overwrite)
    if family == "rmd17":
        assert source is not None
        molecule = given or molecule or ""
        card, rows = rmd17.card(molecule), rmd17.read(source, molecule)
        splits = rmd17.official_splits(source, molecule)
        if not splits:
            card = replace(card, default_split="random", notes=(*card.notes, "No official splits beside it."))
        # An archive would be decompressed once more, only to count.
        total = rmd17.count(source, molecule) if source.is_dir() or source.suffix == ".npz" else None
    elif family == "qm9":
        card, rows = qm9.CARD, qm9.read(source)
    else:
        assert source is not None
        found = ase_files.scan(source, keys, group_key)
        card, rows = ase_files.card(source, found, theory=theory), ase_files.read(source, keys, group_key)
        total = found.structures
    shown = _shown(rows, name, total) if progress else rows
    write_store(Path(store), card, shown, overwrite=overwrite, splits=splits)
    return Path(store)


def describe(store: Store) -> dict[str, object]:
    """What `eutectic data info` shows, as plain JSON."""
    counts, atoms = store.label_counts(), store.composition()
    n_atoms = sum(atoms.values())
    return {
        "name": store.card.name,
        "title": store.card.title,
        "domain": store.card.domain,
        "path": str(store.path),
        "structures": len(store),
        "atoms": n_atoms,
        "mean_atoms": n_atoms / max(len(store), 1),
        "groups": len(set(store.column("group"))),
        "elements": {chemical_symbols[z]: n for z, n in atoms.items()},
        "labels": {name: {"count": n, "unit": PROPERTIES[name].unit} for name, n in counts.items()},
        "theory": store.card.theory,
        "licence": store.card.licence,
        "citation": store.card.citation,
        "source": store.card.source,
        "splits": ["group", "random", *store.published_splits()],
        "default_split": store.card.default_split,
        "notes": list(store.card.notes),
        "size_bytes": store.bytes(),
    }


def _row(name: str, kind: str, card: Card) -> Row:
    return Row(
        name=name,
        kind=kind,
        title=card.title,
        domain=card.domain,
        properties=card.properties,
        theory=card.theory,
        licence=card.licence,
    )


def _shown(rows: Iterator[LabelledStructure], label: str, total: int | None) -> Iterator[LabelledStructure]:
    """The same rows, with a progress bar once it is clear that they take a while."""
    start = time.monotonic()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # Beside the answer, not in it: a command may write JSON to its standard output.
    console = Console(stderr=True)
    bar = Progress(*columns, transient=True, console=console, disable=not console.is_terminal)
    task = bar.add_task(f"Reading {label}", total=total)
    started = False
    try:
        for done, row in enumerate(rows, start=1):
            if not done % 100:
                bar.update(task, completed=done)
                if not started and time.monotonic() - start > SHOW_AFTER:
                    bar.start()
                    started = True
            yield row
    finally:
        if started:
            bar.stop()
