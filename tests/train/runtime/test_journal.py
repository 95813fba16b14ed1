"""The journal of a run."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from eutectic.atoms import EutecticError
from eutectic.train.runtime.journal import Journal, read_journal


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


def test_a_run_that_begins_again_begins_its_journal_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "journal.jsonl"
    for _ in range(2):
        journal = Journal(path)
        with caplog.at_level(logging.WARNING):
            journal.resume(0)
        for step in range(1, 4):
            journal.add({"step": step})
        journal.flush()
    assert [entry["step"] for entry in read_journal(tmp_path)] == [1, 2, 3]
    assert caplog.text.count("no checkpoint, so the run starts again (its journal had reached step 3)") == 1


@pytest.mark.parametrize(
    "line", [b"5", b'{"a": 1}', b'{"step": "3"}', b"null", b"[]", b"\xff\xfe", b"[" * 100_000, b"", b'{"step": 3']
)
def test_a_damaged_line_costs_one_entry_and_is_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, line: bytes
) -> None:
    path = tmp_path / "journal.jsonl"
    lines = [json.dumps({"step": step}).encode() for step in range(1, 6)]
    damaged = b"\n".join([*lines[:2], line, *lines[3:], b""])
    path.write_bytes(damaged)
    assert [entry["step"] for entry in read_journal(tmp_path)] == [1, 2, 4, 5]
    journal = Journal(path)
    with caplog.at_level(logging.WARNING):
        journal.resume(5)
    assert "the losses of 1 of 5 steps are lost" in caplog.text
    assert [entry["step"] for entry in journal.entries] == [1, 2, 4, 5]
    assert (tmp_path / "journal.damaged.jsonl").read_bytes() == damaged
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        Journal(path).resume(5)
    assert not caplog.text
    assert (tmp_path / "journal.damaged.jsonl").read_bytes() == damaged


def test_a_journal_that_is_gone_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        Journal(tmp_path / "journal.jsonl").resume(0)
        assert not caplog.text
        Journal(tmp_path / "journal.jsonl").resume(4)
    assert "is missing: the losses of steps 1 to 4 are lost" in caplog.text


def test_a_step_that_is_there_twice_counts_once(tmp_path: Path) -> None:
    lines = [{"step": step, "try": attempt} for attempt in (1, 2) for step in (1, 2)]
    (tmp_path / "journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [entry["try"] for entry in read_journal(tmp_path)] == [2, 2]
