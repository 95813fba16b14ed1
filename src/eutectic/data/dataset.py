"""What a data set's module gives to the commands: the names of `Dataset`.

Files are read in `Piece`s, so that any number of processes can share the work and a preparation that was stopped
goes on with the pieces that are not done.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from eutectic.atoms import LabelledStructure
from eutectic.data.card import Card


@dataclass(frozen=True, kw_only=True)
class File:
    """One file that a publisher offers.

    Attributes:
        name: what it is called on disk.
        url: where it is fetched from.
        size_bytes: as published; None where it is not known.
        checksum: "sha256:…" or "md5:…" as the publisher gives it; empty where none is given.
    """

    name: str
    url: str
    size_bytes: int | None = None
    checksum: str = ""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A part of a data set's files that any process can read alone.

    Attributes:
        path: the file.
        first, count: records of it; a count of None is all that follow. A piece with a count may be cut further, so
            that it is only given where a range costs about as much as its share of the whole.
        member: the part of the file the records are in (a group of HDF5, a member of an archive).
    """

    path: Path
    first: int = 0
    count: int | None = None
    member: str = ""


class PaperSplit(NamedTuple):
    """How JMP divided a data set to fine-tune on it (Shoghi et al., ICLR 2024).

    Attributes:
        train, validation, test: structures; a share is rounded down, None is all the rest.
        whole: how many structures the data set has at least: a shuffle of a part of it is another split.
    """

    train: int | float | None
    validation: int | float | None
    test: int | float | None
    whole: int


@runtime_checkable
class Dataset(Protocol):
    """A module of `eutectic.data.datasets`, which is found by being there. Units, signs and levels of theory are
    settled in it, once.

    Besides these functions it may have `PAPER_SPLITS` (name or family → `PaperSplit`, or the name of a published
    split), `PUBLISHED_SIZE` (structures, mean number of atoms) and `installed(name)` (files that are on this machine
    already, or None).
    """

    def names(self) -> tuple[str, ...]:
        """What `prepare` calls the data sets of this module: "oc22", or "md22:AT-AT", "md22:stachyose", …"""

    def card(self, name: str) -> Card:
        """Of one of them."""

    def files(self, name: str) -> tuple[File, ...]:
        """What `prepare` downloads where no source is given; empty where the publisher wants a form filled in.

        One file is then the source; of several, the folder they are in.
        """

    def pieces(self, source: Path, name: str) -> list[Piece]:
        """The parts of what the user has, in the order of the data set; headers are read, not records.

        Raises:
            EutecticError: not there, or not this data set's files.
        """

    def read(self, piece: Piece, name: str) -> Iterator[LabelledStructure]:
        """The structures of a piece, in order; a record gives one or (left out by rule) none.

        Raises:
            EutecticError: damaged, cut short, or records of another shape.
        """

    def published_splits(self, source: Path, name: str) -> Mapping[str, Mapping[str, np.ndarray]]:
        """Name → part → positions in the order of all pieces; empty where none was published."""
