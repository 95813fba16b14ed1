"""Named parts of a model, which can be frozen or have their own learning rate.

A backbone names its parts (`Backbone.parts`); `blocks`, `backbone` and `heads` exist in every model.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from eutectic.atoms import EutecticError, did_you_mean
from eutectic.models.backbone import Backbone

BLOCKS, BACKBONE, HEADS = "blocks", "backbone", "heads"
REST = "rest"
"""Pseudo-part for the backbone's parameters that belong to no part."""


def part_names(backbone: Backbone) -> list[str]:
    """All part names of a model with this backbone, from input to output, then the names that cover several parts."""
    own = [name for name in backbone.parts if _has_parameters(backbone, name)]
    blocks = [BLOCKS] if any(_block_number(name) is not None for name in own) else []
    return [*own, *blocks, BACKBONE, HEADS]


def parts_named(backbone: Backbone, names: Iterable[str], where: str) -> tuple[str, ...]:
    """Expand names into parts of the backbone, in its order, followed by `heads` if listed.

    Raises:
        EutecticError: a name that is not in `part_names`; the error lists these and suggests the nearest.
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
    """The part to which a parameter of the backbone belongs, by the parameter's name."""
    for part, beginnings in backbone.parts.items():
        if parameter.startswith(tuple(beginnings)):
            return part
    return REST


def depth(backbone: Backbone, part: str) -> int:
    """Number of blocks from a part to the heads, including itself: 0 for the readout, 1 for the last block, one more
    than the number of blocks for parts before the first block."""
    names = list(backbone.parts)
    numbers = {name: number for name in names if (number := _block_number(name)) is not None}
    if part in numbers:
        return len(numbers) - numbers[part]
    first = min((names.index(name) for name in numbers), default=0)
    return len(numbers) + 1 if part in names and names.index(part) < first else 0


def _has_parameters(backbone: Backbone, part: str) -> bool:
    return any(part_of(backbone, name) == part for name, _ in backbone.named_parameters())


def _block_number(part: str) -> int | None:
    match = re.fullmatch(r"block_(\d+)", part)
    return None if match is None else int(match[1])
