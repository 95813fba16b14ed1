"""The interface of a data set module: `Dataset`, `Piece`, `File`, `PaperSplit`.

Files are read in `Piece`s, so that any number of processes can share the work and an interrupted preparation resumes
with the unfinished pieces.
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
    """One published file.

    Attributes:
        name: file name on disk.
        url: download address.
        size_bytes: published size; None if unknown.
        checksum: published checksum, "sha256:…" or "md5:…"; empty if there is none.
        by_hand: for error messages: what to do with a file downloaded by other means.
    """

    name: str
    url: str
    size_bytes: int | None = None
    checksum: str = ""
    by_hand: str = "pass it with --source"


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A part of a data set's files that can be read independently.

    Attributes:
        path: the file.
        first, count: range of records; a count of None means all that follow. A piece with a count may be cut further,
            so set it only if reading a range costs about its share of the whole.
        member: part of the file with the records (a group of HDF5, a member of an archive).
    """

    path: Path
    first: int = 0
    count: int | None = None
    member: str = ""


class PaperSplit(NamedTuple):
    """JMP's split of a data set for fine-tuning (Shoghi et al., ICLR 2024).

    Attributes:
        train, validation, test: number of structures, or a fraction (rounded down); None is all the rest.
        whole: smallest number of structures of the complete data set; shuffling a subset gives another split.
    """

    train: int | float | None
    validation: int | float | None
    test: int | float | None
    whole: int


@runtime_checkable
class Dataset(Protocol):
    """A module of `eutectic.data.datasets`; every module in that package is registered. It defines the units, signs
    and level of theory of its data.

    Besides these functions it may have `PAPER_SPLITS` (name or family → `PaperSplit`, or the name of a published
    split), `PUBLISHED_SIZE` (structures, mean number of atoms) and `installed(name)` (files already on this machine,
    or None).
    """

    def names(self) -> tuple[str, ...]:
        """Names of this module's data sets: "oc22", or "md22:AT-AT", "md22:stachyose", …"""

    def card(self, name: str) -> Card:
        """Card of one data set."""

    def files(self, name: str) -> tuple[File, ...]:
        """Files that `prepare` downloads if no source is given; empty where the publisher requires a form.

        A single file is then the source; several files are passed as their folder.
        """

    def pieces(self, source: Path, name: str) -> list[Piece]:
        """The pieces of the source, in the order of the data set; reads headers only, not records.

        Raises:
            EutecticError: no such source, or not this data set's files.
        """

    def read(self, piece: Piece, name: str) -> Iterator[LabelledStructure]:
        """The structures of a piece, in order; each record gives one structure, or none if excluded by a rule.

        Raises:
            EutecticError: damaged or truncated file, or records of an unexpected shape.
        """

    def published_splits(self, source: Path, name: str) -> Mapping[str, Mapping[str, np.ndarray]]:
        """Split → part → record indices in the order of all pieces; empty if none was published."""
