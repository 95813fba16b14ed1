"""Checkpoints for resuming: written beside the old one and renamed, read without unpickling objects."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from eutectic.atoms import EutecticError


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Replace the checkpoint at `path` by `state`; whatever happens, one whole checkpoint is there.

    Raises:
        EutecticError: the disk is full; the last checkpoint stays.
    """
    half = path.with_name(path.name + ".writing")
    try:
        with half.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(half, path)
    except (OSError, RuntimeError) as error:
        half.unlink(missing_ok=True)
        raise EutecticError(
            str(path),
            f"the checkpoint could not be written ({error})",
            "room on the disk",
            "free some space, then run the same command again: it resumes from the last checkpoint",
        ) from error


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """The state at `path`, on the CPU; None where there is none.

    Raises:
        EutecticError: a file that is not a checkpoint of tensors and plain values.
    """
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged or hostile file
        raise EutecticError(
            str(path),
            f"not a readable checkpoint ({str(error)[:200]})",
            "a checkpoint this program wrote",
            "delete the file to start again from the beginning",
        ) from error
    return state
