"""The folder of a run: claimed by one run, and checked when the run is resumed."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

import eutectic
from eutectic.atoms import EutecticError
from eutectic.checkpoints.shipped import model_folder
from eutectic.files import hash_of_files, locked, read_json, write_atomically
from eutectic.train.settings import Settings

log = logging.getLogger(__name__)

SETTINGS = "settings.json"
LOCK = ".lock"
CHOICES = "choices"
"""Folder of the short runs that choose learning rate and weight decay."""
CONTENT = "content"
"""Key in `settings.json` of the hashes of data and model at the start of the run."""

LENGTH = ("steps", "epochs", "time", "until_converged", "patience", "evaluate_every")
"""Settings that may differ when a fine-tuning is lengthened."""

NOT_SETTINGS = ("command", "version", CONTENT)


def claim_folder(folder: Path, settings: Settings, command: str, *, may_lengthen: bool = False) -> bool:
    """Create the run's folder, or check that it holds this run.

    A folder in which nothing was computed yet (for example because the data were invalid) can be claimed again.

    Args:
        folder, settings, command: of the run.
        may_lengthen: accept a run that differs only in its length.

    Returns:
        Whether the folder holds this run with another length; `lengthen` then changes its settings.

    Raises:
        EutecticError: the folder exists and belongs to something else.
    """
    folder = Path(folder)
    path = folder / SETTINGS
    mine = _described(settings, command)
    if path.exists() and _begun(folder):
        here, there = (_essence(v, type(settings)) for v in (mine, stored_settings(folder)))
        if here != there and may_lengthen and _without_length(here) == _without_length(there):
            return True
        if here != there:
            changed = sorted(k for k in here.keys() | there.keys() if here.get(k) != there.get(k))
            raise EutecticError(
                str(folder),
                f"holds a run with other settings (different: {', '.join(changed)})",
                "the same settings, to resume it, or a folder that does not exist",
                "choose another --out, or delete the folder",
            )
        return False
    if folder.exists() and not path.exists() and _begun(folder):
        raise EutecticError(
            str(folder),
            "exists and is not a run of this program",
            "a folder that does not exist, or is empty",
            "choose another --out",
        )
    _write(path, mine)
    return False


def lengthen(folder: Path, settings: Settings, command: str) -> None:
    """Write the settings of a longer run to the folder of a shorter one."""
    noted = stored_settings(folder).get(CONTENT)
    content = {} if noted is None else {CONTENT: noted}
    _write(Path(folder) / SETTINGS, _described(settings, command) | content)


def _described(settings: Settings, command: str) -> dict[str, Any]:
    return {"command": command, "version": eutectic.__version__, **settings.model_dump(mode="json")}


def _without_length(essence: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that decide the results of a run (see `_essence`), without its length."""
    train = essence.get("train")
    rest = {k: v for k, v in train.items() if k not in LENGTH} if isinstance(train, Mapping) else train
    # An effort replaces the length in `train`.
    return {**essence, "train": rest, "effort": essence.get("effort") is not None}


def claim_content(folder: Path, content: Mapping[str, str]) -> None:
    """Record the hashes of a run's inputs, or check that they are unchanged.

    Args:
        folder: claimed with `claim_folder`.
        content: description of an input → its hash.

    Raises:
        EutecticError: the run in the folder used other inputs.
    """
    stored = stored_settings(folder)
    noted = stored.get(CONTENT)
    if not isinstance(noted, dict):
        if _begun(folder):
            log.warning(
                "%s: begun by an earlier version, which did not record hashes of data and model; they are assumed to "
                "be unchanged",
                folder,
            )
    elif noted != dict(content) and _begun(folder):
        changed = [what for what in {**noted, **content} if noted.get(what) != content.get(what)]
        raise EutecticError(
            str(folder),
            f"holds a run on other contents under the same names: {', '.join(changed)} changed since it began",
            "unchanged contents, to resume the run or return its result, or a folder that does not exist",
            "choose another --out, or delete the folder",
        )
    if noted != dict(content):
        _write(Path(folder) / SETTINGS, {**stored, CONTENT: dict(content)})


def model_hash(name_or_path: str | Path) -> str:
    """Hash of the weights and the description in a model folder.

    Raises:
        EutecticError: unknown or unreadable model.
    """
    folder = model_folder(name_or_path)
    try:
        return hash_of_files(folder / "model.json", folder / "model.safetensors")
    except OSError as error:
        raise EutecticError(
            str(folder),
            f"cannot be read ({error})",
            "a model folder (model.json, model.safetensors)",
            "give the folder …/model written by `eutectic pretrain` or `eutectic finetune`",
        ) from error


def _write(path: Path, values: Mapping[str, Any]) -> None:
    # A sole writer, so that a killed process leaves a temporary file with a known name.
    write_atomically(path, json.dumps(values, indent=1, ensure_ascii=False), sole_writer=True)


def claimed(folder: Path | None) -> AbstractContextManager[None]:
    """Lock a folder against other runs within a `with` block.

    Raises:
        EutecticError: another process is training there.
    """
    if folder is None:
        return nullcontext()
    return locked(Path(folder) / LOCK, doing="training here")


def _begun(folder: Path) -> bool:
    """Whether a folder holds more than the files of a claim and the short runs that choose learning rates."""
    claim = (SETTINGS, LOCK, f".{SETTINGS}.writing", CHOICES)
    return any(file.name not in claim for file in folder.iterdir()) if folder.exists() else False


def stored_settings(folder: Path) -> dict[str, Any]:
    """Read a run's `settings.json`: `command`, `version`, the settings, and the hashes of its inputs.

    Raises:
        EutecticError: not the folder of a run, or settings.json is damaged.
    """
    path = Path(folder) / SETTINGS
    fix = "give the folder that was --out of `eutectic pretrain`, `finetune` or `compare`"
    if path.exists():
        fix = "restore this file from a copy; or delete the folder or choose another --out, and run again"
    return read_json(path, expected="the settings.json of a run", fix=fix)


def without_notes(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Only the settings in the result of `stored_settings`."""
    return {k: v for k, v in stored.items() if k not in NOT_SETTINGS}


def _essence(stored: Mapping[str, Any], kind: type[Settings]) -> dict[str, Any]:
    """The settings that decide the results of a run; missing ones have their defaults."""
    values = without_notes(stored)
    # Settings of another kind of run, or of another version, may be invalid: they are compared unchanged.
    with suppress(ValidationError, EutecticError):
        values = kind.model_validate(values).model_dump(mode="json")
    # Use of the hardware, and logging, do not change the results.
    ignored = {"processes", "threads", "checkpoint_every", "accelerator", "strategy", "workers", "compile"}
    ignored |= {"activation_checkpointing", "out_of_memory", "keep_nonfinite_steps", "max_nonfinite_steps"}
    train = values.get("train")
    if isinstance(train, Mapping):
        values["train"] = {k: v for k, v in train.items() if k not in ignored}
    return {**values, "command": stored.get("command"), "loggers": None}
