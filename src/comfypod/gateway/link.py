"""The line between boot and gateway: JSON, one message a line, over a pair of sockets that boot has made.

Boot tells the door; the gateway asks. The pair outlives a gateway that is killed, so a message may be cut short: what
is no message is left out, and an answer that nobody waits for any more as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_LONGEST = 32 << 20


class Line:
    """One end. `got` is given every message that is no answer; what it returns is the answer to a question."""

    def __init__(self, got: Callable[[dict[str, Any]], Awaitable[Any]]) -> None:
        self._got = got
        self._writer: asyncio.StreamWriter | None = None
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._number = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, end: socket.socket) -> None:
        """Take messages until the other end is gone."""
        reader, self._writer = await asyncio.open_connection(sock=end, limit=_LONGEST)
        self._writer.write(b"\n")
        with contextlib.suppress(OSError, ValueError):
            while raw := await reader.readline():
                self._take(raw)
        self._writer.close()

    def _take(self, raw: bytes) -> None:
        try:
            message = json.loads(raw)
        except ValueError:
            return
        if not isinstance(message, dict):
            return
        if "answer" in message:
            waiting = self._asked.pop(message.get("id", 0), None)
            if waiting is not None and not waiting.done():
                waiting.set_result(message["answer"])
            return
        task = asyncio.create_task(self._serve(message))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, message: dict[str, Any]) -> None:
        answer = await self._got(message)
        if "id" in message:
            self.tell({"id": message["id"], "answer": answer})

    def tell(self, message: dict[str, Any]) -> None:
        """Send a message, or keep quiet when the line is not open."""
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(json.dumps(message).encode() + b"\n")

    async def ask(self, message: dict[str, Any], seconds: float) -> Any:
        """Send a question and wait for its answer; None when there is none in time."""
        self._number += 1
        number, waiting = self._number, asyncio.get_running_loop().create_future()
        self._asked[number] = waiting
        self.tell({**message, "id": number})
        try:
            async with asyncio.timeout(seconds):
                return await waiting
        except TimeoutError:
            return None
        finally:
            self._asked.pop(number, None)
