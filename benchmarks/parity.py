"""Compare GemNet-OC with the published implementation, array by array.

    python benchmarks/parity.py ../shared/fixtures/gemnet_oc

Runs the golden tests, but records errors instead of comparing: the largest difference of every array, relative to its
largest entry, on molecules, a slab and crystals, in double precision (* marks arrays that the fixtures store in single
precision).
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor


def main() -> None:
    """Print a table: array, error on each of the three batches."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fixtures", type=Path)
    given = parser.parse_args()
    golden = Path(__file__).parents[1] / "tests" / "models" / "gemnet_oc" / "test_published_arrays.py"
    spec = importlib.util.spec_from_file_location("golden", golden)
    assert spec is not None
    assert spec.loader is not None
    tests = importlib.util.module_from_spec(spec)
    sys.modules["golden"] = tests
    spec.loader.exec_module(tests)
    tests.FIXTURES = given.fixtures

    errors: dict[str, dict[str, str]] = defaultdict(dict)
    now = SimpleNamespace(batch="", test="")

    def key(value: Tensor) -> tuple[torch.Size, str]:
        # Independent of the order of its rows.
        return value.shape, f"{value.double().abs().sum():.9g}"

    def note(got: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
        name = now.arrays.get(key(expected), f"{now.test} {tuple(expected.shape)}")
        name = "gradients of all weights, the worst" if name.startswith("grad|") else name
        error = (got - expected.double()).abs().max() / expected.double().abs().max()
        old = errors[name].get(now.batch, "0")
        mark = "*" if expected.dtype == torch.float32 else ""
        errors[name][now.batch] = f"{max(error.item(), float(old.rstrip('*'))):.1e}{mark}"

    tests._same = note
    reduced = tests.reduced.__wrapped__()
    for case in ("mol", "slab", "bulk"):
        now.batch = case
        batch = tests.batch.__wrapped__(SimpleNamespace(param=case))
        now.arrays = {key(value): name for name, value in reversed(batch.arrays.items())}
        for test in ("geometry", "every_block", "energies_forces_loss_and_gradients"):
            now.test = test
            run = getattr(tests, f"test_{test}")
            run(batch) if test == "geometry" else run(batch, reduced)
    width = max(map(len, errors))
    print(f"{'array':{width}}  {'molecules':>9} {'slab':>9} {'crystals':>9}")
    for name, found in sorted(errors.items()):
        print(f"{name:{width}}  " + " ".join(f"{found.get(batch, ''):>9}" for batch in ("mol", "slab", "bulk")))


if __name__ == "__main__":
    main()
