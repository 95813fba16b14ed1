"""Parts of a model by name: what can be frozen, and have a learning rate of its own.

A backbone names its parts (`Backbone.parts`); `blocks`, `backbone` and `heads` are those of every model.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from eutectic.atoms import EutecticError, did_you_mean
from eutectic.models.backbone import Backbone

BLOCKS, BACKBONE, HEADS = "blocks", "backbone", "heads"
REST = "rest"
"""The part of a backbone's parameters that are in none of its parts."""


def part_names(backbone: Backbone) -> list[str]:
    """Every name of a part of a model with this backbone, from its input to its output, then those of several parts."""
    own = [name for name in backbone.parts if _has_parameters(backbone, name)]
    blocks = [BLOCKS] if any(_block_number(name) is not None for name in own) else []
    return [*own, *blocks, BACKBONE, HEADS]


def parts_named(backbone: Backbone, names: Iterable[str], where: str) -> tuple[str, ...]:
    """The parts of the backbone that some names stand for, in its order; `heads` where it is among them.

    Raises:
        EutecticError: a name that is not one of `part_names`; the error lists these, and the nearest.
    """
    known, own = part_names(backbone), [*backbone.parts, REST]
    found: set[str] = set()
    for name in names:
        if name not in known:
            raise EutecticError(
                where,
                f"{name!r}",
                f"parts of this {type(backbone).__name__}: {', '.join(known)}",
                did_you_mean(name, known, "name one of these"),
            )
        if name == BACKBONE:
            found |= set(own)
        elif name == BLOCKS:
            found |= {part for part in own if _block_number(part) is not None}
        else:
            found.add(name)
    return tuple(name for name in (*own, HEADS) if name in found)


def part_of(backbone: Backbone, parameter: str) -> str:
    """The part that a parameter of the backbone is in, by the parameter's name."""
    for part, beginnings in backbone.parts.items():
        if parameter.startswith(tuple(beginnings)):
            return part
    return REST


def depth(backbone: Backbone, part: str) -> int:
    """How many blocks lie between a part and the heads, itself included: 0 for the readout, 1 for the last block, and
    one more than the number of blocks for what comes before the first."""
    names = list(backbone.parts)
    numbers = {name: number for name in names if (number := _block_number(name)) is not None}
    if part in numbers:
        return len(numbers) - numbers[part]
    first = min((names.index(name) for name in numbers), default=0)
    return len(numbers) + 1 if part in names and names.index(part) < first else 0


def _has_parameters(backbone: Backbone, part: str) -> bool:
    return any(part_of(backbone, name) == part for name, _ in backbone.named_parameters())


def _block_number(part: str) -> int | None:
    found = re.fullmatch(r"block_(\d+)", part)
    return None if found is None else int(found[1])
