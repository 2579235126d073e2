"""ComfyUI's own database: an older ComfyUI cannot open what a newer one has migrated, so copies are kept for it."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from comfypod import copying, files
from comfypod.workspace import plan as plans
from comfypod.workspace.journal import Move

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator

    from comfypod.workspace.layout import Layout

_STAGED = ".comfypod-database"
_PLACE = "user/comfyui.db"
# What SQLite may keep beside a database (https://sqlite.org/tempfiles.html).
_PARTS = ("", "-journal", "-wal", "-shm")
_REVISION = re.compile(r"""^revision(?:\s*:\s*str)?\s*=\s*["']([^"']+)["']""", re.MULTILINE)
_COPY = re.compile(r"(\d{1,9})-([A-Za-z0-9_.]{1,100})\.db")


def change(layout: Layout, old: Path | None, new: Path) -> list[Move]:
    """Return the renames that give the ComfyUI in the folder `new` a database that it can open.

    One that it will migrate is copied first, to `.comfypod/databases`; the copy is staged here. One whose migration it
    does not know goes there, and the newest copy that it knows takes its place. `old` is the tree that had it until
    now, None where that is not known.

    Raises:
        OSError: the disk failed.
    """
    current, known = layout.comfyui / _PLACE, _known(new)
    revision = _revision(current)
    if revision is None or not known:
        return []
    copies = _tidied(layout)
    place = layout.databases / f"{max(copies, default=0) + 1}-{revision}.db"
    if revision in known:
        if old is not None and known <= _known(old):
            return []
        _copy(current, layout.staging / _STAGED)
        return [Move(_name(layout, layout.staging / _STAGED), _name(layout, place))]
    if _is_elsewhere(layout):
        return []
    there = [suffix for suffix in _PARTS if os.path.lexists(f"{current}{suffix}")]
    moves = [Move(_name(layout, current) + suffix, _name(layout, place) + suffix) for suffix in there]
    fitting = [number for number, (_, at) in copies.items() if at in known]
    if fitting:
        moves.append(Move(_name(layout, copies[max(fitting)][0]), _name(layout, current)))
    return moves


def keep(layout: Layout) -> None:
    """Copy a database that may be migrated now, unless there is a copy of its migration.

    Raises:
        OSError: the disk failed.
    """
    current = layout.comfyui / _PLACE
    revision, copies = _revision(current), _copies(layout)
    if revision is None or revision in {at for _, at in copies.values()}:
        return
    staged = layout.databases / ".new"
    staged.unlink(missing_ok=True)
    _copy(current, staged)
    staged.rename(layout.databases / f"{max(copies, default=0) + 1}-{revision}.db")
    files.fsync_folder(layout.databases)


def _copies(layout: Layout) -> dict[int, tuple[Path, str]]:
    """Return the copies by number, the oldest first: where each is, and its migration."""
    try:
        found = [match for name in os.listdir(layout.databases) if (match := _COPY.fullmatch(name))]
    except FileNotFoundError:
        return {}
    return {int(match[1]): (layout.databases / match[0], match[2]) for match in sorted(found, key=lambda m: int(m[1]))}


def _tidied(layout: Layout) -> dict[int, tuple[Path, str]]:
    """Remove copies of which there is a later one at the same migration; return those that stay."""
    copies = _copies(layout)
    latest = {revision: number for number, (_, revision) in copies.items()}
    for number, (path, revision) in copies.items():
        for suffix in _PARTS if number != latest[revision] else ():
            Path(f"{path}{suffix}").unlink(missing_ok=True)
    return {number: copies[number] for number in latest.values()}


def _copy(current: Path, staged: Path) -> None:
    """Copy a database that nobody writes to; bytes are better than nothing where SQLite cannot read it."""
    import sqlite3

    staged.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _opened(current) as source, contextlib.closing(sqlite3.connect(staged)) as sink:
            source.backup(sink)
    except sqlite3.Error:
        staged.unlink(missing_ok=True)
        copying.copy_file(str(current), str(staged))


def _is_elsewhere(layout: Layout) -> bool:
    """Whether the user's folder cannot be renamed to and from: a link, or mounted apart."""
    user = (layout.comfyui / _PLACE).parent
    return user.is_symlink() or any(user == point or user in point.parents for point in plans.mounts_below(layout))


def _revision(path: Path) -> str | None:
    """Return the migration that a database is at; None where there is none, or it is no such database or name."""
    if not path.is_file():
        return None
    import sqlite3

    try:
        with _opened(path) as connection:
            row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    except sqlite3.Error:
        return None
    return str(row[0]) if row is not None and _COPY.fullmatch(f"0-{row[0]}.db") else None


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
