"""Packages and custom nodes that are known to do harm: the list that comfypod brings, and what a volume adds to it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any

from comfypod.environment.dists import canonical
from comfypod.files import read_small

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from comfypod.environment.dists import Dist

_LARGEST_CONFIG = 1 << 16
_URL = re.compile(rb"^[ \t]*url[ \t]*=[ \t]*(\S+)[ \t\r]*$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Package:
    """A package that is denied, in some versions or in all."""

    name: str
    versions: frozenset[str]
    reason: str


@dataclass(frozen=True, slots=True)
class Node:
    """A custom node that is denied: by the name of its folder, or by where it was cloned from (`owner/name`)."""

    name: str
    origins: frozenset[str]
    reason: str


@dataclass(frozen=True, slots=True)
class Denied:
    """The whole list. `allowed` are SHA-256 digests of path files that may run although nobody knows them."""

    packages: tuple[Package, ...] = ()
    nodes: tuple[Node, ...] = ()
    allowed: frozenset[str] = frozenset()

    def package(self, dist: Dist) -> Package | None:
        """Return what denies a distribution, None where nothing does."""
        named = (each for each in self.packages if each.name == dist.name)
        return next((each for each in named if not each.versions or dist.version.lower() in each.versions), None)

    def node(self, name: str, origins: Iterable[str] = ()) -> Node | None:
        """Return what denies a custom node, None where nothing does."""
        from_there = {_owner_and_name(origin) for origin in origins}
        plain = name.removesuffix(".py").casefold()
        return next((each for each in self.nodes if plain == each.name or from_there & each.origins), None)


def load(added: Path) -> tuple[Denied, str]:
    """Return the list with what a volume's file adds to it, and why the file cannot be used, empty where it can."""
    shipped = parse(resources.files("comfypod.resources").joinpath("denied.toml").read_bytes())
    try:
        more = parse(read_small(added))
    except FileNotFoundError:
        return shipped, ""
    except OSError as error:
        return shipped, error.strerror or "it cannot be read"
    except (ValueError, RecursionError) as error:
        return shipped, str(error)
    return Denied(shipped.packages + more.packages, shipped.nodes + more.nodes, more.allowed), ""


def parse(data: bytes) -> Denied:
    """Read a list.

    Raises:
        ValueError: it is no TOML, or not such a list.
    """
    import tomllib

    body = tomllib.loads(data.decode("utf-8"))
    try:
        packages = tuple(
            Package(canonical(row["name"]), _words(row, "versions"), str(row.get("reason", "it is denied here")))
            for row in body.get("package", ())
        )
        nodes = tuple(
            Node(row["name"].casefold(), _words(row, "origins"), str(row.get("reason", "it is denied here")))
            for row in body.get("node", ())
        )
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError("tables [[package]] and [[node]] with a name are expected") from error
    return Denied(packages, nodes, _words(body, "allowed"))


def _words(row: Any, key: str) -> frozenset[str]:
    words = row.get(key, [])
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise ValueError(f"{key} is not a list of texts")
    return frozenset(word.lower() for word in words)


def origins(node: Path) -> tuple[str, ...]:
    """Return where a folder's repository was cloned from, by its own account; no Git is run."""
    try:
        found = _URL.findall(read_small(node / ".git" / "config", _LARGEST_CONFIG))
    except OSError:
        return ()
    return tuple(url.decode("utf-8", "replace") for url in found)


def _owner_and_name(url: str) -> str:
    words = re.split(r"[/:]", url.strip().rstrip("/").removesuffix(".git"))
    return "/".join(words[-2:]).lower()
