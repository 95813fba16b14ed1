"""Checkpoints for resuming: written atomically, read without unpickling objects.

A run keeps its last two checkpoints: if the last one is damaged by a crash or a faulty disk, the run resumes from the
other.
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
    """Path of the checkpoint before the one at `path`."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint to `path` and keep the old one; a complete checkpoint exists at every moment.

    Raises:
        EutecticError: the disk is full; the last checkpoint is kept.
    """
    with replacing(path, sync=False, sole_writer=True, errors=(OSError, RuntimeError), fix=FIX) as half:
        with half.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())  # before the old checkpoint is renamed
        with suppress(FileNotFoundError):
            os.replace(path, previous(path))


def load_checkpoint(path: Path, steps: int | None = None) -> dict[str, Any] | None:
    """Read the checkpoint at `path` to the CPU, or the previous one if it is damaged; None if there is none.

    Args:
        path: the file.
        steps: length of the run, if the checkpoint must belong to one of its steps.

    Raises:
        EutecticError: every checkpoint is damaged, has an impossible step, or contains objects other than tensors and
            plain values.
    """
    damaged: EutecticError | None = None
    for candidate in (path, previous(path)):
        if not candidate.exists():
            continue
        try:
            state = _read(candidate, steps)
        except EutecticError as error:
            damaged = damaged or error
            continue
        if damaged is not None:
            log.warning("%s: %s; resuming from the previous checkpoint, %s", path, damaged.given, candidate.name)
        return state
    if damaged is not None:
        raise damaged
    return None


def _read(path: Path, steps: int | None) -> dict[str, Any]:
    try:
        # torch.load does not verify the checksums that torch.save writes.
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"{damaged} does not match its checksum")
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict):
            raise ValueError(f"it contains a {type(state).__name__}")
        step = state.get("step")
        if steps is not None and (type(step) is not int or not 0 <= step <= steps):
            raise ValueError(f"its step is {str(step)[:40]!r}, in a run of {steps} steps")
    except Exception as error:  # torch raises many kinds of errors for a damaged or malicious file
        raise not_a_checkpoint(path, str(error)[:200]) from error
    return state


def not_a_checkpoint(path: Path, why: str) -> EutecticError:
    """The error for a file that is not a checkpoint of this run."""
    return EutecticError(
        str(path),
        f"not a readable checkpoint ({why})",
        "a checkpoint written by eutectic for this run",
        f"delete it to resume from {previous(path).name} if it exists, or from the beginning",
    )


def remove_checkpoints(path: Path) -> None:
    """Delete the checkpoints of a finished run."""
    for candidate in (path, previous(path)):
        candidate.unlink(missing_ok=True)


def full_state(value: Any, *, keep: bool = True) -> Any:
    """A state with full tensors on the CPU. Every process must call this, since sharded tensors are gathered.

    Args:
        value: tensors in dicts and lists.
        keep: False for a process that takes part in gathering but does not need the result.
    """
    if isinstance(value, DTensor):
        gathered = value.full_tensor().detach()
        return gathered.cpu() if keep else None
    if isinstance(value, torch.Tensor):
        return value.detach().cpu() if keep else None
    if isinstance(value, dict):
        return {key: full_state(item, keep=keep) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [full_state(item, keep=keep) for item in value]
    return value


def load_weights(module: nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Load full tensors into a module; where its parameters are sharded, only this process's shards."""
    current = module.state_dict()
    module.load_state_dict({name: local_shard(current[name], value) for name, value in state.items()})


def load_optimiser(optimiser: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load a full state into an optimiser; tensors of a parameter's shape (moments) are sharded like the parameter."""
    parameters = [p for group in optimiser.param_groups for p in group["params"]]

    def shard(index: int, value: Any) -> Any:
        like = parameters[index]
        return local_shard(like, value) if isinstance(value, torch.Tensor) and value.shape == like.shape else value

    sharded = {index: {k: shard(index, v) for k, v in values.items()} for index, values in state["state"].items()}
    groups: Sequence[dict[str, Any]] = state["param_groups"]
    optimiser.load_state_dict({"state": sharded, "param_groups": groups})


def local_shard(like: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """This process's shard of a full tensor, sharded like `like`."""
    if not isinstance(like, DTensor):
        return value
    # Every process has read the file, so no communication is needed.
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
