"""Models that can be given by name instead of a folder: those in the package, published ones, and those of other
packages."""

from __future__ import annotations

from pathlib import Path

from eutectic.atoms import EutecticError, did_you_mean

FOLDER = Path(__file__).parent / "weights"
PREFIX = "fairchem:"
"""Prefix of the names of the models in `eutectic.checkpoints.published`."""

CARD = "README.md"
"""Model card in a model's folder: description, training data and intended use."""


def shipped_models() -> dict[str, Path]:
    """Name → folder of every model in the package."""
    return {path.name: path for path in sorted(FOLDER.glob("*")) if (path / "model.json").is_file()}


def model_folder(name_or_path: str | Path) -> Path:
    """The folder at a path if it exists, otherwise that of the model with this name.

    A run's folder stands for the model in it. On first use, a published model ("fairchem:gemnet-oc-oc20-all-md") is
    downloaded and converted, a model of another package (`sevennet:7net-0`, `mace:FILE.model`) is converted (see
    `eutectic.checkpoints.foreign`), and a model on the Hugging Face Hub (`user/name`) is downloaded (see
    `eutectic.checkpoints.hub`).

    Raises:
        EutecticError: no such folder or model; a published model that cannot be downloaded or read; a missing package,
            or a file of it that cannot be used.
        Interrupted: Ctrl-C during the download; the next call resumes it.
    """
    path, shipped = Path(name_or_path), shipped_models()
    if path.exists():
        inside = path / "model"
        return inside if not (path / "model.json").is_file() and (inside / "model.json").is_file() else path
    if str(name_or_path) in shipped:
        return shipped[str(name_or_path)]
    # Imported here, since both import this module.
    if str(name_or_path).startswith(PREFIX):
        from eutectic.checkpoints.published import published_model

        return published_model(str(name_or_path).removeprefix(PREFIX))
    from eutectic.checkpoints.foreign import foreign_model_folder, is_foreign

    if is_foreign(str(name_or_path)):
        return foreign_model_folder(str(name_or_path))
    from eutectic.checkpoints.hub import download, is_hub_name

    if is_hub_name(str(name_or_path)):
        return download(str(name_or_path))
    raise EutecticError(
        str(name_or_path),
        "no model with this name, and nothing at this path",
        f"a model folder (model.json, model.safetensors), one of {', '.join(shipped)}, {PREFIX}NAME, or a model of "
        "another package (sevennet:NAME, mace:NAME, mace:FILE.model, orb:NAME), or user/name on the Hugging Face Hub",
        did_you_mean(
            str(name_or_path),
            shipped,
            "give the folder …/model written by `eutectic pretrain` or `eutectic finetune`",
        ),
    )
