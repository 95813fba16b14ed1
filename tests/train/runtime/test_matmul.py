"""Matrix products stay exact, whoever makes them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from eutectic.train.runtime import matmul

WIDE = nn.Linear(256, 512)


@pytest.fixture
def restored() -> Iterator[None]:
    setting = getattr(torch.backends.mkldnn, "matmul", None)
    before = None if setting is None else setting.fp32_precision
    yield
    if setting is not None:
        setting.fp32_precision = before


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize("wide_units", [True, False])
def test_products_stay_in_single_precision(wide_units: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matmul, "_has_wide_units", lambda: wide_units)
    used = matmul.prefer_fast_matmul(WIDE)
    assert wide_units or not used
    a, b = (torch.randn(300, 300, generator=torch.Generator().manual_seed(s)) for s in (1, 2))
    exact = a.double() @ b.double()
    assert ((a @ b).double() - exact).norm() < 1e-5 * exact.norm()


@pytest.mark.parametrize(
    ("described", "wide_units"),
    [
        ("vendor_id\t: AuthenticAMD\ncpu family\t: 26\nmodel\t\t: 2\n", True),
        ("vendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: 17\n", False),
        ("vendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 143\n", False),
        ("Processor\t: ARMv8\n", False),
    ],
)
def test_zen_5_is_told_from_what_came_before(
    described: str, wide_units: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text(described)
    monkeypatch.setattr(matmul, "Path", lambda _: tmp_path / "cpuinfo")
    assert matmul._has_wide_units() is wide_units


def test_narrow_layers_are_left_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matmul, "_has_wide_units", lambda: True)
    assert not matmul.prefer_fast_matmul(nn.Linear(64, 512))


@pytest.mark.usefixtures("restored")
def test_a_library_that_lowers_precision_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    setting = getattr(torch.backends.mkldnn, "matmul", None)
    if setting is None:
        pytest.skip("this PyTorch has no such setting")
    before = setting.fp32_precision
    monkeypatch.setattr(matmul, "_has_wide_units", lambda: True)
    monkeypatch.setattr(matmul, "EXACT", 0.0)
    assert not matmul.prefer_fast_matmul(WIDE)
    assert setting.fp32_precision == before
