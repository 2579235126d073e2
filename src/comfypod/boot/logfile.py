"""A service's log on the volume: raw bytes, rotated by size, never a reason to fail."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from comfypod.files import open_plain

if TYPE_CHECKING:
    from pathlib import Path

_LIMIT = 10_000_000
_KEPT = 3


class LogFile:
    """An append-only file of at most `limit` bytes with `kept` older ones beside it (`.1` is the newest).

    A full or read-only disk loses lines, not the pod; `lost` says whether that happened.
    """

    def __init__(self, path: Path, *, limit: int = _LIMIT, kept: int = _KEPT) -> None:
        self.path = path
        self.lost = False
        self._limit = limit
        self._kept = kept
        self._handle: int | None = None
        self._size = 0

    def write(self, data: bytes) -> None:
        """Append; opens the file on first use."""
        try:
            if self._handle is None:
                self._open()
            elif self._size + len(data) > self._limit:
                self._rotate()
            if self._handle is not None:
                self._size += os.write(self._handle, data)
        except OSError:
            self.lost = True

    def close(self) -> None:
        """Close; a later write opens it again."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def _open(self) -> None:
        self.path.parent.mkdir(exist_ok=True)
        self._handle = open_plain(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self._size = os.fstat(self._handle).st_size

    def _rotate(self) -> None:
        self.close()
        for number in range(self._kept, 0, -1):
            older = self.path.with_name(f"{self.path.name}.{number}")
            newer = self.path if number == 1 else self.path.with_name(f"{self.path.name}.{number - 1}")
            if newer.exists():
                newer.replace(older)
        self._open()
