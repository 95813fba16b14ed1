"""MD17: molecular dynamics of small molecules at 500 K (original version), and its coupled-cluster sets.

Chmiela et al., Sci. Adv. 3, e1603015 (2017), doi:10.1126/sciadv.1603015 (`md17:<molecule>`); Chmiela et al., Nat.
Commun. 9, 3887 (2018), doi:10.1038/s41467-018-06169-2 (`md17_ccsd:<molecule>`, `md17:benzene2018`); files at
sgdml.org. Supported sources:

* `md17_<molecule>.npz` or `<molecule>_dft.npz` (a file given directly may have any name), xyz, or a folder with one;
* coupled cluster: `<molecule>_ccsd….zip`, or the pair `…-train`, `…-test` (.npz or .xyz; either, or their folder).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from eutectic.atoms import EutecticError, LabelledStructure, Structure
from eutectic.data.card import Card
from eutectic.data.dataset import File, Piece
from eutectic.data.formats import sgdml
from eutectic.data.formats.archives import damage_explained, zip_members

MOLECULES: dict[str, tuple[str, str]] = {
    "aspirin": ("C9H8O4", "md17_aspirin"),
    "azobenzene": ("C12H10N2", "azobenzene_dft"),
    "benzene": ("C6H6", "md17_benzene2017"),
    "benzene2018": ("C6H6", "benzene2018_dft"),
    "ethanol": ("C2H6O", "md17_ethanol"),
    "malonaldehyde": ("C3H4O2", "md17_malonaldehyde"),
    "naphthalene": ("C10H8", "md17_naphthalene"),
    "paracetamol": ("C8H9NO2", "paracetamol_dft"),
    "salicylic": ("C7H6O3", "md17_salicylic"),
    "toluene": ("C7H8", "md17_toluene"),
    "uracil": ("C4H4N2O2", "md17_uracil"),
}
"""Formula, and the name of the published npz."""

COUPLED_CLUSTER: dict[str, tuple[str, str, str]] = {
    "aspirin": ("C9H8O4", "aspirin_ccsd", "CCSD/cc-pVDZ"),
    "benzene": ("C6H6", "benzene_ccsd_t", "CCSD(T)/cc-pVDZ"),
    "ethanol": ("C2H6O", "ethanol_ccsd_t", "CCSD(T)/cc-pVTZ"),
    "malonaldehyde": ("C3H4O2", "malonaldehyde_ccsd_t", "CCSD(T)/cc-pVDZ"),
    "toluene": ("C7H8", "toluene_ccsd_t", "CCSD(T)/cc-pVDZ"),
}
"""Formula, name of the published zip, level of theory."""

_URL = "http://www.quantum-machine.org/gdml/data/npz/"
_FETCH = "fetch the file again (sgdml.org)"
_PARTS = ("train", "test")


def names() -> tuple[str, ...]:
    """`md17:<molecule>`, `md17_ccsd:<molecule>`."""
    return (*(f"md17:{m}" for m in MOLECULES), *(f"md17_ccsd:{m}" for m in COUPLED_CLUSTER))


def card(name: str) -> Card:
    """Card of one molecule."""
    family, molecule = _known(name)
    coupled = family == "md17_ccsd"
    energies = "Energies are total energies. The files are in kcal/mol and Å; xyz files in eV are recognised."
    return Card(
        name=name,
        title=f"MD17, {molecule}: "
        + ("coupled-cluster labels along molecular dynamics" if coupled else "molecular dynamics at 500 K"),
        domain="molecules",
        properties=("energy", "forces"),
        level_of_theory=COUPLED_CLUSTER[molecule][2] if coupled else "PBE+vdW-TS",
        licence="not stated",
        citation="Chmiela et al., Nat. Commun. 9, 3887 (2018), doi:10.1038/s41467-018-06169-2"
        if coupled or molecule == "benzene2018"
        else "Chmiela et al., Sci. Adv. 3, e1603015 (2017), doi:10.1126/sciadv.1603015",
        source="sgdml.org",
        default_split="official" if coupled else "group",
        notes=(
            energies,
            *(
                ()
                if coupled
                else (
                    "A group is one of forty consecutive segments of the trajectory: a random split puts nearly "
                    "identical frames on both sides.",
                    "Energies and forces have numerical noise; rmd17 was computed to correct it.",
                )
            ),
        ),
    )


def files(name: str) -> tuple[File, ...]:
    """One npz, or one zip; no checksums are published."""
    family, molecule = _known(name)
    file = f"{COUPLED_CLUSTER[molecule][1]}.zip" if family == "md17_ccsd" else f"{MOLECULES[molecule][1]}.npz"
    return (File(name=file, url=_URL + file),)


def pieces(source: Path, name: str) -> list[Piece]:
    """One piece per 50 000 frames."""
    result = []
    for path, member in _files(Path(source), name):
        n = _head(path, member, name).n_frames
        result += [
            Piece(path=path, member=member, first=i, count=min(sgdml.FRAMES_PER_PIECE, n - i))
            for i in range(0, n, sgdml.FRAMES_PER_PIECE)
        ]
    return result


def read(piece: Piece, name: str) -> Iterator[LabelledStructure]:
    """The frames of a piece: energy in eV, forces in eV/Å."""
    family, molecule = _known(name)
    head = _head(piece.path, piece.member, name)
    part = next((f"{p}-" for p in _PARTS if Path(piece.member or piece.path.name).stem.endswith(p)), "")
    frames = sgdml.frames(head, piece.first, piece.count, _FETCH)
    for i, (positions, energy, forces) in enumerate(frames, start=piece.first):
        yield LabelledStructure(
            structure=Structure(numbers=head.numbers, positions=positions),
            labels={"energy": np.asarray(energy), "forces": forces},
            id=f"{molecule}-{part}{i:06d}",
            group=molecule if family == "md17_ccsd" else f"{molecule}-stretch-{head.stretch(i):02d}",
        )


def published_splits(source: Path, name: str) -> Mapping[str, Mapping[str, np.ndarray]]:
    """`official` for the coupled-cluster sets, none for the others."""
    if _known(name)[0] == "md17":
        return {}
    train, test = (_head(path, member, name).n_frames for path, member in _files(Path(source), name))
    return {"official": {"train": np.arange(train), "test": train + np.arange(test)}}


def _known(name: str) -> tuple[str, str]:
    if name not in names():
        raise EutecticError("md17", f"data set {name!r}", f"one of {', '.join(names())}", "choose one of these")
    family, _, molecule = name.partition(":")
    return family, molecule


def _head(path: Path, member: str, name: str) -> sgdml.Trajectory:
    family, molecule = _known(name)
    formula = (COUPLED_CLUSTER if family == "md17_ccsd" else MOLECULES)[molecule][0]
    return sgdml.trajectory(path, member, formula, molecule, _FETCH)


def _files(source: Path, name: str) -> list[tuple[Path, str]]:
    """Path and member of each file: one, or training and test."""
    family, molecule = _known(name)
    if family == "md17":
        published = MOLECULES[molecule][1]
        stems = [published, f"{molecule}_dft", f"md17_{molecule}"]
        expected = " or ".join(f"{s}.npz" for s in dict.fromkeys(stems))
        if source.is_file():
            return [(source, "")]
        found = [source / f"{s}{suffix}" for s in stems for suffix in (".npz", ".xyz")]
        if match := next((path for path in found if path.is_file()), None):
            return [(match, "")]
    else:
        stem = COUPLED_CLUSTER[molecule][1]
        expected = f"{stem}.zip, or {stem}-train.npz with {stem}-test.npz"
        folder = source if source.is_dir() else source.parent
        if source.is_file() and source.suffix == ".zip":
            return _zipped(source, expected)
        for suffix in (".npz", ".xyz") if source.is_dir() else (source.suffix,):
            pair = [folder / f"{stem}-{part}{suffix}" for part in _PARTS]
            if all(path.is_file() for path in pair):
                return [(path, "") for path in pair]
        if source.is_dir() and (source / f"{stem}.zip").is_file():
            return _zipped(source / f"{stem}.zip", expected)
    raise EutecticError(
        str(source),
        f"no file of {name} here" if source.exists() else "does not exist",
        expected,
        f"check the path and the molecule (fetch: {files(name)[0].url})",
    )


def _zipped(archive: Path, expected: str) -> list[tuple[Path, str]]:
    with damage_explained(str(archive), expected, _FETCH):
        members = zip_members(archive)
    pair = [[m for m in members if Path(m).match(f"*-{part}.npz")] for part in _PARTS]
    if [len(p) for p in pair] != [1, 1]:
        raise EutecticError(str(archive), f"members {', '.join(members[:5])}", expected, _FETCH)
    return [(archive, p[0]) for p in pair]
