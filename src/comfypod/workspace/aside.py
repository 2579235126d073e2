"""What was taken out of ComfyUI's sight: moved below `set-aside` by one rename, with a record of its place and why.

The record is written first and holds only once the thing is there, so that a kill at any moment leaves either what was
or a thing that can be put back.
"""

from __future__ import annotations

import errno
import json
import os
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from comfypod.errors import UsageError
from comfypod.files import fsync_folder, make_folder, read_small, storage_error, write_atomic

if TYPE_CHECKING:
    from pathlib import Path

    from comfypod.workspace.layout import Layout

_RECORD = ".json"
_LONGEST_NAME = 50


@dataclass(frozen=True, slots=True)
class Aside:
    """One thing: its name below `set-aside`, where it stood in the workspace, why it was taken, and when (UTC)."""

    name: str
    path: str
    why: str
    at: str


def put_aside(layout: Layout, path: Path, why: str) -> Path:
    """Move a file, folder or link of the workspace out of the way; return where it is now.

    Where `path` is on another file system it stays there, under a name that ComfyUI and Python leave out.

    Raises:
        StorageError: the disk refused; the thing is where it was.
    """
    try:
        _ensure_folder(layout.set_aside)
        name = _free_name(layout, path)
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        aside = Aside(name, path.relative_to(layout.root).as_posix(), why, at)
        write_atomic(_record(layout, name), (json.dumps(asdict(aside)) + "\n").encode())
        return _move(path, *_places(layout, name, path))
    except OSError as error:
        raise storage_error(error, f"cannot set {path} aside") from error


def listed(layout: Layout) -> tuple[Aside, ...]:
    """Return what is set aside, by name; a record without its thing is none."""
    try:
        names = sorted(os.listdir(layout.set_aside))
    except OSError:
        return ()
    found = (_read(layout, name.removesuffix(_RECORD)) for name in names if name.endswith(_RECORD))
    return tuple(aside for aside in found if aside is not None)


def put_back(layout: Layout, name: str) -> Path:
    """Move a thing back to where it stood; return that place.

    Raises:
        UsageError: nothing of that name is set aside, or something stands in its place.
        StorageError: the disk refused; the thing is still set aside.
    """
    aside = _read(layout, name) if os.sep not in name else None
    if aside is None:
        known = ", ".join(each.name for each in listed(layout)) or "nothing"
        raise UsageError(f"{name} is not set aside", f"set aside: {known}")
    path = layout.root / aside.path
    if os.path.lexists(path):
        raise UsageError(f"{path} is taken", f"move it away, then put {name} back again")
    try:
        make_folder(path.parent)
        _move(next(place for place in _places(layout, name, path) if os.path.lexists(place)), path)
        _record(layout, name).unlink(missing_ok=True)
    except OSError as error:
        raise storage_error(error, f"cannot put {name} back") from error
    return path


def _ensure_folder(folder: Path) -> None:
    if folder.is_symlink():
        raise OSError(errno.ELOOP, "a link stands where a folder is needed", str(folder))
    make_folder(folder)


def _record(layout: Layout, name: str) -> Path:
    return layout.set_aside / f"{name}{_RECORD}"


def _places(layout: Layout, name: str, path: Path) -> tuple[Path, Path]:
    """Return where a thing is once it is set aside: with its record, or beside where it stood."""
    return layout.set_aside / name, path.with_name(f"{name}.disabled")


def _free_name(layout: Layout, path: Path) -> str:
    """Return `NAME-1`, or the first number that has no thing; a record that is left over is written over."""
    number = 1
    while True:
        name = f"{path.name[:_LONGEST_NAME]}-{number}"
        if not any(map(os.path.lexists, _places(layout, name, path))) and not _record(layout, name).is_dir():
            return name
        number += 1


def _move(path: Path, place: Path, otherwise: Path | None = None) -> Path:
    try:
        path.rename(place)
    except OSError as error:
        if error.errno != errno.EXDEV or otherwise is None:
            raise
        place = otherwise
        path.rename(place)
    for folder in {path.parent, place.parent}:
        fsync_folder(folder)
    return place


def _read(layout: Layout, name: str) -> Aside | None:
    """Return a record if it makes sense and its thing is there: anything that runs in the pod may have written it."""
    try:
        body: Any = json.loads(read_small(_record(layout, name)))
        aside = Aside(name, *(body[key] for key in ("path", "why", "at")))
        if not all(isinstance(text, str) for text in (aside.path, aside.why, aside.at)):
            return None
        path = layout.root / aside.path
        sound = path.name not in ("", "..") and "\0" not in path.name
        inside = sound and path.parent.resolve().is_relative_to(layout.root.resolve())
        return aside if inside and any(map(os.path.lexists, _places(layout, name, path))) else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError, RuntimeError):
        return None
