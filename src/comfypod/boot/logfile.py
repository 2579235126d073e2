"""Logs on the volume: raw bytes, rotated by size, never a reason to fail; and which ones a pod has."""

from __future__ import annotations

import os
import time
from functools import partial
from typing import TYPE_CHECKING

from comfypod.errors import Problem
from comfypod.files import open_plain

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from comfypod.log import Console

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


class Logs:
    """What a pod and its services say: on the console, and below `folder` from the moment that there is one."""

    def __init__(self, folder: Path, console: Console, report: Callable[[Problem], None]) -> None:
        self._folder, self._console, self._report = folder, console, report
        self._files: list[LogFile] = []

    def keep(self) -> None:
        """Keep what the console says from now on, with the time."""
        log = self._log("boot")

        def write(text: str) -> None:
            log.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} {text}\n".encode("utf-8", "backslashreplace"))

        self._console.mirror(write)

    def of(self, name: str) -> Callable[[bytes], None]:
        """Return what takes a service's output."""
        return partial(self._take, name, self._log(name))

    def show(self, name: str, data: bytes) -> None:
        """Show a service's output, and keep none of it."""
        if not self._console.quiet:
            for line in data.decode("utf-8", "replace").splitlines():
                self._console.line(f"{name} | {line}", private=True)

    def close(self) -> None:
        """Close all of them."""
        for log in self._files:
            log.close()

    def _log(self, name: str) -> LogFile:
        self._files.append(LogFile(self._folder / f"{name}.log"))
        return self._files[-1]

    def _take(self, name: str, log: LogFile, data: bytes) -> None:
        log.write(data)
        self.show(name, data)
        if log.lost:
            told = f"{log.path} cannot be written; lines are lost"
            self._report(Problem("storage", told, "free space on the workspace's disk"))
