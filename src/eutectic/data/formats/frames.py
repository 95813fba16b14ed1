"""Divide text files of many structures into frames, so that nothing in a file is dropped silently.

ASE's readers stop at an empty line between two frames, at the first line that does not begin a frame, or at the last
complete frame; and they trust the counts in a file. Here every line belongs to a frame. An incomplete one keeps its
place as a frame with a problem, so that frames can be counted, skipped and read in ranges.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain

LONGEST_LINE = 1 << 23
"""Maximum number of characters of a line, to limit memory and time."""


@dataclass(frozen=True)
class Frame:
    """One structure in a file.

    Attributes:
        line: number of its first line, from 1.
        text: as its format has it.
        problem: why the text cannot be a structure; empty if it may be one.
    """

    line: int
    text: str
    problem: str = ""


class _Lines:
    """Lines of a file; the last one read can be put back."""

    def __init__(self, text: io.TextIOBase) -> None:
        self._text = text
        self._held: str | None = None
        self.number = 0

    def next(self) -> str:
        """The next line; empty at the end of the file."""
        line, self._held = self._held, None
        if line is None:
            line = self._text.readline(LONGEST_LINE)
            if len(line) == LONGEST_LINE and not line.endswith("\n"):
                raise ValueError(f"line {self.number + 1} has more than {LONGEST_LINE:,} characters")
        self.number += bool(line)
        return line

    def back(self, line: str) -> None:
        """Put a line back."""
        self._held = line
        self.number -= bool(line)

    def filled(self) -> str:
        """The next line that is not blank; empty at the end of the file."""
        while line := self.next():
            if line.strip():
                return line
        return ""


def xyz(text: io.TextIOBase) -> Iterator[Frame]:
    """Frames of an (extended) xyz file: number of atoms, comment, atoms, and possibly cell vectors VEC1 to VEC3.

    Empty lines between frames are allowed. A frame ends early at a line with a single whole number, which begins the
    next one; text directly after the atoms shows that their number is wrong.
    """
    lines = _Lines(text)
    while head := lines.filled():
        begin = lines.number
        if not _is_whole(head):
            yield Frame(begin, "", f"line {begin}: {_shown(head)} where a frame begins, with its number of atoms")
            _skip(lines, _is_whole)
            continue
        n = int(head)
        kept, problem = [head, lines.next()], ""
        while len(kept) < n + 2:
            line = lines.next()
            if not line.strip() or _is_whole(line):
                lines.back(line)
                problem = f"line {begin}: {n} atoms stated, and {len(kept) - 2} lines of atoms"
                break
            kept.append(line)
        after = lines.next()
        while not problem and after.lstrip().startswith("VEC"):
            kept.append(after)
            after = lines.next()
        lines.back(after)
        if after.strip() and not _is_whole(after):
            # It is unknown which atoms are meant and whether the labels belong to them.
            problem = problem or f"line {lines.number + 1}: {_shown(after)} after the {n} atoms stated in line {begin}"
            _skip(lines, _is_whole)
        yield Frame(begin, "" if problem else "".join(kept), problem)


def _is_whole(line: str) -> bool:
    return len(line) < 64 and line.strip().isdecimal()


def lammps_dump(text: io.TextIOBase) -> Iterator[Frame]:
    """Frames of a LAMMPS text dump: from one `ITEM: TIMESTEP` (or `ITEM: UNITS`, which may precede it) to the next.

    Every frame repeats the units, which a dump states only once.
    """
    lines = _Lines(text)
    units: list[str] = []
    while head := lines.filled():
        begin = lines.number
        if head.startswith("ITEM: UNITS"):
            units = [head, lines.next()]
            head = lines.filled()
        if not head.startswith("ITEM: TIMESTEP"):
            if head:
                yield Frame(begin, "", f"line {lines.number}: {_shown(head)} where ITEM: TIMESTEP begins a frame")
                _skip(lines, lambda line: line.startswith(("ITEM: TIMESTEP", "ITEM: UNITS")))
            continue
        kept, problem, n, done = [head], "", -1, False
        while (line := lines.filled()) and not line.startswith(("ITEM: TIMESTEP", "ITEM: UNITS")):
            if line.startswith("ITEM: ATOMS") and not done:
                done = True
                kept.append(line)
                n_rows = 0
                while (row := lines.next()) and row.strip() and not row.startswith("ITEM:"):
                    n_rows += 1
                    kept += [row] * (n_rows <= n)
                lines.back(row)
                if n_rows != n:
                    problem = f"line {begin}: {n} atoms stated, and {n_rows} lines of atoms"
            elif line.startswith("ITEM:") and not done:
                kept.append(line)
                of_section = 3 if line.startswith("ITEM: BOX BOUNDS") else 1
                kept += [lines.next() for _ in range(of_section)]
                if line.startswith("ITEM: NUMBER OF ATOMS"):
                    n = int(kept[-1]) if _is_whole(kept[-1]) else -1
            elif not done and len(kept) == 1:
                kept.append(line)  # the time step
            else:
                problem = problem or f"line {lines.number}: {_shown(line)} between two frames"
        lines.back(line)
        if not done:
            problem = problem or f"line {begin}: a frame without ITEM: ATOMS"
        yield Frame(begin, "" if problem else "".join([*units, *kept]), problem)


def xdatcar(text: io.TextIOBase) -> Iterator[Frame]:
    """Frames of an XDATCAR of VASP 5 or later: `Direct configuration=` and its positions, below the last header."""
    lines = _Lines(text)
    header: list[str] = []
    while True:
        begin = lines.number + 1
        before: list[str] = []
        while (line := lines.next()) and "configuration=" not in line:
            before += [line] * (len(before) < 20)
        filled = [number for number, text in enumerate(before) if text.strip()]
        problem = ""
        if filled:
            # The first line of a header is a comment, which may be blank.
            header = before[max(0, filled[-1] - 6) : filled[-1] + 1]
            strange = [number for number in filled if number < filled[-1] - 6]
            if len(header) < 7 or strange or not line or not all(map(str.isdecimal, header[6].split())):
                first = begin + filled[0]
                problem = f"line {first}: {_shown(before[filled[0]])} where a header or Direct configuration= begins"
        elif not line:
            return
        elif not header:
            problem = f"line {begin}: Direct configuration= without a header"
        n = 0 if problem else sum(map(int, header[6].split()))
        rows = [line]
        while line and not problem and len(rows) <= n:
            row = lines.next()
            if len(row.split()) < 3 or "configuration=" in row:
                lines.back(row)
                problem = f"line {begin}: {n} atoms stated, and {len(rows) - 1} lines of atoms"
            rows.append(row)
        if problem:
            _skip(lines, lambda row: len(row.split()) < 3 or not all(map(_is_number, row.split())))
        yield Frame(begin, "" if problem else "".join([*header, *rows]), problem)
        if not line:
            return


def pdb(text: io.TextIOBase) -> Iterator[Frame]:
    """Frames of a PDB file: the atoms up to a line END or ENDMDL, or to the end of the file.

    The cell (CRYST1) and the transformation (ORIGXn) above the first model apply to all models.
    """
    lines = _Lines(text)
    shared: dict[str, str] = {}
    atoms: list[str] = []
    begin = 0
    for line in chain(iter(lines.next, ""), ["END"]):
        if line.startswith(("CRYST1", "ORIGX")):
            shared[line[:6]] = line
        elif line.startswith(("ATOM", "HETATM")):
            begin = begin or lines.number
            atoms.append(line)
        elif line.startswith("END") and atoms:
            yield Frame(begin, "".join([*shared.values(), *atoms]))
            atoms, begin = [], 0


def sdf(text: io.TextIOBase) -> Iterator[Frame]:
    """Frames of an SDF or molfile (V2000): each ends with a line `$$$$`, the last with the file."""
    lines = _Lines(text)
    kept: list[str] = []
    begin = 1
    for line in chain(iter(lines.next, ""), ["$$$$"]):
        if not line.startswith("$$$$"):
            kept.append(line)
            continue
        if any(map(str.strip, kept)):
            head = kept[3] if len(kept) > 3 else ""
            n = int(head[:3]) if head[:3].strip().isdecimal() else -1
            if n < 0 or "V3000" in head:
                problem = f"line {begin + 3}: {_shown(head)} in place of the counts of a V2000 molfile"
            elif len(kept) < 4 + n:
                problem = f"line {begin}: {n} atoms stated, and {len(kept) - 4} lines of atoms"
            else:
                ends = sum(text.startswith("M  END") for text in kept)
                problem = f"line {begin}: {ends} molecules without $$$$ between them" if ends > 1 else ""
            yield Frame(begin, "" if problem else "".join(kept), problem)
        kept, begin = [], lines.number + 1


def poscar(text: io.TextIOBase) -> Iterator[Frame]:
    """The one structure of a POSCAR; only numbers may follow it: velocities, a predictor-corrector step."""
    lines = _Lines(text)
    head = [lines.next() for _ in range(6)]
    if not head[5].strip():
        yield Frame(1, "", "line 6: the file ends before the numbers of atoms")
        return
    if not _counts(head[5]):
        head.append(lines.next())
    n = sum(_counts(head[-1]))
    head.append(lines.next())
    if head[-1].strip()[:1] in ("s", "S"):
        head.append(lines.next())
    rows: list[str] = []
    while len(rows) < n and len((row := lines.next()).split()) >= 3:
        rows.append(row)
    problem = f"{n} atoms stated, and {len(rows)} lines of atoms" if len(rows) < n or not n else ""
    rest: list[str] = []
    headings = 0
    while not problem and (line := lines.next()):
        rest.append(line)
        if not all(map(_is_number, line.split())):
            headings += 1
            # One heading above the velocities of the lattice and one above those of the atoms; no second structure.
            if headings > 2 or not re.fullmatch(r"l(attice.*)?|c(art.*)?|d(irect)?|k", line.strip().lower()):
                problem = f"line {lines.number}: {_shown(line)} after the last atom, where at most velocities follow"
    yield Frame(1, "" if problem else "".join([*head, *rows, *rest]), problem)


def _counts(line: str) -> list[int]:
    """Numbers of atoms before a comment; empty if other words are among them."""
    words = line.partition("!")[0].split()
    return [int(word) for word in words] if all(map(str.isdecimal, words)) else []


def _is_number(word: str) -> bool:
    return re.fullmatch(r"[-+.0-9][-+.0-9EeDd]*", word) is not None


def _skip(lines: _Lines, begins: Callable[[str], bool]) -> None:
    """Go to the next line that begins a frame."""
    while line := lines.next():
        if begins(line):
            lines.back(line)
            return


def _shown(line: str) -> str:
    return repr(line.strip()[:60])
