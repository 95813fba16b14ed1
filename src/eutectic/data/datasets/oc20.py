"""OC20, the Open Catalyst 2020 data set: relaxations of adsorbates on metal and non-metal surfaces.

Chanussot et al., ACS Catalysis 11, 6059 (2021), doi:10.1021/acscatal.0c04525. A source is one file, or a folder with
files of one of these kinds at any depth:

* `data.0000.lmdb`, …: pickled records of S2EF (`y`, `force`) and IS2RE (`y_init`, `y_relaxed`, `pos_relaxed`);
* `0.extxyz.xz` with `0.txt.xz` (or both unpacked, or the `.tar` that holds them): total energies, with a line
  "random<system>,frame<number>,<reference energy>" for each structure;
* `.aselmdb`: rows of ASE's database, with `sid` and `fid` in their data;
* `random<system>.traj`, `random<system>.extxyz.xz`: complete relaxations from VASP.

There are three kinds of energy:

* adsorption energy E − E_ref, with E_ref of the clean surface and of the adsorbate in the gas phase, one number per
  system; this is the published label ("oc20");
* total energy E, extrapolated to zero electronic smearing ("oc20:total"). Pickled records lack E_ref: it is in
  `oc20_ref.pkl`, published with OC22, to be placed beside the files or in one of the three folders above;
* free energy F of the smeared electrons ("oc20:free_energy"), whose exact negative gradient the forces are. It is in
  `.extxyz` and `.traj` only, and differs from E by up to 0.2 eV between systems, by 0.01 eV within a relaxation.
"""

from __future__ import annotations

import io
import lzma
import math
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from eutectic.atoms import EutecticError, LabelledStructure
from eutectic.data.card import Card
from eutectic.data.dataset import File, Piece
from eutectic.data.formats.ase_lmdb import SUFFIX as ASE_LMDB
from eutectic.data.formats.ase_lmdb import read_rows
from eutectic.data.formats.open_catalyst import (
    URL,
    Record,
    find,
    labelled,
    lmdb_pieces,
    read_lmdb,
    structure_from_ase,
)
from eutectic.data.formats.pickled_lmdb import array, unpickle

CARD = Card(
    name="oc20",
    title="OC20: adsorbates on surfaces, adsorption energies and forces (S2EF)",
    domain="catalysts",
    properties=("energy", "forces"),
    level_of_theory="RPBE, VASP (PAW, 350 eV)",
    licence="CC-BY-4.0",
    citation="Chanussot et al., ACS Catal. 11, 6059 (2021), doi:10.1021/acscatal.0c04525",
    source=URL,
    notes=(
        "Adsorption energies, relative to the clean surface and molecules in the gas phase; `oc20:total` has total "
        "energies. Forces are unmasked: fixed atoms have them too.",
        "`prepare` fetches the smallest training set, 200K. The others have the same address and layout: "
        "s2ef_train_2M.tar, s2ef_train_20M.tar, s2ef_train_all.tar (225 GB), s2ef_val_id.tar, s2ef_val_ood_ads.tar, …",
        "Positions, cells and forces of LMDB files are float32, and in some their energies too: the precision of a "
        "total energy of -500 eV is then 3e-5 eV.",
        "A group is a system: all frames of a relaxation stay together.",
        "Relaxations in `.traj` have no tags: fixed atoms get 0 (below the surface), free ones 1.",
    ),
)

_NOTES = {
    "oc20:total": "Total energies, extrapolated to zero smearing; forces are the negative gradient of the free energy, "
    "which differs from it by 0.01 eV within a relaxation. LMDB files need oc20_ref.pkl beside them "
    f"({URL}oc22/oc20_ref.pkl).",
    "oc20:free_energy": "Free energies of the smeared electrons, whose exact negative gradient the forces are; from "
    ".extxyz and .traj files only, since LMDB files do not have them.",
    "oc20:is2re": "The label of a structure is the adsorption energy after its relaxation, not its own: there are no "
    "matching forces, and it is not a point on the potential energy surface.",
    "oc20:relaxed": "Relaxed positions with their adsorption energy. Forces there are not published.",
}
_TITLES = {
    "oc20:total": "OC20: adsorbates on surfaces, total energies and forces",
    "oc20:free_energy": "OC20: adsorbates on surfaces, free energies and forces",
    "oc20:is2re": "OC20: initial structures with relaxed adsorption energies (IS2RE)",
    "oc20:relaxed": "OC20: relaxed structures with adsorption energies",
}

_SHARDS = (".extxyz", ".extxyz.xz", ".tar")
_RAW = (*_SHARDS, ".traj", ASE_LMDB)
_KINDS: dict[str, tuple[str, ...]] = {
    "oc20": (*_RAW, ".lmdb"),
    "oc20:total": (*_RAW, ".lmdb"),
    "oc20:free_energy": _RAW,
    "oc20:is2re": (".lmdb",),
    "oc20:relaxed": (".lmdb",),
}
_LOOKED_AT = 16
"""Number of first structures of a piece whose energies are tested for being adsorption or total energies."""

_LARGEST_SHARD = 1 << 30
"""Bytes of decompressed text; protects against decompression bombs."""

_S2EF = File(
    name="s2ef_train_200K.tar", url=f"{URL}s2ef_train_200K.tar", checksum="md5:f8d0909c2623a393148435dede7d3a46"
)
_IS2RE = File(
    name="is2res_train_val_test_lmdbs.tar.gz",
    url=f"{URL}is2res_train_val_test_lmdbs.tar.gz",
    checksum="md5:cfc04dd2f87b4102ab2f607240d25fb1",
)


PUBLISHED_SIZE = (100_000_000, 73.0)
"""Structures and mean number of atoms (Shoghi et al., ICLR 2024)."""


def names() -> tuple[str, ...]:
    """S2EF with each kind of energy, and IS2RE with initial or relaxed positions."""
    return tuple(_KINDS)


def card(name: str) -> Card:
    """Card of one data set."""
    if name == "oc20":
        return CARD
    properties = ("energy",) if name in ("oc20:is2re", "oc20:relaxed") else CARD.properties
    notes = (_NOTES[name], *CARD.notes[1 if len(properties) == 2 else 2 :])
    return replace(CARD, name=name, title=_TITLES[name], properties=properties, notes=notes)


def files(name: str) -> tuple[File, ...]:
    """The smallest S2EF training set; or IS2RE, to be unpacked."""
    return (_IS2RE,) if name in ("oc20:is2re", "oc20:relaxed") else (_S2EF,)


def pieces(source: Path, name: str) -> list[Piece]:
    """Files of one kind, sorted by name; LMDB files in parts.

    Raises:
        EutecticError: no such source or none of its files; several kinds of files; a truncated file.
    """
    source = Path(source)
    kind, paths = find(source, _KINDS[name], f"files of OC20 for {name}: {', '.join(_KINDS[name])}")
    if kind in (".lmdb", ASE_LMDB):
        return lmdb_pieces(paths)
    if kind != ".tar":
        return [Piece(path=path) for path in paths]
    shards = [Piece(path=path, member=member) for path in paths for member in _members(path) if _is_shard(member)]
    if not shards:
        raise EutecticError(
            str(paths[0]),
            "an archive without .extxyz.xz files",
            "an S2EF archive such as s2ef_train_200K.tar",
            f"unpack it (tar -xf {paths[0]} -C {paths[0].parent}) and give the resulting folder",
        )
    return shards


def read(piece: Piece, name: str) -> Iterator[LabelledStructure]:
    """Structures with the ids "<system>-<frame>", or "<system>" for `oc20:is2re` and `oc20:relaxed`.

    Raises:
        EutecticError: damaged, truncated, or another kind of file; total energies instead of adsorption energies or
            vice versa; a system without reference energy.
    """
    where = str(piece.path)
    if name in ("oc20:is2re", "oc20:relaxed"):
        yield from (_relaxation(record, name) for record in read_lmdb(piece))
    elif piece.path.suffix == ".lmdb":
        rows = _checked((_frame(record) for record in read_lmdb(piece)), "oc20", where)
        yield from _with_reference(rows, _references(piece.path), piece.path) if name == "oc20:total" else rows
    elif piece.path.suffix == ASE_LMDB:
        yield from _checked(_ase_rows(piece, name), name, where)
    elif piece.path.suffix == ".traj" or piece.path.name.startswith("random"):
        yield from _relaxed_by_vasp(piece.path, name)
    else:
        yield from _checked(_shard(piece, name), name, where)


def published_splits(source: Path, name: str) -> Mapping[str, Mapping[str, np.ndarray]]:
    """None: training and validation are published as separate files, each to be prepared separately."""
    return {}


def _frame(record: Record) -> LabelledStructure:
    """One structure of S2EF."""
    if "oc22" in record:
        raise EutecticError(record.where, "a record of OC22", "a record of OC20", "name the data set oc22")
    if "y_init" in record or "y_relaxed" in record:
        raise EutecticError(record.where, "a record of IS2RE (y_relaxed)", "one of S2EF (y, force)", "name oc20:is2re")
    structure = record.structure()
    labels = record.labels(("y", "energy"), ("force", "forces"), len(structure))
    return labelled(structure, labels, record.word("sid"), record.word("fid"))


def _relaxation(record: Record, name: str) -> LabelledStructure:
    """One system of IS2RE."""
    if "oc22" in record:
        raise EutecticError(
            record.where, "a record of OC22", "a record of OC20", f"name {name.replace('oc20', 'oc22')}"
        )
    if "y" in record or "energy" in record:
        raise EutecticError(record.where, "a record of S2EF (y, force)", "one of IS2RE (y_relaxed)", "name oc20")
    structure = record.structure("pos_relaxed" if name == "oc20:relaxed" else "pos")
    # `force` and `y_init` are those of the first structure and do not belong to the relaxed energy.
    labels = record.labels(("y_relaxed",), (), len(structure))
    return labelled(structure, labels, record.word("sid"))


def _ase_rows(piece: Piece, name: str) -> Iterator[LabelledStructure]:
    for atoms, data in read_rows(piece.path, piece.first, piece.count):
        where = f"{piece.path}, row {data['row']}"
        if "sid" not in data:
            raise EutecticError(
                where, "no entry sid", "the number of its system", "read it as your own structures: ase"
            )
        yield _from_ase(atoms, name, str(data["sid"]), str(data.get("fid", data["row"])), 0.0, where)


def _shard(piece: Piece, name: str) -> Iterator[LabelledStructure]:
    """Structures of one `.extxyz`, each with its line of the `.txt`."""
    where = f"{piece.path}, {piece.member}" if piece.member else str(piece.path)
    texts = piece.member.replace(".extxyz", ".txt") or str(piece.path).replace(".extxyz", ".txt")
    try:
        with ExitStack() as opened:
            lines = opened.enter_context(_text(piece.path, texts if piece.member else "", Path(texts)))
            frames = _frames(opened.enter_context(_text(piece.path, piece.member, piece.path)))
            for line, atoms in zip(lines, frames, strict=True):
                system, frame, reference = line.strip().split(",")
                yield _from_ase(
                    atoms,
                    name,
                    system.removeprefix("random"),
                    frame.removeprefix("frame"),
                    float(reference) if name == "oc20" else 0.0,
                    f"{where}, {system}, {frame}",
                )
    except EutecticError:
        raise
    # ASE's reader and the decompression raise many kinds of exceptions on damaged files.
    except Exception as error:
        raise _broken(where, error, f"as many structures as lines in {Path(texts).name}") from error


def _relaxed_by_vasp(path: Path, name: str) -> Iterator[LabelledStructure]:
    """All structures of one relaxation."""
    system = path.name.partition(".")[0].removeprefix("random")
    reference = _reference(_references(path), system, path) if name == "oc20" else 0.0
    index = 0
    try:
        with ExitStack() as opened:
            if path.suffix == ".traj":
                from ase.io.trajectory import Trajectory

                frames: Iterable[Atoms] = opened.enter_context(Trajectory(path))
            else:
                frames = _frames(opened.enter_context(_text(path, "", path)))
            for atoms in frames:
                yield _from_ase(atoms, name, system, str(index), reference, f"{path}, structure {index}")
                index += 1
    except EutecticError:
        raise
    except Exception as error:
        raise _broken(f"{path}, structure {index}", error, "a complete relaxation") from error


def _from_ase(atoms: Atoms, name: str, system: str, frame: str, reference: float, where: str) -> LabelledStructure:
    results: dict[str, Any] = atoms.calc.results if atoms.calc is not None else {}
    key = "free_energy" if name == "oc20:free_energy" else "energy"
    if key not in results and "energy" in results:
        raise EutecticError(where, f"no {key}", "a structure with its free energy", "name oc20:total")
    labels = {}
    if key in results:
        labels["energy"] = np.asarray(float(results[key]) - reference)
    if "forces" in results:
        # Raw forces: `get_forces` sets those of fixed atoms to zero.
        labels["forces"] = np.asarray(results["forces"], dtype=np.float64)
    known = {label: values for label, values in labels.items() if np.isfinite(values).all()}
    return labelled(structure_from_ase(atoms), known, system, frame)


def _checked(rows: Iterator[LabelledStructure], name: str, where: str) -> Iterator[LabelledStructure]:
    """The same rows, after checking that the first of them have the requested kind of energy.

    LMDB files do not state it: fairchem's script writes total energies by default. A total energy is about -5 eV per
    atom (-0.7 for alkali metals); an adsorption energy is a few eV per structure.
    """
    head = list(islice(rows, _LOOKED_AT))
    known = [(float(row.labels["energy"]), len(row.structure)) for row in head if "energy" in row.labels]
    if known:
        energy = float(np.median([e for e, _ in known]))
        per_atom = float(np.median([e / n for e, n in known]))
        given = f"energies around {energy:.4g} eV, {per_atom:.3g} eV for each atom"
        if name == "oc20" and energy < -20 and per_atom < -0.5:
            # `oc20:total` would add the reference to these a second time.
            lmdb = "use the original .extxyz files, or write them again with --ref-energy"
            fix = lmdb if where.endswith(".lmdb") else "name oc20:total"
            raise EutecticError(where, f"{given}: total energies", "adsorption energies", fix)
        if name != "oc20" and energy > -20 and per_atom > -0.5:
            raise EutecticError(where, f"{given}: adsorption energies", "total energies", "name oc20")
    yield from head
    yield from rows


def _with_reference(
    rows: Iterator[LabelledStructure], references: Mapping[str, object], path: Path
) -> Iterator[LabelledStructure]:
    for row in rows:
        labels = dict(row.labels)
        if "energy" in labels:
            labels["energy"] = np.asarray(labels["energy"] + _reference(references, row.group, path))
        yield replace(row, labels=labels)


def _reference(references: Mapping[str, object], system: str, path: Path) -> float:
    key = f"random{system}"
    if key in references:
        value = references[key]
        energy = float(value) if isinstance(value, int | float | str) else float(array(value, key).item())
        if math.isfinite(energy):
            return energy
    raise EutecticError(
        str(path),
        f"no reference energy of system {system}",
        f"oc20_ref.pkl with {key!r}, beside the file or in one of the three folders above",
        f"fetch {URL}oc22/oc20_ref.pkl (md5 043e1e0b0cce64c62f01a8563dbc3178)",
    )


def _references(path: Path) -> Mapping[str, object]:
    """System → reference energy; empty if no file has them."""
    for folder in list(path.resolve().parents)[:4]:
        for name in ("oc20_ref.pkl", "system.txt"):
            if (folder / name).is_file():
                return _reference_file(folder / name, (folder / name).stat().st_mtime_ns)
    return {}


@lru_cache(maxsize=2)
def _reference_file(path: Path, _changed: int) -> Mapping[str, object]:
    if path.suffix == ".pkl":
        found = unpickle(path.read_bytes(), str(path))
        if not isinstance(found, dict):
            raise EutecticError(str(path), "not a dictionary", "random<system> → energy", "fetch oc20_ref.pkl again")
        return found
    try:
        return dict(line.strip().split(",")[:2] for line in path.read_text().splitlines() if line.strip())
    except (ValueError, OSError) as error:
        raise _broken(str(path), error, "lines random<system>,<reference energy>") from error


def _frames(text: io.StringIO) -> Iterator[Atoms]:
    from ase.io import iread

    yield from iread(text, index=":", format="extxyz")


def _text(path: Path, member: str, file: Path) -> io.StringIO:
    """A file, or a member of an archive, in memory, decompressed if its name ends in .xz: ASE needs a seekable file,
    and 5000 structures are about 30 MB."""
    if not member:
        if not file.is_file():
            raise EutecticError(
                str(path.parent),
                f"no {file.name} beside {path.name}",
                "both files of the pair",
                "unpack the other one too",
            )
        return _decompressed(file.read_bytes()) if file.suffix == ".xz" else io.StringIO(file.read_text())
    places = _members(path)
    if member not in places:
        raise EutecticError(str(path), f"no {member}", "both files of a pair", f"fetch {path.name} again")
    start, size = places[member]
    with path.open("rb") as archive:
        archive.seek(start)
        data = archive.read(size)
    return _decompressed(data) if member.endswith(".xz") else io.StringIO(data.decode())


def _decompressed(data: bytes) -> io.StringIO:
    with lzma.open(io.BytesIO(data)) as stream:
        text = stream.read(_LARGEST_SHARD + 1)
    if len(text) > _LARGEST_SHARD:
        raise ValueError(f"more than {_LARGEST_SHARD} bytes in one file")
    return io.StringIO(text.decode())


def _members(path: Path) -> Mapping[str, tuple[int, int]]:
    """Name → offset and size within an uncompressed archive."""
    return _places(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=4)
def _places(path: Path, _changed: int) -> Mapping[str, tuple[int, int]]:
    try:
        with tarfile.open(path, "r:") as archive:
            return {member.name: (member.offset_data, member.size) for member in archive if member.isfile()}
    except (tarfile.TarError, OSError, EOFError) as error:
        raise _broken(str(path), error, "a complete archive") from error


def _is_shard(member: str) -> bool:
    return member.endswith((".extxyz", ".extxyz.xz")) and not Path(member).name.startswith((".", "random"))


def _broken(where: str, error: Exception, expected: str) -> EutecticError:
    return EutecticError(
        where,
        f"could not be read ({type(error).__name__}: {error})",
        expected,
        "it may be truncated or damaged: download or unpack it again",
    )
