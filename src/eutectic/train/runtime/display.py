"""Live progress in a terminal; a line at each validation elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console

from eutectic.atoms import PROPERTIES
from eutectic.console import ProgressBar


class Display:
    """Progress display of one run.

    Args:
        title: kind of run.
        steps: total number of steps.
        per_atom: validation errors of extensive properties are per atom.
        hidden: show nothing (other processes, quiet runs).
        console: where to show it; the terminal if not given.
    """

    def __init__(
        self,
        title: str,
        steps: int,
        *,
        per_atom: bool = False,
        hidden: bool = False,
        console: Console | None = None,
    ) -> None:
        self.console = Console(quiet=True) if hidden else console or Console()
        self.bar = ProgressBar(title, steps, unit="steps", enabled=not hidden, delay=0, keep=True, console=self.console)
        self.per_atom = per_atom
        self.title, self.steps = title, steps
        self._explained = False
        self._rate = 0.0
        self._losses: dict[str, float] = {}
        self._since_validation: dict[tuple[str, str], list[float]] = {}

    def __enter__(self) -> Display:
        self.bar.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.__exit__(kind, error, trace)

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
        self.bar.update(entry["step"], note=f"{self._rate:.0f} structures/s  loss {entry['loss']:.2f}: {by_set}")

    def validated(self, step: int, by_set: Mapping[str, Mapping[str, float]]) -> None:
        """Print the validation errors by set, and the training losses by property since the last validation."""
        judged = {name: "forces" if "forces_mae" in errors else _first(errors) for name, errors in by_set.items()}
        if not self._explained:
            units = ", ".join(f"{prop.replace('_', ' ')}{self._unit(prop)}" for prop in dict.fromkeys(judged.values()))
            self.console.print(
                f"{self.title}: validation error / baseline ({units}), then training losses since the last validation, "
                "by property, without weights",
                highlight=False,
            )
            self._explained = True
        parts = []
        for name, errors in by_set.items():
            error, baseline = (errors[f"{judged[name]}_{which}"] for which in ("mae", "baseline"))
            parts.append(f"{name} {_short(error)}/{_short(baseline)}")
        head = f"step {step:>{len(str(self.steps))}}/{self.steps}  "
        self.console.print(head + "  ".join(parts), highlight=False)
        by_property: dict[str, list[str]] = {}
        for (name, prop), losses in self._since_validation.items():
            by_property.setdefault(name, []).append(f"{prop} {sum(losses) / len(losses):.3g}")
        if by_property:
            words = "  ".join(f"{name}: {', '.join(losses)}" for name, losses in by_property.items())
            self.console.print(" " * len(head) + words, style="dim", highlight=False)
        self._since_validation.clear()

    def _unit(self, prop: str) -> str:
        known = PROPERTIES[prop]
        unit = known.display_unit_per_atom if self.per_atom else known.display_unit
        return f", {unit}" if unit else ""


def _first(errors: Mapping[str, float]) -> str:
    return next(iter(errors)).removesuffix("_mae")


def _short(value: float) -> str:
    """Three digits, without an exponent for large errors."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
