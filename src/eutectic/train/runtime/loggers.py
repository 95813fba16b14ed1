"""Loggers of a run, by name: Fabric's loggers, which write its numbers besides the journal.

`csv` writes metrics.csv and `tensorboard` the folder tensorboard/, both in the run's folder; `wandb` sends to Weights &
Biases (offline with WANDB_MODE=offline). An installed package adds others under the entry point group
`eutectic.loggers`: a function of the run's folder and of the step it goes on from, which returns a
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
    """A run in Weights & Biases, under its folder's name; resumed, it goes on where it was.

    (The logger that comes with wandb needs the whole of PyTorch Lightning, which nothing else here does.)

    Args:
        folder: the run's. Its settings become the configuration, and it keeps the identifier, by which a resumed run
            is found again, in `wandb-id`.
    """

    def __init__(self, folder: Path) -> None:
        import wandb

        kept = folder / "wandb-id"
        if not kept.exists():
            kept.write_text(secrets.token_hex(4))
        self.run: Any = wandb.init(
            project="eutectic",
            name=folder.name,
            id=kept.read_text().strip(),
            dir=str(folder),
            resume="allow",
            config=json.loads((folder / "settings.json").read_text()),
        )
        # Validations come beside steps, and a step may be told of twice.
        self.run.define_metric("*", step_metric="step")

    @property
    def name(self) -> str:
        """The project's."""
        return "eutectic"

    @property
    def version(self) -> str:
        """The run's identifier."""
        return str(self.run.id)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """What is known of a step, as far as it is a number."""
        self.run.log({"step": step, **{k: v for k, v in metrics.items() if math.isfinite(v)}})

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Settings beside those of the folder."""
        self.run.config.update(dict(params))

    def finalize(self, status: str) -> None:
        """Send what is waiting."""
        self.run.finish(exit_code=0 if status == "success" else 1)


def _wandb(folder: Path, step: int) -> Logger:
    return WandbLogger(folder)


KNOWN: Mapping[str, tuple[Factory, str]] = {
    "csv": (_csv, "lightning_fabric"),
    "tensorboard": (_tensorboard, "tensorboard"),
    "wandb": (_wandb, "wandb"),
}
"""Name → what makes it, and the package it needs."""


def installed(package: str) -> bool:
    """Whether a package can be imported."""
    return importlib.util.find_spec(package) is not None


def chosen(names: Sequence[str] | None) -> dict[str, Factory]:
    """The loggers of a run; csv, and tensorboard where it is installed, if none is named.

    Raises:
        EutecticError: no logger of that name, or its package is not installed.
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
                f"{name!r}, and the package {KNOWN[name][1]!r} is not installed",
                "an installed one",
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
        sets: names of the data sets: columns are the same from the first row to the last.
    """

    def __init__(self, factories: Mapping[str, Factory], folder: Path, sets: Iterable[str]) -> None:
        self._factories, self._folder, self._sets = factories, folder, tuple(sets)
        self._loggers: list[Logger] | None = None

    def stepped(self, entry: Mapping[str, Any]) -> None:
        """One entry of the journal."""
        self._begin(entry["step"])
        row = self._row(entry)
        for logger in self._loggers or ():
            logger.log_metrics(row, entry["step"])

    def validated(self, step: int, by_set: Mapping[str, Mapping[str, float]]) -> None:
        """Errors on held-out structures, in physical units. Not to a table, which has one row for each step."""
        self._begin(step)
        row = {f"validation/{name}/{key}": v for name, errors in by_set.items() for key, v in errors.items()}
        for logger in self._loggers or ():
            if not isinstance(logger, CSVLogger):
                logger.log_metrics(row, step)

    def close(self) -> None:
        """Write what is waiting."""
        for logger in self._loggers or ():
            logger.finalize("success")

    def _begin(self, step: int) -> None:
        """At the first thing that is told: what is known of earlier steps is kept, of later ones forgotten."""
        if self._loggers is not None:
            return
        self._loggers = []
        for make in self._factories.values():
            with warnings.catch_warnings():
                # The run's folder is not empty, and the table in it is about to be made again: that is meant.
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
