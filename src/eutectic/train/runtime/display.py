"""Live progress in a terminal; a line at each validation elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console

from eutectic.atoms import FORCES
from eutectic.console import progress_bar as progress_bar


class Display:
    """Progress display of one run.

    Args:
        title: kind of run.
        steps: total number of steps.
        hidden: show nothing (other processes, quiet runs).
    """

    def __init__(self, title: str, steps: int, *, hidden: bool = False, console: Console | None = None) -> None:
        self.console = Console(quiet=True) if hidden else console or Console()
        self.progress = progress_bar(self.console, disable=hidden or not self.console.is_terminal)
        self.bar = self.progress.add_task(title, total=steps, note="")
        self.title, self.steps = title, steps
        self._explained = False
        self._rate = 0.0
        self._losses: dict[str, float] = {}
        self._since_validation: dict[tuple[str, str], list[float]] = {}

    def __enter__(self) -> Display:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    def stepped(self, entry: Mapping[str, Any]) -> None:
        """Show one step, an entry of the journal."""
        rate = entry["structures"] / max(entry["step_seconds"], 1e-9)
        # Moving average over about twenty steps.
        self._rate = rate if not self._rate else 0.95 * self._rate + 0.05 * rate
        # A step may have no structure of a rare set, whose last loss is then kept.
        self._losses.update(entry["loss_by_set"])
        for name, losses in entry["loss_by_property"].items():
            for prop, loss in losses.items():
                self._since_validation.setdefault((name, prop), []).append(loss)
        by_set = "  ".join(f"{name} {loss:.2f}" for name, loss in self._losses.items())
        self.progress.update(
            self.bar,
            completed=entry["step"],
            note=f"{self._rate:.0f} structures/s  loss {entry['loss']:.2f}: {by_set}",
        )

    def validated(self, step: int, by_set: Mapping[str, Mapping[str, float]]) -> None:
        """Print the validation errors by set, and the training losses by property since the last validation."""
        if not self._explained:
            self.console.print(
                f"{self.title}: validation error / baseline (forces: {FORCES.display_unit}), then training losses "
                "since the last validation, by property, without weights",
                highlight=False,
            )
            self._explained = True
        parts = []
        for name, errors in by_set.items():
            key = "forces_mae" if "forces_mae" in errors else next(iter(errors))
            base = errors[key.replace("_mae", "_baseline")]
            parts.append(f"{name} {errors[key]:.0f}/{base:.0f}")
        head = f"step {step:>{len(str(self.steps))}}/{self.steps}  "
        self.console.print(head + "  ".join(parts), highlight=False)
        by_property: dict[str, list[str]] = {}
        for (name, prop), losses in self._since_validation.items():
            by_property.setdefault(name, []).append(f"{prop} {sum(losses) / len(losses):.3g}")
        if by_property:
            words = "  ".join(f"{name}: {', '.join(losses)}" for name, losses in by_property.items())
            self.console.print(" " * len(head) + words, style="dim", highlight=False)
        self._since_validation.clear()
