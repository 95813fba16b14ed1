"""Matrix products stay exact, whoever makes them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from eutectic.models import products

WIDE = nn.Linear(256, 512)


@pytest.fixture
def restored() -> Iterator[None]:
    setting = getattr(torch.backends.mkldnn, "matmul", None)
    before = None if setting is None else setting.fp32_precision
    yield
    if setting is not None:
        setting.fp32_precision = before


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize("amd", [True, False])
def test_products_stay_in_single_precision(amd: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_is_amd", lambda: amd)
    used = products.prefer_fast_products(WIDE)
    assert amd or not used
    a, b = (torch.randn(300, 300, generator=torch.Generator().manual_seed(s)) for s in (1, 2))
    exact = a.double() @ b.double()
    assert ((a @ b).double() - exact).norm() < 1e-5 * exact.norm()


def test_narrow_layers_are_left_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_is_amd", lambda: True)
    assert not products.prefer_fast_products(nn.Linear(64, 512))


@pytest.mark.usefixtures("restored")
def test_a_library_that_lowers_precision_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    setting = getattr(torch.backends.mkldnn, "matmul", None)
    if setting is None:
        pytest.skip("this PyTorch has no such setting")
    before = setting.fp32_precision
    monkeypatch.setattr(products, "_is_amd", lambda: True)
    monkeypatch.setattr(products, "EXACT", 0.0)
    assert not products.prefer_fast_products(WIDE)
    assert setting.fp32_precision == before
