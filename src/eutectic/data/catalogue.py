"""Catalogue of data sets: list, prepare, open and describe them by name.

Embedded data sets are shipped in the package as stores. Native ones (`rmd17:<molecule>`, `qm9`, …) are converted by
`prepare` from their published files into a store that can then be opened by name. `ase` and `records` are for the
user's own files.
"""

from __future__ import annotations

import os
import shlex
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
from eutectic.data.formats.elements import parse as parse_elements
from eutectic.data.prepare import prepare_store
from eutectic.data.store import Store, check_place, is_store

_OWN = {
    "ase": "Your own structures: any file or folder that ASE reads",
    "records": "Your own structures as named arrays: pickled LMDB, npz, JSON or CSV (units given with --unit)",
}
"""Names for the user's own files, and their titles."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One entry of `eutectic data list`.

    Attributes:
        name: name on the command line.
        kind: "embedded" (ready to use) or "native" (made from published files by `prepare`).
        title: one line.
        domain: area of chemistry.
        properties: labels.
        level_of_theory: level of theory of the labels.
        licence: licence of the data.
        citation: reference to cite.
        source: origin of the data.
        default_split: split used by default.
        notes: known problems, peculiarities, structures left out.
        files: files that `prepare` downloads; empty where they cannot be downloaded automatically.
        store: path of the store, if prepared.
        structures: number of structures; None until prepared.
        size_bytes: size on disk; None until prepared.
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
    """Folder of the stores shipped with the package."""
    return Path(str(resources.files("eutectic.data"))) / "embedded"


def embedded() -> dict[str, Path]:
    """Name → folder of every embedded store."""
    folder = embedded_folder()
    return {path.name: path for path in sorted(folder.iterdir()) if is_store(path)} if folder.is_dir() else {}


def native() -> tuple[str, ...]:
    """Names accepted by `prepare`."""
    return (*_modules(), *_OWN)


def _modules() -> dict[str, Dataset]:
    return {name: module for module in published() for name in module.names()}


def data_folder() -> Path:
    """Folder for stores and downloads: `EUTECTIC_DATA`, else `$XDG_DATA_HOME/eutectic`, else
    `~/.local/share/eutectic`."""
    if chosen := os.environ.get("EUTECTIC_DATA"):
        return Path(chosen).expanduser().absolute()
    shared = os.environ.get("XDG_DATA_HOME")
    return (Path(shared) if shared else Path.home() / ".local" / "share") / "eutectic"


def prepared(name: str) -> Path:
    """Default folder of a prepared data set."""
    return data_folder().joinpath("stores", *name.split(":"))


def listing() -> list[Row]:
    """All data sets: embedded ones, then those made by `prepare`."""
    rows = [_row(name, "embedded", store.card, store) for name, store in _embedded_stores()]
    for name, module in _modules().items():
        ready = Store(prepared(name)) if is_store(prepared(name)) else None
        # The store's card also has the notes on structures left out and the final default split.
        card = module.card(name) if ready is None else ready.card
        rows.append(replace(_row(name, "native", card, ready), files=module.files(name)))
    own = Row(
        name="",
        kind="native",
        title="",
        domain="user",
        properties=(),
        level_of_theory="set with --level-of-theory",
        licence="yours",
    )
    return [*rows, *(replace(own, name=name, title=title) for name, title in _OWN.items())]


def families(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Family → its members, in order: "rmd17" → "rmd17:aspirin", …; most families have one member."""
    members: dict[str, list[Row]] = {}
    for row in rows:
        members.setdefault(row.name.partition(":")[0], []).append(row)
    return members


def _embedded_stores() -> list[tuple[str, Store]]:
    return [(name, Store(path)) for name, path in embedded().items()]


def open_store(name_or_path: str | Path) -> Store:
    """Open an embedded data set, a store by its path, or a prepared data set by its name.

    Raises:
        EutecticError: no such data set or store, or the store is damaged.
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
            "this data set is neither embedded nor prepared",
            f"an embedded data set ({', '.join(known)}), a prepared one, or the path of a store",
            f"make a store first: eutectic data prepare {text}" + _choices(text),
        )
    raise EutecticError(
        text,
        "no data set of this name, and nothing at this path",
        f"one of {', '.join(known)}, or the path of a store",
        did_you_mean(text, [*known, *native()], "see `eutectic data list`"),
    )


def _choices(family: str) -> str:
    """The suffixes of a family's members, as `:<a | b>`."""
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
    elements: str | None = None,
    pbc: str | None = None,
    level_of_theory: str = "not stated",
    skip_bad: bool = False,
    skip_unconverged: bool = False,
    workers: int | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> Path:
    """Convert a data set's files into a store. An interrupted call resumes when repeated.

    Args:
        name: "rmd17:<molecule>" (or "rmd17" with `molecule`), "qm9", … as in `listing`; "ase" or "records" for the
            user's own files.
        source: file or folder; None downloads the files where the publisher allows it (QM9: uses the package qm9pack
            if installed).
        store: folder to create; None is the default folder, where `open_store` finds the store by name.
        molecule: member of a family such as rMD17, if not part of `name`.
        keys: "ase" and "records" only: property → key in the files.
        group_key: "ase" and "records" only: entry that names the group of a structure.
        units: "ase" and "records" only: property, "virial", "positions" or "cell" → unit in the files.
        define: "ase" and "records" only: custom properties, in the syntax of `eutectic.atoms.parse_definition`.
        elements: "ase" only: elements for files that have only atom types or labels, "Cu,Au" or "OW=O,HW=H".
        pbc: "records" only: periodic directions, "true", "false" or e.g. "TTF".
        level_of_theory: "ase" and "records" only: level of theory of the labels.
        skip_bad: leave out unusable records; their number is written to the store and its card.
        skip_unconverged: "ase" and "records" only: leave out structures whose calculation did not converge according
            to the files.
        workers: number of processes; None is one per core.
        overwrite: replace an existing store.
        progress: show count, rate and time left when it takes more than a few seconds.

    Returns:
        Path of the store.

    Raises:
        EutecticError: unknown name; no source; files that cannot be read or downloaded; a folder that cannot be
            written; an invalid definition, key or unit; a stress and a virial that contradict each other.
        Interrupted: Ctrl-C; finished parts are kept.
    """
    if molecule is not None and ":" not in name:
        name = f"{name}:{molecule}"
    modules = _modules()
    if name not in _OWN and name not in modules:
        raise _unknown(name)
    options = {"--key": keys, "--group-key": group_key, "--unit": units, "--define": define}
    allowed_for = {**dict.fromkeys(options, tuple(_OWN)), "--elements": ("ase",), "--pbc": ("records",)}
    allowed_for["--skip-unconverged"] = tuple(_OWN)
    others = {"--elements": elements, "--pbc": pbc, "--skip-unconverged": skip_unconverged}
    for option, value in {**options, **others}.items():
        if value and name not in allowed_for[option]:
            raise EutecticError(
                option,
                f"used with {name}, which defines this itself",
                "this option only with your own files",
                f"leave it out, or prepare them as {' or '.join(allowed_for[option])}",
            )
    defined = define_all(define)
    if store is None and name in _OWN:
        raise EutecticError(name, "no folder for the store", "a new folder", "pass --store with the folder to create")
    store = prepared(name) if store is None else Path(store)
    check_place(store, overwrite=overwrite)
    dataset: Dataset
    if name in _OWN:
        if source is None:
            raise EutecticError(name, "no source", "a file or folder", "pass --source with the file or folder")
        source = Path(source)
        with ProgressBar("Counting structures and labels", unit="", enabled=progress):
            if name == "ase":
                named = parse_elements(elements)
                scanned = ase_files.scan(
                    source,
                    keys,
                    group_key,
                    units=units,
                    elements=named,
                    defined=defined,
                    skip_bad=skip_bad,
                    skip_unconverged=skip_unconverged,
                )
                ase_files.check_stated(source, scanned, units)
                scanned.check_consistent(source)
                dataset = ase_files.AseFiles(
                    source=source,
                    found=scanned,
                    keys=dict(keys or {}),
                    group_key=group_key,
                    units=dict(units or {}),
                    elements=named,
                    defined=defined,
                    level_of_theory=level_of_theory,
                    skip_unconverged=skip_unconverged,
                )
            else:
                choices = records.Choices(
                    keys=dict(keys or {}),
                    units=dict(units or {}),
                    defined=defined,
                    pbc=None if pbc is None else records.periodicity(pbc),
                    group_key=group_key,
                    skip_unconverged=skip_unconverged,
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
    if Path(name).exists():
        return EutecticError(
            name,
            "a file or folder, not the name of a data set",
            "for your own files, ase (all that ASE reads) or records (.lmdb, .npz, .json, .csv)",
            f"eutectic data prepare ase --source {shlex.quote(name)} --store STORE, or records instead of ase",
        )
    return EutecticError(
        name,
        "not a data set that can be prepared" + (" (it is embedded)" if name in embedded() else ""),
        f"one of {', '.join(native())}",
        did_you_mean(name, native()),
    )


def _fetched(dataset: Dataset, name: str, *, progress: bool) -> Path:
    """The published files, downloaded once per family."""
    installed = getattr(dataset, "installed", None)
    if installed is not None and (path := installed(name)) is not None:
        return Path(path)
    files = dataset.files(name)
    if not files:
        raise EutecticError(
            name,
            "no source, and its files cannot be downloaded automatically",
            "a file or folder",
            f"download them ({dataset.card(name).source}) and pass --source with the file or folder",
        )
    folder = data_folder() / "downloads" / name.partition(":")[0]
    paths = [fetch(file, folder, progress=progress) for file in files]
    return paths[0] if len(paths) == 1 else folder


def describe(store: Store) -> dict[str, object]:
    """Content of `eutectic data info` as JSON, in constant memory; immediate if the store has a manifest."""
    summary = store.summary()
    description: dict[str, object] = {
        "name": store.card.name,
        "title": store.card.title,
        "domain": store.card.domain,
        "path": str(store.path),
        "structures": len(store),
        "atoms": summary.atoms,
        "mean_atoms": summary.atoms / max(len(store), 1),
        "largest": summary.largest,
        "groups": summary.n_groups(),
        "elements": {chemical_symbols[z]: n for z, n in summary.elements.items()},
        "labels": {name: {"count": n, "unit": PROPERTIES[name].unit} for name, n in summary.labels.items()},
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
    return {**description, "left_out": store.left_out} if store.left_out else description


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
