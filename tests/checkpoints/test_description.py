"""Model folders: what was altered since it was written is refused, and so is what never was a model."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase.build import molecule
from safetensors.torch import load_file, save_file

from eutectic.atoms import EutecticError, Structure
from eutectic.checkpoints.description import (
    DESCRIPTION,
    WEIGHTS,
    description_hash,
    migrate,
    read_description,
    seal_model,
)
from eutectic.checkpoints.model import TrainedModel, build_backbone, load_model, save_model
from eutectic.checkpoints.shipped import model_folder
from eutectic.graph import GraphSettings
from eutectic.models.heads import HeadSettings
from eutectic.models.multitask import MultitaskModel
from eutectic.predict.prediction import predict
from eutectic.tasks import Normaliser, Target, TargetSettings, Task
from eutectic.tasks.references import References

GRAPH = GraphSettings(cutoff=4.0, max_neighbours=12)
WATER = Structure.from_ase(molecule("H2O"))
Change = Callable[[dict[str, Any]], Any]


def _model(seed: int) -> TrainedModel:
    references = References(property="energy", values={1: -3.0, 8: -7.0})
    targets = {
        "energy": Target(TargetSettings(head=HeadSettings(layers=1)), Normaliser(references, 0.1, 2.0), 1.0),
        "forces": Target(TargetSettings(head=HeadSettings(kind="direct_forces")), Normaliser(None, 0.0, 0.5), 1.0),
    }
    task = Task("water", "none", targets, GRAPH)
    torch.manual_seed(seed)
    settings = {"width": 8, "layers": 1, "cutoff": 4.0, "edge_width": 8}
    backbone, _ = build_backbone("painn", settings)
    module = MultitaskModel(backbone, {"water": task.heads}).eval()
    return TrainedModel(module, (task,), "painn", settings, GRAPH, {"pretrained_on": {"water": {"elements": [1, 8]}}})


@pytest.fixture(scope="module")
def model() -> TrainedModel:
    return _model(0)


@pytest.fixture
def folder(model: TrainedModel, tmp_path: Path) -> Path:
    save_model(tmp_path / "model", model)
    return tmp_path / "model"


def _rewrite(folder: Path, change: Change, *, sealed: bool = False) -> None:
    """Change the description; without `sealed` it has no hash afterwards, as an older model."""
    description = json.loads((folder / DESCRIPTION).read_text())
    if not sealed:
        del description["sha256"]
    changed = change(description)
    (folder / DESCRIPTION).write_text(json.dumps(description if changed is None else changed))


def _refused(folder: Path, *words: str) -> None:
    with pytest.raises(EutecticError) as caught:
        load_model(folder)
    error = caught.value
    assert all((error.where, error.given, error.expected, error.fix))
    for word in words:
        assert word in str(error)


# --- hashes ----------------------------------------------------------------------------------------------------


def test_a_saved_model_has_the_hashes_of_its_files(model: TrainedModel, tmp_path: Path) -> None:
    save_model(tmp_path / "model", model, raw=model.module.state_dict())
    description = json.loads((tmp_path / "model" / DESCRIPTION).read_text())
    assert sorted(description["sha256"]) == [DESCRIPTION, WEIGHTS, "raw.safetensors"]
    loaded = load_model(tmp_path / "model")
    assert loaded.tasks == model.tasks
    for a, b in zip(loaded.module.parameters(), model.module.parameters(), strict=True):
        assert torch.equal(a, b)
    # The layout of the file is not its contents.
    (tmp_path / "model" / DESCRIPTION).write_text(json.dumps(description, sort_keys=True))
    load_model(tmp_path / "model")


@pytest.mark.parametrize("place", [0.01, 0.3, 0.5, 0.999])
def test_one_altered_byte_of_the_weights_is_refused(folder: Path, place: float) -> None:
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[int(place * len(data))] ^= 0x55
    (folder / WEIGHTS).write_bytes(data)
    _refused(folder, WEIGHTS, "SHA-256", "copy the whole folder again")


def test_truncated_absent_and_swapped_weights_are_refused(folder: Path, tmp_path: Path) -> None:
    save_model(tmp_path / "other", _model(1))
    whole = (folder / WEIGHTS).read_bytes()
    for data in (whole[:-4], whole + b"\0", b"", (tmp_path / "other" / WEIGHTS).read_bytes()):
        (folder / WEIGHTS).write_bytes(data)
        _refused(folder, WEIGHTS, "SHA-256")
    (folder / WEIGHTS).unlink()
    _refused(folder, WEIGHTS)


def _target(description: dict[str, Any], name: str = "energy") -> dict[str, Any]:
    return description["tasks"][0]["targets"][name]


@pytest.mark.parametrize(
    "change",
    [
        lambda d: _target(d)["normaliser"].update(scale=2.1),
        lambda d: _target(d)["normaliser"]["references"]["values"].update(O=-7.1),
        lambda d: _target(d)["normaliser"].update(mean=0.0),
        lambda d: d["tasks"][0].update(level_of_theory="another"),
        lambda d: d["graph"].update(max_neighbours=13),
        lambda d: d["provenance"].clear(),
        lambda d: d["sha256"].update({WEIGHTS: "0" * 64}),
        lambda d: d["sha256"].pop(DESCRIPTION),
    ],
)
def test_an_altered_description_is_refused(folder: Path, change: Change) -> None:
    _rewrite(folder, lambda d: change(d) and None, sealed=True)
    _refused(folder, "model.json", "SHA-256", "remove the entry sha256")


def test_a_model_without_hashes_opens_and_can_be_sealed(folder: Path) -> None:
    _rewrite(folder, lambda d: None)
    load_model(folder)
    seal_model(folder)
    load_model(folder)
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-1] + b"\1")
    _refused(folder, "SHA-256")


def test_the_shipped_model_is_sealed(tmp_path: Path) -> None:
    folder = model_folder("eutectic-small")
    shutil.copytree(folder, tmp_path / "copy")
    described = json.loads((folder / DESCRIPTION).read_text())
    assert described["sha256"][DESCRIPTION] == description_hash(described)
    _rewrite(tmp_path / "copy", lambda d: None)
    seal_model(tmp_path / "copy")
    assert (tmp_path / "copy" / DESCRIPTION).read_bytes() == (folder / DESCRIPTION).read_bytes()


# --- weights of models without hashes -------------------------------------------------------------------------------


def _reweigh(folder: Path, change: Callable[[str, torch.Tensor], torch.Tensor]) -> None:
    _rewrite(folder, lambda d: None)
    state = load_file(str(folder / WEIGHTS))
    save_file({name: change(name, value).contiguous() for name, value in state.items()}, str(folder / WEIGHTS))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_refused(folder: Path, value: float) -> None:
    _reweigh(folder, lambda name, x: torch.full_like(x, value) if name == "backbone.embedding.weight" else x)
    _refused(folder, "not finite", "backbone.embedding.weight")
    assert not torch.isfinite(load_model(folder, finite=False).module.state_dict()["backbone.embedding.weight"]).any()


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_precision_is_converted(model: TrainedModel, folder: Path, kind: torch.dtype) -> None:
    _reweigh(folder, lambda name, x: x.to(kind))
    loaded = load_model(folder)
    assert {p.dtype for p in loaded.module.parameters()} == {torch.float32}
    found, expected = (predict(m, "water", [WATER])[0] for m in (loaded, model))
    np.testing.assert_allclose(found["energy"], expected["energy"], atol=0.05)


def test_weights_of_several_precisions_are_used_in_the_highest(folder: Path) -> None:
    _reweigh(folder, lambda name, x: x.double() if name.startswith("heads.") else x)
    loaded = load_model(folder)
    assert {p.dtype for p in loaded.module.parameters()} == {torch.float64}
    assert np.isfinite(predict(loaded, "water", [WATER])[0]["forces"]).all()


def test_integers_for_weights_are_refused(folder: Path) -> None:
    _reweigh(folder, lambda name, x: x.int())
    _refused(folder, "int32")


def test_a_prediction_that_is_not_finite_is_an_error_with_its_structure(folder: Path) -> None:
    _reweigh(folder, lambda name, x: x * 1e19)
    with pytest.raises(EutecticError, match=r"structure 0.*finite"):
        predict(load_model(folder), "water", [WATER])


# --- descriptions without hashes -----------------------------------------------------------------------------------


def _without(*path: Any) -> Change:
    def change(description: dict[str, Any]) -> None:
        for step in path[:-1]:
            description = description[step]
        del description[path[-1]]

    return change


def _with(value: Any, *path: Any) -> Change:
    def change(description: dict[str, Any]) -> None:
        for step in path[:-1]:
            description = description[step]
        description[path[-1]] = value

    return change


ENERGY = ("tasks", 0, "targets", "energy")
DAMAGED: dict[str, Change] = {
    "no backbone": _without("backbone"),
    "no tasks": _without("tasks"),
    "no graph": _without("graph"),
    "no provenance": _without("provenance"),
    "no format": _without("format"),
    "no settings of the backbone": _without("backbone", "settings"),
    "no name of the backbone": _without("backbone", "name"),
    "no name of a task": _without("tasks", 0, "name"),
    "no scale": _without(*ENERGY, "normaliser", "scale"),
    "list": lambda d: [],
    "number": lambda d: 5,
    "string": lambda d: "model",
    "unknown backbone": _with("pain", "backbone", "name"),
    "backbone of a list": _with([], "backbone"),
    "backbone of a text": _with("abc", "backbone"),
    "settings of null": _with(None, "backbone", "settings"),
    "unknown setting": _with(1, "backbone", "settings", "widthh"),
    "width as text": _with("wide", "backbone", "settings", "width"),
    "negative width": _with(-8, "backbone", "settings", "width"),
    "10⁹ layers": _with(10**9, "backbone", "settings", "layers"),
    "900 layers": _with(900, "backbone", "settings", "layers"),
    "10⁹ layers of a head": _with(10**9, *ENERGY, "settings", "head", "layers"),
    "900 layers of a head": _with(900, *ENERGY, "settings", "head", "layers"),
    "10³⁰ wide": _with(10**30, "backbone", "settings", "width"),
    "cutoff of 10⁶": _with(1e6, "graph", "cutoff"),
    "cutoff of 10⁶ in a task": _with(1e6, "tasks", 0, "graph", "cutoff"),
    "infinite cutoff": _with(float("inf"), "tasks", 0, "graph", "cutoff"),
    "no cutoff of the backbone": _with(None, "backbone", "settings", "cutoff"),
    "no neighbours": _with(0, "tasks", 0, "graph", "max_neighbours"),
    "negative neighbours": _with(-5, "tasks", 0, "graph", "atom_edge_neighbours"),
    "NaN scale": _with(float("nan"), *ENERGY, "normaliser", "scale"),
    "scale of 0": _with(0.0, *ENERGY, "normaliser", "scale"),
    "negative scale": _with(-2.0, *ENERGY, "normaliser", "scale"),
    "infinite mean": _with(float("inf"), *ENERGY, "normaliser", "mean"),
    "NaN weight": _with(float("nan"), *ENERGY, "weight"),
    "scale of null": _with(None, *ENERGY, "normaliser", "scale"),
    "references in a list": _with([1, 2], *ENERGY, "normaliser", "references"),
    "reference of no element": _with(1.0, *ENERGY, "normaliser", "references", "values", "Qq"),
    "reference of a ghost": _with(1.0, *ENERGY, "normaliser", "references", "values", "X"),
    "reference of NaN": _with(float("nan"), *ENERGY, "normaliser", "references", "values", "O"),
    "task in a list": _with([[]], "tasks"),
    "tasks in an object": _with({}, "tasks"),
    "targets in a list": _with([], "tasks", 0, "targets"),
    "task without a name": _with("", "tasks", 0, "name"),
    "another unit": _with("kcal/mol", *ENERGY, "unit"),
    "another definition": _with("meV", *ENERGY, "property", "unit"),
    "definition in a list": _with([], *ENERGY, "property"),
    "unknown kind of head": _with("scaler", *ENERGY, "settings", "head", "kind"),
    "head of another level": _with("atom_scalar", *ENERGY, "settings", "head", "kind"),
    "unknown pooling": _with("median", *ENERGY, "settings", "head", "pooling"),
    "elements as text": _with("HO", "provenance", "pretrained_on", "water", "elements"),
    "element 200": _with([1, 200], "provenance", "pretrained_on", "water", "elements"),
    "provenance in a list": _with([], "provenance"),
    "hashes in a list": _with([], "sha256"),
    "unknown entry": _with(1, "sha25x"),
    "format of a list": _with([], "format"),
    "format of the future": _with("eutectic-model-9", "format"),
    "tasks of one name": lambda d: d["tasks"].append(d["tasks"][0]),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_description_is_an_error_in_four_parts(folder: Path, case: str) -> None:
    _rewrite(folder, lambda d: DAMAGED[case](d))
    _refused(folder, str(folder))


@pytest.mark.parametrize(
    "content",
    [b"", b"null", b"{", b"\x00\xff\xfe", b"\xef\xbb\xbf{}", b"[" * 100_000, b'{"a":' * 100_000, b"1" * 5000],
    ids=["empty", "null", "cut", "binary", "byte-order mark", "deep list", "deep object", "long number"],
)
def test_what_is_no_description_is_an_error_in_four_parts(folder: Path, content: bytes) -> None:
    (folder / DESCRIPTION).write_bytes(content)
    _refused(folder, str(folder))


@pytest.mark.parametrize("version", ["eutectic-model-1", "eutectic-model-2", "eutectic-model-3"])
@pytest.mark.parametrize("missing", ["backbone", "tasks", "graph", "provenance"])
def test_a_damaged_description_of_any_format_is_an_error(folder: Path, version: str, missing: str) -> None:
    def change(description: dict[str, Any]) -> None:
        del description[missing]
        description["format"] = version

    _rewrite(folder, change)
    _refused(folder, "not the description of a model")


def test_a_smooth_cap_of_an_older_format_had_another_rule(folder: Path) -> None:
    def change(description: dict[str, Any]) -> None:
        description["format"] = "eutectic-model-2"
        description["tasks"][0]["graph"]["smooth_cap"] = 0.5

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_description(folder)
    _rewrite(folder, change)
    with pytest.warns(UserWarning, match="smooth cap of an earlier version"):
        assert read_description(folder)["format"] == "eutectic-model-3"


def test_names_of_the_first_format_are_translated() -> None:
    first = {
        "format": "eutectic-model-1",
        "backbone": {"name": "gemnet_oc", "settings": {"blocks": 2, "sine_floor": 0.03}},
        "tasks": [{"name": "a", "theory": "PBE"}],
    }
    now = migrate(first)
    assert now["backbone"]["settings"] == {"radial_cutoff": 12.0, "blocks": 2, "dihedral_epsilon": 0.03}
    assert [task["level_of_theory"] for task in now["tasks"]] == ["PBE"]
