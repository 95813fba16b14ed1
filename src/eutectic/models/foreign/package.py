"""Import an optional package, if its version was tested."""

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
    """An optional package, installed by one of eutectic's extras.

    Attributes:
        distribution, module: its names on PyPI and in Python.
        extra: the extra of eutectic that installs it.
        versions: (lowest, first too new): the tested range, which the extra installs.
        needs: other distribution → (lowest, first too new) that the package requires. Two packages with conflicting
            requirements can end up in one environment, where one of them gives wrong results or none.
        python: lowest Python version that the package supports, if higher than eutectic's; the extra installs nothing
            below it.
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
            EutecticError: it is missing; its version, or that of a requirement, is untested; Python is too old.
        """
        where = f"package {self.distribution}"
        if self.python is not None and sys.version_info[:2] < self.python:
            lowest = ".".join(str(n) for n in self.python)
            raise EutecticError(
                where,
                f"Python {sys.version_info[0]}.{sys.version_info[1]}",
                f"Python {lowest} or later",
                f"create an environment with Python {lowest} and run: {self.install}",
            )
        own_environment = "in a separate environment if another package needs other versions"
        try:
            version = importlib.metadata.version(self.distribution)
        except importlib.metadata.PackageNotFoundError as error:
            raise EutecticError(
                where, "not installed", _range(self.versions), f"{self.install} ({own_environment})"
            ) from error
        if not _within(version, self.versions):
            raise EutecticError(
                where, f"version {version}, which is untested", _range(self.versions), f"{self.install} -U"
            )
        for name, versions in self.needs.items():
            try:
                installed = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                installed = "not installed"
            if not _within(installed, versions):
                raise EutecticError(
                    f"{where} {version}",
                    f"{name} {installed}",
                    f"{name} {_range(versions)}",
                    f"{self.install} {own_environment}",
                )
        return version

    def load(self, *submodules: str) -> tuple[ModuleType, ...]:
        """Import submodules of the package, by their names relative to it.

        Raises:
            EutecticError: as `version`; the package cannot be imported.
        """
        version = self.version()
        try:
            with _surroundings_kept():
                return tuple(importlib.import_module(f"{self.module}.{name}") for name in submodules)
        # A package in an unsuitable environment can raise anything.
        except Exception as error:
            raise EutecticError(
                f"package {self.distribution} {version}",
                f"cannot be imported ({type(error).__name__}: {error})",
                "a complete installation",
                f"{self.install} in a separate environment",
            ) from error

    @contextlib.contextmanager
    def downloading(self, model: str, by_hand: str) -> Iterator[None]:
        """Convert a failure of the package to download a model's weights into an error with advice.

        Args:
            model: name of the model, for the error.
            by_hand: name under which a manually downloaded file can be given.

        Raises:
            EutecticError: in place of any exception raised inside.
        """
        try:
            yield
        # From the network, the disk, or the package itself.
        except Exception as error:
            raise EutecticError(
                model,
                f"its weights could not be downloaded ({type(error).__name__}: {error})",
                f"a connection to the URL used by {self.distribution}",
                f"download the file by other means and give it as {by_hand}",
            ) from error


@contextlib.contextmanager
def _surroundings_kept() -> Iterator[None]:
    """Undo process-wide changes that a package makes on import: `mace` makes torch.load unrestricted."""
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
