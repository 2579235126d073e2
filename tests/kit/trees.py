"""Small trees of files for tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def plant(root: Path, tree: Mapping[tuple[str, ...], bytes]) -> Path:
    """Write a tree; a name that is already a file where a folder is needed is left out, the same each time."""
    root.mkdir()
    for names, data in sorted(tree.items()):
        path = root.joinpath(*names)
        if not path.exists() and not any(parent.is_file() for parent in path.parents):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    return root


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
