"""Read checkpoints of `sevenn` (`.pth`), without executing code in them."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eutectic.atoms import EutecticError, did_you_mean
from eutectic.checkpoints.foreign_model import About, ForeignModel, copied
from eutectic.checkpoints.safe_pickle import Archive, StoredTensor
from eutectic.models.foreign.adapter import built_for_real
from eutectic.models.foreign.sevennet import (
    ARCHITECTURE,
    PACKAGE,
    SevenNet,
    SevenNetSettings,
    energy_readout,
    package_config,
)

_MATERIALS = "PBE, PBE+U for some oxides and fluorides (Materials Project)"
_LICENCE = "MIT, that of the package sevenn"
PUBLISHED = {
    "7net-0": About("MPtrj", _MATERIALS, _LICENCE),
    "7net-0_22may2024": About("MPtrj", _MATERIALS, _LICENCE),
    "7net-l3i5": About("MPtrj", _MATERIALS, _LICENCE),
    "7net-mf-0": About("MPtrj and r2SCAN calculations", "PBE, PBE+U for some; or r2SCAN", _LICENCE),
}
"""Name in the package → description from its documentation. These weights are included in the package."""

DOWNLOADED = ("7net-mf-ompa", "7net-omat", "7net-omni", "7net-omni-i8", "7net-omni-i12")
"""Names of models whose weights the package downloads."""

EXPECTED = "a checkpoint of sevenn (a dictionary with config and model_state_dict, file name .pth)"


def published_file(name: str) -> Path:
    """The file of a published model, downloaded by the package if not included in it.

    Raises:
        EutecticError: no such model; the package is missing; the download failed.
    """
    names = (*PUBLISHED, *DOWNLOADED)
    if name not in names:
        raise EutecticError(
            f"sevennet:{name}",
            "neither a file nor a model published by sevenn",
            f"a file, or one of {', '.join(names)}",
            did_you_mean(name, names, "check the path"),
        )
    (util,) = PACKAGE.load("util")
    with PACKAGE.downloading(f"sevennet:{name}", "sevennet:FILE.pth"):
        return Path(util.pretrained_name_to_path(name))


def read(path: Path, variant: str | None) -> ForeignModel:
    """Read a file.

    Args:
        path: a checkpoint.
        variant: the modality, for a model with several.

    Raises:
        EutecticError: the package is missing; the file holds no SevenNet, or one with unsupported parts; a missing or
            unknown modality.
    """
    PACKAGE.version()
    with Archive(path) as archive:
        content = archive.content if isinstance(archive.content, dict) else {}
        config, stored = content.get("config"), content.get("model_state_dict")
        if not isinstance(config, dict) or not isinstance(stored, dict) or "version" not in config:
            present = ", ".join(str(key) for key in list(content)[:5]) or "no dictionary"
            given = f"a file that contains {present}"
            raise EutecticError(str(path), given, EXPECTED, "give a checkpoint, not a deployed model")
        state = {name: archive.tensor(t) for name, t in stored.items() if isinstance(t, StoredTensor)}
    compatibility, build, constants = PACKAGE.load("scripts.backward_compatibility", "model_build", "_const")
    try:
        # Copied, since both functions change their input.
        config = compatibility.patch_old_config(copy.deepcopy(_plain(config)))
        config = {**constants.model_defaults(dict(config)), **config}
        settings = SevenNetSettings(
            config={name: config[name] for name in ARCHITECTURE if name in config},
            elements=_in_order(config["_type_map"]),
            cutoff=config["cutoff"],
            modalities=_in_order(config.get("_modal_map") or {}),
            modality=variant,
        )
        if settings.config.get("readout_as_fcn") or len(settings.elements) != config["_number_of_species"]:
            raise ValueError(
                "a nonlinear readout of the energy" if settings.config.get("readout_as_fcn") else "species"
            )
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        raise _unknown(path, f"no {error}" if isinstance(error, KeyError) else str(error)) from error
    _check_modality(settings, path)
    with built_for_real():
        try:
            model = build.build_E3_equivariant_model(package_config(settings.config, settings))
            state = compatibility.patch_state_dict_if_old(state, config, model)
        # Inconsistent sizes and names.
        except Exception as error:
            raise _unknown(path, f"sevenn cannot build it ({type(error).__name__}: {error})") from error
        behind = ("rescale_atomic_energy.",)
        copied(model, {k: v for k, v in state.items() if not k.startswith(behind)}, path, skip=behind)
        shift, scale = (_of_modality(state[f"rescale_atomic_energy.{name}"], settings) for name in ("shift", "scale"))
        if float(scale.max() - scale.min()) > 1e-6 * float(scale.abs().max()):
            raise _unknown(path, "a separate energy scale for every element")
        shift = shift.expand(len(settings.elements)) if shift.numel() == 1 else shift
        network = dict(model.named_children())
        readout = energy_readout(network, settings, shift, float(scale[0]))
        backbone = SevenNet(settings, network)
    name = variant or "energy"
    return ForeignModel(backbone=backbone, backbone_name="sevennet", readouts={name: readout})


def _plain(config: Mapping[object, object]) -> dict[str, Any]:
    """The entries that are plain data; the others, objects and tensors, are not needed to build the network."""
    kept = {}
    for name, value in config.items():
        try:
            json.dumps(value)
        except (TypeError, ValueError, RecursionError):
            continue
        kept[str(name)] = value
    return kept


def _in_order(places: Mapping[Any, int]) -> tuple[Any, ...]:
    return tuple(name for name, _ in sorted(places.items(), key=lambda item: item[1]))


def _check_modality(settings: SevenNetSettings, path: Path) -> None:
    names, chosen = settings.modalities, settings.modality
    if (chosen is None and not names) or chosen in names:
        return
    raise EutecticError(
        f"sevennet:{path}",
        "a model with several modalities, and none given" if chosen is None else f"modality {chosen!r}",
        f"one of {', '.join(names)}" if names else "no modality: this model has none",
        f"add @ and a modality, for example @{names[0]}" if names else "omit it",
    )


def _of_modality(values: Tensor, settings: SevenNetSettings) -> Tensor:
    """(1,) or (n_elements,) values of a scale or shift, which may have a row per modality."""
    if values.ndim == 2 or (settings.modalities and values.numel() == len(settings.modalities)):
        return torch.atleast_1d(values[settings.modalities.index(str(settings.modality))])
    return torch.atleast_1d(values)


def _unknown(path: Path, what: str) -> EutecticError:
    return EutecticError(
        str(path),
        f"a SevenNet of an unknown build: {what}",
        f"one built by sevenn {PACKAGE.versions[0]} and supported by eutectic",
        "use another model, or a version of eutectic that supports it",
    )
