"""Plans: counted, on sets that are here and on sets that are not."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from eutectic import cli
from eutectic.atoms import EutecticError
from eutectic.data.catalogue import open_store
from eutectic.data.splits import split
from eutectic.data.store import Store
from eutectic.graph import GraphSettings, build_graph
from eutectic.plan.plan import CHECKPOINT_BYTES, STATE_BYTES, Cluster, _enlarged, known_sizes, plan_cluster
from eutectic.train.settings import PretrainSettings

TINY = {"width": 16, "layers": 1, "cutoff": 5.0}


def jmp(**train: Any) -> PretrainSettings:
    """The four sets of JMP, none of them here, with a small model; two epochs of the mixture."""
    stores = {"oc20": "oc20:total", "oc22": "oc22", "ani1x": "ani1x", "transition1x": "transition1x"}
    return PretrainSettings.model_validate(
        {
            "sets": {name: {"store": store} for name, store in stores.items()},
            "backbone": {"name": "painn", "settings": TINY},
            "graph": {"cutoff": 5.0, "max_neighbours": 8},
            "train": {"batch_size": 1024, "steps": 339_940, "evaluate_every": 400_000, "accelerator": "cpu"} | train,
        }
    )


def test_the_published_pretraining() -> None:
    settings = jmp()
    plan = plan_cluster(settings, Cluster(gpus=64, launch_ms=0.0), patience=0.0)
    epochs = {s.name: s.epochs for s in plan.sets}
    # 2 epochs of a mixture in which the largest set is seen once: √(n_max / n_i) times for the others.
    assert epochs == pytest.approx(
        {"oc20": 2, "oc22": 2 * 12.5**0.5, "ani1x": 2 * 50**0.5, "transition1x": 2 * 10**0.5}, rel=1e-3
    )
    assert plan.epoch / 1e6 == pytest.approx(174.05, abs=0.01)
    assert [s.atoms for s in plan.sets] == [73, 80, 15, 14]
    assert plan.atoms == pytest.approx(sum(s.drawn * s.atoms for s in plan.sets))
    there = plan.estimates[0]
    assert len(plan.estimates) == 1
    assert "not timed" in plan.assumptions[-1]
    assert sum("represented by" in a for a in plan.assumptions) == 4
    # Time is counted work over the rate that was assumed, and the message of the all-reduce over the bandwidth.
    flops = 1e9 * there.details["GFLOP per structure"]  # type: ignore[operator]
    assert there.compute_seconds == pytest.approx(flops * 16 / (312e12 * 0.05))
    assert there.communication_seconds == pytest.approx(2 * 63 / 64 * 4 * plan.parameters / 25e9)
    assert there.gpu_hours == pytest.approx(64 * there.hours)
    assert there.details["a checkpoint, GB"] == pytest.approx(CHECKPOINT_BYTES * plan.parameters / 1e9)
    assert plan.sets[0].gflops > 3 * plan.sets[2].gflops


def test_assumptions_are_what_they_say() -> None:
    settings = jmp(precision="bf16-mixed")
    base = plan_cluster(settings, Cluster(gpus=8, launch_ms=0.0), patience=0.0)
    other = plan_cluster(
        settings,
        Cluster(gpus=8, launch_ms=0.0, efficiency=0.1, peak_tflops=624, price=3.0, strategy="fsdp", link_gb_s=50),
        patience=0.0,
    )
    a, b = base.estimates[0], other.estimates[0]
    assert b.compute_seconds == pytest.approx(a.compute_seconds / 4)
    assert b.communication_seconds == pytest.approx(a.communication_seconds * 3 / 2 / 2)
    assert b.price == pytest.approx(3.0 * b.gpu_hours)  # type: ignore[operator]
    states = 1e9 * (a.memory_gigabytes - b.memory_gigabytes)
    assert states == pytest.approx(STATE_BYTES * base.parameters * 7 / 8, rel=1e-6)
    small = plan_cluster(settings, Cluster(gpus=1, memory_gb=0.05, launch_ms=1e6), patience=0.0)
    assert small.estimates[0].compute_seconds == pytest.approx(1000)
    assert "hold" in str(small.estimates[0].details["does not fit"])


def test_accumulated_batches_are_the_same_work_in_less_memory() -> None:
    """The same steps in four parts: gradients are sent once a step, shares of parameters gathered for each part."""
    whole, parts = jmp(), jmp(batch_size=256, accumulate=4)
    for strategy, messages in (("ddp", 1.0), ("fsdp", 9 / 3)):
        cluster = Cluster(gpus=8, launch_ms=0.0, strategy=strategy)  # type: ignore[arg-type]
        a, b = (plan_cluster(s, cluster, patience=0.0).estimates[0] for s in (whole, parts))
        assert b.compute_seconds == pytest.approx(a.compute_seconds)
        assert b.communication_seconds == pytest.approx(messages * a.communication_seconds)
        assert b.details["structures per GPU and step"] == a.details["structures per GPU and step"] == 128
    state = STATE_BYTES * plan_cluster(whole, Cluster(), patience=0.0).parameters / 8 / 1e9
    assert b.memory_gigabytes - state == pytest.approx((a.memory_gigabytes - state) / 4)
    wide = plan_cluster(jmp(precision="64-true"), cluster, patience=0.0).estimates[0]
    assert wide.memory_gigabytes == pytest.approx(2 * a.memory_gigabytes)


def test_sets_that_are_here_are_read_and_timed(molecules: Store, slabs: Store) -> None:
    settings = PretrainSettings.model_validate(
        {
            "sets": {n: {"store": str(s.path), "validation": 8} for n, s in (("m", molecules), ("s", slabs))},
            "backbone": {"name": "painn", "settings": {**TINY, "cutoff": 4.0}},
            "graph": {"cutoff": 4.0, "max_neighbours": 8},
            "train": {"batch_size": 8, "steps": 10, "accelerator": "cpu"},
        }
    )
    plan = plan_cluster(settings, Cluster(gpus=1))
    # Neither validation nor test structures are trained on.
    assert [s.structures for s in plan.sets] == [len(split(s, n_validation=8).train) for s in (molecules, slabs)]
    assert plan.sets[0].structures < len(molecules) - 8
    assert plan.sets[0].atoms == pytest.approx(molecules.column("n_atoms").mean())
    assert plan.estimates[1].step_seconds > 0
    console = Console(record=True, width=160)
    plan.show(console)
    text = console.export_text()
    for words in ("epochs of the mixture", "GPU-hours", "assumed", "here, one process"):
        assert words in text
    json.dumps(plan.to_dict(), allow_nan=False)


def test_a_slab_repeated_is_the_same_slab() -> None:
    row = open_store("metal_slabs")[0]
    large = _enlarged(row, 73.0)
    assert 0.8 * 73 <= len(large) <= 2 * 73
    times = len(large) // len(row.structure)
    assert np.linalg.det(large.cell) == pytest.approx(times * np.linalg.det(row.structure.cell))
    settings = GraphSettings(cutoff=4.0, max_neighbours=40)
    # Every atom has the neighbours it had.
    assert build_graph(large, settings).counts.edges == times * build_graph(row.structure, settings).counts.edges
    molecule = open_store("molecules")[0]
    assert _enlarged(molecule, 73.0) is molecule.structure


def test_unknown_sets_are_asked_for() -> None:
    settings = PretrainSettings.model_validate({"sets": {"a": {"store": "nowhere"}}})
    with pytest.raises(EutecticError, match="--size nowhere=STRUCTURES,ATOMS"):
        plan_cluster(settings, Cluster())
    known = known_sizes(["nowhere=5e6,40.5", "oc20=1e6,50"])
    assert (known["nowhere"].structures, known["nowhere"].atoms, known["nowhere"].like) == (
        5_000_000,
        40.5,
        "metal_slabs",
    )
    assert known["oc20"].structures == 1_000_000
    for bad in ("oc20", "oc20=1", "=1,2", "oc20=0,3", "oc20=a,b"):
        with pytest.raises(EutecticError, match="name=structures,atoms"):
            known_sizes([bad])


def test_the_command(tmp_path: Any) -> None:
    file = tmp_path / "mine.json"
    file.write_text(jmp().model_dump_json())
    result = CliRunner().invoke(cli.app, ["plan", str(file), "--gpus", "16", "--json", "--train.batch_size", "512"])
    assert result.exit_code == 0, result.output
    plan = json.loads(result.stdout)
    assert plan["batch_size"] == 512
    assert plan["estimates"][0]["details"]["structures per GPU and step"] == 32
    assert plan["seen"]["structures"] == 512 * 339_940
