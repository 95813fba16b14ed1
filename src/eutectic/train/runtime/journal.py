"""The journal of a run: one JSON object per line, one line per step, in `journal.jsonl`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from eutectic.files import write_atomically, writing_to


def read_journal(folder: Path) -> list[dict[str, Any]]:
    """The complete entries of the journal in a run's folder, if any; the run can be running, killed or finished."""
    path = Path(folder) / "journal.jsonl"
    entries: list[dict[str, Any]] = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            break  # last line of a killed process
    return entries


class Journal:
    """Append-only journal, except that a resumed run drops the entries after its checkpoint.

    Args:
        path: the file; None keeps the journal only in memory.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.entries: list[dict[str, Any]] = []
        self._pending: list[str] = []

    def resume(self, step: int) -> None:
        """Keep the entries up to and including `step`."""
        if self.path is None or not self.path.exists():
            return
        self.entries += [entry for entry in read_journal(self.path.parent) if entry["step"] <= step]
        write_atomically(self.path, "".join(json.dumps(e) + "\n" for e in self.entries), sole_writer=True)

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
