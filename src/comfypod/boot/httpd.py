"""HTTP in its smallest form: the control plane's answers, and questions to the services on loopback.

Written on asyncio streams because `http.server` and `http.client` together cost more start time than all else in
boot; what faces the world is the gateway's business, not this module's.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from comfypod.ports import is_loopback

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_REQUEST_SECONDS = 5.0
_LARGEST_BODY = 16 << 20
_REASONS = {
    200: "OK",
    400: "Bad Request",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    503: "Service Unavailable",
}


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer: status, body, content type."""

    status: int
    body: bytes
    kind: str = "text/plain; charset=utf-8"


def text(status: int, word: str) -> Answer:
    """Answer with one short word."""
    return Answer(status, word.encode() + b"\n")


async def serve(host: str, port: int, handle: Callable[[str], Awaitable[Answer]]) -> asyncio.Server:
    """Answer GET and HEAD; `handle` gets the path without its query. Every connection serves one request.

    On loopback a client must name us by number or as localhost: a web page that rebinds its own name to us does not.

    Raises:
        OSError: the address is in use or not ours.
    """

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A connection that is open when the loop ends is cancelled; asyncio 3.11 would report that as an error.
        with contextlib.suppress(asyncio.CancelledError):
            await _converse(reader, writer, handle, is_loopback(host))

    return await asyncio.start_server(converse, host, port, reuse_address=True)


async def _converse(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, handle: Callable[[str], Awaitable[Answer]], direct: bool
) -> None:
    with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        async with asyncio.timeout(_REQUEST_SECONDS):
            head = await reader.readuntil(b"\r\n\r\n")
        writer.write(await _respond(head, handle, direct))
        async with asyncio.timeout(_REQUEST_SECONDS):
            await writer.drain()
    with contextlib.suppress(OSError, TimeoutError):
        writer.close()
        async with asyncio.timeout(_REQUEST_SECONDS):
            await writer.wait_closed()


async def _respond(head: bytes, handle: Callable[[str], Awaitable[Answer]], direct: bool) -> bytes:
    lines = head.decode("latin-1").split("\r\n")
    words = lines[0].split(" ")
    if len(words) != 3 or not words[1].startswith("/") or not words[2].startswith("HTTP/1."):
        answer, method = text(400, "bad-request"), "GET"
    elif direct and not _is_direct(lines[1:]):
        answer, method = text(403, "host"), words[0]
    elif words[0] not in ("GET", "HEAD"):
        answer, method = text(405, "only-get"), words[0]
    else:
        answer, method = await handle(words[1].partition("?")[0]), words[0]
    reply = (
        f"HTTP/1.1 {answer.status} {_REASONS.get(answer.status, 'Unknown')}",
        f"Content-Type: {answer.kind}",
        f"Content-Length: {len(answer.body)}",
        "Cache-Control: no-store",
        "X-Content-Type-Options: nosniff",
        "Connection: close",
    )
    return "\r\n".join(reply).encode() + b"\r\n\r\n" + (b"" if method == "HEAD" else answer.body)


def _is_direct(headers: list[str]) -> bool:
    """Whether the Host header, where there is one, is an address or localhost."""
    for header in headers:
        name, _, value = header.partition(":")
        if name.strip().lower() == "host":
            host = value.strip().rpartition(":")[0] if re.search(r":\d*\Z", value.strip()) else value.strip()
            return host == "localhost" or re.fullmatch(r"[0-9.]+|\[[0-9A-Fa-f:.]+\]", host) is not None
    return True


async def get(host: str, port: int, path: str, seconds: float) -> Answer | None:
    """Ask a service on loopback; None when it does not answer in time or not in HTTP."""
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(seconds):
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(f"GET {path} HTTP/1.0\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n".encode())
            raw = await reader.read(_LARGEST_BODY)
            while chunk := await reader.read(_LARGEST_BODY - len(raw)):
                raw += chunk
        head, _, body = raw.partition(b"\r\n\r\n")
        return Answer(int(head.split(b" ", 2)[1]), body)
    except (OSError, TimeoutError, ValueError, IndexError):
        return None
    finally:
        if writer is not None:
            writer.close()
