"""A model with forces as derivatives of its energy, as one compiled function.

`torch.compile` cannot differentiate its own code twice, and learning forces needs that: a derivative for the forces,
and another for the loss. Here the first derivative is taken while the model is traced into a graph of operations
(`make_fx`), so that the graph contains it, and only the second is left to the compiler.

Three properties of the traced graph make the result correct (found with PyTorch 2.13):

* `detach` is removed: tracing detaches what the first derivative saves, which would cut the second;
* sums over edges and their gathers become operators that the compiler does not look into. Fused with other operations,
  Inductor's CPU code adds them up wrongly;
* sizes of the batch stay symbolic, so that batches of other sizes need no new compilation.

The 1st, 10th, 100th, … batch is also computed uncompiled, and the two must agree: wrong code may differ by less than
rounding at random weights, and by much in training.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar, cast

import torch
import torch.fx.experimental._config as shape_settings
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx

from eutectic.graph import Graph
from eutectic.graph.graph import DegreeStats
from eutectic.graph.operators import own

aten = torch.ops.aten

AGREEMENT = 1e-3
"""Largest difference between compiled and uncompiled results, relative to the largest value; rounding gives 1e-6."""

Value = TypeVar("Value")


class CompiledDerivatives:
    """Compiled predictions of one task whose forces or stress are derivatives of its energy.

    Args:
        forward: graph → property → prediction, uncompiled, for a graph with structures of one task only.
        module: whose parameters `forward` uses.
        backend: of `torch.compile`.
    """

    def __init__(self, forward: Callable[[Graph], dict[str, Tensor]], module: nn.Module, backend: str) -> None:
        self._forward, self._module, self._backend = forward, module, backend
        self._compiled: dict[tuple[str, ...], tuple[Callable[..., Any], list[str]]] = {}
        self._batches: Counter[tuple[str, ...]] = Counter()
        self._failed = False

    def __call__(self, graph: Graph) -> dict[str, Tensor]:
        """Predictions for a batch, compiled if possible."""
        tensors, key = tensors_of(graph)
        # Sizes of one are compiled as constants: not worth another compilation.
        sizes = graph.n_atoms.shape[0], graph.numbers.shape[0], graph.main.source.shape[0]
        if self._failed or min(*sizes, *(graph.main.degree_stats or ())) < 2:
            return self._forward(graph)
        parameters: dict[str, Tensor] = dict(self._module.named_parameters())
        try:
            if key not in self._compiled:
                self._compiled[key] = self._compile(graph, parameters, tensors)
            self._batches[key] += 1
            if is_due(self._batches[key]):
                self._check(key, graph, parameters, tensors)
            compiled, names = self._compiled[key]
            return dict(zip(names, compiled(parameters, tensors), strict=True))
        except (torch.OutOfMemoryError, MemoryError):
            raise
        except Exception as error:  # whatever tracer and compiler raise, also for a later size
            self._failed = True
            warnings.warn(
                f"not compiled: {(str(error) or type(error).__name__).splitlines()[0]}; training continues uncompiled",
                stacklevel=2,
            )
            return self._forward(graph)

    def _compile(
        self, graph: Graph, parameters: dict[str, Tensor], tensors: list[Tensor]
    ) -> tuple[Callable[..., Any], list[str]]:
        names: list[str] = []

        def traced(parameters: dict[str, Tensor], tensors: list[Tensor]) -> list[Tensor]:
            with torch.enable_grad():
                replaced = torch.func.functional_call(
                    _Calling(self._module, self._forward),
                    {f"module.{name}": value for name, value in parameters.items()},
                    (with_tensors(graph, iter(tensors)),),
                )
            names[:] = replaced
            return list(replaced.values())

        # Sizes that are equal in the first batch may differ in the next.
        shape_settings.use_duck_shape = False
        traced_graph = make_fx(traced, tracing_mode="symbolic", _allow_non_fake_inputs=True)(parameters, tensors)
        return torch.compile(without_detours(traced_graph), dynamic=True, backend=self._backend), names

    def _check(self, key: tuple[str, ...], graph: Graph, parameters: dict[str, Tensor], tensors: list[Tensor]) -> None:
        """Compare compiled and uncompiled predictions, and the gradient of a loss on them.

        Raises:
            ArithmeticError: they differ.
        """
        compiled, names = self._compiled[key]

        def results(values: dict[str, Tensor]) -> dict[str, Tensor]:
            loss = torch.stack([(value - 0.5).square().mean() for value in values.values()]).sum()
            learned = {name: p for name, p in parameters.items() if p.requires_grad}
            gradients = torch.autograd.grad(loss, list(learned.values()), allow_unused=True)
            found = {f"gradient of {n}": g for n, g in zip(learned, gradients, strict=True) if g is not None}
            return {name: value.detach() for name, value in values.items()} | found

        expected = results(self._forward(graph))
        check_agreement(expected, results(dict(zip(names, compiled(parameters, tensors), strict=True))))


def is_due(batch: int) -> bool:
    """Whether this batch is also computed uncompiled: the 1st, 10th, 100th, …"""
    return batch == 10 ** (len(str(batch)) - 1)


def check_agreement(expected: Mapping[str, Tensor], given: Mapping[str, Tensor], tolerance: float = AGREEMENT) -> None:
    """Check that compiled and uncompiled results agree.

    Args:
        expected, given: name → value.
        tolerance: largest difference, relative to the largest value.

    Raises:
        ArithmeticError: they differ.
    """
    for name in expected:
        # What is not finite in both does not differ.
        value, other = expected[name].nan_to_num(), given[name].nan_to_num()
        scale, difference = float(value.abs().max()), float((value - other).abs().max())
        # A gradient that is zero but for rounding has no digits to compare.
        if not difference <= tolerance * max(scale, AGREEMENT):
            raise ArithmeticError(f"the compiled code gives another {name} (by {difference:.1e} of {scale:.1e})")


class _Calling(nn.Module):
    """Lets `functional_call` reach a function of a module that is not its `forward`."""

    def __init__(self, module: nn.Module, function: Callable[[Graph], dict[str, Tensor]]) -> None:
        super().__init__()
        self.module, self.function = module, function

    def forward(self, graph: Graph) -> dict[str, Tensor]:
        return self.function(graph)


def tensors_of(graph: Graph) -> tuple[list[Tensor], tuple[str, ...]]:
    """All tensors of a graph in a fixed order, and what else tracing depends on: which there are, and their types."""
    tensors: list[Tensor] = []
    key: list[str] = []

    def visit(name: str, value: Any) -> None:
        if isinstance(value, Tensor):
            tensors.append(value)
            key.append(f"{name} {value.dtype} {value.device}")
        elif isinstance(value, DegreeStats):
            # Numbers of one batch: as the sizes of an empty tensor, they can be others in the next.
            visit(name, torch.empty(value.most, value.reached, 0))
        elif is_dataclass(value):
            for field in fields(value):
                visit(f"{name}.{field.name}", getattr(value, field.name))

    visit("graph", graph)
    return tensors, tuple(key)


def with_tensors(graph: Graph, tensors: Iterator[Tensor]) -> Graph:
    """The graph with other tensors, in the order of `tensors_of`."""

    def visit(value: Value) -> Value:
        if isinstance(value, Tensor):
            return cast(Value, next(tensors))
        if isinstance(value, DegreeStats):
            most, reached, _ = next(tensors).shape
            return cast(Value, DegreeStats(most=most, reached=reached))
        if is_dataclass(value) and not isinstance(value, type):
            return replace(value, **{field.name: visit(getattr(value, field.name)) for field in fields(value)})
        return value

    return visit(graph)


def without_detours(module: GraphModule) -> GraphModule:
    """The traced graph without `detach`, and with sums and gathers over rows as operators of their own."""
    graph = module.graph
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        if node.target is aten.detach.default:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
            continue
        with graph.inserting_before(node):
            new = _operator(module, node)
        if new is not None:
            new.meta = dict(node.meta)
            node.replace_all_uses_with(new)
            graph.erase_node(node)
    graph.eliminate_dead_code()
    module.recompile()
    return module


def _operator(module: GraphModule, node: Node) -> Node | None:
    """`gather` or `scatter_sum` in place of a node, if it is one of them."""
    call = module.graph.call_function
    args: Sequence[Any] = node.args
    if node.target is aten.index_select.default and args[1] == 0:
        return call(own.gather.default, (args[0], args[2]))
    if node.target is aten.index.Tensor and _is_one_index(args[1]):
        return call(own.gather.default, (args[0], args[1][0]))
    if node.target is aten.embedding.default and args[1].meta["val"].ndim == 1:
        return call(own.gather.default, (args[0], args[1]))
    if node.target in (aten.index_add.default, aten.index_add_.default) and args[1] == 0 and _is_zero(args[0]):
        return call(own.scatter_sum.default, (args[3], args[2], call(aten.sym_size.int, (args[0], 0))))
    if node.target is aten.index_put.default and _is_one_index(args[1]) and _is_zero(args[0]) and args[3:] == (True,):
        return call(own.scatter_sum.default, (args[2], args[1][0], call(aten.sym_size.int, (args[0], 0))))
    return None


def _is_one_index(indices: Sequence[Node | None]) -> bool:
    (first, *others) = indices
    if first is None or others:
        return False
    value = first.meta["val"]
    return value.ndim == 1 and value.dtype in (torch.int64, torch.int32)


def _is_zero(node: Node) -> bool:
    return node.target in (aten.new_zeros.default, aten.zeros.default, aten.zeros_like.default)
