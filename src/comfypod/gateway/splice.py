"""Moving a body's bytes from socket to socket inside the kernel (splice(2)), so that they are never copied here."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_PIPE_BYTES = 1 << 20
# From linux/fcntl.h, splice(2) and fcntl(2); the modules os and fcntl name them only in newer Pythons.
_MOVE, _NONBLOCK, _F_SETPIPE_SZ = 1, 2, 1031


class Unseen:
    """A body's bytes that are only counted."""

    def __init__(self, length: int) -> None:
        self._length = length

    def __len__(self) -> int:
        """Return how many there are."""
        return self._length


async def buffered(reader: asyncio.StreamReader, transport: asyncio.ReadTransport, most: int) -> bytes:
    """Stop a stream, and return what it has read already, at most `most` bytes."""
    found = b""
    while len(found) < most:
        transport.pause_reading()
        try:
            async with asyncio.timeout(0):
                part = await reader.read(most - len(found))
        except TimeoutError:
            break
        if not part:
            break
        found += part
    transport.pause_reading()
    return found


async def flushed(writer: asyncio.StreamWriter) -> None:
    """Wait until all that was written has left for the kernel."""
    writer.transport.set_write_buffer_limits(high=0)
    await writer.drain()
    writer.transport.set_write_buffer_limits()


async def splice(source: int, target: int, length: int, seconds: float) -> None:
    """Move `length` bytes from one socket to another, both non-blocking; neither may be read or written meanwhile.

    Raises:
        ConnectionError: one end closed, or neither moved for `seconds`.
    """
    loop = asyncio.get_running_loop()
    with contextlib.ExitStack() as stack:
        # The event loop watches a descriptor for one owner, and the streams' own are taken.
        source, target = (_owned(stack, os.dup(each)) for each in (source, target))
        out, into = (_owned(stack, each) for each in os.pipe())
        with contextlib.suppress(OSError):
            fcntl.fcntl(into, _F_SETPIPE_SZ, _PIPE_BYTES)
        while length:
            moved = await _moved(source, into, min(length, _PIPE_BYTES), loop.add_reader, loop.remove_reader, seconds)
            if not moved:
                raise ConnectionResetError("the service closed the connection in the middle")
            length -= moved
            while moved:
                gone = await _moved(out, target, moved, loop.add_writer, loop.remove_writer, seconds, watched=target)
                moved -= gone


def _owned(stack: contextlib.ExitStack, descriptor: int) -> int:
    stack.callback(os.close, descriptor)
    return descriptor


async def _moved(
    source: int,
    target: int,
    most: int,
    add: Callable[..., None],
    remove: Callable[[int], bool],
    seconds: float,
    *,
    watched: int | None = None,
) -> int:
    """Move what can be moved, after waiting until something can; 0 at the end of the source."""
    watched = source if watched is None else watched
    while True:
        with contextlib.suppress(BlockingIOError):
            return os.splice(source, target, most, flags=_MOVE | _NONBLOCK)
        ready = asyncio.get_running_loop().create_future()
        add(watched, lambda ready=ready: ready.done() or ready.set_result(None))
        try:
            async with asyncio.timeout(seconds):
                await ready
        except TimeoutError as error:
            raise ConnectionResetError("the connection stalled") from error
        finally:
            remove(watched)
