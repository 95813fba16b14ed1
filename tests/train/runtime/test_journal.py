"""The journal of a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eutectic.atoms import EutecticError
from eutectic.train.runtime.journal import Journal


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_full_disk_under_the_journal(tmp_path: Path) -> None:
    (tmp_path / "journal.jsonl").symlink_to("/dev/full")
    journal = Journal(tmp_path / "journal.jsonl")
    journal.add({"step": 1})
    with pytest.raises(EutecticError, match="No space left"):
        journal.flush()


def test_journal_forgets_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    for step in range(1, 31):
        journal.add({"step": step})
    journal.flush()
    with path.open("a") as file:
        file.write('{"step": 3')  # killed in the middle of a line
    again = Journal(path)
    again.resume(25)
    again.add({"step": 26})
    again.flush()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == list(range(1, 27))
