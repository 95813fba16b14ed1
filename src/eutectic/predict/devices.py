"""Devices to predict on; several devices have one process each and take windows of structures in turn."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from eutectic.atoms import EutecticError, Structure
from eutectic.checkpoints.model import TrainedModel, load_model
from eutectic.predict.prediction import Prediction, predict_each, window_of
from eutectic.predict.prepared import compiled
from eutectic.processes import cores, map_in_order
from eutectic.train.runtime.matmul import prefer_fast_matmul
from eutectic.train.runtime.memory import keep_freed_memory


def default_device() -> torch.device:
    """A GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def devices_named(names: Sequence[str]) -> list[torch.device]:
    """Devices by name ("cpu", "cuda", "cuda:1", …); without names, the default device.

    Raises:
        EutecticError: no such device.
    """
    return [_device(name) for name in names] or [default_device()]


def _device(name: str) -> torch.device:
    gpus = torch.cuda.device_count()
    known = [
        "cpu",
        *(f"cuda:{index}" for index in range(gpus)),
        *(["mps"] if torch.backends.mps.is_available() else []),
    ]
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is not None and str(device) in (*known, "cuda" if gpus else "cpu"):
        return device
    raise EutecticError(f"--device {name}", "no such device here", f"one of {', '.join(known)}", "choose one of these")


def predict_on(
    devices: Sequence[torch.device],
    folder: Path,
    task_name: str,
    structures: Iterable[Structure],
    *,
    batch_size: int = 32,
    normalised: bool = False,
    conservative: bool = False,
    compile: bool = False,
    on_done: Callable[[int], None] = lambda structures: None,
) -> Iterator[Prediction | EutecticError]:
    """As `predict_each`, with one process per device; results are in the order of the structures.

    Windows are the same as on one device, so that results do not depend on the number of devices.

    Args:
        devices: devices to predict on; the same one may be listed several times.
        folder: model folder, loaded by each process.
        task_name, structures, batch_size, normalised, conservative, on_done: as for `predict_each`.
        compile: compile the model in each process; see `compiled`.

    Raises:
        EutecticError: as `predict_each`; a process died.
    """
    remaining = iter(structures)
    windows = iter(lambda: list(itertools.islice(remaining, window_of(batch_size))), [])
    options = {"batch_size": batch_size, "normalised": normalised, "conservative": conservative}
    threads = max(1, min(torch.get_num_threads(), cores() // len(devices)))
    for results in map_in_order(
        _predict_window,
        ((task_name, window, options) for window in windows),
        [partial(_begin, folder, str(device), threads, compile) for device in devices],
        where="predict",
        fix="run the same command again with a smaller --batch-size or fewer --device",
    ):
        on_done(len(results))
        yield from results


_place: tuple[Path, str, int, bool] | None = None
"""Set in each device's process: model folder, device, number of threads, whether to compile."""


def _begin(*place: Any) -> None:
    global _place
    _place = place


@cache
def _loaded() -> TrainedModel:
    # Loaded in the first call rather than at start-up, since only errors of calls reach the caller.
    assert _place is not None
    folder, device, threads, compile = _place
    torch.set_num_threads(threads)
    keep_freed_memory()
    model = load_model(folder)
    prefer_fast_matmul(model.module)
    model.module.to(device)
    return compiled(model) if compile else model


def _predict_window(
    task_name: str, window: list[Structure], options: dict[str, Any]
) -> list[Prediction | EutecticError]:
    return list(predict_each(_loaded(), task_name, window, window=len(window), **options))
