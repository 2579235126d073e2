"""Line numbers of keys in a TOML text, which `tomllib` does not tell."""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

KeyPath = tuple[str | int, ...]


def locate(text: str) -> dict[KeyPath, int]:
    """Return the 1-based line on which each table and key of a valid TOML text begins.

    Paths hold table names, and indices for tables in arrays: `("node", 0, "git")`.
    """
    lines: dict[KeyPath, int] = {}
    arrays: dict[KeyPath, int] = {}
    here: KeyPath = ()
    for line, statement in _statements(text):
        body = tomllib.loads(statement)
        if statement.lstrip().startswith("["):
            here = _header(body, arrays)
            lines.setdefault(here, line)
        else:
            for path in _paths(body):
                lines.setdefault(here + path, line)
    return lines


def line_of(lines: dict[KeyPath, int], path: KeyPath) -> int:
    """Return the line of a path or of its nearest known parent, 1 where nothing is known."""
    while path and path not in lines:
        path = path[:-1]
    return lines.get(path, 1)


def _statements(text: str) -> Iterator[tuple[int, str]]:
    """Yield header lines and key-value pairs; a pair may take several lines, and only its whole is valid TOML."""
    start, pending = 1, ""
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), start=1):
        if not pending:
            start = number
        pending += line + "\n"
        try:
            tomllib.loads(pending)
        except tomllib.TOMLDecodeError:
            continue
        yield start, pending
        pending = ""


def _header(body: dict[str, Any], arrays: dict[KeyPath, int]) -> KeyPath:
    path: KeyPath = ()
    node: Any = body
    while True:
        if isinstance(node, list):
            arrays[path] = arrays.get(path, -1) + 1
            return (*path, arrays[path])
        if path in arrays:
            path = (*path, arrays[path])
        if not node:
            return path
        key = next(iter(node))
        path, node = (*path, key), node[key]


def _paths(value: Any, prefix: KeyPath = ()) -> Iterator[KeyPath]:
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, below in pairs:
        yield (*prefix, key)
        yield from _paths(below, (*prefix, key))
