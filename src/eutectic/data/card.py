"""What a data set says about itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from eutectic.atoms import PROPERTIES, Property, define
from eutectic.atoms.properties import BUILT_IN


@dataclass(frozen=True, kw_only=True)
class Card:
    """A data set's identity, carried inside every store and shown to the user.

    Attributes:
        name: what the command line calls it.
        title: one line for a table.
        domain: which part of chemistry ("metal catalysts", "oxide catalysts", "molecules", "reactions", …).
        properties: names of the labels.
        level_of_theory: the level of theory of the labels, exactly ("GFN2-xTB", "PBE/def2-SVP", …).
        licence: SPDX identifier, or words.
        citation: who to cite, as one line.
        source: where the raw files come from, or what made them.
        default_split: name of the split used where none is asked for.
        notes: traps, quirks, what was left out.
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
        """The declared properties, whole."""
        return tuple(PROPERTIES[name] for name in self.properties)

    def to_dict(self) -> dict[str, object]:
        """Plain JSON, as stores carry it (where the level of theory is called "theory"), with the definitions of
        properties that are not built in."""
        values = {"theory" if k == "level_of_theory" else k: v for k, v in asdict(self).items()}
        own = [p.to_dict() for p in self.property_table() if p.name not in BUILT_IN]
        return {**values, "definitions": own} if own else values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str = "card") -> Card:
        """The inverse of `to_dict` (JSON has no tuples); defines the properties that are not built in.

        Raises:
            EutecticError: a property is defined otherwise in this process, or its definition cannot be read.
        """
        named = {"level_of_theory" if k == "theory" else k: v for k, v in values.items()}
        for definition in named.pop("definitions", ()):
            define(Property.from_dict(definition, where), where)
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in named.items()})  # type: ignore[arg-type]

    def __reduce__(self) -> tuple[Callable[..., Card], tuple[dict[str, object]]]:
        # Another process learns the definitions with the card.
        return type(self).from_dict, (self.to_dict(),)
