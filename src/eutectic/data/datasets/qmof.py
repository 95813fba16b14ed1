"""QMOF: metal–organic frameworks relaxed at PBE-D3(BJ), and their band gaps.

Rosen et al., Matter 4, 1578 (2021), doi:10.1016/j.matt.2021.02.015; files at doi:10.6084/m9.figshare.13147324.
Supported sources:

* a folder with `qmof.json` and `qmof_structure_data.json`, `qmof_database.zip` with them, or the download that
  contains that archive (structures are read one by one: the file has several gigabytes);
* a table (`qmof.csv`, or any csv given directly) and CIFs: in `relaxed_structures/`, in the same folder, or in one
  archive beside it. Rows are matched to CIFs by file name, QMOF id or name; failing these by CSD refcode.
"""

from __future__ import annotations

import csv
import math
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from eutectic.atoms import EutecticError, LabelledStructure, Structure
from eutectic.data.card import Card
from eutectic.data.dataset import File, PaperSplit, Piece
from eutectic.data.formats import cif, pymatgen_json
from eutectic.data.formats.archives import INSIDE, damage_explained, opened, tar_members, zip_members

CARD = Card(
    name="qmof",
    title="QMOF: band gaps of metal–organic frameworks",
    domain="metal-organic frameworks",
    properties=("band_gap",),
    level_of_theory="PBE-D3(BJ)",
    licence="CC-BY-4.0",
    citation="Rosen et al., Matter 4, 1578 (2021), doi:10.1016/j.matt.2021.02.015",
    source="doi:10.6084/m9.figshare.13147324",
    notes=(
        "A group is a family of CSD refcodes (the first six letters), or a chemical formula if there is no refcode.",
        "JMP used version 14: the split 'paper' is JMP's only for the structure order of its qmof_structure_data.json.",
    ),
)

GAP = "outputs.pbe.bandgap"
CIFS_PER_PIECE = 500
LONGEST_CIF = 1 << 26

_FETCH = "fetch the files again (doi:10.6084/m9.figshare.13147324)"
_STRUCTURES, _TARGETS = "qmof_structure_data.json", "qmof.json"
_LAYOUT = f"{_TARGETS} with {_STRUCTURES}, qmof_database.zip, or a csv of targets with CIFs beside it"
_GAPS = (GAP, "bandgap", "band_gap")
_KEYS = ("filename", "qmof_id", "name", "qmof_name", "refcode")
_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2")
_REFCODE = re.compile(r"^([A-Z]{6})\d{0,2}(?:_|$)")


PAPER_SPLITS = {"qmof": PaperSplit(0.8, None, 0.1, 20_000)}


def names() -> tuple[str, ...]:
    """One data set."""
    return ("qmof",)


def card(name: str) -> Card:
    """The card of QMOF."""
    _known(name)
    return CARD


def files(name: str) -> tuple[File, ...]:
    """Version 14 (used by JMP), as one archive that figshare packs on demand (so without a checksum)."""
    _known(name)
    return (File(name="qmof_v14.zip", url="https://figshare.com/ndownloader/articles/13147324/versions/14"),)


def pieces(source: Path, name: str) -> list[Piece]:
    """One piece for the JSON layout and for a tar archive; one per 500 CIFs in a folder or zip archive.

    Raises:
        EutecticError: not QMOF; damaged or truncated; a table that does not match the CIFs.
    """
    _known(name)
    path, member = _layout(Path(source))
    if path.suffix != ".csv":
        _json_targets(path, member)
        return [Piece(path=path, member=member)]
    stems = _cif_names(path, member)
    gaps = _csv_targets(path)
    if not any(_find(gaps, Path(stem).stem) for stem in stems):
        raise EutecticError(
            str(path),
            f"none of the {len(stems)} CIFs in {member} is named in it",
            "rows of the CIFs, by file name, QMOF id, name or refcode",
            "give the csv that goes with the CIFs",
        )
    if not _is_tar(path.parent / member):
        n = len(stems)
        step = CIFS_PER_PIECE
        return [Piece(path=path, member=member, first=i, count=min(step, n - i)) for i in range(0, n, step)]
    return [Piece(path=path, member=member)]


def read(piece: Piece, name: str) -> Iterator[LabelledStructure]:
    """The structures of a piece; those not in the table have no gap."""
    _known(name)
    if piece.path.suffix != ".csv":
        yield from _from_json(piece)
        return
    gaps = _csv_targets(piece.path)
    for stem, text in _cifs(piece):
        structure = cif.structure(text, f"{piece.path.parent / piece.member}, {stem}", _FETCH)
        found = _find(gaps, stem)
        yield _row(stem, found[0] if found else stem, structure, found[1] if found else None)


def published_splits(source: Path, name: str) -> Mapping[str, Mapping[str, np.ndarray]]:
    """None are published."""
    _known(name)
    return {}


def _known(name: str) -> None:
    if name not in names():
        raise EutecticError("qmof", f"data set {name!r}", "qmof", "use the name qmof")


def _row(key: str, refcode: str, structure: Structure, gap: float | None) -> LabelledStructure:
    family = _REFCODE.match(refcode)
    group = family[1] if family else structure.to_ase().symbols.formula.reduce()[0].format("hill")
    labels = {} if gap is None else {"band_gap": np.asarray(gap)}
    return LabelledStructure(structure=structure, labels=labels, id=key, group=group)


def _layout(source: Path) -> tuple[Path, str]:
    """File and member with the structures; or the csv and the location of its CIFs, relative to its folder."""
    if source.is_file() and source.suffix == ".zip":
        return source, _zipped(source)
    if source.is_file() and source.suffix == ".csv":
        return source, _beside(source)
    if source.is_file() and source.name in (_STRUCTURES, _TARGETS):
        source = source.parent
    if source.is_dir():
        for folder in (source, source / "qmof_database"):
            if (folder / _STRUCTURES).is_file() and (folder / _TARGETS).is_file():
                return folder / _STRUCTURES, ""
            tables = sorted(folder.glob("*.csv"))
            if any(t.name == "qmof.csv" for t in tables):
                tables = [folder / "qmof.csv"]
            if len(tables) > 1:
                raise EutecticError(
                    str(folder),
                    f"several tables: {', '.join(t.name for t in tables)}",
                    "one csv",
                    "give the one with the targets as the source",
                )
            for table in tables:
                return table, _beside(table)
            for archive in (folder / "qmof_database.zip", folder / "qmof_v14.zip"):
                if archive.is_file():
                    return archive, _zipped(archive)
    raise EutecticError(
        str(source), "nothing of QMOF here" if source.exists() else "does not exist", _LAYOUT, "check the path"
    )


def _zipped(archive: Path) -> str:
    """Member with the structures, in an archive or in qmof_database.zip inside it."""
    with damage_explained(str(archive), _LAYOUT, _FETCH):
        inside = zip_members(archive)
        prefix = next((m for m in inside if Path(m).name == "qmof_database.zip"), None)
        if prefix:
            inside = [f"{prefix}{INSIDE}{m}" for m in zip_members(archive, prefix)]
    for member in inside:
        if Path(member.replace(INSIDE, "/")).name == _STRUCTURES and member.replace(_STRUCTURES, _TARGETS) in inside:
            return member
    raise EutecticError(str(archive), f"no {_STRUCTURES} with {_TARGETS} in it", _LAYOUT, _FETCH)


def _beside(table: Path) -> str:
    folder = table.parent
    for place in (folder / "relaxed_structures", folder):
        if next(place.glob("*.cif"), None):
            return place.relative_to(folder).as_posix()
    archives = [p for p in sorted(folder.iterdir()) if p.name.endswith(_ARCHIVES)]
    if (folder / "relaxed_structures.zip") in archives:
        archives = [folder / "relaxed_structures.zip"]
    if len(archives) == 1:
        return archives[0].name
    raise EutecticError(
        str(folder),
        f"a table, but {len(archives) or 'no'} archives and no CIFs",
        "relaxed_structures/*.cif, *.cif, or one archive of them",
        "put the CIFs beside the table",
    )


def _is_tar(place: Path) -> bool:
    return place.is_file() and place.suffix != ".zip"


def _cif_names(table: Path, member: str) -> list[str]:
    """Names of the CIFs: sorted, but in archive order for a tar archive, which is read once, front to back."""
    place = table.parent / member
    with damage_explained(str(place), "a folder or complete archive of CIFs", _FETCH):
        if place.is_dir():
            found = sorted(p.name for p in place.glob("*.cif"))
        elif _is_tar(place):
            found = [member for member, _ in tar_members(place, "*.cif")]
        else:
            found = sorted(m for m in zip_members(place) if m.endswith(".cif"))
    if not found:
        raise EutecticError(str(place), "no CIFs", "files *.cif", "give the archive of structures")
    return found


def _cifs(piece: Piece) -> Iterator[tuple[str, str]]:
    """Stem and text of each CIF of a piece. Links are not followed; nothing is unpacked to disk."""
    place = piece.path.parent / piece.member
    with damage_explained(str(place), "a folder or complete archive of CIFs", _FETCH):
        if _is_tar(place):
            for member, content in tar_members(place, "*.cif"):
                yield Path(member).stem, _text(content.read(LONGEST_CIF + 1), member)
            return
        stop = None if piece.count is None else piece.first + piece.count
        names = _cif_names(piece.path, piece.member)[piece.first : stop]
        if place.is_dir():
            for name in names:
                path = place / name
                if not path.resolve().is_relative_to(place.resolve()):
                    raise EutecticError(
                        str(path), "a link to outside the folder", "files of the data set", "copy the file here"
                    )
                with path.open("rb") as handle:
                    yield path.stem, _text(handle.read(LONGEST_CIF + 1), name)
            return
        with zipfile.ZipFile(place) as bundle:
            for name in names:
                with bundle.open(name) as member_handle:
                    yield Path(name).stem, _text(member_handle.read(LONGEST_CIF + 1), name)


def _text(content: bytes, name: str) -> str:
    if len(content) > LONGEST_CIF:
        raise ValueError(f"{name} is longer than {LONGEST_CIF} bytes, too long for the CIF of one crystal")
    return content.decode("utf-8")


_Gaps = dict[str, tuple[str, float | None]]
"""Name → name with refcode, and gap in eV."""


def _find(gaps: _Gaps, stem: str) -> tuple[str, float | None] | None:
    return gaps.get(stem) or gaps.get(stem.split("_")[0])


def _csv_targets(table: Path) -> _Gaps:
    gaps: _Gaps = {}
    by_refcode: dict[str, set[tuple[str, float | None]]] = {}
    with (
        damage_explained(str(table), f"columns with {GAP}, or rows of name,gap", _FETCH),
        table.open(newline="") as file,
    ):
        lines = list(csv.reader(file))
    header = lines[0] if lines else []
    at = next((header.index(g) for g in _GAPS if g in header), None)
    keys = [header.index(k) for k in _KEYS if k in header] if at is not None else [0]
    rows = lines[1:] if at is not None else lines
    for number, row in enumerate(rows, start=1 + len(lines) - len(rows)):
        if not row:
            continue
        try:
            gap = float(row[at if at is not None else 1] or "nan")
            named = [row[k].removesuffix(".cif") for k in keys if row[k]]
            # A missing gap is allowed; infinity is an error.
            value = (next((n for n in named if _REFCODE.match(n)), named[0]), None if math.isnan(gap) else gap)
        except (ValueError, IndexError) as error:
            raise EutecticError(
                f"{table}, line {number}", f"{','.join(row)[:80]!r} ({error})", "a name and a gap in eV", _FETCH
            ) from error
        for n in named:
            gaps.setdefault(n, value)
            by_refcode.setdefault(n.split("_")[0], set()).add(value)
    # A refcode identifies a structure only if it is unique.
    unique = {code: next(iter(values)) for code, values in by_refcode.items() if len(values) == 1}
    return {**unique, **gaps}


def _gap(entry: Mapping[str, Any]) -> float | None:
    value: Any = entry.get(GAP)
    if value is None:
        value = entry
        for key in GAP.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
    if value is not None and not isinstance(value, int | float):
        raise ValueError(f"{GAP} of {entry.get('qmof_id')} is {value!r}")
    return None if value is None or math.isnan(value) else float(value)


def _json_targets(path: Path, member: str) -> dict[str, tuple[str, float | None]]:
    """QMOF id → name and gap."""
    other = (path.with_name(_TARGETS), "") if not member else (path, member.replace(_STRUCTURES, _TARGETS))
    where = f"{other[0]}, {other[1]}" if other[1] else str(other[0])
    gaps = {}
    with damage_explained(where, f"a list of materials with qmof_id and {GAP}", _FETCH), opened(*other) as handle:
        for _, entry in pymatgen_json.items(handle.read):
            if not isinstance(entry, Mapping) or not isinstance(entry.get("qmof_id"), str):
                raise ValueError("a material without qmof_id")
            gaps[entry["qmof_id"]] = (str(entry.get("name", entry["qmof_id"])), _gap(entry))
    if not any(gap is not None for _, gap in gaps.values()):
        raise EutecticError(where, f"{len(gaps)} materials, none with a gap", GAP, _FETCH)
    return gaps


def _from_json(piece: Piece) -> Iterator[LabelledStructure]:
    gaps = _json_targets(piece.path, piece.member)
    where = f"{piece.path}, {piece.member}" if piece.member else str(piece.path)
    with (
        damage_explained(where, "a list of structures with qmof_id", _FETCH),
        opened(piece.path, piece.member) as handle,
    ):
        for i, (_, entry) in enumerate(pymatgen_json.items(handle.read)):
            if not isinstance(entry, Mapping) or not isinstance(entry.get("structure"), Mapping):
                raise ValueError(f"entry {i} without a structure")
            key = str(entry.get("qmof_id"))
            name, gap = gaps.get(key, (key, None))
            yield _row(key, name, pymatgen_json.structure(entry["structure"], f"{where}, {key}"), gap)
