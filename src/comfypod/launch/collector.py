"""Python's garbage collector, off while ComfyUI imports: what an import makes stays, and to look at it takes time."""

from __future__ import annotations

import gc
import socket
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

_OPTION = "--port"


def rest_until_served(words: list[str], served: Callable[[], None]) -> None:
    """Switch the collector off until the program with these arguments listens on its `--port`, and call `served` then.

    What is there then is not looked at again (gc.freeze). A program without that argument keeps its collector.
    """
    numbers = [after for word, after in pairwise(words) if word == _OPTION and after.isdecimal()]
    if not numbers:
        return
    port, plain = int(numbers[-1]), socket.socket.listen

    def listen(self: socket.socket, *backlog: Any) -> None:
        plain(self, *backlog)
        if self.family in (socket.AF_INET, socket.AF_INET6) and self.getsockname()[1] == port:
            # It is inherited, so that removing ours leaves Python's own.
            del socket.socket.listen
            gc.freeze()
            gc.enable()
            served()

    socket.socket.listen = listen  # type: ignore[method-assign,assignment]
    gc.disable()
