"""Pages in Chromium, from disk: no error in the console, nothing wider than a phone, readable dark and light.

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
  const style = frame.contentWindow.getComputedStyle(page.body), of = e => frame.contentWindow.getComputedStyle(e)
  // Contrast as a multiple of what the Web Content Accessibility Guidelines 2 ask for (level AA).
  const rgba = text => {{ const v = text.match(/[\\d.]+/g).map(Number); return v.length < 4 ? [...v, 1] : v }}
  const over = (a, b) => [0, 1, 2].map(i => a[i] * a[3] + b[i] * (1 - a[3])).concat(1)
  const light = c => [0.2126, 0.7152, 0.0722].reduce((sum, weight, i) => {{
    const s = c[i] / 255
    return sum + weight * (s <= 0.04045 ? s / 12.92 : ((s + 0.055) / 1.055) ** 2.4)
  }}, 0)
  const behind = e => e ? over(rgba(of(e).backgroundColor), behind(e.parentElement)) : [255, 255, 255, 1]
  const contrast = e => {{
    const back = behind(e), [a, b] = [light(over(rgba(of(e).color), back)), light(back)].sort((a, b) => b - a)
    const size = parseFloat(of(e).fontSize), large = size >= 24 || (size >= 18.66 && of(e).fontWeight >= 700)
    return (a + 0.05) / (b + 0.05) / (large ? 3 : 4.5)
  }}
  const texts = [...page.querySelectorAll("main *, body > *")].filter(e =>
    e.getClientRects().length && !e.closest("nav, .headerlink, script, svg") &&
    [...e.childNodes].some(n => n.nodeType == 3 && n.textContent.trim()))
  const read = texts.map(e => [contrast(e), e.tagName + "." + e.className + ": " + e.textContent.trim().slice(0, 30)])
  document.getElementById("out").textContent = "PROBE" + JSON.stringify({{
    width: root.scrollWidth, height: root.scrollHeight, background: style.backgroundColor, colour: style.color,
    faint: read.sort((a, b) => a[0] - b[0]).slice(0, 5), wide: wide.slice(0, 5).map(e => e.tagName + "." + e.className),
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
            *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
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
    found = re.search(r"PROBE(\{.*?\})END", done.stdout, re.DOTALL)
    assert found, (page, done.stdout[:300], done.stderr[-300:])
    values: dict[str, object] = json.loads(unescape(found[1]))
    return values


def check_page(page: Path, folder: Path) -> None:
    """Fail if the page is wider than a phone, the same dark and light, or has text that is hard to read in either.

    The same reader comes back with the other preference: a page must not keep to that of the first visit.
    """
    light = probed(page, folder)
    dark = probed(page, folder, "--blink-settings=preferredColorScheme=0")
    assert dark["background"] != light["background"], (page.name, dark)
    for found in (light, dark):
        assert int(str(found["width"])) <= PHONE, (page.name, found)
        assert int(str(found["height"])) > 300
        faint = [text for contrast, text in found["faint"] if contrast < 1]  # type: ignore[attr-defined]
        assert not faint, (page.name, found)


@pytest.mark.parametrize("name", DOCUMENTATION)
def test_the_documentation(site: Path, tmp_path: Path, name: str) -> None:
    check_page(site / name, tmp_path)


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
    check_page(page, tmp_path)
