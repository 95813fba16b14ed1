"""Live progress in a terminal; a line at each validation elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console

from eutectic.atoms import FORCES
from eutectic.console import progress_bar as progress_bar


class Display:
    """Shows one run.

    Args:
        title: what is running.
        steps: how many steps it has.
        hidden: show nothing (other processes, quiet runs).
    """

    def __init__(self, title: str, steps: int, *, hidden: bool = False) -> None:
        self.console = Console(quiet=hidden)
        self.progress = progress_bar(self.console, disable=hidden or not self.console.is_terminal)
        self.bar = self.progress.add_task(title, total=steps, note="")
        self.title, self.steps = title, steps
        self._explained = False
        self._rate = 0.0
        self._losses: dict[str, float] = {}

    def __enter__(self) -> Display:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    def stepped(self, entry: Mapping[str, Any]) -> None:
        """One step is done."""
        rate = entry["structures"] / max(entry["step_seconds"], 1e-9)
        # Over the last twenty steps or so.
        self._rate = rate if not self._rate else 0.95 * self._rate + 0.05 * rate
        # A step may have nothing of a rare set: what it had last is still what is known of it.
        self._losses.update(entry["loss_by_set"])
        by_set = "  ".join(f"{name} {loss:.2f}" for name, loss in self._losses.items())
        self.progress.update(
            self.bar,
            completed=entry["step"],
            note=f"{self._rate:.0f} structures/s  loss {entry['loss']:.2f}: {by_set}",
        )

    def validated(self, step: int, by_set: Mapping[str, Mapping[str, float]]) -> None:
        """The errors on held-out structures, by set."""
        if not self._explained:
            self.console.print(
                f"{self.title}: held-out error / error of knowing nothing (forces: {FORCES.display_unit})",
                highlight=False,
            )
            self._explained = True
        parts = []
        for name, errors in by_set.items():
            key = "forces_mae" if "forces_mae" in errors else next(iter(errors))
            base = errors[key.replace("_mae", "_baseline")]
            parts.append(f"{name} {errors[key]:.0f}/{base:.0f}")
        self.console.print(f"step {step:>{len(str(self.steps))}}/{self.steps}  " + "  ".join(parts), highlight=False)
