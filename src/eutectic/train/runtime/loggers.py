"""Loggers of a run: Fabric's loggers, in addition to the journal.

`csv` writes metrics.csv and `tensorboard` the folder tensorboard/, both in the run's folder; `wandb` sends metrics to
Weights & Biases (offline with WANDB_MODE=offline). Installed packages can add loggers in the entry point group
`eutectic.loggers`: a function of the run's folder and the step it resumes from, which returns a
`lightning_fabric.loggers.Logger`.
"""

from __future__ import annotations

import importlib.util
import json
import math
import secrets
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from lightning_fabric.loggers import CSVLogger, Logger, TensorBoardLogger

from eutectic.atoms import EutecticError, did_you_mean
from eutectic.train.runtime.journal import read_journal

Factory = Callable[[Path, int], Logger]


def _csv(folder: Path, step: int) -> Logger:
    return CSVLogger(folder, name="", version="", flush_logs_every_n_steps=20)


def _tensorboard(folder: Path, step: int) -> Logger:
    return TensorBoardLogger(folder, name="tensorboard", version="", purge_step=step, default_hp_metric=False)


class WandbLogger(Logger):
    """A run in Weights & Biases, named after its folder; a resumed run is continued.

    PyTorch Lightning's logger for wandb would need PyTorch Lightning as a dependency.

    Args:
        folder: the run's. Its settings become the configuration; its file `wandb-id` contains the identifier of the
            run, for resuming.
    """

    def __init__(self, folder: Path) -> None:
        import wandb

        identifier = folder / "wandb-id"
        if not identifier.exists():
            identifier.write_text(secrets.token_hex(4))
        self.run: Any = wandb.init(
            project="eutectic",
            name=folder.name,
            id=identifier.read_text().strip(),
            dir=str(folder),
            resume="allow",
            config=json.loads((folder / "settings.json").read_text()),
        )
        # Validations are logged separately from steps, so a step may be logged twice.
        self.run.define_metric("*", step_metric="step")

    @property
    def name(self) -> str:
        """Name of the project."""
        return "eutectic"

    @property
    def version(self) -> str:
        """Identifier of the run."""
        return str(self.run.id)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log the finite metrics of a step."""
        self.run.log({"step": step, **{k: v for k, v in metrics.items() if math.isfinite(v)}})

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Log further settings."""
        self.run.config.update(dict(params))

    def finalize(self, status: str) -> None:
        """Send pending data and end the run."""
        self.run.finish(exit_code=0 if status == "success" else 1)


def _wandb(folder: Path, step: int) -> Logger:
    return WandbLogger(folder)


KNOWN: Mapping[str, tuple[Factory, str]] = {
    "csv": (_csv, "lightning_fabric"),
    "tensorboard": (_tensorboard, "tensorboard"),
    "wandb": (_wandb, "wandb"),
}
"""Name → factory, and the package it needs."""


def installed(package: str) -> bool:
    """Whether a package can be imported."""
    return importlib.util.find_spec(package) is not None


def chosen(names: Sequence[str] | None) -> dict[str, Factory]:
    """The loggers of a run; by default csv, and tensorboard if it is installed.

    Raises:
        EutecticError: unknown logger, or its package is not installed.
    """
    if names is None:
        names = [name for name in ("csv", "tensorboard") if installed(KNOWN[name][1])]
    others = {point.name: point for point in entry_points(group="eutectic.loggers")}
    factories: dict[str, Factory] = {}
    for name in names:
        if name in others:
            factories[name] = others[name].load()
        elif name not in KNOWN:
            every = [*KNOWN, *others]
            raise EutecticError("loggers", repr(name), f"one of {', '.join(every)}", did_you_mean(name, every))
        elif not installed(KNOWN[name][1]):
            raise EutecticError(
                "loggers",
                f"{name!r}, but the package {KNOWN[name][1]!r} is not installed",
                "an installed logger",
                f"pip install {KNOWN[name][1]}, or leave out --loggers {name}",
            )
        else:
            factories[name] = KNOWN[name][0]
    return factories


class Loggers:
    """All loggers of a run.

    Args:
        factories: see `chosen`.
        folder: the run's.
        sets: names of the data sets, so that all rows of a table have the same columns.
    """

    def __init__(self, factories: Mapping[str, Factory], folder: Path, sets: Iterable[str]) -> None:
        self._factories, self._folder, self._sets = factories, folder, tuple(sets)
        self._loggers: list[Logger] | None = None

    def stepped(self, entry: Mapping[str, Any]) -> None:
        """Log a step, an entry of the journal."""
        self._begin(entry["step"])
        row = self._row(entry)
        for logger in self._loggers or ():
            logger.log_metrics(row, entry["step"])

    def validated(self, step: int, by_set: Mapping[str, Mapping[str, float]]) -> None:
        """Log validation errors, in physical units. The csv logger skips them, since it has one row per step."""
        self._begin(step)
        row = {f"validation/{name}/{key}": v for name, errors in by_set.items() for key, v in errors.items()}
        for logger in self._loggers or ():
            if not isinstance(logger, CSVLogger):
                logger.log_metrics(row, step)

    def close(self) -> None:
        """Write pending data."""
        for logger in self._loggers or ():
            logger.finalize("success")

    def _begin(self, step: int) -> None:
        """Create the loggers at the first call; entries of earlier steps are kept, those of later steps dropped."""
        if self._loggers is not None:
            return
        self._loggers = []
        for make in self._factories.values():
            with warnings.catch_warnings():
                # Expected: the run's folder is not empty, and the table in it is rewritten.
                warnings.filterwarnings("ignore", message=".*exists and is not empty.*")
                logger = make(self._folder, step)
                if isinstance(logger, CSVLogger):
                    _ = logger.experiment
            self._loggers.append(logger)
            if isinstance(logger, CSVLogger):
                for entry in read_journal(self._folder):
                    if entry["step"] < step:
                        logger.log_metrics(dict(self._row(entry)), entry["step"])

    def _row(self, entry: Mapping[str, Any]) -> dict[str, float]:
        by_set = entry.get("loss_by_set", {})
        row = {k: float(v) for k, v in entry.items() if isinstance(v, int | float) and k != "step" and math.isfinite(v)}
        row.update({f"loss/{name}": float(by_set.get(name, math.nan)) for name in self._sets})
        return row
