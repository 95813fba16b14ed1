"""Read crystals from pymatgen's JSON, and stream JSON files too large for memory."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from ase.data import atomic_numbers

from eutectic.atoms import EutecticError, Structure

CHUNK = 1 << 20
"""Bytes read at a time. A single item of a list may be longer, up to `LONGEST`."""

FAR = 1 << 20
"""Characters: an error further than this from the end of the data read so far is not due to missing data."""

LONGEST = 1 << 28
"""Maximum number of characters of one item, to limit memory."""

_ELEMENTS = {**{s: z for s, z in atomic_numbers.items() if z > 0}, "D": 1, "T": 1}


def structure(values: Mapping[str, Any], where: str) -> Structure:
    """A periodic structure from pymatgen's `Structure.as_dict()`.

    Args:
        values: dictionary with `lattice` (`matrix`, rows in Å; `pbc`) and `sites` (`species`, fractional `abc`).
        where: location, for errors.

    Raises:
        EutecticError: a site with mixed or partial occupancy; a dummy species; unexpected keys.
    """
    try:
        lattice = values["lattice"]
        cell = np.array(lattice["matrix"], dtype=np.float64)
        sites = values["sites"]
        numbers = np.empty(len(sites), dtype=np.int64)
        for i, site in enumerate(sites):
            (species, *others) = site["species"]
            if others or abs(species["occu"] - 1) > 1e-3:
                shares = ", ".join(f"{s['element']} {s['occu']:g}" for s in site["species"])
                raise EutecticError(
                    f"{where}, site {i}",
                    f"occupied by {shares}",
                    "full occupancy by one element",
                    "leave this structure out, or order it first: a disordered crystal has no atoms to learn from",
                )
            z = _ELEMENTS.get(species["element"])
            if z is None:
                raise EutecticError(
                    f"{where}, site {i}",
                    f"species {species['element']!r}",
                    "an element",
                    "leave this structure out: dummy atoms cannot be learned from",
                )
            numbers[i] = z
        fractions = np.array([site["abc"] for site in sites], dtype=np.float64)
        if cell.shape != (3, 3) or fractions.shape != (len(numbers), 3):
            raise ValueError(f"lattice of shape {cell.shape}, fractional coordinates of shape {fractions.shape}")
        pbc = np.array(lattice.get("pbc", (True, True, True)), dtype=bool)
        if pbc.shape != (3,):
            raise ValueError(f"pbc {lattice['pbc']!r}")
        return Structure(numbers=numbers, positions=fractions @ cell, cell=cell, pbc=pbc)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise EutecticError(
            where,
            f"not a structure of pymatgen ({type(error).__name__}: {error})",
            "lattice.matrix, and sites with species and abc",
            "fetch the file again",
        ) from error


def items(read: Callable[[int], bytes]) -> Iterator[tuple[str, Any]]:
    """Items of every list in the outermost object (with its key), or of the outermost list (with the key "").

    Values that are not lists are returned as they are. Holds one item and one chunk in memory.

    Args:
        read: returns the next bytes, like the method of an open file.

    Raises:
        ValueError: not JSON, or truncated.
    """
    text = _Text(read)
    opening = text.after_space()
    if opening == "[":
        yield from (("", value) for value in text.items())
    elif opening == "{":
        text.take()
        while text.after_space() != "}":
            key = text.value()
            if text.after_space() != ":" or not isinstance(key, str):
                raise ValueError("a key without a value")
            text.take()
            if text.after_space() == "[":
                yield from ((key, value) for value in text.items())
            else:
                yield key, text.value()
            if text.after_space() == ",":
                text.take()
    else:
        raise ValueError("neither an object nor a list")
    if opening == "{":
        text.take()
    if (rest := text.rest()).strip():
        raise ValueError(f"{rest.strip()[:40]!r} after its last bracket")


class _Text:
    """A JSON file, read through a sliding window."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._chunks = codecs.iterdecode(iter(lambda: read(CHUNK), b""), "utf-8")
        self._decode = json.JSONDecoder().raw_decode
        self._window, self._at = "", 0

    def _more(self) -> bool:
        """Extend the window; False at the end of the file."""
        chunk = next(self._chunks, None)
        if chunk is None:
            return False
        if len(self._window) - self._at > LONGEST:
            raise ValueError(f"an item of more than {LONGEST} characters")
        self._window, self._at = self._window[self._at :] + chunk, 0
        return True

    def after_space(self) -> str:
        """The next character that is not white space, without consuming it."""
        while True:
            while self._at < len(self._window) and self._window[self._at] in " \t\r\n":
                self._at += 1
            if self._at < len(self._window):
                return self._window[self._at]
            if not self._more():
                raise ValueError("the file ends before its last bracket")

    def rest(self) -> str:
        """What follows in the file, up to some characters that are not white space."""
        while not self._window[self._at :].strip():
            self._at = len(self._window)
            if not self._more():
                return ""
        return self._window[self._at :]

    def take(self) -> None:
        """Consume one character."""
        self._at += 1

    def value(self) -> Any:
        """The next value. A number at the end of the window may be incomplete, so more must follow it."""
        self.after_space()
        chunks = 1
        while True:
            try:
                value, end = self._decode(self._window, self._at)
                if end < len(self._window):
                    self._at = end
                    return value
            except json.JSONDecodeError as error:
                # Far from the end of the window, it is an error in the file.
                if len(self._window) - error.pos > FAR and chunks > 1:
                    raise
            # Double each time, so that a long item is not rescanned for every chunk.
            if not sum(self._more() for _ in range(chunks)):
                raise ValueError("the file ends before its last bracket")
            chunks *= 2

    def items(self) -> Iterator[Any]:
        """The items of a list, one by one."""
        self.take()
        while self.after_space() != "]":
            yield self.value()
            if self.after_space() == ",":
                self.take()
            elif self.after_space() != "]":
                raise ValueError("items without a comma between them")
        self.take()
