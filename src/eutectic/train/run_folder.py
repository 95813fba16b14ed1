"""The folder of a run: claimed by one run, and recognised when the same run is given again."""

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
CONTENT = "content"
"""In `settings.json`: what lay under the names of the data and the model when the run began, as hashes."""

LENGTH = ("steps", "epochs", "time", "until_converged", "patience", "evaluate_every")
"""Settings of the length of a fine-tuning."""

NOT_SETTINGS = ("command", "version", CONTENT)


def claim_folder(folder: Path, settings: Settings, command: str, *, may_lengthen: bool = False) -> bool:
    """Make the run's folder, or check that it holds this very run.

    A folder in which nothing was computed yet (a run that was refused, say for its data) may be claimed anew.

    Args:
        folder, settings, command: of the run.
        may_lengthen: accept a run that differs in its length only.

    Returns:
        Whether it holds this run with another length; `lengthen` then makes it this run.

    Raises:
        EutecticError: the folder exists and is not this run's.
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
    """Write the settings of a longer run into the folder of a shorter one."""
    noted = stored_settings(folder).get(CONTENT)
    content = {} if noted is None else {CONTENT: noted}
    _write(Path(folder) / SETTINGS, _described(settings, command) | content)


def _described(settings: Settings, command: str) -> dict[str, Any]:
    return {"command": command, "version": eutectic.__version__, **settings.model_dump(mode="json")}


def _without_length(essence: Mapping[str, Any]) -> dict[str, Any]:
    """What decides a run (see `_essence`), but for how long it is and when it is validated."""
    train = essence.get("train")
    rest = {k: v for k, v in train.items() if k not in LENGTH} if isinstance(train, Mapping) else train
    # An effort is a length too, in place of that in `train`.
    return {**essence, "train": rest, "effort": essence.get("effort") is not None}


def claim_content(folder: Path, content: Mapping[str, str]) -> None:
    """Note what a run is computed from, or check that it is still the same.

    Args:
        folder: claimed with `claim_folder`.
        content: what it is, in words → hash of it.

    Raises:
        EutecticError: the run in the folder was computed from something else.
    """
    stored = stored_settings(folder)
    noted = stored.get(CONTENT)
    if not isinstance(noted, dict):
        if _begun(folder):
            log.warning(
                "%s: begun by an earlier version, which did not note the contents of data and model; they are taken "
                "to be unchanged",
                folder,
            )
    elif noted != dict(content) and _begun(folder):
        changed = [what for what in {**noted, **content} if noted.get(what) != content.get(what)]
        raise EutecticError(
            str(folder),
            f"holds a run on other contents, under the same names: {', '.join(changed)} changed since it began",
            "the same contents, to resume it or to return its result, or a folder that does not exist",
            "choose another --out, or delete the folder",
        )
    if noted != dict(content):
        _write(Path(folder) / SETTINGS, {**stored, CONTENT: dict(content)})


def model_hash(name_or_path: str | Path) -> str:
    """Of the weights and the description in a model folder.

    Raises:
        EutecticError: no such model, or one that cannot be read.
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
    # One process writes here, so that a killed one leaves a file of a known name.
    write_atomically(path, json.dumps(values, indent=1, ensure_ascii=False), sole_writer=True)


def claimed(folder: Path | None) -> AbstractContextManager[None]:
    """Keep other runs out of a folder for as long as the block runs.

    Raises:
        EutecticError: another process is training there.
    """
    if folder is None:
        return nullcontext()
    return locked(Path(folder) / LOCK, doing="training here")


def _begun(folder: Path) -> bool:
    """Whether a folder holds more than the claim to it."""
    claim = (SETTINGS, LOCK, f".{SETTINGS}.writing")
    return any(file.name not in claim for file in folder.iterdir()) if folder.exists() else False


def stored_settings(folder: Path) -> dict[str, Any]:
    """What a run's folder says of it: `command`, `version`, the settings, and the hashes of what it was given.

    Raises:
        EutecticError: not the folder of a run, or its settings.json is damaged.
    """
    path = Path(folder) / SETTINGS
    fix = "give the folder that was --out of `eutectic pretrain`, `finetune` or `compare`"
    if path.exists():
        fix = "put back a copy of this file; without one, delete the folder or choose another --out, and run again"
    return read_json(path, expected="the settings.json of a run", fix=fix)


def without_notes(stored: Mapping[str, Any]) -> dict[str, Any]:
    """The settings alone, of what `stored_settings` returns."""
    return {k: v for k, v in stored.items() if k not in NOT_SETTINGS}


def _essence(stored: Mapping[str, Any], kind: type[Settings]) -> dict[str, Any]:
    """The settings of a run that decide what it computes; those it was stored without have their defaults."""
    values = without_notes(stored)
    # What cannot be read as settings is another kind of run, or another version's: it is compared as it stands.
    with suppress(ValidationError, EutecticError):
        values = kind.model_validate(values).model_dump(mode="json")
    # How a run is spread over a machine, and where it is logged, does not change what it computes.
    ignored = {"processes", "threads", "checkpoint_every", "accelerator", "strategy", "workers", "compile"}
    ignored |= {"activation_checkpointing", "out_of_memory", "keep_nonfinite_steps", "max_nonfinite_steps"}
    train = values.get("train")
    if isinstance(train, Mapping):
        values["train"] = {k: v for k, v in train.items() if k not in ignored}
    return {**values, "command": stored.get("command"), "loggers": None}
