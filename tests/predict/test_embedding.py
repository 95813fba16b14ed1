"""Embeddings: invariant, streamed, written as a table, mapped and searched."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.io import write
from typer.testing import CliRunner, Result

from eutectic import cli
from eutectic.atoms import EutecticError, Structure
from eutectic.checkpoints.model import TrainedModel, build_backbone, save_model
from eutectic.data.store import Store
from eutectic.graph import GraphSettings
from eutectic.models.multitask import MultitaskModel
from eutectic.predict.embedding import MapSample, Moments, Nearest, embed_each, embed_file
from eutectic.predict.files import Read
from eutectic.predict.model import Model
from eutectic.predict.outputs import partial_path, writing_table

GRAPH = GraphSettings(cutoff=4.5, max_neighbours=12)
NAMES = ("H2O", "CH4", "NH3", "C2H6", "CH3OH", "HF")


@pytest.fixture(scope="module")
def model() -> Model:
    """Without any head, in double precision."""
    torch.manual_seed(0)
    settings = {"width": 12, "layers": 2, "cutoff": 4.5}
    module = MultitaskModel(build_backbone("painn", settings)[0], {}).double().eval()
    return Model(TrainedModel(module, (), "painn", settings, GRAPH), "random")


@pytest.fixture(scope="module")
def saved(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    save_model(folder, model.trained)
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("structures") / "in.xyz"
    write(path, [rattled(NAMES[i % len(NAMES)], i) for i in range(30)])
    return path


def rattled(name: str, seed: int) -> Atoms:
    atoms = molecule(name)
    atoms.rattle(0.05, rng=np.random.default_rng(seed))
    return atoms


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, [str(one) for one in arguments])


def test_embeddings_do_not_depend_on_orientation_order_or_cell(model: Model) -> None:
    atoms = rattled("CH3CH2OH", 0)
    turned = atoms.copy()
    turned.rotate(50, (1, 2, 3))
    turned.positions += [1.0, 2.0, 3.0]
    order = np.random.default_rng(0).permutation(len(atoms))
    one = model.embed(atoms)
    assert one.shape == (12,)
    assert one.dtype == np.float32
    np.testing.assert_allclose(model.embed(turned), one, atol=1e-6)
    np.testing.assert_allclose(model.embed(atoms[order]), one, atol=1e-6)
    each = model.embed(atoms, per="atom")
    np.testing.assert_allclose(each.mean(axis=0), one, atol=1e-6)
    np.testing.assert_allclose(model.embed(atoms[order], per="atom"), each[order], atol=1e-6)
    crystal = bulk("NaCl", "rocksalt", a=5.64)
    np.testing.assert_allclose(model.embed(crystal * (2, 1, 3)), model.embed(crystal), atol=1e-6)


def test_batches_give_what_single_structures_give(model: Model) -> None:
    several = [rattled(name, 1) for name in NAMES]
    together = model.embed(several, batch_size=4)
    for atoms, one in zip(several, together, strict=True):
        np.testing.assert_allclose(model.embed(atoms), one, atol=1e-6)
    assert model.embed([]) == []
    assert [e.shape for e in model.embed([Structure.from_ase(a) for a in several], per="atom")] == [
        (len(a), 12) for a in several
    ]


def test_what_cannot_be_embedded_is_said(model: Model) -> None:
    good, bad = molecule("H2O"), Atoms("H2", positions=np.zeros((2, 3)))
    with pytest.raises(EutecticError, match="structure 1: two atoms have the same position"):
        model.embed([good, bad])
    with pytest.raises(EutecticError, match="no task 'absent'"):
        model.embed(good, task="absent")


def test_structures_are_read_as_they_are_needed(model: Model) -> None:
    read = 0

    def endless() -> object:
        nonlocal read
        while True:
            read += 1
            yield Structure.from_ase(molecule("H2O"))

    stream = embed_each(model.trained, endless(), batch_size=2)  # type: ignore[arg-type]
    for _ in range(5):
        next(stream)
    assert read == 16  # one window of eight batches


@pytest.mark.parametrize("per", ["structure", "atom"])
def test_the_table(model: Model, saved: Path, source: Path, tmp_path: Path, per: str) -> None:
    out = tmp_path / "out.parquet"
    result = run("embed", saved, source, "-o", out, "--per", per)
    assert result.exit_code == 0, result.output
    table = pq.read_table(out)
    expected = model.embed([rattled(NAMES[i % len(NAMES)], i) for i in range(30)], per=per)  # type: ignore[arg-type]
    found = np.stack(table["embedding"].to_numpy(zero_copy_only=False))
    np.testing.assert_allclose(found, np.concatenate([np.atleast_2d(e) for e in expected]), atol=1e-4)
    assert table.schema.metadata[b"per"] == per.encode()
    if per == "atom":
        assert table["number"].to_pylist()[:3] == [8, 1, 1]
        assert table["structure"].to_pylist()[2:4] == [0, 1]
    else:
        assert table["structure"].to_pylist() == list(range(30))
    assert not partial_path(out).exists()


def test_a_store_is_embedded_by_path(saved: Path, molecules: Store, tmp_path: Path) -> None:
    result = run("embed", saved, molecules.path, "-o", tmp_path / "out.parquet")
    assert result.exit_code == 0, result.output
    assert pq.read_table(tmp_path / "out.parquet")["n_atoms"].to_pylist() == [len(row.structure) for row in molecules]


def test_the_rest_is_embedded(saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "in.xyz"
    bad = '2\npbc="F F F"\nH 0 0 0\nH 0 0 0\n'
    water = '3\npbc="F F F"\nO 0 0 0\nH 0 0 1\nH 0 1 0\n'
    path.write_text(water + bad + water)
    result = run("embed", saved, path, "-o", tmp_path / "out.parquet")
    assert result.exit_code == 3
    assert "structure 1: two atoms have the same position" in result.stderr
    assert pq.read_table(tmp_path / "out.parquet")["structure"].to_pylist() == [0, 2]


def test_what_is_whole_is_kept_after_an_error(tmp_path: Path) -> None:
    import pyarrow as pa

    schema = pa.schema([("a", pa.int64())])
    out = tmp_path / "out.parquet"
    out.write_bytes(b"precious")

    def broken_off() -> None:
        with writing_table(out, schema) as table:
            for i in range(2000):
                table.add({"a": i})
            raise EutecticError("here", "a fault", "none", "go on")

    with pytest.raises(EutecticError, match=r"predictions so far are in .*out\.partial\.parquet"):
        broken_off()
    assert pq.read_table(partial_path(out))["a"].to_pylist() == list(range(2000))
    assert out.read_bytes() == b"precious"
    partial_path(out).unlink()
    with pytest.raises(RuntimeError), writing_table(out, schema):
        raise RuntimeError
    assert not partial_path(out).exists()


def test_moments_are_those_of_all_at_once() -> None:
    rows = np.random.default_rng(0).normal(size=(50, 4)) * [5.0, 1.0, 0.1, 2.0] + 100.0
    moments = Moments()
    for some in (rows[:1], rows[1:20], rows[20:]):
        moments.add(some)
    np.testing.assert_allclose(moments.mean, rows.mean(axis=0))
    np.testing.assert_allclose(moments.scatter / 50, np.cov(rows.T, bias=True), atol=1e-9)
    components, shares = moments.components(4)
    np.testing.assert_allclose(components @ components.T, np.eye(4), atol=1e-12)
    assert abs(components[0, 0]) > 0.95
    assert shares.sum() == pytest.approx(1.0)
    assert moments.spread == pytest.approx(np.sqrt(((rows - rows.mean(axis=0)) ** 2).sum(axis=1).mean()))


def test_a_map_holds_a_fair_sample() -> None:
    sample, structure = MapSample(100), Structure.from_ase(molecule("H2O"))
    for index in range(1000):
        sample.add(Read(index, "", structure=structure), np.full(3, index, dtype=np.float32))
    chosen = [point.index for point in sample.points]
    assert len(set(chosen)) == 100
    assert 400 < np.mean(chosen) < 600
    assert sample.moments.n == 1000
    assert sample.moments.mean[0] == pytest.approx(499.5)


def test_the_page_of_a_map(saved: Path, source: Path, tmp_path: Path) -> None:
    page = tmp_path / "map.html"
    assert run("embed", saved, source, "--map", page).exit_code == 0
    text = page.read_text()
    assert "<script" not in text
    assert text.count("<circle") in (30, 60)  # with UMAP twice as many
    titles = re.findall(r"<circle[^>]*><title>([^<]*)</title>", text)
    assert titles[:2] == ["0: H2O", "1: CH4"]
    assert "formula" in text
    assert "H2O (5)" in text


@pytest.mark.parametrize("per", ["structure", "atom"])
def test_the_file_for_chemiscope(saved: Path, source: Path, tmp_path: Path, per: str) -> None:
    """What chemiscope's own validation asks for (`validateDataset` in its `dataset.ts`)."""
    file = tmp_path / "map.json.gz"
    assert run("embed", saved, source, "--map", file, "--per", per).exit_code == 0
    found = json.loads(gzip.decompress(file.read_bytes()))
    assert isinstance(found["meta"]["name"], str)
    for structure in found["structures"]:
        assert all(len(structure[name]) == structure["size"] for name in ("names", "x", "y", "z"))
    environments = found.get("environments", [])
    for one in environments:
        assert one["center"] < found["structures"][one["structure"]]["size"]
        assert one["cutoff"] == 4.5
    count = {"structure": len(found["structures"]), "atom": len(environments)}
    assert count["structure"] == 30
    assert {"PCA 1", "PCA 2", "formula"} <= set(found["properties"])
    for prop in found["properties"].values():
        assert prop["target"] == per
        assert len(prop["values"]) == count[per]
        assert len({type(value) for value in prop["values"]}) == 1
    assert found["structures"][1]["names"] == ["C", "H", "H", "H", "H"]


def test_bad_places_to_write_are_refused(saved: Path, source: Path, tmp_path: Path) -> None:
    for arguments, says in (
        ([], "nothing to write"),
        (["-o", tmp_path / "out.xyz"], "a name that ends in .parquet"),
        (["--map", tmp_path / "map.png"], r"a name that ends in .html or .json or .json.gz"),
        (["-o", tmp_path / "out.parquet", "--per", "molecule"], "structure or atom"),
    ):
        result = run("embed", saved, source, *arguments)
        assert isinstance(result.exception, EutecticError)
        assert says in str(result.exception)


def test_nearest_finds_the_same_structure_and_then_its_like(model: Model, source: Path) -> None:
    queries = [rattled("H2O", 0), rattled("CH4", 100)]
    search = Nearest(np.stack(model.embed(queries)), 6)
    embed_file(model.trained, source, [search.add], batch_size=4)
    water, methane = search.found
    assert water[0].index == 0
    assert water[0].distance < 1e-5
    assert {one.index % 6 for one in water[:5]} == {0}
    assert {one.index % 6 for one in methane[:5]} == {1}
    assert [one.distance for one in water] == sorted(one.distance for one in water)
    every = np.stack(model.embed([rattled(NAMES[i % 6], i) for i in range(30)]))
    expected = np.argsort(np.linalg.norm(every - model.embed(queries[1]), axis=1))[:6]
    assert [one.index for one in methane] == expected.tolist()


def test_the_command_nearest(saved: Path, source: Path, tmp_path: Path) -> None:
    query = tmp_path / "query.xyz"
    write(query, rattled("NH3", 8))
    result = run("nearest", saved, query, source, "-k", 2, "--json")
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["neighbours"]
    assert rows[0]["structure"] == 8
    assert [row["formula"] for row in rows] == ["H3N", "H3N"]
    assert rows[0]["relative_distance"] < 1e-3
    assert "H3N" in run("nearest", saved, query, source).output


@pytest.mark.parametrize("command", ["embed", "nearest"])
def test_help_of_embeddings_shows_examples(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    assert f"eutectic {command}" in result.output
