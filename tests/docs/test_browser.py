"""Pages in Chromium, from disk: no error in the console, nothing wider than a phone, dark and light.

A page is loaded into a frame of the width of a phone; a script beside it writes down how wide its content is.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import pytest
from typer.testing import CliRunner

from eutectic import cli

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")

PHONE = 390
DOCUMENTATION = (
    "index.html",
    "commands.html",
    "settings.html",
    "data-sets.html",
    "concepts/loss.html",
    "concepts/graphs.html",
    "tutorials/fine-tune.html",
    "how-to/add-a-backbone.html",
    "results/index.html",
    "log.html",
)
PROBE = """<!doctype html><title>probe</title>
<iframe id=f width={width} height=900 src="{page}"></iframe><pre id=out></pre>
<script>
const frame = document.getElementById("f")
frame.onload = () => setTimeout(() => {{
  const page = frame.contentDocument, root = page.documentElement
  const wide = [...page.querySelectorAll("main *, body > *")].filter(e => e.getBoundingClientRect().right > {width} + 1)
  const style = frame.contentWindow.getComputedStyle(page.body)
  document.getElementById("out").textContent = "PROBE" + JSON.stringify({{
    width: root.scrollWidth, height: root.scrollHeight, background: style.backgroundColor, colour: style.color,
    wide: wide.slice(0, 5).map(e => e.tagName + "." + e.className),
  }}) + "END"
}}, 300)
</script>"""


def probed(page: Path, folder: Path, *options: str) -> dict[str, object]:
    """What the browser makes of a page; fails if it writes an error to the console."""
    beside = folder / "probe.html"
    beside.write_text(PROBE.format(width=PHONE, page=page.as_uri()))
    assert CHROMIUM
    done = subprocess.run(
        [
            CHROMIUM,
            *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
            *("--allow-file-access-from-files", "--enable-logging=stderr", "--virtual-time-budget=3000"),
            *(f"--user-data-dir={folder / 'profile'}", "--window-size=1000,1000", *options),
            *("--dump-dom", beside.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    said = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert not said, said
    found = re.search(r"PROBE(.*?)END", done.stdout, re.DOTALL)
    assert found, (page, done.stdout[:300], done.stderr[-300:])
    values: dict[str, object] = json.loads(unescape(found[1]))
    return values


def fits(page: Path, folder: Path) -> dict[str, object]:
    """What the browser makes of a page; fails if it is wider than a phone."""
    light = probed(page, folder)
    assert int(str(light["width"])) <= PHONE, (page.name, light)
    assert int(str(light["height"])) > 300
    return light


def has_two_schemes(page: Path, folder: Path) -> None:
    """Fail if the page fits no phone, or is the same dark and light."""
    light = fits(page, folder)
    dark = probed(page, folder, "--blink-settings=preferredColorScheme=0")
    assert dark["background"] != light["background"], (page.name, dark)
    assert dark["background"] != dark["colour"]


@pytest.mark.parametrize("name", DOCUMENTATION)
def test_the_documentation(site: Path, tmp_path: Path, name: str) -> None:
    fits(site / name, tmp_path)


@pytest.mark.parametrize("name", ["check", "report", "errors", "map"])
def test_pages_of_the_program(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(trained)
    page = tmp_path / f"{name}.html"
    commands = {
        "check": ["data", "check", "my.xyz", "--html", str(page)],
        "errors": ["evaluate", "runs/mine", "my.xyz", "-o", str(page)],
        "map": ["embed", "runs/mine", "my.xyz", "--map", str(page)],
    }
    if name == "report":
        page = trained / "runs" / "mine" / "report.html"
    else:
        result = CliRunner().invoke(cli.app, commands[name])
        assert page.exists(), (result.output, result.exception)
    has_two_schemes(page, tmp_path)
