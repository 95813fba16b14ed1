"""Download models from the Hugging Face Hub by name ("user/name", "user/name@revision"), and push models to it.

Only the files of a model are read from a repository: JSON, and tensors in safetensors, whose hashes are in
`model.json`. Nothing in them is executed. The package huggingface_hub, imported when first needed, keeps downloads in
its own cache and is configured by its own variables: HF_HUB_OFFLINE (use only the cache), HF_ENDPOINT, HF_TOKEN,
HF_HOME.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from eutectic.atoms import EutecticError
from eutectic.checkpoints.description import DESCRIPTION, UNCERTAINTY, WEIGHTS, read_description
from eutectic.checkpoints.shipped import CARD

FILES = (DESCRIPTION, WEIGHTS, UNCERTAINTY, CARD)
"""Files that are downloaded and pushed; all other files of a repository are ignored."""

HUB = "hub:"
"""Optional prefix of a Hub name, for when a local folder has the same name."""

_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}(@[\w][\w./-]*)?", re.ASCII)


def is_hub_name(name: str) -> bool:
    """Whether a name must be that of a model on the Hub: `hub:…`, or user/name without a local folder `user`."""
    if name.startswith(HUB):
        return True
    return _NAME.fullmatch(name) is not None and ".." not in name and not Path(name.partition("/")[0]).exists()


def download(name: str) -> Path:
    """The folder of a model on the Hub, downloaded unless it is in the cache.

    Args:
        name: user/name, optionally with @revision (a branch, tag or commit) and with the prefix `hub:`.

    Raises:
        EutecticError: an invalid name; huggingface_hub is not installed; no such model, or it cannot be reached; a
            repository without a model.
    """
    repository, revision = _parsed(name)
    hub = _package(f"model {name}")
    with _reached(f"model {name}", "check the name and the network; with HF_HUB_OFFLINE=1 only cached models"):
        folder = Path(hub.snapshot_download(repository, revision=revision, allow_patterns=list(FILES)))
    for file in (DESCRIPTION, WEIGHTS):
        if not (folder / file).is_file():
            raise EutecticError(
                f"model {name}",
                f"a repository without {file}",
                f"a eutectic model: {', '.join(FILES)}",
                "check the name",
            )
    return folder


def push(folder: Path, name: str, *, private: bool = False) -> str:
    """Upload a model folder with its card to the Hub; an older version there is replaced by a new commit.

    Args:
        folder: model folder, checked by the caller.
        name: user/name; created if it does not exist.
        private: whether a new repository is private.

    Returns:
        The URL of the repository.

    Raises:
        EutecticError: an invalid name; huggingface_hub is not installed; the Hub refuses or cannot be reached.
    """
    repository, revision = _parsed(name)
    if revision is not None:
        raise EutecticError(
            f"push {name}", f"a revision, {revision}", "user/name", "omit it: a push creates a new revision"
        )
    read_description(folder)
    hub = _package(f"push {name}")
    with _reached(
        f"push {name}", "log in (`hf auth login`, or HF_TOKEN with write permission) and check the user name"
    ):
        api = hub.HfApi()
        address = api.create_repo(repository, private=private, exist_ok=True, repo_type="model")
        api.upload_folder(
            repo_id=repository, folder_path=str(folder), allow_patterns=list(FILES), commit_message="Model of eutectic"
        )
    return str(address)


def _parsed(name: str) -> tuple[str, str | None]:
    bare = name.removeprefix(HUB)
    if _NAME.fullmatch(bare) is None or ".." in bare:
        raise EutecticError(
            f"model {name}", "not the name of a model on the Hub", "user/name or user/name@revision", "check the name"
        )
    repository, _, revision = bare.partition("@")
    return repository, revision or None


def _package(where: str) -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise EutecticError(
            where,
            f"no local model of this name, and huggingface_hub, which searches the Hub, cannot be imported ({error})",
            "a model folder or the name of a model; for a model on the Hub, the package huggingface_hub",
            "check the path; for the Hub: pip install 'eutectic[hub]'",
        ) from error
    return huggingface_hub


@contextmanager
def _reached(where: str, fix: str) -> Iterator[None]:
    """Convert errors of the Hub and the network, whose classes differ between versions of the package."""
    try:
        yield
    except EutecticError:
        raise
    except Exception as error:
        text = " ".join(str(error).split())
        given = f"{type(error).__name__}: {text[:300]}"
        raise EutecticError(where, given, "a reachable model on the Hugging Face Hub", fix) from error
