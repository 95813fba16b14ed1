"""The folder of a run: claimed by one run, and recognised when the same run is given again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

import eutectic
from eutectic.atoms import EutecticError
from eutectic.files import locked, write_atomically
from eutectic.train.settings import Settings

SETTINGS = "settings.json"
LOCK = ".lock"


def claim_folder(folder: Path, settings: Settings, command: str) -> None:
    """Make the run's folder, or check that it holds this very run.

    A folder in which nothing was computed yet (a run that was refused, say for its data) may be claimed anew.

    Raises:
        EutecticError: the folder exists and is not this run's.
    """
    folder = Path(folder)
    path = folder / SETTINGS
    mine = {"command": command, "version": eutectic.__version__, **settings.model_dump(mode="json")}
    if path.exists() and _begun(folder):
        here, there = (_essence(v, type(settings)) for v in (mine, stored_settings(folder)))
        if here != there:
            changed = sorted(k for k in here.keys() | there.keys() if here.get(k) != there.get(k))
            raise EutecticError(
                str(folder),
                f"holds a run with other settings (different: {', '.join(changed)})",
                "the same settings, to resume it, or a folder that does not exist",
                "choose another --out, or delete the folder",
            )
        return
    if folder.exists() and not path.exists() and _begun(folder):
        raise EutecticError(
            str(folder),
            "exists and is not a run of this program",
            "a folder that does not exist, or is empty",
            "choose another --out",
        )
    write_atomically(path, json.dumps(mine, indent=1, ensure_ascii=False))


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
    return any(file.name not in (SETTINGS, LOCK) for file in folder.iterdir()) if folder.exists() else False


def stored_settings(folder: Path) -> dict[str, Any]:
    """What a run's folder says of it: `command`, `version` and the settings.

    Raises:
        EutecticError: not the folder of a run.
    """
    path = Path(folder) / SETTINGS
    try:
        values: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise EutecticError(
            str(folder),
            f"no readable settings.json ({error})",
            "the folder of a run",
            "give the folder that was --out of `eutectic pretrain`, `finetune` or `compare`",
        ) from error
    return values


def _essence(stored: Mapping[str, Any], kind: type[Settings]) -> dict[str, Any]:
    """The settings of a run that decide what it computes; those it was stored without have their defaults."""
    values: dict[str, Any] = {k: v for k, v in stored.items() if k not in ("command", "version")}
    # What cannot be read as settings is another kind of run, or another version's: it is compared as it stands.
    with suppress(ValidationError, EutecticError):
        values = kind.model_validate(values).model_dump(mode="json")
    # How a run is spread over a machine, and where it is logged, does not change what it computes.
    ignored = {"processes", "threads", "checkpoint_every", "accelerator", "strategy", "workers", "compile"}
    ignored |= {"activation_checkpointing", "out_of_memory", "keep_nonfinite_steps", "max_nonfinite_steps"}
    train_settings = {k: v for k, v in values.get("train", {}).items() if k not in ignored}
    return {**values, "command": stored.get("command"), "train": train_settings, "loggers": None}
