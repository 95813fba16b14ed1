"""Checkpoints in the layout of the original's jmp-s.pt and jmp-l.pt, of any size and with random weights.

Names, order and shapes are written down here from the rules of the published classes, not taken from
`eutectic.models.gemnet_oc.published`, which they test. `test_jmp` compares them with the published lists of JMP-S and
JMP-L where these are at hand.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Config = Mapping[str, Any]
Shape = tuple[int, ...]
Entries = Iterator[tuple[str, Shape]]
Change = Callable[[dict[str, Any]], None]

EMBEDDING = "embedding.atom_embedding.weight"
TASKS = ("oc20", "oc22", "ani1x", "transition1x")

SMALL: dict[str, Any] = {
    "num_blocks": 4,
    "emb_size_atom": 256,
    "emb_size_edge": 512,
    "emb_size_trip_in": 64,
    "emb_size_trip_out": 64,
    "emb_size_quad_in": 32,
    "emb_size_quad_out": 32,
    "emb_size_aint_in": 64,
    "emb_size_aint_out": 64,
    "emb_size_rbf": 16,
    "emb_size_cbf": 16,
    "emb_size_sbf": 32,
    "num_radial": 128,
    "num_spherical": 7,
    "absolute_rbf_cutoff": 12.0,
    "num_before_skip": 2,
    "num_after_skip": 2,
    "num_concat": 1,
    "num_atom": 3,
    "num_output_afteratom": 3,
    "num_atom_emb_layers": 2,
    "num_global_out_layers": 2,
    "quad_interaction": True,
    "atom_edge_interaction": True,
    "edge_atom_interaction": True,
    "atom_interaction": True,
    "num_elements": 120,
    "direct_forces": True,
}
"""Backbone configuration of JMP-S, under the published names."""

LARGE = SMALL | {
    "num_blocks": 6,
    "emb_size_edge": 1024,
    "emb_size_trip_out": 128,
    "emb_size_quad_in": 64,
    "emb_size_rbf": 32,
    "emb_size_sbf": 64,
    "num_concat": 4,
}
"""Of JMP-L."""

TINY = SMALL | {
    "num_blocks": 1,
    "emb_size_atom": 8,
    "emb_size_edge": 12,
    "emb_size_trip_in": 16,
    "emb_size_trip_out": 6,
    "emb_size_quad_in": 7,
    "emb_size_quad_out": 5,
    "emb_size_aint_in": 3,
    "emb_size_aint_out": 4,
    "emb_size_rbf": 9,
    "emb_size_cbf": 10,
    "emb_size_sbf": 11,
    "num_radial": 13,
    "num_spherical": 2,
    "num_before_skip": 1,
    "num_after_skip": 1,
    "num_atom": 2,
    "num_output_afteratom": 1,
    "num_atom_emb_layers": 1,
    "num_global_out_layers": 1,
    "num_elements": 20,
}
"""Widths are all different."""


def is_parameter(name: str) -> bool:
    """Whether an entry is one of those that averaged weights are kept of."""
    buffer = name.endswith(("rbf.offset", "rbf.temps", "scale_factor"))
    return not (buffer or ".seq_energy_pre." in name or name.startswith("task_steps."))


# --- names and shapes ------------------------------------------------------------------------------------------


def entries(config: Config, layers: int = 5, tasks: Sequence[str] = TASKS) -> dict[str, Shape]:
    """Name → shape of all entries of a checkpoint, in its order.

    Args:
        config: of the backbone, under the published names.
        layers: of each head.
        tasks: one energy head each, and one head of forces if the backbone has direct forces.
    """
    found = {EMBEDDING: (config["num_elements"], config["emb_size_atom"])}
    found |= {f"backbone.{name}": shape for name, shape in _backbone(config)}
    heads = {"energy": config["emb_size_atom"]}
    if config["direct_forces"]:
        heads["forces"] = config["emb_size_edge"]
    for kind, width in heads.items():
        for k in range(len(tasks)):
            for layer in range(layers):
                last = layer == layers - 1
                name = f"output.out_{kind}.{k}.{2 * layer}"
                found[f"{name}.weight"] = (1 if last else width, width)
                if not last:
                    found[f"{name}.bias"] = (width,)
    return found | {f"task_steps._module_dict._typed_moduledict_{task}.value": () for task in tasks}


def _under(prefix: str, entries: Entries) -> Entries:
    for name, shape in entries:
        yield prefix + name, shape


def _residuals(name: str, width: int, count: int, start: int = 0) -> Entries:
    for i in range(start, start + count):
        for j in range(2):
            yield f"{name}.{i}.dense_mlp.{j}.linear.weight", (width, width)


def _mlp(name: str, width_in: int, width: int, count: int) -> Entries:
    """Layers that end in residual ones; the first only changes the width, and is not there if that stays."""
    if width_in != width:
        yield f"{name}.0.linear.weight", (width, width_in)
    yield from _residuals(name, width, count, start=int(width_in != width))


def _backbone(c: Config) -> Entries:
    a, e, k, f = (c[name] for name in ("emb_size_atom", "emb_size_edge", "num_radial", "num_spherical"))
    r, circular, spherical = (c[f"emb_size_{basis}"] for basis in ("rbf", "cbf", "sbf"))
    quadruplet, atom_edge, edge_atom, atom_atom = (
        c[f"{kind}_interaction"] for kind in ("quad", "atom_edge", "edge_atom", "atom")
    )
    copies = {
        "radial_basis": True,
        "cbf_basis_qint.radial_basis": quadruplet,
        "sbf_basis_qint.radial_basis": quadruplet,
        "radial_basis_aeaint": atom_edge or edge_atom,
        "cbf_basis_aeint.radial_basis": atom_edge,
        "cbf_basis_eaint.radial_basis": edge_atom,
        "radial_basis_aint": atom_atom,
        "cbf_basis_tint.radial_basis": True,
    }
    for copy, there in copies.items():
        if there:
            yield f"bases.{copy}.rbf.offset", (k,)
            yield f"bases.{copy}.rbf.temps", (k,)
    if quadruplet:
        yield "bases.mlp_rbf_qint.linear.weight", (r, k)
        yield "bases.mlp_cbf_qint.weight", (k, f, circular)
        yield "bases.mlp_sbf_qint.weight", (k, f * f, spherical)
    for there, name in ((atom_edge, "aeint"), (edge_atom, "eaint")):
        if there:
            yield f"bases.mlp_rbf_{name}.linear.weight", (r, k)
            yield f"bases.mlp_cbf_{name}.weight", (k, f, circular)
    if atom_atom:
        yield "bases.mlp_rbf_aint.weight", (r, k)
    yield "bases.mlp_rbf_tint.linear.weight", (r, k)
    yield "bases.mlp_cbf_tint.weight", (k, f, circular)
    yield "bases.mlp_rbf_h.linear.weight", (r, k)
    yield "bases.mlp_rbf_out.linear.weight", (r, k)
    yield "bases.edge_emb.dense.linear.weight", (e, 2 * a + k)
    for i in range(c["num_blocks"]):
        yield from _under(f"int_blocks.{i}.", _interaction_block(c))
    for i in range(c["num_blocks"] + 1):
        yield from _under(f"out_blocks.{i}.", _output_block(c))
    for part, width in (("E", a), ("F", e)):
        if part == "E" or c["direct_forces"]:
            yield f"out_mlp_{part}.out_mlp.0.linear.weight", (width, (c["num_blocks"] + 1) * width)
            yield from _residuals(f"out_mlp_{part}.out_mlp", width, c["num_global_out_layers"], start=1)


def _triplets(c: Config, width_in: int, width_out: int, both_ways: bool) -> Entries:
    passed, summed, circular = c["emb_size_trip_in"], c["emb_size_trip_out"], c["emb_size_cbf"]
    yield "dense_ba.linear.weight", (width_in, width_in)
    yield "mlp_rbf.linear.weight", (width_in, c["emb_size_rbf"])
    yield "scale_rbf.scale_factor", ()
    yield "mlp_cbf.bilinear.linear.weight", (summed, circular * passed)
    yield "scale_cbf_sum.scale_factor", ()
    yield "down_projection.linear.weight", (passed, width_in)
    yield "up_projection_ca.linear.weight", (width_out, summed)
    if both_ways:
        yield "up_projection_ac.linear.weight", (width_out, summed)


def _quadruplets(c: Config) -> Entries:
    e, passed, summed = c["emb_size_edge"], c["emb_size_quad_in"], c["emb_size_quad_out"]
    yield "dense_db.linear.weight", (e, e)
    yield "mlp_rbf.linear.weight", (e, c["emb_size_rbf"])
    yield "scale_rbf.scale_factor", ()
    yield "mlp_cbf.linear.weight", (passed, c["emb_size_cbf"])
    yield "scale_cbf.scale_factor", ()
    yield "mlp_sbf.bilinear.linear.weight", (summed, c["emb_size_sbf"] * passed)
    yield "scale_sbf_sum.scale_factor", ()
    yield "down_projection.linear.weight", (passed, e)
    yield "up_projection_ca.linear.weight", (e, summed)
    yield "up_projection_ac.linear.weight", (e, summed)


def _interaction_block(c: Config) -> Entries:
    a, e, pair = c["emb_size_atom"], c["emb_size_edge"], c["emb_size_aint_in"]
    yield "dense_ca.linear.weight", (e, e)
    yield from _under("trip_interaction.", _triplets(c, e, e, both_ways=True))
    if c["quad_interaction"]:
        yield from _under("quad_interaction.", _quadruplets(c))
    if c["atom_edge_interaction"]:
        yield from _under("atom_edge_interaction.", _triplets(c, a, e, both_ways=True))
    if c["edge_atom_interaction"]:
        yield from _under("edge_atom_interaction.", _triplets(c, e, a, both_ways=False))
    if c["atom_interaction"]:
        yield "atom_interaction.bilinear.linear.weight", (c["emb_size_aint_out"], c["emb_size_rbf"] * pair)
        yield "atom_interaction.scale_rbf_sum.scale_factor", ()
        yield "atom_interaction.down_projection.linear.weight", (pair, a)
        yield "atom_interaction.up_projection.linear.weight", (a, c["emb_size_aint_out"])
    yield from _residuals("layers_before_skip", e, c["num_before_skip"])
    yield from _residuals("layers_after_skip", e, c["num_after_skip"])
    yield from _residuals("atom_emb_layers", a, c["num_atom_emb_layers"])
    yield "atom_update.dense_rbf.linear.weight", (e, c["emb_size_rbf"])
    yield "atom_update.scale_sum.scale_factor", ()
    yield from _mlp("atom_update.layers", e, a, c["num_atom"])
    yield "concat_layer.dense.linear.weight", (e, 2 * a + e)
    yield from _residuals("residual_m", e, c["num_concat"])


def _output_block(c: Config) -> Entries:
    a, e = c["emb_size_atom"], c["emb_size_edge"]
    yield "dense_rbf.linear.weight", (e, c["emb_size_rbf"])
    yield "scale_sum.scale_factor", ()
    # One list of layers under two names.
    yield from _mlp("layers", e, a, c["num_atom"])
    yield from _mlp("seq_energy_pre", e, a, c["num_atom"])
    yield from _mlp("seq_energy2", a, a, c["num_output_afteratom"])
    if c["direct_forces"]:
        yield "scale_rbf_F.scale_factor", ()
        yield from _mlp("seq_forces", e, e, c["num_atom"])
        yield "dense_rbf_F.linear.weight", (e, c["emb_size_rbf"])


# --- contents --------------------------------------------------------------------------------------------------


def random_state(shapes: Mapping[str, Shape], seed: int) -> OrderedDict[str, Tensor]:
    """A `state_dict` with these entries: one radial basis, layers under both their names, factors of 1.5."""
    generator = torch.Generator().manual_seed(seed)
    state: OrderedDict[str, Tensor] = OrderedDict()
    for name, shape in shapes.items():
        if name.endswith("rbf.offset"):
            state[name] = torch.linspace(0, 1, shape[0])
        elif name.endswith("rbf.temps"):
            state[name] = torch.full(shape, 0.5 * (shape[0] - 1) ** 2)
        elif name.endswith("scale_factor"):
            state[name] = torch.tensor(1.5)
        elif name.startswith("task_steps."):
            state[name] = torch.tensor(7)
        elif ".seq_energy_pre." in name:
            state[name] = state[name.replace(".seq_energy_pre.", ".layers.")]
        else:
            fan_in = 1 if len(shape) < 2 or name == EMBEDDING else torch.Size(shape[1:]).numel()
            state[name] = torch.randn(shape, generator=generator) / fan_in**0.5
    return state


def file_content(
    raw: Mapping[str, Tensor], averaged: Mapping[str, Tensor], change: Change | None = None
) -> dict[str, Any]:
    """What a file holds: raw weights by name, averaged ones (those of the parameters) by their order alone."""
    whole: dict[str, Any] = {
        "epoch": 1,
        "global_step": 1000,
        "state_dict": raw,
        "optimizer_states": [{"opt": {}, "ema": tuple(v for k, v in averaged.items() if is_parameter(k))}],
        "hyper_parameters": {},
    }
    if change is not None:
        change(whole)
    return whole


def write_published(path: Path, config: Config = TINY, *, layers: int = 3, change: Change | None = None) -> Path:
    """A file with the random weights of seed 0, and those of seed 1 as their moving average."""
    shapes = entries(config, layers)
    torch.save(file_content(random_state(shapes, 0), random_state(shapes, 1), change), path)
    return path
