"""ComfyUI's own database: an older ComfyUI cannot open what a newer one has migrated, so a copy is kept for it."""

from __future__ import annotations

import contextlib
import os
import re
from typing import TYPE_CHECKING

from comfypod import copying, files
from comfypod.workspace import plan as plans
from comfypod.workspace.journal import Move, free_name

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator
    from pathlib import Path

    from comfypod.workspace.layout import Layout

KEPT = ".comfypod-database"
_PLACE = "user/comfyui.db"
# What SQLite may keep beside a database (https://sqlite.org/tempfiles.html).
_PARTS = ("", "-journal", "-wal", "-shm")
_REVISION = re.compile(r"""^revision(?:\s*:\s*str)?\s*=\s*["']([^"']+)["']""", re.MULTILINE)


def keep(layout: Layout) -> None:
    """Stage a copy of the database as it is before an upgrade; ComfyUI does not run then.

    Raises:
        OSError: the disk failed.
    """
    current, staged = layout.comfyui / _PLACE, layout.staging / KEPT
    if not current.is_file() or current.is_symlink():
        return
    import sqlite3

    try:
        with _opened(current) as source, contextlib.closing(sqlite3.connect(staged)) as sink:
            source.backup(sink)
    except sqlite3.Error:
        # No database, or one that cannot be opened: bytes are better than nothing.
        staged.unlink(missing_ok=True)
        copying.copy_file(str(current), str(staged))


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
    user = current.parent
    if user.is_symlink() or any(user == point or user in point.parents for point in plans.mounts_below(layout)):
        return
    aside = free_name(layout.edits / leaving / _PLACE)
    for suffix in _PARTS:
        if os.path.lexists(f"{current}{suffix}"):
            yield Move(_name(layout, current) + suffix, _name(layout, aside) + suffix)
    if (back / KEPT).is_file():
        yield Move(_name(layout, back / KEPT), _name(layout, current))


def _revision(path: Path) -> str | None:
    """Return the migration that a database is at; None where there is none or it is no such database."""
    if not path.is_file():
        return None
    import sqlite3

    try:
        with _opened(path) as connection:
            row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    except sqlite3.Error:
        return None
    return str(row[0]) if row is not None else None


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a database for writing: only so can SQLite undo what a killed ComfyUI had not finished."""
    import sqlite3
    from urllib.parse import quote

    with contextlib.closing(sqlite3.connect(f"file:{quote(str(path))}?mode=rw", uri=True)) as connection:
        yield connection


def _known(tree: Path) -> set[str]:
    """Return the migrations that a ComfyUI tree knows."""
    folder, found = tree / "alembic_db" / "versions", set[str]()
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(folder):
            if name.endswith(".py"):
                with contextlib.suppress(OSError):
                    found.update(_REVISION.findall(files.read_small(folder / name).decode("utf-8", "replace")))
    return found


def _name(layout: Layout, path: Path) -> str:
    return path.relative_to(layout.root).as_posix()
