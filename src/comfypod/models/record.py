"""`models.json`: what comfypod has put below `models/`, from where, and what it was then.

An entry is written before its file takes its place and names size and time of last change of the very file that will
stand there. So a kill at any moment leaves nothing that is not recorded, and an entry counts only while what stands
there is that file.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import time
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from comfypod.errors import BusyError
from comfypod.files import FolderLock, read_small, write_atomic
from comfypod.models.needs import inside

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from comfypod.workspace.layout import Layout

SCHEMA = 1
_LONGEST = 16 << 20
_TRIES, _PAUSE = 200, 0.05


@dataclass(frozen=True, slots=True)
class Entry:
    """One file: its address, digest, size, and time of last change in nanoseconds; `by` is what asked for it first."""

    url: str
    sha256: str
    size: int
    mtime: int
    by: str = ""

    def is_at(self, path: Path) -> bool:
        """Whether the file that comfypod has put there still stands there."""
        try:
            facts = os.lstat(path)
        except OSError:
            return False
        return stat.S_ISREG(facts.st_mode) and (facts.st_size, facts.st_mtime_ns) == (self.size, self.mtime)


def read(layout: Layout) -> dict[str, Entry]:
    """Return the entries by place below `models/`; what makes no sense is left out, as anything may have written it."""
    try:
        rows: Any = json.loads(read_small(layout.models, _LONGEST))["files"]
        return {place: entry for place, row in dict(rows).items() if (entry := _entry(place, row)) is not None}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}


def ours(layout: Layout, models: Path) -> dict[str, Entry]:
    """Return the entries whose file still stands below `models`."""
    return {place: entry for place, entry in read(layout).items() if entry.is_at(models / place)}


def note(layout: Layout, place: str, entry: Entry) -> None:
    """Write down what stands, or is about to stand, in a place.

    Raises:
        OSError: the disk failed.
        BusyError: others write for ten seconds.
    """
    _change(layout, lambda known: known.update({place: entry}))


def forget(layout: Layout, place: str) -> None:
    """Take an entry out.

    Raises:
        OSError: the disk failed.
        BusyError: others write for ten seconds.
    """
    _change(layout, lambda known: known.pop(place, None))


def _change(layout: Layout, change: Callable[[dict[str, Entry]], Any]) -> None:
    with _alone(layout):
        known = read(layout)
        change(known)
        body = {"schema": SCHEMA, "files": {place: asdict(known[place]) for place in sorted(known)}}
        write_atomic(layout.models, (json.dumps(body, indent=1) + "\n").encode())


@contextlib.contextmanager
def _alone(layout: Layout) -> Iterator[None]:
    lock = FolderLock(layout.models_lock)
    for left in reversed(range(_TRIES)):
        try:
            lock.acquire()
            break
        except BusyError:
            if not left:
                raise
            time.sleep(_PAUSE)
    try:
        yield
    finally:
        lock.release()


def _entry(place: str, row: Any) -> Entry | None:
    kinds = {each.name: int if str(each.type) == "int" else str for each in fields(Entry)}
    if not isinstance(row, dict) or set(row) != set(kinds) or any(type(row[key]) is not kinds[key] for key in row):
        return None
    return Entry(**row) if "/" in place and inside(place) == place else None
