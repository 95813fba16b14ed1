"""Read models saved by `mace-torch` (`.model`), without executing code in them.

Such a file is a pickle of the whole module. Its classes are not imported: sizes are read from its attributes
(`modules_on_disk`), the package builds a new module of these sizes, and the tensors are copied into it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eutectic.atoms import EutecticError, did_you_mean
from eutectic.checkpoints.foreign_model import About, ForeignModel, copied
from eutectic.checkpoints.modules_on_disk import StoredModule, stored_module
from eutectic.checkpoints.safe_pickle import Archive, Kept
from eutectic.models.foreign.adapter import EnergyReadout, built_for_real
from eutectic.models.foreign.mace import (
    INTERACTIONS,
    MACE,
    PACKAGE,
    READOUTS,
    MACESettings,
    energy_readout,
    package_model,
)

GATES = {"torch.nn.functional.silu": "silu", "torch.tanh": "tanh", "torch.abs": "abs"}
RADIAL = {"BesselBasis": "bessel", "GaussianBasis": "gaussian", "ChebychevBasis": "chebyshev"}
TRANSFORMS = {"AgnesiTransform": "Agnesi", "SoftTransform": "Soft"}
BEHIND = ("atomic_energies_fn.", "scale_shift.")
"""Prefixes of tensors that become references and scales of tasks."""

_MATERIALS = "PBE, PBE+U for some oxides and fluorides (Materials Project)"
ASL = "Academic Software License (ASL), for academic use only; see https://github.com/gabor1/ASL"
PUBLISHED = {
    **{
        name: About("MPtrj", _MATERIALS, "MIT")
        for name in (
            *("small", "medium", "large", "small-0b", "medium-0b"),
            *("small-0b2", "medium-0b2", "large-0b2", "medium-0b3"),
        )
    },
    "medium-mpa-0": About("MPtrj and sAlex", _MATERIALS, "MIT"),
    "small-omat-0": About("OMat24", "PBE, PBE+U (OMat24)", ASL),
    "medium-omat-0": About("OMat24", "PBE, PBE+U (OMat24)", ASL),
    "mace-matpes-pbe-0": About("MatPES-PBE", "PBE", ASL),
    "mace-matpes-r2scan-0": About("MatPES-r2SCAN", "r2SCAN", ASL),
}
"""Name in the package → description from its documentation. The package downloads the weights."""

EXPECTED = "a model saved by mace-torch (torch.save of a MACE or ScaleShiftMACE, file name .model)"


def published_file(name: str) -> Path:
    """The file of a published model, downloaded by the package if it is not in its cache.

    Raises:
        EutecticError: no such model; the package is missing; the download failed.
    """
    if name not in PUBLISHED:
        raise EutecticError(
            f"mace:{name}",
            "neither a file nor a model published by mace-torch",
            f"a file, or one of {', '.join(PUBLISHED)}",
            did_you_mean(name, PUBLISHED, "check the path"),
        )
    (models,) = PACKAGE.load("calculators.foundations_models")
    with PACKAGE.downloading(f"mace:{name}", "mace:FILE.model"):
        return Path(models.download_mace_mp_checkpoint(name))


def read(path: Path, variant: str | None) -> ForeignModel:
    """Read a file.

    Args:
        path: a `.model` file.
        variant: one of the file's heads; None for all.

    Raises:
        EutecticError: the package is missing; the file holds no MACE, or one with unsupported parts.
    """
    PACKAGE.version()
    with Archive(path, keep_objects=True) as archive:
        root = stored_module(archive)
        if root is None or root.kind not in ("MACE", "ScaleShiftMACE"):
            found = f"a {root.kind}" if root is not None else f"a {_kind(archive.content)}"
            raise EutecticError(
                str(path),
                f"{found}, not a MACE",
                EXPECTED,
                "give the .model file, not a training checkpoint (.pt) or a compiled model",
            )
        tensors = {name: archive.tensor(stored) for name, stored in root.named_tensors()}
    try:
        settings = MACESettings(
            config=_config(root, tensors, path),
            elements=tuple(int(z) for z in tensors["atomic_numbers"]),
            cutoff=float(tensors["r_max"]),
        )
    # A file of another version lacks some of these.
    except (KeyError, AttributeError, TypeError, ValueError, IndexError) as error:
        raise _unknown(path, f"no {error}" if isinstance(error, KeyError) else str(error)) from error
    heads = settings.config["heads"]
    if variant is not None and variant not in heads:
        raise EutecticError(f"mace:{path}@{variant}", "no such head", f"one of {', '.join(heads)}", "name one of these")
    with built_for_real():
        try:
            model = package_model(settings.config, settings)
        except EutecticError:
            raise
        # Inconsistent sizes.
        except Exception as error:
            raise _unknown(path, f"mace-torch cannot build it ({type(error).__name__}: {error})") from error
        copied(model, {k: v for k, v in tensors.items() if not k.startswith(BEHIND)}, path, skip=BEHIND)
        readouts = {name: _readout(model, settings, tensors, place) for place, name in enumerate(heads)}
        backbone = MACE(settings, model)
    precision = torch.float64 if tensors["r_max"].dtype == torch.float64 else torch.float32
    chosen = readouts if variant is None else {variant: readouts[variant]}
    return ForeignModel(backbone=backbone.to(precision), backbone_name="mace", readouts=chosen)


def _readout(model: Any, settings: MACESettings, tensors: Mapping[str, Tensor], place: int) -> EnergyReadout:
    energies = torch.atleast_2d(tensors["atomic_energies_fn.atomic_energies"].double())
    # A plain MACE has neither scale nor shift.
    scale, shift = (
        torch.atleast_1d(tensors.get(f"scale_shift.{name}", torch.tensor(value)).double())
        for name, value in (("scale", 1.0), ("shift", 0.0))
    )

    def own(values: Tensor) -> Tensor:
        return values[place if len(values) > 1 else 0]

    return energy_readout(model, settings, place, own(energies), float(own(scale)), float(own(shift)))


def _kind(content: object) -> str:
    return content.origin if isinstance(content, Kept) else type(content).__name__.replace("Plain", "").lower()


def _unknown(path: Path, what: str) -> EutecticError:
    return EutecticError(
        str(path),
        f"a MACE of an unknown build: {what}",
        f"one built by mace-torch {PACKAGE.versions[0]}",
        "load and save it again with this version of mace-torch, if you trust the file",
    )


def _config(root: StoredModule, tensors: Mapping[str, Tensor], path: Path) -> dict[str, Any]:
    """The arguments of the package's class as plain JSON, from the attributes and shapes of a stored module."""
    if root.attributes.get("cueq_config") is not None or "joint_embedding" in root.children:
        part = "an embedding of charge or spin" if "joint_embedding" in root.children else "layers of cuEquivariance"
        raise EutecticError(
            str(path),
            f"a MACE with {part}, which eutectic does not support",
            "a MACE that takes only structures",
            "use another model",
        )
    interactions, products, readouts = (
        list(root[name].children.values()) for name in ("interactions", "products", "readouts")
    )
    heads = [str(name) for name in root.attributes.get("heads") or ["Default"]]
    last, radial = readouts[-1], root["radial_embedding"]
    kinds = [interactions[-1].kind, interactions[0].kind, last.kind]
    if wrong := [kind for kind in kinds if kind not in (*INTERACTIONS, *READOUTS)]:
        raise ValueError(f"it has a {wrong[0]}")
    if len(heads) > 1 and "linear_mid" in last.children:
        raise ValueError("it has several heads with two hidden layers each, which are not stored separately")
    hidden = irreps_text(products[0]["linear"].attributes["irreps_out"])
    in_last = irreps_text(products[-1]["linear"].attributes["irreps_out"])
    mlp = irreps_text(last.attributes["hidden_irreps"]) if "hidden_irreps" in last.attributes else "1x0e"
    edge_irreps = root.attributes.get("edge_irreps")
    transform = radial.children["distance_transform"].kind if "distance_transform" in radial.children else None
    contraction = products[0]["symmetric_contractions.contractions.0"]
    return {
        "num_bessel": int(radial.attributes["out_dim"]),
        "num_polynomial_cutoff": int(tensors["radial_embedding.cutoff_fn.p"]),
        "max_ell": int(root["spherical_harmonics"].attributes["_lmax"]),
        "interaction_cls": interactions[-1].kind,
        "interaction_cls_first": interactions[0].kind,
        "num_interactions": len(interactions),
        "hidden_irreps": hidden,
        "MLP_irreps": f"{sum(int(part.partition('x')[0]) for part in mlp.split('+')) // len(heads)}x0e",
        "avg_num_neighbors": float(interactions[0].attributes["avg_num_neighbors"]),
        "correlation": len(contraction["weights"].tensors) + 1,
        "gate": _gate(last),
        "pair_repulsion": "pair_repulsion_fn" in root.children,
        "apply_cutoff": bool(root.attributes.get("apply_cutoff", True)),
        "use_reduced_cg": bool(root.attributes.get("use_reduced_cg", False)),
        "use_so3": bool(root.attributes.get("use_so3", False)),
        "use_agnostic_product": bool(root.attributes.get("use_agnostic_product", False)),
        "use_last_readout_only": bool(root.attributes.get("use_last_readout_only", False)),
        "use_edge_irreps_first": bool(root.attributes.get("use_edge_irreps_first", False)),
        "distance_transform": "None" if transform is None else TRANSFORMS[transform],
        "edge_irreps": None if edge_irreps is None else irreps_text(edge_irreps),
        "radial_MLP": _radial_layers(interactions[0]["conv_tp_weights"]),
        "radial_type": RADIAL[radial["bessel_fn"].kind],
        "heads": heads,
        "readout_cls": last.kind if last.kind != "LinearReadoutBlock" else "NonLinearReadoutBlock",
        "keep_last_layer_irreps": len(interactions) > 1 and "+" in in_last,
    }


def irreps_text(stored: object) -> str:
    """Irreps in `e3nn`'s notation, such as "128x0e+64x1o", from a pickled object of its class.

    Raises:
        ValueError: not irreps.
    """
    if isinstance(stored, str):
        return stored
    try:
        parts = []
        for item in stored.arguments[0]:  # type: ignore[attr-defined]
            mul, irrep = item.arguments[0]
            degree, parity = irrep.arguments[0] if len(irrep.arguments) == 1 else irrep.arguments
            parts.append(f"{int(mul)}x{int(degree)}{'e' if parity == 1 else 'o'}")
    except (AttributeError, TypeError, IndexError, ValueError) as error:
        raise ValueError(f"{stored!r} in place of irreps") from error
    return "+".join(parts)


def _gate(readout: StoredModule) -> str:
    if "non_linearity" not in readout.children:
        return "silu"
    acts = readout["non_linearity.acts"].children
    function = acts["0"].attributes["f"]
    if isinstance(function, Kept) and function.origin.endswith(".getattr"):
        # One of PyTorch's own functions, pickled as getattr(namespace, name).
        origin = f"torch.{function.arguments[-1]}"
    else:
        origin = function.origin if isinstance(function, type) and issubclass(function, Kept) else repr(function)
    if origin not in GATES:
        raise ValueError(f"its readout has the activation {origin}")
    return GATES[origin]


def _radial_layers(network: StoredModule) -> list[int]:
    if "hs" in network.attributes:
        return [int(n) for n in network.attributes["hs"][1:-1]]
    # Linear layers, with a norm after each except the last.
    layers = [t for name, t in network.named_tensors() if name.endswith("weight") and len(t.shape) == 2]
    return [t.shape[0] for t in layers[:-1]]
