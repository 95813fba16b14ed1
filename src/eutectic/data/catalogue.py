"""The data sets that the commands know by name, and what the commands do with them.

Embedded ones lie in the package as stores; native ones (`rmd17:<molecule>`, `qm9`, …) are read once from their
published files, by `prepare`, which puts them where their name finds them again; `ase` and `records` stand for the
user's own.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

from ase.data import chemical_symbols

from eutectic.atoms import PROPERTIES, EutecticError, did_you_mean
from eutectic.atoms.properties import define_all
from eutectic.console import ProgressBar
from eutectic.data.card import Card
from eutectic.data.dataset import Dataset, File
from eutectic.data.datasets import ase_files, published, records
from eutectic.data.download import fetch
from eutectic.data.prepare import prepare_store
from eutectic.data.store import Store, check_place, is_store

_OWN = {
    "ase": "Your own structures: any file or folder that ASE reads",
    "records": "Your own structures as named arrays: pickled LMDB, npz, JSON or CSV (units to state with --unit)",
}
"""Names of the user's own files."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of `eutectic data list`.

    Attributes:
        name: what commands call it.
        kind: "embedded" (ready) or "native" (made from published files by `prepare`).
        title: one line.
        domain: part of chemistry.
        properties: labels.
        level_of_theory: of the labels.
        licence: of the data.
        citation: who to cite.
        source: where it comes from.
        default_split: where none is asked for.
        notes: traps, quirks, what was left out.
        files: what `prepare` downloads; empty where the publisher does not offer that.
        store: where it lies, when it is ready.
        structures: how many; None until it is prepared.
        size_bytes: on disk; None until it is prepared.
    """

    name: str
    kind: str
    title: str
    domain: str
    properties: tuple[str, ...]
    level_of_theory: str
    licence: str
    citation: str = ""
    source: str = ""
    default_split: str = ""
    notes: tuple[str, ...] = ()
    files: tuple[File, ...] = ()
    store: str | None = None
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
    return (*_modules(), *_OWN)


def _modules() -> dict[str, Dataset]:
    return {name: module for module in published() for name in module.names()}


def data_folder() -> Path:
    """The user's folder of stores and downloads: `EUTECTIC_DATA`, else `$XDG_DATA_HOME/eutectic`, else
    `~/.local/share/eutectic`."""
    if chosen := os.environ.get("EUTECTIC_DATA"):
        return Path(chosen).expanduser().absolute()
    shared = os.environ.get("XDG_DATA_HOME")
    return (Path(shared) if shared else Path.home() / ".local" / "share") / "eutectic"


def prepared(name: str) -> Path:
    """Where `prepare` puts a data set when no place is given."""
    return data_folder().joinpath("stores", *name.split(":"))


def listing() -> list[Row]:
    """Every data set there is: embedded ones, then those that `prepare` makes."""
    rows = [_row(name, "embedded", store.card, store) for name, store in _embedded_stores()]
    for name, module in _modules().items():
        ready = Store(prepared(name)) if is_store(prepared(name)) else None
        # A store knows more of itself than the data set's module does: what was left out, how it is divided.
        card = module.card(name) if ready is None else ready.card
        rows.append(replace(_row(name, "native", card, ready), files=module.files(name)))
    own = Row(
        name="",
        kind="native",
        title="",
        domain="user",
        properties=(),
        level_of_theory="yours to state (--level-of-theory)",
        licence="yours",
    )
    return [*rows, *(replace(own, name=name, title=title) for name, title in _OWN.items())]


def families(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Family → its members, in order: "rmd17" → "rmd17:aspirin", …; most data sets are alone in theirs."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.name.partition(":")[0], []).append(row)
    return found


def _embedded_stores() -> list[tuple[str, Store]]:
    return [(name, Store(path)) for name, path in embedded().items()]


def open_store(name_or_path: str | Path) -> Store:
    """The store of an embedded data set, the one at a path, or one that was prepared under its own name.

    Raises:
        EutecticError: none of these; or the store is damaged.
    """
    known, text = embedded(), str(name_or_path)
    if text in known:
        return Store(known[text])
    if text in _modules() and not is_store(Path(text)) and is_store(prepared(text)):
        return Store(prepared(text))
    if Path(text).exists():
        return Store(Path(text))
    if text in native() or any(name.startswith(f"{text}:") for name in native()):
        raise EutecticError(
            text,
            "this data set is not embedded, and not prepared",
            f"an embedded one ({', '.join(known)}), a prepared one, or the path of a store",
            f"make a store first: eutectic data prepare {text}" + _choices(text),
        )
    raise EutecticError(
        text,
        "no data set of this name, and nothing at this path",
        f"one of {', '.join(known)}, or the path of a store",
        did_you_mean(text, [*known, *native()], "see `eutectic data list`"),
    )


def _choices(family: str) -> str:
    """What may follow the name of a family, in words."""
    members = [name.partition(":")[2] for name in _modules() if name.startswith(f"{family}:")]
    return f":<{' | '.join(members)}>" if members and family not in _modules() else ""


def prepare(
    name: str,
    source: Path | None = None,
    store: Path | None = None,
    *,
    molecule: str | None = None,
    keys: Mapping[str, str] | None = None,
    group_key: str | None = None,
    units: Mapping[str, str] | None = None,
    define: Sequence[str] = (),
    pbc: str | None = None,
    level_of_theory: str = "not stated",
    skip_bad: bool = False,
    workers: int | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> Path:
    """Read a data set's own files into a store; an interrupted call goes on where it was when repeated.

    Args:
        name: "rmd17:<molecule>" (or "rmd17" with `molecule`), "qm9", … as `listing` has it; "ase" or "records" for
            files of one's own.
        source: its files; None downloads them where the publisher allows it (QM9: takes the package qm9pack if it
            is installed).
        store: the folder to make; None is the place where `open_store` finds it by name.
        molecule: of a family such as rMD17, where `name` does not say it.
        keys: of "ase" and "records": property → key in the files.
        group_key: of these: entry that names the group of a structure.
        units: of "ase" and "records": property, "positions" or "cell" → unit in the files.
        define: of these: properties of the user's own, as `eutectic.atoms.parse_definition` reads them.
        pbc: of "records": along which vectors of the cell structures repeat, "true", "false" or such as "TTF".
        level_of_theory: of "ase" and "records": level of theory of the labels.
        skip_bad: leave out records that cannot be used; the store and its card say how many.
        workers: processes; None is one for each core.
        overwrite: replace a store that is there.
        progress: show count, rate and time left when it takes more than a few seconds.

    Returns:
        Where the store is.

    Raises:
        EutecticError: an unknown name; no source; files that cannot be read or fetched; a place that cannot be
            written; a definition, key or unit that does not fit.
        Interrupted: Ctrl-C; what was done is kept.
    """
    if molecule is not None and ":" not in name:
        name = f"{name}:{molecule}"
    modules = _modules()
    if name not in _OWN and name not in modules:
        raise _unknown(name)
    said = {"--key": keys, "--group-key": group_key, "--unit": units, "--define": define, "--pbc": pbc}
    for option, value in said.items():
        if value and name not in (("records",) if option == "--pbc" else _OWN):
            raise EutecticError(
                option,
                f"for {name}, which settles that itself",
                "it with files of your own",
                f"leave it out, or prepare them as {'records' if option == '--pbc' else ' or '.join(_OWN)}",
            )
    defined = define_all(define)
    if store is None and name in _OWN:
        raise EutecticError(name, "no place for the store", "a new folder", "pass --store with the folder to make")
    store = prepared(name) if store is None else Path(store)
    check_place(store, overwrite=overwrite)
    dataset: Dataset
    if name in _OWN:
        if source is None:
            raise EutecticError(name, "no source", "its files", "pass --source with the file or folder")
        source = Path(source)
        with ProgressBar("Counting structures and labels", unit="", enabled=progress):
            if name == "ase":
                held = ase_files.scan(source, keys, group_key, units=units, defined=defined, skip_bad=skip_bad)
                dataset = ase_files.AseFiles(
                    source=source,
                    found=held,
                    keys=dict(keys or {}),
                    group_key=group_key,
                    units=dict(units or {}),
                    defined=defined,
                    level_of_theory=level_of_theory,
                )
            else:
                choices = records.Choices(
                    keys=dict(keys or {}),
                    units=dict(units or {}),
                    defined=defined,
                    pbc=None if pbc is None else records.periodicity(pbc),
                    group_key=group_key,
                )
                found = records.scan(source, choices, skip_bad=skip_bad)
                dataset = records.RecordFiles(
                    source=source, found=found, choices=choices, level_of_theory=level_of_theory
                )
    else:
        dataset = modules[name]
        source = _fetched(dataset, name, progress=progress) if source is None else Path(source)
    prepare_store(
        dataset,
        name,
        Path(source),
        store,
        skip_bad=skip_bad,
        workers=workers,
        overwrite=overwrite,
        progress=progress,
    )
    return store


def _unknown(name: str) -> EutecticError:
    if choices := _choices(name):
        return EutecticError(
            name, "a family of data sets", "the name of one of them", f"name one: {name}{choices.replace(' ', '')}"
        )
    return EutecticError(
        name,
        "no data set that is made from files" + (" (it is embedded)" if name in embedded() else ""),
        f"one of {', '.join(native())}",
        did_you_mean(name, native()),
    )


def _fetched(dataset: Dataset, name: str, *, progress: bool) -> Path:
    """The published files, which are downloaded once for a whole family."""
    installed = getattr(dataset, "installed", None)
    if installed is not None and (place := installed(name)) is not None:
        return Path(place)
    files = dataset.files(name)
    if not files:
        raise EutecticError(
            name,
            "no source, and files that cannot be fetched by a program",
            "its files",
            f"fetch them ({dataset.card(name).source}) and pass --source with the file or folder",
        )
    folder = data_folder() / "downloads" / name.partition(":")[0]
    paths = [fetch(file, folder, progress=progress) for file in files]
    return paths[0] if len(paths) == 1 else folder


def describe(store: Store) -> dict[str, object]:
    """What `eutectic data info` shows, as plain JSON; in constant memory, and at once where there is a manifest."""
    found = store.summary()
    told: dict[str, object] = {
        "name": store.card.name,
        "title": store.card.title,
        "domain": store.card.domain,
        "path": str(store.path),
        "structures": len(store),
        "atoms": found.atoms,
        "mean_atoms": found.atoms / max(len(store), 1),
        "largest": found.largest,
        "groups": found.n_groups(),
        "elements": {chemical_symbols[z]: n for z, n in found.elements.items()},
        "labels": {name: {"count": n, "unit": PROPERTIES[name].unit} for name, n in found.labels.items()},
        "level_of_theory": store.card.level_of_theory,
        "licence": store.card.licence,
        "citation": store.card.citation,
        "source": store.card.source,
        "splits": ["group", "random", *store.published_splits()],
        "default_split": store.card.default_split,
        "notes": list(store.card.notes),
        "size_bytes": store.bytes(),
        "bytes_per_structure": round(store.bytes() / max(len(store), 1), 1),
    }
    return {**told, "left_out": store.left_out} if store.left_out else told


def _row(name: str, kind: str, card: Card, store: Store | None) -> Row:
    return Row(
        name=name,
        kind=kind,
        title=card.title,
        domain=card.domain,
        properties=card.properties,
        level_of_theory=card.level_of_theory,
        licence=card.licence,
        citation=card.citation,
        source=card.source,
        default_split=card.default_split,
        notes=card.notes,
        store=None if store is None else str(store.path),
        structures=None if store is None else len(store),
        size_bytes=None if store is None else store.bytes(),
    )
