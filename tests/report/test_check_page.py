"""The page of a checked data set: whole, safe, and saying what the report says."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from eutectic.atoms import EutecticError
from eutectic.check import check
from eutectic.data.store import Store
from eutectic.report.check_page import write_check_page

VOID = {"meta", "br", "img", "input", "link", "hr"}


class Reader(HTMLParser):
    """Counts elements and notes whether they close as they open."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: dict[str, int] = {}
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen[tag] = self.seen.get(tag, 0) + 1
        self.words += [value for name, value in attrs if name in ("src", "href") and value]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen[tag] = self.seen.get(tag, 0) + 1

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def read(file: Path) -> Reader:
    reader = Reader()
    reader.feed(file.read_text())
    reader.close()
    assert not reader.open
    assert "script" not in reader.seen
    return reader


def trap(file: Path) -> Path:
    """Diatomic spring with gradients for forces, near frames, and one wild energy."""
    random = np.random.default_rng(0)
    stretch = np.cumsum(random.normal(scale=0.01, size=80))
    x = np.zeros((80, 2, 3))
    x[:, 1, 2] = 1.1 + stretch
    gradient = np.zeros((80, 2, 3))
    gradient[:, 1, 2], gradient[:, 0, 2] = 30 * stretch, -30 * stretch
    energies = 15 * stretch**2 - 3083.0
    energies[40] += 100.0
    np.savez(file, R=x, E=energies, F=gradient, z=[6, 8])
    return file


def test_page_says_what_was_found(tmp_path: Path) -> None:
    report = check(trap(tmp_path / "a<b>&.npz"))
    write_check_page(tmp_path / "page.html", report)
    reader = read(tmp_path / "page.html")
    text = "".join(reader.words)
    assert {f.code for f in report.findings} >= {"forces_sign", "energy_outliers"}
    for finding in report.findings:
        assert finding.message in text
        assert finding.fix.replace("`", "") in text
    assert report.verdict in text
    assert "a<b>&.npz" in text
    assert "a<b>&.npz#40" in text
    assert reader.seen["svg"] == 4  # three plots and a periodic table
    assert not [w for w in reader.words if w.startswith(("http:", "https:", "//"))]


def test_page_of_a_good_store_and_of_next_to_nothing(molecules: Store, tmp_path: Path) -> None:
    report = check(molecules.path)
    assert report.ok
    write_check_page(tmp_path / "store.html", report)
    assert report.verdict in " ".join(read(tmp_path / "store.html").words)
    np.savez(tmp_path / "bare.npz", R=np.zeros((1, 1, 3)), z=[2])
    write_check_page(tmp_path / "bare.html", check(tmp_path / "bare.npz"))
    assert read(tmp_path / "bare.html").seen["svg"] == 1


def test_page_that_cannot_be_written(molecules: Store, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EutecticError):
        write_check_page(tmp_path / "file" / "page.html", check(molecules.path))
