"""Settings of GemNet-OC."""

from __future__ import annotations

from pydantic import Field

from eutectic.graph.settings import LONGEST_CUTOFF
from eutectic.models.backbone import MAX_LAYERS, MAX_WIDTH, BackboneSettings


class GemNetOCSettings(BackboneSettings):
    """Sizes and options of the model; the defaults are those of JMP-S (Shoghi et al., ICLR 2024).

    `published.py` maps them to the names of the published configuration.
    """

    cutoff_setting = "radial_cutoff"
    blocks_setting = "blocks"
    # JMP's convention: the basis reaches zero at 12 Å, although the graphs of its molecules have a cutoff of 8 Å.
    cutoff_may_exceed_graph = True

    blocks: int = Field(
        default=4, ge=1, le=MAX_LAYERS, description="number of interaction blocks; there is one more output block"
    )
    atom_width: int = Field(default=256, ge=1, le=MAX_WIDTH, description="features of an atom")
    edge_width: int = Field(default=512, ge=1, le=MAX_WIDTH, description="features of an edge of the main graph")
    triplet_in: int = Field(default=64, ge=1, le=MAX_WIDTH, description="features passed along a triplet")
    triplet_out: int = Field(
        default=64, ge=1, le=MAX_WIDTH, description="features of an edge after its triplets are summed"
    )
    quadruplet_in: int = Field(default=32, ge=1, le=MAX_WIDTH, description="features passed along a quadruplet")
    quadruplet_out: int = Field(
        default=32, ge=1, le=MAX_WIDTH, description="features after an edge's quadruplets are summed"
    )
    pair_in: int = Field(default=64, ge=1, le=MAX_WIDTH, description="features passed from atom to atom")
    pair_out: int = Field(default=64, ge=1, le=MAX_WIDTH, description="features of an atom after its pairs are summed")
    radial_width: int = Field(default=16, ge=1, le=MAX_WIDTH, description="width of the projected radial basis")
    circular_width: int = Field(
        default=16, ge=1, le=MAX_WIDTH, description="width of the projected basis of distance and angle"
    )
    spherical_width: int = Field(
        default=32, ge=1, le=MAX_WIDTH, description="width of the projected basis of distance, angle and dihedral"
    )
    num_radial: int = Field(default=128, ge=2, le=MAX_WIDTH, description="number of Gaussians in the radial basis")
    num_spherical: int = Field(
        default=7, ge=1, le=100, description="number of Legendre polynomials per angle, degrees 0 to n-1"
    )
    radial_cutoff: float | None = Field(
        default=None,
        gt=0,
        le=LONGEST_CUTOFF,
        description="distance at which the envelope reaches zero, Å; default: the graph's cutoff. JMP uses 12 for all "
        "graphs, including those with a cutoff of 8 Å; if it exceeds the graph's cutoff, the energy jumps there",
    )
    envelope_exponent: int = Field(default=5, ge=1, le=100, description="exponent p of the polynomial envelope")
    dihedral_epsilon: float = Field(
        default=0.0,
        ge=0,
        description="smooths the dihedral angle, which is undefined if three of the atoms are collinear: adds epsilon² "
        "to sin²φ in its denominator. 0 is the published model (up to rounding); about 0.03 (two degrees) keeps "
        "gradient forces bounded",
    )
    residuals_before_skip: int = Field(
        default=2,
        ge=0,
        le=MAX_LAYERS,
        description="residual layers on edges after the interactions, before the skip connection",
    )
    residuals_after_skip: int = Field(
        default=2, ge=0, le=MAX_LAYERS, description="residual layers on edges after the skip connection"
    )
    residuals_concat: int = Field(
        default=1,
        ge=0,
        le=MAX_LAYERS,
        description="residual layers on edges after the update from their atoms; 4 in JMP-L",
    )
    residuals_atom: int = Field(
        default=3,
        ge=0,
        le=MAX_LAYERS,
        description="residual layers after the sum over edges, and in the edge branch of output blocks",
    )
    residuals_output: int = Field(
        default=3, ge=0, le=MAX_LAYERS, description="residual layers in the atom branch of an output block"
    )
    residuals_atom_skip: int = Field(
        default=2, ge=0, le=MAX_LAYERS, description="residual layers on atoms after the interactions"
    )
    residuals_readout: int = Field(
        default=2, ge=0, le=MAX_LAYERS, description="residual layers after the output blocks are combined"
    )
    quadruplet: bool = Field(default=True, description="use the quadruplet interaction")
    atom_edge: bool = Field(default=True, description="use the atom-to-edge interaction")
    edge_atom: bool = Field(default=True, description="use the edge-to-atom interaction")
    atom_atom: bool = Field(default=True, description="use the atom-to-atom interaction")
    num_elements: int = Field(default=120, ge=1, le=1000, description="rows of the embedding; row Z-1 is element Z")
    edge_features: bool = Field(
        default=True,
        description="compute edge features (`Features.edges`), which direct forces need; false makes a step cheaper",
    )
    edge_dropout: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="fraction of edges dropped when graphs are built for training (`build_graph`); in training mode, "
        "output blocks scale their sums over edges to compensate",
    )
    published_omissions: bool = Field(
        default=False,
        description="as the published model, omit the dense layer after the sum over edges if edge_width equals "
        "atom_width, and the atom features of an output block if residuals_output is 0; no effect for other sizes, "
        "such as those of JMP-S and JMP-L",
    )

    @property
    def edge_lists(self) -> tuple[str, ...]:
        """The edge lists of the enabled interactions."""
        used = {
            "atom_atom": self.atom_atom,
            "atom_edge": self.atom_edge or self.edge_atom,
            "quadruplet": self.quadruplet,
        }
        return ("main", *(name for name, on in used.items() if on))

    def in_training(self, edge_dropout: float) -> GemNetOCSettings:
        """The settings with `edge_dropout`, so that output blocks compensate for dropped edges."""
        return self.model_copy(update={"edge_dropout": edge_dropout}) if edge_dropout else self

    @classmethod
    def small(cls) -> GemNetOCSettings:
        """JMP-S, 38.8 million parameters (28.6 without edge features)."""
        return cls(radial_cutoff=12.0)

    @classmethod
    def large(cls) -> GemNetOCSettings:
        """JMP-L, 216.4 million parameters (160.6 without edge features)."""
        return cls(
            blocks=6,
            edge_width=1024,
            triplet_out=128,
            quadruplet_in=64,
            radial_width=32,
            spherical_width=64,
            residuals_concat=4,
            radial_cutoff=12.0,
        )

    @classmethod
    def tiny(cls, radial_cutoff: float | None = 6.0) -> GemNetOCSettings:
        """A laptop-sized model with all interactions, for graphs with a cutoff of about 6 Å and 8 neighbours."""
        return cls(
            blocks=2,
            atom_width=64,
            edge_width=64,
            triplet_in=16,
            triplet_out=16,
            quadruplet_in=16,
            quadruplet_out=16,
            pair_in=16,
            pair_out=16,
            radial_width=16,
            circular_width=8,
            spherical_width=8,
            num_radial=32,
            num_spherical=5,
            radial_cutoff=radial_cutoff,
            dihedral_epsilon=0.03,
            residuals_before_skip=1,
            residuals_after_skip=1,
            residuals_concat=1,
            residuals_atom=1,
            residuals_output=1,
            residuals_atom_skip=1,
            residuals_readout=1,
        )
