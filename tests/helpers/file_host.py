"""A server of one file that disconnects, refuses, or does not support ranges."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from eutectic.data import download


class Host(ThreadingHTTPServer):
    """One file, and how it is served."""

    content: bytes
    ranges, tag = True, '"one"'
    break_after: list[int]
    answer = 200
    asked: list[str]

    def url(self, path: str = "/file") -> str:
        return f"http://127.0.0.1:{self.server_address[1]}{path}"


class Handler(BaseHTTPRequestHandler):
    server: Host

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        host, wanted = self.server, self.headers.get("Range", "")
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", host.url())
            self.end_headers()
            return
        host.asked.append(wanted)
        if host.answer != 200:
            self.send_response(host.answer)
            self.end_headers()
            return
        start = 0
        if wanted and host.ranges and self.headers.get("If-Range", host.tag) == host.tag:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(host.content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(host.content)}")
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(host.content) - 1}/{len(host.content)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(host.content) - start))
        if host.tag:
            self.send_header("ETag", host.tag)
        self.end_headers()
        end = start + host.break_after.pop(0) if host.break_after else len(host.content)
        self.wfile.write(host.content[start:end])


@contextmanager
def serving(content: bytes, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    """The server; downloads do not wait between their attempts."""
    monkeypatch.setattr(download, "PAUSES", (0.0, 0.0))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with Host(("127.0.0.1", 0), Handler) as server:
        server.content, server.break_after, server.asked = content, [], []
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()
