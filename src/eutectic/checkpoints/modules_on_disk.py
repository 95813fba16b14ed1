"""A module saved by `torch.save`, as plain data: kinds, attributes and tensors, without importing its classes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from eutectic.atoms import EutecticError
from eutectic.checkpoints.safe_pickle import Archive, Kept, StoredTensor

MOST_MODULES = 100_000
"""Far above any real model. In a damaged file, a module can be among its own children, which never ends."""


@dataclass(frozen=True, eq=False)
class StoredModule:
    """One module.

    Attributes:
        kind: name of its class, without the Python module.
        tensors: its own parameters and buffers by name.
        children: its submodules by name.
        attributes: all its attributes.
    """

    kind: str
    tensors: Mapping[str, StoredTensor]
    children: Mapping[str, StoredModule]
    attributes: Mapping[str, Any]

    def __getitem__(self, path: str) -> StoredModule:
        """A submodule by its path, such as "products.0.linear"."""
        module = self
        for name in path.split("."):
            module = module.children[name]
        return module

    def named_tensors(self, prefix: str = "") -> Iterator[tuple[str, StoredTensor]]:
        """All tensors with their names in a state dict."""
        for name, tensor in self.tensors.items():
            yield prefix + name, tensor
        for name, child in self.children.items():
            yield from child.named_tensors(f"{prefix}{name}.")


def stored_module(archive: Archive) -> StoredModule | None:
    """The module in an archive opened with `keep_objects`; None if it holds something else.

    Raises:
        EutecticError: the module contains itself, or is damaged.
    """
    seen = 0

    def convert(value: object) -> StoredModule | None:
        nonlocal seen
        seen += 1
        if seen > MOST_MODULES:
            raise _damaged(archive, f"more than {MOST_MODULES:,} modules")
        state = value.state if isinstance(value, Kept) else None
        if not isinstance(value, Kept) or not isinstance(state, dict):
            return None
        parameters, buffers, modules = (state.get(name) for name in ("_parameters", "_buffers", "_modules"))
        if not (isinstance(parameters, dict) and isinstance(buffers, dict) and isinstance(modules, dict)):
            return None
        return StoredModule(
            kind=value.origin.rpartition(".")[2],
            tensors={k: v for k, v in (parameters | buffers).items() if isinstance(v, StoredTensor)},
            children={str(k): child for k, v in modules.items() if (child := convert(v)) is not None},
            attributes={str(k): v for k, v in state.items()},
        )

    try:
        return convert(archive.content)
    except RecursionError as error:
        raise _damaged(archive, "endlessly nested modules") from error


def _damaged(archive: Archive, why: str) -> EutecticError:
    return EutecticError(str(archive.path), why, "a module as written by torch.save", "download or copy the file again")
