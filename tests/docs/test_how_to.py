"""The page on reading a store runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "read-a-store.md"
NEEDS = {"pandas": "pandas", "polars": "polars", "DuckDB": "duckdb"}


def sections() -> dict[str, str]:
    """Heading → its code; the page's head is what every section starts with."""
    head, *rest = PAGE.read_text().split("\n## ")
    code = {"": head} | {part.partition("\n")[0]: part for part in rest}
    return {name: "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL)) for name, text in code.items()}


def test_every_reader_has_a_section() -> None:
    assert set(sections()) == {"", *NEEDS}


@pytest.mark.parametrize("name", NEEDS)
def test_the_page_runs(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip(NEEDS[name], reason=f"{NEEDS[name]} is not installed")
    code = sections()[""] + sections()[name]
    exec(compile(code, str(PAGE), "exec"), {})
    assert capsys.readouterr().out.strip()
