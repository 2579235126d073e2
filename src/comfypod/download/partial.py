"""Partial files: the data, and a record of what of it is there, for whoever goes on with it after a kill.

`record` is a line of facts, then a pair of numbers for each piece, written in place after each chunk: what a process
has written is there after its SIGKILL, though not after a loss of power. After a restart of the machine, and on another
one, `mark` counts instead: the same, written after the data is known to be on the disk.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import struct
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from comfypod import files
from comfypod.download.pieces import Span, union
from comfypod.workspace.lease import this_machine

if TYPE_CHECKING:
    from comfypod.download.pieces import Piece
    from comfypod.workspace.lease import Lease

_PAIR = struct.Struct("<QQ")
_LONGEST = 16 << 20
_TRIES = 6


@dataclass(frozen=True, slots=True)
class Kept:
    """The facts of a record: what is fetched, from where, and which version of it. No login, no token is in it.

    `target` is relative to the folder of all partial files, as a volume may be mounted elsewhere next time.
    """

    target: str
    url: str
    size: int = -1
    sha256: str = ""
    etag: str = ""
    machine: str = ""

    def goes_on(self, now: Kept) -> bool:
        """Whether what was fetched under these facts is a part of what is fetched `now`."""
        if self.target != now.target or self.size < 0 or now.size not in (-1, self.size):
            return False
        if now.sha256 and self.sha256:
            return now.sha256 == self.sha256
        return self.url == now.url and bool(self.etag) and now.etag in ("", self.etag)


def folder_of(site: Path, target: Path) -> Path:
    """Return the folder of a target's partial file."""
    return site / hashlib.sha256(os.fsencode(os.path.relpath(target, site))).hexdigest()[:24]


def progress(site: Path) -> dict[Path, tuple[int, int]]:
    """Return the bytes so far and in all of every partial file, by target; -1 in all where that is not known."""
    found = {}
    for folder in site.iterdir() if site.is_dir() else ():
        if (known := read(folder)) is not None:
            kept, there = known
            target = Path(os.path.normpath(site / kept.target))
            if folder_of(site, target) == folder:
                found[target] = (sum(stop - start for start, stop in there), kept.size)
    return found


def read(folder: Path) -> tuple[Kept, list[Span]] | None:
    """Return what is known of a partial file, and what of it is there; None where nothing is."""
    now = _read(folder / "record")
    if now is None or now[0].machine == this_machine() != "":
        return now
    marked = _read(folder / "mark")
    same = marked is not None and replace(marked[0], machine="") == replace(now[0], machine="")
    return now[0], marked[1] if marked is not None and same else []


def _read(path: Path) -> tuple[Kept, list[Span]] | None:
    try:
        line, _, rows = files.read_small(path, _LONGEST).partition(b"\n")
        kept = Kept(**json.loads(line))
        if type(kept.size) is not int or not all(type(value) is str for value in _words(kept)):
            return None
        if b"\0" in os.fsencode(kept.target):
            return None
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    most = kept.size if kept.size >= 0 else 1 << 62
    pairs = _PAIR.iter_unpack(rows[: len(rows) // _PAIR.size * _PAIR.size])
    return kept, union((start, stop) for start, stop in pairs if stop <= most)


def _words(kept: Kept) -> tuple[object, ...]:
    return kept.target, kept.url, kept.sha256, kept.etag, kept.machine


def _bytes(kept: Kept, there: list[Span]) -> bytes:
    return json.dumps(asdict(kept)).encode() + b"\n" + b"".join(_PAIR.pack(*span) for span in there)


class Partial:
    """One partial file, open for whoever holds its lock."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.site = folder.parent
        self.data = folder / "data"
        self._line = 0
        self._record = -1
        self.handle = files.open_plain(self.data, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW)

    def begin(self, kept: Kept, there: list[Span]) -> None:
        """Write the facts and what is there; what the file has beyond is forgotten."""
        self.kept = replace(kept, machine=this_machine())
        self._close_record()
        (self.folder / "mark").unlink(missing_ok=True)
        if not there:
            (self.folder / "record").unlink(missing_ok=True)
            os.ftruncate(self.handle, 0)
        if kept.size > 0 and os.fstat(self.handle).st_size != kept.size:
            files.reserve(self.handle, kept.size)
        path = self.folder / "record"
        files.write_atomic(path, _bytes(self.kept, there), durable=False)
        self._record = files.open_plain(path, os.O_WRONLY | os.O_NOFOLLOW)
        self._line = len(_bytes(self.kept, []))

    def write(self, data: memoryview, at: int) -> None:
        """Write bytes of a piece."""
        while data:
            count = os.pwrite(self.handle, data, at)
            data, at = data[count:], at + count

    def note(self, piece: Piece) -> None:
        """Record how far a piece is; one call, in place."""
        os.pwrite(self._record, _PAIR.pack(piece.start, piece.at), self._line + piece.number * _PAIR.size)

    def mark(self, there: list[Span]) -> None:
        """Make durable what `there` names, for a machine that goes down."""
        os.fdatasync(self.handle)
        files.write_atomic(self.folder / "mark", _bytes(self.kept, there))

    def _close_record(self) -> None:
        if self._record >= 0:
            os.close(self._record)
            self._record = -1

    def close(self) -> None:
        """Close its files; what holds nothing yet is of no use to anyone."""
        self._close_record()
        os.close(self.handle)
        self.handle = -1
        if (known := read(self.folder)) is None or not known[1]:
            forget(self.folder)


def forget(folder: Path) -> None:
    """Remove a partial file; its folder stays while it is locked."""
    for name in ("record", "mark", "data", ".record.new", ".mark.new"):
        (folder / name).unlink(missing_ok=True)


def tidy(folder: Path) -> None:
    """Remove the folder of a partial file that is gone, unless another process waits there."""
    with contextlib.suppress(OSError):
        folder.rmdir()


def take(lease: Lease) -> None:
    """Take a ticket; the folder of the tickets may be removed by the one who held the last.

    Raises:
        BusyError: others took and gave up tickets without an end.
        OSError: the disk failed.
    """
    for _ in range(_TRIES):
        with contextlib.suppress(FileNotFoundError):
            return lease.take()
    return lease.take()
