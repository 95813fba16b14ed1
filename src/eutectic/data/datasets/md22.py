"""MD22: molecular dynamics of seven large molecules and complexes at 400 and 500 K.

Chmiela et al., Sci. Adv. 9, eadf0873 (2023), doi:10.1126/sciadv.adf0873; files at sgdml.org. A source is
`md22_<name>.npz`, the same as xyz, or a folder with one of them. Other molecules, and energies that are not total
energies, are refused: such files state neither units nor level of theory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from eutectic.atoms import EutecticError, LabelledStructure, Structure
from eutectic.data.card import Card
from eutectic.data.dataset import File, PaperSplit, Piece
from eutectic.data.formats import sgdml

MOLECULES: dict[str, tuple[str, str]] = {
    "Ac-Ala3-NHMe": ("C12H22N4O4", "tetrapeptide"),
    "DHA": ("C22H32O2", "docosahexaenoic acid"),
    "stachyose": ("C24H42O21", "tetrasaccharide"),
    "AT-AT": ("C20H22N14O4", "two stacked DNA base pairs"),
    "AT-AT-CG-CG": ("C38H42N30O8", "four stacked DNA base pairs"),
    "buckyball-catcher": ("C120H28", "supramolecular complex"),
    "double-walled_nanotube": ("C326H44", "double-walled nanotube"),
}
"""Formula and kind of molecule, by file name."""

_URL = "http://www.quantum-machine.org/gdml/repo/datasets/"
_FETCH = "fetch the file again (sgdml.org)"


PAPER_SPLITS = {
    "md22:Ac-Ala3-NHMe": PaperSplit(5700, 300, None, 85_109),
    "md22:DHA": PaperSplit(7600, 400, None, 69_753),
    "md22:stachyose": PaperSplit(7600, 400, None, 27_272),
    "md22:AT-AT": PaperSplit(2850, 150, None, 20_001),
    "md22:AT-AT-CG-CG": PaperSplit(1900, 100, None, 10_153),
    "md22:buckyball-catcher": PaperSplit(570, 30, None, 6102),
    "md22:double-walled_nanotube": PaperSplit(760, 40, None, 5032),
}
"""Training sizes of the data set's authors; JMP uses a twentieth of them for validation."""


def names() -> tuple[str, ...]:
    """`md22:<molecule>`."""
    return tuple(f"md22:{m}" for m in MOLECULES)


def card(name: str) -> Card:
    """Card of one molecule."""
    molecule = _known(name)
    return Card(
        name=name,
        title=f"MD22, {molecule} ({MOLECULES[molecule][1]}): molecular dynamics",
        domain="large molecules",
        properties=("energy", "forces"),
        level_of_theory="PBE+MBD",
        licence="not stated",
        citation="Chmiela et al., Sci. Adv. 9, eadf0873 (2023), doi:10.1126/sciadv.adf0873",
        source="sgdml.org",
        notes=(
            "Energies are total energies. The files are in kcal/mol and Å.",
            "A group is one of forty consecutive segments of the trajectory: a random split puts nearly identical "
            "frames on both sides.",
        ),
    )


def files(name: str) -> tuple[File, ...]:
    """One npz; no checksums are published."""
    file = f"md22_{_known(name)}.npz"
    return (File(name=file, url=_URL + file),)


def pieces(source: Path, name: str) -> list[Piece]:
    """One piece per 50 000 frames."""
    path = _file(Path(source), name)
    n = _head(path, name).n_frames
    step = sgdml.FRAMES_PER_PIECE
    return [Piece(path=path, first=i, count=min(step, n - i)) for i in range(0, n, step)]


def read(piece: Piece, name: str) -> Iterator[LabelledStructure]:
    """The frames of a piece: energy in eV, forces in eV/Å."""
    molecule, head = _known(name), _head(piece.path, name)
    frames = sgdml.frames(head, piece.first, piece.count, _FETCH)
    for i, (positions, energy, forces) in enumerate(frames, start=piece.first):
        yield LabelledStructure(
            structure=Structure(numbers=head.numbers, positions=positions),
            labels={"energy": np.asarray(energy), "forces": forces},
            id=f"{molecule}-{i:06d}",
            group=f"{molecule}-stretch-{head.stretch(i):02d}",
        )


def published_splits(source: Path, name: str) -> Mapping[str, Mapping[str, np.ndarray]]:
    """None are published: the authors selected their training structures by their own algorithm."""
    _known(name)
    return {}


def _known(name: str) -> str:
    if name not in names():
        raise EutecticError("md22", f"data set {name!r}", f"one of {', '.join(names())}", "choose one of these")
    return name.partition(":")[2]


def _head(path: Path, name: str) -> sgdml.Trajectory:
    molecule = _known(name)
    return sgdml.trajectory(path, "", MOLECULES[molecule][0], molecule, _FETCH)


def _file(source: Path, name: str) -> Path:
    molecule = _known(name)
    if source.is_file():
        return source
    for suffix in (".npz", ".xyz"):
        if (source / f"md22_{molecule}{suffix}").is_file():
            return source / f"md22_{molecule}{suffix}"
    raise EutecticError(
        str(source),
        f"no md22_{molecule}.npz here" if source.exists() else "does not exist",
        f"md22_{molecule}.npz, or a folder with it",
        f"check the path and the molecule (fetch: {files(name)[0].url})",
    )
