"""Folders of `custom_nodes`: what is half a clone, how a node comes into its place, and how one leaves it."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING

from comfypod import copying, files
from comfypod.errors import Problem
from comfypod.nodes import record
from comfypod.nodes.record import Entry, Record
from comfypod.wish import is_name
from comfypod.workspace.aside import put_aside

if TYPE_CHECKING:
    from comfypod.workspace.layout import Layout

# ComfyUI passes over names that end so.
OFF = ".disabled"
_WAITING = ".installing.disabled"


def waiting(folder: Path, name: str) -> Path:
    """Return where a node waits, whole, until its place is free."""
    return folder / f"{name}{_WAITING}"


def is_waiting(name: str) -> bool:
    """Whether a name in `custom_nodes` is of a node that is being installed."""
    return name.endswith(_WAITING)


def is_half(path: Path) -> bool:
    """Whether a folder is what a clone leaves that was killed: Git's own and no index, or one that is being written."""
    git = path / ".git"
    try:
        if not git.is_dir() or git.is_symlink() or (git / "index").exists():
            return False
        return (git / "index.lock").exists() or os.listdir(path) == [".git"]
    except OSError:
        # What cannot be looked into is not ours to judge.
        return False


def put(layout: Layout, folder: Path, name: str, staged: Path, entry: Entry, known: Record) -> None:
    """Put a staged node into its place; killed at any moment, `settle` undoes or finishes it.

    Raises:
        OSError: the disk failed.
    """
    place = waiting(folder, name)
    files.sync_filesystem(staged)
    try:
        staged.rename(place)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        copying.copy_tree(staged, place)
        files.sync_filesystem(place)
    files.fsync_folder(folder)
    known.nodes[name] = entry.to("placing", entry.reason, replaces=(folder / name).exists())
    record.write(layout, known)
    _finish(layout, folder, name, known)
    record.write(layout, known)


def settle(layout: Layout, folder: Path) -> tuple[Problem, ...]:
    """Finish or undo what was killed, set half clones aside; no network, no program. Return what to tell.

    Only for whoever has the workspace, or the lock of the nodes.

    Raises:
        OSError: the disk failed.
    """
    known = record.read(layout)
    before = dict(known.nodes)
    for name, entry in before.items():
        if entry.state == "placing":
            _finish(layout, folder, name, known)
            continue
        if waiting(folder, name).is_dir():
            files.remove_tree(waiting(folder, name))
        if entry.state == "installing":
            known.nodes[name] = entry.to("failed", "it was interrupted; the next sync tries it again")
    problems = [_without_half(layout, path, known) for path in _halves(folder)]
    if os.path.lexists(layout.staging) and not files.is_folder(layout.staging):
        problems.append(_without_staging(layout))
    for left in layout.staging.glob("node-*"):
        files.remove_tree(left)
    if known.nodes != before:
        record.write(layout, known)
    return tuple(problems)


def _finish(layout: Layout, folder: Path, name: str, known: Record) -> None:
    entry, target, place = known.nodes[name], folder / name, waiting(folder, name)
    if place.is_dir():
        if target.exists() and entry.replaces:
            put_aside(layout, target, "another version of the node took its place")
        if os.path.lexists(target):
            # Put there by someone else meanwhile.
            files.remove_tree(place)
            del known.nodes[name]
            return
        place.rename(target)
        files.fsync_folder(folder)
    known.nodes[name] = entry.to("installed", entry.reason, replaces=False)


def _halves(folder: Path) -> list[Path]:
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        return []
    return [folder / name for name in names if is_name(name) and is_half(folder / name)]


def _without_staging(layout: Layout) -> Problem:
    place = put_aside(layout, layout.staging, "a folder is needed there")
    return Problem("storage", f"{layout.staging} was set aside: it is no folder", f"it is {place}")


def _without_half(layout: Layout, path: Path, known: Record) -> Problem:
    place = put_aside(layout, path, "half a clone")
    told = f"the node {path.name} is half a clone, which ComfyUI cannot import; it is in {place} now"
    known.nodes[path.name] = known.nodes.get(path.name, Entry("incomplete")).to("incomplete", told)
    return Problem("half-clone", told, "clone it again, or declare it in comfypod.toml (docs/nodes.md)")
