"""Generate small checkpoints in fairchem's layout, with what fairchem-core 1.10 (MIT licence) predicts from them.

    other/bin/python benchmarks/golden_checkpoints.py [--oc20 FILE]     # a minute
    other/bin/python benchmarks/golden_checkpoints.py --published FILE  # compare models of the published sizes; minutes

in the environment described in `against_fairchem.py --help`; see `golden.py` for what may be omitted.

Writes `tests/checkpoints/golden_fairchem/`, which `test_fairchem.py` compares with. The options of the models are those
of fairchem's configurations (`configs/s2ef/all/gemnet/gemnet-oc.yml`, `gemnet-oc-large.yml`,
`configs/oc22/s2ef/gemnet-oc/gemnet_oc_oc20_oc22.yml`), with narrower layers; weights are random, scale factors fitted.
The checkpoints differ in where they have scale factors, averaged weights and normalisers. fairchem reads them with its
own functions and computes in float64 (`golden.double_precision`).

If the nearest neighbours of an atom tie at a cap, fairchem keeps some of them at random, and all are kept here. The
golden structures are rattled and checked to have no ties. With `--oc20`, two frames of a file of OC20's S2EF are
predicted too, without being stored. In these frames images of an atom tie, so fairchem's rule is replaced by ours;
and they are rattled by 0.01 Å, since fairchem's dihedral angle for three collinear atoms is rounding noise.

With `--published`, models of the published sizes predict initial structures of OC20 (its IS2RE files), here and in
fairchem, in the same way: in float64 and, as both do by default, in float32 with fairchem's calculator. The effects of
fairchem's own rule for ties and of collinear atoms are printed too.
"""

from __future__ import annotations

import argparse
import json
import logging
import lzma
import tempfile
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import scipy.special
import torch
from ase.build import add_adsorbate, fcc111, hcp0001, molecule
from torch import Tensor

from eutectic.atoms import Structure
from eutectic.checkpoints.fairchem import OC20_STATISTICS, read_fairchem_checkpoint
from eutectic.checkpoints.model import TrainedModel
from eutectic.data.datasets import oc20
from eutectic.predict.prediction import predict
from golden import (
    PUBLISHED_CAPS,
    check_no_ties,
    double_precision,
    fairchem_batch,
    fit_scale_factors,
    stand_in,
    structure,
)

FOLDER = Path(__file__).parents[1] / "tests" / "checkpoints" / "golden_fairchem"

BASE: dict[str, Any] = {
    "num_spherical": 7,
    "num_radial": 128,
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
    "num_before_skip": 2,
    "num_after_skip": 2,
    "num_concat": 1,
    "num_atom": 3,
    "num_output_afteratom": 3,
    "cutoff": 12.0,
    "cutoff_qint": 12.0,
    "cutoff_aeaint": 12.0,
    "cutoff_aint": 12.0,
    "max_neighbors": 30,
    "max_neighbors_qint": 8,
    "max_neighbors_aeaint": 20,
    "max_neighbors_aint": 1000,
    "rbf": {"name": "gaussian"},
    "envelope": {"name": "polynomial", "exponent": 5},
    "cbf": {"name": "spherical_harmonics"},
    "sbf": {"name": "legendre_outer"},
    "extensive": True,
    "output_init": "HeOrthogonal",
    "activation": "silu",
    "regress_forces": True,
    "direct_forces": True,
    "forces_coupled": False,
    "quad_interaction": True,
    "atom_edge_interaction": True,
    "edge_atom_interaction": True,
    "atom_interaction": True,
    "num_atom_emb_layers": 2,
    "num_global_out_layers": 2,
    "qint_tags": [1, 2],
}
"""gemnet-oc.yml; OC22's gemnet_oc_oc20_oc22.yml adds `otf_graph`."""

LARGE = BASE | {
    "num_blocks": 6,
    "emb_size_edge": 1024,
    "emb_size_trip_out": 128,
    "emb_size_quad_in": 64,
    "emb_size_rbf": 32,
    "emb_size_sbf": 64,
    "num_concat": 4,
}
"""gemnet-oc-large.yml."""

NARROW = {
    "num_radial": 16,
    "emb_size_atom": 5,
    "emb_size_edge": 7,
    "emb_size_trip_in": 4,
    "emb_size_trip_out": 3,
    "emb_size_quad_in": 3,
    "emb_size_quad_out": 2,
    "emb_size_aint_in": 5,
    "emb_size_aint_out": 4,
    "emb_size_rbf": 3,
    "emb_size_cbf": 2,
    "emb_size_sbf": 2,
}
OC20_TASK = {"dataset": "trajectory_lmdb", "train_on_free_atoms": True}
OC20_DATASET = {
    "src": "data/s2ef/all/train/",
    "normalize_labels": True,
    "target_mean": OC20_STATISTICS[0],
    "target_std": OC20_STATISTICS[1],
    "grad_target_mean": 0.0,
    "grad_target_std": OC20_STATISTICS[1],
}
OC22_TASK = {"dataset": "oc22_lmdb", "train_on_free_atoms": True, "prediction_dtype": "float32"}
OC22_DATASET = {"src": "data/oc20+oc22/s2ef/train", "normalize_labels": False, "oc20_ref": "oc20_ref.pkl"}
SCALE = ".scale_factor"


def structures() -> list[Structure]:
    """Two small surfaces with adsorbates."""
    copper = fcc111("Cu", (3, 3, 2), vacuum=7.0)
    add_adsorbate(copper, molecule("OH"), 1.9, "fcc")
    alloy = hcp0001("Ru", (3, 3, 2), vacuum=6.0)
    add_adsorbate(alloy, molecule("CH3"), 2.0, "bridge")
    alloy.numbers[::3] = 81
    found = []
    for seed, atoms in enumerate((copper, alloy)):
        tags = [0 if tag == 2 else 1 if tag == 1 else 2 for tag in atoms.get_tags()]
        atoms.pbc = True
        atoms.rattle(0.15, seed=seed)
        found.append(structure(atoms, tags))
    return found


def content_of(name: str, options: dict[str, Any], fitting: Sequence[Structure], seed: int) -> dict[str, Any]:
    """Content of a checkpoint of random weights: "oc20" as in the early files, "oc22" as in one to resume from."""
    from fairchem.core.models.gemnet_oc.gemnet_oc import GemNetOC
    from fairchem.core.modules.exponential_moving_average import ExponentialMovingAverage

    torch.manual_seed(seed)
    model = GemNetOC(**options).eval()
    fit_scale_factors(model, fairchem_batch(fitting))
    state = OrderedDict((n, v.to(torch.float32)) for n, v in model.state_dict().items())
    config: dict[str, Any] = {"model": "gemnet_oc", "model_attributes": options, "optim": {"ema_decay": 0.999}}
    common = {"epoch": 3.5, "step": 1000, "amp": None, "val_metrics": {"forces_mae": {"metric": 0.02}}}
    if name == "oc20":
        scales = {n.removesuffix(SCALE): v for n, v in state.items() if n.endswith(SCALE)}
        statistics = {
            "target": {"mean": torch.tensor(OC20_STATISTICS[0]), "std": torch.tensor(OC20_STATISTICS[1])},
            "grad_target": {"mean": torch.tensor(0.0), "std": torch.tensor(OC20_STATISTICS[1])},
        }
        return common | {
            "state_dict": OrderedDict((f"module.module.{n}", v) for n, v in state.items() if not n.endswith(SCALE)),
            "normalizers": {k: {n: v.to(torch.float32) for n, v in s.items()} for k, s in statistics.items()},
            "config": config | {"task": OC20_TASK, "dataset": OC20_DATASET},
            "scale_dict": scales,
        }
    average = ExponentialMovingAverage(model.parameters(), 0.999)
    generator = torch.Generator().manual_seed(seed)
    for value in average.shadow_params:
        noise = torch.randn(value.shape, generator=generator, dtype=value.dtype)
        value.copy_((value * (1 + 0.1 * noise)).to(torch.float32))
    shadow = average.state_dict() | {
        "shadow_params": [v.to(torch.float32) for v in average.shadow_params],
        "collected_params": [],
    }
    return common | {
        "state_dict": OrderedDict((f"module.{n}", v) for n, v in state.items()),
        "normalizers": {},
        "config": config | {"task": OC22_TASK, "dataset": OC22_DATASET},
        "ema": shadow,
        "optimizer": {"state": {}, "param_groups": [{"lr": 1e-4}]},
    }


def fairchem_predictions(
    content: dict[str, Any], given: Sequence[Structure], *, check: bool = True
) -> list[dict[str, np.ndarray]]:
    """Energies, eV, and forces, eV/Å, in the default dtype, by fairchem's classes and in the order of its trainer.

    `check` refuses structures with ties at a cap.
    """
    from fairchem.core.common.utils import load_state_dict, match_state_dict
    from fairchem.core.models.gemnet_oc.gemnet_oc import GemNetOC
    from fairchem.core.modules.exponential_moving_average import ExponentialMovingAverage
    from fairchem.core.modules.normalization.normalizer import create_normalizer
    from fairchem.core.modules.scaling.compat import load_scales_compat

    model = GemNetOC(**content["config"]["model_attributes"]).eval()
    state = {n: v.to(torch.get_default_dtype()) for n, v in content["state_dict"].items()}
    load_state_dict(model, match_state_dict(model.state_dict(), state), strict=True)
    load_scales_compat(model, content.get("scale_dict"))
    if "ema" in content:
        average = ExponentialMovingAverage(model.parameters(), 0.999)
        average.load_state_dict(content["ema"])
        average.copy_to()
    names = {"energy": "target", "forces": "grad_target"}
    statistics = content["normalizers"]
    normalisers = {p: create_normalizer(state_dict=statistics[old]) for p, old in names.items() if old in statistics}
    found = []
    for one in given:
        data = fairchem_batch([one])
        if check:
            check_no_ties(model, data, PUBLISHED_CAPS)
        with torch.no_grad():
            raw: dict[str, Tensor] = model(data)
        values = {p: normalisers[p](raw[p].double()) if p in normalisers else raw[p] for p in names}
        found.append({"energy": values["energy"][0].numpy(), "forces": values["forces"].numpy()})
    return found


@contextmanager
def ties_kept() -> Iterator[None]:
    """fairchem keeps all neighbours that tie with the last one it keeps, to 1e-5 Å, as is done here."""

    def mask(
        natoms: Tensor, index: Tensor, atom_distance: Tensor, max_num_neighbors_threshold: int, **_: object
    ) -> tuple[Tensor, Tensor]:
        kept = torch.ones_like(index, dtype=torch.bool)
        for atom in range(int(natoms.sum())):
            own = index == atom
            distance = atom_distance[own]
            if len(distance) > max_num_neighbors_threshold:
                kept[own] = distance <= distance.sort().values[max_num_neighbors_threshold - 1] + 1e-5
        image = torch.repeat_interleave(torch.arange(len(natoms)), natoms)
        return kept, torch.bincount(image[index[kept]], minlength=len(natoms))

    with mock.patch("fairchem.core.models.gemnet_oc.gemnet_oc.get_max_neighbors_mask", mask):
        yield


def worst(got: Iterable[dict[str, np.ndarray]], expected: Iterable[dict[str, np.ndarray]]) -> dict[str, float]:
    """Largest difference, eV and eV/Å."""
    pairs = list(zip(got, expected, strict=True))
    return {p: max(float(np.abs(a[p] - b[p]).max()) for a, b in pairs) for p in ("energy", "forces")}


def in_double(model: TrainedModel) -> TrainedModel:
    """The model in double precision."""
    model.module.double()
    return model


def frames_of_oc20(source: Path) -> list[Structure]:
    """Two frames of the first file."""
    frames = list(oc20.read(oc20.pieces(source, "oc20")[0], "oc20"))
    return [rattled(frames[i].structure) for i in (0, -1)]


def rattled(given: Structure) -> Structure:
    """Rattle by 0.01 Å."""
    atoms = given.to_ase()
    atoms.rattle(0.01, seed=0)
    return structure(atoms, given.tags)


def write_golden(folder: Path, source: Path | None) -> None:
    """Write all files."""
    folder.mkdir(parents=True, exist_ok=True)
    given = structures()
    arrays: dict[str, np.ndarray] = {}
    for seed, (name, options) in enumerate({"oc20": LARGE, "oc22": BASE | {"otf_graph": True}}.items()):
        with double_precision():
            content = content_of(name, options | NARROW, given[:1], seed)
            predicted = fairchem_predictions(content, given)
            with ties_kept():
                of_oc20 = fairchem_predictions(content, [] if source is None else frames_of_oc20(source), check=False)
        stream = BytesIO()
        torch.save(content, stream)
        (folder / f"{name}.pt.xz").write_bytes(lzma.compress(stream.getvalue()))
        arrays |= {f"{name}.{i}.{p}": v for i, one in enumerate(predicted) for p, v in one.items()}
        arrays |= {f"{name}.frame_{i}.{p}": v for i, one in enumerate(of_oc20) for p, v in one.items()}
    for i, one in enumerate(given):
        arrays |= {f"in.{i}.{n}": getattr(one, n) for n in ("numbers", "positions", "tags", "cell", "pbc")}
    np.savez_compressed(folder / "predictions.npz", **arrays)
    about = {
        "made by": f"benchmarks/golden_checkpoints.py with fairchem-core {version('fairchem-core')}, "
        f"PyTorch {torch.__version__}",
        "licence of fairchem-core": "MIT",
    }
    (folder / "about.json").write_text(json.dumps(about, indent=1) + "\n")
    print(f"{sum(file.stat().st_size for file in folder.iterdir()) / 1e3:.0f} kB in {folder}")


def compare_published(source: Path, frames: int) -> None:
    """Print differences of models with the published sizes."""
    # Removed from SciPy 1.17, and imported by a model of fairchem that is not used here.
    vars(scipy.special).setdefault("sph_harm", None)
    from fairchem.core.common.relaxation.ase_utils import OCPCalculator

    (piece, *_) = oc20.pieces(source, "oc20:is2re")
    found: list[Structure] = []
    for labelled in oc20.read(piece, "oc20:is2re"):
        if len(found) == frames:
            break
        found.append(labelled.structure)
    given = [rattled(one) for one in found]
    print(f"structures of {[len(one) for one in given]} atoms")
    for name, size, options in (
        ("oc20", "gemnet-oc", BASE),
        ("oc20", "gemnet-oc-large", LARGE),
        ("oc22", "gemnet-oc (OC22)", BASE | {"otf_graph": True}),
    ):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "checkpoint.pt"
            with double_precision():
                content = content_of(name, options, given[:1], seed=1)
                with ties_kept():
                    expected = fairchem_predictions(content, given, check=False)
                    in_line = fairchem_predictions(content, found, check=False)
                without = fairchem_predictions(content, given, check=False)
            torch.save(content, path)
            model, report = read_fairchem_checkpoint(path)
            task = model.tasks[0].name
            single = predict(model, task, given, batch_size=1)
            double = predict(in_double(model), task, given, batch_size=len(given))
            scale = {p: max(float(np.abs(one[p]).max()) for one in expected) for p in ("energy", "forces")}
            print(f"{size}: {report.size}, {report.parameters:,} parameters; largest {scale}")
            print(f"  float64: {worst(double, expected)}\n  float32, ours: {worst(single, expected)}")
            print(f"  what fairchem's choice among ties changes: {worst(without, expected)}")
            still = predict(model, task, found, batch_size=1)
            print(f"  not rattled, float64: {worst(still, in_line)}")
            calculator = OCPCalculator(checkpoint_path=path, cpu=True)
            theirs = []
            for one in given:
                atoms = one.to_ase()
                atoms.calc = calculator
                with ties_kept():
                    theirs.append(
                        {
                            "energy": np.array(atoms.get_potential_energy()),
                            "forces": atoms.get_forces(apply_constraint=False),
                        }
                    )
            print(f"  float32, fairchem's calculator: {worst(theirs, expected)}; to ours {worst(single, theirs)}")


def main() -> None:
    """Write the golden files, or compare the published sizes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="output folder (default: %(default)s)")
    parser.add_argument(
        "--oc20", type=Path, metavar="FILE", help="file of OC20's S2EF, of which two frames are predicted"
    )
    parser.add_argument("--published", type=Path, metavar="SOURCE", help="file or folder of OC20's IS2RE to compare on")
    parser.add_argument("--frames", type=int, default=3, help="of SOURCE")
    given = parser.parse_args()
    logging.disable()
    torch.set_num_threads(1)
    stand_in()
    if given.published:
        compare_published(given.published, given.frames)
    else:
        write_golden(given.folder, given.oc20)


if __name__ == "__main__":
    main()
