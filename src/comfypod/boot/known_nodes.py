"""What is remembered of custom nodes between boots: with which ComfyUI was ready, and which had ended it, and why.

A node counts as another one as soon as its code changes, so what was mended is tried again by itself.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from comfypod.files import read_small, write_atomic

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

# Nodes write their settings and logs beside their code, and that changes nothing.
_CODE = (".py", ".so", ".toml", ".txt")
_NOT_CODE = ("__pycache__", ".git")
_LONGEST_HEAD = 1 << 12


@dataclass(frozen=True, slots=True)
class Known:
    """Nodes by name: the print of those that are known to work; print and reason of those that are set aside."""

    works: Mapping[str, str]
    aside: Mapping[str, tuple[str, str]]


def read(path: Path) -> Known:
    """Read the record; what is damaged in it counts as not written."""
    try:
        body = json.loads(read_small(path))
        works = {str(name): str(mark) for name, mark in body["works"].items()}
        return Known(works, {str(name): (str(mark), str(why)) for name, (mark, why) in body["aside"].items()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return Known({}, {})


def write(path: Path, known: Known) -> None:
    """Replace the record.

    Raises:
        OSError: the disk failed.
    """
    body = {"works": dict(known.works), "aside": {name: list(row) for name, row in known.aside.items()}}
    write_atomic(path, (json.dumps(body, indent=1, sort_keys=True) + "\n").encode())


def prints(nodes: Iterable[Path], surroundings: str) -> dict[str, str]:
    """Return the print of each node by its name; `surroundings` is what it is loaded into, release and environment."""
    return {node.name: _print(node, surroundings) for node in nodes}


def _print(node: Path, surroundings: str) -> str:
    """Digest the top of a node: names, and of code size and time of its last change; and the commit it stands at."""
    try:
        entries = [entry for entry in os.scandir(node) if entry.name not in _NOT_CODE] if node.is_dir() else []
        rows = sorted(map(_row, entries)) if node.is_dir() else [_stat(node.stat())]
    except OSError as error:
        rows = [str(error.errno)]
    return hashlib.sha256("\n".join([surroundings, *rows, _commit(node / ".git")]).encode()).hexdigest()[:16]


def _row(entry: os.DirEntry[str]) -> str:
    return f"{entry.name!a} {_stat(entry.stat()) if entry.name.endswith(_CODE) and entry.is_file() else ''}"


def _stat(facts: os.stat_result) -> str:
    return f"{facts.st_size} {facts.st_mtime_ns}"


def _commit(git: Path) -> str:
    try:
        head = read_small(git / "HEAD", _LONGEST_HEAD).decode("ascii").strip()
        name = head.removeprefix("ref: ")
        if name == head or ".." in name or name.startswith("/"):
            return head
        return read_small(git / name, _LONGEST_HEAD).decode("ascii").strip()
    except (OSError, ValueError):
        return ""
