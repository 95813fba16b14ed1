"""Models of other packages by name, and files that hold none; whole modules read without their classes."""

from __future__ import annotations

import importlib.metadata
import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from eutectic.atoms import EutecticError
from eutectic.checkpoints.foreign import foreign_model_folder, is_foreign
from eutectic.checkpoints.foreign_model import copied
from eutectic.checkpoints.mace_files import irreps_text
from eutectic.checkpoints.model import load_model
from eutectic.checkpoints.modules_on_disk import stored_module
from eutectic.checkpoints.safe_pickle import Archive
from eutectic.checkpoints.shipped import model_folder
from eutectic.models.foreign.package import Package


@pytest.fixture
def as_if_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All packages seem to be there, and files are read before anything of them is imported."""
    monkeypatch.setenv("EUTECTIC_DATA", str(tmp_path / "home"))
    monkeypatch.setattr(Package, "version", lambda self: self.versions[0])


def test_names() -> None:
    assert is_foreign("sevennet:7net-0")
    assert is_foreign("mace:models/my.model")
    assert not is_foreign("eutectic-small")
    assert not is_foreign("mace")
    assert is_foreign("orb:orb-v3-conservative-inf-omat")
    assert not is_foreign("uma:small")


@pytest.mark.parametrize("name", ["sevennet:7net-0", "mace:medium-mpa-0", "mace:my.model", "orb:my.ckpt"])
def test_without_the_package(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(distribution: str) -> str:
        raise importlib.metadata.PackageNotFoundError(distribution)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(EutecticError, match=r"not installed; expected version 0\.\d+.*pip install 'eutectic\["):
        load_model(name)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("sevennet:7net-1", "did you mean '7net-0'"),
        ("mace:medium-mpa-1", "did you mean 'medium-mpa-0'"),
        ("orb:orb-v3-conservative-inf-oma", "did you mean 'orb-v3-conservative-inf-omat'"),
        ("mace:nowhere/my.model", "no such file"),
        ("sevennet:", "no such file"),
        ("sevenet:7net-0", "a model of another package"),
    ],
)
def test_names_that_do_not_exist(name: str, says: str, as_if_installed: None) -> None:
    with pytest.raises(EutecticError, match=says):
        model_folder(name)


class Opens:
    """Would make a file if it was unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("kind", ["mace", "orb", "sevennet"])
@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"weights": torch.zeros(3)}, "weights|dict"),
        ([1, 2], "list|no dictionary"),
        (nn.Linear(2, 3), "a Linear, not a MACE|no dictionary"),
    ],
    ids=["dictionary", "list", "other module"],
)
def test_files_that_hold_no_model(kind: str, content: object, says: str, tmp_path: Path, as_if_installed: None) -> None:
    torch.save(content, tmp_path / "some.pth")
    with pytest.raises(EutecticError, match=says) as error:
        foreign_model_folder(f"{kind}:{tmp_path / 'some.pth'}")
    assert {"mace": "saved by mace-torch", "orb": "of an Orb v3", "sevennet": "of sevenn"}[kind] in error.value.expected


@pytest.mark.parametrize("kind", ["mace", "orb", "sevennet"])
def test_no_code_of_a_file_is_run(kind: str, tmp_path: Path, as_if_installed: None) -> None:
    module = nn.Linear(2, 3)
    module.extra = Opens(tmp_path / "was run")  # type: ignore[assignment]
    content = {"config": {"version": "0.9.1", "extra": Opens(tmp_path / "was run")}, "model_state_dict": {}}
    torch.save(module if kind == "mace" else content, tmp_path / "hostile.pth")
    with pytest.raises(EutecticError):
        foreign_model_folder(f"{kind}:{tmp_path / 'hostile.pth'}")
    assert not (tmp_path / "was run").exists()
    torch.load(tmp_path / "hostile.pth", weights_only=False)  # the file does run code where nothing keeps it from it
    assert (tmp_path / "was run").exists()


@pytest.mark.parametrize("kind", ["mace", "orb", "sevennet"])
def test_a_file_of_anything_else(kind: str, tmp_path: Path, as_if_installed: None) -> None:
    (tmp_path / "text.model").write_text("no model")
    with pytest.raises(EutecticError, match="cannot be read"):
        foreign_model_folder(f"{kind}:{tmp_path / 'text.model'}")


# --- whole modules --------------------------------------------------------------------------


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.ModuleList([nn.Linear(2, 3), nn.Linear(3, 1, bias=False)])
        self.register_buffer("scale", torch.tensor(2.5, dtype=torch.float64))
        self.sizes, self.gate = [1, 2], nn.functional.silu

    scale: Tensor


def test_a_module_is_read_as_plain_data(tmp_path: Path) -> None:
    module = Outer()
    torch.save(module, tmp_path / "module.model")
    with Archive(tmp_path / "module.model", keep_objects=True) as archive:
        found = stored_module(archive)
        assert found is not None
        state = {name: archive.tensor(tensor) for name, tensor in found.named_tensors()}
    assert found.kind == "Outer"
    assert found["inner.1"].kind == "Linear"
    assert found.attributes["sizes"] == [1, 2]
    assert found.attributes["gate"].origin == "torch.nn.functional.silu"
    expected = module.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], value) and state[name].dtype == value.dtype for name, value in expected.items())


def test_a_module_inside_itself_is_refused(tmp_path: Path) -> None:
    module = nn.Linear(2, 3)
    module._modules = OrderedDict(again=module)
    torch.save(module, tmp_path / "circle.model")
    with (
        Archive(tmp_path / "circle.model", keep_objects=True) as archive,
        pytest.raises(EutecticError, match=r"endlessly nested|modules"),
    ):
        stored_module(archive)


def test_what_is_no_module_is_none(tmp_path: Path) -> None:
    torch.save({"a": 1}, tmp_path / "plain.model")
    with Archive(tmp_path / "plain.model", keep_objects=True) as archive:
        assert stored_module(archive) is None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda state: state.pop("inner.0.bias"), "lacks inner.0.bias"),
        (lambda state: state.update({"inner.0.bias": torch.zeros(4)}), "a different shape of inner.0.bias"),
        (lambda state: state.update({"inner.7.weight": torch.zeros(4)}), "unknown inner.7.weight"),
    ],
)
def test_weights_that_do_not_fit_are_refused(change: Any, says: str, tmp_path: Path) -> None:
    state = {name: value.clone() for name, value in Outer().state_dict().items()}
    change(state)
    with pytest.raises(EutecticError, match=says):
        copied(Outer(), state, tmp_path / "some.model", skip=())


def test_constants_that_a_file_lacks_are_those_of_the_package(tmp_path: Path) -> None:
    module, other = Outer(), Outer()
    state = {name: value + 1 for name, value in other.state_dict().items() if name != "scale"}
    copied(module, state, tmp_path / "some.model", skip=())
    assert float(module.scale) == 2.5
    assert torch.equal(module.inner[0].weight, other.inner[0].weight + 1)  # type: ignore[operator]


def test_irreps_that_are_none_are_refused() -> None:
    assert irreps_text("8x0e+8x1o") == "8x0e+8x1o"
    with pytest.raises(ValueError, match="in place of irreps"):
        irreps_text([1, 2])
