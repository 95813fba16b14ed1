"""Checkpoints in the layout of the original's jmp-s.pt and jmp-l.pt."""

from __future__ import annotations

import io
import itertools
import json
import os
import pickle
import sys
import types
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden_cases import GoldenCase, golden_case
from published_checkpoint import (
    LARGE,
    SMALL,
    TINY,
    Change,
    entries,
    file_content,
    is_parameter,
    random_state,
    write_published,
)
from torch import Tensor
from typer.testing import CliRunner

from eutectic import cli
from eutectic.atoms import EutecticError, Structure
from eutectic.checkpoints.jmp import (
    ALIAS,
    OTHER_SIZE,
    PUBLISHED_TASKS,
    read_published_checkpoint,
    settings_from_shapes,
)
from eutectic.checkpoints.model import TrainedModel, load_model, save_model
from eutectic.checkpoints.safe_pickle import KNOWN, Archive, Foreign, StoredTensor
from eutectic.graph import Edges, Graph, build_graph, collate
from eutectic.models.gemnet_oc import GemNetOC, GemNetOCSettings
from eutectic.models.gemnet_oc.published import published_names, settings_from_published
from eutectic.models.multitask import TaskSlice
from eutectic.predict.prediction import predict

FIXTURES = Path(__file__).parents[2].parent / "shared" / "fixtures" / "gemnet_oc"
needs_fixtures = pytest.mark.skipif(
    not FIXTURES.is_dir(), reason=f"the published implementation's checkpoint and arrays are not at {FIXTURES}"
)

SETTINGS = settings_from_published(TINY)
SHAPES = entries(TINY, 3)


def _expected(seed: int) -> dict[str, Tensor]:
    """What a model of ours holds that was made of the random weights of a seed."""
    state = random_state(SHAPES, seed)
    ours = {f"backbone.{ours}": state[theirs] for theirs, ours in published_names(SETTINGS).items()}
    for i, task in enumerate(PUBLISHED_TASKS):
        for prop in ("energy", "forces"):
            start = f"output.out_{prop}.{i}."
            head = {name.removeprefix(start): value for name, value in state.items() if name.startswith(start)}
            ours |= {f"heads.{task}.{prop}.perceptron.{name}": value for name, value in head.items()}
    return ours


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_published(tmp_path_factory.mktemp("published") / "tiny.pt")


WATER = Structure(
    numbers=np.array([8, 1, 1]), positions=np.array([(0.0, 0.0, 0.1), (0.0, 0.77, -0.46), (0.0, -0.76, -0.47)])
)


def test_averaged_weights_are_taken_unless_raw_ones_are_asked_for(checkpoint: Path) -> None:
    averaged, report = read_published_checkpoint(checkpoint)
    raw, raw_report = read_published_checkpoint(checkpoint, raw=True)
    for model, seed in ((averaged, 1), (raw, 0)):
        expected = _expected(seed)
        got = model.module.state_dict()
        assert set(got) == set(expected)
        assert all(torch.equal(got[name], expected[name]) for name in expected)
    assert averaged.backbone_settings == SETTINGS.model_dump(mode="json")
    assert [task.name for task in averaged.tasks] == list(PUBLISHED_TASKS)
    parameters = [name for name in random_state(SHAPES, 0) if is_parameter(name)]
    assert report.parameters == sum(torch.Size(SHAPES[name]).numel() for name in parameters)
    assert report.taken["scale factors"] == str(sum(name.endswith("scale_factor") for name in SHAPES))
    assert "other entries" not in report.left
    assert report.size == OTHER_SIZE
    assert report.taken["weights"] == "averaged (EMA)"
    assert raw_report.taken["weights"].startswith("raw")
    assert "raw weights" in report.left
    assert "relative" in report.missing["reference energies"]


def test_tasks_have_the_published_scales_and_graphs(checkpoint: Path) -> None:
    tasks = {task.name: task for task in read_published_checkpoint(checkpoint)[0].tasks}
    for name, cutoff in {"oc20": 12, "oc22": 12, "ani1x": 8, "transition1x": 8}.items():
        graph = tasks[name].graph
        assert (graph.cutoff, graph.max_neighbours, graph.symmetry) == (cutoff, 30, "lower_source")
        assert graph.quadruplet_tags == (1, 2)
        assert graph.caps == {"main": 30, "atom_edge": 20, "quadruplet": 8, "atom_atom": 1000}
    assert tasks["oc22"].targets["energy"].normaliser.scale == 25.229595396538468
    assert tasks["ani1x"].targets["forces"].normaliser.scale == 2.131422996520996
    assert tasks["oc20"].targets["forces"].weight == 73
    assert all(t.normaliser.references is None and t.normaliser.mean == 0 for t in tasks["oc20"].targets.values())


def test_an_imported_model_is_saved_and_says_where_it_is_from(checkpoint: Path, tmp_path: Path) -> None:
    model, _ = read_published_checkpoint(checkpoint)
    save_model(tmp_path / "model", model)
    again = load_model(tmp_path / "model")
    assert again.tasks == model.tasks
    assert again.provenance["weights"] == "averaged (EMA)"
    assert "relative" in str(again.provenance["energies"])
    assert (again.provenance["epoch"], again.provenance["steps"]) == (1, 1000)
    weights, read = model.module.state_dict(), again.module.state_dict()
    assert weights.keys() == read.keys()
    assert all(torch.equal(weights[name], read[name]) for name in weights)
    # Where weights lie in memory decides how products are rounded.
    one, two = (predict(m, "ani1x", [WATER])[0] for m in (model, again))
    assert all(np.allclose(one[name], two[name], rtol=1e-5, atol=1e-6) for name in ("energy", "forces"))


def test_the_command_says_what_it_took(checkpoint: Path, tmp_path: Path) -> None:
    arguments = ["import-jmp", str(checkpoint), "-o", str(tmp_path / "model")]
    for _ in range(2):  # the second replaces the first
        result = CliRunner().invoke(cli.app, arguments)
        assert result.exit_code == 0, result.output
    said = " ".join(result.output.split())
    for words in ("averaged (EMA)", "taken", "left", "missing", "energies are relative", "task transition1x"):
        assert words in said
    assert len(load_model(tmp_path / "model").tasks) == 4
    result = CliRunner().invoke(cli.app, [*arguments[:-1], str(tmp_path)])
    assert isinstance(result.exception, EutecticError)
    assert "not a model folder" in str(result.exception)
    assert (tmp_path / "model").is_dir()


def test_a_scale_factor_of_zero_was_never_fitted(tmp_path: Path) -> None:
    def unfit(content: dict[str, object]) -> None:
        content["state_dict"]["backbone.out_blocks.0.scale_sum.scale_factor"].zero_()  # type: ignore[index]

    model, report = read_published_checkpoint(write_published(tmp_path / "a.pt", change=unfit))
    assert float(model.module.state_dict()["backbone.outputs.0.scale_sum.value"]) == 1
    assert report.missing["scale factors"].startswith("1 ")


def test_tasks_are_those_that_the_step_counters_name(tmp_path: Path) -> None:
    def rename(content: dict[str, object]) -> None:
        state = content["state_dict"]
        assert isinstance(state, dict)
        counters = [name for name in state if name.startswith("task_steps.")]
        for name in counters:
            del state[name]
        for new in ("transition1x", "other", "oc20"):
            state[f"task_steps._module_dict._typed_moduledict_{new}.value"] = torch.tensor(0)

    model, report = read_published_checkpoint(write_published(tmp_path / "a.pt", change=rename))
    assert [task.name for task in model.tasks] == ["transition1x", "oc20"]
    expected = _expected(1)
    got = model.module.state_dict()
    for mine, theirs in (("transition1x", "oc20"), ("oc20", "ani1x")):
        name = "energy.perceptron.0.weight"
        assert torch.equal(got[f"heads.{mine}.{name}"], expected[f"heads.{theirs}.{name}"])
    assert "output.out_energy.1" in report.left["other entries"]
    assert "oc22" in report.missing["tasks"]


# --- sizes -----------------------------------------------------------------------------------------------------

KINDS = ("quad_interaction", "atom_edge_interaction", "edge_atom_interaction", "atom_interaction")
COUNTS = ("num_before_skip", "num_after_skip", "num_concat", "num_atom", "num_output_afteratom", "num_atom_emb_layers")
NONE = dict.fromkeys((*COUNTS, "num_global_out_layers"), 0)
CONFIGS: dict[str, dict[str, object]] = {
    # Where the widths of edges and atoms are equal, the dense layer between them does not exist.
    "equal widths": {"emb_size_edge": 8},
    "equal widths, no residual layers": {"emb_size_edge": 8, "num_atom": 0},
    "equal widths, scalar model": {"emb_size_edge": 8, "direct_forces": False},
    "edges narrower than atoms": {"emb_size_edge": 5},
    "no layers wherever there may be none": NONE,
    "equal widths, no layers wherever there may be none": NONE | {"emb_size_edge": 8},
    **{f"{name} 0": {name: 0} for name in NONE},
    **{f"{name} 3": {name: 3} for name in NONE},
    **{f"no {kind}": {kind: False} for kind in KINDS},
    "no interaction but triplets": dict.fromkeys(KINDS, False),
    "no direct forces": {"direct_forces": False},
    "twelve blocks": {"num_blocks": 12},
    "one angular function": {"num_spherical": 1},
    "width of one": {name: 1 for name in TINY if name.startswith("emb_size")},
}


# What decides whether a layer exists: equal widths, numbers of layers, and what is switched off.
CHOICES: dict[str, tuple[object, object]] = {
    "emb_size_edge": (12, 8),
    "num_atom": (2, 0),
    "num_output_afteratom": (1, 0),
    "direct_forces": (True, False),
    "num_global_out_layers": (1, 0),
    "num_blocks": (1, 2),
    "num_concat": (1, 0),
    "num_before_skip": (1, 0),
    "quad_interaction": (True, False),
    "edge_atom_interaction": (True, False),
}
DECIDING = 4
"""The first four decide together: all their combinations, the others two by two with each."""


def _grid() -> Iterator[tuple[object, ...]]:
    rest = list(CHOICES.values())[DECIDING:]
    for deciding in itertools.product(*list(CHOICES.values())[:DECIDING]):
        yield (*deciding, *(first for first, _ in rest))
        for pair in itertools.combinations(range(len(rest)), 2):
            yield (*deciding, *(choice[i in pair] for i, choice in enumerate(rest)))


GRID = {" ".join(map(str, picked)): dict(zip(CHOICES, picked, strict=True)) for picked in _grid()}
CASES = [pytest.param(name, marks=pytest.mark.slow if i % 16 else ()) for i, name in enumerate(GRID)]


@pytest.mark.parametrize("name", [*CONFIGS, *CASES])
def test_whatever_sizes_the_published_classes_can_have_open(name: str, tmp_path: Path) -> None:
    config = TINY | (CONFIGS.get(name) or GRID[name])
    model, report = read_published_checkpoint(write_published(tmp_path / "a.pt", config))
    settings = settings_from_published(config)
    read = GemNetOCSettings.model_validate(model.backbone_settings)
    # Widths of what is switched off are in no entry.
    free = {
        "quad_interaction": ("quadruplet_in", "quadruplet_out", "spherical_width"),
        "atom_interaction": ("pair_in", "pair_out"),
    }
    unknown = {width for kind, widths in free.items() if not config[kind] for width in widths}
    assert read.model_dump(exclude=unknown) == settings.model_dump(exclude=unknown)
    assert "other entries" not in report.left
    shapes = entries(config, 3)
    assert report.parameters == sum(torch.Size(shapes[name]).numel() for name in shapes if is_parameter(name))
    state, averaged = model.module.state_dict(), random_state(shapes, 1)
    assert all(torch.equal(state[f"backbone.{o}"], averaged[t]) for t, o in published_names(settings).items())
    save_model(tmp_path / "model", model)
    predicted = predict(load_model(tmp_path / "model"), "ani1x", [WATER])[0]
    assert set(predicted) == ({"energy", "forces"} if config["direct_forces"] else {"energy"})
    assert all(np.isfinite(value).all() for value in predicted.values())


@pytest.mark.parametrize("layers", [1, 2, 5])
def test_heads_of_any_number_of_layers_open(layers: int, tmp_path: Path) -> None:
    model, _ = read_published_checkpoint(write_published(tmp_path / "a.pt", layers=layers))
    assert {t.settings.head.layers for task in model.tasks for t in task.targets.values()} == {layers - 1}


def test_one_radial_width_of_a_checkpoint_that_is_wrong_is_an_error(tmp_path: Path) -> None:
    def widen(content: dict[str, object]) -> None:
        content["state_dict"]["backbone.bases.mlp_rbf_h.linear.weight"] = torch.zeros(10, 13)  # type: ignore[index]

    path = write_published(tmp_path / "a.pt", change=widen)
    with pytest.raises(EutecticError, match=r"mlp_rbf_h.linear.weight has shape \(10, 13\)"):
        read_published_checkpoint(path, raw=True)


@pytest.mark.parametrize(("config", "settings"), [(SMALL, GemNetOCSettings.small()), (LARGE, GemNetOCSettings.large())])
def test_the_sizes_of_jmp_s_and_jmp_l_are_read_from_their_entries(
    config: dict[str, object], settings: GemNetOCSettings
) -> None:
    assert settings_from_shapes(entries(config), Path("here")) == settings
    assert settings_from_published(config) == settings
    names = [name for name in entries(config) if name.startswith(("backbone.", "embedding.")) and ALIAS not in name]
    assert list(published_names(settings)) == names


@needs_fixtures
@pytest.mark.parametrize(("size", "config"), [("s", SMALL), ("l", LARGE)])
def test_entries_made_here_are_the_published_ones(size: str, config: dict[str, object]) -> None:
    keys = json.loads((FIXTURES / f"jmp_{size}_keys.json").read_text())["keys"]
    made = {name: list(shape) for name, shape in entries(config).items() if not name.startswith("task_steps.")}
    assert list(made.items()) == list(keys.items())


@pytest.mark.parametrize("edge_features", [True, False])
@pytest.mark.parametrize("size", ["small", "large", "tiny"])
def test_sizes_are_read_from_shapes(size: str, edge_features: bool) -> None:
    settings = getattr(GemNetOCSettings, size)().model_copy(
        update={"edge_features": edge_features, "radial_cutoff": 12.0, "dihedral_epsilon": 0.0}
    )
    with torch.device("meta"):
        state = GemNetOC(settings).state_dict()
    shapes = {theirs: tuple(state[ours].shape) for theirs, ours in published_names(settings).items()}
    assert settings_from_shapes(shapes, Path("here")) == settings


@needs_fixtures
@pytest.mark.parametrize("size", ["small", "large"])
def test_sizes_of_the_published_models_are_read_from_their_entries(size: str) -> None:
    keys = json.loads((FIXTURES / f"jmp_{size[0]}_keys.json").read_text())["keys"]
    shapes = {name: tuple(shape) for name, shape in keys.items()}
    assert settings_from_shapes(shapes, Path("here")) == getattr(GemNetOCSettings, size)()


# --- nothing runs ----------------------------------------------------------------------------------------------


class Hostile:
    """Calls something when it is unpickled."""

    def __init__(self, function: Callable[..., object], *arguments: object, state: object = None) -> None:
        self.reduced = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> tuple[object, ...]:
        return self.reduced


def _attacks(marker: Path) -> dict[str, object]:
    command = f"touch {marker}"
    code = f"__import__('pathlib').Path({str(marker)!r}).touch()"
    return {
        "system": Hostile(os.system, command),
        "eval": Hostile(eval, code),
        "exec": Hostile(exec, code),
        "folder": Hostile(os.mkdir, str(marker)),
        "import then call": Hostile(getattr, Hostile(__import__, "os"), "system"),
        "path": Hostile(Path.touch, marker),
        "in a list": [Hostile(os.system, command), {"deep": (Hostile(eval, code),)}],
    }


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("attack", list(_attacks(Path("x"))))
def test_a_hostile_checkpoint_runs_nothing(attack: str, protocol: int, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    whole = file_content(random_state(SHAPES, 0), random_state(SHAPES, 1))
    whole["hyper_parameters"] = _attacks(marker)[attack]
    torch.save(whole, tmp_path / "a.pt", pickle_protocol=protocol)
    model, _ = read_published_checkpoint(tmp_path / "a.pt")
    assert not marker.exists()
    assert len(model.tasks) == 4
    # The attack is a real one: an ordinary reader falls for it.
    if attack in ("eval", "exec", "folder"):
        pickle.loads(pickle.dumps(_attacks(marker)[attack]))
        assert marker.exists()


def test_a_hostile_state_in_place_of_weights_is_refused(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    whole = file_content(random_state(SHAPES, 0), random_state(SHAPES, 1))
    whole["state_dict"] = _attacks(marker)["system"]
    torch.save(whole, tmp_path / "a.pt")
    with pytest.raises(EutecticError, match="state_dict"):
        read_published_checkpoint(tmp_path / "a.pt")
    assert not marker.exists()


def test_a_pickle_cannot_change_what_reads_it(tmp_path: Path) -> None:
    state = b"}X\x05\x00\x00\x00shapeK\x01sb."  # {"shape": 1}, given to what stands before it
    for i, (module, name) in enumerate([*KNOWN, ("torch", "FloatStorage")]):
        path = tmp_path / f"{i}.pt"
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("a/data.pkl", b"\x80\x02c" + f"{module}\n{name}\n".encode() + state)
        with pytest.raises(EutecticError, match="cannot be read"), Archive(path):
            pass
        assert not hasattr(KNOWN.get((module, name), torch.float32), "shape")
    storage = torch.zeros(1).untyped_storage()
    typed = torch.storage.TypedStorage(wrap_storage=storage, dtype=torch.float32, _internal=True)
    tensor = Hostile(torch._utils._rebuild_tensor_v2, typed, 0, (1,), (1,), False, {}, state={"shape": (9,)})
    torch.save(tensor, tmp_path / "tensor.pt")
    with pytest.raises(EutecticError, match="cannot be read"), Archive(tmp_path / "tensor.pt"):
        pass


@pytest.mark.parametrize(
    ("data", "why"),
    [
        # Python's own reader would set aside 64 GB for a memo of this size.
        (b"\x80\x02Nr\xff\xff\xff\xff.", "memo"),
        (b"\x80\x05\x8e\xff\xff\xff\xff\xff\xff\xff\x7f", "cut short"),
        (b"cos\nsystem\n(S'true'\ntR.", "instruction"),
        (b"\x80\x02ctorch", "cut short"),
        (b"", "cut short"),
    ],
)
def test_a_pickle_cannot_fill_the_memory(data: bytes, why: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as file:
        file.writestr("a/data.pkl", data)
    with pytest.raises(EutecticError, match=f"cannot be read.*{why}"), Archive(tmp_path / "a.pt"):
        pass


def test_classes_that_are_not_there_are_named_and_nothing_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = types.ModuleType("original_package")

    class Config(dict[str, int]):
        pass

    Config.__module__, Config.__qualname__ = "original_package", "Config"
    package.Config = Config  # type: ignore[attr-defined]
    config = Config(a=1)
    config.attribute = 2  # type: ignore[attr-defined]
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "original_package", package)
        torch.save({"config": config, "tensor": torch.arange(3.0), "both": {config.attribute}}, tmp_path / "a.pt")  # type: ignore[attr-defined]
    with Archive(tmp_path / "a.pt") as archive:
        content = archive.content
        assert isinstance(content, dict)
        assert isinstance(content["config"], Foreign)
        assert "original_package.Config" in repr(content["config"])
        assert vars(content["config"]) == {}
        assert "original_package.Config" in archive.foreign
        stored = content["tensor"]
        assert isinstance(stored, StoredTensor)
        assert torch.equal(archive.tensor(stored), torch.arange(3.0))


def test_tensors_are_read_with_their_strides_and_no_larger_than_their_record(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    torch.save(
        {
            "turned": whole.T,
            "part": whole[1:, ::2],
            "half": whole.half(),
            "none": torch.zeros(0, 3),
            "number": torch.tensor(3),
            "parameter": torch.nn.Parameter(whole),
            "spread": torch.zeros(1).expand(10**9),
        },
        tmp_path / "a.pt",
    )
    with Archive(tmp_path / "a.pt") as archive:
        content = archive.content
        assert isinstance(content, dict)
        for name, expected in {
            "turned": whole.T,
            "part": whole[1:, ::2],
            "half": whole.half(),
            "none": torch.zeros(0, 3),
            "number": torch.tensor(3),
            "parameter": whole,
        }.items():
            got = archive.tensor(content[name])
            assert got.dtype == expected.dtype
            assert torch.equal(got, expected)
        with pytest.raises(EutecticError, match="1 numbers"):
            archive.tensor(content["spread"])
        with pytest.raises(EutecticError, match="12 numbers"):
            archive.tensor(content["turned"]._replace(offset=1))


# --- errors ----------------------------------------------------------------------------------------------------


def _drop_entry(content: dict[str, object]) -> None:
    del content["state_dict"]["backbone.out_blocks.1.layers.0.linear.weight"]  # type: ignore[attr-defined]


def _reshape_entry(content: dict[str, object]) -> None:
    content["state_dict"]["output.out_energy.2.2.weight"] = torch.zeros(8, 9)  # type: ignore[index]


def _no_average(content: dict[str, object]) -> None:
    content["optimizer_states"] = []


def _short_average(content: dict[str, object]) -> None:
    content["optimizer_states"][0]["ema"] = content["optimizer_states"][0]["ema"][:-1]  # type: ignore[index]


def _not_finite(content: dict[str, object]) -> None:
    content["state_dict"]["backbone.out_mlp_E.out_mlp.0.linear.weight"].fill_(torch.nan)  # type: ignore[index]


def _in_another_order(content: dict[str, object]) -> None:
    state = content["state_dict"]
    assert isinstance(state, OrderedDict)
    # Two neighbours of one shape: nothing but the order tells them apart.
    state.move_to_end("backbone.int_blocks.0.trip_interaction.up_projection_ca.linear.weight")
    averaged = content["optimizer_states"][0]["ema"]  # type: ignore[index]
    names = [name for name in SHAPES if is_parameter(name)]
    by_name = dict(zip(names, averaged, strict=True))
    content["optimizer_states"] = [{"ema": tuple(by_name[name] for name in state if is_parameter(name))}]


def _copies_differ(content: dict[str, object]) -> None:
    content["state_dict"]["backbone.bases.radial_basis_aint.rbf.offset"].add_(1)  # type: ignore[index]


def _fine_tuned(content: dict[str, object]) -> None:
    state = content["state_dict"]
    assert isinstance(state, dict)
    state["embedding.weight"] = state.pop("embedding.atom_embedding.weight")


@pytest.mark.parametrize(
    ("change", "raw", "says"),
    [
        (_drop_entry, True, "out_blocks.1.layers.0.linear.weight is missing"),
        (_drop_entry, False, "averaged weight"),
        (_reshape_entry, True, r"output.out_energy.2.2.weight has shape \(8, 9\)"),
        (_no_average, False, "--raw"),
        (_short_average, False, "averaged weights for"),
        (_not_finite, True, "not finite"),
        (_in_another_order, False, "up_projection_ac.* in place of .*up_projection_ca"),
        (_copies_differ, False, "one radial basis"),
        (_fine_tuned, False, "fine-tuned"),
    ],
)
def test_what_does_not_fit_is_an_error_in_four_parts(change: Change, raw: bool, says: str, tmp_path: Path) -> None:
    path = write_published(tmp_path / "a.pt", change=change)
    with pytest.raises(EutecticError, match=says) as caught:
        read_published_checkpoint(path, raw=raw)
    assert str(path) == caught.value.where
    assert caught.value.given
    assert caught.value.expected
    assert caught.value.fix


def test_a_file_that_is_not_whole_is_an_error_in_four_parts(checkpoint: Path, tmp_path: Path) -> None:
    whole = checkpoint.read_bytes()
    middle = bytearray(whole)
    at = whole.index(next(iter(random_state(SHAPES, 1).values())).numpy().tobytes()[:64])
    middle[at] ^= 255
    legacy = io.BytesIO()
    torch.save({"a": torch.zeros(2)}, legacy, _use_new_zipfile_serialization=False)
    for i, data in enumerate(
        (whole[: len(whole) // 2], whole[:-1], b"", b"no archive", bytes(middle), legacy.getvalue())
    ):
        path = tmp_path / f"{i}.pt"
        path.write_bytes(data)
        with pytest.raises(EutecticError, match="cannot be read") as caught:
            read_published_checkpoint(path)
        assert "download or copy it again" in caught.value.fix
    with pytest.raises(EutecticError, match="absent"):
        read_published_checkpoint(tmp_path / "absent.pt")


# --- numbers of another implementation -------------------------------------------------------------------------


def _golden_checkpoint(case: GoldenCase, path: Path) -> OrderedDict[str, Tensor]:
    """A file whose averaged weights are the golden ones and whose raw ones are not; the averaged are given back."""
    shapes = entries(case.config)
    averaged = random_state(shapes, 1)
    raw = OrderedDict((name, value.clone()) for name, value in random_state(shapes, 0).items())
    for name in averaged:
        golden = case.weights.get(name.replace(".seq_energy_pre.", ".layers."))
        if golden is not None:
            averaged[name] = golden.float()
            if not is_parameter(name) and ALIAS not in name:
                raw[name] = golden.float()
    torch.save(file_content(raw, averaged), path)
    return averaged


def _golden_predictions(case: GoldenCase, state: Mapping[str, Tensor], k: int) -> tuple[np.ndarray, np.ndarray]:
    """Energies and forces of task k from golden features, with heads as they were published."""

    def head(kind: str, x: Tensor) -> Tensor:
        for i in (0, 2, 4, 6):
            name = f"output.out_{kind}.{k}.{i}"
            x = F.silu(F.linear(x, state[f"{name}.weight"].double(), state[f"{name}.bias"].double())) / 0.6
        return F.linear(x, state[f"output.out_{kind}.{k}.8.weight"].double())

    of_atoms = head("energy", case["features.atoms"])[:, 0]
    energies = torch.stack([part.sum() for part in of_atoms.split(case["in.n_atoms"].tolist())])
    of_edges = head("forces", case["features.edges"]) * case["graph.direction"]
    target = case["graph.main"][:, 1]
    forces = torch.zeros(len(case["in.positions"]), 3, dtype=torch.float64).index_add(0, target, of_edges)
    return energies.numpy(), forces.numpy()


@pytest.mark.parametrize(
    ("name", "task"), [("molecule", "ani1x"), ("molecules", "transition1x"), ("crystal", "oc20"), ("omissions", "oc22")]
)
def test_an_imported_model_predicts_as_another_implementation(name: str, task: str, tmp_path: Path) -> None:
    case = golden_case(name)
    state = _golden_checkpoint(case, tmp_path / "a.pt")
    expected = _golden_predictions(case, state, list(PUBLISHED_TASKS).index(task))
    errors = {}
    for raw in (False, True):
        model, _ = read_published_checkpoint(tmp_path / "a.pt", raw=raw)
        model.module.double()
        got = predict(model, task, case.structures, normalised=True)
        joined = np.array([p["energy"] for p in got]), np.concatenate([p["forces"] for p in got])
        errors[raw] = max(np.abs(a - b).max() / np.abs(b).max() for a, b in zip(joined, expected, strict=True))
        # And in eV and eV/Å.
        for one, other in zip(got, predict(model, task, case.structures), strict=True):
            published = PUBLISHED_TASKS[task]
            np.testing.assert_allclose(other["energy"], one["energy"] * published.energy_scale, rtol=1e-12)
            np.testing.assert_allclose(other["forces"], one["forces"] * published.forces_scale, rtol=1e-12)
    assert errors[False] < 1e-11
    assert errors[True] > 1e-3


def test_settings_of_absent_classes_are_reported_and_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = types.ModuleType("original_package")
    package.Config = type("Config", (dict,), {"__module__": "original_package"})  # type: ignore[attr-defined]

    def configure(content: dict[str, object]) -> None:
        content["hyper_parameters"] = package.Config(backbone=package.Config(num_blocks=9))  # type: ignore[attr-defined]

    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "original_package", package)
        path = write_published(tmp_path / "a.pt", change=configure)
    model, report = read_published_checkpoint(path)
    assert "original_package" in report.left["settings"]
    assert "other entries" not in report.left
    assert model.backbone_settings["blocks"] == TINY["num_blocks"]


# --- the published implementation's numbers --------------------------------------------------------------------

GRAPHS = {"main": "main", "atom_atom": "a2a", "atom_edge": "a2ee2a", "quadruplet": "qint"}


def _fixture_graph(arrays: dict[str, Tensor]) -> Graph:
    """The fixture's own edges: where an atom's neighbours tie at the cap, it keeps one and we keep both."""
    lists, order = {}, {}
    for ours, theirs in GRAPHS.items():
        index = arrays[f"graph|{theirs}|edge_index"].long()
        order[ours] = torch.argsort(index[1], stable=True)
        source, target = index[:, order[ours]]
        offset = arrays[f"graph|{theirs}|cell_offset"][order[ours]].double()
        lists[ours] = Edges(source=source, target=target, offset=offset)
    place = torch.argsort(order["main"])
    return Graph(
        numbers=arrays["in|atomic_numbers"],
        tags=arrays["in|tags"],
        positions=arrays["in|pos"].double(),
        cell=arrays["in|cell"].double(),
        structure=arrays["in|batch"],
        n_atoms=arrays["in|natoms"],
        reverse=place[arrays["graph|main|id_swap"].long()[order["main"]]],
        **lists,
    )


def _arrays(name: str) -> dict[str, Tensor]:
    with np.load(FIXTURES / f"reduced_{name}.npz") as file:
        wanted = [k for k in file.files if k.startswith(("in|", "graph|", "out|"))]
        return {k: torch.from_numpy(np.asarray(file[k])) for k in wanted}


def _largest_error(model: TrainedModel, graph: Graph, arrays: dict[str, Tensor]) -> float:
    """Of energies and forces of all tasks, relative to the largest of each."""
    ranges = (graph.n_structures, len(graph.positions), len(graph.main))
    worst = 0.0
    with torch.no_grad():
        for i, task in enumerate(model.tasks):
            part = TaskSlice(task.name, *((0, n) for n in ranges))
            got = model.module(graph, [part])[task.name]
            for name in ("energy", "forces"):
                expected = arrays[f"out|{name}"][..., i]
                assert got[name].shape == expected.shape
                worst = max(worst, float((got[name] - expected).abs().max() / expected.abs().max()))
    return worst


@pytest.fixture(scope="module")
def models() -> dict[str, TrainedModel]:
    path = FIXTURES / "reduced_official_layout.ckpt"
    both = {"averaged": read_published_checkpoint(path)[0], "raw": read_published_checkpoint(path, raw=True)[0]}
    for model in both.values():
        model.module.double()
    return both


@needs_fixtures
@pytest.mark.parametrize("name", ["mol", "slab", "bulk"])
def test_predictions_are_those_of_the_published_implementation(models: dict[str, TrainedModel], name: str) -> None:
    arrays = _arrays(name)
    graph = _fixture_graph(arrays)
    assert _largest_error(models["averaged"], graph, arrays) < 1e-9
    assert _largest_error(models["raw"], graph, arrays) > 1e-3


@needs_fixtures
@pytest.mark.parametrize(("name", "task"), [("mol", "ani1x"), ("bulk", "oc20")])
def test_structures_alone_give_the_published_predictions(models: dict[str, TrainedModel], name: str, task: str) -> None:
    # Not the slab: of an atom's own images, which come in pairs of one length, the fixture has one where its cap
    # falls between them, at random; ours keeps both.
    arrays = _arrays(name)
    periodic = bool(arrays["in|pbc"].bool().all())
    sizes = arrays["in|natoms"].tolist()
    parts = zip(*(arrays[f"in|{k}"].split(sizes) for k in ("atomic_numbers", "pos", "tags")), strict=True)
    structures = [
        Structure(
            numbers=numbers.numpy(),
            positions=positions.double().numpy(),
            tags=tags.numpy(),
            cell=arrays["in|cell"][i].double().numpy() if periodic else np.zeros((3, 3)),
            pbc=np.full(3, periodic),
        )
        for i, (numbers, positions, tags) in enumerate(parts)
    ]
    index = list(PUBLISHED_TASKS).index(task)
    got = predict(models["averaged"], task, structures, normalised=True)
    for prop, joined in (
        ("energy", np.array([p["energy"] for p in got])),
        ("forces", np.concatenate([p["forces"] for p in got])),
    ):
        expected = arrays[f"out|{prop}"][..., index].numpy()
        assert np.abs(joined - expected).max() <= 1e-9 * np.abs(expected).max()
    # And in eV and eV/Å.
    physical = predict(models["averaged"], task, structures)
    published = PUBLISHED_TASKS[task]
    for one, other in zip(got, physical, strict=True):
        np.testing.assert_allclose(other["energy"], one["energy"] * published.energy_scale, rtol=1e-12)
        np.testing.assert_allclose(other["forces"], one["forces"] * published.forces_scale, rtol=1e-12)


@needs_fixtures
def test_the_fixtures_checkpoint_is_reported() -> None:
    model, report = read_published_checkpoint(FIXTURES / "reduced_official_layout.ckpt")
    config = json.loads((FIXTURES / "reduced_config.json").read_text())
    assert report.parameters == config["n_params"]
    assert [task.name for task in model.tasks] == config["tasks"]
    assert "jmp" in report.left["settings"]
    assert "other entries" not in report.left
    graph = collate([build_graph(WATER, model.tasks[2].graph)])
    assert model.module(graph, [TaskSlice("ani1x", (0, 1), (0, 3), (0, len(graph.main)))])["ani1x"]["energy"].shape == (
        1,
    )
