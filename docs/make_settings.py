#!/usr/bin/env python
"""Write docs/settings.md from the settings classes.

python docs/make_settings.py           # write the page
python docs/make_settings.py --check   # exit with 1 if the page is out of date
"""

from __future__ import annotations

import argparse
import inspect
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Union

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from eutectic.graph import GraphSettings
from eutectic.models.heads import HeadSettings
from eutectic.models.registry import BACKBONES
from eutectic.train.settings import FinetuneSettings, PretrainSettings

PAGE = Path(__file__).resolve().parent / "settings.md"
ROOTS = (PretrainSettings, FinetuneSettings, HeadSettings, GraphSettings)
HEAD = """# Settings

Generated from the settings classes by `python docs/make_settings.py`; do not edit.

A settings file (YAML) has the names below as keys, nested as the types say (`str → X`: a mapping from names of your
choice, or of properties, to X). On the command line the same names are
options, joined by dots: `--optimiser.learning_rate 1e-3`. Unknown names are refused.
"""
BOUNDS = {
    "Ge": ("≥", "ge"),
    "Gt": (">", "gt"),
    "Le": ("≤", "le"),
    "Lt": ("<", "lt"),
    "MinLen": ("length ≥", "min_length"),
}


def settings_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The settings classes in a type, in order."""
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from settings_in(argument)


def classes() -> list[type[BaseModel]]:
    """Every settings class: each of `ROOTS`, followed by those that its fields contain, then those of the backbones."""
    found: dict[type[BaseModel], None] = {}

    def add(kind: type[BaseModel]) -> None:
        if kind in found:
            return
        found[kind] = None
        for field in kind.model_fields.values():
            for inner in settings_in(field.annotation):
                add(inner)

    for kind in (*ROOTS, *(entry.settings for entry in BACKBONES.values())):
        add(kind)
    return list(found)


def link(kind: type[BaseModel]) -> str:
    return f"[{kind.__name__}](#{kind.__name__.lower()})"


def type_text(annotation: Any) -> str:
    """A type as Markdown; settings classes link to their section."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is type(None):
        return "null"
    if annotation is Any:
        return "anything"
    if origin is typing.Annotated:
        return type_text(arguments[0])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(type_text(a) for a in arguments)
    if origin is dict:
        return f"{type_text(arguments[0])} → {type_text(arguments[1])}"
    if origin in (list, set, frozenset) or (origin is tuple and Ellipsis in arguments):
        return f"list of {type_text(arguments[0])}"
    if origin is tuple:
        return f"[{', '.join(type_text(a) for a in arguments)}]"
    if inspect.isclass(annotation):
        return link(annotation) if issubclass(annotation, BaseModel) else annotation.__name__
    return str(annotation)


def bounds_text(field: FieldInfo) -> str:
    """For example ", > 0, ≤ 1"."""
    found = [(BOUNDS[type(m).__name__], m) for m in field.metadata if type(m).__name__ in BOUNDS]
    return "".join(f", {sign} {getattr(m, attribute):g}" for (sign, attribute), m in found)


def value_text(value: Any) -> str:
    """A default as it is written in YAML; a settings object as its class and what differs from the class's defaults."""
    if isinstance(value, BaseModel):
        changed = {n: getattr(value, n) for n in type(value).model_fields if n in value.model_fields_set}
        inside = ", ".join(f"{name}: {value_text(v)}" for name, v in changed.items())
        return f"{{{inside}}}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {value_text(v)}" for key, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(value_text(v) for v in value) + "]"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and float(f"{value:g}") == value:
        return f"{value:g}"
    return str(value)


def default_text(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    default = field.get_default(call_default_factory=True)
    if isinstance(default, BaseModel) and default == type(default)():
        return "its own defaults"
    return f"`{value_text(default)}`"


def description_text(text: str | None) -> str:
    """One cell of a table."""
    return " ".join((text or "").split()).replace("|", "\\|")


def rows(kind: type[BaseModel]) -> Iterator[tuple[str, str, str, str]]:
    """Name, type, default, description of each setting."""
    for name, field in kind.model_fields.items():
        text = type_text(field.annotation) + bounds_text(field)
        yield f"`{name}`", text.replace("|", "\\|"), default_text(field), description_text(field.description)


def section(kind: type[BaseModel]) -> str:
    names = [name for name, entry in BACKBONES.items() if entry.settings is kind]
    which = f"Backbone `{names[0]}`: `backbone: {{name: {names[0]}, settings: {{…}}}}`.\n\n" if names else ""
    about = inspect.cleandoc(kind.__doc__ or "")
    table = ["| name | type | default | description |", "|---|---|---|---|"]
    table += [f"| {' | '.join(row)} |" for row in rows(kind)]
    return f"## {kind.__name__}\n\n{which}{about}\n\n" + "\n".join(table) + "\n"


def page() -> str:
    """The whole page."""
    contents = "\n".join(f"- {link(kind)}" for kind in classes())
    return "\n".join([HEAD, contents + "\n", *(section(kind) for kind in classes())])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if the page is out of date")
    options = parser.parse_args()
    if options.check:
        if PAGE.is_file() and PAGE.read_text() == page():
            return 0
        print(f"{PAGE.name} is out of date; run python docs/make_settings.py", file=sys.stderr)
        return 1
    PAGE.write_text(page())
    return 0


if __name__ == "__main__":
    sys.exit(main())
