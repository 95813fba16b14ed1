"""Drills: faults that users' files, disks and machines have. One case of a drill is one test.

`pytest -m slow tests/drills` ends with a table of what was tried and what survived. A fault is survived when the right
value comes out, or an error in four parts and nothing is lost.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from _pytest.terminal import TerminalReporter

HERE = Path(__file__).parent
tried: Counter[str] = Counter()
survived: Counter[str] = Counter()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.slow)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):
    report = yield
    if call.when == "call" and not report.skipped and isinstance(item, pytest.Function):
        lines = (item.function.__doc__ or item.originalname).strip().splitlines()
        drill = f"{item.path.stem.removeprefix('test_drill_')}: {lines[0]}"
        tried[drill] += 1
        survived[drill] += report.passed
    return report


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    if not tried:
        return
    terminalreporter.section("drills: tried, survived")
    for drill, n in sorted(tried.items()):
        terminalreporter.line(f"{n:5d} {survived[drill]:5d}  {drill}")
    terminalreporter.line(f"{tried.total():5d} {survived.total():5d}  all")
