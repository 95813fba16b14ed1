"""Compiled predictions equal uncompiled ones for batches of any size; wrong code and failures are found."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from compiled_models import MOLECULES, batch, gotennet, model_of, painn
from torch import Tensor

from eutectic.atoms import EutecticError, Structure
from eutectic.models.backbone import Backbone
from eutectic.models.compiled import check_agreement
from eutectic.models.multitask import MultitaskModel
from eutectic.testing.structures import molecule, slab

SLAB = slab(0, 0.05)


pytestmark = pytest.mark.usefixtures("unchecked_types")


def compiled(model: MultitaskModel, backend: Any = "aot_eager") -> MultitaskModel:
    fast = copy.deepcopy(model)
    fast.compile_predictions(backend=backend)
    return fast


def predicted(model: MultitaskModel, structures: Sequence[Structure], **options: Any) -> dict[str, Tensor]:
    with torch.no_grad():
        return {name: value.detach() for name, value in model(*batch(structures), **options)["task"].items()}


def compare(model: MultitaskModel, fast: MultitaskModel, batches: Sequence[Sequence[Structure]]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # PyTorch's own, on the import of its compiler and on tensors that it looks at; it hides them from users.
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", message=r"The \.grad attribute of a Tensor that is not a leaf")
        for options in ({}, {"conservative": True}, {"of_atoms": True, "last_features": ["energy"]}):
            for structures in batches:
                expected, given = predicted(model, structures, **options), predicted(fast, structures, **options)
                assert given.keys() == expected.keys()
                for name, value in expected.items():
                    torch.testing.assert_close(given[name], value, rtol=1e-5, atol=1e-5)


BATCHES = [MOLECULES, MOLECULES[:2], [*MOLECULES, SLAB], [SLAB, SLAB], MOLECULES[:1], [molecule("H2"), MOLECULES[0]]]


@pytest.mark.parametrize("backbone", [painn, gotennet])
def test_equal_the_uncompiled_ones_for_batches_of_any_size(backbone: Callable[[], Backbone]) -> None:
    model = model_of("atom_vector", backbone=backbone).eval()
    compare(model, compiled(model), BATCHES)


@pytest.mark.slow
@pytest.mark.parametrize("backbone", [painn, gotennet])
def test_equal_the_uncompiled_ones_with_the_default_compiler(backbone: Callable[[], Backbone]) -> None:
    model = model_of("atom_vector", backbone=backbone).eval()
    compare(model, compiled(model, "inductor"), BATCHES)


class Counted:
    """A backend that counts the calls of its code, which runs as it is or with results scaled by `factor`."""

    def __init__(self, factor: float = 1.0) -> None:
        self.compilations = self.calls = 0
        self.factor = factor

    def __call__(self, module: torch.fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        self.compilations += 1

        def run(*args: Any) -> Any:
            self.calls += 1
            return [value * self.factor if self.factor != 1.0 else value for value in module(*args)]

        return run


def test_other_sizes_need_no_other_compilation() -> None:
    counted = Counted()
    fast = compiled(model_of("atom_vector").eval(), counted)
    predicted(fast, MOLECULES)
    before = counted.compilations
    assert before
    for structures in (MOLECULES[:2], MOLECULES[1:], [SLAB, *MOLECULES]):
        calls = counted.calls
        predicted(fast, structures)
        assert counted.calls > calls
    assert counted.compilations == before


def test_a_single_structure_is_compiled_only_if_it_comes_first() -> None:
    counted = Counted()
    fast = compiled(model_of("atom_vector").eval(), counted)
    predicted(fast, MOLECULES)
    calls = counted.calls
    predicted(fast, MOLECULES[:1])
    assert counted.calls == calls
    fast = compiled(model_of("atom_vector").eval(), counted)
    predicted(fast, MOLECULES[:1])
    alone = counted.calls
    assert alone > calls
    predicted(fast, MOLECULES)
    assert counted.calls > alone


def test_wrong_code_is_found_and_left() -> None:
    model = model_of("atom_vector").eval()
    counted = Counted(1.1)
    fast = compiled(model, counted)
    with pytest.warns(UserWarning, match="not compiled: the compiled code gives another .*; predictions continue"):
        given = predicted(fast, MOLECULES)
    calls = counted.calls
    for structures, values in ((MOLECULES, given), (MOLECULES[:2], predicted(fast, MOLECULES[:2]))):
        for name, value in predicted(model, structures).items():
            torch.testing.assert_close(values[name], value, rtol=0, atol=0)
    assert counted.calls == calls


def test_without_a_compiler_predictions_continue() -> None:
    def broken(module: torch.fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        raise RuntimeError("no working C++ compiler")

    model = model_of("atom_vector").eval()
    with pytest.warns(UserWarning, match="not compiled: .*; predictions continue uncompiled"):
        given = predicted(compiled(model, broken), MOLECULES)
    for name, value in predicted(model, MOLECULES).items():
        torch.testing.assert_close(given[name], value, rtol=0, atol=0)


def test_errors_about_structures_are_not_the_compilers(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("atom_vector").eval()

    def refused(*args: Any) -> None:
        raise EutecticError("element", "Og", "an element of the model", "choose another")

    monkeypatch.setattr(model, "_forward", refused)
    model.compile_predictions(backend="aot_eager")
    with pytest.raises(EutecticError, match="Og"):
        predicted(model, MOLECULES)


def test_weights_have_no_gradients_and_training_is_unchanged() -> None:
    model = model_of("atom_vector").eval()
    fast = compiled(model)
    assert not any(p.requires_grad for p in fast.parameters())
    assert all(p.requires_grad for p in model.parameters())


def test_values_that_are_not_finite_agree_only_with_their_like() -> None:
    nan, one = torch.tensor([float("nan"), 1.0]), torch.tensor([5.0, 1.0])
    check_agreement({"energy": nan}, {"energy": nan.clone()})
    with pytest.raises(ArithmeticError, match="another energy"):
        check_agreement({"energy": nan}, {"energy": one})
