"""Pre-training: which rows it learns from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from test_runs import settings_for

from eutectic.checkpoints.model import load_model
from eutectic.checkpoints.seen_rows import seen_rows
from eutectic.data.splits import split
from eutectic.data.store import Store
from eutectic.train.batches.sampler import BatchSampler
from eutectic.train.pretrain import pretrain


def test_the_test_part_is_left_alone_and_the_model_says_so(
    molecules: Store, slabs: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, drawn = BatchSampler.chosen, {"molecules": set(), "slabs": set()}  # type: ignore[var-annotated]

    def noted(self: BatchSampler, batch: int) -> tuple[np.ndarray, np.ndarray]:
        which, position = real(self, batch)
        for w, p in zip(which, position, strict=True):
            drawn[self.sets[w].task.name].add(int(self.sets[w].rows[p]))
        return which, position

    monkeypatch.setattr(BatchSampler, "chosen", noted)
    settings = settings_for(molecules, slabs, steps=40, evaluate_every=40, workers=0)
    pretrain(settings, tmp_path / "run")
    model = load_model(tmp_path / "run" / "model")
    for store in (molecules, slabs):
        name = "molecules" if store is molecules else "slabs"
        parts = split(store, "random", n_validation=8)
        seen = seen_rows(model.provenance, store)
        assert seen is not None
        np.testing.assert_array_equal(seen, parts.train)
        assert len(drawn[name]) > 20
        assert drawn[name] <= set(seen.tolist())
        assert not drawn[name] & {*parts.test.tolist(), *parts.validation.tolist()}

    # Learning goes on with one set, divided otherwise: both parts of it have been seen, and of the other what was.
    again = settings.model_dump()
    again["sets"] = {"molecules": again["sets"]["molecules"] | {"split": "group", "validation": 5}}
    again |= {"start": str(tmp_path / "run" / "model"), "backbone": None, "watch": {}}
    del again["backbone"]
    pretrain(type(settings).model_validate(again), tmp_path / "again")
    later = load_model(tmp_path / "again" / "model")
    seen = seen_rows(later.provenance, molecules)
    assert seen is not None
    trained = [split(molecules, name, n_validation=n).train for name, n in (("random", 8), ("group", 5))]
    np.testing.assert_array_equal(seen, np.union1d(*trained))
    before, after = (seen_rows(m.provenance, slabs) for m in (model, later))
    assert before is not None
    assert after is not None
    np.testing.assert_array_equal(before, after)
