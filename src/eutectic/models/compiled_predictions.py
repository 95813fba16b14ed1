"""Predictions with compiled backbone and heads, compared with the uncompiled model now and then."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
import torch.fx.experimental._config as shape_settings
from torch import Tensor, nn

from eutectic.atoms import EutecticError
from eutectic.graph import Graph
from eutectic.models.compiled import AGREEMENT, check_agreement, is_due

BFLOAT16_AGREEMENT = 3e-2
"""As `AGREEMENT`, with matrix products in bfloat16: it rounds to 4e-3, and not between operations that are fused."""

ByTask = dict[str, dict[str, Tensor]]


class CompiledPredictions:
    """Predictions of a model whose modules are compiled, in place and with dynamic shapes.

    Identical modules are compiled once. The 1st, 10th, 100th, … batch is also computed uncompiled, and the two must
    agree. If they do not, or the compiler fails, a warning says so and predictions continue uncompiled.

    Args:
        forward: predictions for a batch and options.
        modules: to compile.
        backend: of `torch.compile`.
    """

    def __init__(self, forward: Callable[..., ByTask], modules: Sequence[nn.Module], backend: str) -> None:
        self._forward = forward
        self._batches: Counter[tuple[object, ...]] = Counter()
        self._one_by_one: bool | None = None
        self._failed = False
        # Sizes that are equal in the first batch may differ in the next.
        shape_settings.use_duck_shape = False
        for module in modules:
            module.compile(dynamic=True, backend=backend)

    def __call__(
        self, graph: Graph, parts: Sequence[Any], conservative: bool, of_atoms: bool, last_features: Collection[str]
    ) -> ByTask:
        """Predictions for a batch, compiled if possible; arguments as of `MultitaskModel.forward`."""
        options = parts, conservative, of_atoms, last_features
        if self._failed or not self._worthwhile(graph):
            return self._uncompiled(graph, *options)
        low = torch.is_autocast_enabled(graph.positions.device.type)
        kind = (*(part.task for part in parts), conservative, of_atoms, *last_features, low)
        try:
            predictions = self._forward(graph, *options)
            self._batches[kind] += 1
            if is_due(self._batches[kind]):
                expected = self._uncompiled(graph, *options)
                for task, values in predictions.items():
                    check_agreement(expected[task], values, BFLOAT16_AGREEMENT if low else AGREEMENT)
        except (torch.OutOfMemoryError, MemoryError, EutecticError):
            raise
        except Exception as error:  # whatever the compiler raises, also for a later size
            self._failed = True
            reason = (str(error) or type(error).__name__).splitlines()[0]
            warnings.warn(f"not compiled: {reason}; predictions continue uncompiled", stacklevel=2)
            return self._uncompiled(graph, *options)
        return predictions

    def _worthwhile(self, graph: Graph) -> bool:
        """Sizes of one are compiled as constants: worth the time only for structures that are predicted one by one, not
        for the last of a file."""
        if min(graph.numbers.shape[0], graph.main.source.shape[0], *(graph.main.degree_stats or ())) < 2:
            return False
        single = graph.n_atoms.shape[0] == 1
        if self._one_by_one is None:
            self._one_by_one = single
        return self._one_by_one or not single

    def _uncompiled(self, graph: Graph, *options: Any) -> ByTask:
        with torch.compiler.set_stance("force_eager"):
            return self._forward(graph, *options)
