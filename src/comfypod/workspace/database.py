"""ComfyUI's own database: an older ComfyUI cannot open what a newer one has migrated, so a copy is kept for it."""

from __future__ import annotations

import contextlib
import os
import re
from typing import TYPE_CHECKING

from comfypod import copying
from comfypod.workspace.journal import Move, free_name

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from comfypod.workspace.layout import Layout

KEPT = ".comfypod-database"
_PLACE = "user/comfyui.db"
_REVISION = re.compile(r"""^revision(?:\s*:\s*str)?\s*=\s*["']([^"']+)["']""", re.MULTILINE)


def keep(layout: Layout) -> None:
    """Stage a copy of the database as it is before an upgrade; ComfyUI does not run then.

    Raises:
        OSError: the disk failed.
    """
    current = layout.comfyui / _PLACE
    if current.is_file() and not current.is_symlink():
        copying.copy_file(str(current), str(layout.staging / KEPT))


def kept_moves(layout: Layout, release: str) -> list[Move]:
    """Return the rename that puts the staged copy beside the release that it belongs to."""
    if not (layout.staging / KEPT).exists():
        return []
    return [Move(_name(layout, layout.staging / KEPT), _name(layout, layout.releases / release / KEPT))]


def return_moves(layout: Layout, back: Path, leaving: str) -> Iterator[Move]:
    """Yield the renames that set aside a database that the release in the folder `back` cannot open."""
    current = layout.comfyui / _PLACE
    revision = _revision(current)
    if revision is None or revision in _known(back):
        return
    here = _name(layout, current)
    yield Move(here, _name(layout, free_name(layout.edits / leaving / _PLACE)))
    if (back / KEPT).is_file():
        yield Move(_name(layout, back / KEPT), here)


def _revision(path: Path) -> str | None:
    """Return the migration that a database is at; None where there is none or it is no such database."""
    if not path.is_file():
        return None
    import sqlite3
    from urllib.parse import quote

    try:
        with contextlib.closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)) as connection:
            row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    except sqlite3.Error:
        return None
    return str(row[0]) if row is not None else None


def _known(tree: Path) -> set[str]:
    """Return the migrations that a ComfyUI tree knows."""
    folder, found = tree / "alembic_db" / "versions", set[str]()
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(folder):
            if name.endswith(".py"):
                found.update(_REVISION.findall((folder / name).read_text("utf-8", "replace")))
    return found


def _name(layout: Layout, path: Path) -> str:
    return path.relative_to(layout.root).as_posix()
