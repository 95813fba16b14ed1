"""Every block of code in the README and the documentation runs, or at least is valid.

A page runs from top to bottom in an empty folder with a few files (`page_folder`): commands one after another, Python
blocks in one namespace. A block after a line that ends with a file's name, as in "`my.yaml`:", is written to that
file. Runs are shortened to two steps. A block that needs published data, another package or a long time is
preceded by `<!-- options only: why -->`; its commands must still be valid (`checked`). No block is skipped silently: a
language or program that is not known here fails.
Pages with several trainings, or one of forces, are run with `-m slow`; their blocks are checked always.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args
from xml.etree import ElementTree

import click
import pytest
import typer
import yaml
from pydantic import BaseModel
from typer.testing import CliRunner

from eutectic import cli
from eutectic.cli.options import overrides
from eutectic.data import datasets
from eutectic.models.heads import HEADS
from eutectic.models.registry import BACKBONES
from eutectic.recipes import RECIPES
from eutectic.train.settings import FinetuneSettings, PretrainSettings

ROOT = Path(__file__).resolve().parents[2]
ELSEWHERE = {"docs/how-to/read-a-store.md": "test_how_to.py, section by section: its programs may not be installed"}
PAGES = [
    path.relative_to(ROOT).as_posix()
    for path in (
        ROOT / "README.md",
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "docs" / "tutorials").glob("*.md"),
        *(ROOT / "docs" / "how-to").glob("*.md"),
        *(ROOT / "docs" / "concepts").glob("*.md"),
        *(ROOT / "docs" / "results").glob("*.md"),
    )
    if path.name not in ("log.md", "settings.md")
]
STEPS = 2


@dataclass(frozen=True)
class Block:
    """One fenced block: its language, its text, the file it is written to, why it is not run."""

    language: str
    text: str
    file: str | None
    not_run: str | None


def blocks(page: str) -> Iterator[Block]:
    """The fenced blocks of a page, in order."""
    text = (ROOT / page).read_text()
    end = 0
    for match in re.finditer(r"^( *)```(.*)\n((?:.*\n)*?)\1```$", text, re.MULTILINE):
        before = text[end : match.start()].rstrip().rsplit("\n", 1)[-1]
        end = match.end()
        named = re.search(r"`([\w./-]+\.\w+)`:$", before)
        reason = re.fullmatch(r"<!-- options only: (.+) -->", before.strip())
        body = re.sub(rf"^{match[1]}", "", match[3], flags=re.MULTILINE)
        yield Block(match[2].strip(), body, named and named[1], reason and reason[1])


def commands(text: str) -> Iterator[list[str]]:
    """The words of each command, without comments and what follows in words or pipes."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words:
            yield words


def fields(settings: Any, key: str) -> None:
    """Fail unless `key` ("train.steps") names a setting."""
    for name in key.split("."):
        kinds = [settings, *get_args(settings), *(inner for kind in get_args(settings) for inner in get_args(kind))]
        models = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if not models:  # a mapping of names of the user's choice to settings, or settings of a backbone
            return
        assert name in models[0].model_fields, f"no setting {key}"
        settings = models[0].model_fields[name].annotation


def checked(words: list[str]) -> None:
    """Fail unless a command is valid, without running it."""
    program, *rest = words
    if program == "torchrun":
        assert "eutectic" in words, words
        rest = words[words.index("eutectic") + 1 :]
    elif program == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert rest[0] == "install", words
        assert rest[1] in ("-e", "eutectic") or rest[1].partition("[")[2].rstrip("]") in extras, words
        return
    elif program == "python":
        script = (ROOT / rest[0]).read_text()
        assert all(word.split("=")[0] in script for word in rest if word.startswith("--") and word != "--help"), words
        return
    elif program.startswith("./"):
        assert os.access(ROOT / program, os.X_OK), words
        return
    elif program == "hf":
        assert rest == ["auth", "login"], words
        return
    elif program == "tensorboard":
        assert rest[0] == "--logdir", words
        return
    else:
        assert program == "eutectic", f"a program that this test does not know: {program}"
    command: Any = typer.main.get_command(cli.app)
    context = click.Context(command)
    name = "eutectic"
    while hasattr(command, "commands"):
        assert rest, words
        name, *rest = rest
        assert name in command.commands, f"no command {name} in {words}"
        command = command.commands[name]
    with command.make_context(name, list(rest), parent=context) as parsed:
        extra = overrides(parsed.args) if parsed.args else {}
    settings = PretrainSettings if name in ("pretrain", "plan") else FinetuneSettings

    def walk(tree: dict[str, Any], prefix: str = "") -> None:
        for key, value in tree.items():
            fields(settings, prefix + key)
            if isinstance(value, dict):
                walk(value, f"{prefix}{key}.")

    walk(extra)


def shortened(words: list[str]) -> list[str]:
    """A training command with few steps; others unchanged."""
    if words[1] in ("finetune", "compare"):
        kept = [word for i, word in enumerate(words) if word != "--steps" and words[i - 1] != "--steps"]
        if "--effort" in kept or "--time" in kept or "--epochs" in kept:
            raise AssertionError(f"{words} takes long: put `<!-- options only: … -->` before it")
        kept += ["--steps", str(STEPS), "--batch-size", "4"]
        return kept + (["--n-train", "8", "--n-validation", "4", "--n-test", "4"] if "--n-train" not in kept else [])
    if words[1] == "pretrain" and "--show-settings" not in words:
        return [*words, "--train.steps", str(STEPS), "--train.evaluate_every", str(STEPS), "--train.batch_size", "8"]
    return words


def run(words: list[str]) -> None:
    """Run a command of this program in this process; others are only checked."""
    if words[0] != "eutectic":
        return
    redirected = words.index(">") if ">" in words else len(words)
    result = CliRunner().invoke(cli.app, shortened(words[:redirected])[1:])
    assert result.exit_code == 0, (words, result.output, result.exception)
    if redirected < len(words):
        Path(words[redirected + 1]).write_text(result.stdout)


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_valid(page: str) -> None:
    found = list(blocks(page))
    fences = len(re.findall(r"^ *```", (ROOT / page).read_text(), re.MULTILINE))
    assert fences == 2 * len(found), "a block that is not closed, or nested"
    for block in found:
        assert block.language in ("sh", "python", "yaml", "xml", "text", "csv"), (
            f"language {block.language!r}:\n{block.text}"
        )
        if block.language == "sh":
            for words in commands(block.text):
                checked(words[: words.index(">")] if ">" in words else words)
        elif block.language == "python":
            compile(block.text, page, "exec")
        elif block.language == "xml":
            ElementTree.fromstring(block.text)
        elif block.language == "yaml":
            for key in yaml.safe_load(block.text):
                assert key in PretrainSettings.model_fields or key in FinetuneSettings.model_fields, key


@pytest.fixture
def page_folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder that a page runs in: `my.xyz` (also by other names), `runs/mine` if the page uses it without making
    it, and stores of its own. What a page registers is forgotten after it."""
    text = "\n".join(b.text for b in blocks(request.node.callspec.params["page"]) if not b.not_run)
    wanted = "runs/mine" in text and "--out runs/mine" not in text
    shutil.copytree(request.getfixturevalue("trained" if wanted else "structures"), tmp_path, dirs_exist_ok=True)
    for name in ("new", "other", "test", "query", "300K", "600K"):
        shutil.copy(tmp_path / "my.xyz", tmp_path / f"{name}.xyz")
    package = tmp_path / "src" / "eutectic" / "data" / "datasets"
    package.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("EUTECTIC_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(datasets, "__path__", [*datasets.__path__, str(package)])
    tables = [(table, dict(table)) for table in (HEADS, BACKBONES, RECIPES)]
    datasets.published.cache_clear()
    yield tmp_path
    datasets.published.cache_clear()
    for table, before in tables:
        table.clear()  # type: ignore[attr-defined]
        table.update(before)  # type: ignore[attr-defined]


def shortened_python(text: str) -> str:
    """Python with few steps of training and of dynamics."""
    return re.sub(r"\b(steps=|\.run\((?:steps=)?)\d+", rf"\g<1>{STEPS}", text)


def running() -> Iterator[Any]:
    """The pages that have something to run; those with several trainings, or one of forces, are slow."""
    for page in PAGES:
        found = [b.text for b in blocks(page) if b.language in ("sh", "python") and not b.not_run and not b.file]
        if found and page not in ELSEWHERE:
            text = "\n".join(found)
            trainings = len(re.findall(r"eutectic(?: |\.)(?:finetune|pretrain|compare)\b", text))
            yield pytest.param(page, marks=[pytest.mark.slow] if trainings > 1 or "-p forces" in text else [])


@pytest.mark.parametrize("page", list(running()))
@pytest.mark.filterwarnings("ignore:.*thermalize_momenta:DeprecationWarning")
@pytest.mark.usefixtures("page_folder")
def test_the_page_runs(page: str) -> None:
    values: dict[str, object] = {"__name__": "page"}
    for block in blocks(page):
        if block.file:
            Path(block.file).parent.mkdir(parents=True, exist_ok=True)
            Path(block.file).write_text(block.text)
            datasets.published.cache_clear()
        elif block.not_run:
            continue
        elif block.language == "sh":
            for words in commands(block.text):
                run(words)
        elif block.language == "python":
            exec(compile(shortened_python(block.text), page, "exec"), values)
