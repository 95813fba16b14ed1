"""A trained backbone without its last blocks."""

from __future__ import annotations

from typing import cast

from torch import nn

from eutectic.atoms import EutecticError
from eutectic.models.backbone import Backbone, BackboneSettings


def number_of_blocks(settings: BackboneSettings) -> int | None:
    """The number of blocks of a backbone; None where they cannot be left out."""
    return None if settings.blocks_setting is None else int(getattr(settings, settings.blocks_setting))


def fewer_blocks(settings: BackboneSettings, keep: int, where: str) -> BackboneSettings:
    """The settings of the backbone with its first blocks only.

    Args:
        settings: of the whole backbone.
        keep: number of blocks.
        where: named in the error.

    Raises:
        EutecticError: it has fewer blocks, or blocks that cannot be left out.
    """
    n = number_of_blocks(settings)
    if n is None:
        raise EutecticError(
            where,
            f"{keep} blocks of a {type(settings).__name__.removesuffix('Settings')}",
            "a backbone whose last blocks can be left out (`BackboneSettings.blocks_setting`): gemnet_oc, gotennet, "
            "painn",
            "leave it out, or start from another model",
        )
    if not 1 <= keep <= n:
        raise EutecticError(
            where,
            f"{keep}, of a model with {n} {'block' if n == 1 else 'blocks'}",
            f"a number from 1 to {n}",
            f"keep {max(1, n - 1)}, or leave it out to keep all",
        )
    return settings.model_copy(update={str(settings.blocks_setting): keep})


def load_fewer_blocks(small: Backbone, whole: Backbone) -> None:
    """Give a backbone with fewer blocks the weights of the whole one.

    What the small one does not have is dropped. Where a layer reads the features of all blocks side by side
    (GemNet-OC's readout), the columns of the blocks that are left are kept: features of a dropped block count as zero.
    """
    theirs = cast(nn.Module, whole).state_dict()
    mine = cast(nn.Module, small).state_dict()
    kept = {name: theirs[name][tuple(slice(n) for n in value.shape)].clone() for name, value in mine.items()}
    cast(nn.Module, small).load_state_dict(kept)
