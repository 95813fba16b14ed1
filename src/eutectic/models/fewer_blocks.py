"""Drop the last blocks of a trained backbone."""

from __future__ import annotations

from typing import cast

from torch import nn

from eutectic.atoms import EutecticError
from eutectic.models.backbone import Backbone, BackboneSettings


def number_of_blocks(settings: BackboneSettings) -> int | None:
    """The number of blocks of a backbone; None if blocks cannot be dropped."""
    return None if settings.blocks_setting is None else int(getattr(settings, settings.blocks_setting))


def fewer_blocks(settings: BackboneSettings, keep: int, where: str) -> BackboneSettings:
    """The settings of the backbone with its first blocks only.

    Args:
        settings: settings of the full backbone.
        keep: number of blocks to keep.
        where: location given in the error.

    Raises:
        EutecticError: it has fewer blocks, or its blocks cannot be dropped.
    """
    n = number_of_blocks(settings)
    if n is None:
        raise EutecticError(
            where,
            f"{keep} blocks of a {type(settings).__name__.removesuffix('Settings')}",
            "a backbone whose last blocks can be dropped (see `BackboneSettings.blocks_setting`): gemnet_oc, gotennet, "
            "painn",
            "omit it, or start from another model",
        )
    if not 1 <= keep <= n:
        raise EutecticError(
            where,
            f"{keep}, for a model with {n} {'block' if n == 1 else 'blocks'}",
            f"a number from 1 to {n}",
            f"keep {max(1, n - 1)}, or omit it to keep all",
        )
    return settings.model_copy(update={str(settings.blocks_setting): keep})


def load_fewer_blocks(small: Backbone, full: Backbone) -> None:
    """Load the weights of the full backbone into one with fewer blocks.

    Weights that the small one lacks are dropped. If a layer reads the concatenated features of all blocks (GemNet-OC's
    readout), only the columns of the remaining blocks are kept, as if the features of a dropped block were zero.
    """
    source = cast(nn.Module, full).state_dict()
    target = cast(nn.Module, small).state_dict()
    kept = {name: source[name][tuple(slice(n) for n in value.shape)].clone() for name, value in target.items()}
    cast(nn.Module, small).load_state_dict(kept)
