"""Models on the Hugging Face Hub, against a stand-in on this machine and, without the package, in its place."""

from __future__ import annotations

import json
import shutil
import sys
import threading
from collections.abc import Iterator
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
from ase.build import molecule
from typer.testing import CliRunner

import eutectic
from eutectic.atoms import EutecticError
from eutectic.checkpoints import hub
from eutectic.checkpoints.shipped import model_folder
from eutectic.cli.app import app

RUNNER = CliRunner()
STORED = Path(__file__).parent / "stored_models" / "format-2-with-uncertainty"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(STORED, tmp_path / "mine"))


class _Package:
    """In the place of huggingface_hub: repositories are folders."""

    def __init__(self, root: Path) -> None:
        self.root, self.calls = root, list[dict[str, Any]]()

    def snapshot_download(self, repository: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        self.calls.append({"repository": repository, "revision": revision, "allow_patterns": allow_patterns})
        source, target = self.root / repository, self.root / "cache" / repository
        if not source.is_dir():
            raise FileNotFoundError(f"404: {repository}")
        target.mkdir(parents=True, exist_ok=True)
        for name in allow_patterns:
            if (source / name).is_file():
                shutil.copy(source / name, target / name)
        return str(target)

    def HfApi(self) -> Any:
        def create_repo(repository: str, **options: Any) -> str:
            self.calls.append({"repository": repository, **options})
            (self.root / repository).mkdir(parents=True, exist_ok=True)
            return f"https://hub/{repository}"

        def upload_folder(*, repo_id: str, folder_path: str, allow_patterns: list[str], commit_message: str) -> None:
            for name in allow_patterns:
                if (Path(folder_path) / name).is_file():
                    shutil.copy(Path(folder_path) / name, self.root / repo_id / name)

        return SimpleNamespace(create_repo=create_repo, upload_folder=upload_folder)


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> _Package:
    made = _Package(tmp_path / "hub")
    monkeypatch.setitem(sys.modules, "huggingface_hub", made)
    return made


def test_a_model_is_pushed_with_its_card_and_loaded_by_name(folder: Path, package: _Package, tmp_path: Path) -> None:
    (folder / "secret.txt").write_text("not for others")
    result = RUNNER.invoke(app, ["push", str(folder), "ada/toy", "--private"])
    assert result.exit_code == 0, result.output
    assert "https://hub/ada/toy" in result.output
    assert package.calls[0]["private"] is True
    pushed = {path.name for path in (package.root / "ada/toy").iterdir()}
    assert pushed == {"model.json", "model.safetensors", "uncertainty.safetensors", "README.md"}
    card = (package.root / "ada/toy/README.md").read_text()
    assert "eutectic.load('ada/toy')" in card
    assert "library_name: eutectic" in card
    assert "-1030" in card  # the reference of carbon
    here, there = (eutectic.load(name, device="cpu").predict(molecule("CH3OH")) for name in (folder, "ada/toy"))
    for name in here:
        np.testing.assert_array_equal(here[name], there[name])
    eutectic.load("ada/toy@v1.0", device="cpu")
    assert package.calls[-1]["revision"] == "v1.0"


def test_a_card_written_by_hand_stays(folder: Path, package: _Package) -> None:
    (folder / "README.md").write_text("# Mine\n")
    assert RUNNER.invoke(app, ["push", str(folder), "ada/toy"]).exit_code == 0
    assert (package.root / "ada/toy/README.md").read_text() == "# Mine\n"


def test_without_the_package_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(EutecticError, match=r"pip install 'eutectic\[hub\]'"):
        eutectic.load("ada/toy")


def test_a_folder_of_the_users_name_means_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    assert hub.is_hub_name("ada/toy")
    assert not hub.is_hub_name("runs/mien")
    assert hub.is_hub_name("hub:runs/mien")
    with pytest.raises(EutecticError, match="nothing at this path"):
        model_folder("runs/mien")


@pytest.mark.parametrize(
    "name",
    [
        "../toy",
        "ada/..",
        "ada/../../etc",
        "/etc/none-such",
        "ada//toy",
        "ada/toy/x",
        "ada/toy@",
        "ada/toy@../x",
        "ada/t o",
        "-a/b",
    ],
)
def test_names_with_tricks_never_reach_the_hub(name: str, package: _Package) -> None:
    with pytest.raises(EutecticError):
        model_folder(name)
    with pytest.raises(EutecticError, match="not the name of a model on the Hub"):
        model_folder(f"hub:{name}")
    with pytest.raises(EutecticError):
        hub.push(STORED, name)
    assert not package.calls


@pytest.mark.parametrize("file", ["model.safetensors", "uncertainty.safetensors", "model.json"])
def test_an_altered_download_is_refused(folder: Path, package: _Package, file: str) -> None:
    there = package.root / "eve/toy"
    shutil.copytree(folder, there)
    content = bytearray((there / file).read_bytes())
    place = content.find(b"made up") if file == "model.json" else len(content) - 5
    content[place] ^= 1
    (there / file).write_bytes(content)
    with pytest.raises(EutecticError, match="SHA-256"):
        eutectic.load("eve/toy")


def test_a_repository_without_a_model_is_refused(package: _Package) -> None:
    (package.root / "eve/other").mkdir(parents=True)
    (package.root / "eve/other/pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(EutecticError, match=r"without model\.json"):
        eutectic.load("eve/other")
    assert "pytorch_model.bin" not in {p.name for p in package.root.rglob("cache/**/*")}


def test_what_the_hub_says_is_told(package: _Package) -> None:
    with pytest.raises(EutecticError, match="404: ada/none") as caught:
        eutectic.load("ada/none")
    assert "HF_HUB_OFFLINE" in caught.value.fix


class _Hub(BaseHTTPRequestHandler):
    """The part of the Hub's API that a download uses."""

    root: Path

    def _files(self) -> dict[str, bytes]:
        return {str(p.relative_to(self.root)): p.read_bytes() for p in self.root.rglob("*") if p.is_file()}

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        path = unquote(self.path.partition("?")[0])
        files = self._files()
        if path.startswith("/api/models/ada/toy/tree/"):
            listed = [{"type": "file", "path": n, "size": len(c), "oid": sha1(c).hexdigest()} for n, c in files.items()]
            return self._send(json.dumps(listed).encode(), {}, body)
        if path.startswith("/api/models/ada/toy"):
            info = {"id": "ada/toy", "modelId": "ada/toy", "sha": COMMIT, "siblings": [{"rfilename": n} for n in files]}
            return self._send(json.dumps(info).encode(), {}, body)
        name = path.removeprefix(f"/ada/toy/resolve/{COMMIT}/")
        if name in files:
            etag = sha1(files[name]).hexdigest()
            return self._send(files[name], {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}, body)
        self.send_response(404)
        self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", "0")
        return self.end_headers()

    def _send(self, content: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(200)
        for key, value in {"Content-Length": str(len(content)), "Content-Type": "application/json", **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Nothing on the terminal."""


@pytest.fixture
def stand_in(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A Hub on this machine with the model ada/toy and files that are no part of it; gives the cache."""
    constants = pytest.importorskip("huggingface_hub.constants", reason="huggingface_hub is not installed (extra hub)")
    (folder / "evil.py").write_text("raise SystemExit")
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Hub", (_Hub,), {"root": folder}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    cache = tmp_path / "cache"
    # The package reads its variables once, when it is imported.
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield cache
    server.shutdown()
    server.server_close()


def test_a_model_comes_over_http_and_stays_offline(stand_in: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    there = eutectic.load("ada/toy", device="cpu").predict(molecule("CH3OH"))
    here = eutectic.load(STORED, device="cpu").predict(molecule("CH3OH"))
    np.testing.assert_array_equal(there["forces"], here["forces"])
    names = {path.name for path in stand_in.rglob("snapshots/*/*")}
    assert names >= {"model.json", "model.safetensors", "uncertainty.safetensors"}
    assert not names & {"evil.py", "pytorch_model.bin", "expected.json"}
    with pytest.raises(EutecticError, match="ada/none"):
        eutectic.load("ada/none")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    eutectic.load("ada/toy", device="cpu")
    with pytest.raises(EutecticError, match="HF_HUB_OFFLINE"):
        eutectic.load("ada/never")
