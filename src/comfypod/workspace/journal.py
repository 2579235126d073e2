"""The journal: a change of several paths of a workspace that is wholly done or has not happened, whatever is killed.

Write-ahead, one transaction at a time: `begin` says that something is being staged; `commit` says that all of it is on
the disk, and which renames are left; from there only forward. `recover` undoes the one and finishes the other, and may
itself be killed and repeated. Undo and redo are those of ARIES (Mohan et al., 1992), with renames in the place of
pages: whether one has happened is seen from its two names.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comfypod import files
from comfypod.release import CACHE, MARK
from comfypod.workspace import state

if TYPE_CHECKING:
    from comfypod.workspace.layout import Layout

_LIMIT = 1 << 26


@dataclass(frozen=True, slots=True)
class Move:
    """One rename, both names relative to the workspace."""

    source: str
    target: str


@dataclass(frozen=True, slots=True)
class Transaction:
    """What is going on (`action`), the renames that are left once all is staged, and the state that holds then."""

    action: str
    moves: tuple[Move, ...]
    after: state.State
    staged: bool = False


def begin(layout: Layout, transaction: Transaction) -> None:
    """Note that something is being staged; what is killed from here on is undone.

    Raises:
        OSError: the disk failed, or a change is open that has to be finished first (EBUSY).
    """
    if (open_ := read(layout)) is not None and open_.staged:
        raise OSError(errno.EBUSY, f"the {open_.action} that was begun is not finished", str(layout.journal))
    _write(layout, transaction)


def commit(layout: Layout, transaction: Transaction, *, copied: bool = True) -> Transaction:
    """Make what was staged durable and note the renames that are left; what is killed from here on is finished.

    Files that were `copied` are made durable together, by one call for their file system.

    Raises:
        OSError: the disk failed; nothing has been renamed.
    """
    _ensure_plain(layout, transaction)
    if layout.staging.is_dir():
        (files.sync_filesystem if copied else files.fsync_folder)(layout.staging)
    noted = Transaction(transaction.action, transaction.moves, transaction.after, staged=True)
    _write(layout, noted)
    return noted


def recover(layout: Layout) -> Transaction | None:
    """Finish or undo what a killed boot left open; return it, None when there was nothing.

    Raises:
        OSError: the disk failed; the transaction stays open.
    """
    found = read(layout)
    if found is not None and found.staged:
        finish(layout, found)
    else:
        clear(layout)
        layout.journal.unlink(missing_ok=True)
    return found


def clear(layout: Layout) -> None:
    """Delete what was staged; what is another user's and may not be deleted is moved out of the way.

    Raises:
        OSError: the disk failed.
    """
    try:
        files.remove_tree(layout.staging)
    except PermissionError:
        place = free_name(layout.edits / "left-over")
        place.parent.mkdir(parents=True, exist_ok=True)
        layout.staging.rename(place)


def read(layout: Layout) -> Transaction | None:
    """Return the open transaction; one that makes no sense is none of ours, as ours are replaced atomically.

    Raises:
        OSError: it is there and cannot be read, so nothing is known about it.
        StorageError: a newer comfypod wrote it.
    """
    try:
        body: Any = json.loads(files.read_small(layout.journal, _LIMIT))
        state.ensure_known(layout.root, body["after"])
        moves = tuple(Move(each["source"], each["target"]) for each in body["moves"])
        found = Transaction(str(body["action"]), moves, state.State(**body["after"]), staged=body["staged"] is True)
        sound = all(_is_inside(layout, move) for move in moves)
    except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):
        return None
    except OSError as error:
        if error.errno == errno.EINVAL:
            return None
        raise
    return found if sound else None


def _write(layout: Layout, transaction: Transaction) -> None:
    files.write_atomic(layout.journal, (json.dumps(asdict(transaction)) + "\n").encode())


def _is_inside(layout: Layout, move: Move) -> bool:
    """Whether a rename is one of ours: the file may have been written by anything that runs in the pod.

    Raises:
        ValueError, TypeError: a name is none.
    """
    core, ours = layout.comfyui.name, layout.records.name
    adopted, copies = f"{ours}/{layout.adopted.name}/", f"{ours}/{layout.databases.name}/"
    sources = (f"{core}/", f"{ours}/{layout.staging.name}/", f"{ours}/{layout.releases.name}/", adopted, copies)
    targets = (*sources, f"{ours}/{layout.edits.name}/")
    whole = move.source == core and move.target.startswith(adopted)
    return (
        (whole or move.source.startswith(sources))
        and (move.target.startswith(targets) or move.target == core)
        and all(_is_plain(layout, name) for name in (move.source, move.target))
    )


def _ensure_plain(layout: Layout, transaction: Transaction) -> None:
    """Refuse to switch through a link that something has put in the place of a folder; it could not be recovered."""
    names = (Path(name) for move in transaction.moves for name in (move.source, move.target))
    for folder in sorted({parent for name in names for parent in name.parents} - {Path()}):
        if (layout.root / folder).is_symlink():
            raise OSError(errno.ELOOP, "a link stands where a folder is needed", str(layout.root / folder))


def _is_plain(layout: Layout, name: str) -> bool:
    """Whether a name leads to a place in the workspace without passing a link."""
    if b"\0" in os.fsencode(name) or {"", ".", ".."}.intersection(name.split("/")):
        return False
    parents = Path(name).parents
    return not any((layout.root / parent).is_symlink() for parent in parents if parent != Path())


def finish(layout: Layout, transaction: Transaction) -> None:
    """Do the renames that are left, keep the state that holds then, close the transaction.

    Raises:
        OSError: the disk failed; the next `recover` goes on.
    """
    folders = {(layout.root / name).parent for move in transaction.moves for name in (move.source, move.target)}
    for folder in sorted({(layout.root / move.target).parent for move in transaction.moves}):
        folder.mkdir(parents=True, exist_ok=True)
    for move in transaction.moves:
        _rename(layout, move)
    for folder in sorted(folders):
        if folder.is_dir() and not folder.is_relative_to(layout.staging):
            files.fsync_folder(folder)
    state.write(layout.state, transaction.after)
    layout.journal.unlink(missing_ok=True)
    clear(layout)


def _rename(layout: Layout, move: Move) -> None:
    source, target = layout.root / move.source, layout.root / move.target
    if os.path.lexists(target):
        if target.is_relative_to(layout.records) or not os.path.lexists(source):
            # It is done: what is at `source` now, if anything, has taken the place of what was moved away.
            return
        if target.parent != layout.comfyui and source.is_relative_to(layout.staging):
            # A user has put something there meanwhile. What a release has for their folders is a gift, and a whole
            # ComfyUI that could not be put in place is seeded beside what is there.
            return
        if not _was_empty(target):
            set_aside(layout, target)
    if target.is_relative_to(layout.staging) and not _is_ours(source):
        # Put there since the renames were noted; what is in the staging folder will be deleted.
        set_aside(layout, source)
        return
    with contextlib.suppress(FileNotFoundError):
        source.rename(target)


def _was_empty(path: Path) -> bool:
    """Remove a folder that holds nothing, as a boot makes while a change is open; say whether it was one."""
    if path.is_symlink() or not path.is_dir() or os.listdir(path):
        return False
    path.rmdir()
    return True


def _is_ours(path: Path) -> bool:
    """Whether what leaves for good can only be ours: a link, the mark, bytecode, or nothing."""
    return path.is_symlink() or path.name in (MARK, CACHE) or not os.path.lexists(path)


def set_aside(layout: Layout, path: Path, folder: str = "found") -> Path:
    """Move what is not ours out of the way, to a name below `layout.edits` that is free; return it."""
    place = free_name(layout.edits / folder / path.relative_to(layout.root))
    place.parent.mkdir(parents=True, exist_ok=True)
    path.rename(place)
    return place


def free_name(path: Path) -> Path:
    """Return the path, or the first of `path.1`, `path.2` ... that is not taken."""
    number, place = 0, path
    while os.path.lexists(place):
        number += 1
        place = path.with_name(f"{path.name}.{number}")
    return place
