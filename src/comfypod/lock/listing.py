"""Locked packages as uv reads them: a line each, with every hash that may arrive."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING

from comfypod.errors import LockError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from comfypod.lock.schema import Environment, Package

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+!-]*")


def listing(packages: Iterable[Package]) -> str:
    """Render packages as requirements with hashes: a line per package.

    Raises:
        LockError: a name or version is not one.
    """
    lines = []
    for package in packages:
        if _NAME.fullmatch(package.name) is None or _VERSION.fullmatch(package.version) is None:
            raise LockError(f"the lock names the package {package.name!r} {package.version!r}", "run `comfypod lock`")
        hashes = " ".join(f"--hash=sha256:{file.sha256}" for file in package.files)
        lines.append(f"{package.name}=={package.version} {hashes}\n")
    return "".join(lines)


def build_constraints(environment: Environment) -> str:
    """Render what builds an environment's source distributions, for uv's `--build-constraints`; uv enforces the hashes.

    Raises:
        LockError: a name or version is not one.
    """
    return listing(environment.build)


def file_options(environment: Environment) -> tuple[str, ...]:
    """Return the options under which uv takes wheels, and builds only what the lock has as a source distribution.

    uv keeps what it built by package and settings, whatever built it. The setting here, which setuptools passes over,
    keeps apart what different build packages made.

    Raises:
        LockError: a name or version of a build package is not one.
    """
    builders = hashlib.sha256(build_constraints(environment).encode()).hexdigest()
    options = ["--only-binary", ":all:"]
    for package in environment.packages:
        if package.sdist is not None:
            setting = f"{package.name}:comfypod-build={builders}"
            options += ["--no-binary", package.name, "--config-settings-package", setting]
    return tuple(options)
