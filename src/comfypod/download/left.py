"""Partial files that nobody goes on with: what is there, who holds it, and removing what nobody holds."""

from __future__ import annotations

import os
import re
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from comfypod.download import partial
from comfypod.workspace.lease import PATIENCE_SECONDS, Lease

if TYPE_CHECKING:
    from collections.abc import Sequence

_FOLDER = re.compile(r"[0-9a-f]{24}")
_LOOK_SECONDS = 0.25
# How often a ticket is renewed in the time after which its owner is taken for dead.
_BEATS = 9


@dataclass(frozen=True, slots=True)
class Left:
    """A partial file: its folder, the bytes that it takes on the disk, and what its record says of it, if anything.

    `so_far` of `total` bytes of `target` are there (-1 in all: not known), from `url`.
    """

    folder: Path
    taken: int
    target: Path | None = None
    url: str = ""
    so_far: int = 0
    total: int = -1

    @property
    def held(self) -> bool:
        """Whether somebody is known to fetch it now."""
        return any(pod.life == "alive" for pod in Lease(self.folder).others())


def look(site: Path) -> list[Left]:
    """Return all partial files; a link is none.

    Raises:
        OSError: the disk failed.
    """
    folders = (path for path in (sorted(site.iterdir()) if site.is_dir() else ()) if _FOLDER.fullmatch(path.name))
    return [_look(folder) for folder in folders if folder.is_dir() and not folder.is_symlink()]


def _look(folder: Path) -> Left:
    try:
        taken = os.lstat(folder / "data").st_blocks * 512
    except FileNotFoundError:
        taken = 0
    if (known := partial.read(folder)) is None:
        return Left(folder, taken)
    kept, there = known
    target = Path(os.path.normpath(folder.parent / kept.target))
    if partial.folder_of(folder.parent, target) != folder:
        return Left(folder, taken)
    return Left(folder, taken, target, kept.url, sum(stop - start for start, stop in there), kept.size)


def remove(left: Sequence[Left], patience: float = PATIENCE_SECONDS) -> list[Left]:
    """Remove those that nobody holds, and return them.

    Of a ticket that another machine has left it is seen only after `patience` seconds that its owner is dead.

    Raises:
        OSError: the disk failed.
        BusyError: no ticket could be had.
    """
    removed, until = list[Left](), time.monotonic() + patience * (1 + 2 / _BEATS)
    with ExitStack() as ending:
        waiting = [(each, _lease(each, ending, patience)) for each in left]
        while waiting:
            ahead = [(each, lease, lease.ahead()) for each, lease in waiting]
            for each, lease, pod in ahead:
                if pod is None:
                    lease.ensure()
                    partial.forget(each.folder)
                    removed.append(each)
            again = time.monotonic() < until
            waiting = [
                (each, lease) for each, lease, pod in ahead if again and pod is not None and pod.life == "unknown"
            ]
            if waiting:
                time.sleep(_LOOK_SECONDS)
    return removed


def _lease(left: Left, ending: ExitStack, patience: float) -> Lease:
    """Queue behind whoever fetches it now; who comes later waits for us, and finds nothing of it."""
    lease = Lease(left.folder, beat=patience / _BEATS, patience=patience)
    ending.callback(partial.tidy, left.folder)
    ending.callback(lease.release)
    partial.take(lease)
    return lease
