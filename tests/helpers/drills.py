"""Run the command line as a user does, in a process of its own, and judge how it took a fault."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

COMMAND = [sys.executable, "-m", "eutectic"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", "NO_COLOR": "1"}


@dataclass(frozen=True)
class Outcome:
    code: int
    output: str
    errors: str

    @property
    def is_clear_error(self) -> bool:
        """Four parts and no traceback."""
        return self.code != 0 and "what to do" in self.errors and "Traceback" not in self.errors


def eutectic(*arguments: object, folder: Path | None = None, seconds: float = 600.0) -> Outcome:
    """One command, ended after some seconds (then `subprocess.TimeoutExpired`)."""
    done = subprocess.run(
        [*COMMAND, *map(str, arguments)],
        cwd=folder,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=seconds,
        check=False,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def assert_clear_error(outcome: Outcome, *words: str) -> None:
    """An error in four parts that names all these words."""
    assert outcome.is_clear_error, f"code {outcome.code}\n{outcome.output[-1500:]}\n{outcome.errors[-3000:]}"
    for word in words:
        assert word in outcome.errors, f"{word!r} is not in\n{outcome.errors}"


def assert_done(outcome: Outcome) -> None:
    assert outcome.code == 0, f"code {outcome.code}\n{outcome.output[-1500:]}\n{outcome.errors[-3000:]}"
    assert "Traceback" not in outcome.errors
