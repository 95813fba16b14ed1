"""The journal of a run: one JSON object per line, one line per step, in `journal.jsonl`."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

from eutectic.files import write_atomically, writing_to

log = logging.getLogger(__name__)

DAMAGED = "journal.damaged.jsonl"


def read_journal(folder: Path) -> list[dict[str, Any]]:
    """The readable entries of the journal in a run's folder, by step; the run can be running, killed or finished."""
    return _read(Path(folder) / "journal.jsonl")[0]


def _read(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The readable entries, by step, and the number of other lines.

    The last line is ignored if it is incomplete: the process was killed while writing it.
    """
    entries: dict[int, dict[str, Any]] = {}
    damaged = 0
    lines = path.read_bytes().split(b"\n") if path.exists() else [b""]
    for line in lines[:-1]:
        try:
            entry = json.loads(line)
            # If a step occurs twice, the later entry belongs to the checkpoint.
            entries[_step(entry)] = entry
        except (ValueError, RecursionError):
            damaged += 1
    return [entries[step] for step in sorted(entries)], damaged


def _step(entry: Any) -> int:
    """The step of an entry.

    Raises:
        ValueError: not an entry of a journal.
    """
    step = entry.get("step") if isinstance(entry, dict) else None
    if not isinstance(step, int) or isinstance(step, bool) or step < 1:
        raise ValueError("not an entry")
    return step


class Journal:
    """Append-only journal; only a resumed run drops the entries after its checkpoint.

    Args:
        path: the file; None keeps the journal only in memory.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.entries: list[dict[str, Any]] = []
        self._pending: list[str] = []

    def resume(self, step: int) -> None:
        """Keep the entries up to the step of the checkpoint, inclusive; 0 without a checkpoint.

        If entries are missing, a copy of the journal is kept as `journal.damaged.jsonl`, with a warning in the log.

        Raises:
            EutecticError: the disk is full.
        """
        if self.path is None or not self.path.exists():
            if self.path is not None and step:
                log.warning("%s is missing: the losses of steps 1 to %d are lost, the run continues", self.path, step)
            return
        found, damaged = _read(self.path)
        self.entries = [entry for entry in found if entry["step"] <= step]
        copy, missing = self.path.with_name(DAMAGED), step - len(self.entries)
        # Entries lost by earlier damage have already been reported.
        if missing and (damaged or not copy.exists()):
            with writing_to(copy):
                shutil.copyfile(self.path, copy)
            log.warning(
                "%s is damaged (%d unreadable lines): the losses of %d of %d steps are lost, the run continues; the "
                "file is kept as %s",
                self.path,
                damaged,
                missing,
                step,
                copy.name,
            )
        if not step and found:
            log.warning(
                "%s: no checkpoint, so the run starts again (its journal had reached step %d)",
                self.path.parent,
                found[-1]["step"],
            )
        content = "".join(json.dumps(e) + "\n" for e in self.entries)
        write_atomically(self.path, content, sole_writer=True)

    def add(self, entry: dict[str, Any]) -> None:
        """Add one step's entry."""
        self.entries.append(entry)
        self._pending.append(json.dumps(entry) + "\n")
        if len(self._pending) >= 20:
            self.flush()

    def flush(self) -> None:
        """Write pending entries.

        Raises:
            EutecticError: the disk is full; the run resumes from its last checkpoint.
        """
        if self.path is not None and self._pending:
            fix = "free some space, then run the same command again: it resumes from the last checkpoint"
            with writing_to(self.path, fix=fix), self.path.open("a") as file:
                file.writelines(self._pending)
        self._pending.clear()
