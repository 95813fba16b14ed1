"""OC22, the Open Catalyst 2022 data set: relaxations of adsorbates on oxide surfaces, and of the surfaces alone.

Tran et al., ACS Catalysis 13, 3066 (2023), doi:10.1021/acscatal.2c05426. Files read: the folders of `data.*.lmdb`
(S2EF-total and IS2RE-total) that the published archives unpack to, or one such file; and `.aselmdb`.

Energies are total energies, unlike those of OC20; records of OC22 are marked by a field `oc22`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from eutectic.atoms import EutecticError, LabelledStructure
from eutectic.data.card import Card
from eutectic.data.dataset import File, Piece
from eutectic.data.formats.ase_lmdb import SUFFIX as ASE_LMDB
from eutectic.data.formats.ase_lmdb import read_rows
from eutectic.data.formats.open_catalyst import URL, Record, find, labelled, lmdb_pieces, read_lmdb, structure_from_ase

CARD = Card(
    name="oc22",
    title="OC22: adsorbates on oxide surfaces, total energies and forces (S2EF-total)",
    domain="oxide catalysts",
    properties=("energy", "forces"),
    level_of_theory="PBE+U, VASP (PAW, 500 eV), spin-polarised",
    licence="CC-BY-4.0",
    citation="Tran et al., ACS Catal. 13, 3066 (2023), doi:10.1021/acscatal.2c05426",
    source=f"{URL}oc22/",
    notes=(
        "Total energies. Surfaces are relaxed too, without fixed atoms in most structures.",
        "Positions, cells and forces are float32, and in some files energies too: their precision is 3e-5 eV at "
        "-500 eV.",
        "A group is a system: all frames of a relaxation stay together. The test files have no labels.",
    ),
)

_RELAXATIONS = {
    "oc22:is2re": (
        "OC22: initial structures with relaxed total energies (IS2RE-total)",
        "The label of a structure is the total energy after its relaxation, not its own: there are no matching forces.",
    ),
    "oc22:relaxed": (
        "OC22: relaxed structures with total energies",
        "Relaxed positions with their total energy; forces there are not published.",
    ),
}


PUBLISHED_SIZE = (8_000_000, 80.0)
"""Structures and mean number of atoms (Shoghi et al., ICLR 2024)."""


def names() -> tuple[str, ...]:
    """S2EF (`oc22`), and IS2RE with initial or relaxed positions."""
    return ("oc22", *_RELAXATIONS)


def card(name: str) -> Card:
    """Card of one data set."""
    if name == "oc22":
        return CARD
    title, note = _RELAXATIONS[name]
    return replace(CARD, name=name, title=title, properties=("energy",), notes=(note, *CARD.notes))


def files(name: str) -> tuple[File, ...]:
    """Training, validation and test in one archive, to be unpacked (20 GB, unpacked 71 GB; IS2RE 0.1 and 0.4 GB)."""
    kind, checksum = (
        ("s2ef", "ebea523c6f8d61248a37b4dd660b11e6")
        if name == "oc22"
        else ("is2res", "b35dc24e99ef3aeaee6c5c949903de94")
    )
    file = f"{kind}_total_train_val_test_lmdbs.tar.gz"
    return (File(name=file, url=f"{URL}oc22/{file}", checksum=f"md5:{checksum}"),)


def pieces(source: Path, name: str) -> list[Piece]:
    """Parts of the files, in the order of their names.

    Raises:
        EutecticError: no such source or none of its files; both kinds of files; a truncated file.
    """
    kinds = (".lmdb", ASE_LMDB) if name == "oc22" else (".lmdb",)
    _, paths = find(Path(source), kinds, f"files of OC22: {', '.join(kinds)}")
    return lmdb_pieces(paths)


def read(piece: Piece, name: str) -> Iterator[LabelledStructure]:
    """Structures with the ids "<system>-<frame>", or "<system>" for `oc22:is2re` and `oc22:relaxed`.

    Raises:
        EutecticError: damaged, truncated, or of another data set.
    """
    if piece.path.suffix == ASE_LMDB:
        yield from _ase_rows(piece)
    else:
        yield from (_structure(record, name) for record in read_lmdb(piece))


def published_splits(source: Path, name: str) -> Mapping[str, Mapping[str, np.ndarray]]:
    """None: training and validation are published as separate folders, each to be prepared separately."""
    return {}


def _structure(record: Record, name: str) -> LabelledStructure:
    relaxation = name != "oc22"
    if relaxation and ("y" in record or "energy" in record):
        raise EutecticError(record.where, "a record of S2EF (y, force)", "one of IS2RE (y_relaxed)", "name oc22")
    if not relaxation and "y_relaxed" in record:
        raise EutecticError(record.where, "a record of IS2RE (y_relaxed)", "one of S2EF (y, force)", "name oc22:is2re")
    structure = record.structure("pos_relaxed" if name == "oc22:relaxed" else "pos")
    energy, forces = (("y_relaxed",), ()) if relaxation else (("y", "energy"), ("force", "forces"))
    labels = record.labels(energy, forces, len(structure))
    if labels and "oc22" not in record:
        raise EutecticError(
            record.where,
            "a labelled record without the field oc22",
            "a record of OC22; those of OC20 have adsorption energies and no such field",
            f"name {name.replace('oc22', 'oc20')}, or check the path",
        )
    return labelled(structure, labels, record.word("sid"), None if relaxation else record.word("fid"))


def _ase_rows(piece: Piece) -> Iterator[LabelledStructure]:
    for atoms, data in read_rows(piece.path, piece.first, piece.count):
        if "sid" not in data:
            where = f"{piece.path}, row {data['row']}"
            raise EutecticError(
                where, "no entry sid", "the number of its system", "prepare it as your own structures: ase"
            )
        results = atoms.calc.results
        labels = {label: np.asarray(results[label]) for label in CARD.properties if label in results}
        known = {label: values for label, values in labels.items() if np.isfinite(values).all()}
        yield labelled(structure_from_ase(atoms), known, str(data["sid"]), str(data.get("fid", data["row"])))
