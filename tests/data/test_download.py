"""Downloads from a server that disconnects, refuses, does not support ranges or sends the wrong data."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from file_host import Host, serving
from filelock import FileLock

from eutectic.atoms import EutecticError
from eutectic.data.dataset import File
from eutectic.data.download import fetch

CONTENT = np.random.default_rng(0).bytes(300_000)
SHA256 = "sha256:" + hashlib.sha256(CONTENT).hexdigest()
MD5 = "md5:" + hashlib.md5(CONTENT).hexdigest()


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    with serving(CONTENT, monkeypatch) as server:
        yield server


def file(host: Host, checksum: str = SHA256, path: str = "/file", size: int | None = len(CONTENT)) -> File:
    return File(name="file.bin", url=host.url(path), size_bytes=size, checksum=checksum)


@pytest.mark.parametrize("checksum", [SHA256, MD5, ""])
def test_a_file_is_fetched_once(host: Host, tmp_path: Path, checksum: str) -> None:
    for _ in range(2):
        path = fetch(file(host, checksum, "/moved"), tmp_path / "downloads")
        assert path.read_bytes() == CONTENT
    assert host.asked == [""]
    assert [p.name for p in path.parent.iterdir()] == ["file.bin"]


@pytest.mark.parametrize("checksum", [SHA256, ""])
def test_a_connection_that_breaks(host: Host, tmp_path: Path, checksum: str) -> None:
    host.break_after = [100_000, 50_000]
    assert fetch(file(host, checksum), tmp_path).read_bytes() == CONTENT
    assert host.asked == ["", "bytes=100000-", "bytes=150000-"]


def test_it_goes_on_in_another_session(host: Host, tmp_path: Path) -> None:
    # Bytes earn new attempts; the last two bring none.
    host.break_after = [100_000, 0, 0]
    with pytest.raises(EutecticError, match=r"100,000 bytes received.*a stable connection.*it resumes.*in a browser"):
        fetch(file(host), tmp_path)
    assert not (tmp_path / "file.bin").exists()
    host.asked.clear()
    assert fetch(file(host), tmp_path).read_bytes() == CONTENT
    assert host.asked == ["bytes=100000-"]


def test_a_server_without_ranges(host: Host, tmp_path: Path) -> None:
    host.ranges, host.break_after = False, [100_000]
    assert fetch(file(host), tmp_path).read_bytes() == CONTENT
    assert host.asked == ["", "bytes=100000-"]


def test_a_file_that_changes_meanwhile_is_not_joined(host: Host, tmp_path: Path) -> None:
    host.break_after = [100_000, 0, 0]
    with pytest.raises(EutecticError, match="bytes received"):
        fetch(file(host, ""), tmp_path)
    host.content, host.tag = CONTENT[::-1], '"two"'
    assert fetch(file(host, ""), tmp_path).read_bytes() == CONTENT[::-1]


def test_without_a_mark_or_a_checksum_it_starts_again(host: Host, tmp_path: Path) -> None:
    host.tag, host.break_after = "", [100_000]
    assert fetch(file(host, ""), tmp_path).read_bytes() == CONTENT
    assert host.asked == ["", ""]


def test_a_wrong_checksum(host: Host, tmp_path: Path) -> None:
    host.content = CONTENT[:-1] + b"!"
    with pytest.raises(EutecticError, match=r"another file: sha256 is \w+; expected sha256:\w+"):
        fetch(file(host), tmp_path)
    assert not (tmp_path / "file.bin").exists()
    host.content = CONTENT
    assert fetch(file(host), tmp_path).read_bytes() == CONTENT


def test_another_length(host: Host, tmp_path: Path) -> None:
    with pytest.raises(EutecticError, match="300,000 bytes instead of 300,001"):
        fetch(file(host, "", size=300_001), tmp_path)


def test_what_is_whole_already(host: Host, tmp_path: Path) -> None:
    (tmp_path / "file.bin.part").write_bytes(CONTENT)
    assert fetch(file(host), tmp_path).read_bytes() == CONTENT
    assert host.asked == ["bytes=300000-"]
    (tmp_path / "file.bin").rename(tmp_path / "file.bin.part")
    (tmp_path / "file.bin.part").write_bytes(CONTENT + b"more")
    assert fetch(file(host), tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("answer", [404, 403, 410, 202])
def test_a_server_that_refuses(host: Host, tmp_path: Path, answer: int) -> None:
    host.answer = answer
    with pytest.raises(EutecticError, match=rf"answered {answer}.*in a browser.*--source") as caught:
        fetch(file(host), tmp_path)
    assert caught.value.where == host.url()
    assert len(host.asked) == 1


def test_a_busy_server_is_asked_again(host: Host, tmp_path: Path) -> None:
    host.answer = 503
    with pytest.raises(EutecticError, match="answered 503"):
        fetch(file(host), tmp_path)
    assert len(host.asked) == 3


def test_no_connection(host: Host, tmp_path: Path) -> None:
    lost = File(name="file.bin", url="http://127.0.0.1:9/file")
    with pytest.raises(EutecticError, match=r"no connection.*check the network"):
        fetch(lost, tmp_path)
    with pytest.raises(EutecticError, match="not a web address"):
        fetch(File(name="file.bin", url="file:///etc/hostname"), tmp_path)


def test_one_process_at_a_time(host: Host, tmp_path: Path) -> None:
    with FileLock(tmp_path / ".file.bin.lock"), pytest.raises(EutecticError, match="another process is downloading"):
        fetch(file(host), tmp_path)
    assert fetch(file(host), tmp_path).read_bytes() == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["file.bin"]
