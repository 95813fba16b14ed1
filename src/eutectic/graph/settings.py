"""Settings of graphs: cutoff, caps and the rule for the main graph."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

LONGEST_CUTOFF = 100.0
"""Å. Ten times what models use: a sphere of this radius holds half a million atoms."""

MOST_NEIGHBOURS = 1_000_000

SMOOTH_NEIGHBOURS, SMOOTH_WIDTH = 12, 0.5
"""Number of neighbours and width (Å) of the smooth cap that replaces a hard cap of fewer neighbours."""


class GraphSettings(BaseModel):
    """Cutoff and neighbour caps. Saved with a model, which is valid only for the graphs it was trained on.

    The caps of the three secondary graphs follow from `max_neighbours` (k) unless given: 20k/30, 8k/30 and
    1000k/30, truncated (the ratios of JMP, Shoghi et al. 2024, for k = 30, 100, 10 and 5).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    cutoff: float = Field(default=12.0, gt=0, le=LONGEST_CUTOFF, description="maximum edge length, Å")
    max_neighbours: int = Field(
        default=30, ge=1, le=MOST_NEIGHBOURS, description="main graph: nearest incoming edges kept per atom"
    )
    atom_edge_neighbours: int | None = Field(
        default=None, ge=1, le=MOST_NEIGHBOURS, description="atom-edge graph; 20k/30 if not given"
    )
    quadruplet_neighbours: int | None = Field(
        default=None, ge=1, le=MOST_NEIGHBOURS, description="quadruplet graph; 8k/30 if not given"
    )
    atom_atom_neighbours: int | None = Field(
        default=None, ge=1, le=MOST_NEIGHBOURS, description="atom-atom graph; 1000k/30 if not given"
    )
    quadruplet_tags: tuple[int, ...] = Field(
        default=(1, 2),
        description="a quadruplet edge requires one of these tags on its source or target atom",
    )
    symmetry: Literal["union", "lower_source"] = Field(
        default="union",
        description="main graph: 'union' keeps a pair if either atom is among the other's nearest neighbours, "
        "independent of the atom order; 'lower_source' is the published rule, which drops pairs found only from the "
        "atom with the lower index",
    )

    smooth_cap: float = Field(
        default=0.0,
        ge=0,
        description="width, Å, over which edges fade out before the end of an atom's list, where their weights sum to "
        "half a neighbour less than the cap, or before the cutoff; energy and forces are then continuous when "
        "neighbours swap. 0 is the published hard cap",
    )

    @model_validator(mode="after")
    def _smooth(self) -> GraphSettings:
        if self.smooth_cap and self.symmetry != "union":
            raise ValueError("smooth_cap needs symmetry 'union': 'lower_source' drops whole pairs when neighbours swap")
        return self

    def for_derivatives(self) -> GraphSettings:
        """These settings, adapted to forces that are derivatives of the energy: without jumps when neighbours swap.

        A hard cap below 12 neighbours becomes a smooth cap of 12 that fades out over 0.5 Å. This takes a fifth more
        time; energy errors are between half as large and a tenth larger, force errors up to a tenth smaller
        (docs/log.md). Larger hard caps, and those with the published symmetry rule, are kept.
        """
        if self.smooth_cap or self.symmetry != "union" or self.max_neighbours >= SMOOTH_NEIGHBOURS:
            return self
        return self.model_copy(update={"max_neighbours": SMOOTH_NEIGHBOURS, "smooth_cap": SMOOTH_WIDTH})

    @property
    def caps(self) -> dict[str, int]:
        """Graph name → incoming edges kept per atom."""
        k = self.max_neighbours

        def given(cap: int | None, ratio: int) -> int:
            return max(1, ratio * k // 30) if cap is None else cap

        return {
            "main": k,
            "atom_edge": given(self.atom_edge_neighbours, 20),
            "quadruplet": given(self.quadruplet_neighbours, 8),
            "atom_atom": given(self.atom_atom_neighbours, 1000),
        }
