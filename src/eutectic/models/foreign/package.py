"""Import of an optional package, of a version that was tested."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import os
import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import ModuleType

from eutectic.atoms import EutecticError


@dataclass(frozen=True, kw_only=True)
class Package:
    """A package that an extra of eutectic installs.

    Attributes:
        distribution, module: its names on PyPI and in Python.
        extra: of eutectic.
        versions: (lowest, first too new), the range in which this adapter was tested and that the extra installs.
        needs: other distribution → (lowest, first too new) that the package itself demands. Two packages with
            contrary demands can end up in one environment, where one of them then gives wrong results or none.
        python: the lowest version of Python that the package runs on, where that is higher than ours; the extra
            installs nothing below it.
    """

    distribution: str
    module: str
    extra: str
    versions: tuple[str, str]
    needs: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    python: tuple[int, int] | None = None

    @property
    def install(self) -> str:
        """The command that installs it."""
        return f"pip install 'eutectic[{self.extra}]'"

    def version(self) -> str:
        """The installed version, without importing the package.

        Raises:
            EutecticError: it is missing, or it or what it needs is of a version that was not tested; Python is older
                than it needs.
        """
        where = f"package {self.distribution}"
        if self.python is not None and sys.version_info[:2] < self.python:
            lowest = ".".join(str(n) for n in self.python)
            raise EutecticError(
                where,
                f"Python {sys.version_info[0]}.{sys.version_info[1]}",
                f"Python {lowest} or later",
                f"make an environment with Python {lowest}, and there: {self.install}",
            )
        own_environment = "in an environment of its own, if another package needs other versions"
        try:
            version = importlib.metadata.version(self.distribution)
        except importlib.metadata.PackageNotFoundError as error:
            raise EutecticError(
                where, "not installed", _range(self.versions), f"{self.install} ({own_environment})"
            ) from error
        if not _within(version, self.versions):
            raise EutecticError(
                where, f"version {version}, which was not tested", _range(self.versions), f"{self.install} -U"
            )
        for name, versions in self.needs.items():
            try:
                found = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                found = "no version"
            if not _within(found, versions):
                raise EutecticError(
                    f"{where} {version}",
                    f"{name} {found} beside it",
                    f"{name} {_range(versions)}",
                    f"{self.install} {own_environment}",
                )
        return version

    def load(self, *submodules: str) -> tuple[ModuleType, ...]:
        """Import submodules of the package, by their names below it.

        Raises:
            EutecticError: as `version`; or it cannot be imported.
        """
        version = self.version()
        try:
            with _surroundings_kept():
                return tuple(importlib.import_module(f"{self.module}.{name}") for name in submodules)
        # A package that does not fit its surroundings can raise anything.
        except Exception as error:
            raise EutecticError(
                f"package {self.distribution} {version}",
                f"cannot be imported ({type(error).__name__}: {error})",
                "a complete installation",
                f"{self.install} in an environment of its own",
            ) from error

    @contextlib.contextmanager
    def downloading(self, model: str, by_hand: str) -> Iterator[None]:
        """Explain a failure of the package to download the weights of a model.

        Args:
            model: its name, for the error.
            by_hand: how a file that was downloaded by other means is named.

        Raises:
            EutecticError: in place of whatever was raised inside.
        """
        try:
            yield
        # Of the network, the disk, or the package itself.
        except Exception as error:
            raise EutecticError(
                model,
                f"its weights could not be downloaded ({type(error).__name__}: {error})",
                f"a connection to the address that {self.distribution} names",
                f"download the file by other means and give it as {by_hand}",
            ) from error


@contextlib.contextmanager
def _surroundings_kept() -> Iterator[None]:
    """Undo what a package changes for the whole process when it is imported: `mace` makes torch.load unrestricted."""
    name = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before


def _within(version: str, versions: tuple[str, str]) -> bool:
    lowest, too_new = (_numbers(v) for v in versions)
    return bool(version[:1].isdigit()) and lowest <= _numbers(version) < too_new


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", version.partition("+")[0])[:3])


def _range(versions: tuple[str, str]) -> str:
    return f"version {versions[0]} or later, below {versions[1]}"
