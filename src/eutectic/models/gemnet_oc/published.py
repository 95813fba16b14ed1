"""Conversion of published GemNet-OC weights and configurations.

`published_names` lists every entry of the published backbone in its original order, which is also the order of its
parameters and hence of the unnamed EMA weights in a released checkpoint. Four things do not map one to one:

- The published model has up to eight copies of the same radial basis; all map to the same two buffers here.
- `out_blocks.N.seq_energy_pre` is an alias of `out_blocks.N.layers` and is omitted here.
- A published model of some sizes has fewer layers than ours (`has_omissions`).
- A published scale factor of 0 means "not fitted", which is 1 here (see `from_published`).

fairchem's GemNet-OC, of which JMP's is a variant, has the same entries under other names (`fairchem_name`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from eutectic.models.gemnet_oc.settings import GemNetOCSettings

SETTINGS = {
    "num_blocks": "blocks",
    "emb_size_atom": "atom_width",
    "emb_size_edge": "edge_width",
    "emb_size_trip_in": "triplet_in",
    "emb_size_trip_out": "triplet_out",
    "emb_size_quad_in": "quadruplet_in",
    "emb_size_quad_out": "quadruplet_out",
    "emb_size_aint_in": "pair_in",
    "emb_size_aint_out": "pair_out",
    "emb_size_rbf": "radial_width",
    "emb_size_cbf": "circular_width",
    "emb_size_sbf": "spherical_width",
    "num_radial": "num_radial",
    "num_spherical": "num_spherical",
    "absolute_rbf_cutoff": "radial_cutoff",
    "num_before_skip": "residuals_before_skip",
    "num_after_skip": "residuals_after_skip",
    "num_concat": "residuals_concat",
    "num_atom": "residuals_atom",
    "num_output_afteratom": "residuals_output",
    "num_atom_emb_layers": "residuals_atom_skip",
    "num_global_out_layers": "residuals_readout",
    "quad_interaction": "quadruplet",
    "atom_edge_interaction": "atom_edge",
    "edge_atom_interaction": "edge_atom",
    "atom_interaction": "atom_atom",
    "num_elements": "num_elements",
    "direct_forces": "edge_features",
}
"""Published configuration → field of `GemNetOCSettings`; `published_omissions` follows from the sizes. `edge_dropout`
is omitted on purpose: a model built from a checkpoint's configuration would otherwise compensate for dropped edges in
fine-tuning, which drops none."""

EMBEDDING = "embedding.atom_embedding.weight"
"""Outside the backbone in the published model, part of the backbone here."""

SHARED = {
    "mlp_rbf_tint.linear.weight": "edge_edge_radial",
    "mlp_cbf_tint.weight": "edge_edge_angular",
    "mlp_rbf_qint.linear.weight": "quadruplet_radial",
    "mlp_cbf_qint.weight": "quadruplet_circular",
    "mlp_sbf_qint.weight": "quadruplet_spherical",
    "mlp_rbf_aeint.linear.weight": "atom_edge_radial",
    "mlp_cbf_aeint.weight": "atom_edge_angular",
    "mlp_rbf_eaint.linear.weight": "edge_atom_radial",
    "mlp_cbf_eaint.weight": "edge_atom_angular",
    "mlp_rbf_aint.weight": "atom_atom_radial",
    "mlp_rbf_h.linear.weight": "update_radial",
    "mlp_rbf_out.linear.weight": "output_radial",
}
"""Basis projections, each used once in every block: published name → name here, both relative to the bases."""


def shared_parameters(settings: GemNetOCSettings) -> dict[str, int]:
    """Parameter name → number of uses per forward pass. JMP divides the gradient of each by this number."""
    used = {ours for _, ours in _bases(settings)}
    return {
        f"bases.{name}": settings.blocks + (name == "output_radial")
        for name in SHARED.values()
        if f"bases.{name}" in used
    }


def settings_from_published(config: Mapping[str, object]) -> GemNetOCSettings:
    """Settings from a published backbone configuration; options other than sizes must be those of JMP.

    Raises:
        ValueError: an option that changes the model and is not supported here.
    """
    required: dict[str, object] = {
        "activation": "scaled_silu",
        "scale_basis": False,
        "unique_basis_per_layer": False,
        "learnable_rbf": False,
        "learnable_rbf_stds": False,
        "forces_coupled": False,
        "extensive": True,
    }
    required |= {
        "rbf": {"name": "gaussian"},
        "cbf": {"name": "spherical_harmonics"},
        "sbf": {"name": "legendre_outer"},
    }
    for name, value in required.items():
        if name in config and config[name] != value:
            raise ValueError(
                f"published GemNet-OC configuration, {name}: {config[name]!r} was given; expected {value!r}, the only "
                "supported value; use weights of JMP-S or JMP-L"
            )
    settings = GemNetOCSettings.model_validate(
        {ours: config[name] for name, ours in SETTINGS.items() if name in config}
    )
    return settings.model_copy(update={"published_omissions": has_omissions(settings)})


def has_omissions(settings: GemNetOCSettings) -> bool:
    """Whether a published model of these sizes omits layers: see `GemNetOCSettings.published_omissions`."""
    return settings.edge_width == settings.atom_width or settings.residuals_output == 0


def published_names(settings: GemNetOCSettings) -> dict[str, str]:
    """Published name → name here, in the published order. Several may share a name here (copies of the radial basis).

    Published names start with `backbone.` or are `EMBEDDING`; scale factors and radial buffers are included.
    """
    names = {EMBEDDING: "atom_embedding.weight"}
    names |= {f"backbone.{theirs}": ours for theirs, ours in _backbone(settings)}
    return names


def from_published(state: Mapping[str, Tensor], settings: GemNetOCSettings) -> dict[str, Tensor]:
    """Convert entries with published names to a state dict of `GemNetOC`; others (heads, aliases) are ignored.

    Raises:
        KeyError: an entry that the settings require is missing.
        ValueError: copies of the radial basis differ.
    """
    ours: dict[str, Tensor] = {}
    for theirs, name in published_names(settings).items():
        value = state[theirs]
        if name.startswith("bases.radial.") and name in ours and not torch.equal(ours[name], value):
            raise ValueError(
                f"published weights, {theirs}: differs from its other copies; expected one radial basis for all; "
                "this is not a JMP checkpoint"
            )
        if theirs.endswith("scale_factor"):
            value = torch.where(value == 0, torch.ones_like(value), value)
        ours[name] = value
    return ours


def fairchem_name(published: str) -> str:
    """Name in fairchem's GemNet-OC of an entry with a published name.

    fairchem has no `rbf.temps`: the width of its Gaussians is fixed.
    """
    if published == EMBEDDING:
        return "atom_emb.embeddings.weight"
    return published.removeprefix("backbone.").removeprefix("bases.").replace(".out_mlp.", ".")


def published_from_fairchem(state: Mapping[str, Tensor], settings: GemNetOCSettings) -> dict[str, Tensor]:
    """Entries of fairchem's GemNet-OC under their published names; those that the state lacks are left out."""
    published: dict[str, Tensor] = {}
    for name in published_names(settings):
        if name.endswith("rbf.temps"):
            centres = published.get(name.replace("temps", "offset"))
            if centres is not None:
                published[name] = torch.full_like(centres, 0.5 * (len(centres) - 1) ** 2)
        elif (theirs := fairchem_name(name)) in state:
            published[name] = state[theirs]
    return published


Names = Iterator[tuple[str, str]]


def _backbone(s: GemNetOCSettings) -> Names:
    yield from _bases(s)
    yield "bases.edge_emb.dense.linear.weight", "edge_embedding.dense.weight"
    for i in range(s.blocks):
        yield from _under(f"int_blocks.{i}.", f"blocks.{i}.", _block(s))
    for i in range(s.blocks + 1):
        yield from _under(f"out_blocks.{i}.", f"outputs.{i}.", _output(s))
    readouts = [("E", "atom")] + ([("F", "edge")] if s.edge_features else [])
    for theirs, ours in readouts:
        yield f"out_mlp_{theirs}.out_mlp.0.linear.weight", f"{ours}_readout.dense.weight"
        yield from _residuals(f"out_mlp_{theirs}.out_mlp", f"{ours}_readout.residuals", s.residuals_readout, start=1)


def _under(theirs: str, ours: str, names: Names) -> Names:
    for a, b in names:
        yield theirs + a, ours + b


def _residuals(theirs: str, ours: str, count: int, start: int = 0) -> Names:
    for i in range(count):
        for j, name in enumerate(("first", "second")):
            yield f"{theirs}.{i + start}.dense_mlp.{j}.linear.weight", f"{ours}.{i}.{name}.weight"


def _bases(s: GemNetOCSettings) -> Names:
    copies = ["radial_basis"]
    copies += ["cbf_basis_qint.radial_basis", "sbf_basis_qint.radial_basis"] if s.quadruplet else []
    copies += ["radial_basis_aeaint"] if s.atom_edge or s.edge_atom else []
    copies += ["cbf_basis_aeint.radial_basis"] if s.atom_edge else []
    copies += ["cbf_basis_eaint.radial_basis"] if s.edge_atom else []
    copies += ["radial_basis_aint"] if s.atom_atom else []
    copies += ["cbf_basis_tint.radial_basis"]
    for copy in copies:
        yield f"bases.{copy}.rbf.offset", "bases.radial.centres"
        yield f"bases.{copy}.rbf.temps", "bases.radial.sharpness"
    projections = ["mlp_rbf_qint.linear", "mlp_cbf_qint", "mlp_sbf_qint"] if s.quadruplet else []
    projections += ["mlp_rbf_aeint.linear", "mlp_cbf_aeint"] if s.atom_edge else []
    projections += ["mlp_rbf_eaint.linear", "mlp_cbf_eaint"] if s.edge_atom else []
    projections += ["mlp_rbf_aint"] if s.atom_atom else []
    projections += ["mlp_rbf_tint.linear", "mlp_cbf_tint", "mlp_rbf_h.linear", "mlp_rbf_out.linear"]
    for name in projections:
        yield f"bases.{name}.weight", f"bases.{SHARED[name + '.weight']}"


def _block(s: GemNetOCSettings) -> Names:
    def triplet(theirs: str, ours: str, symmetric: bool) -> Names:
        pairs = [
            ("dense_ba.linear.weight", "dense.weight"),
            ("mlp_rbf.linear.weight", "radial.weight"),
            ("scale_rbf.scale_factor", "scale_radial.value"),
            ("mlp_cbf.bilinear.linear.weight", "bilinear.weight"),
            ("scale_cbf_sum.scale_factor", "scale_sum.value"),
            ("down_projection.linear.weight", "down.weight"),
            ("up_projection_ca.linear.weight", "up.own.weight" if symmetric else "up.weight"),
        ]
        if symmetric:
            pairs.append(("up_projection_ac.linear.weight", "up.other.weight"))
        return _under(f"{theirs}.", f"{ours}.", iter(pairs))

    yield "dense_ca.linear.weight", "dense.weight"
    yield from triplet("trip_interaction", "edge_edge", symmetric=True)
    if s.quadruplet:
        for theirs, ours in (
            ("dense_db.linear.weight", "dense.weight"),
            ("mlp_rbf.linear.weight", "radial.weight"),
            ("scale_rbf.scale_factor", "scale_radial.value"),
            ("mlp_cbf.linear.weight", "circular.weight"),
            ("scale_cbf.scale_factor", "scale_circular.value"),
            ("mlp_sbf.bilinear.linear.weight", "bilinear.weight"),
            ("scale_sbf_sum.scale_factor", "scale_sum.value"),
            ("down_projection.linear.weight", "down.weight"),
            ("up_projection_ca.linear.weight", "up.own.weight"),
            ("up_projection_ac.linear.weight", "up.other.weight"),
        ):
            yield f"quad_interaction.{theirs}", f"quadruplet.{ours}"
    if s.atom_edge:
        yield from triplet("atom_edge_interaction", "atom_edge", symmetric=True)
    if s.edge_atom:
        yield from triplet("edge_atom_interaction", "edge_atom", symmetric=False)
    if s.atom_atom:
        yield "atom_interaction.bilinear.linear.weight", "atom_atom.bilinear.weight"
        yield "atom_interaction.scale_rbf_sum.scale_factor", "atom_atom.scale_sum.value"
        yield "atom_interaction.down_projection.linear.weight", "atom_atom.down.weight"
        yield "atom_interaction.up_projection.linear.weight", "atom_atom.up.weight"
    yield from _residuals("layers_before_skip", "before_skip", s.residuals_before_skip)
    yield from _residuals("layers_after_skip", "after_skip", s.residuals_after_skip)
    yield from _residuals("atom_emb_layers", "atom_residuals", s.residuals_atom_skip)
    yield from _under("atom_update.", "atom_update.", _atom_update(s))
    yield "concat_layer.dense.linear.weight", "concat.dense.weight"
    yield from _residuals("residual_m", "edge_residuals", s.residuals_concat)


def _atom_update(s: GemNetOCSettings) -> Names:
    yield "dense_rbf.linear.weight", "radial.weight"
    yield "scale_sum.scale_factor", "scale_sum.value"
    omitted = s.published_omissions and s.edge_width == s.atom_width
    if not omitted:
        yield "layers.0.linear.weight", "dense.weight"
    yield from _residuals("layers", "residuals", s.residuals_atom, start=0 if omitted else 1)


def _output(s: GemNetOCSettings) -> Names:
    yield from _atom_update(s)
    yield from _residuals("seq_energy2", "after", s.residuals_output)
    if s.edge_features:
        yield "scale_rbf_F.scale_factor", "scale_edge.value"
        yield from _residuals("seq_forces", "edge_residuals", s.residuals_atom)
        yield "dense_rbf_F.linear.weight", "edge_radial.weight"
