"""Progress bars: on standard error, after a while, in terminals alone."""

from __future__ import annotations

import io
import itertools
import time

import pytest
from rich.console import Console

from eutectic import console
from eutectic.console import ProgressBar, track


def shown(bar: ProgressBar) -> str:
    """The bar as it is drawn."""
    into = Console(file=io.StringIO(), force_terminal=True, width=200, color_system=None)
    into.print(bar._progress.get_renderable())
    assert isinstance(into.file, io.StringIO)
    return " ".join(into.file.getvalue().split())


def test_count_rate_time_left_and_note(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(step=5.0)
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    bar = ProgressBar("Reading [qm9]", 100, done=20, unit="rows")
    bar.advance(30, note="2 left out")
    assert "Reading [qm9]" in shown(bar)
    assert "50/100 rows · 6/s ·" in shown(bar)
    assert shown(bar).endswith("2 left out")
    bar.update(90, total=200)
    assert "90/200 rows · 7/s ·" in shown(bar)
    assert shown(bar).endswith("2 left out")


def test_bytes_and_what_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(step=2.0)
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    bar = ProgressBar("Fetching", None, unit="bytes")
    bar.update(3_000_000, total=12_000_000)
    assert "3.0/12.0 MB · 1.5 MB/s" in shown(bar)
    assert "/" not in shown(ProgressBar("Counting", unit=""))


def test_shown_after_a_while_on_a_terminal_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def work() -> tuple[str, str]:
        assert list(track(range(120), "Looking", 120)) == list(range(120))
        said = capsys.readouterr()
        return said.out, said.err

    assert work() == ("", "")
    monkeypatch.setattr(console, "SHOW_AFTER", -1.0)
    assert work() == ("", "")
    monkeypatch.setenv("FORCE_COLOR", "1")
    out, err = work()
    assert not out
    assert "Looking" in err
    assert "120/120" in err
    assert list(track(range(3), "Looking", 3, enabled=False)) == [0, 1, 2]
    assert capsys.readouterr().err == ""


def test_a_file_gets_lines_instead() -> None:
    into = Console(file=io.StringIO(), width=120)
    with ProgressBar("bulk", 50, done=10, unit="items", lines=4, console=into) as bar:
        for number in range(40):
            bar.advance(1, note=f"{number} left out")
    assert isinstance(into.file, io.StringIO)
    assert into.file.getvalue().splitlines() == [
        f"bulk: {10 + n} of 50 items, {n - 1} left out" for n in (10, 20, 30, 40)
    ]


def test_where_no_bar_can_be_shown_a_line_says_now_and_then_how_far_it_is() -> None:
    told = io.StringIO()
    with ProgressBar("predicting", 100, every=0.0, console=Console(file=told)) as bar:
        bar.update(40)
    assert told.getvalue().startswith("predicting: 40 structures")
