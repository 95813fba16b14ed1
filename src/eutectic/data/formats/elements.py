"""Elements of atoms that a file only names by types or labels (LAMMPS, PDB, Gromacs): stated, never guessed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
from ase.data import atomic_masses_iupac2016, atomic_numbers, chemical_symbols
from ase.formula import Formula

from eutectic.atoms import MAX_ATOMIC_NUMBER, EutecticError, suggest

Elements = Mapping[str, str]
"""Type or label of an atom in a file → symbol of its element."""

SYMBOLS = frozenset(chemical_symbols[1:])

MASS_TOLERANCE = 0.1
"""u; input files round masses. Cobalt and nickel differ by 0.24."""

_NATURAL = np.array([*range(1, 84), 90, 91, 92, 94], dtype=np.int64)
"""Elements that are inferred from masses; polonium, for example, has the mass of bismuth."""


def parse(text: str | None) -> dict[str, str]:
    """ "Cu,Au" → the elements of types 1 and 2; "OW=O,HW=H" → those of labels.

    Raises:
        EutecticError: not symbols of elements, or a mixture of both forms.
    """
    found: dict[str, str] = {}
    words = [word.strip() for word in (text or "").split(",")] if text else []
    named = any("=" in word for word in words)
    for number, word in enumerate(words, start=1):
        label, equals, symbol = (part.strip() for part in word.partition("="))
        label, symbol = (label, symbol) if named else (str(number), label)
        if (named and not equals) or not label or symbol not in SYMBOLS:
            near = suggest(symbol, SYMBOLS)
            raise EutecticError(
                f"--elements {text}",
                repr(word),
                "symbols of elements for types 1, 2, …: Cu,Au; or for labels in the file: OW=O,HW=H",
                f"did you mean {near!r}?" if near else "correct the option",
            )
        found[label] = symbol
    return found


def assigned(labels: Sequence[str], elements: Elements, where: str, kind: str = "types") -> np.ndarray:
    """Atomic numbers (n_atoms,) of labels, each of which is in `elements` or, except for types, an element's symbol.

    Args:
        labels: of every atom.
        elements: as stated by the user; may be empty.
        where, kind: for errors: location, and what the labels are.

    Raises:
        EutecticError: labels without an element.
    """
    table: dict[str, int] = {}
    unknown = []
    for label in dict.fromkeys(labels):
        symbol = elements.get(label) or (plain(label) if kind != "types" else None)
        if symbol is None:
            unknown.append(label)
        else:
            table[label] = atomic_numbers[symbol]
    if unknown:
        unknown = sorted(unknown, key=lambda label: (len(label), label))
        shown = ", ".join(unknown[:8]) + (", …" if len(unknown) > 8 else "")
        example = ",".join(f"{label}=Cu" for label in unknown[:2])
        in_order = "--elements Cu,Au for types 1 and 2 in order, or " if kind == "types" else ""
        raise EutecticError(
            where,
            f"{kind} without elements: {shown}",
            "the element of every atom, which is not guessed from a number or name",
            f"state them: {in_order}--elements {example}",
        )
    return np.array([table[label] for label in labels], dtype=np.int64)


def plain(label: str) -> str | None:
    """The element of a label that is its symbol, perhaps with a number or charge: O, H12, Cl-; not CA or OW."""
    match = re.fullmatch(r"([A-Z][a-z]?)[0-9+\-'*]*", label)
    return match.group(1) if match and match.group(1) in SYMBOLS else None


def of_masses(masses: np.ndarray) -> np.ndarray | None:
    """Atomic numbers (n_atoms,) of atoms by their masses in u; None if these fit no element, or more than one.

    Masses that are all 1 are those of reduced units.
    """
    distinct, where = np.unique(np.asarray(masses, dtype=np.float64), return_inverse=True)
    if not len(distinct) or np.allclose(distinct, 1.0, atol=1e-6):
        return None
    near = np.abs(distinct[:, None] - atomic_masses_iupac2016[None, _NATURAL]) <= MASS_TOLERANCE
    return None if (near.sum(1) != 1).any() else _NATURAL[near.argmax(1)][where.reshape(-1)]


def unused(where: str) -> EutecticError:
    """Error for elements that are stated for a file that names its own."""
    return EutecticError(
        "--elements",
        f"used with {where}, which names the elements itself",
        "this option only with files of types or labels",
        "leave it out",
    )


def formula(numbers: np.ndarray) -> str:
    """Formula of atoms by their numbers (n_atoms,), in Hill notation; X for a number that is no element, which the
    check of the structure refuses."""
    symbols = [chemical_symbols[z] if 0 < z <= MAX_ATOMIC_NUMBER else "X" for z in numbers.tolist()]
    return format(Formula.from_list(symbols), "hill")


def symbol(number: int) -> str:
    """Symbol of an element by its atomic number."""
    return str(chemical_symbols[number])
