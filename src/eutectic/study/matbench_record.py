"""The record file of Matbench v0.1, as its package (`matbench` 0.6) writes, reads and validates it.

One compressed JSON object: for each task and official fold, the prediction of every test structure by its id
("mb-jdft2d-001"), with MAE, RMSE, MAPE and the largest error; and a SHA-256 of the record. Unpacked, it can be read by
`matbench.bench.MatbenchBenchmark.from_file`; a submission to https://github.com/materialsproject/matbench contains it
as `results.json.gz`.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from eutectic.atoms import EutecticError
from eutectic.files import write_atomically

BENCHMARK = "matbench_v0.1"
VERSION = "0.6"
SMALLEST_LABEL = 1e-5
"""Smaller labels are left out of MAPE."""


def scores(truth: np.ndarray, prediction: np.ndarray) -> dict[str, float]:
    """Matbench's scores of a regression on one fold: mae, rmse, mape, max_error.

    Args:
        truth, prediction: (n,), in the unit of the task.
    """
    difference = np.abs(prediction - truth)
    nonzero = np.abs(truth) > SMALLEST_LABEL
    return {
        "mae": float(difference.mean()),
        "rmse": math.sqrt(float(np.square(difference).mean())),
        "mape": float(np.mean(difference[nonzero] / np.abs(truth[nonzero]))) if nonzero.any() else math.nan,
        "max_error": float(difference.max()),
    }


def record(
    predictions: Mapping[str, Mapping[str, Mapping[str, tuple[float, float]]]], about: Mapping[str, Any]
) -> dict[str, Any]:
    """The record as plain JSON.

    Args:
        predictions: task ("jdft2d") → fold ("fold_0") → id → label and prediction.
        about: free-form description of the algorithm.

    Raises:
        EutecticError: a fold without predictions, or with non-finite ones.
    """
    tasks = {}
    for task, folds in predictions.items():
        name = f"matbench_{task}"
        results = {}
        for fold, values in folds.items():
            pairs = np.array(list(values.values()), dtype=float).reshape(-1, 2)
            if not len(pairs) or not np.isfinite(pairs).all():
                raise EutecticError(
                    f"{name}, {fold}",
                    "no predictions, or non-finite ones",
                    "a prediction for each test structure",
                    "run the task again, in another folder",
                )
            results[fold] = {
                "data": {key: float(prediction) for key, (_, prediction) in values.items()},
                "parameters": {},
                "scores": scores(pairs[:, 0], pairs[:, 1]),
            }
        tasks[name] = {
            "@module": "matbench.task",
            "@class": "MatbenchTask",
            "benchmark_name": BENCHMARK,
            "dataset_name": name,
            "results": results,
        }
    contents: dict[str, Any] = {
        "@module": "matbench.bench",
        "@class": "MatbenchBenchmark",
        "version": VERSION,
        "benchmark_name": BENCHMARK,
        "tasks": tasks,
        "user_metadata": dict(about),
        "datestamp": datetime.now(UTC).strftime("%Y.%m.%d %H:%M.%S"),
    }
    return {**contents, "hash": digest(contents)}


def digest(values: Mapping[str, Any]) -> str:
    """SHA-256 of a record without its hash: of the JSON text with sorted keys."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def write_record(
    path: Path,
    predictions: Mapping[str, Mapping[str, Mapping[str, tuple[float, float]]]],
    about: Mapping[str, Any],
) -> None:
    """Write the record; see `record`.

    Raises:
        EutecticError: as `record`; the file cannot be written.
    """
    write_atomically(path, gzip.compress(json.dumps(record(predictions, about)).encode(), mtime=0))
