"""What labels depend on besides the geometry: charge, spin, level of theory, field.

Models do not take these as input. They are therefore not labels unless the user names them (`--key charge=…`), and
those that differ within a file are reported.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

CONDITIONS = ("charge",)
"""Properties that are conditions of a calculation rather than its results."""

NAMES: Mapping[str, str] = {
    **dict.fromkeys(("charge", "total_charge", "net_charge", "molecular_charge", "system_charge"), "charge"),
    **dict.fromkeys(("spin", "total_spin", "multiplicity", "spin_multiplicity", "mult", "uhf"), "spin"),
    **dict.fromkeys(("level_of_theory", "theory", "method", "functional", "xc", "basis", "basis_set"), "theory"),
    **dict.fromkeys(("solvent", "electric_field", "external_field", "efield", "electronic_temperature"), "environment"),
}
"""Entry in lower case → kind of condition."""

_DIFFERING, _NONE = "Structures differ in ", "; models take none of these."

MOST = 20
"""Maximum number of values kept per entry."""


@dataclass(eq=False)
class Met:
    """Values of the conditions over the structures so far: entry → value → structures."""

    values: dict[str, dict[str, int]] = field(default_factory=dict)

    def add(self, entries: Iterable[tuple[str, object]]) -> None:
        """Add the entries of a structure."""
        for name, value in entries:
            if name.lower() in NAMES and (text := _text(value)) is not None:
                counts = self.values.setdefault(name, {})
                if text in counts or len(counts) < MOST:
                    counts[text] = counts.get(text, 0) + 1

    def differing(self) -> dict[str, tuple[str, ...]]:
        """Entry → its values, sorted, for entries with several values."""
        return {name: tuple(sorted(counts, key=_order)) for name, counts in self.values.items() if len(counts) > 1}


def words(differing: Mapping[str, Iterable[str]]) -> str:
    """Such as "total_charge (−1, 0, 1) and total_spin (1, 2)"."""
    parts = [f"{name} ({', '.join(values).replace('-', '−')})" for name, values in differing.items()]
    return " and ".join([*([", ".join(parts[:-1])] if len(parts) > 1 else []), *parts[-1:]])


def note(differing: Mapping[str, Iterable[str]]) -> str:
    """Note for the card of a data set, from which `from_notes` recovers the conditions."""
    return f"{_DIFFERING}{words(differing)}{_NONE}"


def from_notes(notes: Iterable[str]) -> str:
    """The differing conditions in the notes of a card, as written by `words`; empty if there are none."""
    found = (text for text in notes if text.startswith(_DIFFERING) and text.endswith(_NONE))
    return next((text.removeprefix(_DIFFERING).removesuffix(_NONE) for text in found), "")


def _text(value: object) -> str | None:
    if isinstance(value, str):
        return value[:60]
    array = np.asarray(value)
    if array.dtype.kind not in "iufb" or array.size not in (1, 3):
        return None
    return " ".join(f"{float(number):g}" for number in array.reshape(-1))


def _order(text: str) -> tuple[float, str]:
    try:
        return float(text), ""
    except ValueError:
        return float("inf"), text
