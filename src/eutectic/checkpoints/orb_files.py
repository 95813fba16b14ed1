"""Read state dicts of `orb-models` (`.ckpt`), without executing code in them.

Such a file holds only tensors. Sizes follow from their shapes; two properties that change the energy do not: the cap on
neighbours (`cap_in_name`), and how the pair repulsion is added (as in all published models).
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from eutectic.atoms import EutecticError, did_you_mean
from eutectic.checkpoints.foreign_model import About, ForeignModel, copied
from eutectic.checkpoints.safe_pickle import Archive, StoredTensor
from eutectic.models.foreign.adapter import built_for_real
from eutectic.models.foreign.orb import CUTOFF, PACKAGE, Orb, OrbSettings, energy_readout, package_model

_LICENCE = "Apache-2.0, that of the package orb-models"
_OMAT = About("OMat24", "PBE, PBE+U (OMat24)", _LICENCE)
_MPA = About("MPtrj and Alexandria", "PBE, PBE+U for some oxides and fluorides (Materials Project)", _LICENCE)
PUBLISHED = {
    f"orb-v3-{kind}-{cap}-{data}": about
    for kind in ("conservative", "direct")
    for cap in ("inf", "20")
    for data, about in (("omat", _OMAT), ("mpa", _MPA))
}
"""Name in the package → description from its documentation. The package downloads the weights."""

CAPS = {"inf": 120, "20": 20}
"""Cap on neighbours as named → number in the package, which calls 120 within 6 Å effectively unlimited."""

EXPECTED = "a state dict of an Orb v3 (torch.save of model.state_dict() of orb-models, file name .ckpt)"

CHARGES = ("model.conditioner.", "heads.latent_charges.", "coulomb_module.")
"""Prefixes of parts that depend on the total charge or spin, which structures do not have here."""


def published_file(name: str) -> Path:
    """The file of a published model, downloaded by the package if it is not in its cache.

    Raises:
        EutecticError: no such model, or an unsupported one; the package is missing; the download failed.
    """
    if name not in PUBLISHED:
        raise EutecticError(
            f"orb:{name}",
            "neither a file nor an Orb v3 published by orb-models for structures without charge and spin",
            f"a file, or one of {', '.join(PUBLISHED)}",
            did_you_mean(name, PUBLISHED, "check the path"),
        )
    (pretrained,) = PACKAGE.load("forcefield.pretrained")
    with PACKAGE.downloading(f"orb:{name}", "orb:FILE.ckpt"):
        # Not loaded by the package, which would change the default precision of the whole process.
        function = pretrained.ORB_PRETRAINED_MODELS[name]
        return Path(pretrained.cached_path(inspect.signature(function).parameters["weights_path"].default))


def cap_in_name(title: str) -> str | None:
    """The cap on neighbours in the name of a model or file, as in published names; None if there is none."""
    match = re.search(r"(?:conservative|direct)-(inf|20)(?:-|$)", title)
    return match and match[1]


def read(path: Path, variant: str | None) -> ForeignModel:
    """Read a file.

    Args:
        path: a `.ckpt` file.
        variant: the cap on neighbours, "inf" or "20".

    Raises:
        EutecticError: the package is missing; the file holds no Orb v3, or one with unsupported parts; the cap is
            missing.
    """
    PACKAGE.version()
    with Archive(path) as archive:
        content = archive.content if isinstance(archive.content, dict) else {}
        state = {str(name): archive.tensor(t) for name, t in content.items() if isinstance(t, StoredTensor)}
    if "model.atom_emb.embeddings.weight" not in state or "heads.energy.mlp.NN-0.weight" not in state:
        present = ", ".join(str(key) for key in list(content)[:5]) or "no dictionary"
        fix = "give only the weights, including the heads"
        raise EutecticError(str(path), f"a file that contains {present}", EXPECTED, fix)
    if any(name.startswith(CHARGES) for name in state):
        raise EutecticError(
            str(path),
            "an Orb that depends on charge and spin, which eutectic does not support",
            "an Orb v3 that takes only structures",
            f"use another model, such as {next(iter(PUBLISHED))}",
        )
    if "model._encoder._node_fn.layer_norm.bias" in state:
        raise EutecticError(str(path), "an Orb v1 or v2", EXPECTED, f"use an Orb v3, such as {next(iter(PUBLISHED))}")
    if variant not in CAPS:
        raise EutecticError(
            f"orb:{path}",
            "only weights, which do not determine the model's cap on neighbours"
            if variant is None
            else f"{variant!r} neighbours",
            "the cap that it was trained with: @inf (120 within 6 Å) or @20",
            "add @inf or @20, or keep the name of the published file (orb-v3-conservative-inf-…)",
        )
    try:
        settings = OrbSettings(
            config=_config(state),
            elements=_elements(state["heads.energy.reference.linear.weight"].flatten()),
            cutoff=CUTOFF,
            direct="heads.forces.mlp.NN-0.weight" in state,
            max_neighbours=CAPS[variant],
            repulsion="sum" if "heads.forces.mlp.NN-0.weight" in state else "mean",
        )
        with built_for_real():
            model = package_model(settings.config, settings)
    except EutecticError:
        raise
    # Inconsistent sizes.
    except Exception as error:
        raise EutecticError(
            str(path),
            f"an Orb of an unknown build ({type(error).__name__}: {error})",
            f"one built by orb-models {PACKAGE.versions[0]} as orb_v3_conservative_architecture",
            "use another model, or a version of eutectic that supports it",
        ) from error
    with built_for_real():
        copied(model, state, path, skip=("heads.confidence.",))
        readout = energy_readout(model, settings)
        backbone = Orb(settings, model)
    return ForeignModel(
        backbone=backbone, backbone_name="orb", readouts={"energy": readout}, derivatives=not settings.direct
    )


def _config(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Arguments of the package's functions, from the shapes of the weights."""

    def perceptron(prefix: str) -> tuple[int, int]:
        """Number of hidden layers, and their width."""
        layers = sum(name.startswith(f"{prefix}.NN-") and name.endswith(".weight") for name in state)
        return layers - 1, len(state[f"{prefix}.NN-0.weight"])

    depth, width = perceptron("model._encoder._node_fn.mlp")
    head_depth, head_width = perceptron("heads.energy.mlp")
    return {
        "latent_dim": state["model.atom_emb.embeddings.weight"].shape[1],
        "base_mlp_depth": depth,
        "base_mlp_hidden_dim": width,
        "head_mlp_depth": head_depth,
        "head_mlp_hidden_dim": head_width,
        "num_message_passing_steps": len({n.split(".")[2] for n in state if n.startswith("model.gnn_stacks.")}),
        "has_stress": "heads.forces.mlp.NN-0.weight" not in state or "heads.stress.mlp.NN-0.weight" in state,
    }


def _elements(references: Tensor) -> tuple[int, ...]:
    """Atomic numbers of the elements in the training data. All other elements have the same value in the package's
    table, that of the last one (tennessine), which is in no data set."""
    known = references[1:] != references[-1]
    return tuple(z for z, is_known in enumerate(known.tolist(), start=1) if is_known or not known.any())
