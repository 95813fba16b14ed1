"""HDF5 files that others published: walked without ever leaving the file, cut into pieces, and read with errors
that say what is wrong.

An HDF5 file may point at others (links, raw and virtual data sets), so a hostile one could make a reader open
any file of the user's. Links are therefore looked at and never followed, and data that lies elsewhere is refused.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import h5py
import numpy as np

from eutectic.atoms import EutecticError
from eutectic.data.dataset import Piece

FRAMES_PER_PIECE = 16_384
SUFFIXES = (".h5", ".hdf5", ".hdf")
# A molecule's frames of one piece; a damaged header can ask for more memory than there is.
LARGEST_READ = 4 * 1024**3


def files_of(source: Path, published: str, fix: str, *, several: bool = False) -> list[Path]:
    """The HDF5 files a user's path means, in the order of their names.

    Args:
        source: a file (of any name), or a folder.
        published: what the publisher calls the file; in a folder of several, it is the one meant.
        fix: of the error.
        several: whether a data set may consist of all the files of a folder.

    Raises:
        EutecticError: nothing is there; no HDF5 file, or one too many.
    """
    if source.is_file():
        return [source]
    expected = f"{published} or the folder it is in"
    if not source.exists():
        raise EutecticError(str(source), "nothing is here", expected, "check the path")
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
    """A file, open for reading; whatever HDF5 fails with inside becomes an error in four parts.

    Args:
        path: the file.
        expected: what it should be, in words.
        fix: what the user can do when it is not.

    Raises:
        EutecticError: not there, not HDF5, cut short or damaged.
    """
    if not path.is_file():
        raise EutecticError(str(path), "nothing is here", expected, "check the path")
    if path.stat().st_size == 0:
        raise EutecticError(str(path), "an empty file", expected, fix)
    try:
        if not h5py.is_hdf5(path):
            raise EutecticError(str(path), "not an HDF5 file", expected, fix)
        # Locks fail on many clusters' file systems, and a file that is only read needs none.
        with h5py.File(path, "r", locking="best-effort") as file:
            yield file
    # HDF5's own failures come as any of these, by the part of the file that is damaged.
    except (OSError, RuntimeError, KeyError, ValueError, MemoryError, OverflowError) as error:
        raise EutecticError(
            str(path), f"not a readable HDF5 file ({type(error).__name__}: {error})", expected, fix
        ) from error


def names(group: h5py.Group) -> list[str]:
    """What a group holds, sorted: the order of HDF5 itself, unless a writer chose another.

    Raises:
        EutecticError: a name that is no text.
    """
    held = list(group)
    # h5py hands out bytes where it cannot decode a name.
    if not all(isinstance(name, str) for name in held):
        raise EutecticError(place(group), "a name that is no text", "names in UTF-8", "fetch the file again")
    return sorted(held)


def place(node: h5py.Group | h5py.Dataset) -> str:
    """The node in words, for an error."""
    return f"{node.file.filename}, {node.name}"


def link_to(group: h5py.Group, name: str) -> str | None:
    """Where a soft link points to, within the same file; None for what lies here itself.

    Raises:
        EutecticError: there is nothing of this name; a link to another file.
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
    """A member, or a member of a member ("formula/reaction"), that lies here itself.

    Raises:
        EutecticError: as `link_to`; a link of any kind.
    """
    node: h5py.Group | h5py.Dataset = group
    for name in path.split("/"):
        if not isinstance(node, h5py.Group):
            raise EutecticError(place(node), "an array", f"a group with {name!r}", "check that the file is whole")
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
    """As `child`, where that must be a group.

    Raises:
        EutecticError: as `child`; an array.
    """
    node = child(group, path)
    if not isinstance(node, h5py.Group):
        raise EutecticError(place(node), "an array", "a group", "check that the file is of this data set")
    return node


def lies_elsewhere(node: h5py.Dataset) -> bool:
    """Whether an array is only named here, and its numbers are in other files of the machine."""
    return node.external is not None or bool(node.is_virtual)


def dataset(group: h5py.Group, name: str, *sizes: int | None) -> h5py.Dataset:
    """The header of an array; nothing is read.

    Args:
        group: the group it lies in.
        name: of the array.
        sizes: the shape it must have; None is any size.

    Raises:
        EutecticError: as `child`; no array, another shape, or data that lies in another file.
    """
    node = child(group, name)
    if not isinstance(node, h5py.Dataset):
        raise EutecticError(place(node), "a group", "an array", "check that the file is of this data set")
    if lies_elsewhere(node):
        raise EutecticError(
            place(node),
            "an array whose data lies in other files",
            "the data in the file itself",
            "fetch the published file; this one could make a reader open any file of yours",
        )
    shape = node.shape or ()
    if len(shape) != len(sizes) or any(n is not None and n != m for n, m in zip(sizes, shape, strict=True)):
        given, wanted = (", ".join("any" if n is None else str(n) for n in s) for s in (shape, sizes))
        raise EutecticError(
            place(node),
            f"shape ({given})",
            f"shape ({wanted})",
            "the file is damaged or of another data set: fetch it again",
        )
    return node


def numbers_in(node: h5py.Dataset, first: int = 0, last: int | None = None) -> np.ndarray:
    """The entries `first` to `last` of an array's first axis, as float64 (integers as int64).

    Raises:
        EutecticError: not numbers, or more than fits into memory.
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
    """A text that is stored as one string, or letter by letter.

    Raises:
        EutecticError: not text.
    """
    if node.dtype.kind not in "SO" or (node.dtype.kind == "O" and h5py.check_string_dtype(node.dtype) is None):
        raise EutecticError(place(node), f"entries of type {node.dtype}", "text", "check the file")
    return b"".join(np.atleast_1d(node[()]).tolist()).decode()


def pieces(path: Path, groups: Sequence[str], size: Callable[[str], int]) -> list[Piece]:
    """Cut a file into pieces of about equal work.

    A piece is `count` frames from frame `first` of the group `member` on, going on in the groups after it.

    Args:
        path: the file.
        groups: those that hold frames, in order.
        size: how many frames a group has.
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
    """What a piece of `pieces` is made of: group, first frame, frame after the last.

    Raises:
        EutecticError: the file does not hold what it did when it was cut.
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
        # Only the first group of a piece may begin in its midst.
        first = max(0, first - n)
    if left:
        raise changed
