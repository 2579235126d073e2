"""SHA-256 of a file while it arrives: follows what is there from its beginning on, read back from memory."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_CHUNK = 1 << 18
_LOOK_SECONDS = 0.02
_JOIN_SECONDS = 0.2


class Follower(threading.Thread):
    """Takes the digest of what `front` says is there, until it is told that this is all, or to give up."""

    def __init__(self, handle: int, front: Callable[[], int]) -> None:
        super().__init__(name="digest", daemon=True)
        self._handle, self._front = handle, front
        self._whole, self._given_up = threading.Event(), threading.Event()
        self._digest = hashlib.sha256()
        self._error: OSError | None = None

    def run(self) -> None:
        """Follow."""
        try:
            self._follow()
        except OSError as error:
            self._error = error

    def _follow(self) -> None:
        at, front, buffer = 0, 0, memoryview(bytearray(_CHUNK))
        while not self._given_up.is_set():
            if at < front:
                count = os.preadv(self._handle, [buffer[: front - at]], at)
                if not count:
                    raise OSError(errno.EIO, "the file was cut short by something else")
                self._digest.update(buffer[:count])
                at += count
                continue
            whole, front = self._whole.is_set(), self._front()
            if at == front:
                if whole:
                    return
                self._whole.wait(_LOOK_SECONDS)

    def give_up(self) -> None:
        """End without a result; the file may be closed then."""
        self._given_up.set()
        self._whole.set()
        self.join()

    def result(self, stop: threading.Event) -> str:
        """Return the digest of the file, which is whole by now; nothing once `stop` is set.

        Raises:
            OSError: it could not be read back.
        """
        self._whole.set()
        while self.is_alive() and not stop.is_set():
            self.join(_JOIN_SECONDS)
        self.give_up()
        if self._error is not None:
            raise self._error
        return "" if stop.is_set() else self._digest.hexdigest()
