"""Installed distributions, read from the names in a site-packages folder (PEP 376, PEP 503, PEP 627)."""

from __future__ import annotations

import csv
import errno
import io
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from comfypod.files import read_small

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

_INFO = re.compile(r"(?P<name>[A-Za-z0-9][A-Za-z0-9._]*)-(?P<version>[A-Za-z0-9][A-Za-z0-9.!+_]*)\.dist-info")
_OURS = frozenset(
    {"constraints.txt", "installing", "installing.json", "layer.json", "pip.conf", "pyvenv.cfg", "wheels"}
)
_LARGEST_RECORD = 64 << 20
_RUNS = re.compile(r"[-_.]+")


@dataclass(frozen=True, slots=True)
class Dist:
    """One distribution of a site-packages folder: canonical name, version, name of its `.dist-info` folder."""

    name: str
    version: str
    info: str

    def __str__(self) -> str:
        """Write it as a requirement of exactly this version."""
        return f"{self.name}=={self.version}"


def canonical(name: str) -> str:
    """Return a distribution's name as PEP 503 compares it."""
    return _RUNS.sub("-", name).lower()


def parse_info(entry: str) -> Dist | None:
    """Return what the name of a `.dist-info` folder says, None when it is another one."""
    found = _INFO.fullmatch(entry)
    return Dist(canonical(found["name"]), found["version"], entry) if found else None


def scan(site: Path) -> dict[str, Dist]:
    """Return the distributions of a folder by canonical name: one listing, no file is read.

    Raises:
        OSError: the folder cannot be listed.
    """
    return {dist.name: dist for dist in among(os.listdir(site))}


def among(entries: Iterable[str]) -> list[Dist]:
    """Return the distributions among the names in a folder, sorted; what was unpacked by hand may be there twice."""
    return [dist for dist in map(parse_info, sorted(entries)) if dist is not None]


def files_of(site: Path, dist: Dist) -> Iterator[str]:
    """Yield the paths that a distribution has written, relative to its site-packages folder, as `RECORD` has them.

    Raises:
        OSError: `RECORD` cannot be read.
    """
    data = read_small(site / dist.info / "RECORD", _LARGEST_RECORD)
    try:
        for row in csv.reader(io.StringIO(data.decode("utf-8", "surrogateescape"), newline="")):
            if row:
                yield row[0]
    except csv.Error as error:
        raise OSError(errno.EINVAL, f"it is no list of files: {error}", str(site / dist.info / "RECORD")) from error


def recorded(site: Path, dist: Dist) -> list[str]:
    """Return what `files_of` yields, nothing where that cannot be read."""
    try:
        return list(files_of(site, dist))
    except OSError:
        return []


def installer(site: Path, dist: Dist) -> str:
    """Return what has installed a distribution: `pip`, `uv`, `comfypod` for a stub; empty when nothing says so."""
    try:
        return read_small(site / dist.info / "INSTALLER").decode("utf-8", "replace").strip()
    except OSError:
        return ""


def is_ours(path: str) -> bool:
    """Whether a path below a layer is part of the environment itself, which no distribution may bring or remove."""
    return path.partition(os.sep)[0] in _OURS or path.startswith("bin/python")


def is_requested(site: Path, dist: Dist) -> bool:
    """Whether somebody asked for a distribution by name, and did not get it as what another one needs (PEP 376)."""
    return (site / dist.info / "REQUESTED").exists()
