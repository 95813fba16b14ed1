"""Settings from the command line: `--section.key value`, YAML files, `name=value` pairs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eutectic.atoms import EutecticError

ELEMENTS = "Elements of a file with only atom types or labels: Cu,Au for types 1 and 2, or OW=O,HW=H."

if TYPE_CHECKING:
    from pydantic import BaseModel

    from eutectic.train.settings import PretrainSettings


def overrides(arguments: Sequence[str]) -> dict[str, Any]:
    """`--train.steps 60 --temperature=1` → {"train": {"steps": 60}, "temperature": 1}; values are read as YAML.

    Raises:
        EutecticError: an argument has another form.
    """
    import yaml

    tree: dict[str, Any] = {}
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        key, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or not key or (not equals and not rest):
            raise EutecticError(
                "command line", f"{word!r}", "settings as --section.key value", "see the command's --help"
            )
        try:
            parsed = yaml.safe_load(value if equals else rest.pop(0))
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise EutecticError("command line", f"the value of --{key}: {error}", "a YAML value", "quote it") from error
        if isinstance(parsed, str):
            # YAML 1.1 reads 1e-3 as a string.
            with suppress(ValueError):
                parsed = float(parsed)
        branch = tree
        *sections, leaf = key.split(".")
        for section in sections:
            branch = branch.setdefault(section.replace("-", "_"), {})
        branch[leaf.replace("-", "_")] = parsed
    return tree


def without_settings(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separate names from `--section.key value` among them: an argument that may be repeated swallows both.

    Returns:
        The names, and the settings for `overrides`, both in the order given.
    """
    names: list[str] = []
    settings: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            names.append(word)
            continue
        settings.append(word)
        if "=" not in word and rest:
            settings.append(rest.pop(0))
    return names, settings


def read_yaml(path: Path) -> dict[str, Any]:
    import yaml

    try:
        values = yaml.safe_load(path.read_text())
    # An impossible date, such as 30 February, raises a ValueError; thousands of brackets raise a RecursionError.
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
        raise EutecticError(
            str(path), f"cannot be read ({error})", "a YAML file of settings", "check the file"
        ) from error
    if not isinstance(values, dict):
        raise EutecticError(
            str(path), f"a {type(values).__name__}", "a mapping of settings", "see `eutectic pretrain --help`"
        )
    return values


def pretraining_settings(recipe: str, changes: dict[str, Any]) -> PretrainSettings:
    """The settings of a recipe or a file, updated with `changes`."""
    from eutectic.recipes import RECIPES
    from eutectic.train.settings import PretrainSettings, merged, parse

    if recipe in RECIPES:
        values = RECIPES[recipe]().model_dump(mode="json")
    elif Path(recipe).suffix in (".yaml", ".yml", ".json"):
        values = read_yaml(Path(recipe))
    else:
        raise EutecticError(
            "recipe",
            repr(recipe),
            f"one of {', '.join(RECIPES)}, or a .yaml file",
            "see `eutectic pretrain --help`",
        )
    values = _without_other_backbone(values, changes)
    return parse(PretrainSettings, merged(values, changes), f"settings of {recipe!r}")


def _without_other_backbone(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Drop the backbone's settings, with a message, where `changes` names another backbone."""
    old, new = values.get("backbone"), changes.get("backbone")
    if not isinstance(old, dict) or not isinstance(new, dict):
        return values
    name = old.get("name", "gemnet_oc")
    if new.get("name", name) == name or not old.get("settings"):
        return values
    from rich.console import Console

    # stdout may be redirected to a settings file.
    Console(stderr=True).print(
        f"backbone {new['name']} in place of {name}: the settings of {name} are dropped", highlight=False
    )
    return {**values, "backbone": {"name": name}}


def pairs(pairs: Sequence[str] | None, option: str = "--key", example: str = "energy=E_dft") -> dict[str, str] | None:
    keys = {}
    for pair in pairs or []:
        prop, equals, text = pair.partition("=")
        if not equals:
            value = option.removeprefix("--")
            raise EutecticError(option, repr(pair), f"property={value}, e.g. {example}", "correct the option")
        keys[prop] = text
    return keys or None


def print_settings(settings: BaseModel) -> None:
    """Print resolved settings as YAML on standard output."""
    import yaml

    sys.stdout.write(yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False))
