"""The commands on the documentation page about custom properties run as written, except the training."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from eutectic.atoms import PROPERTIES, parse_definition
from eutectic.cli.app import app
from eutectic.data.catalogue import open_store

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "define-a-property.md"


def test_the_definitions_are_definitions() -> None:
    table = re.findall(r"^\| `(\w+=[^`]*)`", PAGE.read_text(), re.MULTILINE)
    assert len(table) == 6
    for text in table:
        parse_definition(text)


def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for language, code in re.findall(r"```(python|sh)\n(.*?)```", PAGE.read_text(), re.DOTALL):
        if language == "python":
            exec(compile(code, str(PAGE), "exec"), {})
        for line in code.splitlines() if language == "sh" else ():
            program, *words = shlex.split(line)
            assert program == "eutectic"
            if words[0] != "finetune":
                # Each command is a process of its own.
                PROPERTIES.pop("adsorption_energy", None)
                done = CliRunner().invoke(app, words)
                assert done.exit_code == 0, done.output
    assert open_store("stores/ads").label_counts() == {"adsorption_energy": 40}
    # 1 eV = 96.485 332 9 kJ/mol (CODATA 2014).
    ratio = float(open_store("stores/ads")[0].labels["adsorption_energy"]) / float(
        open_store("stores/ads_kj")[0].labels["adsorption_energy"]
    )
    assert ratio == pytest.approx(96.485_332_9, rel=1e-8)
