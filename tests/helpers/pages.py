"""What a browser would see of a report, and names that try to break it."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

HOSTILE = "<script>alert('x')</script>\"><img src=http://evil.example/x> $a$ [red]"


class Page(HTMLParser):
    """What a browser would see: every tag with its attributes, every id."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.alts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "action", "data"):
                self.addresses.append(value or "")
            if name == "id":
                self.ids.append(value or "")
            if name in ("alt", "aria-label"):
                self.alts.append(value or "")


def check_self_contained(path: Path) -> tuple[str, Page]:
    """One file, nothing from outside, no script, no id twice, every local address there."""
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert not {"script", "link", "iframe", "object", "embed"} & set(page.tags)
    assert all(a.startswith(("#", "data:image/png;base64,")) for a in page.addresses)
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    assert len(page.ids) == len(set(page.ids))
    assert {a[1:] for a in page.addresses if a.startswith("#")} <= set(page.ids)
    assert set(re.findall(r"url\(#([^)]*)\)", text)) <= set(page.ids)
    assert page.tags.count("svg") + page.tags.count("img") == len(page.alts)
    assert all(page.alts)
    assert len(text) < 6e6
    return text, page
