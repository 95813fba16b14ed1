"""Safe reading of published HDF5 files, in pieces and with four-part errors.

An HDF5 file may refer to others (links, raw and virtual data sets), so a malicious one could make a reader open any
file of the user. Links are therefore inspected but never followed, and data in other files is refused.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import h5py
import numpy as np

from eutectic.atoms import EutecticError
from eutectic.data.dataset import Piece
from eutectic.data.formats.archives import check_ratio

FRAMES_PER_PIECE = 16_384
SUFFIXES = (".h5", ".hdf5", ".hdf")
# Bytes; a damaged header could request more memory than available.
LARGEST_READ = 4 * 1024**3


def files_of(source: Path, published: str, fix: str, *, several: bool = False) -> list[Path]:
    """The HDF5 files at a path, sorted by name.

    Args:
        source: a file (of any name), or a folder.
        published: published file name; preferred in a folder with several files.
        fix: suggestion for the error.
        several: whether a data set may consist of all files of a folder.

    Raises:
        EutecticError: no such path; no HDF5 file, or more than one without `several`.
    """
    if source.is_file():
        return [source]
    expected = f"{published} or the folder it is in"
    if not source.exists():
        raise EutecticError(str(source), "does not exist", expected, "check the path")
    if not several and (source / published).is_file():
        return [source / published]
    found = sorted(p for p in source.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not found:
        raise EutecticError(str(source), "no HDF5 file here", expected, fix)
    if len(found) > 1 and not several:
        names = ", ".join(p.name for p in found[:4]) + (", …" if len(found) > 4 else "")
        raise EutecticError(str(source), f"{len(found)} HDF5 files ({names})", expected, "name one of the files")
    return found


@contextlib.contextmanager
def opened(path: Path, expected: str, fix: str) -> Iterator[h5py.File]:
    """Open a file for reading; exceptions of HDF5 inside become an `EutecticError`.

    Args:
        path: the file.
        expected: description of the expected file.
        fix: suggestion for the error.

    Raises:
        EutecticError: no such file, not HDF5, truncated or damaged.
    """
    if not path.is_file():
        raise EutecticError(str(path), "does not exist", expected, "check the path")
    if path.stat().st_size == 0:
        raise EutecticError(str(path), "an empty file", expected, fix)
    try:
        if not h5py.is_hdf5(path):
            raise EutecticError(str(path), "not an HDF5 file", expected, fix)
        # Locks fail on the file systems of many clusters, and reading needs none.
        with h5py.File(path, "r", locking="best-effort") as file:
            yield file
    # HDF5 raises any of these, depending on the damage.
    except (OSError, RuntimeError, KeyError, ValueError, MemoryError, OverflowError) as error:
        raise EutecticError(
            str(path), f"not a readable HDF5 file ({type(error).__name__}: {error})", expected, fix
        ) from error


def names(group: h5py.Group) -> list[str]:
    """Names in a group, sorted (the default order of HDF5).

    Raises:
        EutecticError: a name that is not text.
    """
    held = list(group)
    # h5py returns bytes for a name that it cannot decode.
    if not all(isinstance(name, str) for name in held):
        raise EutecticError(place(group), "a name that is not text", "names in UTF-8", "fetch the file again")
    return sorted(held)


def place(node: h5py.Group | h5py.Dataset) -> str:
    """Location of a node, for errors."""
    return f"{node.file.filename}, {node.name}"


def link_to(group: h5py.Group, name: str) -> str | None:
    """Target of a soft link within the same file; None if `name` is not a link.

    Raises:
        EutecticError: no such name; a link to another file.
    """
    if not group.id.links.exists(name.encode()):
        held = ", ".join(names(group)[:8]) or "nothing"
        raise EutecticError(
            place(group), f"no {name!r} here; there is {held}", f"{name!r}", "check that the file is of this data set"
        )
    kind = group.id.links.get_info(name.encode()).type
    if kind == h5py.h5l.TYPE_HARD:
        return None
    value = group.id.links.get_val(name.encode())
    if kind == h5py.h5l.TYPE_SOFT:
        return str(value.decode())
    raise EutecticError(
        place(group),
        f"{name!r} is a link to another file",
        "the data in the file itself",
        "fetch the published file; this one could make a reader open any file of yours",
    )


def child(group: h5py.Group, path: str) -> h5py.Group | h5py.Dataset:
    """A member, or a nested member ("formula/reaction"), that is not a link.

    Raises:
        EutecticError: as `link_to`; a link of any kind.
    """
    node: h5py.Group | h5py.Dataset = group
    for name in path.split("/"):
        if not isinstance(node, h5py.Group):
            raise EutecticError(place(node), "an array", f"a group with {name!r}", "check that the file is complete")
        if (target := link_to(node, name)) is not None:
            raise EutecticError(
                place(node),
                f"{name!r} is a link to {target!r}",
                "the data itself, not a link",
                "fetch the published file",
            )
        node = node[name]
    if not isinstance(node, h5py.Group | h5py.Dataset):
        raise EutecticError(place(group), f"{path!r} is a type", "a group or an array", "fetch the published file")
    return node


def subgroup(group: h5py.Group, path: str) -> h5py.Group:
    """As `child`, for a group.

    Raises:
        EutecticError: as `child`; an array.
    """
    node = child(group, path)
    if not isinstance(node, h5py.Group):
        raise EutecticError(place(node), "an array", "a group", "check that the file is of this data set")
    return node


def is_external(node: h5py.Dataset) -> bool:
    """Whether the data of an array is in other files."""
    return node.external is not None or bool(node.is_virtual)


def check_size(node: h5py.Dataset) -> None:
    """Refuse an array that is declared far larger than its file: rows that were never written cost nothing there.

    Raises:
        EutecticError: an implausible size.
    """
    check_ratio(place(node), Path(node.file.filename).stat().st_size, int(node.nbytes))


def dataset(group: h5py.Group, name: str, *sizes: int | None) -> h5py.Dataset:
    """An array, checked by its header; no data is read.

    Args:
        group: its group.
        name: its name.
        sizes: required shape; None is any size.

    Raises:
        EutecticError: as `child`; not an array, a different shape, data in another file, or as `check_size`.
    """
    node = child(group, name)
    if not isinstance(node, h5py.Dataset):
        raise EutecticError(place(node), "a group", "an array", "check that the file is of this data set")
    if is_external(node):
        raise EutecticError(
            place(node),
            "an array whose data is in other files",
            "the data in the file itself",
            "fetch the published file; this one could make a reader open any file of yours",
        )
    shape = node.shape or ()
    if len(shape) != len(sizes) or any(n is not None and n != m for n, m in zip(sizes, shape, strict=True)):
        given, required = (", ".join("any" if n is None else str(n) for n in s) for s in (shape, sizes))
        raise EutecticError(
            place(node),
            f"shape ({given})",
            f"shape ({required})",
            "the file is damaged or of another data set: fetch it again",
        )
    check_size(node)
    return node


def numbers_in(node: h5py.Dataset, first: int = 0, last: int | None = None) -> np.ndarray:
    """Entries `first` to `last` along the first axis of an array, as float64 (integers as int64).

    Raises:
        EutecticError: not numbers, or more than `LARGEST_READ` bytes.
    """
    if node.dtype.kind not in "iuf":
        raise EutecticError(
            place(node), f"entries of type {node.dtype}", "numbers", "check that the file is of this data set"
        )
    count = (node.shape[0] if last is None else last) - first
    if count * int(np.prod(node.shape[1:], dtype=object)) * 8 > LARGEST_READ:
        raise EutecticError(
            place(node), f"shape {node.shape}", "an array that fits into memory", "the file is damaged: fetch it again"
        )
    return np.asarray(node[first:last], dtype=np.float64 if node.dtype.kind == "f" else np.int64)


def text_in(node: h5py.Dataset) -> str:
    """A text stored as one string, or as single characters.

    Raises:
        EutecticError: not text.
    """
    if node.dtype.kind not in "SO" or (node.dtype.kind == "O" and h5py.check_string_dtype(node.dtype) is None):
        raise EutecticError(place(node), f"entries of type {node.dtype}", "text", "check the file")
    return b"".join(np.atleast_1d(node[()]).tolist()).decode()


def pieces(path: Path, groups: Sequence[str], size: Callable[[str], int]) -> list[Piece]:
    """Divide a file into pieces of about equal size.

    A piece is `count` frames starting at frame `first` of the group `member`, continuing in the following groups.

    Args:
        path: the file.
        groups: groups with frames, in order.
        size: number of frames of a group.
    """
    cut: list[Piece] = []
    member, first, count = "", 0, 0
    for name in groups:
        start, left = 0, size(name)
        while left:
            if not count:
                member, first = name, start
            taken = min(left, FRAMES_PER_PIECE - count)
            start, left, count = start + taken, left - taken, count + taken
            if count == FRAMES_PER_PIECE:
                cut.append(Piece(path=path, member=member, first=first, count=count))
                count = 0
    if count:
        cut.append(Piece(path=path, member=member, first=first, count=count))
    return cut


def spans(piece: Piece, groups: Sequence[str], size: Callable[[str], int]) -> Iterator[tuple[str, int, int]]:
    """Ranges of a piece from `pieces`: group, first frame, frame after the last.

    Raises:
        EutecticError: the file has changed since it was divided.
    """
    changed = EutecticError(
        f"{piece.path}, {piece.member or 'first group'}",
        "fewer structures than when the file was first scanned",
        f"{piece.count} structures from number {piece.first} on",
        "leave the file as it is while it is read, then run the same command again",
    )
    if piece.member and piece.member not in groups:
        raise changed
    left, first = piece.count, piece.first
    for name in groups[groups.index(piece.member) if piece.member else 0 :]:
        if left == 0:
            return
        n = size(name)
        last = n if left is None else min(n, first + left)
        if last > first:
            yield name, first, last
            left = None if left is None else left - (last - first)
        # Only the first group of a piece may begin at a later frame.
        first = max(0, first - n)
    if left:
        raise changed
