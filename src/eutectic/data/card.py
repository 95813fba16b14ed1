"""Data set cards: name, labels, level of theory, licence and citation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from eutectic.atoms import PROPERTIES, Property, define
from eutectic.atoms.properties import BUILT_IN


@dataclass(frozen=True, kw_only=True)
class Card:
    """Description of a data set, stored with its data and shown to the user.

    Attributes:
        name: name on the command line.
        title: one line for a table.
        domain: area of chemistry ("metal catalysts", "oxide catalysts", "molecules", "reactions", …).
        properties: names of the labels.
        level_of_theory: exact level of theory of the labels ("GFN2-xTB", "PBE/def2-SVP", …).
        licence: SPDX identifier or free text.
        citation: reference to cite, one line.
        source: origin of the raw files, or how the data were generated.
        default_split: split used by default.
        notes: known problems, peculiarities, structures left out.
    """

    name: str
    title: str
    domain: str
    properties: tuple[str, ...]
    level_of_theory: str
    licence: str
    citation: str
    source: str
    default_split: str = "group"
    notes: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        unknown = set(self.properties) - set(PROPERTIES)
        if unknown:
            raise ValueError(f"card {self.name!r} names unknown properties {sorted(unknown)}")

    def property_table(self) -> tuple[Property, ...]:
        """Definitions of the declared properties."""
        return tuple(PROPERTIES[name] for name in self.properties)

    def to_dict(self) -> dict[str, object]:
        """JSON form, as written to stores (the level of theory is called "theory" there), with the definitions of
        properties that are not built in."""
        values = {"theory" if k == "level_of_theory" else k: v for k, v in asdict(self).items()}
        own = [p.to_dict() for p in self.property_table() if p.name not in BUILT_IN]
        return {**values, "definitions": own} if own else values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str = "card") -> Card:
        """Inverse of `to_dict` (JSON has no tuples); defines the properties that are not built in.

        Raises:
            EutecticError: a property is defined differently in this process, or its definition is invalid.
        """
        fields = {"level_of_theory" if k == "theory" else k: v for k, v in values.items()}
        for definition in fields.pop("definitions", ()):
            define(Property.from_dict(definition, where), where)
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})  # type: ignore[arg-type]

    def __reduce__(self) -> tuple[Callable[..., Card], tuple[dict[str, object]]]:
        # Unpickling in another process also defines the custom properties there.
        return type(self).from_dict, (self.to_dict(),)
