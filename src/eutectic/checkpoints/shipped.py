"""Models that can be given by name in place of a model folder: those in the package, and published ones."""

from __future__ import annotations

from pathlib import Path

from eutectic.atoms import EutecticError, did_you_mean

FOLDER = Path(__file__).parent / "weights"
PREFIX = "fairchem:"
"""Begins the names of the models of `eutectic.checkpoints.published`."""

CARD = "README.md"
"""Model card in a model's folder: description, training data and intended use."""


def shipped_models() -> dict[str, Path]:
    """Name → folder of every model in the package."""
    return {path.name: path for path in sorted(FOLDER.glob("*")) if (path / "model.json").is_file()}


def model_folder(name_or_path: str | Path) -> Path:
    """The folder at a path if it exists, else that of the shipped or published model of this name.

    A run's folder stands for the model in it. A published model ("fairchem:gemnet-oc-oc20-all-md") is downloaded and
    converted when it is first named.

    Raises:
        EutecticError: neither exists; a published model that cannot be downloaded or read.
        Interrupted: Ctrl-C during the download, which the next call continues.
    """
    path, shipped = Path(name_or_path), shipped_models()
    if path.exists():
        inside = path / "model"
        return inside if not (path / "model.json").is_file() and (inside / "model.json").is_file() else path
    if str(name_or_path) in shipped:
        return shipped[str(name_or_path)]
    if str(name_or_path).startswith(PREFIX):
        # Reading a checkpoint needs what reads models, which needs this module.
        from eutectic.checkpoints.published import published_model

        return published_model(str(name_or_path).removeprefix(PREFIX))
    raise EutecticError(
        str(name_or_path),
        "no model of this name, and nothing at this path",
        f"a model folder (model.json, model.safetensors), or one of {', '.join(shipped)}, {PREFIX}NAME",
        did_you_mean(
            str(name_or_path),
            shipped,
            "give the folder …/model written by `eutectic pretrain` or `eutectic finetune`",
        ),
    )
