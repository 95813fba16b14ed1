"""docs/settings.md is up to date and complete."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from pydantic import BaseModel, ConfigDict, Field

from eutectic.models.registry import BACKBONES
from eutectic.train import settings

SCRIPT = Path(__file__).resolve().parents[2] / "docs" / "make_settings.py"


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_settings", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_up_to_date(script: ModuleType) -> None:
    assert script.PAGE.read_text() == script.page(), "run python docs/make_settings.py"


def test_check_fails_on_another_page(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(script, "PAGE", tmp_path / "settings.md")
    monkeypatch.setattr(sys, "argv", ["make_settings.py", "--check"])
    assert script.main() == 1  # no page
    monkeypatch.setattr(sys, "argv", ["make_settings.py"])
    assert script.main() == 0
    monkeypatch.setattr(sys, "argv", ["make_settings.py", "--check"])
    assert script.main() == 0
    script.PAGE.write_text(script.PAGE.read_text().replace("cutoff", "range", 1))
    assert script.main() == 1
    assert "run python docs/make_settings.py" in capsys.readouterr().err


def subclasses(kind: type) -> Iterator[type]:
    for inner in kind.__subclasses__():
        yield inner
        yield from subclasses(inner)


def test_every_settings_class_has_a_section(script: ModuleType) -> None:
    found = script.classes()
    # `Defining` and `LoopSettings` are only base classes; the cluster of `eutectic plan` is described by the options of
    # that command.
    mine = {kind for kind in subclasses(settings.Settings) if kind.__module__ == "eutectic.train.settings"}
    mine -= {settings.Defining, settings.LoopSettings}
    assert len(mine) > 5
    assert mine <= set(found)
    assert {entry.settings for entry in BACKBONES.values()} <= set(found)
    page = script.page()
    for kind in found:
        assert f"\n## {kind.__name__}\n" in page
        for name in kind.model_fields:
            assert f"\n| `{name}` | " in page


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")

    width: int = 8
    depth: int = 2


class Example(BaseModel):
    """One | of each."""

    required: str = Field(description="a|b")
    rate: float | None = Field(default=None, gt=0, le=1)
    pair: tuple[float, float] = (0.5, 1e-12)
    several: tuple[int, ...] = (1, 2)
    inner: dict[str, Inner] = Field(default_factory=lambda: {"a": Inner(depth=3)})
    on: bool = True


def test_rows(script: ModuleType) -> None:
    assert list(script.rows(Example)) == [
        ("`required`", "str", "required", "a\\|b"),
        ("`rate`", "float or null, > 0, ≤ 1", "`null`", ""),
        ("`pair`", "[float, float]", "`[0.5, 1e-12]`", ""),
        ("`several`", "list of int", "`[1, 2]`", ""),
        ("`inner`", "str → [Inner](#inner)", "`{a: {depth: 3}}`", ""),
        ("`on`", "bool", "`true`", ""),
    ]
