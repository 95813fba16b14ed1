"""Settings of GemNet-OC."""

from __future__ import annotations

from pydantic import Field

from eutectic.models.backbone import BackboneSettings


class GemNetOCSettings(BackboneSettings):
    """Every size of the model; the defaults are those of JMP-S (Shoghi et al., ICLR 2024).

    Names are those of what they size; `published.py` has the names of the published configuration.
    """

    cutoff_setting = "radial_cutoff"
    # JMP's convention: its basis reaches zero at 12 Å, and the graphs of its molecules end at 8 Å.
    cutoff_may_exceed_graph = True

    blocks: int = Field(default=4, ge=1, description="interaction blocks; one output block more")
    atom_width: int = Field(default=256, ge=1, description="features of an atom")
    edge_width: int = Field(default=512, ge=1, description="features of an edge of the main graph")
    triplet_in: int = Field(default=64, ge=1, description="features passed along a triplet")
    triplet_out: int = Field(default=64, ge=1, description="features of an edge after its triplets are summed")
    quadruplet_in: int = Field(default=32, ge=1, description="features passed along a quadruplet")
    quadruplet_out: int = Field(default=32, ge=1, description="features after an edge's quadruplets are summed")
    pair_in: int = Field(default=64, ge=1, description="features passed from atom to atom")
    pair_out: int = Field(default=64, ge=1, description="features of an atom after its pairs are summed")
    radial_width: int = Field(default=16, ge=1, description="projected radial basis")
    circular_width: int = Field(default=16, ge=1, description="projected basis of distance and angle")
    spherical_width: int = Field(default=32, ge=1, description="projected basis of distance, angle and dihedral")
    num_radial: int = Field(default=128, ge=2, description="Gaussians of the radial basis")
    num_spherical: int = Field(default=7, ge=1, description="Legendre polynomials per angle, degrees 0 to n-1")
    radial_cutoff: float | None = Field(
        default=None,
        gt=0,
        description="Å, where the envelope reaches zero; the graph's cutoff if not given. JMP has 12 for all its "
        "graphs, those of 8 Å too: a larger value than the graph's leaves a jump in the energy at the graph's cutoff",
    )
    envelope_exponent: int = Field(default=5, ge=1, description="p of the polynomial envelope")
    dihedral_epsilon: float = Field(
        default=0.0,
        ge=0,
        description="smooths the dihedral where three atoms are in line and it is not defined: sin²φ becomes "
        "sin²φ + floor² in its denominator. 0 is the published model (but for rounding); about 0.03 (two "
        "degrees) keeps gradient forces bounded",
    )
    residuals_before_skip: int = Field(default=2, ge=0)
    residuals_after_skip: int = Field(default=2, ge=0)
    residuals_concat: int = Field(default=1, ge=0, description="on an edge after it has seen its atoms; 4 in JMP-L")
    residuals_atom: int = Field(default=3, ge=0, description="after edges are summed to atoms; also the edge branch")
    residuals_output: int = Field(default=3, ge=0, description="of the atom branch of an output block")
    residuals_atom_skip: int = Field(default=2, ge=0, description="on an atom after its interactions")
    residuals_readout: int = Field(default=2, ge=0, description="after the output blocks are joined")
    quadruplet: bool = Field(default=True, description="quadruplet interaction on")
    atom_edge: bool = Field(default=True, description="atom-to-edge interaction on")
    edge_atom: bool = Field(default=True, description="edge-to-atom interaction on")
    atom_atom: bool = Field(default=True, description="atom-to-atom interaction on")
    num_elements: int = Field(default=120, ge=1, description="rows of the embedding; row Z-1 is element Z")
    edge_features: bool = Field(
        default=True,
        description="give `Features.edges`, which direct forces need; off saves that branch's cost",
    )
    edge_dropout: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="share of the edges that training drops when it builds graphs (`build_graph`); here it only "
        "makes up for them, in training mode, where edges are summed to atoms in output blocks",
    )
    published_omissions: bool = Field(
        default=False,
        description="leave out, as the published model does, the dense layer after edges are summed to atoms where "
        "edge_width equals atom_width, and an output block's atom features where residuals_output is 0; without "
        "effect for other sizes, JMP-S and JMP-L among them",
    )

    @property
    def edge_lists(self) -> tuple[str, ...]:
        """Those of the interactions that are on."""
        wanted = {
            "atom_atom": self.atom_atom,
            "atom_edge": self.atom_edge or self.edge_atom,
            "quadruplet": self.quadruplet,
        }
        return ("main", *(name for name, on in wanted.items() if on))

    def in_training(self, edge_dropout: float) -> GemNetOCSettings:
        """With `edge_dropout`, by which output blocks make up for the edges that are not there."""
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
        """A laptop-sized one with every kind of interaction on, for graphs of about 6 Å and 8 neighbours."""
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
