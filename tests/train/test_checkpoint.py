"""Checkpoints: full disks, damaged and hostile files, states of any shape."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from eutectic.atoms import EutecticError
from eutectic.train.checkpoint import load_checkpoint, previous, save_checkpoint


def test_full_disk_keeps_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"step": 1, "weights": torch.ones(3)})

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("eutectic.train.checkpoint.torch.save", full)
    with pytest.raises(EutecticError, match="No space left"):
        save_checkpoint(path, {"step": 2})
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]
    state = load_checkpoint(path)
    assert state is not None
    assert state["step"] == 1


class _Hostile:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("this must never run",))


def test_a_hostile_checkpoint_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "checkpoint.pt"
    torch.save({"step": _Hostile()}, path)
    with pytest.raises(EutecticError, match="not a readable checkpoint"):
        load_checkpoint(path)
    assert "never" not in capsys.readouterr().out
    path.write_bytes(b"half a fi")
    with pytest.raises(EutecticError, match="not a readable checkpoint"):
        load_checkpoint(path)
    assert load_checkpoint(tmp_path / "absent.pt") is None


def test_a_damaged_checkpoint_falls_back(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "checkpoint.pt"
    for step in (1, 2):
        save_checkpoint(path, {"step": step, "weights": torch.full((1000,), float(step))})
    whole = path.read_bytes()
    assert load_checkpoint(path)["step"] == 2  # type: ignore[index]
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    for damaged in (whole[: len(whole) // 2], bytes(flipped), b""):
        path.write_bytes(damaged)
        state = load_checkpoint(path)
        assert state is not None
        assert state["step"] == 1
        assert (state["weights"] == 1).all()
        assert "resuming from the previous checkpoint" in caplog.text
        caplog.clear()
    path.unlink()  # killed between two renames
    assert load_checkpoint(path)["step"] == 1  # type: ignore[index]
    previous(path).write_bytes(b"half")
    with pytest.raises(EutecticError, match="not a readable checkpoint"):
        load_checkpoint(path)


def test_optimiser_state_of_any_shape_is_kept(tmp_path: Path) -> None:
    """Adafactor keeps rows and columns instead of moments: they are no shards of a parameter."""
    from eutectic.train.checkpoint import full_state, load_checkpoint, load_optimiser, save_checkpoint

    weight = torch.nn.Parameter(torch.ones(4, 3))
    made = [torch.optim.Adafactor([weight]) for _ in range(2)]
    weight.grad = torch.arange(12.0).reshape(4, 3)
    made[0].step()
    save_checkpoint(tmp_path / "checkpoint.pt", full_state(made[0].state_dict()))
    state = load_checkpoint(tmp_path / "checkpoint.pt")
    assert state is not None
    load_optimiser(made[1], state)
    before, after = (m.state_dict()["state"][0] for m in made)
    assert before.keys() == after.keys()
    assert any(isinstance(v, torch.Tensor) and v.ndim and v.shape != weight.shape for v in before.values())
    for name, value in before.items():
        np.testing.assert_array_equal(np.asarray(value), np.asarray(after[name]))
