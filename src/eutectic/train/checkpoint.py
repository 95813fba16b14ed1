"""Checkpoints for resuming: written beside the old one and renamed, read without unpickling objects.

A run keeps its last checkpoint and the one before it: whatever a crash, a full disk or a failing one does to the
last, the run goes on from the other.
"""

from __future__ import annotations

import logging
import os
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor

from eutectic.atoms import EutecticError
from eutectic.files import replacing

log = logging.getLogger(__name__)

FIX = "free some space, then run the same command again: it resumes from the last checkpoint"


def previous(path: Path) -> Path:
    """Where the checkpoint before the one at `path` is kept."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Replace the checkpoint at `path` by `state` and keep the old one; whatever happens, a whole one is there.

    Raises:
        EutecticError: the disk is full; the last checkpoint stays.
    """
    with replacing(path, sync=False, sole_writer=True, errors=(OSError, RuntimeError), fix=FIX) as half:
        with half.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())  # before the old one is moved away
        with suppress(FileNotFoundError):
            os.replace(path, previous(path))


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """The state at `path`, on the CPU, or the one before it where that one is damaged; None where there is neither.

    Raises:
        EutecticError: no checkpoint that is whole and holds tensors and plain values alone.
    """
    damaged: EutecticError | None = None
    for candidate in (path, previous(path)):
        if not candidate.exists():
            continue
        try:
            state = _read(candidate)
        except EutecticError as error:
            damaged = damaged or error
            continue
        if damaged is not None:
            log.warning("%s: %s; going on from the checkpoint before it, %s", path, damaged.given, candidate.name)
        return state
    if damaged is not None:
        raise damaged
    return None


def _read(path: Path) -> dict[str, Any]:
    try:
        # torch.load does not look at the checksums that torch.save writes.
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
        if broken is not None:
            raise ValueError(f"{broken} does not match its checksum")
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged or hostile file
        raise EutecticError(
            str(path),
            f"not a readable checkpoint ({str(error)[:200]})",
            "a checkpoint this program wrote",
            "delete the file to start again from the beginning",
        ) from error
    return state


def remove_checkpoints(path: Path) -> None:
    """For a run that is finished."""
    for candidate in (path, previous(path)):
        candidate.unlink(missing_ok=True)


def whole(value: Any, *, keep: bool = True) -> Any:
    """A state with every tensor whole and on the CPU. Every process calls this, for it gathers what is shared out.

    Args:
        value: tensors in dicts and lists.
        keep: this process wants the result; the others help, and forget it.
    """
    if isinstance(value, DTensor):
        gathered = value.full_tensor().detach()
        return gathered.cpu() if keep else None
    if isinstance(value, torch.Tensor):
        return value.detach().cpu() if keep else None
    if isinstance(value, dict):
        return {key: whole(item, keep=keep) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [whole(item, keep=keep) for item in value]
    return value


def load_weights(module: nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Give a module whole tensors, of which it takes its share where its parameters are shared out."""
    mine = module.state_dict()
    module.load_state_dict({name: local_shard(mine[name], value) for name, value in state.items()})


def load_optimiser(optimiser: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """The same for the state of an optimiser."""
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    taken = {
        index: {k: local_shard(parameters[index], v) if k != "step" else v for k, v in values.items()}
        for index, values in state["state"].items()
    }
    groups: Sequence[dict[str, Any]] = state["param_groups"]
    optimiser.load_state_dict({"state": taken, "param_groups": groups})


def local_shard(mine: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """This process's share of a whole tensor, as it has of `mine`."""
    if not isinstance(mine, DTensor):
        return value
    # Every process has read the whole file: nothing is sent.
    return distribute_tensor(value.to(mine.device), mine.device_mesh, mine.placements, src_data_rank=None)
