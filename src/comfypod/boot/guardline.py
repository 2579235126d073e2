"""The line between boot and the guard around ComfyUI's custom nodes (`launch/guard.py`)."""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

LAUNCHER = Path(__file__).parents[1] / "launch" / "comfyui.py"
_LONGEST_LINE = 1 << 16


@dataclass(frozen=True, slots=True)
class Event:
    """A step of one node: `loading`, `over` whatever came of it, and what did: `loaded`, `failed`, `hung`, `aside`.

    `begun` and `listens` are those of ComfyUI itself, `without-record` says that its imports are not taken from the
    record.
    """

    pid: int
    node: str
    state: str
    reason: str = ""
    seconds: float = 0.0


class GuardLine:
    """Orders for every start of ComfyUI, in memory, and a pipe of what happens then. It is open as long as boot runs.

    What comes is written by a process that nodes run in, so anything may come.
    """

    def __init__(self, heard: Callable[[Event], None]) -> None:
        self._heard, self._left = heard, b""
        self._orders = os.memfd_create("orders")
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._reading, False)

    @property
    def descriptors(self) -> tuple[int, int]:
        """What ComfyUI is given, orders first."""
        return self._orders, self._writing

    def tell(self, seconds: float, aside: Mapping[str, str], record: tuple[str, str] | None = None) -> None:
        """Say what holds from ComfyUI's next start on: how long a node may load, which are refused and why.

        `record` is what its imports are taken from, a file and the key of the packages that it has to be of.
        """
        data = json.dumps({"seconds": seconds, "aside": dict(aside), "record": record}).encode()
        os.ftruncate(self._orders, 0)
        os.pwrite(self._orders, data, 0)

    def listen(self) -> None:
        """Hear what comes, from now on."""
        asyncio.get_running_loop().add_reader(self._reading, self.hear)

    def hear(self) -> None:
        """Hear what has come so far."""
        while True:
            try:
                data = os.read(self._reading, _LONGEST_LINE)
            except BlockingIOError:
                return
            *lines, self._left = (self._left + data).split(b"\n")
            self._left = self._left[-_LONGEST_LINE:]
            for event in filter(None, map(_event, lines)):
                self._heard(event)


def _event(line: bytes) -> Event | None:
    try:
        match json.loads(line):
            case {
                "pid": int(pid), "node": str(node), "state": str(state), "reason": str(reason),
                "seconds": int() | float() as seconds,
            } if not {"/", "\0"} & set(node):  # fmt: skip
                return Event(pid, node, state, reason, seconds)
    except (ValueError, RecursionError):
        pass
    return None
