"""Compiled energies with their derivatives give what the uncompiled model gives, for batches of any size."""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from compiled_models import MOLECULES, batch, gotennet, model_of, painn
from runs import small_finetuning
from torch import Tensor

from eutectic.atoms import Structure
from eutectic.data.store import Store
from eutectic.models import compiled
from eutectic.models.backbone import Backbone
from eutectic.models.multitask import MultitaskModel
from eutectic.testing.structures import slab
from eutectic.train.finetune import finetune

pytestmark = pytest.mark.usefixtures("unchecked_types")


def learned(model: MultitaskModel, structures: Sequence[Structure]) -> dict[str, Tensor]:
    """Predictions, and the gradient of a loss on them."""
    model.zero_grad()
    predictions = model(*batch(structures))["task"]
    torch.stack([(value - 1).square().mean() for value in predictions.values()]).sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {name: value.detach() for name, value in predictions.items()} | gradients


def compare(model: MultitaskModel, backend: str, batches: Sequence[Sequence[Structure]]) -> None:
    fast = copy.deepcopy(model)
    fast.compile_derivatives("task", backend=backend)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # PyTorch 2.13's own, on the import of its compiler.
        warnings.filterwarnings("ignore", message=r".*torch\.jit", category=DeprecationWarning)
        for structures in batches:
            expected, given = learned(model, structures), learned(fast, structures)
            assert expected.keys() == given.keys()
            for name, value in expected.items():
                torch.testing.assert_close(given[name], value, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("backbone", [painn, gotennet])
def test_compiled_derivatives_are_those_of_the_model(backbone: Callable[[], Backbone]) -> None:
    # Other sizes, a single structure, and the first batch again.
    compare(model_of(backbone=backbone), "aot_eager", [MOLECULES[:3], MOLECULES[1:], MOLECULES[:1], MOLECULES[:3]])


def test_compiled_stress() -> None:
    compare(model_of(stress=True), "aot_eager", [[slab(0, 0.1), slab(1, 0.1)], [slab(k, 0.05) for k in range(3)]])


def trained(model: MultitaskModel) -> MultitaskModel:
    """After some steps: at random weights, the contributions of some parameters are too small to be noticed."""
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(50):
        learned(model, MOLECULES[:3])
        optimiser.step()
    return model


@pytest.mark.slow
@pytest.mark.parametrize("backbone", [painn, gotennet])
def test_compiled_to_machine_code(backbone: Callable[[], Backbone]) -> None:
    compare(trained(model_of(backbone=backbone)), "inductor", [MOLECULES[:3], MOLECULES[1:], MOLECULES[:1]])


def test_evaluation_is_not_compiled() -> None:
    model = model_of()
    model.compile_derivatives("task", backend="no such backend")
    graph, parts = batch(MOLECULES)
    assert model.eval()(graph, parts)["task"]["forces"].shape == (len(graph.numbers), 3)
    assert "forces" in model.train()(graph, parts, conservative=True)["task"]


def test_wrong_code_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    # Without this the second derivative is cut, and predictions still agree.
    monkeypatch.setattr(compiled, "without_detours", lambda module: module)
    model, fast = model_of(), model_of()
    fast.compile_derivatives("task", backend="aot_eager")
    with pytest.warns(UserWarning, match="not compiled: the compiled code gives another gradient"):
        given = learned(fast, MOLECULES[:3])
    for name, value in learned(model, MOLECULES[:3]).items():
        torch.testing.assert_close(given[name], value)


def test_code_that_becomes_wrong_is_noticed() -> None:
    fast = model_of()
    fast.compile_derivatives("task", backend="aot_eager")
    learned(fast, MOLECULES[:3])
    assert fast._compiled is not None
    (key,) = fast._compiled._compiled
    right, names = fast._compiled._compiled[key]
    fast._compiled._compiled[key] = lambda *values: [1.01 * value for value in right(*values)], names
    for _ in range(8):
        learned(fast, MOLECULES[:3])
    with pytest.warns(UserWarning, match="not compiled: the compiled code gives another"):
        learned(fast, MOLECULES[:3])


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    model, fast = model_of(), model_of()
    fast.compile_derivatives("task", backend="no such backend")
    with pytest.warns(UserWarning, match="training continues uncompiled"):
        given = learned(fast, MOLECULES[:3])
    for name, value in learned(model, MOLECULES[:3]).items():
        torch.testing.assert_close(given[name], value)


def test_a_compiled_fine_tuning_is_the_same(molecules: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    errors, compiled_calls = [], []
    compile_derivatives, call = MultitaskModel.compile_derivatives, compiled.CompiledDerivatives._compile
    without_inductor = functools.partialmethod(compile_derivatives, backend="aot_eager")
    monkeypatch.setattr(MultitaskModel, "compile_derivatives", without_inductor)

    def counted(self: compiled.CompiledDerivatives, *arguments: object) -> object:
        compiled_calls.append(arguments)
        return call(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(compiled.CompiledDerivatives, "_compile", counted)
    for compile_it in (False, True):
        train = {"steps": 4, "batch_size": 8, "evaluate_every": 4, "threads": 1, "accelerator": "cpu"}
        settings = small_finetuning(molecules.path, train=train | {"compile": compile_it})
        errors.append(finetune(settings, tmp_path / str(compile_it)).test_errors)
    assert len(compiled_calls) == 1
    assert errors[0] == pytest.approx(errors[1], rel=1e-4)
