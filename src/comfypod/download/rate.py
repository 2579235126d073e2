"""A limit on bytes a second over all connections."""

from __future__ import annotations

import threading
import time


class Gate:
    """Lets `rate` bytes a second pass, 0 for any number. What waits does not read, and so the host waits as well."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._mutex = threading.Lock()
        self._free = 0.0

    @property
    def most(self) -> int:
        """How much may be read at once, so that no wait is long."""
        return max(1 << 12, self._rate // 20) if self._rate else 1 << 62

    def spend(self, count: int, stop: threading.Event) -> None:
        """Wait until `count` bytes, which have come, were due, or until `stop`."""
        if not self._rate:
            return
        with self._mutex:
            now = time.monotonic()
            self._free = max(self._free, now) + count / self._rate
            wait = self._free - now
        stop.wait(wait)
