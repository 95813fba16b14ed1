"""What a data set says about itself."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from eutectic.atoms import PROPERTIES, Property


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
        """Plain JSON, as stores carry it (where the level of theory is called "theory")."""
        return {"theory" if k == "level_of_theory" else k: v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, object]) -> Card:
        """The inverse of `to_dict` (JSON has no tuples)."""
        named = {"level_of_theory" if k == "theory" else k: v for k, v in values.items()}
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in named.items()})  # type: ignore[arg-type]
