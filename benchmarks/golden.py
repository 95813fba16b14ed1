"""Generate small golden test cases of GemNet-OC with fairchem-core 1.10 (MIT licence).

    other/bin/python benchmarks/golden.py    # seconds

in the environment described in `against_fairchem.py --help`. torch-scatter and torch-sparse, which take long to
compile, may be omitted: replacements for their sums and sparse rows are defined here (`stand_in`).

Writes `tests/models/gemnet_oc/golden/`, which `test_golden.py` compares our model with. Each weight file contains a
small random fairchem model under the published names (`eutectic.models.gemnet_oc.published`), in float32. Each case
contains structures, the four graphs, and fairchem's float64 results with exactly these weights: bases, features after
the embedding, inside the first block and after every block, outputs, energies, direct forces, gradients.

fairchem hard-codes single precision in two places: when counting periodic images, and before its last layers. Here both
are double (`double_precision`). Nothing else is changed.

If the nearest neighbours of an atom tie at a cap, fairchem keeps some of them at random. No case has such a tie, which
is checked.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np
import torch
from ase import Atoms
from ase.build import add_adsorbate, fcc111, molecule
from safetensors.torch import save_file
from torch import Tensor

from against_fairchem import model_options
from eutectic.atoms import Structure
from eutectic.graph import GraphSettings
from eutectic.models.gemnet_oc.published import published_from_fairchem, published_names, settings_from_published

FOLDER = Path(__file__).parents[1] / "tests" / "models" / "gemnet_oc" / "golden"
CUTOFF = 12.0
"""Å, cutoff of all graphs and of fairchem's radial bases, as in a published checkpoint."""

DISTINCT: dict[str, object] = {
    "num_blocks": 2,
    "emb_size_atom": 12,
    "emb_size_edge": 16,
    "emb_size_trip_in": 7,
    "emb_size_trip_out": 8,
    "emb_size_quad_in": 5,
    "emb_size_quad_out": 6,
    "emb_size_aint_in": 9,
    "emb_size_aint_out": 10,
    "emb_size_rbf": 4,
    "emb_size_cbf": 3,
    "emb_size_sbf": 2,
    "num_radial": 11,
    "num_spherical": 4,
    "num_before_skip": 1,
    "num_after_skip": 2,
    "num_concat": 2,
    "num_atom": 2,
    "num_output_afteratom": 3,
    "num_atom_emb_layers": 1,
    "num_global_out_layers": 2,
    "num_elements": 30,
    "quad_interaction": True,
    "atom_edge_interaction": True,
    "edge_atom_interaction": True,
    "atom_interaction": True,
}
"""Published configuration; all sizes differ, so that mixing them up is detected."""

NARROW = {name: 3 for name in DISTINCT if name.startswith("emb_size")} | {
    "emb_size_atom": 8,
    "emb_size_edge": 8,
    "num_blocks": 1,
    "num_radial": 6,
    "num_elements": 8,
}
MODELS: dict[str, dict[str, object]] = {
    "distinct": DISTINCT,
    # For equal sizes, the published model omits layers.
    "omissions": DISTINCT | NARROW | {"num_output_afteratom": 0},
    # Numbers of layers that may be zero, and interactions that may be off.
    "sparse": DISTINCT
    | NARROW
    | {
        "num_before_skip": 0,
        "num_after_skip": 0,
        "num_concat": 0,
        "num_atom": 0,
        "num_output_afteratom": 1,
        "num_atom_emb_layers": 0,
        "num_global_out_layers": 0,
        "quad_interaction": False,
        "atom_edge_interaction": False,
    },
}
INSIDE = (
    "dense_ca",
    "trip_interaction",
    "quad_interaction",
    "atom_edge_interaction",
    "edge_atom_interaction",
    "atom_interaction",
    "atom_update",
    "concat_layer",
)
PUBLISHED_CAPS = {"main": 30, "atom_edge": 20, "quadruplet": 8, "atom_atom": 1000}


@dataclass(frozen=True)
class Case:
    """Input to fairchem.

    Attributes:
        structures: one batch.
        caps: incoming edges kept per atom in each graph.
        model: of `MODELS`.
        inside: whether intermediate results of the first block are kept.
    """

    structures: Callable[[], list[Structure]]
    caps: dict[str, int]
    model: str = "distinct"
    inside: bool = True

    @property
    def graph(self) -> GraphSettings:
        """With the published symmetry."""
        caps = {f"{name}_neighbours": self.caps[name] for name in ("atom_edge", "quadruplet", "atom_atom")}
        return GraphSettings(cutoff=CUTOFF, max_neighbours=self.caps["main"], symmetry="lower_source", **caps)


def structure(atoms: Atoms, tags: Sequence[int] | None = None) -> Structure:
    """Round to float32, so that saved and computed values agree."""
    atoms.positions = atoms.positions.astype(np.float32)
    atoms.set_cell(atoms.cell.array.astype(np.float32))
    atoms.set_tags([2] * len(atoms) if tags is None else tags)
    return Structure.from_ase(atoms)


def rattled_molecule(name: str, seed: int) -> Structure:
    """A molecule without symmetry."""
    atoms = molecule(name)
    atoms.rattle(0.1, seed=seed)
    return structure(atoms)


def slab() -> Structure:
    """Two layers of copper and a hydroxyl; no quadruplet goes along an edge between atoms of the lower layer."""
    atoms = fcc111("Cu", (2, 2, 2), vacuum=7.0)
    layer = atoms.get_tags()
    add_adsorbate(atoms, molecule("OH"), 1.9, "fcc")
    atoms.pbc = True
    atoms.rattle(0.15, seed=0)
    return structure(atoms, [0 if number == 2 else 1 for number in layer] + [2, 2])


def crystal() -> Structure:
    """Three atoms in a small triclinic cell: most neighbours are periodic images, many of the atom itself."""
    cell = [(3.38, -0.48, -0.25), (-0.42, 3.43, -0.41), (0.58, 0.18, 3.92)]
    positions = [(0.21, 0.39, 0.16), (1.57, 1.61, 0.53), (0.58, 2.04, 2.21)]
    return structure(Atoms("TiO2", positions=positions, cell=cell, pbc=True))


# The scale factors of a model are fitted on its first case.
CASES = {
    "slab": Case(lambda: [slab()], {"main": 7, "atom_edge": 5, "quadruplet": 3, "atom_atom": 36}),
    "molecule": Case(lambda: [rattled_molecule("CH3OH", 1)], PUBLISHED_CAPS),
    "molecules": Case(lambda: [rattled_molecule(n, i) for i, n in enumerate(("H2O", "H2CO", "NH3"))], PUBLISHED_CAPS),
    "crystal": Case(lambda: [crystal()], PUBLISHED_CAPS, inside=False),
    "omissions": Case(lambda: [rattled_molecule("H2O2", 7)], PUBLISHED_CAPS, "omissions"),
    "sparse": Case(lambda: [rattled_molecule("H2O2", 8)], PUBLISHED_CAPS, "sparse"),
}


class SparseRows:
    """The part of `torch_sparse.SparseTensor` that fairchem uses: entries by row, with duplicates allowed."""

    def __init__(self, row: Tensor, col: Tensor, value: Tensor, sparse_sizes: tuple[int, int]) -> None:
        order = torch.argsort(row * sparse_sizes[1] + col, stable=True)
        self.entries = row[order], col[order], value[order]
        self.sizes = sparse_sizes

    def __getitem__(self, rows: Tensor) -> SparseRows:
        row, col, value = self.entries
        bounds = torch.searchsorted(row, torch.arange(self.sizes[0] + 1))
        count = bounds.diff()[rows]
        new = torch.repeat_interleave(torch.arange(len(rows)), count)
        place = bounds[rows][new] + torch.arange(len(new)) - (count.cumsum(0) - count)[new]
        return SparseRows(new, col[place], value[place], (len(rows), self.sizes[1]))

    def coo(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.entries

    def sparse_sizes(self) -> tuple[int, int]:
        return self.sizes

    def set_value_(self, value: Tensor, layout: str) -> None:
        assert layout == "coo"
        self.entries = (*self.entries[:2], value)

    @property
    def storage(self) -> SparseRows:
        return self

    def row(self) -> Tensor:
        return self.entries[0]

    def value(self) -> Tensor:
        return self.entries[2]


def stand_in() -> None:
    """Replacements for torch_scatter and torch_sparse if not installed: the parts that fairchem's GemNet-OC uses."""

    def scatter(src: Tensor, index: Tensor, dim: int = 0, dim_size: int | None = None, reduce: str = "sum") -> Tensor:
        assert dim == 0
        assert reduce in ("sum", "add")
        size = int(index.max()) + 1 if dim_size is None else int(dim_size)
        return src.new_zeros(size, *src.shape[1:]).index_add(0, index, src)

    def segment_csr(src: Tensor, indptr: Tensor, reduce: str = "sum") -> Tensor:
        index = torch.repeat_interleave(torch.arange(len(indptr) - 1), indptr.diff())
        return scatter(src, index, dim_size=len(indptr) - 1, reduce=reduce)

    def segment_coo(src: Tensor, index: Tensor, dim_size: int | None = None) -> Tensor:
        return scatter(src, index, dim_size=dim_size)

    if find_spec("torch_scatter") is None:
        sums = ModuleType("torch_scatter")
        sums.__dict__.update(scatter=scatter, segment_coo=segment_coo, segment_csr=segment_csr)
        sys.modules["torch_scatter"] = sums
    if find_spec("torch_sparse") is None:
        sparse = ModuleType("torch_sparse")
        sparse.__dict__.update(SparseTensor=SparseRows)
        sys.modules["torch_sparse"] = sparse


@contextmanager
def double_precision() -> Iterator[None]:
    """Use float64 also where fairchem hard-codes float32."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with mock.patch.object(torch, "float", torch.float64), mock.patch.object(Tensor, "float", Tensor.double):
            yield
    finally:
        torch.set_default_dtype(before)


def fairchem_model(config: dict[str, object], graph: GraphSettings) -> Any:
    """fairchem's model with random weights that are exact in float32."""
    from fairchem.core.models.gemnet_oc.gemnet_oc import GemNetOC

    torch.manual_seed(0)
    model = GemNetOC(
        **config,
        **model_options(graph),
    ).eval()
    for value in model.state_dict().values():
        value.copy_(value.to(torch.float32))
    return model


def fit_scale_factors(model: Any, data: Any) -> None:
    """Fit scale factors as for training: otherwise quadruplets contribute little and their errors would not show."""
    from fairchem.core.modules.scaling import ScaleFactor

    def fit(factor: Any, given: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
        factor.scale_factor.fill_((named["ref"].var(0).mean() / given[0].var(0).mean()).sqrt().to(torch.float32))

    factors = [m for m in model.modules() if isinstance(m, ScaleFactor)]
    hooks = [factor.register_forward_pre_hook(fit, with_kwargs=True) for factor in factors]
    with torch.no_grad():
        model(data)
    for hook in hooks:
        hook.remove()


def fairchem_batch(structures: Sequence[Structure]) -> Any:
    """A molecule gets a cell large enough to have no effect."""
    from torch_geometric.data import Batch, Data

    return Batch.from_data_list(
        [
            Data(
                pos=torch.as_tensor(s.positions),
                cell=torch.as_tensor(s.cell if s.pbc.any() else 1000.0 * np.eye(3))[None],
                atomic_numbers=torch.as_tensor(s.numbers),
                tags=torch.as_tensor(s.tags),
                natoms=len(s),
            )
            for s in structures
        ]
    )


def check_no_ties(model: Any, data: Any, caps: dict[str, int]) -> None:
    """Check that neighbours on both sides of a cap are at different distances."""
    everything = model.generate_graph_dict(data, CUTOFF, 10**6)
    for atom in range(len(data.pos)):
        distance = everything["distance"][everything["edge_index"][1] == atom].sort().values
        for name, cap in caps.items():
            if len(distance) > cap and distance[cap] - distance[cap - 1] < 1e-3:
                raise SystemExit(f"atom {atom}: a tie at the cap {cap} of the {name} graph; choose another case")


def record(model: Any, data: Any, inside: bool) -> dict[str, Tensor]:
    """All arrays to compare, by name; edges in fairchem's order."""
    seen: dict[str, Tensor] = {}

    def watch(module: torch.nn.Module | None, *names: str) -> None:
        def keep(_module: torch.nn.Module, _given: object, result: Any) -> None:
            results = result if isinstance(result, tuple) else (result,)
            # A copy, because later operations may modify it in place.
            seen.update({name: value.detach().clone() for name, value in zip(names, results, strict=True)})

        if module is not None:
            module.register_forward_hook(keep)

    watch(model.atom_emb, "embedding.atoms")
    watch(model.edge_emb, "embedding.edges")
    for name in INSIDE if inside else ():
        watch(getattr(model.int_blocks[0], name), f"int_blocks.0.{name}")
    for i, block in enumerate(model.int_blocks):
        watch(block, f"int_blocks.{i}.atoms", f"int_blocks.{i}.edges")
    for i, block in enumerate(model.out_blocks):
        watch(block, f"out_blocks.{i}.atoms", f"out_blocks.{i}.edges")
    watch(model.out_mlp_E, "features.atoms")
    watch(model.out_mlp_F, "features.edges")

    data.pos.requires_grad_()
    prepared = model.get_graphs_and_indices(data)
    main, atom_atom, atom_edge, quadruplet, _, edge_edge, into_edge, into_atom, four = prepared
    model.get_graphs_and_indices = lambda _: prepared
    bases = model.get_bases(
        main, atom_atom, atom_edge, quadruplet, edge_edge, into_edge, into_atom, four, len(data.pos)
    )
    raw, update, output, *grouped = bases
    seen |= {"bases.raw": raw, "bases.update": update, "bases.output": output}
    for name, basis in zip(("quadruplet", "edge_edge", "atom_edge", "edge_atom"), grouped, strict=False):
        if basis:
            seen[f"bases.{name}.radial"] = basis["rad"]

    graphs = {"main": main, "atom_atom": atom_atom, "atom_edge": atom_edge, "quadruplet": quadruplet}
    for name, edges in graphs.items():
        if edges:
            # fairchem's offsets belong to the target; ours to the source.
            rows = torch.cat([edges["edge_index"].T, -edges["cell_offset"].long()], dim=1)
            seen[f"graph.{name}"] = rows
    seen["graph.distance"], seen["graph.direction"] = main["distance"], main["vector"]
    for name, triplets in {"edge_edge": edge_edge, "atom_edge": into_edge, "edge_atom": into_atom}.items():
        if triplets:
            seen[f"triplets.{name}"] = torch.stack([triplets["out"], triplets["in"]], dim=1)
    if four:
        inner = four["triplet_in"]
        columns = [four["out"], *(inner[end][four["trip_in_to_quad"]] for end in ("out", "in"))]
        seen["quadruplets"] = torch.stack(columns, dim=1)

    predicted = model(data)
    seen |= {"energy": predicted["energy"], "forces": predicted["forces"]}
    (gradient,) = torch.autograd.grad(predicted["energy"].sum(), data.pos, retain_graph=True)
    seen["energy_gradient"] = gradient
    (predicted["energy"].square().sum() + predicted["forces"].square().sum()).backward()
    return {name: value.detach() for name, value in seen.items()}


def weight_gradients(model: Any, config: dict[str, object]) -> Tensor:
    """(parameters, 2): norm of the gradient of Σ E² + Σ F², and its product with the weight; in published order."""
    settings = settings_from_published(config)
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    named = published_from_fairchem(gradients, settings)
    weights = published_from_fairchem(model.state_dict(), settings)
    both = [(named[n].norm(), (named[n] * weights[n]).sum()) for n in published_names(settings) if n in named]
    return torch.tensor(both)


def compact(value: Tensor) -> np.ndarray:
    """Convert integers to the narrowest dtype."""
    array = value.numpy()
    if array.dtype.kind == "f":
        return array
    return array.astype(np.int8 if np.abs(array).max(initial=0) < 128 else np.int16)


def main() -> None:
    """Write all files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="output folder (default: %(default)s)")
    folder: Path = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    logging.disable()
    torch.set_num_threads(1)
    stand_in()
    described: dict[str, object] = {}
    states: dict[str, dict[str, Tensor]] = {}
    for name, case in CASES.items():
        structures, config, graph = case.structures(), MODELS[case.model], case.graph
        settings = settings_from_published(config | {"absolute_rbf_cutoff": CUTOFF})
        with double_precision():
            model = fairchem_model(config, graph)
            if case.model not in states:
                fit_scale_factors(model, fairchem_batch(structures))
                states[case.model] = {n: v.clone() for n, v in model.state_dict().items()}
            model.load_state_dict(states[case.model])
            check_no_ties(model, fairchem_batch(structures), case.caps)
            arrays = record(model, fairchem_batch(structures), case.inside)
            arrays["weight_gradients"] = weight_gradients(model, config)
        inputs = {
            "numbers": np.concatenate([s.numbers for s in structures]).astype(np.int16),
            "positions": np.concatenate([s.positions for s in structures]),
            "tags": np.concatenate([s.tags for s in structures]).astype(np.int8),
            "n_atoms": np.array([len(s) for s in structures]),
            "cell": np.stack([s.cell for s in structures]),
            "pbc": np.stack([s.pbc for s in structures]),
        }
        np.savez_compressed(
            folder / f"case_{name}.npz",
            **{f"in.{n}": v for n, v in inputs.items()},
            **{n: compact(v) for n, v in arrays.items()},
        )
        described[name] = {"model": case.model, "graph": graph.model_dump(mode="json")}
    for name, state in states.items():
        settings = settings_from_published(MODELS[name])
        published = published_from_fairchem(state, settings)
        weights = {n: published[n] for n in published_names(settings)}
        weights |= {n: state[f"{n}.linear.weight"] for n in ("out_energy", "out_forces")}
        save_file({n: v.to(torch.float32) for n, v in weights.items()}, folder / f"weights_{name}.safetensors")
    about = {
        "made by": f"benchmarks/golden.py with fairchem-core {version('fairchem-core')}, PyTorch {torch.__version__}",
        "licence of fairchem-core": "MIT",
        "models": {n: c | {"absolute_rbf_cutoff": CUTOFF, "direct_forces": True} for n, c in MODELS.items()},
        "cases": described,
    }
    (folder / "golden.json").write_text(json.dumps(about, indent=1) + "\n")
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(f"{size / 1e3:.0f} kB in {folder}")


if __name__ == "__main__":
    main()
