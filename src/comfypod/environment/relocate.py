"""A layer whose volume is mounted at another path than before: what holds absolute paths is written anew."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from comfypod.environment.layer import read_marker, remember
from comfypod.files import write_atomic

if TYPE_CHECKING:
    from pathlib import Path

    from comfypod.environment.layer import Layer

_LONGEST = 1 << 20


def relocate(layer: Layer, workspace: Path) -> bool:
    """Let a complete layer work where it is now, after `restore`; False when it stands where it was made.

    Scripts name their interpreter, and path files of editable installs name folders of the workspace. Nothing else in
    a virtual environment knows its place. Doing so twice is harmless, and the marker comes last.

    Raises:
        OSError: the disk failed.
    """
    marker = read_marker(layer)
    before = str(marker["root"]) if marker is not None else ""
    if marker is None or before == str(layer.root):
        return False
    inside = layer.root.relative_to(workspace)
    old = before.removesuffix(f"/{inside}")
    # A marker that was planted names no workspace.
    known = old != before and old.startswith("/") and old.isprintable()
    for path in () if not known else (*_plain(layer.root / "bin"), *_plain(layer.site, ".pth")):
        _rewrite(path, old, str(workspace))
    remember(layer)
    return True


def _plain(folder: Path, ending: str = "") -> list[Path]:
    return [
        path for path in folder.iterdir() if path.name.endswith(ending) and path.is_file() and not path.is_symlink()
    ]


def _rewrite(path: Path, old: str, new: str) -> None:
    if path.stat().st_size > _LONGEST:
        return
    data = path.read_bytes()
    moved = data.replace(os.fsencode(f"{old}/"), os.fsencode(f"{new}/"))
    if moved != data and b"\0" not in data:
        write_atomic(path, moved, path.stat().st_mode & 0o777, durable=False)
