"""`eutectic data prepare` as a process: interruptions, concurrent runs, full disks."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
from pyg_records import LAYOUTS, frame, pickled, write_lmdb

from eutectic import cli
from eutectic.data.store import Store, is_store

FRAMES = 30_000


@pytest.fixture(scope="module")
def trajectory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough of rMD17's ethanol for several parts."""
    random = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("trajectory") / "rmd17_ethanol.npz"
    np.savez(
        path,
        nuclear_charges=np.array([6, 6, 8, 1, 1, 1, 1, 1, 1]),
        coords=random.normal(size=(FRAMES, 9, 3)),
        energies=random.normal(size=FRAMES),
        forces=random.normal(size=(FRAMES, 9, 3)),
    )
    return path


def command(source: Path, store: Path) -> subprocess.Popen[str]:
    words = ["data", "prepare", "rmd17:ethanol", "--source", str(source), "--store", str(store), "--workers", "1"]
    return subprocess.Popen(
        [sys.executable, "-m", "eutectic", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "COLUMNS": "200"},
    )


def digests(store: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(store.iterdir())}


def test_two_at_once(trajectory: Path, tmp_path: Path) -> None:
    processes = [command(trajectory, tmp_path / "store") for _ in range(2)]
    told = [process.communicate() for process in processes]
    assert sorted(process.returncode for process in processes) == [0, 1], told
    refused = next(said for process, (_, said) in zip(processes, told, strict=True) if process.returncode)
    # The slower one meets the other at work, or its store.
    busy = re.search(r"another process( \(PID \d+ on .*\))? is preparing this store", " ".join(refused.split()))
    assert busy or "a store already exists here" in refused
    assert "Traceback" not in refused
    assert len(Store(tmp_path / "store")) == FRAMES
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system cannot kill a process outright")
def test_killed_and_given_again(trajectory: Path, tmp_path: Path) -> None:
    process = command(trajectory, tmp_path / "store")
    first = tmp_path / ".store.preparing" / "part-00000.json"
    while not first.exists() and process.poll() is None:
        time.sleep(0.002)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert first.exists()
    assert not is_store(tmp_path / "store")
    made = first.with_suffix(".arrow").stat().st_mtime_ns
    again, whole = command(trajectory, tmp_path / "store"), command(trajectory, tmp_path / "whole")
    assert [p.communicate() and p.returncode for p in (again, whole)] == [0, 0]
    assert digests(tmp_path / "store") == digests(tmp_path / "whole")
    # Not made a second time: the shard is the part of the process that was killed.
    assert (tmp_path / "store" / "shard-00000.arrow").stat().st_mtime_ns == made
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store", "whole"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode:
        pytest.skip("a small disk can only be made by the super-user of a system that allows it")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="tmpfs is Linux's")
def test_a_full_disk(trajectory: Path, small_disk: Path) -> None:
    process = command(trajectory, small_disk / "store")
    _, said = process.communicate()
    assert process.returncode == 1
    assert "No space left on device" in said or "GB more for this store" in said
    assert "free some space" in said
    assert "Traceback" not in said
    assert not is_store(small_disk / "store")


def _lmdb(path: Path) -> tuple[str, Path]:
    records = [pickled(frame(fid=i), LAYOUTS[0]) for i in range(50)]
    return "oc20", write_lmdb(path / "data.lmdb", records)


def _hdf5(path: Path) -> tuple[str, Path]:
    with h5py.File(path / "transition1x.h5", "w") as file:
        for reaction in range(40):
            group = file.create_group(f"data/CH4/rxn{reaction:04d}")
            group["atomic_numbers"] = [6, 1, 1, 1, 1]
            group["positions"] = np.random.default_rng(reaction).normal(size=(20, 5, 3))
            group["wB97x_6-31G(d).energy"] = np.zeros(20)
            group["wB97x_6-31G(d).forces"] = np.zeros((20, 5, 3))
    return "transition1x", path / "transition1x.h5"


def _json(path: Path) -> tuple[str, Path]:
    site = {"species": [{"element": "Cu", "occu": 1}], "abc": [0, 0, 0]}
    crystal = {"lattice": {"matrix": np.eye(3).tolist(), "pbc": [True] * 3}, "sites": [site]}
    data = {"index": list(range(60)), "columns": ["structure", "exfoliation_en"], "data": [[crystal, 1.5]] * 60}
    (path / "matbench_jdft2d.json").write_text(json.dumps(data))
    return "matbench:jdft2d", path / "matbench_jdft2d.json"


@pytest.mark.parametrize("kept", [0.0, 0.02, 0.5, 0.9])
@pytest.mark.parametrize("make", [_hdf5, _lmdb, _json])
def test_files_cut_short(
    make: object, kept: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name, source = make(tmp_path)  # type: ignore[operator]
    words = ["eutectic", "data", "prepare", name, "--source", str(source), "--workers", "1"]
    monkeypatch.setattr("sys.argv", [*words, "--store", str(tmp_path / "whole")])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert not stop.value.code
    os.truncate(source, int(kept * source.stat().st_size))
    monkeypatch.setattr("sys.argv", [*words, "--store", str(tmp_path / "store")])
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        cli.main()
    said = " ".join(capsys.readouterr().err.split())
    assert stop.value.code == 1
    assert source.name in said
    assert all(part in said for part in ("error in", "given", "expected", "what to do"))
    assert not (tmp_path / "store").exists()
